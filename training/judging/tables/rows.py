"""Rows of a table as arrays that figures take: a field for each column that is learned."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.tables import CategoryColumn, NumberColumn, TableSchema
from models.tables.column import Column, column_values

Array = np.ndarray


def learned(schema: TableSchema) -> list[Column]:
    """The columns that a generator learns, and that are not made anew or copied."""
    return [column for column in schema.columns if column.parts]


def comparable(table: pa.Table, schema: TableSchema) -> Array:
    """Turn rows into a structured array, which says by its types what is a number.

    Args:
        table: with the schema's columns, found by name; values need not be valid.
        schema: says which columns are numbers, and gives categories their numbers.

    Returns:
        ``(N,)`` with a field for each of `learned`, named by its position: float64 for numbers and
        times, NaN where there is none; int64 for categories, -1 where there is none, and one number
        more than there are categories for a category that the schema does not know.
    """
    fields = [_comparable(column_values(table, column.name), column) for column in learned(schema)]
    rows = np.empty(len(table), [(str(i), values.dtype) for i, values in enumerate(fields)])
    for i, values in enumerate(fields):
        rows[str(i)] = values
    return rows


def comparable_codes(codes: Array, schema: TableSchema) -> Array:
    """Turn codes ``(N, width)`` into what `comparable` makes of their rows."""
    return comparable(schema.decode(codes), schema)


def decided(codes: Array, schema: TableSchema) -> Array:
    """The codes of the rows that generated codes ``(N, width)`` become: every choice is made."""
    return schema.encode(schema.decode(codes))


def is_number(rows: Array, field: str) -> bool:
    """True if a field of `comparable` rows holds numbers."""
    return bool(rows.dtype[field].kind == "f")


def is_missing(values: Array) -> Array:
    """Tell for each value of a field, bool ``(N,)``, if there is none."""
    return np.isnan(values) if values.dtype.kind == "f" else values < 0


def _comparable(values: pa.Array, column: Column) -> Array:
    if isinstance(column, NumberColumn):
        return column.numbers(values)
    assert isinstance(column, CategoryColumn), "only numbers and categories are learned"
    texts = column.texts(values)
    known = (*column.categories, *column.others)
    numbers = pc.index_in(texts, pa.array(known, pa.string())).fill_null(len(known))
    numbers = pc.if_else(texts.is_null(), -1, numbers)
    return numbers.to_numpy(zero_copy_only=False).astype(np.int64)
