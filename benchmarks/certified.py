"""Critics whose slope is certified: how steep they are, how much of W1 they find, at what cost.

    python -m benchmarks.certified [--kinds cayley sandwich] [--seeds 0 1 2]

Each is fitted to pairs of measures with a known W1 (`benchmarks.w1.pairs`) by its own recipe of
`training.lab.fitting`. Then critic steps of all are timed in turn, in one process on one thread, as
ratios to those under spectral normalisation. Fits of the kinds that are named replace their former
ones, and the table of ``docs/constraints.md`` is made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.markdown import load_note, mean_and_range, put_between, table
from benchmarks.w1.pairs import SIDE, FunnelPair
from models.config import constraint_class
from models.lipschitz import lipschitz_bracket
from models.networks import build_critic
from training.engine.step import CriticStep
from training.lab.fitting import default_recipe, fit

Result = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "certified.json"
PAGE = Path(__file__).parents[1] / "docs" / "constraints.md"
BEGIN, END = "<!-- made by benchmarks.certified -->", "<!-- end of the certified critics -->"
PEER = "spectral_norm"
KINDS = (PEER, "aol", "bjorck", "cayley", "sandwich")
CELLS = ((2, 4), (16, 4))
"""Dimensions and funnels of each pair."""
STEPS, BATCH, TEST_SAMPLES = 500, 512, 2**15
SCALE = 2 * SIDE / 12**0.5
"""The deviation of one coordinate, by which inputs are divided."""
ROUNDS, STEPS_A_ROUND, TIMED_BATCH, TIMED_DIMENSION = 21, 10, 256, 16


def measure(kind: str, dimension: int, funnels: int, seed: int) -> Result:
    """Fit one critic, and measure it on samples that it never saw."""
    pair, source = FunnelPair(dimension, funnels, seed), torch.Generator().manual_seed(1000 + seed)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        p, q = pair.sample(BATCH, source)
        return p / SCALE, q / SCALE

    begun = time.process_time()
    recipe = default_recipe((dimension,), constraint_class(kind)())
    critic = fit(draw, (dimension,), recipe, STEPS, seed)
    seconds = time.process_time() - begun
    p, q = (x / SCALE for x in pair.sample(TEST_SAMPLES, torch.Generator().manual_seed(seed)))
    torch.manual_seed(seed)
    bounds = lipschitz_bracket(critic, p, q)
    assert bounds.certified is not None
    with torch.no_grad():
        gap = (critic(p).double().mean() - critic(q).double().mean()).item()
    return {
        "kind": kind,
        "cell": f"{dimension} x {funnels}",
        "seed": seed,
        "certified": bounds.certified,
        "sampled": bounds.sampled,
        "recovered": SCALE * gap / bounds.certified / pair.w1()[0],
        "cpu_seconds": seconds,
    }


def stepper(kind: str) -> Callable[[], None]:
    """Some critic steps, with the optimiser's and the constraint's own work."""
    torch.manual_seed(0)
    recipe = default_recipe((TIMED_DIMENSION,), constraint_class(kind)())
    assert recipe.critic is not None
    critic = recipe.constraint.before_training(build_critic(recipe.critic, (TIMED_DIMENSION,)))
    optimizer = torch.optim.Adam(critic.parameters(), 1e-4, recipe.betas, fused=True)
    find = CriticStep("auto", critic, recipe.constraint)
    real, fake = torch.randn(2, TIMED_BATCH, TIMED_DIMENSION)

    def steps() -> None:
        for _ in range(STEPS_A_ROUND):
            find(real, fake, [], 0)
            optimizer.step()
            recipe.constraint.after_critic_step(critic)

    return steps


def timings() -> dict[str, Result]:
    """Ratio to the peer in the same round, and milliseconds a step: medians over rounds."""
    steppers = {kind: stepper(kind) for kind in KINDS}
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS + 1):
        for kind, steps in steppers.items():
            begun = time.process_time()
            steps()
            found[kind].append((time.process_time() - begun) / STEPS_A_ROUND)
    ratios = {
        kind: [a / b for a, b in zip(seconds[1:], found[PEER][1:], strict=True)]
        for kind, seconds in found.items()
    }
    return {
        kind: {
            "ratio": statistics.median(ratios[kind]),
            "spread": statistics.quantiles(ratios[kind], n=4)[::2],
            "milliseconds": 1000 * statistics.median(found[kind][1:]),
        }
        for kind in KINDS
    }


def shown(result: Result) -> str:
    """The table of the page, and what the machine was doing."""
    rows = []
    for kind in KINDS:
        cells = [f"`{kind}`"]
        for dimension, funnels in CELLS:
            mine = [
                row
                for row in result["fits"]
                if (row["kind"], row["cell"]) == (kind, f"{dimension} x {funnels}")
            ]
            cells += [
                mean_and_range([row[figure] for row in mine], form)
                for figure, form in (
                    ("certified", "{:.3g}"),
                    ("sampled", "{:.2f}"),
                    ("recovered", "{:.1%}"),
                )
            ]
        timed = result["steps"][kind]
        cells.append(f"{timed['ratio']:.2f} ({timed['spread'][0]:.2f} to {timed['spread'][1]:.2f})")
        rows.append(cells)
    head = [
        f"{'' if i else f'{d} x {f}: '}{title}"
        for d, f in CELLS
        for i, title in enumerate(("certified", "found", "of W1"))
    ]
    return f"{table(['constraint', *head, 'step'], rows)}\n{load_note(result)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()
    fits = json.loads(RESULTS.read_text())["fits"] if RESULTS.exists() else []
    fits = [row for row in fits if row["kind"] not in options.kinds]
    for kind in options.kinds:
        for dimension, funnels in CELLS:
            for seed in options.seeds:
                fits.append(row := measure(kind, dimension, funnels, seed))
                print(row, flush=True)
    result = {"load_average": load, "fits": fits, "steps": timings()}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    put_between(PAGE, BEGIN, END, shown(result))


if __name__ == "__main__":
    main()
