"""Bounds on the means of two samples that hold at any number of samples and for any distribution.

A critic of slope at most 1 gives ``E f(A) - E f(B) <= W1``. The left side must be bounded from
samples that had no part in fitting f. The normal approximation fails for skewed scores: few
samples often miss the rare large values, and then see a difference, and hardly any variance. A bet
against a mean is fair for every distribution on an interval, so a bound from bets holds always.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.optimize import brentq
from scipy.special import logsumexp

Array = np.ndarray
MAX_BET = 0.75
"""Share of the stake that a bet may lose at most (Waudby-Smith & Ramdas 2024, section 4.3)."""
MAX_ORDERS = 20
"""Orders of the values over which the wealth is averaged, so that the bound depends less on one."""
MAX_BETS = 2_000_000
"""Bets at most for each trial of a mean."""
CLIP_LEVELS = (0.0, 0.001, 0.005, 0.02, 0.05, 0.1)
"""Shares of the scores, on either side, that may be clipped."""
MAX_PERMUTED = 20_000
"""Scores at most that are permuted one by one, which takes two seconds."""
LEVELS = 512
"""Levels at most that more scores are rounded to."""


class Clip(NamedTuple):
    """An interval that scores are clipped to; clipping never makes a critic steeper."""

    low: float
    high: float

    def __call__(self, scores: Array) -> Array:
        """Clip scores."""
        return scores.clip(self.low, self.high)


def mean_lower_bound(values: Array, confidence: float, rng: Generator) -> float:
    """Lower confidence bound of a mean, by betting against smaller ones.

    A gambler starts with 1 and stakes, on each value in turn, that the mean is larger than m. If
    the mean is m or less, the expected wealth stays at most 1, so the wealth exceeds ``1 / level``
    with a probability of at most the level (Markov). The bound is the largest m at which it does.
    Bets follow Waudby-Smith & Ramdas (2024), "Estimating means of bounded random variables by
    betting", equation 26. The wealth is the mean over several orders of the values: its
    expectation is still at most 1.

    Args:
        values: ``(N,)``, independent, of one distribution, each from 0 to 1.
        confidence: the probability, at least, with which the bound is not above the mean.
        rng: chooses the orders.

    Returns:
        The bound, 0 to 1.

    >>> values = np.random.default_rng(0).random(1000)
    >>> 0.46 < mean_lower_bound(values, 0.95, np.random.default_rng(1)) < 0.5
    True
    """
    count, needed = len(values), -math.log(1 - confidence)
    orders = max(1, min(MAX_ORDERS, MAX_BETS // count))
    rows = np.stack([rng.permutation(values) for _ in range(orders)])
    # Each bet knows the values before it only.
    seen = np.arange(1, count + 1)
    means = (0.5 + rows.cumsum(axis=1)) / (seen + 1)
    variances = (0.25 + np.square(rows - means).cumsum(axis=1)) / (seen + 1)
    variances = np.column_stack([np.full(orders, 0.25), variances[:, :-1]])
    bets = np.sqrt(2 * needed / (count * variances))

    def excess(mean: float) -> float:
        stakes = np.minimum(bets, MAX_BET / mean)
        wealth = np.log1p(stakes * (rows - mean)).sum(axis=1)
        return float(logsumexp(wealth) - math.log(orders) - needed)

    tiny = 1e-12
    if excess(tiny) <= 0:
        return 0.0
    # The wealth falls as the mean rises; at the largest value nothing is won.
    return float(brentq(excess, tiny, max(float(values.max()), 2 * tiny), xtol=1e-10))


def gap_lower_bound(a: Array, b: Array, clip: Clip, confidence: float, rng: Generator) -> float:
    """Lower confidence bound of ``E a - E b``, for independent samples of clipped scores.

    Args:
        a: scores of A, ``(N,)``, independent of each other and of the choice of ``clip``.
        b: scores of B, ``(M,)``.
        clip: interval that both are clipped to.
        confidence: the probability, at least, with which the bound is not above the difference.
        rng: pairs the samples.

    Returns:
        The bound; it may be below 0.
    """
    width = clip.high - clip.low
    if width <= 0:
        return 0.0
    a, b = (rng.permutation(clip(scores)) for scores in (a, b))
    # Each of the fewer samples is compared with the mean of equally many of the others.
    count = min(len(a), len(b))
    sides = [x[: len(x) // count * count].reshape(count, -1).mean(axis=1) for x in (a, b)]
    shares = (sides[0] - sides[1] + width) / (2 * width)
    return width * (2 * mean_lower_bound(shares.clip(0, 1), confidence, rng) - 1)


def choose_clip(a: Array, b: Array, count: int, confidence: float) -> Clip:
    """Choose the interval for which the lower bound is likely to be largest.

    Args:
        a: scores of A that the bound itself will not use, ``(N,)``.
        b: scores of B, likewise.
        count: number of samples a side that the bound will use.
        confidence: the bound's.
    """
    both, needed = np.concatenate([a, b]), -math.log(1 - confidence)
    lows = np.quantile(both, CLIP_LEVELS)
    highs = np.quantile(both, [1 - level for level in CLIP_LEVELS])

    def forecast(clip: Clip) -> float:
        sides = [clip(x) for x in (a, b)]
        variance = sum(float(x.var()) for x in sides)
        # The leading terms of an empirical Bernstein bound (Maurer & Pontil 2009, theorem 4).
        chance = math.sqrt(2 * variance * needed / count) + (clip.high - clip.low) * needed / count
        return float(sides[0].mean() - sides[1].mean()) - chance

    clips = [Clip(float(low), float(high)) for low, high in itertools.product(lows, highs)]
    return max(clips, key=forecast)


def permutation_p_value(a: Array, b: Array, rng: Generator, permutations: int = 9999) -> float:
    """Probability that scores of one distribution differ in their means by chance as much as these.

    The samples must have had no part in fitting the critic. Under the null hypothesis that A and B
    have one distribution, every assignment of the scores to A and B is equally likely, so the
    p-value is valid at any number of samples (Phipson & Smyth 2010, equation 2).

    More than `MAX_PERMUTED` scores are first rounded to levels that depend on all of them together.
    Rounded scores are as exchangeable as the scores, so the test stays valid. How many of each
    level fall to A has then a multivariate hypergeometric distribution, which is drawn from
    without permuting anything.

    Args:
        a: scores of A, ``(N,)``; larger ones speak for a difference.
        b: scores of B, ``(M,)``.
        rng: draws the permutations.
        permutations: number of them.

    Returns:
        The p-value, at least ``1 / (permutations + 1)``.
    """
    both = np.concatenate([a, b])
    both = both - both.mean()
    # The difference of the means rises with the sum of A's scores.
    if len(both) > MAX_PERMUTED:
        level = np.digitize(both, _level_edges(both))
        counts = np.bincount(level)
        values = np.bincount(level, both) / np.maximum(counts, 1)
        observed = values[level[: len(a)]].sum()
        sums = rng.multivariate_hypergeometric(counts, len(a), permutations) @ values
    else:
        observed = both[: len(a)].sum()
        sums = np.array([rng.permutation(both)[: len(a)].sum() for _ in range(permutations)])
    tolerance = 1e-12 * np.abs(both).sum()
    return float(1 + (sums >= observed - tolerance).sum()) / (permutations + 1)


def _level_edges(scores: Array) -> Array:
    """Edges of levels: half hold equally many scores, half are equally wide, for a long tail."""
    shares = np.linspace(0, 1, LEVELS // 2 + 1)[1:-1]
    low, high = scores.min(), scores.max()
    return np.unique(np.concatenate([np.quantile(scores, shares), low + shares * (high - low)]))
