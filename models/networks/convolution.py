"""A convolution with a fast second derivative, for gradient penalties.

torch computes the weight's derivative of an input gradient by a convolution with batch and channels
exchanged. That costs up to twice as much as the kernel for ordinary weight gradients, and keeps the
layout of its input. This module uses the ordinary kernel throughout, on channels-last maps; weights
and their gradients keep torch's own layout. On a CPU the gradient of an image, which has few
channels, is computed by a matrix product and `col2im`, because the kernel pads channels to sixteen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

Operands = tuple[Tensor | None, Tensor | None, Tensor | None]
"""``y``, ``x`` and ``w`` of the form ``<y, x * w>``, which is linear in each; one is None."""

_MAX_IMAGE_CHANNELS = 3
"""Up to this many channels the matrix product is faster; with eight the kernel is."""


class _Geometry(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    x: torch.Size
    w: torch.Size

    def derivative(self, operands: Operands, bias: Tensor | None) -> Tensor:
        """Differentiate the form by the operand that is None.

        That gives the convolution (for y), its adjoint (for x) or the weight gradient (for w).
        """
        y, x, w = operands
        how = *self[:3], False, [0, 0], self.groups
        if y is None:
            assert x is not None
            assert w is not None
            return torch.ops.aten.convolution(_last(x), _last(w), bias, *how)
        y = _last(y)
        if (
            x is None
            and y.device.type == "cpu"
            and self.x[1] <= _MAX_IMAGE_CHANNELS
            and self.groups == 1
        ):
            assert w is not None
            # Two dimensions: with three, torch's choice of product depends on requires_grad.
            rows = y.permute(0, 2, 3, 1).flatten(0, 2) @ w.flatten(1)
            columns = rows.view(len(y), y.shape[2] * y.shape[3], rows.shape[1]).mT
            sizes = self.x[2:], self.w[2:], self.dilation, self.padding, self.stride
            return torch.ops.aten.col2im(columns, *map(list, sizes))
        # The kernel reads only the shape of the missing operand.
        inputs = [
            torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
            if z is None
            else _last(z)
            for z, shape in ((x, self.x), (w, self.w))
        ]
        mask = [x is None, w is None, False]
        result = torch.ops.aten.convolution_backward(y, *inputs, None, *how, mask)[mask.index(True)]
        return result if x is None else result.contiguous()


def _last(x: Tensor) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    if x.shape[1] == 1:  # both layouts are alike, and torch would take it for its own
        x = x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x


def _derivative(operands: Operands, geometry: _Geometry, bias: Tensor | None = None) -> Tensor:
    """Compute `_Geometry.derivative` so that it can be differentiated any number of times.

    For autograd it is a sum of functions of one tensor each: for a function of two tensors autograd
    would always run both derivatives, even where only one is needed.
    """
    with torch.no_grad():
        value = geometry.derivative(operands, bias)
    if not torch.is_grad_enabled():
        return value
    parts = [
        _Part.apply(z, operands, i, geometry, value)
        for i, z in enumerate(operands)
        if z is not None and z.requires_grad
    ]
    if bias is not None and bias.requires_grad:
        parts.append(bias[:, None, None].expand_as(value))
    return _Sum.apply(value, *parts) if parts else value


class _Part(Function):
    """Stand-in without a value for the dependence on one operand."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, operands: Operands, own: int, geometry: _Geometry, value: Tensor
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands)
        ctx.own, ctx.geometry = own, geometry
        return value.new_empty(()).expand_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None, None
        y, x, w = (
            None if i == ctx.own else gradient if z is None else z
            for i, z in enumerate(ctx.saved_tensors)
        )
        return _derivative((y, x, w), ctx.geometry), None, None, None, None


class _Sum(Function):
    """The value, with the dependences of its parts."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parts: Tensor) -> Tensor:
        ctx.count = len(parts)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[gradient] * ctx.count


class Conv2d(nn.Conv2d):
    """torch's Conv2d with a fast second derivative; the padding must be zeros, given as numbers."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        device = input.device.type
        if torch.is_autocast_enabled(device):  # autocast does not reach into a backward pass
            kind = torch.get_autocast_dtype(device)
            input, weight = input.to(kind), weight.to(kind)
            bias = None if bias is None else bias.to(kind)
        assert not isinstance(self.padding, str)
        geometry = _Geometry(
            self.stride, self.padding, self.dilation, self.groups, input.shape, weight.shape
        )
        return _derivative((None, input, weight), geometry, bias)


class Head(nn.Linear):
    """Dense layer on maps, equal to `nn.Flatten` followed by `nn.Linear`.

    Flattening channels-last maps would copy them in each forward and backward. This layer permutes
    the weight's columns instead; the weight itself keeps the order of flattened maps.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, out_features)``."""
        weight = self.weight.unflatten(1, maps.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        return F.linear(maps.permute(0, 2, 3, 1).flatten(1), weight, self.bias)
