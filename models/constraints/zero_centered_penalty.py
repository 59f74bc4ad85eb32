"""Zero-centred gradient penalties: R1 and R2."""

from typing import Literal

from torch import Tensor

from models.constraints.base import rmsprop
from models.constraints.penalty import Penalty, Where
from models.lipschitz import CriticFunction


class ZeroCenteredPenalty(Penalty):
    """Push all gradients down: R1 on real samples, R2 on fake (Mescheder et al. 2018, eqs. 9, 10).

    The penalty is ``strength / 2 * mean(|grad critic(x)|^2)`` over real samples (R1), fake ones
    (R2), or both. For both, the mean runs over all samples, so it is half the sum of R1 and R2.
    """

    kind: Literal["zero_centered_penalty"] = "zero_centered_penalty"
    where: Where = "real"

    takes_groups = True  # it asks for no slope of 1; StyleGAN2's critic has R1 and these statistics
    guarantee = (
        "Gradients shrink at the sampled points (by default the real ones), which makes the "
        "equilibrium stable; the slope settles anywhere, and none is limited."
    )
    published = rmsprop(learning_rate=1e-4, num_critic_steps=1)

    @property
    def target_slope(self) -> None:
        """See `Constraint.target_slope`."""
        return None

    def term(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the class's formula."""
        return self.strength / 2 * self.norms(critic, real, fake).square().mean()
