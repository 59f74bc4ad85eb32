"""Tables: CSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from models.config import DataConfig
from models.errors import DataError, suggestion
from training.data.raw import RawData
from training.data.sources.files import Location, reading

Array = np.ndarray
TABLES = (".csv", ".tsv", ".parquet")
SEPARATORS = ",;\t|"


def load_table(location: Location, config: DataConfig) -> RawData:
    """Read a CSV (with a header row; separated by comma, semicolon, tab or bar) or Parquet file.

    Returns:
        The rows as a `pyarrow.Table`, with the names of the columns.

    Raises:
        DataError: it cannot be read, or has no rows or no names.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    notes: tuple[str, ...] = ()
    with reading(location.source), location.open() as file:
        if location.suffix == ".parquet":
            table = pq.ParquetFile(file).read()
        else:
            frame, notes = _read_csv(file, location)
            table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata(None)
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


def _read_csv(file: IO[bytes], location: Location) -> tuple[Any, tuple[str, ...]]:
    import pandas as pd

    header = file.readline().decode("utf-8-sig")
    file.seek(0)
    separator = max(SEPARATORS, key=header.count)
    if all(map(_is_number, header.split(separator))):
        raise DataError(
            f"{location.source}: begins with numbers ({header.strip()[:60]}); put the names of the "
            "columns into the first row"
        )
    frame = pd.read_csv(
        file,
        sep=separator,
        encoding="utf-8-sig",
        skipinitialspace=True,
        low_memory=False,  # or else the type of a column may change on the way
        dtype_backend="pyarrow",
    )
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(
            f"{location.source}: rows have more values than the first row has names "
            f"({len(frame.columns)}); name each column"
        )
    frame.columns = frame.columns.map(str)
    names = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    return frame, tuple(f"the name {name!r} stands above several columns" for name in twice)


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


def _is_number(text: str) -> bool:
    try:
        float(text.strip().strip('"'))
    except ValueError:
        return False
    return True
