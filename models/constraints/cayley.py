"""Semi-orthogonal weights by the Cayley transform."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.constraints.base import Constraint
from models.constraints.layers import (
    as_matrix,
    full_products,
    layers,
    nearest_orthonormal,
    overlap,
)
from models.lipschitz import Layer, from_phases, to_phases
from models.networks.initial import trained_weight


class Cayley(Constraint):
    """Make every weight semi-orthogonal by the Cayley transform (Trockman and Kolter 2021).

    The weight is made of free numbers in each forward (`cayley`), so that no step leaves the
    constraint and any optimiser will do. Like `Bjorck`'s, such layers keep the norm of gradients,
    and ``critic.activation=groupsort`` keeps it too. Training begins with the nearest orthonormal
    matrix to each initial weight.

    Dense layers are the paper's. Its convolutions pad in a circle and have kernels as wide as the
    map; here they are of `OrthogonalKernel`, which keep norms but for what zero padding cuts off. A
    kernel whose sides are no multiples of the stride, or in groups, counts as a matrix of output
    channels by everything else, divided by the square root of the number of windows that read one
    pixel, as under `Bjorck`.
    """

    kind: Literal["cayley"] = "cayley"

    guarantee = (
        "Each dense layer's singular values are 1 by construction, and each convolution's at most "
        "1; the critic's slope follows from how they are joined."
    )

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Give every dense and convolutional layer a semi-orthogonal weight."""
        for layer in list(layers(critic)):
            make_semi_orthogonal(layer)
        return critic


def make_semi_orthogonal(layer: Layer) -> None:
    """Parametrise a layer's weight, in place, by the rule that suits it."""
    rule = OrthogonalKernel(layer) if _is_whole(layer) else SemiOrthogonal(layer)
    parametrize.register_parametrization(layer, "weight", rule)


def _is_whole(layer: Layer) -> bool:
    """True of a convolution that `OrthogonalKernel` can make, and whose slope it then knows."""
    if isinstance(layer, nn.Linear) or layer.groups > 1 or layer.padding_mode != "zeros":
        return False
    axes = list(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True))
    return all(taps % stride == 0 and min(stride, apart) == 1 for taps, stride, apart in axes)


def numbers_of(layer: nn.Module) -> Tensor:
    """What the last rule of a layer's weight takes: an equalised layer scales its parameter."""
    rules = cast(nn.ModuleDict, layer.parametrizations)["weight"]
    numbers = cast(Tensor, rules.original)
    for rule in list(cast(parametrize.ParametrizationList, rules))[:-1]:
        numbers = rule(numbers)
    return numbers


class SemiOrthogonal(nn.Module):
    """The rule that makes a layer's weight, whose singular values are all ``scale``.

    It sets the layer's parameter so that the first weight is the nearest one to that before.

    Args:
        layer: a new one, or one with an equalised weight.
    """

    flipped: Tensor
    """Which columns of the transform change their sign, ``(n,)``: without that no weight with an
    eigenvalue of -1 could be made, nor come near it."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.scale = overlap(layer) ** -0.5
        parameter, factor = trained_weight(layer)
        matrix = as_matrix(layer.weight.detach())
        numbers, flipped = inverse_cayley(_tall(nearest_orthonormal(matrix.double())))
        with torch.no_grad():
            turned = _like(numbers, matrix).reshape(parameter.shape)
            parameter.copy_(turned / factor)
        self.register_buffer("flipped", flipped)

    def forward(self, numbers: Tensor) -> Tensor:
        """Make the weight of free numbers of its shape."""
        matrix = as_matrix(numbers)
        made = cayley(_tall(matrix))
        made = self.scale * torch.where(self.flipped, -made, made)
        return _like(made, matrix).reshape(numbers.shape)


def cayley(numbers: Tensor) -> Tensor:
    """Map any matrix ``(..., m, n)``, m at least n, to one with orthonormal columns, smoothly.

    With U the upper square of the numbers and V the rest, ``A = U - U^T + V^T V``, and the result
    is ``[I - A; -2 V] (I + A)^-1``. The symmetric part of A is not negative, so ``I + A`` always
    has an inverse, of norm 1 at most.

    >>> made = cayley(torch.randn(5, 3, dtype=torch.float64))
    >>> torch.testing.assert_close(made.T @ made, torch.eye(3, dtype=torch.float64))
    """
    with full_products(numbers):
        numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
        size = numbers.shape[-1]
        upper, lower = numbers[..., :size, :], numbers[..., size:, :]
        eye = torch.eye(size, dtype=numbers.dtype, device=numbers.device)
        a = upper - upper.mT + lower.mT @ lower
        # `solve` would read whether it has failed, which a CUDA graph cannot wait for.
        made: Tensor = torch.linalg.solve_ex(
            eye + a, torch.cat([eye - a, -2 * lower], -2), left=False
        ).result
        return made


def inverse_cayley(orthonormal: Tensor) -> tuple[Tensor, Tensor]:
    """Find numbers of which `cayley` makes a matrix, up to signs of its columns.

    Args:
        orthonormal: ``(m, n)``, with orthonormal columns, in float64.

    Returns:
        The numbers, ``(m, n)``, and whether each column changes its sign after the transform.
    """
    size = orthonormal.shape[1]
    signs = _signs(orthonormal[:size])
    turned = orthonormal * signs
    inverse = torch.linalg.inv(
        torch.eye(size, dtype=turned.dtype, device=turned.device) + turned[:size]
    )
    # A is twice the inverse less I, and U a quarter of A - A^T, so that U - U^T is its skew part.
    skew = (inverse - inverse.T) / 2
    return torch.cat([skew, -turned[size:] @ inverse]), signs < 0


def _signs(square: Tensor) -> Tensor:
    """Signs of a square's columns by which I plus the turned square is far from singular.

    I plus the square times signs S is (S + the square) S. Elimination chooses each sign like that
    of the pivot to which it is added, so no pivot is below 1.
    """
    rest, signs = square.clone(), torch.ones_like(square[0])
    for k in range(len(rest)):
        if rest[k, k] < 0:
            signs[k] = -1
        factors = rest[k + 1 :, k] / (rest[k, k] + signs[k])
        rest[k + 1 :, k + 1 :] -= factors[:, None] * rest[k, k + 1 :]
    return signs


def _tall(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def _like(tall: Tensor, matrix: Tensor) -> Tensor:
    return tall if tall.shape == matrix.shape else tall.T


class OrthogonalKernel(nn.Module):
    """The rule that makes a convolution's kernel, whose norm on infinite maps is 1.

    Far from the borders such a convolution keeps the norm of its input or of a gradient, as a
    semi-orthogonal matrix does; zero padding only cuts off. The kernel is the product of such a
    matrix and, for each tap but the first on an axis, of ``P + z (I - P)``: P projects onto half of
    the channels, and z moves a map by one (Li et al. 2019, section 4: BCOP). A stride is taken out
    by `to_phases`. Training begins with the nearest orthonormal matrices to the initial kernel's
    taps, one for each factor.

    Args:
        layer: as for `SemiOrthogonal`; each side of its kernel is a multiple of the stride.
    """

    flipped: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        assert not isinstance(layer, nn.Linear)
        self.stride = layer.stride
        parameter, factor = trained_weight(layer)
        phases = to_phases(layer.weight.detach().double(), self.stride)
        taps = phases.flatten(2).unbind(2)
        found = [inverse_cayley(_tall(nearest_orthonormal(tap))) for tap in taps]
        whole = torch.stack([_like(own, tap) for (own, _), tap in zip(found, taps, strict=True)], 2)
        with torch.no_grad():
            numbers = from_phases(whole.view_as(phases), parameter.shape, self.stride)
            parameter.copy_(numbers / factor)
        self.register_buffer("flipped", found[0][1])

    def forward(self, numbers: Tensor) -> Tensor:
        """Make the kernel of free numbers of its shape."""
        phases = to_phases(numbers, self.stride)
        with full_products(numbers):
            kernel = self._product(*self._factors(phases), phases.shape[2:])
        return from_phases(kernel, numbers.shape, self.stride)

    def _product(self, matrix: Tensor, bases: Tensor, taps: torch.Size) -> Tensor:
        kernel = matrix.reshape(*matrix.shape, *[1] * len(taps))
        side = 0 if len(matrix) >= matrix.shape[1] else 1  # that with more channels
        along = [axis for axis, count in enumerate(taps, 2) for _ in range(count - 1)]
        for axis, basis in zip(along, bases, strict=True):
            shares = torch.tensordot(basis, kernel, ([0], [side]))
            kept = torch.tensordot(basis, shares, ([1], [0])).movedim(0, side)
            empty = torch.zeros_like(kernel.narrow(axis, 0, 1))
            moved = torch.cat([empty, kernel - kept], axis)
            kernel = torch.cat([kept, empty], axis) + moved
        return kernel

    def _factors(self, phases: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix, and a basis ``(N, channels, half)`` of what each projection keeps.

        Each is of another tap's numbers; where a kernel has two axes, some taps are left over.
        """
        count = sum(phases.shape[2:]) - (phases.dim() - 2)
        taps = phases.flatten(2).movedim(2, 0)[: 1 + count]
        is_tall = phases.shape[0] >= phases.shape[1]
        made = cayley(taps if is_tall else taps.mT)
        matrix = torch.where(self.flipped, -made[0], made[0])
        half = max(phases.shape[:2]) // 2
        return matrix if is_tall else matrix.T, made[1:, :, :half]

    def certified_share(self, layer: nn.Module, sequence: nn.Sequential) -> float:
        """The largest norm that the kernel can have by its factors, in the weights' precision."""
        matrix, bases = self._factors(to_phases(numbers_of(layer).detach(), self.stride))
        norm = torch.linalg.matrix_norm(matrix, 2).item()
        if bases.numel():
            kept = torch.linalg.svdvals(bases).square()  # of a projection 1, and of the rest 0
            norm *= (kept + (1 - kept).abs()).amax(-1).prod().item()
        return norm
