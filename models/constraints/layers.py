"""The layers that weight constraints act on."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

from models.lipschitz import Layer


def layers(critic: nn.Module) -> Iterator[Layer]:
    """Every dense and convolutional layer of a critic, in order."""
    for module in critic.modules():
        if isinstance(module, Layer):
            yield module


def as_matrix(weight: Tensor) -> Tensor:
    """A weight as a matrix: outputs by everything else."""
    return weight.flatten(1)


def overlap(layer: Layer) -> int:
    """How many windows of a convolution read one input position, at most; 1 for a dense layer.

    The layer's operator norm is at most the square root of this times the largest singular value
    of its kernel as a matrix: each window's output is bounded by what it reads.
    """
    if isinstance(layer, nn.Linear):
        return 1
    return math.prod(-(-k // s) for k, s in zip(layer.kernel_size, layer.stride, strict=True))
