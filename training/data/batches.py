"""Batches of training items, in an order that a resumed run continues."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from training.data.dataset import Dataset
from training.data.sources.cache import items_at

Array = np.ndarray
MAX_BYTES_ON_DEVICE = 2**30
"""Data sets up to this size are kept whole in a GPU's memory."""
BATCHES_AT_ONCE = 256
"""Batches chosen at once: choosing builds permutations of all training items."""


class TrainingItems:
    """The training items by number: in a GPU's memory if they fit, else read batch by batch.

    Args:
        data: what to train on.
        device: where `take` puts items.
        whole: hold all items on the device, if they fit; by default on a GPU only.
        indices: of other items than those to train on, int64 ``(count,)``.
    """

    on_device: Tensor | None
    """All of them, in data units, if they are held."""
    labels_on_device: Tensor | None
    """The labels of all, int64 ``(count,)``, if there are any."""

    def __init__(
        self,
        data: Dataset,
        device: torch.device,
        whole: bool | None = None,
        indices: Array | None = None,
    ) -> None:
        self._items, self._device = data.items, device
        self._indices = np.flatnonzero(data.is_training) if indices is None else indices
        whole = device.type == "cuda" if whole is None else whole
        fits = data.items.nbytes <= MAX_BYTES_ON_DEVICE
        self.on_device = (
            torch.from_numpy(data.items_at(self._indices)).to(device) if whole and fits else None
        )
        self.labels_on_device = (
            None if data.labels is None else torch.from_numpy(data.labels[self._indices]).to(device)
        )

    def __len__(self) -> int:
        return len(self._indices)

    def take(self, numbers: Array) -> Tensor:
        """Items number ``numbers``, int64 ``(B,)``, in data units and on the device."""
        if self.on_device is not None:
            return self.on_device[self._sent(torch.from_numpy(numbers))]
        return self._sent(self.read(numbers))

    def read(self, numbers: Array) -> Tensor:
        """Items number ``numbers``, int64 of any shape, in data units and on the CPU."""
        items = items_at(self._items, self._indices[numbers.reshape(-1)])
        return torch.from_numpy(items).view(*numbers.shape, *items.shape[1:])

    def labels(self, numbers: Array) -> Tensor:
        """Labels int64 ``(B,)`` of items number ``numbers``, on the device."""
        assert self.labels_on_device is not None, "these items have no labels"
        return self.labels_on_device[self._sent(torch.from_numpy(numbers))]

    def _sent(self, values: Tensor) -> Tensor:
        """On the device: to a GPU through pinned memory, so that nobody waits for the copy."""
        pinned = values.pin_memory() if self._device.type == "cuda" else values
        return pinned.to(self._device, non_blocking=True)


def batches(seed: int, count: int, size: int, first: int) -> Iterator[Array]:
    """Yield, without end, the numbers of the items in each batch of a run.

    Args:
        seed: the run's.
        count: training items.
        size: items in a batch.
        first: batches to skip, so that a resumed run goes on where it was.

    Yields:
        int64 ``(size,)``, each below ``count``; see `batch_indices`.
    """
    while True:
        numbers = batch_indices(seed, count, first * size, BATCHES_AT_ONCE * size)
        yield from numbers.reshape(BATCHES_AT_ONCE, size)
        first += BATCHES_AT_ONCE


def batch_indices(seed: int, count: int, first: int, size: int) -> Array:
    """Items number ``first`` to ``first + size`` of the endless training order.

    The order is one random permutation after another, each a function of (seed, its number), so
    a resumed run needs to remember nothing but its position.

    Args:
        seed: the run's.
        count: training items.
        first: position in the order.
        size: how many items.

    Returns:
        int64 ``(size,)``, each below ``count``.
    """
    last = first + size
    parts = [
        _permutation(seed, count, epoch)[max(first - epoch * count, 0) : last - epoch * count]
        for epoch in range(first // count, (last - 1) // count + 1)
    ]
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def _permutation(seed: int, count: int, epoch: int) -> Array:
    return np.random.default_rng([seed, epoch]).permutation(count)
