"""A critic fitted to two sets of samples, and how many steps that takes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from models.constraints import Bjorck, Cayley, Constraint, NoConstraint, Sandwich
from models.networks import CriticConfig, Shape, build_critic
from models.networks.cones import Cones
from training.engine.memory import keep_freed_memory
from training.engine.optimisers import average_weight, cosine, update_average
from training.engine.step import CriticStep
from training.lab.samples import Draw
from training.progress import track

VALIDATIONS = 20
"""Times that validation chooses the best critic so far."""
RATES: dict[type[Constraint], float] = {Bjorck: 5e-3, Cayley: 1e-2, Sandwich: 1e-2}
"""Learning rates of constraints that certify a slope of 1; of others it is 0.002."""
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
    tight = isinstance(constraint, Bjorck | Cayley)
    settings: dict[str, Any] = {"architecture": "mlp", "width": 128, "depth": 3}
    settings["activation"] = next(iter(constraint.activations), "groupsort" if tight else "abs")
    if len(shape) == 3:
        settings |= {"architecture": "dcgan", "width": 32}
    critic = CriticConfig(
        **settings,
        dropout=0.1 if constraint.needs_dropout else 0.0,
    )
    return Recipe(constraint, critic, RATES.get(type(constraint), 2e-3))


def fit(
    draw: Draw,
    shape: Shape,
    recipe: Recipe,
    steps: int,
    seed: int,
    objective: Callable[[nn.Module], float] | None = None,
    device: torch.device | None = None,
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
        device: where the batches are; None: a CPU.

    Returns:
        The critic, in eval mode.
    """
    keep_freed_memory()
    torch.manual_seed(seed)
    constraint = recipe.constraint
    network = build_critic(recipe.critic, shape) if recipe.critic else Cones.between(*draw())
    critic = constraint.before_training(network.to(device))
    optimizer = torch.optim.Adam(
        critic.parameters(), recipe.learning_rate, recipe.betas, fused=True
    )
    # Replaying a captured step saves a third of the time for dense layers, and none for others.
    mode = "auto" if recipe.critic and recipe.critic.architecture == "mlp" else "eager"
    find_gradients = CriticStep(mode, critic, constraint, say=warnings.warn)
    average = copy.deepcopy(critic).requires_grad_(False).eval()
    validations = {round(steps * (i + 1) / VALIDATIONS) for i in range(VALIDATIONS)}
    splits = {round(steps * (i + 1) / (2 * recipe.splits)) for i in range(recipe.splits)}
    best, best_state = -math.inf, average.state_dict()
    for step in track(range(steps), "critic steps"):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * _rate(recipe, step, steps)
        find_gradients(*draw(), [], step)
        optimizer.step()
        constraint.after_critic_step(critic)
        if step + 1 in splits and isinstance(critic, Cones) and isinstance(average, Cones):
            critic.split(torch.cat(draw()), average)
        weight = average_weight(recipe.average, step)
        update_average(list(average.parameters()), list(critic.parameters()), weight)
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
    return min(1, (step + 1) / (WARM_UP * steps)) * cosine(step, steps)
