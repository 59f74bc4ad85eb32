"""L2 weight decay of the critic."""

from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.layers import layers
from models.networks.initial import trained_weight


class WeightDecay(Constraint):
    """Add ``strength / 2 * sum(weight^2)`` to the critic's loss (Gulrajani et al. 2017, section 3).

    It is a soft form of clipping that the paper tried and rejected. A hook adds the term's
    gradient, ``strength * weight``, to each weight's in the backward pass; biases and normalisation
    layers are left alone.
    """

    kind: Literal["weight_decay"] = "weight_decay"
    strength: float = Field(default=1e-3, gt=0)
    """Factor of the term, in score units per squared unit of a weight."""

    guarantee = (
        "None: weights are drawn to zero, which limits the slope to no value known beforehand."
    )

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Attach the hooks that add the term's gradient."""
        for layer in layers(critic):
            weight, factor = trained_weight(layer)
            add = partial(self._add_gradient, factor)
            weight.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]
        return critic

    def _add_gradient(self, factor: float, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach(), alpha=self.strength * factor**2)
