"""What penalties share: where they look, how often, and how much they count."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.constraints.base import Constraint
from models.constraints.batch import batch_std
from models.lipschitz import CriticFunction, gradient_norms, interpolate

Where = Literal["between", "real", "fake", "both", "around_real"]


class Penalty(Constraint):
    """A term added to the critic's loss; a subclass gives `term`."""

    strength: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """The paper's lambda, in score units."""
    every: int = Field(default=1, ge=1)
    """Lazy: the term is computed each so many critic steps, and then counts as many times over
    (Karras et al. 2020, appendix B)."""
    where: Where = "between"
    """The points looked at: one on each segment from real to fake, the real samples, the fake
    ones, both, or the real ones moved by Gaussian noise."""
    spread: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Standard deviation of that noise, in standard deviations of the batch of real samples."""

    per_sample: ClassVar[bool] = True

    def penalty(
        self, critic: CriticFunction, real: Tensor, fake: Tensor, step: int = 0
    ) -> Tensor | None:
        """See `Constraint.penalty`: the term, or None in a lazy step."""
        return self.every * self.term(critic, real, fake) if self.penalised(step) else None

    def penalised(self, step: int) -> bool:
        """Whether the term is computed in this step."""
        return step % self.every == 0

    def term(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty, strength included, if it were computed at each step."""
        raise NotImplementedError

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """The points that ``where`` names, detached: ``(N, *shape)``, or twice as many of both."""
        real, fake = real.detach(), fake.detach()
        if self.where == "between":
            return interpolate(real, fake)
        if self.where == "around_real":
            return real + self.spread * batch_std(real) * torch.randn_like(real)
        return {"real": real, "fake": fake, "both": torch.cat([real, fake])}[self.where]

    def norms(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Gradient norms ``(N,)`` at the points, to be back-propagated through."""
        return gradient_norms(critic, self.points(real, fake), create_graph=True)


class TargetedPenalty(Penalty):
    """A penalty on gradient norms that depends on how far they are from a target."""

    target: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The gradient norm aimed at, or above which the critic pays."""
