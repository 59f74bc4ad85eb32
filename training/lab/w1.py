"""The Wasserstein-1 distance between two sets of samples, by critics fitted for that alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from models.config import constraint_class
from models.constraints import Constraint, GradientPenalty, LipschitzPenalty
from models.device import device_of, require_device
from models.errors import ConfigError
from models.lipschitz import certify, gradient_norms, interpolate, lipschitz_bracket
from models.networks.cones import Cones
from training.lab import bounds
from training.lab.differences import column_blame, column_names, scores_of, verdict
from training.lab.fitting import Recipe, default_recipe, fit
from training.lab.samples import (
    Units,
    discrete,
    plug_in_estimate,
    repeats,
    require_samples,
    require_whole,
    rows_to_keep,
    sampler,
    split,
    tail_share,
)
from training.lab.steps import MAX_APART, Attempt, Stopped, apart, fit_for, fit_until_converged

Array = np.ndarray

STEPS = 4000
"""Critic steps by default."""
CONFIDENCE = 0.95
HEAVY_TAIL = 0.25
"""A tail farther away than this share of the sum of all distances decides too much of W1."""
MAX_NORM_POINTS = 4096
"""Points between A and B, at most, where gradient norms are taken."""
MAX_VALIDATED = 20_000
"""Samples of each set, at most, by which the best moment of a fit is chosen."""
TYPICAL = 16
"""Held-out samples of A that score highest, and of B that score lowest, which the report names."""


def critic_estimate(critic: nn.Module, constraint: Constraint, a: Tensor, b: Tensor) -> float:
    """The W1 that a critic implies, in the critic's units.

    A penalised critic overshoots its target slope. To first order in 1 / strength the gap is
    ``W1 + c / (2 strength)`` and the penalty ``c / (4 strength)``, so ``gap - 2 penalty`` is W1
    as the strength goes to infinity. Of constraints that do not aim at a slope between A and B,
    the gap is divided by the steepest slope found; that of cones is 1.

    Args:
        critic: as fitted.
        constraint: it was fitted under.
        a: ``(N, *shape)``.
        b: ``(M, *shape)``.
    """
    gap = _gap(critic, a, b)
    torch.manual_seed(0)
    if isinstance(constraint, LipschitzPenalty | GradientPenalty):
        count = min(len(a), len(b), MAX_NORM_POINTS)
        some = [x[:count].to(device_of(critic)) for x in (a, b)]
        penalty = constraint.term(critic, *some).item()
        return (gap - 2 * penalty) / constraint.target
    if isinstance(critic, Cones):
        return gap
    device = device_of(critic)
    sampled = lipschitz_bracket(critic, a.to(device), b.to(device)).sampled
    return gap / float(sampled)  # type: ignore[arg-type]


@torch.no_grad()
def _gap(critic: nn.Module, a: Tensor, b: Tensor) -> float:
    scores = [_scores(critic, x) for x in (a, b)]
    return (scores[0].mean() - scores[1].mean()).item()


def _scores(critic: nn.Module, x: Tensor) -> Tensor:
    device = device_of(critic)
    return torch.cat([critic(part.to(device)) for part in torch.split(x, 1024)]).double()


@torch.no_grad()
def _exact_scores(critic: nn.Module, x: Tensor) -> Array:
    """Score in float64, for rounding must not make a bound larger than it is."""
    return _scores(copy.deepcopy(critic).double(), x).cpu().numpy()


class _HeldOut(NamedTuple):
    """What the held-out samples say of W1; distances in the critic's units."""

    lower: float
    """Lower bound, one-sided."""
    interval_low: float
    """Lower end of the interval."""
    margin: float
    """What chance may take from a gap over all samples, at the interval's upper end."""
    p_value: float


def _from_held_out(
    scores: Sequence[tuple[Array, Array]], certified: float, seed: int, confidence: float
) -> _HeldOut:
    """Bound W1 and test for a difference by a critic's scores of samples that it never saw.

    Args:
        scores: of A and B that the critic was fitted to, validated on and that are held out.
        certified: its Lipschitz constant at most.
        seed: for the orders of bets and the permutations.
        confidence: of the lower bound, and of the interval.
    """
    known = [np.concatenate(pair) for pair in zip(*scores[:2], strict=True)]
    a, b = scores[2]
    rng, both_sides = np.random.default_rng(seed), (1 + confidence) / 2
    clip = bounds.choose_clip(known[0], known[1], min(len(a), len(b)), confidence)
    lower = bounds.gap_lower_bound(a, b, clip, confidence, rng)
    p_value = bounds.permutation_p_value(a, b, rng)
    interval_low = bounds.gap_lower_bound(a, b, clip, both_sides, rng)
    every = [np.concatenate(pair) for pair in zip(known, (a, b), strict=True)]
    error = math.sqrt(sum(float(x.var()) / len(x) for x in every))
    margin = norm.ppf(both_sides) * error
    return _HeldOut(lower / certified, interval_low / certified, margin / certified, p_value)


class Fitted(NamedTuple):
    """The result of `estimate`."""

    report: dict[str, Any]
    """The fields that docs/w1.md describes; distances in the samples' own units."""
    gradient: Callable[[Array], Array]
    """The critic's gradient at points in the samples' own form and units."""


def estimate(
    a: Array,
    b: Array,
    kind: str | None = None,
    *,
    seed: int = 0,
    steps: int | None = None,
    seconds: float | None = None,
    until_converged: bool = False,
    batch_size: int = 512,
    names: Sequence[str] = (),
    confidence: float = CONFIDENCE,
    device: str = "cpu",
) -> Fitted:
    """Estimate W1 between two sets of samples, with the Euclidean distance, and bound it.

    Critics are fitted in float32, in units in which the samples have a spread of 1. All figures are
    then taken in float64, of which the scores of distant cones need the digits.

    Args:
        a: ``(N, D)``, sequences ``(N, T, D)``, or images ``(N, H, W)`` or ``(N, H, W, C)``.
        b: likewise, with as many features.
        kind: the constraint's; by default the one found best.
        seed: for everything random.
        steps: critic steps; by default `STEPS`.
        seconds: time for fitting, instead of ``steps``.
        until_converged: double the steps until more bring nothing, or ``seconds`` are over.
        batch_size: samples from each set in a step.
        names: of an item's values, for the verdict; without them, their places.
        confidence: of `lower` and `interval`.
        device: ``cpu`` or ``cuda``, where critics are fitted.

    Returns:
        The report, and the critic's gradient.

    Raises:
        UserError: there is no such device.
        DataError: the samples do not fit each other, or are too few.
        ConfigError: there is no such constraint; or steps are given beside the other two; or the
            time is not above 0; or the steps or the batch are no whole number above 0.
    """
    require_whole("batch_size", batch_size, 1)
    if steps is not None:
        require_whole("steps", steps, 1)
    if steps is not None and (seconds is not None or until_converged):
        raise ConfigError("a number of steps excludes seconds and until-converged: give either")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ConfigError(f"seconds {seconds:g}: must be above 0")
    started, place = time.perf_counter(), require_device(device)
    cards = [place] if place.type == "cuda" else []
    require_samples(a, b)
    copies = [repeats(x.reshape(len(x), -1)) for x in (a, b)]
    kept = [rows_to_keep(x, times) for x, times in zip((a, b), copies, strict=True)]
    numbers = split(kept[0], kept[1], seed)
    parts = [(a[rows], b[others]) for rows, others in numbers]
    units = Units(*parts[:2])  # nothing of the critic may depend on the held-out samples
    exact = [(units.to_critic(x), units.to_critic(y)) for x, y in parts]
    fitted, validated, heldout = ((x.to(place).float(), y.to(place).float()) for x, y in exact)
    shape = tuple(fitted[0].shape[1:])
    recipe = default_recipe(shape, constraint_class(kind)() if kind else None)

    def objective(recipe: Recipe) -> Callable[[nn.Module], float]:
        def value(critic: nn.Module) -> float:
            some = [x[:MAX_VALIDATED] for x in validated]
            count = min(map(len, some))
            one, other = (x[:count] for x in some)
            with torch.random.fork_rng(devices=cards):  # the fit goes on with its own numbers
                torch.manual_seed(0)
                penalty = recipe.constraint.penalty(critic, one, other)
            return _gap(critic, *some) - (0.0 if penalty is None else penalty.item())

        return value

    def attempt(steps: int) -> Attempt:
        draw = sampler(*fitted, batch_size, seed)

        def fitted_under(recipe: Recipe, steps: int) -> nn.Module:
            return fit(draw, shape, recipe, steps, seed, objective(recipe), place)

        critic = fitted_under(recipe, steps) if kind else None
        some = fitted_under(default_recipe(shape), max(steps // 2, 1) if kind else steps)
        # With a mere shift, or few samples, fitted cones learn noise: one cone may do better.
        cones = max(some, Cones.along(*fitted), key=lambda critic: _gap(critic, *validated))
        critic = cones if critic is None else critic
        found = [critic_estimate(critic, recipe.constraint, *x) for x in (fitted, validated)]
        return Attempt(critic, cones, steps, *found)

    stopped: Stopped | None = None
    if until_converged:
        fits, stopped = fit_until_converged(attempt, seconds)
    elif seconds is not None:
        fits, stopped = fit_for(attempt, seconds)
    else:
        fits = attempt(STEPS if steps is None else steps)
    critic, steps = fits.critic, fits.steps
    slopes = lipschitz_bracket(critic, *heldout)
    candidates = [(critic, slopes.certified)]
    if fits.cones is not critic:
        candidates.append((fits.cones, certify(fits.cones)[0]))
    certain = [(c, float(k)) for c, k in candidates if isinstance(k, float)]
    # Chosen by validation, so that the held-out bound holds at its confidence.
    best, constant = max(certain, key=lambda pair: _gap(pair[0], *validated) / pair[1])
    count = min(*map(len, heldout), MAX_NORM_POINTS)
    torch.manual_seed(0)
    norms = gradient_norms(critic, interpolate(*(x[:count] for x in heldout))).double().cpu()
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    # Fitting enlarges the gap on its own samples and shrinks it on others: take the mean of both.
    unseen = tuple(torch.cat(pair) for pair in zip(*exact[1:], strict=True))
    judged = copy.deepcopy(critic).double()
    sides = [critic_estimate(judged, recipe.constraint, *side) for side in (exact[0], unseen)]
    rows = [units.rows(x[keep]) for x, keep in zip((a, b), kept, strict=True)]
    plug_in, bias, count = plug_in_estimate(rows[0], rows[1], seed)
    w1, heaviest = units.scale * sum(sides) / 2, max(tail_share(x) for x in rows)
    cautions = []
    if heaviest > HEAVY_TAIL:
        cautions.append(
            f"heavy tail: 1% of the samples hold {heaviest:.0%} of all distances from the median, "
            "so W1 depends on a few samples; w1 is the exact distance of the samples themselves, "
            "but blame is by a critic that may not have seen those few"
        )
        w1 = discrete(rows[0], rows[1], seed)
    if max(copies) > 1:
        cautions.append(
            f"each row of A occurs {copies[0]} times and each of B {copies[1]} times; "
            "copies were left out, for they are no further samples"
        )
    found = [(_exact_scores(best, x), _exact_scores(best, y)) for x, y in exact]
    held_out = _from_held_out(found, constant, seed, confidence)
    off = apart(*sides)
    if off > MAX_APART and held_out.p_value <= 1 - CONFIDENCE and heaviest <= HEAVY_TAIL:
        needed = "more samples" if stopped and stopped.more_samples else "more samples or steps"
        cautions.append(
            f"not converged: the distance is {units.scale * sides[0]:.4g} by the samples that the "
            f"critic was fitted to, and {units.scale * sides[1]:.4g} by others, so w1 may be off "
            f"by {off:.0%} or more; {needed} bring the two together"
        )
    # The gap on fitted samples and the exact distance of the samples are too large on average.
    highest = max(units.scale * sides[0], plug_in, w1) + units.scale * held_out.margin
    if best is not critic:
        found[2] = (_exact_scores(critic, exact[2][0]), _exact_scores(critic, exact[2][1]))
    scores = [units.scale * x for x in found[2]]
    scores = [x - scores[1].mean() for x in scores]  # a critic's level means nothing
    typical = zip(numbers[2], (-scores[0], scores[1]), strict=True)
    report = {
        "w1": max(0.0, w1),
        "lower": max(0.0, units.scale * held_out.lower),
        "interval": [max(0.0, units.scale * held_out.interval_low), highest],
        "confidence": confidence,
        "p_value": held_out.p_value,
        "heldout": [len(x) for x in heldout],
        "cautions": cautions,
        "blame": units.from_critic(column_blame(critic, *exact[2])[None])[0].tolist(),
        "typical": [n[np.argsort(x, kind="stable")[:TYPICAL]].tolist() for n, x in typical],
        "scores": scores_of(scores[0], scores[1]),
        "plug_in": plug_in,
        "plug_in_bias": bias,
        "plug_in_samples": count,
        "lipschitz_certified": slopes.certified,
        "lipschitz_sampled": slopes.sampled,
        "gradient_norm": {
            "mean": norms.mean().item(),
            "quantiles": {
                f"{level:g}": value
                for level, value in zip(
                    levels.tolist(), torch.quantile(norms, levels).tolist(), strict=True
                )
            },
        },
        "steps": steps,
        "stopped": stopped.reason if stopped else None,
        "converged": off <= MAX_APART,
        "seconds": time.perf_counter() - started,
    }
    report = {"verdict": verdict(report, names or column_names(a.shape[1:])), **report}
    return Fitted(report, lambda points: units.gradient(critic, points))
