"""Authenticity, and the search for nearest items that it rests on, against all pairs in numpy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from training.judging.copying import authentic
from training.judging.neighbours import Array, nearest, nearest_distances
from training.judging.tables.copies import authenticity


def authentic_by_definition(fake: Array, training: Array) -> Array:
    to_training, between = cdist(fake, training), cdist(training, training)
    np.fill_diagonal(between, np.inf)
    chosen = to_training.argmin(axis=1)
    return to_training.min(axis=1) > between.min(axis=1)[chosen]


@pytest.mark.parametrize("features", [1, 2, 20])
def test_authenticity_is_that_of_all_pairs(features: int) -> None:
    fake, training = (np.random.default_rng(i).normal(size=(150, features)) for i in (0, 1))
    found = authentic(fake, training)
    np.testing.assert_array_equal(found, authentic_by_definition(fake, training))
    assert 0.1 < found.mean() < 0.9
    share = authenticity(fake, training)
    assert share.value == found.mean()
    assert share.high - share.low == pytest.approx(2 * 1.96 * found.std() / np.sqrt(150))


def test_copies_have_0_even_of_items_that_are_there_twice() -> None:
    training = np.random.default_rng(0).normal(size=(80, 5))
    training[40:] = training[:40]
    assert not authentic(training, training).any()
    assert not authentic(training[:9] + 1e-9, training[:40]).any()
    assert authentic(training + 100, training).all()


def test_fresh_draws_have_the_share_of_heldout_items_and_copies_lower_it() -> None:
    rng = np.random.default_rng(3)
    training, heldout, fresh = rng.normal(size=(3, 3000, 8))
    shares = [authentic(x, training).mean() for x in (heldout, fresh)]
    # Both are means of 3,000 draws on the same training items.
    assert shares[0] == pytest.approx(shares[1], abs=4 * np.sqrt(2 * 0.25 / 3000))
    fresh[::2] = training[::2]
    assert authentic(fresh, training).mean() == pytest.approx(shares[1] / 2, abs=0.03)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_the_nearest_other_item_is_found_in_whatever_part_it_lies(chunk: int) -> None:
    points = np.random.default_rng(4).normal(size=(40, 3))
    parts = np.split(points, [5, 30])
    between = cdist(points, points)
    distances, numbers = nearest(points, iter(parts), chunk=chunk)
    np.testing.assert_allclose(distances, 0, atol=1e-12)
    np.testing.assert_array_equal(numbers, np.arange(40))
    np.fill_diagonal(between, np.inf)
    distances, numbers = nearest(points, iter(parts), np.arange(40), chunk)
    np.testing.assert_allclose(distances, between.min(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(numbers, between.argmin(axis=1))
    np.testing.assert_array_equal(nearest_distances(points, parts[1]), nearest(points, parts[1])[0])
