"""Generator and critic as graphs of tensors alone, from latents to data units and on to scores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from models.constraints.gradient_normalization import GradientNormalized
from models.folding import fold
from models.model import Model
from models.networks import convolution, piecewise
from models.networks.initial import set_plain_weights
from models.sampling import Scaling

TORCH_OWN: dict[type[nn.Module], type[nn.Module]] = {
    convolution.Conv2d: nn.Conv2d,
    piecewise.ReLU: nn.ReLU,
    piecewise.LeakyReLU: nn.LeakyReLU,
    piecewise.AvgPool2d: nn.AvgPool2d,
}
"""Layers of ours that differ from torch's in their derivatives alone."""


class Graph(NamedTuple):
    """One network of a model, traced."""

    program: ExportedProgram
    inputs: dict[str, Tensor]
    """Those that it was traced with, by name; it takes any number of rows."""
    output: str
    """Name of what it returns."""


class _Generator(nn.Module):
    """Latents ``(N, latent_size)``, and labels if conditional, to items in data units."""

    def __init__(self, generator: nn.Module, scaling: Scaling) -> None:
        super().__init__()
        self.generator = generator
        self.scaling = scaling

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.scaling.to_data(self.generator(latents, *_given(labels)))


class _Critic(nn.Module):
    """Items in data units, and labels if conditional, to scores ``(N,)``."""

    def __init__(self, critic: nn.Module, scaling: Scaling) -> None:
        super().__init__()
        self.critic = critic
        self.scaling = scaling

    def forward(self, items: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.critic(self.scaling.to_model(items), *_given(labels)).float()


def _given(labels: Tensor | None) -> list[Tensor]:
    return [] if labels is None else [labels]


def graphs(model: Model) -> dict[str, Graph]:
    """Trace a model's generator and critic, on the CPU, for any number of rows.

    The generator is the one that the record's engine runs in float32, batch normalisation folded.
    Weights that a constraint makes of others, such as normalised ones, become constants.

    Returns:
        ``generator``: ``latents``, float32 ``(N, latent_size)``, and ``labels``, int64 ``(N,)`` of
        a class-conditional model, to ``items`` in data units, or ``codes`` of a table; and
        ``critic``: these, and labels, to ``scores``, float32 ``(N,)``.
    """
    items = "items" if model.table is None else "codes"
    # Tracing takes sizes that are equal for the same one, so the rows equal no size of an item.
    rows = next(n for n in range(2, 9) if n not in model.shape)
    latents = torch.from_numpy(model.latents(0, rows))
    labels = {"labels": torch.zeros(rows, dtype=torch.long)} if model.classes else {}
    generator = _Generator(with_torchs_layers(fold(model.generator)), model.scaling)
    critic = _Critic(with_torchs_layers(model.critic), model.scaling)
    with torch.no_grad():
        samples = generator(latents, *labels.values())
    return {
        "generator": _trace(generator, {"latents": latents, **labels}, items),
        "critic": _trace(critic, {items: samples, **labels}, "scores"),
    }


def with_torchs_layers(network: nn.Module) -> nn.Module:
    """Copy a network in eval mode, with torch's own layers and with weights in place of rules."""
    copied = copy.deepcopy(network).cpu().eval()
    set_plain_weights(copied)
    for module in copied.modules():
        if type(module) in TORCH_OWN:
            module.__class__ = TORCH_OWN[type(module)]
    return copied.requires_grad_(False)


def _trace(network: nn.Module, inputs: dict[str, Tensor], output: str) -> Graph:
    examples = tuple(inputs.values())
    if any(isinstance(module, GradientNormalized) for module in network.modules()):
        network = _with_its_gradient(network, examples)
    rows = {0: Dim("N")}
    program = torch.export.export(network, examples, dynamic_shapes=(rows,) * len(inputs))
    return Graph(program, inputs, output)


def _with_its_gradient(network: nn.Module, examples: tuple[Tensor, ...]) -> nn.Module:
    """Write out the gradient that a network computes within: torch.export cannot trace it."""
    decompose: dict[Any, Callable[..., Any]] = {
        **core_aten_decompositions(),
        torch.ops.aten.convolution_backward.default: _convolution_gradient,
        torch.ops.aten.avg_pool2d_backward.default: _pooling_gradient,
    }
    return make_fx(
        network, decomposition_table=decompose, tracing_mode="symbolic", _allow_non_fake_inputs=True
    )(*examples)


def _convolution_gradient(gradient: Tensor, inputs: Tensor, weight: Tensor, *more: Any) -> Any:
    """A convolution's derivative by its input alone, as a transposed convolution."""
    _, stride, padding, dilation, *_ = more
    # What a stride leaves over at the far side of the input, which no window reaches.
    left = [
        side - ((out - 1) * s - 2 * p + d * (taps - 1) + 1)
        for side, out, taps, s, p, d in zip(
            inputs.shape[2:],
            gradient.shape[2:],
            weight.shape[2:],
            stride,
            padding,
            dilation,
            strict=True,
        )
    ]
    by_input = F.conv_transpose2d(gradient, weight, None, stride, padding, left, 1, dilation)
    return by_input, None, None


def _pooling_gradient(gradient: Tensor, inputs: Tensor, size: list[int], *_: Any) -> Tensor:
    """The derivative of a mean over windows that do not overlap; the last may be cut off."""
    height, width = inputs.shape[2:]
    beyond = [0, -width % size[1], 0, -height % size[0]]
    shares = F.avg_pool2d(F.pad(torch.ones_like(inputs[:1, :1]), beyond), size)
    means = gradient / (shares * (size[0] * size[1]))
    return F.interpolate(means, scale_factor=size, mode="nearest")[:, :, :height, :width]
