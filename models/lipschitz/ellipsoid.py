"""Ellipsoids that hold the difference of two inputs, after each layer of a critic.

Two items at most 1 apart differ by a vector of the unit ball. With ellipsoids
``{d: d* X^-1 d <= 1}`` of shape matrix X,

- a linear map W makes ``W X W*`` of X;
- an activation whose slopes are within r of c turns a difference y into ``z = c y + r e`` for some
  e with ``|e_i| <= |y_i|``. For any diagonal T above X (T - X positive definite)
  ``y* (X^-1 - T^-1) y + e* T^-1 e <= 1``, so ``c^2 (X^-1 - T^-1)^-1 + r^2 T`` holds z.

This is LipSDP (Fazlyab et al. 2019, with a multiplier for each neuron) layer by layer, as in
ECLipsE (Xu & Sivaranjani 2024). Where vectors part and meet again, one ellipsoid holds what is kept
and what goes on together.

Images lie on a torus, where X is a matrix of channels for each frequency, as Pauli et al. 2024 have
it for infinite maps. Outside of its own place a map is set to zero: its activation does that, whose
slopes have zero among them (those of LeakyReLU are taken to be 0 to 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.lipschitz import torus
from models.lipschitz.operators import ROUNDING, NoBoundError, largest_eigenvalue

ROOM, SMALL_ROOM = 1e-3, 1e-6
"""Relative least distance of T from X: where T - X is inverted, so that rounding stays small, and
elsewhere."""
ASIDE = 0.3
"""How far log T begins above its least value, where a pass is to be improved."""
WORK = 1e10
"""Products of numbers in one product of all activations' shape matrices, at most."""
LARGEST = 2e7
"""Numbers of one shape matrix at all frequencies, at most: several are held at a time."""

Mode = Literal["choose", "use", "tighten"]
"""A pass chooses ``T = (1 + |c| / r) |X| I``, by which no bound is above the product but in sums;
or it uses those given; or also makes each T that alone makes up the result as small as may be.
"""


class Kept(NamedTuple):
    """A vector that is kept beside the current one, for a later sum."""

    channels: int
    is_masked: bool
    pool: nn.AvgPool2d | None = None
    """Makes it smaller, where the current vector becomes so too."""


class Multipliers:
    """The diagonals T of a critic's activations, in the order of a pass.

    They are logarithms of T relative to the mean of X's diagonal.
    """

    def __init__(self) -> None:
        self.logs: list[Tensor] = []
        self.number = self.work = self.entries = 0
        self.mode: Mode = "choose"
        self.barrier = torch.zeros((), dtype=torch.float64)
        """Less the mean of ``log det(1 - X / T)`` of activations that grow with T alone: it keeps
        T away from X while T is improved."""

    def begin(self, mode: Mode, logs: list[Tensor]) -> None:
        """Begin another pass."""
        self.mode, self.logs = mode, logs
        self.number = self.work = self.entries = 0
        self.barrier = torch.zeros((), dtype=torch.float64)

    def count(self, x: Tensor) -> None:
        """Count what shape matrices cost: the products of numbers, and the memory."""
        self.entries += x.numel()
        self.work += x.numel() * x.shape[-1] * (4 if x.is_complex() else 1)

    def above(self, x: Tensor, ratio: float, group: int, is_alone: bool) -> tuple[Tensor, Tensor]:
        """Find the next T, above shape matrices.

        Args:
            x: the matrices, ``(F, C, C)``.
            ratio: where T is chosen, it is so much larger than the least.
            group: channels that have a multiplier in common.
            is_alone: nothing but T counts afterwards.

        Returns:
            The diagonal of T, ``(C,)``, and Cholesky factors of ``1 - T^-1/2 X T^-1/2``.

        Raises:
            NoBoundError: T is not above x.
        """
        room = SMALL_ROOM if is_alone else ROOM
        index = torch.arange(x.shape[-1]) // group
        scale = x.diagonal(dim1=1, dim2=2).real.mean()
        if self.mode == "choose":
            most = largest_eigenvalue(x) * (1 + max(ratio, 2 * room))
            start = math.log(most / scale.item())
            t = torch.full(x.shape[-1:], most, dtype=torch.float64)
            # Away from X, for the barrier is steep near it.
            aside = ASIDE if is_alone else 0.0
            self.logs.append(torch.full((int(index[-1]) + 1,), start + aside).double())
        else:
            t = scale * self.logs[self.number].exp()[index]
        self.number += 1
        eye, root = identity(x), t.rsqrt()
        relative = root[:, None] * x * root
        if self.mode == "tighten" and is_alone:
            least = largest_eigenvalue(relative) * (1 + 2 * room)
            t, relative = t * least, relative / least
        _, failed = torch.linalg.cholesky_ex((1 - room) * eye - relative.detach())
        if failed.any():
            raise NoBoundError("the multipliers prove nothing")
        lower = torch.linalg.cholesky(eye - relative)
        if is_alone:
            logs = lower.diagonal(dim1=1, dim2=2).real.log()
            self.barrier = self.barrier - 2 * logs.mean()
        return t, lower


class Ellipsoid:
    """The ellipsoid at one place of a critic, and what is kept beside it; it begins as the ball.

    Its methods raise `NoBoundError` where no ellipsoid holds the result, for what is known here.

    Args:
        multipliers: of this pass.
        size: of the image; empty for anything else.
        surroundings: the torus that it lies on; likewise.
    """

    def __init__(
        self, multipliers: Multipliers, size: torus.Sizes = (), surroundings: torus.Sizes = ()
    ) -> None:
        self.multipliers = multipliers
        self.size, self.torus = size, surroundings
        self.x: Tensor | None = None
        """Shape matrices ``(F, C, C)`` of what is kept and of the current vector after it, for each
        frequency; of vectors, one. None: a ball of any number of dimensions."""
        self.square = torch.ones((), dtype=torch.float64)
        """Of the ball's radius."""
        self.kept: list[Kept] = []
        self.is_masked = True
        """False if maps on the torus may be other than 0 outside of the image's place."""

    def channels(self, of_ball: int | None = None) -> int:
        """Number of channels of the current vector; a ball gets ``of_ball`` of them."""
        if self.x is None:
            if of_ball is None:
                raise NoBoundError("the number of channels is not known")
            self._begin(torch.eye(of_ball, dtype=torch.float64)[None])
        assert self.x is not None
        return self.x.shape[-1] - sum(kept.channels for kept in self.kept)

    def longest(self) -> Tensor:
        """The square of the longest half-axis."""
        if self.x is None:
            return self.square
        if self.x.requires_grad:
            return torch.linalg.eigvalsh(self.x)[:, -1].max()
        return torch.tensor(largest_eigenvalue(self.x), dtype=torch.float64)

    def widest(self) -> Tensor:
        """The square of the largest extent along an axis of a vector."""
        assert self.x is not None
        return self.x[0].diagonal().max()

    def become_ball(self, slope: float) -> None:
        """Take the ball of the longest half-axis, times a slope.

        Its dimensions may be others; of maps, positions may not.
        """
        if self.kept:
            raise NoBoundError("something is kept beside a part of which the slope alone is known")
        self.square = self.longest() * slope**2
        self.x, self.is_masked = None, True

    # ---- linear maps ----------------------------------------------------------------------------

    def change(self, rows: int, function: Callable[[Tensor], Tensor]) -> None:
        """Change the last rows, of what is kept and of the current vector, by a linear function."""
        self._apply(function(torch.eye(rows, dtype=torch.float64))[None])

    def keep(self, channels: int, pool: nn.AvgPool2d | None = None) -> None:
        """Keep a copy of the current vector of so many channels."""
        self.change(channels, lambda x: torch.cat([x, x]))
        self.kept.append(Kept(channels, self.is_masked, pool))

    def scale(self, factors: Tensor) -> None:
        """Multiply channels by factors ``(C,)``."""
        if self.x is None:
            self.square = self.square * factors.abs().max() ** 2
        else:
            self._require(len(factors))
            self._apply(torch.diag(factors)[None])

    def dense(self, weight: Tensor) -> None:
        """Apply a dense layer, of vectors or of flattened maps."""
        if self.torus:
            if weight.shape[1] % math.prod(self.size):
                raise NoBoundError("a dense layer takes other maps")
            self._read(weight.view(len(weight), -1, *self.size))
        elif self.x is None:
            self._begin(weight[None])
        else:
            self._require(weight.shape[1])
            self._apply(weight[None])

    def convolve(self, layer: nn.Conv2d) -> None:
        """Apply a convolution."""
        if not self.torus:
            raise NoBoundError("the size of the maps is not known")
        if not self.is_masked and any(torus.pair(layer.padding)):  # type: ignore[arg-type]
            self.bend(0.0, 1.0)
        size = torus.after(layer, self.size, self.torus)
        aside = 0 if self.x is None else self.x.shape[-1] - layer.in_channels
        self._admit(aside + max(layer.in_channels, layer.out_channels))
        symbol = torus.symbol_of(layer, self.torus)
        if self.x is None:
            self._begin(symbol)
        else:
            self._require(layer.in_channels)
            self._apply(symbol)
        self._shrink(layer.stride)
        self.size, self.is_masked = size, False

    def pool(self, pool: nn.AvgPool2d) -> None:
        """Take means over windows, or over whole maps, which makes a vector."""
        kernel, stride = torus.pair(pool.kernel_size), torus.pair(pool.stride)
        if not self.torus or pool.divisor_override or any(torus.pair(pool.padding)):
            raise NoBoundError("no ellipsoid is known of such a pool")
        width = self.channels()
        if kernel == self.size:
            mean = torch.full(self.size, 1 / math.prod(self.size), dtype=torch.float64)
            self._read(torch.eye(width).double()[:, :, None, None] * mean)
        elif torus.is_whole(pool, self.size):
            means = torus.mean_symbol(kernel, self.torus)
            self._apply(means[:, None, None] * torch.eye(width))
            self._shrink(stride)
            self.size = tuple(n // s for n, s in zip(self.size, stride, strict=True))
        else:
            self._cover(pool)

    def _require(self, channels: int) -> None:
        if self.channels() != channels:
            raise NoBoundError("a layer takes other channels")

    def _admit(self, rows: int) -> None:
        """Raise an error before shape matrices of so many rows take too much memory or time."""
        numbers = math.prod(self.torus) * rows**2
        if numbers > LARGEST or numbers * rows > WORK:
            raise NoBoundError("the critic is too large for ellipsoids")

    def _begin(self, symbol: Tensor) -> None:
        """Map the ball by a matrix ``(F, C', C)`` for each frequency, or one for all."""
        self._admit(symbol.shape[1])
        product = symbol @ symbol.mH
        product = self.square * (product + _slack(symbol, symbol) * identity(product))
        if self.torus:
            product = product.to(torch.complex128).expand(math.prod(self.torus), -1, -1)
        self.x, self.square = product, torch.ones((), dtype=torch.float64)

    def _apply(self, symbol: Tensor) -> None:
        """Map the last channels by a matrix ``(F, C', C)`` for each frequency, or one for all."""
        assert self.x is not None
        self._admit(self.x.shape[-1] + symbol.shape[1] - symbol.shape[2])
        symbol = symbol.to(self.x.dtype)
        above, own = torch.split(
            self.x, [self.x.shape[-1] - symbol.shape[-1], symbol.shape[-1]], dim=1
        )
        own = symbol @ own
        x = torch.cat([above, own], dim=1)
        above, own = torch.split(x, [x.shape[-1] - symbol.shape[-1], symbol.shape[-1]], dim=2)
        x = torch.cat([above, own @ symbol.mH], dim=2)
        self.x = x + _slack(symbol, own) * identity(x)

    def _read(self, weight: Tensor) -> None:
        """Map maps to a vector by weights ``(out, C, H, W)``; frequencies add up (Parseval)."""
        if self.kept or self.channels(weight.shape[1]) != weight.shape[1]:
            raise NoBoundError("a dense layer takes other maps")
        assert self.x is not None
        waves = torus.waves_of(weight, self.torus)
        half = waves.mH @ self.x
        found = (half @ waves).sum(dim=0).real[None]
        self.x = found + len(half) * _slack(half, waves) * identity(found)
        self.torus = self.size = ()

    def _shrink(self, stride: torus.Sizes) -> None:
        """Keep each stride-th position; what is kept beside is pooled by its own layer."""
        if max(stride) == 1:
            return
        assert self.x is not None
        factors, start = torch.ones(self.x.shape[:2], dtype=torch.complex128), 0
        for i, kept in enumerate(self.kept):
            pool = kept.pool
            if (
                pool is None
                or torus.pair(pool.stride) != stride
                or not torus.is_whole(pool, self.size)
            ):
                raise NoBoundError("maps become smaller and what is kept beside does not")
            means = torus.mean_symbol(torus.pair(pool.kernel_size), self.torus)
            factors[:, start : start + kept.channels] = means[:, None]
            self.kept[i], start = kept._replace(pool=None), start + kept.channels
        x = factors[:, :, None] * self.x * factors.conj()[:, None]
        self.x = torus.subsampled(x, self.torus, stride)
        self.torus = tuple(n // s for n, s in zip(self.torus, stride, strict=True))

    def _cover(self, pool: nn.AvgPool2d) -> None:
        """Pool all maps by windows of which the last may be cut, which lengthens no vector.

        Of an ellipsoid whose matrix is the same at each frequency, whatever acts on positions
        alone and lengthens nothing makes one of the same matrix.
        """
        same = ("kernel_size", "stride", "padding", "ceil_mode", "divisor_override")
        for kept in self.kept:
            if any(getattr(kept.pool, name, None) != getattr(pool, name) for name in same):
                raise NoBoundError("maps become smaller and what is kept beside does not")
        stride = torus.pair(pool.stride)
        if torus.pair(pool.kernel_size) != stride or not pool.ceil_mode:
            raise NoBoundError("no ellipsoid is known of such a pool")
        assert self.x is not None
        x = self.x.detach()
        mean = x.mean(dim=0).real
        mean = mean + 1e-9 * mean.diagonal().mean() * identity(mean)
        lower = torch.linalg.cholesky(mean).to(x.dtype)
        half = torch.linalg.solve_triangular(lower, x, upper=False)
        ratio = largest_eigenvalue(torch.linalg.solve_triangular(lower, half.mH, upper=False))
        self.torus = tuple(n // s for n, s in zip(self.torus, stride, strict=True))
        self.size = tuple(-(-n // s) for n, s in zip(self.size, stride, strict=True))
        covering = (mean * ratio * (1 + ROUNDING)).to(x.dtype)
        self.x = covering.expand(math.prod(self.torus), -1, -1)
        self.kept = [kept._replace(pool=None, is_masked=True) for kept in self.kept]
        self.is_masked = True

    # ---- activations ----------------------------------------------------------------------------

    def bend(self, low: float, high: float, group: int = 1) -> None:
        """Apply an activation.

        Args:
            low: lowest slope.
            high: highest slope.
            group: channels that bend together: the length of their difference counts.
        """
        if self.torus:
            low, high = min(low, 0.0), max(high, 0.0)
        self.is_masked = True
        if self.x is None:
            self.square = self.square * max(abs(low), abs(high)) ** 2
            return
        centre, reach = (low + high) / 2, (high - low) / 2
        x, width = self.x, self.channels()
        start = x.shape[-1] - width
        own = x[:, start:, start:]
        if reach == 0 or not own.any():
            self.change(width, lambda x: centre * x)
            return
        self.multipliers.count(x)
        if self.multipliers.work > WORK:
            raise NoBoundError("the critic is too large for ellipsoids")
        is_alone = centre == 0 and start == 0  # nothing of y itself is left
        ratio = max(abs(centre) / reach, 1.0 if start else 0.0)
        t, lower = self.multipliers.above(own, ratio, group, is_alone)
        added = torch.diag(reach**2 * t).to(x.dtype)
        if is_alone:
            self.x = added.expand_as(x)
            return
        # (X^-1 - C* T^-1 C)^-1 = X + X C* (T - C X C*)^-1 C X, where C takes the current vector.
        half = x[:, :, start:] * t.rsqrt()
        solved = torch.cholesky_solve(half.mH, lower)
        wide = x + half @ solved
        missing = _length(half.mH - lower @ (lower.mH @ solved)).max() + _slack(lower, solved)
        error = _length(half).max() * missing / ROOM  # 1 / ROOM: the inverse's norm, at most
        factors = torch.ones(x.shape[-1], dtype=torch.float64)
        factors[start:] = centre
        x = factors[:, None] * (wide + error * identity(wide)) * factors
        x = x + nn.functional.pad(added, (start, 0, start, 0))
        self.x = (x + x.mH) / 2


def identity(x: Tensor) -> Tensor:
    """The identity of the size and type of square matrices ``(.., n, n)``."""
    return torch.eye(x.shape[-1], dtype=x.dtype)


def _length(x: Tensor) -> Tensor:
    """Norms of matrices ``(F, ...)``, over all their entries."""
    return torch.linalg.vector_norm(x.detach().flatten(1), dim=1)


def _slack(left: Tensor, right: Tensor) -> Tensor:
    """At least what rounding may change in a product of matrices, as a norm."""
    most = _length(left).max() * _length(right).max()
    return 4 * torch.finfo(torch.float64).eps * left.shape[-1] * most
