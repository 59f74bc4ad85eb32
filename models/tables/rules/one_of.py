"""Columns of which exactly one has a value."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ConditionError, DataError
from models.tables.category import CategoryColumn
from models.tables.column import Column, column_values
from models.tables.conditions import Condition
from models.tables.kinds import AnyColumn
from models.tables.number import NumberColumn
from models.tables.rules.base import Columns, Draw, Fit, Ranges, RuleOnColumns
from models.tables.rules.numbers import put, put_in_gaps

Array = np.ndarray


class OneOf(RuleOnColumns, frozen=True):
    """In each row exactly one of the columns has a value.

    Networks see which one as a category, and the columns as if they had a value in every row.
    """

    kind: Literal["one_of"] = "one_of"

    def fitted(self, table: pa.Table, columns: Columns, shared: Set[str], fit: Fit) -> Self:
        """Nothing is fitted, but the columns must be learned, and empty in some rows."""
        for name in self.columns:
            column = columns[name]
            if not isinstance(column, NumberColumn | CategoryColumn) or not column.missing:
                raise DataError(
                    f"rule '{self}': {name} must be a number, a time or a category that some rows "
                    "do not have"
                )
        return self

    def coded(self, columns: Columns) -> tuple[AnyColumn, ...]:
        """Which column has a value, and the columns without gaps."""
        which = CategoryColumn(name=str(self), type="string", categories=self.columns)
        return (which, *(self._without_gaps(columns[name]) for name in self.columns))

    def before_coding(self, table: pa.Table, columns: Columns) -> pa.Table:
        """Say which column has a value, and fill the gaps of the others."""
        has_value = np.stack(
            [
                column_values(table, n).is_valid().to_numpy(zero_copy_only=False)
                for n in self.columns
            ]
        )
        which = pa.array(self.columns, pa.string()).take(pa.array(has_value.argmax(axis=0)))
        for name in self.columns:
            filler = _filler(self._without_gaps(columns[name]))
            values = column_values(table, name)
            table = put(table, name, values.fill_null(filler.cast(values.type)))
        return put(table, str(self), which)

    def after_decoding(self, table: pa.Table, columns: Columns, fixed: Set[str]) -> pa.Table:
        """Leave a value in one column."""
        which = column_values(table, str(self))
        table = table.drop_columns([str(self)])
        for name in self.columns:
            values = column_values(table, name)
            kept = pc.if_else(pc.equal(which, name), values, pa.scalar(None, values.type))
            table = put(table, name, columns[name].in_type(kept))
        return table

    def translated(
        self, conditions: Mapping[str, Condition], columns: Columns
    ) -> dict[str, Condition]:
        """Turn conditions into which column has a value, and what value."""
        result = {name: c for name, c in conditions.items() if name not in self.columns}
        possible = set(self.columns)
        for name in self.columns:
            condition = conditions.get(name)
            if condition is None:
                continue
            columns[name].allowed(condition)  # it names mistakes
            if condition.missing:
                possible -= {name}
            else:
                possible &= {name}
                if condition != Condition(missing=False):
                    result[name] = condition
        if not possible:
            raise ConditionError(f"no row has a value in all these columns, by the rule '{self}'")
        if len(possible) < len(self.columns):
            result[str(self)] = Condition(one_of=tuple(sorted(possible)))
        return result

    def with_gaps(self, rows: pa.Table, columns: Columns) -> pa.Table:
        """Say which column has a value, where one is known; the others then have none."""
        which = pa.nulls(len(rows), pa.string())
        for name in self.columns:
            which = pc.if_else(column_values(rows, name).is_valid(), name, which)
        return put(rows, str(self), which)

    def settled(
        self, rows: pa.Table, made: pa.Table, columns: Columns, ranges: Ranges, draw: Draw
    ) -> pa.Table:
        """Take the value that was made where none is known."""
        has_value = [column_values(rows, name).is_valid() for name in self.columns]
        is_known = pa.array(np.any([v.to_numpy(zero_copy_only=False) for v in has_value], axis=0))
        for name in self.columns:
            values = column_values(made, name)
            rows = put_in_gaps(rows, name, pc.if_else(is_known, None, values))
        return rows

    def satisfied(self, table: pa.Table, columns: Columns) -> Array:
        """Count the values."""
        has_value = [
            column_values(table, n).is_valid().to_numpy(zero_copy_only=False) for n in self.columns
        ]
        return np.sum(has_value, axis=0) == 1

    @staticmethod
    def _without_gaps(column: Column) -> AnyColumn:
        return column.model_copy(update={"missing": 0.0})  # type: ignore[return-value]


def _filler(column: Column) -> pa.Scalar:
    """A value in place of a missing one, always the same: the middle, or the first option."""
    middle = column.decode(np.zeros((1, sum(part.width for part in column.parts)), np.float32))
    return (middle.dictionary_decode() if pa.types.is_dictionary(middle.type) else middle)[0]
