"""The search for a constraint and its settings, by successive halving with Optuna.

`space` says what is searched, `trials` makes the trials, `page` writes the report.
"""

from __future__ import annotations

import json
import multiprocessing
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from optuna import Study

from models.artifact import GRID, load_artifact
from models.config import Config
from models.durable import write_file
from models.errors import UserError
from models.outputs import sole_writer
from models.run_folder import ARTIFACT, CHECKPOINTS
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import load_checkpoint, newest_checkpoint
from training.engine.origin import changes, fingerprint, kept_threads
from training.engine.pace import measure_pace
from training.judging.evaluate import require_evaluation
from training.judging.figures import headlines
from training.lab.jobs import begin_process
from training.lab.tuning.page import tuning_page
from training.lab.tuning.space import CONSTRAINTS, Setting, middle
from training.lab.tuning.trials import (
    CHOSEN,
    ENDED,
    FAILED,
    FEWEST_STEPS,
    KIND,
    RUNGS,
    Search,
    open_study,
    run_trials,
)
from training.presets import build_config, fill_in, suitable_preset
from training.progress import TrainingBar, phase, silent
from training.run import run_training

SEARCH_SHARE = 0.6
"""Share of the time for the trials; most of the rest trains the winner."""
WINNER_SHARE = 0.85
"""Share of what is then left that the winner trains for; in the rest it is judged."""
WHOLE_TRIALS = 3
"""Whole trials for which the search has time. Since most trials are stopped early, nine times as
many are made."""
VALIDATION = {"data.validation_fraction": 0.2}
JOURNAL, ANSWER, REPORT = "study.journal", "tuning.json", "report.html"
SEARCHED = "searched"
"""What a study notes: the data, the settings of all trials, and their length."""
OTHERWISE = "take another --out, or with --storage another --set name=NAME"
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
    only_trials: bool = False,
    register: bool = True,
    device: str = "cpu",
    say: Callable[[str], None] = silent,
) -> dict[str, Any] | None:
    """Search for a constraint and its settings, train the winner, and write ``out/report.html``.

    Each trial trains for equal seconds, and is measured after 1, 3, 9 and 27 parts of 27; each time
    the best third goes on. It is measured on a share of the training items (`VALIDATION`) that it
    does not train on. The winner then trains on all of these, and is judged on the held-out items,
    which the search has not seen. The same command goes on with the trials of a search that is
    there.

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
        only_trials: leave the winner to another process that has the same storage.
        register: write the winner to MLflow, and register it.
        device: where to train.
        say: takes a line for people.

    Returns:
        The answer that is also in ``out/tuning.json``; None of trials only.

    Raises:
        UserError: the configuration or the data cannot be used, or no trial could be trained.
    """
    started = time.time()
    torch.set_num_threads(1)  # as each of the processes has
    overrides, preset = dict(overrides or {}), preset or suitable_preset(source, overrides)
    fixed = {"training.seed": seed, **VALIDATION, **overrides}
    with sole_writer(out):
        configs = [build_config(preset, source, kind, fixed) for kind in constraints]
        base = configs[0]
        _require_searchable(configs, overrides, storage)
        with phase("loading the data"):
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
            storage or str(out / JOURNAL),
            base.name if storage else SEARCHED,
            started + search_seconds,
            max_trials,
        )
        firsts = _first_choices(search, data)
        study = open_study(search, seed)
        search = _same_search(study, search, data, firsts)
        _run(study, search, processes, seed, say)
        if only_trials:
            return None
        rows = trial_rows(study)
        best = _best(rows)
        say(
            f"trial {best['number']} is the best of {len(rows)}: {best[KIND]} with "
            + ", ".join(f"{key}={value}" for key, value in best[CHOSEN].items())
        )
        winner = out / f"winner-{best['number']}"
        _train_winner(search, best, winner, started + budget_seconds, register, say)
        run = load_artifact(winner / ARTIFACT).run
        answer = {
            "headline": headlines(data.card)[0],
            "winner": str(winner),
            "command": _command(search, best, run.config.training.steps),
            "figures": {k: f.model_dump(mode="json") for k, f in run.results.figures.items()},
            "trials": rows,
        }
        write_file(out / ANSWER, json.dumps(answer, indent=1) + "\n")
        write_file(out / REPORT, tuning_page(answer, run, (winner / ARTIFACT / GRID).read_bytes()))
        return answer


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """What each trial of a search chose and came to, in the order in which they began."""
    return [
        {
            "number": trial.number,
            "ended": trial.state in ENDED,
            KIND: trial.params[KIND],
            CHOSEN: trial.user_attrs[CHOSEN],
            "values": {str(part): v for part, v in trial.intermediate_values.items()},
            FAILED: trial.user_attrs.get(FAILED),
        }
        for trial in study.trials
        if CHOSEN in trial.user_attrs
    ]


def _first_choices(search: Search, data: Dataset) -> list[dict[str, Any]]:
    """What the first trials of a new search choose: each constraint's own settings.

    Raises:
        UserError: a setting cannot be what it may be searched to be.
    """
    firsts = []
    for kind in search.constraints:
        for key, setting in search.searched.items():
            for value in setting.examples:
                search.trial_config(kind, {key: value})  # tells mistakes now
        own = fill_in(search.trial_config(kind, {}), data.card, search.device)
        firsts.append({KIND: kind, **middle(own, search.space(own), kind)})
    return firsts


def _same_search(
    study: Study, search: Search, data: Dataset, firsts: list[dict[str, Any]]
) -> Search:
    """The search with the length of trials that it began with; a new one is noted, and begun.

    Raises:
        UserError: it began with other data or settings.
    """
    print_of_data = fingerprint(data)
    asked = {
        "--preset": search.preset,
        "--constraints": search.constraints,
        "--search": {key: list(setting) for key, setting in search.searched.items()},
        "--set or --seed": search.fixed,
    }
    now = {"data": print_of_data, "asked": asked, "seconds": search.trial_seconds}
    then = study.user_attrs.get(SEARCHED)
    if then is None:
        study.set_user_attr(SEARCHED, now)
        for first in firsts:
            study.enqueue_trial(first)
        return search
    if changed := changes(then["data"], print_of_data):
        raise UserError(f"{search.storage}: searches on other data ({changed}); {OTHERWISE}")
    for what, value in json.loads(json.dumps(asked)).items():
        if then["asked"][what] != value:
            raise UserError(f"{search.storage}: began with other {what}; {OTHERWISE}")
    return search._replace(trial_seconds=then["seconds"])


def _require_searchable(
    configs: Sequence[Config], overrides: dict[str, Any], storage: str | None
) -> None:
    """Require settings that trials and the winner can both have.

    Args:
        configs: of each constraint.
        overrides: of all.
        storage: of the study, if one is named.

    Raises:
        UserError: there is one that they cannot.
    """
    reasons = {
        "--storage: SQLite gives one trial to two processes; name a file without sqlite:///": (
            storage is not None and storage.startswith("sqlite")
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
            config.augmentation and config.augmentation.target for config in configs
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(reason)


def _run(
    study: Study, search: Search, processes: int, seed: int, say: Callable[[str], None]
) -> None:
    """Make trials until the time is over, and say what becomes of each."""
    known = {row["number"] for row in trial_rows(study) if row["ended"]}
    say(
        f"trials for {search.deadline - time.time():.0f} s, {processes} at once, of "
        f"{search.trial_seconds:.0f} s at most" + (f"; {len(known)} are there" if known else "")
    )
    first = seed + len(known)  # other choices than those that are there

    def look() -> None:
        for row in trial_rows(study):
            if row["number"] not in known and row["ended"]:
                known.add(row["number"])
                say(_in_words(row))

    if processes == 1:
        run_trials((search, first), look)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, begin_process) as pool:
        running = {pool.submit(run_trials, (search, first + i)) for i in range(processes)}
        while running:
            ended, running = wait(running, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
            look()
            for future in ended:
                future.result()


def _in_words(row: dict[str, Any]) -> str:
    if row[FAILED]:
        return f"trial {row['number']}: {row[KIND]}: {row[FAILED]}"
    if not row["values"]:
        return f"trial {row['number']}: {row[KIND]}: the time is over"
    part, value = list(row["values"].items())[-1]
    return f"trial {row['number']}: {row[KIND]}: {value:.4g} after {part}/{RUNGS[-1]} of its time"


def _best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of the trials that came furthest.

    Raises:
        UserError: none came to its first measurement.
    """
    measured = [row for row in rows if row["values"]]
    if not measured:
        reasons = {row[FAILED] for row in rows if row[FAILED]} or {"there was no time for one"}
        raise UserError(f"no trial could be trained: {'; '.join(sorted(reasons)[:3])}")
    furthest = max(int(part) for row in measured for part in row["values"])
    last = [row for row in measured if str(furthest) in row["values"]]
    return min(last, key=lambda row: row["values"][str(furthest)])


def _train_winner(
    search: Search,
    best: dict[str, Any],
    folder: Path,
    end: float,
    register: bool,
    say: Callable[[str], None],
) -> None:
    """Train the winner on all training items, for most of the time that is left, and judge it."""
    search = search._replace(fixed={**search.fixed, **dict.fromkeys(VALIDATION, 0)})
    config = search.trial_config(best[KIND], best[CHOSEN])
    data = load_data(config.data, config.training.batch_size, to_train=True)
    config = fill_in(config, data.card, search.device)
    steps = config.training.steps
    if checkpoint := newest_checkpoint(folder / CHECKPOINTS):  # as it began
        steps = load_checkpoint(checkpoint).config["training"]["steps"]
    elif "training.steps" not in search.fixed:
        pace = measure_pace(config, data, search.device) * config.training.num_critic_steps
        steps = max(FEWEST_STEPS, int(WINNER_SHARE * (end - time.time()) / pace))
    training = config.training.model_copy(update={"steps": steps})
    say(f"training the winner on all training items: {steps} steps")
    run_training(
        config.model_copy(update={"training": training}),
        folder,
        torch.device(search.device),
        resume=True,
        register=register,
        say=say,
        report=TrainingBar,
        data=data,
    )


def _command(search: Search, best: dict[str, Any], steps: int) -> str:
    """The command that trains the winner alone."""
    settings = {**search.fixed, **best[CHOSEN], "training.steps": steps}
    told = " ".join(
        f"--set {shlex.quote(f'{key}={json.dumps(value)}')}"
        for key, value in settings.items()
        if key not in VALIDATION
    )
    return (
        f"OMP_NUM_THREADS=1 wgan train --preset {search.preset} "
        f"--data {shlex.quote(search.source)} --constraint {best[KIND]} {told} "
        f"--device {search.device} --out winner"
    )
