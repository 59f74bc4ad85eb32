"""Tests for copies of training items: data-copying, authenticity and membership inference."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.stats import mannwhitneyu, rankdata

from training.judging.metrics import Device
from training.judging.neighbours import nearest

Array = np.ndarray
COPYING = -3.0
"""C_T below which Meehan et al. speak of copying."""
ITEMS_PER_CELL = 100
"""Held-out items in a cell, on average."""
MAX_CELLS = 20
MIN_IN_CELL = 20
"""Held-out items and samples without which a cell does not count."""


def copying_statistic(
    fake: Array, heldout: Array, fake_distances: Array, heldout_distances: Array
) -> float | None:
    """Compute the statistic C_T of the data-copying test.

    Meehan, Chaudhuri & Dasgupta 2020, "A non-parametric test to detect data-copying in generative
    models". Space is divided into cells by k-means. In each, a Mann-Whitney test tells whether
    samples or held-out items are nearer to their nearest training items; its z-values are averaged,
    weighted by the held-out items. The cells matter: in one region samples may be copies and in
    another far from everything, and these would cancel. They are found from both sets together, and
    not from the training items, so that samples and held-out items that are alike change places
    freely.

    Args:
        fake: ``(N, D)``, samples.
        heldout: ``(M, D)``.
        fake_distances: ``(N,)``, from each sample to its nearest training item.
        heldout_distances: ``(M,)``, the same for the held-out items.

    Returns:
        Near 0 for a perfect generator, below `COPYING` for one that copies, and above 0 for one
        with samples that are far from the data; None if no cell has enough of both.
    """
    count = min(MAX_CELLS, max(1, len(heldout) // ITEMS_PER_CELL))
    both = np.concatenate([fake, heldout])
    with warnings.catch_warnings():
        # Of points that are equal some cells stay empty, and these do not count.
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)
        cells = kmeans2(both, count, minit="points", seed=0)[1]
    fake_cells, heldout_cells = cells[: len(fake)], cells[len(fake) :]
    values, weights = list[float](), list[int]()
    for cell in range(count):
        near, others = fake_distances[fake_cells == cell], heldout_distances[heldout_cells == cell]
        n, m = len(near), len(others)
        if min(n, m) >= MIN_IN_CELL:
            wins = rankdata(np.concatenate([near, others]))[:n].sum() - n * (n + 1) / 2
            values.append((wins - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))
            weights.append(m)
    return float(np.average(values, weights=weights)) if values else None


def authentic(points: Array, training: Array, device: Device = "cpu") -> Array:
    """Find which points are farther from a training item than that is from the others.

    The authenticity of Alaa et al. 2022 ("How Faithful is your Synthetic Data?"): a sample that
    lies nearer to its nearest training item than this item's own nearest neighbour does is too near
    to be a new one. A copy is not authentic, even where the item is twice in the data.

    Args:
        points: ``(N, D)``, samples, or held-out items.
        training: ``(M, D)``, M at least 2.
        device: where to compute.

    Returns:
        bool ``(N,)``.

    Raises:
        ValueError: the arrays do not fit each other.

    Example:
        The nearest item of both is 0, which lies 2 from its own neighbour:

        >>> authentic(np.array([[-1.0], [-3.0]]), np.array([[0.0], [2.0], [9.0]])).tolist()
        [False, True]
    """
    distances, found = nearest(points, training, device=device)
    items, places = np.unique(found, return_inverse=True)
    between, _ = nearest(training[items], training, items, device=device)
    return distances > between[places]


class Membership(NamedTuple):
    """How well an attack tells training items from held-out ones."""

    auroc: float
    """Share of the pairs of a training and a held-out item that it orders rightly; ties are half.
    0.5: it knows nothing."""
    low: float
    """Lower end of the 95% interval around `auroc`."""
    high: float
    p_value: float
    """Chance of such an area or a larger one if items of both kinds are alike to the attack."""


def membership(members: Array, others: Array) -> Membership:
    """Judge a membership-inference attack by what it says of training and of held-out items.

    The attack on samples alone says how near each item's nearest sample is: an item that was
    copied has a very near one (Chen et al. 2020, "GAN-Leaks", the full black-box attack). That on a
    critic takes its score (Hayes et al. 2019, "LOGAN", white box). A generator that does not know
    which items were trained on gets 0.5 in the mean, however good or narrow it is, because held-out
    items are chosen by a hash of their content: duplicates lie on one side, and the sides are alike
    otherwise.

    The interval is DeLong's (1988), the p-value that of the Mann-Whitney test (normal, with ties).

    Args:
        members: ``(N,)``, of training items; larger where the attack takes the item for one.
        others: ``(M,)``, of held-out items. N and M are at least 2.

    Raises:
        ValueError: too few items, or NaN.
    """
    n, m = len(members), len(others)
    both = np.concatenate([members, others])
    if min(n, m) < 2 or np.isnan(both).any():
        raise ValueError(f"need at least 2 items of each kind without NaN, got {n} and {m}")
    ranks = rankdata(both)
    # For each item, the share of the other kind that it is ordered rightly with.
    right = [
        (ranks[:n] - rankdata(members)) / m,
        1 - (ranks[n:] - rankdata(others)) / n,
    ]
    margin = float(1.96 * np.sqrt(sum(np.var(x, ddof=1) / len(x) for x in right)))
    auroc = float(right[0].mean())
    test = mannwhitneyu(members, others, alternative="greater", method="asymptotic")
    return Membership(auroc, auroc - margin, auroc + margin, float(test.pvalue))
