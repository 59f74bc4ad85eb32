"""The trials of a search: each trains for equal seconds, unless it falls behind the others."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import optuna
import torch
from optuna.study import MaxTrialsCallback

from models.command_line import StopRequest
from models.errors import ConfigError, UserError
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.engine.pace import measure_pace
from training.engine.runs import Diverged, Interrupted
from training.judging.extractors import FeatureExtractor, choose_extractor
from training.judging.figures import headlines
from training.judging.headline import headline
from training.lab.jobs import begin_process
from training.lab.tuning.search import CHOSEN, FAILED, FEWEST_STEPS, KIND, MADE, RUNGS, Search
from training.lab.tuning.space import choose
from training.lab.tuning.study import open_study, reaching, repeat
from training.lab.tuning.tracking import SearchRuns
from training.presets import fill_in
from training.progress import silent

TAKEN = "Cannot tell a FAIL trial"
"""What Optuna says at the end of a trial that another process has taken for killed, such as when
this one slept."""


def nothing() -> None:
    """Do nothing after a trial: the default of `run_trials`."""


class Bench(NamedTuple):
    """What one process makes its trials with."""

    search: Search
    data: Dataset
    extractor: FeatureExtractor | None
    runs: SearchRuns
    stop_requested: Callable[[], bool]

    @property
    def is_over(self) -> bool:
        """Whether a trial under way must end."""
        return self.stop_requested() or time.time() > self.search.deadline


def run_trials(
    search: Search,
    seed: int | None,
    stop_requested: Callable[[], bool],
    data: Dataset | None = None,
    ended: Callable[[], None] = nothing,
    say: Callable[[str], None] = silent,
) -> None:
    """Make trials until the search's time is over.

    Args:
        search: what is searched.
        seed: of this process's choices; see `training.lab.tuning.study.choice_seeds`.
        stop_requested: ends the trial under way, whose settings another process then tries.
        data: what ``search.config.data`` loads, if it is loaded already.
        ended: called after each trial.
        say: takes a line for people.

    Raises:
        Interrupted: a stop was requested.
        UserError: the study's database does not answer.
    """
    study = open_study(search, seed)
    data = data or load_data(search.config.data, to_train=True)
    is_image = data.card.kind == "image"
    extractor = choose_extractor(search.config.evaluation, data) if is_image else None
    runs = SearchRuns(study, search, headlines(data.card)[0], say)
    bench = Bench(search, data, extractor, runs, stop_requested)

    def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        runs.ended(trial)
        ended()

    callbacks = [after]
    with reaching():
        if search.max_trials is not None:
            if len(study.get_trials(deepcopy=False, states=MADE)) >= search.max_trials:
                return
            callbacks.append(MaxTrialsCallback(search.max_trials, MADE))
        while True:
            seconds = max(0.0, search.deadline - time.time())
            try:
                study.optimize(lambda t: _train(t, bench), timeout=seconds, callbacks=callbacks)
            except ValueError as error:
                if not str(error).startswith(TAKEN):
                    raise
            except Interrupted:
                runs.left()
                raise
            else:
                return


def run_in_process(search: Search, seed: int | None) -> None:
    """Make trials in a process among several, until the search's time is over."""
    begin_process()
    run_trials(search, seed, StopRequest())


def _train(trial: optuna.Trial, bench: Bench) -> float:
    """Train a trial, and return its figure at the end.

    Raises:
        TrialPruned: it fell behind, it cannot be trained, or the time is over.
        Interrupted: a stop was requested.
    """
    search, data, extractor, runs, stop_requested = bench
    kind = trial.suggest_categorical(KIND, search.constraints)
    value, judged = math.nan, data.to_validate()

    def watch(step: int, state: TrainingState) -> None:
        nonlocal value
        if step in rungs:
            value = headline(config, judged, state.ema, extractor)
            if not math.isfinite(value):
                raise Diverged(f"samples are not finite at step {step}")
            trial.report(value, rungs[step])
            runs.measured(trial.number, rungs[step], value)
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        own = fill_in(search.trial_config(kind, {}), data.card, search.device)
        chosen = choose(trial, search.space(own), kind)
        trial.set_user_attr(CHOSEN, chosen)
        runs.show(trial, chosen)
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
                stop_requested=lambda: bench.is_over,
                watch=watch,
            )
    except (UserError, Diverged, MemoryError) as error:
        trial.set_user_attr(FAILED, str(error))
        raise optuna.TrialPruned from None
    except Interrupted:
        if stop_requested():
            repeat(trial.study, trial)
            raise
        raise optuna.TrialPruned from None
    return value
