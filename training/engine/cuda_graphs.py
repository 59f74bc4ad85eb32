"""CUDA graphs of steps in parts, and what stands for them where there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

Replay = Callable[[], None]
Parts = Callable[[], Iterator[Tensor]]
"""Runs a step in parts; what one yields is exchanged before the next."""
Exchange = Callable[[Tensor], None]


class Graphs(Protocol):
    """Captures steps over static buffers."""

    def run(self, function: Callable[[], None]) -> None:
        """Run a function as it is, where steps will be captured."""

    def capture(self, parts: Parts, exchange: Exchange) -> Replay:
        """Capture what a step does to tensors, and return what does that again.

        Args:
            parts: of the step; they are captured without an exchange.
            exchange: between parts, whenever the step is made again.
        """


def captured_in_parts(
    capture: Callable[[Callable[[], None]], Replay], parts: Iterator[Tensor], exchange: Exchange
) -> Replay:
    """Capture each part of a step by itself, and return what makes the step again.

    Args:
        capture: of a function.
        parts: see `Graphs.capture`.
        exchange: likewise.
    """
    pieces = list[tuple[Replay, list[Tensor]]]()
    while not pieces or pieces[-1][1]:
        exchanged = list[Tensor]()

        def part(found: list[Tensor] = exchanged) -> None:
            found.extend(islice(parts, 1))

        pieces.append((capture(part), exchanged))

    def replay() -> None:
        for piece, exchanged in pieces:
            piece()
            for values in exchanged:
                exchange(values)

    return replay


class CudaGraphs:
    """CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], None]) -> None:
        """See `Graphs`; on the stream of the capture, where autograd's nodes are to be too."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            function()
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, parts: Parts, exchange: Exchange) -> Replay:
        """See `Graphs`."""
        return captured_in_parts(self._captured, parts(), exchange)

    def _captured(self, function: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer stream is set again at the end, also where a broken capture leaves its own.
            # NCCL's own thread may look at events meanwhile, so only this thread is watched.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ),
            ):
                function()
        except Exception:
            # CUDA broke the capture off. Torch then leaves its generator in it, where every later
            # draw would fail: a copy of the generator's state is out of it. Some of its releases,
            # 2.11 among them, leave the allocator in it too, and refuse all later graphs.
            device = torch.cuda.current_device()
            generator = torch.cuda.default_generators[device]
            generator.graphsafe_set_state(generator.clone_state())
            with suppress(RuntimeError):  # the first line raises where the allocator is out
                torch._C._cuda_endAllocateToPool(device, self._pool)
                torch._C._cuda_releasePool(device, self._pool)
            raise
        return graph.replay


class NoGraphs:
    """A stand-in where there are no CUDA graphs: it runs the steps themselves."""

    def run(self, function: Callable[[], None]) -> None:
        """See `Graphs`."""
        function()

    def capture(self, parts: Parts, exchange: Exchange) -> Replay:
        """See `Graphs`."""

        def replay() -> None:
            for values in parts():
                exchange(values)

        return replay


def graphs_on(device: torch.device) -> Graphs:
    """The graphs of a device."""
    return CudaGraphs() if device.type == "cuda" else NoGraphs()
