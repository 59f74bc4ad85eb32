"""Orthonormal weights."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.constraints.base import Constraint
from models.constraints.layers import as_matrix, layers, overlap
from models.lipschitz import Layer

TOLERANCE = 1e-3
"""How far from its value a singular value may be."""
SMALLEST_ERROR = 1e-6
"""Of the Gram matrix, where retraction stops: float32 has no more digits."""


class Bjorck(Constraint):
    """Keep every weight's singular values at 1 (Anil et al. 2019, section 4.2).

    Gradients pass such layers undiminished, so with GroupSort (``critic.activation=groupsort``)
    the critic can be steep everywhere and still certified. A kernel is taken as a matrix of
    output channels by everything else and divided by the square root of how many windows read
    one pixel, which bounds the convolution's own norm by 1.

    ``iterate`` orthonormalises in each forward: ``W <- 1.5 W - 0.5 W W^T W`` (Bjorck and Bowie
    1971), repeatedly. ``project`` keeps the weights themselves orthonormal: the gradient is
    projected onto the tangent space of the orthonormal matrices before the optimiser sees it
    (``A = G W^T; G <- G - (A + A^T) W / 2``), and that iteration pulls the weights back after the
    step; at a fraction of the cost.
    """

    kind: Literal["bjorck"] = "bjorck"
    method: Literal["project", "iterate"] = "project"
    iterations: int = Field(default=15, ge=1)
    """Of ``iterate``; ``project`` needs one or two."""

    guarantee: ClassVar[str] = (
        "Each layer's weight has singular values of 1 (with method iterate: at most 1), so the "
        "critic's slope is at most 1 with activations that are 1-Lipschitz."
    )
    published: ClassVar[dict[str, Any]] = {
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "betas": (0.9, 0.99),
        "num_critic_steps": 5,
    }

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Make the weights orthonormal, and keep their gradients tangent or their forwards so."""
        for layer in list(layers(critic)):
            scale = _scale(layer)
            with torch.no_grad():
                layer.weight.copy_(scale * _nearest(as_matrix(layer.weight)).view_as(layer.weight))
            if self.method == "iterate":
                orthonormal = _Orthonormal(self.iterations, scale)
                parametrize.register_parametrization(layer, "weight", orthonormal)
            else:
                layer.weight.register_post_accumulate_grad_hook(_Tangent(scale))  # type: ignore[no-untyped-call]
        return critic

    @torch.no_grad()
    def after_critic_step(self, critic: nn.Module) -> None:
        """Retract in place."""
        if self.method == "project":
            for layer in layers(critic):
                scale = _scale(layer)
                matrix = _retract(as_matrix(layer.weight) / scale)
                layer.weight.copy_(scale * matrix.view_as(layer.weight))

    def broken_claim(self, critic: nn.Module) -> str | None:
        """See the base class."""
        for layer in layers(critic):
            values = torch.linalg.svdvals(as_matrix(layer.weight.detach()).double() / _scale(layer))
            low, high = values.min().item(), values.max().item()
            if high > 1 + TOLERANCE or (self.method == "project" and low < 1 - TOLERANCE):
                return f"a weight's singular values are {low:.4g} to {high:.4g}, not 1"
        return None


def _scale(layer: Layer) -> float:
    return float(overlap(layer) ** -0.5)


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _iteration(wide: Tensor) -> Tensor:
    return 1.5 * wide - 0.5 * (wide @ wide.T) @ wide


def _nearest(matrix: Tensor) -> Tensor:
    """The orthonormal matrix nearest to one, by its singular value decomposition."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def _retract(matrix: Tensor) -> Tensor:
    """The same, for a matrix that is nearly orthonormal already."""
    wide = _wide(matrix)
    gram = wide @ wide.T
    error = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm().item()
    if not error < 1:  # the iteration might not converge
        return _nearest(matrix)
    while error > SMALLEST_ERROR:
        wide = _iteration(wide)
        # An eigenvalue 1 + e of the Gram matrix becomes (1 + e)(1 - e / 2)^2.
        error = 0.75 * error**2 + 0.25 * error**3
    return wide if wide.shape == matrix.shape else wide.T


class _Tangent:
    """Takes from a weight's gradient what would lead away from orthonormal matrices."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    @torch.no_grad()
    def __call__(self, weight: Tensor) -> None:
        if weight.grad is None:
            return
        wide, gradient = _wide(as_matrix(weight)) / self.scale, as_matrix(weight.grad)
        turned = gradient.shape != wide.shape
        along = (gradient.T if turned else gradient) @ wide.T
        away = 0.5 * (along + along.T) @ wide
        weight.grad.sub_((away.T if turned else away).view_as(weight.grad))


class _Orthonormal(nn.Module):
    def __init__(self, iterations: int, scale: float) -> None:
        super().__init__()
        self.iterations = iterations
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        wide = _wide(as_matrix(weight))
        # sqrt(|W|_1 |W|_inf) is at least the largest singular value, so all are at most 1 and the
        # iteration raises them towards 1 but never above.
        wide = wide / (wide.abs().sum(0).max() * wide.abs().sum(1).max()).sqrt()
        for _ in range(self.iterations):
            wide = _iteration(wide)
        matrix = wide if wide.shape == as_matrix(weight).shape else wide.T
        return self.scale * matrix.reshape(weight.shape)
