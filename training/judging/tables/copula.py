"""The Gaussian copula: the baseline that a table's generator has to beat."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy.special import ndtr, ndtri

from models.tables import CopyColumn, TableSchema
from models.tables.column import arrow_type, converted
from training.judging.tables.rows import comparable, is_missing, learned

Array = np.ndarray


def copula_rows(table: pa.Table, schema: TableSchema, count: int, seed: int = 0) -> pa.Table:
    """Fit a Gaussian copula to rows and draw new ones.

    Every column becomes a normal score by its rank: numbers by size, categories by frequency as in
    SDV, with missing as one of them, ties in random order. Where a number is missing, a random one
    of the column stands in its place, so that values are missing at random. The scores are drawn
    from a normal distribution with their correlations, and each becomes the value of its rank.
    Marginals are therefore the table's own, and every value is one that its column has; SDV fits a
    parametric family instead.

    Patki et al. 2016, "The Synthetic Data Vault", section III.

    Args:
        table: at least 2 rows.
        schema: of the table; columns that are not learned are made anew, or copied in each row.
        count: number of rows to draw.
        seed: draws them.
    """
    rng = np.random.default_rng(seed)
    rows = comparable(table, schema)
    orders = [_order(rows[field], rng) for field in rows.dtype.names or ()]
    scores = np.empty((len(rows), len(orders)))
    middles = ndtri((np.arange(len(rows)) + 0.5) / len(rows))
    for i, order in enumerate(orders):
        scores[order, i] = middles
    values, directions = np.linalg.eigh(np.atleast_2d(np.corrcoef(scores, rowvar=False)))
    draws = rng.standard_normal((count, len(orders))) * np.sqrt(values.clip(min=0))
    ranks = (ndtr(draws @ directions.T) * len(rows)).astype(np.int64).clip(max=len(rows) - 1)
    taken = {
        column.name: table[column.name].take(pa.array(order[ranks[:, i]]))
        for i, (column, order) in enumerate(zip(learned(schema), orders, strict=True))
    }
    for column in schema.columns:
        if isinstance(column, CopyColumn) and column.of in taken:
            taken[column.name] = converted(taken[column.of], arrow_type(column.type))
    anew = schema.decode(np.zeros((count, schema.width), np.float32))
    return pa.table({name: taken.get(name, anew[name]) for name in schema.names})


def _order(values: Array, rng: np.random.Generator) -> Array:
    """Indices of the rows in the order of their values, of equal ones in a random order."""
    if values.dtype.kind == "i":
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return np.lexsort((rng.random(len(values)), inverse, -counts[inverse]))
    missing = is_missing(values)
    if missing.any() and not missing.all():
        values = np.where(missing, rng.choice(values[~missing], len(values)), values)
    return np.lexsort((rng.random(len(values)), values))
