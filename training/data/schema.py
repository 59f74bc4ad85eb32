"""Fitting a table's schema: what kind each column is, and its range, quantiles and categories."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from models.tables import (
    AnyColumn,
    BooleanColumn,
    CategoryColumn,
    ConstantColumn,
    IdentifierColumn,
    NumberColumn,
    TableSchema,
    TimeColumn,
)

Array = np.ndarray
MAX_QUANTILES = 1000
MIN_SPIKE = 0.05
"""Share of the rows from which on a number is an option of its own."""
FEW_NUMBERS = 12
"""Different numbers up to which each is an option of its own."""
MAX_CATEGORIES = 50
"""Categories that are options of their own; the rarer ones are one option together."""
MAX_DECIMALS = 9


def fit_schema(table: pa.Table, is_heldout: Array) -> TableSchema:
    """Find out what each column of a table is.

    Which categories there are, and whether values are missing, is asked of all rows; everything
    that has a distribution is fitted to the training rows alone.
    """
    columns = [
        fit_column(name, table[name].combine_chunks(), ~is_heldout) for name in table.column_names
    ]
    return TableSchema(columns=tuple(columns))


def fit_column(name: str, values: pa.Array, is_training: Array) -> AnyColumn:
    """Find out what a column is."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    present = values.drop_null()
    known = values.filter(pa.array(is_training))
    missing = known.null_count / len(known)
    if values.null_count and not missing:
        missing = 1 / len(values)
    distinct = present.unique()
    common = {"name": name, "type": str(kind), "missing": missing}
    if len(distinct) == 0 or (len(distinct) == 1 and not values.null_count):
        return ConstantColumn(
            name=name, type=str(kind), value=distinct[0].as_py() if len(distinct) else None
        )
    if pa.types.is_boolean(kind):
        return BooleanColumn(**common)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _number(common, present, known.drop_null())
    if pa.types.is_temporal(kind):
        return _time(common, present, known.drop_null())
    texts = present.cast(pa.string())
    if len(distinct) == len(texts) and len(texts) > 100:
        return IdentifierColumn(**{**common, "missing": 0.0}, first=len(texts) + 1, prefix="id-")
    counts = pd.Series(known.drop_null().cast(pa.string()).to_pandas()).value_counts()
    names = [
        *counts.index,
        *(t for t in distinct.cast(pa.string()).to_pylist() if t not in counts.index),
    ]
    listed, others = names[:MAX_CATEGORIES], names[MAX_CATEGORIES:]
    return CategoryColumn(
        **common,
        categories=tuple(listed),
        others=tuple(others),
        other_counts=tuple(int(max(counts.get(o, 0), 1)) for o in others),
    )


def _number(common: dict[str, Any], present: pa.Array, known: pa.Array) -> NumberColumn:
    every = present.cast(pa.float64()).to_numpy()
    numbers = known.cast(pa.float64()).to_numpy()
    decimals = next(
        (
            d
            for d in range(MAX_DECIMALS + 1)
            if np.allclose(every, np.round(every, d), rtol=1e-12, atol=0)
        ),
        None,
    )
    return NumberColumn(
        **common,
        low=float(every.min()),
        high=float(every.max()),
        decimals=decimals,
        **_spread(every, numbers),
    )


def _time(common: dict[str, Any], present: pa.Array, known: pa.Array) -> TimeColumn:
    def ticks(values: pa.Array) -> Array:
        whole = values.cast(pa.int32()) if pa.types.is_date32(values.type) else values
        return whole.cast(pa.int64()).to_numpy()

    every, mine = ticks(present), ticks(known)
    origin = int(every.min())
    step = int(np.gcd.reduce(every - origin)) or 1
    every, mine = (every - origin) / step, (mine - origin) / step
    return TimeColumn(
        **common, origin=origin, step=step, low=0.0, high=float(every.max()), **_spread(every, mine)
    )


def _spread(every: Array, numbers: Array) -> dict[str, Any]:
    distinct, counts = np.unique(numbers, return_counts=True)
    if len(np.unique(every)) <= FEW_NUMBERS:
        return {"spikes": tuple(np.unique(every).tolist())}
    spikes = distinct[counts > MIN_SPIKE * len(numbers)]
    rest = numbers[~np.isin(numbers, spikes)]
    count = min(MAX_QUANTILES, max(len(rest), 2))
    quantiles = np.quantile(rest, np.linspace(0, 1, count))
    return {"spikes": tuple(spikes.tolist()), "quantiles": tuple(quantiles.tolist())}
