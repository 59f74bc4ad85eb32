"""How often does the interval of a kernel distance hold the truth, and how wide is it?

    python -m benchmarks.intervals --out benchmarks/results/intervals.json

Sets of n points are drawn again and again, real ones from a distribution and fake ones from the
same, shifted in every dimension. The truth is the mean of all the values found, since the estimate
is unbiased. Beside the jackknife's interval, which is used, stand that of half samples and that of
the unbiased variance of a U-statistic. Widths are over that of an interval with the true standard
error.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks.markdown import table
from training.judging.intervals import (
    REPEATS,
    half_sample_margins,
    kernel_distance_margin,
    pair_mean_error,
)
from training.judging.metrics import cubic_kernel, kernel_distance

Array = np.ndarray
RESULTS = Path(__file__).with_name("results") / "intervals.json"
SIMULATIONS = 1000
FORMER = 200
"""Simulations of the other two intervals."""
SHIFTS = (0.0, 0.1, 0.3)
CELLS = (
    ("normal", 2, 100),
    ("normal", 16, 100),
    ("features", 64, 100),
    ("features", 256, 100),
    ("features", 64, 250),
)
"""Distributions, dimensions, points in a set. Features are normal values cut at 0, as by a ReLU."""


def measure_cell(kind: str, dimensions: int, n: int, shift: float) -> dict[str, Any]:
    """Measure how often each interval holds the truth, and its width."""
    rng = np.random.default_rng([dimensions, n, int(100 * shift), len(kind)])
    t = float(stdtrit(REPEATS - 1, 0.975))

    def metric(real: Array, fake: Array) -> dict[str, float]:
        return {"": kernel_distance(real, fake)}

    def draw(shift: float) -> Array:
        points = rng.normal(shift, 1, (n, dimensions))
        return np.maximum(points, 0) if kind == "features" else points

    values, margins = list[float](), dict[str, list[float]](jackknife=[], unbiased=[], halves=[])
    for i in range(SIMULATIONS):
        real, fake = draw(0.0), draw(shift)
        values.append(kernel_distance(real, fake))
        margins["jackknife"].append(kernel_distance_margin(real, fake))
        if i < FORMER:
            across = cubic_kernel(real, fake)
            pairs = cubic_kernel(real, real) + cubic_kernel(fake, fake) - across - across.T
            np.fill_diagonal(pairs, 0)
            margins["unbiased"].append(t * pair_mean_error(pairs))
            found = half_sample_margins(
                lambda r, f: {"": kernel_distance(r, f)}, real, fake, seed=i
            )
            margins["halves"].append(found[""])
    truth, deviation = float(np.mean(values)), float(np.std(values))
    cell = {"kind": kind, "dimensions": dimensions, "n": n, "shift": shift, "truth": truth}
    for name, found in margins.items():
        errors = np.abs(np.array(values[: len(found)]) - truth)
        cell[f"held_{name}"] = float((errors <= found).mean())
        cell[f"width_{name}"] = float(np.mean(found) / (1.96 * deviation))
    return cell


def shown(cells: list[dict[str, Any]]) -> str:
    """The table of docs/extractors.md."""
    header = [
        "points", "n", "true distance", "jackknife: held, width", "half samples",
        "unbiased variance",
    ]  # fmt: skip
    lines = [
        [
            f"{cell['kind']}, {cell['dimensions']} dimensions",
            str(cell["n"]),
            "0" if cell["shift"] == 0 else f"{cell['truth']:.2g}",
            *(
                f"{cell['held_' + name]:.1%}, {cell['width_' + name]:.2f}"
                for name in ("jackknife", "halves", "unbiased")
            ),
        ]
        for cell in cells
    ]
    return table(header, lines)


def main() -> None:
    """Measure all cells, print the table, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    cells = [
        measure_cell(kind, dimensions, n, shift)
        for kind, dimensions, n in CELLS
        for shift in SHIFTS
    ]
    print(shown(cells))
    out.write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
