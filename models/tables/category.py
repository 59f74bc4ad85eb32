"""Columns of categories, and of truth values."""

from __future__ import annotations

import zlib
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from models.errors import ConditionError, RowError, suggestion
from models.tables.column import Coded, Column, arrow_type, value_type
from models.tables.conditions import Condition
from models.tables.layout import LARGEST_SCORE

Array = np.ndarray


class CategoryColumn(Column, frozen=True):
    """One of some categories; the rare ones of many are one option together."""

    kind: Literal["category"] = "category"
    categories: tuple[str, ...]
    """Each an option, the most frequent first."""
    others: tuple[str, ...] = ()
    """Rare categories, which are one option together."""
    other_counts: tuple[int, ...] = ()
    """Training rows of each of `others`, by which they are drawn."""
    order: tuple[str, ...] = Field(default=(), exclude_if=lambda order: not order)
    """All values of an ordered dictionary, as texts, the lowest first. Written only of such."""

    @property
    def has_number(self) -> bool:
        """False."""
        return False

    @property
    def option_count(self) -> int:
        """Each category, the others, and missing."""
        return len(self.categories) + bool(self.others) + (self.missing > 0)

    def split(self, values: pa.Array) -> Coded:
        """Find the option of each category."""
        texts = self.texts(values)
        options = pc.index_in(texts, pa.array(self.categories, pa.string()))
        if self.others:
            known = pc.is_in(texts, pa.array(self.others, pa.string()))
            options = pc.if_else(known, len(self.categories), options)
        if self.missing:
            options = pc.if_else(texts.is_null(), self.option_count - 1, options)
        if options.null_count:
            row = int(np.argmax(options.is_null().to_numpy(zero_copy_only=False)))
            unknown = f"the unknown category {texts[row].as_py()!r}"
            what = unknown if texts[row].is_valid else "no value"
            raise RowError(row, f"has {what}", self.name)
        return Coded(options.to_numpy(zero_copy_only=False).astype(np.int64), None)

    def join(self, coded: Coded, first: int, condition: Condition | None, seed: int) -> pa.Array:
        """Make categories of options; of the others, each as often as among the training rows."""
        named = [*self.categories, *[None] * (self.option_count - len(self.categories))]
        options = coded.options
        rows = np.flatnonzero(options == len(self.categories)) if self.others else np.array([], int)
        if len(rows):
            wanted = set(self.others) if condition is None else self.wanted(condition)
            counts = [
                count if other in wanted else 0
                for other, count in zip(self.others, self.other_counts, strict=True)
            ]
            edges = np.cumsum(counts) / sum(counts)
            # By the row's number, so that a longer table of a seed begins with a shorter one.
            draws = uniform(first + rows, self.name, seed)
            drawn = np.searchsorted(edges, draws, side="right")
            options = options.copy()
            options[rows] = len(named) + drawn
        texts = pa.array([*named, *self.others], pa.string()).take(pa.array(options))
        return self.in_type(texts.cast(value_type(self.type)))

    def texts(self, values: pa.Array) -> pa.Array:
        """The values as categories."""
        kind = value_type(self.type)
        if not pa.types.is_string(kind) and pa.types.is_string(values.type):
            read = values.dictionary_encode()  # a reader's "5.0" may be the number 5
            return pa.array(map(self.text, read.dictionary.to_pylist()), pa.string()).take(
                read.indices
            )
        return values.cast(pa.string())

    def in_type(self, values: pa.Array) -> pa.Array:
        """Values in the column's own type: of an ordered dictionary, in its order."""
        if not self.order:
            return super().in_type(values)
        kind = arrow_type(self.type)
        order = pa.array(self.order, pa.string()).cast(kind.value_type)
        places = pc.index_in(values, order).cast(kind.index_type)
        return pa.DictionaryArray.from_arrays(places, order, ordered=True)

    def wanted(self, condition: Condition) -> set[str]:
        """The categories that meet a condition."""
        if condition.missing:
            return set()
        if condition.has_ends:
            raise ConditionError(f"{self.name}: categories have no order; give one_of")
        known = (*self.categories, *self.others)
        for value in (*(condition.one_of or ()), *condition.none_of):
            if self.text(value) not in known:
                raise ConditionError(
                    f"{self.name}: no category '{value}'{suggestion(self.text(value), known)}"
                )
        wanted = set(known) if condition.one_of is None else set(map(self.text, condition.one_of))
        return wanted - set(map(self.text, condition.none_of))

    def allowed(self, condition: Condition) -> tuple[Array, tuple[float, float]]:
        """Say which categories meet a condition."""
        wanted = self.wanted(condition)
        options = np.array(
            [category in wanted for category in self.categories]
            + [bool(wanted & set(self.others))] * bool(self.others)
            + [bool(condition.missing)] * (self.missing > 0),
            bool,
        )
        if not options.any():
            never = "" if self.missing else f": {self.name} is never missing"
            raise ConditionError(f"no row has {condition.in_words(self.name)}{never}")
        return options, (-LARGEST_SCORE, LARGEST_SCORE)

    def text(self, value: bool | float | str) -> str:
        """The category that a person means."""
        try:
            plain = pa.array([str(value)]).cast(value_type(self.type))
            return str(plain.cast(pa.string())[0].as_py())
        except pa.ArrowInvalid:  # it is none
            return str(value)

    def is_valid(self, values: pa.Array) -> Array:
        """Tell for each value if it is a category of the column."""
        texts = self.texts(values)
        known = pc.is_in(texts, pa.array((*self.categories, *self.others), pa.string()))
        if self.missing:
            known = pc.or_(known, texts.is_null())
        return known.to_numpy(zero_copy_only=False)

    def in_words(self) -> dict[str, Any]:
        """The categories."""
        return {"categories": list(self.categories), "others": len(self.others)}


class BooleanColumn(CategoryColumn, frozen=True):
    """True or false."""

    kind: Literal["boolean"] = "boolean"  # type: ignore[assignment]
    type: str = "bool"
    categories: tuple[str, ...] = ("false", "true")

    def text(self, value: bool | float | str) -> str:
        """The truth value that a person means: ``true``, ``1`` or the like."""
        return {"1": "true", "0": "false"}.get(str(value).lower(), str(value).lower())


def uniform(numbers: Array, name: str, seed: int) -> Array:
    """Numbers in [0, 1), uniform, by the row's number, the column's name and the seed alone."""
    state = _mixed(_mixed(np.array([seed], np.uint64)) + np.uint64(zlib.crc32(name.encode())))
    return (_mixed(state + numbers.astype(np.uint64)) >> np.uint64(11)) / 2.0**53


def _mixed(z: Array) -> Array:
    """SplitMix64 (Steele, Lea & Flood 2014): of consecutive numbers, uint64, independent ones."""
    z = z * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))
