from __future__ import annotations

import functools
import io
import itertools
import math
import multiprocessing
import sys

import numpy as np
import ot
import pytest
from scipy import linalg, optimize, stats

from training.judging import figures
from training.judging.intervals import (
    Estimate,
    half_sample_margins,
    kernel_distance_error,
    kernel_distance_margin,
    measure,
)
from training.judging.metrics import (
    Array,
    correlation_difference,
    frechet_distance,
    kernel_distance,
    marginal_wasserstein_1,
    mode_coverage,
    precision_recall_density_coverage,
    sliced_wasserstein_1,
    wasserstein_1,
)

NAMES = ("precision", "recall", "density", "coverage")


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def with_moments(seed: int, n: int, mean: Array, covariance: Array) -> Array:
    """Points whose mean and unbiased covariance are exactly these, up to rounding."""
    x = normal(seed, n, len(mean))
    x -= x.mean(axis=0)
    white = np.linalg.qr(x).Q * np.sqrt(n - 1)
    return white @ np.linalg.cholesky(covariance).T + mean


def random_covariance(seed: int, size: int) -> Array:
    root = normal(seed, size, size)
    return root @ root.T + 0.1 * np.eye(size)


def frechet_by_sqrtm(m1: Array, c1: Array, m2: Array, c2: Array) -> float:
    overlap = np.trace(linalg.sqrtm(c1 @ c2)).real
    return float(np.sum((m1 - m2) ** 2) + np.trace(c1) + np.trace(c2) - 2 * overlap)


# Wasserstein-1


def test_w1_on_a_line_pairs_the_sorted_points():
    real, fake = normal(0, 200, 1), 2 * normal(1, 200, 1) + 1
    expected = np.abs(np.sort(real, axis=0) - np.sort(fake, axis=0)).mean()
    assert wasserstein_1(real, fake) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("distance", [wasserstein_1, sliced_wasserstein_1])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 60), (37, 101), (1, 9)])
def test_sets_of_any_sizes_on_a_line(distance, n, m):
    real, fake = normal(2, n, 1), normal(3, m, 1) + 0.5
    expected = stats.wasserstein_distance(real[:, 0], fake[:, 0])
    assert distance(real, fake) == pytest.approx(expected, rel=1e-10)


def test_w1_in_space_is_the_best_assignment():
    real, fake = normal(4, 80, 3), normal(5, 80, 3) * [1.0, 2.0, 0.5]
    cost = np.array([[math.dist(x, y) for y in fake] for x in real])
    expected = cost[optimize.linear_sum_assignment(cost)].mean()
    assert wasserstein_1(real, fake) == pytest.approx(expected, rel=1e-10)


def test_w1_of_a_shifted_set_is_the_length_of_the_shift():
    real = normal(6, 100, 3)
    assert wasserstein_1(real, real + np.array([2.0, -3.0, 6.0])) == pytest.approx(7, rel=1e-10)


@pytest.mark.parametrize("exponent", [-320, -200, -20, -12, 20, 160, 300])
def test_w1_has_the_units_of_the_points(exponent):
    points, shift = np.random.default_rng(0).normal(size=(2, 200, 3))
    # Of subnormal numbers few digits are left.
    known, scale = wasserstein_1(points, shift), 10.0**exponent
    found = wasserstein_1(points * scale, shift * scale)
    assert found == pytest.approx(known * scale, rel=1e-12 if exponent > -300 else 1e-2, abs=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_w1_of_points_on_one_side_of_0_and_of_unlike_sizes(sign):
    """Squares of 1e200 would overflow, also where only one of the sets is so far away."""
    near, far = sign * np.random.default_rng(1).uniform(1, 2, size=(2, 20, 3))
    expected = np.linalg.norm(far, axis=1).mean() * 1e200
    assert wasserstein_1(near * 1e-200, far * 1e200) == pytest.approx(expected, rel=1e-12)
    assert wasserstein_1(far * 1e200, near * 1e-200) == pytest.approx(expected, rel=1e-12)


def test_a_point_of_twice_the_weight_is_there_twice():
    real, fake = normal(60, 3, 2), normal(61, 2, 2)
    weights = np.array([0.25, 0.5, 0.25]), np.array([0.2, 0.8])
    repeated = real[[0, 1, 1, 2]], fake[[0, 1, 1, 1, 1]]
    expected = wasserstein_1(*repeated)
    assert wasserstein_1(real, fake, *weights) == pytest.approx(expected, rel=1e-12)
    assert wasserstein_1(real, repeated[1], weights[0]) == pytest.approx(expected, rel=1e-12)


def test_w1_stopped_before_the_optimum_is_an_error(monkeypatch):
    solve = ot.emd2
    monkeypatch.setattr(ot, "emd2", lambda a, b, M, numItermax: solve(a, b, M, numItermax=3))
    with pytest.raises(RuntimeError, match="numItermax"):
        wasserstein_1(normal(0, 30, 2), normal(1, 30, 2))


# Sliced Wasserstein-1


def test_sliced_w1_is_the_mean_over_all_angles():
    real, fake = normal(7, 30, 2), normal(8, 45, 2) * [0.3, 2.0] + [1.0, 0.0]
    # The integrand has period pi and is smooth but for a few kinks: 500 angles are plenty.
    angles = np.arange(500) * math.pi / 500
    by_angle = [
        stats.wasserstein_distance(real @ line, fake @ line)
        for line in np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ]
    projections = 10_000
    tolerance = 4 * np.std(by_angle) / math.sqrt(projections)
    got = sliced_wasserstein_1(real, fake, projections)
    assert got == pytest.approx(np.mean(by_angle), abs=tolerance)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_sliced_w1_of_a_shifted_set(size):
    real, shift = normal(9, 20, size), np.linspace(1, 2, size)
    # E|u.t| for a uniform direction u; its second moment, |t|**2 / D, bounds the variance.
    ratio = math.gamma(size / 2) / (math.sqrt(math.pi) * math.gamma((size + 1) / 2))
    length, projections = float(np.linalg.norm(shift)), 10_000
    tolerance = 4 * length * math.sqrt((1 / size - ratio**2) / projections)
    got = sliced_wasserstein_1(real, real + shift, projections)
    assert got == pytest.approx(length * ratio, abs=tolerance)


def test_sliced_w1_depends_on_the_seed_alone_and_stays_below_w1():
    real, fake = normal(10, 50, 4), normal(11, 60, 4) + 1
    values = [sliced_wasserstein_1(real, fake, 16, seed) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert max(values) < wasserstein_1(real, fake)


# Mode coverage

SQUARE = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([[0, 0], [10, 0], [0, 10], [10, 10]], (4, 1.0)),
        ([[0, 0], [1, 0], [0, 1], [5, 5]], (1, 0.75)),
        ([[3, 0], [7, 0]], (2, 1.0)),  # exactly 3 sd away counts
        ([[3.001, 0], [5, 5]], (0, 0.0)),
        ([[2.5, 2.5]], (0, 0.0)),  # Euclidean: within 3 along each axis is not enough
    ],
)
def test_modes_covered_and_good_samples(samples, expected):
    assert mode_coverage(np.array(samples, dtype=float), SQUARE, sd=1.0) == expected


def test_a_sample_near_two_modes_covers_both_and_counts_once():
    assert mode_coverage(np.array([[1.0]]), np.array([[0.0], [2.0]]), sd=1.0) == (2, 1.0)


def test_of_a_perfect_sampler_989_in_1000_samples_are_good():
    n, expected = 20_000, 1 - math.exp(-4.5)
    rng = np.random.default_rng(0)
    samples = SQUARE[rng.integers(4, size=n)] + 0.5 * rng.standard_normal((n, 2))
    covered, share = mode_coverage(samples, SQUARE, sd=0.5)
    assert covered == 4
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


# Kernel distance


def test_kernel_distance_is_the_double_loop():
    real, fake = normal(12, 9, 4), normal(13, 14, 4) * 1.5 + 0.3

    def k(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 4 + 1) ** 3

    within = [
        np.mean([k(x, y) for x, y in itertools.permutations(points, 2)]) for points in (real, fake)
    ]
    between = np.mean([k(x, y) for x in real for y in fake])
    expected = within[0] + within[1] - 2 * between
    assert kernel_distance(real, fake) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.0), (1.0, 22.0)])
def test_kernel_distance_is_unbiased(shift, expected):
    # In one dimension it is sum_j binomial(3, j) * (E x**j - E y**j)**2; the moments of N(0, 1)
    # are 0, 1, 0 and those of N(1, 1) are 1, 2, 4, so that is 3 + 3 + 16. Few points on purpose:
    # the estimate that counts a point with itself is far off.
    rng = np.random.default_rng(14)
    draws = [
        kernel_distance(rng.standard_normal((6, 1)), rng.standard_normal((9, 1)) + shift)
        for _ in range(4000)
    ]
    error = np.std(draws, ddof=1) / math.sqrt(len(draws))
    assert np.mean(draws) == pytest.approx(expected, abs=4 * error)


# Fréchet distance


def test_frechet_distance_of_gaussians_with_parallel_axes():
    mean, variances = np.array([1.0, -2.0, 0.5]), (np.array([1.0, 4, 9]), np.array([4.0, 0.25, 9]))
    real = with_moments(15, 50, np.zeros(3), np.diag(variances[0]))
    fake = with_moments(16, 70, mean, np.diag(variances[1]))
    expected = np.sum(mean**2) + np.sum((np.sqrt(variances[0]) - np.sqrt(variances[1])) ** 2)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_gaussians_with_any_axes():
    size = 6
    moments = [(normal(i, size), random_covariance(i + 2, size)) for i in (17, 18)]
    real, fake = (with_moments(21 + i, 40 + i, *moments[i]) for i in (0, 1))
    expected = frechet_by_sqrtm(*moments[0], *moments[1])
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(fake, real) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_with_fewer_points_than_features():
    real = normal(23, 5, 30)
    doubled = 2 * (real - real.mean(axis=0)) + real.mean(axis=0)
    # Covariances C and 4 C of rank 4: tr(C + 4 C - 2 * 2 C) = tr C.
    expected = real.var(axis=0, ddof=1).sum()
    assert frechet_distance(real, doubled) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_a_set_from_itself_is_0_and_never_below():
    # Without a floor at 0, rounding takes a third of these below it.
    own = [frechet_distance(x, x) for x in normal(24, 20, 8, 30)]
    assert min(own) >= 0
    assert max(own) < 30 * 1e-12  # the trace of a covariance is 30


# Precision, recall, density, coverage


def prdc_by_loops(real: list, fake: list, k: int) -> tuple[float, ...]:
    """The definitions point by point, on whole numbers: squared distances are exact."""

    def squared(x, y):
        return sum((int(a) - int(b)) ** 2 for a, b in zip(x, y, strict=True))

    def radii(points):
        return [
            sorted(squared(x, y) for j, y in enumerate(points) if j != i)[k - 1]
            for i, x in enumerate(points)
        ]

    real_radii, fake_radii = radii(real), radii(fake)
    in_real = [[squared(x, y) < r for x, r in zip(real, real_radii, strict=True)] for y in fake]
    in_fake = [[squared(x, y) < r for y, r in zip(fake, fake_radii, strict=True)] for x in real]
    return (
        sum(any(row) for row in in_real) / len(fake),
        sum(any(row) for row in in_fake) / len(real),
        sum(sum(row) for row in in_real) / (k * len(fake)),
        sum(any(row[i] for row in in_real) for i in range(len(real))) / len(real),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("span", [8, 100])
def test_prdc_is_the_double_loop_with_and_without_ties(k, span):
    # On the narrow grid most distances occur many times, and points repeat.
    rng = np.random.default_rng(24)
    real, fake = rng.integers(span, size=(60, 2)), rng.integers(span, size=(45, 2)) + span // 4
    got = precision_recall_density_coverage(real, fake, k)
    assert tuple(got) == NAMES
    assert tuple(got.values()) == pytest.approx(prdc_by_loops(real, fake, k), rel=1e-12)


def test_prdc_of_a_set_with_itself_is_1():
    # Density too: each open ball holds its own centre and k - 1 neighbours.
    real = normal(25, 100, 3)
    got = precision_recall_density_coverage(real, real)
    assert got == pytest.approx(dict.fromkeys(NAMES, 1.0))


def test_prdc_of_sets_far_apart_is_0():
    real = normal(26, 50, 3)
    got = precision_recall_density_coverage(real, real + 100)
    assert got == dict.fromkeys(NAMES, 0.0)


def test_a_point_with_k_copies_has_an_empty_ball():
    same = np.zeros((6, 2))
    assert precision_recall_density_coverage(same, same, k=5) == dict.fromkeys(NAMES, 0.0)


def test_a_dropped_mode_lowers_recall_and_coverage_but_not_precision():
    real, both = (normal(seed, 400, 2) + np.repeat([[0], [50]], 200, axis=0) for seed in (27, 28))
    all_modes = precision_recall_density_coverage(real, both)
    one_mode = precision_recall_density_coverage(real, normal(29, 400, 2))
    for name in ("recall", "coverage"):
        assert all_modes[name] > 0.9
        assert one_mode[name] <= 0.5
    assert min(one_mode["precision"], all_modes["precision"]) > 0.95


def test_precision_is_the_share_of_good_points():
    real, fake = normal(30, 200, 2), normal(31, 200, 2)
    fake[:50] += 100
    got = precision_recall_density_coverage(real, fake)
    assert 0.7 < got["precision"] <= 0.75


# Intervals


def difference(real: Array, fake: Array) -> dict[str, float]:
    return {"difference": float(real.mean() - fake.mean())}


def half_sample_interval(metric, real, fake, **options):
    """Both ends of each interval, as `measure` and `compare` make them."""
    margins = half_sample_margins(metric, real, fake, **options)
    return {
        name: (value - margins[name], value + margins[name])
        for name, value in metric(real, fake).items()
    }


@pytest.mark.parametrize("repeats", [3, 20])
def test_half_sample_intervals_hold_the_truth_and_are_as_wide_as_theory_says(repeats):
    rng = np.random.default_rng(32)
    sets, n, m = 1000, 50, 80
    lows, highs = np.transpose(
        [
            half_sample_interval(
                difference, rng.normal(3, 1, n), rng.normal(1, 2, m), repeats=repeats, seed=seed
            )["difference"]
            for seed in range(sets)
        ]
    )
    # Binomial noise of the share has sd 0.007; quantiles of 20 halves would hold it in 0.88.
    held = np.mean((lows <= 2) & (highs >= 2))
    assert held == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / sets))
    # A variance from r halves has relative sd sqrt(2 / (r - 1)), and that of the points 0.13.
    variances = ((highs - lows) / 2 / stats.t.ppf(0.975, repeats - 1)) ** 2
    tolerance = 4 * math.sqrt((2 / (repeats - 1) + 0.13**2) / sets)
    assert variances.mean() == pytest.approx(1 / n + 4 / m, rel=tolerance)


def test_the_bias_of_half_as_many_points_does_not_move_the_interval():
    real, fake = normal(33, 40), normal(34, 60)

    def biased(real, fake):
        return {"difference": difference(real, fake)["difference"] + 100 / len(real)}

    plain = half_sample_interval(difference, real, fake)["difference"]
    moved = half_sample_interval(biased, real, fake)["difference"]
    assert np.subtract(moved, 100 / 40) == pytest.approx(plain)
    assert sum(plain) / 2 == pytest.approx(real.mean() - fake.mean())


def test_halves_are_drawn_anew_and_without_replacement():
    seen: list[tuple[Array, Array]] = []

    def spy(real, fake):
        seen.append((real, fake))
        return {"nothing": 0.0}

    real, fake = np.arange(11), np.arange(100, 130)
    assert half_sample_interval(spy, real, fake, repeats=4) == {"nothing": (0.0, 0.0)}
    halves = [pair for pair in seen if len(pair[0]) < 11]
    assert len(halves) == 4
    assert all(len(set(a)) == 5 and set(a) <= set(real) for a, _ in halves)
    assert all(len(set(b)) == 15 and set(b) <= set(fake) for _, b in halves)
    assert len({frozenset(b) for _, b in halves}) == 4


def test_level_and_seed_of_an_interval():
    real, fake = normal(35, 40), normal(36, 40)
    interval = functools.partial(half_sample_interval, difference, real, fake, repeats=10)
    wide, narrow = (np.ptp(interval(level=level)["difference"]) for level in (0.99, 0.5))
    assert wide / narrow == pytest.approx(stats.t.ppf(0.995, 9) / stats.t.ppf(0.75, 9))
    assert interval(seed=1) == interval(seed=1) != interval(seed=2)


@pytest.mark.parametrize("changes", [{"repeats": 1}, {"level": 0.0}, {"level": 1.0}])
def test_an_interval_of_nothing_is_refused(changes):
    with pytest.raises(ValueError, match="at least 2 repeats"):
        half_sample_interval(difference, normal(0, 10), normal(1, 10), **changes)


def test_the_least_that_an_interval_is_made_of_are_two_halves():
    """A figure that only one of them has gets no margin, where one would not be a number."""
    seen: list[Array] = []

    def metric(real, fake):
        seen.append(real)
        return difference(real, fake) | ({"once": 1.0} if len(seen) == 1 else {})

    margins = half_sample_margins(metric, normal(0, 10), normal(1, 10), repeats=2)
    assert set(margins) == {"difference"}
    assert len(seen) == 2
    assert 0 < margins["difference"] < math.inf


def test_the_interval_of_a_kernel_distance_is_the_jackknifes():
    """Every point left out in turn, and the distance computed anew."""
    real, fake = normal(41, 30, 5), normal(42, 40, 5) + 0.2
    without_real = [kernel_distance(np.delete(real, i, axis=0), fake) for i in range(30)]
    without_fake = [kernel_distance(real, np.delete(fake, i, axis=0)) for i in range(40)]
    variance = 29 * np.var(without_real) + 39 * np.var(without_fake)
    expected = stats.t.ppf(0.95, 19) * np.sqrt(variance)
    assert kernel_distance_error(real, fake) == pytest.approx(np.sqrt(variance), rel=1e-9)
    assert kernel_distance_margin(real, fake, level=0.9) == pytest.approx(expected, rel=1e-9)
    found = measure(figures.distances("kernel_distance"), real, fake, real)["kernel_distance"]
    margin = kernel_distance_margin(np.random.default_rng(0).permutation(real), fake[:30])
    assert found.high - found.value == pytest.approx(margin)
    for bad in (real[:2], fake[:2]):
        with pytest.raises(ValueError, match="at least 3 points"):
            kernel_distance_margin(bad, fake)
    assert kernel_distance_margin(real[:3], fake[:3]) > 0
    for level in (0, 1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            kernel_distance_margin(real, fake, level=level)


@pytest.mark.parametrize(("shift", "narrower"), [(0.0, 0.9), (0.3, 1.1)])
def test_the_interval_of_a_kernel_distance_holds_the_truth_and_is_narrower(shift, narrower):
    """In 95% of cases or more; of equal distributions it is a fifth narrower than by halves."""
    rng, held = np.random.default_rng(43), []
    truth = kernel_distance(rng.normal(size=(4000, 16)), rng.normal(size=(4000, 16)) + shift)
    truth = truth if shift else 0.0
    for i in range(600):
        real, fake = rng.normal(size=(2, 100, 16))
        fake += shift
        margin = kernel_distance_margin(real, fake)
        held.append(abs(kernel_distance(real, fake) - truth) <= margin)
        if i == 0:
            halves = (
                half_sample_margins(figures.distances("kernel_distance"), real, fake, repeats=200)[
                    "kernel_distance"
                ]
                * stats.t.ppf(0.975, 19)
                / stats.t.ppf(0.975, 199)
            )
            assert margin < narrower * halves
    assert np.mean(held) > 0.93


# Measuring


def test_all_sets_are_cut_to_the_smallest():
    def sizes(real, fake):
        return {"real": float(len(real)), "fake": float(len(fake))}

    for lengths in itertools.permutations([20, 30, 40]):
        got = measure(sizes, *(normal(i, length, 2) for i, length in enumerate(lengths)))
        assert got == dict.fromkeys(["real", "fake"], Estimate(20, 20, 20, 20, 20))


def test_real_sets_are_shuffled_before_they_are_cut():
    def means(real, fake):
        return {"real": float(real.mean()), "fake": float(fake.mean())}

    got = measure(means, np.arange(10_000), np.arange(100), np.arange(10_000) + 50_000)
    error = 10_000 / math.sqrt(12 * 100)
    assert got["real"].value == got["real"].floor == pytest.approx(5000, abs=4 * error)
    assert got["fake"].value == 49.5
    assert got["fake"].floor == pytest.approx(55_000, abs=4 * error)


def test_a_figure_has_its_interval_and_the_floor_tells_good_from_bad():
    heldout, train, good, bad = (normal(seed, 200, 2) for seed in (37, 38, 39, 40))

    def distances(real, fake):
        return {"w1": wasserstein_1(real, fake), "sliced": sliced_wasserstein_1(real, fake, 32)}

    for figure in measure(distances, heldout, bad + 1, train).values():
        assert figure.floor < figure.low < figure.value < figure.high
        assert figure.n == 200
    for figure in measure(distances, heldout, good, train).values():
        assert figure.low < figure.floor < figure.high
    assert measure(distances, heldout, bad, train) == measure(distances, heldout, bad, train)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "parent", "shown"),
    [(Terminal, None, True), (Terminal, "the main process", False), (io.StringIO, None, False)],
)
def test_judging_shows_its_progress_on_the_terminal_of_the_main_process(
    monkeypatch, stream, parent, shown
):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    measure(difference, normal(47, 20), normal(48, 20), normal(49, 20))
    assert ("measuring intervals" in sys.stderr.getvalue()) is shown


# Inputs

DISTANCES = [
    (wasserstein_1, 1),
    (sliced_wasserstein_1, 1),
    (kernel_distance, 2),
    (frechet_distance, 2),
    (marginal_wasserstein_1, 1),
    (correlation_difference, 2),
    (precision_recall_density_coverage, 6),
    (functools.partial(mode_coverage, sd=1.0), 1),
]


@pytest.mark.parametrize(("metric", "fewest"), DISTANCES)
def test_arrays_that_do_not_fit_are_refused(metric, fewest):
    good = normal(41, 20, 3)
    for bad in (normal(42, 20, 2), normal(42, 20), normal(42, 20, 3, 1)):
        with pytest.raises(ValueError, match="need shapes"):
            metric(good, bad)
    for value in (math.nan, math.inf):
        bad = good.copy()
        bad[7, 1] = value
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(ValueError, match="finite"):
                metric(*pair)
    for pair in ((good, good[: fewest - 1]), (good[: fewest - 1], good)):
        with pytest.raises(ValueError, match=f"at least {fewest} points"):
            metric(*pair)
    metric(good[:fewest], good[:fewest])


@pytest.mark.parametrize(("metric", "fewest"), DISTANCES)
def test_float32_is_computed_in_float64(metric, fewest):
    real, fake = (normal(seed, 40, 3).astype(np.float32) for seed in (43, 44))
    assert metric(real, fake) == metric(real.astype(np.float64), fake.astype(np.float64))


def test_counts_below_1_are_refused():
    points = normal(45, 10, 2)
    with pytest.raises(ValueError, match="projections"):
        sliced_wasserstein_1(points, points, projections=0)
    assert sliced_wasserstein_1(points, points + 1, projections=1) > 0
    with pytest.raises(ValueError, match="k must"):
        precision_recall_density_coverage(points, points, k=0)


def test_a_half_too_small_for_the_metric_is_refused():
    with pytest.raises(ValueError, match="at least 6 points"):
        measure(precision_recall_density_coverage, *[normal(46, 10, 2)] * 3)


# Tables


@pytest.mark.parametrize(("n", "m"), [(50, 50), (40, 90)])
def test_marginal_w1_is_the_mean_over_columns(n, m):
    real, fake = normal(0, n, 4), normal(1, m, 4) * [1, 2, 3, 0] + [0, 1, 0, 5]
    expected = np.mean([stats.wasserstein_distance(real[:, i], fake[:, i]) for i in range(4)])
    assert marginal_wasserstein_1(real, fake) == pytest.approx(expected, rel=1e-10)
    assert marginal_wasserstein_1(real, real) == 0


def test_correlation_difference_is_the_largest():
    real, fake = normal(0, 80, 3) @ normal(1, 3, 3), normal(2, 60, 3) @ normal(3, 3, 3)
    expected = np.abs(np.corrcoef(real.T) - np.corrcoef(fake.T)).max()
    assert correlation_difference(real, fake) == pytest.approx(expected, rel=1e-10)
    x = normal(4, 50, 1)
    twice, mirrored = np.hstack([x, x]), np.hstack([x, -x])
    assert correlation_difference(twice, mirrored) == pytest.approx(2)
    assert correlation_difference(twice, np.hstack([x, 0 * x])) == pytest.approx(1)
    assert correlation_difference(x, x) == 0
    assert correlation_difference(x, 0 * x) == 0, "of one column there is no pair"


# Kinds of figures


def test_every_metric_has_a_kind_and_shares_stay_in_their_range():
    names = {
        *precision_recall_density_coverage(*[normal(0, 9, 2)] * 2),
        *itertools.chain(*figures.HEADLINES.values()),
    }
    assert names <= set(figures.FIGURES)
    wide = Estimate(value=0.9, floor=1.0, low=-0.2, high=1.3, n=50)
    assert figures.figure("recall", wide).interval == (0, 1)
    assert figures.figure("density", wide).interval == (-0.2, 1.3)
    assert figures.figure("wasserstein_1", wide).better == "lower"
    assert figures.figure("recall", wide).better == "higher"


def test_distances_are_found_by_name():
    real, fake = normal(1, 30, 2), normal(2, 30, 2)
    found = figures.distances("wasserstein_1", "kernel_distance")(real, fake)
    assert found == {
        "wasserstein_1": wasserstein_1(real, fake),
        "kernel_distance": kernel_distance(real, fake),
    }
    with pytest.raises(ValueError, match="recall is no distance"):
        figures.distance("recall", real, fake)


def test_figures_that_lie_between_0_and_1_are_shares():
    """Their intervals are cut there; those of distances, counts, R2 and ratios may go beyond."""
    unbounded = {
        "autocovariance_error",
        "class_kernel_distance",
        "correlation_difference",
        "density",
        "distance_ratio",
        "frechet_distance",
        "frechet_distance_infinity",
        "highest_class_kernel_distance",
        "kernel_distance",
        "marginal_wasserstein_1",
        "modes_covered",
        "sliced_wasserstein_1",
        "tstr",
        "vendi_score",
        "wasserstein_1",
    }
    assert {name for name, kind in figures.FIGURES.items() if not kind.is_share} == unbounded
    estimate = Estimate(value=0.9, floor=1.0, low=-0.2, high=1.3, n=50)
    inner = estimate._replace(low=0.1, high=0.8)
    for name in figures.FIGURES:
        expected = (-0.2, 1.3) if name in unbounded else (0, 1)
        assert figures.figure(name, estimate).interval == expected, name
        assert figures.figure(name, inner).interval == (0.1, 0.8), name
