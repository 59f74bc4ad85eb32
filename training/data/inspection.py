"""Checks of a data set before any training; each problem is one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from models.networks import size_problem
from models.tables import TableSchema
from training.data.dataset import Dataset
from training.data.digests import digest_order
from training.data.sources.cache import AT_ONCE, item_digests, release

Array = np.ndarray
FEW_ITEMS = 1000
FEW_ITEMS_IN_CLASS = 20
UNBALANCED_RATIO = 10
FAR_RANGES = 20
"""Interquartile ranges from the median beyond which a value is suspicious."""
MIN_TOLD_APART = 0.5
"""Share of a column's different values that must still differ as networks take them."""
DARK = 64
"""Grey levels that every set of images passes, if its values use their range."""
FEW_VALUES = 10
MOST_SHOWN = 6
"""Categories or spikes in a line."""
PHRASES = {
    "low": "from {}",
    "high": "to {}",
    "format": "written as {}",
    "decimals": "{} decimals",
    "spikes": "often {}",
    "categories": "{}",
    "others": "{} rare ones",
    "value": "always {}",
    "of": "copy of {}",
    "new": "new ones are {}",
    "reason": "{}",
    "missing": "missing {}",
}
"""What a line says of a column, in this order."""
UNLESS_0 = ("decimals", "others", "missing")
"""What is not worth saying of a column if it is 0."""


def problems(data: Dataset) -> list[str]:
    """List the problems that a user should know of before training on a data set, a line each."""
    card = data.card
    lines = [f"skipped {line}" for line in data.problems]
    if card.count < FEW_ITEMS:
        lines.append(f"only {card.count} items: a critic soon knows them by heart")
    digests = item_digests(data.items) if data.digests is None else data.digests
    ordered = digests[digest_order(digests)]
    twins = int((ordered[1:] == ordered[:-1]).all(axis=1).sum())
    if twins:
        lines.append(f"{twins} items are exact duplicates of others")
    if data.labels is not None:
        counts = np.bincount(data.labels, minlength=len(card.classes))
        lines += _class_problems(counts, card.classes)
    lines += data.notes
    return lines + (_image_problems(data) if card.kind == "image" else _column_problems(data))


def describe_columns(schema: TableSchema) -> list[dict[str, Any]]:
    """Describe each column of a table: its ``name``, ``kind``, ``type``, ``missing``, and more.

    Whole numbers are of the kind ``integer`` here, and columns that are not learned ``left_out``.
    """
    described = []
    for column in schema.columns:
        is_whole = column.kind == "number" and column.decimals == 0
        described.append(
            {
                "name": column.name,
                "kind": "integer" if is_whole else column.kind,
                "type": column.type,
                "missing": column.missing,
                **column.in_words(),
            }
        )
    left_out = schema.left_out.items()
    return described + [{"name": n, "kind": "left_out", "reason": reason} for n, reason in left_out]


def in_lines(columns: list[dict[str, Any]]) -> list[str]:
    """Put the columns of `describe_columns` in a line each, one below the other."""
    rows = []
    for column in columns:
        words = [
            phrase.format(_shortly(column[key]))
            for key, phrase in PHRASES.items()
            if column.get(key) not in (None, [], ()) and (column[key] or key not in UNLESS_0)
        ]
        rows.append((column["name"], column["kind"], column.get("type", ""), ", ".join(words)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        "  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]


def _shortly(field: Any) -> str:
    """A share or number, a text, or the first of several with the number of the others."""
    if isinstance(field, list | tuple):
        more = [f"{len(field) - MOST_SHOWN} more"] if len(field) > MOST_SHOWN else []
        return ", ".join([*map(_shortly, field[:MOST_SHOWN]), *more])
    if isinstance(field, float):
        return f"{field:.0f}" if field.is_integer() else f"{field:.6g}"
    return str(field)[:60]


def _class_problems(counts: Array, classes: list[str]) -> list[str]:
    lines = [
        f"class {name!r} has {count} items" if count else f"class {name!r} is empty"
        for name, count in zip(classes, counts.tolist(), strict=True)
        if count < FEW_ITEMS_IN_CLASS
    ]
    if counts.max() > UNBALANCED_RATIO * max(counts.min(), 1):
        most, least = classes[counts.argmax()], classes[counts.argmin()]
        lines.append(f"class {most!r} is over {UNBALANCED_RATIO} times as frequent as {least!r}")
    return lines


def _image_problems(data: Dataset) -> list[str]:
    problem = size_problem(*data.card.shape[1:])
    return ([problem] if problem else []) + pixel_problems(data)


def pixel_problems(data: Dataset) -> list[str]:
    """Say, a line each, if images use few of their grey levels, or are of one colour all over."""
    lines = list[str]()
    blank = brightest = 0
    for first in range(0, len(data.items), AT_ONCE):
        images = data.items[first : first + AT_ONCE]
        blank += int((images == images[:, :1, :1]).all(axis=(1, 2, 3)).sum())
        brightest = max(brightest, int(images.max()))
        release(data.items)
    if brightest < DARK and data.scaling.is_uint8:
        lines.append(
            f"no pixel is brighter than {brightest} of 255: images of 16 bits that use few of them "
            "must be brought to the whole range first"
        )
    if blank:
        lines.append(f"{blank} images are of one colour all over")
    return lines


def precision_problems(data: Dataset) -> list[str]:
    """List the columns that are constant, or whose values networks cannot tell apart, a line each.

    Networks take values less the column's mean, over its standard deviation, in float32.
    """
    if data.card.table is not None:  # of a table networks see normal scores
        return []
    lines = []
    for i, (name, values) in enumerate(_columns(data)):
        distinct = len(np.unique(values))
        taken = ((values - data.card.offset[i]) / data.card.scale[i]).astype(np.float32)
        told_apart = len(np.unique(taken))
        if distinct == 1:
            lines.append(
                f"column {name!r} is always {values[0]:g} in {data.card.dtype}: leave it out, or "
                "subtract a constant if it does vary"
            )
        elif told_apart < MIN_TOLD_APART * distinct:
            lines.append(
                f"column {name!r} has {distinct} different values, of which networks tell "
                f"{told_apart} apart, because others are far away: take its logarithm, or leave "
                "those rows out"
            )
    return lines


def _columns(data: Dataset) -> Iterator[tuple[str, Array]]:
    """Yield the name and the values, float64 ``(N,)``, of each feature of vectors or sequences."""
    rows = data.items.reshape(-1, data.items.shape[-1]).astype(np.float64)
    names = data.card.columns or [f"x{i + 1}" for i in range(rows.shape[1])]
    yield from zip(names, rows.T, strict=True)


def _column_problems(data: Dataset) -> list[str]:
    if data.card.table is not None:
        return []
    lines = precision_problems(data)
    for name, values in _columns(data):
        distinct = len(np.unique(values))
        if distinct == 1:
            continue
        first, median, third = np.quantile(values, [0.25, 0.5, 0.75])
        distances = np.abs(values - median)
        far = distances > FAR_RANGES * (third - first)
        if third > first and far.any():
            lines.append(
                f"column {name!r} has {far.sum()} values over {FAR_RANGES} interquartile ranges "
                f"from its median, such as {values[distances.argmax()]:g}"
            )
        if distinct <= FEW_VALUES:
            lines.append(
                f"column {name!r} has only {distinct} different values: a generator also makes "
                "values between them"
            )
    return lines
