"""The report of a table's model: figures, columns and correlations on one page."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from models.errors import UserError
from models.model import Model
from models.record import Chart, Line, Results
from models.tables.category import CategoryColumn
from models.tables.column import Column
from training.data.dataset import Dataset
from training.judging.evaluate import SAMPLE_SEED
from training.judging.tables import likeness
from training.judging.tables.judge import real_rows
from training.judging.tables.rows import comparable, is_missing, learned
from training.reporting import charts
from training.reporting.pages import render

Array = np.ndarray
BINS = 24
MAX_CATEGORIES = 15
"""Categories with a bar of their own; all others have one together."""
MAX_PAIRS = 12
"""Pairs of columns that are listed, the worst first."""

MEANINGS = {
    "column_shapes": "likeness of the columns' distributions: sdmetrics' Column Shapes",
    "pair_trends": "likeness of the trends between columns: sdmetrics' Column Pair Trends",
    "pair_distance": "distance of the joint distributions of all pairs of columns: what models are "
    "compared by",
    "missing_difference": "difference of the shares of missing values",
    "rare_category_coverage": f"rare categories (below {likeness.RARE:.0%}) that are generated too",
    "precision": "generated rows that lie among real ones",
    "recall": "real rows that lie among generated ones: variety",
    "density": "how dense real rows are where generated ones lie",
    "coverage": "real rows with a generated one near",
    "valid_share": "values that their columns may hold",
    "rules_kept": "rows that keep to all rules between columns",
    "tstr": "a model that learned from generated rows, tested on real ones: R2 of a number, area "
    "under the ROC curve of a category; the floor learned from real rows",
    "detection_auroc": "a classifier that tells generated rows from real ones; 0.5: it cannot",
    "nearer_to_training": "generated rows nearer to a training row than to a held-out one; 0.5: "
    "no copies",
    "distance_ratio": "distance from the nearest training row, over that of held-out rows; 0: "
    "copies",
    "exact_copies": "generated rows that equal a training row; the floor is of held-out rows",
    "membership_auroc": "an attack that tells training rows by generated ones; 0.5: it cannot",
    "critic_membership_auroc": "the same by the critic's scores",
}
"""What each figure of a table is."""


class ColumnPart(NamedTuple):
    """What the page says of one column."""

    name: str
    score: float
    real_missing: float
    fake_missing: float
    chart: str
    """An SVG element."""


def table_report(model: Model, data: Dataset, results: Results) -> str:
    """Write a page of a table's model that needs no other file.

    Args:
        model: makes the rows, those that it was judged by.
        data: what it was judged on.
        results: its figures on these data.

    Returns:
        HTML: the figures beside floor and copula, the columns' marginals and the pairs of columns,
        worst first, and associations as heat maps.

    Raises:
        UserError: the model makes no table.
    """
    schema = data.card.table
    if schema is None:
        raise UserError("a report of columns is for models of tables")
    reals = real_rows(data, model.run.config.evaluation)
    real = reals.heldout.values[: reals.n]
    fake = comparable(model.rows(model.sample(SAMPLE_SEED, reals.n)), schema)
    columns = learned(schema)
    parts = [_column(c, real[str(i)], fake[str(i)]) for i, c in enumerate(columns)]
    names = [column.name for column in columns]
    tables = likeness.associations(real), likeness.associations(fake)
    pairs = [
        (names[int(a)], names[int(b)], likeness.pair_trend(real, fake, (a, b)),
         *(table[int(a), int(b)] for table in tables))
        for a, b in likeness.trending_pairs(real)
    ]  # fmt: skip
    difference = tables[1] - tables[0]
    return render(
        "table_report.html.j2",
        title=f"Report of {model.run.config.name}",
        run=model.run,
        card=data.card,
        n=reals.n,
        figures=results.figures,
        meanings=MEANINGS,
        columns=sorted(parts, key=lambda part: part.score),
        pairs=sorted(pairs, key=lambda pair: pair[2])[:MAX_PAIRS],
        pair_count=len(pairs),
        heat_maps=[
            charts.heat_map("real rows", names, tables[0]),
            charts.heat_map("generated rows", names, tables[1]),
            charts.heat_map("generated less real", names, difference, limit=0.5),
        ],
    )


def _column(column: Column, real: Array, fake: Array) -> ColumnPart:
    """Compare the values of one column."""
    gaps, fake_gaps = (float(is_missing(x).mean()) for x in (real, fake))
    sets = {"real": real[~is_missing(real)], "generated": fake[~is_missing(fake)]}
    chart = _categories if isinstance(column, CategoryColumn) else _numbers
    drawn = charts.svg(chart(column, sets), width=500, height=300)
    return ColumnPart(column.name, likeness.column_shape(real, fake), gaps, fake_gaps, drawn)


def _categories(column: Column, sets: dict[str, Array]) -> Chart:
    assert isinstance(column, CategoryColumn), "only categories have names"
    known = (*column.categories, *column.others)
    counts = np.bincount(np.concatenate(list(sets.values())), minlength=len(known) + 1)
    shown = np.argsort(-counts, kind="stable")[: min(MAX_CATEGORIES, len(known))]
    shown = shown[counts[shown] > 0]
    names = [(*known, "unknown")[i] for i in shown]
    lines = []
    for name, values in sets.items():
        shares = np.bincount(values, minlength=len(known) + 1) / max(len(values), 1)
        heights = [*shares[shown], 1 - shares[shown].sum()]
        lines.append((name, heights))
    has_rest = any(heights[-1] > 1e-9 for _, heights in lines)
    count = len(names) + has_rest
    return Chart(
        title=column.name,
        x_label="",
        y_label="share",
        lines=[
            Line(name=name, x=list(map(float, range(count))), y=[float(h) for h in heights[:count]])
            for name, heights in lines
        ],
        bars=True,
        x_names=[name[:18] for name in names] + ["all others"] * has_rest,
    )


def _numbers(column: Column, sets: dict[str, Array]) -> Chart:
    both = np.concatenate([x for x in sets.values() if len(x)] or [np.zeros(1)])
    low, high = np.quantile(both, [0.005, 0.995])
    distinct = np.unique(both)
    if len(distinct) <= BINS:  # a bar for each value
        names = [f"{value:g}" for value in distinct]
        edges = np.array([*distinct, np.inf])
        centres = list(map(float, range(len(distinct))))
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        names, centres = [], [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    lines = []
    for name, values in sets.items():
        inside = values if len(distinct) <= BINS else values.clip(low, high)
        shares = np.histogram(inside, edges)[0] / max(len(values), 1)
        lines.append(Line(name=name, x=centres, y=[float(share) for share in shares]))
    return Chart(
        title=column.name,
        x_label="",
        y_label="share",
        lines=lines,
        bars=True,
        x_names=names,
    )
