"""Tables: CSV, Parquet and Arrow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from models.config import DataConfig
from models.errors import DataError, suggestion
from models.formats import SAMPLES_MARK
from models.tables import TableSchema
from models.tables.reading.dialect import Sign
from models.tables.reading.texts import decompressed, read_csv
from training.data.raw import RawData
from training.data.sources.files import COMPRESSIONS, Location, reading

Array = np.ndarray
TEXTS = (".csv", ".tsv")
TABLES = (
    *(".parquet", ".arrow", ".feather"),
    *(text + compression for text in TEXTS for compression in ("", *COMPRESSIONS)),
)


def load_table(
    location: Location, config: DataConfig, schema: TableSchema | None = None
) -> RawData:
    """Read a CSV, Parquet or Arrow (Feather) file.

    How a CSV is written is found from its text, or as ``config.csv`` says; the notes say what was
    guessed. It may be compressed by gzip, bzip2, xz or zstd.

    Args:
        location: the file.
        config: with the user's word.
        schema: of the model that the rows are for; None: their own is still to be found.

    Returns:
        The rows as a `pyarrow.Table`, with the names of the columns.

    Raises:
        DataError: it cannot be read, or has no rows or no names.
    """
    decimal: Sign = "."
    notes: tuple[str, ...] = ()
    with reading(location.source):
        if location.suffix.startswith(TEXTS):
            try:
                table, decimal, notes = _read_csv(location, config, schema)
            except DataError as error:
                raise DataError(f"{location.source}: {error}") from None
        else:
            table = _read_typed(location)
    columns = tuple(table.column_names)
    if not columns or not len(table):
        raise DataError(f"{location.source}: has {len(table)} rows and {len(columns)} columns")
    for name, count in Counter(columns).items():
        if count > 1:
            raise DataError(f"{location.source}: has several columns named {name!r}; rename them")
    return RawData(
        np.empty((len(table), 0)),
        location.name,
        location.source,
        columns=columns,
        table=table,
        is_ours=SAMPLES_MARK in (table.schema.metadata or {}),
        notes=notes,
        decimal=decimal,
    )


def _read_csv(
    location: Location, config: DataConfig, schema: TableSchema | None
) -> tuple[Any, Sign, tuple[str, ...]]:
    """A CSV file's rows, its decimal sign, and what was guessed; a large one is not held."""
    from training.data.sources.streaming import streamed

    large, said = streamed(location, config.csv, schema)
    if large is not None:
        return large
    with location.open() as file:
        content = decompressed(file.read())
    read = read_csv(content, config.csv, location.suffix, schema)
    table, notes = read.table, (*said, *read.notes)
    if empty := pc.sum(read.is_empty).as_py():
        table = table.filter(pc.invert(read.is_empty))
        notes += (f"{empty} rows without any value are left out",)
    return table, read.decimal, notes


def _read_typed(location: Location) -> Any:
    """A Parquet or Arrow file; a large one is not read yet."""
    import pyarrow.feather
    import pyarrow.parquet

    from training.data.sources import large

    with location.open() as file:
        if location.suffix == ".parquet":
            rows: large.LargeRows = large.ParquetRows(location)
            if rows.is_large:
                return rows
            with pyarrow.parquet.ParquetFile(file) as parquet:
                return parquet.read()
        if file.read(6) == b"ARROW1":
            rows = large.ArrowRows(location)
            if rows.is_large:
                return rows
        return pyarrow.feather.read_table(file)


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
