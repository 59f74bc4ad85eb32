"""Weight clipping: the constraint of the first Wasserstein GAN."""

from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from models.constraints.base import Constraint, rmsprop
from models.constraints.layers import layers
from models.errors import ConfigError
from models.lipschitz import Layer, certify, to_phases
from models.networks.conditional import ProjectionCritic
from models.networks.initial import trained_weight

# torch has no public name for "any batch or instance normalisation".
NORMALIZATION = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)
RANGE = "clip_range"
"""Attribute with the range of a layer that has its own."""
ROUNDING = 1e-5
"""Relative tolerance of a bound, far above what float32 loses."""
MARGIN = 2e-6
"""Relative margin of each layer below its share of the target, above what a certificate adds to a
layer's norm for rounding."""


class WeightClipping(Constraint):
    """Clamp parameters to [-c, c] after every critic step (Arjovsky et al. 2017, algorithm 1).

    Parameters in a box make the critic K-Lipschitz for some K. With one c for all layers, K grows
    or shrinks exponentially with depth and is rarely near 1. With ``target_lipschitz`` each layer
    has its own c, chosen such that the steepest critic in the boxes, with all weights at their
    bounds, has that constant. The ranges follow from the architecture alone, so a critic that is
    built again to load weights has the same ones.
    """

    kind: Literal["weight_clipping"] = "weight_clipping"
    clip_value: float = Field(default=0.01, gt=0)
    """Bound of every clipped parameter, unless a target is set; c in the paper."""
    target_lipschitz: float | None = Field(default=None, gt=0)
    """The Lipschitz constant that the layers' ranges certify, in score units per input unit."""
    scope: Literal["all", "weights", "all_but_normalization"] = "all"
    """Clipped parameters: all (as in the paper's code), weight matrices and kernels only, or all
    but the gains and offsets of normalisation layers."""

    guarantee = (
        "The clipped parameters lie in [-clip_value, clip_value], which limits the slope to no "
        "value known beforehand; with target_lipschitz they lie in the layers' own ranges, which "
        "limit it to that target."
    )
    published = rmsprop(learning_rate=5e-5, num_critic_steps=5)

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        default = WeightClipping.model_fields["clip_value"].default
        if self.target_lipschitz is not None and self.clip_value != default:
            raise ValueError("set clip_value or target_lipschitz, not both")
        return self

    @property
    def target_slope(self) -> float:
        """See `Constraint.target_slope`."""
        return self.target_lipschitz or 1.0

    def clipped(self, critic: nn.Module) -> Iterator[tuple[nn.Parameter, float]]:
        """Yield the parameters that the scope covers, each with its bound.

        The bound is that of weights; an equalised layer's parameter has that of its weight over
        the layer's factor.
        """
        for module in critic.modules():
            is_norm = isinstance(module, NORMALIZATION)
            if isinstance(module, ParametrizationList) or (is_norm and self.scope != "all"):
                continue  # an equalised weight's parameter is its layer's
            bound = getattr(module, RANGE, self.clip_value)
            if is_parametrized(module, "weight"):
                weight, factor = trained_weight(module)
                yield weight, bound / factor
            for name, parameter in module.named_parameters(recurse=False):
                if self.scope != "weights" or "bias" not in name:
                    yield parameter, bound

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Clip the initial weights, so that the claim holds from the first step on."""
        if self.target_lipschitz is not None:
            norm = _common_norm(critic, self.target_lipschitz)
            for layer in layers(critic):
                setattr(layer, RANGE, norm / _norm_of_ones(layer))
            for module in critic.modules():
                if isinstance(module, ProjectionCritic):  # each class's vector is one more head
                    setattr(module.projection, RANGE, getattr(module.head, RANGE))
        self.after_critic_step(critic)
        return critic

    @torch.no_grad()
    def after_critic_step(self, critic: nn.Module) -> None:
        """Clamp the parameters in place."""
        for parameter, bound in self.clipped(critic):
            parameter.clamp_(-bound, bound)

    def broken_claim(self, critic: nn.Module) -> str | None:
        """Check that every clipped parameter lies within its bound."""
        for parameter, bound in self.clipped(critic):
            largest = parameter.detach().abs().max().item()
            if not largest <= bound * (1 + ROUNDING):
                return f"a clipped parameter is {largest:.6g}, outside [-{bound:.6g}, {bound:.6g}]"
        return None

    def saturated_share(self, critic: nn.Module) -> float:
        """Compute the share of the clipped parameters that lie at their bound."""
        at_bound = count = 0
        for parameter, bound in self.clipped(critic):
            at_bound += int((parameter.detach().abs() >= bound * (1 - ROUNDING)).sum())
            count += parameter.numel()
        return at_bound / count


def _common_norm(critic: nn.Module, target: float) -> float:
    """Find the norm that all layers may have for the critic to have the target's constant."""
    if any(isinstance(module, NORMALIZATION) for module in critic.modules()):
        raise ConfigError(
            "constraint.target_lipschitz: normalisation layers have slopes of their own; set "
            "critic.normalization=none, or use clip_value"
        )

    def constant(norm: float) -> float:
        bound, reason = certify(critic, lambda layer: norm * (1 + MARGIN))
        if bound is None:
            raise ConfigError(f"constraint.target_lipschitz: {reason}; use clip_value")
        return bound

    low, high = 1e-6, 1.0
    while constant(high) < target:
        high *= 2
    while constant(low) > target:
        if not low:
            raise ConfigError(
                "constraint.target_lipschitz: the critic is steeper than that even with weights "
                "of 0; use clip_value"
            )
        low /= 2
    for _ in range(100):  # the constant grows with the norm, so bisect, and stay below the target
        before, middle = (low, high), (low * high) ** 0.5
        low, high = (middle, high) if constant(middle) <= target else (low, middle)
        if (low, high) == before:  # neighbours: from here on nothing changes
            break
    return low


def _norm_of_ones(layer: Layer) -> float:
    """Compute the operator norm of a layer with all weights 1, the steepest in the box [-1, 1].

    Each entry of a convolution's symbol is at most its number of taps. Weights of 1 reach that at
    frequency zero, and the matrix there has equal rows, so its rank is 1.
    """
    stride = () if isinstance(layer, nn.Linear) else layer.stride
    ones = to_phases(torch.ones_like(layer.weight, dtype=torch.float64), stride)
    return ones.flatten(2).sum(2).norm().item() if ones.dim() > 2 else ones.norm().item()
