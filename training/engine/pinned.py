"""Copies to a GPU that neither wait for it nor run far ahead of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AHEAD = 16
"""Copies that may still wait for the device: so many buffers there are. Too few would let the
device wait for a processor that was busy for some steps; more only take memory."""


class PinnedRing:
    """Copies tensors of one shape to a device, on a GPU through a ring of pinned buffers.

    Only from pinned memory does a copy go on while the processor does something else. Buffers that
    are taken anew for each copy would have no bound: the processor asks for hundreds of steps that
    are graphs before the first is done. Here it waits when it is `AHEAD` copies ahead.

    Args:
        like: a tensor of the shape and the type, on the CPU.
        device: to copy to.
    """

    def __init__(self, like: Tensor, device: torch.device) -> None:
        count = AHEAD if device.type == "cuda" else 0
        event: Callable[[], torch.cuda.Event] = torch.cuda.Event
        self._ring = [(torch.empty_like(like).pin_memory(), event()) for _ in range(count)]
        self._next = 0

    def send(self, values: Tensor, target: Tensor) -> None:
        """Copy values of the CPU into a tensor on the device, in its current stream's order."""
        if not self._ring:
            target.copy_(values)
            return
        buffer, is_read = self._ring[self._next]
        self._next = (self._next + 1) % len(self._ring)
        is_read.synchronize()  # at once, if the buffer is new
        buffer.copy_(values)
        target.copy_(buffer, non_blocking=True)
        is_read.record()
