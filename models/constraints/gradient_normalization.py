"""Gradient normalisation: GN-GAN."""

from typing import Literal

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint, adam


class GradientNormalization(Constraint):
    """Use ``f / (|grad f| + |f|)`` in place of the critic f (Wu et al. 2021, eq. 7).

    The scores lie in (-1, 1). For a piecewise linear f the gradient's norm is at most 1 inside each
    linear piece. The function jumps where pieces meet, so it has no Lipschitz constant as a whole.
    """

    kind: Literal["gradient_normalization"] = "gradient_normalization"

    per_sample = True
    guarantee = (
        "Scores lie in (-1, 1), and the gradient norm is at most 1 inside each linear piece of a "
        "piecewise linear critic; no global Lipschitz constant exists, for it jumps between them."
    )
    published = adam(learning_rate=2e-4, betas=(0.0, 0.9), num_critic_steps=5)

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Wrap the critic."""
        return GradientNormalized(critic)

    def plain_state(self, critic: nn.Module) -> dict[str, Tensor]:
        """The weights of the critic that is wrapped."""
        assert isinstance(critic, GradientNormalized)
        return super().plain_state(critic.critic)


class GradientNormalized(nn.Module):
    """A critic with each score divided by its gradient norm plus its own size."""

    no_lipschitz_bound = "gradient normalisation bounds no slope where linear pieces meet"

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, samples: Tensor, *labels: Tensor) -> Tensor:
        """Score ``samples``; computes the gradient that it needs even under `torch.no_grad`."""
        keep = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if not samples.requires_grad:
                # A clone is a normal tensor, even in inference mode.
                samples = samples.clone().requires_grad_()
            scores = self.critic(samples, *labels)
            (gradient,) = torch.autograd.grad(scores.sum(), samples, create_graph=keep)
        norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1).view_as(scores)
        normalized: Tensor = scores / (norms + scores.abs())
        return normalized if keep else normalized.detach()
