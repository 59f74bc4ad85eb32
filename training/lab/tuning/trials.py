"""The trials of a search: each trains for equal seconds, unless it falls behind the others."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from models.config import Config
from models.errors import ConfigError, UserError
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.engine.pace import measure_pace
from training.engine.runs import Diverged, Interrupted
from training.judging.extractors import FeatureExtractor, choose_extractor
from training.judging.headline import headline
from training.lab.tuning.space import Setting, Space, choose, usual_space
from training.presets import build_config, fill_in

REDUCTION = 3
"""One trial of so many goes on at each rung (Jamieson & Talwalkar 2016; Li et al. 2018)."""
RUNGS = (1, 3, 9, 27)
"""Parts of 27 of a trial's steps after which it is measured."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
FEWEST_STEPS = RUNGS[-1]
CHOSEN, KIND, FAILED = "chosen", "constraint", "failed"
"""What a trial notes: its settings by dotted keys, its constraint, and why it could not go on."""


class Search(NamedTuple):
    """What every process of a search must know."""

    source: str
    preset: str
    constraints: tuple[str, ...]
    fixed: dict[str, Any]
    """Settings of every trial, by dotted keys."""
    searched: Space
    """What the user wants searched."""
    trial_seconds: float
    """Seconds of training of a whole trial."""
    device: str
    storage: str
    """Journal file of the study, or the URL of its database."""
    name: str
    deadline: float
    """When the last trial ends, in seconds since 1970."""
    max_trials: int | None
    """Trials after which no further one begins; None: as many as there is time for."""

    def trial_config(self, kind: str, chosen: dict[str, Any]) -> Config:
        """The configuration of a trial, but for its steps.

        Raises:
            UserError: the settings do not go together.
        """
        return build_config(self.preset, self.source, kind, {**self.fixed, **chosen})

    def space(self, own: Config) -> dict[str, Setting]:
        """What is searched of a constraint, whose own configuration it is."""
        space = {**usual_space(own), **self.searched}
        return {key: setting for key, setting in space.items() if key not in self.fixed}

    @property
    def config(self) -> Config:
        """The configuration of the first constraint with nothing chosen: the data are all's."""
        return self.trial_config(self.constraints[0], {})


def nothing() -> None:
    """Do nothing after a trial: the default of `run_trials`."""


def open_study(search: Search, seed: int) -> optuna.Study:
    """Open the study that all processes of a search share, and make it the first time.

    Args:
        search: names the storage.
        seed: of the choices of this process.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    storage: Any = search.storage
    if "://" not in search.storage:
        storage = optuna.storages.JournalStorage(JournalFileBackend(search.storage))
    return optuna.create_study(
        storage=storage,
        study_name=search.name,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=1, reduction_factor=REDUCTION, min_early_stopping_rate=0
        ),
        load_if_exists=True,
    )


def run_trials(work: tuple[Search, int], ended: Callable[[], None] = nothing) -> None:
    """Make trials until the search's time is over.

    Args:
        work: the search, and the seed of this process's choices.
        ended: called after each trial.
    """
    search, seed = work
    study = open_study(search, seed)
    data = load_data(search.config.data, to_train=True)
    is_image = data.card.kind == "image"
    extractor = choose_extractor(search.config.evaluation, data) if is_image else None

    def objective(trial: optuna.Trial) -> float:
        return _train(trial, search, data, extractor)

    callbacks = [lambda study, trial: ended()]
    if search.max_trials is not None:
        if len(study.get_trials(states=ENDED)) >= search.max_trials:
            return
        callbacks.append(MaxTrialsCallback(search.max_trials, ENDED))
    seconds = max(0.0, search.deadline - time.time())
    study.optimize(objective, timeout=seconds, callbacks=callbacks)


def _train(
    trial: optuna.Trial, search: Search, data: Dataset, extractor: FeatureExtractor | None
) -> float:
    """Train a trial, and return its figure at the end.

    Raises:
        TrialPruned: it fell behind, it cannot be trained, or the time is over.
    """
    kind = trial.suggest_categorical(KIND, search.constraints)
    value, judged = math.nan, data.to_validate()

    def watch(step: int, state: TrainingState) -> None:
        nonlocal value
        if step in rungs:
            value = headline(config, judged, state.ema, extractor)
            if not math.isfinite(value):
                raise Diverged(f"samples are not finite at step {step}")
            trial.report(value, rungs[step])
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        own = fill_in(search.trial_config(kind, {}), data.card, search.device)
        chosen = choose(trial, search.space(own), kind)
        trial.set_user_attr(CHOSEN, chosen)
        config = fill_in(search.trial_config(kind, chosen), data.card, search.device)
        if config.training.batch_size > data.card.training_count:
            raise ConfigError(
                f"a batch is more than the {data.card.training_count} items there are"
            )
        pace = measure_pace(config, data, search.device) * config.training.num_critic_steps
        steps = max(FEWEST_STEPS, int(search.trial_seconds / pace))
        rungs = {math.ceil(steps * part / RUNGS[-1]): part for part in RUNGS}
        training = {"steps": steps, "checkpoint_every": steps}
        config = config.model_copy(update={"training": config.training.model_copy(update=training)})
        with tempfile.TemporaryDirectory() as folder:
            train(
                config,
                data,
                Path(folder),
                torch.device(search.device),
                stop_requested=lambda: time.time() > search.deadline,
                watch=watch,
            )
    except (UserError, Diverged, torch.OutOfMemoryError) as error:
        trial.set_user_attr(FAILED, str(error))
        raise optuna.TrialPruned from None
    except Interrupted:
        raise optuna.TrialPruned from None
    return value
