"""The ranking of constraints in docs/constraints.md is what its script makes of the results."""

import itertools
import json
from typing import Any

import numpy as np
import pytest

from benchmarks.constraints import RECIPES
from benchmarks.constraints_table import (
    BEGIN,
    END,
    PAGE,
    RESULTS,
    ranks,
    replicates,
    section,
    values_of,
)
from benchmarks.constraints_tuned import DRAWN, HYPERPARAMETERS, SEEDS, TASKS, configuration, trials
from models.constraints import CONSTRAINTS


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads(RESULTS.read_text())


def test_the_page_is_made_from_the_results(results: Any) -> None:
    told = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert told == section(results), "run: python -m benchmarks.constraints_table"


def test_every_constraint_has_as_many_trials_and_seeds(results: Any) -> None:
    assert set(CONSTRAINTS) < set(RECIPES)
    ranked = list(results["reported"]["digits"])
    assert set(RECIPES) == {*ranked, *results["later"]}
    for run in (run for of in results["later"].values() for run in of.values()):
        assert [row["seed"] for row in run["rows"]] == list(SEEDS)
    for task, recipe in itertools.product(TASKS, ranked):
        tried = results["trials"][task][recipe]
        wanted = json.loads(json.dumps(trials(task, recipe)))
        assert [trial["settings"] for trial in tried] == wanted
        best = min(tried, key=lambda trial: trial["value"])
        run = results["reported"][task][recipe]
        assert run["settings"] == best["settings"]
        assert [row["seed"] for row in run["rows"]] == list(SEEDS)
    assert values_of(results).shape == (len(TASKS), len(SEEDS), len(ranked))


def test_trials_differ_in_what_is_tuned_alone() -> None:
    for recipe in RECIPES:
        tried = trials("25gaussians", recipe)
        assert len(tried) == 1 + DRAWN
        drawn = [trial["training"] for trial in tried[1:]]
        assert drawn == [trial["training"] for trial in trials("digits", "none")[1:]]
        configs = [
            configuration({"task": "25gaussians", "source": "25gaussians", "recipe": recipe,
                           "settings": trial}, seed=5)
            for trial in tried
        ]  # fmt: skip
        first = configs[0]
        for config in configs:
            training = config.training
            done = training.steps * training.num_critic_steps
            wanted = TASKS["25gaussians"].critic_steps
            assert wanted - training.num_critic_steps < done <= wanted
            assert training.seed == 5
            assert (config.generator, config.critic) == (first.generator, first.critic)
            assert training.batch_size == first.training.batch_size
        changed = {
            field
            for config in configs
            for field, value in config.constraint
            if value != getattr(first.constraint, field)
        }
        assert changed == ({HYPERPARAMETERS[recipe][0]} if recipe in HYPERPARAMETERS else set())


def test_ranks_count_the_better_ones() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, size=(3, 2, 7)).astype(float)
    values[0, 0, 0] = np.inf
    counted = np.zeros(7)
    for row in values.reshape(-1, 7):
        for i in range(7):
            counted[i] += 1 + (row < row[i]).sum() + ((row == row[i]).sum() - 1) / 2
    np.testing.assert_allclose(ranks(values), counted / 6)


def test_resampling_draws_a_constraints_own_seeds() -> None:
    """Of two constraints with values 0, 2, 4 and 1, 3, 5, by a count of pairs."""
    values = np.array([[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]])
    wins = np.mean([a < b for a, b in itertools.product((0, 2, 4), (1, 3, 5))])
    found = replicates(values, 20_000)
    assert found.shape == (20_000, 2)
    # A pair's winner has a variance of p (1 - p); the mean of three pairs a third of it.
    share = 2 - found[:, 0]
    assert share.mean() == pytest.approx(wins, abs=4 * np.sqrt(wins * (1 - wins) / 60_000))
    assert share.var() == pytest.approx(wins * (1 - wins) / 3, rel=0.05)


def test_a_run_that_diverged_is_last() -> None:
    runs = {"a": [None, 3.0], "b": [1.0, 2.0], "c": [2.0, 1.0]}
    reported = {name: {"rows": [{"value": v} for v in found]} for name, found in runs.items()}
    values = values_of({"reported": {"task": reported}})
    np.testing.assert_allclose(ranks(values), [3, 1.5, 1.5])


def test_resampling_draws_data_sets() -> None:
    """Two constraints that win one data set of two each: both, or either alone twice."""
    values = np.array([[[0.0, 1.0]] * 3, [[1.0, 0.0]] * 3])
    found = replicates(values, 20_000)[:, 0]
    shares = [(found == rank).mean() for rank in (1, 1.5, 2)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=4 * np.sqrt(0.25 / 20_000))
