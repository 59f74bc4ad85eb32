"""Whether two sets are the same: a test of known size and power, and what a failure says."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, kstest

import wgan
from benchmarks.w1 import power
from models.errors import UserError
from models.trained import TrainedModel
from tests.artifacts import make_artifact
from tests.code_blocks import to_run
from training.lab import measure as lab_measure
from training.lab import sameness, two_samples
from training.lab.two_samples import two_sample_test

Array = np.ndarray
Rng = np.random.Generator
LEVEL = 0.1
PAIRS = 100
CHANCE = 1e-3
"""Probability, at most, that a test of a true statement fails by chance."""


def normal(rng: Rng, count: int) -> Array:
    return rng.normal(size=(count, 5))


def mixed(rng: Rng, count: int) -> Array:
    """Heavy tails, few whole numbers, a rare event and a column that depends on another."""
    far = rng.standard_cauchy(count)
    columns = [far, far + rng.normal(size=count), rng.poisson(0.3, count), rng.random(count) < 0.03]
    return np.column_stack(columns).astype(float)


def copied(rng: Rng, count: int) -> Array:
    """Each row three times: no further evidence."""
    return np.repeat(rng.normal(size=(count, 2)), 3, axis=0)


@pytest.mark.parametrize("groups", [10, 1000])
@pytest.mark.parametrize("draw", [normal, mixed, copied])
def test_alike_sets_differ_no_oftener_than_the_level(
    draw: Callable[[Rng, int], Array], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one set is larger, and where rows are assigned in groups."""
    monkeypatch.setattr(two_samples, "GROUPS", groups)
    monkeypatch.setattr(two_samples, "PERMUTATIONS", 99)
    found = []
    for seed in range(PAIRS):
        rng = np.random.default_rng([seed, groups])
        found.append(two_sample_test(draw(rng, 60), draw(rng, 150), seed).p_value)
    assert binom.sf(sum(p <= LEVEL for p in found) - 1, PAIRS, LEVEL) > CHANCE
    assert kstest(found, "uniform").pvalue > CHANCE, "nor much seldomer"


# Twice as far apart as where the benchmark measures the power, so that every pair is told apart.
DIFFERENT: dict[str, Callable[[Rng], tuple[Array, Array]]] = {
    "one column shifted": lambda g: (g.normal(size=(N, 16)) + 0.5 * np.eye(1, 16), normals(g)),
    "another deviation": lambda g: (1.2 * normals(g), normals(g)),
    "correlations": lambda g: (power._correlated(g, N, 0.4), power._correlated(g, N, 0)),
    "some rows far away": lambda g: (normals(g) + 15 * (g.random((N, 1)) < 0.04), normals(g)),
    "heavy tails": lambda g: (power._student(g, N, 2.5), g.normal(size=(N, 8))),
    "modes missing": lambda g: (power._gaussians(g, N, 21), power._gaussians(g, N, 25)),
    "blurred images": lambda g: power._blurred(g, N),
}
N = 500


def normals(rng: Rng) -> Array:
    return rng.normal(size=(N, 16))


@pytest.mark.parametrize("name", DIFFERENT)
def test_differences_of_many_kinds_are_found(name: str) -> None:
    for seed in range(3):
        assert two_sample_test(*DIFFERENT[name](np.random.default_rng(seed)), seed).p_value <= 0.01


def test_all_rows_count_though_they_are_assigned_in_groups() -> None:
    """A shift that 1,000 of these rows would hardly show; and one side has few rows."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20_000, 3))
    a[:, 1] += 0.05
    assert two_sample_test(a, b).p_value == 0.001
    assert two_sample_test(a[:1000], b[:1000]).p_value > 0.05
    few = two_sample_test(rng.normal(0.5, 1, (100, 3)), b)
    assert few.p_value == 0.001
    assert few.rows == (100, 400)


def test_units_and_offsets_of_columns_do_not_matter() -> None:
    """A column of a tiny spread, beside one of a huge spread, and both far from 0."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 400, 2))
    a[:, 1] += 0.5
    scaled = [x * [1e12, 1e-3] + [1e15, 1e6] for x in (a, b)]
    assert two_sample_test(a, b).p_value == two_sample_test(*scaled).p_value == 0.001
    whole = [np.round(x * 100).astype(np.int64) + 2**60 for x in (a, b)]
    assert two_sample_test(*whole).p_value == 0.001


@pytest.mark.usefixtures("few_steps")
def test_a_balanced_design_keeps_its_rows() -> None:
    """Every combination of two columns equally often, and one where the shares of one differ."""
    rng = np.random.default_rng(0)
    cells = pd.MultiIndex.from_product([list("xyz"), list("klmn")], names=["one", "two"])
    a = cells.to_frame(index=False).loc[np.repeat(np.arange(12), 100)].reset_index(drop=True)
    b = a.assign(one=rng.choice(list("xyz"), 1200, p=[0.8, 0.1, 0.1]))
    message, _ = failure(a, b)
    assert "1200 rows of A and 1200 of B" in message


def test_one_set_is_like_itself_and_a_seed_repeats_itself() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 300, 4))
    assert two_sample_test(a, a.copy()).p_value > 0.5
    first, again, other = (two_sample_test(a, b, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


# --- for people's own tests --------------------------------------------------------------------


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the critic that measures a difference which was found, where no figure of its is asked."""
    monkeypatch.setattr(sameness, "STEPS", 20)


def failure(*args: Any, **options: Any) -> tuple[str, wgan.DistributionsDiffer]:
    with pytest.raises(AssertionError) as caught:
        wgan.assert_same_distribution(*args, **options)
    assert isinstance(caught.value, wgan.DistributionsDiffer)
    return str(caught.value), caught.value


def test_a_failure_says_what_differs_and_by_how_much(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "height": rng.normal(170, 10, 800), "mass": rng.normal(70, 15, 800),
        "kind": rng.choice(["oak", "ash"], 800),
    })  # fmt: skip
    later = frame.sample(frac=1, random_state=1).assign(height=rng.normal(175, 10, 800))
    later.loc[:300, "mass"] = np.nan
    wgan.assert_same_distribution(frame, frame.sample(frac=1, random_state=2))
    out = tmp_path / "page.html"
    message, error = failure(frame, later, seed=3, out=out)
    assert message.startswith("A and B differ\n  p 0.001, and up to 0.01 counts as a difference")
    assert "800 rows of A and 800 of B, seed 3" in message
    assert re.search(r"height: mean 1[67]\d.* in A, mean 17\d.* in B; moved by", message)
    assert "mass: " in message
    assert "missing 0.0% in A" in message
    assert "kind" not in message.partition("together")[0].partition("units")[2]
    assert str(out) in message
    assert "height" in out.read_text()
    assert error.distance is not None
    assert f"W1 is about {error.distance.value:.4g}" in message
    assert error.distance.report["columns"][0] == "height"


@pytest.mark.usefixtures("few_steps")
def test_a_difference_in_dependence_alone_is_said() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2000, 2))
    a[:, 1] = 0.6 * a[:, 0] + 0.8 * a[:, 1]
    message, _ = failure(a, b)
    assert "no column changed by itself" in message
    assert 'out="page.html"' in message


def test_a_tolerance_forgives_what_is_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W1 is 1: as much is forgiven, and half of it is not."""
    monkeypatch.setattr(sameness, "STEPS", 50)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1000, 2))
    a[:, 0] += 1
    wgan.assert_same_distribution(a, b, tolerance=1)
    out = tmp_path / "page.html"
    message, error = failure(a, b, tolerance=0.5, out=out)
    assert "0.99 confidence" in message
    assert "tolerated: 0.5" in message
    assert error.distance is not None
    assert error.distance.report["confidence"] == 0.99
    assert "at least, with 99% confidence" in out.read_text()
    assert "95%" not in out.read_text()
    assert 0.5 < error.distance.lower < 1


def test_a_tolerated_distance_is_exceeded_no_oftener_than_the_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """W1 is the tolerance, so that only chance finds more; after few steps, as for any critic."""
    monkeypatch.setattr(sameness, "STEPS", 5)
    fails = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, b = rng.exponential(size=(2, 200, 1))
        try:
            wgan.assert_same_distribution(a + 1, b, tolerance=1, level=0.2, seed=seed)
        except AssertionError:
            fails += 1
    assert binom.sf(fails - 1, 20, 0.2) > CHANCE


@pytest.mark.usefixtures("few_steps")
def test_a_model_and_files_and_what_is_in_memory_meet(tmp_path: Path) -> None:
    model = TrainedModel(make_artifact(tmp_path / "artifact", "image"))
    images = model.sample(200, seed=9)
    np.save(tmp_path / "images.npy", images)
    wgan.assert_same_distribution(model, images)
    wgan.assert_same_distribution(tmp_path / "images.npy", tmp_path / "artifact", count=150)
    failure(model, 255 - images)
    rows = TrainedModel(make_artifact(tmp_path / "rows", "rows"))
    wgan.assert_same_distribution(rows, rows.sample(300, seed=9), count=300)
    changed = rows.sample(300, seed=9)
    changed["age"] += 40
    message, _ = failure(changed, rows, count=300)
    assert "age: " in message


def test_a_difference_that_the_critic_misses_is_told() -> None:
    rng = np.random.default_rng(0)
    a, b = normals(rng), normals(rng)
    missed = wgan.wasserstein_1(1.2 * a, b, steps=5, batch_size=32).report
    assert missed["p_value"] > 0.05
    assert missed["two_sample_p_value"] <= 0.01
    assert "a two-sample test of all samples does (p 0.001)" in missed["cautions"][0]
    alike = wgan.wasserstein_1(a, b, steps=5, batch_size=32).report
    assert not any("two-sample" in caution for caution in alike["cautions"])


def test_a_distance_of_frames_names_columns_and_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=80), "kind": rng.choice(["a", "b"], 80)})
    frame.assign(x=frame.x + 5).to_csv(tmp_path / "later.csv", index=False)
    found = wgan.wasserstein_1(frame, tmp_path / "later.csv", steps=5, batch_size=32)
    assert "most of it is in x" in found.verdict
    assert sorted(found.report["columns"]) == ["kind = a", "kind = b", "x"]
    assert found.report["read"][0] == "A: 80 rows in memory"
    assert found.report["changes"][0]["distance"] == pytest.approx(5)
    grey = rng.integers(0, 256, (2, 60, 9, 8)).astype(np.uint8)
    assert wgan.wasserstein_1(*grey, steps=2, batch_size=8).gradient(grey[0]).shape == (60, 9, 8)
    with pytest.raises(UserError, match=r"data\.sise"):
        wgan.wasserstein_1(frame, tmp_path / "later.csv", data={"sise": 3})


@pytest.mark.usefixtures("few_steps")
def test_other_columns_are_a_difference() -> None:
    frame = pd.DataFrame({"a": np.arange(60.0), "b": np.arange(60.0) % 7})
    message, _ = failure(frame, frame.assign(c=1.5))
    assert message.startswith("A and B have other columns\n  columns of one side alone")
    assert "only B has c" in message
    assert "column changed by itself" not in message
    assert "together: " not in message


@pytest.mark.usefixtures("few_steps")
def test_columns_that_are_left_out_are_named_in_a_failure() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=200), "gone": np.full(200, None)})
    frame["pair"] = [[i, i] for i in range(200)]
    wgan.assert_same_distribution(frame, frame.assign(pair=[[-1]] * 200))
    message, _ = failure(frame, frame.assign(a=frame.a + 3))
    assert "\n  A: 200 rows in memory\n" in message
    for name in ("gone", "pair"):
        assert f"{name!r}" in message


def test_the_test_is_made_once_for_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes most of the time of many rows."""
    monkeypatch.setattr(sameness, "STEPS", 5)
    made = []
    for module in (sameness, lab_measure):
        monkeypatch.setattr(
            module, "two_sample_test", lambda *args: made.append(1) or two_sample_test(*args)
        )
    a, b = np.random.default_rng(0).normal(size=(2, 200, 2))
    _, error = failure(a + 3, b)
    assert len(made) == 1
    assert error.distance is not None
    assert error.distance.report["two_sample_p_value"] == 0.001


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"level": 0.0001}, "level 0.0001: must be from 0.001"),
        ({"level": 1.0}, "level 1: must be"),
        ({"level": "x"}, "level 'x': must be"),
        ({"tolerance": None}, "tolerance None: must be"),
        ({"seed": -1}, "seed -1: must be a whole number, 0 or above"),
        ({"count": 0}, "count 0: must be a whole number, 1 or above"),
        ({"tolerance": -1.0}, "tolerance -1: must be"),
        ({"tolerance": float("nan")}, "tolerance nan"),
        ({"training": {"steps": 3}}, "training.steps: nothing is trained here"),
        ({"out": "."}, "is a folder"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], says: str) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 100, 1))
    with pytest.raises(UserError, match=says):
        wgan.assert_same_distribution(a, b, **options)


def test_samples_that_cannot_be_compared() -> None:
    a = np.random.default_rng(0).normal(size=(100, 2))
    for b, says in (
        (a[:20], "B: needs at least 50"),
        (a[:, :1], "A has items of shape"),
        (a.astype(object), "B: needs"),
        (np.where(a > 1, np.nan, a), "B: holds NaN"),
    ):
        with pytest.raises(UserError, match=says):
            wgan.assert_same_distribution(a, b)


def test_the_error_is_a_plain_assertion_error() -> None:
    error = wgan.DistributionsDiffer("A and B differ")
    assert isinstance(copy.copy(error), AssertionError)
    assert type(error).__module__ == "wgan"
    assert str(wgan.DistributionsDiffer("A and B differ", None)) == "A and B differ"


@pytest.mark.usefixtures("few_steps")
def test_the_example_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    for code in to_run("docs/w1.md", "python"):
        exec(code, {})
    said = capsys.readouterr().out
    assert said.startswith("A and B differ")
    assert "x1: mean 0.3" in said
