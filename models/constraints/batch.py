"""Statistics over a whole batch, even where training divides it over processes.

Means over samples do not need this: the mean of the processes' gradients is their gradient.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def batch_std(samples: Tensor) -> Tensor:
    """Compute the standard deviation of all values of the batch, a scalar without a gradient.

    Args:
        samples: ``(N, *shape)``, this process's rows; every process has as many.
    """
    samples = samples.detach()
    if not _is_divided():
        return samples.std()
    values = samples.double()
    sums = torch.stack([values.sum(), values.square().sum()])
    dist.all_reduce(sums)
    n = values.numel() * dist.get_world_size()
    return ((sums[1] - sums[0].square() / n) / (n - 1)).sqrt().to(samples.dtype)


def batch_max(values: Tensor) -> Tensor:
    """Find the batch's largest value, a scalar; its gradient goes to the sample that has it.

    Args:
        values: ``(N,)``, one for each of this process's samples.
    """
    own = values.amax()
    if not _is_divided():
        return own
    largest = own.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    owners = (own.detach() == largest).to(own.dtype)
    share = owners.clone()
    dist.all_reduce(share)
    # The processes' gradients will be averaged, and only the owner's is not zero.
    weight = owners * dist.get_world_size() / share
    return largest + weight * (own - own.detach())


def _is_divided() -> bool:
    return dist.is_available() and dist.is_initialized()
