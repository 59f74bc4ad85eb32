"""The schema of a table: its columns, and the code of a whole row."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from models.errors import ConditionError, DataError, RowError, suggestion
from models.tables.column import Column, arrow_type, column_values, converted
from models.tables.conditions import Condition
from models.tables.fixed import CopyColumn
from models.tables.kinds import AnyColumn
from models.tables.layout import Part
from models.tables.rules import AnyRule

Array = np.ndarray


class TableSchema(BaseModel, frozen=True, extra="forbid"):
    """What each column of a table is, and what columns are together.

    A row's code is one after the other what the codes of its `coded` columns are; so are its
    restrictions, the code of the conditions that it must meet.
    """

    columns: tuple[AnyColumn, ...]
    left_out: dict[str, str] = {}
    """Columns of the data that are not learned, each with the reason."""
    rules: tuple[AnyRule, ...] = Field(default=(), exclude_if=lambda rules: not rules)
    """What the values of a row must be together; each stands after those that make what it reads.
    Written only if there are any."""
    decimal: Literal[".", ","] = Field(default=".", exclude_if=lambda sign: sign == ".")
    """The decimal sign of the CSV file that the columns were found in, by which others are read
    that could be read in two ways. Written only if it is a comma."""

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    @functools.cached_property
    def by_name(self) -> dict[str, AnyColumn]:
        """The columns, by name."""
        return {column.name: column for column in self.columns}

    @functools.cached_property
    def coded(self) -> tuple[AnyColumn, ...]:
        """Columns of the code: those of the table, but for columns that rules make of others."""
        made = {name for rule in self.rules for name in rule.makes}
        own = [column for column in self.columns if column.name not in made]
        return (*own, *(column for rule in self.rules for column in rule.coded(self.by_name)))

    @property
    def parts(self) -> list[Part]:
        """Parts of a row's code."""
        return [part for column in self.coded for part in column.parts]

    @property
    def width(self) -> int:
        """Numbers in a row's code."""
        return sum(part.width for part in self.parts)

    @property
    def restriction_width(self) -> int:
        """Numbers in the code of a row's conditions."""
        return sum(part.restrictions for part in self.parts)

    def encode(self, table: pa.Table) -> Array:
        """Code a table, whose columns are found by name.

        Returns:
            float32 ``(N, width)``.

        Raises:
            DataError: a column is missing, or holds what it may not.
        """
        codes = [column.encode(values) for column, values in self._before_coding(table)]
        return np.concatenate([np.zeros((len(table), 0), np.float32), *codes], axis=1)

    def pack(self, table: pa.Table) -> tuple[Array, Array]:
        """Code a table without writing out its choices; see `encode`.

        Returns:
            The numbers of the code, float32 ``(N, values)``; and which option is chosen, uint16
            ``(N, choices)``.
        """
        scores, options = list[Array](), list[Array]()
        for column, values in self._before_coding(table):
            coded = column.split(values)
            scores += [] if coded.scores is None else [coded.scores]
            options += [coded.options] if column.option_count > 1 else []
        empty = np.empty((0, len(table)))
        return (
            np.array(scores or empty, np.float32).T.copy(),
            np.array(options or empty, np.uint16).T.copy(),
        )

    def _before_coding(self, table: pa.Table) -> Iterator[tuple[Column, pa.Array]]:
        """Each column of the code with its values, which rules may have changed."""
        rules = [rule for rule in self.rules if rule.makes]
        ruled = {name for rule in rules for name in rule.names}
        there = dict.fromkeys(table.column_names)
        for column in self.columns:
            if (column.parts or column.name in ruled) and column.name not in there:
                raise DataError(f"no column {column.name!r}{suggestion(column.name, there)}")
        for rule in reversed(rules):
            is_broken = ~rule.satisfied(table, self.by_name)
            if is_broken.any():
                raise RowError(int(is_broken.argmax()), f"breaks the rule '{rule}'")
            table = rule.before_coding(table, self.by_name)
        for column in self.coded:
            if column.parts:
                yield column, column_values(table, column.name)

    def decode(
        self,
        codes: Array,
        first: int = 0,
        conditions: Mapping[str, Condition] | None = None,
        seed: int = 0,
    ) -> pa.Table:
        """Make the rows of codes; every value is one that its column may hold.

        Args:
            codes: ``(N, width)``, any numbers.
            first: number of the first row, from which identifiers follow.
            conditions: those that `restrict` was given; every row meets them exactly, though codes
                are rounded.
            seed: of the codes, by which rare categories are drawn.

        Raises:
            ConditionError: see `restrict`.
        """
        asked = self._translated(conditions or {})
        table = pa.Table.from_pydict(
            {
                column.name: column.decode(codes[:, code], first, asked.get(column.name), seed)
                for column, code, _ in self.placed()
            }
        )
        for rule in self.rules:
            table = rule.after_decoding(table, self.by_name, set(conditions or {}))
        arrays = {name: table[name] for name in self.names}
        for column in self.columns:
            if isinstance(column, CopyColumn):
                arrays[column.name] = converted(arrays[column.of], arrow_type(column.type))
        return pa.Table.from_pydict(arrays)

    def restrict(self, conditions: Mapping[str, Condition]) -> Array:
        """Code conditions: float32 ``(restriction_width,)``, all 0 without any.

        Raises:
            ConditionError: a column is unknown, or no row meets the condition.
        """
        conditions = self._translated(conditions)
        restrictions = np.zeros(self.restriction_width, np.float32)
        for column, _, restriction in self.placed():
            if column.name in conditions:
                restrictions[restriction] = column.restrict(conditions[column.name])
        return restrictions

    def _translated(self, conditions: Mapping[str, Condition]) -> Mapping[str, Condition]:
        """Conditions on the columns of the code that say what those on the table's do."""
        for name in conditions:
            if name not in self.by_name:
                reason = f": left out, {self.left_out[name]}" if name in self.left_out else ""
                raise ConditionError(f"no column '{name}'{reason or suggestion(name, self.names)}")
        for rule in self.rules:
            conditions = rule.translated(conditions, self.by_name)
        return conditions

    def column(self, name: str) -> Column:
        """The column of a name."""
        return self.by_name[name]

    def placed(self) -> Iterator[tuple[Column, slice, slice]]:
        """Each column with its place in a row's code, and in its restrictions."""
        code = restriction = 0
        for column in self.coded:
            parts = column.parts
            ends = (
                code + sum(part.width for part in parts),
                restriction + sum(part.restrictions for part in parts),
            )
            yield column, slice(code, ends[0]), slice(restriction, ends[1])
            code, restriction = ends


def rule_shares(schema: TableSchema, table: pa.Table) -> dict[str, float]:
    """The share of a table's rows that satisfies each rule, by the rule as a person writes it."""
    return {str(rule): float(rule.satisfied(table, schema.by_name).mean()) for rule in schema.rules}
