"""Operator norms of dense and convolutional layers, bounded from above."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
ROUNDING = 1e-6
"""Relative tolerance, far above what float64 loses in a singular value or in a slope."""
GRID = 32
"""Frequencies for each degree of a kernel; its norm is then bounded within 0.12% an axis."""


class NoBoundError(Exception):
    """No honest bound of a module's slope exists; the message says why."""


def operator_norm(layer: Layer) -> float:
    """Bound the largest singular value of a layer's linear map from above.

    Dense layers by their singular values; convolutions by `kernel_norm`, for maps of any size.

    Raises:
        NoBoundError: the convolution is of a kind that has no such bound here.
    """
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return largest_singular_value(weight) * (1 + ROUNDING)
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
        stride: stride along each axis.

    Returns:
        The bound, above the norm on infinite maps by less than 0.13% an axis.
    """
    phases = to_phases(kernel.double(), stride)
    taps = phases.shape[2:]
    sizes = [GRID * (t - 1) or 1 for t in taps]
    symbol = torch.fft.rfftn(phases, s=sizes, dim=tuple(range(2, phases.dim())))
    matrices = symbol.flatten(2).permute(2, 0, 1)
    slack = math.prod(math.cos(math.pi * (t - 1) / 2 / n) for t, n in zip(taps, sizes, strict=True))
    # No entry of the symbol exceeds the sum of its taps' sizes; weights of one sign reach that.
    largest = largest_singular_value(phases.abs().flatten(2).sum(2))
    return min(largest_singular_value(matrices) / slack, largest) * (1 + ROUNDING)


def largest_singular_value(matrices: Tensor) -> float:
    """Largest singular value over all matrices of a batch, in float64."""
    adjoint = matrices.mH
    small = matrices.shape[-2] <= matrices.shape[-1]
    return math.sqrt(largest_eigenvalue(matrices @ adjoint if small else adjoint @ matrices))


def largest_eigenvalue(matrices: Tensor) -> float:
    """Largest eigenvalue over a batch of Hermitian matrices of none below 0, in float64."""
    gram = matrices.reshape(-1, *matrices.shape[-2:])
    # The norm of a power bounds the largest eigenvalue, so eigenvalues need computing only where
    # that bound is above the best found so far.
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
    return best


def to_phases(kernel: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Rewrite the kernel of a convolution with a stride as one of stride 1 with more channels.

    Input positions at the same offset within the stride become a channel of their own. That only
    permutes the input, so no norm changes.

    Args:
        kernel: ``(out, in, *taps)``.
        stride: stride along each axis; empty for a dense weight, which stays as it is.

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
