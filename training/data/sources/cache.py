"""Decoded items on the disk, read as they are needed, so that memory does not grow with them."""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from training.progress import track

Array = np.ndarray
DIGEST_BYTES = 16
AT_ONCE = 1024
"""Items read between two releases of memory."""


class StoredRows:
    """Small rows of numbers in a file, read one by one.

    A memory map takes eight times as long for rows of some hundred bytes at random: each touches a
    page of its own, which the system maps anew once `release` has given it back.
    """

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, int]) -> None:
        """Open a file.

        Args:
            path: holds the rows one after the other, and nothing else.
            dtype: of the numbers.
            shape: ``(N, D)``.
        """
        self.dtype, self.shape = np.dtype(dtype), shape
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        """Read rows by a slice, a mask or their numbers, from 0 on: ``(n, D)``."""
        if isinstance(rows, slice):
            numbers = np.arange(len(self))[rows]
        else:
            numbers = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
        size = self.shape[1] * self.dtype.itemsize
        read = (os.pread(self._file, size, first) for first in (numbers * size).tolist())
        return np.frombuffer(b"".join(read), self.dtype).reshape(len(numbers), self.shape[1])


def items_at(items: Array, indices: Array) -> Array:
    """Copy the items at ``indices``, and free the memory that reading them from a map has taken."""
    copies = items[indices]
    release(items)
    return copies


def release(items: Array) -> None:
    """Unmap what was read of a memory map; the system may keep it in its own file cache.

    Without this, each page that was ever touched counts as resident memory of the process.
    """
    mapped = getattr(items, "_mmap", None)  # None of an array, and of a map's copy in memory
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def item_digests(items: Array) -> Array:
    """Hash each item's bytes (BLAKE2b): uint8 ``(N, 16)``."""
    digests = np.empty((len(items), DIGEST_BYTES), np.uint8)
    for i, item in enumerate(track(items.view(np.ndarray), "hashing items")):
        digest = hashlib.blake2b(item.tobytes(), digest_size=DIGEST_BYTES).digest()
        digests[i] = np.frombuffer(digest, np.uint8)
        if i % AT_ONCE == 0:
            release(items)
    release(items)
    return digests
