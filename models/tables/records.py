"""Rows as people send them, JSON records, CSV and the like, in the types of a schema's columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet

from models.errors import DataError, ShapeError, suggestion
from models.progress import silent
from models.tables.column import Column, column_values, value_type
from models.tables.reading.dialect import CsvConfig, require_width
from models.tables.reading.texts import read_csv
from models.tables.schema import TableSchema
from models.tables.times import in_zone, names_zone

LONGEST_NAME = 100
"""Characters of a column's name that a message repeats."""
SPARE_COLUMNS = 1000
"""Columns that a file of rows for a model may have beside those of its table: a spreadsheet's empty
ones. Each costs time and memory, however short the file."""


def typed(schema: TableSchema, table: pa.Table) -> pa.Table:
    """Bring the columns of a table, found by name, to the types of a schema's columns.

    Columns that were left out of the schema stay as they are.

    Raises:
        DataError: a column is unknown, or holds what its type does not.
    """
    names = table.column_names
    _require_known(schema, names)
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"column {name!r}: there are several of this name")
    columns = {
        name: typed_values(schema.column(name), column_values(table, name))
        if name in schema.by_name
        else table[name]
        for name in names
    }
    return pa.table(columns)


def typed_values(column: Column, plain: pa.Array) -> pa.Array:
    """A column's values in its type, that of its categories if it is a dictionary.

    Raises:
        DataError: they are not of the type.
    """
    kind = value_type(column.type)
    if pa.types.is_large_string(plain.type):  # as pandas has texts
        plain = plain.cast(pa.string())
    if pa.types.is_boolean(plain.type) and not pa.types.is_boolean(kind):
        raise DataError(f"column {column.name!r}: true and false are no {kind}")
    if pa.types.is_boolean(kind) and (
        pa.types.is_integer(plain.type) or pa.types.is_floating(plain.type)
    ):
        wrong = plain.filter(pc.invert(pc.is_in(plain, pa.array([0, 1, None]).cast(plain.type))))
        if len(wrong):
            raise DataError(f"column {column.name!r}: {wrong[0]} is not true or false")
    if pa.types.is_string(plain.type) and pa.types.is_time(kind):  # Arrow reads none from a text
        day = pc.binary_join_element_wise("1970-01-01", plain, "T")
        plain = _cast(column, day, pa.timestamp(kind.unit))
    if pa.types.is_string(plain.type) and pa.types.is_duration(kind):
        plain = _cast(column, plain, pa.int64())
    if pa.types.is_timestamp(kind):
        plain = _times(column, plain, kind)
    return _cast(column, plain, kind)


def _times(column: Column, plain: pa.Array, kind: pa.TimestampType) -> pa.Array:
    """Values of a column of times, those without a zone in the column's, if it has one."""
    is_text = pa.types.is_string(plain.type)
    has_zone = names_zone(plain) if is_text else getattr(plain.type, "tz", None) is not None
    if kind.tz is None:
        zoned = pc.if_else(has_zone, plain, None).drop_null()
        if len(zoned):
            raise DataError(
                f"column {column.name!r}: {zoned[0]} has a zone, and the column has none; give "
                "times as its clocks show them, without a zone"
            )
    elif is_text or (pa.types.is_temporal(plain.type) and not has_zone):
        try:
            return in_zone(plain, kind)
        except DataError as error:
            raise DataError(f"column {column.name!r}: {error}") from None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"column {column.name!r}: not {kind} ({_first(error)})") from None
    return plain


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
        new = [name for name in record if name not in names]
        _require_known(schema, new)  # at once: there may be many
        names.update(dict.fromkeys(new))
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([record.get(name) for record in records])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise DataError(f"column {name!r}: not values of one type ({_first(error)})") from None
    return pa.table(columns)


def _require_known(schema: TableSchema, names: Iterable[str]) -> None:
    for name in names:
        if name not in schema.by_name and name not in schema.left_out:
            short = name[:LONGEST_NAME]
            raise DataError(f"no column {short!r}{suggestion(short, schema.names)}")


def _first(error: Exception) -> str:
    """The first line of another library's message."""
    return str(error).partition("\n")[0][:200]


def file_format(content: bytes) -> Literal["csv", "parquet", "arrow"]:
    """What a file of rows is, by its first bytes: all that is neither of the others is CSV."""
    if content.startswith(b"PAR1"):
        return "parquet"
    return "arrow" if content.startswith(b"ARROW1") else "csv"


def read_rows(
    content: bytes,
    name: str,
    schema: TableSchema | None = None,
    config: CsvConfig = CsvConfig(),  # noqa: B008
    say: Callable[[str], None] = silent,
) -> pa.Table:
    """Read a CSV, Parquet or Arrow file; its bytes alone decide which it is.

    Args:
        content: the file's bytes, not compressed.
        name: the file's name, for error messages.
        schema: of the model that the rows are for: see `read_csv`.
        config: the user's word on how a CSV file is written.
        say: takes a line for each thing that was guessed of a CSV file.

    Returns:
        Columns as they are, which `typed` brings to the schema's types.

    Raises:
        DataError: the file is broken.
        ShapeError: it has over `SPARE_COLUMNS` columns more than the table of the schema.
    """
    max_columns = math.inf
    if schema is not None:
        max_columns = len(schema.columns) + len(schema.left_out) + SPARE_COLUMNS
    # Without threads: Arrow's may still run when a short process ends, and abort it.
    source, format = pa.BufferReader(content), file_format(content)
    try:
        if format == "parquet":
            parquet = pyarrow.parquet.ParquetFile(source)  # read_table has threads all the same
            require_width(parquet.metadata.num_columns, max_columns)
            table = parquet.read(use_threads=False)
        elif format == "arrow":
            options = pyarrow.ipc.IpcReadOptions(use_threads=False)
            arrow = pyarrow.ipc.open_file(source, options=options)
            require_width(len(arrow.schema), max_columns)
            table = arrow.read_all()
        else:
            read = read_csv(content, config, PurePath(name).suffix, schema, max_columns)
            for note in read.notes:
                say(f"{name}: {note}")
            return read.table
        table.validate(full=True)  # a spoilt file may name values that are not there
    except MemoryError:  # some are Arrow's too
        raise
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{name}: no table as CSV, Parquet or Arrow ({_first(error)})") from None
    except (DataError, ShapeError) as error:
        raise type(error)(f"{name}: {error}") from None
    return table
