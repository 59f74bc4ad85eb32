"""Piecewise linear layers: ReLU, LeakyReLU, Abs, GroupSort and average pooling.

Their second derivative is zero. A gradient penalty is differentiated twice: torch's own layers then
return tensors of zeros, and a whole backward pass of zeros runs through the critic. These layers
give the same values and gradients without that pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F


class _Gate(Function):
    """Product of a gradient and the layer's slope; linear in the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, output: Tensor, slope: float) -> Tensor:
        if gradient.stride() != output.stride():  # the kernel is many times slower on mixed layouts
            gradient = torch.empty_like(output).copy_(gradient)
        if slope:
            return torch.ops.aten.leaky_relu_backward(gradient, output, slope, True)
        return torch.ops.aten.threshold_backward(gradient, output, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1])
        ctx.slope = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        if gradient is None:
            return None, None, None
        return _Gate.apply(gradient, *ctx.saved_tensors, ctx.slope), None, None


class _Rectify(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(x, slope) if slope else F.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output)
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return None, None
        (output,) = ctx.saved_tensors
        # Detached: the slope is constant wherever it has a derivative.
        return _Gate.apply(gradient, output.detach(), ctx.slope), None


class _Windows(Function):
    """Base of linear functions of maps and of a window's size."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, int]], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.size = inputs[1]


class _Pool(_Windows):
    """Mean over windows; `_Spread` is its adjoint."""

    @staticmethod
    def forward(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.avg_pool2d(x, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if gradient is None else _Spread.apply(gradient, ctx.size)), None


class _Spread(_Windows):
    """Each value divided by the window's size and spread over its window; adjoint of `_Pool`."""

    @staticmethod
    def forward(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x / (size[0] * size[1]), scale_factor=size, mode="nearest")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if gradient is None else _Pool.apply(gradient, ctx.size)), None


class ReLU(nn.ReLU):
    """torch's ReLU, with a second derivative that costs nothing."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute ``max(0, x)``, of any shape."""
        return _Rectify.apply(input, 0.0)


class LeakyReLU(nn.LeakyReLU):
    """torch's LeakyReLU, for slopes above 0, with a second derivative that costs nothing."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute ``max(x, slope x)``, of any shape."""
        return _Rectify.apply(input, self.negative_slope)


class Abs(nn.Module):
    """Absolute value; its slope is 1 or -1, so it keeps a gradient's norm (Anil et al. 2019)."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute ``|x|``, of any shape."""
        # Detached: the slope is constant wherever it has a derivative.
        return input * input.detach().sign()


class GroupSort(nn.Module):
    """Sorting of each pair of channels (Anil et al. 2019, section 4.1, groups of 2: MaxMin).

    It keeps every gradient's norm; ReLU does not. Takes and returns ``(N, C, ...)``; if C is odd,
    the last channel passes unchanged.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Sort the pairs, larger first."""
        pairs = x.shape[1] // 2
        first, second = x[:, : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2]
        largest, smallest = torch.maximum(first, second), torch.minimum(first, second)
        return torch.cat([largest, smallest, x[:, 2 * pairs :]], dim=1)


class AvgPool2d(nn.AvgPool2d):
    """torch's average pooling, with a second derivative that costs nothing.

    The stride must be the default, the window's size. Where windows do not fill the map exactly, it
    is torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Average over windows: ``(N, C, H, W)`` to ``(N, C, H / h, W / w)``."""
        size = self.kernel_size
        height, width = (size, size) if isinstance(size, int) else size
        if input.shape[-2] % height or input.shape[-1] % width:
            return super().forward(input)
        return _Pool.apply(input, (height, width))
