"""Memory: what is freed stays for the next step; a step that finds too little says what helps."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import ValidationError

from models.config import Config

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_LARGE = 2**30
"""Bytes: larger blocks, such as a data set, go back to the system when they are freed."""
SHORTAGES = "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED"
"""What torch says where it has no type for it."""


@contextmanager
def shortage_told(config: Config, processes: int = 1) -> Iterator[None]:
    """Say which settings need less, where the steps of a run find too little memory.

    Args:
        config: the run's.
        processes: that share a batch.

    Raises:
        MemoryError: there is too little, on the processor or on a GPU.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (
            isinstance(error, MemoryError | torch.OutOfMemoryError)
            or any(shortage in str(error) for shortage in SHORTAGES)
        ):
            raise
        raise MemoryError(_what_helps(config, processes)) from error


def _what_helps(config: Config, processes: int) -> str:
    settings = config.training
    own = settings.batch_size // processes
    at_once = min(settings.micro_batch_size or own, own)
    ways = list[str]()
    smaller: dict[str, dict[str, object]] = {"training": {"micro_batch_size": at_once // 2}}
    if _is_allowed(config, smaller):  # which 0 is not
        ways.append(f"training.micro_batch_size={at_once // 2}")
    elif _is_allowed(config, {**smaller, "generator": {"normalization": "layer"}}):
        ways.append(f"training.micro_batch_size={at_once // 2} with generator.normalization=layer")
    if config.privacy is None and not settings.activation_checkpointing:
        ways.append("training.activation_checkpointing=true")
    help_ = " or ".join([*ways, "smaller networks"])
    return f"for a step with gradients of {at_once} items at once: set {help_}, and another --out"


def _is_allowed(config: Config, changes: dict[str, dict[str, object]]) -> bool:
    values = config.model_dump()
    for section, settings in changes.items():
        values[section] |= settings
    try:
        Config.model_validate(values)
    except ValidationError:
        return False
    return True


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
