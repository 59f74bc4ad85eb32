"""The Vendi score and the limit of the Fréchet distance, against closed forms and other code."""

import numpy as np
import pytest

from training.judging.image_metrics import (
    Array,
    frechet_distance_infinity,
    line_sizes,
    measure_infinity,
    vendi_score,
)
from training.judging.intervals import half_sample_margins
from training.judging.metrics import frechet_distance

# Vendi score


def vendi_by_definition(points: Array) -> float:
    """Of all pairs, by the eigenvalues of their similarities."""
    lengths = np.linalg.norm(points, axis=1)
    similarities = (points @ points.T) / np.outer(lengths, lengths)
    shares = np.linalg.eigvalsh(similarities / len(points))
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize(("n", "features"), [(40, 7), (12, 30), (9, 9)])
def test_vendi_score_is_that_of_all_pairs(n: int, features: int) -> None:
    points = np.random.default_rng(0).normal(size=(n, features)) + 0.5
    assert vendi_score(points) == pytest.approx(vendi_by_definition(points), rel=1e-9)
    lengths = np.random.default_rng(1).uniform(0.1, 9, (n, 1))
    assert vendi_score(lengths * points) == pytest.approx(vendi_score(points), rel=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_groups_of_one_size_at_right_angles_count_as_many(groups: int) -> None:
    points = np.repeat(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8))).Q[:groups], 6, 0)
    assert vendi_score(points) == pytest.approx(groups)


def test_vendi_score_is_that_of_its_authors_package() -> None:
    """`score_X` of vendi-score 0.0.3, for these points."""
    few, wide = np.random.default_rng(7), np.random.default_rng(8)
    assert vendi_score(few.normal(size=(50, 12)) + 0.3) == pytest.approx(10.757176827740677)
    assert vendi_score(wide.normal(size=(20, 64))) == pytest.approx(17.269428036025943)


def test_groups_of_unlike_sizes_count_by_their_entropy() -> None:
    points = np.repeat(np.eye(3), [2, 3, 5], axis=0)
    shares = np.array([0.2, 0.3, 0.5])
    assert vendi_score(points) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_points_at_0_are_a_group_of_their_own() -> None:
    assert vendi_score(np.zeros((5, 3))) == pytest.approx(1)
    assert vendi_score(np.repeat([[0.0, 0.0], [3.0, 4.0]], 4, axis=0)) == pytest.approx(2)


def test_vendi_score_of_no_points_is_refused() -> None:
    for bad in (np.zeros((0, 3)), np.full((4, 2), np.nan), np.zeros(4)):
        with pytest.raises(ValueError, match=r"need|finite"):
            vendi_score(bad)


# Fréchet distance of endlessly many points

SPREADS = np.linspace(0.5, 2, 16), np.linspace(2, 0.8, 16)
SHIFT = 0.3
TRUTH = float(16 * SHIFT**2 + ((SPREADS[0] - SPREADS[1]) ** 2).sum())
"""Of two Gaussians with these standard deviations and means that differ by the shift."""


def gaussians(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    real, fake = rng.normal(size=(2, n, 16))
    return real * SPREADS[0], fake * SPREADS[1] + SHIFT


def test_the_line_is_numpys_through_the_distances() -> None:
    real, fake = gaussians(np.random.default_rng(0), 300)
    sizes, rng = np.array([60, 130, 300]), np.random.default_rng(5)
    drawn = [[x[rng.choice(300, n, replace=False)] for x in (real, fake)] for n in sizes]
    distances = [frechet_distance(*pair) for pair in drawn]
    expected = np.polyfit(1 / sizes, distances, 1)[1]
    found = frechet_distance_infinity(real, fake, sizes, seed=5)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found == pytest.approx(np.linalg.lstsq(
        np.stack([np.ones(3), 1 / sizes], axis=1), np.array(distances), rcond=None)[0][0]
    )  # fmt: skip
    assert frechet_distance_infinity(real, fake, sizes) != found, "the seed draws the sets"


@pytest.mark.parametrize("same", [False, True])
def test_the_limit_is_the_distance_of_the_distributions(same: bool) -> None:
    """The distance of 200 points is too large, and its limit by less than a tenth of that."""
    rng, plain, limits = np.random.default_rng(1), [], []
    for _ in range(100):
        real, fake = gaussians(rng, 200)
        if same:
            fake = gaussians(rng, 200)[0]
        sizes = line_sizes(200, 16)
        assert sizes is not None
        plain.append(frechet_distance(real, fake))
        limits.append(frechet_distance_infinity(real, fake, sizes))
    truth = 0 if same else TRUTH
    errors = [np.std(x, ddof=1) / np.sqrt(len(x)) for x in (plain, limits)]
    bias = np.mean(plain) - truth
    assert bias > 10 * errors[0]
    assert np.mean(limits) == pytest.approx(truth, abs=3 * errors[1] + 0.1 * bias)


def test_sizes_run_from_a_point_to_a_feature_or_a_tenth_of_the_points() -> None:
    assert line_sizes(2500, 1280) is None
    for n, features, least in ((2500, 64, 250), (2500, 320, 320), (360, 64, 64), (128, 64, 64)):
        sizes = line_sizes(n, features)
        assert sizes is not None
        assert (len(sizes), sizes[0], sizes[-1]) == (15, least, n)
    assert line_sizes(127, 64) is None


def test_the_figure_has_a_floor_and_an_interval_or_is_absent() -> None:
    rng, held = np.random.default_rng(2), []
    for _ in range(20):
        (heldout, fake), (training, _) = gaussians(rng, 200), gaussians(rng, 200)
        found = measure_infinity(heldout, fake, training)["frechet_distance_infinity"]
        held.append(found.low < TRUTH < found.high)
        assert found.floor < found.low
        assert found.n == 200
    sizes = line_sizes(200, 16)
    assert sizes is not None
    assert found.value == frechet_distance_infinity(heldout, fake, sizes)
    assert found.floor == frechet_distance_infinity(heldout, training, sizes)
    # The halves of half as many points each have sizes that are half as large.
    margin = half_sample_margins(
        lambda real, fake: {"": frechet_distance_infinity(real, fake, sizes // 2)},
        heldout, fake, repeats=10,
    )[""]  # fmt: skip
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin))
    assert np.mean(held) >= 0.9
    assert measure_infinity(heldout[:31], fake[:31], training[:31]) == {}
