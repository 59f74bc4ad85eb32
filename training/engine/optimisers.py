"""Optimisers, the learning rate of each step, and moving averages of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.config import Config
from models.training import TrainingConfig

Betas = tuple[float, float]


class OptimisticAdam(torch.optim.Adam):
    """Adam with optimism: Daskalakis et al. 2018, algorithm 1, in which u is Adam's step.

    ``w_t = w_(t-1) - 2 rate u_t + rate u_(t-1)``, and u_0 is zero. So the weights lie one step
    ahead of where Adam itself is, in the direction of its last step, and gradients are taken there.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step. See `torch.optim.Adam.step`."""
        weights = _with_gradients(self)
        if not weights:
            return
        ahead = [
            state["ahead"] if (state := self.state[w]) else torch.zeros_like(w) for w in weights
        ]
        torch._foreach_sub_(weights, ahead)
        before = [w.clone() for w in weights]
        super().step(closure)
        for weight, old, lead in zip(weights, before, ahead, strict=True):
            self.state[weight]["ahead"] = torch.sub(weight, old, out=lead)
        torch._foreach_add_(weights, ahead)


class ExtraAdam(torch.optim.Adam):
    """Adam with extrapolation: Gidel et al. 2019, algorithm 4, option 1.

    Its first, third, fifth, ... steps look ahead; each of the others goes back to where that look
    began, and makes its step from there, with the gradient that was found ahead. Moments take
    every gradient.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step. See `torch.optim.Adam.step`."""
        weights = _with_gradients(self)
        if not weights:
            return
        # Chosen on the device: a CUDA graph is the same for both kinds of step.
        begins = [
            torch.where(state["step"] % 2 == 0, w, state["begin"])
            if (state := self.state[w])
            else w.clone()
            for w in weights
        ]
        torch._foreach_copy_(weights, begins)
        super().step(closure)
        for weight, begin in zip(weights, begins, strict=True):
            self.state[weight].setdefault("begin", begin).copy_(begin)


def _with_gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    (group,) = optimizer.param_groups
    return [weight for weight in group["params"] if weight.grad is not None]


def _rmsprop(weights: list[nn.Parameter], rate: float, betas: Betas) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(weights, rate, foreach=weights[0].is_cuda)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float, Betas], torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "optimistic_adam": partial(OptimisticAdam, fused=True),
    "extragradient": partial(ExtraAdam, fused=True),
    "rmsprop": _rmsprop,
}
"""What makes each ``training.optimizer``, of parameters, a learning rate and betas. They run few
kernels for all parameters together where torch has such: Adam's own, on a GPU also RMSprop's."""


def make_optimizers(
    config: Config, generator: Iterable[nn.Parameter], critic: Iterable[nn.Parameter]
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Make the optimisers of a generator and its critic, or of stacks of them.

    Args:
        config: the run's.
        generator: the generator's parameters.
        critic: the critic's.
    """
    settings, scale = config.training, config.constraint.adam_scale
    make, (first, second) = OPTIMIZERS[settings.optimizer], settings.betas
    rate = settings.critic_learning_rate or settings.learning_rate
    return (
        make(list(generator), settings.learning_rate, settings.betas),
        make(list(critic), scale * rate, (first**scale, second**scale)),
    )


def cosine(step: float, steps: float) -> float:
    """The height of a cosine that falls from 1 to 0 in so many steps."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def learning_rate(settings: TrainingConfig, step: int, initial: float) -> float:
    """The rate of a generator step: constant, then falling to zero at the end.

    Args:
        settings: say when it begins to fall, and how it falls.
        step: generator steps done before.
        initial: the rate of the first step.
    """
    start = settings.decay_from * settings.steps
    if step < start:
        return initial
    if settings.schedule == "cosine":
        return initial * cosine(step - start, settings.steps - start)
    return initial * (settings.steps - step) / (settings.steps - start)


def set_learning_rates(
    settings: TrainingConfig, step: int, *optimizers: torch.optim.Optimizer
) -> None:
    """Give optimisers their rates of a generator step."""
    for optimizer in optimizers:
        (group,) = optimizer.param_groups
        group["lr"] = learning_rate(settings, step, optimizer.defaults["lr"])


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
