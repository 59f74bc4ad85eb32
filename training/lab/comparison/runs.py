"""One training run of a comparison: its pace, its training, and its quality on the way."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from models.artifact import load_artifact
from models.config import Config
from models.durable import read_file, write_file
from models.run_folder import ARTIFACT, CHECKPOINTS
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.pace import measure_pace
from training.engine.runs import Diverged, Row
from training.engine.stack import NotStackable
from training.engine.stacked import train_together
from training.judging.extractors import choose_extractor
from training.judging.headline import headline
from training.run import run_training

Budget = Literal["steps", "seconds"]
BUDGETS: tuple[Budget, ...] = ("steps", "seconds")
MEASUREMENTS = 8
"""Times that a run's quality is measured on the way."""
SAME_RUN = 0.02
"""Runs of both budgets are one run if their critic steps differ by less than this share."""
CURVE = "curve.json"
REMEDY = "remove the folder that holds it, and the run is trained anew"


class Job(NamedTuple):
    """One training run."""

    config: Config
    folder: Path


class Group(NamedTuple):
    """Training runs that differ in their seed alone."""

    jobs: list[Job]
    pace: float
    """Seconds of a critic step of one of them alone."""


class Plan(NamedTuple):
    """The steps and seconds that each constraint gets."""

    configs: dict[str, Config]
    """Configurations by constraint, with seed 0."""
    seconds_a_critic_step: dict[str, float]
    critic_steps: int
    """Critic steps of each run of equal steps."""
    seconds: float
    """Seconds of training of each run of equal seconds."""

    def steps(self, kind: str, budget: Budget) -> int:
        """Generator steps of a constraint within a budget."""
        each = self.configs[kind].training.num_critic_steps
        critic_steps = float(self.critic_steps)
        if budget == "seconds":
            critic_steps = self.seconds / self.seconds_a_critic_step[kind]
            if abs(critic_steps / self.critic_steps - 1) < SAME_RUN:
                critic_steps = self.critic_steps
        return max(1, int(critic_steps) // each)

    def run_names(self, kind: str, budget: Budget, seeds: int) -> list[str]:
        """The names of a constraint's runs within a budget, by seed."""
        return [f"{kind}-{self.steps(kind, budget)}-{seed}" for seed in range(seeds)]


class QualityRecorder:
    """Measures a run's quality on the way, and the seconds that training took without that.

    With a pace the seconds are those that the run would have taken alone, at so many a critic step.
    """

    def __init__(
        self, config: Config, data: Dataset, path: Path, pace: float | None = None
    ) -> None:
        self.config, self.data, self.path, self.pace = config, data, path, pace
        total = config.training.steps
        self.measured_steps = {
            math.ceil(total * i / MEASUREMENTS) for i in range(1, MEASUREMENTS + 1)
        }
        image = data.card.kind == "image"
        self.extractor = choose_extractor(config.evaluation, data) if image else None
        self.rows: list[Row] = []
        self.started = self.before = 0.0

    def __call__(self, step: int, state: TrainingState) -> None:
        """Measure if this step is one of those; see `training.engine.runs.Watch`."""
        if not self.started:  # the first step since the start, or since a resume
            kept = read_file(self.path, json.loads, REMEDY) if self.path.exists() else []
            self.rows = [row for row in kept if row["step"] < step]
            last = self.rows[-1] if self.rows else {"seconds": 0.0, "step": 0}
            steps = step - last["step"]
            self.started = time.process_time()
            # Unmeasured steps, one of them at least, count with the pace of the measured ones.
            self.before = last["seconds"] * (1 + steps / last["step"]) if last["step"] else 0.0
        if step not in self.measured_steps:
            return
        seconds = self.before + time.process_time() - self.started
        if self.pace is not None:
            seconds = self.pace * step * self.config.training.num_critic_steps
        value = headline(self.config, self.data, state.ema, self.extractor)
        self.rows.append({"step": step, "seconds": seconds, "value": value})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, json.dumps(self.rows))
        self.before, self.started = seconds, time.process_time()


def train_group(group: Group) -> str | None:
    """Train several runs at once, and leave the judging to `run_job`.

    Returns:
        None; or why they cannot be trained together, and are left to `run_job` whole.
    """
    configs, folders = zip(*group.jobs, strict=True)
    data = load_data(configs[0].data, configs[0].training.batch_size)
    watches = [
        QualityRecorder(config, data, folder / CURVE, group.pace)
        for config, folder in zip(configs, folders, strict=True)
    ]
    try:
        train_together(configs, data, [folder / CHECKPOINTS for folder in folders], watches)
    except (NotStackable, Diverged) as error:  # `run_or_told` finds which of them diverged
        return _first_sentence(error)
    return None


def pace_or_told(config: Config) -> float | str:
    """The seconds of a critic step; or, of a training that diverged within a few, how it did."""
    try:
        return measure_pace(config)
    except Diverged as error:
        return _first_sentence(error)


def run_or_told(job: Job) -> dict[str, Any]:
    """What `run_job` returns; or, of a run that diverged, ``diverged``, which says how it did."""
    try:
        return run_job(job)
    except Diverged as error:
        return {"diverged": _first_sentence(error)}


def _first_sentence(error: Exception) -> str:
    return str(error).partition(". ")[0]


def run_job(job: Job) -> dict[str, Any]:
    """Train, judge and diagnose one run; goes on with an interrupted one.

    Returns:
        ``curve`` (rows of step, seconds and value, see `headline`), ``figures``, ``findings``,
        ``steps`` and ``critic_steps``.
    """
    config, folder = job
    data = load_data(config.data, config.training.batch_size)
    recorder = QualityRecorder(config, data, folder / CURVE)
    run_training(
        config,
        folder,
        torch.device("cpu"),
        resume=True,
        register=False,
        data=data,
        watch=recorder,
    )
    run = load_artifact(folder / ARTIFACT).run
    return {
        "curve": read_file(folder / CURVE, json.loads, REMEDY),
        "figures": {k: f.model_dump(mode="json") for k, f in run.results.figures.items()},
        "findings": [finding.model_dump(mode="json") for finding in run.findings],
        "steps": config.training.steps,
        "critic_steps": config.training.steps * config.training.num_critic_steps,
    }
