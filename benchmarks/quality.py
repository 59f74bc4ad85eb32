"""Seconds until the samples are good: `make bench-quality`, some hours, and it resumes.

A run trains one solver on one task from one seed, in a process of its own with one thread, until
the target has held in five evaluations in a row, or its budget is spent. It then is a file of
`--runs`, and is not repeated. What counts is the processor's seconds until the first of those five,
with those of children (a compiler's), and those by the clock beside them. Reading the data and
evaluating are left out, alike for all. A run that does not reach the target gives a lower bound.

Targets are in `benchmarks.quality_tasks`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import quality_torchgan
from benchmarks.quality_tasks import ABLATIONS, SEEDS, SUSTAINED, TASKS, settings, solvers
from benchmarks.quality_training import train_one

RESULTS = Path(__file__).with_name("results") / "quality.json"


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


def install(where: Path, *packages: str) -> None:
    """Fetch packages into a folder of their own, if it is not there; nothing they depend on."""
    if not where.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*pip, str(where), *packages], check=True)


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
    """Round each number to five digits, for a file that is checked in."""
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
        options.out.write_text(
            json.dumps(train_one(task, solver, int(seed), options.budget)) + "\n"
        )
        return
    wanted = [
        (task, solver, seed)
        for task in options.tasks
        for seed in options.seeds
        for solver in options.solvers
        if solver in solvers(task)
    ]
    if options.finished:
        wanted = [run for run in wanted if file_of(options.runs, *run).exists()]
    else:
        install(options.runs / "torchgan", quality_torchgan.PACKAGE)

    def one(run: tuple[str, str, int]) -> dict[str, Any]:
        record = finish(options.runs, *run, options.budget)
        print(*run, record["ended"], record["reached"] or record["spent"], flush=True)
        return record

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
