"""Figures of images' features alone."""

from __future__ import annotations

import numpy as np
from scipy.special import entr

from training.judging.metrics import checked

Array = np.ndarray


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
