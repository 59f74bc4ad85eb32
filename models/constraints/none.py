"""No constraint: the baseline that the others are compared with."""

from typing import Any, ClassVar, Literal

from models.constraints.base import Constraint


class NoConstraint(Constraint):
    """Leave the critic free: its gap then has no bound and estimates no distance."""

    kind: Literal["none"] = "none"

    guarantee: ClassVar[str] = "None: nothing bounds the critic's slope."
    published: ClassVar[dict[str, Any]] = {
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "betas": (0.5, 0.9),
        "num_critic_steps": 5,
    }
