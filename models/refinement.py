"""Critic-guided samples: each latent goes one step up the critic's score before it is decoded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STEP = 0.02
"""Mean length of the step, over the root of the latent's size. docs/service.md says what longer
steps and other ways did, by ``benchmarks.refine``."""


class Refined(nn.Module):
    """A generator that moves each latent up the score first, and keeps the latent's length.

    ``z' = z + STEP sqrt(d) g / E|g|`` with g the gradient of ``critic(generator(z))``, then scaled
    back to ``|z|``, which keeps a normal latent typical. ``E|g|`` is a constant of the model, from
    latents given once, so a sample depends on nothing but its own latent. A step of the kind of
    Tanaka 2019 and Che et al. 2020, without their guarantees: a WGAN's scores are no log-ratios of
    densities.
    """

    def __init__(self, generator: nn.Module, critic: nn.Module, z: Tensor, *labels: Tensor) -> None:
        """Take networks in eval mode, and latents ``(N, d)`` (with labels) to find ``E|g|`` at."""
        super().__init__()
        self.generator, self.critic = generator, critic
        norms = torch.linalg.vector_norm(self.slopes(z, *labels), dim=1)
        self.typical = norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)

    def slopes(self, z: Tensor, *labels: Tensor) -> Tensor:
        """The score's gradient at latents ``(N, d)``."""
        with torch.inference_mode(False), torch.enable_grad():
            z = z.clone().requires_grad_()
            given = [label.clone() for label in labels]
            scores = self.critic(self.generator(z, *given), *given)
            (found,) = torch.autograd.grad(scores.sum(), z)
        return found

    def forward(self, z: Tensor, *labels: Tensor) -> Any:
        """Latents ``(N, d)`` to samples, as the generator gives them."""
        step = STEP * z.shape[1] ** 0.5 / self.typical
        moved = z + step * self.slopes(z, *labels)
        lengths = [torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (z, moved)]
        return self.generator(moved * lengths[0] / lengths[1].clamp_min(1e-12), *labels)
