"""Columns of dates and times."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from models.errors import ConditionError
from models.tables.column import arrow_type
from models.tables.number import NumberColumn

Array = np.ndarray


class TimeColumn(NumberColumn, frozen=True):
    """Dates or times, coded as numbers of ``step`` since the earliest one, ``origin``."""

    kind: Literal["time"] = "time"  # type: ignore[assignment]
    origin: int
    """The earliest value, in the type's own unit since 1970."""
    step: int = 1
    """Units that every distance from the earliest value is a multiple of: whole days, say."""
    decimals: int | None = 0

    def numbers(self, values: pa.Array) -> Array:
        """Steps since the earliest value; float64 holds them exactly, but not all times."""
        typed = values.cast(self._type)
        ticks = typed.cast(pa.int32() if pa.types.is_date32(self._type) else pa.int64())
        numbers = (
            ticks.fill_null(self.origin).to_numpy(zero_copy_only=False) - self.origin
        ) / self.step
        return np.where(ticks.is_null().to_numpy(zero_copy_only=False), np.nan, numbers)

    def array(self, numbers: Array) -> pa.Array:
        """Steps since the earliest value, as dates or times."""
        is_missing = np.isnan(numbers)
        ticks = self.origin + np.nan_to_num(numbers).round().astype(np.int64) * self.step
        whole = pa.array(ticks, pa.int64(), mask=is_missing)
        return (whole.cast(pa.int32()) if pa.types.is_date32(self._type) else whole).cast(
            self._type
        )

    @property
    def _type(self) -> pa.DataType:
        return arrow_type(self.type)

    def number(self, value: bool | float | str) -> float:
        """Read a date or time that a person gave, as ISO 8601 writes it."""
        try:
            moment = np.array([str(value)], "datetime64[us]")
            typed = pa.array(moment).cast(self._type)
        except (ValueError, pa.ArrowInvalid):
            raise ConditionError(
                f"{self.name}: '{value}' is not a date or time such as 2024-05-31"
            ) from None
        return float(self.numbers(typed)[0])

    def in_words(self) -> dict[str, Any]:
        """The first and the last time."""
        ends = self.array(np.array([self.low, self.high])).to_pylist()
        return {"range": [str(end) for end in ends]}
