"""What micro-batches and activation checkpointing save in memory, and what they cost in time.

    OMP_NUM_THREADS=1 python -m benchmarks.micro_batches --out benchmarks/results/micro_batches.json

makes generator steps of ResNets on random images, one way after the other. Memory is that of a
process of its own for each way: the most that torch had allocated within a step, and the most that
was resident in the process, capture included, each less what it was before the first step. Times
are the processor's, taken in turn in one process.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.markdown import table
from models.config import Config, parse_config
from training.data.batches import TrainingItems
from training.data.dataset import Dataset, load_data
from training.engine.memory import keep_freed_memory
from training.engine.runs import begin, step_seed
from training.engine.split import Split
from training.engine.step import CriticStep
from training.engine.whole_step import PlainStep, WholeStep
from training.engine.workers import ALONE

BATCH, PART = 64, 16
WIDTHS = {64: 16, 128: 8, 256: 4}
"""Of the networks, by the side of the images; so that steps take about as long."""
RESULTS = Path(__file__).parent / "results/micro_batches.json"
ROUNDS = 3
CPU = torch.device("cpu")
WAYS: dict[str, dict[str, Any]] = {
    "whole batch": {},
    f"micro-batches of {PART}": {"micro_batch_size": PART},
    "checkpointing": {"activation_checkpointing": True},
    "both": {"micro_batch_size": PART, "activation_checkpointing": True},
}


def config_of(way: str, side: int, folder: Path) -> Config:
    """Networks with as many halvings as the side allows, under the images preset's constraint."""
    network = {
        "architecture": "resnet",
        "width": WIDTHS[side],
        "depth": 2 * (side // 8).bit_length() + 1,
    }
    return parse_config(
        {
            "name": "micro",
            "data": {"source": str(folder / "images.npy"), "heldout_fraction": 0.3},
            "generator": {**network, "normalization": "layer", "latent_size": 64},
            "critic": network,
            "constraint": {"kind": "lipschitz_penalty"},
            "training": {
                "steps": 100,
                "batch_size": BATCH,
                "num_critic_steps": 1,
                "learning_rate": 1e-4,
                **WAYS[way],
            },
        }
    )


class Run:
    """A run whose steps are made one by one."""

    def __init__(self, config: Config, data: Dataset, folder: Path) -> None:
        state = begin(config, data, folder, CPU, None).state
        split = Split(config.training.micro_batch_size)
        no_cast = torch.autocast("cpu", torch.bfloat16, enabled=False)
        find = CriticStep("auto", state.critic, config.constraint, "fp32", no_cast, split, print)
        whole = WholeStep(config, data, state, find, CPU, ALONE, no_cast, split)
        self._make, self._count = PlainStep(whole, TrainingItems(data, CPU)), 0

    def step(self) -> None:
        """Make a generator step, with its critic step."""
        self._make([np.arange(BATCH)], self._count, step_seed(0, self._count))
        self._count += 1


def write_images(side: int, folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (150, side, side, 3), np.uint8)
    np.save(folder / "images.npy", images)


def run_of(way: str, side: int, folder: Path) -> Run:
    config = config_of(way, side, folder)
    return Run(config, load_data(config.data, BATCH), folder / way)


def most_allocated(function: Any) -> float:
    """The most, in MB, that torch has allocated while a function runs, less what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    assert found.profiler is not None
    results = found.profiler.kineto_results
    assert results is not None
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]"
    )
    return max(np.cumsum([size for _, size in changes])) / 1e6


def resident() -> float:
    """The most that was resident in this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def memory(way: str, side: int, folder: Path) -> dict[str, float]:
    """Of this process, which has done nothing else yet."""
    run, before = run_of(way, side, folder), resident()
    run.step()
    run.step()
    peak = resident() - before
    return {"resident": peak, "allocated": most_allocated(run.step)}


def measured(side: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Memory and times of each way."""
    write_images(side, folder)
    found: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.micro_batches", "--one", way]
        command += ["--sides", str(side), "--folder", str(folder)]
        found[way] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        print(side, way, found[way], flush=True)
    runs = {way: run_of(way, side, folder) for way in WAYS}
    for run in runs.values():
        run.step()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, run in runs.items():
            began = time.process_time()
            run.step()
            times[way].append(time.process_time() - began)
    for way, seconds in times.items():
        first = statistics.median(times["whole batch"])
        found[way]["time"] = statistics.median(seconds) / first
        print(side, way, seconds, flush=True)
    return found


def shown(results: dict[str, Any]) -> str:
    """The page's table."""
    lines = []
    for side, ways in results["sides"].items():
        whole = ways["whole batch"]
        for way, found in ways.items():
            shares = [
                f"{found[kind]:,.0f} ({found[kind] / whole[kind]:.2f})"
                for kind in ("allocated", "resident")
            ]
            lines.append(
                [f"{side}x{side}, width {WIDTHS[int(side)]}", way, *shares, f"{found['time']:.2f}"]
            )
    header = ["images", "way", "allocated, MB", "resident, MB", "time"]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.one:
        print(json.dumps(memory(options.one, options.sides[0], options.folder)))
        return
    results: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "batch": BATCH,
        "sides": {},
    }
    if options.out.exists():
        results["sides"] = json.loads(options.out.read_text())["sides"]
    for side in options.sides:
        with tempfile.TemporaryDirectory() as folder:
            results["sides"][str(side)] = measured(side, Path(folder))
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(shown(results))


if __name__ == "__main__":
    main()
