"""What a data set is, what it looks like, and what is wrong with it, before any training."""

from __future__ import annotations

import numpy as np

from models.images import MODES, encode_png, enlarge, grid
from training.data.dataset import Dataset
from training.data.sources.cache import AT_ONCE, item_digests, release
from training.reporting.card import marginals

Array = np.ndarray
SHOWN = 64
SHOWN_CLASSES = 10
SHOWN_OF_A_CLASS = 8
COUNTED = 50_000
"""Rows, at most, behind a histogram."""
LEGIBLE = 32
FEW_ITEMS = 1000
FEW_OF_A_CLASS = 20
UNBALANCED = 10
FAR = 20
"""Interquartile ranges from the median beyond which a value is suspicious."""
COARSE = 1e4
"""Mean over standard deviation: beyond it float32, of 7 digits, keeps less than 3 of them."""
FEW_VALUES = 10


def picture(data: Dataset) -> bytes:
    """Draw items, as PNG: a grid of images, a row for each class; or a histogram of each column."""
    if data.card.kind != "image":
        rows = data.some(COUNTED, heldout=False).reshape(-1, data.items.shape[-1])
        return encode_png(marginals(data.card.columns, rows))
    if data.labels is None:
        images, columns = data.some(SHOWN, heldout=False), None
    else:
        classes = range(min(len(data.card.classes), SHOWN_CLASSES))
        of_each = [np.flatnonzero(data.labels == c)[:SHOWN_OF_A_CLASS] for c in classes]
        full = [np.resize(places, SHOWN_OF_A_CLASS) for places in of_each if len(places)]
        images, columns = data.take(np.concatenate(full)), SHOWN_OF_A_CLASS
    if images.shape[3] not in MODES:
        images = images[..., :1]
    return encode_png(grid(enlarge(images, max(1, LEGIBLE // max(images.shape[1:3]))), columns))


def problems(data: Dataset) -> list[str]:
    """What a user should know of a data set before training on it; one line each."""
    card = data.card
    found = [f"skipped {line}" for line in data.problems]
    if card.count < FEW_ITEMS:
        found.append(f"only {card.count} items: a critic soon knows them by heart")
    digests = item_digests(data.items) if data.digests is None else data.digests
    twins = card.count - len(np.unique(digests, axis=0))
    if twins:
        found.append(f"{twins} items are exact duplicates of others")
    if data.labels is not None:
        found += _of_classes(np.bincount(data.labels, minlength=len(card.classes)), card.classes)
    return found + (_of_images(data) if card.kind == "image" else _of_columns(data))


def _of_classes(counts: Array, classes: list[str]) -> list[str]:
    found = [
        f"class {name!r} has {count} items" if count else f"class {name!r} is empty"
        for name, count in zip(classes, counts.tolist(), strict=True)
        if count < FEW_OF_A_CLASS
    ]
    if counts.max() > UNBALANCED * max(counts.min(), 1):
        most, least = classes[counts.argmax()], classes[counts.argmin()]
        found.append(f"class {most!r} is over {UNBALANCED} times as frequent as {least!r}")
    return found


def _of_images(data: Dataset) -> list[str]:
    found = []
    height, width = data.card.shape[1:]
    if not 8 <= min(height, width) <= max(height, width) <= 128:
        found.append(f"images are {width}x{height}: networks take sides of 8 to 128; set data.size")
    blank = 0
    for first in range(0, len(data.items), AT_ONCE):
        some = data.items[first : first + AT_ONCE].reshape(-1, height * width, data.items.shape[3])
        blank += int((some == some[:, :1]).all(axis=(1, 2)).sum())
        release(data.items)
    if blank:
        found.append(f"{blank} images are of one colour all over")
    return found


def _of_columns(data: Dataset) -> list[str]:
    found = []
    rows = data.items.reshape(-1, data.items.shape[-1]).astype(np.float64)
    names = data.card.columns or [f"x{i + 1}" for i in range(rows.shape[1])]
    for name, values in zip(names, rows.T, strict=True):
        mean, sd = values.mean(), values.std()
        distinct = len(np.unique(values))
        if distinct == 1:
            found.append(
                f"column {name!r} is always {values[0]:g} in float32: leave it out, or subtract a "
                "constant if it does vary"
            )
            continue
        if abs(mean) > COARSE * sd:
            found.append(
                f"column {name!r} varies by {sd:.3g} about {mean:.6g}: float32 keeps few of its "
                "digits; subtract a constant"
            )
        first, median, third = np.quantile(values, [0.25, 0.5, 0.75])
        away = np.abs(values - median)
        far = away > FAR * (third - first)
        if third > first and far.any():
            found.append(
                f"column {name!r} has {far.sum()} values over {FAR} interquartile ranges from its "
                f"median, such as {values[away.argmax()]:g}"
            )
        if distinct <= FEW_VALUES:
            found.append(
                f"column {name!r} has only {distinct} different values: a generator also makes "
                "values between them"
            )
    return found
