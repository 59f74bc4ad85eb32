"""Weight clipping: the constraint of the first Wasserstein GAN."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from models.constraints.base import Constraint

# The base classes are private, but there is no public name for "any batch or instance norm".
NORMALIZATION = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)


class WeightClipping(Constraint):
    """Clamp parameters to [-c, c] after every critic step (Arjovsky et al. 2017, algorithm 1).

    Parameters in a box make the critic K-Lipschitz for some K, but K is unknown, grows or
    shrinks exponentially with depth, and is rarely near 1.
    """

    kind: Literal["weight_clipping"] = "weight_clipping"
    clip_value: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """c, in units of a parameter."""
    scope: Literal["all", "weights", "all_but_normalization"] = "all"
    """Which parameters: all (as in the paper's code), weight matrices and kernels only, or all
    but the gains and offsets of normalisation layers."""

    guarantee: ClassVar[str] = (
        "The clipped parameters lie in [-clip_value, clip_value], so some Lipschitz constant "
        "exists; it is not 1 and is not known."
    )
    published: ClassVar[dict[str, Any]] = {
        "optimizer": "rmsprop",
        "learning_rate": 5e-5,
        "num_critic_steps": 5,
    }

    def clipped(self, critic: nn.Module) -> Iterator[nn.Parameter]:
        """The parameters that the scope covers."""
        for module in critic.modules():
            is_norm = isinstance(module, NORMALIZATION)
            if is_norm and self.scope != "all":
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if self.scope != "weights" or "bias" not in name:
                    yield parameter

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Clip the initial weights too, so that the claim holds from the first step on."""
        self.after_critic_step(critic)
        return critic

    @torch.no_grad()
    def after_critic_step(self, critic: nn.Module) -> None:
        """Clamp in place."""
        for parameter in self.clipped(critic):
            parameter.clamp_(-self.clip_value, self.clip_value)
