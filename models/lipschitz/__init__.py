"""Steepness of a critic: gradient norms at samples, a certified bound, a slope found by ascent."""

from models.lipschitz.bracket import (
    ASCENT_STARTS,
    ASCENT_STEPS,
    LipschitzBounds,
    lipschitz_bracket,
    steepest_slope,
)
from models.lipschitz.certificate import certify
from models.lipschitz.gradients import (
    CriticFunction,
    NormSummary,
    Place,
    gradient_norm_summary,
    gradient_norms,
    interpolate,
    score_points,
)
from models.lipschitz.operators import (
    Layer,
    NoBoundError,
    from_phases,
    kernel_norm,
    operator_norm,
    to_phases,
)
from models.lipschitz.signals import LayerSignal, layer_signals

__all__ = [
    "ASCENT_STARTS",
    "ASCENT_STEPS",
    "CriticFunction",
    "Layer",
    "LayerSignal",
    "LipschitzBounds",
    "NoBoundError",
    "NormSummary",
    "Place",
    "certify",
    "from_phases",
    "gradient_norm_summary",
    "gradient_norms",
    "interpolate",
    "kernel_norm",
    "layer_signals",
    "lipschitz_bracket",
    "operator_norm",
    "score_points",
    "steepest_slope",
    "to_phases",
]
