"""Does memory grow with the data set? Does reading batches from the disk slow a step?

    OMP_NUM_THREADS=1 python benchmarks/data_memory.py /tmp/data_memory \
        --out benchmarks/results/data_memory.json

makes folders of small PNG files below the path given, and trains on each in processes of their
own: first with an empty cache, then from the cache, then with all items in memory, in turn.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from training.data.dataset import Dataset

SIDE = 32
STEPS = 25
ROUNDS = 3
BATCH = 64
BATCHES = 500


def make_folder(folder: Path, count: int) -> None:
    from models.images import encode_small_png

    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i % 10}" / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        path.write_bytes(encode_small_png(coarse.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)))


def memory() -> dict[str, int]:
    """Resident memory now, in MB: all of it, and what is no file's page."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(fields[key].split()[0]) // 1024 for key in ("VmRSS", "RssAnon", "VmHWM")}


def batch_milliseconds(data: "Dataset") -> float:
    """Median time to fetch a random batch, of processor time: the machine may be busy."""
    import torch

    from training.data.batches import TrainingItems, batch_indices

    items, times = TrainingItems(data, torch.device("cpu")), []
    for i in range(BATCHES):
        indices = batch_indices(0, len(items), i * BATCH, BATCH)
        started = time.process_time()
        items.take(indices)
        times.append(time.process_time() - started)
    return round(1000 * statistics.median(times), 4)


def train_once(folder: Path, in_memory: bool) -> dict[str, object]:
    import torch

    from models.config import parse_config
    from training.data.dataset import load_data
    from training.engine.loop import train

    config = parse_config(
        {
            "name": "memory",
            "data": {"source": str(folder)},
            "generator": {"architecture": "dcgan", "width": 16, "latent_size": 32},
            "critic": {"architecture": "dcgan", "width": 16},
            "constraint": {"kind": "lipschitz_penalty"},
            "training": {"steps": STEPS, "batch_size": BATCH, "num_critic_steps": 2},
        }
    )
    before, started = memory(), time.perf_counter()
    data = load_data(config.data)
    loaded, seconds = memory(), time.perf_counter() - started
    if in_memory:
        data = dataclasses.replace(data, items=np.array(data.items))
    fetch = batch_milliseconds(data)
    times, most = [], 0

    def each_step() -> bool:
        nonlocal most
        times.append(time.process_time())
        most = max(most, memory()["VmRSS"])
        return False

    checkpoints = Path(os.environ["WGAN_CACHE"]) / f"run-{os.getpid()}"
    train(config, data, checkpoints, torch.device("cpu"), stop_requested=each_step)
    return {
        "items": data.card.count,
        "load_seconds": round(seconds, 2),
        "before_loading_MB": before["VmRSS"],
        "after_loading_MB": loaded["VmRSS"],
        "peak_loading_MB": loaded["VmHWM"],
        "most_training_MB": most,
        "batch_ms": fetch,
        "step_cpu_ms": round(1000 * statistics.median(np.diff(times[5:])), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=["map", "memory"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train_once(options.folder, options.one == "memory")))
        return
    results: dict[str, list[dict[str, object]]] = {}
    for count in options.counts:
        folder = options.folder / f"{count}"
        if not folder.exists():
            make_folder(folder, count)
        environment = {**os.environ, "WGAN_CACHE": str(options.folder / f"cache-{count}")}

        def run(kind: str, folder: Path = folder, env: dict[str, str] = environment) -> None:
            command = [sys.executable, __file__, str(folder), "--one", kind]
            done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
            print(folder.name, kind, done.stdout.strip(), flush=True)
            key = f"{folder.name} {kind}"
            results.setdefault(key, []).append(json.loads(done.stdout))

        for _ in range(ROUNDS):
            run("map")
            run("memory")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        command = "OMP_NUM_THREADS=1 python benchmarks/data_memory.py FOLDER --out " + str(
            options.out
        )
        options.out.write_text(json.dumps({"command": command, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
