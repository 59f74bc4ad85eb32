"""The winner of a search: chosen, trained, judged, and written down."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from optuna import Study

from models.artifact import GRID, load_artifact
from models.durable import write_file
from models.errors import RegistryError, UserError
from models.run_folder import ARTIFACT, CHECKPOINTS
from training.data.dataset import load_data
from training.engine.checkpoint import load_checkpoint, newest_checkpoint
from training.engine.pace import measure_pace
from training.engine.runs import Diverged
from training.judging.figures import headlines
from training.lab.tuning.call import UNFINISHED, Call
from training.lab.tuning.page import tuning_page
from training.lab.tuning.search import CHOSEN, FAILED, FEWEST_STEPS, KIND, VALIDATION, Search
from training.lab.tuning.study import leave_out, reaching, trial_rows
from training.lab.tuning.tracking import SearchRuns
from training.presets import fill_in
from training.progress import TrainingBar
from training.run import run_training

WINNER_SHARE = 0.85
"""Share of what is left of the time that the winner trains for; in the rest it is judged."""
ANSWER, REPORT = "tuning.json", "report.html"


def train_winner(
    study: Study,
    search: Search,
    call: Call,
    runs: SearchRuns,
    register: bool,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> dict[str, Any]:
    """Train the best trial's settings, write what was found, and end the call.

    If they diverge here, the next best trial's are trained.

    Raises:
        Diverged: training did, and there is no time for another; the same call searches on.
        RegistryError: MLflow failed; what was found is written, and the call can go on.
    """
    while True:
        with reaching():
            rows = trial_rows(study)
        best = _best(rows, call) if call.winner is None else _numbered(rows, call.winner)
        call.note(best["number"])
        say(
            f"trial {best['number']} is the best of {len(rows)}: {best[KIND]} with "
            + ", ".join(f"{key}={value}" for key, value in best[CHOSEN].items())
        )
        winner = call.out / f"winner-{best['number']}"
        model, failed = None, None
        try:
            model = _train_winner(search, best, winner, call.over, register, say, stop_requested)
        except RegistryError as error:
            if not (winner / ARTIFACT).exists():
                raise
            failed = error
        except Diverged as error:
            _leave_out(study, search, best, error, call)
            say(f"the winner: {error}; the next best trial is taken")
            continue
        break
    run = load_artifact(winner / ARTIFACT).run
    answer = {
        "headline": headlines(run.data)[0],
        "winner": str(winner),
        "command": _command(search, best, run.config.training.steps),
        "figures": {k: f.model_dump(mode="json") for k, f in run.results.figures.items()},
        "trials": rows,
    }
    write_file(call.out / ANSWER, json.dumps(answer, indent=1) + "\n")
    write_file(call.out / REPORT, tuning_page(answer, run, (winner / ARTIFACT / GRID).read_bytes()))
    if failed:
        raise failed
    with reaching():
        runs.finish(answer, best["number"], model, call.out)
    call.end()
    return answer


def _leave_out(
    study: Study, search: Search, best: dict[str, Any], error: Diverged, call: Call
) -> None:
    """Let a trial be no winner, since training with its settings diverged.

    Raises:
        Diverged: there is less time for another than a trial had; so the call is ended.
    """
    with reaching():
        leave_out(study, best["number"], f"as the winner: {error}")
    call.drop_winner()
    if time.time() + search.trial_seconds > call.over:
        call.end()  # or the next one would have no time either
        raise Diverged(
            f"the winner: {error}; no time is left for another: the same command searches on"
        ) from None


def _best(rows: list[dict[str, Any]], call: Call) -> dict[str, Any]:
    """The best of the trials that came furthest, of those that ended well.

    Raises:
        UserError: none came to its first measurement; the call is ended.
    """
    measured = [row for row in rows if row["ended"] and row["values"] and not row[FAILED]]
    if not measured:
        call.end()  # or the next one would have no time either
        reasons = {row[FAILED] for row in rows if row[FAILED]} or {"there was no time for one"}
        raise UserError(f"no trial could be trained: {'; '.join(sorted(reasons)[:3])}")
    furthest = max(int(part) for row in measured for part in row["values"])
    last = [row for row in measured if str(furthest) in row["values"]]
    return min(last, key=lambda row: row["values"][str(furthest)])


def _numbered(rows: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """The trial of a number.

    Raises:
        UserError: the study has none.
    """
    for row in rows:
        if row["number"] == number:
            return row
    raise UserError(f"{UNFINISHED}: trial {number} is gone from the study; remove this file")


def _train_winner(
    search: Search,
    best: dict[str, Any],
    folder: Path,
    end: float,
    register: bool,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> str | None:
    """Train the winner on all training items, for most of the time that is left, and judge it.

    Returns:
        ``name@version`` if it was registered.
    """
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
    return run_training(
        config.model_copy(update={"training": training}),
        folder,
        torch.device(search.device),
        resume=True,
        register=register,
        say=say,
        report=TrainingBar,
        stop_requested=stop_requested,
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
