"""A critic's Lipschitz constant from both sides: certified above, found by ascent below."""

from __future__ import annotations

import copy

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.lipschitz.certificate import certify
from models.lipschitz.gradients import CriticFunction, NormSummary, Place, interpolate
from models.lipschitz.operators import ROUNDING

ASCENT_STARTS = 96
ASCENT_STEPS = 60
NO_USE = 1e6
"""A bound so many times above the slope that is found says nothing of a critic."""
ROUNDING_MARGIN = 8
"""Factor by which a score may be off by more than the rounding that was measured."""


class LipschitzBounds(BaseModel, frozen=True, extra="forbid"):
    """Bounds of a critic's Lipschitz constant, and its gradient norms.

    All are in score units per unit of the critic's input.
    """

    certified: float | None = None
    """Upper bound of the Lipschitz constant; None where no honest one exists."""
    reason: str | None = None
    """The reason why no bound is certified; None if one is."""
    sampled: float | None = None
    """Lower bound: the steepest slope that was found; None if nothing was measured."""
    gradient_norm: dict[Place, NormSummary] = {}


@parametrize.cached()  # no weight changes in between, so a constraint's rule makes each but once
def steepest_slope(
    critic: CriticFunction, starts: Tensor, steps: int = ASCENT_STEPS, rounding: float = 0.0
) -> float:
    """Search for the steepest slope of a critic: a lower bound of its Lipschitz constant.

    From each start, a pair of points climbs the logarithm of ``|f(x) - f(y)| / |x - y|``. It has an
    ascent direction even where the gradient is constant, as in a piecewise linear critic. Gradient
    norms on the way count too. At first the points are a hundredth (the first start's) to ten (the
    last one's) standard deviations of the starts apart.

    Args:
        critic: see `gradient_norms`; best in float64.
        starts: ``(N, *shape)``.
        steps: number of steps of the ascent.
        rounding: error of the difference of two scores; so much of it is no slope.

    Returns:
        The steepest slope found, in score units per input unit.
    """
    first = starts.flatten(1)
    factors = torch.logspace(-2, 1, len(first), dtype=first.dtype, device=first.device)
    radii = first.std() * factors[:, None]
    second = first + radii * nn.functional.normalize(torch.randn_like(first), dim=1)
    shortest = 1e-5 * first.std()
    best = 0.0
    for step in range(steps):
        points = torch.cat([first, second]).view(-1, *starts.shape[1:]).requires_grad_()
        with torch.enable_grad():
            scores = critic(points)
            (gradients,) = torch.autograd.grad(scores.sum(), points)
        gradients = gradients.flatten(1)
        difference = (scores[: len(first)] - scores[len(first) :]).detach()[:, None]
        apart = first - second
        distance = torch.linalg.vector_norm(apart, dim=1, keepdim=True).clamp_min(shortest)
        slopes = ((difference.abs() - rounding) / distance)[distance > shortest]
        norms = torch.linalg.vector_norm(gradients, dim=1)
        best = max(best, norms.max().item(), slopes.max().item() if len(slopes) else 0.0)
        rise = gradients / torch.where(difference == 0, 1, difference).repeat(2, 1)
        closer = apart / distance.square()
        stride = 0.5 * (1 - step / steps) * distance
        first = first + stride * nn.functional.normalize(rise[: len(first)] - closer, dim=1)
        second = second + stride * nn.functional.normalize(closer - rise[len(first) :], dim=1)
    return best


def lipschitz_bracket(critic: nn.Module, real: Tensor, fake: Tensor) -> LipschitzBounds:
    """Bound a critic's Lipschitz constant from both sides, in float64 and eval mode.

    Args:
        critic: samples ``(N, *shape)`` to scores ``(N,)``; not changed.
        real: ``(N, *shape)``; the ascent starts at real samples, fake ones and points between.
        fake: ``(N, *shape)``.

    Returns:
        The bounds, without a summary of gradient norms. Of a certified bound that is a million
        times the slope found, the reason alone tells.

    Raises:
        RuntimeError: a slope above the certified bound was found, so one of them is wrong.
    """
    exact = copy.deepcopy(critic).double().eval().requires_grad_(False)
    certified, reason = certify(exact, shape=tuple(real.shape[1:]))
    per_kind = ASCENT_STARTS // 3
    real, fake = real[:per_kind].double(), fake[:per_kind].double()
    count = min(len(real), len(fake))
    starts = torch.cat([real, fake, interpolate(real[:count], fake[:count])])
    sampled = steepest_slope(exact, starts, rounding=_rounding(exact, starts))
    if certified is not None and sampled > certified * (1 + ROUNDING):
        raise RuntimeError(
            f"a slope of {sampled:.8g} was found, above the certified {certified:.8g}: the "
            "certificate is wrong; please report this with the run's configuration"
        )
    if certified is not None and certified > NO_USE * sampled > 0:
        reason = f"its bound, {certified:.2g}, is far above the slope found, {sampled:.2g}"
        certified = None
    return LipschitzBounds(certified=certified, reason=reason, sampled=sampled)


@torch.no_grad()
def _rounding(critic: nn.Module, points: Tensor) -> float:
    """Estimate the rounding error of a difference of two float64 scores.

    Numbers inside a critic may be far larger than its scores. What float32 loses of them is
    measured; float64 loses the same, in proportion to its precision.
    """
    scores = critic(points)
    lost = (copy.deepcopy(critic).float()(points.float()) - scores).abs().max()
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    largest = scores.abs().max() * torch.finfo(torch.float64).eps
    return 2 * ROUNDING_MARGIN * float(lost * ratio + largest)
