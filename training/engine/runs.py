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
from pydantic import ValidationError

from models.command_line import StopNow, StopRequest
from models.config import Config, faults_in_words, flatten
from models.networks import build_networks
from models.networks.stages import with_stages
from training.data.dataset import Dataset
from training.engine.augmentation import build_augmentation
from training.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    TrainingState,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from training.engine.optimisers import learning_rate, make_optimizers
from training.engine.origin import Origin, Start, changes, fingerprint
from training.engine.start import continued
from training.engine.step import STACKED
from training.engine.workers import ALONE, Workers
from training.progress import silent

Row = dict[str, float]
"""One line of the history: step, critic_gap, critic_loss, gradient_norm, samples_per_second; and,
where its strength changes, augmentation_strength and augmentation_overfitting."""
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


def both(first: Watch, second: Watch) -> Watch:
    """Call one watch after the other."""

    def watch(step: int, state: TrainingState) -> None:
        first(step, state)
        second(step, state)

    return watch


def not_enough(step: int) -> bool:
    """Train on: the default of every ``enough``."""
    return False


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
    origin: Origin

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
        settings = self.config.training
        bound = settings.divergence_gap
        if math.isfinite(gap) and abs(gap) <= bound and not broken:
            return
        message = f"diverged by step {self.step}: the critic gap is {gap:.4g}"
        if self.history:
            last = self.history[-1]
            message += f"; it was {last['critic_gap']:.4g} at step {int(last['step'])}"
        if broken:
            message += f"; not finite: {', '.join(broken[:3])}{', ...' if broken[3:] else ''}"
        rates = " and ".join(
            f"training.{r}" for r in sorted({"learning_rate", settings.critic_rate})
        )
        raise Diverged(
            f"{message}. Lower {rates}, or constrain the critic more "
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
        for name, value in self.state.augmentation.state_dict().items():
            row[f"augmentation_{name}"] = value.item()
        self.history.append(row)
        return row

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(
            self.folder,
            self.step,
            self.config,
            self.history,
            self.state,
            self.critic_step,
            self.origin,
        )


def begin(
    config: Config,
    data: Dataset,
    folder: Path,
    device: torch.device,
    checkpoint: Path | None,
    workers: Workers = ALONE,
    start: Start | None = None,
    say: Callable[[str], None] = silent,
) -> TrainingRun:
    """Make new networks and optimisers, or restore those of a checkpoint.

    A run that goes on computes with as many threads of torch as it began with.

    Args:
        config: the run's.
        data: what to train on.
        folder: for checkpoints.
        device: where to train.
        checkpoint: the file to go on from; None for a new run.
        workers: the processes that train together.
        start: the trained model that a new run begins with; None: with random weights.
        say: takes a line for people.

    Raises:
        CheckpointError: it is broken, or belongs to another configuration or other data.
        ShapeError: the model to begin with does not fit.
        ConfigError: these data cannot be augmented as the configuration says.
    """
    settings = config.training
    assert settings.steps, "see training.presets.fill_in"
    assert settings.batch_size, "see training.presets.fill_in"
    origin = Origin(
        data=fingerprint(data), threads=torch.get_num_threads(), parent=start and start.card
    )
    saved = None if checkpoint is None else load_checkpoint(checkpoint)
    if saved is not None:
        origin = _gone_on(config, origin, saved, str(checkpoint), say)
        torch.set_num_threads(origin.threads)
    torch.manual_seed(step_seed(settings.seed, -1))
    if start is None or saved is not None:
        generator, critic = build_networks(
            config, data.card.shape, len(data.card.classes), data.card.parts
        )
    else:
        generator, critic = continued(start.model, config, data.card)
    generator, critic = (workers.prepare(network.to(device)) for network in (generator, critic))
    if settings.activation_checkpointing:
        generator, critic = with_stages(generator), with_stages(critic)
    state = TrainingState(
        generator,
        critic,
        copy.deepcopy(generator).requires_grad_(False),
        *make_optimizers(config, generator.parameters(), critic.parameters()),
        build_augmentation(config, data).to(device),
    )
    if saved is None:
        return TrainingRun(config, folder, state, [], 0, settings.critic_step, origin)
    state.restore(saved.tensors)
    # A run that began in a stack may be finished alone.
    mode = settings.critic_step if saved.critic_step == STACKED else saved.critic_step
    return TrainingRun(config, folder, state, saved.history, saved.step, mode, origin)


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's random numbers; that of the networks' initial weights is step -1."""
    # Hashed, since torch's CPU generator makes related streams of neighbouring seeds, and only
    # looks at 32 bits.
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _gone_on(
    config: Config, origin: Origin, saved: Checkpoint, where: str, say: Callable[[str], None]
) -> Origin:
    """Require that a checkpoint is of this configuration and these data, perhaps of fewer steps.

    Returns:
        The origin of the run that goes on.
    """
    began = saved.origin
    if began is None:
        say(f"{where}: of a former version, which does not say what data it was trained on")
        began = origin.model_copy(update={"parent": None})  # nor could it begin with a model
    if began.parent and origin.parent is None:
        raise CheckpointError(
            f"{where}: the run began with {began.parent.model}: resume it with --from too"
        )
    if origin.parent and began.parent != origin.parent:
        say(
            f"the run began with {began.parent.model if began.parent else 'random weights'}, and "
            f"goes on from there: {origin.parent.model} is not looked at"
        )
    if changed := changes(began.data, origin.data):
        raise CheckpointError(
            f"{where}: the data have changed since ({changed}); bring back the data that the run "
            "began with, or train on these with another --out, where --from MODEL begins with a "
            "finished model"
        )
    try:
        then = Config.model_validate(saved.config)  # what a former version did not have is default
    except ValidationError as error:
        raise CheckpointError(
            f"{where}: was made by a version with other settings "
            f"({faults_in_words(error.errors(), Config)}); resume with that version, or start anew "
            "with another --out"
        ) from None
    before, now = (flatten(settings.model_dump(mode="json")) for settings in (then, config))
    # The content of the data counts, and not where they lie. A setting that is gone, such as the
    # whole of privacy, differs too.
    keys = [*now, *(before.keys() - now.keys())]
    differing = [k for k in keys if before.get(k) != now.get(k) and k != "data.source"]
    # How often a run is measured follows from its steps, unless it is set.
    longer = [key for key in differing if key != "selection.every"] == ["training.steps"]
    if longer and config.training.steps > before["training.steps"]:
        if config.privacy and config.privacy.epsilon:
            raise CheckpointError(
                f"{where}: the noise of a private run with an epsilon is chosen for its steps; "
                "train with more steps in another --out"
            )
        say(f"extended from {before['training.steps']} steps to {config.training.steps}")
        last = max(saved.step - 1, 0)
        if learning_rate(then.training, last, 1.0) != learning_rate(config.training, last, 1.0):
            say(
                "its learning rate has been falling (training.decay_from), and rises again: a run "
                "of as many steps from the start would end otherwise"
            )
        ends = [*began.extended, before["training.steps"]]
        began = began.model_copy(update={"extended": ends})
    elif differing:
        own = ", ".join(f"{key} ({before.get(key)})" for key in differing)
        raise CheckpointError(
            f"{where}: was made with another {own}; resume with the same configuration (--steps "
            "may be higher), or start anew with another --out"
        )
    if began.threads != origin.threads:
        threads = f"{began.threads} thread{'s' * (began.threads > 1)}"
        say(f"with {threads}, as the run began: another number gives other bits")
    return began
