"""The last items of a kind in a file: their number so far, then the items, in a ring."""

from __future__ import annotations

import math
from typing import IO

import numpy as np

Array = np.ndarray
COUNT_BYTES = np.dtype(np.int64).itemsize
"""Bytes at the start of the file: the number of items so far."""


def put(file: IO[bytes], count: int, size: int, items: Array) -> None:
    """Put items in a ring, where they take the places of the oldest.

    Args:
        file: the ring; the caller holds its lock.
        count: items so far.
        size: items that the ring holds.
        items: ``(N, ...)``; of more than the ring holds the last.
    """
    kept, end = items[-size:], count + len(items)
    begin, item_bytes = (end - len(kept)) % size, items.itemsize * math.prod(items.shape[1:])
    for slot, part in ((begin, kept[: size - begin]), (0, kept[size - begin :])):
        file.seek(COUNT_BYTES + slot * item_bytes)
        file.write(part.tobytes())
    file.seek(0)
    file.write(np.int64(end).tobytes())
