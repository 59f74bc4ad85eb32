"""A critic that is 1-Lipschitz by construction: an upper envelope of cones."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

REACHES = (0.1, 3.0, 10.0, 30.0)
"""Distances of the outer tips from the middle of A, in A's mean radius. The farther away a tip, the
closer its cone is to a plane."""
MAX_CONES = 512
"""Maximal number of cones that `Cones.between` places."""
ROWS = 128
"""Number of samples computed at a time."""
TEMPERATURE = 0.05
"""Initial temperature, in the critic's units."""
IDLE_SHARE = 0.02
"""A cone that wins less than this part of an even share of the samples gets no useful gradient."""
MIN_DISTANCE = 1e-4
"""Smallest distance from a tip, in the critic's units."""
COPY_DISTANCE = 0.1
"""Distance from a cone's tip to its copy's, relative to the tip's distance from its samples."""


class Cones(nn.Module):
    """Critic ``f(x) = t log sum_n exp((h_n - |x - r_n w_n|) / t)``: a maximum of cones of slope 1.

    Its gradient is a mean of unit vectors, so its norm is at most 1 for any tips ``r_n w_n``,
    heights ``h_n`` and temperature t, and no penalty is needed. Every 1-Lipschitz function is the
    envelope of its own cones (McShane 1934, theorem 1), so enough cones approximate it to any
    accuracy. Korotin et al. 2022 use the sharp maximum as the known potential of a benchmark. A tip
    moves in proportion to its reach ``r_n``, so distant tips turn as fast as near ones move.
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
        """Place cones for a critic that scores batch A above batch B.

        Half of the tips are samples of A. The others lie in directions from B to A, at each of the
        distances `REACHES`. Heights give all cones the same mean over the samples, so each of them
        gets a gradient.

        Args:
            a: ``(N, *shape)``; the number of cones is N, at most `MAX_CONES`.
            b: ``(N, *shape)``.
        """
        a, b = a.flatten(1)[:MAX_CONES], b.flatten(1)[:MAX_CONES]
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
        """Place one cone so far away, from B's mean towards A's, that it is nearly a plane.

        Its gap is the distance of the means, which equals W1 where A is B shifted.
        """
        a, b = a.flatten(1), b.flatten(1)
        tip = a.mean(dim=0, keepdim=True) - b.mean(dim=0, keepdim=True)
        size = torch.linalg.vector_norm(torch.cat([a, b]), dim=1).max()
        tip = tip * (size / torch.linalg.vector_norm(tip).clamp_min(1e-6))
        far = torch.full_like(tip[:, 0], 100.0)
        return cls(tip, far, size * far)

    @torch.no_grad()
    def split(self, x: Tensor, average: Cones) -> None:
        """Turn idle cones into copies of busy ones, which then share their samples.

        As the temperature falls, cones that are highest nowhere get no gradient, and one cone may
        do the work for which the optimal critic has several. A copy starts with its original's mean
        height over the original's samples and its tip a little to the side, so the envelope hardly
        changes. (Wu, Wang, Liu 2019, "Splitting steepest descent", split neurons in this way.)

        Args:
            x: ``(M, *shape)``, samples of A and B.
            average: moving average of these cones; it gets the copies too, because a mixture of a
                copy and the old cone could stand above all others.
        """
        x = x.flatten(1)
        tips = self.tips * self.reach[:, None]
        temperature = self.log_temperature.exp()
        cones, distances = _cones(x, tips, tips.square().sum(dim=1), self.heights, temperature)
        shares, _ = _shares(cones)
        load = shares.sum(dim=0)
        idle = (load < IDLE_SHARE * len(x) / len(load)).nonzero()[:, 0]
        if not len(idle):
            return
        originals = torch.multinomial(load, len(idle), replacement=True)
        weights = shares[:, originals] / load[originals]
        far = (weights * distances[:, originals]).sum(dim=0)
        aside = torch.randn_like(tips[idle]) * (COPY_DISTANCE * far / tips.shape[1] ** 0.5)[:, None]
        moved = torch.cdist(x, tips[originals] + aside)
        higher = (weights * (moved - distances[:, originals])).sum(dim=0)
        self.heights[idle] = self.heights[originals] + higher
        self.reach[idle] = self.reach[originals]
        self.tips[idle] = self.tips[originals] + aside / self.reach[originals, None]
        for name in ("reach", "heights", "tips"):
            getattr(average, name)[idle] = getattr(self, name)[idle]

    def forward(self, x: Tensor) -> Tensor:
        """Score samples ``(M, *shape)``; returns ``(M,)``."""
        tips = self.tips * self.reach[:, None]
        return _Envelope.apply(  # type: ignore[no-untyped-call]
            x.flatten(1), tips, self.heights, self.log_temperature.exp()
        )


class _Envelope(Function):
    """The critic's formula, a few rows at a time so they stay in cache; recomputed backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tips: Tensor, heights: Tensor, temperature: Tensor) -> Tensor:
        ctx.save_for_backward(x, tips, heights, temperature)
        sizes = tips.square().sum(dim=1)
        parts = [
            _cones(part, tips, sizes, heights, temperature)[0] for part in torch.split(x, ROWS)
        ]
        return temperature * torch.cat([_shares(cones)[1] for cones in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, tips, heights, temperature = ctx.saved_tensors
        sizes = tips.square().sum(dim=1)
        by_tips, by_heights = torch.zeros_like(tips), torch.zeros_like(heights)
        pulls = torch.zeros_like(heights)
        by_temperature = torch.zeros_like(temperature)
        by_x = []
        for part, factor in zip(torch.split(x, ROWS), torch.split(gradient, ROWS), strict=True):
            cones, distances = _cones(part, tips, sizes, heights, temperature)
            shares, score = _shares(cones)
            by_temperature += factor @ (score - cones.mul_(shares).sum(dim=1))
            shares *= factor[:, None]
            by_heights += shares.sum(dim=0)
            pull = shares.div_(distances)  # force on the tip per unit of distance
            if ctx.needs_input_grad[1]:
                by_tips.addmm_(pull.T, part)
                pulls += pull.sum(dim=0)
            if ctx.needs_input_grad[0]:
                by_x.append(pull @ tips - part * pull.sum(dim=1, keepdim=True))
        by_tips -= tips * pulls[:, None]
        return torch.cat(by_x) if by_x else None, by_tips, by_heights, by_temperature


def _cones(
    x: Tensor, tips: Tensor, sizes: Tensor, heights: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return cones over the temperature, and distances from their tips, each ``(M, N)``.

    ``x`` is ``(M, D)``, ``tips`` ``(N, D)``; ``sizes`` are the tips' squared lengths.
    """
    if x.dtype == torch.float64:  # bounds are found in it: far from the origin squares cancel
        distances = torch.cdist(x, tips, compute_mode="donot_use_mm_for_euclid_dist")
        distances.clamp_min_(MIN_DISTANCE)
    else:
        squares = torch.addmm(sizes, x, tips.T, alpha=-2).add_(x.square().sum(dim=1, keepdim=True))
        # The lower bound keeps the slope at a tip finite and at most 1.
        distances = squares.clamp_min_(MIN_DISTANCE**2).sqrt_()
    return (heights - distances).div_(temperature), distances


def _shares(cones: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax of ``(M, N)`` over each row, and the logarithm of its sum ``(M,)``.

    Terms below e^-60 are raised to it: arithmetic on subnormal numbers is a hundred times slower.
    """
    highest = cones.amax(dim=1, keepdim=True)
    shares = (cones - highest).clamp_min_(-60).exp_()
    total = shares.sum(dim=1, keepdim=True)
    return shares.div_(total), (highest + total.log())[:, 0]
