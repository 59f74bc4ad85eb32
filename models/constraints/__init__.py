"""Critic constraints, each usable in any training loop; see `Constraint`.

To add one: write its file, and add its class to the union here.
"""

from typing import Annotated, get_args

from pydantic import Field

from models.constraints.adversarial_lipschitz import AdversarialLipschitz
from models.constraints.aol import AlmostOrthogonal
from models.constraints.base import Constraint
from models.constraints.bjorck import Bjorck
from models.constraints.cayley import Cayley
from models.constraints.consistency import Consistency
from models.constraints.dragan import Dragan
from models.constraints.gradient_normalization import GradientNormalization
from models.constraints.gradient_penalty import GradientPenalty
from models.constraints.lipschitz_penalty import LipschitzPenalty
from models.constraints.max_gradient_penalty import MaxGradientPenalty
from models.constraints.none import NoConstraint
from models.constraints.norm_clipping import NormClipping
from models.constraints.sandwich import Sandwich
from models.constraints.spectral_norm import SpectralNorm
from models.constraints.spectral_projection import SpectralProjection
from models.constraints.weight_clipping import WeightClipping
from models.constraints.weight_decay import WeightDecay
from models.constraints.weight_normalization import WeightNormalization
from models.constraints.zero_centered_penalty import ZeroCenteredPenalty

AnyConstraint = Annotated[
    NoConstraint
    | WeightClipping
    | NormClipping
    | WeightNormalization
    | WeightDecay
    | GradientPenalty
    | LipschitzPenalty
    | MaxGradientPenalty
    | ZeroCenteredPenalty
    | Dragan
    | Consistency
    | AdversarialLipschitz
    | SpectralNorm
    | SpectralProjection
    | Bjorck
    | AlmostOrthogonal
    | Cayley
    | Sandwich
    | GradientNormalization,
    Field(discriminator="kind"),
]
CONSTRAINTS: dict[str, type[AnyConstraint]] = {
    constraint.model_fields["kind"].default: constraint
    for constraint in get_args(get_args(AnyConstraint)[0])
}
"""Class of each kind."""

__all__ = [
    "CONSTRAINTS",
    "AdversarialLipschitz",
    "AlmostOrthogonal",
    "AnyConstraint",
    "Bjorck",
    "Cayley",
    "Consistency",
    "Constraint",
    "Dragan",
    "GradientNormalization",
    "GradientPenalty",
    "LipschitzPenalty",
    "MaxGradientPenalty",
    "NoConstraint",
    "NormClipping",
    "Sandwich",
    "SpectralNorm",
    "SpectralProjection",
    "WeightClipping",
    "WeightDecay",
    "WeightNormalization",
    "ZeroCenteredPenalty",
]
