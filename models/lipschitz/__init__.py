"""Steepness of a critic: gradient norms at samples, a certified bound, a slope found by ascent."""

# What other rooms import.
# ruff: noqa: F401
# mypy: implicit-reexport

from models.lipschitz.bracket import (
    ASCENT_STARTS,
    LipschitzBounds,
    lipschitz_bracket,
    steepest_slope,
)
from models.lipschitz.certificate import certify
from models.lipschitz.gradients import (
    CriticFunction,
    gradient_norm_summary,
    gradient_norms,
    interpolate,
    score_points,
)
from models.lipschitz.operators import (
    Layer,
    from_phases,
    kernel_norm,
    operator_norm,
    to_phases,
)
from models.lipschitz.signals import LayerSignal, layer_signals
