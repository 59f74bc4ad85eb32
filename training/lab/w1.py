"""The Wasserstein-1 distance between two sets of samples, by critics fitted for that alone."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from models.config import constraint_class
from models.constraints import Bjorck, Constraint, GradientPenalty, LipschitzPenalty, NoConstraint
from models.errors import DataError
from models.lipschitz import certify, gradient_norms, interpolate, lipschitz_bracket
from models.networks import CriticConfig, Shape, build_critic
from models.networks.cones import Cones
from training.engine.memory import keep_freed_memory
from training.engine.optimisers import update_average
from training.engine.step import CriticStep
from training.judging.metrics import wasserstein_1

Array = np.ndarray
Draw = Callable[[], tuple[Tensor, Tensor]]
"""Gives a batch of A and one of B, ``(batch, *shape)`` each, in the critic's units."""

STEPS = 4000
"""Critic steps by default."""
CONFIDENCE = 0.95
MAX_PLUG_IN_SAMPLES = 2000
"""Samples a side, at most, of the discrete estimate."""
MAX_NORM_POINTS = 4096
"""Points between A and B, at most, where gradient norms are taken."""
VALIDATIONS = 20
"""Times that validation chooses the best critic so far."""
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""
MIN_SAMPLES = 50
"""Fewest samples a side."""
SPLIT = (0.7, 0.1, 0.2)
"""Shares of the samples to fit on, to validate on, and to hold out for the estimate."""


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
def _lower(critic: nn.Module, certified: float, a: Tensor, b: Tensor) -> float:
    """The gap over the certified constant, less what chance may have added to it."""
    scores = [_scores(critic, x) for x in (a, b)]
    error = sum(s.var().item() / len(s) for s in scores) ** 0.5
    gap = (scores[0].mean() - scores[1].mean()).item()
    return float(gap - norm.ppf(CONFIDENCE) * error) / certified


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
    units = _Units(a, b)
    parts = _split(units.to_critic(a), units.to_critic(b), seed)
    fitted, validated, heldout = parts
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
    bounds = lipschitz_bracket(critic, *heldout)
    candidates = [(critic, bounds.certified)]
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
    plug_in, bias, count = _plug_in(a, b, seed)
    report = {
        "w1": units.scale * sum(sides) / 2,
        "lower": max(0.0, units.scale * _lower(best, constant, *heldout)),
        "plug_in": plug_in,
        "plug_in_bias": bias,
        "plug_in_samples": count,
        "lipschitz_certified": bounds.certified,
        "lipschitz_sampled": bounds.sampled,
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


class _Units:
    """Centres the samples and divides them by one number: that keeps W1, but for the number."""

    def __init__(self, a: Array, b: Array) -> None:
        for name, x in (("A", a), ("B", b)):
            if x.ndim not in (2, 3, 4) or x.dtype.kind not in "uif" or len(x) < MIN_SAMPLES:
                raise DataError(
                    f"{name}: needs at least {MIN_SAMPLES} rows of numbers, N x D or images, "
                    f"not {x.dtype} {x.shape}"
                )
            if not np.isfinite(x).all():
                raise DataError(f"{name}: holds NaN or infinite values")
        if a.shape[1:] != b.shape[1:]:
            raise DataError(f"A has items of shape {a.shape[1:]}, B of shape {b.shape[1:]}")
        self.item = a.shape[1:]
        both = np.concatenate([a, b]).astype(np.float64)
        self.offset = torch.from_numpy(both.mean(axis=0)).float()
        spread = float(both.std(axis=0).mean())
        if spread == 0:
            raise DataError("A and B are one and the same point")
        self.scale = spread

    def to_critic(self, samples: Array) -> Tensor:
        x = (torch.from_numpy(np.ascontiguousarray(samples)).float() - self.offset) / self.scale
        if self._is_image:
            return x[:, None] if x.dim() == 3 else x.movedim(-1, 1).contiguous()
        return x.flatten(1)

    @property
    def _is_image(self) -> bool:
        sides = self.item[:2]
        return len(self.item) > 1 and all(8 <= side <= 128 for side in sides)

    def gradient(self, critic: nn.Module, points: Array) -> Array:
        if points.shape[1:] != self.item:
            raise DataError(f"points have shape {points.shape[1:]}, the samples {self.item}")
        parts = []
        exact = copy.deepcopy(critic).double()  # near the tip of a cone a little is much
        for part in torch.split(self.to_critic(points).double(), 1024):
            x = part.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(exact(x).sum(), x)
            if self._is_image:
                gradient = gradient.movedim(1, -1)
            parts.append(gradient.reshape(-1, *self.item))
        # Scores and inputs are divided by one scale, so the gradient has no units.
        return torch.cat(parts).float().numpy()


def _split(a: Tensor, b: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    pieces = []
    for x in (a, b):
        x = x[torch.randperm(len(x), generator=source)]  # noqa: PLW2901
        first, second = round(SPLIT[0] * len(x)), round(sum(SPLIT[:2]) * len(x))
        pieces.append((x[:first], x[first:second], x[second:]))
    return list(zip(*pieces, strict=True))


def sampler(a: Tensor, b: Tensor, batch: int, seed: int) -> Draw:
    """Draw batches of two sets of samples at random, with replacement."""
    source = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        rows = [torch.randint(len(x), (batch,), generator=source) for x in (a, b)]
        return a[rows[0]], b[rows[1]]

    return draw


def _plug_in(a: Array, b: Array, seed: int) -> tuple[float, float, int]:
    """Discrete W1 of the sets, its bias (the mean W1 of two halves of one set), and the samples."""
    rng = np.random.default_rng(seed)
    sets = [x.reshape(len(x), -1).astype(np.float64)[rng.permutation(len(x))] for x in (a, b)]
    count = min(MAX_PLUG_IN_SAMPLES, *(len(x) // 2 for x in sets))
    plug_in = wasserstein_1(sets[0][:count], sets[1][:count])
    floors = [wasserstein_1(x[:count], x[count : 2 * count]) for x in sets]
    return plug_in, sum(floors) / 2, count


def load_samples(path: Path) -> Array:
    """Read an array file of samples.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a .npy file ({str(error).splitlines()[0]})") from None
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path}: holds several arrays; save one with numpy.save")
    return found
