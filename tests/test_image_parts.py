"""Only the parts of an image file that its pixels come from are decoded, and they are enough."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from models.errors import DataError, OversizeError
from models.image_parts import (
    JPEG_START,
    MAX_PARTS,
    MAX_PIECES,
    jpeg_parts,
    orientation,
    png_parts,
    tiff_parts,
)
from models.images import (
    BLOCK,
    MAX_SCANNED,
    STRIP,
    decode_image,
    encode_png,
    encode_webp,
    is_written_here,
    opaque,
)
from service.limits import MAX_BODY
from tests.costly import (
    jpeg_segment,
    jpeg_with,
    png_with,
    progressive,
    tiff_of_strips,
    with_scans,
)
from tests.hostile import png_chunk

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (24, 40, 3), np.uint8))
ORIENTATION = 0x0112


def exif(value: int = 1) -> Image.Exif:
    made = Image.Exif()
    made[0x010E] = "a picture"  # another entry before it
    made[ORIENTATION] = value
    return made


def saved(format: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    PICTURE.convert(mode).save(out, format, **options)
    return out.getvalue()


def whole(content: bytes) -> np.ndarray:
    """Pillow's pixels of the file as it stands."""
    with Image.open(io.BytesIO(content)) as file:
        mode = {"P": "RGB", "1": "L"}.get(file.mode, file.mode)
        if "transparency" in file.info and file.mode == "P":
            mode = "RGBA"
        return np.asarray(ImageOps.exif_transpose(file.convert(mode)))


def metadata(format: str) -> dict[str, Any]:
    profile, xmp = bytes(RNG.integers(0, 256, 3000, np.uint8)), b"<x:xmpmeta/>"
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("a", "b" * 1000, zip=True)
        return {"pnginfo": info, "icc_profile": profile, "exif": exif()}
    more = {"comment": b"hello"} if format == "JPEG" else {}
    return {"icc_profile": profile, "exif": exif(), "xmp": xmp, **more}


MODES = {
    "JPEG": ("L", "RGB"),
    "GIF": ("L", "RGB", "RGBA", "P", "1"),
    "BMP": ("L", "RGB", "P", "1"),
    "AVIF": ("L", "RGB", "RGBA"),
}
"""Those that a format has, of formats that do not have all."""


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
def test_the_pixels_are_those_of_the_whole_file(format: str, mode: str) -> None:
    if mode not in MODES.get(format, mode):
        return
    for options in ({}, {"progressive": True, "quality": 30} if format == "JPEG" else {}):
        content = saved(format, mode, **options, **metadata(format))
        expected = whole(content)
        found = decode_image(content + b"more", "x")
        assert np.array_equal(found.reshape(expected.shape), expected)


def test_of_an_animation_the_first_image_is_decoded() -> None:
    for format in ("PNG", "WEBP", "TIFF", "GIF"):
        frames = [PICTURE.rotate(180), PICTURE.rotate(90, expand=False)]
        content = saved(format, save_all=True, append_images=frames, lossless=True)
        first = whole(content)
        assert np.array_equal(decode_image(content, "x"), first)
        assert format == "GIF" or np.array_equal(first, PICTURE)


def test_a_transparent_palette_stays_transparent() -> None:
    content = saved("PNG", "P", transparency=3)
    assert np.array_equal(decode_image(content, "x"), whole(content))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_becomes_transparent(bits: int) -> None:
    """As the specification says: exactly the pixels that are equal to it, whatever the bits."""
    grey = RNG.integers(0, 2**bits, (8, 16)).astype(np.uint32)
    key = int(grey[3, 4])
    line = [np.unpackbits(g.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1) for g in grey]
    rows = b"".join(b"\0" + np.packbits(bit[:, -bits:]).tobytes() for bit in line)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 16, 8, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", key)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    content = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    expected = grey >> 8 if bits == 16 else grey * 255 // (2**bits - 1)
    assert np.array_equal(
        decode_image(content, "x"), np.stack([expected, 255 * (grey != key)], axis=2)
    )


def test_a_transparent_grey_of_impossible_bits_is_a_broken_image() -> None:
    content = bytearray(saved("PNG", "L", transparency=3))
    for bits in (0, 3, 200):
        content[24] = bits
        with pytest.raises(DataError, match="x: a broken image"):
            decode_image(bytes(content), "x")


def test_a_transparent_colour_becomes_transparent() -> None:
    colours = np.asarray(PICTURE)
    content = saved("PNG", transparency=tuple(map(int, colours[3, 4])))
    found = decode_image(content, "x")
    assert np.array_equal(found[..., :3], colours)
    assert np.array_equal(found[..., 3], 255 * (colours != colours[3, 4]).any(axis=2))


def test_a_header_that_comes_late_may_contradict_the_transparent_colour() -> None:
    """Where a header should be, another chunk says that a colour has three parts."""
    first = png_chunk(b"PLTE", bytes(8) + b"\x08\x02" + bytes(5))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(b"\0\1\2"))
    parts = first, header, png_chunk(b"tRNS", b"\0\1\0\1\0\1"), data, png_chunk(b"IEND", b"")
    found = decode_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts), "x")
    assert found.tolist() == [[[1, 0], [2, 255]]]


def test_of_16_bits_the_upper_8_are_read() -> None:
    deep = RNG.integers(0, 2**16, (8, 9)).astype(np.uint16)
    for format in ("PNG", "TIFF"):
        out = io.BytesIO()
        Image.fromarray(deep).save(out, format)
        assert np.array_equal(decode_image(out.getvalue(), "x")[..., 0], deep >> 8)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "group4"])
def test_compressed_tiffs_are_read(compression: str) -> None:
    content = saved("TIFF", "1" if compression == "group4" else "RGB", compression=compression)
    assert np.array_equal(decode_image(content, "x").squeeze(), whole(content))


def test_a_tiff_of_more_pieces_than_its_size_has_is_refused() -> None:
    """A raw decoder would decode each of them: a small file could so take hours."""
    content = saved("TIFF")
    assert tiff_parts(content, "x", 10**6).content != content
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    for position in range(first + 2, first + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", content, position)
        changed = bytearray(content)
        if tag == 273:  # strips
            struct.pack_into("<I", changed, position + 4, 100_000)
            with pytest.raises(DataError, match="x: its strips or tiles"):
                decode_image(bytes(changed), "x")
        if tag == 259:  # compression: JPEG, whose scans nobody would count
            struct.pack_into("<H", changed, position + 8, 7)
            with pytest.raises(DataError, match="x: TIFF compression 7 is not read"):
                decode_image(bytes(changed), "x")


def test_a_tiff_of_a_million_pieces_is_refused() -> None:
    """Pillow would make a list of them in Python, for ten seconds."""
    assert decode_image(tiff_of_strips(MAX_PIECES), "x").shape == (MAX_PIECES, 8, 1)
    with pytest.raises(DataError, match=f"x: over {MAX_PIECES} strips or tiles"):
        decode_image(tiff_of_strips(MAX_PIECES + 1), "x")


SIDE = 4096
"""Of the largest square image that is decoded."""


def noisy(levels: int, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    noise = RNG.integers(0, levels, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(noise).save(out, format, **options)
    return out.getvalue()


def with_last_scan_repeated(content: bytes) -> bytes:
    """As many scans as are let through, each of which corrects all numbers of the grey picture."""
    last = content.rindex(b"\xff\xda")
    count = MAX_SCANNED // SIDE**2 - jpeg_parts(content, "x").scans
    return content[:-2] + content[last:-2] * count + content[-2:]


def deep_png(kind: int, bits: int, before: bytes = b"") -> bytes:
    """Rows of zeros that are each told by the costliest filter, Paeth's."""
    row = SIDE * bits * {2: 3, 6: 4}[kind] // 8
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, bits, kind, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress((b"\4" + bytes(row)) * SIDE))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + png_chunk(b"IEND", b"")


COSTLIEST = {
    "progressive JPEG": lambda: with_last_scan_repeated(
        noisy(256, "JPEG", progressive=True, quality=15, subsampling=0)
    ),
    "PNG of 16 bits": lambda: deep_png(6, 16),
    "PNG with a transparent colour": lambda: deep_png(2, 8, png_chunk(b"tRNS", bytes(6))),
    "WebP": lambda: noisy(256, "WEBP", quality=30, method=0),
    "WebP without loss": lambda: noisy(4, "WEBP", lossless=True, method=0, quality=0),
    "TIFF": lambda: tiff_of_strips(MAX_PIECES, SIDE**2 // MAX_PIECES),
    "AVIF": lambda: noisy(256, "AVIF", speed=10, quality=60, subsampling="4:4:4"),
}
"""Files that make the decoder work most, of the largest size, and no longer than a body may be."""


@pytest.fixture(scope="module")
def ordinary_seconds() -> float:
    """Processor seconds that an ordinary photo of the largest size takes."""
    shades = np.linspace(0, 200, SIDE)[:, None, None] + RNG.normal(20, 6, (SIDE, SIDE, 3))
    out = io.BytesIO()
    Image.fromarray(shades.clip(0, 255).astype(np.uint8)).save(
        out, "JPEG", progressive=True, quality=85
    )
    return decoding_seconds(out.getvalue())


def decoding_seconds(content: bytes) -> float:
    began = time.process_time()
    assert decode_image(content, "x").size >= SIDE**2
    return time.process_time() - began


@pytest.mark.slow
@pytest.mark.parametrize("kind", COSTLIEST)
def test_no_image_costs_much_more_than_an_ordinary_one(kind: str, ordinary_seconds: float) -> None:
    """Not all formats can be stopped: so much, at most, is left to do when a client leaves."""
    content = COSTLIEST[kind]()
    assert len(content) < MAX_BODY
    seconds = decoding_seconds(content)
    print(f"{kind}: {seconds:.2f} s, an ordinary photo {ordinary_seconds:.2f} s")
    assert seconds < 6 * ordinary_seconds


class Stopped(BaseException):
    """As what cancels a thread's work, no `Exception`."""


def stopping(calls: int) -> Callable[[], None]:
    """A check that stops the work after so many calls."""
    left = iter(range(calls))

    def check() -> None:
        if next(left, None) is None:
            raise Stopped

    return check


@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {})],
)
def test_decoding_can_be_stopped(format: str, options: dict[str, bool]) -> None:
    out = io.BytesIO()
    noise = RNG.integers(0, 256, (512, 512), np.uint8)
    Image.fromarray(noise).save(out, format, **options)
    content, checks = out.getvalue(), list[int]()
    found = decode_image(content, "x", check=lambda: checks.append(1))
    assert np.array_equal(found, decode_image(content, "x"))
    assert len(checks) >= len(content) / BLOCK
    for calls in (0, len(checks) // 2, len(checks) - 1):
        with pytest.raises(Stopped):
            decode_image(content, "x", check=stopping(calls))


def test_a_png_of_few_bytes_can_be_stopped_too() -> None:
    content = deep_png(6, 16)
    assert len(content) < 2**18
    with pytest.raises(Stopped):
        decode_image(content, "x", check=stopping(12))


def test_a_compressed_bmp_is_refused() -> None:
    """A few of its bytes fill any memory."""
    content = bytearray(saved("BMP", "L"))
    content[30] = 1
    with pytest.raises(DataError, match="x: a compressed BMP is not read"):
        decode_image(bytes(content), "x")


@pytest.mark.parametrize("format", ["GIF", "TIFF", "BMP", "AVIF"])
def test_cut_and_spoilt_files_are_broken_images(format: str) -> None:
    content = saved(format)
    for size in (*range(20), len(content) // 2):
        with pytest.raises(DataError):
            decode_image(content[:size], "x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on fields that it leaves out
        for _ in range(300):
            spoilt = np.frombuffer(content, np.uint8).copy()
            spoilt[RNG.integers(2, len(spoilt), 4)] = RNG.integers(0, 256, 4)
            with contextlib.suppress(DataError):
                decode_image(spoilt.tobytes(), "x", 10**6)


def test_what_we_wrote_is_known_by_its_bytes() -> None:
    for channels in range(1, 5):
        image = RNG.integers(0, 256, (20, 31, channels), np.uint8)
        for encode in (encode_png, encode_webp):
            content = encode(image)
            assert is_written_here(content, decode_image(content, "x"))
    for format, options in (
        ("PNG", {}),
        ("PNG", {"compress_level": 1}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {}),
        ("JPEG", {}),
    ):
        content = saved(format, **options)
        assert not is_written_here(content, decode_image(content, "x"))


def test_transparency_is_laid_on_any_colour() -> None:
    grey = np.array([[[100, 0], [100, 255], [100, 51]]], np.uint8)
    assert opaque(grey, "black").tolist() == [[[0], [100], [20]]]
    assert opaque(grey, "#808080").tolist() == [[[128], [100], [122]]]
    coloured = [[255, 128, 0], [100] * 3, [224, 122, 20]]
    assert opaque(grey, "#ff8000").tolist() == [coloured]
    assert opaque(grey[..., [0, 0, 0, 1]], "#ff8000").tolist() == [coloured]


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_images_are_turned_upright(format: str, value: int) -> None:
    content = saved(format, exif=exif(value))
    sizes = []
    found = decode_image(content, "x", admit=lambda *size: sizes.append(size))
    assert np.array_equal(found, whole(content))
    assert sizes == [found.shape[:2]]


def test_damaged_exif_data_spoil_no_picture() -> None:
    data = exif(6).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in range(6, len(data)):
            content = jpeg_with(jpeg_segment(0xE1, data[:size]), 1)
            assert decode_image(content, "x").shape == (8, 8, 3)
        for _ in range(2000):
            spoilt = np.frombuffer(data, np.uint8).copy()
            spoilt[RNG.integers(6, len(data), 3)] = RNG.integers(0, 256, 3)
            assert 1 <= orientation(spoilt.tobytes()) <= 8
            content = png_with(png_chunk(b"eXIf", spoilt.tobytes()[6:]), 1)
            assert decode_image(content, "x").shape == (8, 8, 1)
    assert orientation(b"") == orientation(b"MM\0*") == 1


def test_scans_are_counted_as_a_decoder_may_see_them() -> None:
    plain = saved("JPEG")
    assert jpeg_parts(plain, "x").scans == 1
    content = saved("JPEG", progressive=True)
    count = jpeg_parts(content, "x").scans
    assert count == 10, "as libjpeg writes colours"
    assert jpeg_parts(with_scans(content, 50), "x").scans == count + 50
    # libjpeg takes such a marker for two bytes where it expects a restart: it hides nothing.
    assert jpeg_parts(with_scans(content, 50, b"\xff\x02\xff\xff"), "x").scans >= count + 50
    # A picture within another's metadata is none.
    inside = jpeg_with(jpeg_segment(0xE1, content), 1)
    assert jpeg_parts(inside, "x").scans == 1
    assert jpeg_parts(plain + content, "x").scans == 1


def test_many_scans_of_many_pixels_are_refused() -> None:
    few, many = with_scans(progressive(1024), 100), with_scans(progressive(1024), 1000)
    assert decode_image(few, "x").shape == (1024, 1024, 3)
    with pytest.raises(OversizeError, match="x: 1024x1024 in 1010 scans; save it as PNG"):
        decode_image(many, "x")


def test_metadata_never_reach_the_decoder() -> None:
    for content in (saved("JPEG", **metadata("JPEG")), saved("PNG", **metadata("PNG"))):
        parts = (jpeg_parts if content.startswith(JPEG_START) else png_parts)(content, "x")
        with Image.open(io.BytesIO(parts.content)) as file:
            assert not {"icc_profile", "exif", "xmp", "comment", "a"} & set(file.info)
        assert orientation(parts.exif) == 1
        assert parts.exif


def test_too_many_parts_are_refused() -> None:
    for content in (
        png_with(png_chunk(b"teSt", b""), MAX_PARTS),
        jpeg_with(jpeg_segment(0xFE, b""), MAX_PARTS),
    ):
        with pytest.raises(DataError, match="x: over 4096 chunks or segments"):
            decode_image(content, "x")


def test_transparency_is_laid_opaque_strip_by_strip_as_at_once() -> None:
    for channels in (2, 4):
        image = RNG.integers(0, 256, (STRIP // 700 * 2 + 5, 700, channels), np.uint8)
        alpha = image[..., -1:].astype(float)
        exact = (image[..., :-1] * alpha + 255 * (255 - alpha)) / 255
        assert np.array_equal(opaque(image), np.floor(exact + 127 / 255))


def test_the_time_to_find_markers_grows_with_the_bytes_alone() -> None:
    content = JPEG_START[:2] + b"\xff" * 2**20 + b"\0"  # the square of their number is an hour
    began = time.process_time()
    jpeg_parts(content, "x.jpg")
    assert time.process_time() - began < 5
