"""The base classes of penalties: sampled points, strength, and lazy evaluation."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.constraints.base import Constraint
from models.constraints.batch import batch_std
from models.lipschitz import CriticFunction, gradient_norms, interpolate

Where = Literal["between", "real", "fake", "both", "around_real"]


class Penalty(Constraint):
    """A term added to the critic's loss; a subclass computes it in `term`.

    Works with any critic, also without `before_training`:

    >>> import torch
    >>> from models.constraints import GradientPenalty
    >>> real, fake = torch.ones(8, 2), torch.zeros(8, 2)
    >>> GradientPenalty(strength=10).penalty(lambda x: 3 * x[:, :1], real, fake)  # 10 * (3 - 1)^2
    tensor(40.)
    """

    strength: float = Field(default=10.0, gt=0)
    """Factor of the term, in score units; the papers' lambda."""
    every: int = Field(default=1, ge=1)
    """Lazy evaluation: the term is computed once in this many critic steps, and then multiplied by
    their number (Karras et al. 2020, appendix B)."""
    rescale_adam: bool = Field(default=False, exclude_if=lambda it: not it)
    """Rescale the critic's Adam for lazy evaluation, as that appendix does: with
    ``c = every / (every + 1)`` its learning rate times c, and its betas to the power of c. Written
    if it is set."""
    where: Where = "between"
    """Points at which the critic is penalised: one on each segment from real to fake, the real
    samples, the fake ones, both, or the real ones with Gaussian noise added."""
    spread: float = Field(default=0.5, gt=0)
    """Standard deviation of that noise, in standard deviations of the batch of real samples."""

    per_sample = True

    @model_validator(mode="after")
    def _it_is_rescaled_for_something(self) -> Self:
        if self.rescale_adam and self.every == 1:
            raise ValueError("rescale_adam: is for lazy evaluation; set every above 1, or leave it")
        return self

    @property
    def adam_scale(self) -> float:
        """See `Constraint.adam_scale`."""
        return self.every / (self.every + 1) if self.rescale_adam else 1.0

    def penalty(
        self, critic: CriticFunction, real: Tensor, fake: Tensor, step: int = 0
    ) -> Tensor | None:
        """Compute the term; None in a step that lazy evaluation skips. See `Constraint.penalty`."""
        return self.every * self.term(critic, real, fake) if self.penalised(step) else None

    def penalised(self, step: int) -> bool:
        """Return True if the term is computed in this step."""
        return step % self.every == 0

    def mixes_samples(self) -> str | None:
        """See `Constraint.mixes_samples`."""
        if self.where == "around_real":
            return "its noise is as wide as the batch's spread"
        return None

    def term(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the penalty of one step, with its strength and without lazy evaluation."""
        raise NotImplementedError

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """Draw the points that ``where`` names, detached: ``(N, *shape)``; ``both`` gives 2 N."""
        real, fake = real.detach(), fake.detach()
        if self.where == "between":
            return interpolate(real, fake)
        if self.where == "around_real":
            return real + self.spread * batch_std(real) * torch.randn_like(real)
        return {"real": real, "fake": fake, "both": torch.cat([real, fake])}[self.where]

    def norms(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the gradient norms ``(N,)`` at the points, with a graph for the backward pass."""
        return gradient_norms(critic, self.points(real, fake), create_graph=True)


class TargetedPenalty(Penalty):
    """A penalty on the distance of gradient norms from a target; unless overridden, two-sided."""

    target: float = Field(default=1.0, gt=0)
    """The gradient norm aimed at; for one-sided penalties, the norm above which they act."""

    @property
    def target_slope(self) -> float:
        """See `Constraint.target_slope`."""
        return self.target

    def term(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Compute ``strength * mean((|grad critic(x)| - target)^2)``."""
        return self.strength * (self.norms(critic, real, fake) - self.target).square().mean()
