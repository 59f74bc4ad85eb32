"""Gaps in rows: the conditions that the known cells put on what fills them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ConditionError
from models.tables.column import arrow_type, whole
from models.tables.conditions import Condition
from models.tables.fixed import CopyColumn
from models.tables.layout import LARGEST_SCORE, Choice, Part, place
from models.tables.schema import TableSchema

Array = np.ndarray


def restrict_to_known(schema: TableSchema, rows: pa.Table) -> Array:
    """Code, for each row, that known cells are what they are and that the others have a value.

    Args:
        schema: of the model.
        rows: in the types of the schema.

    Returns:
        float32 ``(N, restriction_width)``.

    Raises:
        ConditionError: the schema has rules that take columns out of the code.
        DataError: a cell holds what its column may not.
    """
    for rule in schema.rules:
        if rule.makes:
            raise ConditionError(
                f"the model keeps to the rule '{rule}', and does not fill gaps beside rules; "
                "train one without data.rules to fill them"
            )
    pieces = [np.zeros((len(rows), 0), np.float32)]
    for column in schema.columns:
        if not column.parts:
            continue
        has_value = column.restrict(Condition(missing=False)) if column.missing else 0.0
        width = sum(part.restrictions for part in column.parts)
        restrictions = np.full((len(rows), width), has_value, np.float32)
        if column.name in rows.column_names:
            values = whole(rows[column.name])
            is_known = values.is_valid().to_numpy(zero_copy_only=False)
            # A column without gaps in training has no code for one: any value stands in for it.
            any_code = np.zeros((1, sum(part.width for part in column.parts)), np.float32)
            filler = column.decode(any_code).cast(values.type)[0]
            codes = column.encode(values.fill_null(filler))
            restrictions[is_known] = _exactly(column.parts, codes)[is_known]
        pieces.append(restrictions)
    return np.concatenate(pieces, axis=1)


def _exactly(parts: tuple[Part, ...], codes: Array) -> Array:
    """Restrictions that allow nothing but codes ``(N, width)``."""
    pieces = []
    for placed in place(parts):
        code = codes[:, placed.code]
        if isinstance(placed.part, Choice):
            pieces.append(1 - code)
        else:
            pieces += [code + LARGEST_SCORE, LARGEST_SCORE - code]
    return np.concatenate(pieces, axis=1)


def share_copies(schema: TableSchema, rows: pa.Table) -> pa.Table:
    """Let a column and its copy know each other's values, so that both have the same gaps."""
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    for column in schema.columns:
        if isinstance(column, CopyColumn):
            known = [n for n in (column.of, column.name) if n in columns]
            for name, other in ((column.of, column.name), (column.name, column.of)):
                if other in known:
                    kind = arrow_type(schema.column(name).type)
                    values = columns[other].cast(kind)
                    columns[name] = pc.coalesce(columns[name], values) if name in known else values
    return pa.table(columns)


def fill(rows: pa.Table, made: pa.Table) -> pa.Table:
    """Put values of made rows where rows have gaps; columns that they do not have come last."""
    columns = {
        name: pc.coalesce(rows[name], made[name].cast(rows[name].type))
        if name in made.column_names
        else rows[name]
        for name in rows.column_names
    }
    return pa.table({**columns, **{n: made[n] for n in made.column_names if n not in columns}})
