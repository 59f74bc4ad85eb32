"""Spectral normalisation."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrize

from models.constraints.base import Constraint

FIRST_ITERATIONS = 30
"""Of the power method, on a new critic: its start is random, each later step's is nearly right."""


class SpectralNorm(Constraint):
    """Divide each weight by its largest singular value (Miyato et al. 2018, eqs. 7 and 8).

    A convolution's kernel is taken as a matrix of output channels by everything else, as in the
    paper. The power method advances once a critic step, in the hook after it: never in a
    forward, so neither evaluation nor a second forward in one step changes the critic.
    """

    kind: Literal["spectral_norm"] = "spectral_norm"

    guarantee: ClassVar[str] = (
        "Each weight, kernels reshaped to a matrix, has a largest singular value near 1; the "
        "power method may leave it a little above, and a convolution's own norm may be larger."
    )
    published: ClassVar[dict[str, Any]] = {
        "optimizer": "adam",
        "learning_rate": 2e-4,
        "betas": (0.0, 0.9),
        "num_critic_steps": 5,
    }

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Give every dense and convolutional layer a normalised weight."""
        for module in list(critic.modules()):
            if isinstance(module, nn.Linear | nn.Conv2d):
                division = _DivideByNorm(module.weight)
                parametrize.register_parametrization(module, "weight", division)
        return critic

    def after_critic_step(self, critic: nn.Module) -> None:
        """One iteration of the power method for each weight."""
        for module, division in _divisions(critic):
            division.iterate(module.parametrizations.weight.original)  # type: ignore[union-attr, arg-type]


class _DivideByNorm(nn.Module):
    """``weight / sigma`` with sigma = left . weight . right for the singular vectors held."""

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.register_buffer("left", normalize(torch.randn(rows).to(weight), dim=0))
        self.register_buffer("right", normalize(torch.randn(columns).to(weight), dim=0))
        self.iterate(weight, FIRST_ITERATIONS)

    @torch.no_grad()
    def iterate(self, weight: Tensor, times: int = 1) -> None:
        matrix = weight.flatten(1)
        for _ in range(times):
            self.right.copy_(normalize(matrix.T @ self.left, dim=0))
            self.left.copy_(normalize(matrix @ self.right, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        # The vectors are constants here: that gives sigma's exact derivative (eq. 10).
        return weight / torch.dot(self.left, weight.flatten(1).mv(self.right))


def _divisions(critic: nn.Module) -> Iterator[tuple[nn.Module, _DivideByNorm]]:
    for module in critic.modules():
        if parametrize.is_parametrized(module, "weight"):
            for division in module.parametrizations.weight:  # type: ignore[union-attr]
                if isinstance(division, _DivideByNorm):
                    yield module, division
