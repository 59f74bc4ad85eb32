"""No constraint: the baseline that the others are compared with."""

from typing import Literal

from models.constraints.base import Constraint


class NoConstraint(Constraint):
    """Leave the critic free: its gap then has no bound and estimates no distance."""

    kind: Literal["none"] = "none"

    guarantee = "None: nothing limits the critic's slope in training."
