"""How steep a critic is: at samples, at most (certified), and at least (found by ascent)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from models.conditional import ProjectionCritic, WithLabels
from models.cones import Cones
from models.networks import Critic, GroupSort
from models.piecewise import Abs
from models.recurrent import GRU, LSTM, PoolSteps, StepsFirst

CriticFunction = Callable[[Tensor], Tensor]
"""Samples ``(N, *shape)`` to scores ``(N,)``."""
Layer = nn.Linear | nn.Conv1d | nn.Conv2d
ROUNDING = 1e-6
"""Relative; far above what float64 loses in a singular value or in a slope."""
GRID = 32
"""Frequencies for each degree of a kernel: its norm is then bounded within 0.12% an axis."""
ASCENT_STARTS = 96
ASCENT_STEPS = 60

Place = Literal["real", "fake", "between"]
"""Held-out real samples, generated ones, or points on the segments between them."""


class NormSummary(BaseModel):
    """Distribution of the critic's gradient norm, in score units per unit of its input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    max: float
    quantiles: dict[str, float]
    """By level: "0.05", "0.25", "0.5", "0.75" and "0.95"."""


class LipschitzBounds(BaseModel):
    """What was measured of a critic's steepness, in score units per unit of its input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certified: float | None = None
    """An upper bound of the Lipschitz constant; None where no honest one exists."""
    reason: str | None = None
    """Why there is no certified bound; None if there is one."""
    sampled: float | None = None
    """A lower bound: the steepest slope that was found. None if nothing was measured."""
    gradient_norm: dict[Place, NormSummary] = {}


def gradient_norms(critic: CriticFunction, points: Tensor, *, create_graph: bool = False) -> Tensor:
    """Euclidean norm of the critic's gradient at each of ``points``.

    The norm is per sample, over every axis but the first, and is taken in float32 or better
    whatever autocast does to the critic. Where a gradient is exactly zero its norm is zero, and
    so is the derivative of that norm (a subgradient), never NaN.

    Args:
        critic: scores of shape ``(N,)`` from samples of shape ``(N, *shape)``; each score may
            depend on its own sample only, so no batch normalisation.
        points: ``(N, *shape)``, in the units that the critic takes.
        create_graph: keep the graph, so that a penalty on the norms can be back-propagated.

    Returns:
        ``(N,)``, in score units per unit of ``points``.
    """
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        # The sum's gradient holds each sample's own: no score depends on another sample. Under
        # autocast the scores may be bfloat16, but the gradient has the points' own type.
        (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=create_graph)
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1)


def interpolate(real: Tensor, fake: Tensor) -> Tensor:
    """Draw one point, uniformly, on the segment from each real sample to its fake partner.

    One coefficient per sample, whatever its number of axes (Gulrajani et al. 2017, section 4).

    Args:
        real: ``(N, *shape)``.
        fake: ``(N, *shape)``.

    Returns:
        ``(N, *shape)``, detached.
    """
    per_sample = (len(real), *[1] * (real.dim() - 1))
    coefficient = torch.rand(per_sample, dtype=real.dtype, device=real.device)
    return torch.lerp(fake.detach(), real.detach(), coefficient)


def gradient_norm_summary(
    critic: CriticFunction, real: Tensor, fake: Tensor
) -> dict[Place, NormSummary]:
    """Distribution of the gradient norm on real, on fake and between them.

    Args:
        critic: see `gradient_norms`.
        real: ``(N, *shape)``, held-out real samples in the critic's units.
        fake: ``(N, *shape)``, generated samples in the critic's units.

    Returns:
        The summary for each of ``real``, ``fake`` and ``between``.
    """
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    summary: dict[Place, NormSummary] = {}
    places: dict[Place, Tensor] = {"real": real, "fake": fake, "between": interpolate(real, fake)}
    for place, points in places.items():
        norms = gradient_norms(critic, points).double()
        quantiles = torch.quantile(norms, torch.tensor(levels, dtype=torch.float64).to(norms))
        summary[place] = NormSummary(
            mean=norms.mean().item(),
            max=norms.max().item(),
            quantiles=dict(zip(map(str, levels), quantiles.tolist(), strict=True)),
        )
    return summary


class LayerSignal(NamedTuple):
    """What passes one layer, forwards and backwards."""

    gradient: float
    """Mean over samples of the norm of the score's gradient with respect to the layer's output."""
    variation: float
    """Root mean square over units of the output's deviation between samples, over its own size."""


def layer_signals(critic: nn.Module, points: Tensor) -> list[LayerSignal]:
    """How strongly each layer is felt in the score, from input to score (Gulrajani et al. 2017).

    Their figure 1b plots the norms. Layers are the dense, convolutional and recurrent ones; a
    recurrent layer counts once, with all its steps. The last dense layer is left out: its output
    is the score.

    Args:
        critic: scores ``(N,)`` from ``(N, *shape)``; not changed. It is looked at in eval mode and
            float64, where a gradient may fall for a hundred decades before it is lost.
        points: ``(N, *shape)``.

    Returns:
        Of each layer, in the order of the forward pass.
    """
    exact = copy.deepcopy(critic).double().eval().requires_grad_(False)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        if output[0].numel() > 1:
            outputs.append(output)

    hooks = [module.register_forward_hook(keep) for module in _trunk_layers(exact)]
    with torch.enable_grad():
        total = exact(points.detach().double().requires_grad_()).sum()
        gradients = torch.autograd.grad(total, outputs) if outputs else ()
    for hook in hooks:
        hook.remove()
    signals = []
    for output, gradient in zip(outputs, gradients, strict=True):
        norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        values = output.detach().flatten(1)
        size = values.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        deviation = (values - values.mean(dim=0)).square().mean().sqrt()
        signals.append(LayerSignal(norms.mean().item(), (deviation / size).item()))
    return signals


def _trunk_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that samples pass through; a class's vector is no such layer."""
    if isinstance(module, Layer | GRU | LSTM):
        yield module
        return
    for child in [module.features] if isinstance(module, ProjectionCritic) else module.children():
        yield from _trunk_layers(child)


class NoBoundError(Exception):
    """There is no honest bound of a module's slope; says why."""


def certify(
    critic: nn.Module, layer_norm: Callable[[Layer], float] | None = None
) -> tuple[float | None, str | None]:
    """Bound a critic's Lipschitz constant from above, from its modules, in eval mode.

    Slopes multiply along a sequence and add over the branches of a residual block. Layers count
    with their operator norm, activations with their steepest slope, batch normalisation with its
    running scale.

    Args:
        critic: in eval mode; its weights' type is that of the arithmetic.
        layer_norm: the norm of a dense or convolutional layer; default: `operator_norm`.

    Returns:
        The bound in score units per input unit, and None; or None, and the reason why not.
    """
    try:
        return _slope(critic, layer_norm or operator_norm), None
    except NoBoundError as error:
        return None, str(error)


def _slope(module: nn.Module, norm: Callable[[Layer], float]) -> float:
    if isinstance(module, Critic | WithLabels):
        return _slope(module.body if isinstance(module, Critic) else module.critic, norm)
    if isinstance(module, ProjectionCritic):
        # Of the class with the steepest head: its own vector is added to the head's.
        heads = (module.head.weight + module.projection.weight.T).detach().double()
        steepest = torch.linalg.vector_norm(heads, dim=1).max().item() * (1 + ROUNDING)
        return _slope(module.features, norm) * steepest
    if isinstance(module, nn.Sequential):
        return math.prod(_slope(part, norm) for part in module)
    if isinstance(module, Layer):
        return norm(module)
    branches = [getattr(module, name, None) for name in ("branch", "shortcut")]
    if all(isinstance(branch, nn.Module) for branch in branches):  # a residual block: their sum
        return sum(_slope(branch, norm) for branch in branches if branch is not None)
    for kind, slope in _SLOPES.items():
        if isinstance(module, kind):
            return slope(module)
    reason = getattr(module, "no_lipschitz_bound", None)
    raise NoBoundError(reason or f"no bound is known for {type(module).__name__}")


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
    apart = sizes[0] == sizes[1] and not module.divisor_override
    if module.ceil_mode and apart and module.padding in (0, (0, 0)):
        return 1.0  # windows that share no pixel, the smallest of a single one
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
    nn.Softplus: lambda _: 1.0,  # whatever its beta
    nn.SiLU: lambda _: 1.09984,  # its maximum, found numerically, rounded up; likewise GELU's
    nn.GELU: lambda _: 1.12991,
    (Abs, GroupSort): lambda _: 1.0,
    nn.Identity: lambda _: 1.0,
    Cones: lambda _: 1 + ROUNDING,
    nn.Dropout: lambda _: 1.0,  # does nothing in eval mode
    nn.Flatten: lambda _: 1.0,
    (StepsFirst, PoolSteps, nn.AdaptiveAvgPool2d): lambda _: 1.0,
    nn.Unflatten: lambda _: 1.0,
    nn.AvgPool2d: _average_pool_slope,
    nn.modules.batchnorm._BatchNorm: _batch_norm_slope,
    (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm): _no_norm_slope,
    (nn.RNNBase, GRU, LSTM): _no_recurrent_slope,
}
"""Steepest slopes of modules, the true constants of activations."""


def operator_norm(layer: Layer) -> float:
    """Bound the largest singular value of a layer's linear map from above.

    Dense layers by their singular values; convolutions by `kernel_norm`, for maps of any size.

    Raises:
        NoBoundError: the convolution is of a kind that has no such bound here.
    """
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return _largest_singular_value(weight) * (1 + ROUNDING)
    if layer.padding_mode != "zeros":
        raise NoBoundError(f"no bound is known for padding mode '{layer.padding_mode}'")
    if any(s > 1 and d > 1 for s, d in zip(layer.stride, layer.dilation, strict=True)):
        raise NoBoundError("no bound is known for a convolution with a stride and a dilation")
    return max(kernel_norm(part, layer.stride) for part in weight.chunk(layer.groups))


def kernel_norm(kernel: Tensor, stride: tuple[int, ...]) -> float:
    """Bound the norm of a convolution with zero padding, on a map of any size, from above.

    Zero padding restricts the convolution of infinite maps, whose norm is the largest singular
    value of the kernel's symbol over all frequencies; with a stride, of its phases' symbol (see
    `to_phases`). On an axis of t taps the symbol is a trigonometric polynomial of degree
    ``d = (t - 1) / 2``, which a grid of n frequencies underestimates by ``cos(pi d / n)`` at most
    (M. Riesz 1914): dividing by that puts the error on the upper side.

    Args:
        kernel: ``(out, in, *taps)``.
        stride: of each axis.

    Returns:
        The bound, above the norm on infinite maps by less than 0.13% an axis.
    """
    phases = to_phases(kernel.double(), stride)
    taps = phases.shape[2:]
    sizes = [GRID * (t - 1) or 1 for t in taps]
    symbol = torch.fft.rfftn(phases, s=sizes, dim=tuple(range(2, phases.dim())))
    matrices = symbol.flatten(2).permute(2, 0, 1)
    slack = math.prod(math.cos(math.pi * (t - 1) / 2 / n) for t, n in zip(taps, sizes, strict=True))
    return _largest_singular_value(matrices) / slack * (1 + ROUNDING)


def _largest_singular_value(matrices: Tensor) -> float:
    """Over all matrices of a batch, in float64."""
    adjoint = matrices.mH
    small = matrices.shape[-2] <= matrices.shape[-1]
    gram = matrices @ adjoint if small else adjoint @ matrices
    gram = gram.view(-1, *gram.shape[-2:])
    # The norm of a power bounds the largest eigenvalue: only where it beats the best found so
    # far need the eigenvalues be computed.
    size = torch.linalg.matrix_norm(gram).clamp_min(torch.finfo(torch.float64).tiny)
    power = gram / size[:, None, None]
    for _ in range(2):
        power = power @ power
    bounds = size * torch.linalg.matrix_norm(power) ** 0.25
    best = 0.0
    for part in bounds.argsort(descending=True).split(16):
        if bounds[part[0]] <= best:
            break
        best = max(best, torch.linalg.eigvalsh(gram[part]).max().item())
    return math.sqrt(best)


def to_phases(kernel: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Write a convolution with a stride as one without, over as many more input channels.

    Positions of the input that share a place in the stride become a channel of their own, which
    permutes them and so changes no norm.

    Args:
        kernel: ``(out, in, *taps)``.
        stride: of each axis; empty for a dense weight, which stays as it is.

    Returns:
        ``(out, in * prod(stride), *ceil(taps / stride))``.
    """
    taps = kernel.shape[2:]
    counts = [-(-t // s) for t, s in zip(taps, stride, strict=True)]
    padding = [[0, c * s - t] for t, s, c in zip(taps, stride, counts, strict=True)]
    padded = nn.functional.pad(kernel, [x for pair in reversed(padding) for x in pair])
    pairs = [x for pair in zip(counts, stride, strict=True) for x in pair]
    split = padded.reshape(*kernel.shape[:2], *pairs)
    axes = len(stride)
    order = [0, 1, *[3 + 2 * a for a in range(axes)], *[2 + 2 * a for a in range(axes)]]
    outputs, inputs = kernel.shape[:2]
    return split.permute(order).reshape(outputs, inputs * math.prod(stride), *counts)


def from_phases(phases: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """Undo `to_phases`, for a kernel of ``shape``."""
    axes, counts = len(stride), phases.shape[2:]
    split = phases.reshape(*shape[:2], *stride, *counts)
    order = [0, 1, *[x for a in range(axes) for x in (2 + axes + a, 2 + a)]]
    sizes = [c * s for c, s in zip(counts, stride, strict=True)]
    padded = split.permute(order).reshape(*shape[:2], *sizes)
    for axis, taps in enumerate(shape[2:], start=2):
        padded = padded.narrow(axis, 0, taps)
    return padded


def steepest_slope(critic: CriticFunction, starts: Tensor, steps: int = ASCENT_STEPS) -> float:
    """Look for the steepest slope of a critic: a lower bound of its Lipschitz constant.

    From each start, a pair of points climbs the logarithm of ``|f(x) - f(y)| / |x - y|``, which
    rises also where the gradient is constant, as in a piecewise linear critic. Gradient norms on
    the way count too.

    Args:
        critic: see `gradient_norms`; best in float64.
        starts: ``(N, *shape)``.
        steps: of the ascent.

    Returns:
        The steepest slope seen, in score units per input unit.
    """
    first = starts.flatten(1)
    radii = first.std() * torch.logspace(-2, 1, len(first), dtype=first.dtype)[:, None]
    second = first + radii * nn.functional.normalize(torch.randn_like(first), dim=1)
    shortest = 1e-5 * first.std()
    best = 0.0
    for step in range(steps):
        points = torch.cat([first, second]).view(-1, *starts.shape[1:]).requires_grad_()
        with torch.enable_grad():
            scores = critic(points)
            (gradients,) = torch.autograd.grad(scores.sum(), points)
        gradients = gradients.flatten(1)
        difference = (scores[: len(first)] - scores[len(first) :]).detach()[:, None]
        apart = first - second
        distance = torch.linalg.vector_norm(apart, dim=1, keepdim=True).clamp_min(shortest)
        slopes = (difference.abs() / distance)[distance > shortest]
        norms = torch.linalg.vector_norm(gradients, dim=1)
        best = max(best, norms.max().item(), slopes.max().item() if len(slopes) else 0.0)
        rise = gradients / torch.where(difference == 0, 1, difference).repeat(2, 1)
        closer = apart / distance.square()
        stride = 0.5 * (1 - step / steps) * distance
        first = first + stride * nn.functional.normalize(rise[: len(first)] - closer, dim=1)
        second = second + stride * nn.functional.normalize(closer - rise[len(first) :], dim=1)
    return best


def lipschitz_bracket(critic: nn.Module, real: Tensor, fake: Tensor) -> LipschitzBounds:
    """Bound a critic's Lipschitz constant from both sides, in float64 and eval mode.

    Args:
        critic: scores ``(N,)`` from ``(N, *shape)``; not changed.
        real: ``(N, *shape)``; the ascent starts from these, the fake ones and points between.
        fake: ``(N, *shape)``.

    Returns:
        The bounds, without a summary of gradient norms.

    Raises:
        RuntimeError: a slope was found that is above the certificate, so one of them is wrong.
    """
    exact = copy.deepcopy(critic).double().eval().requires_grad_(False)
    certified, reason = certify(exact)
    few = ASCENT_STARTS // 3
    real, fake = real[:few].double(), fake[:few].double()
    count = min(len(real), len(fake))
    starts = torch.cat([real, fake, interpolate(real[:count], fake[:count])])
    sampled = steepest_slope(exact, starts)
    if certified is not None and sampled > certified * (1 + ROUNDING):
        raise RuntimeError(
            f"a slope of {sampled:.8g} was found, above the certified {certified:.8g}: the "
            "certificate is wrong; please report this with the run's configuration"
        )
    return LipschitzBounds(certified=certified, reason=reason, sampled=sampled)
