"""Work that takes a processor: in threads, as many at once as there are processors."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from prometheus_client import Gauge

from service.telemetry import Tracing

T = TypeVar("T")
CGROUPS = Path("/sys/fs/cgroup")


CALLER: ContextVar[str] = ContextVar("caller", default="")
"""Who asked for the request that is being answered."""


class Turns:
    """Processors that are handed from caller to caller, so that each gets as many turns.

    In the order of requests, one that comes after a crowd of one caller's waits for all of them.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By caller, in the order of their next turns."""

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *error: object) -> None:
        self.release()

    @property
    def must_wait(self) -> bool:
        """True if no processor is free."""
        return self._free == 0

    async def acquire(self) -> None:
        """Take a processor; wait for it if none is free."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(CALLER.get(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came just then: the next one's
                self.release()
            raise

    def release(self) -> None:
        """Hand a processor to the next caller that waits."""
        while self._waiting:
            caller, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # behind the others
            if not turn.done():  # its request may have been given up
                turn.set_result(None)
                return
        self._free += 1


class Processors:
    """Lets callers take turns at the processors; the event loop stays free for probes.

    Args:
        tracing: makes a span of each piece of work.
        waiting: gauge of the requests that wait for a processor.
    """

    def __init__(self, tracing: Tracing, waiting: Gauge) -> None:
        self._turns = Turns(count_processors())
        self._threads = anyio.CapacityLimiter(math.inf)  # whoever has a processor gets a thread
        self._tracing = tracing
        self._waiting = waiting

    async def run(self, name: str, work: Callable[[], T]) -> T:
        """Do work in a thread when a processor is free, and trace it as ``name``."""
        async with self._processor():
            return await self._in_thread(name, work)

    async def run_unless(
        self, is_done: Callable[[], bool], name: str, work: Callable[[], None]
    ) -> None:
        """Do the same unless, when a processor is free, the work is already done."""
        async with self._processor():
            if not is_done():
                await self._in_thread(name, work)

    @contextlib.asynccontextmanager
    async def _processor(self) -> AsyncIterator[None]:
        """Hold a processor; wait for it if none is free."""
        with self._waiting.track_inprogress() if self._turns.must_wait else nullcontext():
            await self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    async def _in_thread(self, name: str, work: Callable[[], T]) -> T:
        with self._tracing.span(name):
            return await anyio.to_thread.run_sync(work, limiter=self._threads)


def count_processors() -> int:
    """Count the processors that this process may use: those it may run on, within its quota."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else min(count, math.ceil(quota))


def cpu_quota(own: Path = Path("/proc/self/cgroup"), mount: Path = CGROUPS) -> float | None:
    """Return the processors' time that the cgroup may use, in seconds a second; None: no quota.

    A container's CPU limit is such a quota: the process sees all processors of the machine, and is
    halted when its share of a period is used up. Those of the groups around it hold too.

    Args:
        own: names the groups of the process, as ``/proc/self/cgroup`` does.
        mount: where cgroups are mounted.
    """
    with contextlib.suppress(OSError):  # another system has no such file
        return min(_quotas(own.read_text(), mount), default=None)
    return None


def _quotas(groups: str, mount: Path) -> Iterator[float]:
    """Yield the quotas of each of the groups and of those around it; versions 1 and 2."""
    for line in groups.splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 1 has a hierarchy of its own; with both, that of version 2 lies beside it.
        places = [mount / "cpu", mount / "cpu,cpuacct"] if controllers else [mount]
        for place in places:
            # In a container its own group may be the root of what is mounted: `name` is not there.
            for folder in (group := place / name.lstrip("/"), *group.parents):
                yield from _quota(folder)
                if folder == place:
                    break


def _quota(folder: Path) -> Iterator[float]:
    """Yield the quota of one group, if it has one."""
    with contextlib.suppress(OSError, ValueError):  # no such file; or "max", which is no quota
        quota, period = map(int, (folder / "cpu.max").read_text().split())
        yield quota / period
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int((folder / f"cpu.cfs_{n}_us").read_text()) for n in ("quota", "period"))
        if quota > 0:  # -1 is no quota
            yield quota / period
