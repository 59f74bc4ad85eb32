"""Tables: CSV, Parquet and Arrow."""

from __future__ import annotations

import csv
import functools
import io
import lzma
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np

from models.config import CsvConfig, DataConfig
from models.errors import DataError, suggestion
from training.data.raw import RawData
from training.data.sources.cells import Cells, understand
from training.data.sources.dialect import Dialect, decoded, find_dialect
from training.data.sources.files import COMPRESSIONS, Location, reading

Array = np.ndarray
TEXTS = (".csv", ".tsv")
TABLES = (
    *(".parquet", ".arrow", ".feather"),
    *(text + compression for text in TEXTS for compression in ("", *COMPRESSIONS)),
)
MAX_NAMED = 5
"""Columns that one note names."""


def load_table(location: Location, config: DataConfig) -> RawData:
    """Read a CSV, Parquet or Arrow (Feather) file.

    How a CSV is written is found from its text, or as ``config.csv`` says; the notes say what was
    guessed. It may be compressed by gzip, bzip2, xz or zstd, as the end of its name says.

    Returns:
        The rows as a `pyarrow.Table`, with the names of the columns.

    Raises:
        DataError: it cannot be read, or has no rows or no names.
    """
    with reading(location.source):
        if location.suffix.startswith(TEXTS):
            try:
                table, notes = _read_csv(location, config.csv)
            except DataError as error:
                raise DataError(f"{location.source}: {error}") from None
        else:
            table, notes = _read_typed(location), ()
    columns = tuple(table.column_names)
    if not columns or not len(table):
        raise DataError(f"{location.source}: has {len(table)} rows and {len(columns)} columns")
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"{location.source}: has several columns named {name!r}; rename them")
    return RawData(
        np.empty((len(table), 0)),
        location.name,
        location.source,
        columns=columns,
        table=table,
        notes=notes,
    )


def _read_typed(location: Location) -> Any:
    """A Parquet or Arrow file; a large Parquet file is not read yet."""
    import pyarrow.feather
    import pyarrow.parquet

    from training.data.sources.parquet import ParquetRows, is_large

    with location.open() as file:
        if location.suffix != ".parquet":
            table = pyarrow.feather.read_table(file)
        else:
            with pyarrow.parquet.ParquetFile(file) as parquet:
                table = ParquetRows(location) if is_large(parquet) else parquet.read()
    return table


def _read_csv(location: Location, config: CsvConfig) -> tuple[Any, tuple[str, ...]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    with location.open() as file:
        content = _decompressed(file, location.suffix)
    text, encoding = decoded(content, config)
    del content
    dialect = find_dialect(text, config, location.suffix)
    table = _rows(text, dialect, config)
    del text
    empty = functools.reduce(
        pc.and_, (pc.equal(pc.utf8_trim_whitespace(table[n]), "") for n in table.column_names)
    )
    no_rows = pc.sum(empty).as_py() or 0
    if dialect.comment:
        first = pc.utf8_trim_whitespace(table[0])
        empty = pc.or_(empty, pc.starts_with(first, dialect.comment))
    table = table.filter(pc.invert(empty))
    cells = understand({name: table[name] for name in table.column_names}, config)
    notes = [*dialect.notes, *_notes(cells)]
    if no_rows:
        notes.append(f"{no_rows} rows without any value are left out")
    if config.encoding is None and encoding not in ("utf-8", "utf-8-sig"):
        notes.insert(0, f"{encoding} is taken for the encoding")
    columns = {
        name: c.values
        for name, c in cells.items()
        if not (name.startswith("Unnamed: ") and pa.types.is_null(c.values.type))
    }
    return pa.table(columns), tuple(notes)


def _decompressed(file: IO[bytes], suffix: str) -> bytes:
    import pyarrow as pa

    method = COMPRESSIONS.get(PurePosixPath("x" + suffix).suffix)
    if method == "xz":
        with lzma.open(file) as plain:
            return plain.read()
    if method is None:
        return file.read()
    with pa.input_stream(file, compression=method) as stream:
        return bytes(stream.read())


def _rows(text: str, dialect: Dialect, config: CsvConfig) -> Any:
    """The rows below the header as texts, a `pyarrow.Table`.

    Raises:
        DataError: some have more or fewer values than there are names; the first is named.
    """
    import pyarrow as pa
    import pyarrow.csv as pc

    rows = io.StringIO(text, newline=None)
    for _ in range(dialect.first_line):
        rows.readline()
    if dialect.has_padding:  # pyarrow takes a quote for one at the beginning of a value only
        plain = io.StringIO()
        lines = csv.reader(
            rows, delimiter=dialect.separator, quotechar=config.quote, skipinitialspace=True
        )
        csv.writer(plain, delimiter=dialect.separator, quotechar=config.quote).writerows(lines)
        body = plain.getvalue()
    else:
        body = rows.read()
    bad = list[Any]()

    def skip(row: Any) -> str:
        is_row = row.text.strip() and not (
            dialect.comment and row.text.lstrip().startswith(dialect.comment)
        )
        if is_row:
            bad.append(row)
        return "skip"

    if not body.strip():
        return pa.table({name: pa.array([], pa.string()) for name in dialect.names})
    table = pc.read_csv(
        pa.BufferReader(body.encode()),
        read_options=pc.ReadOptions(column_names=list(dialect.names), use_threads=False),
        parse_options=pc.ParseOptions(
            delimiter=dialect.separator,
            quote_char=config.quote,
            escape_char=config.escape or False,
            newlines_in_values=True,
            invalid_row_handler=skip,
        ),
        convert_options=pc.ConvertOptions(
            column_types=dict.fromkeys(dialect.names, pa.string()),
            null_values=[],
            strings_can_be_null=False,
        ),
    )
    if bad:
        more = f" (and {len(bad) - 1} more such rows)" if len(bad) > 1 else ""
        raise DataError(
            f"row {bad[0].number} below the header has {bad[0].actual_columns} values, but there "
            f"are {len(dialect.names)} columns{more}: {bad[0].text[:60]!r}; repair it, or set "
            "data.csv.separator, data.csv.quote or data.csv.comment"
        )
    last = [table[name][-1].as_py() for name in table.column_names] if len(table) else []
    if body.count(config.quote) % 2 and any("\n" in value for value in last):
        raise DataError(
            f"row {len(table)} below the header opens a quote that is never closed: close it, or "
            "set data.csv.quote"
        )
    return table


def _notes(cells: Mapping[str, Cells]) -> Iterator[str]:
    """What was guessed from the cells, in few lines."""
    for name, column in cells.items():
        if column.example is not None:
            text, number = column.example
            doubt = " (or set data.csv.decimal)" if column.is_ambiguous else ""
            yield f"column {name!r}: {text!r} is read as {number}{doubt}"
        if column.why_text is not None:
            yield f"column {name!r}: numbers are left as texts, since {column.why_text}"
    said = defaultdict[str, list[str]](list)
    for name, column in cells.items():
        for text in column.without_value:
            said[text].append(name)
    for text, names in said.items():
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        yield f"{text!r} stands for no value in {', '.join(names[:MAX_NAMED])}{more}"


def as_numbers(table: Any, columns: Sequence[str], source: str) -> Array:
    """The rows of a table of numbers as float64 ``(N, D)``, for models of former versions.

    Args:
        table: a `pyarrow.Table`.
        columns: names of the columns, in this order.
        source: named in errors.

    Raises:
        DataError: a column is missing, or not all numbers; names column and row.
    """
    rows = []
    for name in columns:
        if name not in table.column_names:
            raise DataError(f"{source}: no column {name!r}{suggestion(name, table.column_names)}")
        rows.append(_numbers(table[name].to_pandas(), name, source))
    return np.stack(rows, axis=1)


def _numbers(column: Any, name: str, source: str) -> Array:
    """A column as float64, or what is wrong with its first bad row."""
    import pandas as pd

    numbers = (
        column if column.dtype.kind in "iuf" else pd.to_numeric(column.astype(str), errors="coerce")
    )
    values = numbers.to_numpy(np.float64, na_value=np.nan)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        value = column.iloc[row]
        what = (
            "is empty"
            if pd.isna(value)
            else f"holds {str(value)[:40]!r}, which is no finite number"
        )
        others = f" (and {bad.sum() - 1} more like it)" if bad.sum() > 1 else ""
        raise DataError(
            f"{source}: column {name!r} {what} in row {row + 1} below the header"
            f"{others}; repair or remove the rows or the column"
        )
    return values
