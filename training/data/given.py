"""Data that Python code hands over, as a file that a run can load again."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models.errors import DataError
from models.outputs import save
from models.tables.files import write_rows
from models.tables.frames import to_table


def source_of(data: Any, folder: Path) -> str:
    """Return the ``data.source`` of some data; arrays and tables are written to ``folder``.

    Their file is named by their content, so that the same data continue the same run.

    Args:
        data: a name, path or URL; an array; a DataFrame or `pyarrow.Table`.
        folder: is made if it is not there.
    """
    if isinstance(data, str | Path):
        return str(data)
    if hasattr(data, "columns"):
        content, suffix = _parquet(to_table(data)), "parquet"
    else:
        np.save(file := io.BytesIO(), np.asarray(data), allow_pickle=False)
        content, suffix = file.getvalue(), "npy"
    path = folder / f"data-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
    save(path, content)
    return str(path)


def _parquet(table: pa.Table) -> bytes:
    """A table as a Parquet file.

    Raises:
        DataError: a column is of a type that such files do not have.
    """
    try:
        return b"".join(write_rows([table], "parquet"))
    except pa.ArrowException:
        for name in table.column_names:  # Arrow names none
            try:
                list(write_rows([table.select([name])], "parquet"))
            except pa.ArrowException:
                kind = table.schema.field(name).type
                raise DataError(
                    f"column {name!r}: {kind} has no place in a Parquet file, as which data are "
                    "kept: leave it out, or make it numbers, times or texts"
                ) from None
        raise
