"""Digits of ``mnist5k`` by class: what each choice brings, one taken back at a time.

    python -m benchmarks.images_ablation --runs runs/image-ablation --seeds 0 1 2

Each run has a process of its own with one thread, and the steps for which that many seconds of the
processor suffice, by the pace of a few; so all decay their rate towards their end. As many samples
as there are held-out digits are judged against these, in features of a classifier of the labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.images_peers import DOCS, FIGURES, figure_cells, figures
from benchmarks.markdown import mean_and_range, put_between, table
from benchmarks.quality_tasks import SAMPLE_SEED, Judge
from benchmarks.quality_training import CPU
from models.config import Config
from models.sampling import draw_labels
from training.data.dataset import load_data
from training.engine.loop import train
from training.engine.pace import measure_pace
from training.presets import build_config

TASK = "mnist5k"
RESULTS = Path(__file__).with_name("results") / "images_ablation.json"
BEGIN, END = "<!-- made by benchmarks.images_ablation -->", "<!-- end of the ablation -->"
SECONDS = 180.0
"""Of the processor, for the steps of each run."""
BASE: dict[str, Any] = {
    "conditional": True,
    "generator.width": 32,
    "critic.width": 32,
    "training.precision": "bf16",
}
"""Over the preset."""
VARIANTS: dict[str, dict[str, Any]] = {
    "all of it": {},
    "no classes": {"conditional": False},
    "width 16": {"generator.width": 16, "critic.width": 16},
    "fp32": {"training.precision": "fp32"},
    "leaky ReLU in the critic": {"critic.activation": "leaky_relu"},
    "two-sided penalty": {"constraint.kind": "gradient_penalty", "constraint.strength": 10.0},
    "rate 1e-4": {"training.learning_rate": 1e-4},
    "betas 0.5, 0.9": {"training.betas": (0.5, 0.9)},
    "5 critic steps": {"training.num_critic_steps": 5},
    "no average": {"training.ema_decay": 0.0},
    "no decay": {"training.decay_from": 1.0},
}
"""What each run has in place of the base's setting: the published recipe's, or less."""


def configured(variant: str, seed: int) -> Config:
    """The configuration of a run, whose steps are still the preset's."""
    given = {**BASE, **VARIANTS[variant], "training.seed": seed}
    kind = given.pop("constraint.kind", None)
    of_training = ("optimizer", "learning_rate", "betas", "num_critic_steps")
    preset = build_config(TASK).training
    kept = {f"training.{name}": getattr(preset, name) for name in of_training}
    return build_config(TASK, None, kind, {**kept, **given})


def measured(runs: Path, variant: str, seed: int) -> dict[str, Any]:
    """Train and judge one variant, if there is no record of it yet; returns the record."""
    out = runs / f"{variant}-{seed}.json"
    if not out.exists():
        torch.set_num_threads(1)
        out.write_text(json.dumps(measure(variant, seed)) + "\n")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def measure(variant: str, seed: int) -> dict[str, Any]:
    """Train and judge one variant."""
    config = configured(variant, seed)
    data = load_data(config.data, config.training.batch_size)
    judge = Judge(config, data)
    pace = measure_pace(config, data) * config.training.num_critic_steps
    steps = int(SECONDS / pace)
    training = config.training.model_copy(update={"steps": steps, "checkpoint_every": steps})
    config = config.model_copy(update={"training": training})
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        state, _ = train(config, data, Path(folder), CPU)
    spent = time.process_time() - began
    given = []
    if config.conditional:
        frequencies = np.array(data.card.class_counts)
        given = [torch.from_numpy(draw_labels(SAMPLE_SEED, 0, len(judge.z), frequencies))]
    with torch.no_grad():
        samples = judge.scaling.to_data(state.ema.eval()(judge.z, *given)).numpy()
    return {
        "variant": variant,
        "seed": seed,
        "cpu_seconds": spent,
        "steps": steps,
        "figures": figures(judge.extractor, judge.real, samples),
        "floor": figures(judge.extractor, judge.real, data.sample(len(samples), heldout=False)),
    }


def shown(results: list[dict[str, Any]]) -> str:
    """The table of the page: means over seeds, with ranges."""
    rows = []
    for variant in VARIANTS:
        mine = [result for result in results if result["variant"] == variant]
        if mine:
            steps = mean_and_range([result["steps"] for result in mine], "{:,.0f}")
            rows.append(
                [
                    variant,
                    str(len(mine)),
                    steps,
                    *figure_cells([result["figures"] for result in mine]),
                ]
            )
    rows.append(["real digits", "", "", *figure_cells([result["floor"] for result in results])])
    return table(["", "seeds", "steps", *(title for title, _ in FIGURES.values())], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=Path, required=True, help="a file a run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    wanted = [(options.runs, variant, seed) for seed in options.seeds for variant in VARIANTS]
    pool = ProcessPoolExecutor(options.jobs, get_context("spawn"), max_tasks_per_child=1)
    with pool:
        results = list(pool.map(measured, *zip(*wanted, strict=True)))
    RESULTS.write_text(json.dumps({"seconds": SECONDS, "runs": results}, indent=1) + "\n")
    put_between(DOCS / "images.md", BEGIN, END, shown(results))


if __name__ == "__main__":
    main()
