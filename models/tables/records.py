"""Rows as people send them, JSON records, CSV and the like, in the types of a schema's columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from models.errors import DataError, suggestion
from models.tables.column import Column, arrow_type, column_values
from models.tables.schema import TableSchema

MISSING = [
    *("", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None"),
    *("n/a", "nan", "null", "-NaN", "-nan", "#NA"),
]
"""Texts in a CSV file that say that there is no value, as pandas takes them."""
LONGEST_NAME = 100
"""Characters of a column's name that a message repeats."""


def typed(schema: TableSchema, table: pa.Table) -> pa.Table:
    """Bring the columns of a table, found by name, to the types of a schema's columns.

    Columns that were left out of the schema stay as they are.

    Raises:
        DataError: a column is unknown, or holds what its type does not.
    """
    _require_known(schema, table.column_names)
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise DataError(f"column {name!r}: there are several of this name")
    columns = {
        name: _typed(schema.column(name), column_values(table, name))
        if name in schema.names
        else table[name]
        for name in table.column_names
    }
    return pa.table(columns)


def _typed(column: Column, plain: pa.Array) -> pa.Array:
    """A column's values in its type, that of its categories if it is a dictionary."""
    kind = arrow_type(column.type)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(plain.type) and not pa.types.is_boolean(kind):
        raise DataError(f"column {column.name!r}: true and false are no {kind}")
    if pa.types.is_string(plain.type) and pa.types.is_time(kind):  # Arrow reads none from a text
        day = pc.binary_join_element_wise("1970-01-01", plain, "T")
        plain = _cast(column, day, pa.timestamp(kind.unit))
    if pa.types.is_string(plain.type) and pa.types.is_duration(kind):
        plain = _cast(column, plain, pa.int64())
    return _cast(column, plain, kind)


def _cast(column: Column, plain: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return plain.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        try:  # whole numbers with a point, as tools write columns that have gaps
            return plain.cast(pa.float64()).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(f"column {column.name!r}: not {kind} ({_first(error)})") from None


def rows_of_records(schema: TableSchema, records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Make a table of records, such as JSON's; what a record does not have, or is None, is a gap.

    Raises:
        DataError: a column is unknown, or holds values of several types.
    """
    names = dict[str, None]()
    for record in records:
        names.update(dict.fromkeys(record))
        _require_known(schema, names)  # at once: there may be many
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([record.get(name) for record in records])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise DataError(f"column {name!r}: not values of one type ({_first(error)})") from None
    return pa.table(columns)


def _require_known(schema: TableSchema, names: Iterable[str]) -> None:
    for name in names:
        if name not in schema.names and name not in schema.left_out:
            short = name[:LONGEST_NAME]
            raise DataError(f"no column {short!r}{suggestion(short, schema.names)}")


def _first(error: Exception) -> str:
    """The first line of another library's message."""
    return str(error).partition("\n")[0][:200]


def read_rows(content: bytes, name: str) -> pa.Table:
    """Read a CSV, Parquet or Arrow file; its bytes alone decide which it is.

    Args:
        content: the file's bytes.
        name: the file's name, for error messages.

    Returns:
        Columns as they are; those of a CSV file are texts, which `typed` reads.

    Raises:
        DataError: the file is broken.
    """
    # Without threads: Arrow's may still run when a short process ends, and abort it.
    source = pa.BufferReader(content)
    try:
        if content.startswith(b"PAR1"):
            table = pyarrow.parquet.read_table(source, use_threads=False)
        elif content.startswith(b"ARROW1"):
            table = pyarrow.ipc.open_file(source).read_all()
        else:
            text = content[: 2**20].decode("utf-8-sig", errors="ignore")
            names = next(csv.reader(io.StringIO(text)), [])
            options = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=MISSING,
                strings_can_be_null=True,
            )
            table = pyarrow.csv.read_csv(
                source, pyarrow.csv.ReadOptions(use_threads=False), convert_options=options
            )
    except (pa.ArrowException, csv.Error) as error:
        raise DataError(f"{name}: no table as CSV, Parquet or Arrow ({_first(error)})") from None
    return table
