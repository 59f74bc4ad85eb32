"""A generator for serving: what batch normalisation does in eval mode, done by the layer before."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

Foldable = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


def fold(generator: nn.Module) -> nn.Module:
    """Copy a generator in eval mode, with its batch normalisations folded into layers.

    The values are the same up to rounding. Normalisations that follow no layer directly stay, as
    in a residual network's or a class-conditional one's.
    """
    copied = copy.deepcopy(generator).eval()
    for part in list(copied.modules()):
        if isinstance(part, nn.Sequential):
            _fold_in(part)
    return copied


def is_foldable(generator: nn.Module) -> bool:
    """Whether `fold` would remove anything."""
    return _count(fold(generator)) < _count(generator)


def _count(network: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


@torch.no_grad()
def _fold_in(sequence: nn.Sequential) -> None:
    layer: nn.Module | None = None
    positions = 1  # of a map that each channel of the layer's output is
    for i, module in enumerate(sequence):
        if isinstance(module, nn.Unflatten) and isinstance(layer, nn.Linear):
            positions = layer.out_features // module.unflattened_size[0]
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(layer, Foldable):
            if module.running_mean is not None and module.running_var is not None:
                factor = torch.rsqrt(module.running_var + module.eps)
                if module.weight is not None:
                    factor = factor * module.weight
                offset = -module.running_mean * factor
                if module.bias is not None:
                    offset = offset + module.bias
                _scale(
                    layer,
                    factor.repeat_interleave(positions),
                    offset.repeat_interleave(positions),
                )
                sequence[i] = nn.Identity()
            layer = None
            continue
        layer, positions = module, 1


def _scale(layer: Foldable, factor: Tensor, offset: Tensor) -> None:
    """Multiply each output channel and add to it."""
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    shape = [1] * layer.weight.dim()
    shape[axis] = -1
    layer.weight.mul_(factor.view(shape))
    if layer.bias is None:
        layer.bias = nn.Parameter(offset)
    else:
        layer.bias.mul_(factor).add_(offset)
    layer.requires_grad_(False)
