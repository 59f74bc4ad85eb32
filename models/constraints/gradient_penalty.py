"""The two-sided gradient penalty of WGAN-GP."""

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.lipschitz import gradient_norms, interpolate


class GradientPenalty(Constraint):
    """Pull the gradient norm to a target between real and fake (Gulrajani et al. 2017, eq. 3).

    The penalty is ``strength * mean((|grad critic(x)| - target)^2)`` over points x drawn
    uniformly on segments from a real to a fake sample.
    """

    kind: Literal["gradient_penalty"] = "gradient_penalty"
    strength: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """The paper's lambda, in score units."""
    target: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The gradient norm aimed at."""

    per_sample: ClassVar[bool] = True
    guarantee: ClassVar[str] = (
        "The gradient norm is drawn to the target on the sampled segments between real and fake; "
        "nothing is certified elsewhere."
    )
    published: ClassVar[dict[str, Any]] = {
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "betas": (0.5, 0.9),
        "num_critic_steps": 5,
    }

    def penalty(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """See the class."""
        norms = gradient_norms(critic, interpolate(real, fake), create_graph=True)
        return self.strength * (norms - self.target).square().mean()
