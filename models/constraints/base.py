"""The base class of critic constraints: frozen hyperparameters and three hooks."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.lipschitz import CriticFunction
from models.networks.initial import Scaled
from models.section import Section


def adam(
    *, learning_rate: float, betas: tuple[float, float], num_critic_steps: int
) -> dict[str, Any]:
    """Make training settings with Adam, for `Constraint.published`."""
    rest = {"learning_rate": learning_rate, "betas": betas, "num_critic_steps": num_critic_steps}
    return {"optimizer": "adam", **rest}


def rmsprop(*, learning_rate: float, num_critic_steps: int) -> dict[str, Any]:
    """Make training settings with RMSprop, for `Constraint.published`."""
    rest = {"learning_rate": learning_rate, "num_critic_steps": num_critic_steps}
    return {"optimizer": "rmsprop", **rest}


class Constraint(Section):
    """A way to keep a critic Lipschitz, in our training loop or in any other.

    A critic is any `torch.nn.Module` from samples ``(N, *shape)`` to scores ``(N,)`` or ``(N, 1)``.
    A loop calls three hooks: `before_training` once, before the optimiser is made; `penalty` in
    each critic step; `after_critic_step` after each step of the critic's optimiser. Constraints on
    weights act on dense layers and convolutions (`nn.Linear`, `nn.Conv1d`, `nn.Conv2d`).

    A subclass adds ``kind`` and its hyperparameters as fields, which are validated, recorded with
    the run and served as metadata, and overrides the hooks that it needs.

    >>> import torch
    >>> from models.constraints import GradientPenalty
    >>> _ = torch.manual_seed(0)
    >>> critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
    >>> constraint = GradientPenalty(strength=10)
    >>> critic = constraint.before_training(critic)
    >>> optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=(0.0, 0.9))
    >>> for step in range(100):
    ...     real, fake = torch.randn(64, 2) + 3, torch.randn(64, 2)
    ...     loss = critic(fake).mean() - critic(real).mean()
    ...     penalty = constraint.penalty(critic, real, fake, step)
    ...     if penalty is not None:
    ...         loss = loss + penalty
    ...     optimizer.zero_grad()
    ...     _ = loss.backward()
    ...     optimizer.step()
    ...     constraint.after_critic_step(critic)
    >>> gap = (critic(real).mean() - critic(fake).mean()).item()
    >>> 3 < gap < 6  # the two sets lie sqrt(18), about 4.2, apart
    True
    """

    per_sample: ClassVar[bool] = False
    """True if it limits each sample's own gradient: batch normalisation would mix them up."""
    takes_groups: ClassVar[bool] = False
    """True if such a limit makes sense of the gradient of a group's summed scores too, as a critic
    with minibatch statistics has it."""
    needs_dropout: ClassVar[bool] = False
    """True if it compares two forwards that must differ by dropout."""
    joins_layers: ClassVar[bool] = False
    """True if a layer's weight is made of numbers of other layers too."""
    activations: ClassVar[tuple[str, ...]] = ()
    """Activations of the critic that it takes; empty if all."""
    guarantee: ClassVar[str]
    """One sentence for people: what holds for any critic that was trained under it, whatever its
    architecture; `models.record.constraint_card` adds the slope of the critic that was built."""
    published: ClassVar[dict[str, Any]] = adam(
        learning_rate=1e-4, betas=(0.5, 0.9), num_critic_steps=5
    )
    """Training settings of the paper that proposed it, used where the user sets none. The default
    is that of Gulrajani et al. 2017, for constraints whose own paper trains no WGAN."""

    @property
    def target_slope(self) -> float | None:
        """The mean gradient norm between real and fake samples that a trained critic should have.

        By default 1, the optimal critic's (Gulrajani et al. 2017, proposition 1). None if the
        slope settles where the constraint and the gap balance, so that no value is wrong.
        """
        return 1.0

    def before_training(self, critic: nn.Module) -> nn.Module:
        """Prepare a new critic: change it in place, or wrap it.

        Call it before the optimiser is made, for it may replace parameters, and before saved
        weights are loaded, so that parametrisations, buffers and gradient hooks are in place.

        Returns:
            The critic to train and to save.
        """
        return critic

    def plain_state(self, critic: nn.Module) -> dict[str, Tensor]:
        """The weights that a critic computes with, without what `before_training` added.

        Args:
            critic: the one that `before_training` returned.

        Returns:
            Tensors by the names in the critic that `before_training` took.
        """
        state = {k: t for k, t in critic.state_dict().items() if "parametrizations." not in k}
        for path, module in critic.named_modules():
            if parametrize.is_parametrized(module):
                for name, made in module.parametrizations.items():
                    value, key = getattr(module, name).detach(), name
                    if isinstance(made[0], Scaled):  # equalised before the constraint came
                        value, key = value / made[0].factor, f"parametrizations.{name}.original"
                    # The critic itself has an empty path.
                    state[f"{path}.{key}".removeprefix(".")] = value
        return state

    def penalty(
        self, critic: CriticFunction, real: Tensor, fake: Tensor, step: int = 0
    ) -> Tensor | None:
        """Compute the term to add to the critic's loss ``mean(fake) - mean(real)``.

        Args:
            critic: samples ``(N, *shape)`` to scores ``(N,)`` or ``(N, 1)``.
            real: ``(N, *shape)``, a batch of real samples in the critic's units.
            fake: ``(N, *shape)``, as many generated samples; no gradient flows into them.
            step: number of critic steps already taken.

        Returns:
            A scalar with a gradient for the critic's parameters; None if there is no term.
        """
        return None

    def penalised(self, step: int) -> bool:
        """Return True if the loss of this step includes the penalty."""
        return True

    @property
    def adam_scale(self) -> float:
        """The factor of the critic's learning rate, and exponent of its betas, under Adam.

        It is 1 unless a lazy penalty asks for another.
        """
        return 1.0

    def mixes_samples(self) -> str | None:
        """Say why a batch's penalty is not the mean of its samples' own; None if it is.

        Differentially private training clips each sample's share of the loss, so it needs one.
        """
        return None

    def needs_whole_batch(self) -> str | None:
        """Say why a batch's penalty is not the mean of that of its parts; None if it is.

        `training.micro_batch_size` splits batches. What holds for a batch as a whole, and has no
        gradient, may be a figure of it all the same: `models.constraints.batch.batch_std`.
        """
        return None

    def after_critic_step(self, critic: nn.Module) -> None:
        """Restore, in place, what the optimiser's step may have broken."""

    def broken_claim(self, critic: nn.Module) -> str | None:
        """Check what the constraint claims of the critic's weights.

        Args:
            critic: the one that `before_training` returned, with weights loaded.

        Returns:
            One phrase with the measured figure if the weights contradict the claim; None if they
            do not, or if nothing is claimed.
        """
        return None

    def saturated_share(self, critic: nn.Module) -> float | None:
        """Share of the limited weights that lie at their limit; None if none is limited."""
        return None
