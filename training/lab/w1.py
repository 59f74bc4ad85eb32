"""The Wasserstein-1 distance between two sets of samples, by critics fitted for that alone."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from models.config import constraint_class
from models.constraints import Bjorck, Constraint, GradientPenalty, LipschitzPenalty, NoConstraint
from models.lipschitz import certify, gradient_norms, interpolate, lipschitz_bracket
from models.networks import CriticConfig, Shape, build_critic
from models.networks.cones import Cones
from training.engine.memory import keep_freed_memory
from training.engine.optimisers import update_average
from training.engine.step import CriticStep
from training.lab import bounds
from training.lab.samples import (
    Draw,
    Units,
    discrete,
    plug_in_estimate,
    repeats,
    require_samples,
    sampler,
    split,
    tail_share,
    without_repeats,
)

Array = np.ndarray

STEPS = 4000
"""Critic steps by default."""
CONFIDENCE = 0.95
MAX_APART = 0.1
"""Largest difference of the estimates by fitted and by unseen samples, relative to their mean, of a
fit that has converged."""
HEAVY_TAIL = 0.25
"""A tail farther away than this share of the sum of all distances decides too much of W1."""
MAX_NORM_POINTS = 4096
"""Points between A and B, at most, where gradient norms are taken."""
VALIDATIONS = 20
"""Times that validation chooses the best critic so far."""
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""


class Recipe(NamedTuple):
    """Settings of a fit. docs/w1.md has the measurements behind the defaults."""

    constraint: Constraint
    critic: CriticConfig | None
    """None: an envelope of `Cones`, which needs no constraint."""
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    average: float = 0.998
    """Decay a step of the weights' moving average, which is the critic that `fit` returns."""
    cosine: bool = True
    """True: the learning rate falls to zero along a cosine; False: it stays."""
    splits: int = 10
    """Times, in the first half of the steps, that idle cones get something to do."""


def default_recipe(shape: Shape, constraint: Constraint | None = None) -> Recipe:
    """The settings found best for a constraint; without one, those found best of all: cones."""
    if constraint is None:
        return Recipe(NoConstraint(), None, 1e-2, average=0.99)
    tight = isinstance(constraint, Bjorck)
    settings: dict[str, Any] = {"architecture": "mlp", "width": 128, "depth": 3}
    settings["activation"] = "groupsort" if tight else "abs"
    if len(shape) == 3:
        settings |= {"architecture": "dcgan", "width": 32}
    critic = CriticConfig(
        **settings,
        dropout=0.1 if constraint.needs_dropout else 0.0,
    )
    return Recipe(constraint, critic, 5e-3 if tight else 2e-3)


def fit(
    draw: Draw,
    shape: Shape,
    recipe: Recipe,
    steps: int,
    seed: int,
    objective: Callable[[nn.Module], float] | None = None,
) -> nn.Module:
    """Fit a critic whose scores are larger on A than on B.

    The optimiser is Adam with a short rise and a cosine fall of the rate. The critic returned is
    a moving average of the weights, brought back under the constraint.

    Args:
        draw: gives the batches.
        shape: shape of one item.
        recipe: constraint, network and schedule.
        steps: critic steps.
        seed: for the initial weights and the points that a penalty draws.
        objective: asked `VALIDATIONS` times on the way; the critic with the largest value is
            returned. Without it the last one is.

    Returns:
        The critic, in eval mode.
    """
    keep_freed_memory()
    torch.manual_seed(seed)
    constraint = recipe.constraint
    network = build_critic(recipe.critic, shape) if recipe.critic else Cones.between(*draw())
    critic = constraint.before_training(network)
    optimizer = torch.optim.Adam(
        critic.parameters(), recipe.learning_rate, recipe.betas, fused=True
    )
    # Replaying a captured step saves a third of the time for dense layers, and none for others.
    mode = "auto" if recipe.critic and recipe.critic.architecture == "mlp" else "eager"
    find_gradients = CriticStep(mode, critic, constraint, steps, say=warnings.warn)
    average = copy.deepcopy(critic).requires_grad_(False).eval()
    validations = {round(steps * (i + 1) / VALIDATIONS) for i in range(VALIDATIONS)}
    splits = {round(steps * (i + 1) / (2 * recipe.splits)) for i in range(recipe.splits)}
    best, best_state = -math.inf, average.state_dict()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * _rate(recipe, step, steps)
        find_gradients(*draw(), [], step)
        optimizer.step()
        constraint.after_critic_step(critic)
        if step + 1 in splits and isinstance(critic, Cones) and isinstance(average, Cones):
            critic.split(torch.cat(draw()), average)
        update_average(average.parameters(), critic.parameters(), recipe.average, step)
        for buffer, now in zip(average.buffers(), critic.buffers(), strict=True):
            buffer.copy_(now)
        if step + 1 == steps or (objective and step + 1 in validations):
            candidate = copy.deepcopy(average)
            constraint.after_critic_step(candidate)
            value = objective(candidate) if objective else 0.0
            if value > best:
                best, best_state = value, candidate.state_dict()
    average.load_state_dict(best_state)
    return average


def _rate(recipe: Recipe, step: int, steps: int) -> float:
    if not recipe.cosine:
        return 1.0
    return min(1, (step + 1) / (WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


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
        penalty = constraint.term(critic, a[:count], b[:count]).item()
        return (gap - 2 * penalty) / constraint.target
    if isinstance(critic, Cones):
        return gap
    sampled = lipschitz_bracket(critic, a, b).sampled
    return gap / float(sampled)  # type: ignore[arg-type]


@torch.no_grad()
def _gap(critic: nn.Module, a: Tensor, b: Tensor) -> float:
    scores = [_scores(critic, x) for x in (a, b)]
    return (scores[0].mean() - scores[1].mean()).item()


def _scores(critic: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([critic(part) for part in torch.split(x, 1024)]).double()


@torch.no_grad()
def _exact_scores(critic: nn.Module, x: Tensor) -> Array:
    """Score in float64, for rounding must not make a bound larger than it is."""
    return _scores(copy.deepcopy(critic).double(), x).numpy()


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
    critic: nn.Module, certified: float, parts: Sequence[tuple[Tensor, Tensor]], seed: int
) -> _HeldOut:
    """Bound W1 and test for a difference by a critic's scores of samples that it never saw.

    Args:
        critic: fitted to and chosen by the first two parts.
        certified: its Lipschitz constant at most.
        parts: A and B fitted to, validated on and held out, float64.
        seed: for the orders of bets and the permutations.
    """
    known = [_exact_scores(critic, torch.cat(pair)) for pair in zip(*parts[:2], strict=True)]
    a, b = (_exact_scores(critic, x) for x in parts[2])
    rng, both_sides = np.random.default_rng(seed), (1 + CONFIDENCE) / 2
    clip = bounds.choose_clip(known[0], known[1], min(len(a), len(b)), CONFIDENCE)
    lower = bounds.gap_lower_bound(a, b, clip, CONFIDENCE, rng)
    p_value = bounds.permutation_p_value(a, b, rng)
    interval_low = bounds.gap_lower_bound(a, b, clip, both_sides, rng)
    every = [np.concatenate(scores) for scores in zip(known, (a, b), strict=True)]
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
    steps: int = STEPS,
    batch_size: int = 512,
) -> Fitted:
    """Estimate W1 between two sets of samples, with the Euclidean distance, and bound it.

    Args:
        a: ``(N, D)``, or images ``(N, H, W)`` or ``(N, H, W, C)``.
        b: likewise, with as many features.
        kind: the constraint's; by default the one found best.
        seed: for everything random.
        steps: critic steps.
        batch_size: samples from each set in a step.

    Returns:
        The report, and the critic's gradient.

    Raises:
        DataError: the samples do not fit each other, or are too few.
        ConfigError: there is no such constraint.
    """
    started = time.perf_counter()
    require_samples(a, b)
    copies = [repeats(x.reshape(len(x), -1)) for x in (a, b)]
    a, b = (without_repeats(x, times) for x, times in zip((a, b), copies, strict=True))
    parts = split(a, b, seed)
    units = Units(*parts[:2])  # nothing of the critic may depend on the held-out samples
    exact = [(units.to_critic(x), units.to_critic(y)) for x, y in parts]
    fitted, validated, heldout = ((x.float(), y.float()) for x, y in exact)
    shape = tuple(fitted[0].shape[1:])
    recipe = default_recipe(shape, constraint_class(kind)() if kind else None)
    draw = sampler(*fitted, batch_size, seed)

    def objective(recipe: Recipe) -> Callable[[nn.Module], float]:
        def value(critic: nn.Module) -> float:
            count = min(map(len, validated))
            one, other = (x[:count] for x in validated)
            with torch.random.fork_rng(devices=[]):  # the fit goes on with its own numbers
                torch.manual_seed(0)
                penalty = recipe.constraint.penalty(critic, one, other)
            return _gap(critic, *validated) - (0.0 if penalty is None else penalty.item())

        return value

    def fitted_under(recipe: Recipe, steps: int) -> nn.Module:
        return fit(draw, shape, recipe, steps, seed, objective(recipe))

    def best_cones(steps: int) -> nn.Module:
        # With a mere shift, or few samples, fitted cones learn noise: one cone may do better.
        both = fitted_under(default_recipe(shape), steps), Cones.along(*fitted)
        return max(both, key=lambda critic: _gap(critic, *validated))

    critic = fitted_under(recipe, steps) if kind else best_cones(steps)
    slopes = lipschitz_bracket(critic, *heldout)
    candidates = [(critic, slopes.certified)]
    if kind:
        cones = best_cones(max(steps // 2, 1))
        candidates.append((cones, certify(cones)[0]))
    certain = [(c, float(k)) for c, k in candidates if isinstance(k, float)]
    # Chosen by validation, so that the held-out bound holds at its confidence.
    best, constant = max(certain, key=lambda pair: _gap(pair[0], *validated) / pair[1])
    count = min(*map(len, heldout), MAX_NORM_POINTS)
    torch.manual_seed(0)
    norms = gradient_norms(critic, interpolate(*(x[:count] for x in heldout))).double()
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    # Fitting enlarges the gap on its own samples and shrinks it on others: take the mean of both.
    unseen = tuple(torch.cat(pair) for pair in zip(validated, heldout, strict=True))
    sides = [critic_estimate(critic, recipe.constraint, *side) for side in (fitted, unseen)]
    rows = [units.rows(x) for x in (a, b)]
    plug_in, bias, count = plug_in_estimate(rows[0], rows[1], seed)
    w1, heaviest = units.scale * sum(sides) / 2, max(tail_share(x) for x in rows)
    cautions = []
    if heaviest > HEAVY_TAIL:
        cautions.append(
            f"heavy tail: 1% of the samples hold {heaviest:.0%} of all distances from the median, "
            "so W1 depends on a few samples; w1 is the exact distance of the samples themselves"
        )
        w1 = discrete(rows[0], rows[1], seed)
    if max(copies) > 1:
        cautions.append(
            f"each row of A occurs {copies[0]} times and each of B {copies[1]} times; "
            "copies were left out, for they are no further samples"
        )
    held_out = _from_held_out(best, constant, exact, seed)
    apart = abs(sides[0] - sides[1]) / max(sum(sides) / 2, 1e-12)
    if apart > MAX_APART and held_out.p_value <= 1 - CONFIDENCE and heaviest <= HEAVY_TAIL:
        cautions.append(
            f"not converged: the distance is {units.scale * sides[0]:.4g} by the samples that the "
            f"critic was fitted to, and {units.scale * sides[1]:.4g} by others, so w1 may be off "
            f"by {apart:.0%} or more, and is rather too low; more samples or steps bring the two "
            "together"
        )
    # The gap on fitted samples and the exact distance of the samples are too large on average.
    highest = max(units.scale * sides[0], plug_in, w1) + units.scale * held_out.margin
    report = {
        "w1": max(0.0, w1),
        "lower": max(0.0, units.scale * held_out.lower),
        "interval": [max(0.0, units.scale * held_out.interval_low), highest],
        "p_value": held_out.p_value,
        "heldout": [len(x) for x in heldout],
        "cautions": cautions,
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
        "seconds": time.perf_counter() - started,
    }
    return Fitted(report, lambda points: units.gradient(critic, points))
