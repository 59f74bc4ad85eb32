"""The search for a constraint and its settings, by successive halving with Optuna.

`space` says what is searched, `study` keeps it, `trials` makes the trials, `tracking` writes them
to MLflow, and `page` writes the report.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from optuna import Study

from models.augmentation import follows_overfitting
from models.config import Config
from models.errors import UserError
from models.outputs import sole_writer
from training.data.dataset import Dataset, load_data
from training.engine.origin import kept_threads
from training.engine.pace import measure_pace
from training.engine.runs import Interrupted, stoppable
from training.judging.evaluate import require_evaluation
from training.judging.figures import headlines
from training.lab.tuning.call import Call
from training.lab.tuning.search import FAILED, KIND, RUNGS, VALIDATION, Search
from training.lab.tuning.space import CONSTRAINTS, Setting
from training.lab.tuning.study import (
    SEARCHED,
    begin,
    choice_seeds,
    named_storage,
    reaching,
    repeat_killed,
    trial_rows,
)
from training.lab.tuning.tracking import SearchRuns
from training.lab.tuning.trials import run_in_process, run_trials
from training.lab.tuning.winner import train_winner
from training.presets import build_config, fill_in, suitable_preset
from training.progress import never, phase, silent

SEARCH_SHARE = 0.6
"""Share of the time for the trials; most of the rest trains the winner."""
WHOLE_TRIALS = 3
"""Whole trials for which the search has time. Since most trials are stopped early, nine times as
many are made."""
JOURNAL = "study.journal"
SECONDS_BETWEEN_LOOKS = 2


@kept_threads()
def tune(
    source: str,
    budget_seconds: float,
    out: Path,
    *,
    preset: str | None = None,
    constraints: Sequence[str] = CONSTRAINTS,
    searched: dict[str, Setting] | None = None,
    overrides: dict[str, Any] | None = None,
    max_trials: int | None = None,
    processes: int = 1,
    seed: int = 0,
    storage: str | None = None,
    study_name: str | None = None,
    only_trials: bool = False,
    register: bool = True,
    device: str = "cpu",
    say: Callable[[str], None] = silent,
    stop_requested: Callable[[], bool] = never,
) -> dict[str, Any] | None:
    """Search for a constraint and its settings, train the winner, and write ``out/report.html``.

    Each trial trains for equal seconds, and is measured after 1, 3, 9 and 27 parts of 27; each time
    the best third goes on. It is measured on a share of the training items (`VALIDATION`) that it
    does not train on. The winner then trains on all of these, and is judged on the held-out items,
    which the search has not seen. The same command goes on with the trials of a search that is
    there, in what was left of its time if it was stopped.

    Args:
        source: where the data are, as ``data.source``.
        budget_seconds: of everything.
        out: folder of everything.
        preset: networks and settings; by default those of the data's own preset or kind.
        constraints: to choose from, with their tuned or published settings.
        searched: what is searched besides `usual_space`, or in its ranges' place.
        overrides: settings of every trial and the winner, as `build_config` takes them; they are
            not searched. ``training.steps`` are the winner's; a trial is not longer.
        max_trials: end the search when the study has so many, though there is time.
        processes: trials at once, one thread each.
        seed: of the choices, and of training.
        storage: URL of a database, or a file of a disk that several machines share, so that these
            search together; by default a file in ``out``.
        study_name: of the study in a storage; by default the model's name.
        only_trials: leave the winner to another process that has the same storage.
        register: write the winner to MLflow, and register it; and the trials too, where
            ``MLFLOW_TRACKING_URI`` is set.
        device: where to train.
        say: takes a line for people.
        stop_requested: see `training.engine.loop.train`.

    Returns:
        The answer that is also in ``out/tuning.json``; None of trials only.

    Raises:
        UserError: the configuration or the data cannot be used, or no trial could be trained.
        RegistryError: MLflow failed at the end; everything is in ``out``, and the same call ends
            the work.
        Interrupted: stopped on request; the same call goes on.
    """
    torch.set_num_threads(1)  # as each of the processes has
    overrides, preset = dict(overrides or {}), preset or suitable_preset(source, overrides)
    fixed = {"training.seed": seed, **VALIDATION, **overrides}
    with named_storage(storage) as place, sole_writer(out):
        configs = [build_config(preset, source, kind, fixed) for kind in constraints]
        base = configs[0]
        _require_searchable(configs, overrides, place, only_trials or study_name is not None)
        call = Call(out, budget_seconds)
        with phase("loading the data"), stoppable(stop_requested, "loading the data"):
            data = load_data(base.data, base.training.batch_size, to_train=True)
        require_evaluation(base.evaluation, data)
        base = fill_in(base, data.card, device)
        pace = measure_pace(base, data, device)
        seconds = pace * base.training.steps * base.training.num_critic_steps
        search_seconds = SEARCH_SHARE * budget_seconds
        search = Search(
            source,
            preset,
            tuple(constraints),
            fixed,
            searched or {},
            min(seconds, search_seconds * processes / WHOLE_TRIALS),
            device,
            place or str(out / JOURNAL),
            study_name or base.name if place else SEARCHED,
            call.started + search_seconds,
            max_trials,
            register and bool(os.environ.get("MLFLOW_TRACKING_URI")),
        )
        with reaching():
            study, search = begin(search, data)
            if not place:
                repeat_killed(study)
        runs = SearchRuns(study, search, headlines(data.card)[0], say)
        if not only_trials:
            with reaching():
                runs.open()
        try:
            if call.winner is None:
                with reaching():
                    seeds = choice_seeds(study, seed, processes, place is not None)
                _run(study, search, seeds, data, call, say, stop_requested)
            if only_trials:
                call.end()
                return None
            return train_winner(study, search, call, runs, register, say, stop_requested)
        except Interrupted:
            if not only_trials:
                with reaching():
                    runs.stopped()
            raise
        finally:
            call.note_unless_ended()


def _require_searchable(
    configs: Sequence[Config], overrides: dict[str, Any], storage: str | None, is_shared: bool
) -> None:
    """Require settings that trials and the winner can both have.

    Args:
        configs: of each constraint.
        overrides: of all.
        storage: of the study, if one is named.
        is_shared: there are options for a study that several machines share.

    Raises:
        UserError: there is one that they cannot.
    """
    reasons = {
        "--only-trials and --study: name the --storage that the other machines have too": (
            is_shared and storage is None
        ),
        "--storage: SQLite gives one trial to two processes; name a file without sqlite:///": (
            storage is not None and storage.startswith(("sqlite:", "sqlite+"))
        ),
        "constraint.kind: name it in --constraints": "constraint.kind" in overrides,
        "data.validation_fraction: a search measures on validation items; give a share of them": (
            not configs[0].data.validation_fraction
        ),
        "privacy: a search measures rows without noise; search on public rows": any(
            config.privacy for config in configs
        ),
        "selection: the winner trains on all training items; select in a run of its own": any(
            config.selection for config in configs
        ),
        "augmentation.target: it follows validation items, which the winner has not; search "
        "augmentation.strength": any(
            follows_overfitting(config.augmentation) for config in configs
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(reason)


def _run(
    study: Study,
    search: Search,
    seeds: Sequence[int | None],
    data: Dataset,
    call: Call,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> None:
    """Make trials until the time is over, in a process for each seed, and say what they come to.

    Raises:
        Interrupted: a stop was requested.
    """
    known = {row["number"] for row in trial_rows(study) if row["ended"]}
    say(
        f"trials for {search.deadline - time.time():.0f} s, {len(seeds)} at once, of "
        f"{search.trial_seconds:.0f} s at most" + (f"; {len(known)} are there" if known else "")
    )

    def look() -> None:
        for row in trial_rows(study):
            if row["number"] not in known and row["ended"]:
                known.add(row["number"])
                say(_in_words(row))

    def is_stopped() -> bool:  # asked after every step
        call.note_sometimes()
        return stop_requested()

    if len(seeds) == 1:
        run_trials(search, seeds[0], is_stopped, data, look, say)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(seeds), context) as pool:
        running = {pool.submit(run_in_process, search, seed) for seed in seeds}
        is_told = False
        try:
            while running:
                ended, running = wait(running, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
                if is_stopped() and not is_told:
                    is_told = True
                    _stop_processes()
                with reaching():
                    look()
                for future in ended:
                    future.result()
        except BrokenProcessPool:  # which has told the others
            if is_told:  # before it could take requests
                raise Interrupted("stopped before its trials") from None
            raise UserError(
                "a process of the trials was killed, such as for want of memory: the same "
                "command with fewer --jobs goes on"
            ) from None
        except BaseException:  # which would be told when the others have used all their time
            if not is_told:
                _stop_processes()
            raise


def _stop_processes() -> None:
    """Have each process of the trials end; a second request would kill it within a trial."""
    for process in multiprocessing.active_children():
        process.terminate()


def _in_words(row: dict[str, Any]) -> str:
    if row[FAILED]:
        return f"trial {row['number']}: {row[KIND]}: {row[FAILED]}"
    if not row["values"]:
        return f"trial {row['number']}: {row[KIND]}: the time is over"
    part, value = list(row["values"].items())[-1]
    return f"trial {row['number']}: {row[KIND]}: {value:.4g} after {part}/{RUNGS[-1]} of its time"
