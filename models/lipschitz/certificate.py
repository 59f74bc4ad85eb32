"""An upper bound of a critic's Lipschitz constant, from its modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from models.lipschitz.operators import ROUNDING, Layer, NoBoundError, kernel_norm, operator_norm
from models.networks import Critic
from models.networks.conditional import ProjectionCritic, WithLabels
from models.networks.cones import Cones
from models.networks.parts import MinibatchStatistics
from models.networks.piecewise import Abs, GroupSort
from models.networks.recurrent import GRU, LSTM, PoolSteps, StepsFirst
from models.networks.skips import InputSkips


def certify(
    critic: nn.Module, layer_norm: Callable[[Layer], float] | None = None
) -> tuple[float | None, str | None]:
    """Bound a critic's Lipschitz constant from above, by the slopes of its modules.

    Slopes multiply along a sequence and add over the branches of a residual block, and where an
    image goes in again. A layer's slope
    is its operator norm, an activation's the steepest it has, batch normalisation's its running
    scale.

    >>> from torch import nn
    >>> critic = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    >>> bound, reason = certify(critic)
    >>> product = math.prod(torch.linalg.matrix_norm(critic[i].weight, 2).item() for i in (0, 2))
    >>> product <= bound < 1.0001 * product, reason
    (True, None)

    Args:
        critic: in eval mode; the arithmetic has its weights' type.
        layer_norm: gives a norm for each dense or convolutional layer, in place of its weights'
            own; for a conditional critic's class vectors, the length of the longest.

    Returns:
        The bound in score units per input unit, and None; or None, and the reason why not.
    """
    try:
        return _slope(critic, layer_norm), None
    except NoBoundError as error:
        return None, str(error)


def _slope(module: nn.Module, norm: Callable[[Layer], float] | None) -> float:
    if isinstance(module, Critic | WithLabels):
        return _slope(module.body if isinstance(module, Critic) else module.critic, norm)
    if isinstance(module, ProjectionCritic | InputSkips):
        return _joined(module, norm)
    if isinstance(module, nn.Sequential):
        return math.prod(_slope(part, norm) for part in module)
    if isinstance(module, Layer):
        return (norm or operator_norm)(module)
    branches = [getattr(module, name, None) for name in ("branch", "shortcut")]
    if all(isinstance(branch, nn.Module) for branch in branches):  # a residual block: their sum
        total = sum(_slope(branch, norm) for branch in branches if branch is not None)
        return total * float(getattr(module, "scale", 1.0))
    for kind, slope in _SLOPES.items():
        if isinstance(module, kind):
            return slope(module)
    reason = getattr(module, "no_lipschitz_bound", None)
    raise NoBoundError(reason or f"no bound is known for {type(module).__name__}")


def _joined(module: ProjectionCritic | InputSkips, norm: Callable[[Layer], float] | None) -> float:
    if isinstance(module, ProjectionCritic):
        return _slope(module.features, norm) * _steepest_head(module, norm)
    steepest = of_image = 1.0  # of the maps, and of the smaller image, by the image itself
    for stage, pool, entry in zip(module.stages, module.pools, module.entries, strict=True):
        of_image *= _slope(pool, norm)
        steepest = steepest * _slope(stage, norm) + of_image * _slope(entry, norm)
    return steepest


def _steepest_head(critic: ProjectionCritic, norm: Callable[[Layer], float] | None) -> float:
    # Each class's vector is added to the head's; the steepest class decides.
    if norm is not None:
        return norm(critic.head) + norm(critic.projection)
    heads = (critic.head.weight + critic.projection.weight.T).detach().double()
    return torch.linalg.vector_norm(heads, dim=1).max().item() * (1 + ROUNDING)


def _batch_norm_slope(module: nn.modules.batchnorm._BatchNorm) -> float:
    if module.running_var is None:
        raise NoBoundError("batch normalisation without running statistics has no fixed slope")
    scale = (module.running_var + module.eps).rsqrt()
    return (scale if module.weight is None else scale * module.weight).abs().max().item()


def _average_pool_slope(module: nn.AvgPool2d) -> float:
    sizes = [
        (value, value) if isinstance(value, int) else value
        for value in (module.kernel_size, module.stride)
    ]
    separate = sizes[0] == sizes[1] and not module.divisor_override
    if module.ceil_mode and separate and module.padding in (0, (0, 0)):
        return 1.0  # windows share no pixel, and the smallest may hold a single one
    if module.ceil_mode or module.divisor_override or module.padding not in (0, (0, 0)):
        raise NoBoundError("no bound is known for an AvgPool2d with unequal windows")
    kernel = torch.full((1, 1, *sizes[0]), 1 / math.prod(sizes[0]), dtype=torch.float64)
    return kernel_norm(kernel, sizes[1])


def _no_norm_slope(module: nn.Module) -> float:
    raise NoBoundError(
        f"{type(module).__name__} divides by each sample's own deviation, so its slope grows "
        "without a useful bound as that falls"
    )


def _no_recurrent_slope(module: nn.Module) -> float:
    raise NoBoundError(f"no bound is known for the recurrent {type(module).__name__}")


_SLOPES: dict[Any, Callable[[Any], float]] = {
    nn.ReLU: lambda _: 1.0,
    nn.LeakyReLU: lambda module: max(1.0, abs(module.negative_slope)),
    nn.Tanh: lambda _: 1.0,
    nn.Sigmoid: lambda _: 0.25,
    nn.Softplus: lambda _: 1.0,  # for any beta
    nn.SiLU: lambda _: 1.09984,  # the maximum, found numerically and rounded up; likewise GELU
    nn.GELU: lambda _: 1.12991,
    (Abs, GroupSort): lambda _: 1.0,
    Cones: lambda _: 1 + ROUNDING,
    nn.Dropout: lambda _: 1.0,  # does nothing in eval mode
    (nn.Identity, nn.Flatten, nn.Unflatten): lambda _: 1.0,
    MinibatchStatistics: lambda _: 1.0,  # adds a constant in eval mode
    (StepsFirst, PoolSteps, nn.AdaptiveAvgPool2d): lambda _: 1.0,
    nn.AvgPool2d: _average_pool_slope,
    nn.modules.batchnorm._BatchNorm: _batch_norm_slope,
    (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm): _no_norm_slope,
    (nn.RNNBase, GRU, LSTM): _no_recurrent_slope,
}
"""Functions that give a module's steepest slope; those of activations are exact."""
