"""One column less than another, or at most as large."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Literal, Self

import numpy as np
import pyarrow as pa

from models.errors import DataError
from models.tables.column import column_values
from models.tables.kinds import AnyColumn
from models.tables.number import NumberColumn
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
from models.tables.rules.numbers import (
    between,
    first_from,
    nearest,
    number_column,
    on_scale_of,
    put,
    put_in_gaps,
)

Array = np.ndarray


class Inequality(Rule, frozen=True):
    """Where both have a value, that of ``low`` is less than that of ``high``, or at most.

    Networks see the gap between the two in place of ``high``. Where ``low`` has no value, the gap
    is from the smallest value of ``high``.
    """

    kind: Literal["inequality"] = "inequality"
    low: str
    high: str
    strict: bool
    """True: they are never equal."""
    gap: NumberColumn | None = None
    """Differences, in numbers of ``high``; None before it is fitted."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The smaller."""
        return (self.low,)

    @property
    def makes(self) -> tuple[str, ...]:
        """The larger."""
        return (self.high,)

    def __str__(self) -> str:
        """Such as ``a < b``."""
        return f"{quoted(self.low)} {'<' if self.strict else '<='} {quoted(self.high)}"

    @classmethod
    def read(cls, text: str) -> tuple[Self, ...]:
        """Read ``a < b``, or a chain such as ``a <= b < c``."""
        pieces = re.split(rf"(<=|>=|<|>){OUTSIDE_NAMES}", text)
        if len(pieces) < 3 or not all(re.fullmatch(NAME, p.strip()) for p in pieces[::2]):
            return ()
        names = list(map(unquoted, pieces[::2]))
        rules = []
        for first, sign, second in zip(names, pieces[1::2], names[1:], strict=False):
            low, high = (first, second) if sign[0] == "<" else (second, first)
            rules.append(cls(low=low, high=high, strict=len(sign) == 1))
        return tuple(rules)

    def fitted(self, table: pa.Table, columns: Columns, shared: Set[str], fit: Fit) -> Self:
        """Fit the gap."""
        low, high = self._columns(columns)
        largest = on_scale_of(np.array([low.high]), low, high)
        if np.isnan(first_from(high, largest, beyond=self.strict))[0] and not high.missing:
            raise DataError(
                f"rule '{self}': {self.low} may be {low.in_text(low.high)}, for which {self.high} "
                f"has no value: its largest is {high.in_text(high.high)}"
            )
        values = pa.array(self._gaps(table, columns), pa.float64(), from_pandas=True)
        gap = fit("number", f"{quoted(self.high)} - {quoted(self.low)}", values)
        return self.model_copy(update={"gap": gap})

    def coded(self, columns: Columns) -> tuple[AnyColumn, ...]:
        """The gap."""
        assert self.gap is not None
        return (self.gap,)

    def before_coding(self, table: pa.Table, columns: Columns) -> pa.Table:
        """Put the gap in place of the larger."""
        assert self.gap is not None
        gaps = pa.array(self._gaps(table, columns), pa.float64(), from_pandas=True)
        return put(table.drop_columns([self.high]), self.gap.name, gaps)

    def after_decoding(self, table: pa.Table, columns: Columns, fixed: Set[str]) -> pa.Table:
        """Add the gap to the smaller: the nearest value that is large enough.

        Where the larger has none, it is missing: so it is in the data, or the rule had not been
        fitted.
        """
        assert self.gap is not None
        low, high = self._columns(columns)
        ends = on_scale_of(low.numbers(column_values(table, self.low)), low, high)
        gaps = self.gap.numbers(column_values(table, self.gap.name))
        sums = nearest(high, np.where(np.isnan(ends), high.low, ends) + gaps)
        with np.errstate(invalid="ignore"):
            is_small = (sums <= ends) if self.strict else (sums < ends)
        sums[is_small] = first_from(high, ends[is_small], beyond=self.strict)
        return put(table.drop_columns([self.gap.name]), self.high, high.array(sums))

    def tightened(self, ranges: Ranges, columns: Columns) -> None:
        """Raise the range of the larger to the smaller's, and lower that to the larger's."""
        low, high = self._columns(columns)
        (least, most), (high_least, high_most) = ranges[self.low], ranges[self.high]
        above = first_from(high, on_scale_of(least, low, high), beyond=self.strict)
        below = first_from(low, on_scale_of(high_most, high, low), beyond=self.strict, step=-1)
        ranges[self.low] = least, np.fmin(most, below)
        ranges[self.high] = np.fmax(high_least, above), high_most

    def with_gaps(self, rows: pa.Table, columns: Columns) -> pa.Table:
        """Put the gap in place of the larger, where both are known."""
        assert self.gap is not None
        low, _ = self._columns(columns)
        is_gap = np.isnan(low.numbers(column_values(rows, self.low)))
        gaps = nearest(self.gap, np.where(is_gap, np.nan, self._gaps(rows, columns)))
        values = pa.array(gaps, pa.float64(), from_pandas=True)
        return put(rows.drop_columns([self.high]), self.gap.name, values)

    def narrowed(self, rows: pa.Table, columns: Columns, ranges: Ranges) -> dict[str, Array]:
        """Ask for gaps that lead from one range to the other."""
        assert self.gap is not None
        low, high = self._columns(columns)
        ends = [on_scale_of(end, low, high) for end in ranges[self.low]]
        least, most = ranges[self.high]
        return {self.gap.name: between(self.gap, least - ends[1], most - ends[0])}

    def settled(
        self, rows: pa.Table, made: pa.Table, columns: Columns, ranges: Ranges, draw: Draw
    ) -> pa.Table:
        """Keep to the gap that was made: below a known larger value, else above the smaller."""
        low, high = self._columns(columns)
        gaps = self._gaps(made, columns)
        lows, highs, made_lows, made_highs = (
            column.numbers(column_values(table, column.name))
            for table in (rows, made)
            for column in (low, high)
        )
        below = nearest(low, on_scale_of(highs - gaps, high, low))
        wanted = np.where(np.isnan(highs), made_lows, below).clip(*ranges[self.low])
        # A value that is missing in the row that was made is so by another rule.
        wanted[np.isnan(made_lows)] = np.nan
        lows = np.where(np.isnan(lows), wanted, lows)
        ends = on_scale_of(lows, low, high)
        above = nearest(high, np.where(np.isnan(ends), high.low, ends) + gaps)
        above = np.fmax(above, first_from(high, ends, beyond=self.strict))
        above = above.clip(*ranges[self.high])
        above[np.isnan(made_highs)] = np.nan
        rows = put_in_gaps(rows, self.low, low.array(lows))
        return put_in_gaps(rows, self.high, high.array(above))

    def satisfied(self, table: pa.Table, columns: Columns) -> Array:
        """Compare the two; a missing value is no fault."""
        low, high = self._columns(columns)
        ends = on_scale_of(low.numbers(column_values(table, self.low)), low, high)
        numbers = high.numbers(column_values(table, self.high))
        with np.errstate(invalid="ignore"):
            return ~((numbers <= ends) if self.strict else (numbers < ends))

    def _columns(self, columns: Columns) -> list[NumberColumn]:
        return number_column([columns[self.low], columns[self.high]], self)

    def _gaps(self, table: pa.Table, columns: Columns) -> Array:
        low, high = self._columns(columns)
        ends = on_scale_of(low.numbers(column_values(table, self.low)), low, high)
        numbers = high.numbers(column_values(table, self.high))
        gaps = numbers - np.where(np.isnan(ends), high.low, ends)
        if low.decimals is not None and high.decimals is not None and low.kind == "number":
            gaps = gaps.round(max(low.decimals, high.decimals))
        return gaps
