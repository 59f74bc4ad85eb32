"""The two sets of `wgan w1`: files of any kind, folders and models, in one form and known units."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import wgan_cli
from models.artifact import load_artifact
from models.config import DataConfig, parse_data
from models.errors import DataError, UserError
from models.images import encode_png
from models.tables.files import write_rows
from tests.artifacts import make_artifact
from tests.mixed import people
from training.data.sources import large
from training.judging.metrics import wasserstein_1
from training.lab import samples, two_samples
from training.lab.measure import measure
from training.lab.samples import Sets
from training.lab.sets import load_sets

Array = np.ndarray
CONFIG = DataConfig(source="in memory")


def read(a: Any, b: Any, **settings: Any) -> Sets:
    a, b = (str(x) if isinstance(x, Path) else x for x in (a, b))
    return load_sets(a, b, CONFIG, **settings)


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """The same numbers in every kind of file; in csv with the columns exchanged."""
    x = np.random.default_rng(0).normal([150, 2], [10, 0.1], (80, 2)).astype(np.float32)
    frame = pd.DataFrame(x.astype(np.float64), columns=["height", "mass"])
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "samples.npz", samples=x)
    frame[["mass", "height"]].to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    np.savez(tmp_path / "columns.npz", **{name: frame[name].to_numpy() for name in frame})
    return {p.name: p for p in tmp_path.iterdir()}


def test_numbers_are_compared_in_their_own_units(numbers: dict[str, Path]) -> None:
    x = np.load(numbers["x.npy"])
    for name in ("samples.npz", "x.parquet", "columns.npz"):
        sets = read(numbers["x.npy"], numbers[name])
        np.testing.assert_array_equal(sets.b, x)
        assert "their own units" in sets.units
    for one, other in itertools.permutations(("x.csv", "x.parquet", "columns.npz"), 2):
        sets = read(numbers[one], numbers[other])
        np.testing.assert_array_equal(sets.a, sets.b)
        assert sets.names == [["height", "mass"], ["mass", "height"]][one == "x.csv"]
    assert any("order counts" in line for line in read(numbers["x.npy"], numbers["x.csv"]).said)


def test_mixed_columns_have_units_that_are_known(tmp_path: Path) -> None:
    """Rows that differ in one category alone are 1 apart, and in a gap beside a mean value too."""
    rng = np.random.default_rng(0)
    grams = rng.normal(10, 3, 60)
    frame = pd.DataFrame({"grams": grams, "kind": "x"})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.assign(kind="y")[["kind", "grams"]].to_csv(tmp_path / "b.csv", index=False)
    sets = read(tmp_path / "a.csv", tmp_path / "b.csv")
    assert sets.names == ["grams", "kind = x", "kind = y"]
    assert wasserstein_1(sets.a, sets.b) == pytest.approx(1)
    assert any(line.startswith("mixed types: 2 columns (category, number)") for line in sets.said)
    assert "standard deviations" in sets.units
    # Moved by two standard deviations of both sets together.
    moved = frame.assign(grams=grams + 7, kind=rng.choice(["x", "y"], 60))
    (frame := frame.assign(kind=moved.kind)).to_csv(tmp_path / "a.csv", index=False)
    moved.to_csv(tmp_path / "b.csv", index=False)
    sets = read(tmp_path / "a.csv", tmp_path / "b.csv")
    apart = 7 / np.concatenate([grams, grams + 7]).std()
    assert np.linalg.norm(sets.a - sets.b, axis=1) == pytest.approx(np.full(60, apart))
    frame.grams = frame.grams.where(np.arange(60) > 5)
    frame.to_parquet(tmp_path / "a.parquet")
    sets = read(tmp_path / "a.parquet", tmp_path / "b.csv")
    assert "whether grams is missing" in sets.names
    assert sets.a[:6, sets.names.index("whether grams is missing")].tolist() == [1.0] * 6


def test_images_are_compared_in_grey_levels(tmp_path: Path) -> None:
    """Every image is 10 levels lighter in 64 pixels: they are 80 apart."""
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 200, (60, 8, 8, 1), np.uint8)
    for name, images in (("dark", dark), ("light", dark + 10)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            (tmp_path / name / f"{i:03d}.png").write_bytes(encode_png(image))
    sets = read(tmp_path / "dark", tmp_path / "light")
    a, b = (x.reshape(60, -1).astype(float) for x in (sets.a, sets.b))
    assert wasserstein_1(a, b) == pytest.approx(80)
    assert sets.units == "Euclidean over all 64 pixel values, in grey levels, 0 to 255"
    np.save(tmp_path / "grey.npy", dark[..., 0])
    np.testing.assert_array_equal(read(tmp_path / "dark", tmp_path / "grey.npy").b, dark)
    np.save(tmp_path / "rgb.npy", np.repeat(dark, 3, axis=3))
    assert read(tmp_path / "dark", tmp_path / "rgb.npy").a.shape == (60, 8, 8, 3)
    np.save(tmp_path / "large.npy", np.zeros((60, 16, 16), np.uint8))
    with pytest.raises(DataError, match=r"dark of 8x8 .*large.npy of 16x16 .*--set data.size=8"):
        read(tmp_path / "dark", tmp_path / "large.npy")
    told = DataConfig(source="", size=8)
    sets = load_sets(str(tmp_path / "dark"), str(tmp_path / "large.npy"), told)
    assert sets.b.shape == (60, 8, 8, 1)


def test_a_model_makes_as_many_samples_as_the_other_side_has(tmp_path: Path) -> None:
    run = make_artifact(tmp_path / "run" / "artifact", "image").parent
    made = load_artifact(run / "artifact")
    images = np.random.default_rng(0).integers(0, 256, (70, 8, 8), np.uint8)
    np.save(tmp_path / "images.npy", images)
    sets = read(run, tmp_path / "images.npy", seed=5)
    np.testing.assert_array_equal(sets.a, made.sample(5, 70))
    assert sets.said[0].startswith(f"A: 70 samples of {run} (digest {made.digest[:12]}), seed 5")
    sets = read(tmp_path / "images.npy", run / "artifact", count=60, seed=5)
    np.testing.assert_array_equal(sets.b, made.sample(6, 60))
    sets = read(run, run, count=60)
    assert not np.array_equal(sets.a, sets.b), "another seed"
    # Read as the model's own data were: resized.
    resizing = make_artifact(tmp_path / "resized", "image", data={"source": "x", "size": 8})
    (tmp_path / "photos").mkdir()
    for i in range(60):
        photo = np.full((16, 12, 3), (i, 0, 255), np.uint8)
        (tmp_path / "photos" / f"{i}.png").write_bytes(encode_png(photo))
    (tmp_path / "photos" / "notes.txt").write_text("of photos\n")
    sets = read(resizing, tmp_path / "photos")
    assert sets.b.shape == (60, 8, 8, 1)
    assert "all are made grey to be compared" in sets.said
    assert sets.said[1].endswith("photos; not read: 1 .txt")


def test_a_table_s_model_and_rows_meet_in_the_model_s_columns(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact", "rows")
    rows = people(90)
    (tmp_path / "rows.csv").write_bytes(b"".join(write_rows([rows], "csv")))
    (tmp_path / "rows.npz").write_bytes(b"".join(write_rows([rows], "npz")))
    sets = read(folder, tmp_path / "rows.csv")
    assert sets.a.shape == sets.b.shape == (90, len(sets.names))
    as_npz = read(folder, tmp_path / "rows.npz")
    np.testing.assert_allclose(as_npz.b, sets.b, rtol=1e-6)
    fewer = rows.drop_columns(["home"])
    (tmp_path / "fewer.csv").write_bytes(b"".join(write_rows([fewer], "csv")))
    with pytest.raises(DataError, match=r"fewer.csv: has no column 'home'"):
        read(folder, tmp_path / "fewer.csv")
    (caution,) = read(tmp_path / "rows.csv", tmp_path / "fewer.csv").cautions
    assert caution.endswith("rows.csv has home")


@pytest.mark.parametrize("content", [b"hello", b"", b"PK\x03\x04", "objects"])
def test_nobody_is_told_to_load_pickles(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "samples.npy"
    if content == "objects":
        np.save(path, np.array([{}, []], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(bytes(content))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cannot be read") as caught:
        read(path, path)
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("absent.npy", "absent.npy: no such file"),
        ("runs/absent", "runs/absent: no such"),
        ("absent@champion", "absent@champion: no such folder, and no registry"),
        ("absent", "absent@champion: no such folder, and no registry"),
    ],
)
def test_what_is_not_there(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=says):
        read(source, "8gaussians")


def test_the_command_says_the_units_and_the_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"grams": rng.normal(size=100), "kind": rng.choice(["x", "y"], 100)})
    for name, shift in (("a", 0), ("b", 9)):
        frame.assign(grams=frame.grams + shift).to_csv(tmp_path / f"{name}.csv", index=False)
    files = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    report, page = tmp_path / "w1.json", tmp_path / "page.html"
    command = ["w1", *files, "--json", str(report), "--steps", "5", "--out", str(page)]
    assert wgan_cli.main(command) == 0
    said = capsys.readouterr().out
    assert "A: 100 rows of " in said
    assert "mixed types: 2 columns" in said
    assert "most of it is in grams" in said
    assert "another category and a missing value count 1" in said
    found = json.loads(report.read_text())
    assert sorted(found["columns"]) == ["grams", "kind = x", "kind = y"]
    assert found["units"] in said
    assert "grams" in page.read_text()


def test_gradients_are_taken_at_points_of_the_sets_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, first in (("a", 0), ("b", 100)):
        np.save(f"{name}.npy", rng.integers(first, first + 100, (60, 8, 8), np.uint8))
    np.save("x.npy", rng.integers(0, 200, (3, 8, 8), np.uint8))
    command = ["w1", "a.npy", "b.npy", "--json", "w1.json", "--steps", "5"]
    command += ["--gradients-out", "g.npy", "--gradients-at"]
    assert wgan_cli.main([*command, "x.npy"]) == 0
    found = np.load("g.npy")
    assert found.shape == (3, 8, 8)
    assert np.linalg.norm(found.reshape(3, -1), axis=1).max() == pytest.approx(1, abs=0.2)
    pd.DataFrame({"height": [1.0]}).to_csv("x.csv", index=False)
    np.save("other.npy", np.zeros((3, 9, 9), np.uint8))
    for name in ("x.csv", "other.npy"):
        assert wgan_cli.main([*command, name]) == 2
        assert f"{name}: has items of " in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["w1 a.npy a.npy --json w1.json", "data inspect a.npy", "evaluate a --data a.npy"]
)
def test_a_setting_that_would_be_ignored_is_refused(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("training.batch_size", "name"):
        assert wgan_cli.main([*command.split(), "--set", f"{key}=8"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--set {key}: nothing is trained here, and only data.* counts" in line


def test_columns_of_one_side_are_left_out_and_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "y": rng.normal(size=60), "z": rng.normal()})
    sets = load_sets(frame[["x", "y"]], frame.drop(columns="x").assign(w=1.0), CONFIG)
    assert sets.names == ["y"]
    assert sets.cautions == [
        "columns of one side alone are not compared: only A has x; only B has z, w"
    ]
    with pytest.raises(DataError, match="no column in common: only A has x; only B has y"):
        load_sets(frame[["x"]], frame[["y"]], CONFIG)


def test_a_column_of_two_types_is_named_and_can_be_left_out() -> None:
    frame = pd.DataFrame({"x": np.arange(60.0), "code": np.arange(60) % 7})
    other = frame.assign(code=[f"c{i}" for i in frame.code])
    with pytest.raises(DataError, match=r"column 'code' is int64 in A and text in B: .*left_"):
        load_sets(frame, other, CONFIG)
    told = parse_data({"source": "x", "columns": {"code": {"kind": "left_out"}}})
    sets = load_sets(frame, other, told)
    assert (sets.names, sets.cautions) == (["x"], [])
    wrong = parse_data({"source": "x", "columns": {"cod": {"kind": "left_out"}}})
    with pytest.raises(UserError, match=r"no column 'cod'.*'code'"):
        load_sets(frame, frame, wrong)


def test_of_too_many_items_some_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows of each kind of file and in memory; and they keep their numbers."""
    monkeypatch.setattr(samples, "MAX_VALUES", 3 * 100)
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    x = np.random.default_rng(0).normal(size=(5000, 3))
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    np.save(tmp_path / "x.npy", x)
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet", row_group_size=700)
    few = read(tmp_path / "x.npy", x)
    assert few.a.shape == (100, 3)
    rows = few.rows[0]
    assert rows is not None
    np.testing.assert_array_equal(few.a, x[rows])
    assert few.said[0] == f"A: 100 items, drawn at random, of 5000 items of {tmp_path / 'x.npy'}"
    assert few.said[1] == "B: 100 items, drawn at random, of 5000 items in memory"
    monkeypatch.setattr(large, "MAX_BYTES_IN_MEMORY", 0)
    for one, other in (("x.npy", "x.csv"), ("x.parquet", "x.csv")):
        sets = read(tmp_path / one, tmp_path / other)
        np.testing.assert_allclose(sets.a, x[rows], rtol=1e-12)
        np.testing.assert_allclose(sets.b, x[rows], rtol=1e-12)
        np.testing.assert_array_equal(sets.rows[1], rows)
    found = measure(few, steps=5)
    assert found.report["heldout"] == [20, 20]
    assert set(found.report["typical"][0]) <= set(rows.tolist())


def test_categories_meet_texts() -> None:
    """In pandas' categories, of an order or of none, in Arrow's dictionaries and as they are."""
    rng = np.random.default_rng(0)
    text = pd.DataFrame({"x": rng.normal(size=60), "o": rng.choice(["low", "high"], 60)})
    kinds = ["category", pd.CategoricalDtype(["low", "high"], ordered=True)]
    forms = [text, *(text.astype({"o": kind}) for kind in kinds)]
    forms += [pa.Table.from_pandas(form) for form in forms]
    for one, other in itertools.permutations(forms, 2):
        sets = load_sets(one, other, CONFIG)
        assert sorted(sets.names) == ["o = high", "o = low", "x"]
        np.testing.assert_array_equal(sets.a, sets.b)


def test_a_record_batch_is_a_table() -> None:
    table = pa.table({"x": np.arange(60.0)})
    sets = load_sets(table.to_batches()[0], table, CONFIG)
    np.testing.assert_array_equal(sets.a, sets.b)
    assert sets.names == ["x"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([[1.0], [1.0, 2.0]], "A: cannot be made an array of numbers: "),
        (torch.zeros(60, 2, requires_grad=True), "A: cannot be made an array of numbers: .*grad"),
        (np.ma.masked_less(np.zeros((60, 2)), 1), "A: is a masked array; fill what is masked"),
        (pd.DataFrame({"x": np.zeros(60, complex)}), "no table of values of one type: "),
        (
            pa.table([pa.array([1.0] * 60)] * 2, names=["x", "x"]),
            "A: there are 2 columns 'x'; rename them",
        ),
    ],
)
def test_what_is_in_memory_and_no_samples(data: Any, says: str) -> None:
    for other in (np.ones((60, 2)), pd.DataFrame({"x": np.arange(60.0)})):
        with pytest.raises(UserError, match=says) as caught:
            load_sets(data, other, CONFIG)
        assert "\n" not in str(caught.value)


def test_of_large_items_enough_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_VALUES", 1000)
    monkeypatch.setattr(two_samples, "MAX_VALUES", 1000)
    x = np.random.default_rng(0).normal(size=(60, 30))
    sets = load_sets(x, x, CONFIG)
    assert sets.a.shape == (50, 30)
    assert two_samples.two_sample_test(sets.a, sets.b).rows == (50, 50)


def test_wide_codes_of_few_columns_are_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of categories becomes a value for each."""
    monkeypatch.setattr(samples, "MAX_VALUES", 1000)
    kinds = [f"k{i}" for i in range(10)]
    frame = pd.DataFrame({"kind": np.random.default_rng(0).choice(kinds, 5000)})
    sets = load_sets(frame, frame, CONFIG)
    assert sets.a.shape == (100, 10)
    rows = sets.rows[0]
    assert rows is not None
    kind = np.argmax(sets.a, axis=1)
    assert [sets.names[i] for i in kind] == [f"kind = {k}" for k in frame.kind[rows]]


PEAK = """
import resource, sys
from models.config import DataConfig
from training.lab.sets import load_sets
from training.lab import samples
from training.data.sources import large

samples.MAX_VALUES, large.MAX_BYTES_IN_MEMORY, large.BATCH = 10 * 2000, 2**20, 2**12
small, big = sys.argv[1:]
load_sets(small, small, DataConfig(source=small))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sets = load_sets(big, big, DataConfig(source=big))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *sets.a.shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes of resident memory")
@pytest.mark.parametrize("suffix", ["parquet", pytest.param("csv", marks=pytest.mark.slow), "npy"])
def test_a_file_larger_than_memory_is_not_held(suffix: str, tmp_path: Path) -> None:
    """Twice: what is held at once does not grow with the file."""
    x = np.random.default_rng(0).normal(size=(400_000, 10))
    paths = {}
    for name, rows in (("small", x[:3000]), ("big", x if suffix != "csv" else x[:150_000])):
        paths[name] = tmp_path / f"{name}.{suffix}"
        frame = pd.DataFrame(rows, columns=[f"x{i}" for i in range(10)])
        if suffix == "npy":
            np.save(paths[name], rows)
        elif suffix == "csv":
            frame.to_csv(paths[name], index=False)
        else:
            frame.to_parquet(paths[name], row_group_size=10_000)
    size = paths["big"].stat().st_size
    assert size > 25e6
    done = subprocess.run(
        [sys.executable, "-c", PEAK, paths["small"], paths["big"]],
        capture_output=True, text=True, check=True, env={**os.environ, "WGAN_CACHE": str(tmp_path)},
    )  # fmt: skip
    kilobytes, count, _ = map(int, done.stdout.split())
    assert count == 2000
    assert kilobytes * 1024 < size / 2
