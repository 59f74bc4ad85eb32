"""The report of a table's model: figures, columns and correlations on one page."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from models.errors import UserError
from models.model import Model
from models.record import Chart, Line, Marginal, Results
from training.data.dataset import Dataset
from training.judging.evaluate import SAMPLE_SEED
from training.judging.tables import likeness
from training.judging.tables.judge import real_rows
from training.judging.tables.marginals import marginals
from training.judging.tables.rows import comparable, learned
from training.reporting import charts
from training.reporting.pages import render

Array = np.ndarray
LONGEST_NAME = 18
"""Characters of a bar's name that are drawn."""
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
    "authenticity": "generated rows that are not nearer to their nearest training row than that is "
    "to the others; 0: copies; the floor is of held-out rows",
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

    marginal: Marginal
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
    fake = comparable(model.rows(model.sample(SAMPLE_SEED, reals.n), SAMPLE_SEED), schema)
    columns = learned(schema)
    parts = [_column(marginal) for marginal in marginals(columns, real, fake)]
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
        columns=parts,
        pairs=sorted(pairs, key=lambda pair: pair[2])[:MAX_PAIRS],
        pair_count=len(pairs),
        heat_maps=[
            charts.heat_map("real rows", names, tables[0]),
            charts.heat_map("generated rows", names, tables[1]),
            charts.heat_map("generated less real", names, difference, limit=0.5),
        ],
    )


def _column(marginal: Marginal) -> ColumnPart:
    """Draw one column."""
    names = [] if marginal.edges else [name[:LONGEST_NAME] for name in marginal.names]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(marginal.edges)]
    x = middles or list(map(float, range(len(names))))
    lines = [
        Line(name="real", x=x, y=list(marginal.real)),
        Line(name="generated", x=x, y=list(marginal.generated)),
    ]
    chart = Chart(
        title=marginal.name, x_label="", y_label="share", lines=lines, bars=True, x_names=names
    )
    return ColumnPart(marginal, charts.svg(chart, width=500, height=300))
