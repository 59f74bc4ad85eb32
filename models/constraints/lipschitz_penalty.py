"""The one-sided penalty of WGAN-LP."""

from typing import Literal

from torch import Tensor

from models.constraints.penalty import TargetedPenalty
from models.lipschitz import CriticFunction


class LipschitzPenalty(TargetedPenalty):
    """Push down gradient norms above a target, and leave others alone (Petzka et al. 2018, eq. 8).

    The penalty is ``strength * mean(max(0, |grad critic(x)| - target)^2)`` over points x drawn
    uniformly on segments from a real to a fake sample. The optimal critic's gradient norm may be
    below 1 on them; the two-sided penalty punishes that, this one does not.
    """

    kind: Literal["lipschitz_penalty"] = "lipschitz_penalty"

    guarantee = (
        "Gradient norms above the target are pushed down at the sampled points (by default on "
        "segments between real and fake); slopes elsewhere are not limited."
    )

    def term(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the class's formula."""
        excess = (self.norms(critic, real, fake) - self.target).clamp_min(0)
        return self.strength * excess.square().mean()
