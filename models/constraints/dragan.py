"""The gradient penalty around real data of DRAGAN."""

from typing import Literal

from models.constraints.base import adam
from models.constraints.penalty import TargetedPenalty, Where


class Dragan(TargetedPenalty):
    """Pull the gradient norm to a target around real samples (Kodali et al. 2017, section 2.3).

    The penalty is ``strength * mean((|grad critic(x + d)| - target)^2)`` over real samples x and
    noise d, normal with a standard deviation of ``spread`` times that of the batch.
    """

    kind: Literal["dragan"] = "dragan"
    where: Where = "around_real"

    guarantee = (
        "The gradient norm is drawn to the target near real samples; slopes elsewhere are not "
        "limited, and the way from fake to real is not looked at."
    )
    published = adam(learning_rate=2e-4, betas=(0.5, 0.999), num_critic_steps=1)
