"""The benchmark of stacked digits counts modes and measures how unevenly samples fill them."""

import numpy as np
import pytest
from scipy.stats import entropy

from benchmarks.stacked_digits import figures, stacks

ALL = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


def test_even_samples_of_all_kinds_have_no_divergence() -> None:
    found = figures(np.repeat(ALL, 26, axis=0))
    assert found["modes"] == 1000
    assert found["kl"] == pytest.approx(0, abs=1e-12)


def test_a_single_kind_is_a_logarithm_away() -> None:
    assert figures(np.full((7, 3), 4)) == {"modes": 1, "kl": pytest.approx(np.log(1000))}


def test_the_divergence_is_scipys() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(1000))
    kinds = ALL[rng.choice(1000, 5000, p=shares)]
    counts = np.unique(kinds @ [100, 10, 1], return_counts=True)[1]
    assert figures(kinds)["modes"] == len(counts)
    of_zeros = np.concatenate([counts, np.zeros(1000 - len(counts))])
    assert figures(kinds)["kl"] == pytest.approx(entropy(of_zeros, np.full(1000, 1e-3)))


def test_each_colour_is_a_digit_drawn_for_itself() -> None:
    digits = np.arange(10, dtype=np.uint8).repeat(28 * 28).reshape(10, 28, 28, 1)
    images = stacks(digits, 5000, seed=0)
    assert images.shape == (5000, 28, 28, 3)
    kinds = images[:, 0, 0].astype(int)
    assert (images == images[:, :1, :1]).all()
    assert figures(kinds)["modes"] > 990, "of 5,000 draws 993 of 1,000 are expected"
    assert abs(np.corrcoef(kinds.T)[np.triu_indices(3, 1)]).max() < 0.06, "four deviations"
