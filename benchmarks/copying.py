"""How often do the tests for copies refuse sound generators, and how often copiers?

    python -m benchmarks.copying --out benchmarks/results/copying.json

Training items, held-out items and samples are drawn again and again from one distribution, or from
one set of real images, which is cut anew each time. A sound generator draws fresh items. A narrow
one knows as little of the training items: of twice as many fresh items it keeps the half with the
nearest fifth neighbour among a thousand others. A copier repeats training items in a share of its
samples, or repeats them with noise of half the median distance between a held-out item and its
nearest training item. The gates are those of `training.retraining.gates`, with their defaults.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.markdown import table
from models.config import DataConfig, EvaluationConfig
from training.data.dataset import load_data
from training.judging.copying import COPYING, copying_statistic, membership
from training.judging.extractors import choose_extractor
from training.judging.neighbours import nearest_distances
from training.retraining.evidence import ATTACK_SAMPLES
from training.retraining.gates import GatesConfig, not_copied, not_told_apart

Array = np.ndarray
Draw = Callable[[int], Array]
RESULTS = Path(__file__).with_name("results") / "copying.json"
FORMER_NEAR = 0.25
SOUND = ("fresh", "narrow")
COPIERS = (*itertools.product((0.05, 0.1, 0.25, 0.5, 1.0), (0,)), (0.25, 1), (1.0, 1))
"""Shares of copies, and whether they are noisy."""


class Cell(NamedTuple):
    """One size of one kind of data."""

    kind: str
    training: int
    judged: int
    """Held-out items, and samples that are judged."""
    attack: int
    """Samples that the membership attack draws."""
    sound: int
    """Repeats of sound generators."""
    copiers: int


CELLS = (
    Cell("25gaussians", 1000, 100, 1000, 200, 50),
    Cell("25gaussians", 1000, 300, 1000, 200, 50),
    Cell("25gaussians", 5000, 1000, 5000, 20, 10),
    Cell("table", 1000, 100, 1000, 200, 50),
    Cell("table", 1000, 300, 1000, 200, 50),
    Cell("table", 5000, 1000, 5000, 20, 10),
    Cell("table", 100_000, 1000, ATTACK_SAMPLES, 4, 4),
    Cell("digits, pixels", 700, 200, 400, 150, 20),
    Cell("digits, features", 700, 200, 400, 150, 20),
    Cell("mnist5k, pixels", 1500, 500, 1500, 20, 5),
)


def sampler(kind: str, rng: np.random.Generator) -> Draw:
    """Make what draws n items ``(n, D)``; real ones at random and none twice."""
    if kind == "25gaussians":
        grid = np.array(list(itertools.product(range(-4, 5, 2), repeat=2))) / 2.828
        return lambda n: grid[rng.integers(25, size=n)] + rng.normal(0, 0.05 / 2.828, (n, 2))
    if kind == "table":  # 12 correlated normal columns and 4 lognormal ones
        mixing = np.random.default_rng(0).normal(0, 0.25, (16, 16))

        def rows(n: int) -> Array:
            values = rng.normal(size=(n, 16)) @ mixing
            return np.concatenate([values[:, :12], np.exp(values[:, 12:])], axis=1)

        return rows
    points = real_points(kind)
    left = rng.permutation(len(points))

    def cut(n: int) -> Array:
        nonlocal left
        taken, left = left[:n], left[n:]
        assert len(taken) == n, "the set is too small"
        return points[taken]

    return cut


_REAL: dict[str, Array] = {}


def real_points(kind: str) -> Array:
    """All images of a built-in set as points, read once."""
    if kind not in _REAL:
        source, what = kind.split(", ")
        data = load_data(DataConfig(source=source))
        if what == "features":
            _REAL[kind] = choose_extractor(EvaluationConfig(), data)(data.items).astype(float)
        else:
            _REAL[kind] = data.items.reshape(len(data.items), -1) / 127.5 - 1
    return _REAL[kind]


def narrow(draws: Array, n: int) -> Array:
    """The n of ``draws`` that lie where these are dense, in their order."""
    some = draws[-1000:]
    squares = (draws**2).sum(axis=1)[:, None] + (some**2).sum(axis=1) - 2 * draws @ some.T
    reach = np.partition(squares, 5, axis=1)[:, 5]
    return draws[np.sort(np.argsort(reach)[:n])]


def measure_once(cell: Cell, seed: int, copiers: bool) -> dict[str, tuple[float, ...]]:
    """Draw one set of items and ask the tests about every generator."""
    rng, limits = np.random.default_rng([seed, cell.training, cell.judged]), GatesConfig()
    draw = sampler(cell.kind, rng)
    training, heldout = draw(cell.training), draw(cell.judged)
    members = rng.permutation(training)[: cell.judged]
    items = np.concatenate([members, heldout])
    of_heldout = nearest_distances(heldout, training)
    noise = 0.5 * np.median(of_heldout) / np.sqrt(training.shape[1])
    draws = draw(2 * cell.attack)
    generators = {"fresh": draws[: cell.attack], "narrow": narrow(draws, cell.attack)}
    for share, noisy in COPIERS if copiers else ():
        copies = training[rng.integers(len(training), size=cell.attack)]
        is_copy = rng.permutation(cell.attack) < share * cell.attack
        copies = copies + noisy * noise * rng.normal(size=copies.shape)
        name = f"{share:.0%} {'noisy ' if noisy else ''}copies"
        generators[name] = np.where(is_copy[:, None], copies, draws[: cell.attack])
    found = dict[str, tuple[float, ...]]()
    for name, samples in generators.items():
        judged = samples[: cell.judged]
        near = not_copied(judged, heldout, training, limits.max_near_training)
        of_judged = nearest_distances(judged, training)
        statistic = copying_statistic(judged, heldout, of_judged, of_heldout)
        attack = membership(*np.split(-nearest_distances(items, samples), [len(members)]))
        told = not_told_apart(attack, limits.max_membership)
        assert near.challenger is not None
        assert near.interval is not None
        found[name] = (
            near.challenger,
            near.interval[0] > FORMER_NEAR,
            not near.passed,
            np.nan if statistic is None else statistic,
            attack.auroc,
            not told.passed,
            not (near.passed and told.passed),
        )
    return found


def measure_cell(cell: Cell) -> list[dict[str, Any]]:
    """Measure a cell; one row for each generator."""
    values: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(cell.sound):
        for name, found in measure_once(cell, seed, seed < cell.copiers).items():
            values.setdefault(name, []).append(found)
    rows = []
    for name, found in values.items():
        near, former, refused_near, statistic, auroc, refused_told, either = np.array(found).T
        low, middle, high = np.nanquantile(statistic, [0.01, 0.5, 0.99])
        rows.append(
            {
                "data": cell.kind,
                "training": cell.training,
                "judged": cell.judged,
                "attack": cell.attack,
                "generator": name,
                "repeats": len(found),
                "near": float(near.mean()),
                "auroc": float(auroc.mean()),
                "C_T": [float(low), float(middle), float(high)],
                "refused": {
                    "near_former": float(former.mean()),
                    "near": float(refused_near.mean()),
                    "C_T": float((statistic < COPYING).mean()),
                    "membership": float(refused_told.mean()),
                    "both": float(either.mean()),
                },
            }
        )
    return rows


def shown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/operations.md: each share refused, lowest to highest over the cells."""

    def span(values: list[float]) -> str:
        low, high = f"{100 * min(values):.0f}", f"{100 * max(values):.0f}"
        return f"{high}%" if low == high else f"{low} to {high}%"

    tests = ("near_former", "near", "membership", "both", "C_T")
    header = [
        "samples", "near training, limit 25%", "limit 15%", "membership, limit 0.55",
        "the last two together", "C_T below -3",
    ]  # fmt: skip
    lines = []
    for name in dict.fromkeys(row["generator"] for row in rows):
        of_name = [row["refused"] for row in rows if row["generator"] == name]
        lines.append([name, *(span([refused[test] for refused in of_name]) for test in tests)])
    return table(header, lines)


def main() -> None:
    """Measure all cells, write them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rows = [row for cell in CELLS for row in measure_cell(cell)]
    out.write_text(json.dumps(rows, indent=1) + "\n")
    print(shown(rows))


if __name__ == "__main__":
    main()
