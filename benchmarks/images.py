"""How good images get, at which size and after how long: within a budget, or so many steps.

    python -m benchmarks.images --out runs/images --tasks emoji32 --seeds 0 1 2

Each run is one `wgan train`. One with a budget needs the machine's cores for itself; of others the
processor's seconds count. A run that is complete is not repeated, and one that was interrupted
goes on. Each task writes its results beside those of the
others, the tables of ``docs/images.md``, and a grid of its first seed's samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.markdown import mean_and_range, put_between, table
from benchmarks.quality_training import now

Result = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "images.json"
DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- made by benchmarks.images -->", "<!-- end of the runs -->"


class Task(NamedTuple):
    """Data, and how long to train on them."""

    data: str
    length: tuple[str, str]
    """An option, and its value."""
    preset: str = "images"
    settings: tuple[str, ...] = ()


TASKS = {
    "emoji32": Task("emoji32", ("--budget", "20m")),
    "mnist5k": Task("mnist5k", ("--budget", "10m"), preset="mnist5k"),
    "mnist5k-by-class": Task(
        "mnist5k",
        ("--budget", "10m"),
        preset="mnist5k",
        settings=("conditional=true", "generator.width=32", "critic.width=32"),
    ),
    "letters32": Task("letters32", ("--budget", "20m"), settings=("conditional=true",)),
    "emoji64": Task("emoji64", ("--budget", "35m"), settings=("data.size=64",)),
    "letters64": Task(
        "letters64", ("--budget", "35m"), settings=("data.size=64", "conditional=true")
    ),
}
FIGURES = {
    "kernel_distance": ("kernel distance", "{:.3g}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "class_accuracy": ("class accuracy", "{:.2f}"),
}
"""Each figure's title and form."""
SHOWN, SHOWN_SEED = 64, 7
"""Samples of a picture, and their seed."""


def measure(name: str, seed: int, out: Path) -> Result:
    """Train, if that was not done before, and say what came of it."""
    task, run = TASKS[name], out / f"{name}-{seed}"
    cost = run / "cost.json"
    if not cost.exists():
        settings = [f"--set={setting}" for setting in task.settings]
        told = ["--preset", task.preset, "--data", task.data, *task.length, *settings]
        seconds = timed("train", *told, "--seed", seed, "--no-register", "--resume", "--out", run)
        cost.write_text(json.dumps(seconds))
    found = json.loads((run / "artifact" / "run.json").read_text())
    config, figures = found["config"], found["results"]["figures"]
    return {
        "task": name,
        "seed": seed,
        **json.loads(cost.read_text()),
        "generator": [config["generator"][key] for key in ("architecture", "depth", "width")],
        "precision": config["training"]["precision"],
        "steps": config["training"]["steps"],
        "figures": {figure: figures[figure] for figure in FIGURES if figure in figures},
    }


def timed(*arguments: object) -> dict[str, float]:
    """Run a command of ours; its seconds by the wall's clock and of all processors together."""
    before = now()
    subprocess.run([sys.executable, "-m", "wgan_cli", *map(str, arguments)], check=True)
    cpu_seconds, seconds = (now() - before).tolist()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def draw(name: str, seed: int, out: Path) -> None:
    """Write the picture of a task."""
    artifact, picture = out / f"{name}-{seed}" / "artifact", DOCS / f"images-{name}.png"
    timed("sample", artifact, "-n", SHOWN, "--seed", SHOWN_SEED, "--out", picture)


def shown(results: list[Result]) -> str:
    """The table of the page: the mean over seeds, the range, and the floor."""
    rows = []
    for name, task in TASKS.items():
        mine = [result for result in results if result["task"] == name]
        if not mine:
            continue
        architecture, depth, _ = mine[0]["generator"]
        widths = sorted({result["generator"][2] for result in mine})
        network = f"{architecture} {depth}x{' or '.join(map(str, widths))}"
        # What was measured before budgets chose it says nothing of the precision.
        halves = [result.get("precision") == "bf16" for result in mine]
        network += ", bf16" if all(halves) else ", bf16 in some" if any(halves) else ""
        steps = mean_and_range([result["steps"] for result in mine], "{:,.0f}")
        cells = [
            f"{mean_and_range([result['figures'][figure]['value'] for result in mine], form)} "
            f"[{mean_and_range([result['figures'][figure]['floor'] for result in mine], form)}]"
            if figure in mine[0]["figures"]
            else ""
            for figure, (_, form) in FIGURES.items()
        ]
        minutes = mean_and_range([result["cpu_seconds"] / 60 for result in mine], "{:.1f}")
        told = " ".join([f"`{task.data}`", *task.length])
        told += ", by class" if "conditional=true" in task.settings else ""
        rows.append([told, str(len(mine)), network, steps, minutes, *cells])
    titles = [title for title, _ in FIGURES.values()]
    head = ["data", "seeds", "networks", "steps", "CPU minutes", *titles]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    known = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    for name in options.tasks:
        made = [measure(name, seed, options.out) for seed in options.seeds]
        draw(name, options.seeds[0], options.out)
        known = [result for result in known if result["task"] != name] + made
        RESULTS.write_text(json.dumps({"cores": os.cpu_count(), "runs": known}, indent=1) + "\n")
        put_between(DOCS / "images.md", BEGIN, END, shown(known))


if __name__ == "__main__":
    main()
