"""Almost-orthogonal layers."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from models.constraints.base import Constraint
from models.constraints.layers import layers
from models.lipschitz import Layer, from_phases, to_phases


class AlmostOrthogonal(Constraint):
    """Scale each layer's inputs so that its norm is at most 1 (Prach and Lampert 2022, theorem 1).

    ``W <- W D`` with ``D_j = (sum_i |W^T W|_ij)^(-1/2)``: a closed form, without iteration. For a
    convolution the sums run over the kernel's correlation with itself; with a stride, positions at
    the same offset within the stride count as channels of their own.
    """

    kind: Literal["aol"] = "aol"

    guarantee = (
        "Each dense and convolutional layer's operator norm is at most 1 by construction; the "
        "critic's slope follows from how they are joined."
    )

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Give every dense and convolutional layer a rescaled weight."""
        for layer in list(layers(critic)):
            parametrize.register_parametrization(layer, "weight", _Rescaled(layer))
        return critic


class _Rescaled(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.stride = () if isinstance(layer, nn.Linear) else layer.stride

    def forward(self, weight: Tensor) -> Tensor:
        phases = to_phases(weight, self.stride)  # (out, in * phases, *taps)
        if not self.stride:
            sums = (phases.T @ phases).abs().sum(0)
        else:
            swapped = phases.transpose(0, 1)
            correlate = F.conv1d if weight.dim() == 3 else F.conv2d
            padding = [taps - 1 for taps in phases.shape[2:]]
            sums = correlate(swapped, swapped, padding=padding).abs().flatten(1).sum(1)
        # The sum is zero for an input with zero weights only; they stay zero.
        factors = torch.rsqrt(sums.clamp_min(torch.finfo(sums.dtype).tiny))
        phases = phases * factors.view(1, -1, *[1] * (weight.dim() - 2))
        return from_phases(phases, weight.shape, self.stride)
