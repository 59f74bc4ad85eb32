"""How often two-sample tests tell A from B: two of ours beside four reference tests.

    python -m benchmarks.w1.power

All tests see the same pairs of sets. It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.stats import hypergeom
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.markdown import table
from benchmarks.w1.coverage import share
from training.lab.two_samples import two_sample_test
from training.lab.w1 import estimate
from training.progress import track

Array = np.ndarray
Rng = np.random.Generator
Pair = tuple[Array, Array]
RESULTS = Path(__file__).parents[1] / "results" / "w1_power.json"
PAIRS = 50
"""Pairs of sets of each family."""
ROWS = 500
"""Rows of each set."""
FEW_STEPS, SMALL_BATCH = 300, 128
"""Of our fits here; the command's own are longer, and run on fewer pairs."""
LONG_PAIRS = 10
"""Of each of two families, for the command's own fits of 4,000 steps."""
LEVEL = 0.05
PERMUTATIONS = 499
BLUR = 0.37
"""Deviation of the Gaussian, in pixels."""
DIGITS = load_digits()


def _normal(rng: Rng, n: int, columns: int = 16) -> Array:
    return rng.normal(size=(n, columns))


def _correlated(rng: Rng, n: int, correlation: float) -> Array:
    """Standard normal columns, each two of one correlation."""
    common = rng.normal(size=(n, 1))
    return correlation**0.5 * common + (1 - correlation) ** 0.5 * _normal(rng, n, 8)


def _far(rng: Rng, n: int) -> Array:
    """Standard normal rows, of which 2% have moved far away along the first column."""
    x = _normal(rng, n)
    x[:, 0] += 15 * (rng.random(n) < 0.02)
    return x


def _gaussians(rng: Rng, n: int, modes: int) -> Array:
    """A grid of 5 x 5 narrow normals, the last of which are left out."""
    mode = rng.integers(modes, size=n)
    return np.column_stack([mode // 5, mode % 5]) - 2 + 0.05 * rng.normal(size=(n, 2))


def _student(rng: Rng, n: int, degrees: float) -> Array:
    return rng.standard_t(degrees, (n, 8)) * ((degrees - 2) / degrees) ** 0.5


def _digits(rng: Rng, n: int, left_out: int | None = None) -> Pair:
    """Two sets of digits, 64 pixels each, none in both; a class may be left out of the second."""
    order = rng.permutation(len(DIGITS.data))
    first, second = order[:n], order[n:]
    second = second[DIGITS.target[second] != left_out][:n]
    return DIGITS.data[first], DIGITS.data[second]


def _blurred(rng: Rng, n: int) -> Pair:
    a, b = _digits(rng, n)
    return a, gaussian_filter(b.reshape(-1, 8, 8), (0, BLUR, BLUR)).reshape(-1, 64)


def _same(draw: Callable[[Rng, int], Array]) -> Callable[[Rng, int], Pair]:
    return lambda rng, n: (draw(rng, n), draw(rng, n))


NULLS: dict[str, Callable[[Rng, int], Pair]] = {
    "normal, 1 column": _same(lambda g, n: _normal(g, n, 1)),
    "normal, 16 columns": _same(_normal),
    "lognormal(1), 4 columns": _same(lambda g, n: g.lognormal(0, 1, (n, 4))),
    "Poisson(.2), 4 columns": _same(lambda g, n: g.poisson(0.2, (n, 4)).astype(np.float64)),
    "digits": _digits,
}
"""Families of which A and B both are."""
ALTERNATIVES: dict[str, Callable[[Rng, int], Pair]] = {
    "16 columns, one shifted by .25": lambda g, n: (
        _normal(g, n) + 0.25 * np.eye(1, 16),
        _normal(g, n),
    ),
    "16 columns, deviation 1.1 for 1": lambda g, n: (1.1 * _normal(g, n), _normal(g, n)),
    "8 columns, correlation .15 for 0": lambda g, n: (
        _correlated(g, n, 0.15),
        _correlated(g, n, 0),
    ),
    "16 columns, 2% of the rows 15 away": lambda g, n: (_far(g, n), _normal(g, n)),
    "25 normals, two missing": lambda g, n: (_gaussians(g, n, 23), _gaussians(g, n, 25)),
    "8 columns, Student t(4) for normal": lambda g, n: (_student(g, n, 4), _normal(g, n, 8)),
    "digits, blurred": _blurred,
    "digits, no 8": lambda g, n: _digits(g, n, 8),
}
"""Families in which A and B differ; all deviations are 1 where nothing else is said."""
FAMILIES = NULLS | ALTERNATIVES


def permutation_p_value(similarity: Array, first: int, rng: Rng) -> float:
    """P-value of the mean similarity within A and within B less twice that between them.

    Args:
        similarity: of all rows to each other, ``(N, N)``; A's rows are first.
        first: number of A's rows.
        rng: draws the permutations.
    """
    shares = np.where(np.arange(len(similarity)) < first, 1 / first, -1 / (len(similarity) - first))
    every = np.stack([shares, *(rng.permutation(shares) for _ in range(PERMUTATIONS))])
    found = (every @ similarity * every).sum(axis=1)
    return float(np.mean(found >= found[0] - 1e-12 * np.abs(similarity).max()))


def mmd(a: Array, b: Array, seed: int) -> float:
    """Kernel two-sample test (Gretton et al. 2012): a Gaussian of the median distance."""
    both = np.concatenate([a, b])
    squares = cdist(both, both, "sqeuclidean")
    median = np.median(squares[np.triu_indices(len(both), 1)])
    similarity = np.exp(-squares / (2 * median))
    return permutation_p_value(similarity, len(a), np.random.default_rng(seed))


def energy(a: Array, b: Array, seed: int) -> float:
    """Energy test (Székely & Rizzo 2004)."""
    both = np.concatenate([a, b])
    return permutation_p_value(-cdist(both, both), len(a), np.random.default_rng(seed))


def c2st(classifier: ClassifierMixin, a: Array, b: Array, seed: int) -> float:
    """Classifier two-sample test (Lopez-Paz & Oquab 2017): fitted to one half, judged on the other.

    The p-value is exact: under the null hypothesis the labels of the other half are in any order,
    so the number of A's rows that are taken for A's is hypergeometric.
    """
    rows, labels = np.concatenate([a, b]), np.repeat([1, 0], [len(a), len(b)])
    order = np.random.default_rng(seed).permutation(len(rows))
    fitted, judged = np.array_split(order, 2)
    model = make_pipeline(StandardScaler(), classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the paper's number of epochs
        model.fit(rows[fitted], labels[fitted])
    said, truth = model.predict(rows[judged]), labels[judged]
    hits = (said & truth).sum()
    return float(hypergeom.sf(hits - 1, len(judged), truth.sum(), said.sum()))


def c2st_network(a: Array, b: Array, seed: int) -> float:
    """C2ST by a network of 20 hidden units, 100 epochs."""
    return c2st(MLPClassifier(20, batch_size=64, max_iter=100, random_state=seed), a, b, seed)


def c2st_neighbours(a: Array, b: Array, seed: int) -> float:
    """C2ST by as many neighbours as the root of the rows fitted to."""
    return c2st(KNeighborsClassifier(round(((len(a) + len(b)) / 2) ** 0.5)), a, b, seed)


def w1_short(a: Array, b: Array, seed: int) -> float:
    """Our test, after a short fit."""
    fitted = estimate(a, b, seed=seed, steps=FEW_STEPS, batch_size=SMALL_BATCH)
    return fitted.report["p_value"]


def w1_long(a: Array, b: Array, seed: int) -> float:
    """Our test, as the command runs by itself."""
    return estimate(a, b, seed=seed).report["p_value"]


def same(a: Array, b: Array, seed: int) -> float:
    """The test of `wgan.assert_same_distribution`."""
    return two_sample_test(a, b, seed).p_value


Test = Callable[[Array, Array, int], float]
TESTS: dict[str, Test] = {
    "`assert_same_distribution`": same,
    "`wgan w1`": w1_short,
    "MMD": mmd,
    "energy": energy,
    "C2ST, network": c2st_network,
    "C2ST, neighbours": c2st_neighbours,
}
LONG = "`wgan w1`, long"
LONG_FAMILIES = ("16 columns, one shifted by .25", "8 columns, Student t(4) for normal")
Results = dict[str, dict[str, list[tuple[float, float]]]]
"""P-value and CPU seconds of each pair, in order, by family and test."""


def measure(test: Test, family: str, seed: int) -> tuple[float, float]:
    """P-value of a test for one pair of a family, and its CPU seconds."""
    a, b = FAMILIES[family](np.random.default_rng([seed, *family.encode()]), ROWS)
    started = time.process_time()
    return round(test(a, b, seed), 4), round(time.process_time() - started, 3)


def tables(results: Results) -> str:
    """Write the results as two Markdown tables: all pairs, and those that have our long fits."""

    def told(pairs: list[tuple[float, float]]) -> str:
        return share([p <= LEVEL for p, _ in pairs])

    def seconds(pairs: list[tuple[float, float]]) -> str:
        return f"{np.median([cpu for _, cpu in pairs]):.2f}"

    lines = []
    for title, families in (("**A and B alike**", NULLS), ("**A and B differ**", ALTERNATIVES)):
        lines.append([title, *[""] * len(TESTS)])
        lines += [[name, *(told(results[name][test]) for test in TESTS)] for name in families]
    every = {test: [pair for name in FAMILIES for pair in results[name][test]] for test in TESTS}
    lines.append(["CPU seconds, median", *map(seconds, every.values())])
    same = []
    for name in LONG_FAMILIES:
        long = results[name][LONG]
        others = [results[name][test][: len(long)] for test in TESTS]
        same.append([name, str(len(long)), *map(told, [long, *others])])
    long_fits = [pair for name in LONG_FAMILIES for pair in results[name][LONG]]
    same.append(["CPU seconds, median", "", seconds(long_fits), *map(seconds, every.values())])
    header = ["", "pairs", LONG, *TESTS]
    return table(["", *TESTS], lines) + "\n" + table(header, same)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: Results = json.loads(options.out.read_text()) if options.out.exists() else {}
    jobs = [
        (seed, name, test) for seed in range(options.pairs) for name in FAMILIES for test in TESTS
    ]
    jobs += [(seed, name, LONG) for seed in range(LONG_PAIRS) for name in LONG_FAMILIES]
    every = TESTS | {LONG: w1_long}
    for seed, name, test in track(jobs, "tests"):
        done = results.setdefault(name, {}).setdefault(test, [])
        if len(done) > seed:
            continue
        done.append(measure(every[test], name, seed))
        new = options.out.with_suffix(".partial")
        new.write_text(json.dumps(results) + "\n")
        os.replace(new, options.out)
    print(tables(results))


if __name__ == "__main__":
    main()
