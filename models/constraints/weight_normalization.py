"""Weight normalisation."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.constraints.base import Constraint
from models.constraints.layers import as_matrix, layers


class WeightNormalization(Constraint):
    """Use ``g * v / |v|`` for each neuron's weights (Salimans and Kingma 2016, eq. 2).

    With a fixed gain of 1 each row of a weight has length 1; Miyato et al. 2018 (section 3) compare
    this form with spectral normalisation. With a trained gain nothing is limited.
    """

    kind: Literal["weight_normalization"] = "weight_normalization"
    gain: Literal["fixed", "trained"] = "fixed"

    guarantee = (
        "With a fixed gain each neuron's weight vector has length 1, so a dense layer's slope is "
        "at most the square root of its neurons; with a trained gain, nothing."
    )

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Parametrise the weights of every dense and convolutional layer in that form."""
        for layer in list(layers(critic)):
            unit = _UnitRows(layer.weight, trained=self.gain == "trained")
            parametrize.register_parametrization(layer, "weight", unit)
        return critic


class _UnitRows(nn.Module):
    def __init__(self, weight: Tensor, *, trained: bool) -> None:
        super().__init__()
        norms = torch.linalg.vector_norm(as_matrix(weight.detach()), dim=1)
        self.gain = nn.Parameter(norms) if trained else None

    def forward(self, weight: Tensor) -> Tensor:
        rows = as_matrix(weight)
        rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        if self.gain is not None:
            rows = rows * self.gain[:, None]
        return rows.view_as(weight)
