"""A batch in parts, the micro-batches, whose gradients are computed one after the other.

Losses are means over the batch, so each part counts by its share of it. Random numbers are drawn
for the whole batch, in the order in which a step in one part draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.engine.draws import Draw, RowDraws, Shape

NO_CONTEXT = nullcontext()


class Part(NamedTuple):
    """Some items of a batch."""

    share: float
    """Of the items of the batch."""
    draws: AbstractContextManager[Any]
    """To be entered around whatever draws random numbers, once."""
    tensors: list[Tensor]
    """The part's rows of each tensor."""

    def weighed(self, mean: Tensor) -> Tensor:
        """Turn a mean over the part's items into its share of the batch's mean."""
        return mean if self.share == 1 else self.share * mean


class Split:
    """Splits batches into micro-batches.

    Args:
        size: items in each but the last, which may have fewer; None: the whole batch.
        draws: entered around whatever draws random numbers, such as
            `training.engine.workers.Workers.draws`.
    """

    def __init__(
        self, size: int | None = None, draws: AbstractContextManager[Any] = NO_CONTEXT
    ) -> None:
        self.draws, self.size = draws, size

    def __call__(self, *tensors: Tensor) -> Iterator[Part]:
        """Yield the parts of a batch.

        Args:
            tensors: each ``(N, ...)``.
        """
        count = len(tensors[0])
        size = self.size or count
        if size >= count:  # a private batch may have no rows
            yield Part(1.0, self.draws, list(tensors))
            return
        numbers = list[Tensor]()
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            draws = self._within(_PartDraws(rows, count, numbers))
            share = (rows.stop - rows.start) / count
            yield Part(share, draws, [tensor[rows] for tensor in tensors])

    def map(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Apply a function part by part, one that draws nothing and treats each item alone."""
        results = [function(*part.tensors) for part in self(*tensors)]
        return results[0] if len(results) == 1 else torch.cat(results)

    @contextmanager
    def _within(self, draws: AbstractContextManager[Any]) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.draws)
            stack.enter_context(draws)
            yield


WHOLE = Split()
"""Leaves every batch in one part."""


class _PartDraws(RowDraws):
    """Gives a part its rows of numbers that are drawn once for all parts."""

    over = "micro-batches"

    def __init__(self, rows: slice, size: int, numbers: list[Tensor]) -> None:
        """Take the list of the numbers drawn so far, which the parts of a batch share."""
        super().__init__(rows, size)
        self._numbers, self._count = numbers, 0

    def whole(self, shape: Shape, draw: Draw) -> Tensor:
        """Draw in the first part, and remember for the others."""
        if self._count == len(self._numbers):
            self._numbers.append(draw(shape, None))
        self._count += 1
        return self._numbers[self._count - 1]
