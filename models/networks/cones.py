"""A critic that is 1-Lipschitz by construction: an upper envelope of cones."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

REACHES = (0.1, 3.0, 10.0, 30.0)
"""How far from the middle of A the tips lie that lie outside of it, in A's mean radius: one in the
middle, whose cone is round, and ever farther ones, whose cones are ever closer to planes."""
MOST = 512
"""Cones that `Cones.between` places."""
ROWS = 128
"""Samples at a time."""
TEMPERATURE = 0.05
"""At the start, in the critic's units."""
IDLE = 0.02
"""A cone with less than this of an even share of the samples is out of the optimizer's sight."""
APART = 0.1
"""How far a copied cone's tip lies from the original's, over the distance of the samples."""


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

    @torch.no_grad()
    def split(self, x: Tensor, average: Cones) -> None:
        """Move idle cones to where others have much to do, which then share it.

        As the temperature falls, the optimizer loses sight of cones that are nowhere highest, and a
        cone may be left with what the optimal critic has several for. A copy starts as high as its
        original on the original's samples, its tip a little to the side, so the envelope stays
        nearly as it was. (Wu, Wang, Liu 2019, "Splitting steepest descent", split neurons so.)

        Args:
            x: ``(M, *shape)``, of A and B.
            average: of these cones over the steps before; gets the copies too, for half of a copy
                and half of what it was may stand above all others.
        """
        x = x.flatten(1)
        tips = self.tips * self.reach[:, None]
        temperature = self.log_temperature.exp()
        cones, distances = _cones(x, tips, tips.square().sum(dim=1), self.heights, temperature)
        shares, _ = _shares(cones)
        load = shares.sum(dim=0)
        idle = (load < IDLE * len(x) / len(load)).nonzero()[:, 0]
        if not len(idle):
            return
        originals = torch.multinomial(load, len(idle), replacement=True)
        weights = shares[:, originals] / load[originals]
        far = (weights * distances[:, originals]).sum(dim=0)
        aside = torch.randn_like(tips[idle]) * (APART * far / tips.shape[1] ** 0.5)[:, None]
        moved = torch.cdist(x, tips[originals] + aside)
        higher = (weights * (moved - distances[:, originals])).sum(dim=0)
        self.heights[idle] = self.heights[originals] + higher
        self.reach[idle] = self.reach[originals]
        self.tips[idle] = self.tips[originals] + aside / self.reach[originals, None]
        for name in ("reach", "heights", "tips"):
            getattr(average, name)[idle] = getattr(self, name)[idle]

    def forward(self, x: Tensor) -> Tensor:
        """Samples ``(M, *shape)`` to scores ``(M,)``."""
        tips = self.tips * self.reach[:, None]
        scores: Tensor = _Envelope.apply(  # type: ignore[no-untyped-call]
            x.flatten(1), tips, self.heights, self.log_temperature.exp()
        )
        return scores


class _Envelope(Function):
    """The formula, some rows at a time, which stay in a core's cache; backwards they are redone."""

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
            pull = shares.div_(distances)  # on the tip, per unit of the way to it
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
    """Each cone at each of ``(M, D)``, over the temperature, and the distance of its tip."""
    squares = torch.addmm(sizes, x, tips.T, alpha=-2).add_(x.square().sum(dim=1, keepdim=True))
    # The bound keeps the slope at a tip finite, and no longer than 1.
    distances = squares.clamp_min_(1e-8).sqrt_()
    return (heights - distances).div_(temperature), distances


def _shares(cones: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of ``(M, N)``, and its logarithmic sum ``(M,)``.

    What is below e^-60 is taken as that: numbers near the smallest take a hundred times as long.
    """
    highest = cones.amax(dim=1, keepdim=True)
    shares = (cones - highest).clamp_min_(-60).exp_()
    total = shares.sum(dim=1, keepdim=True)
    return shares.div_(total), (highest + total.log())[:, 0]
