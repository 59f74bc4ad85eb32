"""Gaps in rows: the conditions that the known cells put on what fills them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import DataError
from models.tables.category import uniform
from models.tables.column import arrow_type, column_values, converted, value_type, whole
from models.tables.conditions import Condition
from models.tables.fixed import CopyColumn
from models.tables.layout import LARGEST_SCORE, Choice, Part, place
from models.tables.number import NumberColumn
from models.tables.rules.base import Draw, Ranges
from models.tables.rules.numbers import put
from models.tables.schema import TableSchema

Array = np.ndarray


def complete(
    schema: TableSchema, rows: pa.Table, make: Callable[[Array], pa.Table], first: int, seed: int
) -> pa.Table:
    """Fill the gaps of rows with what a generator makes beside their known cells.

    Args:
        schema: of the model.
        rows: in the types of the schema.
        make: makes rows under restrictions, float32 ``(N, restriction_width)``.
        first: number of the first row.
        seed: of the rows that are made.

    Returns:
        The rows, columns that were not there last, without gaps but for those that rules ask for.

    Raises:
        DataError: a cell holds what its column may not, or the known cells of a row break a rule.
    """
    known = _with_all_columns(schema, rows)
    if any(rule.makes for rule in schema.rules):
        # First what rules need of the row; then the rest beside it.
        known = _settle(
            schema,
            known,
            make(_restrict_to_known(schema, known)),
            lambda places, name: uniform(first + places, name, seed),
        )
    made = make(_restrict_to_known(schema, known))
    completed = _fill(schema, known, made, rows.column_names)
    _require_rules(schema, completed, first)
    return completed


def _with_all_columns(schema: TableSchema, rows: pa.Table) -> pa.Table:
    """Add the columns that are learned, or under rules, or copies, and not there: all gaps.

    A column and its copy know each other's values, so that both have the same gaps.

    Args:
        schema: of the model.
        rows: in the types of the schema.
    """
    ruled = {name for rule in schema.rules for name in rule.names if rule.makes}
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    for column in schema.columns:
        is_needed = column.parts or column.name in ruled or isinstance(column, CopyColumn)
        if is_needed and column.name not in columns:
            columns[column.name] = pa.nulls(len(rows), value_type(column.type))
    return _share_copies(schema, pa.table(columns))


def _restrict_to_known(schema: TableSchema, rows: pa.Table) -> Array:
    """Code, for each row, that known cells are what they are and that the others have a value.

    Args:
        schema: of the model.
        rows: as `_with_all_columns` returns them.

    Returns:
        float32 ``(N, restriction_width)``.

    Raises:
        DataError: a cell holds what its column may not.
    """
    narrowed = dict[str, Array]()
    ranges, coded = _ranges(schema, rows), rows
    for rule in reversed(schema.rules):
        narrowed |= rule.narrowed(rows, schema.by_name, ranges)
        coded = rule.with_gaps(coded, schema.by_name)
    pieces = [np.zeros((len(rows), 0), np.float32)]
    for column in schema.coded:
        if not column.parts:
            continue
        has_value = column.restrict(Condition(missing=False)) if column.missing else 0.0
        width = sum(part.restrictions for part in column.parts)
        restrictions = np.full((len(rows), width), has_value, np.float32)
        restrictions = narrowed.get(column.name, restrictions)
        values = whole(coded[column.name])
        is_known = values.is_valid().to_numpy(zero_copy_only=False)
        # A column without gaps in training has no code for one: any value stands in for it.
        any_code = np.zeros((1, sum(part.width for part in column.parts)), np.float32)
        filler = column.decode(any_code)
        if pa.types.is_dictionary(filler.type):
            filler = filler.dictionary_decode()
        codes = column.encode(values.fill_null(filler.cast(values.type)[0]))
        restrictions[is_known] = _exactly(column.parts, codes)[is_known]
        pieces.append(restrictions)
    return np.concatenate(pieces, axis=1)


def _settle(schema: TableSchema, rows: pa.Table, made: pa.Table, draw: Draw) -> pa.Table:
    """Fill the gaps of columns under rules so that the rules are kept, as far as that can be.

    Args:
        schema: of the model.
        rows: as `_with_all_columns` returns them.
        made: rows that were made under `_restrict_to_known`: they keep to all rules, but may differ
            from known cells that rules make of others.
        draw: see `Rule.settled`.
    """
    for has_makes in (True, False):  # first where what a rule makes is known, and says most
        for rule in reversed(schema.rules):
            settled = rule.settled(rows, made, schema.by_name, _ranges(schema, rows), draw)
            if has_makes:
                is_known = [column_values(rows, name).is_valid() for name in rule.makes]
                mask = functools.reduce(pc.and_, is_known, pa.array(np.ones(len(rows), bool)))
                for name in rule.names:
                    values = (column_values(table, name) for table in (settled, rows))
                    settled = put(settled, name, pc.if_else(mask, *values))
            rows = settled
    return _share_copies(schema, rows)


def _require_rules(schema: TableSchema, rows: pa.Table, first: int) -> None:
    """Require that completed rows keep to the rules.

    Raises:
        DataError: known cells break a rule, or leave no value that keeps to it.
    """
    for rule in schema.rules:
        if not rule.makes:
            continue
        is_wrong = ~rule.satisfied(rows, schema.by_name)
        for name in rule.names:
            if not schema.column(name).missing:
                is_wrong |= column_values(rows, name).is_null().to_numpy(zero_copy_only=False)
        if is_wrong.any():
            raise DataError(
                f"row {first + is_wrong.argmax() + 1}: its known cells break the rule '{rule}', or "
                "leave no value that keeps to it"
            )


def _ranges(schema: TableSchema, rows: pa.Table) -> Ranges:
    """The range in which each cell of a number can lie beside the known cells of its row."""
    ranges: Ranges = {}
    if not any(rule.makes for rule in schema.rules):
        return ranges
    for column in schema.columns:
        if isinstance(column, NumberColumn) and column.name in rows.column_names:
            numbers = column.numbers(column_values(rows, column.name))
            low, high = (
                np.where(np.isnan(numbers), end, numbers) for end in (column.low, column.high)
            )
            ranges[column.name] = low, high
    for _ in schema.rules:  # at most as many steps as a chain has
        for rule in schema.rules:
            rule.tightened(ranges, schema.by_name)
    return ranges


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


def _share_copies(schema: TableSchema, rows: pa.Table) -> pa.Table:
    """Let a column and its copy know each other's values, so that both have the same gaps."""
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    for column in schema.columns:
        if isinstance(column, CopyColumn):
            known = [n for n in (column.of, column.name) if n in columns]
            for name, other in ((column.of, column.name), (column.name, column.of)):
                if other in known:
                    kind = arrow_type(schema.column(name).type)
                    try:
                        values = converted(columns[other], kind)
                    except DataError as error:
                        raise DataError(
                            f"column {other!r}: has no copy in {name!r}: {error}"
                        ) from None
                    columns[name] = pc.coalesce(columns[name], values) if name in known else values
    return pa.table(columns)


def _fill(schema: TableSchema, rows: pa.Table, made: pa.Table, names: list[str]) -> pa.Table:
    """Put values of made rows where rows have gaps.

    Args:
        schema: of the model.
        rows: with gaps.
        made: values to take.
        names: columns that come first; those that rows do not have come last.
    """
    columns, first = {}, dict.fromkeys(names)
    known_names, made_names = set(rows.column_names), dict.fromkeys(made.column_names)
    for name in first | made_names:
        if name not in known_names:
            columns[name] = made[name]
        elif name not in made_names:
            columns[name] = rows[name]
        else:
            known = column_values(rows, name)
            filled = pc.coalesce(known, column_values(made, name).cast(known.type))
            columns[name] = schema.column(name).in_type(filled)
    return pa.table(columns)
