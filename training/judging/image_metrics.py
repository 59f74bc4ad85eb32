"""Figures of images' features alone: the Vendi score, and the limit of the Fréchet distance."""

from __future__ import annotations

import numpy as np
from scipy.special import entr

from training.judging.intervals import Estimate, half_sample_margins
from training.judging.metrics import checked, frechet_distance

Array = np.ndarray
SIZES = 15
"""Numbers of points that a line of Fréchet distances goes through, as in the paper."""
REPEATS = 10
"""Pairs of halves behind its interval: each costs a line."""


def vendi_score(points: Array) -> float:
    """Effective number of different points, whatever they look like.

    The exponential of the Shannon entropy of the eigenvalues of ``K / N``, where K holds the cosine
    similarities of all pairs (Friedman & Dieng 2023, "The Vendi Score", definition 3.1). It grows
    with N, and noise has more than data: compare it with that of as many real points.

    Args:
        points: ``(N, D)``. One at 0 has no direction: it is like others at 0, and unlike the rest.

    Returns:
        From 1, of points that are alike, to N, of points at right angles.

    Raises:
        ValueError: see `training.judging.metrics`.

    Example:
        Two groups of equal size, at right angles:

        >>> round(vendi_score(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 5.0]])), 6)
        2.0
    """
    x, _ = checked(points, points, fewest=1)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    is_zero = norms == 0
    units = np.hstack([x, is_zero]) / np.where(is_zero, 1, norms)
    # K and the smaller of these matrices have the same eigenvalues but for zeros.
    products = units @ units.T if len(units) < units.shape[1] else units.T @ units
    shares = np.linalg.eigvalsh(products / len(units))
    return float(np.exp(entr(shares.clip(0)).sum()))  # rounding may take a zero just below 0


def line_sizes(n: int, features: int) -> Array | None:
    """Choose how many points the sets have that `frechet_distance_infinity` draws.

    Args:
        n: points in each of the two sets.
        features: of each point.

    Returns:
        int64 ``(SIZES,)``, evenly spaced from one point for each feature, or from a tenth of n if
        that is more, to n; None if that is more than half of n. Of fewer points the covariance is
        singular, and the distance no straight line in 1/N.
    """
    least = max(features, n // 10)
    return np.linspace(least, n, SIZES).astype(int) if 2 * least <= n else None


def frechet_distance_infinity(real: Array, fake: Array, sizes: Array, seed: int = 0) -> float:
    """Squared Fréchet distance of endlessly many points, read off a line.

    The distance of N points from N others exceeds its limit by nearly a multiple of 1/N (Chong &
    Forsyth 2020, "Effectively Unbiased FID and Inception Score and where to find them"). It is
    measured at several N, and the least-squares line in 1/N is continued to 0. In the paper the
    real set is large and always whole; held-out items are too few for that, so that here both sets
    have N points.

    Args:
        real: ``(N, D)``.
        fake: ``(M, D)``.
        sizes: int64 ``(L,)``, points drawn from each set without replacement; at least two numbers.
        seed: draws them.

    Returns:
        The estimate, which may be below 0, in squared units of the features.

    Raises:
        ValueError: the arrays do not fit each other, or have fewer points than the largest size.
    """
    real, fake = checked(real, fake, fewest=int(max(sizes)))
    rng = np.random.default_rng(seed)
    found = [
        frechet_distance(*(rng.choice(x, size, replace=False) for x in (real, fake)))
        for size in sizes
    ]
    return float(np.polyfit(1 / np.asarray(sizes), found, 1)[1])


def measure_infinity(heldout: Array, fake: Array, training: Array) -> dict[str, Estimate]:
    """Measure the `frechet_distance_infinity` of fake points beside that of real ones.

    The interval is of half samples, with halves of the sizes too.

    Args:
        heldout: ``(N, D)``, real points.
        fake: ``(N, D)``.
        training: ``(N, D)``, real points in place of fake ones, for the floor.

    Returns:
        ``frechet_distance_infinity``; empty where `line_sizes` has no sizes.
    """
    name, sizes = "frechet_distance_infinity", line_sizes(*heldout.shape)
    if sizes is None:
        return {}

    def of_halves(real: Array, fake: Array) -> dict[str, float]:
        return {name: frechet_distance_infinity(real, fake, sizes // 2)}

    value, floor = (frechet_distance_infinity(heldout, x, sizes) for x in (fake, training))
    margin = half_sample_margins(of_halves, heldout, fake, repeats=REPEATS)[name]
    return {name: Estimate(value, floor, value - margin, value + margin, len(heldout))}
