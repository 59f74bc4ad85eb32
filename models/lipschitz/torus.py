"""Convolutions and pools of maps that lie on a torus, by frequency.

A torus has room for the maps and for the padding, so that no window reaches around it: there a
convolution with zero padding is a circular one, and its symbol a matrix for each frequency. Axes
are ``(H, W)``, and frequencies are numbered in the order of a flattened ``torch.fft.fft2``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.lipschitz.operators import NoBoundError
from models.networks import Critic
from models.networks.conditional import ProjectionCritic, WithLabels
from models.networks.skips import InputSkips

Sizes = tuple[int, ...]


def torus_for(critic: nn.Module, size: Sizes) -> Sizes:
    """Size of a torus for all maps of a critic of images, from the image inwards."""
    convolutions = (m for m in critic.modules() if isinstance(m, nn.Conv2d))
    padding = max([1, *(n for m in convolutions for n in m.padding if isinstance(n, int))])
    return tuple(
        s * (-(-n // s) + padding) for n, s in zip(size, _total_stride(critic), strict=True)
    )


def _total_stride(module: nn.Module) -> Sizes:
    """How many times smaller a critic makes maps, before they become vectors."""
    if isinstance(module, nn.Conv2d | nn.AvgPool2d):
        return pair(module.stride)
    if isinstance(module, Critic | WithLabels | ProjectionCritic):
        parts = [next(module.children())]
    elif isinstance(module, InputSkips):
        parts = list(module.stages)
    elif isinstance(module, nn.Sequential):
        parts = list(module)
        # A pool before a flattening takes the mean over whole maps.
        parts = [
            part
            for part, then in zip(parts, [*parts[1:], None], strict=True)
            if not (isinstance(part, nn.AvgPool2d) and isinstance(then, nn.Flatten))
        ]
    else:
        branch = getattr(module, "branch", None)
        parts = [branch] if isinstance(branch, nn.Module) else []
    strides = [_total_stride(part) for part in parts]
    return math.prod(s[0] for s in strides), math.prod(s[1] for s in strides)


def after(layer: nn.Conv2d, size: Sizes, torus: Sizes) -> Sizes:
    """Size of a convolution's result.

    Raises:
        NoBoundError: its windows would reach around the torus, or its padding is not with zeros.
    """
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise NoBoundError(f"no symbol is known for padding mode '{layer.padding_mode}'")
    sizes = []
    for axis, (taps, stride) in enumerate(zip(layer.kernel_size, layer.stride, strict=True)):
        padding, reach = layer.padding[axis], layer.dilation[axis] * (taps - 1)
        sizes.append((size[axis] + 2 * padding - reach - 1) // stride + 1)
        # No window reads beyond the padding on the far side, nor further on the near one.
        if torus[axis] % stride or torus[axis] < size[axis] + padding:
            raise NoBoundError("the convolution's windows reach around the torus")
    return tuple(sizes)


def symbol_of(layer: nn.Conv2d, torus: Sizes) -> Tensor:
    """Matrix of a convolution, with stride 1, for each frequency: complex128 ``(F, out, in)``.

    Output p reads the inputs ``p + dilation t - padding``, for each tap t.
    """
    weight = layer.weight.detach().to("cpu", torch.float64)
    outputs, inputs = weight.shape[:2]
    whole = weight.new_zeros(outputs, layer.in_channels, *weight.shape[2:])
    for group, part in enumerate(weight.chunk(layer.groups)):
        columns = slice(group * inputs, (group + 1) * inputs)
        whole[group * len(part) : (group + 1) * len(part), columns] = part
    waves = [
        _waves(size, layer.dilation[axis] * torch.arange(weight.shape[2 + axis]) - padding)
        for axis, (size, padding) in enumerate(zip(torus, _numbers(layer.padding), strict=True))
    ]
    symbol = torch.einsum("oiab,xa,yb->xyoi", whole.to(torch.complex128), *waves)
    return symbol.flatten(0, 1)


def mean_symbol(kernel: Sizes, torus: Sizes) -> Tensor:
    """Factor of each frequency in means over windows, with stride 1: complex128 ``(F,)``."""
    rows, columns = (
        _waves(size, torch.arange(k)).mean(dim=1) for size, k in zip(torus, kernel, strict=True)
    )
    return torch.outer(rows, columns).flatten()


def subsampled(x: Tensor, torus: Sizes, stride: Sizes) -> Tensor:
    """Shape matrices of maps of which each stride-th position is kept.

    In each axis the s frequencies k, k + N / s, .. become one, by their sum over the root of s.

    Args:
        x: ``(F, C, C)``.
        torus: of the maps before.
        stride: divides it.
    """
    rows, columns = (n // s for n, s in zip(torus, stride, strict=True))
    aliases = x.view(stride[0], rows, stride[1], columns, *x.shape[1:])
    return aliases.mean(dim=(0, 2)).flatten(0, 1)


def waves_of(weight: Tensor, torus: Sizes) -> Tensor:
    """Weights ``(out, C, H, W)`` of maps as amplitudes of waves, complex128 ``(F, C, out)``."""
    return torch.fft.fft2(weight, s=torus, norm="ortho").flatten(2).permute(2, 1, 0)


def is_whole(pool: nn.AvgPool2d, size: Sizes) -> bool:
    """True if a pool's windows fill the maps and share no position."""
    kernel = pair(pool.kernel_size)
    fills = all(n % k == 0 for n, k in zip(size, kernel, strict=True))
    return fills and pair(pool.stride) == kernel and not any(pair(pool.padding))


def pair(value: int | Sizes) -> Sizes:
    """A number for both axes, or one for each, as one for each."""
    return (value, value) if isinstance(value, int) else value


def _numbers(padding: str | Sizes) -> Sizes:
    assert not isinstance(padding, str)
    return padding


def _waves(size: int, places: Tensor) -> Tensor:
    """Values of each frequency's wave at some places, complex128 ``(size, places)``."""
    turns = torch.outer(torch.arange(size), places).remainder(size).double() / size
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)
