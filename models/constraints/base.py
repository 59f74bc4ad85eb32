"""What every critic constraint is: frozen hyperparameters and three hooks."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


class Constraint(BaseModel):
    """A way to keep a critic Lipschitz.

    A subclass adds ``kind`` and its hyperparameters as fields (they are validated, recorded with
    the run and served as metadata) and overrides the hooks that it needs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_sample: ClassVar[bool] = False
    """Whether it limits each sample's own gradient, which batch normalisation would mix up."""
    guarantee: ClassVar[str]
    """What holds of a critic trained under it, in one sentence, for people."""
    published: ClassVar[dict[str, Any]]
    """Training settings of the paper that proposed it, used where the user sets none."""

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Prepare a new critic; may change it in place or return a wrapped one."""
        return critic

    def penalty(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor | None:
        """Return the term to add to the critic's loss, a scalar, or None.

        Args:
            critic: scores ``(N,)`` from samples ``(N, *shape)``.
            real: ``(N, *shape)``, a batch of real samples in the critic's units.
            fake: ``(N, *shape)``, as many generated ones.
        """
        return None

    def after_critic_step(self, critic: nn.Module) -> None:
        """Restore what an optimiser step may have broken, in place."""
