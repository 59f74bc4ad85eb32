"""Seconds until the samples are good: `make bench-quality`, some hours, and it resumes.

A run trains one solver on one task from one seed, in a process of its own with one thread, until
the target has held in five evaluations in a row, or its budget is spent. It then is a file of
`--runs`, and is not repeated. What counts is the processor's seconds until the first of those five,
with those of children (a compiler's), and those by the clock beside them. Reading the data and
evaluating are left out, alike for all. A run that does not reach the target gives a lower bound.

Targets are in `TASKS`, and were committed before any solver was tuned or run on them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import quality_torchgan
from benchmarks.step import stock, textbook
from models.config import Config, parse_config
from models.networks import build_networks
from models.sampling import Scaling, latents
from training.data.dataset import Dataset, load_data
from training.engine.loop import Diverged, Interrupted, train
from training.judging.extractors import choose_extractor
from training.judging.metrics import (
    kernel_distance,
    mode_coverage,
    precision_recall_density_coverage,
)
from training.presets import build_config

Array = np.ndarray
Figures = dict[str, float]
Bounds = dict[str, tuple[str, float]]
"""Of each figure: ``>=`` or ``<=``, and of what."""
RESULTS = Path(__file__).with_name("results") / "quality.json"
SUSTAINED = 5
"""Evaluations in a row that must meet the target."""
HIGH_QUALITY = 0.95
"""Share of points within three standard deviations of a mode. A perfect sampler has 0.989."""
RECALL_OF_FLOOR = 0.95
"""Share of the recall that real training items have."""
DRAWS = 20
"""Of real items, whose recall is averaged."""
SAMPLE_SEED = 0
SEEDS = (0, 1, 2)
"""That results are of; any search takes others."""


class Task(NamedTuple):
    """What is to be reached, and how long a solver may take."""

    every: int
    """Generator steps between evaluations, of all solvers."""
    budget: float
    """Seconds of the processor."""


TASKS = {
    "25gaussians": Task(every=100, budget=340),
    "digits": Task(every=50, budget=180),
    "mnist5k": Task(every=50, budget=400),
}
"""By their preset. The target of points is all modes and `HIGH_QUALITY`; that of images follows
from real ones: see `Judge`."""

PUBLISHED: dict[str, Any] = {
    "constraint": {"kind": "gradient_penalty", "strength": 10.0},
    "training.optimizer": "adam",
    "training.learning_rate": 1e-4,
    "training.betas": (0.5, 0.9),
    "training.num_critic_steps": 5,
    "training.decay_from": 1.0,
    "training.ema_decay": 0.0,
    "training.steps": 20_000,
}
"""Gulrajani et al. 2017, and their code's betas: on our engine, with the preset's networks. They
take five times the steps; no budget here lasts so long."""
PUBLISHED_BATCH = {"25gaussians": 256, "digits": 64, "mnist5k": 64}
"""Of their code."""
SOLVERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "published": PUBLISHED,
    "textbook": PUBLISHED,
    "torchgan": PUBLISHED,
}
"""Settings over the preset's. `textbook` is the published recipe in plain torch, eager; `torchgan`
is that package's."""
OF_POINTS: dict[str, dict[str, Any]] = {
    "published, strength 0.1": {
        **PUBLISHED,
        "constraint": {"kind": "gradient_penalty", "strength": 0.1},
    },
}
"""The authors' code, unlike their paper, has this strength for points in the plane."""
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "25gaussians": {
        "rate 1e-4": {"training.learning_rate": 1e-4},
        "5 critic steps": {"training.num_critic_steps": 5},
        "no average": {"training.ema_decay": 0.0},
        "no decay": {"training.decay_from": 1.0},
        "strength 10": {"constraint.strength": 10.0},
        "two-sided": {"constraint.kind": "gradient_penalty"},
        "latents of 64": {"generator.latent_size": 64},
        "ReLU critic": {"critic.activation": "relu"},
        "batch of 256": {"training.batch_size": 256},
    },
    "mnist5k": {
        "rate 1e-4": {"training.learning_rate": 1e-4},
        "rate 1e-3": {"training.learning_rate": 1e-3},
        "5 critic steps": {"training.num_critic_steps": 5},
        "no average": {"training.ema_decay": 0.0},
        "two-sided": {"constraint.kind": "gradient_penalty"},
        "leaky ReLU critic": {"critic.activation": "leaky_relu"},
        "width of 48": {"generator.width": 48, "critic.width": 48},
    },
}
"""Ours on a task, less one thing each."""


def solvers(task: str) -> dict[str, dict[str, Any]]:
    """All that run it, each with its settings over the preset's."""
    return {
        **SOLVERS,
        **(OF_POINTS if task == "25gaussians" else {}),
        **ABLATIONS.get(task, {}),
    }


def settings(task: str, solver: str, seed: int) -> Config:
    """The configuration of a run."""
    values = build_config(task).model_dump()
    values["training"]["seed"] = seed
    if solver != "ours" and solver not in ABLATIONS.get(task, {}):
        values["training"]["batch_size"] = PUBLISHED_BATCH[task]
    for key, value in solvers(task)[solver].items():
        section, _, name = key.partition(".")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    return parse_config(values)


def first_sustained(good: Sequence[bool], length: int = SUSTAINED) -> int | None:
    """Where the first ``length`` true values in a row begin; None if nowhere."""
    row = 0
    for i, each in enumerate(good):
        row = row + 1 if each else 0
        if row == length:
            return i - length + 1
    return None


def meets(figures: Figures, bounds: Bounds) -> bool:
    """Whether every figure is within its bound; one that is no number is not."""
    return all(
        figures[name] >= bound if sign == ">=" else figures[name] <= bound
        for name, (sign, bound) in bounds.items()
    )


class Judge:
    """Evaluates generators of one task, all on the same latents and the same held-out items."""

    def __init__(self, config: Config, data: Dataset) -> None:
        self.scaling = Scaling(data.card.shape, data.card.offset, data.card.scale)
        self.mixture = data.mixture
        size, count = config.generator.latent_size, config.evaluation.samples
        self.floor: Figures = {}
        if data.mixture:
            self.bounds: Bounds = {
                "modes_covered": (">=", float(len(data.mixture.centers))),
                "high_quality_share": (">=", HIGH_QUALITY),
            }
        else:
            self.extractor = choose_extractor(config.evaluation, data)
            count = min(count, data.card.heldout_count, data.card.training_count)
            self.real = self.extractor(data.sample(count, heldout=True))
            self.bounds = self._of_images(data, count)
        self.z = torch.from_numpy(latents(SAMPLE_SEED, 0, count, size))

    def _of_images(self, data: Dataset, count: int) -> Bounds:
        """No further from held-out items than real ones that lack a class, and nearly all of them.

        The kernel distance of real items from real ones is zero in the mean, so that no multiple of
        it makes a target. That of training items without one class, in the mean over the classes,
        is one in the same unit: what a perfect generator would get that forgot one class. Recall
        is of as many training items as are judged, in the mean over some draws.
        """
        assert data.labels is not None
        indices = np.flatnonzero(~data.is_heldout)
        features, labels = self.extractor(data.items_at(indices)), data.labels[indices]
        rng = np.random.default_rng(SAMPLE_SEED)
        lacking = statistics.mean(
            kernel_distance(self.real, features[labels != label])
            for label in range(len(data.card.classes))
        )
        recall = statistics.mean(
            precision_recall_density_coverage(
                self.real, features[rng.choice(len(features), count, replace=False)]
            )["recall"]
            for _ in range(DRAWS)
        )
        self.floor = {"kernel_distance": kernel_distance(self.real, features), "recall": recall}
        return {
            "kernel_distance": ("<=", lacking),
            "recall": (">=", RECALL_OF_FLOOR * recall),
        }

    @torch.no_grad()
    def __call__(self, generator: Callable[[Tensor], Tensor]) -> Figures:
        """Figures of a generator in eval mode."""
        fake = self.scaling.to_data(generator(self.z)).numpy()
        if self.mixture:
            points = np.nan_to_num(fake, nan=1e9, posinf=1e9, neginf=-1e9)  # far from all modes
            modes, share = mode_coverage(points, self.mixture.centers, self.mixture.sd)
            return {"modes_covered": modes, "high_quality_share": share}
        features = self.extractor(fake)
        return {
            "kernel_distance": kernel_distance(self.real, features),
            "recall": precision_recall_density_coverage(self.real, features)["recall"],
        }


def now() -> Array:
    """Seconds of this process and its children on the processor, and by the clock."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() + children.ru_utime + children.ru_stime
    return np.array([cpu, time.perf_counter()])


class Watch:
    """Is shown a generator after each of its steps, and stops the time while it looks."""

    def __init__(self, every: int, budget: float, judge: Judge, critic_steps: int) -> None:
        self.every, self.budget, self.judge = every, budget, judge
        self.critic_steps = critic_steps
        self.trajectory: list[dict[str, float]] = []
        self.good: list[bool] = []
        self.start_up: list[float] = []
        self.ended = ""
        """Why; empty while the run goes on."""
        self.began = now()

    @property
    def spent(self) -> Array:
        return now() - self.began

    def __call__(self, step: int, generator: nn.Module) -> None:
        """After ``step`` steps of the generator."""
        spent = self.spent
        if not self.start_up:
            self.start_up = list(map(float, spent))
        if step % self.every == 0:
            training = generator.training
            figures = self.judge(generator.eval())
            generator.train(training)
            self.good.append(meets(figures, self.judge.bounds))
            self.trajectory.append(
                {
                    "generator_steps": step,
                    "critic_steps": step * self.critic_steps,
                    "cpu_seconds": float(spent[0]),
                    "seconds": float(spent[1]),
                    **figures,
                }
            )
            self.began += self.spent - spent
            if first_sustained(self.good) is not None:
                self.ended = "reached"
        if not self.ended and spent[0] > self.budget:
            self.ended = "budget"


def train_ours(config: Config, data: Dataset, watch: Watch) -> None:
    """Our loop and step, with its checkpoints, as `wgan train` calls it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(
                config,
                data,
                Path(folder),
                torch.device("cpu"),
                report=lambda row: None,
                stop_requested=lambda: bool(watch.ended),
                watch=lambda step, state: watch(step, state.ema),
            )
        except Interrupted:
            pass
        except Diverged:
            watch.ended = watch.ended or "diverged"


def train_textbook(config: Config, data: Dataset, watch: Watch) -> None:
    """The published recipe in plain torch: stock layers, everything eager."""
    steps = config.training
    torch.manual_seed(steps.seed)
    generator, critic = (stock(n) for n in build_networks(config, data.card.shape))
    scaling = Scaling(data.card.shape, data.card.offset, data.card.scale)
    items = scaling.to_model(torch.from_numpy(data.training))
    strength: float = config.constraint.strength  # type: ignore[union-attr]
    critic_step = textbook(critic, strength)
    optimizer = torch.optim.Adam(generator.parameters(), steps.learning_rate, steps.betas)

    def fakes() -> Tensor:
        return generator(torch.randn(steps.batch_size, config.generator.latent_size))

    for step in range(1, steps.steps + 1):
        for number in range(steps.num_critic_steps):
            real = items[torch.randint(len(items), (steps.batch_size,))]
            with torch.no_grad():
                fake = fakes()
            critic_step(real, fake, number)
        optimizer.zero_grad()
        (-critic(fakes()).mean()).backward()
        optimizer.step()
        watch(step, generator)
        if watch.ended:
            return


def run(task: str, solver: str, seed: int, budget: float) -> dict[str, Any]:
    """Train one solver on one task until its end; everything about it."""
    torch.set_num_threads(1)
    config = settings(task, solver, seed)
    data = load_data(config.data, config.training.batch_size)
    judge = Judge(config, data)
    load = os.getloadavg()[0]
    watch = Watch(TASKS[task].every, budget, judge, config.training.num_critic_steps)
    solve = {"textbook": train_textbook, "torchgan": quality_torchgan.train}.get(solver, train_ours)
    solve(config, data, watch)
    spent = watch.spent
    at = first_sustained(watch.good)
    return {
        "task": task,
        "solver": solver,
        "seed": seed,
        "budget": budget,
        "ended": watch.ended or "steps",
        "reached": None if at is None else watch.trajectory[at],
        "spent": {"cpu_seconds": float(spent[0]), "seconds": float(spent[1])},
        "start_up": dict(zip(("cpu_seconds", "seconds"), watch.start_up, strict=True)),
        "bounds": judge.bounds,
        "floor": judge.floor,
        "config": config.model_dump(mode="json"),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "load_average": load,
        "trajectory": watch.trajectory,
    }


def file_of(runs: Path, task: str, solver: str, seed: int) -> Path:
    return runs / f"{solver.replace(', ', '_').replace(' ', '_')}-{task}-{seed}.json"


def finish(
    runs: Path, task: str, solver: str, seed: int, budget: float | None = None
) -> dict[str, Any]:
    """A run's record; the run itself, in a process of its own, only if there is none yet."""
    where, peers = file_of(runs, task, solver, seed), str(runs / "torchgan")
    if not where.exists():
        runs.mkdir(parents=True, exist_ok=True)
        part = where.with_suffix(".part")
        with tempfile.TemporaryDirectory() as cache:  # a compiler's, so that it begins cold
            seconds = budget or TASKS[task].budget
            subprocess.run(
                [
                    *(sys.executable, "-m", "benchmarks.quality", "--one", task, solver, str(seed)),
                    *("--budget", str(seconds), "--out", str(part)),
                ],
                check=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(
                        filter(None, [os.environ.get("PYTHONPATH"), peers])
                    ),
                    "OMP_NUM_THREADS": "1",
                    "TORCHINDUCTOR_CACHE_DIR": cache,
                    "TORCHINDUCTOR_COMPILE_THREADS": "1",
                },
            )
        part.rename(where)
    found: dict[str, Any] = json.loads(where.read_text())
    if found["config"] != settings(task, solver, seed).model_dump(mode="json"):
        raise SystemExit(f"{where} is a run with other settings: delete it")
    return found


def install(runs: Path) -> None:
    """Fetch torchgan into a folder of its own."""
    where = runs / "torchgan"
    if not where.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*pip, str(where), quality_torchgan.PACKAGE], check=True)


def compared(rows: Sequence[dict[str, Any]], task: str) -> dict[str, Any]:
    """Each solver's seconds, and its ratio over ours, of the medians and seed by seed.

    Where a run did not reach the target, what it spent stands for it, and the ratio is a lower
    bound. A seed from which ours did not has no ratio (None); if so for half of the seeds, there is
    none of the medians either.
    """
    mine = [r for r in rows if r["task"] == task]
    found: dict[str, Any] = {}
    ours = {r["seed"]: r for r in mine if r["solver"] == "ours"}
    for solver in dict.fromkeys(r["solver"] for r in mine):
        its = [r for r in mine if r["solver"] == solver]
        own = [ours[r["seed"]] for r in its if r["seed"] in ours]
        part: dict[str, Any] = {
            "seeds": [r["seed"] for r in its],
            "reached": [r["reached"] is not None for r in its],
            "start_up_cpu_seconds": statistics.median(r["start_up"]["cpu_seconds"] for r in its),
        }
        # A median is known if more than half of the runs got there.
        part["is_lower_bound"] = sum(part["reached"]) * 2 <= len(its)
        for unit in ("cpu_seconds", "seconds"):
            part[unit] = [(r["reached"] or r["spent"])[unit] for r in its]
            if len(own) < len(its):
                continue
            pairs = list(zip(part[unit], own, strict=True))
            part[f"ratios_{unit}"] = [
                seconds / r["reached"][unit] if r["reached"] else None for seconds, r in pairs
            ]
            if sum(r["reached"] is not None for r in own) * 2 > len(own):
                # One that did not get there took longer than any that did.
                known = [r["reached"][unit] if r["reached"] else math.inf for r in own]
                part[f"ratio_{unit}"] = statistics.median(part[unit]) / statistics.median(known)
        found[solver] = part
    return found


def rounded(value: Any) -> Any:
    """The same with five digits of each number, for a file that is checked in."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="a file a run")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    names = list(dict.fromkeys(name for task in TASKS for name in solvers(task)))
    parser.add_argument("--solvers", nargs="+", default=names, choices=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--finished", action="store_true", help="leave out runs not yet done")
    parser.add_argument("--budget", type=float, help="processor seconds; default: the task's")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "SOLVER", "SEED"), help="only this run")
    parser.add_argument("--out", type=Path, help="where the record of the one run goes")
    options = parser.parse_args()
    if options.one:
        task, solver, seed = options.one
        options.out.write_text(json.dumps(run(task, solver, int(seed), options.budget)) + "\n")
        return
    wanted = [
        (task, solver, seed)
        for task in options.tasks
        for seed in options.seeds
        for solver in options.solvers
        if solver in solvers(task)
    ]
    if options.finished:
        wanted = [of for of in wanted if file_of(options.runs, *of).exists()]
    else:
        install(options.runs)

    def one(of: tuple[str, str, int]) -> dict[str, Any]:
        found = finish(options.runs, *of, options.budget)
        print(*of, found["ended"], found["reached"] or found["spent"], flush=True)
        return found

    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(one, wanted))
    result = {
        "command": "make bench-quality",
        "sustained": SUSTAINED,
        "tasks": {
            task: compared([r for r in rows if r["solver"] not in ABLATIONS.get(task, {})], task)
            for task in dict.fromkeys(r["task"] for r in rows)
        },
        "ablations": {
            task: compared([r for r in rows if r["solver"] == "ours" or r["solver"] in names], task)
            for task, names in ABLATIONS.items()
            if any(r["task"] == task and r["solver"] in names for r in rows)
        },
        "runs": rows,
    }
    options.results.write_text(json.dumps(rounded(result)) + "\n")


if __name__ == "__main__":
    main()
