"""Data that Python code hands over, as a file that a run can load again."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

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
        content, suffix = b"".join(write_rows([to_table(data)], "parquet")), "parquet"
    else:
        np.save(file := io.BytesIO(), np.asarray(data), allow_pickle=False)
        content, suffix = file.getvalue(), "npy"
    path = folder / f"data-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
    save(path, content)
    return str(path)
