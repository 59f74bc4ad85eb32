"""The gradient penalty around real data of DRAGAN."""

from typing import Any, ClassVar, Literal

from torch import Tensor

from models.constraints.penalty import TargetedPenalty, Where
from models.lipschitz import CriticFunction


class Dragan(TargetedPenalty):
    """Pull the gradient norm to a target around real samples (Kodali et al. 2017, section 2.3).

    The penalty is ``strength * mean((|grad critic(x + d)| - target)^2)`` over real samples x and
    noise d, normal with a standard deviation of ``spread`` times that of the batch.
    """

    kind: Literal["dragan"] = "dragan"
    where: Where = "around_real"

    guarantee: ClassVar[str] = (
        "The gradient norm is drawn to the target near real samples; nothing is certified "
        "elsewhere, and the way from fake to real is not looked at."
    )
    published: ClassVar[dict[str, Any]] = {
        "optimizer": "adam",
        "learning_rate": 2e-4,
        "betas": (0.5, 0.999),
        "num_critic_steps": 1,
    }

    def term(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the class's formula."""
        return self.strength * (self.norms(critic, real, fake) - self.target).square().mean()
