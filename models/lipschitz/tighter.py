"""Bounds of a critic's slope below the product of its layers' norms, by ellipsoids.

Every set of multipliers proves a bound (see `models.lipschitz.ellipsoid`). The first is never above
the product, but in sums; gradient steps then improve it, in place of a semidefinite program.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.lipschitz import torus
from models.lipschitz.descent import Function, minimised
from models.lipschitz.ellipsoid import WORK, Ellipsoid, Kept, Multipliers
from models.lipschitz.operators import ROUNDING, Layer, NoBoundError
from models.networks import Critic
from models.networks.conditional import ProjectionCritic, WithLabels
from models.networks.parts import MinibatchStatistics
from models.networks.piecewise import Abs, GroupSort
from models.networks.recurrent import PoolSteps
from models.networks.settings import Shape
from models.networks.skips import InputSkips

Slope = Callable[[nn.Module], float]
SECTORS: dict[type[nn.Module], tuple[float, float]] = {
    nn.ReLU: (0.0, 1.0),
    nn.Tanh: (0.0, 1.0),
    nn.Sigmoid: (0.0, 0.25),
    nn.Softplus: (0.0, 1.0),  # for any beta
    # The slopes of these at x and at -x have a sum of 1. Found numerically and rounded up.
    nn.SiLU: (-0.09984, 1.09984),
    nn.GELU: (-0.12991, 1.12991),
    Abs: (-1.0, 1.0),
    GroupSort: (-1.0, 1.0),  # keeps the length of each pair's difference
}
"""The lowest and the highest slope of activations."""
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
PASSES = 120
"""Evaluations, at most, in which the multipliers are improved."""
SOFTNESS = (0.5, 0.1)
"""Weights of the barrier, one after the other."""
ENTRIES = 2e7
"""Numbers of all shape matrices, at most, to improve the multipliers: gradients need memory."""


def ellipsoid_bound(critic: nn.Module, shape: Shape | None, slope: Slope) -> float | None:
    """Bound a critic's Lipschitz constant from above by ellipsoids.

    Args:
        critic: in eval mode.
        shape: of one item; None: unknown, which only critics of vectors allow.
        slope: gives the slope of a module of which no more is known.

    Returns:
        The bound; None where a part is not known here, or the critic is too large for it.
    """
    multipliers = Multipliers()

    def square() -> Tensor:
        return _Walk(critic, shape, slope, multipliers).through(critic)

    # Beyond the largest number squares are infinite, or cannot be taken.
    impossible = NoBoundError, OverflowError, torch.linalg.LinAlgError  # type: ignore[attr-defined]
    with torch.inference_mode(False), torch.no_grad():
        try:
            found = [float(square())]
        except impossible:
            return None
        if multipliers.logs and 0 < found[0] < math.inf and multipliers.entries <= ENTRIES:
            with contextlib.suppress(*impossible):
                found.append(_improved(square, multipliers))
    best = min(value for value in [*found, math.inf] if not math.isnan(value))
    return math.sqrt(best) * (1 + ROUNDING) if best < math.inf else None


def _improved(square: Callable[[], Tensor], multipliers: Multipliers) -> float:
    """Improve the multipliers of the square of a bound; returns what it becomes."""
    sizes = [len(log) for log in multipliers.logs]
    passes = min(PASSES, int(WORK / max(1, multipliers.work)))  # work is that of one

    def objective(softness: float) -> Function:
        def found(x: Tensor) -> tuple[float, Tensor] | None:
            x = x.clone().requires_grad_()
            try:
                with torch.enable_grad():
                    multipliers.begin("use", list(torch.split(x, sizes)))
                    value = square().log() + softness * multipliers.barrier
                    if not value.requires_grad:  # no multiplier has a part in it
                        return None
                    (gradient,) = torch.autograd.grad(value, x)
            except NoBoundError:
                return None
            return (value.item(), gradient) if gradient.isfinite().all() else None

        return found

    x = torch.cat(multipliers.logs)
    weights = SOFTNESS if multipliers.barrier else (0.0,)
    for softness in weights:
        x = minimised(objective(softness), x, passes // len(weights))
    multipliers.begin("tighten", list(torch.split(x, sizes)))
    return float(square())


class _Walk:
    """One pass through a critic, with an ellipsoid."""

    def __init__(
        self, critic: nn.Module, shape: Shape | None, slope: Slope, multipliers: Multipliers
    ) -> None:
        self.slope = slope
        self.is_sequence = shape is not None and len(shape) == 2
        self.is_flat = False
        self.at = Ellipsoid(multipliers)
        if shape is not None and len(shape) == 3:
            self.at = Ellipsoid(multipliers, shape[1:], torus.torus_for(critic, shape[1:]))

    def through(self, critic: nn.Module) -> Tensor:
        """Carry the unit ball through a critic; returns the square of the bound."""
        if isinstance(critic, Critic | WithLabels):
            return self.through(critic.body if isinstance(critic, Critic) else critic.critic)
        if not isinstance(critic, ProjectionCritic):
            self.run(critic)
            return self.at.longest()
        self.run(critic.features)  # each class's vector is added to the head's
        self.at.dense(_plain(critic.head.weight) + _plain(critic.projection.weight).T)
        return self.at.widest()

    def run(self, module: nn.Module) -> None:
        """Carry the ellipsoid through a module."""
        if isinstance(module, nn.Sequential):
            for part in module:
                self.run(part)
        elif self.is_sequence:
            self.at.become_ball(self.slope(module))
            self.is_sequence = not isinstance(module, PoolSteps)
        elif isinstance(module, InputSkips):
            self._skips(module)
        elif hasattr(module, "branch") and hasattr(module, "shortcut"):
            self._residual(module)
        elif isinstance(module, (nn.LeakyReLU, *SECTORS)):
            self._bend(module)
        else:
            self._single(module)

    def _bend(self, activation: nn.Module) -> None:
        is_sorting = isinstance(activation, GroupSort)
        if is_sorting and self.is_flat and self.at.torus:
            raise NoBoundError("pairs of positions are sorted")
        self.at.bend(*_sector(activation), group=2 if is_sorting else 1)
        if is_sorting and self.at.x is not None:  # it puts the larger ones before the smaller
            self.at.change(
                self.at.channels(),
                lambda x: torch.cat([x[: len(x) // 2 * 2 : 2], x[1::2], x[len(x) // 2 * 2 :]]),
            )

    def _single(self, module: nn.Module) -> None:
        at = self.at
        self.is_flat = self.is_flat or isinstance(module, nn.Flatten)
        if isinstance(module, nn.Linear):
            at.dense(_plain(module.weight))
        elif isinstance(module, nn.Conv2d):
            at.convolve(module)
        elif isinstance(module, nn.AvgPool2d):
            at.pool(module)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_var is None:
                raise NoBoundError("batch normalisation without running statistics")
            scale = (_plain(module.running_var) + module.eps).rsqrt()
            at.scale(scale if module.weight is None else scale * _plain(module.weight))
        elif isinstance(module, MinibatchStatistics):
            at.change(at.channels(), lambda x: torch.cat([x, torch.zeros_like(x[:1])]))
        elif not isinstance(module, nn.Identity | nn.Flatten | nn.Dropout):
            if at.torus and not isinstance(module, NORMS):
                raise NoBoundError("a part of images, of which the slope alone is known")
            at.become_ball(self.slope(module))

    def _residual(self, block: nn.Module) -> None:
        assert isinstance(block.branch, nn.Module)
        assert isinstance(block.shortcut, nn.Module)
        shortcut = block.shortcut
        layers = list(shortcut) if isinstance(shortcut, nn.Sequential) else [shortcut]
        first = layers[0] if layers else None
        pool = first if isinstance(first, nn.AvgPool2d) else None
        width = self.at.channels(_inputs(block))
        self.at.keep(width, pool)
        self.run(block.branch)
        kept = self.at.kept.pop()
        if kept.pool is not None:
            raise NoBoundError("a shortcut pools and its branch does not")
        aside = torch.eye(width, dtype=torch.float64)
        for layer in layers:
            if layer is pool or isinstance(layer, nn.Identity):
                continue
            if (
                not isinstance(layer, Layer)
                or getattr(layer, "groups", 1) != 1
                or any(n != 1 for n in layer.weight.shape[2:])
            ):
                raise NoBoundError("no ellipsoid is known of a shortcut")
            aside = _plain(layer.weight).flatten(1) @ aside
        scale = float(getattr(block, "scale", 1.0))
        both = self.at.channels()
        self.at.change(both, lambda x: scale * (aside @ x[:width] + x[width:]))
        self.at.is_masked &= kept.is_masked

    def _skips(self, module: InputSkips) -> None:
        at = self.at
        image = maps = at.channels(_inputs(module))
        at.keep(image)
        for stage, pool, entry in zip(module.stages, module.pools, module.entries, strict=True):
            assert isinstance(pool, nn.AvgPool2d)
            own = at.kept[-1] = at.kept[-1]._replace(pool=pool)
            self.run(stage)
            if at.kept[-1].pool is not None:
                raise NoBoundError("an image becomes smaller and its maps do not")
            maps, is_masked = at.channels(), at.is_masked
            # Image and maps become image, maps and image; the entry makes maps of the last.
            at.change(image + maps, lambda x: torch.cat([x, x[:image]]))
            at.kept.append(Kept(maps, is_masked))
            at.is_masked = own.is_masked
            self.run(entry)
            at.kept.pop()
            at.is_masked &= is_masked
            at.change(2 * maps, lambda x: x[: len(x) // 2] + x[len(x) // 2 :])
        at.kept.pop()
        at.change(image + maps, lambda x: x[image:])


def _inputs(module: nn.Module) -> int | None:
    """Number of channels that a module's first layer takes."""
    layer = next((m for m in module.modules() if isinstance(m, Layer)), None)
    if layer is None:
        return None
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _sector(activation: nn.Module) -> tuple[float, float]:
    if isinstance(activation, nn.LeakyReLU):
        slope = float(activation.negative_slope)
        return min(slope, 1.0), max(slope, 1.0)
    return next(sector for kind, sector in SECTORS.items() if isinstance(activation, kind))


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float64).clone()
