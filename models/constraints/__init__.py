"""Critic constraints. To add one: write its file and add its class to the union here."""

from typing import Annotated

from pydantic import Field

from models.constraints.base import Constraint
from models.constraints.gradient_penalty import GradientPenalty
from models.constraints.lipschitz_penalty import LipschitzPenalty
from models.constraints.none import NoConstraint
from models.constraints.spectral_norm import SpectralNorm
from models.constraints.weight_clipping import WeightClipping

AnyConstraint = Annotated[
    NoConstraint | WeightClipping | GradientPenalty | LipschitzPenalty | SpectralNorm,
    Field(discriminator="kind"),
]

__all__ = [
    "AnyConstraint",
    "Constraint",
    "GradientPenalty",
    "LipschitzPenalty",
    "NoConstraint",
    "SpectralNorm",
    "WeightClipping",
]
