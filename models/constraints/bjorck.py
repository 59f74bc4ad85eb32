"""Orthonormal weights."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.constraints.base import Constraint, adam
from models.constraints.layers import (
    as_matrix,
    full_products,
    layers,
    nearest_orthonormal,
    overlap,
)
from models.lipschitz import Layer
from models.networks.initial import trained_weight

TOLERANCE = 1e-3
"""Largest accepted distance of a singular value from 1."""
SMALLEST_ERROR = 1e-6
"""Error of the Gram matrix at which retraction stops: float32 has no more digits."""
ITERATIONS_ON_GPU = 8
"""Iterations of each retraction on a GPU: enough for errors of the Gram matrix up to 0.97."""


class Bjorck(Constraint):
    """Keep every weight's singular values at 1 (Anil et al. 2019, section 4.2).

    Such layers keep the norm of gradients, so with GroupSort (``critic.activation=groupsort``) the
    critic can have slope 1 everywhere and still be certified. A kernel counts as a matrix of output
    channels by everything else; it is divided by the square root of the number of windows that read
    one pixel, which bounds the convolution's own norm by 1.

    Method ``iterate`` orthonormalises in each forward by repeating ``W <- 1.5 W - 0.5 W W^T W``
    (Bjorck and Bowie 1971). Method ``project`` costs a fraction of that and keeps the weights
    themselves orthonormal: it projects the gradient onto the tangent space of the orthonormal
    matrices before the optimiser sees it (``A = G W^T; G <- G - (A + A^T) W / 2``), and pulls the
    weights back by that iteration after the step.
    """

    kind: Literal["bjorck"] = "bjorck"
    method: Literal["project", "iterate"] = "project"
    iterations: int = Field(default=15, ge=1)
    """Number of iterations of method ``iterate``; ``project`` stops by itself after one or two."""

    guarantee = (
        "Each dense layer's singular values are 1 (with method iterate: at most 1), and each "
        "convolution's at most 1; the critic's slope follows from how they are joined."
    )
    published = adam(learning_rate=1e-3, betas=(0.9, 0.99), num_critic_steps=5)

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Make the weights orthonormal, and project their gradients or parametrise the weights."""
        for layer in list(layers(critic)):
            weight, scale = _trained(layer)
            with torch.no_grad():
                weight.copy_(scale * nearest_orthonormal(as_matrix(weight)).view_as(weight))
            if self.method == "iterate":
                orthonormal = _Orthonormal(self.iterations, _scale(layer))
                parametrize.register_parametrization(layer, "weight", orthonormal)
            else:
                weight.register_post_accumulate_grad_hook(_Tangent(scale))  # type: ignore[no-untyped-call]
        return critic

    @torch.no_grad()
    def after_critic_step(self, critic: nn.Module) -> None:
        """Pull the weights back onto the orthonormal matrices, in place."""
        if self.method == "project":
            for layer in layers(critic):
                weight, scale = _trained(layer)
                matrix = _retract(as_matrix(weight) / scale)
                weight.copy_(scale * matrix.view_as(weight))

    def broken_claim(self, critic: nn.Module) -> str | None:
        """Check the singular values of all weights."""
        for layer in layers(critic):
            values = torch.linalg.svdvals(as_matrix(layer.weight.detach()).double() / _scale(layer))
            low, high = values.min().item(), values.max().item()
            if high > 1 + TOLERANCE or (self.method == "project" and low < 1 - TOLERANCE):
                return f"a weight's singular values are {low:.4g} to {high:.4g}, not 1"
        return None


def _scale(layer: Layer) -> float:
    return float(overlap(layer) ** -0.5)


def _trained(layer: Layer) -> tuple[nn.Parameter, float]:
    """The parameter that training moves, and what all its singular values are to be."""
    parameter, factor = trained_weight(layer)
    return parameter, _scale(layer) / factor


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _iteration(wide: Tensor) -> Tensor:
    return 1.5 * wide - 0.5 * (wide @ wide.T) @ wide


def _retract(matrix: Tensor) -> Tensor:
    """Find the nearest orthonormal matrix of a nearly orthonormal one, by a few iterations.

    On a GPU their number is fixed: to read the error would make the processor wait.
    """
    if matrix.device.type != "cpu":
        return _retract_unread(matrix)
    wide = _wide(matrix)
    gram = wide @ wide.T
    error = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm().item()
    if not error < 1:  # the iteration might not converge
        return nearest_orthonormal(matrix)
    while error > SMALLEST_ERROR:
        wide = _iteration(wide)
        # An eigenvalue 1 + e of the Gram matrix becomes (1 + e)(1 - e / 2)^2.
        error = 0.75 * error**2 + 0.25 * error**3
    return wide if wide.shape == matrix.shape else wide.T


def _retract_unread(matrix: Tensor) -> Tensor:
    """Do what `_retract` does without a look at any number: for a GPU, and for CUDA graphs.

    A matrix that is far from orthonormal is first made small enough for the iteration to converge;
    very small singular values then need the retractions of several steps.
    """
    wide = _wide(matrix)
    with full_products(wide):
        gram = wide @ wide.T
        error = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm()
        # The Gram matrix's norm bounds the square of the largest singular value.
        wide = wide / torch.where(error < 1, 1, gram.norm().sqrt())
        for _ in range(ITERATIONS_ON_GPU):
            wide = torch.addmm(wide, wide @ wide.T, wide, beta=1.5, alpha=-0.5)
    return wide if wide.shape == matrix.shape else wide.T


class _Tangent:
    """Gradient hook that projects onto the tangent space of the orthonormal matrices."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    @torch.no_grad()
    def __call__(self, weight: Tensor) -> None:
        if weight.grad is None:
            return
        wide, gradient = _wide(as_matrix(weight)) / self.scale, as_matrix(weight.grad)
        is_transposed = gradient.shape != wide.shape
        along = (gradient.T if is_transposed else gradient) @ wide.T
        normal = 0.5 * (along + along.T) @ wide
        weight.grad.sub_((normal.T if is_transposed else normal).view_as(weight.grad))


class _Orthonormal(nn.Module):
    def __init__(self, iterations: int, scale: float) -> None:
        super().__init__()
        self.iterations = iterations
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        wide = _wide(as_matrix(weight))
        # sqrt(|W|_1 |W|_inf) bounds the largest singular value. Divided by it, all are at most 1,
        # and the iteration raises them towards 1 but never above.
        wide = wide / (wide.abs().sum(0).max() * wide.abs().sum(1).max()).sqrt()
        for _ in range(self.iterations):
            wide = _iteration(wide)
        matrix = wide if wide.shape == as_matrix(weight).shape else wide.T
        return self.scale * matrix.reshape(weight.shape)
