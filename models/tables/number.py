"""Columns of numbers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from models.errors import ConditionError, DataError
from models.tables.column import Coded, Column, arrow_type
from models.tables.conditions import Condition
from models.tables.layout import LARGEST_SCORE
from models.tables.scores import from_scores, to_scores

Array = np.ndarray


class NumberColumn(Column, frozen=True):
    """Numbers, whole or not; some values that many rows share, such as 0, are options of their own.

    Generated numbers lie in the range of the training rows, and have as many decimals.
    """

    kind: Literal["number"] = "number"
    low: float
    high: float
    decimals: int | None = None
    """Digits after the point that the values have; None if no few digits hold them."""
    quantiles: tuple[float, ...] = ()
    """Quantiles at equal distances of the values that are no spikes; empty if all are."""
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
            raise DataError(f"column {self.name!r}: row {is_missing.argmax()} has no value")
        options = np.zeros(len(numbers), np.int64)
        if self.spikes:
            spikes = np.array(self.spikes)
            nearest = np.searchsorted(spikes, numbers).clip(max=len(spikes) - 1)
            is_spike = spikes[nearest] == numbers
            options[is_spike] = self.has_number + nearest[is_spike]
            if not self.has_number and not (is_spike | is_missing).all():
                wrong = numbers[~(is_spike | is_missing)][0]
                raise DataError(f"column {self.name!r}: {wrong:g} is none of {self.spikes}")
        options[is_missing] = self.option_count - 1
        if not self.has_number:
            return Coded(options, None)
        scores = np.where(options == 0, to_scores(np.nan_to_num(numbers), self.quantiles), 0.0)
        return Coded(options, scores)

    def join(self, coded: Coded, first: int) -> pa.Array:
        """Make numbers of options and scores."""
        numbers = np.zeros(len(coded.options))
        if coded.scores is not None:
            numbers = from_scores(coded.scores, self.quantiles)
            if self.decimals is not None:
                numbers = np.round(numbers, self.decimals)
            numbers = numbers.clip(self.low, self.high)
        table = np.array(
            [*[np.nan] * self.has_number, *self.spikes, *[np.nan] * (self.missing > 0)]
        )
        is_option = (coded.options > 0) | (not self.has_number)
        numbers = np.where(is_option, table[coded.options], numbers)
        return self.array(numbers)

    def numbers(self, values: pa.Array) -> Array:
        """The values as float64 ``(N,)``, NaN where there is none.

        Raises:
            DataError: they are no numbers.
        """
        try:
            numbers: Array = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise DataError(f"column {self.name!r}: not numbers ({error})") from None
        return numbers.astype(np.float64, copy=False)

    def array(self, numbers: Array) -> pa.Array:
        """Numbers, float64 ``(N,)``, as values of the column's type."""
        plain = pa.array(numbers, pa.float64(), from_pandas=True)
        return plain.cast(arrow_type(self.type), safe=False)

    def allowed(self, condition: Condition) -> tuple[Array, tuple[float, float]]:
        """Say which spikes, and which scores, meet a condition."""
        ends = [None if e is None else self.number(e) for e in condition.ends]
        step = 0.0 if self.decimals is None else 10.0**-self.decimals
        low = self.low if ends[0] is None else ends[0] + step * (condition.above is not None)
        high = self.high if ends[1] is None else ends[1] - step * (condition.below is not None)
        wanted = None if condition.one_of is None else [self.number(v) for v in condition.one_of]
        unwanted = [self.number(v) for v in condition.none_of]
        spikes = np.array(self.spikes)
        meets = (spikes >= low) & (spikes <= high) & ~np.isin(spikes, unwanted)
        if wanted is not None:
            meets &= np.isin(spikes, wanted)
        scores, any_number = (-LARGEST_SCORE, LARGEST_SCORE), low <= self.high and high >= self.low
        if wanted is not None:
            others = [v for v in wanted if v not in self.spikes and low <= v <= high]
            any_number = bool(others)
            if len(others) > 1 or (others and meets.any()):
                raise ConditionError(f"{self.name}: give one value, or a range")
            low = high = others[0] if others else low
        if self.has_number and any_number:
            ends_of_scores = to_scores(np.array([low, high]), self.quantiles)
            scores = float(ends_of_scores[0]), float(ends_of_scores[1])
        may_miss = condition.missing is True
        options = np.array(
            [*[any_number and not may_miss] * self.has_number, *(meets & (not may_miss))]
            + [may_miss] * (self.missing > 0),
            bool,
        )
        if not options.any():
            raise ConditionError(
                f"no row has {condition.in_words(self.name)}: {self.name} is a number from "
                f"{self.low:g} to {self.high:g}" + (", or missing" if self.missing else "")
            )
        return options, scores

    def number(self, value: bool | float | str) -> float:
        """Read a number that a person gave."""
        try:
            return float(value)
        except ValueError:
            raise ConditionError(f"{self.name}: '{value}' is not a number") from None

    def is_valid(self, values: pa.Array) -> Array:
        """Tell for each value if it lies in the range and has no more decimals."""
        numbers = self.numbers(values)
        valid = (numbers >= self.low) & (numbers <= self.high)
        if self.decimals is not None:
            valid &= np.isclose(numbers, np.round(numbers, self.decimals), rtol=1e-12, atol=0)
        if not self.has_number:
            valid &= np.isin(numbers, self.spikes)
        return valid | (np.isnan(numbers) & (self.missing > 0))

    def in_words(self) -> dict[str, Any]:
        """Range, decimals and spikes."""
        return {"range": [self.low, self.high], "decimals": self.decimals, "spikes": self.spikes}
