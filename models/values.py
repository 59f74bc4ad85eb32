"""Values of items: their checks, and their range as it is written."""

from __future__ import annotations

import math

import numpy as np

from models.errors import ShapeError

Array = np.ndarray
OWN = "own"
"""The range of images that keep the units of their data."""


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


def with_channels_last(images: Array, shape: tuple[int, ...]) -> Array:
    """Bring images to ``(N, H, W, C)``, if they are ``(N, C, H, W)``, or ``(N, H, W)`` and C is 1.

    Args:
        images: an array of any shape; one that is neither is returned as it is.
        shape: ``(C, H, W)`` of the images that are wanted.
    """
    channels, *size = shape
    if images.shape[1:] == tuple(size) and channels == 1:
        return images[..., None]
    if images.shape[1:] == shape != (*size, channels):
        return images.transpose(0, 2, 3, 1)
    return images


def pixels(values: Array) -> Array:
    """Return whole numbers from 0 to 255 as uint8.

    Raises:
        ShapeError: the values are no such numbers.
    """
    values = numbers(values)
    if values.min() < 0 or values.max() > 255 or (values % 1).any():
        raise ShapeError("pixels are whole numbers from 0 to 255")
    return values.astype(np.uint8)


def ends_of(values: str) -> tuple[float, float]:
    """The two ends of a range of values.

    >>> ends_of("-1..1")
    (-1.0, 1.0)

    Raises:
        ValueError: it is no such range.
    """
    try:
        low, high = map(float, values.split(".."))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"write LOW..HIGH, such as 0..1, or {OWN}")
    return low, high
