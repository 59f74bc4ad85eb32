"""Which files of a folder or archive are data, what their folders mean, and how they are read."""

import io
import os
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.artifact import load_artifact
from models.config import DataConfig
from models.errors import DataError
from models.file_trees import folder_files, is_litter
from models.formats import encode
from models.images import encode_png
from tests.artifacts import make_artifact, tiny_config
from tests.command_line import called
from tests.runs import trained
from tests.test_sources import CONTAINERS, Files, encoded, load, photos, to_folder, to_tar, to_zip
from training.data.dataset import Dataset, load_data
from training.data.inspection import problems
from training.engine.origin import changes, fingerprint, load_start
from training.judging.evaluate import evaluate_artifact
from training.run import run_training

pytestmark = pytest.mark.usefixtures("charts_undrawn")

QUICK: dict[str, dict[str, Any]] = {
    "training": {"steps": 1, "critic_step": "eager"},  # capturing takes longer than a step
    "evaluation": {"samples": 20, "extractor": "pixels"},
}


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))


def named(pixels: list[np.ndarray], name: str = "{:03d}.png") -> Files:
    return {name.format(i): encoded(p) for i, p in enumerate(pixels)}


def found(data: Dataset) -> set[bytes]:
    return {item.tobytes() for item in np.asarray(data.items)}


def content(pixels: list[np.ndarray]) -> set[bytes]:
    return {p.tobytes() for p in pixels}


# Which files are read


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    here, elsewhere = photos(120), photos(120)
    folder = to_folder(named(here, "set/cats/{}.png"), tmp_path) / "set"
    to_folder(named(elsewhere, "elsewhere/{}.png"), tmp_path)
    (folder / "dogs").symlink_to(tmp_path / "elsewhere")
    (folder / "cats" / "around").symlink_to(folder)  # a loop
    (folder / "again").symlink_to(folder / "cats")
    (folder / "cats" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "cats" / "self.png").symlink_to(folder / "cats" / "self.png")
    data = load(folder)
    assert data.card.classes == ["cats", "dogs"]
    assert found(data) == content([*here, *elsewhere])
    assert data.card.count == 240
    assert data.card.not_read == {
        "links that lead nowhere": 2,
        "links to folders that are read already": 2,
    }


def test_every_format_is_read_whatever_its_ending_is_called(tmp_path: Path) -> None:
    formats = {
        "png": "PNG",
        "tif": "TIFF",
        "TIFF": "TIFF",
        "bmp": "BMP",
        "jfif": "JPEG",
        "jpe": "JPEG",
        "gif": "GIF",
        "avif": "AVIF",
    }
    pixels = photos(200)
    files = {
        f"{i}.{ending}": encoded(p, format)
        for i, p in enumerate(pixels[:24])
        for ending, format in [list(formats.items())[i % 8]]
    }
    data = load(to_folder(files | named(pixels[24:], "x{}.png"), tmp_path / "set"))
    assert data.card.count == 200
    assert not data.card.not_read
    exact = [p for i, p in enumerate(pixels) if i >= 24 or i % 8 < 4]
    assert content(exact) <= found(data)


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_is_not_looked_at_is_counted_and_said(
    tmp_path: Path, container: Callable[[Files, Path], Path]
) -> None:
    files = named(photos(200)) | {
        "a.heic": b"x",
        "sub/b.HEIC": b"x",
        "labels.csv": b"x",
        "LICENSE": b"x",
        ".DS_Store": b"x",
        "Thumbs.db": b"x",
        "__MACOSX/._000.png": b"x",
        ".cache/c.png": b"x",
    }
    source = container(files, tmp_path / "set")
    for _ in range(2):  # decoded, then from the cache
        data = load(source)
        assert data.card.count == 200
        assert data.card.not_read == {".csv": 1, ".heic": 2, "without a suffix": 1}
        assert "not read: 1 .csv, 2 .heic, 1 without a suffix" in problems(data)
    with pytest.raises(DataError, match=r"no images.*there are 1 \.heic"):
        load(container({"a.heic": b"x"}, tmp_path / "other"))


def test_a_new_file_that_is_not_read_is_noticed_without_decoding_anew(tmp_path: Path) -> None:
    folder = to_folder(named(photos(200)), tmp_path / "set")
    assert not load(folder).card.not_read
    (folder / "more.heic").write_bytes(b"x")
    assert load(folder).card.not_read == {".heic": 1}
    assert len([*(tmp_path / "cache" / "images").iterdir()]) == 1


def test_training_and_its_card_say_what_was_not_read(tmp_path: Path) -> None:
    folder = to_folder(named(photos(200)) | {"a.heic": b"x", "cut.png": b"x"}, tmp_path / "set")
    config = tiny_config("image", data={"source": str(folder), "max_broken_fraction": 0.1}, **QUICK)
    model, _, said = trained(config, tmp_path / "run", register=False)
    assert "warning: not read: 1 .heic" in said
    assert model.run.data.not_read == {".heic": 1}
    card = (tmp_path / "run" / "artifact" / "MODEL_CARD.md").read_text()
    assert "held out, 1 broken, not read: 1 .heic\n" in card


def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read all, so the system's answer is made up."""
    folder = to_folder(named(photos(20), "set/a/{}.png"), tmp_path) / "set"
    (folder / "b").mkdir()
    listed = os.listdir

    def refuse(path: str) -> list[str]:
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=r"access denied \(.*/b"):
        load(folder)


def test_what_systems_leave_and_what_wgan_wrote_is_passed_over(tmp_path: Path) -> None:
    for name in (".a/b.png", "a/.b/c.png", "a/__MACOSX/b.png", "Thumbs.db", "a/desktop.ini", ".b"):
        assert is_litter(name)
    for name in ("a.b/c.png", "a/Thumbs.db.png", "MACOSX/b"):
        assert not is_litter(name)
    files = ("b/1.png", "a/2.png", "0.png", "z.png", ".c/3.png", "model/run.json", "model/4.png")
    for name in (*files, "model/SHA256SUMS", "half/run.json", "m/run.json", "m/SHA256SUMS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    not_read = Counter[str]()
    found = dict(folder_files(str(tmp_path), not_read))
    assert list(found) == ["0.png", "z.png", "a/2.png", "b/1.png", "half/run.json"]
    assert all(Path(path) == tmp_path / name for name, path in found.items())
    assert not_read == {"models that wgan wrote": 2}


# Archives and names of other systems


def test_a_zip_of_another_system_is_read(tmp_path: Path) -> None:
    """Backslashes, names in UTF-8 without the flag that says so, and others in no known letters."""
    pixels = photos(201)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for i, p in enumerate(pixels):
            name = [f"set\\Käse\\{i}.png", f"set/Käse/{i}.png", f"set\\b\\{i}.png"][i % 3]
            member = zipfile.ZipInfo(name)
            archive.writestr(member, encoded(p))
    whole = (tmp_path / "set.zip").read_bytes()
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = whole.find(signature)
        changed = bytearray(whole)
        while at >= 0:
            changed[at + flags + 1] &= 0xF7  # the flag of UTF-8
            at = whole.find(signature, at + 4)
        whole = bytes(changed)
    (tmp_path / "set.zip").write_bytes(whole)
    data = load(tmp_path / "set.zip")
    assert data.card.classes == ["Käse", "b"]
    assert found(data) == content(pixels)
    (tmp_path / "odd.zip").write_bytes(whole.replace("ä".encode(), b"\x81\xff"))
    assert len(load(tmp_path / "odd.zip").card.classes) == 2


def test_names_that_are_no_unicode_become_text(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    files = named(photos(100), odd + "/{}.png") | named(photos(100), "tea/{}.png")
    for source in (to_folder(files, tmp_path / "set"), to_tar(files, tmp_path / "set")):
        data = load(source)
        assert data.card.classes == ["caf\\xe9", "tea"]
        assert data.card.model_dump_json().encode()


def test_one_class_in_two_forms_of_unicode_is_one(tmp_path: Path) -> None:
    files = named(photos(200), "tea/{}.png")
    for form in ("NFC", "NFD"):
        files |= named(photos(100), unicodedata.normalize(form, "café") + f"/{form}" + "{}.png")
    data = load(to_zip(files, tmp_path / "set"))
    assert data.card.classes == [unicodedata.normalize("NFC", "café"), "tea"]
    assert any("one class" in note for note in data.notes)


def test_links_and_older_files_in_archives_are_counted(tmp_path: Path) -> None:
    pixels, old = photos(200), photos(1)[0]
    path = to_tar(named(pixels), tmp_path / "set")
    with tarfile.open(path, "a") as archive:
        for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "000.png"
            archive.addfile(link)
    assert load(path).card.not_read == {"links in the archive": 2}
    path = to_zip({"000.png": encoded(old)}, tmp_path / "set")
    with zipfile.ZipFile(path, "a") as zipped:
        member = zipfile.ZipInfo("link.png")
        member.external_attr = 0o120777 << 16
        zipped.writestr(member, "000.png")
        with pytest.warns(UserWarning, match="Duplicate name"):
            zipped.writestr("000.png", encoded(pixels[0]))
        for name, file in list(named(pixels).items())[1:]:
            zipped.writestr(name, file)
    data = load(path)
    assert data.card.not_read == {"links in the archive": 1, "older files of the same name": 1}
    assert found(data) == content(pixels)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_tar_that_is_damaged_at_a_header_is_no_shorter_one(tmp_path: Path, kept: int) -> None:
    path = to_tar(named(photos(200)), tmp_path / "set")
    whole = path.read_bytes()
    header = whole.index(b"150.png")
    rest = b"x" + whole[header + 1 :] if kept < 0 else b""
    path.write_bytes(whole[: header + max(kept, 0)] + rest)
    with pytest.raises(DataError, match=r"set.tar: .*damaged or ends early"):
        load(path)


# A split in folders


@pytest.mark.parametrize("top", ["", "set/"])
@pytest.mark.parametrize("container", [to_folder, to_zip])
def test_a_split_in_folders_is_no_class_and_is_followed_when_told_to(
    tmp_path: Path, container: Callable[[Files, Path], Path], top: str
) -> None:
    trained_on, tested, validated = photos(120), photos(60), photos(30)
    files = named(trained_on[:60], top + "train/cat/{}.png")
    files |= named(trained_on[60:], top + "train/dog/{}.png")
    files |= named(tested, top + "Test/cat/{}.png") | named(validated, top + "val/dog/{}.png")
    files |= named(trained_on[:5], top + "val/cat/twin{}.png")
    source = container(files, tmp_path / "set")
    data = load(source)
    assert data.card.classes == ["cat", "dog"]
    assert any("data.split=folders" in note for note in data.notes)
    assert data.card.heldout_fraction == 0.2
    by_hash, data = data, load(source, split="folders")
    assert changes(fingerprint(by_hash), fingerprint(data)) == "other items held out"
    assert data.card.classes == ["cat", "dog"]
    assert content([*data.heldout]) == content([*tested, *validated])
    assert content([*data.training]) == content(trained_on)
    assert data.card.heldout_fraction == 90 / 215
    assert data.notes == ("5 images to hold out are also trained on, and count so",)
    parts = load(source, split="folders", validation_fraction=0.5)
    assert content([*parts.heldout]) == content([*data.heldout])
    assert {*content([*parts.training])} < {*content(trained_on)}
    assert 30 < parts.card.validation_count < 100


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = to_folder(named(photos(200), "train/{}.png"), tmp_path / "set")
    np.save(tmp_path / "a.npy", np.stack(photos(200)))
    for source in (folder, tmp_path / "a.npy", "digits"):
        with pytest.raises(DataError, match=r"data\.split=folders says; leave that out"):
            load(source, split="folders")


def test_folders_called_otherwise_are_classes(tmp_path: Path) -> None:
    files = named(photos(100), "train/{}.png") | named(photos(100), "plane/{}.png")
    assert load(to_folder(files, tmp_path / "set")).card.classes == ["plane", "train"]


# Colour and transparency


@pytest.mark.parametrize("stored", ["RGB", "P", "RGBA", "LA"])
def test_grey_is_grey_however_it_is_stored(tmp_path: Path, stored: str) -> None:
    grey = photos(200, 16, 16)
    files = {}
    for i, p in enumerate(grey):
        out = io.BytesIO()
        Image.fromarray(p).convert(stored).save(out, "PNG")
        files[f"{i:03d}.png"] = out.getvalue()
    folder = to_folder(files, tmp_path / "set")
    data = load(folder)
    assert data.card.shape == (1, 16, 16)
    np.testing.assert_array_equal(data.items[..., 0], np.stack(grey))
    assert load(folder, size=8).card.shape == (1, 8, 8)


def test_a_model_that_learned_grey_as_colour_is_judged_as_before(tmp_path: Path) -> None:
    """An earlier version took grey that is stored as RGB for colour."""
    grey = photos(200)
    colour = [np.repeat(p[:, :, :1], 3, axis=2) for p in grey]
    folder = to_folder(named(colour), tmp_path / "set")
    np.save(tmp_path / "colour.npy", np.stack(colour))
    before = load(tmp_path / "colour.npy")
    assert load(folder).card.shape == (1, 8, 8)
    data = load_data(DataConfig(source=str(folder)), card=before.card)
    assert data.card.shape == (3, 8, 8)
    assert data.card.sha256 == before.card.sha256
    np.testing.assert_array_equal(data.is_heldout, before.is_heldout)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_key_is_laid_on_the_background(tmp_path: Path, mode: str) -> None:
    files = named(photos(200))
    picture = np.full((8, 8, 3), 10, np.uint8)
    picture[2:4] = 90
    out = io.BytesIO()
    key = 90 if mode == "L" else (90, 90, 90)
    Image.fromarray(picture).convert(mode).save(out, "PNG", transparency=key)
    folder = to_folder(files | {"a.png": out.getvalue()}, tmp_path / "set")
    for background, colour in (
        ("white", [255] * 3),
        ("black", [0] * 3),
        ("#ff8000", [255, 128, 0]),
    ):
        shown = load(folder, background=background).items[-1]
        assert (shown[2:4] == colour).all()
        assert (shown[4:] == 10).all()


def test_scoring_lays_transparency_on_the_ground_of_training(tmp_path: Path) -> None:
    clear = np.zeros((1, 8, 8, 4), np.uint8)
    model = load_artifact(make_artifact(tmp_path / "a"))
    assert (model.resized(clear) == 255).all()
    data = model.run.config.data.model_copy(update={"background": "black"})
    config = model.run.config.model_copy(update={"data": data})
    model.run = model.run.model_copy(update={"config": config})
    assert (model.resized(clear) == 0).all()


def test_the_background_is_kept_and_judged_with(tmp_path: Path) -> None:
    clear = [np.dstack([p, p[..., :1]]) for p in photos(200)]
    folder = to_folder(named(clear), tmp_path / "set")
    told = {"source": str(folder), "background": "#102030"}
    config = tiny_config("image", data=told, **QUICK)
    model, _, _ = trained(config, tmp_path / "run", register=False)
    assert model.run.config.data.background == "#102030"
    assert evaluate_artifact(tmp_path / "run" / "artifact") == model.run.results
    assert "background" not in DataConfig(source="x").model_dump_json()


def test_images_that_are_all_the_same_are_named_as_such(tmp_path: Path) -> None:
    same = photos(1)[0]
    for name in ("set", "other"):
        files = named([same] * 200) if name == "set" else named([same[..., :1]] * 200)
        with pytest.raises(DataError, match=f"{name}: all 200 items are the same"):
            load(to_folder(files, tmp_path / name))


def test_images_of_which_few_bits_are_used_are_a_problem(tmp_path: Path) -> None:
    dark = np.random.default_rng(0).integers(0, 4096, (200, 8, 8)).astype(np.uint16)
    folder = to_folder(named([*dark]), tmp_path / "set")
    data = load(folder)
    assert data.items.max() == 15
    assert any("no pixel is brighter than 15 of 255" in line for line in problems(data))
    config = tiny_config("image", data={"source": str(folder)}, **QUICK)
    _, _, said = trained(config, tmp_path / "run", register=False)
    assert "warning: no pixel is brighter than 15 of 255" in said


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP", "AVIF"])
def test_further_images_of_a_file_are_counted(tmp_path: Path, kind: str) -> None:
    files = named(photos(200))
    pages = [Image.fromarray(page) for page in photos(3)]
    for name, further in (("one", []), ("several", pages[1:])):
        file = io.BytesIO()
        pages[0].save(file, kind, save_all=True, append_images=further)
        files[f"{name}.{kind.lower()}"] = file.getvalue()
    for source in (to_folder(files, tmp_path / "set"), to_zip(files, tmp_path / "set")):
        card = load(source).card
        assert card.count == 202
        assert card.not_read == {"files of several images, but for the first of each": 1}


# Nothing we wrote is data


def test_the_picture_of_inspect_and_samples_are_no_data(tmp_path: Path) -> None:
    pixels = photos(200)
    folder = to_folder(named(pixels), tmp_path / "set")
    before = load(folder).card
    for _ in range(2):
        done = called("data", "inspect", ".", "--out", "a.png", cwd=folder)
        assert done.returncode == 0, done.stderr
    for format in ("png", "webp"):
        (folder / f"samples.{format}").write_bytes(encode(np.stack(photos(9)), format))
    data = load(folder)
    assert found(data) == content(pixels)
    assert data.card.sha256 == before.sha256
    assert data.card.not_read == {"pictures that wgan wrote": 3}
    zipped = tmp_path / "samples.zip"
    zipped.write_bytes(encode(np.stack(photos(200)), "zip"))
    with pytest.raises(DataError, match="wgan wrote all of it"):
        load(zipped)


def test_a_run_that_begins_with_a_model_is_not_trained_on_samples_either(tmp_path: Path) -> None:
    start = load_start(str(make_artifact(tmp_path / "first" / "artifact", "image")))
    samples = {f"{i}.png": encode_png(image) for i, image in enumerate(photos(200, 8, 8, 1))}
    ours = to_folder(samples, tmp_path / "samples")
    others = to_folder(named(photos(200, 8, 8)), tmp_path / "photos")
    unsplit = {"source": str(others), "split": "folders"}
    for data, says in (({"source": str(ours)}, "wgan wrote all"), (unsplit, "has no folders")):
        config = tiny_config("image", data=data)
        with pytest.raises(DataError, match=says):
            run_training(config, tmp_path / "run", torch.device("cpu"), register=False, start=start)


def test_a_run_in_the_folder_of_its_data_is_no_class(tmp_path: Path) -> None:
    pixels = photos(200)
    files = named(pixels[:100], "cat/{}.png") | named(pixels[100:], "dog/{}.png")
    folder = to_folder(files, tmp_path / "set")
    config = tiny_config("image", data={"source": str(folder)}, **QUICK)
    trained(config, folder / "run", register=False)
    data = load(folder)
    assert data.card.classes == ["cat", "dog"]
    assert found(data) == content(pixels)
    assert data.card.not_read["models that wgan wrote"] == 1
    with pytest.raises(DataError, match=r"no images.*1 models that wgan wrote"):
        load(folder / "run")
    files["run/artifact/samples.png"] = (folder / "run" / "artifact" / "samples.png").read_bytes()
    assert load(to_zip(files, tmp_path / "zipped")).card.classes == ["cat", "dog"]


# Classes without training items


def test_a_class_without_training_items_is_named(tmp_path: Path) -> None:
    files = named(photos(100), "train/cat/{}.png") | named(photos(50), "test/cat/{}.png")
    files |= named(photos(9), "test/dog/{}.png")
    data = load(to_folder(files, tmp_path / "set"), split="folders")
    assert data.card.class_counts == [100, 0]
    assert data.card.trained_classes == ["cat"]
    assert "class 'dog' has no items to train on, and cannot be asked for" in problems(data)
