"""Sandwich layers: two factors of one orthonormal matrix, with the activation between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.constraints.base import Constraint
from models.constraints.cayley import (
    SemiOrthogonal,
    cayley,
    make_semi_orthogonal,
    numbers_of,
)
from models.constraints.layers import full_products, layers, nearest_orthonormal
from models.networks.initial import trained_weight

SHARE = math.tan(math.pi / 8)
"""Of an orthonormal matrix: with these numbers both factors begin with norms of sqrt(1/2)."""


class Sandwich(Constraint):
    """Bound dense layers together with the activations between them (Wang and Manchester 2023).

    A sandwich layer is ``sqrt(2) A^T Psi act(sqrt(2) Psi^-1 B x + b)`` (their eq. 10). A and B are
    parts of one matrix with ``A A^T + B B^T = I``, made by the Cayley transform, and Psi is a
    trained positive diagonal. The layer's slope is at most 1 for every activation that acts on each
    unit by itself with a slope of 0 to 1. The factor after one activation and the one before the
    next make one dense weight, so the critic keeps its form and its weights are plain, though each
    by itself may be steeper than 1.

    Dense layers that follow each other in an `nn.Sequential`, with nothing but such activations and
    dropout between them, make a chain; the factor after the last activation is semi-orthogonal.
    Every other layer, such as a convolution or one beside a normalisation, is as under `Cayley`.
    At first each weight in a chain of equal widths is the nearest orthonormal one, as there.
    """

    kind: Literal["sandwich"] = "sandwich"

    joins_layers = True
    activations = ("relu", "leaky_relu", "tanh", "softplus")
    guarantee = (
        "Dense layers in a row have, with the activations between them, a slope of at most 1 "
        "together by construction, and every other dense or convolutional layer by itself; the "
        "critic's slope follows from how these are joined."
    )

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Make the weights of chains of sandwich factors, and others semi-orthogonal."""
        alone = list(layers(critic))
        for chain in _chains(critic):
            if len(chain) > 1:
                alone = [layer for layer in alone if layer not in chain]
                for position, link in enumerate(chain):  # each rule reads the one before
                    kind = _Last if link is chain[-1] else _Inner
                    parametrize.register_parametrization(link, "weight", kind(chain, position))
        for layer in alone:
            make_semi_orthogonal(layer)
        return critic


def _chains(critic: nn.Module) -> Iterator[list[nn.Linear]]:
    for sequence in critic.modules():
        if isinstance(sequence, nn.Sequential):
            chain: list[nn.Linear] = []
            for part in sequence:
                if isinstance(part, nn.Linear):
                    chain.append(part)
                elif not _acts_on_units(part):
                    yield chain
                    chain = []
            yield chain


def _acts_on_units(module: nn.Module) -> bool:
    """True if a module acts on each number by itself, in eval mode with a slope of 0 to 1."""
    if isinstance(module, nn.LeakyReLU):
        return 0 <= module.negative_slope <= 1
    known = nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Dropout, nn.Identity
    return isinstance(module, known)


class _Factor(nn.Module):
    """The rule of a weight in a chain: its own factor, times the one that leaves what is before."""

    def __init__(self, chain: list[nn.Linear], position: int) -> None:
        super().__init__()
        self.chain, self.position = chain, position  # a list, so they are no modules of this one

    def forward(self, numbers: Tensor) -> Tensor:
        """Make the weight of free numbers of its shape."""
        if self.position == 0:
            return self.entering(numbers)
        before = self.chain[self.position - 1]
        rules = cast(nn.ModuleDict, before.parametrizations)["weight"]
        rule = cast(parametrize.ParametrizationList, rules)[-1]
        with full_products(numbers):
            return self.entering(numbers) @ cast(_Inner, rule).leaving(numbers_of(before))

    def certified_share(self, layer: nn.Module, sequence: nn.Sequential) -> float | None:
        """The slope that the factors have, as a share of the chain's.

        Args:
            layer: whose weight the rule makes.
            sequence: the layers that are bounded together.

        Returns:
            The share, in the weights' precision; None if the chain is no chain of the sequence.
        """
        if not any([*map(id, chain)] == [*map(id, self.chain)] for chain in _chains(sequence)):
            return None
        return self.slope(numbers_of(layer).detach())

    def entering(self, numbers: Tensor) -> Tensor:
        """The factor before the layer's activation, of the shape of the numbers."""
        raise NotImplementedError

    def slope(self, numbers: Tensor) -> float:
        """What the layer's factors can multiply a slope by."""
        raise NotImplementedError


class _Inner(_Factor):
    """Of a layer with an activation after it: ``(out, in)`` numbers for B, and its own for A."""

    def __init__(self, chain: list[nn.Linear], position: int) -> None:
        super().__init__(chain, position)
        layer = chain[position]
        parameter, factor = trained_weight(layer)
        start = nearest_orthonormal(layer.weight.detach().double())
        with torch.no_grad():
            parameter.copy_(-SHARE / factor * start)
        self.skew = nn.Parameter(parameter.new_zeros(len(start), len(start)))
        """Numbers of which the difference from their transpose counts."""
        self.log_psi = nn.Parameter(parameter.new_zeros(len(start)))

    def _factors(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """``A^T (out, out)`` and ``B^T (in, out)``; together they have orthonormal columns."""
        made = cayley(torch.cat([self.skew, numbers.T]))
        return made[: len(self.skew)], made[len(self.skew) :]

    def entering(self, numbers: Tensor) -> Tensor:
        """``sqrt(2) Psi^-1 B``."""
        return (2**0.5 * self._factors(numbers)[1] * torch.exp(-self.log_psi)).T

    def leaving(self, numbers: Tensor) -> Tensor:
        """``sqrt(2) A^T Psi``, ``(out, out)``."""
        return 2**0.5 * self._factors(numbers)[0] * torch.exp(self.log_psi)

    def slope(self, numbers: Tensor) -> float:
        """The square of the norm of A and B together: both are that much too long."""
        return torch.linalg.matrix_norm(torch.cat(self._factors(numbers)), 2).item() ** 2


class _Last(_Factor):
    """Of a layer whose output leaves the chain."""

    def __init__(self, chain: list[nn.Linear], position: int) -> None:
        super().__init__(chain, position)
        self.own = SemiOrthogonal(chain[position])

    def entering(self, numbers: Tensor) -> Tensor:
        """A semi-orthogonal matrix."""
        return cast(Tensor, self.own(numbers))

    def slope(self, numbers: Tensor) -> float:
        """The norm of that matrix."""
        return torch.linalg.matrix_norm(self.entering(numbers), 2).item()
