"""Initial weights of a network's dense and convolutional layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

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
