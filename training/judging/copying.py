"""The data-copying test: are samples nearer to training items than held-out items are?"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.stats import rankdata

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
