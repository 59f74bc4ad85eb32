"""The processes that train one model together, as torchrun starts them.

Together they do what one process would: the batch is divided over them, random numbers are drawn
for the whole batch and divided with it, and gradients are averaged, whatever made them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before `join`, which says why
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.errors import ConfigError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workers:
    """One process's view of all; the default is a process alone."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes, judges and registers."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a batch.

        Raises:
            ConfigError: the batch does not divide.
        """
        if batch_size % self.count:
            raise ConfigError(
                f"training.batch_size: {batch_size} does not divide over {self.count} processes; "
                f"set a multiple of {self.count}"
            )
        share = batch_size // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def draws(self, batch_size: int) -> AbstractContextManager[Any]:
        """Within it, random numbers for this process's rows are its part of the whole batch's."""
        if self.count == 1:
            return nullcontext()
        return _DividedDraws(self.rows(batch_size), batch_size)

    def prepare(self, network: nn.Module) -> nn.Module:
        """Make batch normalisation take its statistics from the whole batch.

        Raises:
            ConfigError: there is some, and no CUDA: torch synchronises it there only.
        """
        batch_norm = nn.modules.batchnorm._BatchNorm
        if self.count == 1 or not any(isinstance(m, batch_norm) for m in network.modules()):
            return network
        if self.device.type != "cuda":
            raise ConfigError(
                "normalization: 'batch' is synchronised over processes on CUDA only; "
                "use 'layer', or one process"
            )
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]

    def average_gradients(self, network: nn.Module) -> None:
        """Replace each gradient by its mean over processes: one exchange, of one flat buffer.

        After the backward and not during it, as hooks on parameters would be: it does not matter
        then how often a penalty's graph visits a parameter.
        """
        if self.count == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a scalar over processes."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.count == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32, device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def wait(self) -> None:
        """Until every process is here: none may leave while the main one still writes."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """No more is to be exchanged."""
        if self.count > 1:
            dist.destroy_process_group()


ALONE = Workers()


def join(device_type: str) -> Workers:
    """Meet the other processes that torchrun started, if it started this one.

    Args:
        device_type: ``cpu`` or ``cuda``; of several CUDA devices, each process takes its own.
    """
    # By now `torch.distributed.nn` must be imported, as above. Its functions take the group of
    # that moment for their default; imported by a captured step they would keep this one alive, and
    # its threads, if they outlive `leave`, may abort the process when the interpreter ends.
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Workers(device=torch.device(device_type))
    device = torch.device(device_type)
    if device_type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return Workers(dist.get_rank(), count, device)


class _DividedDraws(TorchFunctionMode):
    """Draws for every process's rows, in one process's order, and keeps its own.

    The first axis may be several batches long, as for real and fake samples together.
    """

    def __init__(self, rows: slice, batch_size: int) -> None:
        super().__init__()
        self.rows = rows
        self.batch_size = batch_size

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            shape = kwargs.pop("size", None) or args
            shape = shape[0] if isinstance(shape[0], tuple | list | torch.Size) else shape
            return self._own(lambda size: func(size, **kwargs), tuple(shape))
        if func in (torch.rand_like, torch.randn_like):
            like = args[0]
            plain = torch.rand if func is torch.rand_like else torch.randn
            of = {"dtype": like.dtype, "device": like.device, **kwargs}
            return self._own(lambda size: plain(size, **of), like.shape)
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_):
            x, *rest = args
            drawn = self._own(lambda size: func(x.new_empty(size), *rest, **kwargs), x.shape)
            return x.copy_(drawn)
        if func is F.dropout:
            x, *rest = args
            mask = self._own(lambda size: func(x.new_ones(size), *rest, **kwargs), x.shape)
            return x * mask
        if func in _INDIVISIBLE:
            raise RuntimeError(f"{func.__name__} cannot be divided over processes; draw otherwise")
        return func(*args, **kwargs)

    def _own(self, draw: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
        share = self.rows.stop - self.rows.start
        batches, rest = divmod(shape[0], share)
        if rest:
            raise RuntimeError(f"a draw of {shape[0]} rows is no multiple of the batch's {share}")
        whole = draw((batches * self.batch_size, *shape[1:]))
        return torch.unflatten(whole, 0, (batches, self.batch_size))[:, self.rows].flatten(0, 1)


_INDIVISIBLE = {
    torch.normal,
    torch.bernoulli,
    torch.multinomial,
    torch.randint,
    torch.randint_like,
    torch.randperm,
    torch.Tensor.bernoulli_,
    torch.Tensor.exponential_,
    torch.Tensor.random_,
    F.alpha_dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.feature_alpha_dropout,
}
