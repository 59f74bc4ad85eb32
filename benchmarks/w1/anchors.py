"""Distances known in closed form, against what `wgan w1` says of 20,000 samples a side.

    python -m benchmarks.w1.anchors [--anchors NAME ...] [--seeds 0 1 2] [--steps N]

Each is estimated with the command's own defaults, unless told otherwise. Results go to
`benchmarks/results/w1_anchors.jsonl`, a JSON line each; what is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.lab.w1 import STEPS, estimate

Array = np.ndarray
RESULTS = Path(__file__).parents[1] / "results" / "w1_anchors.jsonl"
SAMPLES = 20_000
"""Samples on each side."""


class Anchor(NamedTuple):
    """Two sets of samples, drawn from distributions ``w1`` apart."""

    a: Array
    b: Array
    w1: float


def _normals(rng: np.random.Generator, dimension: int, length: float) -> Anchor:
    """N(mu, I) against N(0, I): every point moves by mu."""
    shift = np.full(dimension, length / math.sqrt(dimension))
    a, b = rng.normal(size=(2, SAMPLES, dimension))
    return Anchor(a + shift, b, length)


def _spheres(rng: np.random.Generator, dimension: int) -> Anchor:
    """Uniform on the spheres of radius 1 and 2: every point moves outwards by 1.

    The critic |x| shows that nothing is cheaper.
    """
    a, b = rng.normal(size=(2, SAMPLES, dimension))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return Anchor(a, 2 * b, 1.0)


def _clusters(rng: np.random.Generator) -> Anchor:
    """Two clusters, so far apart that none gains by changing over: up by 1, and up by 3.

    A shift moves a cluster at the cost of its length, whatever the cluster's form.
    """
    a, b = 0.1 * rng.normal(size=(2, SAMPLES, 2))
    is_second = np.arange(SAMPLES) % 2
    for x in (a, b):
        x[:, 0] += 10 * is_second
    b[:, 1] += 1 + 2 * is_second
    return Anchor(a, b, 2.0)


ANCHORS = {
    "normals, 2 dimensions, mu of length 1": lambda rng: _normals(rng, 2, 1.0),
    "normals, 16 dimensions, mu of length 1": lambda rng: _normals(rng, 16, 1.0),
    "normals, 16 dimensions, mu of length 4": lambda rng: _normals(rng, 16, 4.0),
    "normals, 128 dimensions, mu of length 1": lambda rng: _normals(rng, 128, 1.0),
    "normals, 128 dimensions, mu of length 11.3": lambda rng: _normals(rng, 128, 128**0.5),
    "spheres of radius 1 and 2, 128 dimensions": lambda rng: _spheres(rng, 128),
    "two clusters, a known plan": _clusters,
}


def run(name: str, seed: int, steps: int) -> dict[str, object]:
    """Estimate one anchor."""
    anchor = ANCHORS[name](np.random.default_rng(seed))
    started = time.process_time()
    report, _ = estimate(anchor.a, anchor.b, seed=seed, steps=steps)
    return {
        "anchor": name,
        "seed": seed,
        "steps": steps,
        "true": anchor.w1,
        "error_percent": 100 * (report["w1"] / anchor.w1 - 1),
        **{key: report[key] for key in ("w1", "lower", "plug_in", "plug_in_bias")},
        "cpu_seconds": time.process_time() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--anchors", nargs="*", choices=ANCHORS, default=list(ANCHORS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["anchor"], row["seed"], row["steps"]) for row in rows}
    for seed, name in itertools.product(options.seeds, options.anchors):
        if (name, seed, options.steps) in done:
            continue
        rows.append(run(name, seed, options.steps))
        with options.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print("| anchor | W1 | estimate, each seed | error, % | certified lower bound |")
    print("|---|---|---|---|---|")
    for name in options.anchors:
        mine = [row for row in rows if row["anchor"] == name and row["steps"] == options.steps]
        cells = [
            ", ".join(form.format(row[key]) for row in mine)
            for key, form in (("w1", "{:.4g}"), ("error_percent", "{:+.1f}"), ("lower", "{:.3g}"))
        ]
        if mine:
            print(f"| {name} | {mine[0]['true']:.4g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
