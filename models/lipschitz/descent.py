"""Minimisation of a smooth function that is defined on an open set only."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

MEMORY = 10
"""Pairs of steps and changes of the gradient that are kept."""
LONGEST, SHORTEST = 1.0, 1e-4
"""Largest change of a variable in one step, and the share of a step at which its search ends."""
FIRST = 0.3
"""Largest change of a variable in the first step."""
ENOUGH = 1e-4
"""Decrease by less than which a step is the last."""
DECREASE = 1e-4
"""Share of the decrease that the gradient promises, at least (Armijo's rule)."""
Function = Callable[[Tensor], tuple[float, Tensor] | None]
"""Value and gradient at a point ``(N,)``; None where the function is not defined."""


def minimised(function: Function, x: Tensor, most: int) -> Tensor:
    """Find where a function is low by L-BFGS (Nocedal & Wright 2006, algorithm 7.5).

    Steps are halved until they stay where the function is defined, and lower it.

    Args:
        function: the function.
        x: where to begin, ``(N,)``.
        most: evaluations, at most.

    Returns:
        The lowest point that was found.
    """
    found = function(x) if most > 0 else None
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    most -= 1
    decrease = math.inf
    while found is not None and most > 0 and decrease > ENOUGH:
        value, gradient = found
        direction = -_newton(gradient, steps, changes)
        size = direction.abs().max()
        if not size > 0:
            break
        direction = direction * (LONGEST / size).clamp_max(1)
        slope, share, found = float(gradient @ direction), 1.0, None
        while found is None and share > SHORTEST and most > 0:
            found = function(x + share * direction)
            most -= 1
            if found is not None and not found[0] <= value + DECREASE * share * slope:
                found = None
            if found is None:
                share /= 2
        if found is not None:
            x, decrease = x + share * direction, value - found[0]
            step, change = share * direction, found[1] - gradient
            if step @ change > 0:
                steps, changes = [*steps, step][-MEMORY:], [*changes, change][-MEMORY:]
    return x


def _newton(gradient: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """Multiply a gradient by the inverse Hessian that steps and changes imply (algorithm 7.4)."""
    if not steps:
        return gradient * (FIRST / gradient.abs().max().clamp_min(FIRST * 1e-3))
    pairs = list(zip(steps, changes, strict=True))
    shares = []
    for step, change in reversed(pairs):
        shares.append((step @ gradient) / (step @ change))
        gradient = gradient - shares[-1] * change
    step, change = pairs[-1]
    gradient = gradient * (step @ change) / (change @ change)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        gradient = gradient + step * (share - (change @ gradient) / (step @ change))
    return gradient
