"""Marginals in the record of a table's model: real rows beside generated ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.artifact import load_artifact
from models.record import Marginal, Run
from models.tables import BooleanColumn, CategoryColumn, NumberColumn, TimeColumn
from tests.artifacts import make_artifact
from training.judging.tables.marginals import MAX_CATEGORIES, OTHERS, marginal

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
