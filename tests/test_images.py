"""PNG as we write it is read back by others, and is as small as theirs."""

from __future__ import annotations

import io
import math
import struct

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from models import images
from models.errors import DataError, OversizeError, ShapeError
from models.image_parts import jpeg_parts
from models.images import (
    MAX_WEBP_SIDE,
    MODES,
    decode_image,
    encode_png,
    encode_small_png,
    encode_webp,
    enlarge,
    fit,
    grid,
)

Array = np.ndarray


def pillow(image: Array) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.save(out, format="PNG", compress_level=1)
    return out.getvalue()


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (33, 20)])
def test_every_pixel_is_read_back(channels: int, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, channels), np.uint8)
    for encode in (encode_png, encode_small_png):
        found = Image.open(io.BytesIO(encode(image)))
        assert found.mode == MODES[channels]
        assert np.array_equal(np.asarray(found).reshape(image.shape), image)
    part = np.repeat(image, 2, axis=1)[:, ::2]  # not contiguous in memory
    assert encode_png(part) == encode_png(image)


@pytest.mark.parametrize("name", ["digits", "photo", "drawing"])
def test_files_are_about_as_small_as_pillow_s(name: str) -> None:
    if name == "digits":
        image = grid((load_digits().images[:64, ..., None] * 15.9).astype(np.uint8))
    elif name == "photo":
        image = load_sample_image("china.jpg")
    else:
        image = np.full((200, 300, 3), 255, np.uint8)
        image[50:150, 100:102] = image[100, 20:280] = 0
    # Digits of 16 grey levels are what its choice among filters helps most with.
    assert len(encode_png(image)) < 1.25 * len(pillow(image))


def test_an_image_file_has_four_channels_at_most() -> None:
    for encode in (encode_png, encode_small_png, encode_webp):
        with pytest.raises(ShapeError, match="1 to 4 channels, not 5; ask for npz"):
            encode(np.zeros((8, 8, 5), np.uint8))


def test_a_png_header_says_what_the_standard_allows() -> None:
    """8 bits, the type of the channels, and 0 for compression, filters and interlacing."""
    for channels, kind in ((1, 0), (2, 4), (3, 2), (4, 6)):
        header = encode_png(np.zeros((3, 5, channels), np.uint8))[16:29]
        assert header == struct.pack(">IIBBBBB", 5, 3, 8, kind, 0, 0, 0)


def test_webp_keeps_every_pixel_of_a_side_of_16383() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 9, 4), np.uint8)
    image[::2, ..., 3] = 0  # which keep their colour though they cannot be seen
    assert np.array_equal(decode_image(encode_webp(image), "x"), image)
    for sides in ((MAX_WEBP_SIDE, 1), (1, MAX_WEBP_SIDE)):
        assert decode_image(encode_webp(np.zeros((*sides, 1), np.uint8)), "x").shape[:2] == sides
        with pytest.raises(ShapeError, match="at most 16383 pixels a side; ask for png"):
            encode_webp(np.zeros((*(side + (side > 1) for side in sides), 1), np.uint8))


@pytest.mark.parametrize(("count", "columns", "rows"), [(5, 2, 3), (5, None, 2), (4, None, 2)])
def test_a_grid_has_its_images_row_by_row_on_white(
    count: int, columns: int | None, rows: int
) -> None:
    images = np.random.default_rng(0).integers(0, 200, (count, 4, 7, 3), np.uint8)
    sheet = grid(images, columns)
    columns = columns or math.ceil(count**0.5)
    assert sheet.shape == (2 + rows * 6, 2 + columns * 9, 3)
    for i, image in enumerate(images):
        top, left = 2 + i // columns * 6, 2 + i % columns * 9
        assert np.array_equal(sheet[top : top + 4, left : left + 7], image)
        sheet[top : top + 4, left : left + 7] = 255
    assert (sheet == 255).all()
    assert np.array_equal(enlarge(images, 3)[:, ::3, 2::3], images)
    assert enlarge(images, 3).shape == (count, 12, 21, 3)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def test_too_many_pixels_or_scans_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    content = saved(picture, "PNG")
    assert decode_image(content, "x", 5400).shape == (60, 90, 3)
    with pytest.raises(OversizeError, match="x: 90x60 is over 5399 pixels"):
        decode_image(content, "x", 5399)
    content = saved(picture, "JPEG", progressive=True)
    scans = jpeg_parts(content, "x").scans
    assert scans > 3
    monkeypatch.setattr(images, "MAX_SCANNED", 5400 * scans)
    assert decode_image(content, "x").shape == (60, 90, 3)
    monkeypatch.setattr(images, "MAX_SCANNED", 5400 * scans - 1)
    with pytest.raises(OversizeError, match=f"x: 90x60 in {scans} scans; save it as PNG"):
        decode_image(content, "x")


def box(*brands: bytes) -> bytes:
    """What HEIF and AVIF files begin with: a main brand, and others it is compatible with."""
    return struct.pack(">I4s4sI", 16 + 4 * len(brands), b"ftyp", brands[0], 0) + b"".join(brands)


def test_a_file_is_what_its_beginning_says() -> None:
    avif = saved(Image.new("RGB", (8, 8), "red"), "AVIF")
    assert avif[4:12] == b"ftypavif"
    assert avif[16:20] == b"avif"
    for content in (avif, avif[:8] + b"mif1" + avif[12:], avif[:16] + b"mif1" + avif[20:]):
        assert decode_image(content, "x").shape == (8, 8, 3), "by its main brand, or another"
    for content in (
        box(b"heic", b"mif1") + b"avif" * 20,
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"GIRF\x24\x00\x00\x00WEBPVP8 ",
        b"",
    ):
        with pytest.raises(DataError, match=r"^x: not a PNG, JPEG, WebP, GIF, TIFF, BMP or AVIF"):
            decode_image(content, "x")


def test_a_gif_of_greys_keeps_its_transparent_one() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    content = saved(Image.fromarray(grey), "GIF", transparency=5)
    assert Image.open(io.BytesIO(content)).mode == "L"
    found = decode_image(content, "x")
    with Image.open(io.BytesIO(content)) as file:
        clear = file.info["transparency"]
        levels = np.asarray(file)
    assert np.array_equal(found, np.dstack([levels, np.where(levels == clear, 0, 255)]))


def test_what_need_not_be_fitted_stays_and_what_cannot_be_is_refused() -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4):
        image = rng.integers(0, 256, (5, 6, channels), np.uint8)
        assert np.array_equal(fit(image, 5, 6), image)
    numbers = rng.normal(size=(5, 6, 3))
    assert fit(numbers, 5, 6) is numbers
    for image, channels in (
        (numbers, 1),
        (numbers[..., :1], 3),
        (rng.integers(0, 256, (5, 6, 5), np.uint8), 3),
        (rng.integers(0, 256, (5, 6, 3), np.uint8), 2),
    ):
        with pytest.raises(
            ShapeError, match=f"{image.shape[2]} channels cannot be made {channels}"
        ):
            fit(image, 5, 6, channels)


def test_of_a_narrow_image_one_pixel_is_left_at_least() -> None:
    line = np.array([[0, 50, 100, 150, 200]], np.uint8)[..., None]
    assert (fit(line, 10, 1) == 100).all()
    assert (fit(line.transpose(1, 0, 2), 1, 10) == 100).all()


def test_images_are_fitted_as_training_does() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 31, 3), np.uint8)
    middle = Image.fromarray(image[:, 5:25]).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(fit(image, 8, 8, 3), middle)
    assert np.array_equal(fit(image, 8, 8), middle)
    assert fit(image, 16, 12, 1).shape == (16, 12, 1)
    grey = np.full((5, 5, 1), 90, np.uint8)
    assert (fit(grey, 8, 8, 3) == 90).all()
    clear = np.zeros((5, 5, 4), np.uint8)
    assert (fit(clear, 5, 5, 3) == 255).all()
    assert np.array_equal(fit(image[:8, :8], 8, 8, 3), image[:8, :8])
