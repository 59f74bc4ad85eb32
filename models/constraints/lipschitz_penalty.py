"""The one-sided penalty of WGAN-LP."""

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.lipschitz import gradient_norms, interpolate


class LipschitzPenalty(Constraint):
    """Push down gradient norms above a target, and leave others alone (Petzka et al. 2018, eq. 8).

    The penalty is ``strength * mean(max(0, |grad critic(x)| - target)^2)`` over points x drawn
    uniformly on segments from a real to a fake sample. The optimal critic's norm may be below 1
    on them: the two-sided penalty is wrong there, this one is not.
    """

    kind: Literal["lipschitz_penalty"] = "lipschitz_penalty"
    strength: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """The paper's lambda, in score units."""
    target: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The gradient norm above which the critic pays."""

    per_sample: ClassVar[bool] = True
    guarantee: ClassVar[str] = (
        "Gradient norms above the target are pushed down on the sampled segments between real "
        "and fake; nothing is certified elsewhere."
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
        return self.strength * (norms - self.target).clamp_min(0).square().mean()
