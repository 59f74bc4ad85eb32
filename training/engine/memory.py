"""Freed memory that stays with the process: each step asks for the same again."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_LARGE = 2**30
"""Bytes: what is larger, such as a data set, goes back to the system when it is freed."""


def keep_freed_memory() -> None:
    """Let glibc's allocator keep what is freed, for as long as the process lives.

    By default it gives large blocks back, and the system clears and maps their pages again at the
    next step, one page fault for each 4 KiB: a tenth of a convolutional critic's step, and more
    where neighbours are busy. Elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
