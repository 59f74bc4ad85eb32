"""A generator step with its critic steps: what the training loop repeats, in every mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from models.config import Config
from models.lipschitz import gradient_norms, interpolate
from models.networks.conditional import WithLabels
from models.networks.rows import RestrictionSampler
from training.data.batches import TrainingItems
from training.data.dataset import Dataset
from training.engine.checkpoint import TrainingState
from training.engine.optimisers import average_weight, set_learning_rates, update_average
from training.engine.privacy import PrivateStep
from training.engine.split import WHOLE, Split
from training.engine.step import CriticStep
from training.engine.workers import Workers

Array = np.ndarray
Batch = tuple[Tensor, list[Tensor]]
"""Real items ``(B, ...)`` in data units; and their labels ``(B,)``, in a class-conditional run."""


class Outcome(NamedTuple):
    """What the last critic step of a generator step found, for the log."""

    gap: Tensor
    loss: Tensor
    real: Tensor
    """``(B, *shape)``, in the critic's units, as the critic saw them: augmented if they were."""
    fake: Tensor
    labels: list[Tensor]
    """Labels or restrictions of both; empty without conditions."""


class MakesStep(Protocol):
    """Makes a generator step with its critic steps."""

    @property
    def mode(self) -> str:
        """The mode of the critic's step, for the record."""

    def __call__(self, numbers: Sequence[Array], step: int, seed: int) -> Outcome:
        """Make a step.

        Args:
            numbers: of each critic step, int64 ``(B,)``, numbers of training items.
            step: generator steps done before.
            seed: of the step's random numbers.
        """


class WholeStep:
    """The critic steps, the generator step and the moving average, as a function of tensors.

    It comes in parts, between which processes that train together exchange gradients. Everything
    that a mode may choose is an argument; what is random comes from torch's global generator.

    Args:
        config: the run's.
        data: what the run trains on.
        state: is changed by each step.
        find_critic_gradients: leaves the gradients of the critic's loss on its parameters.
        device: of the state.
        workers: processes that train together.
        autocast: entered around each forward.
        split: the parts of a batch whose gradients are computed one after the other, and what
            draws their random numbers.
    """

    count: int
    """Items of a batch that are this process's."""
    outcome: Outcome
    """Of the last step."""

    def __init__(
        self,
        config: Config,
        data: Dataset,
        state: TrainingState,
        find_critic_gradients: CriticStep | PrivateStep,
        device: torch.device,
        workers: Workers,
        autocast: AbstractContextManager[Any],
        split: Split = WHOLE,
    ) -> None:
        self.config, self.state, self.find_critic_gradients = config, state, find_critic_gradients
        self.workers, self._device = workers, device
        self._autocast, self._split = autocast, split
        self._scaling = data.scaling.to(device)
        rows = workers.rows(config.training.batch_size)
        self.count, self._latent_size = rows.stop - rows.start, config.generator.latent_size
        parts = data.card.parts
        self._draw_restrictions = (
            RestrictionSampler(parts, config.conditions_share, device) if parts else None
        )
        self._averages, self._weights = (
            list(network.state_dict().values()) for network in (state.ema, state.generator)
        )

    def __call__(self, batches: Iterable[Batch], step: int, weight: float | Tensor) -> Outcome:
        """Make a generator step with its critic steps.

        Args:
            batches: of real items, one for each critic step, on the device.
            step: generator steps done before.
            weight: of the generator's new weights in their moving average.
        """
        for gradients in self.parts(batches, step, weight):
            self.workers.add_up(gradients)
        return self.outcome

    def parts(
        self, batches: Iterable[Batch], step: int, weight: float | Tensor
    ) -> Iterator[Tensor]:
        """Make a step as `__call__` does, but for the exchanges, which are left to the caller.

        Yields:
            Gradients, which are to be added up over processes before it goes on.
        """
        state, constraint = self.state, self.config.constraint
        generator, critic, augmented = state.generator, state.critic, state.augmentation

        # Critic steps, each on a new batch.
        critic.requires_grad_(True)
        first = step * self.config.training.num_critic_steps
        for critic_step, (items, classes) in enumerate(batches, first):
            # Bring the real samples to the critic's units, and generate as many fake ones. The
            # critic and its penalty see both augmented, if they are images that are to be.
            real = self._scaling.to_model(items)
            with self._autocast, self._split.draws, torch.no_grad():
                restrict = self._draw_restrictions
                labels = [restrict(real)] if restrict else classes
                latents = self._latents(len(real))
                fake = self._split.map(generator, latents, *labels).float()
                real, fake = augmented(real), augmented(fake)

            # Maximise the gap between the scores, less the constraint's penalty.
            gap, loss = self.find_critic_gradients(real, fake, labels, critic_step)
            yield from self.workers.averaged(critic)
            state.critic_optimizer.step()
            constraint.after_critic_step(critic)

        # Generator step: raise the critic's scores of new samples, of the last batch's classes. In
        # a private run conditions follow from generated rows: only the critic may see real ones.
        critic.requires_grad_(False)
        with self._autocast, self._split.draws:
            asked = labels
            if self.config.privacy and self._draw_restrictions:
                with torch.no_grad():
                    asked = [self._draw_restrictions(generator(self._latents(self.count)))]
            latents = self._latents(self.count)
        state.generator_optimizer.zero_grad()
        for part in self._split(latents, *asked):
            own_latents, *conditions = part.tensors
            with self._autocast, part.draws:
                scores = critic(augmented(generator(own_latents, *conditions)), *conditions)
            part.weighed(-scores.float().mean()).backward()  # type: ignore[no-untyped-call]
        yield from self.workers.averaged(generator)
        state.generator_optimizer.step()

        # Moving average of the generator: the network that is judged and served.
        update_average(self._averages, self._weights, weight)
        self.outcome = Outcome(gap, loss, real, fake, labels)

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self._latent_size, device=self._device)

    def scores(self, samples: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """The critic's scores of samples with their labels, ``(N,)``."""
        return self._split.map(self.state.critic, samples, *labels)

    def gradient_norms(self, outcome: Outcome) -> Tensor:
        """The critic's gradient norms between an outcome's samples, ``(N,)``."""

        def norms(points: Tensor, *labels: Tensor) -> Tensor:
            critic = self.state.critic
            return gradient_norms(WithLabels(critic, *labels) if labels else critic, points)

        with self._split.draws:
            points = interpolate(outcome.real, outcome.fake)
        return self._split.map(norms, points, *outcome.labels)


class PlainStep:
    """Makes steps one kernel after the other: every mode but ``graphed``.

    Args:
        whole: the step.
        items: to train on.
    """

    def __init__(self, whole: WholeStep, items: TrainingItems) -> None:
        self._whole, self._items = whole, items

    @property
    def mode(self) -> str:
        """See `MakesStep`."""
        return self._whole.find_critic_gradients.mode

    def __call__(self, numbers: Sequence[Array], step: int, seed: int) -> Outcome:
        """See `MakesStep`."""
        state, settings = self._whole.state, self._whole.config.training
        torch.manual_seed(seed)
        set_learning_rates(settings, step, state.critic_optimizer, state.generator_optimizer)
        with_labels = self._whole.config.conditional
        batches = (
            (self._items.take(n), [self._items.labels(n)] if with_labels else []) for n in numbers
        )
        return self._whole(batches, step, average_weight(settings.ema_decay, step))
