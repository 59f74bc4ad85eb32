"""A loaded model: what it makes of seeds, latents and codes, and what it takes for items."""

import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from models import sampling
from models.artifact import SERVED, SUMS, load_artifact
from models.distance import Distance, DistributionsDiffer
from models.errors import ArtifactError, ClassError, ConditionError, ShapeError, UserError
from models.images import fit
from models.model import QUANTILE_LEVELS, Model
from models.tables import Condition
from models.tables.frames import to_frame
from models.trained import load, load_served
from tests.artifacts import make_artifact
from tests.mixed import people

RNG = np.random.default_rng(0)
CLASSES = {"a": 5, "b": 0, "c": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        kind: load_artifact(make_artifact(folder / kind, kind))
        for kind in ("image", "rgb", "vector", "sequence", "rows")
    }
    classes = make_artifact(folder / "classes", class_counts=CLASSES)
    return made | {"classes": load_artifact(classes)}


def changed(model: Model, **data: Any) -> Model:
    """The same networks, with another data card."""
    run = model.run.model_copy(update={"data": model.run.data.model_copy(update=data)})
    return Model(run, model.generator, model.critic, model.quantiles, model.digest)


def all_of(parts: Any) -> np.ndarray:
    return np.concatenate(list(parts))


def test_classes_are_those_that_were_trained(models: dict[str, Model]) -> None:
    model, plain = models["classes"], models["image"]
    assert (model.label("a"), model.label("c")) == (0, 2)
    for name, shown in (("b", "b"), ("x" * 200, "x" * 100)):
        with pytest.raises(ClassError, match=f"^no class '{shown}'; there are: a, c$"):
            model.label(name)
    for refused in (
        lambda: plain.label("a"),
        lambda: plain.sample(0, 2, 1),
        lambda: plain.require_labels(2, np.zeros(2, int)),
    ):
        with pytest.raises(ClassError, match="not class-conditional; leave out the class"):
            refused()
    assert plain.labels(3, 4) is None
    counts = np.array(list(CLASSES.values()))
    drawn = model.labels(3, 60)
    np.testing.assert_array_equal(drawn, sampling.draw_labels(3, 0, 60, counts))
    np.testing.assert_array_equal(model.labels(3, 20, 40), drawn[40:])
    unconditional = changed(plain, classes=["a"], class_counts=[8])
    assert unconditional.classes == []
    plain.require_labels(2, None)
    model.require_labels(2, np.zeros(2, int))
    with pytest.raises(ClassError, match="give the class of each item"):
        model.require_labels(2, None)
    with pytest.raises(ClassError, match=r"^2 items have 3 classes; give one of each"):
        model.require_labels(2, np.zeros(3, int))


@pytest.mark.parametrize("kind", ["image", "classes", "vector", "rows"])
def test_samples_are_those_of_their_latents_and_labels(models: dict[str, Model], kind: str) -> None:
    model = models[kind]
    first = model.run.engine.chunk
    count = first + 9  # more than one forward
    z = model.latents(5, count)
    np.testing.assert_array_equal(z, sampling.latents(5, 0, count, model.latent_size))
    np.testing.assert_array_equal(model.latents(5, 9, first), z[first:])
    bounded = model.latents(5, 9, first, truncation=0.5)
    np.testing.assert_array_equal(bounded, sampling.truncate(z[first:], 0.5))
    labels = model.labels(5, count)
    whole = model.sample(5, count)
    assert all_of(model.decode(z, labels)).tobytes() == whole.tobytes()
    assert all_of(model.samples(5, 9, first)).tobytes() == whole[first:].tobytes()
    assert all_of(model.samples(5, count)).tobytes() == whole.tobytes()
    last = None if labels is None else labels[first:]
    truncated = all_of(model.samples(5, 9, first, truncation=0.5))
    again = all_of(model.decode(bounded, last))
    assert truncated.tobytes() == again.tobytes()
    with torch.inference_mode():
        given = [] if labels is None else [torch.from_numpy(labels[:4])]
        made = model.scaling.to_data(model.generator(torch.from_numpy(z[:4]), *given)).numpy()
    apart = np.abs(made.astype(float) - whole[:4])
    assert apart.max() <= (1 if model.is_image else 1e-5), "but for rounding"
    if labels is not None:
        one = model.sample(5, 6, 2)
        assert one.tobytes() == model.sample(5, 6, np.full(6, 2)).tobytes()
        assert one.tobytes() != whole[:6].tobytes()
        with pytest.raises(ClassError, match="give the class of the latents"):
            model.decode(z)
    for wrong in (z[:, 1:], z[0], z[None]):
        with pytest.raises(ShapeError, match=rf"of shape \(N, {model.latent_size}\), not"):
            model.decode(wrong, labels)


@pytest.mark.parametrize("kind", ["image", "classes", "vector"])
def test_a_walk_leads_from_one_sample_to_another(models: dict[str, Model], kind: str) -> None:
    model = models[kind]
    for truncation in (None, 0.5):
        bound: Any = {"truncation": truncation}
        for label in (None, 2) if model.classes else (None,):
            path = all_of(model.walk(1, 2, np.array([0.0, 0.5, 1.0]), label, **bound))
            first = model.labels(1, 1) if label is None else label
            ends = [all_of(model.samples(s, 1, 0, first, **bound))[0] for s in (1, 2)]
            for found, end in zip(path[[0, 2]].astype(float), ends, strict=True):
                assert np.abs(found - end).max() <= (1 if model.is_image else 1e-5)
            z = [model.latents(s, 1, **bound)[0] for s in (1, 2)]
            middle = sampling.slerp(*z, np.array([0.5]))
            assert path[1].tobytes() == all_of(model.decode(middle, first))[0].tobytes()


def test_an_engine_s_error_is_told_in_levels_or_deviations(tmp_path: Path) -> None:
    """Of numbers, in those of each feature."""
    for kind, scale in (("vector", [2.0, 8.0]), ("image", [])):
        serving = {"precision": "bf16"}
        model = load_artifact(make_artifact(tmp_path / kind, kind, serving=serving))
        model = changed(model, scale=scale or model.run.data.scale)
        exact = Model(
            model.run.model_copy(update={"engine": model.run.engine.model_copy(
                update={"precision": "fp32"})}),
            model.generator, model.critic, model.quantiles, model.digest,
        )  # fmt: skip
        pair = (m.sample(0, 256).astype(float) for m in (model, exact))
        apart = np.abs(np.subtract(*pair)) / (scale or 1)
        mean, largest = model.error()
        tolerance = 1e-4 if scale else 0.05  # a level is rounded to one side or the other
        assert mean == pytest.approx(apart.mean(), rel=tolerance)
        assert largest == pytest.approx(apart.max(), rel=1e-3)
        assert mean > 0


def test_rows_are_made_some_at_once_and_numbered_on(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["rows"]
    codes = all_of(model.samples(0, 100))
    for at_once, sizes in ((64, [64, 36]), (32, [32, 32, 32, 4]), (65, [96, 4]), (200, [100])):
        monkeypatch.setattr("models.model.ROWS_AT_ONCE", at_once)
        parts = [codes[i : i + 32] for i in (0, 32, 64, 96)]
        tables = list(model.tables(parts, 3, 7))
        assert [len(table) for table in tables] == sizes
        assert pa.concat_tables(tables).equals(model.rows(codes, 3, 7))
    assert model.rows(codes, 3).equals(model.rows(codes, 3, 0))
    assert pa.concat_tables(model.tables([codes], 3)).equals(model.rows(codes, 3, 0))
    assert list(model.tables([], 3)) == []
    rows = people(5)
    np.testing.assert_array_equal(model.codes(rows), model.table.encode(rows))  # type: ignore[union-attr]
    with pytest.raises(ShapeError, match="takes no rows of mixed columns; give numbers"):
        models["vector"].codes(rows)
    with pytest.raises(ConditionError, match="makes no table"):
        models["vector"].restrict({})


def test_items_have_the_model_s_shape_and_units(models: dict[str, Model]) -> None:
    rgb, grey, vector = models["rgb"], models["image"], models["vector"]
    images = RNG.integers(0, 256, (2, 16, 12, 3), np.uint8)
    first = images.transpose(0, 3, 1, 2)
    for given in (images, first, images.astype(float), images.astype(np.int64)):
        found = rgb.items(given)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(
        grey.items(np.zeros((2, 8, 8), np.uint8)), np.zeros((2, 8, 8, 1), np.uint8)
    )
    for wrong in (
        images[0],
        images[..., :2],
        images[:0],
        images[:, 1:],
        images[None],
        images[0, 0],
    ):
        with pytest.raises(ShapeError, match=r"of shape \(N, 16, 12, 3\), not \("):
            rgb.items(wrong)
    numbers = RNG.normal(size=(3, 2))
    for model, dtype in ((vector, np.float32), (changed(vector, dtype="float64"), np.float64)):
        found = model.items(numbers)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, numbers.astype(dtype))
        assert model.items(np.array([[1, 2]])).dtype == dtype
        with pytest.raises(ShapeError, match="too large for float32"):
            model.items(np.array([[1e39, 0]]))
        for wrong in (numbers[0], numbers[:, :1], numbers[:0], numbers[None]):
            with pytest.raises(ShapeError, match=r"of shape \(N, 2\), not \("):
                model.items(wrong)
    assert models["sequence"].items(np.ones((3, 4, 2))).shape == (3, 4, 2)


def test_images_of_any_size_are_brought_to_the_model_s(models: dict[str, Model]) -> None:
    rgb, grey = models["rgb"], models["image"]
    for model, (height, width), channels in ((rgb, (16, 12), 3), (grey, (8, 8), 1)):
        for given in (1, 2, 3, 4):
            images = RNG.integers(0, 256, (2, 20, 30, given), np.uint8)
            found = model.resized(images)
            expected = [fit(image, height, width, channels) for image in images]
            np.testing.assert_array_equal(found, np.stack(expected))
            np.testing.assert_array_equal(model.resized(images.astype(float)), found)
        flat = RNG.integers(0, 256, (2, 20, 30), np.uint8)
        np.testing.assert_array_equal(model.resized(flat), model.resized(flat[..., None]))
        for wrong in (
            flat[0],
            flat[:0],
            np.zeros((2, 9, 9, 5)),
            np.zeros((2, 0, 9, 1)),
            flat[None, None],
        ):
            with pytest.raises(ShapeError, match=r"have the shape \(N, H, W, 1 to 4\), not \("):
                model.resized(wrong)
        with pytest.raises(ShapeError, match="pixels are whole numbers"):
            model.resized(np.full((1, 9, 9, 1), 0.5))
    with pytest.raises(ShapeError, match="does not take images, which alone can be resized"):
        models["vector"].resized(np.zeros((1, 9, 9)))


def test_scores_are_placed_among_those_of_real_items(models: dict[str, Model]) -> None:
    model = models["vector"]
    np.testing.assert_allclose(QUANTILE_LEVELS, np.arange(1001) / 1000, atol=1e-12)
    scores = np.array([-1.1, -1, -0.5, 0, 1, 1.1])  # the quantiles go from -1 to 1
    assert model.out_of_range(scores).tolist() == [True, False, False, False, False, True]
    np.testing.assert_allclose(model.percentiles(scores), [0, 0, 25, 50, 100, 100], atol=1e-9)
    items = model.sample(1, 5)
    with torch.inference_mode():
        expected = model.critic(model.scaling.to_model(torch.from_numpy(items))).numpy()
    np.testing.assert_allclose(model.score(items), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ClassError, match="leave out the classes"):
        model.score(items, np.zeros(5, int))


def test_a_refined_model_guides_by_latents_of_its_own(models: dict[str, Model]) -> None:
    """The mean slope is of the seed 0, so it is the model's and not a request's."""
    for kind in ("vector", "classes"):
        model = models[kind]
        guided = model.refined.forward
        labels = model.labels(0, 64)
        inputs = [torch.from_numpy(x) for x in (model.latents(0, 64), labels) if x is not None]
        norms = torch.linalg.vector_norm(guided.slopes(*inputs), dim=1)
        torch.testing.assert_close(guided.mean_slope, norms.mean())
        assert model.refined is model.refined


# ---- as a user calls it --------------------------------------------------------------------------


def test_a_user_gets_samples_and_scores_of_the_class_asked_for(tmp_path: Path) -> None:
    made = load(str(make_artifact(tmp_path / "artifact", class_counts=CLASSES)))
    model = made.model
    assert made.classes == ["a", "c"]
    np.testing.assert_array_equal(made.sample(), model.sample(0, 1))
    np.testing.assert_array_equal(made.sample(3, 5, "c"), model.sample(5, 3, 2))
    items = made.sample(3, 2**63 - 1)
    np.testing.assert_array_equal(made.score(items, "c"), model.score(items, np.full(3, 2)))
    assert made.score(items[..., 0], "a").tolist() == made.score(items, "a").tolist()
    with pytest.raises(ClassError, match="give the class of each item"):
        made.score(items)
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match=rf"^seed {seed}: must be from 0 to 2\*\*63 - 1$"):
            made.sample(3, seed)
    for count in (0, -1):
        with pytest.raises(UserError, match=f"^count {count}: ask for at least one sample$"):
            made.sample(count)
    with pytest.raises(ArtifactError, match=r"^tiny: has no detector; `wgan train-detector` makes"):
        _ = made.detector
    scores = np.array([-1, 0.5])
    np.testing.assert_array_equal(made.percentiles(scores), model.percentiles(scores))
    made.save(tmp_path / "copy")
    assert load(str(tmp_path / "copy")).model.digest == model.digest
    plain = load(str(make_artifact(tmp_path / "plain")))
    assert plain.classes == []
    np.testing.assert_array_equal(plain.sample(2), plain.model.sample(0, 2))
    with pytest.raises(ConditionError, match="makes no table"):
        plain.sample(2, where={"x": 1})


def test_a_user_gets_rows_as_a_frame(tmp_path: Path) -> None:
    made = load(str(make_artifact(tmp_path / "artifact", "rows")))
    model = made.model
    conditions = {"home": Condition(one_of=("own",))}
    for where, told in ((None, None), ({"home": "own"}, conditions)):
        restrictions = None if told is None else model.restrict(told)
        parts = model.samples(3, 20, restrictions=restrictions)
        expected = to_frame(pa.concat_tables(model.tables(parts, 3, 0, told)))
        pd.testing.assert_frame_equal(made.sample(20, 3, where=where), expected)
    rows = people(4).drop_columns(["age", "years"])
    filled = made.impute(rows)
    pd.testing.assert_frame_equal(filled, to_frame(model.impute(rows, 0)))
    frame = rows.to_pandas().set_index(pd.Index([9, 7, 5, 3]))
    assert made.impute(frame, 1).index.tolist() == [9, 7, 5, 3]
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match=f"^seed {seed}: "):
            made.impute(rows, seed)
    np.testing.assert_array_equal(made.score(people(4)), model.score(model.codes(people(4))))


def test_what_is_downloaded_goes_with_what_needed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folders, asked = make_artifact(tmp_path / "artifact"), list[Path](), list[Any]()

    def download(model: str, folder: Path, needed: Any) -> Path:
        folders.append(Path(shutil.copytree(source, folder / "artifact")))
        asked.append(needed)
        return folders[-1]

    monkeypatch.setattr("models.registry_files.download", download)
    monkeypatch.setattr("models.model_names.resolve", lambda model: ("tiny", "1"))
    made = load("tiny@champion")
    assert made.artifact == folders[0]
    assert folders[0].is_dir()
    digest = made.model.digest
    del made
    gc.collect()
    assert not folders[0].exists()
    assert load_served("tiny@champion").digest == digest
    assert not folders[1].exists()
    assert asked == [None, {*SERVED, SUMS}]
    (source / SUMS).unlink()
    for call in (load, load_served):
        with pytest.raises(ArtifactError, match="tiny") as caught:
            call("tiny@champion")
        assert str(folders[-1]) not in str(caught.value), "nobody can look there"


def test_what_differs_is_said_where_a_test_fails() -> None:
    distance = Distance(1.0, 0.5, "a is not b", {}, np.negative)
    error = DistributionsDiffer("a is not b", distance)
    assert str(error) == "a is not b"
    assert error.distance is distance
