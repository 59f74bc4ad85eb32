"""Bounds on means and the permutation test hold for skewed samples, where normal ones fail."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import binom, hypergeom, kstest, norm

from training.lab import bounds
from training.lab.bounds import (
    Clip,
    _level_edges,
    choose_clip,
    gap_lower_bound,
    mean_lower_bound,
    permutation_p_value,
)
from training.lab.samples import repeats, rows_to_keep

Array = np.ndarray
TRIALS = 400
MOST = binom.ppf(0.999, TRIALS, 0.05)
"""Errors of a bound that holds with 95%, in all but one of a thousand tests."""
FAMILIES: dict[str, tuple[Callable[[np.random.Generator, int], Array], int, int]] = {
    "lognormal": (lambda g, n: g.lognormal(0, 1.5, n), 50, 2000),
    "lognormal, other way": (lambda g, n: g.lognormal(0, 1.5, n), 2000, 50),
    "one in ten": (lambda g, n: 10.0 * (g.random(n) < 0.1), 40, 400),
    "one in a hundred": (lambda g, n: 100.0 * (g.random(n) < 0.01), 40, 1000),
    "Cauchy": (lambda g, n: g.standard_cauchy(n), 60, 60),
}


def normal_bound(a: Array, b: Array) -> float:
    error = (a.var() / len(a) + b.var() / len(b)) ** 0.5
    return float(a.mean() - b.mean() - norm.ppf(0.95) * error)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gap_between_equal_distributions_is_hardly_ever_bounded_above_zero(
    family: str,
) -> None:
    draw, first, second = FAMILIES[family]
    errors = 0
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        sign = 1 if seed % 2 else -1  # a critic that rises, and one that falls
        clip = choose_clip(sign * draw(rng, 4 * first), sign * draw(rng, 4 * second), first, 0.95)
        a, b = sign * draw(rng, first), sign * draw(rng, second)
        errors += gap_lower_bound(a, b, clip, 0.95, rng) > 0
    assert errors <= MOST


def test_the_normal_bound_fails_on_the_same_samples() -> None:
    """So the families above are a test."""
    draw, first, second = FAMILIES["one in a hundred"]
    errors = 0
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        errors += normal_bound(-draw(rng, first), -draw(rng, second)) > 0
    assert errors > 3 * MOST


def test_the_bound_of_a_mean_is_nearly_as_tight_as_the_normal_one() -> None:
    margins = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = rng.beta(5, 5, 1000)
        margins.append(values.mean() - mean_lower_bound(values, 0.95, rng))
    normal = norm.ppf(0.95) * np.sqrt(1 / 44 / 1000)
    assert normal < np.mean(margins) < 2 * normal


def log_wealth(values: Array, mean: float, level: float) -> float:
    """Of a gambler who bets against a mean, by Waudby-Smith & Ramdas 2024, equation 26."""
    total, squares, variance, wealth = 0.5, 0.25, 0.25, 0.0
    for t, value in enumerate(values.tolist(), 1):
        bet = min(math.sqrt(2 * math.log(1 / level) / (len(values) * variance)), 0.75 / mean)
        wealth += math.log(1 + bet * (value - mean))
        total += value
        squares += (value - total / (t + 1)) ** 2
        variance = squares / (t + 1)
    return wealth


@pytest.mark.parametrize("most_bets", [2_000_000, 100, 10])
@pytest.mark.parametrize("count", [3, 4, 5, 6, 8, 12, 40])
def test_the_bound_is_where_the_wealth_reaches_what_is_needed(
    count: int, most_bets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_BETS", most_bets)
    orders = max(1, min(20, most_bets // count))
    for shape in (1.0, 3.0, 9.0):
        values = np.random.default_rng(count).beta(shape, 2, count)
        bound = mean_lower_bound(values, 0.95, np.random.default_rng(1))
        rng = np.random.default_rng(1)
        rows = [rng.permutation(values) for _ in range(orders)]
        found = logsumexp([log_wealth(x, bound or 1e-12, 0.05) for x in rows]) - math.log(orders)
        if bound:
            assert found == pytest.approx(math.log(20), abs=1e-6)
        else:
            assert found <= math.log(20)


@pytest.mark.parametrize("scale", [1.0, 0.01, 100.0])
@pytest.mark.parametrize("sizes", [(30, 30), (30, 100), (95, 30)])
def test_the_bound_of_a_gap_is_that_of_paired_means(scale: float, sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.5, 1, sizes[0]) * scale, rng.normal(size=sizes[1]) * scale
    clip = Clip(-1 * scale, 2.5 * scale)
    found = gap_lower_bound(a, b, clip, 0.95, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    a, b = (rng.permutation(x.clip(*clip)) for x in (a, b))
    each = (sizes[0] // 30, sizes[1] // 30)
    pairs = [
        a[i * each[0] : (i + 1) * each[0]].mean() - b[i * each[1] : (i + 1) * each[1]].mean()
        for i in range(30)
    ]
    width = 3.5 * scale
    share = mean_lower_bound((np.array(pairs) + width) / (2 * width), 0.95, rng)
    assert found == pytest.approx(2 * width * share - width)
    assert found > 0.2 * scale


class Counting:
    """Random numbers that tell what was drawn."""

    def __init__(self) -> None:
        self.rng, self.drawn = np.random.default_rng(0), list[str]()

    def permutation(self, values: Array) -> Array:
        self.drawn.append("permutation")
        return self.rng.permutation(values)

    def multivariate_hypergeometric(self, counts: Array, of_a: int, draws: int) -> Array:
        self.drawn.append("levels")
        return self.rng.multivariate_hypergeometric(counts, of_a, draws)


@pytest.mark.parametrize(("count", "orders"), [(666_666, 3), (666_667, 2), (2_000_001, 1)])
def test_a_trial_of_a_mean_makes_two_million_bets_at_most(count: int, orders: int) -> None:
    """Unless one order alone has more."""
    rng: Any = Counting()
    assert mean_lower_bound(np.zeros(count), 0.95, rng) == 0
    assert len(rng.drawn) == orders


def test_scores_beyond_20_000_are_rounded() -> None:
    for count, drawn in ((10_000, ["permutation"] * 2), (10_001, ["levels"])):
        rng: Any = Counting()
        permutation_p_value(np.arange(count), np.arange(10_000) / 3, rng, 2)
        assert rng.drawn == drawn


def test_at_most_512_levels_are_told_apart() -> None:
    scores = np.random.default_rng(0).normal(size=30_000)
    assert 500 < len(_level_edges(scores)) + 1 <= 512


def test_the_least_p_value_is_one_of_ten_thousand() -> None:
    """Of 9,999 assignments and the one that was seen; another such has a chance of 1e-35."""
    rng = np.random.default_rng(0)
    assert permutation_p_value(np.ones(60), np.zeros(60), rng) == 1 / 10_000


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [10, 30, 60, 200, 500, 10**9])
def test_the_clip_is_the_one_with_the_largest_forecast(family: str, count: int) -> None:
    """By the empirical Bernstein bound, whose variance of a difference is the sum of two."""
    rng = np.random.default_rng(0)
    a, b = FAMILIES[family][0](rng, 300) + 1, FAMILIES[family][0](rng, 100)
    both, needed, best = np.concatenate([a, b]), math.log(20), {}
    for low in np.quantile(both, bounds.CLIP_LEVELS):
        for high in np.quantile(both, 1 - np.array(bounds.CLIP_LEVELS)):
            x, y = a.clip(low, high), b.clip(low, high)
            error = math.sqrt(2 * (np.var(x) + np.var(y)) * needed / count)
            forecast = x.mean() - y.mean() - error - (high - low) * needed / count
            best.setdefault(forecast, Clip(low, high))
    found = choose_clip(a, b, count, 0.95)
    assert found == pytest.approx(best[max(best)])


def test_of_very_many_scores_none_is_clipped() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 1000)) + np.array([[1], [0]])
    assert choose_clip(a, b, 10**12, 0.95) == (min(a.min(), b.min()), max(a.max(), b.max()))


@pytest.mark.parametrize("level", [0.001, 0.005, 0.02, 0.05, 0.1])
def test_outliers_are_clipped_at_the_next_level(level: float) -> None:
    """They are alike on both sides, so the narrowest interval with all others is best."""
    body, few = np.linspace(0, 1, 20_000), round(0.9 * level * 20_000)
    body[:few], body[-few:] = -1000, 1000
    a, b = np.where(np.abs(body) < 1, body + 1, body), body
    both = np.concatenate([a, b])
    expected = np.quantile(both, [level, 1 - level])
    assert -1 < expected[0] < expected[1] < 3
    assert choose_clip(a, b, 10**6, 0.95) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_the_bound_of_equal_values_is_below_them(value: float) -> None:
    bound = mean_lower_bound(np.full(50, value), 0.95, np.random.default_rng(0))
    assert 0 <= bound <= value


def test_clipping_bounds_what_one_sample_can_do() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 1000), rng.normal(size=1000)
    clip = choose_clip(a, b, 300, 0.95)
    bound = gap_lower_bound(a[:300], b[:300], clip, 0.95, rng)
    assert 0.6 < bound < 1
    a[0] = 1e9
    assert gap_lower_bound(a[:300], b[:300], clip, 0.95, rng) == pytest.approx(bound, abs=0.05)
    assert gap_lower_bound(a, b, Clip(2.0, 2.0), 0.95, rng) == 0


def test_p_values_of_equal_distributions_are_uniform() -> None:
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found.append(permutation_p_value(rng.lognormal(size=15), rng.lognormal(size=40), rng, 199))
    assert kstest(found, "uniform").pvalue > 0.001
    assert min(found) >= 1 / 200


def test_a_p_value_counts_permutations_that_differ_as_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ties too, whatever the units and wherever the origin is."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30), rng.integers(0, 5, 20)
    both = np.concatenate([a, b])
    rng = np.random.default_rng(1)
    as_much = sum(rng.permutation(both)[:30].sum() >= a.sum() for _ in range(199))
    assert 5 < as_much < 195
    for x, y, most in (
        (a, b, 50),
        (a, b, 51),
        (a * 0.1, b * 0.1, 50),
        (a / 3, b / 3, 50),
        (a * 0.7, b * 0.7, 50),
        (a + 1e12, b + 1e12, 50),
    ):
        monkeypatch.setattr(bounds, "MAX_PERMUTED", most)
        assert permutation_p_value(x, y, np.random.default_rng(1), 199) == (1 + as_much) / 200


def test_the_p_value_of_levels_is_that_of_the_hypergeometric_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three values: each has a level of its own, so rounding changes none of them."""
    monkeypatch.setattr(bounds, "MAX_PERMUTED", 99)
    a, b = np.repeat([0.0, 1.0, 3.0], [19, 10, 1]), np.repeat([0.0, 1.0], [41, 29])
    # The 3 is in A with 30 chances of 100; then 10 ones are as much, and without it 13.
    right = 0.3 * hypergeom.sf(9, 99, 39, 29) + 0.7 * hypergeom.sf(12, 99, 39, 30)
    for shift in (0.0, 1e6):
        found = permutation_p_value(a + shift, b + shift, np.random.default_rng(0), 9_999)
        assert found == pytest.approx(right, abs=0.015)


def test_half_of_the_levels_hold_equally_many_scores_and_half_are_equally_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "LEVELS", 8)
    scores = 5 + np.append(np.arange(100), 10_000.0)
    edges = _level_edges(scores)
    np.testing.assert_allclose(edges, [30, 55, 80, 2505, 5005, 7505])


@pytest.mark.parametrize("heavy", [False, True])
def test_p_values_of_many_equal_scores_are_uniform(
    heavy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rounded scores too, and however coarse the levels are."""
    monkeypatch.setattr(bounds, "MAX_PERMUTED", 500)
    monkeypatch.setattr(bounds, "LEVELS", 16)
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        a, b = (rng.standard_cauchy(n) if heavy else rng.normal(size=n) for n in (300, 900))
        found.append(permutation_p_value(a, b, rng, 199))
    assert kstest(found, "uniform").pvalue > 0.001


def test_levels_lose_hardly_anything_of_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded scores and the scores themselves have one p-value, up to the draws' own chance."""
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.015, 0.03):
        a, b = rng.standard_t(3, (2, 12_000)) + np.array([[shift], [0]])
        rounded = permutation_p_value(a, b, np.random.default_rng(1), 999)
        with monkeypatch.context() as patch:
            patch.setattr(bounds, "MAX_PERMUTED", 30_000)
            permuted = permutation_p_value(a, b, np.random.default_rng(2), 999)
        error = (permuted * (1 - permuted) / 999) ** 0.5
        assert rounded == pytest.approx(permuted, abs=5 * error + 0.002)


def test_a_million_scores_a_side_take_seconds() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1_000_000))
    started = time.process_time()
    assert permutation_p_value(a + 0.01, b, rng) == 1e-4
    assert time.process_time() - started < 20  # permuted one by one: minutes


def test_equal_scores_are_no_difference() -> None:
    rng = np.random.default_rng(0)
    assert permutation_p_value(np.full(9, 0.1), np.full(5, 0.1), rng, 99) == 1
    assert permutation_p_value(np.full(20_000, 0.1), np.full(5000, 0.1), rng, 99) == 1


def test_copies_of_a_whole_set_are_seen_and_left_out() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 2))
    copied = rng.permutation(np.concatenate([rows, rows, rows]))
    assert repeats(rows) == 1
    assert repeats(copied) == 3
    kept = copied[rows_to_keep(copied, 3)]
    assert kept.shape == rows.shape
    np.testing.assert_array_equal(np.unique(kept, axis=0), np.unique(rows, axis=0))
    assert repeats(rng.integers(0, 30, (4000, 1))) == 1
    assert repeats(np.repeat([[0.0], [1.0]], 60, axis=0)) == 1
    of_few = rng.integers(0, 8, (400, 2))  # combinations, unequally often
    assert repeats(np.concatenate([of_few, of_few])) == 2


def test_a_design_is_no_set_of_copies() -> None:
    """Every combination equally often, as numbers and as `coded` encodes categories."""
    for sizes in ((3, 4), (60, 2), (5, 4, 3)):
        cells = np.stack(np.meshgrid(*map(np.arange, sizes)), axis=-1).reshape(-1, len(sizes))
        codes = np.hstack([np.eye(n)[cells[:, i]] for i, n in enumerate(sizes)])
        for rows in (cells, codes):
            assert repeats(np.repeat(rows, 20, axis=0)) == 1
    assert repeats(np.repeat(np.eye(60), 100, axis=0)) == 1  # one column of 60 categories
