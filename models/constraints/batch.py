"""Statistics over a whole batch, even where training divides it over processes or into parts.

Means over samples do not need this: the mean of the processes' gradients is their gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_in_parts: ContextVar[Tensor | None] = ContextVar("in_parts", default=None)
"""The batch that comes in parts, while one does."""


@contextmanager
def in_parts(samples: Tensor) -> Iterator[None]:
    """Have `batch_std` of a part be that of the batch, ``(N, *shape)``, while it comes in parts."""
    token = _in_parts.set(samples)
    try:
        yield
    finally:
        _in_parts.reset(token)


def batch_std(samples: Tensor) -> Tensor:
    """Compute the standard deviation of all values of the batch, a scalar without a gradient.

    Args:
        samples: ``(N, *shape)``, this process's rows; every process has as many. Within `in_parts`
            some of them.
    """
    batch = _in_parts.get()
    samples = (samples if batch is None else batch).detach()
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
