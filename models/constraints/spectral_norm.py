"""Spectral normalisation."""

from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.constraints.base import Constraint, adam
from models.constraints.layers import largest_singular_value, layers
from models.constraints.power_method import Method, PowerMethod

TOLERANCE = 1.0
"""Largest accepted excess of a singular value over 1. The power method lags behind weights that
move fast (1.27 was seen); vectors that belong to other weights give far more."""


class SpectralNorm(Constraint):
    """Divide each weight by its largest singular value (Miyato et al. 2018, eqs. 7 and 8).

    For dense layers it is that of the matrix, the layer's operator norm. For convolutions it is
    that of the kernel as a matrix of output channels by everything else, as in the paper, or that
    of the convolution itself as a linear map. The power method advances once per critic step, in
    the hook after it. It never advances in a forward, so neither evaluation nor a second forward in
    one step changes the critic.
    """

    kind: Literal["spectral_norm"] = "spectral_norm"
    method: Method = "reshaped"
    """For convolutions: normalise the kernel as a matrix, or the convolution's linear map."""

    guarantee = (
        "Each layer's largest singular value (of a convolution: its kernel's, or with method "
        "operator its own) is near 1; the power method may leave it a little above, and a "
        "reshaped convolution's own norm may be larger."
    )
    published = adam(learning_rate=2e-4, betas=(0.0, 0.9), num_critic_steps=5)

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Give every dense and convolutional layer a normalised weight."""
        for layer in list(layers(critic)):
            division = _DivideByNorm(PowerMethod(layer, self.method))
            parametrize.register_parametrization(layer, "weight", division)
        return critic

    def after_critic_step(self, critic: nn.Module) -> None:
        """Run one iteration of the power method for each weight."""
        for layer in layers(critic):
            parametrization = layer.parametrizations.weight  # type: ignore[union-attr]
            # An equalised weight has the same singular vectors as the parameter that it scales.
            parametrization[-1].power.iterate(parametrization.original)  # type: ignore[index, union-attr]

    def broken_claim(self, critic: nn.Module) -> str | None:
        """Check kernels as matrices; with method operator, dense layers only."""
        largest = largest_singular_value(
            layer
            for layer in layers(critic)
            if self.method == "reshaped" or isinstance(layer, nn.Linear)
        )
        if largest <= 1 + TOLERANCE:
            return None
        return f"a weight's largest singular value is {largest:.4g}, which is not near 1"


class _DivideByNorm(nn.Module):
    """``weight / sigma`` with sigma = left . weight . right for the singular vectors held."""

    def __init__(self, power: PowerMethod) -> None:
        super().__init__()
        self.power = power

    def forward(self, weight: Tensor) -> Tensor:
        # The vectors are constants here: that gives sigma's exact derivative (eq. 10).
        return weight / self.power.sigma(weight)
