"""The base of all kinds of columns: what they share in the code of a table."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from models.errors import DataError
from models.tables.conditions import Condition
from models.tables.layout import LARGEST_SCORE, Choice, Part, Value

Array = np.ndarray


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a name, as ``str(type)`` gives it.

    >>> arrow_type("timestamp[us, tz=UTC]")
    TimestampType(timestamp[us, tz=UTC])
    >>> arrow_type("decimal128(10, 2)")
    Decimal128Type(decimal128(10, 2))
    """
    if found := re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", name):
        return pa.timestamp(found[1], tz=found[2])
    if found := re.fullmatch(r"decimal128\((\d+), (-?\d+)\)", name):
        return pa.decimal128(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"dictionary<values=(.+), indices=(\w+), ordered=(\d)>", name):
        return pa.dictionary(arrow_type(found[2]), arrow_type(found[1]), found[3] == "1")
    return pa.type_for_alias({"double": "float64", "float": "float32"}.get(name, name))


def value_type(name: str) -> pa.DataType:
    """The type of the values themselves, where the type of a name is a dictionary of them."""
    kind = arrow_type(name)
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_number(kind: pa.DataType) -> bool:
    """True of whole, floating and decimal numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def whole(values: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, its values themselves and no dictionary; each decimal a decimal128."""
    array = values.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary.take(array.indices)  # of types that cannot be decoded too
    kind = array.type
    if pa.types.is_decimal(kind) and not pa.types.is_decimal128(kind):
        array = array.cast(pa.decimal128(min(kind.precision, 38), kind.scale))
    return array


def converted(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Values in another type.

    Raises:
        DataError: it does not have them all.
    """
    if pa.types.is_integer(values.type) and pa.types.is_decimal(kind):
        values = values.cast(pa.string())  # Arrow asks for the digits that the largest would have
    try:
        return values.cast(kind)
    except pa.ArrowInvalid as error:
        raise DataError(f"not {kind}: {error}") from None


def column_values(table: pa.Table, name: str) -> pa.Array:
    """A column in one piece, without dictionary, NaN counted as missing.

    Raises:
        DataError: its values have more digits than we compute with.
    """
    try:
        values = whole(table[name])
    except pa.ArrowException as error:
        raise DataError(f"column {name!r}: {error}; round it, or leave it out") from None
    if pa.types.is_floating(values.type) and pc.any(pc.is_nan(values)).as_py():
        values = pc.if_else(pc.is_nan(values), None, values)
    return values


class Coded(NamedTuple):
    """Values of a column, apart: which option each is, and where the numbers stand."""

    options: Array
    """int64 ``(N,)``, indices into the column's options."""
    scores: Array | None
    """float64 ``(N,)``, normal scores, 0 where the option is not the first; None if the column has
    no number."""


class Column(BaseModel, ABC, frozen=True, extra="forbid"):
    """One column of a table: its values, and how they are coded.

    The code has up to two parts. A `Value` holds where a number stands among the numbers of the
    training rows. A `Choice` holds which of the column's options a value is: any number, one of
    the listed values, one of those that are not listed, or missing. A column without either is
    made anew in each table, like a constant.
    """

    name: str
    type: str
    """Arrow's name of the type, such as ``int64``, ``string`` or ``timestamp[us]``."""
    missing: float = Field(default=0.0, ge=0, le=1)
    """Share of the training rows in which there is no value."""

    @property
    @abstractmethod
    def has_number(self) -> bool:
        """True if the first option is any number, whose `Value` stands before the `Choice`."""

    @property
    @abstractmethod
    def option_count(self) -> int:
        """Number of options; that of a missing value, if there is one, is the last."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts of the code; a single option needs no choice."""
        choice = (Choice(self.option_count),) if self.option_count > 1 else ()
        return (Value(), *choice) if self.has_number else choice

    @abstractmethod
    def split(self, values: pa.Array) -> Coded:
        """Find the option and the score of each value.

        Raises:
            DataError: a value is none that the column may hold; the message names the first.
        """

    @abstractmethod
    def join(self, coded: Coded, first: int, condition: Condition | None, seed: int) -> pa.Array:
        """Make values of options and scores; `split` takes them apart again.

        Args:
            coded: options and scores; the options are allowed by the condition.
            first: number of the first row in its table, for values that are unique.
            condition: what every value meets, whatever its score.
            seed: of values that are drawn beside the code.
        """

    @abstractmethod
    def allowed(self, condition: Condition) -> tuple[Array, tuple[float, float]]:
        """Say which options, and which scores, meet a condition.

        Returns:
            bool ``(option_count,)``, and the lowest and the highest score of a number.

        Raises:
            ConditionError: no value does; the message says which there are.
        """

    def encode(self, values: pa.Array) -> Array:
        """Code values: float32 ``(N, width)``."""
        coded, columns = self.split(values), list[Array]()
        if coded.scores is not None:
            columns.append(coded.scores[:, None])
        if self.option_count > 1:
            columns.append(np.eye(self.option_count)[coded.options])
        return np.concatenate([np.zeros((len(values), 0)), *columns], axis=1).astype(np.float32)

    def decode(
        self, code: Array, first: int = 0, condition: Condition | None = None, seed: int = 0
    ) -> pa.Array:
        """Make the values of a code ``(N, width)``; of a choice, the option with the largest.

        Args:
            code: any numbers; networks keep to `restrict`, so that their values change little here.
            first: number of the first row in its table.
            condition: every value made meets it.
            seed: see `join`.

        Raises:
            ConditionError: see `allowed`.
        """
        allowed = np.arange(self.option_count)
        if condition is not None:
            allowed = np.flatnonzero(self.allowed(condition)[0])
        if self.option_count > 1:
            shares = code[:, -self.option_count :]
            options = allowed[shares[:, allowed].argmax(axis=1)]
        else:
            options = np.zeros(len(code), np.int64)
        scores = code[:, 0].astype(np.float64) if self.has_number else None
        return self.join(Coded(options, scores), first, condition, seed)

    def in_type(self, values: pa.Array) -> pa.Array:
        """Values of a dictionary, or others of the column, in its own type."""
        kind = arrow_type(self.type)
        if not pa.types.is_dictionary(kind):
            return values.cast(kind)
        return values.cast(kind.value_type).dictionary_encode().cast(kind)

    def restrict(self, condition: Condition) -> Array:
        """Code a condition: float32 ``(restrictions,)``, all 0 where everything is allowed.

        Raises:
            ConditionError: see `allowed`.
        """
        options, (low, high) = self.allowed(condition)
        numbers: list[float] = []
        if self.has_number:
            numbers += [low + LARGEST_SCORE, LARGEST_SCORE - high]
        if self.option_count > 1:
            numbers += (~options).tolist()
        return np.array(numbers, np.float32)

    @abstractmethod
    def is_valid(self, values: pa.Array) -> Array:
        """Tell for each value, bool ``(N,)``, if it is one that the column may hold."""

    @abstractmethod
    def in_words(self) -> dict[str, Any]:
        """What a person wants to know of the column, by name: range, categories and the like."""
