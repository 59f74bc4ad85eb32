"""What changes for clients when one model takes another's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a service compares its models before it imports torch
    from models.record import Run

MAX_NAMED = 5
"""Columns or classes, at most, that a sentence names."""


def schema_changes(new: Run, old: Run) -> list[str]:
    """Say what a client would notice if one model took another's place.

    A table's columns count by name and kind, and not by their values; classes count if they can be
    asked for.

    Returns:
        A phrase for each difference; empty if the models make and take the same items.
    """
    tables = new.data.table, old.data.table
    if tables[0] is not None and tables[1] is not None:
        now, then = ({c.name: c.kind for c in table.columns} for table in tables if table)
        found = [
            _named("it lacks the columns", [n for n in then if n not in now]),
            _named("it adds the columns", [n for n in now if n not in then]),
            _named(
                "of another kind are the columns",
                [f"{n} ({now[n]}, not {then[n]})" for n in now if now[n] != then.get(n, now[n])],
            ),
        ]
        return [phrase for phrase in found if phrase]
    if (makes := _items(new)) != (made := _items(old)):
        return [f"it makes {makes}, not {made}"]
    if new.data.columns and old.data.columns and new.data.columns != old.data.columns:
        return [f"its columns are {_few(new.data.columns)}, not {_few(old.data.columns)}"]
    of_new, of_old = (
        run.data.trained_classes if run.config.conditional else [] for run in (new, old)
    )
    if of_new != of_old:
        return [f"it has {_classes(of_new)}, not {_classes(of_old)}"]
    return []


def _items(run: Run) -> str:
    """The items that a model makes, in words."""
    data = run.data
    if data.table is not None:
        return "rows of a table"
    if data.kind == "image":
        channels, height, width = data.shape
        units = " in units of their own" if data.offset else ""  # others are in grey levels
        many = "s" * (channels > 1)
        return f"images of {width}x{height} pixels and {channels} channel{many}{units}"
    if data.kind == "sequence":
        return f"sequences of {data.shape[0]} steps of {data.shape[1]} values"
    return f"vectors of {data.shape[0]} values"


def _classes(names: list[str]) -> str:
    return f"the classes {_few(names)}" if names else "no classes to ask for"


def _named(phrase: str, names: list[str]) -> str:
    return f"{phrase} {_few(names)}" if names else ""


def _few(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
