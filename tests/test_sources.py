"""Image files, archives and tables as data: what they become, and what is refused."""

import dataclasses
import hashlib
import io
import os
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import feather

from models.config import DataConfig
from models.errors import DataError, ShapeError
from models.formats import encode
from training.data.dataset import Dataset, load_data
from training.data.sources import cache, image_files
from training.data.sources.arrays import load_zarr
from training.data.sources.files import Location, installed_file, locate, new_file, reading
from training.data.sources.tables import as_numbers, load_table
from training.presets import build_config, suitable_preset

RNG = np.random.default_rng(5)
Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(path: Path | str, **settings: object) -> Dataset:
    return load_data(DataConfig(source=str(path), **settings), 8)


def encoded(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(out, format, **options)
    return out.getvalue()


def photos(count: int, *shape: int) -> list[np.ndarray]:
    return [RNG.integers(0, 256, shape or (8, 8, 3), np.uint8) for _ in range(count)]


def to_folder(files: Files, path: Path) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def to_zip(files: Files, path: Path) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def to_tar(files: Files, path: Path, suffix: str = ".tar") -> Path:
    path = path.with_suffix(suffix)
    with tarfile.open(path, "w:gz" if suffix == ".tar.gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def to_tar_gz(files: Files, path: Path) -> Path:
    return to_tar(files, path, ".tar.gz")


CONTAINERS = [to_folder, to_zip, to_tar, to_tar_gz]


@pytest.mark.parametrize("container", CONTAINERS)
def test_images_come_back_pixel_for_pixel(
    tmp_path: Path, container: Callable[[Files, Path], Path]
) -> None:
    pixels = photos(200)
    files = {f"{i:03d}.png": encoded(image) for i, image in enumerate(pixels)}
    source = container(files | {"notes.txt": b"no image", ".hidden.png": b""}, tmp_path / "set")
    for _ in range(2):  # decoded, then from the cache
        data = load(source)
        np.testing.assert_array_equal(data.items, np.stack(pixels))
        assert data.card.shape == (3, 8, 8)
        assert data.card.name == "set"
        assert data.labels is None
        assert isinstance(data.items, np.memmap)
        assert not data.problems
    np.save(tmp_path / "same.npy", np.stack(pixels))
    array = load(tmp_path / "same.npy")
    assert array.card.sha256 == data.card.sha256
    assert np.array_equal(array.is_heldout, data.is_heldout)


@pytest.mark.parametrize("container", CONTAINERS)
def test_that_files_are_images_is_known_without_reading_them(
    tmp_path: Path, container: Callable[[Files, Path], Path], cached: Path
) -> None:
    """Photos of many sizes are not read before a size is set, and never kept at full size."""
    files = {f"{i}.png": encoded(p) for i, p in enumerate([*photos(100), *photos(100, 9, 9, 3)])}
    source = str(container(files, tmp_path / "set"))
    preset = suitable_preset(source)
    assert not cached.exists()
    data = load_data(build_config(preset, source).data)
    assert (preset, data.card.shape) == ("images", (3, 32, 32))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("top", ["", "flowers/", "a/b/"])
def test_subfolders_are_classes(
    tmp_path: Path, container: Callable[[Files, Path], Path], top: str
) -> None:
    kinds = ["rose", "aster", "oak"]
    files = {f"{top}{kinds[i % 3]}/x/{i}.png": encoded(p) for i, p in enumerate(photos(210))}
    data = load(container(files, tmp_path / "set"))
    assert data.card.classes == ["aster", "oak", "rose"]
    assert data.labels is not None
    by_content = {Image.open(io.BytesIO(c)).tobytes(): n.split("/")[-3] for n, c in files.items()}
    found = [by_content[item.tobytes()] for item in np.asarray(data.items)]
    assert found == [data.card.classes[label] for label in data.labels]


def test_images_partly_in_subfolders_are_refused(tmp_path: Path) -> None:
    files = {f"rose/{i}.png": encoded(p) for i, p in enumerate(photos(9))}
    with pytest.raises(DataError, match=r"stray\.png is not"):
        load(to_folder(files | {"stray.png": encoded(photos(1)[0])}, tmp_path / "set"))


def test_jpeg_and_webp_are_read(tmp_path: Path) -> None:
    smooth = np.indices((16, 16)).sum(0).astype(np.uint8)[..., None] * np.uint8([4, 2, 1])
    files = {f"{i}.png": encoded(p) for i, p in enumerate(photos(200, 16, 16, 3))}
    files |= {"a.JPG": encoded(smooth, "JPEG", quality=95), "b.webp": encoded(smooth, "WEBP")}
    data = load(to_folder(files, tmp_path / "set"))
    assert data.card.count == 202
    for item in np.asarray(data.items[-2:]):  # lossy, so nearly: "a.JPG" and "b.webp" sort last
        assert np.abs(item.astype(int) - smooth).mean() < 6


def test_grey_images_have_one_channel_unless_one_is_coloured(tmp_path: Path) -> None:
    grey = photos(200, 8, 8)
    files = {f"{i:03d}.png": encoded(p) for i, p in enumerate(grey)}
    data = load(to_folder(files, tmp_path / "grey"))
    np.testing.assert_array_equal(data.items[..., 0], np.stack(grey))
    assert data.card.shape == (1, 8, 8)
    files["999.png"] = encoded(photos(1)[0])
    data = load(to_folder(files, tmp_path / "mixed"))
    assert data.card.shape == (3, 8, 8)
    np.testing.assert_array_equal(data.items[5], np.repeat(grey[5][..., None], 3, 2))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    clear = RNG.integers(0, 256, (8, 8, 4), np.uint8)
    files = {f"{i:03d}.png": encoded(p) for i, p in enumerate([clear, *photos(200)])}
    data = load(to_folder(files, tmp_path / "set"))
    alpha = clear[..., 3:] / 255
    np.testing.assert_allclose(data.items[0], clear[..., :3] * alpha + 255 * (1 - alpha), atol=0.51)


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    pixels = photos(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    files = {"0.png": encoded(pixels, exif=exif)}
    files |= {f"1{i}.png": encoded(p) for i, p in enumerate(photos(200))}
    data = load(to_folder(files, tmp_path / "set"))
    np.testing.assert_array_equal(data.items[0], np.rot90(pixels, -1))


def test_images_are_cropped_in_the_middle_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = [10, 200, 60]  # the middle square
    tall = np.swapaxes(wide, 0, 1)
    exact = photos(1)[0]
    files = {f"1{i}.png": encoded(p) for i, p in enumerate(photos(200, 9, 7, 3))}
    files |= {"0a.png": encoded(wide), "0b.png": encoded(tall), "0c.png": encoded(exact)}
    folder = to_folder(files, tmp_path / "set")
    data = load(folder, size=8)
    assert data.card.shape == (3, 8, 8)
    assert (data.items[:2] == [10, 200, 60]).all()
    np.testing.assert_array_equal(data.items[2], exact)
    with pytest.raises(DataError, match=r"60x20.*20x60.*data\.size"):
        load(folder)


def test_arrays_are_resized_too(tmp_path: Path) -> None:
    pixels = np.repeat(RNG.integers(0, 256, (200, 1, 1, 3), np.uint8), 24, 1).repeat(30, 2)
    np.save(tmp_path / "a.npy", pixels)
    data = load(tmp_path / "a.npy", size=8)
    np.testing.assert_array_equal(data.items, pixels[:, :8, :8])
    np.save(tmp_path / "v.npy", RNG.standard_normal((200, 3)))
    with pytest.raises(DataError, match=r"data\.size is for images"):
        load(tmp_path / "v.npy", size=8)


@pytest.mark.parametrize("container", CONTAINERS)
def test_broken_images_are_skipped_by_name_up_to_a_share(
    tmp_path: Path, container: Callable[[Files, Path], Path]
) -> None:
    pixels = photos(190)
    files = {f"{i:03d}.png": encoded(p) for i, p in enumerate(pixels)}
    deep = np.zeros((8, 8), np.float32)
    files |= {
        "cut.png": encoded(pixels[0])[:-40],
        "empty.png": b"",
        "text.jpg": b"<html>",
        "deep.tif": encoded(deep, "TIFF"),
    }
    source = container(files, tmp_path / "set")
    for _ in range(2):
        with pytest.raises(DataError, match=r"4 of 194 images are broken.*max_broken_fraction"):
            load(source)
    data = load(source, max_broken_fraction=0.1)
    np.testing.assert_array_equal(data.items, np.stack(pixels))
    assert data.card.skipped == 4
    assert data.card.count == 190
    assert sorted(p.split(":")[0] for p in data.problems) == [
        "cut.png",
        "deep.tif",
        "empty.png",
        "text.jpg",
    ]


def test_a_huge_image_is_not_decoded(tmp_path: Path) -> None:
    """A small file that claims 100,000 x 100,000 pixels is skipped in no time and memory."""
    files = {f"{i}.png": encoded(p) for i, p in enumerate(photos(200))}
    bomb = bytearray(encoded(photos(1, 8, 8)[0]))
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    data = load(to_zip(files | {"bomb.png": bytes(bomb)}, tmp_path / "set"))
    assert "bomb.png" in data.problems[0]
    assert "pixels" in data.problems[0]


@pytest.mark.parametrize("container", [to_zip, to_tar])
@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png"])
def test_archives_that_lead_out_are_refused(
    tmp_path: Path, container: Callable[[Files, Path], Path], name: str
) -> None:
    with pytest.raises(DataError, match="leads out"):
        load(container({name: encoded(photos(1)[0])}, tmp_path / "set"))


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(photos(1)[0]))
    path = to_tar({f"{i}.png": encoded(p) for i, p in enumerate(photos(200))}, tmp_path / "set")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
    assert load(path).card.count == 200


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(p) for i, p in enumerate(photos(50))}
    for path in (to_zip(files, tmp_path / "a"), to_tar_gz(files, tmp_path / "b")):
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
            load(path)
    encrypted = to_zip(files, tmp_path / "c")
    content = bytearray(encrypted.read_bytes())
    for i in range(len(content)):
        if content[i : i + 4] == b"PK\x01\x02":
            content[i + 8] |= 1  # the flag in the directory
    encrypted.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        load(encrypted)


def test_a_member_with_a_bad_checksum_is_a_broken_image(tmp_path: Path) -> None:
    pixels = photos(200)
    path = to_zip({f"{i:03d}.png": encoded(p) for i, p in enumerate(pixels)}, tmp_path / "set")
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255
    path.write_bytes(content)
    data = load(path)
    assert data.card.skipped == 1
    np.testing.assert_array_equal(data.items, np.stack(pixels[1:]))


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        load(to_folder({"a.txt": b"x"}, tmp_path / "set"))
    with pytest.raises(DataError, match="1 of 1 images are broken"):
        load(to_folder({"a.png": b"x"}, tmp_path / "other"))


def test_the_cache_follows_the_content(tmp_path: Path, cached: Path) -> None:
    pixels = photos(200)
    folder = to_folder({f"{i}.png": encoded(p) for i, p in enumerate(pixels)}, tmp_path / "set")
    first = load(folder)
    entries = set((cached / "images").iterdir())
    assert len(entries) == 1
    moved = folder.rename(tmp_path / "moved")
    assert load(moved).card.sha256 == first.card.sha256
    assert set((cached / "images").iterdir()) == entries
    # Another content of the same length and date is seen.
    stat = (moved / "7.png").stat()
    changed = pixels[7].copy()
    changed[0, 0, 0] ^= 1
    (moved / "7.png").write_bytes(encoded(changed))
    os.utime(moved / "7.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load(moved).card.sha256 != first.card.sha256


def test_a_cut_cache_is_made_again(tmp_path: Path, cached: Path) -> None:
    folder = to_folder({f"{i}.png": encoded(p) for i, p in enumerate(photos(200))}, tmp_path / "s")
    first = load(folder)
    (entry,) = (cached / "images").iterdir()
    for name in ("items", "digests", "index.json"):
        content = (entry / name).read_bytes()
        (entry / name).unlink()
        (entry / name).write_bytes(content[: len(content) // 2])
        again = load(folder)
        assert again.card == first.card
        np.testing.assert_array_equal(again.items, first.items)


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = to_folder({"a.png": encoded(photos(1)[0])}, tmp_path / "set")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="WGAN_CACHE"):
        load(folder)


def test_reading_a_map_leaves_nothing_resident(tmp_path: Path) -> None:
    """What was read of the map is given back: resident memory does not grow with the data."""
    path = tmp_path / "items"
    path.write_bytes(bytes(2**26))
    items = np.memmap(path, np.uint8, "r", shape=(2**14, 64, 64, 1))

    def resident() -> int:
        smaps = Path("/proc/self/smaps").read_text()
        return int(smaps.split(str(path))[1].split("Rss:")[1].split()[0])

    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs Linux's /proc")
    assert items.sum() == 0
    assert resident() >= 2**16  # kB: without a release, all of it
    rows = cache.items_at(items, np.arange(0, 2**14, 64))
    assert rows.shape == (256, 64, 64, 1)
    assert resident() == 0
    cache.item_digests(items)
    assert resident() == 0


def test_duplicates_go_together_in_folders_too(tmp_path: Path) -> None:
    pixels = photos(150)
    files = {f"a/{i}.png": encoded(p) for i, p in enumerate(pixels)}
    files |= {f"b/{i}.png": encoded(p) for i, p in enumerate(pixels)}
    data = load(to_folder(files, tmp_path / "set"))
    assert np.array_equal(data.is_heldout[:150], data.is_heldout[150:])


def test_some_items_are_drawn_from_the_right_side(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RNG.integers(0, 256, (400, 8, 8), np.uint8))
    data = load(tmp_path / "a.npy")
    for heldout, whole in ((True, data.heldout), (False, data.training)):
        known = {item.tobytes() for item in whole}
        drawn = data.sample(50, heldout=heldout)
        assert len({item.tobytes() for item in drawn} & known) == 50
        assert np.array_equal(drawn, data.sample(50, heldout=heldout))
        assert np.array_equal(data.sample(1000, heldout=heldout), whole)
    assert dataclasses.replace(data).problems == ()


# Tables


def test_samples_of_a_table_become_a_table() -> None:
    samples = RNG.standard_normal((50, 2)).astype(np.float32) * np.float32([1e-7, 1e9])
    read = pd.read_csv(io.BytesIO(encode(samples, "csv", ["a", 'b, "quoted"'])))
    assert list(read.columns) == ["a", 'b, "quoted"']
    np.testing.assert_array_equal(read.to_numpy(np.float32), samples)
    assert encode(samples, "csv").startswith(b"x1,x2\n")
    with pytest.raises(ShapeError):
        encode(np.zeros((2, 8, 8, 1), np.uint8), "csv")


FRAME = pd.DataFrame(
    {
        "height, cm": RNG.normal(170, 10, 400),
        "weight": RNG.normal(70, 15, 400),
        "children": RNG.integers(0, 5, 400),
    }
)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_tables(tmp_path: Path, separator: str) -> None:
    FRAME.to_csv(tmp_path / "t.csv", index=False, sep=separator)
    data = load(tmp_path / "t.csv")
    assert data.card.kind == "vector"
    assert data.card.columns == list(FRAME.columns)
    rows = data.card.table.decode(data.items).to_pandas()
    pd.testing.assert_frame_equal(rows[~data.is_heldout], FRAME[~data.is_heldout], rtol=1e-5)


def test_parquet_is_the_same_as_csv(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    FRAME.astype({"children": "Int64"}).to_parquet(tmp_path / "t.parquet")
    csv, parquet = load(tmp_path / "t.csv").card, load(tmp_path / "t.parquet").card
    assert csv.sha256 == parquet.sha256
    assert csv.columns == parquet.columns


BAD_TABLES = {
    "infinite": ("a,b\n1,inf\n2,3\n", r"column 'b': holds infinite values"),
    "all at once": (
        "a,b,c\n1,inf,inf\n2,3,4\n",
        "'b': holds infinite values.*'c': holds infinite values",
    ),
    "nothing to learn": ("a,b\n1,2\n1,2\n", "nothing to learn"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_refused_by_column_and_row(tmp_path: Path, name: str) -> None:
    content, says = BAD_TABLES[name]
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        load(tmp_path / "bad.csv")
    assert "bad.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "bad.parquet")


@pytest.mark.filterwarnings("ignore:Feather V1")
def test_few_rows_are_a_table_in_memory(tmp_path: Path) -> None:
    table = pa.table({"x": [1, 2, 3]})
    pq.write_table(table, tmp_path / "t.parquet")
    for version in (1, 2):
        feather.write_feather(table, str(tmp_path / f"t{version}.feather"), version=version)
    for path in sorted(tmp_path.glob("t*.*")):
        found = load_table(locate(str(path)), DataConfig(source=str(path)))
        assert isinstance(found.table, pa.Table), path.name
        assert found.table.equals(table)
        assert found.items.shape == (3, 0)
        assert found.columns == ("x",)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["1", "oak", "3"], "column 'a' holds 'oak', which is no finite number in row 2 below"),
        ([1.0, np.nan, 3.0], "column 'a' is empty in row 2 below the header;"),
        ([np.inf, 2.0, -np.inf], "'inf', which is no .* in row 1 below .* .and 1 more like it.;"),
        (["x", "y", None], "holds 'x', .* in row 1 below the header .and 2 more like it.;"),
    ],
)
def test_the_first_cell_that_is_no_number_is_named(values: list[Any], says: str) -> None:
    table = pa.table({"b": [1, 2, 3], "a": values})
    with pytest.raises(DataError, match=f"^t.csv: .*{says}"):
        as_numbers(table, ["b", "a"], "t.csv")
    with pytest.raises(DataError, match=r"^t\.csv: no column 'aa'; did you mean 'a'"):
        as_numbers(table, ["aa"], "t.csv")
    numbers = as_numbers(pa.table({"b": [1, 2], "a": [3.5, 4.5]}), ["a", "b"], "t.csv")
    assert numbers.tolist() == [[3.5, 1], [4.5, 2]]


# ---- where files are -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name", "suffix"),
    [
        ("a.b/Photos.TAR.GZ", "Photos", ".tar.gz"),
        ("photos.tgz", "photos", ".tgz"),
        ("t.csv", "t", ".csv"),
        ("t.v2.TSV.zst", "t.v2", ".tsv.zst"),
        ("t.gz", "t", ".gz"),
        ("a.csv/t", "t", ""),
        (".zip", ".zip", ".zip"),
    ],
)
def test_a_name_ends_with_its_format(path: str, name: str, suffix: str) -> None:
    for location in (locate(path), Location("s3://b/" + path, "b/" + path, object())):
        assert (location.name, location.suffix) == (name, suffix)


class Server:
    """A file system that answers with an error, or with what a path is."""

    def __init__(self, answer: Exception | str) -> None:
        self.answer = answer

    def info(self, path: str) -> dict[str, str]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"type": self.answer}


def test_what_is_at_a_place_is_found(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    for start in ("", "file://"):
        assert locate(f"{start}{tmp_path}/t.csv").fs is None
        assert locate(f"{start}{tmp_path}/t.csv").kind() == "file"
        assert locate(f"{start}{tmp_path}").kind() == "folder"
        assert locate(f"{start}{tmp_path}/absent").kind() is None
    with locate(f"{tmp_path}/t.csv").open() as file:
        assert file.read() == b"a\n1\n"
    url = "s3://bucket/x"
    for answer, kind in (("file", "file"), ("directory", "folder"), (FileNotFoundError(), None)):
        assert Location(url, "bucket/x", Server(answer)).kind() == kind
    for error, says in (
        (PermissionError("not you"), r"access denied \(not you\); check the permissions"),
        (RuntimeError("odd\nthing"), "cannot be read: odd$"),
        (RuntimeError(), "cannot be read: RuntimeError$"),
    ):
        with pytest.raises(DataError, match=f"^{url}: {says}"):
            Location(url, "bucket/x", Server(error)).kind()


def test_files_behind_a_url_are_opened() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/sources/t.csv", b"a\n1\n")
    location = locate("memory://sources/t.csv")
    with location.open() as file:
        assert file.read() == b"a\n1\n"
    assert location.kind() == "file"
    assert locate("memory://sources").kind() == "folder"
    assert locate("memory://sources/absent").kind() is None
    with pytest.raises(DataError, match=r"Zarr is read from this machine only"):
        load_zarr(locate("memory://sources/a.zarr"), DataConfig(source="memory://sources/a.zarr"))


FOLDER = {"a.png": b"one", "b/c.JPG": b"twice", "b/d.gif": b"3", "e.webp": b"", "f.txt": b"no"}


def read_in(source: str) -> tuple[dict[str, bytes], dict[str, int]]:
    not_read = Counter[str]()
    found = dict(image_files.read_images(locate(source), not_read))
    assert list(found) == sorted(found)
    return found, dict(not_read)


@pytest.mark.parametrize("kept", [2, 2**26])
def test_images_are_the_same_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """In folders, archives and behind a URL; of each file the beginning, if it is too large."""
    fs = fsspec.filesystem("memory")
    with (
        zipfile.ZipFile(tmp_path / "x.zip", "w") as archive,
        tarfile.open(tmp_path / "x.tar", "w") as tar,
    ):
        archive.mkdir("b")
        archive.writestr("c\\", b"")  # a folder too, as some systems write it
        for name, content in FOLDER.items():
            path = tmp_path / "x" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            fs.pipe(f"/images/{name}", content)
            archive.writestr(name, content)
            tar.add(path, name)
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", kept)
    monkeypatch.setattr(image_files, "FETCHED_AT_ONCE", 3)
    right = {n: content[:kept] for n, content in FOLDER.items() if n != "f.txt"}
    for source in ("x", "x.zip", "x.tar"):
        assert read_in(str(tmp_path / source)) == (right, {".txt": 1})
    for url in ("memory://images", "memory://images/"):
        assert read_in(url) == (right, {".txt": 1})


def key(source: str | Location) -> str:
    location = locate(source) if isinstance(source, str) else source
    return image_files.content_key(location, Counter())


def test_the_key_of_images_is_of_their_names_and_of_each_content(tmp_path: Path) -> None:
    fs, found = fsspec.filesystem("memory"), list[str]()
    for i, files in enumerate(
        (
            {"a.png": b"ab", "b.png": b"c"},
            {"a.png": b"a", "b.png": b"bc"},
            {"a.png": b"ab", "c.png": b"c"},
            {"a.png": b"ab", "b.png": b"c", "d.png": b""},
        )
    ):
        for name, content in files.items():
            path = tmp_path / str(i) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            fs.pipe(f"/keys/{i}/{name}", content)
        found.append(key(str(tmp_path / str(i))))
        assert key(f"memory://keys/{i}") == found[-1], "as of the same files here"
    assert len({*found}) == 4
    (tmp_path / "x.zip").write_bytes(b"PK any")
    assert key(str(tmp_path / "x.zip")) == hashlib.sha256(b"PK any").hexdigest()
    fs.pipe("/keys/x.zip", b"PK any")
    assert key("memory://keys/x.zip") == key(str(tmp_path / "x.zip"))


class Tagged:
    """A file system that knows its objects' ETags, and counts what is fetched."""

    def __init__(self, objects: dict[str, dict[str, Any]]) -> None:
        self.objects, self.fetched = objects, list[str]()

    def info(self, path: str) -> dict[str, Any]:
        return self.objects[path]

    def find(self, root: str, detail: bool) -> dict[str, dict[str, Any]]:
        assert detail
        return {path: {"name": path, **info} for path, info in self.objects.items()}

    def cat(self, paths: list[str]) -> dict[str, bytes]:
        self.fetched += paths
        return dict.fromkeys(paths, b"any")


def test_known_tags_stand_for_what_objects_hold() -> None:
    def of(path: str, *tags: dict[str, Any]) -> tuple[str, int]:
        fs = Tagged({f"b/i/{i}.png" if path == "b/i" else path: tag for i, tag in enumerate(tags)})
        return key(Location(f"s3://{path}", path, fs)), len(fs.fetched)

    one, two = {"ETag": "x", "size": 3}, {"etag": "y", "size": 4}
    for path in ("b/i", "b/i.zip"):
        right = of(path, one)
        assert right[1] == 0
        assert of(path, {"etag": "x", "size": 3}) == right
        for other in ({"ETag": "z", "size": 3}, {"ETag": "x", "size": 9}):
            assert of(path, other) != right
    assert of("b/i", one, two)[1] == 0
    assert of("b/i", one, two) != of("b/i", two, one)
    assert of("b/i", one, {"size": 4})[1] == 2, "without all tags, all are read"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nowhere://x", "nowhere://x: Protocol not known: nowhere"),
        ("gdrive://x", "gdrive://x: .* for s3://: pip install 'wgan-foundry.s3.'"),
        ("ftp://me:secret@host/x", "a password or signature in it would be written into the run"),
    ],
)
def test_urls_that_lead_nowhere_are_refused(url: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        locate(url)


def test_what_goes_wrong_with_a_file_is_one_line() -> None:
    for error, says in (
        (DataError("as it is"), "^as it is$"),
        (FileNotFoundError(2, "no"), "^x: no such file, folder or bucket$"),
        (PermissionError("not you"), r"^x: access denied \(not you\); check"),
        (zipfile.BadZipFile("odd\nthing"), "^x: cannot be read: odd$"),
    ):
        with pytest.raises(DataError, match=says), reading("x"):
            raise error


def test_a_new_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "folder" / "file"
    with new_file(path) as new:
        new.write_bytes(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with pytest.raises(FileExistsError), new_file(path) as new:  # noqa: PT012
        new.write_bytes(b"tw")
        new.mkdir()
    with pytest.raises(FileNotFoundError), new_file(path):
        pass
    assert path.read_bytes() == b"one"
    assert [*path.parent.iterdir()] == [path]


def test_a_file_of_a_package_is_found_without_running_it() -> None:
    found = installed_file("sklearn", "datasets/data/iris.csv")
    assert found is not None
    assert found.is_file()
    assert installed_file("sklearn", "no/such.csv") is None
    assert installed_file("no_such_package", "x") is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = to_folder({f"{i}.png": encoded(p) for i, p in enumerate(photos(200))}, tmp_path / "s")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    load(folder)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("sys.stderr", Terminal())
    load(folder)
    for what in ("reading images", "decoding images", "hashing items"):
        assert what in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"\.parquet"):
        load(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="no such file or folder, nor a built-in"):
        load(tmp_path / "nowhere")
