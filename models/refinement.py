"""Critic-guided samples: each latent goes one step up the critic's score before it is decoded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STEP = 0.02
"""Mean length of the step, relative to the root of the latent's size. docs/service.md compares
other lengths and methods, as measured by ``benchmarks.refine``."""


class Refined(nn.Module):
    """A generator that first moves each latent up the critic's score, keeping the latent's length.

    ``z' = z + STEP sqrt(d) g / E|g|``, with g the gradient of ``critic(generator(z))``, is scaled
    back to length ``|z|``, which keeps a normal latent typical. ``E|g|`` is a constant of the
    model, computed once from fixed latents, so a sample depends on its own latent only. The step
    resembles those of Tanaka 2019 and Che et al. 2020, without their guarantees, since a WGAN's
    scores are no log-ratios of densities.
    """

    def __init__(self, generator: nn.Module, critic: nn.Module, z: Tensor, *labels: Tensor) -> None:
        """Take networks in eval mode, and latents ``(N, d)``, with labels if any, for ``E|g|``."""
        super().__init__()
        self.generator, self.critic = generator, critic
        norms = torch.linalg.vector_norm(self.slopes(z, *labels), dim=1)
        self.mean_slope = norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)

    def slopes(self, z: Tensor, *labels: Tensor) -> Tensor:
        """Compute the score's gradient at latents ``(N, d)``."""
        with torch.inference_mode(False), torch.enable_grad():
            z = z.clone().requires_grad_()
            # Clones are normal tensors even if the caller's are inference tensors.
            classes = [label.clone() for label in labels]
            scores = self.critic(self.generator(z, *classes), *classes)
            (gradient,) = torch.autograd.grad(scores.sum(), z)
        return gradient

    def forward(self, z: Tensor, *labels: Tensor) -> Any:
        """Generate samples from latents ``(N, d)``, and labels ``(N,)`` if given."""
        step = STEP * z.shape[1] ** 0.5 / self.mean_slope
        moved = z + step * self.slopes(z, *labels)
        lengths = [torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (z, moved)]
        return self.generator(moved * lengths[0] / lengths[1].clamp_min(1e-12), *labels)
