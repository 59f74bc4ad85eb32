"""A generator for serving: what batch normalisation does in eval mode, done by the layer before.

Activations write over what the layer before made, and are torch's own, without cheap second
derivatives: in a DCGAN of 28x28 images that saves a seventh of the time.
"""

from __future__ import annotations

import copy
import typing

import torch
from torch import Tensor, nn

from models.networks.piecewise import LeakyReLU, ReLU

Foldable = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


def fold(generator: nn.Module) -> nn.Module:
    """Copy a generator in eval mode, with its batch normalisations folded into layers.

    Its activations become torch's own, in place where nothing else needs what they write over.
    The values are the same up to rounding. Normalisations that follow no layer directly stay, as
    in a residual network's or a class-conditional one's.
    """
    copied = copy.deepcopy(generator).eval()
    for part in list(copied.modules()):
        if isinstance(part, nn.Sequential):
            _fold_in(part)
    return copied


def channels_last(generator: nn.Module) -> nn.Module:
    """Lay out a folded generator's kernels so that maps are channels-last: its own are changed."""
    # Torch leaves this argument untyped.
    return generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class InHalf(nn.Module):
    """A generator that works in bfloat16, eight bits of precision, between float32 ends."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = copy.deepcopy(generator).bfloat16()

    def forward(self, z: Tensor, *labels: Tensor) -> Tensor:
        """Latents ``(N, latent_size)``, and labels ``(N,)`` if it takes any, to samples."""
        samples: Tensor = self.generator(z.bfloat16(), *labels)
        return samples.float()


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
    is_ours = False  # whether what comes in was made by a layer of torch's, which needs it no more
    for i, module in enumerate(sequence):
        if is_ours and isinstance(module, ReLU):
            sequence[i] = nn.ReLU(inplace=True)
        elif is_ours and isinstance(module, LeakyReLU):
            sequence[i] = nn.LeakyReLU(module.negative_slope, inplace=True)
        if not isinstance(module, nn.Identity | nn.Unflatten):
            is_ours = type(module) in typing.get_args(Foldable)


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
