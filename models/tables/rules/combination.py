"""Columns whose values go together only as they do in the data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ConditionError, DataError
from models.tables.category import CategoryColumn
from models.tables.column import Column, column_values, value_type
from models.tables.conditions import Condition
from models.tables.fixed import IdentifierColumn
from models.tables.kinds import AnyColumn
from models.tables.number import NumberColumn
from models.tables.rules.base import Columns, Draw, Fit, Ranges, RuleOnColumns
from models.tables.rules.numbers import put, put_in_gaps

Array = np.ndarray


class Combination(RuleOnColumns, frozen=True):
    """The columns' values are together as in some row of the data, such as city and country.

    Networks see them as one category; the rare combinations of many are one option together.
    """

    kind: Literal["combination"] = "combination"
    joint: CategoryColumn | None = None
    """The combinations, each as a JSON list of texts; None before it is fitted."""

    def fitted(self, table: pa.Table, columns: Columns, shared: Set[str], fit: Fit) -> Self:
        """Find the combinations."""
        for name in self.columns:
            values = column_values(table, name)
            if isinstance(columns[name], IdentifierColumn):
                raise DataError(f"rule '{self}': {name} is an identifier, which goes with nothing")
            try:
                comes_back = _typed(values.cast(pa.string()), columns[name]).equals(values)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                comes_back = False
            if not comes_back:
                raise DataError(f"rule '{self}': {name}, of type {values.type}, cannot be combined")
        joint = fit("category", str(self), self._texts(table))
        return self.model_copy(update={"joint": joint})

    def coded(self, columns: Columns) -> tuple[AnyColumn, ...]:
        """The combination."""
        assert self.joint is not None
        return (self.joint,)

    def before_coding(self, table: pa.Table, columns: Columns) -> pa.Table:
        """Join the values."""
        assert self.joint is not None
        texts = self._texts(table)
        return put(table.drop_columns(list(self.columns)), self.joint.name, texts)

    def after_decoding(self, table: pa.Table, columns: Columns, fixed: Set[str]) -> pa.Table:
        """Take the values apart."""
        assert self.joint is not None
        encoded = column_values(table, self.joint.name).dictionary_encode()
        table = table.drop_columns([self.joint.name])
        for name, values in self._apart(encoded.dictionary, columns).items():
            table = put(table, name, columns[name].in_type(values.take(encoded.indices)))
        return table

    def translated(
        self, conditions: Mapping[str, Condition], columns: Columns
    ) -> dict[str, Condition]:
        """Ask for the combinations that meet all conditions on their columns."""
        assert self.joint is not None
        mine = {name: c for name, c in conditions.items() if name in self.columns}
        others = {name: c for name, c in conditions.items() if name not in self.columns}
        if not mine:
            return others
        texts = pa.array([*self.joint.categories, *self.joint.others], pa.string())
        meets = np.ones(len(texts), bool)
        for name, values in self._apart(texts, columns).items():
            if name in mine:
                meets &= _meets(columns[name], values, mine[name])
        if not meets.any():
            words = " and ".join(condition.in_words(name) for name, condition in mine.items())
            raise ConditionError(f"no row has {words}, by the rule '{self}'")
        wanted = tuple(texts.filter(pa.array(meets)).to_pylist())
        return {**others, self.joint.name: Condition(one_of=wanted)}

    def with_gaps(self, rows: pa.Table, columns: Columns) -> pa.Table:
        """Join the values, where all are known."""
        assert self.joint is not None
        is_known = np.all(
            [
                column_values(rows, name).is_valid().to_numpy(zero_copy_only=False)
                for name in self.columns
            ],
            axis=0,
        )
        known = pa.array([*self.joint.categories, *self.joint.others], pa.string())
        texts = self._texts(rows)
        is_known = pc.and_(pa.array(is_known), pc.is_in(texts, known))  # `satisfied` tells others
        texts = pc.if_else(is_known, texts, None)
        return put(rows.drop_columns(list(self.columns)), self.joint.name, texts)

    def narrowed(self, rows: pa.Table, columns: Columns, ranges: Ranges) -> dict[str, Array]:
        """Ask for combinations with the known values."""
        assert self.joint is not None
        if self.joint.option_count < 2:
            return {}
        fits, places = self._fitting(rows)
        common = len(self.joint.categories)
        options = fits[:, :common]
        if self.joint.others:
            options = np.column_stack([options, fits[:, common:].any(axis=1)])
        return {self.joint.name: (~options).astype(np.float32)[places]}

    def settled(
        self, rows: pa.Table, made: pa.Table, columns: Columns, ranges: Ranges, draw: Draw
    ) -> pa.Table:
        """Take the combination that was made, or one of the rare ones that fits known values."""
        assert self.joint is not None
        texts = pa.array([*self.joint.categories, *self.joint.others], pa.string())
        chosen = pc.index_in(self._texts(made), texts).to_numpy(zero_copy_only=False).copy()
        fits, places = self._fitting(rows)
        counts = np.array([*[0] * len(self.joint.categories), *self.joint.other_counts])
        for row in np.flatnonzero(~fits[places, chosen]):
            weights = np.cumsum(fits[places[row]] * counts)
            place = draw(np.array([row]), self.joint.name) * weights[-1]
            chosen[row] = np.searchsorted(weights, place[0], side="right")
        for name, values in self._apart(texts, columns).items():
            rows = put_in_gaps(rows, name, values.take(pa.array(chosen)))
        return rows

    def _fitting(self, rows: pa.Table) -> tuple[Array, Array]:
        """The combinations that have the known values of rows, and a value in each gap.

        Returns:
            bool ``(P, K)``, for each of P patterns of known values which of the K combinations do:
            without a value in each gap if none has, and all if none has the known values. And the
            pattern of each row, ``(N,)``.
        """
        assert self.joint is not None
        combinations = [json.loads(t) for t in (*self.joint.categories, *self.joint.others)]
        encoded = self._texts(rows).dictionary_encode()
        patterns = [json.loads(text) for text in encoded.dictionary.to_pylist()]
        matches = np.ones((len(patterns), len(combinations)), bool)
        complete = matches.copy()
        for i in range(len(self.columns)):
            numbers: dict[str | None, int] = {None: 0}
            for values in (*combinations, *patterns):
                numbers.setdefault(values[i], len(numbers))
            have = np.array([numbers[values[i]] for values in combinations])
            want = np.array([numbers[values[i]] for values in patterns])[:, None]
            matches &= (want == 0) | (want == have)
            complete &= have > 0  # where the value is known, it is that
        fits = matches & complete
        fits |= matches & ~fits.any(axis=1, keepdims=True)
        fits |= ~fits.any(axis=1, keepdims=True)
        return fits, encoded.indices.to_numpy(zero_copy_only=False)

    def satisfied(self, table: pa.Table, columns: Columns) -> Array:
        """Look the combinations up; before the rule is fitted, every one is right."""
        if self.joint is None:
            return np.ones(len(table), bool)
        known = pa.array([*self.joint.categories, *self.joint.others], pa.string())
        return pc.is_in(self._texts(table), known).to_numpy(zero_copy_only=False)

    def _texts(self, table: pa.Table) -> pa.Array:
        """Each row's combination."""
        encoded = [
            column_values(table, name).cast(pa.string()).dictionary_encode("encode")
            for name in self.columns
        ]
        indices = np.stack([e.indices.to_numpy(zero_copy_only=False) for e in encoded], axis=1)
        known, inverse = np.unique(indices, axis=0, return_inverse=True)
        lists = [e.dictionary.to_pylist() for e in encoded]
        texts = [
            json.dumps([v[i] for v, i in zip(lists, row, strict=True)], ensure_ascii=False)
            for row in known.tolist()
        ]
        return pa.array(texts, pa.string()).take(pa.array(inverse.ravel()))

    def _apart(self, texts: pa.Array, columns: Columns) -> dict[str, pa.Array]:
        """Values of each column, of combinations."""
        rows = [json.loads(text) for text in texts.to_pylist()]
        return {
            name: _typed(pa.array([row[i] for row in rows], pa.string()), columns[name])
            for i, name in enumerate(self.columns)
        }


def _typed(texts: pa.Array, column: Column) -> pa.Array:
    return texts.cast(value_type(column.type))


def _meets(column: Column, values: pa.Array, condition: Condition) -> Array:
    """Tell for each value if it meets a condition."""
    column.allowed(condition)  # it names mistakes
    is_missing = values.is_null().to_numpy(zero_copy_only=False)
    if condition.missing:
        return is_missing
    if isinstance(column, CategoryColumn):
        wanted = pa.array(sorted(column.wanted(condition)), pa.string())
        return pc.is_in(column.texts(values), wanted).to_numpy(zero_copy_only=False)
    if isinstance(column, NumberColumn):
        limits, numbers = column.limits(condition), column.numbers(values)
        spikes = np.array(column.spikes)
        with np.errstate(invalid="ignore"):
            within = (numbers >= limits.low) & (numbers <= limits.high)
        within &= ~np.isin(numbers, [*limits.but, *spikes])
        return within | np.isin(numbers, spikes[limits.spikes])
    return ~is_missing
