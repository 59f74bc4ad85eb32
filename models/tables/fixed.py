"""Columns that networks have no part in: constants, copies, and identifiers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from models.errors import ConditionError
from models.tables.column import Coded, Column, arrow_type, value_type
from models.tables.conditions import Condition
from models.tables.times import from_ticks

Array = np.ndarray


class _FixedColumn(Column, frozen=True):
    """A column without a code."""

    @property
    def has_number(self) -> bool:
        """False."""
        return False

    @property
    def option_count(self) -> int:
        """1: there is nothing to choose."""
        return 1

    def split(self, values: pa.Array) -> Coded:
        """Nothing is coded."""
        return Coded(np.zeros(len(values), np.int64), None)

    def allowed(self, condition: Condition) -> tuple[Array, tuple[float, float]]:
        """No condition can be put on the column."""
        words = ", ".join(f"{key} {value}" for key, value in self.in_words().items())
        raise ConditionError(f"{self.name}: is made anew ({words}) and takes no condition")


class ConstantColumn(_FixedColumn, frozen=True):
    """One value in every row, or none at all."""

    kind: Literal["constant"] = "constant"
    value: bool | int | float | str | None
    """A date, time or duration as a whole number of its type's unit, a decimal number as text."""

    def join(self, coded: Coded, first: int, condition: Condition | None, seed: int) -> pa.Array:
        """Repeat the value."""
        return self.in_type(pa.repeat(self._value(), len(coded.options)))

    def _value(self) -> pa.Scalar:
        kind = value_type(self.type)
        if self.value is None:
            return pa.scalar(None, kind)
        if pa.types.is_temporal(kind):
            return from_ticks(pa.array([self.value], pa.int64()), kind)[0]
        return pa.array([str(self.value)]).cast(kind)[0]

    def is_valid(self, values: pa.Array) -> Array:
        """Tell for each value if it is the constant."""
        constant = self._value().as_py()
        return np.array(
            [value == constant for value in values.cast(value_type(self.type)).to_pylist()], bool
        )

    def in_words(self) -> dict[str, Any]:
        """The value."""
        return {"value": None if self.value is None else str(self._value().as_py())}


class CopyColumn(_FixedColumn, frozen=True):
    """The same as another column in each row."""

    kind: Literal["copy"] = "copy"
    of: str
    """The other column's name."""

    def join(self, coded: Coded, first: int, condition: Condition | None, seed: int) -> pa.Array:
        """Nothing: `TableSchema.decode` copies the other column."""
        return pa.nulls(len(coded.options), arrow_type(self.type))

    def is_valid(self, values: pa.Array) -> Array:
        """True of each value: whether it is the other column's is not known here."""
        return np.ones(len(values), bool)

    def in_words(self) -> dict[str, Any]:
        """The other column."""
        return {"of": self.of}


class IdentifierColumn(_FixedColumn, frozen=True):
    """A name that no two rows share; generated rows get new ones, which no training row has."""

    kind: Literal["identifier"] = "identifier"
    first: int
    """Number in the first new one."""
    prefix: str = ""
    """Text before the number; identifiers that are numbers have none."""
    digits: int = 1
    """Fewest digits of the number; zeros fill it up."""

    def join(self, coded: Coded, first: int, condition: Condition | None, seed: int) -> pa.Array:
        """Number the rows."""
        numbers = range(self.first + first, self.first + first + len(coded.options))
        kind = arrow_type(self.type)
        if pa.types.is_integer(kind):
            return pa.array(numbers, kind)
        return pa.array([f"{self.prefix}{n:0{self.digits}d}" for n in numbers], pa.string()).cast(
            kind
        )

    def is_valid(self, values: pa.Array) -> Array:
        """Tell for each value if it is there, and the only one of its kind."""
        texts = values.cast(pa.string())
        known = texts.fill_null("").to_numpy(zero_copy_only=False).astype(str)
        _, inverse, counts = np.unique(known, return_inverse=True, return_counts=True)
        return (counts[inverse] == 1) & texts.is_valid().to_numpy(zero_copy_only=False)

    def in_words(self) -> dict[str, Any]:
        """How new ones are made."""
        return {"new": f"{self.prefix}{self.first:0{self.digits}d} and so on"}
