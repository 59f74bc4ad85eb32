"""A two-sample test with power against many differences, in seconds for any number of rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.lab.samples import MIN_SAMPLES, Units, repeats, require_samples, rows_to_keep

Array = np.ndarray
PERMUTATIONS = 999
"""Random assignments of the rows to A and B."""
MAX_ROWS = 50_000
"""Rows of a side, at most, that are looked at."""
MAX_VALUES = 2**24
"""Values of all rows of a side, at most, likewise."""
MAX_RATIO = 4
"""Rows of the larger side, at most, over those of the smaller: more would hardly add power."""
GROUPS = 1000
"""Groups of rows of the smaller side, about, that are assigned as a whole."""
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Widths of the kernels, over the median distance of two rows."""
FREQUENCIES = 256
"""Random frequencies of each kernel."""
ROWS = 2048
"""Rows whose features are computed at once."""
ROUNDING = 1e-3
"""Statistics this near to each other, in their standard deviations, count as equal."""


class Tested(NamedTuple):
    """The result of a test."""

    p_value: float
    """At most a level with no higher probability than the level, if A and B are alike."""
    rows: tuple[int, int]
    """Rows of A and of B that were looked at."""


def two_sample_test(a: Array, b: Array, seed: int = 0) -> Tested:
    """Test whether two sets of independent items come from one distribution.

    The statistic is the largest of several squared MMDs (Gretton et al. 2012, "A kernel two-sample
    test"), each in its standard deviations under permutation: Gaussian kernels of five widths, on
    rows in their own units, and on rows whose columns have one spread. As in Schrab et al. 2023
    ("MMD aggregated two-sample test") no width has to be right. Kernels are means of random
    frequencies (Rahimi & Recht 2007), so time grows with the rows and not with their square.

    Under the null hypothesis rows are exchangeable, and so are groups of equally many rows, in any
    order. Scales, widths and frequencies depend on all rows together or on none. So each
    permutation of the groups gives a statistic as good as the one found, and the p-value is valid
    at any number of rows (Phipson & Smyth 2010, equation 2). Copies are left out first, as in
    `training.lab.w1.estimate`; `training.lab.samples.repeats` says which rows are copies.

    Args:
        a: ``(N, ...)``, numbers.
        b: ``(M, ...)``, likewise, of the same form.
        seed: for everything random.

    Raises:
        DataError: the samples do not fit each other, or are too few.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(2, 500, 3))
        >>> two_sample_test(a, b).p_value > 0.05, two_sample_test(a + [0, 0.5, 0], b).p_value
        (True, 0.001)
    """
    require_samples(a, b)
    rng = np.random.default_rng(seed)
    sides = [x[_chosen(x, rng)] for x in (a, b)]
    size = max(1, min(map(len, sides)) // GROUPS)  # rows of a group
    few = min(map(len, sides)) // size * size
    sides = [x[: min(len(x) // size * size, MAX_RATIO * few)] for x in sides]
    units = Units((sides[0], sides[1]))
    rows = np.concatenate([units.rows(x) for x in sides])
    count = [len(x) // size for x in sides]
    shares = np.repeat([1 / count[0], -1 / count[1]], count).astype(np.float32)
    every = torch.from_numpy(
        np.stack([shares, *(rng.permutation(shares) for _ in range(PERMUTATIONS))])
    )
    found = []
    for x in (rows, _scaled(rows)):
        apart = x[rng.integers(len(x), size=1000)] - x[rng.integers(len(x), size=1000)]
        distances = np.linalg.norm(apart, axis=1)
        unit = float(np.median(distances[distances > 0])) if distances.any() else 1.0
        frequencies = rng.normal(size=(x.shape[1], FREQUENCIES)) / unit
        for width in WIDTHS:
            features = _grouped(torch.from_numpy(x), torch.from_numpy(frequencies / width), size)
            found.append((every @ features).square().sum(dim=1))
    statistics = torch.stack(found).double()
    spread = statistics.std(dim=1, keepdim=True).clamp_min(1e-300)
    largest = ((statistics - statistics.mean(dim=1, keepdim=True)) / spread).amax(dim=0)
    p_value = (largest >= largest[0] - ROUNDING).double().mean().item()
    return Tested(p_value, (len(sides[0]), len(sides[1])))


def _chosen(x: Array, rng: np.random.Generator) -> Array:
    """Numbers of the rows to look at, in random order."""
    flat = x.reshape(len(x), -1)
    most = max(MIN_SAMPLES, min(MAX_ROWS, MAX_VALUES // flat.shape[1]))
    return rng.permutation(rows_to_keep(x, repeats(flat)))[:most]


def _scaled(rows: Array) -> Array:
    """Divide each column of ``(N, D)`` by its spread; columns of one value are left out.

    The spread is that of the middle half of the values, which far ones do not change; where those
    are all alike, it is the standard deviation.
    """
    low, middle, high = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
    spread = (high - low) / 1.349  # of a normal distribution, the standard deviation
    spread = np.where(spread > 0, spread, rows.std(axis=0))
    return (rows - middle)[:, spread > 0] / spread[spread > 0]


def _grouped(rows: Tensor, frequencies: Tensor, size: int) -> Tensor:
    """Mean features of groups of ``size`` rows each, float32 ``(N / size, 2 K)``."""
    means = []
    for part in torch.split(rows, ROWS // size * size if size < ROWS else size):
        phases = (part @ frequencies).float()
        features = torch.cat([phases.cos(), phases.sin()], dim=1)
        means.append(features.reshape(-1, size, features.shape[1]).mean(dim=1))
    return torch.cat(means)
