"""Statistics over a whole batch, which training may have divided over processes.

A mean over samples needs none of this: the mean of the processes' gradients is its gradient.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def batch_std(samples: Tensor) -> Tensor:
    """Standard deviation of all values of the batch, a scalar without a gradient.

    Args:
        samples: ``(N, *shape)``, this process's rows, as many as every other's.
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
    """Largest of the batch's values, a scalar whose gradient is that of the sample it is of.

    Args:
        values: ``(N,)``, of this process's samples.
    """
    own = values.amax()
    if not _is_divided():
        return own
    largest = own.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    owners = (own.detach() == largest).to(own.dtype)
    share = owners.clone()
    dist.all_reduce(share)
    # The processes' gradients will be averaged, and only the owner has any.
    weight = owners * dist.get_world_size() / share
    return largest + weight * (own - own.detach())


def _is_divided() -> bool:
    return dist.is_available() and dist.is_initialized()
