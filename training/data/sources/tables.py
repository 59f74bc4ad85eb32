"""Numeric tables: CSV and Parquet."""

from __future__ import annotations

from typing import IO, Any

import numpy as np

from models.config import DataConfig
from models.errors import DataError
from training.data.raw import RawData
from training.data.sources.files import Location, reading

Array = np.ndarray
TABLES = (".csv", ".tsv", ".parquet")
SEPARATORS = ",;\t|"


def load_table(location: Location, config: DataConfig) -> RawData:
    """Read a CSV (with a header row; separated by comma, semicolon, tab or bar) or Parquet file.

    Returns:
        The rows as float64 ``(N, D)``, with the names of the columns.

    Raises:
        DataError: it cannot be read, or is not a table of finite numbers; names column and row.
    """
    import pandas as pd
    import pyarrow as pa

    with reading(location.source), location.open() as file:
        if location.suffix == ".parquet":
            frame = pd.read_parquet(file, engine="pyarrow")
        else:
            frame = _read_csv(file, location)
    columns = tuple(str(name) for name in frame.columns)
    if not columns or not len(frame):
        raise DataError(f"{location.source}: has {len(frame)} rows and {len(columns)} columns")
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    hashes = np.stack(
        [pd.util.hash_array(frame[c].astype(object).map(str).to_numpy()) for c in frame.columns],
        axis=1,
    )
    return RawData(hashes, location.name, location.source, columns=columns, table=table)


def _read_csv(file: IO[bytes], location: Location) -> Any:
    import pandas as pd

    header = file.readline().decode("utf-8-sig")
    file.seek(0)
    separator = max(SEPARATORS, key=header.count)
    if all(map(_is_number, header.split(separator))):
        raise DataError(
            f"{location.source}: begins with numbers ({header.strip()[:60]}); put the names of the "
            "columns into the first row"
        )
    return pd.read_csv(file, sep=separator, encoding="utf-8-sig", skipinitialspace=True)


def _numbers(column: Any, name: str, location: Location) -> Array:
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
            f"{location.source}: column {name!r} {what} in row {row + 1} below the header"
            f"{others}; repair or remove the rows or the column"
        )
    return values


def _is_number(text: str) -> bool:
    try:
        float(text.strip().strip('"'))
    except ValueError:
        return False
    return True
