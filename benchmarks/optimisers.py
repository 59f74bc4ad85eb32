"""Time to quality of a preset with one thing of its optimisers changed: docs/optimisers.md.

    python -m benchmarks.optimisers --tasks 25gaussians digits --runs runs/optimisers

Targets, judging and clocks are those of `benchmarks.quality`. Another optimiser is first run at a
few multiples of the preset's rates, once each, on a seed that is not reported, and the soonest is
taken; the preset's own rate was found by such a search. A run is a process of its own with one
thread, and a file of ``--runs`` that is not made again. What was run before stays in the results.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.markdown import put_between, table
from benchmarks.performance_quality import over, seconds_by_seed
from benchmarks.quality import compared, rounded
from benchmarks.quality_tasks import SEEDS, SUSTAINED, TASKS
from benchmarks.quality_training import train_one
from models.config import Config
from training.presets import build_config

RESULTS = Path(__file__).with_name("results") / "optimisers.json"
PAGE = Path(__file__).parents[1] / "docs" / "optimisers.md"
BEGIN, END = "<!-- made by benchmarks.optimisers -->", "<!-- end -->"
PRESET = "ours"
"""The way that is compared with, by the name that `benchmarks.quality.compared` knows."""
CRITIC_RATE = "critic rate times "
WAYS: dict[str, dict[str, Any]] = {
    PRESET: {},
    **{f"{CRITIC_RATE}{ratio:g}": {} for ratio in (4, 2, 0.5, 0.25)},
    "both rates times 2": {},
    "optimistic Adam": {"training.optimizer": "optimistic_adam"},
    "extragradient": {"training.optimizer": "extragradient"},
    "penalty every 4 critic steps": {"constraint.every": 4},
    "penalty every 4, rescaled": {"constraint.every": 4, "constraint.rescale_adam": True},
    "cosine": {"training.schedule": "cosine"},
}
"""Settings over the preset's; those of the critic's rate follow from its name."""
FASTER = {"both rates times 2": 2.0}
"""Ways that multiply both rates, to tell what another optimiser brings from what its rates do."""
TUNED = ("optimistic Adam", "extragradient")
FACTORS = (0.5, 1.0, 2.0)
"""Multiples of the preset's rates that these are tried at."""
TUNING_SEED = 10
BUDGETS = {"25gaussians": 80.0, "digits": 45.0, "mnist5k": 90.0}
"""Seconds of the processor that a run may take."""


def config_of(task: str, way: str, seed: int, factor: float = 1.0) -> Config:
    """The configuration of a run, with the preset's rates times a factor."""
    rate = build_config(task).training.learning_rate
    changes = {**WAYS[way], "training.seed": seed, "training.learning_rate": rate * factor}
    if way.startswith(CRITIC_RATE):
        changes["training.critic_learning_rate"] = rate * float(way.removeprefix(CRITIC_RATE))
    return build_config(task, overrides=changes)


def file_of(runs: Path, task: str, way: str, seed: int, factor: float) -> Path:
    return runs / f"{way.replace(' ', '-').replace(',', '')}-{factor:g}-{task}-{seed}.json"


def record(runs: Path, task: str, way: str, seed: int, factor: float) -> dict[str, Any]:
    """A run's record; the run itself only if there is none yet."""
    where, config = file_of(runs, task, way, seed, factor), config_of(task, way, seed, factor)
    if not where.exists():
        found = train_one(task, way, seed, BUDGETS[task], config=config)
        runs.mkdir(parents=True, exist_ok=True)
        where.write_text(json.dumps({**found, "factor": factor}) + "\n")
    kept: dict[str, Any] = json.loads(where.read_text())
    if kept["config"] != config.model_dump(mode="json"):
        raise SystemExit(f"{where} is a run with other settings: delete it")
    return kept


def taken(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """The factor of each task and way with which the tuning seed soonest met the target."""
    times: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for row in rows:
        got = row["reached"]
        seconds = got["cpu_seconds"] if got else math.inf
        apart = abs(math.log(row["factor"]))  # of two that do not get there, the nearer
        times.setdefault((row["task"], row["solver"]), []).append((seconds, apart, row["factor"]))
    return {key: min(found)[2] for key, found in times.items()}


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """What is checked in of a record."""
    last = row["trajectory"][-1] if row["trajectory"] else {"generator_steps": 0}
    kept = ("task", "solver", "seed", "factor", "ended", "budget", "reached", "spent", "start_up")
    named = {name: row[name] for name in (*kept, "bounds", "torch", "load_average")}
    return {**named, "generator_steps": last["generator_steps"]}


def merged(
    former: list[dict[str, Any]], rows: list[dict[str, Any]], *more: str
) -> list[dict[str, Any]]:
    """The rows, and the former ones of other tasks, ways, seeds, or what else is named."""
    keys = ("task", "solver", "seed", *more)
    found = {tuple(row[key] for key in keys): row for row in (*former, *rows)}
    order = list(TASKS), list(WAYS)
    return sorted(
        found.values(),
        key=lambda r: (order[0].index(r["task"]), order[1].index(r["solver"]), r["seed"]),
    )


def steps_by_seed(rows: list[dict[str, Any]]) -> str:
    """Generator steps seed by seed; those of a run that did not get there are a lower bound."""
    return ", ".join(
        f"{row['reached']['generator_steps']:,}"
        if row["reached"]
        else f"> {row['generator_steps']:,}"
        for row in rows
    )


def shown(results: dict[str, Any]) -> str:
    """The page's tables."""
    parts = []
    for task in [task for task in TASKS if any(r["task"] == task for r in results["runs"])]:
        rows = [row for row in results["runs"] if row["task"] == task]
        lines = []
        for way, found in compared(rows, task).items():
            own = [row for row in rows if row["solver"] == way]
            factor = own[0]["factor"]
            name = "the preset" if way == PRESET else way
            if way in TUNED:
                name += f", rates times {factor:g}"
            ratio = "" if way == PRESET else over(found)
            lines.append([name, seconds_by_seed(found), steps_by_seed(own), ratio])
        seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
        header = ["changed", "processor seconds", "generator steps", "over the preset"]
        parts.append(f"`{task}`, seeds {seeds}:\n\n{table(header, lines)}")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/optimisers"), help="a file a run")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--finished", action="store_true", help="leave out runs not yet done")
    options = parser.parse_args()
    pool = ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1)

    def made(wanted: list[tuple[str, str, int, float]]) -> list[dict[str, Any]]:
        if options.finished:
            wanted = [run for run in wanted if file_of(options.runs, *run).exists()]
        found = []
        rows = [pool.submit(record, options.runs, *run) for run in wanted]
        for row in (future.result() for future in rows):
            found.append(summary(row))
            print(*(row[k] for k in ("task", "solver", "seed", "factor", "ended")), end=" ")
            print((row["reached"] or row["spent"])["cpu_seconds"], flush=True)
        return found

    pairs = [(task, way) for task in options.tasks for way in options.ways]
    trials = [
        (*pair, TUNING_SEED, factor) for pair in pairs if pair[1] in TUNED for factor in FACTORS
    ]
    tuning = made(trials)
    factors = taken(tuning)
    with pool:
        runs = made(
            [
                (*pair, seed, factors.get(pair, FASTER.get(pair[1], 1.0)))
                for pair in pairs
                for seed in options.seeds
            ]
        )
    before = json.loads(options.results.read_text()) if options.results.exists() else {}

    results = {
        "command": "python -m benchmarks.optimisers",
        "sustained": SUSTAINED,
        "tuning": merged(before.get("tuning", []), rounded(tuning), "factor"),
        "runs": merged(before.get("runs", []), rounded(runs)),
    }
    options.results.write_text(json.dumps(results, indent=1) + "\n")
    put_between(PAGE, BEGIN, END, shown(results))


if __name__ == "__main__":
    main()
