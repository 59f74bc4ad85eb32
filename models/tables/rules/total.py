"""A column that is a sum of others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ConditionError, DataError
from models.tables.category import BooleanColumn
from models.tables.column import column_values
from models.tables.conditions import Condition
from models.tables.kinds import AnyColumn
from models.tables.rules.base import (
    NAME,
    OUTSIDE_NAMES,
    Columns,
    Draw,
    Fit,
    Ranges,
    Rule,
    quoted,
    unquoted,
)
from models.tables.rules.numbers import nearest, number_column, put, put_in_gaps
from models.tables.times import TimeColumn

Array = np.ndarray
_FACTOR = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
_TERM = re.compile(
    rf"\s*([+-]?)\s*(?:({_FACTOR})\s*\*\s*({NAME})|({_FACTOR})(?=\s*[+-]|\s*$)|({NAME}))\s*"
)


class Term(NamedTuple):
    """A column of a sum, and what it is multiplied by."""

    factor: float
    name: str


class Total(Rule, frozen=True):
    """``total`` is the sum of terms and a constant, to its own decimals.

    Networks do not see it. Where a term has no value, it has none.
    """

    kind: Literal["total"] = "total"
    total: str
    terms: tuple[Term, ...]
    constant: float = 0.0
    may_be_missing: bool = False
    """True if rows have no total though they have all terms; that is then part of the code."""
    keeps_range: bool = False
    """True if terms are brought to where the total lies in its range. False if they cannot be, for
    they are coarser than it or under other rules: its range is then what they can add up to."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The terms."""
        return tuple(term.name for term in self.terms)

    @property
    def makes(self) -> tuple[str, ...]:
        """The total."""
        return (self.total,)

    def __str__(self) -> str:
        """Such as ``c = a + 2 * b``."""
        pieces = []
        for factor, name in self.terms:
            times = "" if abs(factor) == 1 else f"{abs(factor):.15g} * "
            pieces.append(f"{'-' if factor < 0 else '+'} {times}{quoted(name)}")
        if self.constant:
            pieces.append(f"{'-' if self.constant < 0 else '+'} {abs(self.constant):.15g}")
        return f"{quoted(self.total)} = {' '.join(pieces).removeprefix('+ ')}"

    @classmethod
    def read(cls, text: str) -> tuple[Self, ...]:
        """Read ``c = a + b``, ``c = a - b`` or ``c = 1.2 * a + 5``."""
        total, *others = re.split(rf"={OUTSIDE_NAMES}", text, maxsplit=1)
        if not others or not re.fullmatch(NAME, total.strip()):
            return ()
        (rest,) = others
        terms, constant, position = list[Term](), 0.0, 0
        while position < len(rest):
            found = _TERM.match(rest, position)
            if found is None or (position and not found[1]):
                return ()
            factor = float(f"{found[1]}{found[2] or found[4] or 1}")
            if found[4]:
                constant += factor
            else:
                terms.append(Term(factor, unquoted(found[3] or found[5])))
            position = found.end()
        names = {unquoted(total), *(term.name for term in terms)}
        if not terms or len(names) <= len(terms):
            return ()
        return (cls(total=unquoted(total), terms=tuple(terms), constant=constant),)

    def fitted(self, table: pa.Table, columns: Columns, shared: Set[str], fit: Fit) -> Self:
        """Find out if totals are missing without a reason, and if their range can be kept to."""
        found = number_column([columns[name] for name in self.names], self)
        if any(isinstance(column, TimeColumn) for column in found):
            raise DataError(f"rule '{self}': dates and times have no sum")
        sums, totals = self._sums(table, columns), self._totals(table, columns)
        update = {
            "may_be_missing": bool((np.isnan(totals) & ~np.isnan(sums)).any()),
            "keeps_range": self._can_keep(columns, shared),
        }
        return self.model_copy(update=update)

    def revised(self, table: pa.Table, columns: Columns, fit: Fit) -> Columns:
        """Widen the total's range to what the terms can add up to, unless it can be kept to."""
        if self.keeps_range:
            return {}
        total = number_column([columns[self.total]], self)[0]
        low, high = self._reach(columns, {})
        low, high = np.array(total.rounded(np.array([low, high])))
        held = total.numbers(total.array(np.array([low, high])))
        if not np.allclose(held, [low, high], rtol=1e-6):
            raise DataError(
                f"rule '{self}': {self.total} can be from {low:g} to {high:g}, which its type "
                f"{total.type} does not hold; save it in a wider one"
            )
        update: dict[str, Any] = {"low": float(low), "high": float(high)}
        if not total.has_number:
            update["quantiles"] = (float(low), float(high))  # other values than the spikes
        return {self.total: total.model_copy(update=update)}

    def coded(self, columns: Columns) -> tuple[AnyColumn, ...]:
        """Whether the total is missing, if that is not known from the terms."""
        return (BooleanColumn(name=self._flag),) if self.may_be_missing else ()

    @property
    def _flag(self) -> str:
        return f"{quoted(self.total)} is missing"

    def before_coding(self, table: pa.Table, columns: Columns) -> pa.Table:
        """Leave the total out."""
        if self.may_be_missing:
            is_missing = np.isnan(self._totals(table, columns))
            table = put(table, self._flag, pa.array(is_missing))
        return table.drop_columns([self.total])

    def after_decoding(self, table: pa.Table, columns: Columns, fixed: Set[str]) -> pa.Table:
        """Compute the total, of terms that are first brought to where it lies in its range."""
        total = number_column([columns[self.total]], self)[0]
        has_total = np.ones(len(table), bool)
        if self.may_be_missing:
            has_total = ~column_values(table, self._flag).to_numpy(zero_copy_only=False).astype(
                bool
            )
            table = table.drop_columns([self._flag])
        if self.keeps_range:
            table = self._within(table, columns, has_total, fixed)
        # Different orders of adding up may differ by a rounding error at the ends.
        sums = np.asarray(total.rounded(self._sums(table, columns))).clip(total.low, total.high)
        return put(table, self.total, total.array(np.where(has_total, sums, np.nan)))

    def _within(
        self, table: pa.Table, columns: Columns, has_total: Array, fixed: Set[str]
    ) -> pa.Table:
        """Bring one term after the other nearer to where the total lies in its range."""
        total = number_column([columns[self.total]], self)[0]
        for factor, name in reversed(self.terms):
            if name in fixed:
                continue
            sums = self._sums(table, columns)
            excess = np.where(has_total, np.nan_to_num(sums - sums.clip(total.low, total.high)), 0)
            excess[np.abs(excess) < 10.0 ** -(total.decimals or 0) / 2] = 0
            if excess.any():
                term = number_column([columns[name]], self)[0]
                numbers = term.numbers(column_values(table, name))
                moved = np.where(excess == 0, numbers, nearest(term, numbers - excess / factor))
                table = put(table, name, term.array(moved))
        return table

    def translated(
        self, conditions: Mapping[str, Condition], columns: Columns
    ) -> dict[str, Condition]:
        """Refuse conditions on the total, and such on terms that leave it no value."""
        result = super().translated(conditions, columns)
        total = number_column([columns[self.total]], self)[0]
        on_terms = {name: c for name, c in conditions.items() if name in self.reads}
        if self.keeps_range and on_terms:
            # The terms without conditions make up for those that have some, or cannot.
            low, high = self._reach(columns, on_terms)
            if low < total.low - 1e-9 or high > total.high + 1e-9:
                words = " and ".join(c.in_words(name) for name, c in on_terms.items())
                raise ConditionError(
                    f"{words}: by the rule '{self}', {self.total} could leave its range "
                    f"{total.low:g} to {total.high:g}; ask for less of these columns at once"
                )
        return result

    def with_gaps(self, rows: pa.Table, columns: Columns) -> pa.Table:
        """Leave the total out, and ask for one."""
        if self.may_be_missing:
            rows = put(rows, self._flag, pa.array(np.zeros(len(rows), bool)))
        return rows.drop_columns([self.total])

    def settled(
        self, rows: pa.Table, made: pa.Table, columns: Columns, ranges: Ranges, draw: Draw
    ) -> pa.Table:
        """Move terms that are not known, one after the other, to where the sum is the total."""
        total = number_column([columns[self.total]], self)[0]
        totals = self._totals(rows, columns)
        is_gap = np.isnan(totals)
        least, most = (np.where(is_gap, end, totals) for end in ranges[self.total])
        rounding = 0.0 if total.decimals is None else 10.0**-total.decimals / 2
        gaps = {name: column_values(rows, name).is_null() for name in self.reads}
        for name in self.reads:
            term = number_column([columns[name]], self)[0]
            numbers = term.numbers(column_values(made, name)).clip(*ranges[name])
            rows = put_in_gaps(rows, name, term.array(numbers))
        for factor, name in reversed(self.terms):
            term = number_column([columns[name]], self)[0]
            sums = self._sums(rows, columns)
            excess = np.nan_to_num(sums - sums.clip(least, most))
            is_free = gaps[name].to_numpy(zero_copy_only=False)
            is_moved = is_free & (np.abs(excess) > rounding)
            if is_moved.any():
                numbers = term.numbers(column_values(rows, name))
                moved = nearest(term, numbers - excess / factor).clip(*ranges[name])
                moved[~is_moved] = numbers[~is_moved]
                known = pc.if_else(pa.array(is_moved), None, column_values(rows, name))
                rows = put_in_gaps(put(rows, name, known), name, term.array(moved))
        sums = np.asarray(total.rounded(self._sums(rows, columns))).clip(total.low, total.high)
        return put_in_gaps(rows, self.total, total.array(sums))

    def satisfied(self, table: pa.Table, columns: Columns) -> Array:
        """Compare the total with the sum, to its decimals; a total that is missing is no fault."""
        total = number_column([columns[self.total]], self)[0]
        totals, sums = self._totals(table, columns), self._sums(table, columns)
        terms = [number_column([columns[name]], self)[0] for name in self.reads]
        sizes = [
            abs(factor) * np.abs(term.numbers(column_values(table, term.name)))
            for (factor, _), term in zip(self.terms, terms, strict=True)
        ]
        is_coarse = any(c.type in ("float", "halffloat") for c in (total, *terms))
        tolerance = (1e-3 if total.type == "halffloat" else 1e-6 if is_coarse else 1e-9) * sum(
            sizes
        )
        if total.decimals is not None:
            tolerance += 0.500001 * 10.0**-total.decimals
        with np.errstate(invalid="ignore"):
            return np.isnan(totals) | (np.abs(totals - sums) <= tolerance)

    def _can_keep(self, columns: Columns, shared: Set[str]) -> bool:
        """True if moving terms always brings the total into its range.

        That is so if each takes all values between its ends, in steps as small as the total's:
        some row of the data is within all ranges, and any other can be moved there step by step.
        """
        found = number_column([columns[name] for name in self.names], self)
        decimals = {column.decimals for column in found}
        return (
            not shared & set(self.reads)
            and not self.constant % 1
            and all(abs(term.factor) == 1 for term in self.terms)
            and all(column.has_number for column in found)
            and len(decimals) == 1
            and None not in decimals
        )

    def _reach(self, columns: Columns, conditions: Mapping[str, Condition]) -> tuple[float, float]:
        """The smallest and the largest sum.

        With conditions: those of the terms under conditions, and of the others what is best.
        """
        low = high = self.constant
        for factor, name in self.terms:
            term = number_column([columns[name]], self)[0]
            ends = [factor * term.low, factor * term.high]
            if name in conditions:
                limits = term.limits(conditions[name])
                spikes = np.array(term.spikes)[limits.spikes]
                ends = [limits.low, limits.high] if limits.low <= limits.high else []
                ends = [factor * end for end in (*ends, *spikes)] or [factor * term.low]
            elif conditions:
                low, high = low + max(ends), high + min(ends)
                continue
            low, high = low + min(ends), high + max(ends)
        return low, high

    def _sums(self, table: pa.Table, columns: Columns) -> Array:
        sums = np.full(len(table), self.constant)
        for factor, name in self.terms:
            term = number_column([columns[name]], self)[0]
            sums = sums + factor * term.numbers(column_values(table, name))
        return sums

    def _totals(self, table: pa.Table, columns: Columns) -> Array:
        total = number_column([columns[self.total]], self)[0]
        return total.numbers(column_values(table, self.total))
