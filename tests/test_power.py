"""The reference tests beside the p-value of `wgan w1`, against all assignments of the rows."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, energy_distance
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.w1 import power

Array = np.ndarray


def squared_mmd(a: Array, b: Array) -> float:
    both = np.concatenate([a, b])
    distances = euclidean_distances(both)[np.triu_indices(len(both), 1)]
    inside, outside, between = (
        rbf_kernel(x, y, gamma=1 / (2 * np.median(distances) ** 2)).mean()
        for x, y in ((a, a), (b, b), (a, b))
    )
    return inside + outside - 2 * between


def energy_of_columns(a: Array, b: Array) -> float:
    return energy_distance(a[:, 0], b[:, 0])


@pytest.mark.parametrize(
    ("test", "statistic"), [(power.energy, energy_of_columns), (power.mmd, squared_mmd)]
)
@pytest.mark.parametrize("seed", range(4))
def test_a_permutation_test_agrees_with_all_assignments(
    test: power.Test, statistic: Callable[[Array, Array], float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(4, 1)), 0.7 + rng.normal(size=(6, 1))
    both = np.concatenate([a, b])
    found = [
        statistic(both[list(rows)], np.delete(both, rows, axis=0))
        for rows in itertools.combinations(range(10), 4)
    ]
    exact = np.mean(np.array(found) >= found[0] - 1e-12)
    # The observed assignment counts once more; the others are drawn.
    error = math.sqrt(exact * (1 - exact) / power.PERMUTATIONS)
    assert test(a, b, seed) == pytest.approx(exact, abs=3 * error + 1 / power.PERMUTATIONS)


def test_a_classifier_that_is_always_right_has_the_smallest_p_value() -> None:
    a, b = np.full((20, 1), 1.0), np.zeros((20, 1))
    p_value = power.c2st(KNeighborsClassifier(1), a, b, seed=0)
    # One order of the 20 labels judged on, of which some number k is A's, is that good.
    assert min(abs(p_value * math.comb(20, k) - 1) for k in range(5, 16)) < 1e-9


def test_a_classifier_finds_nothing_between_equals() -> None:
    rng = np.random.default_rng(0)
    found = [power.c2st_neighbours(*rng.normal(size=(2, 50, 1)), seed) for seed in range(400)]
    told = sum(p_value <= power.LEVEL for p_value in found)
    assert binomtest(told, len(found), power.LEVEL, alternative="greater").pvalue > 0.01
    assert told > 0


@pytest.mark.parametrize("name", ["digits", "digits, no 8", "digits, blurred"])
def test_no_digit_is_in_both_sets(name: str) -> None:
    a, b = power.FAMILIES[name](np.random.default_rng(0), 500)
    assert a.shape == b.shape == (500, 64)
    assert not {x.tobytes() for x in a} & {x.tobytes() for x in b}


def test_columns_of_the_heavy_tail_and_the_correlated_have_deviation_1() -> None:
    rng = np.random.default_rng(0)
    for rows in (power._student(rng, 100_000, 4), power._correlated(rng, 100_000, 0.15)):
        assert rows.std(axis=0).mean() == pytest.approx(1, rel=0.02)
    assert np.corrcoef(rows.T)[0, 1] == pytest.approx(0.15, abs=0.02)


def test_the_page_shows_the_power_measured() -> None:
    results = json.loads(power.RESULTS.read_text())
    assert set(results) == set(power.FAMILIES)
    page = Path(__file__).parent.parent / "docs/w1.md"
    assert power.tables(results) in page.read_text(), "print it: python -m benchmarks.w1.power"
    name, seed = "16 columns, one shifted by .25", 3
    assert power.measure(power.energy, name, seed)[0] == results[name]["energy"][seed][0]
    again, _ = power.measure(power.w1_short, name, seed)
    assert again == pytest.approx(results[name]["`wgan w1`"][seed][0], abs=0.02)
