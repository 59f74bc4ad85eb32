"""Optimisers, the learning rate of each step, and moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from models.training import TrainingConfig


def make_optimizer(
    settings: TrainingConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the optimiser that ``training.optimizer`` names, for one network or a stack of them.

    It runs few kernels for all parameters together where torch has such: Adam's own, on a GPU also
    RMSprop's.
    """
    parameters = list(parameters)
    if settings.optimizer == "rmsprop":
        together = parameters[0].is_cuda
        return torch.optim.RMSprop(parameters, settings.learning_rate, foreach=together)
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


def average_weight(decay: float, step: int) -> float:
    """The share of the new values in a moving average of weights.

    Args:
        decay: how much of the old average is kept. Early on it is less, ``(1 + step) / (10 +
            step)``, so that the average soon forgets the initial weights.
        step: steps done before this one.
    """
    return 1 - min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(
    averages: Sequence[Tensor], values: Sequence[Tensor], weight: float | Tensor
) -> None:
    """Move an exponential average of tensors, in place, towards their values after a step.

    Args:
        averages: tensors to change.
        values: what each one averages, of the same shape.
        weight: see `average_weight`; a scalar tensor where a CUDA graph is to read it anew in each
            replay.
    """
    pairs = list(zip(averages, values, strict=True))
    for average, value in pairs:
        if not average.is_floating_point():  # batch normalisation's count of batches
            average.copy_(value)
    pairs = [pair for pair in pairs if pair[0].is_floating_point()]
    means, news = [mean for mean, _ in pairs], [new for _, new in pairs]
    if isinstance(weight, Tensor):  # torch's lerp for lists takes numbers only
        changes = torch._foreach_sub(news, means)
        torch._foreach_mul_(changes, weight)
        torch._foreach_add_(means, changes)
    else:
        torch._foreach_lerp_(means, news, weight)
