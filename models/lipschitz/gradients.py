"""Gradient norms of a critic at samples, and their distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor

CriticFunction = Callable[[Tensor], Tensor]
"""Samples ``(N, *shape)`` to scores, ``(N,)`` or ``(N, 1)``."""
Place = Literal["real", "fake", "between"]
"""Held-out real samples, generated ones, or points on the segments between them."""


class NormSummary(BaseModel, frozen=True, extra="forbid"):
    """Distribution of the critic's gradient norm, in score units per unit of its input."""

    mean: float
    max: float
    quantiles: dict[str, float]
    """Quantiles by level: "0.05", "0.25", "0.5", "0.75" and "0.95"."""


def score_points(critic: CriticFunction, points: Tensor) -> Tensor:
    """Score ``points``: ``(N,)``, also for a critic that gives ``(N, 1)``, in float32 or better."""
    scores = critic(points).flatten()
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def gradient_norms(critic: CriticFunction, points: Tensor, *, create_graph: bool = False) -> Tensor:
    """Compute the Euclidean norm of the critic's gradient at each of ``points``.

    The norm is per sample, over every axis but the first, in float32 or better even under autocast.
    Where a gradient is exactly zero, its norm and the norm's derivative are zero (a subgradient),
    never NaN.

    >>> gradient_norms(lambda x: x @ torch.tensor([3.0, 4.0]), torch.zeros(2, 2))
    tensor([5., 5.])

    Args:
        critic: samples ``(N, *shape)`` to scores ``(N,)`` or ``(N, 1)``; each score may depend on
            its own sample only, so no batch normalisation. Of a critic with minibatch statistics
            in training they are gradients of the sum of a group's scores.
        points: ``(N, *shape)``, in the critic's units.
        create_graph: keep the graph, so that a penalty on the norms can be back-propagated.

    Returns:
        ``(N,)``, in score units per unit of ``points``.
    """
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        # No score depends on another sample, so the sum's gradient holds each sample's own. Under
        # autocast the scores may be bfloat16, but the gradient has the points' own type.
        (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=create_graph)
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1)


def interpolate(real: Tensor, fake: Tensor) -> Tensor:
    """Draw one point, uniformly, on the segment from each real sample to its fake partner.

    One coefficient per sample, whatever its number of axes (Gulrajani et al. 2017, section 4).

    Args:
        real: ``(N, *shape)``.
        fake: ``(N, *shape)``.

    Returns:
        ``(N, *shape)``, detached.
    """
    per_sample = (len(real), *[1] * (real.dim() - 1))
    coefficient = torch.rand(per_sample, dtype=real.dtype, device=real.device)
    return torch.lerp(fake.detach(), real.detach(), coefficient)


def gradient_norm_summary(
    critic: CriticFunction, real: Tensor, fake: Tensor
) -> dict[Place, NormSummary]:
    """Summarise the gradient norm on real samples, on fake ones and between them.

    Args:
        critic: see `gradient_norms`.
        real: ``(N, *shape)``, held-out real samples in the critic's units.
        fake: ``(N, *shape)``, generated samples in the critic's units.

    Returns:
        A summary for each of ``real``, ``fake`` and ``between``.
    """
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    summary: dict[Place, NormSummary] = {}
    places: dict[Place, Tensor] = {"real": real, "fake": fake, "between": interpolate(real, fake)}
    for place, points in places.items():
        norms = gradient_norms(critic, points).double()
        quantiles = torch.quantile(norms, torch.tensor(levels, dtype=torch.float64).to(norms))
        summary[place] = NormSummary(
            mean=norms.mean().item(),
            max=norms.max().item(),
            quantiles=dict(zip(map(str, levels), quantiles.tolist(), strict=True)),
        )
    return summary
