"""The Vendi score, against closed forms and its authors' package."""

import numpy as np
import pytest

from training.judging.image_metrics import Array, vendi_score


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
