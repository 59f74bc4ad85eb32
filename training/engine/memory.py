"""Keeping freed memory in the process, since each step asks for the same again."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_LARGE = 2**30
"""Bytes: larger blocks, such as a data set, go back to the system when they are freed."""


def keep_freed_memory() -> None:
    """Make glibc's allocator keep what is freed, for as long as the process lives.

    By default it returns large blocks to the system, which clears and maps their pages again at
    the next step, one page fault for each 4 KiB: a tenth of the time of a convolutional critic's
    step, and more on a busy machine. With other allocators nothing changes.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
