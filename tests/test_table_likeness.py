"""Shapes and trends of tables equal those of sdmetrics; the rest is compared with closed forms."""

import itertools
import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from models.tables import TableSchema
from training.data.schema import find_structure, fit_schema
from training.judging.intervals import half_sample_margins
from training.judging.tables import likeness
from training.judging.tables.rows import comparable, learned

EXPECTED = json.loads((Path(__file__).parent / "sdmetrics" / "expected.json").read_text())
REGULARISATION = 1e-6
"""Weight that sdmetrics gives to a category that only generated rows have."""


def fitted(table: pa.Table) -> TableSchema:
    """The schema of a table, all of whose rows are trained on."""
    return fit_schema(table, find_structure(table, {}), {}, np.ones(len(table), bool))


def table(columns: dict[str, list]) -> pa.Table:
    """A checked-in table; dates are written as texts there."""
    sold = pa.array([date.fromisoformat(text) for text in columns["sold"]])
    return pa.table({**columns, "sold": sold})


def both(case: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The real and the generated rows of a case, and the names of the columns."""
    real, fake = (table(EXPECTED[case][side]) for side in ("real", "fake"))
    schema = fitted(real)
    return comparable(real, schema), comparable(fake, schema), [c.name for c in learned(schema)]


@pytest.mark.parametrize("case", list(EXPECTED))
def test_shapes_equal_those_of_sdmetrics(case: str) -> None:
    """Each column, and the mean."""
    real, fake, names = both(case)
    expected = EXPECTED[case]["sdmetrics"]
    found = {n: likeness.column_shape(real[str(i)], fake[str(i)]) for i, n in enumerate(names)}
    assert found == pytest.approx(expected["columns"], abs=REGULARISATION)
    assert likeness.column_shapes(real, fake) == pytest.approx(
        expected["column_shapes"], abs=REGULARISATION
    )


@pytest.mark.parametrize("case", list(EXPECTED))
def test_trends_equal_those_of_sdmetrics(case: str) -> None:
    """The pairs that count, each of their scores, and the mean."""
    real, fake, names = both(case)
    expected = EXPECTED[case]["sdmetrics"]
    pairs = likeness.trending_pairs(real)
    found = {
        tuple(names[int(i)] for i in pair): likeness.pair_trend(real, fake, pair) for pair in pairs
    }
    assert found == pytest.approx({(a, b): score for a, b, score in expected["pairs"]}, abs=1e-12)
    assert likeness.pair_trends(real, fake) == pytest.approx(expected["pair_trends"], abs=1e-12)


def schema_and_rows(**columns: list) -> tuple[TableSchema, np.ndarray]:
    """Rows of a small table, with its schema."""
    rows = pa.table(columns)
    schema = fitted(rows)
    return schema, comparable(rows, schema)


def test_a_generator_that_repeats_one_value_has_no_trend() -> None:
    """The pair counts as uncorrelated; sdmetrics leaves it out."""
    x = np.linspace(0, 1, 50)
    schema, real = schema_and_rows(a=x.tolist(), b=(x**3).tolist())
    fake = comparable(pa.table({"a": x.tolist(), "b": [0.5] * 50}), schema)
    expected = 1 - np.corrcoef(x, x**3)[0, 1] / 2
    assert likeness.pair_trends(real, fake) == pytest.approx(expected)


def test_associations_are_those_of_scipy() -> None:
    """Pearson's correlation, and Cramér's V with numbers in ten bins."""
    from scipy.stats import pearsonr
    from scipy.stats.contingency import association, crosstab

    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y, c = x + rng.normal(size=300), np.where(x + rng.normal(size=300) > 0, "a", "b")
    _, rows = schema_and_rows(x=x.tolist(), y=y.tolist(), c=c.tolist())
    table = likeness.associations(rows)
    assert table[0, 1] == pytest.approx(pearsonr(x, y)[0])
    counts = crosstab(np.digitize(x, np.histogram_bin_edges(x)), c).count
    assert table[0, 2] == pytest.approx(association(counts, method="cramer"))


def test_the_distance_of_pairs_is_that_of_their_tables() -> None:
    """By pandas' cross tables, with numbers in tenths of the real rows."""
    real, fake, names = both("gaps")
    frames = [pd.DataFrame({n: rows[str(i)] for i, n in enumerate(names)}) for rows in (real, fake)]
    for name in ("size", "price", "count", "sold"):
        edges = [-np.inf, *np.unique(frames[0][name].quantile(np.arange(1, 10) / 10)), np.inf]
        for frame in frames:
            bins = pd.cut(frame[name], edges, right=False, labels=False)
            frame[name] = bins.fillna(-1)
    distances = []
    for a, b in itertools.combinations(names, 2):
        shares = [frame.groupby([a, b]).size() / len(frame) for frame in frames]
        distances.append(shares[0].sub(shares[1], fill_value=0).abs().sum() / 2)
    assert likeness.pair_distance(real, fake) == pytest.approx(np.mean(distances), abs=1e-12)
    assert likeness.pair_distance(real, real) == 0


def test_the_distance_of_pairs_of_one_column_is_its_own() -> None:
    schema, real = schema_and_rows(c=["a", "b"] * 50)
    fake = comparable(pa.table({"c": ["a"] * 75 + ["b"] * 25}), schema)
    assert likeness.pair_distance(real, fake) == pytest.approx(0.25)


def test_missing_values_and_rare_categories_are_counted() -> None:
    """By hand: 0.5 against 0.25 missing; of the two rare categories one is generated."""
    names = ["a"] * 97 + ["b", "c", "b"]
    schema, real = schema_and_rows(n=[1.5, None] * 50, c=names)
    fake = comparable(pa.table({"n": [1.5, 1.5, 1.5, None] * 25, "c": ["a", "b"] * 50}), schema)
    assert likeness.missing_difference(real, fake) == pytest.approx(0.25)
    assert likeness.rare_category_coverage(real, fake) == 0.5
    _, plain = schema_and_rows(n=list(range(100)), c=["a", "b"] * 50)
    assert likeness.missing_difference(plain, plain) is None
    assert likeness.rare_category_coverage(plain, plain) is None


def test_a_category_of_a_twentieth_is_not_rare_and_the_first_one_may_be() -> None:
    real = np.repeat([0, 1, 2, 3], [1, 90, 5, 4]).astype([("0", int)])
    fake = np.array([0, 1, 2, 2]).astype([("0", int)])
    assert likeness.rare_category_coverage(real, fake) == 0.5


def test_values_that_only_generated_rows_lack_are_counted() -> None:
    schema, real = schema_and_rows(a=[0.5, 1.5] * 10, b=[1.5, 2.5] * 10)
    fake = comparable(pa.table({"a": [None, 1.5] * 10, "b": [1.5, 2.5] * 10}), schema)
    assert likeness.missing_difference(real, fake) == 0.5
    assert likeness.missing_difference(fake, real) == 0.5


@pytest.mark.parametrize("empty", [np.full(3, np.nan), np.full(3, -1)])
def test_a_column_without_values_is_like_another_such_one_alone(empty: np.ndarray) -> None:
    full = np.ones(3, empty.dtype)
    assert likeness.column_shape(empty, empty) == 1
    assert likeness.column_shape(empty, full) == likeness.column_shape(full, empty) == 0


def test_only_pairs_that_vary_are_associated() -> None:
    """Two rows have a correlation, one has none; nor has a column with a single value."""

    def rows(*columns: list) -> np.ndarray:
        types = [(str(i), np.asarray(x).dtype) for i, x in enumerate(columns)]
        return np.array(list(zip(*columns, strict=True)), types)

    two = rows([1.0, 2.0, np.nan], [5.0, 3.0, 4.0])
    assert likeness.associations(two)[0, 1] == pytest.approx(-1)
    assert likeness.trending_pairs(two) == [("0", "1")]
    assert likeness.associations(two[1:])[0, 1] == 0
    constant = rows([1.0, 2.0, 3.0], [4.0, 4.0, 4.0], [0, 0, 0], [0, 1, 1])
    expected = np.eye(4)
    expected[0, 3] = expected[3, 0] = 1  # each number has a bin of its own
    np.testing.assert_allclose(likeness.associations(constant), expected, atol=1e-12)
    assert likeness.trending_pairs(constant) == [("0", "3")]
    single = rows([4.0, 4.0], [0, 0])
    assert likeness.trending_pairs(single) == []
    assert likeness.pair_trends(single, single) is None
    nothing = rows([np.nan] * 4, [0, 1, 0, 1])
    assert likeness.pair_trend(nothing, nothing, ("0", "1")) == 1
    assert likeness.pair_distance(nothing, nothing) == 0
    # Missing is a category of its own, here of half of the rows.
    half = rows([np.nan, np.nan, 0.0, 0.0], [0, 1, 0, 1])
    assert likeness.pair_distance(half, nothing) == 0.5


@pytest.mark.parametrize(("above", "is_trend"), [(-0.05, False), (0.05, True)])
def test_pairs_have_a_trend_from_the_values_on_that_sdmetrics_has(
    above: float, is_trend: bool
) -> None:
    """A correlation of a half, of either sign, and a Cramér's V of 0.3."""
    x, z = (v - v.mean() for v in np.random.default_rng(2).normal(size=(2, 80)))
    z -= x * (x @ z) / (x @ x)
    z *= np.linalg.norm(x) / np.linalg.norm(z)
    kinds = [("0", float), ("1", float)]
    for r in (0.5 + above, -0.5 - above):
        numbers = np.array([*zip(x, r * x + math.sqrt(1 - r**2) * z, strict=True)], kinds)
        assert likeness.associations(numbers)[0, 1] == pytest.approx(r)
        assert likeness.trending_pairs(numbers) == ([("0", "1")] if is_trend else [])
    share = round(20 * (1 + 0.3 + above))
    cells = np.repeat([0, 1, 2, 3], [share, 40 - share, 40 - share, share])
    categories = np.array([*zip(cells // 2, cells % 2, strict=True)], [("0", int), ("1", int)])
    assert likeness.associations(categories)[0, 1] == pytest.approx(0.3 + above)
    assert likeness.trending_pairs(categories) == ([("0", "1")] if is_trend else [])


@pytest.mark.parametrize("count", [100, 150])
def test_the_distance_of_columns_of_many_categories_is_that_of_their_pairs(count: int) -> None:
    """Of 10,000 pairs of categories all are counted, of 22,500 those that there are."""
    rng = np.random.default_rng(1)
    real, fake = (
        np.array(
            list(zip(rng.integers(0, count, n), rng.integers(0, count, n), strict=True)),
            [("0", int), ("1", int)],
        )
        for n in (500, 300)
    )
    shares = [pd.Series(rows.tolist()).value_counts(normalize=True) for rows in (real, fake)]
    expected = shares[0].sub(shares[1], fill_value=0).abs().sum() / 2
    assert likeness.pair_distance(real, fake) == pytest.approx(expected, abs=1e-12)
    assert likeness.pair_trend(real, fake, ("0", "1")) == pytest.approx(1 - expected, abs=1e-12)


def test_an_unknown_category_is_not_a_missing_one() -> None:
    """Rows of another source may hold it."""
    schema, real = schema_and_rows(c=["a", "b", None] * 10)
    fake = comparable(pa.table({"c": ["a", "x", None] * 10}), schema)
    assert fake["0"].tolist()[:3] == [0, 2, -1]
    assert likeness.column_shapes(real, fake) == pytest.approx(0.5)


def test_a_figure_that_some_halves_lack_has_the_margin_of_the_others() -> None:
    """One item in ten is rare: halves without it have no figure of it."""
    real = np.arange(10.0)[:, None]

    def metric(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
        figures = {"mean": float(real.mean())}
        return figures | ({"of the rare": float(real.sum())} if 9 in real else {})

    margins = half_sample_margins(metric, real, real, repeats=20)
    assert set(margins) == {"mean", "of the rare"}
    rng = np.random.default_rng(0)
    draws = [
        (rng.choice(real, 5, replace=False), rng.choice(real, 5, replace=False)) for _ in range(20)
    ]
    sums = [half.sum() for half, _ in draws if 9 in half]
    assert 2 < len(sums) < 20
    expected = stats.t(len(sums) - 1).ppf(0.975) * np.std(sums, ddof=1)
    assert margins["of the rare"] == pytest.approx(expected)
