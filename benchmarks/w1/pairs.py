"""Pairs of distributions whose Wasserstein-1 distance and optimal critic are known.

The construction of Korotin, Kolesov and Burnaev 2022 ("Kantorovich Strikes Back!"), with seeds of
our own: a potential made of funnels, a uniform distribution Q, and P, which is Q moved towards the
funnels along the potential's rays. The rays are transport rays, so the plan is optimal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIDE = 2.5
"""The box is [-SIDE, SIDE]^D."""
POWER = 8
"""A point at a share t of its ray moves to a share t^POWER."""
PIXELS = 32
"""Side of the images of `ImagePair`."""


class FunnelPair:
    """P and Q in D dimensions; ``W1(P, Q) = E|x - T(x)|`` for x from Q and T(x) from P.

    The potential is ``u(x) = min_n |x - a_n| + b_n``; the optimal critic is -u, larger on P.
    """

    def __init__(self, dimension: int, funnels: int, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        uniform = torch.rand(funnels, dimension, generator=source, dtype=torch.float64)
        self.centers = SIDE * (2 * uniform - 1)
        self.heights = 0.1 * torch.randn(funnels, generator=source, dtype=torch.float64)
        self.dimension = dimension

    def uniform(self, count: int, source: torch.Generator) -> Tensor:
        """Draw from Q: float64 ``(count, D)``."""
        return SIDE * (2 * torch.rand(count, self.dimension, generator=source).double() - 1)

    def transport(self, x: Tensor) -> Tensor:
        """Move points ``(N, D)`` of Q to their partners in P, in the points' own precision."""
        rows = torch.arange(len(x))
        centers, heights = self.centers.to(x), self.heights.to(x)
        distances = torch.cdist(x, centers)
        potential, nearest = (distances + heights).min(dim=1)
        low = centers[nearest]
        # Computed anew: `distances` are differences of squares, which lose digits in float32.
        own = torch.linalg.vector_norm(x - low, dim=1).clamp_min(1e-30)
        direction = (x - low) / own[:, None]
        # In float32 a coordinate may equal the funnel's: no side of the box is met along it.
        to_side = (SIDE * direction.sign() - x) / direction
        to_box = to_side.masked_fill(direction == 0, torch.inf).amin(dim=1)
        # The other funnel's surface, delta + r = |x + r v - a_n|, squared and solved for r.
        delta = potential[:, None] - heights
        along = direction @ centers.T
        along = (x * direction).sum(1, keepdim=True) - along  # <x - a_n, v>
        roots = 0.5 * (distances.square() - delta.square()) / (delta - along)
        valid = (roots > 0) & (roots > -delta)
        valid[rows, nearest] = False
        reach = torch.where(valid, roots, torch.inf).amin(dim=1).minimum(to_box)
        length = own + reach  # of the whole ray, from low to up
        moved = length * (own / length) ** POWER
        return low + moved[:, None] * direction

    def sample(self, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw independently from P and from Q: float32 ``(count, D)`` each.

        In float32 throughout, which moves a point by less than 2e-3 and takes half the time.
        """
        return (
            self.transport(self.uniform(count, source).float()),
            self.uniform(count, source).float(),
        )

    def gradient(self, points: Tensor) -> Tensor:
        """The optimal critic's gradient ``(N, D)`` at points ``(N, D)``: a unit vector each."""
        away = points.double()[:, None] - self.centers
        nearest = (away.norm(dim=2) + self.heights).argmin(dim=1)
        towards = -away[torch.arange(len(points)), nearest]
        return towards / towards.norm(dim=1, keepdim=True)

    def w1(self, count: int = 2**19, chunk: int = 2**14) -> tuple[float, float]:
        """W1(P, Q) by Monte Carlo, and its standard error."""
        source = torch.Generator().manual_seed(0)
        parts = []
        for _ in range(count // chunk):
            x = self.uniform(chunk, source)
            parts.append((x - self.transport(x)).norm(dim=1))
        costs = torch.cat(parts)
        return costs.mean().item(), costs.std().item() / len(costs) ** 0.5


class ImagePair(FunnelPair):
    """The points of a pair as grey images ``(1, PIXELS, PIXELS)`` of smooth patterns.

    A point's coordinates are the amplitudes of the D slowest waves of the cosine transform, an
    orthonormal basis. So distances between images are those between points, and W1, the rays and
    the optimal critic's gradient on them are the points' own.
    """

    def __init__(self, dimension: int, funnels: int, seed: int) -> None:
        super().__init__(dimension, funnels, seed)
        self.waves = slowest_waves(dimension, PIXELS)

    def sample(self, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw independently from P and from Q: float32 ``(count, 1, PIXELS, PIXELS)`` each."""
        p, q = super().sample(count, source)
        return self.images(p), self.images(q)

    def images(self, points: Tensor) -> Tensor:
        """The images ``(N, 1, PIXELS, PIXELS)`` of points ``(N, D)``."""
        return (points @ self.waves.to(points)).unflatten(1, (1, PIXELS, PIXELS))

    def gradient(self, points: Tensor) -> Tensor:
        """The optimal critic's gradient at images, of their shape."""
        return self.images(super().gradient(points.flatten(1).double() @ self.waves.T))


def slowest_waves(count: int, side: int) -> Tensor:
    """Orthonormal rows, float64 ``(count, side * side)``: waves of the type-II cosine transform.

    The constant is left out; the others are in the order of their frequency.
    """
    places = torch.arange(side, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi / side * places * torch.arange(side)[:, None])
    waves /= torch.linalg.vector_norm(waves, dim=1, keepdim=True)
    pairs = sorted((u * u + v * v, u, v) for u in range(side) for v in range(side))
    return torch.stack([torch.outer(waves[u], waves[v]).flatten() for _, u, v in pairs[1:]])[:count]
