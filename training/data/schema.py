"""Fitting a table's schema: first what each column is, then its quantiles and categories."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from models.config import ColumnConfig
from models.errors import ConfigError, DataError, suggestion
from models.tables import (
    AnyColumn,
    BooleanColumn,
    CategoryColumn,
    ConstantColumn,
    CopyColumn,
    IdentifierColumn,
    NumberColumn,
    TableSchema,
    TimeColumn,
)
from models.tables.column import column_values, is_number
from models.tables.scores import quantile_levels
from models.tables.times import read_times, to_ticks
from training.data.columns import (
    FEW_VALUES,
    Found,
    date_format,
    find_decimals,
    find_kind,
    numbering,
)
from training.data.digests import RowDigests, hash_values
from training.progress import track

Array = np.ndarray
QUANTILES = 1000
"""Of a column's numbers, at the levels of `models.tables.scores.quantile_levels`."""
MIN_SPIKE = 0.05
"""Share of the rows from which on a number is an option of its own."""
NEW_IDENTIFIERS = 2**32
"""Numbers after the largest identifier that must be left to generated rows."""
MAX_CATEGORIES = 50
"""Categories that are options of their own; the rarer ones are one option together."""


@dataclass(frozen=True)
class Structure:
    """What the columns of a table are, found from all rows."""

    found: dict[str, Found]
    digests: RowDigests
    """Of the columns that networks see."""
    copies: dict[str, str]
    """Columns that are equal to another, each with that one."""

    @property
    def left_out(self) -> dict[str, str]:
        """Columns that are not learned, each with the reason."""
        return {name: f.note for name, f in self.found.items() if f.kind == "left_out"}

    @property
    def notes(self) -> list[str]:
        """What the user should know, a line a column."""
        return [
            f"column {name!r}: {'left out: ' * (f.kind == 'left_out')}{f.note}"
            for name, f in self.found.items()
            if f.note
        ]


def find_structure(table: pa.Table, told: Mapping[str, ColumnConfig]) -> Structure:
    """Find what each column of a table is.

    Args:
        table: all rows.
        told: the user's word on some columns.

    Raises:
        ConfigError: the user speaks of columns that are not there.
        DataError: columns cannot be used; the one line names them all.
    """
    for name in told:
        if name not in table.column_names:
            raise ConfigError(
                f"data.columns: no column '{name}'{suggestion(name, table.column_names)}"
            )
    found: dict[str, Found] = {}
    copies: dict[str, str] = {}
    digests = RowDigests(len(table))
    faults, first_with = [], dict[bytes, str]()
    for name in track(table.column_names, "looking at columns"):
        own = told.get(name, ColumnConfig())
        try:  # what is left out is not read: it may be of any type
            values = pa.nulls(0) if own.kind == "left_out" else column_values(table, name)
            found[name] = find_kind(name, values, own)
        except DataError as error:
            faults.append(str(error))
            continue
        except pa.ArrowException as error:  # it knows no name
            faults.append(f"column {name!r}: {values.type} is of no use here: {error}")
            continue
        if found[name].kind in ("left_out", "constant", "identifier"):
            continue
        hashed = hash_values(values)
        twin = first_with.setdefault(hashlib.sha256(hashed.data).digest(), name)
        if twin != name and own.kind is None:
            found[name] = Found("copy", f"equal to column {twin!r} in each row: a copy of it")
            copies[name] = twin
        else:
            digests.add(name, hashed)
    if not faults and not first_with:
        faults = [f"column {name!r}: {f.kind}, {f.note}" for name, f in found.items()]
        faults.append("so there is nothing to learn")
    if faults:
        raise DataError("; ".join(faults))
    return Structure(found, digests, copies)


def fit_schema(
    table: pa.Table, structure: Structure, told: Mapping[str, ColumnConfig], is_training: Array
) -> TableSchema:
    """Fit the columns of a table.

    Range, decimals, the set of categories, and whether values are missing, are those of all rows;
    everything that has a distribution is fitted to the training rows alone.

    Args:
        table: all rows.
        structure: what its columns are.
        told: the user's word on some columns.
        is_training: bool ``(N,)``.

    Raises:
        DataError: values contradict the user's word; the one line names all columns.
    """
    columns, faults = list[AnyColumn](), []
    for name, found in track(structure.found.items(), "fitting columns", len(structure.found)):
        if found.kind == "left_out":
            continue
        values, own = column_values(table, name), told.get(name, ColumnConfig())
        if found.kind == "copy":
            common = _common(name, values, is_training)
            columns.append(CopyColumn(**common, of=structure.copies[name]))
            continue
        try:
            column = fit_values(found.kind, name, values, is_training, own)
        except DataError as error:
            faults.append(str(error))
        else:
            columns.append(_in_dictionary(column, table))
    if faults:
        raise DataError("; ".join(faults))
    return TableSchema(columns=tuple(columns), left_out=structure.left_out)


def _in_dictionary(column: AnyColumn, table: pa.Table) -> AnyColumn:
    """A column whose values come back in a dictionary, if they are categories that came in one."""
    kind = table.schema.field(column.name).type
    if not (pa.types.is_dictionary(kind) and isinstance(column, CategoryColumn | ConstantColumn)):
        return column
    changes: dict[str, Any] = {"type": str(kind)}
    if kind.ordered and isinstance(column, CategoryColumn):
        texts = table[column.name].combine_chunks().dictionary.cast(pa.string()).drop_null()
        changes["order"] = tuple(texts.to_pylist())
    return column.model_copy(update=changes)


def fit_values(
    kind: str,
    name: str,
    values: pa.Array,
    is_training: Array,
    told: ColumnConfig = ColumnConfig(),  # noqa: B008
) -> AnyColumn:
    """Fit one column of a kind that is known; see `fit_schema`."""
    known = values.filter(pa.array(is_training)).drop_null()
    present = values.drop_null()
    common = _common(name, values, is_training)
    return _FITS[kind](common, present, known if len(known) else present, told)


def _common(name: str, values: pa.Array, is_training: Array) -> dict[str, Any]:
    missing = values.is_null().filter(pa.array(is_training))
    return {
        "name": name,
        "type": str(values.type),
        # At least one row of all, if none of the training rows lacks a value.
        "missing": max(missing.true_count / len(missing), bool(values.null_count) / len(values)),
    }


def _constant(
    common: dict[str, Any], present: pa.Array, known: pa.Array, told: ColumnConfig
) -> ConstantColumn:
    value = present[0].as_py() if len(present) else None
    if value is not None and pa.types.is_temporal(present.type):
        value = to_ticks(present)[0].as_py()
    elif value is not None and pa.types.is_decimal(present.type):
        value = str(value)
    return ConstantColumn(**common, value=value)


def _identifier(
    common: dict[str, Any], present: pa.Array, known: pa.Array, told: ColumnConfig
) -> IdentifierColumn:
    common, kind = {**common, "missing": 0.0}, present.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        wide = kind if pa.types.is_uint64(kind) else pa.int64()
        try:
            numbers = present.cast(wide).to_numpy()
        except pa.ArrowInvalid as error:
            raise DataError(f"column {common['name']!r}: no identifiers: {error}") from None
        return IdentifierColumn(**{**common, "type": str(wide)}, first=_first_new(numbers))
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        name = common["name"]
        raise DataError(f"column {name!r}: identifiers are whole numbers or texts, not {kind}")
    prefix, digits, largest = numbering(present) or (f"{common['name']}-", 1, 0)
    return IdentifierColumn(**common, first=largest + 1, prefix=prefix, digits=digits)


def _first_new(numbers: Array) -> int:
    """The number after the largest one, or else the first in the widest gap between numbers."""
    limits, largest = np.iinfo(numbers.dtype), int(numbers.max())
    if limits.max - largest >= NEW_IDENTIFIERS:
        return largest + 1
    below = 0 if numbers.min() > 0 else limits.min
    ends = np.unique(np.append(numbers, np.array(below, numbers.dtype)))
    gaps = np.diff(ends.astype(np.uint64))  # of int64 they may be wider than int64 holds
    return int(ends[gaps.argmax()]) + 1


def _boolean(
    common: dict[str, Any], present: pa.Array, known: pa.Array, told: ColumnConfig
) -> BooleanColumn:
    return BooleanColumn(**common)


def _category(
    common: dict[str, Any], present: pa.Array, known: pa.Array, told: ColumnConfig
) -> CategoryColumn:
    counted = known.cast(pa.string()).value_counts()
    counts = dict(zip(*(counted.field(i).to_pylist() for i in range(2)), strict=True))
    ranked = sorted(counts, key=lambda text: (-counts[text], text))
    unseen = set(present.unique().cast(pa.string()).to_pylist()) - set(counts)
    names, most = [*ranked, *sorted(unseen)], told.max_categories or MAX_CATEGORIES
    listed, others = names[:most], names[most:]
    if len(others) == 1:
        listed, others = names, []
    return CategoryColumn(
        **common,
        categories=tuple(listed),
        others=tuple(others),
        other_counts=tuple(max(counts.get(other, 0), 1) for other in others),
    )


def _number(
    common: dict[str, Any], present: pa.Array, known: pa.Array, told: ColumnConfig
) -> NumberColumn:
    name, kind = common["name"], present.type
    every, numbers = (
        values.cast(pa.float64(), safe=False).to_numpy() for values in (present, known)
    )
    decimals = told.decimals
    if decimals is None:
        decimals = 0 if told.kind == "integer" else find_decimals(present)[0]
    if not is_number(kind):
        common = {**common, "type": "double" if decimals else "int64"}  # numbers, and no texts
    low = float(every.min() if told.low is None else told.low)
    high = float(every.max() if told.high is None else told.high)
    outside = every[(every < low) | (every > high)]
    if len(outside):
        raise DataError(
            f"column {name!r}: {len(outside)} values are outside {low:g} to {high:g}, such as "
            f"{outside[0]:g}; repair them, or change low and high"
        )
    column = NumberColumn(**common, low=low, high=high, decimals=decimals).with_round_ends()
    if column.low > column.high:
        raise DataError(
            f"column {name!r}: from {low:g} to {high:g} there is no number of {decimals} decimals; "
            "raise decimals"
        )
    if told.spikes is None:
        spikes = _spikes(every, numbers)
    else:
        spikes = column.as_typed(np.unique(told.spikes))
        if not column.has_decimals(spikes).all():
            raise DataError(
                f"column {name!r}: not all spikes have {decimals} decimals; raise decimals"
            )
    # Made as they stand, so those that have more decimals are rounded as the other numbers are.
    spikes = spikes[column.has_decimals(spikes)]
    return column.model_copy(update=_spread(every, numbers, spikes))


def _time(
    common: dict[str, Any], present: pa.Array, known: pa.Array, told: ColumnConfig
) -> TimeColumn:
    text_format = None if pa.types.is_temporal(present.type) else date_format(present)
    if text_format is not None:
        present, known = (read_times(v.cast(pa.string()), text_format) for v in (present, known))
    every, mine = (to_ticks(values).to_numpy() for values in (present, known))
    origin = int(every.min())
    step = int(np.gcd.reduce(every - origin)) or 1
    every, mine = (every - origin) / step, (mine - origin) / step
    return TimeColumn(
        **common,
        origin=origin,
        step=step,
        format=text_format,
        low=0.0,
        high=float(every.max()),
        **_spread(every, mine, _spikes(every, mine)),
    )


def _spikes(every: Array, numbers: Array) -> Array:
    """Numbers that are options of their own; all, if a few are different."""
    few = _few_different(every)
    return _frequent(numbers) if few is None else few


def _spread(every: Array, numbers: Array, spikes: Array) -> dict[str, Any]:
    """Spikes, and quantiles of all other numbers."""
    found: dict[str, Any] = {"spikes": tuple(spikes.tolist())}
    rest = numbers[~np.isin(numbers, spikes)]
    if not len(rest):
        rest = every[~np.isin(every, spikes)]
    if len(rest):
        knots = np.quantile(rest, quantile_levels(QUANTILES), overwrite_input=True)
        found["quantiles"] = tuple(knots.tolist())
    return found


def _few_different(numbers: Array) -> Array | None:
    """The different numbers, ascending; None if there are more than `FEW_VALUES`."""
    for some in (numbers[: 100 * FEW_VALUES], numbers):  # mostly, the first ones tell
        different = np.unique(some)
        if len(different) > FEW_VALUES:
            return None
    return different


def _frequent(numbers: Array) -> Array:
    """The numbers, ascending, that over `MIN_SPIKE` of all share."""
    ordered, most = np.sort(numbers), MIN_SPIKE * len(numbers)
    # So many equal ones in a row stand at one of these places.
    candidates = np.unique(ordered[:: max(1, int(most))])
    first, last = (np.searchsorted(ordered, candidates, side) for side in ("left", "right"))
    return ordered[first[last - first > most]]


_FITS: dict[str, Callable[..., AnyColumn]] = {
    "number": _number,
    "time": _time,
    "category": _category,
    "boolean": _boolean,
    "constant": _constant,
    "identifier": _identifier,
}
