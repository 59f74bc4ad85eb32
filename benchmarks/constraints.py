"""Trains each constraint alike, and tabulates its Lipschitz bracket and its quality.

    python -m benchmarks.constraints --out runs/constraints

Each has the preset's networks, optimizer and count of critic steps, whatever its paper says, and
its own hyperparameters as they are by default: what differs is the constraint. The steps are few,
so the figures compare; they are not the best that a constraint can do. Runs that are complete are
not repeated, and those that were interrupted go on.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from benchmarks.presets import FIGURES, RESULTS, finish
from models.constraints import AnyConstraint
from training.presets import TUNED

STEPS = {"25gaussians": 1500, "digits": 400}
"""Generator steps, by preset."""
PRESETS = {"25gaussians": "8gaussians", "digits": "digits"}
"""The preset of networks and optimiser: those of `25gaussians` were tuned for one constraint."""
SEEDS = 3
NEEDED = {
    "consistency": ["critic.dropout=0.2"],
    "bjorck": ["critic.activation=groupsort"],
    "aol": ["critic.activation=groupsort"],
    "cayley": ["critic.activation=groupsort"],
    "sandwich": ["critic.activation=leaky_relu"],
}
"""Without these settings a constraint is refused, or is not what its source describes."""
KINDS = [kind.model_fields["kind"].default for kind in get_args(get_args(AnyConstraint)[0])]
RECIPES: dict[str, list[str]] = {
    **{kind: [f"constraint.kind={kind}", *NEEDED.get(kind, [])] for kind in KINDS},
    "weight_clipping, target 1": [
        "constraint.kind=weight_clipping",
        "constraint.target_lipschitz=1",
    ],
}
"""Settings of `wgan train`, by name in the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS.with_name("constraints.json"))
    options = parser.parse_args()
    runs = list(itertools.product(range(options.seeds), STEPS, RECIPES))

    def run(of: tuple[int, str, str]) -> dict[str, Any]:
        seed, preset, recipe = of
        tuned = TUNED[PRESETS[preset]]["lipschitz_penalty"]["training"]
        settings = [f"training.{key}={json.dumps(value)}" for key, value in tuned.items()]
        settings += [f"name={preset}", f"data.source={preset}"]
        settings += [f"training.steps={STEPS[preset]}", *RECIPES[recipe]]
        name = f"{preset}-{recipe.replace(', ', '-').replace(' ', '-')}-{seed}"
        found = finish(options.out / name, PRESETS[preset], seed, settings)
        print(f"{preset}, {recipe}, seed {seed}: done", flush=True)
        return row(preset, recipe, seed, found)

    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(run, runs))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def row(preset: str, recipe: str, seed: int, run: dict[str, Any]) -> dict[str, Any]:
    """A row of the table, from a ``run.json``."""
    lipschitz = run["lipschitz"]
    return {
        "preset": preset,
        "recipe": recipe,
        "seed": seed,
        "steps": run["config"]["training"]["steps"],
        "hyperparameters": run["constraint"]["hyperparameters"],
        "certified": lipschitz["certified"],
        "reason": lipschitz["reason"],
        "sampled": lipschitz["sampled"],
        "gradient_norm": lipschitz["gradient_norm"]["between"]["mean"],
        **{name: run["results"]["figures"][name]["value"] for name in FIGURES[preset]},
        "floors": {name: run["results"]["figures"][name]["floor"] for name in FIGURES[preset]},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table for each preset: medians over seeds, the lowest and the highest."""
    lines = []
    for preset, figures in FIGURES.items():
        names = ("certified", "sampled", "gradient_norm", *figures)
        lines += ["", f"| `{preset}` | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        mine = [r for r in rows if r["preset"] == preset]
        for recipe in RECIPES:
            found = [r for r in mine if r["recipe"] == recipe]
            cells = [_cell([r[name] for r in found]) for name in names]
            lines.append(f"| {recipe} | {' | '.join(cells)} |")
        floors = [_cell([r["floors"][name] for r in mine]) for name in figures]
        lines.append(f"| real against real | | | | {' | '.join(floors)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "none"
    low, middle, high = min(known), statistics.median(known), max(known)
    text = f"{middle:.3g}"
    return text if f"{low:.3g}" == f"{high:.3g}" else f"{text} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    main()
