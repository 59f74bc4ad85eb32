"""The figures that gates decide by, against the definitions that their names are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from models import registry
from models.artifact import load_artifact
from models.config import DataConfig, EvaluationConfig
from models.errors import ConfigError
from models.record import Extractor, Figure
from models.sampling import Scaling
from models.tables import TableSchema
from tests.artifacts import make_artifact, tiny_config
from tests.mixed import people_schema
from tests.registries import new_database
from training.data.dataset import Dataset, load_data
from training.judging.copying import membership
from training.judging.evaluate import SAMPLE_SEED
from training.judging.extractors import load_extractor
from training.judging.figures import distance, distances
from training.judging.intervals import compare, compare_kernel_distances, measure
from training.judging.tables.rows import comparable
from training.retraining import evidence
from training.retraining.evidence import (
    Evidence,
    RegisteredModel,
    choose_features,
    choose_loss,
    different_columns,
    have_one_form,
    judged_data,
    loss_floor,
    make_the_same,
)

SIZE = 3


class Sampler:
    """A model of normal points, of which each depends on seed and index alone."""

    shape = (SIZE,)
    table = None

    def __init__(self, center: float = 0.0, scale: float = 1.0) -> None:
        self.center = center
        self.scaling = Scaling((SIZE,), [0.0] * SIZE, [scale] * SIZE)
        self.asked: list[tuple[int, int, int]] = []

    def sample(self, seed: int, count: int) -> np.ndarray:
        return default_rng(1000 + seed).normal(self.center, 1, (count, SIZE)).astype(np.float32)

    def samples(self, seed: int, count: int, start: int) -> Any:
        self.asked.append((seed, count, start))
        part = self.sample(seed, start + count)[start:]
        return iter(np.split(part, [count // 2]))


def data_of(heldout: int, training: int, shift: float = 0.0, seed: int = 0) -> Dataset:
    """Items of which the held-out ones are spread over all."""
    rng = default_rng(seed)
    is_heldout = rng.permutation(np.arange(heldout + training) < heldout)
    items = (rng.normal(size=(heldout + training, SIZE)) + shift).astype(np.float32)
    return Dataset(items, is_heldout, None, None, None)  # type: ignore[arg-type]


def evidence_of(challenger: Any, judged: Dataset, n: int, **more: Any) -> Evidence:
    given = {"champion": None, "best": None, "extractor": None, "loss": "sliced_wasserstein_1"}
    return Evidence(challenger, judged=judged, n=n, **{**given, "data": judged, **more})


def test_points_are_of_the_side_that_their_name_is() -> None:
    """In the champion's units, where it makes items of one form."""
    challenger, data, judged = Sampler(scale=2.0), data_of(30, 40), data_of(30, 40, 5.0)
    found = evidence_of(challenger, judged, 20, data=data)
    np.testing.assert_array_equal(found.real, judged.sample(20, heldout=True) / 2)
    np.testing.assert_array_equal(found.training, data.sample(20, heldout=False) / 2)
    np.testing.assert_array_equal(found.fake, challenger.sample(SAMPLE_SEED, 20) / 2)
    assert found.real.dtype == np.float64
    champion: Any = Sampler(scale=4.0)
    found = evidence_of(challenger, judged, 20, champion=RegisteredModel("1", champion))
    np.testing.assert_array_equal(found.real, judged.sample(20, heldout=True) / 4)
    champion.shape = (SIZE, 1)  # it makes something else
    found = evidence_of(challenger, judged, 20, champion=RegisteredModel("1", champion))
    np.testing.assert_array_equal(found.real, judged.sample(20, heldout=True) / 2)


def test_sequences_are_points_of_all_their_values() -> None:
    items = default_rng(0).normal(size=(50, 4, 2)).astype(np.float32)
    data = Dataset(items, np.arange(50) < 25, None, None, None)  # type: ignore[arg-type]
    challenger = SimpleNamespace(shape=(4, 2), scaling=Scaling((4, 2), [0.0] * 2, [1.0] * 2))
    found = evidence_of(challenger, data, 25).real
    np.testing.assert_array_equal(found, items[:25].reshape(25, 8))


def test_images_are_points_of_their_features() -> None:
    items = default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    data = Dataset(items, np.arange(40) < 20, None, None, None)  # type: ignore[arg-type]
    extract = load_extractor("pixels", EvaluationConfig())
    model = SimpleNamespace(shape=(1, 8, 8), scaling=Scaling((1, 8, 8), [], []))
    found = evidence_of(model, data, 20, extractor=extract)
    np.testing.assert_array_equal(found.real, extract(items[:20]))


def test_all_training_items_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ITEMS_AT_ONCE", 7)
    for count in (20, 21):
        data = data_of(9, count)
        pieces = list(evidence_of(Sampler(), data, 9).all_training())
        assert [len(piece) for piece in pieces] == [7, 7, count - 14]
        np.testing.assert_array_equal(np.concatenate(pieces), data.items[~data.is_heldout])


@pytest.mark.parametrize(("training", "drawn"), [(10, 20), (30, 30), (70, 50)])
def test_the_attack_draws_as_many_samples_as_there_are_training_items(
    training: int, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But at least as many as are judged, here 20, and no more than a bound, here 50."""
    monkeypatch.setattr(evidence, "ATTACK_SAMPLES", 50)
    monkeypatch.setattr(evidence, "ITEMS_AT_ONCE", 8)
    challenger, data = Sampler(), data_of(25, training)
    found = evidence_of(challenger, data_of(25, 25, 9.0), 20, data=data).membership
    assert [start for _, _, start in challenger.asked] == [*range(0, drawn, 8)]
    assert sum(count for _, count, _ in challenger.asked) == drawn
    assert max(count for _, count, _ in challenger.asked) == 8
    members, others = data.sample(20, heldout=False), data.sample(20, heldout=True)
    samples = np.concatenate(
        [challenger.sample(SAMPLE_SEED, first + 8)[first:drawn] for first in range(0, drawn, 8)]
    )
    near, far = (-cdist(items, samples).min(axis=1) for items in (members, others))
    truth = np.repeat([1, 0], [len(members), len(others)])
    assert found.auroc == pytest.approx(roc_auc_score(truth, np.concatenate([near, far])), abs=1e-6)
    expected = membership(near, far)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_trusted_set_judges_all_but_what_tells_of_copies(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact", "vector"))
    recorded = {
        name: Figure(value=-1.0, floor=None, interval=(-1, 1), n=10, better="higher")
        for name in ("precision", "authenticity", "unheard_of")
    }
    results = model.run.results.model_copy(update={"figures": recorded})
    model.run = model.run.model_copy(update={"results": results})
    data, judged = (load_data(DataConfig(source="8gaussians")) for _ in range(2))
    own = evidence_of(model, data, 200, loss="wasserstein_1")
    assert own.figures == recorded
    other = evidence_of(model, judged, 200, data=data, loss="wasserstein_1").figures
    assert other["authenticity"] == recorded["authenticity"]
    assert other["precision"].value >= 0
    assert "unheard_of" not in other


def test_a_loss_is_of_the_held_out_items_that_judge() -> None:
    model, data, judged = Sampler(), data_of(60, 70, 1.0), data_of(60, 70, 2.0)
    found = evidence_of(Sampler(9.0), judged, 50, data=data).loss_of(model, 30)  # type: ignore[arg-type]
    expected = measure(
        distances("sliced_wasserstein_1"),
        judged.sample(50, heldout=True).astype(np.float64),
        model.sample(SAMPLE_SEED, 50)[:30].astype(np.float64),
        data.sample(50, heldout=False).astype(np.float64),
    )
    assert found == expected["sliced_wasserstein_1"]


@pytest.mark.parametrize("loss", ["sliced_wasserstein_1", "kernel_distance"])
def test_losses_are_compared_on_the_held_out_items_that_judge(loss: str) -> None:
    challenger, champion, judged = Sampler(0.1), Sampler(0.4), data_of(60, 70)
    found = evidence_of(challenger, judged, 50, data=data_of(60, 70, 3.0), loss=loss)
    real = judged.sample(50, heldout=True).astype(np.float64)
    first, second = (
        model.sample(SAMPLE_SEED, 50).astype(np.float64) for model in (challenger, champion)
    )
    expected = (
        compare_kernel_distances(real, first, second, level=0.9)
        if loss == "kernel_distance"
        else compare(distances(loss), real, first, second, level=0.9)[loss]
    )
    assert found.loss_difference(champion) == expected  # type: ignore[arg-type]


def test_a_loss_grows_by_chance_where_there_are_fewer_points() -> None:
    found, model = evidence_of(Sampler(), data_of(30, 30), 20), Sampler()
    for few, many in ((50, 50), (60, 50)):
        assert found.loss_growth(model, few, many) == 0  # type: ignore[arg-type]
    points = model.sample(SAMPLE_SEED + 1, 100).astype(np.float64)  # others than the loss is of
    smaller, larger = (loss_floor("sliced_wasserstein_1", points, n) for n in (10, 50))
    grown = found.loss_growth(model, 10, 50)  # type: ignore[arg-type]
    assert grown == pytest.approx(smaller - larger)
    assert grown > 0


@pytest.mark.parametrize(("count", "n", "sets"), [(20, 3, 3), (24, 3, 4), (6, 3, 1), (11, 3, 1)])
def test_a_floor_is_the_mean_over_disjoint_sets(count: int, n: int, sets: int) -> None:
    points = default_rng(0).normal(size=(count, 2))
    starts = [2 * n * i for i in range(sets)]
    found = [
        distance("wasserstein_1", points[i : i + n], points[i + n : i + 2 * n]) for i in starts
    ]
    assert loss_floor("wasserstein_1", points, n) == pytest.approx(np.mean(found))


def test_figures_compare_over_the_same_features_only() -> None:
    own = Extractor(name="pixels", sha256="1" * 64)
    for used, recorded, alike in (
        (None, None, True),
        (own, own, True),
        (own, own.model_copy(update={"name": "renamed"}), True),
        (own, own.model_copy(update={"sha256": "2" * 64}), False),
        (own, None, False),
        (None, own, False),
    ):
        extractor = None if used is None else SimpleNamespace(card=used)
        found = evidence_of(Sampler(), data_of(20, 20), 20, extractor=extractor)
        model: Any = SimpleNamespace(run=SimpleNamespace(results=SimpleNamespace()))
        model.run.results.extractor = recorded
        assert found.judged_alike(model) is alike


def test_rows_are_compared_by_their_values_and_lie_where_their_codes_do(tmp_path: Path) -> None:
    schema = people_schema()
    model = load_artifact(make_artifact(tmp_path / "rows", "rows", table_schema=schema))
    codes = model.sample(7, 60)
    data = Dataset(codes, np.arange(60) < 30, None, None, None)  # type: ignore[arg-type]
    found = evidence_of(model, data, 30, loss="pair_distance", schema=schema)
    again = schema.encode(schema.decode(codes[:30]))
    np.testing.assert_array_equal(found.real, again.astype(np.float64))
    samples = model.sample(SAMPLE_SEED, 30)
    expected = compare(
        distances("pair_distance"),
        comparable(schema.decode(codes[:30]), schema),
        *[comparable(model.rows(samples, SAMPLE_SEED), schema)] * 2,
        level=0.9,
    )
    assert found.loss_difference(model) == expected["pair_distance"]


# What compares


def image(range: Any = None, is_uint8: bool = False, shape: tuple[int, ...] = (1, 8, 8)) -> Any:
    data = SimpleNamespace(range=range)
    return SimpleNamespace(
        shape=shape,
        table=None,
        scaling=SimpleNamespace(is_uint8=is_uint8),
        run=SimpleNamespace(data=data),
    )


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (image((0, 1)), image((0, 1)), True),
        (image((0, 1)), image((-1, 1)), False),
        (image((0, 1)), image((0, 1), shape=(3, 8, 8)), False),
        (image((0, 255), True), image(None, True), True),
        (image((0, 1), True), image((0, 1)), False),
        (image((0, 1), shape=(4, 2)), image((0, 2), shape=(4, 2)), True),
        (image((0, 1), shape=(2,)), image((0, 2), shape=(2,)), True),
        (image(shape=(2,)), image(shape=(3,)), False),
    ],
)
def test_items_compare_by_shape_and_images_of_floats_by_range(
    one: Any, other: Any, alike: bool
) -> None:
    for first, second in ((one, other), (other, one)):
        assert have_one_form(first, second) is alike
        assert make_the_same(first, second) is alike


def schema_of(*names: str, **kinds: str) -> TableSchema:
    """Of the columns of people with these names, some of them as if they were of another kind."""
    columns = [c for c in people_schema().columns if c.name in names]
    changed = [SimpleNamespace(name=c.name, kind=kinds.get(c.name, c.kind)) for c in columns]
    return TableSchema.model_construct(columns=changed)


def test_rows_compare_by_their_columns() -> None:
    one, same = schema_of("age", "home"), schema_of("home", "age")
    assert different_columns(one, same) == []
    assert different_columns(one, schema_of("home", "income")) == ["age", "income"]
    assert different_columns(one, schema_of("home")) == ["age"]
    assert different_columns(schema_of("home"), one) == ["age"]
    assert different_columns(one, schema_of("age", "home", age="time")) == ["age"]
    shapes = {"shape": (3,)}, {"shape": (9,)}  # codes of one column may be of another width

    def model(table: Any, more: dict[str, Any]) -> Any:
        return SimpleNamespace(table=table, **more)

    assert make_the_same(model(one, shapes[0]), model(same, shapes[1]))
    assert not make_the_same(model(one, shapes[0]), model(schema_of("age"), shapes[0]))
    for first, second in ((one, None), (None, one)):
        assert not make_the_same(model(first, shapes[0]), model(second, shapes[1]))
        assert make_the_same(model(first, shapes[0]), model(second, shapes[0]))


@pytest.mark.parametrize(
    ("kind", "losses", "others"),
    [
        ("vector", ["wasserstein_1", "sliced_wasserstein_1"], ["kernel_distance"]),
        ("image", ["kernel_distance", "frechet_distance"], ["wasserstein_1"]),
        ("sequence", ["sliced_wasserstein_1"], ["pair_distance"]),
        ("table", ["pair_distance"], ["wasserstein_1"]),
    ],
)
def test_a_loss_suits_the_data(kind: str, losses: list[str], others: list[str]) -> None:
    is_table = kind == "table"
    card: Any = SimpleNamespace(kind="vector" if is_table else kind, table=is_table or None)
    assert choose_loss(None, card) == losses[0]
    for loss in losses:
        assert choose_loss(loss, card) == loss
    for loss in others:
        says = f"^gates.loss: {loss} is not for {kind}s; use {' or '.join(losses)}$"
        with pytest.raises(ConfigError, match=says):
            choose_loss(loss, card)


def test_the_new_data_judge_unless_others_are_trusted(tmp_path: Path) -> None:
    config = tiny_config("vector", data={"source": "8gaussians"})
    data = load_data(config.data)
    assert judged_data(None, config, data) is data
    for size in (2, 3):
        np.save(tmp_path / f"{size}.npy", default_rng(0).normal(size=(100, size)))
    trusted = judged_data(str(tmp_path / "2.npy"), config, data)
    assert trusted.card.count == 100
    with pytest.raises(ConfigError, match=r"holds items of shape \(3,\), the data of \(2,\)"):
        judged_data(str(tmp_path / "3.npy"), config, data)


def test_images_are_judged_over_the_first_champion_s_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is one, over the challenger's; other data over none."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    pixels, digits = (load_extractor(x, EvaluationConfig()) for x in ("pixels", "digits-cnn-v1"))
    vector = make_artifact(tmp_path / "vector", "vector")
    assert choose_features(tiny_config("vector"), load_artifact(vector), vector) is None
    folder = make_artifact(tmp_path / "image")
    model = load_artifact(folder)
    results = model.run.results.model_copy(update={"extractor": pixels.card})
    model.run = model.run.model_copy(update={"results": results})
    found = choose_features(tiny_config(), model, folder)
    assert found is not None
    assert found.card == pixels.card
    tags = {registry.EXTRACTOR_TAG: digits.card.model_dump_json()}
    run = registry.client().create_run("0")
    registry.register("tiny", run.info.run_id, folder.as_uri(), tags)
    registry.promote("tiny", "1", "first")
    found = choose_features(tiny_config(), model, folder)
    assert found is not None
    assert found.card == digits.card
