"""Numbers of columns that rules compute with."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from models.errors import DataError
from models.tables.column import Column, arrow_type
from models.tables.number import NumberColumn
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


def first_from(column: NumberColumn, ends: Array, *, beyond: bool) -> Array:
    """The smallest values that a column may hold at or above ends, or only above them.

    NaN where there is none.
    """
    if not column.has_number:
        spikes = np.array([*column.spikes, np.nan])
        side = "right" if beyond else "left"
        return spikes[np.searchsorted(spikes[:-1], ends, side=side)]  # type: ignore[call-overload]
    numbers = np.asarray(column.rounded(ends))
    for _ in range(2):
        low = (numbers <= ends) if beyond else (numbers < ends)
        if column.decimals is not None:
            following = np.asarray(column.rounded(numbers + 10.0**-column.decimals))
            numbers = np.where(low, following, numbers)
            low = (numbers <= ends) if beyond else (numbers < ends)
        kind = arrow_type(column.type)
        dtype = kind.to_pandas_dtype() if pa.types.is_floating(kind) else np.float64
        numbers = np.where(low, np.nextafter(numbers.astype(dtype), dtype(np.inf)), numbers)
    numbers = np.maximum(numbers, column.low)
    return np.where(numbers > column.high, np.nan, numbers)
