"""Adversarial Lipschitz regularisation."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.constraints.base import adam
from models.constraints.penalty import TargetedPenalty, Where
from models.lipschitz import CriticFunction, score_points


class AdversarialLipschitz(TargetedPenalty):
    """Penalise slopes above a target towards an adversarial neighbour (Terjek 2020, eqs. 13 to 17).

    The penalty is ``strength * mean(max(0, |critic(x) - critic(x + r)| / |r| - target)^2)``. The
    direction of r is that in which the score changes most, found by power iterations from a
    random start; its length is uniform. No second derivative is needed.
    """

    kind: Literal["adversarial_lipschitz"] = "adversarial_lipschitz"
    strength: float = Field(default=100.0, gt=0)
    where: Where = "both"
    iterations: int = Field(default=1, ge=1)
    """Number of power iterations that search for r; the paper's k."""
    probe: float = Field(default=10.0, gt=0)
    """Length of the step at which the search measures the slope, in input units; the paper's xi."""
    shortest: float = Field(default=0.1, gt=0)
    longest: float = Field(default=10.0, gt=0)
    """Bounds of the length of r, in input units; these are the paper's, for images."""

    guarantee = (
        "Slopes from the sampled points to their adversarial neighbours are pushed down to the "
        "target; slopes elsewhere are not limited."
    )
    published = adam(learning_rate=2e-4, betas=(0.0, 0.9), num_critic_steps=5)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.longest < self.shortest:
            raise ValueError("longest: must not be below shortest")
        return self

    def term(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the class's formula."""
        points = self.points(real, fake)
        drawn = torch.rand(len(points), dtype=points.dtype, device=points.device)
        length = self.shortest + (self.longest - self.shortest) * drawn
        step = _per_sample(length, points) * self._direction(critic, points)
        change = (score_points(critic, points) - score_points(critic, points + step)).abs()
        slopes = change / torch.linalg.vector_norm(step.flatten(1), dim=1)
        return self.strength * (slopes - self.target).clamp_min(0).square().mean()

    def _direction(self, critic: CriticFunction, points: Tensor) -> Tensor:
        direction = _unit(torch.randn_like(points))
        for _ in range(self.iterations):
            step = (self.probe * direction).requires_grad_()
            change = (score_points(critic, points) - score_points(critic, points + step)).abs()
            (steepest,) = torch.autograd.grad(change.sum(), step)
            flat = steepest.flatten(1).abs().amax(dim=1) == 0  # no slope seen: keep the direction
            direction = torch.where(_per_sample(flat, points), direction, _unit(steepest))
        return direction


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.flatten(1), dim=1).view_as(vectors)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
