"""Max-norm: each neuron's incoming weights are clipped as one vector."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from models.constraints.base import Constraint
from models.constraints.layers import as_matrix, layers
from models.networks.initial import trained_weight

ROUNDING = 1e-5


class NormClipping(Constraint):
    """Shorten each neuron's weight vector to at most c after every critic step.

    ``w <- w * min(1, c / |w|)`` for each row of a weight; a kernel counts as a matrix of output
    channels by everything else. Known as max-norm (Srivastava et al. 2014, section 5.1); Gulrajani
    et al. 2017, section 3, tried it in a critic as "L2 norm clipping".
    """

    kind: Literal["norm_clipping"] = "norm_clipping"
    max_norm: float = Field(default=1.0, gt=0)
    """Largest Euclidean length of a neuron's weights; c in the formula."""

    guarantee = (
        "Each neuron's weight vector is at most max_norm long, so a dense layer's slope is at most "
        "max_norm times the square root of its neurons; that is not 1."
    )

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Clip the initial weights, so that the claim holds from the first step on."""
        self.after_critic_step(critic)
        return critic

    @torch.no_grad()
    def after_critic_step(self, critic: nn.Module) -> None:
        """Shorten the weight vectors in place."""
        for layer in layers(critic):
            norms = torch.linalg.vector_norm(as_matrix(layer.weight), dim=1)
            factors = (self.max_norm / norms).clamp_max(1)
            weight, _ = trained_weight(layer)
            weight.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))

    def broken_claim(self, critic: nn.Module) -> str | None:
        """Check the lengths of all weight vectors."""
        lengths = [
            torch.linalg.vector_norm(as_matrix(layer.weight.detach()).double(), dim=1).max().item()
            for layer in layers(critic)
        ]
        longest = max(lengths, default=0.0)
        if longest <= self.max_norm * (1 + ROUNDING):
            return None
        return f"a neuron's weights are {longest:.6g} long, above max_norm {self.max_norm:g}"
