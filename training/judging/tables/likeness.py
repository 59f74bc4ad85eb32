"""How like real rows generated ones are, column by column and pair by pair.

Every function takes ``(real, fake)`` as `training.judging.tables.rows.comparable` makes them.
`column_shapes` and `pair_trends` are the two properties of the QualityReport of sdmetrics 0.32, and
equal them to rounding; a test holds its outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from training.judging.tables.rows import is_missing, is_number

Array = np.ndarray
Pair = tuple[str, str]
MIN_CORRELATION, MIN_ASSOCIATION = 0.5, 0.3
"""Pearson's correlation and Cramér's V of real rows above which a pair has a trend, as sdmetrics
has them."""
FEW_CELLS = 20_000
"""Cells of a contingency table that are all counted, also those without rows."""
RARE = 0.05
"""Share of the real rows below which a category is rare."""


def column_shape(real: Array, fake: Array) -> float:
    """How like the values of one column are distributed, from 0 to 1.

    Of numbers 1 less the Kolmogorov-Smirnov statistic (sdmetrics' KSComplement), of categories 1
    less the total variation distance (TVComplement). Missing values are left out: see
    `missing_difference`.

    Args:
        real: values ``(N,)`` of a field.
        fake: ``(M,)``.

    Returns:
        0 if one side has no values, 1 if neither has.
    """
    real, fake = real[~is_missing(real)], fake[~is_missing(fake)]
    if not len(real) or not len(fake):
        return float(len(real) == len(fake))
    if real.dtype.kind == "f":
        real, fake = np.sort(real), np.sort(fake)
        both = np.concatenate([real, fake])
        below = [np.searchsorted(x, both, side="right") / len(x) for x in (real, fake)]
        return float(1 - np.abs(below[0] - below[1]).max())
    count = int(max(real.max(), fake.max())) + 1
    shares = [np.bincount(x, minlength=count) / len(x) for x in (real, fake)]
    return float(1 - np.abs(shares[0] - shares[1]).sum() / 2)


def column_shapes(real: Array, fake: Array) -> float:
    """Mean of `column_shape` over the columns."""
    return float(np.mean([column_shape(real[field], fake[field]) for field in _fields(real)]))


def trending_pairs(real: Array) -> list[Pair]:
    """The pairs of columns that depend on each other in the real rows: only they have a trend.

    Two columns of numbers do if their correlation is beyond `MIN_CORRELATION`; others if Cramér's V
    is above `MIN_ASSOCIATION`, with numbers in ten bins.
    """
    table = associations(real)
    return [
        (a, b)
        for i, j in itertools.combinations(range(len(table)), 2)
        for a, b in [(str(i), str(j))]
        if abs(table[i, j])
        > (MIN_CORRELATION if is_number(real, a) and is_number(real, b) else MIN_ASSOCIATION)
    ]


def pair_trends(real: Array, fake: Array, pairs: Sequence[Pair] | None = None) -> float | None:
    """How like the trends between columns are, from 0 to 1: the mean of `pair_trend` over pairs.

    Args:
        real: rows.
        fake: rows.
        pairs: which count; None: `trending_pairs` of the real rows.

    Returns:
        None without such pairs.
    """
    pairs = trending_pairs(real) if pairs is None else pairs
    if not pairs:
        return None
    bins = [_bins(rows, {name for pair in pairs for name in pair}) for rows in (real, fake)]
    return float(np.mean([_pair_trend(real, fake, pair, *bins) for pair in pairs]))


def pair_trend(real: Array, fake: Array, pair: Pair) -> float:
    """How like the trend between two columns is, from 0 to 1.

    Of two columns of numbers, 1 less half the difference of their correlations (sdmetrics'
    CorrelationSimilarity), over the rows that have both. Of others, 1 less the total variation
    distance of their joint distributions (ContingencySimilarity): missing is a category of its own,
    and numbers are in ten bins of equal width between the least and the greatest of their own side.

    A column of numbers with one generated value counts as uncorrelated. sdmetrics leaves such pairs
    out, which rewards a generator that repeats itself.
    """
    return _pair_trend(real, fake, pair, _bins(real, pair), _bins(fake, pair))


def associations(rows: Array) -> Array:
    """Association of each pair of columns, float64 ``(C, C)``, 1 on the diagonal.

    Pearson's correlation, -1 to 1, between numbers, over the rows that have both; otherwise
    Cramér's V, 0 to 1. 0 where a column has a single value.
    """
    fields = _fields(rows)
    bins = _bins(rows, fields)
    table = np.eye(len(fields))
    for (i, a), (j, b) in itertools.combinations(enumerate(fields), 2):
        if is_number(rows, a) and is_number(rows, b):
            table[i, j] = table[j, i] = _correlation(rows[a], rows[b])
        else:
            table[i, j] = table[j, i] = _cramers_v(bins[a], bins[b])
    return table


def pair_distance(real: Array, fake: Array) -> float:
    """Mean total variation distance between the joint distributions of all pairs of columns.

    The mean error of the two-way marginals, by which contests of synthetic tables are judged
    (McKenna et al. 2021, "Winning the NIST Contest", section 4). Numbers are in tenths of the real
    rows, missing is a category of its own. Unlike `pair_trends` it takes every pair, and bins that
    do not move with one far value: so it tells models apart that trends do not.

    Returns:
        0 for rows that are alike in all pairs, at most 1; of a single column its own distance. It
        is larger on fewer rows: compare it only with its floor.
    """
    fields = _fields(real)
    edges = {f: _tenths(real[f]) for f in fields if is_number(real, f)}
    first, second = (
        [_ranked(rows[f], edges[f]) if f in edges else rows[f] + 1 for f in fields]
        for rows in (real, fake)
    )
    sizes = [int(max(a.max(), b.max())) + 1 for a, b in zip(first, second, strict=True)]
    pairs = list(itertools.combinations(range(len(fields)), 2)) or [(0, 0)]
    found = [
        _total_variation(
            first[i] * sizes[j] + first[j], second[i] * sizes[j] + second[j], sizes[i] * sizes[j]
        )
        for i, j in pairs
    ]
    return float(np.mean(found))


def missing_difference(real: Array, fake: Array) -> float | None:
    """Mean difference of the shares of missing values, over the columns that have any; or None."""
    shares = [
        (is_missing(real[f]).mean(), is_missing(fake[f]).mean())
        for f in _fields(real)
        if is_missing(real[f]).any() or is_missing(fake[f]).any()
    ]
    return float(np.mean([abs(a - b) for a, b in shares])) if shares else None


def rare_category_coverage(real: Array, fake: Array) -> float | None:
    """Share of the rare categories of the real rows that generated rows have too; or None.

    Rare are those in fewer than `RARE` of the real rows. How many can be found depends on the
    number of rows, so compare it with its floor only.
    """
    found = list[bool]()
    for field in _fields(real):
        if is_number(real, field):
            continue
        names, counts = np.unique(real[field][real[field] >= 0], return_counts=True)
        found += np.isin(names[counts < RARE * len(real)], fake[field]).tolist()
    return float(np.mean(found)) if found else None


def _pair_trend(
    real: Array, fake: Array, pair: Pair, real_bins: dict[str, Array], fake_bins: dict[str, Array]
) -> float:
    a, b = pair
    if is_number(real, a) and is_number(real, b):
        gap = _correlation(real[a], real[b]) - _correlation(fake[a], fake[b])
        return 1 - abs(gap) / 2
    size = 2 + max(int(bins[b].max()) for bins in (real_bins, fake_bins))
    first, second = ((bins[a] + 1) * size + bins[b] + 1 for bins in (real_bins, fake_bins))
    return 1 - _total_variation(first, second, int(max(first.max(), second.max())) + 1)


def _fields(rows: Array) -> tuple[str, ...]:
    assert rows.dtype.names is not None, "rows have a field for each column"
    return rows.dtype.names


def _bins(rows: Array, fields: Sequence[str] | set[str]) -> dict[str, Array]:
    """Values as categories, int64 ``(N,)``; numbers in ten bins, where missing ones join the last.

    numpy puts NaN behind the last edge, where the greatest value is too; so does sdmetrics.
    """
    bins = dict[str, Array]()
    for field in fields:
        values = rows[field]
        if is_number(rows, field):
            present = values[~is_missing(values)]
            edges = np.histogram_bin_edges(present) if len(present) else np.zeros(1)
            values = np.digitize(values, edges)
        bins[field] = values
    return bins


def _tenths(values: Array) -> Array:
    """Edges of ten bins that hold a tenth of the numbers each; fewer where many are equal."""
    present = values[~is_missing(values)]
    return np.unique(np.quantile(present, np.arange(1, 10) / 10)) if len(present) else present


def _ranked(values: Array, edges: Array) -> Array:
    """Numbers as categories from 1 on, by the edges of bins; 0 where there is none."""
    return np.where(is_missing(values), 0, 1 + np.searchsorted(edges, values, side="right"))


def _total_variation(first: Array, second: Array, count: int) -> float:
    """Total variation distance between two sets of categories from 0 to ``count - 1``."""
    if count > FEW_CELLS:  # count only those that there are
        names, both = np.unique(np.concatenate([first, second]), return_inverse=True)
        first, second, count = both[: len(first)], both[len(first) :], len(names)
    shares = [np.bincount(x, minlength=count) / len(x) for x in (first, second)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _cramers_v(a: Array, b: Array) -> float:
    """Cramér's V of two columns of categories (1946, section 21.9), without correction."""
    (_, a), (_, b) = np.unique(a, return_inverse=True), np.unique(b, return_inverse=True)
    rows, columns = np.bincount(a), np.bincount(b)
    if min(len(rows), len(columns)) < 2:
        return 0.0
    keys, counts = np.unique(a * len(columns) + b, return_counts=True)
    # Chi-square over n: of the cells that hold rows, the others add nothing to this form of it.
    row, column = np.divmod(keys, len(columns))
    chi_square = (counts**2 / (rows[row] * columns[column])).sum() - 1
    return float(np.sqrt(max(chi_square, 0.0) / (min(len(rows), len(columns)) - 1)))


def _correlation(a: Array, b: Array) -> float:
    """Pearson's correlation over the rows that have both numbers; 0 if one does not vary."""
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
