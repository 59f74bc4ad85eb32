"""How often the bounds of `wgan w1` hold: twenty families of distributions, many pairs of each.

    python -m benchmarks.w1.coverage

It takes some twelve minutes on one core and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from training.lab.w1 import estimate
from training.progress import track

Array = np.ndarray
Rng = np.random.Generator
RESULTS = Path(__file__).parents[1] / "results" / "w1_coverage.json"
PAIRS = 200
"""Pairs of sets of each family."""
STEPS = 20
"""Critic steps: the bound must hold for any critic, also for a poor one."""


def _column(draw: Callable[[Rng, int], Array]) -> Callable[[Rng, int], Array]:
    return lambda rng, n: draw(rng, n).reshape(n, -1).astype(np.float64)


NULLS: dict[str, tuple[Callable[[Rng, int], Array], int, int]] = {
    "normal, 1 dimension": (_column(lambda g, n: g.normal(size=n)), 200, 200),
    "normal, 16 dimensions": (_column(lambda g, n: g.normal(size=(n, 16))), 200, 200),
    "uniform": (_column(lambda g, n: g.random(n)), 100, 100),
    "exponential": (_column(lambda g, n: g.exponential(size=n)), 100, 1000),
    "lognormal(1)": (_column(lambda g, n: g.lognormal(0, 1, n)), 100, 1000),
    "lognormal(1.5), few in A": (_column(lambda g, n: g.lognormal(0, 1.5, n)), 50, 2000),
    "lognormal(1.5), few in B": (_column(lambda g, n: g.lognormal(0, 1.5, n)), 2000, 50),
    "lognormal(2)": (_column(lambda g, n: g.lognormal(0, 2, n)), 250, 250),
    "Pareto(1.5)": (_column(lambda g, n: g.pareto(1.5, n)), 250, 250),
    "Pareto(2.5)": (_column(lambda g, n: g.pareto(2.5, n)), 100, 1000),
    "Student t, 2 degrees": (_column(lambda g, n: g.standard_t(2, n)), 250, 250),
    "Cauchy": (_column(lambda g, n: g.standard_cauchy(n)), 250, 250),
    "10 Bernoulli(.1)": (_column(lambda g, n: 10 * (g.random(n) < 0.1)), 100, 1000),
    "100 Bernoulli(.01)": (_column(lambda g, n: 100 * (g.random(n) < 0.01)), 200, 5000),
    "Poisson(.2)": (_column(lambda g, n: g.poisson(0.2, n)), 100, 1000),
    "mixture, one in fifty far": (
        _column(lambda g, n: g.normal(size=n) + 30 * (g.random(n) < 0.02)),
        100,
        1000,
    ),
    "each row five times": (_column(lambda g, n: np.repeat(g.normal(size=n // 5), 5)), 250, 250),
}
"""Families of which A and B both are, so W1 is 0; with the sizes of A and B."""
SHIFTS: dict[str, tuple[Callable[[Rng, int], Array], int, int, float]] = {
    "normal, B half a deviation lower": (NULLS["normal, 1 dimension"][0], 500, 500, 0.5),
    "exponential, B 1 lower": (NULLS["exponential"][0], 200, 1000, 1.0),
    "lognormal(1), B 1 lower": (NULLS["lognormal(1)"][0], 500, 500, 1.0),
}
"""Families of which B is A shifted, and W1 is the shift."""


def measure(name: str, seed: int) -> dict[str, float]:
    """Estimate one pair of sets."""
    draw, first, second, shift = (*NULLS[name], 0.0) if name in NULLS else SHIFTS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    report, _ = estimate(
        draw(rng, first), draw(rng, second) - shift, seed=seed, steps=STEPS, batch_size=64
    )
    return {
        "w1": shift,
        "lower": report["lower"],
        "high": report["interval"][1],
        "p_value": report["p_value"],
    }


def share(found: list[bool]) -> str:
    """A share in percent and, in brackets, its 95% interval (Clopper and Pearson 1934)."""
    interval = binomtest(sum(found), len(found)).proportion_ci(method="exact")
    return f"{np.mean(found):.0%} ({interval.low:.0%} to {interval.high:.0%})"


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Write the results as a Markdown table."""
    lines = [
        "| family | W1 | `lower` above W1 | `interval` ends below W1 | `p_value` at most .05 |",
        "|---|---|---|---|---|",
    ]
    for name, each in rows.items():
        above = [r["lower"] > r["w1"] for r in each]
        missed = [r["high"] < r["w1"] for r in each]
        small = [r["p_value"] <= 0.05 for r in each]
        cells = [name, f"{each[0]['w1']:g}", share(above), share(missed), share(small)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in track([*NULLS, *SHIFTS], "families"):
        if len(rows.get(name, [])) < options.pairs:
            rows[name] = [measure(name, seed) for seed in range(options.pairs)]
            options.out.write_text(json.dumps(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
