"""Work that takes a processor: in threads, as many at once as there are processors."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from prometheus_client import Gauge

from service.telemetry import Tracing

T = TypeVar("T")


class Processors:
    """Lets requests take turns at the processors; the event loop stays free for probes.

    Args:
        tracing: makes a span of each piece of work.
        waiting: gauge of the requests that wait for a processor.
    """

    def __init__(self, tracing: Tracing, waiting: Gauge) -> None:
        self.limiter = anyio.CapacityLimiter(count_processors())
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
        try:
            self.limiter.acquire_nowait()
        except anyio.WouldBlock:
            with self._waiting.track_inprogress():
                await self.limiter.acquire()
        try:
            yield
        finally:
            self.limiter.release()

    async def _in_thread(self, name: str, work: Callable[[], T]) -> T:
        with self._tracing.span(name):
            return await anyio.to_thread.run_sync(work, limiter=self._threads)


def count_processors() -> int:
    """Count the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
