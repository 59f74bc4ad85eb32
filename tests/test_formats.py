"""Files of samples and items: what is written is read back, and what a file claims is not trusted.

The oracles are numpy's own files and readers, `zipfile`, `csv` and `json`.
"""

import csv
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.artifact import load_artifact
from models.errors import DataError, OversizeError, ShapeError
from models.formats import encode, read_items, stream, stream_samples
from models.images import decode_image, encode_png
from models.text_files import write_csv, write_json
from tests.artifacts import make_artifact
from tests.hostile import archive_of, npy_with_header
from tests.servers import array_file, npz_file

RNG = np.random.default_rng(3)
ITEMS = RNG.normal(size=(3, 4, 5))


class Asked(Exception):
    """Raised where more samples are asked for: so far, nothing was refused."""


def one_of(first: np.ndarray) -> Iterator[np.ndarray]:
    """The first of many samples, of which the others are never made."""
    yield first[None]
    raise Asked


# Written


@pytest.mark.parametrize("parts", [[3], [1, 2]])
@pytest.mark.parametrize("type", ["<f8", "<f4", "|u1"])
def test_an_array_is_written_as_numpy_writes_it(type: str, parts: list[int]) -> None:
    items = (ITEMS * 40).astype(type)
    cut = np.split(items, np.cumsum(parts)[:-1])
    assert b"".join(stream(cut, 3, "npy")) == array_file(items)
    archive = b"".join(stream(cut, 3, "npz"))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.read("samples.npy") == array_file(items)
        assert opened.comment == b"wgan samples"


def test_an_archive_may_become_larger_than_was_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of 2 GB, beyond which `zipfile` must have been told, is lowered."""
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", 1000)
    items = RNG.normal(size=(500, 2))
    np.testing.assert_array_equal(read_items(encode(items, "npz"), "x.npz"), items)


@pytest.mark.parametrize(
    ("shape", "format", "says"),
    [
        ((2, 8, 8, 1), "csv", "only vectors make a csv; ask for npz or png"),
        ((2, 4, 3), "csv", "only vectors make a csv; ask for npz"),
        ((2, 4), "parquet", "only tables of mixed columns make a parquet file; ask for npz or csv"),
        ((2, 4, 3), "arrow", "only tables of mixed columns make a arrow file; ask for npz"),
        ((2, 4), "png", "the model makes vectors, which have no png; ask for npz"),
        ((2, 4, 3), "zip", "the model makes sequences, which have no zip; ask for npz"),
    ],
)
def test_what_suits_is_named(shape: tuple[int, ...], format: str, says: str) -> None:
    with pytest.raises(ShapeError, match=f"{re.escape(says)}$"):
        encode(np.zeros(shape, np.uint8), format)


def test_images_in_a_zip_are_numbered_from_0_on_or_from_the_first_index(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact"))
    samples = model.sample(3, 4)
    levels = model.scaling.to_levels(samples)
    for first, more in ((0, {}), (999_998, {"first": 999_998})):
        parts = [samples[:1], samples[1:]]
        content = b"".join(stream_samples(model, parts, 4, "zip", seed=3, **more))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.namelist() == [f"{first + i:06d}.png" for i in range(4)]
            for name, image in zip(archive.namelist(), levels, strict=True):
                assert archive.read(name) == encode_png(image)
    content = b"".join(stream([levels], 4, "zip"))
    assert zipfile.ZipFile(io.BytesIO(content)).namelist()[0] == "000000.png"


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(8, 6, 4), (11, 6, 2), (6, 11, 2), (32, 4, 1), (40, 9, 1)]
)
def test_a_picture_enlarges_small_images_by_a_whole_factor(
    height: int, width: int, factor: int
) -> None:
    """An image is at most 32 pixels high and wide then; about it lie two white ones."""
    image = RNG.integers(0, 256, (1, height, width, 3), np.uint8)
    large = np.kron(image[0], np.ones((factor, factor, 1), np.uint8))
    expected = np.pad(large, ((2, 2), (2, 2), (0, 0)), constant_values=255)
    png, webp = encode(image, "png"), encode(image, "webp")
    assert png.startswith(b"\x89PNG")
    assert webp.startswith(b"RIFF")
    for content in (png, webp):
        assert np.array_equal(decode_image(content, "it"), expected)


@pytest.mark.parametrize(("height", "width", "factor"), [(30, 30, 1), (8, 6, 4), (6, 8, 4)])
def test_a_picture_has_at_most_2_to_the_25_pixels(height: int, width: int, factor: int) -> None:
    """Of 30 pixels a side, with the margin 32, there are just as many."""
    each = (factor * height + 2) * (factor * width + 2)
    most = 2**25 // each
    image = np.zeros((height, width, 1), np.uint8)
    with pytest.raises(Asked):
        list(stream(one_of(image), most, "png"))
    with pytest.raises(ShapeError, match=f"would have {(most + 1) * each} pixels, over 33554432"):
        list(stream(one_of(image), most + 1, "png"))


# Texts


@pytest.mark.parametrize(
    ("columns", "header"),
    [
        (["a", "b"], b"a,b\n"),
        (["#a", "b"], b'"#a","b"\n'),
        (["a", "#b"], b"a,#b\n"),
        (["#"], b'"#"\n'),
        (["a\r", 'b"'], b'"a\r","b"""\n'),
    ],
)
def test_a_header_is_never_a_comment_and_lines_end_in_line_feeds(
    columns: list[str], header: bytes
) -> None:
    rows = [[f"{i}", "x\ny"][: len(columns)] for i in range(3)]
    pieces = list(write_csv(columns, [rows[:2], rows[2:]]))
    assert pieces[0].startswith(header)
    assert len(pieces) == 2, "a piece for each part"
    text = b"".join(pieces).decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == [columns, *rows]


def test_a_json_file_is_an_object_of_samples_and_facts() -> None:
    parts = [[[1.5, 2]], [[3, 4], [5, "é"]]]
    text = b"".join(write_json(parts, {"seed": 3, 'quoted "name"': None}))
    assert json.loads(text) == {"samples": [*parts[0], *parts[1]], "seed": 3, 'quoted "name"': None}
    assert json.loads(b"".join(write_json([[7]], {}))) == {"samples": [7]}


def test_facts_and_names_of_columns_go_into_the_texts() -> None:
    vectors = ITEMS[0]
    text = b"".join(stream([vectors[:1], vectors[1:]], 4, "json", facts={"seed": 3}))
    assert json.loads(text) == {"samples": vectors.tolist(), "seed": 3}
    assert json.loads(encode(ITEMS, "json")) == {"samples": ITEMS.tolist()}
    for names in ([], list("abcde")):
        header, *rows = csv.reader(io.StringIO(encode(vectors, "csv", names).decode()))
        assert header == (names or ["x1", "x2", "x3", "x4", "x5"])
        np.testing.assert_array_equal(np.array(rows, np.float64), vectors)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_json_has_no_number_for_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        list(write_json([[value]], {}))


# Read


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("type", ["<f8", ">f4", "|u1", "<i8"])
def test_arrays_are_read_as_numpy_wrote_them(
    type: str, order: str, version: tuple[int, int]
) -> None:
    items = np.asarray((ITEMS * 40).astype(type), order=order)
    out = io.BytesIO()
    np.lib.format.write_array(out, items, version)
    archives = [
        archive_of({name: out.getvalue(), **more}, how)
        for name, more in (("samples.npy", {}), ("other.npy", {}), ("samples.npy", {"a": b""}))
        for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ]
    for content in (out.getvalue(), archive_of({"a": b"", "samples.npy": out.getvalue()})):
        archives.append(content)
    for content in archives:
        found = read_items(content, "it")
        assert found.dtype == items.dtype
        np.testing.assert_array_equal(found, items)


def test_an_image_is_one_item() -> None:
    image = RNG.integers(0, 256, (5, 4, 3), np.uint8)
    assert np.array_equal(read_items(encode_png(image), "it"), image[None])


def claims(shape: str, type: str = "|u1", version: bytes = b"\x01\x00") -> bytes:
    """An array's head, which is valid, without the array."""
    header = f"{{'descr': '{type}', 'fortran_order': False, 'shape': {shape}, }}"
    return npy_with_header(header, version)


@pytest.mark.parametrize("shape", ["(0, 8)", "(0,)"])
def test_an_array_may_be_empty(shape: str) -> None:
    assert read_items(claims(shape), "it", max_items=0).shape == eval(shape)


def test_items_and_bytes_are_taken_up_to_the_bound() -> None:
    content = array_file(ITEMS)
    assert read_items(content, "it", max_items=3, max_bytes=ITEMS.nbytes).shape == ITEMS.shape
    with pytest.raises(ShapeError, match=r"^it: 3 items; at most 2 more are taken$"):
        read_items(content, "it", max_items=2)
    with pytest.raises(OversizeError, match=r"^it: an array of 480 bytes is over 479$"):
        read_items(content, "it", max_bytes=479)
    assert read_items(array_file(np.float64(7)), "it", max_items=0) == 7, "it has no first axis"
    with pytest.raises(DataError, match=r"truncated \(0 of 268435456 bytes\)"):
        read_items(claims(f"({2**28},)"), "it")
    with pytest.raises(OversizeError, match="268435457 bytes is over 268435456"):
        read_items(claims(f"({2**28 + 1},)"), "it")


def test_an_archive_has_a_thousand_files_at_most() -> None:
    members = {"samples.npy": array_file(ITEMS), **{f"{i}": b"" for i in range(999)}}
    assert read_items(archive_of(members), "it").shape == ITEMS.shape
    with pytest.raises(OversizeError, match=r"^it: holds over 1000 files$"):
        read_items(archive_of({**members, "more": b""}), "it")


@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00"])
def test_a_header_has_ten_thousand_bytes_at_most(version: bytes) -> None:
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }"
    for length, fits in ((10_000, True), (10_001, False), (65_535, False), (65_700, False)):
        if length > 65_535 and version[0] == 1:
            continue  # its length has two bytes
        content = npy_with_header(f"{head:{length}}", version, b"\x07\x08")
        if fits:
            assert read_items(content, "it").tolist() == [7, 8]
        else:
            with pytest.raises(DataError, match=r"^it: its array's header is over 10000 bytes$"):
                read_items(content, "it")


NPY = array_file(ITEMS)
WHOLE = npz_file(samples=ITEMS)
REFUSED = {
    "texts": (array_file(np.array(["abc"])), "holds <U3, not plain numbers"),
    "objects": (array_file(np.array([None]), allow_pickle=True), "holds object, not plain"),
    "complex numbers": (array_file(np.zeros(1, complex)), "holds complex128, not plain numbers"),
    "truth": (array_file(np.zeros(1, bool)), "holds bool, not plain numbers"),
    "one size below zero": (claims("(-1, 5)"), r"claims the shape \(-1, 5\)"),
    "two sizes below zero": (claims("(-2, -1)") + b"ab", r"claims the shape \(-2, -1\)"),
    "the last byte gone": (NPY[:-1], r"truncated \(479 of 480 bytes\)"),
    "half of the head": (NPY[:9], "a broken array"),
    "no header": (npy_with_header(""), "a broken array"),
    "version 4": (claims("(0,)", version=b"\x04\x00"), r"an array in version \(4, 0\) of npy"),
    "version 1.1": (claims("(0,)", version=b"\x01\x01"), r"an array in version \(1, 1\) of npy"),
    "no files": (archive_of({}), "a broken npz file"),
    "an end": (WHOLE[-22:], "a broken npz file"),
    "half": (WHOLE[: len(WHOLE) // 2], "a broken npz file"),
    "two arrays": (npz_file(a=ITEMS, b=ITEMS), "holds several arrays; name one 'samples'"),
    "a path": (archive_of({"a/x.npy": NPY}), "its array's name leads elsewhere"),
    "a path of Windows": (archive_of({"a\\x.npy": NPY}), "its array's name leads elsewhere"),
    "dots": (archive_of({"..npy": NPY}), "its array's name leads elsewhere"),
    "bzip2": (
        archive_of({"samples.npy": NPY}, zipfile.ZIP_BZIP2),
        "is compressed in a way that numpy does not use",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_or_hostile_file_is_refused_and_told_why(name: str) -> None:
    content, says = REFUSED[name]
    with pytest.raises(DataError, match=f"^it: {says}") as caught:
        read_items(content, "it")
    assert type(caught.value) is DataError, "not one of size"
