"""Make Markdown of the results: all of them, and the part of docs/w1.md that states them.

python -m benchmarks.w1.table
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.markdown import table
from benchmarks.w1.run import (
    DIMENSIONS,
    FEW_CELLS,
    FUNNELS,
    IMAGE_CELLS,
    RESULTS,
    solvers,
    variants,
)

PAGE = Path(__file__).parents[2] / "docs" / "w1.md"
ALL = Path(__file__).with_name("RESULTS.md")
OTHERS = RESULTS / "others.json"
"""Results of `benchmarks.w1.others`."""
BEGIN, END = "<!-- by benchmarks.w1.table -->\n", "<!-- until here -->\n"
STEPS = {name: solver.steps for name, solver in (solvers(2) | variants(2)).items()}
LABELS = {
    "default": "default",
    "default, cones not split": "the same, cones not split",
    "lp_published": "WGAN-LP as published",
    "gp_published": "WGAN-GP as published",
    "bjorck": "Björck, GroupSort",
    "sn_published": "spectral norm as published",
    "clip_published": "clipping as published",
}
NAMED = {(name, STEPS[name]): label for name, label in LABELS.items()}
"""Solvers that are run in all cells, by name and steps."""
DEFAULT, LP, GP = ((name, STEPS[name]) for name in ("default", "lp_published", "gp_published"))
SHORT = 1_000
"""Steps in which all constraints are compared, in `FEW_CELLS`."""
PUBLISHED_BEST = {
    4: {2: 0.86, 4: 0.96, 8: 0.97, 16: 0.97, 32: 0.98, 64: 0.96, 128: 0.93},
    16: {},
    64: {2: 0.68, 4: 0.82, 8: 0.83, 16: 0.78, 32: 0.74, 64: 0.83, 128: 0.64},
    256: {2: 0.55, 8: 0.68, 32: 0.55, 128: 0.61},
}
"""Cosine of the best solver in the paper, on its own pairs, by funnels and dimension, where it is
known to us."""
FIGURES = {
    "cosine": ("Cosine with the optimal gradient", "{:.3f}"),
    "l2": ("Squared distance from the optimal gradient", "{:.3f}"),
    "deviation": ("W1 deviation, %", "{:.1f}"),
    "cpu_seconds": ("CPU seconds", "{:.0f}"),
}
Row = dict[str, Any]
Solver = tuple[str, int]
Cell = tuple[int, int]


class Results:
    """The results by solver (name and steps) and cell (dimension and funnels), then by seed."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.found: dict[tuple[Solver, Cell], dict[int, Row]] = defaultdict(dict)
        for file in sorted(folder.glob("*.jsonl")):
            for line in file.read_text().splitlines():
                row = json.loads(line)
                name, dimension, funnels, seed, steps = row["key"]
                self.found[(name, steps), (dimension, funnels)][seed] = row
        self.hours = sum(row["cpu_seconds"] for row in self._rows()) / 3600
        self.solvers = sorted({solver for solver, _ in self.found})
        self.cells = sorted({cell for _, cell in self.found}, key=lambda cell: cell[::-1])

    def _rows(self) -> Iterable[Row]:
        return (row for seeds in self.found.values() for row in seeds.values())

    def values(self, solver: Solver, cell: Cell, figure: str = "cosine") -> list[float]:
        seeds = self.found.get((solver, cell), {})
        return [seeds[seed][figure] for seed in sorted(seeds)]

    def all_values(self, solver: Solver, figure: str) -> list[float]:
        return [v for cell in self.cells for v in self.values(solver, cell, figure)]

    def gains(self, cell: Cell, other: Solver) -> list[float]:
        """The cosine that the default gains over another solver, on the same pairs."""
        ours, its = (self.found.get((solver, cell), {}) for solver in (DEFAULT, other))
        return [ours[seed]["cosine"] - its[seed]["cosine"] for seed in sorted(ours) if seed in its]


def everything(results: Results) -> str:
    """The text of RESULTS.md."""
    cells = results.cells
    parts = [
        "# The W1 benchmark\n\n"
        "Mean over seeds (lowest to highest, and of how many, in brackets); D x funnels;\n"
        f"{results.hours:.2f} CPU hours. Made by `python -m benchmarks.w1.run` and\n"
        "`python -m benchmarks.w1.table`. An empty cell has not been run.\n"
    ]
    for figure, (title, form) in FIGURES.items():
        lines = [
            [*map(str, solver), *(_entry(results.values(solver, c, figure), form) for c in cells)]
            for solver in results.solvers
        ]
        if figure == "cosine":
            lines.append(["best published, on its own pairs", "", *map(_best, cells)])
        parts.append(f"## {title}\n\n" + table(["solver", "steps", *map(_cell, cells)], lines))
    for other in (LP, GP):
        gained = [
            [_cell(cell), ", ".join(f"{v:+.3f}" for v in results.gains(cell, other))]
            for cell in cells
        ]
        parts.append(
            f"## The default less {NAMED[other]}, same pairs\n\n"
            + table(["D x funnels", "cosine gained, each seed"], gained)
        )
    return "\n".join(parts)


def overview(results: Results) -> str:
    """The part of docs/w1.md."""
    parts = [
        f"Cosine with the optimal gradient, means over three seeds, or as many as the brackets "
        f"say ({results.hours:.1f} CPU hours in all):\n"
    ]
    for f in FUNNELS:
        cells = [(d, f) for d in DIMENSIONS]
        lines = [
            [f"{name}, {solver[1]:,} steps", *(_mean(results, solver, cell) for cell in cells)]
            for solver, name in NAMED.items()
            if any(results.values(solver, cell) for cell in cells)
        ]
        if PUBLISHED_BEST[f]:
            lines.append(["best published solver, on its own pairs", *map(_best, cells)])
        parts.append(table([f"{f} funnels, in dimension", *map(str, DIMENSIONS)], lines))
    lines = [
        [f"{f} funnels", *(_percent_off(results, DEFAULT, (d, f)) for d in DIMENSIONS)]
        for f in FUNNELS
    ]
    parts.append(
        "How far the default's W1 is off, in percent, mean over the seeds:\n\n"
        + table(["dimension", *map(str, DIMENSIONS)], lines)
    )
    ahead = []
    for other in (LP, GP):
        gains = [gain for cell in results.cells for gain in results.gains(cell, other)]
        if not gains:
            continue
        ahead.append(
            [
                f"{NAMED[other]}, {other[1]:,} steps",
                f"{sum(gain > 0 for gain in gains)} of {len(gains)}",
                f"{min(gains):.3f} to {max(gains):.3f}",
            ]
        )
    parts.append(
        "The default on the same pairs, fit by fit, over the published recipes:\n\n"
        + table(["", "ahead in cosine", "by"], ahead)
    )
    off = []
    for solver, name in NAMED.items():
        values = results.all_values(solver, "deviation")
        if not values:
            continue
        shown = statistics.median(values), min(values), max(values)
        off.append([name, *(f"{value:.1f}" for value in shown), str(len(values))])
    parts.append(
        "How far their W1 is off, in percent:\n\n"
        + table(["", "median", "lowest", "highest", "fits"], off)
    )
    short = [name for name, steps in results.solvers if steps == SHORT]
    short.sort(key=lambda name: -statistics.mean(results.all_values((name, SHORT), "cosine")))
    lines = [
        [f"`{name}`", *(_mean(results, (name, SHORT), cell) for cell in FEW_CELLS)]
        for name in short
    ]
    parts.append(
        f"Every constraint under our schedule in {SHORT:,} steps, and the default in as many:\n\n"
        + table(["cosine", *map(_cell, FEW_CELLS)], lines)
    )
    parts.append(_beside_others(results))
    parts.append(_of_images(Results(RESULTS / "images")))
    return "\n".join(parts)


def _beside_others(results: Results) -> str:
    """How far other ways are off in the default's seconds, and with how many samples a side."""
    found: dict[Cell, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in json.loads(OTHERS.read_text()):
        way, dimension, funnels, _ = row["key"]
        found[dimension, funnels][way].append(row)
    ways = list(next(iter(found.values())))
    lines = []
    for cell in sorted(found):
        line = [_cell(cell), _percent_off(results, DEFAULT, cell)]
        for way in ways:
            rows = found[cell][way]
            off = statistics.mean(100 * (row["w1"] / row["true"] - 1) for row in rows)
            samples = statistics.mean(row["samples"] for row in rows)
            line.append(f"{off:+.0f} ({samples:,.0f})")
        lines.append(line)
    seeds = sorted({row["key"][-1] for rows in found.values() for r in rows.values() for row in r})
    return (
        "W1 by other ways in the seconds that the default's fit took, seeds "
        f"{', '.join(map(str, seeds))}: how far it is off, in percent, and the samples a side that "
        "it had time for:\n\n" + table(["D x funnels", "default", *ways], lines)
    )


def _of_images(images: Results) -> str:
    lines = [
        [
            f"`{solver[0]}`, {solver[1]:,} steps",
            *(_mean(images, solver, cell) for cell in IMAGE_CELLS),
            *(_percent_off(images, solver, cell) for cell in IMAGE_CELLS),
            f"{statistics.mean(images.all_values(solver, 'cpu_seconds')):.0f}",
        ]
        for solver in images.solvers
    ]
    header = [f"{what}, {_cell(cell)}" for what in ("cosine", "W1 off, %") for cell in IMAGE_CELLS]
    return (
        "The pairs as images of 32x32 pixels, sums of so many smooth waves with a point's "
        "coordinates as their amplitudes:\n\n" + table(["", *header, "CPU s"], lines)
    )


def _cell(cell: Cell) -> str:
    return f"{cell[0]} x {cell[1]}"


def _best(cell: Cell) -> str:
    best = PUBLISHED_BEST[cell[1]].get(cell[0])
    return f"{best:.2f}" if best else ""


def _percent_off(results: Results, solver: Solver, cell: Cell) -> str:
    w1, true = (results.values(solver, cell, figure) for figure in ("w1", "true"))
    if not w1:
        return ""
    off = statistics.mean(100 * (a / b - 1) for a, b in zip(w1, true, strict=True))
    return f"{off:+.1f}"


def _mean(results: Results, solver: Solver, cell: Cell) -> str:
    values = results.values(solver, cell)
    if not values:
        return ""
    return f"{statistics.mean(values):.3f}" + ("" if len(values) == 3 else f" ({len(values)})")


def _entry(values: list[float], form: str) -> str:
    if not values:
        return ""
    mean = form.format(statistics.mean(values))
    if len(values) == 1:
        return f"{mean} (1)"
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))}, {len(values)})"


def texts() -> dict[Path, str]:
    """The text of both files, by path."""
    results = Results()
    page = PAGE.read_text()
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    return {
        ALL: everything(results),
        PAGE: f"{page[:before]}\n{overview(results)}\n{page[after:]}",
    }


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text)
