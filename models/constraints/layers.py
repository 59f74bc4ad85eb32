"""The layers that weight constraints act on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from models.lipschitz import Layer


def layers(critic: nn.Module) -> Iterator[Layer]:
    """Yield every dense and convolutional layer of a critic, in order."""
    for module in critic.modules():
        if isinstance(module, Layer):
            yield module


def as_matrix(weight: Tensor) -> Tensor:
    """Reshape a weight to a matrix of outputs by everything else."""
    return weight.flatten(1)


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    """Find the nearest matrix with singular values of 1, by a singular value decomposition."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


@contextmanager
def full_products(numbers: Tensor) -> Iterator[None]:
    """Compute products of float32 to all digits: half precision and TF32 have but three of them.

    Args:
        numbers: lie on the device that the block computes on.
    """
    device, settings = numbers.device.type, torch.backends.cuda.matmul
    in_half = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    before, settings.allow_tf32 = settings.allow_tf32, False
    try:
        with torch.autocast(device, enabled=False) if in_half else nullcontext():
            yield
    finally:
        settings.allow_tf32 = before


def largest_singular_value(layers: Iterable[Layer]) -> float:
    """Compute the largest singular value of the layers' weights as matrices; 0 without layers."""
    weights = (as_matrix(layer.weight.detach()).double() for layer in layers)
    return max((torch.linalg.matrix_norm(weight, 2).item() for weight in weights), default=0.0)


def overlap(layer: Layer) -> int:
    """Count the windows of a convolution that read one input position, at most; dense layers: 1.

    The layer's operator norm is at most the square root of this number times the largest singular
    value of its kernel as a matrix, because each window's output is bounded by its inputs.
    """
    if isinstance(layer, nn.Linear):
        return 1
    return math.prod(-(-k // s) for k, s in zip(layer.kernel_size, layer.stride, strict=True))
