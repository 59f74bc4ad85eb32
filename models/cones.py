"""A critic that is 1-Lipschitz by construction: an upper envelope of cones."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

REACHES = (0.1, 3.0, 10.0, 30.0)
"""How far from the middle of A the tips lie that lie outside of it, in A's mean radius: one in the
middle, whose cone is round, and ever farther ones, whose cones are ever closer to planes."""
MOST = 512
"""Cones that `Cones.between` places."""
TEMPERATURE = 0.05
"""At the start, in the critic's units."""


class Cones(nn.Module):
    """``f(x) = t log sum_n exp((h_n - |x - r_n w_n|) / t)`` over cones of slope 1.

    The gradient is a mean of unit vectors, so no longer than 1, wherever and whatever the tips
    ``r_n w_n``, heights ``h_n`` and temperature t: no penalty is needed. And every 1-Lipschitz
    function is the envelope of its own cones (McShane 1934, theorem 1), so enough of them come as
    near as one likes; in the smooth maximum's place Korotin et al. 2022 take the sharp one, as a
    benchmark's known potential. A tip moves in proportion to its own reach ``r_n``, so that far
    ones turn as fast as near ones move.
    """

    reach: Tensor

    def __init__(self, tips: Tensor, reach: Tensor, heights: Tensor) -> None:
        """Take tips ``(N, D)``, each multiplied by its reach ``(N,)``, and heights ``(N,)``."""
        super().__init__()
        self.tips = nn.Parameter(tips.clone())
        self.heights = nn.Parameter(heights.clone())
        self.log_temperature = nn.Parameter(torch.tensor(TEMPERATURE, dtype=tips.dtype).log())
        self.register_buffer("reach", reach.clone())

    @classmethod
    def between(cls, a: Tensor, b: Tensor) -> Self:
        """Place tips so that scores may become larger on a batch of A than on one of B.

        Half of the tips are samples of A; the others lie from A's middle in directions from B to
        A, at each of `REACHES`. Heights are such that all cones have the same mean on the samples:
        then none is out of the optimizer's sight.

        Args:
            a: ``(N, *shape)``; there are N cones, or `MOST`.
            b: ``(N, *shape)``.
        """
        a, b = a.flatten(1)[:MOST], b.flatten(1)[:MOST]
        near = len(a) // 2
        radius = torch.linalg.vector_norm(a - a.mean(dim=0), dim=1).mean()
        away = a[near:] - b[near:]
        away = away * (radius / torch.linalg.vector_norm(away, dim=1, keepdim=True).clamp_min(1e-6))
        reaches = torch.tensor(REACHES, dtype=a.dtype, device=a.device)
        outer = reaches.repeat(len(away) // len(REACHES) + 1)[: len(away)]
        tips, reach = torch.cat([a[:near], away]), torch.cat([torch.ones_like(a[:near, 0]), outer])
        heights = torch.cdist(torch.cat([a, b]), tips * reach[:, None]).mean(dim=0)
        return cls(tips, reach, heights)

    @classmethod
    def along(cls, a: Tensor, b: Tensor) -> Self:
        """One cone, so far in the direction of A's mean from B's that it is nearly a plane.

        Its gap is the distance of the means, which is all of W1 where A is B moved.
        """
        a, b = a.flatten(1), b.flatten(1)
        tip = a.mean(dim=0, keepdim=True) - b.mean(dim=0, keepdim=True)
        size = torch.linalg.vector_norm(torch.cat([a, b]), dim=1).max()
        tip = tip * (size / torch.linalg.vector_norm(tip).clamp_min(1e-6))
        far = torch.full_like(tip[:, 0], 100.0)
        return cls(tip, far, size * far)

    def forward(self, x: Tensor) -> Tensor:
        """Samples ``(M, *shape)`` to scores ``(M,)``."""
        x = x.flatten(1)
        tips = self.tips * self.reach[:, None]
        squares = x.square().sum(dim=1, keepdim=True) + tips.square().sum(dim=1) - 2 * x @ tips.T
        # The bound keeps the slope at a tip finite; there it is zero.
        cones = self.heights - squares.clamp_min(1e-8).sqrt()
        temperature = self.log_temperature.exp()
        scores: Tensor = temperature * torch.logsumexp(cones / temperature, dim=1)
        return scores
