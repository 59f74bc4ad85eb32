"""The penalty on the steepest sample of Lipschitz GANs."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from models.constraints.batch import batch_max
from models.constraints.penalty import Penalty
from models.lipschitz import CriticFunction


class MaxGradientPenalty(Penalty):
    """Push down the largest gradient norm of the batch (Zhou et al. 2019, MaxGP, section 4.1).

    The penalty is ``strength * max(0, max_x |grad critic(x)| - target)^2``. With the paper's target
    of 0 the critic settles at the slope where gap and penalty balance. That slope is not 1, so the
    gap must be divided by it.
    """

    kind: Literal["max_gradient_penalty"] = "max_gradient_penalty"
    target: float = Field(default=0.0, ge=0)
    """The gradient norm above which the steepest sample is penalised."""

    guarantee = (
        "The steepest sampled point's gradient norm is pushed down to a finite slope that is not "
        "1 (with target 0); slopes elsewhere are not limited."
    )

    @property
    def target_slope(self) -> float | None:
        """See `Constraint.target_slope`."""
        return self.target or None

    def mixes_samples(self) -> str:
        """See `Constraint.mixes_samples`."""
        return "only the steepest sample of a batch is penalised"

    def needs_whole_batch(self) -> str:
        """See `Constraint.needs_whole_batch`."""
        return self.mixes_samples()

    def term(self, critic: CriticFunction, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the class's formula."""
        steepest = batch_max(self.norms(critic, real, fake))
        return self.strength * (steepest - self.target).clamp_min(0).square()
