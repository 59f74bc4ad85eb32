"""Columns of dates, times and durations."""

from __future__ import annotations

from datetime import time
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ConditionError, DataError
from models.tables.column import arrow_type
from models.tables.number import NumberColumn

Array = np.ndarray


def to_ticks(values: pa.Array) -> pa.Array:
    """Dates, times or durations as whole numbers, int64, of their type's own unit."""
    kind = values.type
    narrow = pa.types.is_date32(kind) or pa.types.is_time32(kind)
    return (values.cast(pa.int32()) if narrow else values).cast(pa.int64())


def from_ticks(ticks: pa.Array, kind: pa.DataType) -> pa.Array:
    """Whole numbers, int64, as dates, times or durations of a type; `to_ticks` undoes it."""
    narrow = pa.types.is_date32(kind) or pa.types.is_time32(kind)
    return (ticks.cast(pa.int32()) if narrow else ticks).cast(kind)


def names_zone(texts: pa.Array) -> pa.Array:
    """Tell for each text, bool ``(N,)``, if it ends with a time's zone, such as Z or +01:00."""
    return pc.match_substring_regex(texts, r"[T ].*(?:Z|[+-]\d\d(?::?\d\d)?)$")


def in_zone(values: pa.Array, kind: pa.TimestampType) -> pa.Array:
    """Dates, times or texts of them as times of a zone, which those have that name none.

    Raises:
        ArrowInvalid: a text is no time.
        DataError: the zone's clocks skip a time, or show it twice.
    """
    zoned = pa.nulls(len(values), kind)
    if pa.types.is_string(values.type):
        is_zoned = names_zone(values)
        zoned = pc.if_else(is_zoned, values, None).cast(kind)
        values = pc.if_else(is_zoned, None, values)
    local = values.cast(pa.timestamp(kind.unit))
    first, last = (
        pc.assume_timezone(local, kind.tz, ambiguous=which, nonexistent=which)
        for which in ("earliest", "latest")
    )
    unclear = local.filter(pc.not_equal(first, last))
    if len(unclear):
        raise DataError(
            f"clocks in {kind.tz} skip {unclear[0]}, or show it twice; give its offset, such as "
            "+01:00"
        )
    return pc.coalesce(zoned, first)


def read_times(texts: pa.Array, text_format: str) -> pa.Array:
    """Read texts of a format, as `time.strptime` has it, as seconds since 1970.

    Returns:
        timestamp[s]; missing where a text does not follow the format to the letter.
    """
    times = pc.strptime(texts, text_format, "s", error_is_null=True)
    return pc.if_else(pc.equal(pc.strftime(times, text_format), texts), times, None)


class TimeColumn(NumberColumn, frozen=True):
    """Dates or times, coded as numbers of ``step`` since the earliest one, ``origin``."""

    kind: Literal["time"] = "time"  # type: ignore[assignment]
    origin: int
    """The earliest value: of dates and times since 1970, in the type's own unit; of texts in
    seconds."""
    step: int = 1
    """Units that every distance from the earliest value is a multiple of: whole days, say."""
    format: str | None = None
    """How texts write the time, as in `time.strptime`; None for values that are times by type."""
    decimals: int | None = 0

    def numbers(self, values: pa.Array) -> Array:
        """Steps since the earliest value, NaN where there is none."""
        try:
            ticks = to_ticks(self._times(values))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"column {self.name!r}: not dates or times ({error})") from None
        known = ticks.fill_null(self.origin).to_numpy(zero_copy_only=False)
        numbers = (known - self.origin) / self.step
        return np.where(ticks.is_null().to_numpy(zero_copy_only=False), np.nan, numbers)

    def _times(self, values: pa.Array) -> pa.Array:
        if self.format is None:
            return values.cast(arrow_type(self.type))
        texts = values.cast(pa.string())
        times = read_times(texts, self.format)
        if times.null_count > texts.null_count:
            wrong = texts.filter(pc.and_(times.is_null(), texts.is_valid()))[0]
            raise DataError(f"column {self.name!r}: '{wrong}' is not written as {self.format}")
        return times

    def array(self, numbers: Array) -> pa.Array:
        """Steps since the earliest value, as dates or times, or as texts."""
        is_missing = np.isnan(numbers)
        ticks = self.origin + np.nan_to_num(numbers).round().astype(np.int64) * self.step
        whole = pa.array(ticks, pa.int64(), mask=is_missing)
        if self.format is None:
            return from_ticks(whole, arrow_type(self.type))
        return pc.strftime(from_ticks(whole, pa.timestamp("s")), self.format).cast(
            arrow_type(self.type)
        )

    def number(self, value: bool | float | str) -> float:
        """Read a date or time that a person gave: as ISO 8601 writes it, or as the column does.

        A time without a zone counts as one of the column's zone; a duration is a number of the
        type's unit.
        """
        kind, text = arrow_type(self.type), pa.array([str(value)])
        if pa.types.is_duration(kind):
            return (super().number(value) - self.origin) / self.step
        try:
            if self.format is not None:
                moment = read_times(text, self.format)
                if moment.null_count:
                    moment = text.cast(pa.timestamp("s"))
            elif pa.types.is_time(kind):
                moment = pa.array([time.fromisoformat(str(value))], kind)
            elif pa.types.is_timestamp(kind) and kind.tz is not None:
                moment = in_zone(text, kind)
            else:
                moment = text.cast(kind)
        except DataError as error:
            raise ConditionError(f"{self.name}: {error}") from None
        except (ValueError, pa.ArrowInvalid):
            shown = self.in_text(self.low)
            raise ConditionError(
                f"{self.name}: '{value}' is not a date or time such as {shown}"
            ) from None
        return float((to_ticks(moment)[0].as_py() - self.origin) / self.step)

    def in_words(self) -> dict[str, Any]:
        """The first and the last time."""
        words = {"low": self.in_text(self.low), "high": self.in_text(self.high)}
        return words if self.format is None else {**words, "format": self.format}
