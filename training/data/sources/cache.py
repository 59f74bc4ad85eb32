"""Decoded items on the disk, read through a memory map, so that memory does not grow with them."""

from __future__ import annotations

import hashlib
import mmap

import numpy as np

from training.progress import track

Array = np.ndarray
DIGEST_BYTES = 16
AT_ONCE = 1024
"""Items read between two releases of memory."""


def items_at(items: Array, indices: Array) -> Array:
    """Copy the items at ``indices``, and free the memory that reading them from a map has taken."""
    copies = items[indices]
    release(items)
    return copies


def release(items: Array) -> None:
    """Unmap what was read of a memory map; the system may keep it in its own file cache.

    Without this, each page that was ever touched counts as resident memory of the process.
    """
    if hasattr(items, "release"):  # packed codes are in several maps
        items.release()
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
