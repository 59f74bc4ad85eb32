"""The two-sided gradient penalty of WGAN-GP."""

from typing import Literal

from models.constraints.penalty import TargetedPenalty


class GradientPenalty(TargetedPenalty):
    """Pull the gradient norm to a target between real and fake (Gulrajani et al. 2017, eq. 3).

    The penalty is ``strength * mean((|grad critic(x)| - target)^2)`` over points x drawn
    uniformly on segments from a real to a fake sample.
    """

    kind: Literal["gradient_penalty"] = "gradient_penalty"

    guarantee = (
        "The gradient norm is drawn to the target at the sampled points (by default on segments "
        "between real and fake); slopes elsewhere are not limited."
    )
