"""Judging of tables: use, detection, copies, the copula, and all of it on a trained model."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.random import default_rng
from scipy.spatial.distance import cdist
from scipy.stats import norm, spearmanr
from sklearn.metrics import r2_score, roc_auc_score

from models.config import EvaluationConfig
from models.errors import ConfigError, UserError
from models.model import Model
from models.record import DataCard, Figure
from models.tables import (
    CategoryColumn,
    ConstantColumn,
    CopyColumn,
    NumberColumn,
    TableSchema,
)
from models.tables.rules import parse_rule
from tests.runs import trained
from tests.test_table_likeness import fitted
from training.data.dataset import Dataset, load_data
from training.data.schema import fit_values
from training.judging import evaluate
from training.judging.doctor.diagnosis import diagnose, diagnose_run
from training.judging.evaluate import evaluate_artifact, require_evaluation
from training.judging.figures import COPY_FIGURES, FIGURES
from training.judging.intervals import half_sample_margins
from training.judging.metrics import precision_recall_density_coverage
from training.judging.tables import copies, likeness, uses
from training.judging.tables import judge as judge_module
from training.judging.tables.copula import copula_rows
from training.judging.tables.judge import METRICS, Rows, rules_kept, valid_share
from training.judging.tables.rows import (
    comparable,
    comparable_codes,
    decided,
    is_missing,
    is_number,
)
from training.presets import build_config
from training.reporting.pages import figures_in_words, model_card
from training.reporting.table_report import table_report
from training.retraining.evidence import Evidence, RegisteredModel
from training.retraining.gates import GatesConfig, challenger_gates, champion_gates


def rows(**columns: list | np.ndarray) -> np.ndarray:
    """Comparable rows of plain columns: numbers, or whole numbers for categories."""
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    made = np.empty(len(next(iter(arrays.values()))), [(n, a.dtype) for n, a in arrays.items()])
    for name, values in arrays.items():
        made[name] = values
    return made


def test_use_is_r2_for_numbers_and_0_for_rows_without_the_trend() -> None:
    """y is x plus noise of a tenth of the variance: R2 is 1 / 1.1 for the best model there is."""
    rng = default_rng(0)
    x = rng.normal(size=(2, 2000))
    y = x + np.sqrt(0.1) * rng.normal(size=x.shape)
    train, test = (rows(x=x[i], y=y[i]) for i in range(2))
    found = uses.utility(train, test, "y")
    assert found is not None
    assert found.value == pytest.approx(1 / 1.1, abs=0.03)
    assert found.low < found.value < found.high
    without = uses.utility(rows(x=rng.permutation(x[0]), y=y[0]), test, "y")
    assert without is not None
    assert without.value < 0.05
    assert uses.utility(train, rows(x=x[1], y=np.ones(2000)), "y") is None


def test_use_is_the_area_under_the_curve_for_categories() -> None:
    """The mean over several classes is scikit-learn's; with one class learned nothing is told."""
    rng = default_rng(1)
    truth, shares = rng.integers(0, 3, 200), rng.dirichlet([1, 1, 1], 200)
    expected = roc_auc_score(truth, shares, multi_class="ovr", average="weighted")
    assert uses._area(np.column_stack([truth, shares])) == pytest.approx(expected)
    x = rng.normal(size=(2, 4000))
    y = (x + rng.normal(size=x.shape) > 0).astype(int)
    found = uses.utility(rows(x=x[0], y=y[0]), rows(x=x[1], y=y[1]), "y")
    assert found is not None
    assert found.value == pytest.approx(roc_auc_score(y[1], x[1]), abs=0.03)
    one_class = uses.utility(rows(x=x[0], y=np.zeros(4000, int)), rows(x=x[1], y=y[1]), "y")
    assert one_class is not None
    assert one_class.value == 0.5


def test_predictions_of_numbers_and_of_classes_are_scored_as_by_scikit_learn() -> None:
    """Of a class that was not learned nothing is told; of one class there is no area."""
    rng = default_rng(10)
    truth, predicted = rng.normal(size=(2, 50)) + 3
    points = np.column_stack([truth, predicted])
    assert uses._r2(points) == pytest.approx(r2_score(truth, predicted))
    assert uses._r2(np.ones((5, 2))) is None
    assert uses._area(np.column_stack([np.zeros(5), rng.random(5)])) is None
    classes, shares = np.repeat([0, 1, 2], [10, 20, 30]), rng.random((60, 2))
    areas = [roc_auc_score(classes == i, shares[:, i]) for i in range(2)]
    expected = np.average([*areas, 0.5], weights=[10, 20, 30])
    assert uses._area(np.column_stack([classes, shares])) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["number", "category"])
def test_rows_without_the_target_are_left_out_of_its_use(kind: str) -> None:
    rng = default_rng(11)
    x = rng.normal(size=(2, 200))
    y = x + 0.3 * rng.normal(size=x.shape)
    targets = y if kind == "number" else (y > 0).astype(int)
    gap = np.nan if kind == "number" else -1
    train, test = (rows(x=x[i], y=targets[i]) for i in range(2))
    more = rows(x=rng.normal(size=50), y=np.full(50, gap, targets.dtype))
    found = uses.utility(train, test, "y")
    assert found is not None
    assert found.high - found.value == pytest.approx(found.value - found.low)
    assert found.high > found.value > 0.5
    assert uses.utility(*(np.concatenate([more, known]) for known in (train, test)), "y") == found
    ends = np.argsort(targets[1])[[0, 1, -2, -1]]
    assert uses.utility(train, test[ends], "y") is not None
    assert uses.utility(train, test[ends[1:]], "y") is None, "too few to say"
    assert uses.utility(train, rows(x=x[1], y=np.full(200, targets[1, 0])), "y") is None


@pytest.mark.parametrize(("classes", "together"), [(10, False), (11, True)])
def test_the_ten_most_frequent_classes_are_told_apart(classes: int, together: bool) -> None:
    """The two least frequent ones look alike: of eleven classes they count as one."""
    rng = default_rng(12)
    y = np.repeat(np.arange(classes), [*[30] * (classes - 2), 20, 20])
    side = rows(x=np.minimum(y, classes - 2) * 1.0, y=y)
    found = uses.utility(side, rng.permutation(side), "y")
    assert found is not None
    assert (found.value == 1) is together
    assert found.value > 0.9


def test_columns_of_many_categories_are_split_as_numbers() -> None:
    """Of 256 scikit-learn would make no categories; one that is missing is no category."""
    c = np.tile(np.arange(256), 2)
    found = uses.utility(*[rows(c=c, y=(c >= 128) * 1.0)] * 2, "y")
    assert found is not None
    assert found.value > 0.99
    gaps, categories = uses._inputs(rows(c=[0, -1], x=[np.nan, 2.0], y=[1.0, 2.0]), "y")
    np.testing.assert_array_equal(gaps, [[0, np.nan], [np.nan, 2]])
    assert categories == [True, False]


def test_rows_are_told_apart_as_well_as_they_can_be() -> None:
    """Of normal rows whose means differ by 1 the best classifier has the area Phi(1 / sqrt(2))."""
    rng = default_rng(2)
    real, same = (rows(x=rng.normal(size=4000), c=rng.integers(0, 3, 4000)) for _ in range(2))
    found = uses.detection(real, same)
    assert found.low < 0.5 < found.high
    shifted = rows(x=rng.normal(size=4000) + 1, c=rng.integers(0, 3, 4000))
    assert uses.detection(real, shifted).value == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.03)


@pytest.mark.parametrize("spread", [1.0, 0.02])
def test_no_copies_are_as_near_to_training_as_to_held_out_rows(spread: float) -> None:
    """The interval holds 0.5 as often as it says, also for a generator that makes one kind of row.

    Rows that share their nearest row are no evidence of their own: with the plain interval of a
    share the narrow generator would be called a copier in more than half of the cases.
    """
    rng, outside = default_rng(3), 0
    for _ in range(100):
        fake, training, heldout = (rng.normal(size=(200, 3)) for _ in range(3))
        found = copies.nearer_to_training(spread * fake, training, heldout)
        outside += not found.low <= 0.5 <= found.high
    assert outside <= 14  # 5 are expected; 15 or more by chance once in 10,000
    copied = copies.nearer_to_training(training[:50], training, heldout)
    assert copied.value == 1.0
    assert copied.low > 0.8


def test_distances_and_copies_are_counted() -> None:
    training = rows(x=np.arange(100.0), c=np.zeros(100, int))
    fake = rows(x=[3.0, np.nan, 5.5, -0.0], c=[0, 0, 0, 0])
    known = rows(x=[np.nan, 0.0], c=[0, 0])
    for real in (training, known):
        assert copies.exact_copies(copies.hashes(fake), copies.hashes(real)).value == 0.5
    assert copies.exact_copies(copies.hashes(fake[:1]), copies.hashes(training)).value == 1
    ratio = copies.distance_ratio(np.full(50, 1.5), np.full(50, 3.0))
    assert tuple(ratio) == (0.5, 0.5, 0.5)
    assert copies.distance_ratio(np.zeros(50), np.ones(50)).value == 0
    assert copies.distance_ratio(np.zeros(50), np.zeros(50)).value == 1
    assert copies.distance_ratio(np.ones(50), np.zeros(50)).value > 1e6


def test_a_row_that_is_as_near_to_both_counts_half_and_rows_of_one_nearest_row_once() -> None:
    """By hand: two rows next to training row 0, one next to held-out row 5, one in the middle."""
    training, heldout = np.array([[0.0], [90.0]]), np.array([[5.0], [-90.0]])
    found = copies.nearer_to_training(np.array([[0.1], [-0.2], [5.1]]), training, heldout)
    assert found.value == pytest.approx(2 / 3)
    margin = 1.96 * 0.5 * np.sqrt(2**2 + 1) / 3
    assert (found.low, found.high) == pytest.approx((2 / 3 - margin, 2 / 3 + margin))
    middle = copies.nearer_to_training(np.array([[2.5], [0.1]]), training, heldout)
    assert middle.value == 0.75
    # As many at each of them; a held-out row has a number of its own.
    margin = 1.96 * 0.5 * np.sqrt(2) / 2
    assert middle.high - middle.value == pytest.approx(margin)
    both = copies.nearer_to_training(np.array([[89.0], [-89.0]]), training, heldout)
    assert both.high - both.value == pytest.approx(margin)
    for row, near, other in (([1e6], [0.0], [2e6 + 0.5]), ([0.0], [1e-7], [-2e-7])):
        rounded = copies.nearer_to_training(*(np.array([x]) for x in (row, near, other)))
        assert rounded.value == 0.5, "a difference that rounding makes is none"


def test_the_interval_of_a_ratio_of_distances_is_the_bootstrap_s() -> None:
    rng = default_rng(7)
    fake, heldout = rng.exponential(1, 80), rng.exponential(2, 60)
    found = copies.distance_ratio(fake, heldout)
    assert found.value == np.median(fake) / np.median(heldout)
    rng = default_rng(0)
    same = [
        np.median(rng.choice(fake, 80)) / np.median(rng.choice(heldout, 60)) for _ in range(200)
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(same, [2.5, 97.5])))
    rng = default_rng(8)  # others than those drawn: the ends agree but for their noise
    draws = [
        np.median(rng.choice(fake, 80)) / np.median(rng.choice(heldout, 60)) for _ in range(20_000)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.4 * np.std(draws))


def test_a_membership_attack_takes_what_is_near_a_generated_row_for_a_training_row() -> None:
    rng = default_rng(9)
    training, heldout = rng.normal(size=(2, 40, 3))
    found = copies.membership_attack(training[:30] + 1e-3, training, heldout)
    near = cdist(np.concatenate([training, heldout]), training[:30] + 1e-3).min(axis=1)
    assert found.value == pytest.approx(roc_auc_score(np.repeat([1, 0], 40), -near))
    assert found.low < found.value < found.high
    assert found.value > 0.8


def test_the_copula_keeps_marginals_and_normal_correlations() -> None:
    """Spearman's correlation of normal scores with correlation r is 6 / pi * asin(r / 2).

    A tenth of one column is missing, which takes a tenth of the correlation.
    """
    rng = default_rng(4)
    z = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 4000)
    names = np.where(rng.random(4000) < 0.25, "b", "a")
    table = pa.table({
        "x": pa.array(np.exp(z[:, 0])),
        "y": pa.array(z[:, 1], mask=rng.random(4000) < 0.1),
        "c": names,
        "k": ["one"] * 4000,
        "id": [f"row-{i}" for i in range(4000)],
    })  # fmt: skip
    schema = fitted(table)
    drawn = copula_rows(table, schema, 4000)
    assert drawn.column_names == schema.names
    both = comparable(drawn, schema)
    expected = 6 / np.pi * np.arcsin(0.9 * 0.7 / 2)
    found = spearmanr(both["0"], both["1"], nan_policy="omit")[0]
    assert found == pytest.approx(expected, abs=0.04)
    assert np.isin(both["0"], comparable(table, schema)["0"]).all()
    assert np.isnan(both["1"]).mean() == pytest.approx(0.1, abs=0.02)
    assert (both["2"] == 1).mean() == pytest.approx(0.25, abs=0.03)
    assert set(drawn["k"].to_pylist()) == {"one"}
    assert not set(drawn["id"].to_pylist()) & set(table["id"].to_pylist())
    assert drawn.equals(copula_rows(table, schema, 4000))


def test_the_copula_draws_each_row_alike_also_where_a_column_is_empty() -> None:
    """The smallest and the largest value too; what the rows at hand lack stays missing."""
    number = NumberColumn(name="x", type="double", low=0, high=9, spikes=(1, 2, 4))
    empty = NumberColumn(name="y", type="double", low=0, high=9, spikes=(1,), missing=0.9)
    table = pa.table({"x": [1.0, 2.0, 4.0], "y": pa.nulls(3, pa.float64())})
    drawn = copula_rows(table, TableSchema(columns=(number, empty)), 3000)
    values, counts = np.unique(drawn["x"], return_counts=True)
    assert values.tolist() == [1, 2, 4]
    np.testing.assert_allclose(counts / 3000, 1 / 3, atol=4 * np.sqrt(2 / 9 / 3000))
    assert drawn["y"].null_count == 3000


def test_rows_hold_numbers_and_numbers_of_categories() -> None:
    """Rare categories have numbers of their own; where a value is missing is -1 or NaN."""
    number = NumberColumn(name="x", type="double", low=0, high=9, spikes=(1.0, 2.0), missing=0.1)
    category = CategoryColumn(
        name="c", type="string", categories=("often", "less"), others=("rare", "rarer"),
        other_counts=(1, 1), missing=0.1,
    )  # fmt: skip
    constant = ConstantColumn(name="k", type="string", value="one")
    schema = TableSchema(columns=(constant, category, number))
    table = pa.table({
        "x": [1.0, None, 2.0, 1.5, None],
        "k": ["one"] * 5,
        "c": ["less", None, "rarer", "of another table", "often"],
    })  # fmt: skip
    found = comparable(table, schema)
    assert found.dtype.names == ("0", "1")
    np.testing.assert_array_equal(found["0"], [1, -1, 3, 4, 0])
    np.testing.assert_array_equal(found["1"], [1, np.nan, 2, 1.5, np.nan])
    assert [is_number(found, name) for name in ("0", "1")] == [False, True]
    for name in ("0", "1"):
        assert is_missing(found[name]).tolist()[1:3] == [True, False]
    assert is_missing(found["0"]).sum() == 1
    known = table.take(pa.array([0, 1, 4]))
    codes = schema.encode(known)
    assert comparable_codes(codes, schema)["0"].tolist() == [1, -1, 0]
    # A generator gives shares of the options, of which the largest is chosen.
    np.testing.assert_array_equal(decided(0.4 * codes + 0.1, schema), codes)


class Making:
    """A model that makes the rows of a table, one after the other."""

    device, classes, is_image = torch.device("cpu"), (), False

    def __init__(self, made: pa.Table) -> None:
        self.made = made

    def sample(self, seed: int, count: int) -> np.ndarray:
        return np.arange(count)

    def rows(self, codes: np.ndarray, seed: int) -> pa.Table:
        return self.made.take(pa.array(codes))

    def score(self, items: np.ndarray, labels: None) -> np.ndarray:
        return items[:, 0].astype(float)


def purchases(count: int, seed: int) -> pa.Table:
    """Rows of which each third is one of a few that are there often."""
    rng = default_rng(seed)
    size = np.where(np.arange(count) % 3, rng.gamma(2, 2, count), 1.0 + np.arange(count) % 2)
    price = np.where(np.arange(count) % 3, size * np.exp(0.3 * rng.random(count)), 2 * size)
    kind = np.where(size > 4, "big", np.where(np.arange(count) % 24, "small", "odd"))
    return pa.table({"size": size, "price": price, "kind": kind, "again": price})


def test_figures_of_a_table_are_of_as_many_rows_of_each_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each against its definition, with real rows and the copula's in the generated ones' place.

    Of the real rows none has a gap, of the generated ones some have: the floor of that is 0. Other
    rules than the data's may be broken by generated rows alone.
    """
    monkeypatch.setattr(judge_module, "MAX_ROWS", 100)
    monkeypatch.setattr(judge_module, "MAX_COPIED", 120)
    monkeypatch.setattr(judge_module, "AT_ONCE", 32)
    n, table = 40, purchases(210, 1)
    is_heldout = default_rng(0).permutation(np.arange(210) < 60)
    with_gap = table.set_column(
        0, "size", pa.array(table["size"].to_numpy(), mask=np.arange(210) > 200)
    )
    plain, is_used = fitted(with_gap), np.ones(210, bool)
    rules = tuple(
        rule.fitted(with_gap, plain.by_name, set(), lambda *x: fit_values(*x, is_used))
        for rule in parse_rule("size <= price")
    )
    schema = plain.model_copy(update={"rules": rules})
    card = DataCard(
        name="shop", source="shop.csv", licence=None, kind="vector", shape=(schema.width,),
        columns=schema.names, count=210, training_count=150, heldout_count=60,
        heldout_fraction=2 / 7, sha256="", offset=[], scale=[], table=schema,
    )  # fmt: skip
    data = Dataset(plain.encode(table), is_heldout, None, card, None, table=table)
    made = purchases(100, 2)
    size = np.where(np.arange(100) % 8, made["size"], 9 * np.asarray(made["price"]))
    made = made.set_column(0, "size", pa.array(size, mask=np.arange(100) % 9 == 5))
    made = pa.concat_tables([table.filter(~is_heldout).slice(0, 9), made.slice(9)])
    config = EvaluationConfig(samples=n, target="price")
    model: Any = Making(made)
    figures = evaluate.judge(model, data, config).figures
    reals = judge_module.real_rows(data, config)
    chosen = {"heldout": (reals.heldout, 60), "training": (reals.training, 100)}
    for name, (side, count) in chosen.items():
        known = {*map(str, table.filter(is_heldout == (name == "heldout")).to_pylist())}
        taken = list(map(str, side.table.to_pylist()))
        assert len(taken) == count
        assert {*taken} <= known
        assert taken != sorted(taken, key=list(map(str, table.to_pylist())).index), "is in order"
    sides = {
        "heldout": reals.heldout.table,
        "training": reals.training.table,
        "made": made,
        "copula": copula_rows(reals.training.table, schema, 100, evaluate.SAMPLE_SEED),
    }
    values = {name: comparable(side, schema) for name, side in sides.items()}
    codes = {name: plain.encode(side).astype(np.float64) for name, side in sides.items()}
    sought = table.take(pa.array(data.sample_indices(120, heldout=False)))
    copied = {*map(repr, comparable(sought, schema).tolist())}

    def kept(name: str) -> np.ndarray:
        size, price = (np.asarray(sides[name][x], float) for x in ("size", "price"))
        return ~(size > price)

    def valid(name: str) -> np.ndarray:
        """Of each row the share of its four values: categories and the copy are as they may be."""
        inside = [
            np.isnan(x) | ((x >= np.min(known)) & (x <= np.max(known)))
            for x, known in ((np.asarray(sides[name][x], float), np.asarray(table[x]))
                             for x in ("size", "price"))
        ]  # fmt: skip
        return 0.5 + np.mean(inside, axis=0) / 2

    def authentic(name: str) -> float:
        between = cdist(codes["training"], codes["training"])
        np.fill_diagonal(between, np.inf)
        found = cdist(codes[name][:n], codes["training"])
        return float((found.min(axis=1) > between.min(axis=1)[found.argmin(axis=1)]).mean())

    def ratio(name: str) -> float:
        near = [np.median(cdist(codes[x][:n], codes["training"]).min(axis=1))
                for x in (name, "heldout")]  # fmt: skip
        return float(near[0] / near[1])

    def attacked(name: str) -> float:
        near = [cdist(codes[x][:n], codes[name][:n]).min(axis=1) for x in ("training", "heldout")]
        return float(roc_auc_score(np.repeat([1, 0], n), -np.concatenate(near)))

    def of_rows(measure: Any) -> Any:
        return lambda name: measure(values["heldout"][:n], values[name][:n])

    def in_balls(figure: str) -> Any:
        return lambda name: precision_recall_density_coverage(
            codes["heldout"][:n], codes[name][:n]
        )[figure]

    pairs = likeness.trending_pairs(values["heldout"][:n])
    expected: dict[str, tuple[Any, str | float]] = {
        "column_shapes": (of_rows(likeness.column_shapes), "training"),
        "pair_trends": (
            of_rows(lambda real, fake: likeness.pair_trends(real, fake, pairs)), "training"
        ),
        "pair_distance": (of_rows(likeness.pair_distance), "training"),
        "missing_difference": (of_rows(likeness.missing_difference), 0.0),
        "rare_category_coverage": (of_rows(likeness.rare_category_coverage), "training"),
        "precision": (in_balls("precision"), "training"),
        "recall": (in_balls("recall"), "training"),
        "density": (in_balls("density"), "training"),
        "coverage": (in_balls("coverage"), "training"),
        "valid_share": (lambda name: valid(name).mean(), "training"),
        "rules_kept": (lambda name: kept(name).mean(), "training"),
        "tstr": (
            lambda name: uses.utility(values[name], values["heldout"], "1").value, "training"
        ),
        "detection_auroc": (lambda name: of_rows(uses.detection)(name).value, "training"),
        "authenticity": (authentic, "heldout"),
        "nearer_to_training": (
            lambda name: copies.nearer_to_training(
                codes[name][:n], codes["training"][:60], codes["heldout"]
            ).value,
            0.5,
        ),
        "distance_ratio": (ratio, 1.0),
        "exact_copies": (
            lambda name: np.mean([repr(row) in copied for row in values[name].tolist()]), "heldout"
        ),
        "membership_auroc": (attacked, 0.5),
    }  # fmt: skip
    assert list(figures) == [*expected, "critic_membership_auroc"]
    for name, (measure, floor) in expected.items():
        found = figures[name]
        assert found.value == pytest.approx(measure("made")), name
        assert found.floor == pytest.approx(measure(floor) if isinstance(floor, str) else floor)
        assert found.baseline == pytest.approx(measure("copula")), name
        assert found.n == n, name
        assert found.interval[0] <= found.value <= found.interval[1], name
    for name, of_rows_made in (("rules_kept", kept("made")), ("valid_share", valid("made"))):
        margin, mean = 1.96 * of_rows_made.std() / 10, of_rows_made.mean()
        assert margin > 0
        assert figures[name].interval == pytest.approx((mean - margin, min(1, mean + margin)))
    real, fake = (values[name][:n] for name in ("heldout", "made"))
    margins = half_sample_margins(
        lambda one, other: {"": likeness.pair_distance(one, other)}, real, fake, repeats=60
    )
    low, high = figures["pair_distance"].interval
    assert 0.4 < (high - low) / 2 / margins[""] < 2.5
    rare = figures["rare_category_coverage"]
    assert rare.interval == (rare.value, rare.value), "of 20 rows none has fewer than a twentieth"
    assert figures["critic_membership_auroc"].n == n
    with pytest.raises(ConfigError, match="no column 'again' that is learned"):
        judge_module.target_field("again", schema)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model of a small table, hardly trained."""
    folder = tmp_path_factory.mktemp("table")
    rng = default_rng(5)
    with (folder / "shop.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["size", "price", "kind", "gap"])
        for size in rng.gamma(2, 2, 700):
            price = round(10 * size * np.exp(0.1 * rng.normal()), 2)
            kind = "big" if size > 5 else "small" if rng.random() < 0.97 else "odd"
            write.writerow([round(size, 3), price, kind, "" if rng.random() < 0.2 else int(size)])
    config = build_config(
        "table",
        str(folder / "shop.csv"),
        None,
        {
            "training.steps": 40,
            "evaluation.samples": 120,
            "evaluation.target": "price",
            "generator.width": 32,
            "critic.width": 32,
        },
    )
    model, _, _ = trained(config, folder / "run", register=False)
    return model, folder / "run"


def test_a_table_is_judged_by_its_rows(run: tuple[Model, Path]) -> None:
    """All figures are there, beside floor and copula; judging again finds the same."""
    model, folder = run
    figures = model.run.results.figures
    of_all_rows = {"column_shapes", "pair_trends", "pair_distance", "recall"}
    assert {*METRICS} - {"rules_kept"} | of_all_rows <= {*figures}  # the table has no rules
    assert {*figures} <= {*FIGURES}
    for name, figure in figures.items():
        low, high = figure.interval
        assert low <= figure.value <= high, name
        assert (figure.baseline is None) == (name == "critic_membership_auroc"), name
        assert figure.floor is not None, name
    assert (figures["valid_share"].value, figures["valid_share"].interval) == (1, (1, 1))
    assert figures["exact_copies"].floor == 0  # equal rows are on one side
    tstr = figures["tstr"]
    assert tstr.floor is not None
    assert tstr.value < 0.9 < tstr.floor
    assert figures["pair_distance"].floor < figures["pair_distance"].value
    assert evaluate_artifact(folder / "artifact") == model.run.results
    assert {f.name for f in diagnose_run(folder)} >= {"low_diversity"}
    (line,) = (x for x in figures_in_words(figures) if x.startswith("column_shapes"))
    assert f"copula {figures['column_shapes'].baseline:.4g}" in line
    assert "| Gaussian copula |" in model_card(model.run)


def test_diversity_is_of_rows_before_the_run_is_judged(run: tuple[Model, Path]) -> None:
    """A generator gives shares of options, which lie between the rows that they become."""
    model, _ = run
    config = model.run.config
    data = load_data(config.data)
    found = diagnose(config, data, model.generator, model.critic)
    (judged,) = (f for f in found if f.name == "low_diversity")
    (recorded,) = (f for f in model.run.findings if f.name == "low_diversity")
    assert judged.value == pytest.approx(recorded.value, abs=0.15)


def test_the_report_shows_each_column(run: tuple[Model, Path]) -> None:
    """It is written with the run, the worst column first, and escapes what it prints."""
    model, folder = run
    page = (folder / "report.html").read_text()
    data = load_data(model.run.config.data)
    assert page == table_report(model, data, model.run.results)
    scores = [float(text.split("<")[0].split(";")[0]) for text in page.split(": score ")[1:]]
    assert len(scores) == 4
    assert scores == sorted(scores)
    for text in ("generated less real", "<b>price</b>", "missing in", "tstr", "what it is"):
        assert text in page
    images = load_data(build_config("digits").data)
    with pytest.raises(UserError, match="models of tables"):
        table_report(model, images, model.run.results)


def test_an_unknown_target_is_told_before_training(run: tuple[Model, Path]) -> None:
    model, _ = run
    data = load_data(model.run.config.data)
    with pytest.raises(ConfigError, match="no column 'prise' that is learned; did you mean"):
        require_evaluation(EvaluationConfig(target="prise"), data)
    with pytest.raises(ConfigError, match="only a table has columns"):
        require_evaluation(EvaluationConfig(target="price"), load_data(build_config("digits").data))


def test_a_copy_is_valid_where_it_is_the_other_column_s_value() -> None:
    """Also where neither has one, and not where one has; what is not there does not count."""
    table = pa.table({"a": [1.0, 2.0, None, None, 5.0], "b": ["1", "3", None, "4", None]})
    number = NumberColumn(name="a", type="double", low=0, high=9, spikes=(1, 2, 5), missing=0.1)
    schema = TableSchema(columns=(
        number,
        CopyColumn(name="b", type="string", of="a"),
        ConstantColumn(name="c", type="string", value="one"),
    ))  # fmt: skip
    reading = valid_share(None, Rows(table, schema))  # type: ignore[arg-type]
    assert reading.value == np.mean([1, 0.5, 1, 0.5, 0.5])


def test_the_share_of_rows_that_keep_to_all_rules() -> None:
    """Two rows of four keep to both rules; without rules there is no figure."""
    table = pa.table(
        {"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0, 3.0, 4.0, 1.0], "c": [3.0, 5.0, 6.0, 5.0]}
    )
    columns = tuple(
        NumberColumn(name=name, type="double", low=0, high=9) for name in table.column_names
    )
    schema = TableSchema(columns=columns, rules=(*parse_rule("a < b"), *parse_rule("c = a + b")))
    reading = rules_kept(None, Rows(table, schema))  # type: ignore[arg-type]
    assert reading is not None
    assert reading.value == 0.5
    assert rules_kept(None, Rows(table, TableSchema(columns=columns))) is None  # type: ignore[arg-type]


def test_tables_pass_gates_by_their_figures(run: tuple[Model, Path]) -> None:
    """Values must be valid, any figure may be limited, and models compare by their rows."""
    model, _ = run
    data = load_data(model.run.config.data)
    same = RegisteredModel("1", model)
    evidence = Evidence(model, same, same, data, data, None, "pair_distance", 120, model.table)
    limits = GatesConfig(least={"column_shapes": 0.999}, most={"detection_auroc": 1.0})
    found = {gate.name: gate for gate in challenger_gates(evidence, limits)}
    assert {"memorisation", "membership"} <= {*found}
    assert not {"precision", "recall", "coverage"} & {*found}
    assert found["valid_share"].passed
    assert found["detection_auroc"].passed
    assert not found["column_shapes"].passed
    schema, known, champion = champion_gates(evidence, limits)
    assert schema.passed, schema.reason
    assert known.passed, known.reason
    assert champion.challenger == champion.reference
    assert champion.challenger == pytest.approx(
        model.run.results.figures["pair_distance"].value, rel=0.05
    )


def test_a_trusted_set_judges_all_but_copies(run: tuple[Model, Path]) -> None:
    """What gives training rows away is known of the training rows only."""
    model, _ = run
    data, judged = (load_data(model.run.config.data, card=model.run.data) for _ in range(2))
    evidence = Evidence(model, None, None, judged, data, None, "pair_distance", 120, model.table)
    recorded = dict[str, Figure](model.run.results.figures)
    assert evidence.figures == recorded
    changed = {name: figure.model_copy(update={"value": -1.0}) for name, figure in recorded.items()}
    results = model.run.results.model_copy(update={"figures": changed})
    model.run = model.run.model_copy(update={"results": results})
    again = Evidence(model, None, None, judged, data, None, "pair_distance", 120, model.table)
    copied = {name for name, figure in again.figures.items() if figure.value == -1.0}
    assert copied == {*COPY_FIGURES}
