"""Numbers of columns that rules compute with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import DataError
from models.tables.column import Column, arrow_type, column_values
from models.tables.layout import LARGEST_SCORE
from models.tables.number import NumberColumn
from models.tables.scores import to_scores
from models.tables.times import TimeColumn

Array = np.ndarray
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def put(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """A table with other values in a column, or with one more column."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def number_column(columns: Iterable[Column], rule: object) -> list[NumberColumn]:
    """Columns that are all numbers, or all times of one sort.

    Raises:
        DataError: they are not.
    """
    found = list(columns)
    sorts = {_sort(column) for column in found}
    if len(sorts) > 1 or None in sorts:
        kinds = ", ".join(f"{c.name} is a {c.kind}" for c in found)  # type: ignore[attr-defined]
        raise DataError(f"rule '{rule}': needs numbers, or dates or times of one sort: {kinds}")
    return found  # type: ignore[return-value]


def _sort(column: Column) -> str | None:
    if not isinstance(column, TimeColumn):
        return "number" if isinstance(column, NumberColumn) else None
    kind = arrow_type(column.type)
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        return str(kind).split("[")[0]
    return "in a zone" if pa.types.is_timestamp(kind) and kind.tz else "moment"


def _unit(column: TimeColumn) -> int:
    """Nanoseconds of the unit of a column's ticks."""
    kind = arrow_type(column.type)
    if column.format is not None:
        return 10**9
    if pa.types.is_date32(kind):
        return 86400 * 10**9
    return 10**6 if pa.types.is_date64(kind) else _NANOSECONDS[kind.unit]


def on_scale_of(numbers: Array, column: NumberColumn, other: NumberColumn) -> Array:
    """Numbers of one column as another column counts them: steps of its own since its origin."""
    if not (isinstance(column, TimeColumn) and isinstance(other, TimeColumn)):
        return numbers
    step, base = column.step * _unit(column), other.step * _unit(other)
    shift = column.origin * _unit(column) - other.origin * _unit(other)
    common = int(np.gcd.reduce(np.array([step, base, abs(shift)], object)))
    # One division at the end, so that whole numbers stay whole.
    return (numbers * (step // common) + shift // common) / (base // common)


def nearest(column: NumberColumn, numbers: Array) -> Array:
    """The nearest values that a column may hold; NaN stays."""
    if column.has_number:
        return np.asarray(column.rounded(numbers)).clip(column.low, column.high)
    spikes = np.array(column.spikes)
    places = np.abs(np.nan_to_num(numbers)[:, None] - spikes).argmin(axis=1)
    return np.where(np.isnan(numbers), np.nan, spikes[places])


def first_from(
    column: NumberColumn, ends: Array, *, beyond: bool, step: Literal[1, -1] = 1
) -> Array:
    """The smallest values that a column may hold at or above ends, or only above them.

    With a step of -1 the largest ones at or below them. NaN where there is none.
    """
    if not column.has_number:
        spikes = np.array([np.nan, *column.spikes, np.nan])
        side = "right" if beyond == (step > 0) else "left"
        places = np.searchsorted(spikes[1:-1], ends, side=side)  # type: ignore[call-overload]
        return np.where(np.isnan(ends), np.nan, spikes[places + (step > 0)])

    def is_short(numbers: Array) -> Array:
        return (numbers - ends) * step <= 0 if beyond else (numbers - ends) * step < 0

    numbers = np.asarray(column.rounded(ends))
    kind = arrow_type(column.type)
    dtype = kind.to_pandas_dtype() if pa.types.is_floating(kind) else np.float64
    for _ in range(2):
        if column.decimals is not None:
            following = np.asarray(column.rounded(numbers + step * 10.0**-column.decimals))
            numbers = np.where(is_short(numbers), following, numbers)
        following = np.nextafter(numbers.astype(dtype), dtype(step * np.inf))
        numbers = np.where(is_short(numbers), following, numbers)
    if step > 0:
        numbers = np.maximum(numbers, column.low)
        return np.where(numbers > column.high, np.nan, numbers)
    numbers = np.minimum(numbers, column.high)
    return np.where(numbers < column.low, np.nan, numbers)


def put_in_gaps(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """A table with other values in the gaps of a column."""
    known = column_values(table, name)
    plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    return put(table, name, pc.coalesce(known, plain.cast(known.type)))


def between(column: NumberColumn, low: Array, high: Array) -> Array:
    """Restrict a column to numbers from low ``(N,)`` to high, and not missing.

    Returns:
        float32 ``(N, restrictions)``; where it may hold none of these, anything but missing.
    """
    spikes = np.array(column.spikes)
    meets = (spikes >= low[:, None]) & (spikes <= high[:, None])
    if column.has_number:
        meets = np.column_stack([low <= high, meets])
    meets |= ~meets.any(axis=1, keepdims=True)
    pieces: list[Array] = [np.zeros((len(low), 0))]  # all, if the column has one value alone
    if column.has_number:
        lower, upper = (
            np.nan_to_num(to_scores(np.nan_to_num(ends), column.quantiles)) for ends in (low, high)
        )
        # The outermost numbers are not restricted: they may lie beyond those of training.
        lower[(low <= column.quantiles[0]) | (low > high)] = -LARGEST_SCORE
        upper[(high >= column.quantiles[-1]) | (low > high)] = LARGEST_SCORE
        pieces += [lower[:, None] + LARGEST_SCORE, LARGEST_SCORE - upper[:, None]]
    if column.option_count > 1:
        pieces.append(~meets)
        if column.missing:
            pieces.append(np.ones((len(low), 1)))
    return np.concatenate(pieces, axis=1).astype(np.float32)
