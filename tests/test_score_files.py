"""What `wgan score` takes: files, folders, archives, and images as training read them."""

import gzip
import json
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from models.artifact import load_artifact
from models.errors import UserError
from models.images import encode_png, fit
from models.item_files import read_files
from models.model import Model
from models.tables.files import write_rows
from tests.artifacts import make_artifact
from tests.mixed import people
from tests.test_anomalies import guarded
from wgan_cli import main

Array = np.ndarray


@pytest.fixture(autouse=True)
def _in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Array:
    """Six images, in a folder with a class below it, and in archives of that folder."""
    items = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for i, image in enumerate(items):
        folder = tmp_path / "photos" / ("cats" if i > 2 else "")
        (folder / f"{i}.png").write_bytes(encode_png(image))
    (tmp_path / "photos" / "notes.txt").write_text("of cats\n")
    (tmp_path / "photos" / ".DS_Store").write_text("hidden")
    with (
        zipfile.ZipFile("photos.zip", "w") as archive,
        tarfile.open("photos.tar.gz", "w:gz") as tar,
    ):
        for file in sorted(Path("photos").rglob("*")):
            archive.write(file)
            tar.add(file, recursive=False)
    return items


def scored(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    code = main(["score", *arguments, "--json"])
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out), told.err


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["score", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


def model(kind: str = "image", **settings: Any) -> Model:
    return load_artifact(make_artifact(Path("run") / "artifact", kind, **settings))


def test_a_pipe_is_read_once(images: Array, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as the shell's <(...) is; whoever writes to it does so once."""
    served = model()
    np.save("items.npy", images)
    os.mkfifo("pipe")
    content = Path("items.npy").read_bytes()
    writer = threading.Thread(target=Path("pipe").write_bytes, args=[content])
    writer.start()
    found, _ = scored("run", "pipe", capsys=capsys)
    writer.join()
    np.testing.assert_allclose(found["scores"], served.score(images), rtol=1e-5)


def test_a_device_that_never_ends_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    model()
    assert "cannot be read" in refused("run", "/dev/full", capsys=capsys)


@pytest.mark.parametrize("source", ["photos", "photos.zip", "photos.tar.gz"])
def test_folders_and_archives(
    source: str, images: Array, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = model().score(images)
    found, told = scored("run", source, capsys=capsys)
    parent = source if source == "photos" else f"{source}/photos"
    names = [f"{parent}/{'cats/' * (i > 2)}{i}.png" for i in range(6)]
    by_name = dict(zip(found["items"], found["scores"], strict=True))
    assert sorted(by_name) == sorted(names)
    np.testing.assert_array_equal(np.float32([by_name[name] for name in names]), expected)
    assert "left out: " in told
    assert "notes.txt" in told
    assert "hidden" not in told


def test_images_of_another_size_need_a_word_unless_training_resized(
    capsys: pytest.CaptureFixture[str],
) -> None:
    large = np.random.default_rng(0).integers(0, 256, (1, 12, 16, 1), np.uint8)
    Path("large.png").write_bytes(encode_png(large[0]))
    np.save("large.npy", large)
    fitted = fit(large[0], 8, 8)[None]
    plain = model()
    for name in ("large.png", "large.npy"):
        assert "--resize" in refused("run", name, capsys=capsys)
        found, _ = scored("run", name, "--resize", capsys=capsys)
        np.testing.assert_array_equal(np.float32(found["scores"]), plain.score(fitted))
    resizing = model(data={"source": "photos", "size": 8})
    for name in ("large.png", "large.npy"):
        found, told = scored("run", name, capsys=capsys)
        np.testing.assert_array_equal(np.float32(found["scores"]), resizing.score(fitted))
        assert "1 images were resized, as those in training were" in told


def test_channels_are_read_as_in_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Transparency and grey are brought to RGB; colour is not made grey without a word."""
    rng = np.random.default_rng(0)
    grey, clear = (rng.integers(0, 256, (16, 12, c), np.uint8) for c in (1, 4))
    Path("grey.png").write_bytes(encode_png(grey))
    Path("clear.png").write_bytes(encode_png(clear))
    rgb = model("rgb")
    items = np.concatenate([rgb.resized(image[None]) for image in (grey, clear)])
    found, _ = scored("run", "grey.png", "clear.png", capsys=capsys)
    np.testing.assert_array_equal(np.float32(found["scores"]), rgb.score(items))
    plain = model("image")
    item = grey[:8, :8]
    Path("stored.png").write_bytes(encode_png(np.repeat(item, 3, axis=2)))
    found, _ = scored("run", "stored.png", capsys=capsys)
    np.testing.assert_array_equal(np.float32(found["scores"]), plain.score(item[None]))
    Path("colour.png").write_bytes(encode_png(rng.integers(0, 256, (8, 8, 3), np.uint8)))
    assert "--resize" in refused("run", "colour.png", capsys=capsys)


def test_rows_of_a_table_in_files_and_folders(capsys: pytest.CaptureFixture[str]) -> None:
    table, rows = model("rows"), people(5)
    Path("rows").mkdir()
    for suffix in ("csv", "parquet", "arrow", "npz"):
        Path(f"rows/1.{suffix}").write_bytes(b"".join(write_rows([rows], suffix)))
    expected = table.score(table.codes(rows))
    for suffix in ("csv", "parquet", "arrow", "npz"):
        found, _ = scored("run", f"rows/1.{suffix}", capsys=capsys)
        np.testing.assert_allclose(found["scores"], expected, rtol=1e-5)
        assert found["items"] == [f"rows/1.{suffix}[{i}]" for i in range(5)]
    found, _ = scored("run", "rows", capsys=capsys)
    assert len(found["scores"]) == 20


def test_what_holds_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    model()
    Path("empty").mkdir()
    assert "empty: holds nothing" in refused("run", "empty", capsys=capsys)
    assert "absent: no such file or folder" in refused("run", "absent", capsys=capsys)
    np.save("objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    assert "not plain numbers" in refused("run", "objects.npy", capsys=capsys)


def test_links_in_folders_are_followed_and_what_is_passed_over_is_said(
    images: Array, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = model().score(images)
    Path("links").mkdir()
    Path("links/photos").symlink_to(Path("photos").absolute())
    Path("links/around").symlink_to(Path("links").absolute())
    Path("links/gone.png").symlink_to("nowhere")
    os.mkfifo("links/pipe")
    Path("links/.hidden").mkdir()
    Path("links/.hidden/0.png").write_bytes(Path("photos/0.png").read_bytes())
    found, told = scored("run", "links", capsys=capsys)
    assert found["items"] == [
        f"links/photos/{'cats/' * (i > 2)}{i}.png" for i in (0, 1, 2, 3, 4, 5)
    ]
    np.testing.assert_array_equal(np.float32(found["scores"]), expected)
    assert "left out: 1 links that lead nowhere" in told
    assert "left out: 1 links to folders that are read already" in told


def test_a_tar_with_links_is_read_and_a_damaged_one_refused(
    images: Array, capsys: pytest.CaptureFixture[str]
) -> None:
    model()
    whole = gzip.decompress(Path("photos.tar.gz").read_bytes())
    with tarfile.open("linked.tar", "w") as archive:
        archive.add("photos/0.png")
        link = tarfile.TarInfo("photos/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "absent.png"
        archive.addfile(link)
    found, told = scored("run", "linked.tar", capsys=capsys)
    assert found["items"] == ["linked.tar/photos/0.png"]
    assert "left out: 1 links in the archive" in told
    second = whole.index(b"photos/cats/3.png")
    Path("cut.tar").write_bytes(whole[:second])
    Path("half.tar").write_bytes(whole[: second + 100])
    Path("changed.tar").write_bytes(whole[: second + 150] + b"x" + whole[second + 151 :])
    for name in ("cut.tar", "half.tar", "changed.tar"):
        assert f"{name}: a broken archive (it is damaged" in refused("run", name, capsys=capsys)


@pytest.mark.parametrize("kind", ["image", "rows"])
def test_anomalies_are_what_the_service_answers(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = guarded(tmp_path, kind)
    items: Any = detector.model.sample(3, 5)
    if kind == "rows":
        (table,) = detector.model.tables([items], 3)
        Path("a.csv").write_bytes(b"".join(write_rows([table], "csv")))
        items = detector.model.codes(table)
    else:
        np.savez("a.npz", samples=items)
    path = "a.csv" if kind == "rows" else "a.npz"
    expected = detector.examine(items)
    found, _ = scored("artifact", path, "--anomalies", capsys=capsys)
    assert found == {
        "items": [f"{path}[{i}]" for i in range(5)],
        "p_values": expected.p_values.tolist(),
        "statistics": expected.statistics.tolist(),
        "calibration_items": len(detector.calibration),
    }
    assert main(["score", "artifact", path, "--anomalies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [f"{p:.3g}" for p in expected.p_values]
    told = refused("plain", "absent", "--anomalies", capsys=capsys)
    assert "`wgan train-detector` makes one" in told
    told = refused("artifact", path, "--anomalies", "--class", "a", capsys=capsys)
    assert "leave --class out" in told


def test_hdf5_and_zarr_are_read_as_in_training(
    images: Array, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = model(data={"key": "train/x"}).score(images)
    with h5py.File("a.h5", "w") as file:
        file["train/x"], file["test/x"], file["train/labels"] = images, images[:3], [0] * 6
    train = zarr.create_group("a.zarr").create_group("train")
    train.create_array("x", data=images)
    Path("folder").mkdir()
    shutil.copy("a.h5", "folder/b.h5")
    for path, file in (("a.h5", "a.h5"), ("a.zarr", "a.zarr"), ("folder", "folder/b.h5")):
        found, _ = scored("run", path, capsys=capsys)
        assert found["items"] == [f"{file}[{i}]" for i in range(6)]
        np.testing.assert_array_equal(np.float32(found["scores"]), expected)
    Path("cut.h5").write_bytes(Path("a.h5").read_bytes()[:600])
    assert "cut.h5: cannot be read" in refused("run", "cut.h5", capsys=capsys)
    zarr.create_group("none.zarr")
    assert "(none); there is no train/x" in refused("run", "none.zarr", capsys=capsys)
    shutil.rmtree("run")
    model("rows")
    for path in ("a.h5", "a.zarr"):
        assert f"{path}: holds an array, and the" in refused("run", path, capsys=capsys)


def test_links_in_a_zip_are_counted_and_not_read(
    images: Array, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a link says, the name of a file, was read as an image, and told as a broken one."""
    model()
    with zipfile.ZipFile("linked.zip", "w") as archive:
        archive.write("photos/0.png")
        link = zipfile.ZipInfo("photos/link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "0.png")
    found, told = scored("run", "linked.zip", capsys=capsys)
    assert found["items"] == ["linked.zip/photos/0.png"]
    assert told.splitlines() == ["left out: 1 links in the archive"]


def test_a_large_file_in_an_archive_is_never_scored_in_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model("rows")
    content = b"".join(write_rows([people(5)], "csv"))
    with zipfile.ZipFile("rows.zip", "w") as archive:
        archive.writestr("rows.csv", content)
    monkeypatch.setattr("models.item_files.MAX_BYTES", len(content) - 10)
    assert "rows.zip/rows.csv: over" in refused("run", "rows.zip", capsys=capsys)


# ---- without the command -------------------------------------------------------------------------


def read(served: Model, *paths: str, resize: bool = False) -> tuple[dict[str, Array], list[str]]:
    """Each item by its name, and what was said."""
    said = list[str]()
    batches = list(read_files(served, list(map(Path, paths)), resize, said.append))
    assert all(len(batch.names) == len(batch.items) for batch in batches)
    pairs = [pair for batch in batches for pair in zip(*batch, strict=True)]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs), said


def test_items_are_held_until_they_are_many(images: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.item_files.AT_ONCE", 4)
    served = model()
    np.save("four.npy", images[:4])
    for paths, sizes in (
        (["photos"], [4, 2]),
        (["four.npy"], [4]),
        (["photos/0.png", "four.npy", "photos/1.png"], [5, 1]),
    ):
        batches = list(read_files(served, list(map(Path, paths)), False, print))
        assert [len(batch.items) for batch in batches] == sizes
        assert [len(batch.names) for batch in batches] == sizes
    names = [name for batch in batches for name in batch.names]
    assert names == ["photos/0.png", *(f"four.npy[{i}]" for i in range(4)), "photos/1.png"]
    expected = np.concatenate([images[:1], images[:4], images[1:2]])
    np.testing.assert_array_equal(np.concatenate([batch.items for batch in batches]), expected)


def test_what_holds_no_items_is_left_out_and_said_once_for_each_path(images: Array) -> None:
    served = model()
    found, said = read(served, "photos", "photos.zip", "photos.tar.gz")
    assert len(found) == 18
    assert [line.split(":")[:2] for line in said] == [
        ["left out", f" {path}/notes.txt"]
        for path in ("photos", "photos.zip/photos", "photos.tar.gz/photos")
    ]
    for i in range(6):
        name = f"{'cats/' * (i > 2)}{i}.png"
        np.testing.assert_array_equal(found[f"photos/{name}"], images[i])
    Path("photos/00.txt").write_text("before the images")
    found, said = read(served, "photos")
    assert (len(found), len(said)) == (6, 2)
    for path in ("photos/notes.txt", "absent"):
        with pytest.raises(UserError, match=f"^{path}: ") as caught:
            read(served, "photos/0.png", path)
        assert str(caught.value).count(path) == 1
    for kind, name in (("zip", "notes.zip"), ("tar", "notes.tar")):
        with zipfile.ZipFile(name, "w") if kind == "zip" else tarfile.open(name, "w") as archive:
            add = getattr(archive, "write" if kind == "zip" else "add")
            for file in ("photos/notes.txt", "photos/.DS_Store"):
                add(file)
        with pytest.raises(UserError, match=f"^{name}: holds nothing that the model scores$"):
            read(served, name)


def test_links_of_both_kinds_in_archives_are_counted(images: Array) -> None:
    with tarfile.open("linked.tar", "w") as tar, zipfile.ZipFile("linked.zip", "w") as archive:
        archive.write("photos/0.png", "./0.png")
        tar.add("photos/0.png", "./0.png")
        pipe = tarfile.TarInfo("pipe.png")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
        for i, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE)):
            link = tarfile.TarInfo(f"link{i}.png")
            link.type, link.linkname = kind, "0.png"
            tar.addfile(link)
            other = zipfile.ZipInfo(f"link{i}.png")
            other.create_system, other.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(other, "0.png")
    served = model()
    for name, member in (("linked.tar", "0.png"), ("linked.zip", "0.png")):
        found, said = read(served, name)
        assert len(found) == 1
        assert next(iter(found)).endswith(member)
        assert "left out: 2 links in the archive" in said


def test_arrays_of_other_sizes_and_channels_are_resized_only_as_training_did() -> None:
    """Grey or transparency alone is no other picture; colours of a grey model are."""
    rng = np.random.default_rng(0)
    rgb, grey = model("rgb"), model(data={"source": "photos", "size": 8})
    shutil.rmtree("run")
    plain = model()

    def saved(*shape: int) -> Array:
        items = rng.integers(0, 256, shape, np.uint8)
        np.save("a.npy", items)
        return items

    for served, shape, is_read in (
        (plain, (2, 8, 8), True),
        (plain, (2, 8, 8, 1), True),
        (plain, (2, 8, 8, 2), True),  # transparency
        (plain, (2, 8, 8, 3), False),
        (plain, (2, 8, 8, 4), False),
        (plain, (2, 8, 9), False),
        (plain, (2, 9, 8, 1), False),
        (rgb, (2, 16, 12), True),
        (rgb, (2, 16, 12, 2), True),
        (rgb, (2, 16, 12, 4), True),
        (rgb, (2, 12, 16, 3), False),
        (grey, (2, 9, 8), True),
        (grey, (2, 9, 30, 2), True),
        (grey, (2, 9, 8, 3), False),
    ):
        items = saved(*shape)
        four = items[..., None] if items.ndim == 3 else items
        is_other_size = four.shape[1:3] != served.shape[1:]
        found, said = read(served, "a.npy", resize=True)
        fitted = np.stack([found[f"a.npy[{i}]"] for i in range(2)])
        np.testing.assert_array_equal(fitted, served.resized(items))
        assert said == []
        if is_read:
            found, said = read(served, "a.npy")
            np.testing.assert_array_equal(np.stack([*found.values()]), fitted)
            resized = ["2 images were resized, as those in training were"]
            assert said == (resized if is_other_size else [])
        else:
            with pytest.raises(UserError, match=r"^a\.npy: .*; --resize brings images to that$"):
                read(served, "a.npy")
    np.save("a.npy", np.repeat(rng.integers(0, 256, (2, 8, 8, 1), np.uint8), 3, axis=3))
    assert len(read(plain, "a.npy")[0]) == 2, "colours that are grey"
    clear = rng.integers(0, 256, (2, 8, 8, 2), np.uint8)[..., [0, 0, 0, 1]]
    np.save("a.npy", clear)
    assert len(read(plain, "a.npy")[0]) == 2, "and their transparency is none"
    for shape in ((8, 8), (1, 2, 8, 8, 1)):
        saved(*shape)
        with pytest.raises(UserError, match=r"^a\.npy: the model takes items of shape"):
            read(plain, "a.npy")
    np.save("a.npy", np.zeros((2, 9, 9, 1)))  # floats are in no picture's form
    with pytest.raises(UserError, match="resize brings images"):
        read(grey, "a.npy")
    vector = load_artifact(make_artifact(Path("vector"), "vector"))
    np.save("a.npy", np.zeros((2, 3)))
    for resize in (False, True):
        with pytest.raises(UserError, match=r"^a\.npy: the model takes items .*\(2, 3\)$"):
            read(vector, "a.npy", resize=resize)


def test_a_file_of_an_archive_may_be_as_large_as_the_limit(
    images: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, size = model(), Path("photos/0.png").stat().st_size
    with zipfile.ZipFile("one.zip", "w") as archive, tarfile.open("one.tar", "w") as tar:
        archive.write("photos/0.png")
        tar.add("photos/0.png")
    for name in ("one.zip", "one.tar"):
        monkeypatch.setattr("models.item_files.MAX_BYTES", size)
        assert len(read(served, name)[0]) == 1
        monkeypatch.setattr("models.item_files.MAX_BYTES", size - 1)
        with pytest.raises(UserError, match=f"^{name}/photos/0.png: over {size - 1} bytes"):
            read(served, name)


def test_an_npz_is_one_file_and_an_archive_of_arrays_too(images: Array) -> None:
    """An .npz is a zip: what it holds is told by its names, and not by its own."""
    served = model()
    np.savez("a.npz", samples=images)
    with zipfile.ZipFile("b.npz", "a") as archive:  # with a file beside its arrays
        archive.writestr("notes.txt", "hello")
        with archive.open("samples.npy", "w") as file:
            np.lib.format.write_array(file, images)
    for name in ("a.npz", "b.npz"):
        found, said = read(served, name)
        assert [*found] == [f"{name}[{i}]" for i in range(6)]
        assert said == []


def test_broken_archives_are_told(images: Array) -> None:
    served = model()
    with zipfile.ZipFile("one.zip", "w") as archive:
        archive.write("photos/0.png")
    content = bytearray(Path("one.zip").read_bytes())
    content[content.index(b"IDAT")] ^= 255
    Path("broken.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"^broken\.zip: a broken archive \("):
        read(served, "broken.zip")
