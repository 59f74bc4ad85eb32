"""Checks of the values of items that a caller gives."""

from __future__ import annotations

import numpy as np

from models.errors import ShapeError

Array = np.ndarray


def numbers(values: Array) -> Array:
    """Return values unchanged if they are finite numbers.

    Raises:
        ShapeError: they are not.
    """
    if values.dtype.kind not in "uif":
        raise ShapeError(f"the model takes numbers, not {values.dtype}")
    if not np.isfinite(values).all():
        raise ShapeError("the items hold NaN or infinite values")
    return values


def pixels(values: Array) -> Array:
    """Return whole numbers from 0 to 255 as uint8.

    Raises:
        ShapeError: the values are no such numbers.
    """
    values = numbers(values)
    if values.min() < 0 or values.max() > 255 or (values % 1).any():
        raise ShapeError("pixels are whole numbers from 0 to 255")
    return values.astype(np.uint8)
