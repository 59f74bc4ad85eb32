"""The consistency term of CT-GAN, on top of the gradient penalty."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from models.constraints.base import adam
from models.constraints.penalty import TargetedPenalty
from models.lipschitz import CriticFunction, score_points


class Consistency(TargetedPenalty):
    """Gradient penalty plus equal scores under dropout on real data (Wei et al. 2018, eqs. 4, 5).

    ``consistency * mean(max(0, (critic'(x) - critic''(x))^2 - margin))`` is added to the two-sided
    penalty; the two forwards of a real x differ by their dropout. The paper also adds a tenth of
    the distance of the last hidden features; a penalty sees scores only and leaves that term out.
    """

    kind: Literal["consistency"] = "consistency"
    consistency: float = Field(default=2.0, gt=0)
    """The paper's lambda_2."""
    margin: float = Field(default=0.0, ge=0)
    """The paper's M', in squared score units."""

    needs_dropout = True
    guarantee = (
        "The gradient norm is drawn to the target at the sampled points, and scores of real "
        "samples hardly change under dropout; slopes elsewhere are not limited."
    )
    published = adam(learning_rate=2e-4, betas=(0.5, 0.9), num_critic_steps=5)

    def term(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the class's formula."""
        slopes = super().term(critic, real, fake)
        difference = score_points(critic, real) - score_points(critic, real)
        return slopes + self.consistency * (difference.square() - self.margin).clamp_min(0).mean()
