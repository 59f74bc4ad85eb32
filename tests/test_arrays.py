"""Arrays: what their axes and values are taken for, what is refused, and images of floats."""

import dataclasses
import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from models.array_files import FoundArray, choose_array, read_hdf5, read_zarr
from models.artifact import load_artifact
from models.config import DataConfig, EvaluationConfig, parse_data
from models.errors import ConfigError, DataError, ShapeError, UserError
from models.formats import stream_samples
from models.images import decode_image, encode_png, fit
from models.model import Model
from models.sampling import Scaling
from tests.servers import WGAN, free_port, npz_file, read_npz, running, wait_for
from training.data.dataset import Dataset, load_data
from training.data.inspection import problems
from training.judging.evaluate import judge_again
from training.judging.extractors import load_extractor
from training.judging.headline import headline
from training.judging.metrics import kernel_distance
from training.presets import build_config
from training.reporting.preview import data_picture
from training.retraining.evidence import Evidence, make_the_same
from training.run import run_training
from wgan_cli import main

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (200, 8, 12, 3), np.uint8)
GREY = RNG.integers(0, 256, (200, 8, 12), np.uint8)


def load(folder: Path, items: np.ndarray, batch_size: int = 8, **told: Any) -> Dataset:
    np.save(folder / "a.npy", items)
    return load_data(DataConfig(source=str(folder / "a.npy"), **told), batch_size)


UNDERSTOOD = {
    "channels last": (LEVELS, {}, "nhwc", None),
    "channels first": (LEVELS.transpose(0, 3, 1, 2), {}, "nchw", None),
    "grey, channel first": (GREY[:, None], {}, "nchw", None),
    "grey": (GREY, {}, "nhw", None),
    "0 to 1": (LEVELS / 255, {}, "nhwc", "0..1"),
    "0 to 1, channels first": (np.float32(LEVELS / 255).transpose(0, 3, 1, 2), {}, "nchw", "0..1"),
    "-1 to 1": (LEVELS / 127.5 - 1, {}, "nhwc", "-1..1"),
    "levels as floats": (LEVELS.astype(np.float64), {}, "nhwc", "0..255"),
    "levels as whole numbers": (LEVELS.astype(np.int64), {}, "nhwc", "0..255"),
    "16 bits": (LEVELS.astype(np.uint16) * 257, {}, "nhwc", "own"),
    "high dynamic range": (np.exp(LEVELS / 32), {}, "nhwc", "own"),
    "12 bits, as told": (LEVELS.astype(np.int32) * 16, {"range": "0..4095"}, "nhwc", "0..4095"),
    "grey floats, as told": (GREY / 255, {"layout": "nhw"}, "nhw", "0..1"),
    "twelve channels, as told": (RNG.random((200, 12, 8, 8)), {"layout": "nchw"}, "nchw", "0..1"),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_images_are_understood_and_stay_in_the_data_s_units(tmp_path: Path, name: str) -> None:
    items, told, layout, values = UNDERSTOOD[name]
    data = load(tmp_path, items, **told)
    assert (data.card.kind, data.card.layout, data.card.range) == ("image", layout, values)
    last = {"nhw": lambda x: x[..., None], "nchw": lambda x: np.moveaxis(x, 1, -1)}
    expected = last.get(layout, lambda x: x)(items)
    assert data.card.shape == (expected.shape[3], *expected.shape[1:3])
    np.testing.assert_allclose(data.items, expected, rtol=1e-6)
    is_levels = values in (None, "0..255")
    assert data.items.dtype == (np.uint8 if is_levels else np.float32)

    # The networks see every range as -1 to 1, and what they make comes back in the data's units.
    seen = data.scaling.to_model(torch.from_numpy(data.training))
    assert seen.shape == (len(data.training), *data.card.shape)
    assert seen.dtype == torch.float32
    low = float(seen.min())
    high = float(seen.max())
    assert -1.00001 <= low < -0.9 < 0.9 < high <= 1.00001
    back = data.scaling.to_data(seen).numpy()
    rounding = 1e-6 * np.ptp(data.training.astype(float))
    np.testing.assert_allclose(back, data.training, rtol=0, atol=rounding)


def test_float_images_of_a_known_range_are_seen_as_their_levels_are(tmp_path: Path) -> None:
    """0..1 and -1..1 are other ways to write the levels 0 to 255: networks see the same numbers."""
    levels = Scaling((3, 8, 12), [], []).to_model(torch.from_numpy(LEVELS))
    for written in (LEVELS / 255, LEVELS / 127.5 - 1):
        data = load(tmp_path, written)
        seen = data.scaling.to_model(torch.from_numpy(data.items))
        torch.testing.assert_close(seen, levels, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(data.scaling.to_levels(data.items), LEVELS)
        np.testing.assert_allclose(data.scaling.from_levels(LEVELS), written, atol=1e-6)


def test_each_channel_of_images_with_their_own_units_has_its_own_range(tmp_path: Path) -> None:
    items = RNG.random((200, 8, 8, 2)) * [5, 300] + [-2, 1000]
    data = load(tmp_path, items)
    low, high = data.training.min((0, 1, 2)), data.training.max((0, 1, 2))
    offset, scale = np.array(data.card.offset), np.array(data.card.scale)
    np.testing.assert_allclose([offset - scale, offset + scale], [low, high], rtol=1e-6)


REFUSED = {
    "volumes": (np.zeros((100, 16, 16, 16), np.float32), "data.layout=nhwc (16 channels)"),
    "many channels": (np.zeros((100, 12, 32, 32), np.uint8), "data.layout=nchw (12 channels)"),
    "many channels last": (np.zeros((100, 32, 32, 12)), "data.layout=nhwc (12 channels)"),
    "either axis": (np.zeros((100, 3, 32, 4)), "both the second and the last axis"),
    "square floats": (np.zeros((100, 28, 28)), "data.layout=nhw (images of 28x28 pixels)"),
    "narrow bytes": (np.zeros((100, 24, 3), np.uint8), "data.layout=ntd"),
    "one step": (np.zeros((100, 1, 30)), "data.layout=ndt"),
    "volumes with channels": (np.zeros((100, 4, 4, 4, 1)), "volumes are not trained on"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_two_things_is_refused_and_the_setting_named(tmp_path: Path, name: str) -> None:
    items, says = REFUSED[name]
    with pytest.raises(DataError) as caught:
        load(tmp_path, items)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


MISTOLD = {
    "axes": ({"layout": "nchw"}, GREY, "for 4 axes"),
    "values outside": ({"range": "0..1"}, LEVELS / 200, "lie outside data.range=0..1"),
    "uint8 in another range": ({"range": "0..1"}, LEVELS, "save it as float32"),
    "a range of sequences": ({"range": "0..1"}, np.zeros((100, 9, 3)), "for images"),
    "a layout of vectors": ({"layout": "ntd"}, np.zeros((100, 3)), "holds vectors"),
    "a name for one array": ({"key": "x"}, GREY, "leave data.key out"),
}


@pytest.mark.parametrize("name", MISTOLD)
def test_what_does_not_suit_the_array_is_refused(tmp_path: Path, name: str) -> None:
    told, items, says = MISTOLD[name]
    with pytest.raises(DataError, match=says):
        load(tmp_path, items, **told)


def test_settings_of_arrays_are_refused_for_other_data() -> None:
    for told in ({"layout": "nhwc"}, {"range": "0..1"}, {"key": "x"}):
        with pytest.raises(DataError, match="is for array files"):
            load_data(DataConfig(source="digits", **told))


@pytest.mark.parametrize("text", ["1..0", "0-1", "0..nan", "0..inf", "white"])
def test_a_range_is_two_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.range: write LOW\.\.HIGH"):
        parse_data({"source": "digits", "range": text})


def test_whole_number_sequences_are_sequences(tmp_path: Path) -> None:
    steps = RNG.integers(0, 100, (200, 9, 3))
    for items, told in ((steps, {}), (steps.astype(np.uint8), {"layout": "ntd"})):
        data = load(tmp_path, items, **told)
        assert (data.card.kind, data.card.shape, data.card.layout) == ("sequence", (9, 3), "ntd")
        np.testing.assert_array_equal(data.items, items)
    turned = load(tmp_path, steps.transpose(0, 2, 1), layout="ndt")
    assert turned.card.shape == (9, 3)
    np.testing.assert_array_equal(turned.items, steps)
    assert turned.card.sha256 == data.card.sha256


def test_values_far_away_are_named(tmp_path: Path) -> None:
    items = RNG.random((200, 8, 8, 1))
    assert problems(load(tmp_path, RNG.random((1500, 8, 8, 1)))) == []
    assert not load(tmp_path, items * 3).notes
    items[5, 0, 0] = 1000
    (note,) = load(tmp_path, items).notes
    assert "channel 1: 99% of the values" in note


def test_float_images_and_many_channels_are_resized(tmp_path: Path) -> None:
    """As Pillow resizes each channel; no value leaves the range of its image."""
    items = RNG.random((60, 20, 16, 2)).astype(np.float32) * 7
    data = load(tmp_path, items, size=8, heldout_fraction=0.5)
    assert data.card.shape == (2, 8, 8)
    middle = Image.fromarray(items[0, 2:18, :, 1]).resize((8, 8), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(fit(items[0], 8, 8)[..., 1], np.asarray(middle), rtol=1e-5)
    many = RNG.integers(0, 256, (60, 16, 16, 5), np.uint8)
    data = load(tmp_path, many, size=8, layout="nhwc", heldout_fraction=0.5)
    assert data.items.dtype == np.uint8
    spike = np.zeros((16, 16, 1), np.float32)
    spike[8:] = 1
    assert (fit(spike, 9, 9).min(), fit(spike, 9, 9).max()) == (0, 1)


# ---- files of several arrays ---------------------------------------------------------------------


def write(path: Path, **named: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **named)
    elif path.suffix == ".zarr":
        group = zarr.create_group(path)
        for name, values in named.items():
            group.create_array(name, data=values)
    else:
        with h5py.File(path, "w") as file:
            for name, values in named.items():
                file.create_dataset(name, data=values, chunks=True, compression="gzip")
    return path


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5", ".zarr"])
def test_one_array_of_a_file_is_read(tmp_path: Path, suffix: str) -> None:
    def read(path: Path, **told: Any) -> Dataset:
        return load_data(DataConfig(source=str(path), **told))

    one = write(tmp_path / f"one{suffix}", x=LEVELS)
    assert read(one).card.name == "one"
    np.testing.assert_array_equal(read(one).items, LEVELS)
    two = write(tmp_path / f"two{suffix}", x=LEVELS, y=np.arange(200))
    with pytest.raises(DataError, match=r"x.*, y.*; name one of them by data\.key"):
        read(two)
    np.testing.assert_array_equal(read(two, key="x").items, LEVELS)
    with pytest.raises(DataError, match=r"x.*, y.*; there is no z"):
        read(two, key="z")
    usual = write(tmp_path / f"usual{suffix}", samples=LEVELS, y=np.arange(200))
    np.testing.assert_array_equal(read(usual).items, LEVELS)
    with pytest.raises(DataError, match="not numbers"):
        read(write(tmp_path / f"complex{suffix}", x=np.ones((50, 2), complex)))


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".zarr"])
def test_labels_beside_the_items_are_their_classes(tmp_path: Path, suffix: str) -> None:
    """They were left aside without a word, as if the data had no classes."""

    def read(name: str, labels: np.ndarray, items: str = "x") -> Dataset:
        path = write(tmp_path / f"{name}{suffix}", labels=labels, **{items: LEVELS})
        return load_data(DataConfig(source=str(path)))

    numbers = np.arange(200) % 12 - 1
    for name, labels in (("whole", numbers), ("floats", numbers.astype(float))):
        data = read(name, labels)
        assert data.card.classes == [str(i) for i in range(-1, 11)]
        assert data.labels is not None
        np.testing.assert_array_equal(data.labels, numbers + 1)
    texts = np.array(["cat", "a dog"])[numbers % 2]
    kinds = {".npz": "U", ".h5": "S", ".zarr": np.dtypes.StringDType()}
    data = read("texts", texts.astype(kinds[suffix]), "samples")
    assert data.card.classes == ["a dog", "cat"]
    assert data.labels is not None
    assert [data.card.classes[i] for i in data.labels] == texts.tolist()
    for name, labels in (
        ("targets", np.linspace(0, 1, 200)),
        ("endless", np.full(200, np.inf)),
        ("fewer", numbers[:-1]),
        ("one hot", np.eye(12)[numbers]),
    ):
        data = read(name, labels)
        assert data.labels is None
        assert any(line.startswith("the labels, ") for line in problems(data))
    assert read("one", np.zeros(200)).card.classes == []


def test_labels_of_objects_are_never_unpickled(tmp_path: Path) -> None:
    labels = np.array([None] * 200, object)
    np.savez(tmp_path / "a.npz", samples=LEVELS, labels=labels)
    data = load_data(DataConfig(source=str(tmp_path / "a.npz")))
    assert data.notes == (
        "the labels, object (0,), are no classes: those are one whole number or text for each item",
    )


def test_a_group_s_array_has_a_path(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train/x", data=LEVELS)
        file.create_dataset("test/x", data=LEVELS[:50])
        file.create_dataset("train/labels", data=np.arange(200) % 2)
    root = zarr.create_group(tmp_path / "a.zarr")
    train = root.create_group("train")
    train.create_array("x", data=LEVELS)
    train.create_array("labels", data=np.arange(200) % 2)
    root.create_group("test").create_array("x", data=LEVELS[:50])
    for name in ("a.h5", "a.zarr"):
        data = load_data(DataConfig(source=str(tmp_path / name), key="train/x"))
        np.testing.assert_array_equal(data.items, LEVELS)
        assert data.card.classes == ["0", "1"]


def test_a_zarr_folder_may_be_one_array(tmp_path: Path) -> None:
    zarr.save_array(tmp_path / "one.zarr", LEVELS)
    np.testing.assert_array_equal(
        load_data(DataConfig(source=str(tmp_path / "one.zarr"))).items, LEVELS
    )


@pytest.mark.parametrize(
    ("names", "key", "chosen"),
    [
        (["x"], None, ("x", None)),
        (["x", "labels"], None, ("x", "labels")),
        (["labels"], None, ("labels", None)),
        (["labels", "samples", "y"], None, ("samples", "labels")),
        (["labels", "samples", "y"], "y", ("y", "labels")),
        (["x", "labels"], "labels", ("labels", None)),
        (["a/x", "a/labels"], None, ("a/x", "a/labels")),
        (["x", "a/labels"], None, ("x", None)),
        (["a/x", "labels"], None, ("a/x", None)),
        (["x", "my_labels"], "x", ("x", None)),
        (["x", "my_labels"], None, "f: holds the arrays my_labels (2, 3), x (2, 3); name one of"),
        (["labels", "a/labels"], None, "f: holds the arrays a/labels (2, 3), labels (2, 3); name"),
        (["x"], "y", "f: holds the arrays x (2, 3); there is no y"),
        ([], None, "f: holds the arrays (none); name one of them by data.key"),
    ],
)
def test_the_array_of_a_file_is_the_one_asked_for_or_the_only_one(
    names: list[str], key: str | None, chosen: Any
) -> None:
    shapes = dict.fromkeys(names, (2, 3))
    if isinstance(chosen, tuple):
        assert choose_array(shapes, key, "f") == chosen
        return
    with pytest.raises(DataError) as caught:
        choose_array(shapes, key, "f")
    assert str(caught.value).startswith(chosen)
    with pytest.raises(DataError) as caught:
        choose_array(dict.fromkeys(names), key, "f")
    assert str(caught.value).startswith(chosen.replace(" (2, 3)", "")), "where none is known"


def test_a_data_set_that_lies_elsewhere_is_refused_as_items_and_as_labels(tmp_path: Path) -> None:
    write(tmp_path / "other.h5", x=LEVELS[:9], labels=np.arange(9))
    for name, elsewhere in (("items", "x"), ("labels", "labels")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for kind, shape in (("x", (9, 8, 12, 3)), ("labels", (9,))):
                if kind == elsewhere:
                    layout = h5py.VirtualLayout(shape, "u1" if kind == "x" else "i8")
                    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", kind, shape)
                    file.create_virtual_dataset(kind, layout)
                else:
                    file[kind] = np.zeros(shape, np.uint8)
        with (
            (tmp_path / f"{name}.h5").open("rb") as opened,
            pytest.raises(DataError, match=rf"^f: /{elsewhere} lies in other files; copy it"),
        ):
            read_hdf5(opened, None, "f")


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_what_is_read_of_a_file_is_told(tmp_path: Path, suffix: str) -> None:
    def read(path: Path, key: str | None = None) -> FoundArray:
        if suffix == ".zarr":
            return read_zarr(str(path), key, "f")
        with path.open("rb") as file:
            return read_hdf5(file, key, "f")

    both = write(tmp_path / f"both{suffix}", x=LEVELS[:5], labels=np.arange(5))
    found = read(both)
    np.testing.assert_array_equal(found.items, LEVELS[:5])
    np.testing.assert_array_equal(found.labels, np.arange(5))  # type: ignore[arg-type]
    assert read(both, "labels").labels is None
    for dtype in (np.float16, np.float64, np.uint16, np.int32):
        path = write(tmp_path / f"{np.dtype(dtype)}{suffix}", x=LEVELS[:5].astype(dtype))
        assert read(path).items.dtype == dtype
        assert read(path).labels is None
    wrong = write(tmp_path / f"truth{suffix}", x=np.ones(5, bool))
    with pytest.raises(DataError, match=r"^f: holds bool, not numbers$"):
        read(wrong)
    if suffix == ".zarr":
        zarr.save_array(tmp_path / "one.zarr", LEVELS[:5])
        assert read(tmp_path / "one.zarr")[1] is None
        with pytest.raises(DataError, match=r"^f: is one array; leave data\.key out \(null\)$"):
            read(tmp_path / "one.zarr", "x")
    (tmp_path / "text.h5").write_text("hello")
    with (
        (tmp_path / "text.h5").open("rb") as file,
        pytest.raises(DataError, match=r"^f: cannot be read: .*signature"),
    ):
        read_hdf5(file, None, "f")


def test_nothing_beyond_the_file_is_read(tmp_path: Path) -> None:
    """Neither through links, nor from another file that a data set says it lies in."""
    other = tmp_path / "secret.bin"
    other.write_bytes(LEVELS.tobytes())
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["x"] = h5py.ExternalLink(str(write(tmp_path / "other.h5", x=LEVELS)), "/x")
    with pytest.raises(DataError, match=r"\(none\)"):
        load_data(DataConfig(source=str(tmp_path / "linked.h5")))
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file.create_dataset("x", LEVELS.shape, np.uint8, external=[(str(other), 0, LEVELS.nbytes)])
    with pytest.raises(DataError, match="lies in other files"):
        load_data(DataConfig(source=str(tmp_path / "outside.h5")))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_in_a_zarr_folder_are_not_loaded(tmp_path: Path) -> None:
    (folder := tmp_path / "p.zarr").mkdir()
    codec = {"id": "pickle", "protocol": 5}
    form = {"zarr_format": 2, "shape": [50, 3], "chunks": [50, 3], "dtype": "<f8", "order": "C"}
    metadata = {**form, "compressor": codec, "fill_value": 0, "filters": None}
    (folder / ".zarray").write_text(json.dumps(metadata))
    witness = tmp_path / "loaded"
    (folder / "0.0").write_bytes(pickle.dumps(Touch(witness)))
    with pytest.raises(DataError, match="pickle"):
        load_data(DataConfig(source=str(folder)))
    assert not witness.exists()


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.h5", x=LEVELS).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "empty.zarr").mkdir()
    for name in ("cut.h5", "text.h5", "empty.zarr"):
        with pytest.raises(DataError, match=name) as caught:
            load_data(DataConfig(source=str(tmp_path / name)))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("package", "suffix"), [("h5py", ".h5"), ("zarr", ".zarr")])
def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, suffix: str
) -> None:
    path = write(tmp_path / f"a{suffix}", x=LEVELS)
    monkeypatch.setitem(sys.modules, package, None)
    # A module that is None in sys.modules is one that cannot be found.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{package} is not installed.*wgan-foundry\[arrays\]"):
        load_data(DataConfig(source=str(path)))


# ---- a batch, and a size, that do not fit --------------------------------------------------------


def test_a_batch_larger_than_the_data_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, GREY, batch_size=190)
    trained = load(tmp_path, GREY).card.training_count
    assert f"a batch of 190 is more than the {trained} items to train on" in str(caught.value)
    assert f"lower training.batch_size to at most {trained}" in str(caught.value)
    assert load(tmp_path, GREY, batch_size=trained).card.training_count == trained


@pytest.mark.parametrize("size", [4, 257])
def test_a_size_that_no_network_takes_is_refused_at_once(size: int) -> None:
    with pytest.raises(ConfigError, match=r"data\.size: .*(8|256)"):
        build_config("images", "no such folder", overrides={"data.size": size})


def test_images_that_no_network_takes_say_so_once(tmp_path: Path) -> None:
    """Whatever the advice is, following it helps."""
    big = RNG.integers(0, 256, (80, 300, 260, 5), np.uint8)
    data = load(tmp_path, big, layout="nhwc", heldout_fraction=0.5)
    (says,) = (p for p in problems(data) if "pixels" in p)
    assert says == (
        "images are 260x300 pixels; networks take sides of 8 to 256: set data.size to one of "
        "these, such as data.size=64"
    )
    config = build_config(
        "images", str(tmp_path / "a.npy"), overrides={**SMALL, "data.layout": "nhwc"}
    )
    with pytest.raises(ConfigError, match=r"set data\.size to one of these"):
        run_training(config, tmp_path / "run", torch.device("cpu"), register=False)
    assert load(tmp_path, big, layout="nhwc", size=64, heldout_fraction=0.5).card.shape == (
        5,
        64,
        64,
    )


def test_an_image_network_on_grey_floats_says_how_they_become_images(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY / 255)
    config = build_config("images", str(tmp_path / "a.npy"), overrides={"data.size": None})
    with pytest.raises(ConfigError, match=r"data\.layout=nhw"):
        run_training(config, tmp_path / "run", torch.device("cpu"), register=False)


# ---- models of float images ----------------------------------------------------------------------

SMALL = {
    "data.size": None,
    "data.heldout_fraction": 0.5,
    "generator.width": 4,
    "generator.depth": 1,
    "critic.width": 4,
    "critic.depth": 1,
    "training.steps": 2,
    "training.batch_size": 8,
    "evaluation.samples": 40,
    "evaluation.extractor": "pixels",
}


def trained(folder: Path, items: np.ndarray, **settings: Any) -> Model:
    folder.mkdir(exist_ok=True)
    np.save(folder / "a.npy", items)
    config = build_config("images", str(folder / "a.npy"), overrides={**SMALL, **settings})
    run_training(config, folder / "run", torch.device("cpu"), register=False)
    return load_artifact(folder / "run" / "artifact")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("floats")


@pytest.fixture(scope="module")
def spectra(folder: Path) -> Model:
    """A model of float images in decibels, -80 to 20."""
    return trained(folder / "own", RNG.random((200, 8, 8, 1)) * 100 - 80)


@pytest.fixture(scope="module")
def unit(folder: Path) -> Model:
    """A model of float images from 0 to 1."""
    return trained(folder / "unit", (LEVELS[:, :8, :8] / 255).astype(np.float32))


@pytest.fixture(scope="module")
def levels(folder: Path) -> Model:
    """A model of images of levels."""
    return trained(folder / "levels", LEVELS[:, :8, :8])


def test_samples_are_in_the_data_s_units(spectra: Model, unit: Model) -> None:
    for model, low, high in ((spectra, -80, 20), (unit, 0, 1)):
        samples = model.sample(seed=7, count=20)
        assert samples.dtype == np.float32
        assert samples.shape == (20, *model.shape[1:], model.shape[0])
        assert low <= samples.min() < samples.max() <= high
        assert np.ptp(samples) > (high - low) / 100
        z = torch.from_numpy(model.latents(7, 20))
        raw = model.generator(z).detach().numpy()  # in [-1, 1], by its tanh
        offset, scale = np.array(model.run.data.offset), np.array(model.run.data.scale)
        expected = np.moveaxis(raw, 1, -1) * scale + offset
        np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-4 * (high - low))


def test_the_record_keeps_what_was_understood(spectra: Model, folder: Path) -> None:
    card = spectra.run.data
    assert (card.layout, card.range, card.kind) == ("nhwc", "own", "image")
    assert card.offset[0] == pytest.approx(-30, abs=0.1)
    assert card.scale[0] == pytest.approx(50, abs=0.1)
    said = list[str]()
    config = spectra.run.config
    run_training(config, folder / "again", torch.device("cpu"), register=False, say=said.append)
    assert said[0].endswith("held out; read as data.layout=nhwc data.range=own")


def encoded(model: Model, format: str) -> bytes:
    parts = model.samples(seed=3, count=4)
    return b"".join(stream_samples(model, parts, 4, format, seed=3))


def test_arrays_hold_floats_and_pictures_grey_levels(spectra: Model, unit: Model) -> None:
    for model in (spectra, unit):
        samples = model.sample(seed=3, count=4)
        np.testing.assert_array_equal(np.load(io.BytesIO(encoded(model, "npy"))), samples)
        np.testing.assert_array_equal(
            np.load(io.BytesIO(encoded(model, "npz")))["samples"], samples
        )
        offset, scale = np.array(model.run.data.offset), np.array(model.run.data.scale)
        exact = (samples - (offset - scale)) / (2 * scale) * 255
        with zipfile.ZipFile(io.BytesIO(encoded(model, "zip"))) as archive:
            assert len(archive.namelist()) == len(samples)
            for i, name in enumerate(archive.namelist()):
                # The nearest level; where two are as near but for float32's rounding, either.
                level = decode_image(archive.read(name), name)
                np.testing.assert_allclose(level, exact[i], rtol=0, atol=0.5 + 1e-4)
        for format in ("png", "webp"):
            assert decode_image(encoded(model, format), format).dtype == np.uint8


def test_scores_take_the_data_s_units(spectra: Model, unit: Model) -> None:
    for model in (spectra, unit):
        items = model.sample(seed=5, count=6)
        seen = model.scaling.to_model(torch.from_numpy(items))
        expected = model.critic(seen).numpy()
        for written in (items, items.astype(np.float64)):
            scores = model.score(model.items(written))
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(model.items(items.transpose(0, 3, 1, 2)), items)
    with pytest.raises(ShapeError, match="pixels are numbers from 0 to 1 here"):
        unit.items(np.full((1, 8, 8, 3), 255.0))
    spectra.items(np.full((1, 8, 8, 1), 500.0))  # beyond the training items: to be scored low
    with pytest.raises(ShapeError, match="NaN"):
        spectra.items(np.full((1, 8, 8, 1), np.nan))


def test_a_picture_is_scored_where_grey_levels_have_a_meaning(spectra: Model, unit: Model) -> None:
    picture = LEVELS[:2, :8, :8]
    np.testing.assert_allclose(unit.items(picture), picture / 255, atol=1e-6)
    np.testing.assert_array_equal(unit.resized(picture), unit.items(picture))
    with pytest.raises(ShapeError, match="in the units of its data"):
        spectra.items(picture[..., :1])


def test_other_images_are_resized_in_the_data_s_units(spectra: Model) -> None:
    larger = RNG.random((3, 20, 16, 1)) * 100 - 80
    np.testing.assert_allclose(
        spectra.resized(larger), np.stack([fit(image, 8, 8) for image in larger]), rtol=1e-5
    )
    with pytest.raises(ShapeError, match="cannot be made"):
        spectra.resized(larger.repeat(3, axis=3))


def test_the_engine_s_error_is_in_grey_levels(unit: Model) -> None:
    mean, most = unit.error(count=16)
    assert 0 <= mean <= most <= 255


@pytest.mark.parametrize("written", ["levels", "unit", "signed", "whole"])
def test_a_model_is_judged_on_images_however_they_are_written(
    folder: Path, unit: Model, written: str
) -> None:
    """The same images as levels, as 0..1, as -1..1 refused where they are not the model's units."""
    ways = {
        "levels": LEVELS[:, :8, :8],
        "unit": LEVELS[:, :8, :8] / 255,
        "signed": LEVELS[:, :8, :8] / 127.5 - 1,
        "whole": LEVELS[:, :8, :8].astype(np.int32),
    }
    path = folder / f"{written}.npy"
    np.save(path, ways[written])
    artifact = folder / "unit" / "run" / "artifact"
    if written in ("signed", "whole"):
        with pytest.raises(DataError, match="pixels are numbers from 0 to 1 here"):
            judge_again(artifact, str(path))
        return
    judged = judge_again(artifact, str(path))
    np.testing.assert_allclose(judged.data.items, LEVELS[:, :8, :8] / 255, atol=1e-6)
    assert judged.results.extractor is not None


def test_a_model_of_levels_is_judged_on_floats_of_a_known_range(
    tmp_path: Path, levels: Model
) -> None:
    card = levels.run.data
    for written in (LEVELS[:, :8, :8] / 255, LEVELS[:, :8, :8] / 127.5 - 1):
        np.save(tmp_path / "f.npy", written)
        data = load_data(DataConfig(source=str(tmp_path / "f.npy")), card=card)
        np.testing.assert_array_equal(data.items, LEVELS[:, :8, :8])
        assert data.card.sha256 == card.sha256
    np.save(tmp_path / "f.npy", LEVELS[:, :8, :8] * 3.5)
    with pytest.raises(DataError, match="not in the units of the model's images"):
        load_data(DataConfig(source=str(tmp_path / "f.npy")), card=card)


def test_models_in_other_units_do_not_compare(unit: Model, levels: Model, folder: Path) -> None:
    signed = trained(folder / "signed", LEVELS[:, :8, :8] / 127.5 - 1)
    assert make_the_same(unit, unit)
    assert make_the_same(levels, levels)
    assert not make_the_same(unit, levels)
    assert not make_the_same(unit, signed)


def test_what_was_said_of_one_file_is_not_held_against_another(tmp_path: Path) -> None:
    first = load(tmp_path, LEVELS.transpose(0, 3, 1, 2) / 255, layout="nchw", range="0..1")
    np.save(tmp_path / "b.npy", LEVELS)
    config = DataConfig(source=first.card.source, layout="nchw", range="0..1")
    data = load_data(config.of(str(tmp_path / "b.npy")), card=first.card)
    assert data.card.shape == first.card.shape
    np.testing.assert_allclose(data.items, LEVELS / 255, atol=1e-6)


def test_what_is_said_of_another_file_than_the_model_s_counts(tmp_path: Path) -> None:
    first = load(tmp_path, LEVELS / 255)
    told = DataConfig(source=str(tmp_path / "b.npy"), layout="nchw")
    np.save(tmp_path / "b.npy", LEVELS / 255)
    assert load_data(told, card=first.card).card.layout == "nchw"


def test_a_model_s_own_data_need_no_word(tmp_path: Path) -> None:
    """Models of former versions were trained on arrays whose axes are now to be named."""
    many, square = LEVELS.repeat(4, axis=3), RNG.standard_normal((200, 9, 9))
    for items, layout in ((many, "nhwc"), (square, "ntd")):
        with pytest.raises(DataError, match=rf"data\.layout={layout}"):
            load(tmp_path, items)
        first = load(tmp_path, items, layout=layout)
        again = load_data(DataConfig(source=first.card.source), card=first.card)
        np.testing.assert_array_equal(again.items, first.items)


def test_another_file_of_equal_axes_is_read_as_the_model_s_was(tmp_path: Path) -> None:
    """Nothing in the shape tells (8, 8, 8) with channels first from that with channels last."""
    for items, layout in ((RNG.random((200, 8, 8, 8)), "nchw"), (RNG.random((200, 9, 9)), "ndt")):
        first = load(tmp_path, items, layout=layout)
        np.save(tmp_path / "b.npy", items)
        again = load_data(DataConfig(source=str(tmp_path / "b.npy")), card=first.card)
        np.testing.assert_array_equal(again.items, first.items)


def with_split_of(data: Dataset, other: Dataset) -> Dataset:
    """The items of one data set, held out as those of another that holds the same images."""
    return dataclasses.replace(data, is_heldout=other.is_heldout)


@pytest.fixture(scope="module")
def both(folder: Path, unit: Model) -> tuple[Dataset, Dataset]:
    """The same images as numbers from 0 to 1 and as levels, split alike."""
    floats = load_data(unit.run.config.data)
    np.save(folder / "levels.npy", LEVELS[:, :8, :8])
    levels = load_data(DataConfig(source=str(folder / "levels.npy")))
    return floats, with_split_of(levels, floats)


def test_features_and_pictures_of_floats_are_those_of_their_levels(
    unit: Model, both: tuple[Dataset, Dataset]
) -> None:
    floats, levels = both
    assert data_picture(floats) == data_picture(levels)
    extract = load_extractor("pixels", EvaluationConfig())
    found = [headline(unit.run.config, data, unit.generator, extract) for data in both]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    evidence = Evidence(unit, None, None, floats, floats, extract, "kernel_distance", 20)
    np.testing.assert_array_equal(evidence.real, extract(levels.sample(20, heldout=True)))
    recorded = unit.run.results.figures["kernel_distance"]
    made = unit.scaling.to_levels(unit.sample(0, recorded.n))
    real = levels.sample(recorded.n, heldout=True)
    assert recorded.value == pytest.approx(kernel_distance(extract(real), extract(made)), rel=1e-6)
    shown = decode_image(unit.picture, "samples.png")
    assert np.ptp(shown[2:10, 2:10].astype(int)) > 0


def test_the_command_says_that_a_picture_shows_the_range(
    folder: Path, spectra: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = str(folder / "own" / "run" / "artifact")
    for name, says in (("a.png", "drawn as grey levels"), ("a.npz", "wrote 4 samples")):
        main(["sample", artifact, "-n", "4", "--out", str(folder / name)])
        told = capsys.readouterr().out
        assert says in told
        assert ("grey levels" in told) == (name == "a.png")
    main(["score", artifact, str(folder / "a.npz"), "--json"])
    scores = json.loads(capsys.readouterr().out)["scores"]
    np.testing.assert_allclose(scores, spectra.score(spectra.sample(0, 4)), rtol=1e-4, atol=1e-6)
    main(["data", "inspect", str(folder / "own" / "a.npy"), "--json"])
    card = json.loads(capsys.readouterr().out)["card"]
    assert (card["layout"], card["range"], card["shape"]) == ("nhwc", "own", [1, 8, 8])


def test_the_service_takes_and_gives_the_data_s_units(folder: Path, unit: Model) -> None:
    port, artifact = free_port(), folder / "unit" / "run" / "artifact"
    command = [WGAN, "serve", "--model", artifact, "--port", port]
    with running(command, port, folder / "log") as process:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/readyz", process, folder / "log")
        with httpx.Client(base_url=address, timeout=60) as client:

            def ask(path: str, **body: Any) -> Any:
                response = client.post(f"/v1/{path}", json=body)
                assert response.status_code == 200, response.text
                return response

            samples = read_npz(ask("samples", count=5, seed=3, format="npz"))
            np.testing.assert_allclose(samples, unit.sample(3, 5), atol=1e-5)
            listed = ask("samples", count=1, seed=3, format="json").json()["samples"]
            np.testing.assert_allclose(listed, samples[:1], atol=1e-5)
            picture = decode_image(ask("samples", count=1, seed=3).content, "a.png")
            assert picture.dtype == np.uint8
            expected = unit.score(samples)
            scores = ask("scores", samples=samples.tolist()).json()["scores"]
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)

            def upload(content: bytes) -> Any:
                return client.post("/v1/scores", files={"files": ("a", content)})

            scores = upload(npz_file(samples=samples)).json()["scores"]
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
            levels = unit.scaling.to_levels(samples[:1])
            score = upload(encode_png(levels[0])).json()["scores"]
            np.testing.assert_allclose(
                score, unit.score(levels / np.float32(255)), rtol=1e-4, atol=1e-6
            )
            refused = client.post("/v1/scores", json={"samples": (samples * 255).tolist()})
            assert refused.status_code == 422
            assert "pixels are numbers from 0 to 1 here" in refused.text


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_images_of_256_pixels_are_trained_on(tmp_path: Path, architecture: str) -> None:
    depth = {"dcgan": 6, "resnet": 7}[architecture]
    networks = {
        f"{part}.{name}": value
        for part in ("generator", "critic")
        for name, value in (("architecture", architecture), ("depth", depth), ("width", 2))
    }
    small = {"training.steps": 1, "training.batch_size": 2, "evaluation.samples": 20}
    coarse = RNG.integers(0, 256, (60, 16, 16, 1), np.uint8)
    items = coarse.repeat(16, axis=1).repeat(16, axis=2)
    model = trained(tmp_path, items, **networks, **small)
    assert model.sample(seed=1, count=1).shape == (1, 256, 256, 1)
    assert np.isfinite(model.score(items[:2])).all()
