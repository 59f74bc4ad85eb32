"""Columns of categories, and of truth values."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ConditionError, DataError, suggestion
from models.tables.column import Coded, Column
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
            raise DataError(
                f"column {self.name!r}: row {row} has "
                + (
                    f"the unknown category {texts[row].as_py()!r}"
                    if texts[row].is_valid
                    else "no value"
                )
            )
        return Coded(options.to_numpy(zero_copy_only=False).astype(np.int64), None)

    def join(self, coded: Coded, first: int) -> pa.Array:
        """Make categories of options; of the others, each as often as among the training rows."""
        names = np.array(
            [*self.categories, *[None] * (bool(self.others) + (self.missing > 0))], object
        )
        texts = names[coded.options]
        if self.others:
            rows = np.flatnonzero(coded.options == len(self.categories))
            # A function of the row's number, so that a longer table begins with a shorter one.
            texts[rows] = self._drawn(first + rows)
        return self.array(pa.array(texts.tolist(), pa.string()))

    def _drawn(self, numbers: Array) -> Array:
        """Rare categories for rows with these numbers, in proportion to their counts."""
        edges = np.cumsum(self.other_counts) / sum(self.other_counts)
        # A low-discrepancy sequence (Roberts 2018): proportions hold in short tables too.
        uniform = (0.5 + numbers * 0.6180339887498949) % 1
        return np.array(self.others, object)[np.searchsorted(edges, uniform, side="right")]

    def texts(self, values: pa.Array) -> pa.Array:
        """The values as categories."""
        return values.cast(pa.string())

    def array(self, texts: pa.Array) -> pa.Array:
        """Categories as values of the column's type."""
        return texts

    def allowed(self, condition: Condition) -> tuple[Array, tuple[float, float]]:
        """Say which categories meet a condition."""
        if condition.ends != (None, None):
            raise ConditionError(f"{self.name}: categories have no order; give one_of")
        known = (*self.categories, *self.others)
        for value in (*(condition.one_of or ()), *condition.none_of):
            if self.text(value) not in known:
                raise ConditionError(
                    f"{self.name}: no category '{value}'{suggestion(self.text(value), known)}"
                )
        wanted = set(known) if condition.one_of is None else set(map(self.text, condition.one_of))
        wanted -= set(map(self.text, condition.none_of))
        if condition.missing is True:
            wanted = set()
        partly = wanted & set(self.others)
        if partly and partly != set(self.others):
            raise ConditionError(
                f"{self.name}: {', '.join(sorted(partly))} is rare and cannot be asked for alone"
            )
        options = np.array(
            [c in wanted for c in self.categories]
            + [bool(partly)] * bool(self.others)
            + [condition.missing is True] * (self.missing > 0)
        )
        if not options.any():
            raise ConditionError(f"no row has {condition.in_words(self.name)}")
        return options, (-LARGEST_SCORE, LARGEST_SCORE)

    def text(self, value: bool | float | str) -> str:
        """The category that a person means."""
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

    def array(self, texts: pa.Array) -> pa.Array:
        """Truth values."""
        return texts.cast(pa.bool_())

    def text(self, value: bool | float | str) -> str:
        """The truth value that a person means: ``true``, ``1`` or the like."""
        return {"1": "true", "0": "false"}.get(str(value).lower(), str(value).lower())
