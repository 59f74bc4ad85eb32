"""Signals through the layers of a critic, forwards and backwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.lipschitz.operators import Layer
from models.networks.conditional import ProjectionCritic
from models.networks.recurrent import GRU, LSTM
from models.networks.stages import Stages


class LayerSignal(NamedTuple):
    """Signals through one layer, forwards and backwards."""

    gradient: float
    """Mean over samples of the norm of the score's gradient with respect to the layer's output."""
    variation: float
    """Root mean square deviation of the output between samples, over its root mean square."""


def layer_signals(critic: nn.Module, points: Tensor) -> list[LayerSignal]:
    """Measure how strongly the score depends on each layer's output.

    Figure 1b of Gulrajani et al. 2017 plots these gradient norms. Layers are the dense,
    convolutional and recurrent ones; a recurrent layer counts once, with all its steps. The last
    dense layer is left out, because its output is the score.

    Args:
        critic: samples ``(N, *shape)`` to scores ``(N,)``; not changed. A copy runs in eval mode
            and float64, so that a gradient may fall by a hundred decades and still be measured.
        points: ``(N, *shape)``.

    Returns:
        One signal per layer, in the order of the forward pass.
    """
    exact = copy.deepcopy(critic).double().eval().requires_grad_(False)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        if output[0].numel() > 1:
            outputs.append(output)

    for module in exact.modules():
        if isinstance(module, Stages):
            module.recomputes = False  # the gradients are by what is between the layers
    for module in _trunk_layers(exact):
        module.register_forward_hook(keep)
    with torch.enable_grad():
        total = exact(points.detach().double().requires_grad_()).sum()
        gradients = torch.autograd.grad(total, outputs) if outputs else ()
    signals = []
    for output, gradient in zip(outputs, gradients, strict=True):
        norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        values = output.detach().flatten(1)
        size = values.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        deviation = (values - values.mean(dim=0)).square().mean().sqrt()
        signals.append(LayerSignal(norms.mean().item(), (deviation / size).item()))
    return signals


def _trunk_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that samples pass through, which excludes vectors of classes."""
    if isinstance(module, Layer | GRU | LSTM):
        yield module
        return
    for child in [module.features] if isinstance(module, ProjectionCritic) else module.children():
        yield from _trunk_layers(child)
