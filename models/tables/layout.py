"""Parts of a table's code: which of its numbers stand alone and which are one choice together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

LARGEST_SCORE = 3.5
"""Largest absolute value of a number's code, a normal score."""


class Value(NamedTuple):
    """One number, from -`LARGEST_SCORE` to `LARGEST_SCORE`.

    Its restrictions are how far the lower end is raised, and how far the upper end is lowered.
    """

    width: int = 1
    restrictions: int = 2


class Choice(NamedTuple):
    """One of ``width`` options: 1 for the chosen one and 0 for the others.

    Its restrictions are 1 for each option that is not allowed.
    """

    width: int

    @property
    def restrictions(self) -> int:
        """As many as options."""
        return self.width


Part = Value | Choice


class Placed(NamedTuple):
    """A part with its place in a row's code and in its restrictions."""

    part: Part
    code: slice
    restriction: slice


def place(parts: Iterable[Part]) -> Iterator[Placed]:
    """Yield each part with its place, one after the other."""
    code = restriction = 0
    for part in parts:
        ends = code + part.width, restriction + part.restrictions
        yield Placed(part, slice(code, ends[0]), slice(restriction, ends[1]))
        code, restriction = ends


def restriction_width(parts: Iterable[Part]) -> int:
    """Numbers in the code of a row's conditions."""
    return sum(part.restrictions for part in parts)
