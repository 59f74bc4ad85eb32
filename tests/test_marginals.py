"""Marginals in the record of a table's model: real rows beside generated ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.artifact import load_artifact
from models.record import Marginal, Run
from models.tables import BooleanColumn, CategoryColumn, NumberColumn, TimeColumn
from tests.artifacts import make_artifact
from training.judging.tables.marginals import (
    BINS,
    MAX_CATEGORIES,
    OTHERS,
    marginal,
    marginals,
)

RNG = np.random.default_rng(0)


def test_bins_of_numbers() -> None:
    column = NumberColumn(name="x", type="double", low=0, high=100, quantiles=(0, 100))
    real, fake = RNG.exponential(5, 4000), RNG.exponential(6, 4000)
    real[:400] = np.nan
    found = marginal(column, real, fake)
    known = real[400:]
    edges = np.array(found.edges)
    assert edges[0] == pytest.approx(np.quantile([*known, *fake], 0.005), rel=1e-4)
    for shares, values in ((found.real, known), (found.generated, fake)):
        cumulated = np.cumsum(shares)[:-1]
        expected = [(values < edge).mean() for edge in edges[1:-1]]
        np.testing.assert_allclose(cumulated, expected, atol=2e-3)
        assert sum(shares) == pytest.approx(1, abs=2e-3)
    assert (found.real_missing, found.generated_missing) == (0.1, 0)


def test_bars_of_values_times_and_categories() -> None:
    few = NumberColumn(name="x", type="int64", low=0, high=3, decimals=0, quantiles=(0, 3))
    found = marginal(few, np.array([0, 0, 1, 3.0]), np.array([1.0, 1, 1, 3]))
    assert (found.names, found.edges) == (["0", "1", "3"], [])
    assert (found.real, found.generated) == ([0.5, 0.25, 0.25], [0, 0.75, 0.25])
    assert found.score == 0.5  # one less the Kolmogorov-Smirnov statistic
    day = TimeColumn(
        name="t", type="date32[day]", low=0, high=900, origin=18262, quantiles=(0, 900)
    )
    found = marginal(day, np.arange(900.0), np.arange(900.0))
    assert (found.kind, found.edges, found.score) == ("time", [], 1)
    assert found.names == sorted(found.names)
    assert found.names[0].startswith("2020-01")
    assert len(found.names) == len(found.real) == BINS
    names = tuple(f"c{i}" for i in range(30))
    town = CategoryColumn(name="c", type="string", categories=names)
    real = np.repeat(np.arange(30), 31 - np.arange(30))
    found = marginal(town, real, real[:10])
    assert found.names == [*names[:MAX_CATEGORIES], OTHERS]
    assert found.generated[0] == 1
    assert found.real[-1] == pytest.approx((real >= MAX_CATEGORIES).mean(), abs=1e-4)
    found = marginal(BooleanColumn(name="b"), np.array([0, 1, -1, -1]), np.array([1, 1, 1, 1]))
    assert dict(zip(found.names, found.real, strict=True)) == {"true": 0.5, "false": 0.5}
    assert found.real_missing == 0.5
    nothing = np.full(4, np.nan)
    assert marginal(few, nothing, nothing).real == [0.0]


def test_bins_end_at_the_outermost_half_per_cents_of_both_sides() -> None:
    """What lies beyond is in the first and last bin; of one value they are 1 wide in all."""
    column = NumberColumn(name="x", type="double", low=0, high=100, quantiles=(0, 100))
    real, fake = np.arange(1000.0), np.arange(1000.0, 2000)
    found = marginal(column, real, fake)
    assert len(found.edges) == BINS + 1
    low, high = np.quantile([*real, *fake], [0.005, 0.995])
    assert (found.edges[0], found.edges[-1]) == pytest.approx((low, high), rel=1e-5)
    width = (high - low) / BINS
    assert found.real[0] == pytest.approx((low + width) / 1000, abs=2e-3)
    assert found.generated[-1] == pytest.approx((2000 - high + width) / 1000, abs=2e-3)
    assert found.names[0] == f"{low:.4g} to {low + width:.4g}"
    assert found.generated[0] == found.real[-1] == found.score == 0
    almost = np.zeros(10_000)
    almost[:BINS] = np.arange(1, BINS + 1)
    found = marginal(column, almost, almost)
    assert (found.edges[0], found.edges[-1]) == (0, 1)
    assert (found.real[0], found.real[-1]) == (1 - BINS / 1e4, BINS / 1e4)
    few = np.arange(float(BINS))
    assert marginal(column, few, few).edges == [], "of so many values each has its bar"


def test_categories_have_bars_of_both_sides_the_most_frequent_first() -> None:
    """Also one that the schema does not know; what has no bar has one together with its likes."""
    column = CategoryColumn(name="c", type="string", categories=("a", "b"), others=("c",))
    real, fake = np.array([0, 0, 2, -1]), np.array([3, 3, 3, 0])
    found = marginal(column, real, fake)
    assert (found.names, found.real[2], found.generated[2]) == (["a", "unknown", "c"], 0.3333, 0)
    assert (found.real[:2], found.generated[:2]) == ([0.6667, 0], [0.25, 0.75])
    assert (found.real_missing, found.generated_missing) == (0.25, 0)
    rest = marginal(column, np.array([0, 0, 1, 2]), np.array([3, 3, 0, 0]))
    assert rest.names == ["a", "unknown", "b", OTHERS]
    assert (rest.real, rest.generated) == ([0.5, 0, 0.25, 0.25], [0.5, 0.5, 0, 0])
    between = marginal(column, np.array([0, 2]), np.array([0, 2]))
    assert between.names == ["a", "c"], "what neither side has needs no bar"
    # A side without values has no others either.
    empty = marginal(column, np.full(2, -1), np.array([0, 1]))
    assert (empty.names, empty.real, empty.generated) == (["a", "b"], [0, 0], [0.5, 0.5])


def test_a_side_of_one_value_or_none_has_its_share_and_the_other_keeps_its_bars() -> None:
    town = CategoryColumn(name="c", type="string", categories=("a", "b"))
    found = marginal(town, np.array([1]), np.array([0, 0]))
    assert (found.names, found.real, found.generated) == (["a", "b"], [0, 1], [1, 0])
    few = NumberColumn(name="x", type="int64", low=0, high=3, decimals=0, quantiles=(0, 3))
    for nothing, something in ((0, 1), (1, 0)):
        sides = [np.array([2.0]), np.full(3, np.nan)]
        found = marginal(few, sides[nothing], sides[something])
        assert found.names == ["2"]
        assert sorted([found.real, found.generated]) == [[0], [1]]
    wide = NumberColumn(name="x", type="double", low=0, high=99, quantiles=(0, 99))
    found = marginal(wide, np.array([50.0]), np.arange(100.0))
    assert sum(found.real) == max(found.real) == 1
    found = marginal(wide, np.full(2, np.nan), np.arange(100.0))
    assert sum(found.real) == 0


def test_shares_have_four_digits() -> None:
    town = CategoryColumn(name="c", type="string", categories=("a", "b"))
    thirds, missing = np.array([0, 1, 1]), np.array([0, 0, 0, 0, -1, -1, -1])
    for real, fake in ((thirds, missing), (missing, thirds)):
        found = marginal(town, real, fake)
        assert found.score == 0.3333
        assert [0.3333, 0.6667] in (found.real, found.generated)
        assert {found.real_missing, found.generated_missing} == {0, 0.4286}


def test_columns_are_sorted_by_their_likeness() -> None:
    column = NumberColumn(name="x", type="double", low=0, high=9, quantiles=(0, 9))
    kinds = [("0", float), ("1", float)]
    real = np.array([(1.0, 1.0), (2.0, 2.0)], kinds)
    fake = np.array([(1.0, 5.0), (2.0, 5.0)], kinds)
    columns = [column, column.model_copy(update={"name": "y"})]
    found = marginals([*columns], real, fake)
    assert [(one.name, one.score) for one in found] == [("y", 0), ("x", 1)]


def test_a_run_records_them_the_least_alike_first(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from wgan_cli import app

    frame = pd.DataFrame({"n": RNG.normal(size=300).round(3), "c": RNG.choice(["a", "b"], 300)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    command = f"train --preset table --data {tmp_path / 't.csv'} --steps 2 --out {tmp_path / 'run'}"
    sets = ["--no-register", "--set", "training.batch_size=16", "--set", "evaluation.samples=50"]
    result = CliRunner().invoke(app, [*command.split(), *sets])
    assert result.exit_code == 0, result.output
    run = load_artifact(tmp_path / "run" / "artifact").run
    assert {one.name for one in run.marginals} == {"n", "c"}
    scores = [one.score for one in run.marginals]
    assert scores == sorted(scores)
    assert np.mean(scores) == pytest.approx(run.results.figures["column_shapes"].value, abs=1e-3)


def test_records_without_marginals_keep_their_bytes(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "a", "rows"))
    assert "marginals" not in model.run.model_dump_json()
    one = Marginal(
        name="x", kind="number", score=1, names=["0"], real=[1], generated=[1],
        real_missing=0, generated_missing=0,
    )  # fmt: skip
    run = model.run.model_copy(update={"marginals": [one]})
    assert Run.model_validate_json(run.model_dump_json()) == run
