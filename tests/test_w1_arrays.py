"""Arrays in `wgan w1`: their axes and values are those that training reads in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.artifact import load_artifact
from models.config import DataConfig
from models.errors import DataError
from models.model import Model
from tests.artifacts import make_artifact
from training.lab.samples import Sets
from training.lab.sets import load_sets, read_points

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (60, 16, 16, 3), np.uint8)
GREY = RNG.integers(0, 256, (60, 8, 8, 1), np.uint8)


def read(a: Any, b: Any, **told: Any) -> Sets:
    a, b = (str(x) if isinstance(x, Path) else x for x in (a, b))
    return load_sets(a, b, DataConfig(source="in memory", **told))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A model of grey images, numbers from 0 to 1."""
    made = load_artifact(make_artifact(tmp_path / "artifact"))
    card = made.run.data.model_copy(update={"range": "0..1", "offset": [0.5], "scale": [0.5]})
    run = made.run.model_copy(update={"data": card})
    return Model(run, made.generator, made.critic, np.zeros(1), "")


def test_channels_first_are_no_rows_of_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "last.npy", LEVELS)
    for name in ("a", "b"):
        first = LEVELS.transpose(0, 3, 1, 2)
        np.savez(tmp_path / f"{name}.npz", images=first, labels=np.arange(60) % 3)
    for told in ({}, {"size": 16}, {"layout": "nchw"}):
        sets = read(tmp_path / "a.npz", tmp_path / "b.npz", **told)
        np.testing.assert_array_equal(sets.a, LEVELS)
        assert sets.units == "Euclidean over all 768 pixel values, in grey levels, 0 to 255"
    half = read(tmp_path / "a.npz", tmp_path / "last.npy", size=8)
    assert half.a.shape == (60, 8, 8, 3)
    np.testing.assert_array_equal(half.a, half.b)
    in_memory = read(LEVELS.transpose(0, 3, 1, 2), tmp_path / "last.npy")
    np.testing.assert_array_equal(in_memory.a, in_memory.b)


def test_axes_are_those_that_the_user_names(tmp_path: Path) -> None:
    many = RNG.random((60, 8, 9, 10))
    np.save(tmp_path / "many.npy", many)
    for told in ({"layout": "nchw"}, {"layout": "nchw", "range": "0..1"}):
        for source in (tmp_path / "many.npy", many):
            assert read(source, source, **told).a.shape == (60, 9, 10, 8)
    with pytest.raises(DataError, match=r"many.npy: .*say data\.layout=nhwc"):
        read(tmp_path / "many.npy", tmp_path / "many.npy")
    points = read_points(
        str(tmp_path / "many.npy"),
        DataConfig(source="A", layout="nchw"),
        read(tmp_path / "many.npy", tmp_path / "many.npy", layout="nchw"),
    )
    np.testing.assert_array_equal(points, many.transpose(0, 2, 3, 1))


def test_what_no_array_needs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(60, 3)))
    (tmp_path / "x.csv").write_text("a\n" + "1\n2\n" * 60)
    for told in ({"layout": "nchw"}, {"range": "0..1"}):
        with pytest.raises(DataError, match="is for array files; leave it out"):
            read(tmp_path / "x.csv", tmp_path / "x.csv", **told)
        with pytest.raises(DataError, match="holds vectors; leave"):
            read(tmp_path / "x.npy", tmp_path / "x.npy", **told)


def test_images_are_brought_to_the_units_of_the_model(tmp_path: Path, model: Model) -> None:
    np.save(tmp_path / "levels.npy", GREY)
    np.save(tmp_path / "first.npy", GREY.transpose(0, 3, 1, 2) / 255)
    for source in (tmp_path / "levels.npy", tmp_path / "first.npy", GREY):
        for sets in (read(model, source), read(source, model)):
            images = next(x for x in (sets.a, sets.b) if not np.allclose(x, model.sample(0, 60)))
            np.testing.assert_allclose(images.reshape(GREY.shape), GREY / 255, atol=1e-6)
            assert sets.units.endswith("in the values' own units")
    np.save(tmp_path / "far.npy", GREY / 25)
    with pytest.raises(DataError, match=r"far.npy: pixels are numbers from 0 to 1 here"):
        read(model, tmp_path / "far.npy")
    levels = load_artifact(make_artifact(tmp_path / "of levels"))
    np.save(tmp_path / "colour.npy", LEVELS)
    in_colour = read(levels, tmp_path / "colour.npy", size=8)
    assert in_colour.b.shape == (60, 8, 8, 1)
    assert "all are made grey to be compared" in in_colour.said
    assert np.abs(read(levels, tmp_path / "first.npy").b - GREY.astype(int)).max() == 0
    with pytest.raises(DataError, match=r"of the range 0\.\.255, B of 0\.\.1: bring them to one"):
        read(levels, model)


@pytest.mark.parametrize("in_memory", [False, True])
def test_grey_levels_and_other_units_do_not_meet(in_memory: bool, tmp_path: Path) -> None:
    def given(name: str, items: np.ndarray) -> Any:
        np.save(tmp_path / name, items)
        return items if in_memory else tmp_path / name

    levels, unit = given("levels.npy", GREY), given("unit.npy", GREY / 255)
    for a, b in ((levels, unit), (unit, levels)):
        with pytest.raises(DataError, match=r"range 0\.\.(255|1), .* of 0\.\.(255|1): bring them"):
            read(a, b)
    whole = given("whole.npy", GREY.astype(np.float64))
    sets = read(levels, whole)
    np.testing.assert_array_equal(sets.a, sets.b)
    own = given("own.npy", GREY / 200)
    if in_memory:  # as the owner of both has them
        np.testing.assert_array_equal(read(unit, own).b, GREY / 200)
    else:
        with pytest.raises(DataError, match=r"of own: if their units .* say data\.range=own"):
            read(unit, own)
        np.testing.assert_allclose(read(unit, own, range="own").b, GREY / 200)


def test_a_value_that_is_no_number_is_named(tmp_path: Path) -> None:
    broken = GREY / 255
    broken[3, 0, 0, 0] = np.nan
    np.save(tmp_path / "broken.npy", broken)
    with pytest.raises(DataError, match=r"broken.npy: holds NaN or infinite values"):
        read(tmp_path / "broken.npy", tmp_path / "broken.npy")
