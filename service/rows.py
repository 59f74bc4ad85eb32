"""Rows of a table in requests: JSON records by column name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from models.errors import DataError, ShapeError

if TYPE_CHECKING:  # torch is for the worker alone: importing it here costs the supervisor too
    import pyarrow as pa

    from models.model import Model
    from models.tables import TableSchema

MAX_ROWS = 1024
"""Rows in one request."""
LONGEST_MESSAGE = 500
"""Characters of what is said about a row: a cell may be as long as a body."""


def to_table(model: Model, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Make a table of records.

    Raises:
        ShapeError: the model makes no table, a column is unknown, or there are too many rows.
    """
    from models.tables.records import rows_of_records

    schema = require_table(model)
    if len(rows) > MAX_ROWS:
        raise ShapeError(f"over {MAX_ROWS} rows; at most {MAX_ROWS} are taken at once")
    with unsuitable():
        return rows_of_records(schema, rows)


def require_table(model: Model) -> TableSchema:
    """The schema of a model's table.

    Raises:
        ShapeError: the model makes no table.
    """
    if model.table is None:
        raise ShapeError("the model takes no rows of named columns: see its shape in GET /v1/model")
    return model.table


@contextlib.contextmanager
def unsuitable() -> Iterator[None]:
    """Answer cells that a column may not hold as what they are here: no broken file."""
    try:
        yield
    except DataError as error:
        raise ShapeError(str(error)[:LONGEST_MESSAGE]) from None
