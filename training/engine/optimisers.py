"""Optimisers, the learning rate of each step, and moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.config import TrainingConfig


def make_optimizer(
    settings: TrainingConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the optimiser that ``training.optimizer`` names, for one network or a stack of them."""
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, settings.learning_rate)
    return torch.optim.Adam(parameters, settings.learning_rate, settings.betas, fused=True)


def learning_rate(settings: TrainingConfig, step: int) -> float:
    """The rate of a generator step: constant, then falling linearly to zero at the end."""
    start = settings.decay_from * settings.steps
    if step < start:
        return settings.learning_rate
    return settings.learning_rate * (settings.steps - step) / (settings.steps - start)


def set_learning_rate(
    settings: TrainingConfig, step: int, *optimizers: torch.optim.Optimizer
) -> None:
    """Give optimisers the rate of a generator step."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step)


@torch.no_grad()
def update_average(
    averages: Iterable[Tensor], values: Iterable[Tensor], decay: float, step: int
) -> None:
    """Move an exponential average of tensors, in place, towards their values after a step.

    Args:
        averages: tensors to change.
        values: what each one averages, of the same shape.
        decay: how much of the old average is kept. Early on it is less, ``(1 + step) / (10 +
            step)``, so that the average soon forgets the initial weights.
        step: steps done before this one.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for average, value in zip(averages, values, strict=True):
        if average.is_floating_point():
            average.lerp_(value, weight)
        else:  # batch normalisation's count of batches
            average.copy_(value)
