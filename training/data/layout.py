"""What the axes and the values of an array are: as they tell themselves, or as the user says."""

from __future__ import annotations

import math

import numpy as np

from models.config import DataConfig, Layout
from models.errors import DataError, ShapeError
from models.networks import SIDES
from models.record import DataCard, in_range
from models.values import OWN, ends_of

Array = np.ndarray
MOST_CHANNELS = 4
"""Of an axis that is taken for channels: grey, grey and transparency, RGB, RGBA."""
MAX_LEVEL = 255
NARROW = 0.1
"""Share of the range below which hardly any of it is used."""
MIDDLE = (0.005, 0.995)
"""Quantiles between which almost all values lie."""
MAX_MEASURED = 1_000_000
"""Values of a channel, at most, whose quantiles are taken."""


def require_use(config: DataConfig, is_array: bool, axes: int) -> None:
    """Require that what the user says of an array is said of one with such axes.

    Args:
        config: with the user's word.
        is_array: the data come from an array file.
        axes: of the items, with that of their number.

    Raises:
        DataError: a setting has no meaning for these data.
    """
    for name in ("key", "layout", "range"):
        if getattr(config, name) is None:
            continue
        if not is_array:
            raise DataError(f"{config.source}: data.{name} is for array files; leave it out (null)")
        if name != "key" and axes == 2:
            raise DataError(f"{config.source}: holds vectors; leave data.{name} out (null)")


def find_layout(items: Array, config: DataConfig, card: DataCard | None) -> Layout:
    """Tell the axes of an array of images or sequences, which has three or four.

    Args:
        items: the array.
        config: with the user's word.
        card: of the data that a model was trained on, if the array is for one.

    Raises:
        DataError: the shape fits several layouts or none, or not the one that was said.
    """
    shape = items.shape
    if config.layout:
        if len(config.layout) != len(shape):
            raise DataError(
                f"{config.source}: data.layout={config.layout} is for {len(config.layout)} axes, "
                f"not for the shape {shape}"
            )
        return config.layout
    if len(shape) == 3:
        return _three_axes(shape, items.dtype == np.uint8, config, card)
    axes = shape[1], shape[3]
    own = card.shape[0] if card and card.kind == "image" else None  # the model's channels
    second, last = (channels == own for channels in axes)
    if not (second or last):  # as of colour beside a grey model: others make it fit, or refuse it
        second, last = (channels <= MOST_CHANNELS for channels in axes)
    if last != second:
        return "nhwc" if last else "nchw"
    if last and card and own is not None:
        return card.layout or "nhwc"
    which = "both the second and the last" if last else "neither the second nor the last"
    raise DataError(
        f"{config.source}: of the shape {shape}, {which} axis can be the channels of images (1 to "
        f"{MOST_CHANNELS}): say data.layout=nhwc ({shape[3]} channels) or data.layout=nchw "
        f"({shape[1]} channels); volumes are not trained on"
    )


def _three_axes(
    shape: tuple[int, ...], is_uint8: bool, config: DataConfig, card: DataCard | None
) -> Layout:
    """The axes of grey images, or of sequences."""
    if card and card.kind == "image":
        return "nhw"
    if card and card.kind == "sequence":
        if shape[1] == shape[2]:
            return card.layout or "ntd"
        return "ndt" if shape[:0:-1] == card.shape else "ntd"
    can_be_images = min(shape[1:]) >= SIDES[0] or config.size is not None
    if is_uint8 and can_be_images:
        return "nhw"
    if is_uint8 or (can_be_images and shape[1] == shape[2]):
        raise DataError(
            f"{config.source}: the shape {shape} may be grey images or sequences: say "
            f"data.layout=nhw (images of {shape[2]}x{shape[1]} pixels) or data.layout=ntd "
            f"(sequences of {shape[1]} steps with {shape[2]} features)"
        )
    if shape[1] == 1 and shape[2] > 1:
        raise DataError(
            f"{config.source}: the shape {shape} would be sequences of one step: say "
            f"data.layout=ndt (sequences of {shape[2]} steps with one feature), or reshape it to "
            f"vectors ({shape[0]}, {shape[2]})"
        )
    return "ntd"


def arranged(items: Array, layout: Layout) -> Array:
    """Bring an array to ``(N, H, W, C)`` or ``(N, T, D)``."""
    match layout:
        case "nhw":
            return items[..., None]
        case "nchw":
            return items.transpose(0, 2, 3, 1)
        case "ndt":
            return items.transpose(0, 2, 1)
    return items


def find_range(images: Array, config: DataConfig) -> str | None:
    """Tell the values of black and white in images; None: 256 grey levels in uint8.

    Args:
        images: finite numbers.
        config: with the user's word.

    Raises:
        DataError: there are values outside what the user says.
    """
    told, low, high = config.range, float(images.min()), float(images.max())
    if images.dtype == np.uint8:
        if told not in (None, f"0..{MAX_LEVEL}"):
            raise DataError(
                f"{config.source}: holds uint8, which are grey levels (0..{MAX_LEVEL}); for "
                f"data.range={told} save it as float32"
            )
        return None
    if told is None:
        return _recognised(images, low, high)
    if told != OWN:
        ends = ends_of(told)
        outside = int(((images < ends[0]) | (images > ends[1])).sum())
        if outside:
            raise DataError(
                f"{config.source}: {outside} values lie outside data.range={told}: they go from "
                f"{low:g} to {high:g}"
            )
    return told


def _recognised(images: Array, low: float, high: float) -> str:
    if low >= 0 and high <= 1:
        return "0..1"
    if low >= -1 and high <= 1:
        return "-1..1"
    if low >= 0 and high <= MAX_LEVEL and are_whole(images):
        return f"0..{MAX_LEVEL}"
    return OWN


def are_whole(values: Array) -> bool:
    """True if no value has a fraction."""
    return values.dtype.kind in "ui" or bool((values % 1 == 0).all())


def in_units(images: Array, config: DataConfig, card: DataCard | None) -> tuple[Array, str | None]:
    """Bring images to the numbers that they are trained on, and tell their range.

    Args:
        images: finite numbers ``(N, H, W, C)``.
        config: with the user's word.
        card: of the data that a model was trained on: its units are kept. None: whole numbers from
            0 to 255 become uint8, and all others stay as they are.

    Raises:
        DataError: the values are outside the range that was said, or not in the model's units.
    """
    if card is None or card.scaling.is_uint8:
        found = find_range(images, config)
        if found is None:
            return images, None
        if found == f"0..{MAX_LEVEL}" and are_whole(images):
            return images.astype(np.uint8), found
        if card is None:
            return images, found
        if found == OWN:
            raise DataError(
                f"{config.source}: values from {images.min():g} to {images.max():g} are not in the "
                f"units of the model's images, whole numbers from 0 to {MAX_LEVEL}"
            )
        low, high = ends_of(found)
        return np.rint((images - low) * (MAX_LEVEL / (high - low))).astype(np.uint8), found
    try:
        return in_range(images, card), card.range
    except ShapeError as error:
        raise DataError(f"{config.source}: {error}") from None


def understood(card: DataCard) -> str:
    """Say how an array was read, in the settings' words; empty for other data."""
    told = {"layout": card.layout, "range": card.range}
    settings = [f"data.{name}={value}" for name, value in told.items() if value is not None]
    return f"; read as {' '.join(settings)}" if settings else ""


def channel_scale(known: Array, values: str) -> tuple[Array, Array]:
    """The offset and the scale of each channel, float64 ``(C,)``, by which images go to [-1, 1].

    Args:
        known: training items ``(N, H, W, C)``.
        values: their range.
    """
    if values == OWN:
        low, high = (f(known, axis=(0, 1, 2)).astype(np.float64) for f in (np.min, np.max))
    else:
        low, high = (np.full(known.shape[3], end) for end in ends_of(values))
    return (low + high) / 2, np.where(high > low, (high - low) / 2, 1)


def range_notes(known: Array) -> tuple[str, ...]:
    """Name the channels of images whose own range is hardly used, a line each.

    Args:
        known: training items ``(N, H, W, C)``.
    """
    notes = []
    for i, channel in enumerate(np.moveaxis(known, 3, 0)):
        some = channel.reshape(-1)[:: math.ceil(channel.size / MAX_MEASURED)]
        low, high = np.quantile(some, MIDDLE)
        width = float(channel.max()) - float(channel.min())
        if high - low < NARROW * width:
            notes.append(
                f"channel {i + 1}: 99% of the values lie between {low:g} and {high:g}, in "
                f"{(high - low) / width:.1%} of the range, because others are far away: take the "
                "logarithm, or cut those off"
            )
    return tuple(notes)
