"""Projection onto weights of bounded operator norm."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.layers import largest_singular_value, layers
from models.constraints.power_method import PowerMethod
from models.networks.initial import trained_weight

TOLERANCE = 1.0
"""Largest accepted relative excess of a dense layer's norm. The power method lags behind weights
that move fast; weights that were never projected exceed the bound by far more."""


class SpectralProjection(Constraint):
    """Scale weights back after each step, where they are too large (Gouk et al. 2021, eq. 15).

    ``W <- W / max(1, sigma(W) / c)``, with sigma the operator norm of the layer; a convolution
    counts as a linear map, not as a reshaped kernel. Unlike with spectral normalisation, weights
    below the bound stay as they are, and the forward costs nothing.
    """

    kind: Literal["spectral_projection"] = "spectral_projection"
    max_norm: float = Field(default=1.0, gt=0)
    """Largest operator norm of a layer; c in the formula."""
    iterations: int = Field(default=2, ge=1)
    """Number of iterations of the power method before each projection."""

    guarantee = (
        "Each dense and convolutional layer's operator norm is at most max_norm, but for what the "
        "power method underestimates; the critic's slope follows from how they are joined."
    )

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Give each layer singular vectors to follow, and project the initial weights."""
        for layer in list(layers(critic)):
            layer.add_module("power", PowerMethod(layer, "operator"))
        self.after_critic_step(critic)
        return critic

    def plain_state(self, critic: nn.Module) -> dict[str, Tensor]:
        """The weights, without the singular vectors."""
        state = super().plain_state(critic)
        return {k: t for k, t in state.items() if "power" not in k.split(".")}

    @torch.no_grad()
    def after_critic_step(self, critic: nn.Module) -> None:
        """Project the weights in place."""
        for layer in layers(critic):
            layer.power.iterate(layer.weight, self.iterations)  # type: ignore[operator, union-attr]
            sigma = layer.power.sigma(layer.weight)  # type: ignore[operator, union-attr]
            trained_weight(layer)[0].div_((sigma / self.max_norm).clamp_min(1))

    def broken_claim(self, critic: nn.Module) -> str | None:
        """Check the norms of dense layers."""
        dense = (layer for layer in layers(critic) if isinstance(layer, nn.Linear))
        largest = largest_singular_value(dense)
        if largest <= self.max_norm * (1 + TOLERANCE):
            return None
        return f"a layer's norm is {largest:.4g}, above max_norm {self.max_norm:g}"
