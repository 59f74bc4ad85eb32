"""Weights of a network's dense and convolutional layers: how they begin, and equalised ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.networks.settings import Start

Weighted = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
STARTS: dict[Start, Callable[[Tensor], Tensor]] = {
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
}
"""What draws a weight in place, for each start but torch's own."""


def weighted_layers(network: nn.Module) -> Iterator[Weighted]:
    """Yield every layer of a network with a dense weight or a kernel."""
    for module in network.modules():
        if isinstance(module, Weighted):
            yield module


def draw_weights(network: nn.Module, start: Start) -> None:
    """Draw a new network's weights again, in place, as `NetworkConfig.start` says; biases are 0.

    ``default`` leaves them, and torch's random numbers, as they are.
    """
    if start == "default":
        return
    for layer in weighted_layers(network):
        STARTS[start](layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Scaled(nn.Module):
    """A constant factor of a weight, as a parametrisation: an equalised layer's."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        """Scale the trained parameter, of any shape."""
        return self.factor * weight


def he_constant(layer: Weighted) -> float:
    """``sqrt(2 / fan_in)``, which keeps the size of signals through layers with ReLU.

    He et al. 2015, eq. 10. The fan-in is the number of inputs that an output adds up; with a
    transposed convolution a share of the kernel, by its stride.
    """
    fan_in = float(layer.weight[0].numel())
    if isinstance(layer, nn.ConvTranspose2d):
        taps = math.prod(layer.kernel_size) / math.prod(layer.stride)
        fan_in = layer.in_channels * taps
    return (2 / fan_in) ** 0.5


def equalize(layer: Weighted, factor: float) -> None:
    """Let a layer train a standard normal parameter, of which its weight is ``factor`` times.

    The bias begins with 0. Karras et al. 2018, section 4.1.
    """
    nn.init.normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    parametrize.register_parametrization(layer, "weight", Scaled(factor))


def trained_weight(layer: nn.Module) -> tuple[nn.Parameter, float]:
    """The parameter that training moves, and the factor of it that the layer's weight is.

    Whatever sets a weight in place must set the parameter: an equalised layer makes its ``weight``
    anew whenever it is read.
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return cast(nn.Parameter, layer.weight), 1.0
    made = cast(nn.ModuleDict, layer.parametrizations)["weight"]
    assert isinstance(made, parametrize.ParametrizationList)
    factor = made[0].factor if isinstance(made[0], Scaled) else 1.0
    return cast(nn.Parameter, made.original), factor


def set_plain_weights(network: nn.Module) -> None:
    """Put the values of parametrised weights, in place, where the rules that make them were."""
    made = {
        module: {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
        for module in network.modules()
        if parametrize.is_parametrized(module)
    }  # all of them first, as one layer's rule may read another's
    for module, weights in made.items():
        # Not `remove_parametrizations`: it changes a class that copies of the module share.
        kind = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        module.__class__ = kind
        for name, weight in weights.items():
            module.register_parameter(name, nn.Parameter(weight))
