"""The distribution of each column, of real rows beside generated ones, in few numbers."""

from __future__ import annotations

import itertools

import numpy as np

from models.model import Model
from models.record import Marginal
from models.tables.category import CategoryColumn
from models.tables.column import Column
from models.tables.number import NumberColumn
from models.tables.times import TimeColumn
from training.data.dataset import Dataset
from training.judging.evaluate import SAMPLE_SEED
from training.judging.tables.judge import real_rows
from training.judging.tables.likeness import column_shape
from training.judging.tables.rows import comparable, is_missing, learned

Array = np.ndarray
BINS = 24
MAX_CATEGORIES = 15
"""Categories with a bar of their own; all others have one together."""
OTHERS = "all others"


def published_marginals(model: Model, data: Dataset) -> list[Marginal]:
    """The marginals that a model's record has, and so everybody who has the artifact.

    This is the one place that decides what of real rows is published beside the schema.

    Args:
        model: makes the rows, those that it was judged by.
        data: what it was judged on.

    Returns:
        One for each column that is learned, the least alike first; none but for tables.
    """
    schema = data.card.table
    if schema is None:
        return []
    reals = real_rows(data, model.run.config.evaluation)
    fake = comparable(model.rows(model.sample(SAMPLE_SEED, reals.n), SAMPLE_SEED), schema)
    return marginals(learned(schema), reals.heldout.values[: reals.n], fake)


def marginals(columns: list[Column], real: Array, fake: Array) -> list[Marginal]:
    """Compare columns of `comparable` rows ``(N,)``; the least alike come first."""
    found = [marginal(c, real[str(i)], fake[str(i)]) for i, c in enumerate(columns)]
    return sorted(found, key=lambda one: one.score)


def marginal(column: Column, real: Array, fake: Array) -> Marginal:
    """Compare the values ``(N,)`` of one column, as `comparable` makes them."""
    sides = [values[~is_missing(values)] for values in (real, fake)]
    edges: list[float] = []
    if isinstance(column, CategoryColumn):
        names, shares = _categories(column, sides)
        kind = "category"
    else:
        assert isinstance(column, NumberColumn), "only numbers and categories are learned"
        names, edges, shares = _numbers(column, sides)
        kind = "time" if isinstance(column, TimeColumn) else "number"
    return Marginal(
        name=column.name,
        kind=kind,
        score=round(column_shape(real, fake), 4),
        names=names,
        edges=edges,
        real=[round(float(share), 4) for share in shares[0]],
        generated=[round(float(share), 4) for share in shares[1]],
        real_missing=round(float(is_missing(real).mean()), 4),
        generated_missing=round(float(is_missing(fake).mean()), 4),
    )


def _categories(column: CategoryColumn, sides: list[Array]) -> tuple[list[str], list[Array]]:
    known = (*column.categories, *column.others)
    counts = np.bincount(np.concatenate(sides))
    shown = np.argsort(-counts, kind="stable")[: min(MAX_CATEGORIES, len(known))]
    shown = shown[counts[shown] > 0]
    names, shares = [(*known, "unknown")[i] for i in shown], []
    for values in sides:
        of_all = np.bincount(values, minlength=len(known) + 1) / max(len(values), 1)
        shares.append(np.array([*of_all[shown], np.delete(of_all, shown).sum()]))
    if any(share[-1] for share in shares):
        return [*names, OTHERS], shares
    return names, [share[:-1] for share in shares]


def _numbers(
    column: NumberColumn, sides: list[Array]
) -> tuple[list[str], list[float], list[Array]]:
    """A bar for each value of few, or bins between the outermost half per cents."""
    both = np.concatenate(sides) if any(map(len, sides)) else np.zeros(1)
    distinct = np.unique(both)
    if len(distinct) <= BINS:
        names = [column.in_text(value) for value in distinct]
        counts = [np.histogram(values, [*distinct, np.inf])[0] for values in sides]
        return names, [], [c / max(len(v), 1) for c, v in zip(counts, sides, strict=True)]
    low, high = np.quantile(both, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = [np.histogram(values.clip(edges[0], edges[-1]), edges)[0] for values in sides]
    shares = [c / max(len(v), 1) for c, v in zip(counts, sides, strict=True)]
    if isinstance(column, TimeColumn):
        return [column.in_text(edge) for edge in edges[:-1]], [], shares
    written = [float(f"{edge:.6g}") for edge in edges]
    names = [f"{a:.4g} to {b:.4g}" for a, b in itertools.pairwise(written)]
    return names, written, shares
