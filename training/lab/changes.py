"""What changed between A and B, column by column: shifts, new and lost categories, gaps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2_contingency, fisher_exact, ks_2samp, wasserstein_distance

from models.tables import CategoryColumn, NumberColumn, TimeColumn
from models.tables.column import Column
from training.judging.tables.rows import is_missing
from training.lab.differences import SIGNIFICANCE, kind_of

Array = np.ndarray
MAX_LOOKED_AT = 100_000
"""Rows of a side, at most, that a column is compared by."""
MAX_COLUMNS = 300
"""Values of an item, at most, that are compared one by one: those that moved or widened most."""
MAX_NAMED = 3
"""Categories that a sentence names."""
FEWEST = 5
"""Rows of a category that the smaller set should have if both are alike; a category of which fewer
are expected counts with other rare ones (Cochran 1954)."""
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "day": 86400.0}
"""Length of the units of times, in seconds."""
SPANS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
"""Units that a person reads, the longest first."""


class Change(NamedTuple):
    """How much one column, alone, differs between A and B."""

    name: str
    a: str
    """What it is in A, in words."""
    b: str
    moved: str
    """By how much it moved, in its own units."""
    distance: float
    """W1 of the column alone: of numbers in their own units, of times in seconds; of categories the
    share of the rows that would have to change."""
    relative: float
    """The distance in standard deviations of A and B together, or the share; of two kinds of
    change, such as a shift and new gaps, the larger."""
    p_value: float
    """That chance alone does this, times the number of columns that were compared, at most 1."""
    notes: tuple[str, ...] = ()
    """New and lost categories, with their shares."""

    @property
    def is_found(self) -> bool:
        """True if chance alone hardly does this to any of the columns."""
        return self.p_value <= SIGNIFICANCE

    @property
    def in_words(self) -> str:
        """The change as a clause."""
        return "; ".join([f"{self.name}: {self.a} in A, {self.b} in B", self.moved, *self.notes])


def found_in(report: dict[str, Any]) -> list[Change]:
    """The changes in a report of `training.lab.measure.measure` that chance alone hardly makes."""
    return [c for c in (Change(**change) for change in report["changes"]) if c.is_found]


def changes_of_table(a: Array, b: Array, columns: Sequence[Column]) -> list[Change]:
    """Compare two sets of rows of a table, the columns that changed most first.

    Numbers and times are compared by W1, and tested by Kolmogorov and Smirnov's test; shares of
    categories and of missing values by the share that moved, and by the chi-squared test and
    Fisher's. The p-values are multiplied by the number of tests (Bonferroni).

    Args:
        a: rows as `training.judging.tables.rows.comparable` makes them.
        b: likewise.
        columns: their columns, in the order of the fields.
    """
    found = []
    for i, column in enumerate(columns):
        x, y = (_some(side[str(i)]) for side in (a, b))
        gaps = [is_missing(side) for side in (x, y)]
        known = [side[~gap] for side, gap in zip((x, y), gaps, strict=True)]
        if isinstance(column, CategoryColumn):
            change = _categories(column, known[0], known[1])
        else:
            assert isinstance(column, NumberColumn), "only numbers and categories are learned"
            change = _numbers(column.name, known[0], known[1], column)
        found.append(_with_gaps(change, gaps[0], gaps[1]))
    return _sorted(found, len(found))


def changes_of_items(a: Array, b: Array, names: Sequence[str]) -> list[Change]:
    """Compare two arrays of vectors, sequences or images, what changed most first.

    Vectors are compared by their values; sequences by the mean of each feature and by its mean
    step; images by their brightness, contrast, sharpness and colours.

    Args:
        a: ``(N, *item)``.
        b: ``(M, *item)``.
        names: of the values of vectors.
    """
    a, b = _some(a), _some(b)
    kind = kind_of(a.shape[1:])
    if kind == "vector":
        sides = [dict(zip(names, x.T, strict=True)) for x in (a, b)]
    else:
        summary = _of_sequences if kind == "sequence" else _of_images
        sides = [summary(x) for x in (a, b)]
    chosen = _most_moved(*sides)
    found = [_numbers(name, sides[0][name], sides[1][name]) for name in chosen]
    return _sorted(found, len(sides[0]))  # those left out were candidates too


def _some(x: Array) -> Array:
    """Rows at equal distances, `MAX_LOOKED_AT` at most."""
    return x[:: -(-len(x) // MAX_LOOKED_AT)]


def _sorted(found: list[Change], candidates: int) -> list[Change]:
    tested = [c._replace(p_value=min(1.0, c.p_value * candidates)) for c in found]
    return sorted(tested, key=lambda c: (not c.is_found, -c.relative))


def _most_moved(a: dict[str, Array], b: dict[str, Array]) -> list[str]:
    """Names of the columns whose mean or deviation differs most, if there are very many."""
    if len(a) <= MAX_COLUMNS:
        return [*a]

    def moved(name: str) -> float:
        x, y = (side[name].astype(np.float64) for side in (a, b))
        spread = (x.std() + y.std()) or 1.0
        return float(abs(x.mean() - y.mean()) + abs(x.std() - y.std())) / spread

    return sorted(a, key=moved, reverse=True)[:MAX_COLUMNS]


def _numbers(name: str, x: Array, y: Array, column: NumberColumn | None = None) -> Change:
    if not len(x) or not len(y):
        first, second = (f"{len(side)} values" if len(side) else "no value" for side in (x, y))
        return Change(name, first, second, "not compared", 0.0, 0.0, 1.0)
    base = np.longdouble(x[0])  # a large offset must not cost digits, as in `Units`
    x, y = ((side - base).astype(np.float64) for side in (x, y))
    distance = float(wasserstein_distance(x, y))
    deviation = float(np.concatenate([x, y]).std()) or 1.0
    p_value = float(ks_2samp(x, y, method="asymp").pvalue)
    if isinstance(column, TimeColumn):
        first, second = (f"mean {column.in_text(float(base + side.mean()))}" for side in (x, y))
        distance *= column.step * _seconds(column)
        deviation *= column.step * _seconds(column)
        length, unit = next((s for s in SPANS if distance >= s[0]), SPANS[-1])
        moved = f"{distance / length:.4g} {unit}"
    else:
        means = [float(base + side.mean()) for side in (x, y)]
        spreads = [float(side.std()) for side in (x, y)]
        first, second = (
            f"mean {mean:.6g}, deviation {spread:.4g}"
            for mean, spread in zip(means, spreads, strict=True)
        )
        moved = f"{distance:.4g}"
    relative = distance / deviation
    said = f"moved by {moved}, {relative:.2g} standard deviations"
    return Change(name, first, second, said, distance, relative, p_value)


def _seconds(column: TimeColumn) -> float:
    """Length of the unit that a column of times counts, in seconds."""
    unit = re.search(r"\[(\w+)", column.type)
    return 1.0 if column.format is not None or unit is None else SECONDS[unit[1]]


def _categories(column: CategoryColumn, x: Array, y: Array) -> Change:
    names = (*column.categories, *column.others, "another value")
    counts = np.stack([np.bincount(side, minlength=len(names)) for side in (x, y)])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-np.abs(shares[0] - shares[1]), kind="stable")[:MAX_NAMED]
    first, second = (
        ", ".join(f"{names[i]} {side[i]:.1%}" for i in order if side.any() and shares[:, i].any())
        for side in shares
    )
    moved = float(np.abs(shares[0] - shares[1]).sum() / 2) if counts.sum(axis=1).all() else 0.0
    notes = list[str]()
    for said, one, other in (("new in B", 0, 1), ("in A alone", 1, 0)):
        alone = [i for i in np.argsort(-shares[other], kind="stable") if shares[other, i]]
        alone = [i for i in alone if not shares[one, i]]
        if alone and counts[one].sum():
            listed = ", ".join(f"{names[i]} {shares[other, i]:.1%}" for i in alone[:MAX_NAMED])
            more = f" and {len(alone) - MAX_NAMED} more" if len(alone) > MAX_NAMED else ""
            notes.append(f"{said}: {listed}{more}")
    said = f"{moved:.1%} of the values moved"
    p_value = _chi_squared(counts)
    return Change(column.name, first, second, said, moved, moved, p_value, tuple(notes))


def _chi_squared(counts: Array) -> float:
    """P-value of counts ``(2, K)``; rare categories count together, with a frequent one if need be.

    Where less is expected than `FEWEST`, the statistic has no chi-squared distribution.
    """
    sizes = counts.sum(axis=1)
    if not sizes.all():
        return 1.0
    merged = counts[:, np.argsort(counts.sum(axis=0))]
    expected = merged.sum(axis=0) * (sizes.min() / sizes.sum())
    # The fewest are pooled until none of the others, nor the pool, is too small.
    pooled = max(int((expected < FEWEST).sum()), int((expected.cumsum() < FEWEST).sum()) + 1)
    merged = np.column_stack([merged[:, :pooled].sum(axis=1), merged[:, pooled:]])
    if merged.shape[1] < 2:
        return 1.0
    return float(chi2_contingency(merged).pvalue)


def _with_gaps(change: Change, x: Array, y: Array) -> Change:
    """Add the shares of missing values, bool of each row, to what is said of the others."""
    if not x.any() and not y.any():
        return change
    shares = [float(gap.mean()) for gap in (x, y)]
    counts = [[int(gap.sum()), int((~gap).sum())] for gap in (x, y)]
    p_value = min(1.0, 2 * min(change.p_value, float(fisher_exact(counts).pvalue)))
    sides = [
        f"{said + ', ' if said else ''}missing {share:.1%}"
        for said, share in zip((change.a, change.b), shares, strict=True)
    ]
    apart = abs(shares[0] - shares[1])
    return change._replace(
        a=sides[0], b=sides[1], p_value=p_value, relative=max(change.relative, apart)
    )


def _of_sequences(x: Array) -> dict[str, Array]:
    """Numbers that describe sequences ``(N, T, D)``."""
    found, exact = dict[str, Array](), x.astype(np.float64)
    for j in range(x.shape[2]):
        found[f"mean of x{j + 1} over the steps"] = exact[:, :, j].mean(axis=1)
        if x.shape[1] > 1:
            steps = np.abs(np.diff(exact[:, :, j], axis=1))
            found[f"mean step of x{j + 1}"] = steps.mean(axis=1)
    return found


def _of_images(x: Array) -> dict[str, Array]:
    """Numbers that describe images ``(N, H, W)`` or ``(N, H, W, C)``, in the pixels' units."""

    def described() -> Iterator[dict[str, Array]]:
        for first in range(0, len(x), 1024):
            part = x[first : first + 1024].astype(np.float64)
            part = part.reshape(*part.shape[:3], -1)
            edges = [
                np.abs(np.diff(part, axis=axis)).mean(axis=(1, 2, 3))
                for axis in (1, 2)
                if part.shape[axis] > 1
            ]
            found = {
                "brightness": part.mean(axis=(1, 2, 3)),
                "contrast": part.std(axis=(1, 2, 3)),
            }
            if edges:
                found["sharpness"] = np.mean(edges, axis=0)
            channels = part.mean(axis=(1, 2))
            if part.shape[3] > 1:
                colours = ("red", "green", "blue")
                names = (
                    colours
                    if part.shape[3] == 3
                    else [f"channel {i + 1}" for i in range(part.shape[3])]
                )
                found |= dict(zip(names, channels.T, strict=True))
            yield found

    parts = [*described()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
