"""How many steps a fit takes: as many as fit into a time, or until more bring nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

TRIAL_STEPS = (20, 60)
"""Steps of two short fits, which tell what a fit costs at all, and what each of its steps costs."""
SAFETY = 0.95
"""Share of the time left for which steps are planned."""
FIRST_STEPS = 500
"""Steps of the first fit, which are doubled from fit to fit. Fewer settle before they begin."""
MAX_STEPS = 64_000
"""Steps of the last fit, at most."""
SETTLED = 0.01
"""Growth of the gap on validation samples, relative to that on fitted ones, that counts as none."""
MAX_APART = 0.1
"""Largest difference of the gaps on fitted and on other samples, relative to their mean, of a fit
that has converged."""


class Attempt(NamedTuple):
    """Critics fitted in a number of steps, and the estimates that they imply."""

    critic: nn.Module
    cones: nn.Module
    """Cones, for a certified bound; the critic itself where it consists of them."""
    steps: int
    by_fitted: float
    """The estimate by the samples that the critic was fitted to, in the critic's units."""
    by_validated: float
    """That by the samples which chose the best moment of the fit."""


class Stopped(NamedTuple):
    """Why a fit got no more steps."""

    reason: str
    more_samples: bool = False
    """True if more steps would not help, and more samples would."""


def apart(first: float, second: float) -> float:
    """Difference of two estimates, relative to their mean."""
    return abs(first - second) / max((first + second) / 2, 1e-12)


def fit_for(attempt: Callable[[int], Attempt], seconds: float) -> tuple[Attempt, Stopped]:
    """Fit once, with as many steps as a time allows; two short trials tell what steps cost.

    The schedule of a fit depends on its steps, so they are chosen before it begins. The same
    number of steps gives the same critic again.

    Args:
        attempt: fits critics in a number of steps.
        seconds: for the trials and the fit. Nothing is cut short: a fit has at least the steps of
            the longer trial.
    """
    steps, tried = _affordable(attempt, seconds)
    found = tried if steps <= tried.steps else attempt(steps)
    return found, Stopped(f"{found.steps} steps are what {seconds:g} seconds allow")


def fit_until_converged(
    attempt: Callable[[int], Attempt], seconds: float | None
) -> tuple[Attempt, Stopped]:
    """Fit with twice the steps again and again, until that brings nothing.

    Fits end when the gap on validation samples has grown by less than `SETTLED`. If it then agrees
    with the gap on fitted samples, the fit has converged; if not, the critic is as good as it gets
    with these samples. Held-out samples have no part in this, so bounds by them stay valid.

    Args:
        attempt: fits critics in a number of steps.
        seconds: for all fits together; a fit that would take longer is not begun. None: as long as
            `MAX_STEPS` take.

    Returns:
        The fit with the largest gap on validation samples, and why there were no more.
    """
    started, steps = time.perf_counter(), FIRST_STEPS
    if seconds is not None:
        steps = min(steps, max(TRIAL_STEPS[1], _affordable(attempt, seconds)[0]))
    before = best = None
    while True:
        begun = time.perf_counter()
        now = attempt(steps)
        ended = time.perf_counter()
        if best is None or now.by_validated >= best.by_validated:
            best = now
        if before is not None and now.steps > FIRST_STEPS:
            growth = now.by_validated - before.by_validated
            if growth < SETTLED * abs(now.by_fitted):
                return best, _settled(now)
        if seconds is not None and ended - started + 2 * (ended - begun) > seconds:
            return best, Stopped(f"twice {steps} steps would take more than {seconds:g} seconds")
        if 2 * steps > MAX_STEPS:
            return best, Stopped(f"twice {steps} steps are more than the most, {MAX_STEPS}")
        before, steps = now, 2 * steps


def _settled(last: Attempt) -> Stopped:
    hardly = f"{last.steps} steps find hardly more than half as many"
    if apart(last.by_fitted, last.by_validated) <= MAX_APART:
        return Stopped(f"{hardly}, and as much by fitted samples as by others")
    return Stopped(
        f"{hardly} by samples that the critic was not fitted to, but far more by those that it "
        "was: more samples are needed, not more steps",
        more_samples=True,
    )


def _affordable(attempt: Callable[[int], Attempt], seconds: float) -> tuple[int, Attempt]:
    """Steps of one fit in the time that two trials leave, and the longer trial."""
    started, took = time.perf_counter(), []
    for steps in TRIAL_STEPS:
        begun = time.perf_counter()
        tried = attempt(steps)
        took.append(time.perf_counter() - begun)
    few, many = TRIAL_STEPS
    each = (took[1] - took[0]) / (many - few)
    if each <= 0:  # the first fit may wait for what is loaded only once
        each = took[1] / many
    left = seconds - (time.perf_counter() - started) - max(0.0, took[1] - many * each)
    return int(SAFETY * left / each), tried
