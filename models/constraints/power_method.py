"""The power method: an estimate of a layer's largest singular value, updated step by step."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import normalize

from models.constraints.layers import as_matrix
from models.lipschitz import Layer

Method = Literal["reshaped", "operator"]
FIRST_ITERATIONS = 30
"""Number of iterations on a new critic, from random vectors; later steps start nearly right."""
MAP = 16
"""Side of the map on which a convolution's norm is measured. With zero padding the norm grows with
the map towards a limit; at 16 it is within a few per cent of it for kernels up to 5."""


class PowerMethod(nn.Module):
    """Left and right singular vectors of a layer's linear map, as buffers that are saved with it.

    Only `iterate` changes them, so a forward never does.
    """

    left: Tensor
    right: Tensor

    def __init__(self, layer: Layer, method: Method) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.convolution: dict[str, Any] = {}
        shape: tuple[int, ...] = (as_matrix(weight).shape[1],)
        if method == "operator" and not isinstance(layer, nn.Linear):
            self.convolution = {
                "stride": layer.stride,
                "padding": tuple(map(int, layer.padding)),
                "dilation": layer.dilation,
                "groups": layer.groups,
            }
            shape = (1, layer.in_channels, *[MAP] * len(layer.kernel_size))
        self.register_buffer("right", _unit(torch.randn(shape).to(weight)))
        self.register_buffer("left", _unit(torch.zeros_like(self._apply_map(weight, self.right))))
        self.iterate(weight, FIRST_ITERATIONS)

    def _apply_map(self, weight: Tensor, x: Tensor) -> Tensor:
        if not self.convolution:
            return as_matrix(weight).mv(x)
        if weight.dim() == 3:
            return F.conv1d(x, weight, **self.convolution)
        return F.conv2d(x, weight, **self.convolution)

    @torch.no_grad()
    def iterate(self, weight: Tensor, times: int = 1) -> None:
        """Advance both vectors: ``left = A right``, ``right = A^T left``, each to length 1."""
        for _ in range(times):
            self.left.copy_(_unit(self._apply_map(weight, self.right)))
            self.right.copy_(_unit(self._apply_adjoint(weight, self.left)))

    def _apply_adjoint(self, weight: Tensor, y: Tensor) -> Tensor:
        if not self.convolution:
            return as_matrix(weight).T.mv(y)
        # The adjoint of a linear map is the derivative of <map(x), y> with respect to x.
        with torch.enable_grad():
            x = torch.zeros_like(self.right).requires_grad_()
            inner = (self._apply_map(weight, x) * y).sum()
        return torch.autograd.grad(inner, x)[0]

    def sigma(self, weight: Tensor) -> Tensor:
        """Estimate the largest singular value, from below, as ``<left, A right>``."""
        return (self.left * self._apply_map(weight, self.right)).sum()


def _unit(x: Tensor) -> Tensor:
    return normalize(x.flatten(), dim=0).view_as(x)
