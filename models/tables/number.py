"""Columns of numbers."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa

from models.errors import ConditionError, DataError, RowError
from models.tables.column import Coded, Column, arrow_type
from models.tables.conditions import Condition
from models.tables.layout import LARGEST_SCORE
from models.tables.scores import from_scores, to_scores

Array = np.ndarray
LARGEST_WHOLE = 2.0**53
"""Float64 holds each whole number up to this one."""
_INWARDS: dict[str, Literal[1, -1]] = {"low": 1, "high": -1}
"""Each end of a range with the direction that leads inside."""


class Allowed(NamedTuple):
    """What a condition allows of a column of numbers."""

    missing: bool
    spikes: Array
    """bool, of each spike."""
    low: float
    """The smallest number, which the column may hold itself."""
    high: float
    """The largest number; it is below ``low`` where only spikes are allowed."""
    but: tuple[float, ...]
    """Numbers between the two that are not allowed."""


class NumberColumn(Column, frozen=True):
    """Numbers, whole or not; some values that many rows share, such as 0, are options of their own.

    Generated numbers lie in the range of the training rows, and have as many decimals.
    """

    kind: Literal["number"] = "number"
    low: float
    high: float
    decimals: int | None = None
    """Digits after the point that the values have, 0 for whole numbers; None if no few digits hold
    them."""
    quantiles: tuple[float, ...] = ()
    """Quantiles, at the levels of `models.tables.scores.quantile_levels`, of the values that are no
    spikes; empty if all are."""
    spikes: tuple[float, ...] = ()
    """Values, ascending, that each stand in many rows."""

    @property
    def has_number(self) -> bool:
        """True unless all values are spikes."""
        return bool(self.quantiles)

    @property
    def option_count(self) -> int:
        """Any number, each spike, and missing."""
        return self.has_number + len(self.spikes) + (self.missing > 0)

    def split(self, values: pa.Array) -> Coded:
        """Find the option and the score of each number."""
        numbers = self.numbers(values)
        is_missing = np.isnan(numbers)
        if is_missing.any() and not self.missing:
            raise RowError(int(is_missing.argmax()), "has no value", self.name)
        options = np.zeros(len(numbers), np.int64)
        if self.spikes:
            spikes = np.array(self.spikes)
            nearest = np.searchsorted(spikes, numbers).clip(max=len(spikes) - 1)
            is_spike = spikes[nearest] == numbers
            options[is_spike] = self.has_number + nearest[is_spike]
            unknown = ~(is_spike | is_missing)
            if not self.has_number and unknown.any():
                wrong, known = values[int(unknown.argmax())], map(self.in_text, self.spikes)
                raise DataError(f"column {self.name!r}: {wrong} is none of {', '.join(known)}")
        options[is_missing] = self.option_count - 1
        if not self.has_number:
            return Coded(options, None)
        scores = np.where(options == 0, to_scores(np.nan_to_num(numbers), self.quantiles), 0.0)
        return Coded(options, scores)

    def join(self, coded: Coded, first: int, condition: Condition | None, seed: int) -> pa.Array:
        """Make numbers of options and scores."""
        numbers = np.full(len(coded.options), np.nan)
        if coded.scores is not None:
            scores = np.nan_to_num(coded.scores)
            numbers = self.rounded(from_scores(scores, self.quantiles).clip(self.low, self.high))
            if condition is not None:
                numbers = self._within(numbers, self.limits(condition))
        others = np.array([*self.spikes, *[np.nan] * (self.missing > 0)])
        is_other = coded.options >= self.has_number
        numbers[is_other] = others[coded.options[is_other] - self.has_number]
        return self.array(numbers)

    def numbers(self, values: pa.Array) -> Array:
        """The values as float64 ``(N,)``, NaN where there is none.

        Raises:
            DataError: they are no numbers, or infinite.
        """
        try:
            numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"column {self.name!r}: not numbers ({error})") from None
        numbers = numbers.astype(np.float64, copy=False)
        if np.isinf(numbers).any():
            raise RowError(int(np.isinf(numbers).argmax()), "is infinite", self.name)
        return numbers

    def array(self, numbers: Array) -> pa.Array:
        """Numbers, float64 ``(N,)``, as values of the column's type; NaN becomes a missing one."""
        plain, kind = pa.array(numbers, pa.float64(), from_pandas=True), arrow_type(self.type)
        if pa.types.is_decimal(kind) and self.decimals is not None:
            # A wider type has room for the digits in which a float64 differs from its number.
            plain = plain.cast(pa.decimal128(38, min(self.decimals, kind.scale)), safe=False)
        return plain.cast(kind, safe=False)

    def rounded(self, numbers: Array) -> Array:
        """The nearest numbers, float64 ``(N,)``, that have the column's decimals and type."""
        if self.decimals is not None:
            scale = 10.0**self.decimals
            scaled = numbers * scale
            # Larger ones have no digit to lose, but would change by the multiplication.
            small = np.abs(scaled) < LARGEST_WHOLE
            numbers = np.where(small, np.rint(scaled) / scale, numbers)
        return self.as_typed(numbers)

    def has_decimals(self, numbers: Array) -> Array:
        """Tell for each number, bool ``(N,)``, if it has no more than the column's decimals."""
        # Readers of text may be a rounding error away from the number nearest to the digits.
        return np.isclose(numbers, self.rounded(numbers), rtol=1e-15, atol=0)

    def with_round_ends(self) -> Self:
        """The column with its ends moved inwards to numbers that it may hold.

        Otherwise a number at an end would be rounded to one beyond it. No number may be left: then
        ``low`` is above ``high``.
        """
        ends = dict[str, float]()
        for name, step in _INWARDS.items():
            end = getattr(self, name)
            nearest = float(self.rounded(np.array(end)))
            is_inside = (nearest - end) * step > 0 or self.has_decimals(np.array(end))
            ends[name] = nearest if is_inside else self._beyond(nearest, step)
        return self.model_copy(update=ends)

    def as_typed(self, numbers: Array) -> Array:
        """Numbers as the column's type holds them, as float64."""
        kind = arrow_type(self.type)
        if pa.types.is_float32(kind) or pa.types.is_float16(kind):
            return numbers.astype(kind.to_pandas_dtype()).astype(np.float64)
        return numbers

    def _beyond(self, number: float, step: Literal[1, -1]) -> float:
        """The number next to one that the column may hold: above (1) or below (-1)."""
        if self.decimals is not None:
            following = float(self.rounded(np.array(number + step * 10.0**-self.decimals)))
            if following != number:
                return following
        kind = arrow_type(self.type)
        dtype = kind.to_pandas_dtype() if pa.types.is_floating(kind) else np.float64
        return float(np.nextafter(dtype(number), dtype(step * np.inf)))

    def _end(self, value: bool | float | str, step: Literal[1, -1], *, is_open: bool) -> float:
        """The first number at or beyond a value, or beyond it if the end is open."""
        end = float(self.as_typed(np.array(self.number(value))))
        nearest = float(self.rounded(np.array(end)))
        if (nearest - end) * step > 0 or (nearest == end and not is_open):
            return nearest
        return self._beyond(nearest, step)

    def limits(self, condition: Condition) -> Allowed:
        """Say which values meet a condition; perhaps none does."""
        if condition.missing:
            return Allowed(True, np.zeros(len(self.spikes), bool), 1.0, 0.0, ())
        low, high = self.low, self.high
        if condition.at_least is not None:
            low = max(low, self._end(condition.at_least, 1, is_open=False))
        if condition.above is not None:
            low = max(low, self._end(condition.above, 1, is_open=True))
        if condition.at_most is not None:
            high = min(high, self._end(condition.at_most, -1, is_open=False))
        if condition.below is not None:
            high = min(high, self._end(condition.below, -1, is_open=True))
        unwanted = np.array([self.number(value) for value in condition.none_of])
        but = tuple(np.unique(self.as_typed(unwanted)).tolist())
        spikes = np.array(self.spikes)
        meets = (spikes >= low) & (spikes <= high) & ~np.isin(spikes, but)
        if condition.one_of is not None:
            wanted = self.as_typed(np.array(sorted({self.number(v) for v in condition.one_of})))
            meets &= np.isin(spikes, wanted)
            # Values that the column may hold, without those that are spikes.
            wanted = wanted[(wanted == self.rounded(wanted)) & ~np.isin(wanted, [*spikes, *but])]
            wanted = wanted[(wanted >= low) & (wanted <= high)]
            if len(wanted) > 1 and self.has_number:
                raise ConditionError(
                    f"{self.name}: {', '.join(map(self.in_text, wanted))} cannot be asked for "
                    "together; ask for one value, or a range"
                )
            low, high = (wanted[0], wanted[0]) if len(wanted) else (1.0, 0.0)
        while low <= high and low in but:
            low = self._beyond(low, 1)
        while low <= high and high in but:
            high = self._beyond(high, -1)
        return Allowed(False, meets, float(low), float(high), but)

    def _within(self, numbers: Array, allowed: Allowed) -> Array:
        """Bring numbers, which have the column's decimals, to the nearest allowed ones."""
        numbers = numbers.clip(allowed.low, max(allowed.low, allowed.high))
        for unwanted in allowed.but:  # ascending; the largest number is none of them
            numbers[numbers == unwanted] = self._beyond(unwanted, 1)
        return numbers

    def allowed(self, condition: Condition) -> tuple[Array, tuple[float, float]]:
        """Say which spikes, and which scores, meet a condition."""
        allowed = self.limits(condition)
        any_number = self.has_number and allowed.low <= allowed.high
        options = np.array(
            [any_number] * self.has_number
            + [*allowed.spikes.tolist()]
            + [allowed.missing] * (self.missing > 0),
            bool,
        )
        if not options.any():
            raise ConditionError(
                f"no row has {condition.in_words(self.name)}: {self.name} is {self._ranges()}"
            )
        scores = -LARGEST_SCORE, LARGEST_SCORE
        if any_number:
            ends = to_scores(np.array([allowed.low, allowed.high]), self.quantiles)
            # The outermost numbers are not restricted: they may lie beyond those of training.
            scores = (
                scores[0] if allowed.low <= self.quantiles[0] else float(ends[0]),
                scores[1] if allowed.high >= self.quantiles[-1] else float(ends[1]),
            )
        return options, scores

    def _ranges(self) -> str:
        ends = f"from {self.in_text(self.low)} to {self.in_text(self.high)}"
        if not self.has_number:
            ends = f"one of {', '.join(map(self.in_text, self.spikes))}"
        elif self.decimals is not None:
            ends += f", of {self.decimals} decimals" if self.decimals else ", and whole"
        return ends + (", or missing" if self.missing else ", and never missing")

    def in_text(self, number: float) -> str:
        """A number as a person reads it."""
        return str(self.array(np.array([number]))[0].as_py())

    def number(self, value: bool | float | str) -> float:
        """Read a number that a person gave."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ConditionError(f"{self.name}: '{value}' is not a number")
        return number

    def is_valid(self, values: pa.Array) -> Array:
        """Tell for each value if it lies in the range and has no more decimals."""
        numbers = self.numbers(values)
        with np.errstate(invalid="ignore"):
            rounded = self.rounded(numbers)
            valid = (rounded >= self.low) & (rounded <= self.high) & self.has_decimals(numbers)
        if not self.has_number:
            valid &= np.isin(numbers, self.spikes)
        return valid | (np.isnan(numbers) & (self.missing > 0))

    def in_words(self) -> dict[str, Any]:
        """Range, decimals and spikes."""
        ends = {"low": self.low, "high": self.high}
        return {**ends, "decimals": self.decimals, "spikes": list(self.spikes)}
