"""What two sets of samples differ in: by which columns, by which items, and in a sentence."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from models.device import device_of

Array = np.ndarray
MAX_PAIRS = 2000
"""Pairs of samples, at most, that blame is taken over."""
POINTS_ON_WAY = 8
"""Points between the samples of a pair at which the gradient is taken."""
ROWS = 1024
"""Samples that a gradient is taken of at a time."""
MAX_NAMED = 3
"""Columns, at most, that a sentence names."""
SIGNIFICANCE = 0.05
"""A p-value up to this one is called a difference."""


def column_blame(critic: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Share of each column in the distance that the critic sees between A and B.

    Samples are paired as cheaply as possible (exact transport between as many of each). Along the
    line from b to a the score rises by ``sum_j (a_j - b_j) * mean of df/dx_j``, so each column has
    its part of the pair's gap: the integrated gradients of Sundararajan, Taly & Yan (2017),
    equation 1, with the partner as the baseline. The optimal critic's gradient is
    ``(a - b) / |a - b|`` along optimal pairs (Gulrajani et al. 2017, proposition 1), so there the
    part is ``(a_j - b_j)^2 / |a - b|``, and the parts' mean over all pairs is W1. A shift by
    (3, 4) thus blames the columns by 9 / 25 and 16 / 25. The plan alone would blame the noise of
    all columns, and the gradient alone knows of no lengths.

    Args:
        critic: larger on A.
        a: ``(N, *shape)``, float64, samples that the critic was not fitted to.
        b: ``(M, *shape)``, likewise; equally many of the first of each are taken.

    Returns:
        Shares ``(*shape)``, each at least 0, of the sum 1. A column whose part is negative, as
        chance makes it, has none.
    """
    count = min(len(a), len(b), MAX_PAIRS)
    a, b = a[:count], b[:count]
    _, partners = linear_sum_assignment(torch.cdist(a.flatten(1), b.flatten(1)).numpy())
    b = b[partners]
    exact = copy.deepcopy(critic).double()
    parts = torch.zeros_like(a[0])
    for part_a, part_b in zip(torch.split(a, ROWS), torch.split(b, ROWS), strict=True):
        for i in range(POINTS_ON_WAY):
            between = torch.lerp(part_b, part_a, (i + 0.5) / POINTS_ON_WAY)
            x = between.to(device_of(critic)).requires_grad_()
            (gradient,) = torch.autograd.grad(exact(x).sum(), x)
            parts += (gradient.cpu() * (part_a - part_b)).sum(dim=0)
    parts = parts.clamp_min(0)
    total = parts.sum()
    return parts / total if total > 0 else torch.full_like(parts, 1 / parts.numel())


def kind_of(item: Sequence[int]) -> str:
    """``vector``, ``sequence`` or ``image``, by the shape of an item.

    Items of two sides are an image if both have at least 8 values, else a sequence ``(T, D)``.
    """
    if len(item) == 1:
        return "vector"
    return "sequence" if len(item) == 2 and min(item) < 8 else "image"


def column_names(item: Sequence[int]) -> list[str]:
    """Names of an item's values, in its own order: columns from 1, and rows and steps too."""
    if len(item) == 1:
        return [f"x{i + 1}" for i in range(item[0])]
    if kind_of(item) == "sequence":
        return [f"x{j + 1} at step {i + 1}" for i, j in np.ndindex(*item)]
    sides = ("row", "column", "channel")
    return [
        "the pixel in " + ", ".join(f"{s} {i + 1}" for s, i in zip(sides, place, strict=False))
        for place in np.ndindex(*item)
    ]


def verdict(report: dict[str, Any], names: Sequence[str]) -> str:
    """Answer in a sentence or two whether A and B are the same.

    Args:
        report: fields of docs/w1.md: `p_value`, `w1`, `lower`, `interval` and `blame`.
        names: of the columns, in the order of `blame`.
    """
    p, found = report["p_value"], f"W1 is about {report['w1']:.3g}"
    if p > SIGNIFICANCE:
        return (
            f"no difference between A and B was found (p {p:.2g}); if there is one, W1 is hardly "
            f"above {report['interval'][1]:.3g}, the upper end of its interval"
        )
    least = f", at least {report['lower']:.3g}" if report["lower"] > 0 else ""
    return f"A and B differ (p {p:.2g}): {found}{least}; {most_blamed(report['blame'], names)}"


def most_blamed(blame: Any, names: Sequence[str]) -> str:
    """Say in which columns most of the distance is."""
    shares = np.ravel(blame)
    order = np.argsort(-shares, kind="stable")
    needed = int(np.searchsorted(np.cumsum(shares[order]), 0.5 - 1e-9)) + 1
    told = [f"{names[i]} ({shares[i]:.0%})" for i in order[: min(needed, MAX_NAMED)]]
    if needed == 1:
        return f"most of it is in {told[0]}"
    if needed <= MAX_NAMED:
        return f"most of it is in {', '.join(told[:-1])} and {told[-1]}"
    return f"half of it is in {needed} of {len(shares)} values, and the most in {told[0]}"


def scores_of(a: Array, b: Array, bins: int = 40) -> dict[str, list[float]]:
    """Histograms of two sets of scores, over nearly all of their range; the ends hold the rest.

    Returns:
        ``edges``, and the shares of ``a`` and ``b`` between them.
    """
    both = np.concatenate([a, b])
    low, high = np.quantile(both, [0.001, 0.999])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    shares = [np.histogram(x.clip(low, high), edges)[0] / len(x) for x in (a, b)]
    return {"edges": edges.tolist(), "a": shares[0].tolist(), "b": shares[1].tolist()}
