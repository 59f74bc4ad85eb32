"""What every critic constraint is: frozen hyperparameters and three hooks."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from models.lipschitz import CriticFunction

WGAN_GP_SETTINGS: dict[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "betas": (0.5, 0.9),
    "num_critic_steps": 5,
}
"""Of Gulrajani et al. 2017; taken where a constraint's own paper trains no WGAN."""


class Constraint(BaseModel):
    """A way to keep a critic Lipschitz.

    A subclass adds ``kind`` and its hyperparameters as fields (they are validated, recorded with
    the run and served as metadata) and overrides the hooks that it needs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_sample: ClassVar[bool] = False
    """Whether it limits each sample's own gradient, which batch normalisation would mix up."""
    needs_dropout: ClassVar[bool] = False
    """Whether it compares two forwards that must differ by dropout."""
    guarantee: ClassVar[str]
    """What holds of a critic trained under it, in one sentence, for people."""
    published: ClassVar[dict[str, Any]] = WGAN_GP_SETTINGS
    """Training settings of the paper that proposed it, used where the user sets none."""

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Prepare a new critic; may change it in place or return a wrapped one.

        Called on every freshly built critic, also before saved weights are loaded into it, so
        whatever it attaches (parametrisations, buffers, gradient hooks) is there after a load.
        """
        return critic

    def penalty(
        self, critic: CriticFunction, real: Tensor, fake: Tensor, step: int = 0
    ) -> Tensor | None:
        """Return the term to add to the critic's loss, a scalar, or None.

        Args:
            critic: scores ``(N,)`` from samples ``(N, *shape)``.
            real: ``(N, *shape)``, a batch of real samples in the critic's units.
            fake: ``(N, *shape)``, as many generated ones.
            step: critic steps done before, since the start of training.
        """
        return None

    def penalised(self, step: int) -> bool:
        """Whether this step's loss has the penalty: steps alike in it have one loss function."""
        return True

    def after_critic_step(self, critic: nn.Module) -> None:
        """Restore what an optimiser step may have broken, in place."""

    def broken_claim(self, critic: nn.Module) -> str | None:
        """Say how the critic's weights contradict what the constraint claims of them.

        Args:
            critic: as `before_training` returned it, with weights loaded.

        Returns:
            One phrase with the measured figure; None if the claim holds, or there is none.
        """
        return None

    def saturated_share(self, critic: nn.Module) -> float | None:
        """Share of the critic's limited weights that lie at their limit; None without such."""
        return None
