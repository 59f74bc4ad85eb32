"""A convolution that is fast where its gradient is differentiated again, as by a gradient penalty.

Torch finds the weight's derivative of an input gradient by a convolution with batch and channels
exchanged, at up to twice the cost of the kernel that finds any other weight gradient, and keeps to
the layout that its input came in. This one uses that kernel throughout, on channels-last maps;
weights and their gradients stay in torch's own layout. On a processor an image's own gradient, of
few channels, is a matrix product whose columns are added up: the kernel would fill up to sixteen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

Three = tuple[Tensor | None, Tensor | None, Tensor | None]
"""``y``, ``x`` and ``w`` of the form ``<y, x * w>``, which is linear in each; one is missing."""

_FEW = 3
"""Channels of an image; of eight the kernel is faster."""


class _Geometry(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    x: torch.Size
    w: torch.Size

    def derivative(self, three: Three, bias: Tensor | None) -> Tensor:
        """Of the form, by the one that is missing: convolution, its adjoint, weight gradient."""
        y, x, w = three
        how = *self[:3], False, [0, 0], self.groups
        result: Tensor
        if y is None:
            assert x is not None
            assert w is not None
            result = torch.ops.aten.convolution(_last(x), _last(w), bias, *how)
            return result
        y = _last(y)
        if x is None and y.device.type == "cpu" and self.x[1] <= _FEW and self.groups == 1:
            assert w is not None
            # Of two dimensions: with three, which product torch takes depends on requires_grad.
            rows = y.permute(0, 2, 3, 1).flatten(0, 2) @ w.flatten(1)
            columns = rows.view(len(y), y.shape[2] * y.shape[3], rows.shape[1]).mT
            sizes = self.x[2:], self.w[2:], self.dilation, self.padding, self.stride
            result = torch.ops.aten.col2im(columns, *map(list, sizes))
            return result
        # Of the one that is missing the kernel reads the shape alone.
        given = [
            torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
            if z is None
            else _last(z)
            for z, shape in ((x, self.x), (w, self.w))
        ]
        mask = [x is None, w is None, False]
        result = torch.ops.aten.convolution_backward(y, *given, None, *how, mask)[mask.index(True)]
        return result if x is None else result.contiguous()


def _last(x: Tensor) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    if x.shape[1] == 1:  # laid out either way, it would be taken for torch's own
        x = x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x


def _derivative(three: Three, geometry: _Geometry, bias: Tensor | None = None) -> Tensor:
    """As `_Geometry.derivative`, and itself differentiable, as often as one likes.

    To autograd it is a sum of one function of each tensor, for of a function of two it would always
    run both derivatives, also where only one is asked for.
    """
    with torch.no_grad():
        value = geometry.derivative(three, bias)
    if not torch.is_grad_enabled():
        return value
    parts = [
        _Part.apply(z, three, i, geometry, value)
        for i, z in enumerate(three)
        if z is not None and z.requires_grad
    ]
    if bias is not None and bias.requires_grad:
        parts.append(bias[:, None, None].expand_as(value))
    return _Sum.apply(value, *parts) if parts else value


class _Part(Function):
    """A stand-in, without a value, for the dependence on one of the three."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, three: Three, own: int, geometry: _Geometry, value: Tensor
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*three)
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
    """The value, which depends on what the parts depend on."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parts: Tensor) -> Tensor:
        ctx.count = len(parts)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[gradient] * ctx.count


class Conv2d(nn.Conv2d):
    """As torch's, padded with zeros by numbers, but for the cost of a second derivative."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        device = input.device.type
        if torch.is_autocast_enabled(device):  # which does not reach into a backward pass
            kind = torch.get_autocast_dtype(device)
            input, weight = input.to(kind), weight.to(kind)
            bias = None if bias is None else bias.to(kind)
        assert not isinstance(self.padding, str)
        geometry = _Geometry(
            self.stride, self.padding, self.dilation, self.groups, input.shape, weight.shape
        )
        return _derivative((None, input, weight), geometry, bias)


class Head(nn.Linear):
    """A dense layer of whole maps, as torch's after `nn.Flatten`, but of maps as they lie.

    Channels-last maps would be copied at each forward and backward; the order of the weight's
    columns, which is that of flattened maps, is changed instead.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, out_features)``."""
        weight = self.weight.unflatten(1, maps.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        return F.linear(maps.permute(0, 2, 3, 1).flatten(1), weight, self.bias)
