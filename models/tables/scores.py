"""Normal scores: where a number stands among the training rows', on the scale of a normal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from models.tables.layout import LARGEST_SCORE

Array = np.ndarray
_OUTSIDE = math.erfc(LARGEST_SCORE / math.sqrt(2)) / 2
"""Probability below the smallest score, which stands for the smallest number."""


def quantile_levels(count: int) -> Array:
    """Probabilities from 0 to 1 at whose normal scores lie at equal distances, ``(count,)``.

    So the outermost thousandth of the numbers, where they lie far apart, has 92 of 1,000
    quantiles. With equal distances in probability it would have one, and what is generated there
    would be spread evenly out to the largest number.
    """
    import torch  # the service's supervisor reads conditions, and does without it

    scores = torch.linspace(-LARGEST_SCORE, LARGEST_SCORE, count, dtype=torch.float64)
    levels = (torch.special.ndtr(scores).numpy() - _OUTSIDE) / (1 - 2 * _OUTSIDE)
    levels[[0, -1]] = 0, 1  # but for rounding, they are
    return levels


def to_scores(numbers: Array, quantiles: Sequence[float]) -> Array:
    """Where numbers stand among quantiles at `quantile_levels`.

    Numbers between two quantiles are interpolated; several equal quantiles give the middle of
    their ranks. `from_scores` undoes it exactly, up to rounding.

    Args:
        numbers: float64 ``(N,)``; beyond the quantiles they count as the outermost.
        quantiles: ``(K,)``, ascending, K at least 2.

    Returns:
        float64 ``(N,)``, from -`LARGEST_SCORE` to `LARGEST_SCORE`.

    >>> to_scores(np.array([0.0, 5.0, 10.0]), [0.0, 10.0]).round(1).tolist()
    [-3.5, 0.0, 3.5]
    """
    import torch

    knots = np.asarray(quantiles, np.float64)
    levels = quantile_levels(len(knots))
    ranks = np.interp(numbers, knots, levels) - np.interp(-numbers, -knots[::-1], -levels[::-1])
    inside = _OUTSIDE + (1 - 2 * _OUTSIDE) * ranks / 2
    scores = torch.special.ndtri(torch.from_numpy(inside)).numpy()
    return scores.clip(-LARGEST_SCORE, LARGEST_SCORE)


def from_scores(scores: Array, quantiles: Sequence[float]) -> Array:
    """The numbers, float64 ``(N,)``, that stand where scores ``(N,)`` say; see `to_scores`."""
    import torch

    clipped = np.clip(scores, -LARGEST_SCORE, LARGEST_SCORE).astype(np.float64)
    inside = torch.special.ndtr(torch.from_numpy(clipped)).numpy()
    ranks = (inside - _OUTSIDE) / (1 - 2 * _OUTSIDE)
    return np.interp(ranks, quantile_levels(len(quantiles)), np.asarray(quantiles, np.float64))
