"""An upper bound of a critic's Lipschitz constant, from its modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from models.lipschitz.operators import ROUNDING, Layer, NoBoundError, kernel_norm, operator_norm
from models.lipschitz.tighter import NORMS, SECTORS, ellipsoid_bound
from models.lipschitz.unrolled import recurrent_slope
from models.networks import Critic
from models.networks.conditional import ProjectionCritic, WithLabels
from models.networks.cones import Cones
from models.networks.parts import MinibatchStatistics
from models.networks.recurrent import GRU, LSTM, PoolSteps, StepsFirst
from models.networks.settings import Shape
from models.networks.skips import InputSkips


class _Given(NamedTuple):
    """What a bound may be found with, beside the modules."""

    norm: Callable[[Layer], float] | None
    shape: Shape | None


def certify(
    critic: nn.Module,
    layer_norm: Callable[[Layer], float] | None = None,
    shape: Shape | None = None,
) -> tuple[float | None, str | None]:
    """Bound a critic's Lipschitz constant from above: the lower of two bounds.

    The product: slopes of modules multiply along a sequence and add over the branches of a residual
    block, and where an image goes in again. A layer's slope is its operator norm, an activation's
    the steepest it has, batch normalisation's its running scale. A constraint's rule that makes a
    layer's weight may know the slope itself, or that of several layers in one sequence together.
    The other one sees how layers act together: `models.lipschitz.tighter`.

    >>> from torch import nn
    >>> critic = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    >>> bound, reason = certify(critic)
    >>> product = math.prod(torch.linalg.matrix_norm(critic[i].weight, 2).item() for i in (0, 2))
    >>> 0.5 * product < bound < 1.0001 * product, reason
    (True, None)

    Args:
        critic: in eval mode.
        layer_norm: gives a norm for each dense or convolutional layer, in place of its weights'
            own; for a conditional critic's class vectors, the length of the longest. The bound is
            then the product.
        shape: of one item. Without it recurrent critics have no bound, for it depends on the
            number of steps, and critics of images have the product's, for maps of any size.

    Returns:
        The bound in score units per input unit, and None; or None, and the reason why not.
    """
    try:
        product = _slope(critic, _Given(layer_norm, shape))
    except NoBoundError as error:
        return None, str(error)
    if not math.isfinite(product):
        return None, "the product of the layers' slopes is beyond the largest number"
    if layer_norm is not None:
        return product, None
    tighter = ellipsoid_bound(critic, shape, lambda module: _slope(module, _Given(None, shape)))
    return product if tighter is None else min(product, tighter), None


def _slope(module: nn.Module, given: _Given) -> float:
    if isinstance(module, Critic | WithLabels):
        return _slope(module.body if isinstance(module, Critic) else module.critic, given)
    if isinstance(module, ProjectionCritic | InputSkips | GRU | LSTM):
        return _joined(module, given)
    if isinstance(module, nn.Sequential):
        return math.prod(_share(part, module, given) for part in module)
    if isinstance(module, Layer):
        return (given.norm or operator_norm)(module)
    branches = [getattr(module, name, None) for name in ("branch", "shortcut")]
    if all(isinstance(branch, nn.Module) for branch in branches):  # a residual block: their sum
        total = sum(_slope(branch, given) for branch in branches if branch is not None)
        return total * float(getattr(module, "scale", 1.0))
    for kind, slope in _SLOPES.items():
        if isinstance(module, kind):
            return slope(module)
    reason = getattr(module, "no_lipschitz_bound", None)
    raise NoBoundError(reason or f"no bound is known for {type(module).__name__}")


def _share(part: nn.Module, sequence: nn.Sequential, given: _Given) -> float:
    """The slope of a part, or what the rule that makes its weight certifies in this sequence."""
    rules = getattr(part, "parametrizations", {})
    claim = getattr(rules["weight"][-1], "certified_share", None) if "weight" in rules else None
    share = claim(part, sequence) if claim and given.norm is None else None
    return _slope(part, given) if share is None else share * (1 + ROUNDING)


def _joined(module: ProjectionCritic | InputSkips | GRU | LSTM, given: _Given) -> float:
    if isinstance(module, GRU | LSTM):
        return _recurrent_slope(module, given)
    if isinstance(module, ProjectionCritic):
        return _slope(module.features, given) * _steepest_head(module, given)
    steepest = of_image = 1.0  # of the maps, and of the smaller image, by the image itself
    for stage, pool, entry in zip(module.stages, module.pools, module.entries, strict=True):
        of_image *= _slope(pool, given)
        steepest = steepest * _slope(stage, given) + of_image * _slope(entry, given)
    return steepest


def _steepest_head(critic: ProjectionCritic, given: _Given) -> float:
    # Each class's vector is added to the head's; the steepest class decides.
    if given.norm is not None:
        return given.norm(critic.head) + given.norm(critic.projection)
    heads = (critic.head.weight + critic.projection.weight.T).detach().double()
    return torch.linalg.vector_norm(heads, dim=1).max().item() * (1 + ROUNDING)


def _recurrent_slope(module: GRU | LSTM, given: _Given) -> float:
    if given.norm is not None or given.shape is None:
        raise NoBoundError(
            f"the bound of the recurrent {type(module).__name__} depends on its weights and on "
            "the number of steps"
        )
    return recurrent_slope(module, given.shape[0])


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


def _norm_slope(module: Any) -> float:
    """Bound the slope of ``gain (x - mean) / sqrt(variance + eps)`` over a group of n numbers.

    Its derivative is ``(P - y y^T / n) / s``, where ``s^2 = variance + eps``, y are the normalised
    numbers and P takes their mean away. It is symmetric, and its eigenvalues lie between 0 and
    ``1 / s``, for ``|y|^2 <= n`` and y has mean 0. So the slope is at most ``1 / sqrt(eps)``, and
    comes near it where all numbers of a group are nearly the same.
    """
    if getattr(module, "running_var", None) is not None:
        return _batch_norm_slope(module)
    if not module.eps:
        raise NoBoundError(f"{type(module).__name__} without an epsilon has no steepest slope")
    gain = 1.0 if module.weight is None else module.weight.abs().max().item()
    return gain / math.sqrt(module.eps) * (1 + ROUNDING)


def _no_recurrent_slope(module: nn.Module) -> float:
    raise NoBoundError(f"no bound is known for the recurrent {type(module).__name__}")


_SLOPES: dict[Any, Callable[[Any], float]] = {
    nn.LeakyReLU: lambda module: max(1.0, abs(module.negative_slope)),
    tuple(SECTORS): lambda module: next(
        max(map(abs, sector)) for kind, sector in SECTORS.items() if isinstance(module, kind)
    ),
    Cones: lambda _: 1 + ROUNDING,
    nn.Dropout: lambda _: 1.0,  # does nothing in eval mode
    (nn.Identity, nn.Flatten, nn.Unflatten): lambda _: 1.0,
    MinibatchStatistics: lambda _: 1.0,  # adds a constant in eval mode
    (StepsFirst, PoolSteps, nn.AdaptiveAvgPool2d): lambda _: 1.0,
    nn.AvgPool2d: _average_pool_slope,
    nn.modules.batchnorm._BatchNorm: _batch_norm_slope,
    NORMS: _norm_slope,
    nn.RNNBase: _no_recurrent_slope,
}
"""Functions that give a module's steepest slope; those of activations are exact."""
