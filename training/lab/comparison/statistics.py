"""Means over seeds, and how sure it is that one constraint is better than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

CLEAR_PROBABILITY = 0.95
"""Probability from which a recommendation is called clear."""


class Mean(NamedTuple):
    """A mean over seeds and its 95% interval (Student's t); of one seed none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3g} (one seed)"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """The mean of one value a seed, with its interval."""
    array = np.asarray(values, float)
    mean = float(array.mean())
    if len(array) < 2:
        return Mean(mean, math.nan, math.nan)
    margin = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / math.sqrt(len(array))
    return Mean(mean, mean - margin, mean + margin)


def probability_lower(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The probability that the mean of ``a`` is the lower, by Welch's t; None for one seed."""
    if min(len(a), len(b)) < 2:
        return None
    variances = [np.var(x, ddof=1) / len(x) for x in (a, b)]
    error = float(sum(variances))
    difference = float(np.mean(b) - np.mean(a))
    if error == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    freedom = error**2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (a, b), strict=True))
    return float(stdtr(freedom, difference / math.sqrt(error)))


def recommend(values: dict[str, Sequence[float]], figure: str) -> dict[str, Any]:
    """Choose the constraint with the lowest mean, and say how sure that is.

    Args:
        values: one a seed, by constraint; lower is better.
        figure: name of the figure that the values are.

    Returns:
        ``constraint``, ``over`` (the runner-up), ``probability`` (that the choice is really
        better than the runner-up; None for one seed) and ``reason``.
    """
    first, second, *_ = sorted(values, key=lambda kind: float(np.mean(values[kind])))
    probability = probability_lower(values[first], values[second])
    means = {kind: mean_over_seeds(values[kind]) for kind in (first, second)}
    reason = (
        f"{first}: its {figure} at equal seconds is {means[first]}, that of the next, {second}, "
        f"{means[second]}; "
    )
    if probability is None:
        reason += "with one seed nothing can be said of chance: use --seeds 3 or more"
    elif probability >= CLEAR_PROBABILITY:
        reason += f"that it is really the better has a probability of {probability:.3g} (Welch's t)"
    else:
        reason += (
            f"that it is really the better has a probability of {probability:.2g} only (Welch's "
            "t): these seeds do not decide between the two; more would"
        )
    return {"constraint": first, "over": second, "probability": probability, "reason": reason}
