"""The base of all rules between columns, and how a person writes their columns."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from models.errors import ConditionError, ConfigError
from models.tables.conditions import Condition
from models.tables.kinds import AnyColumn

Array = np.ndarray
Columns = Mapping[str, AnyColumn]
Fit = Callable[[str, str, pa.Array], AnyColumn]
"""Fits a column of a kind and a name to values, of which those of the training rows count."""
Draw = Callable[[Array, str], Array]
"""Makes numbers in [0, 1), float64 ``(N,)``, of rows' indices and a column's name."""
Ranges = dict[str, tuple[Array, Array]]
"""The smallest and the largest value of each row, float64 ``(N,)`` both, by column of numbers."""
NAME = r"`[^`]+`|[^<>=+*`,()\s-](?:[^<>=+*`,()-]*[^<>=+*`,()\s-])?"
"""A column's name as rules have it: in backquotes if it has a sign in it that rules use."""
OUTSIDE_NAMES = r"(?=(?:[^`]*`[^`]*`)*[^`]*$)"
"""What follows a sign that is no part of a name in backquotes: these come in pairs."""


class Rule(BaseModel, ABC, frozen=True, extra="forbid"):
    """What the values of some columns of each row must be together.

    A rule by construction takes the columns that it `makes` out of the code, and puts them back
    when rows are made of codes, so that every row keeps to it.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that others are made of; they stay in the code."""
        return ()

    @property
    def makes(self) -> tuple[str, ...]:
        """Columns that networks do not see; `after_decoding` makes them."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that the rule speaks of."""
        return (*self.reads, *self.makes)

    @property
    def by_construction(self) -> bool:
        """True if every row that is made of a code keeps to the rule."""
        return True

    @abstractmethod
    def __str__(self) -> str:
        """The rule as a person writes it; `read` undoes it."""

    @classmethod
    @abstractmethod
    def read(cls, text: str) -> tuple[Self, ...]:
        """Read the rules of this kind that a text states; none if it states another kind."""

    def fitted(self, table: pa.Table, columns: Columns, shared: Set[str], fit: Fit) -> Self:
        """Find in data what the code needs.

        Args:
            table: all rows.
            columns: of the schema.
            shared: columns that other rules speak of too.
            fit: see `Fit`.

        Raises:
            DataError: the rule cannot be put on columns of these kinds.
        """
        return self

    def revised(self, table: pa.Table, columns: Columns, fit: Fit) -> Columns:
        """Columns that are others under this rule, by name."""
        return {}

    def coded(self, columns: Columns) -> tuple[AnyColumn, ...]:
        """Columns of the code in place of those that the rule makes."""
        return ()

    def before_coding(self, table: pa.Table, columns: Columns) -> pa.Table:
        """Put the columns of `coded` in place of those that the rule makes."""
        return table

    def after_decoding(self, table: pa.Table, columns: Columns, fixed: Set[str]) -> pa.Table:
        """Undo `before_coding`, for whatever a generator made.

        Args:
            table: holds the columns of `coded`, and those that the rule reads.
            columns: of the schema.
            fixed: columns that are under conditions or other rules, and must stay as they are.
        """
        return table

    def translated(
        self, conditions: Mapping[str, Condition], columns: Columns
    ) -> dict[str, Condition]:
        """Turn conditions on columns that the rule makes into such on those of `coded`.

        Raises:
            ConditionError: they cannot be met without drawing rows until one does.
        """
        for name in self.makes:
            if name in conditions:
                others = " or ".join(other for other in self.reads if other != name)
                raise ConditionError(
                    f"{name}: the rule '{self}' computes it, so it takes no condition; "
                    f"ask for {others}"
                )
        return dict(conditions)

    def tightened(self, ranges: Ranges, columns: Columns) -> None:
        """Tighten the ranges in which cells can lie beside the known cells of their rows."""

    def with_gaps(self, rows: pa.Table, columns: Columns) -> pa.Table:
        """Do as `before_coding` does, for rows with gaps: what is not known of the code is one."""
        return rows

    def narrowed(self, rows: pa.Table, columns: Columns, ranges: Ranges) -> dict[str, Array]:
        """Say what known cells leave of columns of `coded`, where they do not decide them.

        Returns:
            By column, its restrictions: float32 ``(N, restrictions)``, for rows where it is a gap.
        """
        return {}

    def settled(
        self, rows: pa.Table, made: pa.Table, columns: Columns, ranges: Ranges, draw: Draw
    ) -> pa.Table:
        """Fill the gaps in the rule's columns so that the rule is kept, if that can be.

        Args:
            rows: with gaps, which may be filled by other rules in part.
            made: rows that keep to the rule, but may differ from known cells.
            columns: of the schema.
            ranges: see `tightened`.
            draw: of whatever is drawn.
        """
        return rows

    @abstractmethod
    def satisfied(self, table: pa.Table, columns: Columns) -> Array:
        """Tell for each row, bool ``(N,)``, if it keeps to the rule."""


def quoted(name: str) -> str:
    """A column's name as rules have it."""
    return name if re.fullmatch(NAME, name) and not name.startswith("`") else f"`{name}`"


def unquoted(text: str) -> str:
    """The name of a column that a rule's text names."""
    return text.strip().strip("`")


class RuleOnColumns(Rule, ABC, frozen=True):
    """A rule that a person writes as a function of its columns, such as ``one_of(a, b)``."""

    fewest: ClassVar[int] = 2
    """Columns, at least."""
    kind: str
    """The function's name too."""
    columns: tuple[str, ...]

    @property
    def makes(self) -> tuple[str, ...]:
        """All of them."""
        return self.columns

    def __str__(self) -> str:
        """Such as ``one_of(a, b)``."""
        return f"{self.kind}({', '.join(map(quoted, self.columns))})"

    @classmethod
    def read(cls, text: str) -> tuple[Self, ...]:
        """Read what `__str__` writes.

        Raises:
            ConfigError: it has too few columns, or one twice.
        """
        function = cls.model_fields["kind"].default
        found = re.fullmatch(rf"\s*{function}\s*\((.*)\)\s*", text)
        if found is None:
            return ()
        names = tuple(map(unquoted, re.findall(rf"\s*({NAME})\s*(?:,|$)", found[1])))
        # Nothing but names and commas may stand there.
        rest = re.sub(rf"\s*({NAME})\s*(,|$)", "", found[1])
        if rest.strip() or len(names) < cls.fewest or len(set(names)) < len(names):
            raise ConfigError(
                f"{text!r}: write {function}(a, b), with at least {cls.fewest} different columns"
            )
        return (cls(columns=names),)  # type: ignore[call-arg]  # each kind has a default
