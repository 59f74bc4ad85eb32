"""The processes that train one model together, as torchrun starts them.

Together they do what one process would: the batch is divided over them, random numbers are drawn
for the whole batch and divided with it, and gradients are averaged, whatever made them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before `join_workers`, which says why
from torch import Tensor, nn

from models.command_line import EXIT_INTERRUPTED
from models.device import require_device
from models.errors import ConfigError, UserError
from models.networks.parts import MinibatchStatistics
from training.engine.draws import RowDraws
from training.progress import never

CPU = torch.device("cpu")
END = "end"
"""Key of the main process's exit code in the store."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Workers:
    """One of the processes that train a model together; by default the only one."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    store: dist.distributed_c10d.Store | None = None
    """Shared by the processes, for as long as the main one's torchrun is there."""

    @property
    def is_alone(self) -> bool:
        """True if there is no other process to exchange anything with."""
        return self.count == 1

    @property
    def is_main(self) -> bool:
        """True in the one process that writes, judges and registers."""
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
        """Make a context in which random numbers are this process's part of the whole batch's."""
        if self.is_alone:
            return nullcontext()
        return _DividedDraws(self.rows(batch_size), batch_size)

    def prepare(self, network: nn.Module) -> nn.Module:
        """Make batch normalisation take its statistics from the whole batch.

        Raises:
            ConfigError: there is some, and no CUDA: torch synchronises it there only; or there
                are minibatch statistics, whose running mean would be one process's.
        """
        if not self.is_alone and any(isinstance(m, MinibatchStatistics) for m in network.modules()):
            raise ConfigError(
                "critic.minibatch_statistics: are not shared by processes; train in one process, "
                "or leave them out"
            )
        batch_norm = nn.modules.batchnorm._BatchNorm
        if self.is_alone or not any(isinstance(m, batch_norm) for m in network.modules()):
            return network
        if self.device.type != "cuda":
            raise ConfigError(
                "normalization: 'batch' is synchronised over processes on CUDA only; "
                "use 'layer', or one process"
            )
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]

    def averaged(self, network: nn.Module) -> Iterator[Tensor]:
        """Replace each gradient by its mean over processes: one exchange, of one flat buffer.

        It comes after the backward, not in hooks on parameters during it: then it does not matter
        how often a penalty's graph visits a parameter.

        Yields:
            The buffer, which `add_up` is to add up; nothing in a process that is alone.
        """
        if self.is_alone:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        yield flat
        flat /= self.count
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def add_up(self, values: Tensor) -> None:
        """Replace values by their sums over processes."""
        dist.all_reduce(values)

    def mean(self, value: Tensor) -> Tensor:
        """Average a scalar over processes."""
        if self.is_alone:
            return value
        total = value.detach().clone()
        self.add_up(total)
        return total / self.count

    def any(self, flag: bool) -> bool:
        """Ask if the flag is true in any process."""
        if self.is_alone:
            return flag
        # On the CPU, also where they train on GPUs: nobody waits for a GPU's steps.
        flags = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    @contextmanager
    def main_holds(self, context: AbstractContextManager[object]) -> Iterator[None]:
        """Let the main process alone enter a context; where it cannot, all end alike.

        Raises:
            UserError: what the main process got; in the others, that it got one.
        """
        with ExitStack() as stack:
            self.main_checks(lambda: stack.enter_context(context))
            yield

    def main_checks(self, check: Callable[[], object]) -> None:
        """Let the main process alone check something; where it refuses, all end alike.

        Raises:
            UserError: what the main process got; in the others, that it got one.
        """
        refusal = None
        if self.is_main:
            try:
                check()
            except UserError as error:
                refusal = error
        if self.any(refusal is not None):
            self.leave()
            raise refusal or UserError("the main process cannot begin, and says why")

    def wait(self) -> None:
        """Wait for every process: none may leave while the main one still writes."""
        self.any(False)

    def leave(self) -> None:
        """End the exchange with the other processes."""
        if not self.is_alone:
            dist.destroy_process_group()

    def end_alike(self, code: int, stop_requested: Callable[[], bool] = never) -> int:
        """Choose the exit code: that of the main process, for which the others wait.

        A process that had ended well before would not be there when the main one, after an
        interruption, is started again.

        Args:
            code: of this process.
            stop_requested: see `training.engine.loop.train`.

        Returns:
            The main process's code; 75 if it has gone without one, or a stop was requested.
        """
        if self.store is None or (code and not self.is_main):
            return code
        if self.is_main:
            self.store.set(END, str(code))
            return code
        while not stop_requested():
            try:
                if self.store.check([END]):
                    return int(self.store.get(END))
            except dist.DistError:
                break
            time.sleep(POLL_SECONDS)
        return EXIT_INTERRUPTED


ALONE = Workers()


def join_workers(device_type: str | None = None) -> Workers:
    """Choose the device, and join the other processes that torchrun started, if it started any.

    Args:
        device_type: ``cpu`` or ``cuda``, by default CUDA if there is one; of several CUDA devices
            each process takes its own.

    Raises:
        UserError: there is no CUDA device.
    """
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    device = require_device(device_type)
    # `torch.distributed.nn` must be imported before, as above: the default group of its functions
    # is that of the moment of import. Imported later, by a captured step, they would keep this
    # group alive after `leave`, and its threads may abort the process when the interpreter ends.
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Workers(device=device)
    if device_type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    store, rank, count = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        store=dist.distributed_c10d.PrefixStore("group", store),
        rank=rank,
        world_size=count,
    )
    return Workers(rank, count, device, store)


class _DividedDraws(RowDraws):
    """Draws for every process's rows, in one process's order, and keeps its own."""

    over = "processes"
