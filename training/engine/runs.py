"""A run while it trains: its networks and optimisers, its history, its checkpoints."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from models.command_line import StopNow, StopRequest
from models.config import Config, flatten
from models.networks import build_networks
from training.data.dataset import Dataset
from training.engine.checkpoint import (
    CheckpointError,
    TrainingState,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from training.engine.optimisers import make_optimizer
from training.engine.step import STACKED
from training.engine.workers import ALONE, Workers

Row = dict[str, float]
"""One line of the history: step, critic_gap, critic_loss, gradient_norm, samples_per_second."""
Watch = Callable[[int, TrainingState], None]
"""Called with the generator steps done and the networks, which it must not change."""


class Diverged(Exception):
    """Training went to NaN, infinity or beyond all bounds; the last good checkpoint is kept."""


class Interrupted(Exception):
    """The run was asked to stop, and can be resumed."""


@contextmanager
def stoppable(stop_requested: Callable[[], bool], what: str) -> Iterator[None]:
    """Run a block whose work is lost if it is stopped, and can be done again.

    Args:
        stop_requested: asked before the block. A `models.command_line.StopRequest` also ends it, as
            soon as the call into compiled code that is under way returns.
        what: what the block does, such as ``judging``.

    Raises:
        Interrupted: a stop was requested.
    """
    if stop_requested():
        raise Interrupted(f"stopped before {what}")
    try:
        with stop_requested.raised() if isinstance(stop_requested, StopRequest) else nullcontext():
            yield
    except StopNow:
        raise Interrupted(f"stopped while {what}") from None


def no_watch(step: int, state: TrainingState) -> None:
    """Look at nothing: the default of every ``watch``."""


@dataclass
class TrainingRun:
    """The state and record of one run, alone or in a stack of runs."""

    config: Config
    folder: Path
    """Holds the checkpoints."""
    state: TrainingState
    history: list[Row]
    step: int
    """Generator steps done."""
    critic_step: str
    """Mode of the critic's step: one of ``training.critic_step``, or `STACKED`."""

    def start_clock(self) -> None:
        """Measure ``samples_per_second`` from now on."""
        self._started, self._first_step = time.perf_counter(), self.step

    @property
    def is_finished(self) -> bool:
        """True when all steps are done."""
        return self.step == self.config.training.steps

    def is_due(self, every: int) -> bool:
        """True at each ``every``-th step, and at the last."""
        return self.is_finished or self.step % every == 0

    def require_sane(self, gap: float) -> None:
        """Check that training goes on well.

        Raises:
            Diverged: the gap is beyond ``training.divergence_gap``, or a tensor is not finite.
        """
        live = self.state.live()
        device = next(iter(live.values())).device  # some optimisers count their steps on the CPU
        sound = torch.stack([torch.isfinite(t).all().to(device) for t in live.values()])
        broken = [name for name, fine in zip(live, sound.tolist(), strict=True) if not fine]
        bound = self.config.training.divergence_gap
        if math.isfinite(gap) and abs(gap) <= bound and not broken:
            return
        message = f"diverged by step {self.step}: the critic gap is {gap:.4g}"
        if self.history:
            last = self.history[-1]
            message += f"; it was {last['critic_gap']:.4g} at step {int(last['step'])}"
        if broken:
            message += f"; not finite: {', '.join(broken[:3])}{', ...' if broken[3:] else ''}"
        raise Diverged(
            f"{message}. Lower training.learning_rate, or constrain the critic more "
            f"(constraint.*). Last good checkpoint: {newest_checkpoint(self.folder) or 'none yet'}"
        )

    def log(self, gap: float, loss: float, gradient_norm: float) -> Row:
        """Add a row to the history, and return it."""
        settings = self.config.training
        critic_steps = (self.step - self._first_step) * settings.num_critic_steps
        seconds = time.perf_counter() - self._started
        row = {
            "step": self.step,
            "critic_gap": gap,
            "critic_loss": loss,
            "gradient_norm": gradient_norm,
            "samples_per_second": critic_steps * settings.batch_size / seconds,
        }
        self.history.append(row)
        return row

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(
            self.folder, self.step, self.config, self.history, self.state, self.critic_step
        )


def begin(
    config: Config,
    data: Dataset,
    folder: Path,
    device: torch.device,
    checkpoint: Path | None,
    workers: Workers = ALONE,
) -> TrainingRun:
    """Make new networks and optimisers, or restore those of a checkpoint.

    Args:
        config: the run's.
        data: what to train on.
        folder: for checkpoints.
        device: where to train.
        checkpoint: the file to go on from; None for a new run.
        workers: the processes that train together.

    Raises:
        CheckpointError: it is broken or belongs to another configuration.
    """
    settings = config.training
    assert settings.steps, "see training.presets.fill_in"
    assert settings.batch_size, "see training.presets.fill_in"
    torch.manual_seed(step_seed(settings.seed, -1))
    generator, critic = build_networks(
        config, data.card.shape, len(data.card.classes), data.card.parts
    )
    generator, critic = (workers.prepare(network.to(device)) for network in (generator, critic))
    state = TrainingState(
        generator,
        critic,
        copy.deepcopy(generator).requires_grad_(False),
        make_optimizer(settings, generator.parameters()),
        make_optimizer(settings, critic.parameters()),
    )
    if checkpoint is None:
        return TrainingRun(config, folder, state, [], 0, settings.critic_step)
    saved = load_checkpoint(checkpoint)
    _require_same(config, saved.config, checkpoint)
    state.restore(saved.tensors)
    # A run that began in a stack may be finished alone.
    mode = settings.critic_step if saved.critic_step == STACKED else saved.critic_step
    return TrainingRun(config, folder, state, saved.history, saved.step, mode)


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's random numbers; that of the networks' initial weights is step -1."""
    # Hashed, since torch's CPU generator makes related streams of neighbouring seeds, and only
    # looks at 32 bits.
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _require_same(config: Config, saved: dict[str, object], checkpoint: Path) -> None:
    saved = flatten(saved)
    now = flatten(config.model_dump(mode="json"))
    differing = [key for key, value in now.items() if value != saved.get(key)]
    if differing:
        raise CheckpointError(
            f"{checkpoint}: was made with another {', '.join(differing)}; resume with the same "
            "configuration, or start anew with another --out"
        )
