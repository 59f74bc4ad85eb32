"""Columns that networks have no part in: constants, and identifiers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from models.errors import ConditionError
from models.tables.column import Coded, Column, arrow_type
from models.tables.conditions import Condition

Array = np.ndarray


class _FixedColumn(Column, frozen=True):
    """A column without a code."""

    can_be_restricted: ClassVar[bool] = False

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
        raise ConditionError(f"{self.name}: takes no condition")


class ConstantColumn(_FixedColumn, frozen=True):
    """One value in every row, or none at all."""

    kind: Literal["constant"] = "constant"
    value: bool | int | float | str | None

    def join(self, coded: Coded, first: int) -> pa.Array:
        """Repeat the value."""
        return pa.array([self.value] * len(coded.options)).cast(arrow_type(self.type))

    def is_valid(self, values: pa.Array) -> Array:
        """Tell for each value if it is the constant."""
        return np.array(
            [value == self.value for value in values.cast(arrow_type(self.type)).to_pylist()]
        )

    def in_words(self) -> dict[str, Any]:
        """The value."""
        return {"value": self.value}


class IdentifierColumn(_FixedColumn, frozen=True):
    """A name that no two rows share; generated rows get new ones, which no training row has."""

    kind: Literal["identifier"] = "identifier"
    first: int
    """Of whole numbers the first new one; of texts the number in the first new one."""
    prefix: str = ""
    """Text before the number; identifiers of a numeric type have none."""

    def join(self, coded: Coded, first: int) -> pa.Array:
        """Number the rows."""
        numbers = self.first + first + np.arange(len(coded.options))
        kind = arrow_type(self.type)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return pa.array([f"{self.prefix}{n}" for n in numbers], kind)
        return pa.array(numbers, pa.int64()).cast(kind)

    def is_valid(self, values: pa.Array) -> Array:
        """Tell for each value if it is the only one of its kind."""
        texts = values.cast(pa.string()).to_numpy(zero_copy_only=False).astype(str)
        _, inverse, counts = np.unique(texts, return_inverse=True, return_counts=True)
        return counts[inverse] == 1

    def in_words(self) -> dict[str, Any]:
        """How new ones are made."""
        return {"new": f"{self.prefix}{self.first} and so on"}
