"""Trains presets under several constraints and seeds, and tabulates how they were judged.

    python benchmarks/presets.py --out runs/presets

Runs that are complete are not repeated, and those that were interrupted go on. Each is one `wgan
train` of the preset as it stands, on one thread: what its constraint's paper or the preset's own
tuning says is what it gets. The table and `benchmarks/results/presets.json` come from the
artifacts' `run.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WGAN = Path(sys.executable).with_name("wgan")
RESULTS = Path(__file__).with_name("results") / "presets.json"
FIGURES = {
    "25gaussians": ("modes_covered", "high_quality_share", "wasserstein_1"),
    "digits": ("precision", "recall", "kernel_distance"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--presets", nargs="+", default=list(FIGURES), choices=list(FIGURES))
    parser.add_argument(
        "--constraints", nargs="+", default=["lipschitz_penalty", "weight_clipping"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="default: the preset's")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = [
        (preset, constraint, seed)
        for preset in options.presets
        for constraint in options.constraints
        for seed in range(options.seeds)
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: train(options.out, options.steps, *run), runs))
    rows = [row(options.out, *run) for run in runs]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def folder(out: Path, preset: str, constraint: str, seed: int) -> Path:
    return out / f"{preset}-{constraint}-{seed}"


def train(out: Path, steps: int | None, preset: str, constraint: str, seed: int) -> None:
    more = [f"training.steps={steps}"] if steps else []
    settings = [f"constraint.kind={constraint}", *more]
    finish(folder(out, preset, constraint, seed), preset, seed, settings)


def finish(where: Path, preset: str, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """Train what is left of a preset with settings on one thread; return its ``run.json``."""
    command = [WGAN, "train", "--preset", preset, "--seed", str(seed)]
    command += ["--no-register", "--resume", "--out", where]
    command += [f"--set={setting}" for setting in settings]
    if not (where / "artifact").exists():
        where.parent.mkdir(parents=True, exist_ok=True)
        with where.with_suffix(".log").open("w") as log:
            subprocess.run(
                list(map(str, command)),
                check=True,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
    found: dict[str, Any] = json.loads((where / "artifact" / "run.json").read_text())
    return found


def row(out: Path, preset: str, constraint: str, seed: int) -> dict[str, Any]:
    run = json.loads((folder(out, preset, constraint, seed) / "artifact" / "run.json").read_text())
    figures = run["results"]["figures"]
    training = run["config"]["training"]
    return {
        "preset": preset,
        "constraint": run["constraint"]["kind"],
        "hyperparameters": run["constraint"]["hyperparameters"],
        "seed": seed,
        "steps": training["steps"],
        "critic_steps": training["steps"] * training["num_critic_steps"],
        "optimizer": training["optimizer"],
        "learning_rate": training["learning_rate"],
        "figures": {
            name: {key: figures[name][key] for key in ("value", "floor", "interval")}
            for name in FIGURES[preset]
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table for each preset: every seed's value, and the floor."""
    lines = []
    for preset, names in FIGURES.items():
        chosen = [r for r in rows if r["preset"] == preset]
        if not chosen:
            continue
        lines += [
            "",
            f"| `{preset}` | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for constraint in dict.fromkeys(r["constraint"] for r in chosen):
            mine = [r for r in chosen if r["constraint"] == constraint]
            cells = [
                ", ".join(f"{r['figures'][name]['value']:.3g}" for r in mine) for name in names
            ]
            lines.append(f"| {constraint} | {' | '.join(cells)} |")
        floors = [
            f"{statistics.mean(r['figures'][name]['floor'] for r in chosen):.3g}" for name in names
        ]
        lines.append(f"| real against real | {' | '.join(floors)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
