"""Make Markdown tables of the results.

python -m benchmarks.w1.table [FOLDER] > benchmarks/w1/RESULTS.md
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.w1.run import DEFAULT_STEPS, RESULTS

PUBLISHED_BEST = {
    **{
        (d, 4): c
        for d, c in zip((2, 4, 8, 16, 32, 64), (0.86, 0.96, 0.97, 0.97, 0.98, 0.96), strict=True)
    },
    (2, 64): 0.68,
    (4, 64): 0.82,
    (8, 64): 0.83,
    (16, 64): 0.78,
    (64, 64): 0.83,
}
"""Cosine of the best solver in the paper, on its own pairs; (32, 64) is not known to us."""
FIGURES = {
    "cosine": ("Cosine with the optimal gradient", "{:.3f}"),
    "l2": ("Squared distance from the optimal gradient", "{:.3f}"),
    "deviation": ("W1 deviation, %", "{:.1f}"),
    "cpu_seconds": ("CPU seconds", "{:.0f}"),
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    files = sorted(folder.glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    groups: dict[tuple[str, int, int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        name, dimension, funnels, _, steps = row["key"]
        groups[name, steps, dimension, funnels].append(row)
    cells = sorted({(f, d) for _, _, d, f in groups})
    solvers = sorted({(name, steps) for name, steps, _, _ in groups})
    hours = sum(row["cpu_seconds"] for row in rows) / 3600
    print("# The W1 benchmark\n")
    print("Mean over seeds (lowest to highest, and of how many, in brackets); D x funnels;")
    print(f"{hours:.2f} CPU hours. Made by `python -m benchmarks.w1.run` and")
    print("`python -m benchmarks.w1.table`. An empty cell has not been run.")
    for figure, (title, form) in FIGURES.items():
        print(f"\n## {title}\n")
        print("| solver | steps |", " | ".join(f"{d} x {f}" for f, d in cells), "|")
        print("|---|---|" + "---|" * len(cells))
        for name, steps in solvers:
            entries = []
            for f, d in cells:
                values = [row[figure] for row in groups.get((name, steps, d, f), [])]
                entries.append(_entry(values, form))
            print(f"| {name} | {steps} |", " | ".join(entries), "|")
        if figure == "cosine":
            published = [f"{PUBLISHED_BEST.get((d, f), '')}" for f, d in cells]
            print("| best published, on its own pairs | |", " | ".join(published), "|")
    full = ("default", DEFAULT_STEPS)
    default = [row["deviation"] for row in rows if (row["key"][0], row["key"][4]) == full]
    if default:
        print(f"\nMedian W1 deviation of the default: {statistics.median(default):.1f}%.")
    _paired(rows)


def _entry(values: list[float], form: str) -> str:
    if not values:
        return ""
    mean = form.format(statistics.mean(values))
    if len(values) == 1:
        return f"{mean} (1)"
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))}, {len(values)})"


def _paired(rows: list[dict[str, Any]]) -> None:
    """The default less the published recipe, on the same pairs."""
    cosines: dict[tuple[int, int, int], dict[str, float]] = defaultdict(dict)
    for row in rows:
        name, dimension, funnels, seed, steps = row["key"]
        if (name, steps) in (("default", DEFAULT_STEPS), ("lp_published", 60_000)):
            cosines[dimension, funnels, seed][name] = row["cosine"]
    gains: dict[tuple[int, int], list[float]] = defaultdict(list)
    for (dimension, funnels, _), found in sorted(cosines.items()):
        if "default" in found and "lp_published" in found:
            gains[dimension, funnels].append(found["default"] - found["lp_published"])
    if gains:
        print("\n## Default less the published recipe, same pairs\n")
        print("| D x funnels | cosine gained, each seed |\n|---|---|")
        for (dimension, funnels), values in gains.items():
            print(f"| {dimension} x {funnels} |", ", ".join(f"{v:+.3f}" for v in values), "|")


if __name__ == "__main__":
    main()
