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
    PNG_START,
    bmp_parts,
    gif_parts,
    holds_several,
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


# ---- files that are put together here, of which it is known what must stay -----------------------


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return PNG_START + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_header(bits: int, colours: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", 4, 2, bits, colours, 0, 0, 0)


def test_of_a_png_the_chunks_of_its_first_image_stay() -> None:
    header, palette, alpha = png_header(8, 3), (b"PLTE", bytes(range(9))), (b"tRNS", b"\0\1\2")
    data, more, end = (b"IDAT", b"first"), (b"IDAT", b"second"), (b"IEND", b"")
    exif_data = (b"eXIf", b"II*\0 and so on")
    content = png(
        header, (b"iCCP", b"x" * 40), palette, (b"acTL", bytes(8)), alpha, exif_data,
        (b"fcTL", bytes(26)), data, more, (b"fdAT", b"other"), (b"tEXt", b"a\0b"), end,
    )  # fmt: skip
    kept = png(header, palette, alpha, data, more, end)
    for rest in (b"", b"more", png_chunk(b"IDAT", b"no part of it")):
        assert png_parts(content + rest, "x") == (kept, exif_data[1], 1, ())
    for left in range(12):  # it may be cut within a chunk
        whole, cut = png(header, data), png_chunk(b"IDAT", b"")[:left]
        assert png_parts(whole + cut, "x").content == whole + (cut if left >= 8 else b"")
    for size in range(8, 34):
        assert png_parts(content[:size], "x").key == ()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_colour_of_a_png_is_told_in_8_bits(bits: int) -> None:
    """But of 16-bit grey in 16; higher bits than the image has count for nothing."""
    level = 2**bits - 1 if bits < 8 else 3
    shade = level * 255 // (2**bits - 1) if bits < 8 else 3
    high = 1 << bits if bits < 16 else 0
    end = (b"IEND", b"")
    content = png(png_header(bits, 0), (b"tRNS", struct.pack(">H", level + high)), end)
    assert png_parts(content, "x") == (png(png_header(bits, 0), end), b"", 1, (shade,))
    colour = png(png_header(bits, 2), (b"tRNS", struct.pack(">3H", level, 0, level + high)), end)
    if bits == 16:
        with pytest.raises(DataError, match=r"^x: a transparent colour of 16 bits; save an alpha"):
            png_parts(colour, "x")
    else:
        assert png_parts(colour, "x").key == (shade, 0, shade)
    odd = png(png_header(bits, 0), (b"tRNS", b"\0\1\2"), end)  # of no length that it may have
    assert png_parts(odd, "x") == (odd, b"", 1, ())


def test_of_a_jpeg_the_segments_of_its_image_stay() -> None:
    def segment(marker: int, data: bytes = b"abc") -> bytes:
        return jpeg_segment(marker, data)

    first, other = b"Exif\0\0MM\0*first", b"Exif\0\0MM\0*other"
    tables = [segment(m) for m in (0xDB, 0xC0, 0xC4, 0xDD, 0xC2, 0xF0)]
    scans = [segment(0xDA, bytes(6)) + b"data\xff\0data\xff\xd3more" for _ in range(2)]
    content = [
        b"\xff\xd8", segment(0xE0), segment(0xE1, b"http://ns.adobe.com/xap"),
        b"\xff\xff\xff" + segment(0xE1, first), segment(0xE1, other), segment(0xE2, b"Exif\0\0"),
        b"stray", *tables[:3], b"\xff\x01\xff\xd8", *(segment(m) for m in (0xED, 0xEF, 0xFE)),
        segment(0xEE), *tables[3:], b"\xff\xdb\0\0", scans[0], b"\xff" + segment(0xC4, b"d"),
        scans[1],
    ]  # fmt: skip
    kept = [
        b"\xff\xd8", segment(0xE0), *tables[:3], b"\xff\x01\xff\xd8", segment(0xEE), *tables[3:],
        b"\xff\xdb\0\0", scans[0], segment(0xC4, b"d"), scans[1],
    ]  # fmt: skip
    end, rest = b"\xff\xd9", b"\xff\xda rest"
    assert jpeg_parts(b"".join([*content, end, rest]), "x") == (
        b"".join([*kept, end]),
        first,
        2,
        (),
    )
    assert jpeg_parts(b"".join(content), "x") == (b"".join(kept), first, 2, ()), "cut in a scan"
    before = b"".join([*content[:7], b"nothing"])
    assert jpeg_parts(before, "x") == (b"".join(kept[:2]), first, 0, ())


def gif(
    flags: int = 0, extensions: bytes = b"", images: tuple[bytes, ...] = (b"",), own: int = 0
) -> bytes:
    """A GIF whose images have what is given before them, and palettes of zeros."""
    start = b"GIF89a" + struct.pack("<HHBBB", 2, 1, flags, 0, 0)
    size, mine = (3 << (f & 7) + 1 if f & 128 else 0 for f in (flags, own))
    image = b"," + struct.pack("<HHHHB", 0, 0, 2, 1, own) + bytes(mine) + b"\2\2LZ\1W\0"
    first, *others = (before + image for before in images)
    return start + bytes(size) + extensions + first + b"".join(others) + b";"


COMMENT = b"!\xfe\5hello\3you\0"


def control(packed: int) -> bytes:
    return b"!\xf9\4" + bytes([packed]) + b"\7\0\5\0"


@pytest.mark.parametrize("flags", [0, 0x71, 0x80, 0x87, 0xF3])
def test_of_a_gif_the_transparent_colour_stays_and_no_other_extension(flags: int) -> None:
    """How the image is disposed of tells of the next one."""
    plain = gif(flags)
    start = len(plain) - len(gif()) + 13
    for before, stays in (
        (b"", b""),
        (COMMENT, b""),
        (control(0b00000001), control(0b00000001)),
        (control(0b11111101), control(0b11100001)),
        (COMMENT + control(0b1000) + COMMENT, control(0)),
        (control(1) + b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0" + control(0b10), control(0b10)),
    ):
        for images in ((b"",), (b"", control(0b1100) + COMMENT)):
            content = gif(flags, before, images)
            kept = plain[:start] + stays + gif(flags, b"", images)[start:]
            assert gif_parts(content, "x") == (kept, b"", 1, ())
    for size in range(6, 14):
        assert gif_parts(plain[:size], "x").content == plain[:size]
    many = gif(flags, b"!\xfe\0" * MAX_PARTS)
    assert gif_parts(many, "x").content == plain
    with pytest.raises(DataError, match="x: over 4096 chunks or segments"):
        gif_parts(gif(flags, b"!\xfe\0" * (MAX_PARTS + 1)), "x")


@pytest.mark.parametrize("flags", [0, 0x71, 0x80, 0xF3, 0x87])
def test_files_of_several_images_are_told_from_those_of_one(flags: int) -> None:
    for own in (0, 7, 0x80, 0x83):
        for before in (b"", COMMENT, control(1), control(1) + COMMENT):
            one, cut = gif(flags, before, own=own), gif(flags, before, own=own)[:-1]
            assert not holds_several(one)
            assert not holds_several(cut)
            assert not holds_several(cut + COMMENT)
            assert not holds_several(cut + COMMENT + b";")
            assert holds_several(cut + COMMENT + COMMENT + gif()[13:])
            assert holds_several(gif(flags, before, (b"", b""), own=own))
            assert holds_several(gif(flags, before, (b"", control(1)), own=own))
            assert holds_several(gif(flags, before, (b"", COMMENT * 2, b""), own=own))


def tiff(
    order: str, fields: dict[int, tuple[int, int, int]], data: bytes = b"pixels", then: int = 0
) -> bytes:
    """A TIFF of fields by tag: type, number of values, and the value as it stands."""
    first = 8 + len(data)
    entries = []
    for tag, (kind, number, value) in fields.items():
        stands = struct.pack(order + ("HH" if kind == 3 else "I"), *[value, 0][: 1 + (kind == 3)])
        entries.append(struct.pack(order + "HHI", tag, kind, number) + stands)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", first)
    ends = struct.pack(order + "I", then)
    return start + data + struct.pack(order + "H", len(entries)) + b"".join(entries) + ends


STRIPED = {256: (3, 1, 10), 257: (3, 1, 7), 273: (4, 3, 8), 278: (3, 1, 3), 279: (4, 3, 8)}
TILED = {256: (3, 1, 10), 257: (4, 1, 7), 322: (3, 1, 4), 323: (4, 1, 5), 324: (4, 6, 8)}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("data", [b"", b"odd", b"even"])
def test_of_a_tiff_the_fields_that_pixels_come_from_stay_in_their_places(
    order: str, data: bytes
) -> None:
    # Width, height, bits, compression, meaning, fill order, strips, samples, rows, bytes, planes,
    # fax options, predictor, palette, tiles, extra samples and sample format (TIFF 6.0).
    own = (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323)
    own += (324, 325, 338, 339)
    fields = {tag: STRIPED.get(tag, (3, 1, 1)) for tag in own}
    others = dict.fromkeys((254, 255, 260, 270, 272, 274, 282, 305, 330, 34665), (3, 1, 1))
    content = tiff(order, dict(sorted((fields | others).items())), data, then=77)
    found = tiff_parts(content, "x", 100)
    assert found.exif == content
    (first,) = struct.unpack_from(order + "I", found.content, 4)
    assert found.content[:4] == content[:4]
    assert first % 2 == 0, "as the specification asks for"
    assert found.content[8:first] == content[8:] + bytes(len(content) % 2)
    expected = tiff(order, fields, b"")[8:]
    assert found.content[first:] == expected, "and no image after it"
    (count,) = struct.unpack_from(order + "H", content, 8 + len(data))
    twice = content[:8] + content[8:-4] + content[-16:-4] + content[-4:]  # its last field again
    again = bytearray(twice)
    struct.pack_into(order + "H", again, 8 + len(data), count + 1)
    (first,) = struct.unpack_from(order + "I", tiff_parts(bytes(again), "x", 100).content, 4)
    assert tiff_parts(bytes(again), "x", 100).content[first:] == expected


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("fields", "pieces", "most"),
    [
        (STRIPED, 273, 3),
        (STRIPED | {257: (3, 1, 6)}, 273, 2),
        (STRIPED | {257: (3, 1, 9)}, 273, 3),
        (STRIPED | {278: (3, 1, 99)}, 273, 1),
        ({tag: field for tag, field in STRIPED.items() if tag != 278}, 273, 1),
        (STRIPED | {278: (3, 2, 3)}, 273, 1),
        (STRIPED | {277: (3, 1, 4)}, 273, 3),
        (STRIPED | {277: (3, 1, 4), 284: (3, 1, 1)}, 273, 3),
        (STRIPED | {277: (3, 1, 4), 284: (3, 1, 2)}, 273, 12),
        (STRIPED | {284: (3, 1, 2)}, 273, 3),
        (STRIPED | {322: (3, 1, 4), 323: (3, 1, 4)}, 273, 3),
        (TILED, 324, 6),
        (TILED | {256: (3, 1, 8)}, 324, 4),
        (TILED | {256: (3, 1, 9)}, 324, 6),
        (TILED | {277: (3, 1, 2), 284: (3, 1, 2)}, 324, 12),
        (STRIPED | {257: (3, 1, 0)}, 273, 0),
        (STRIPED | {256: (3, 1, 0)}, 273, 0),
        (STRIPED | {256: (1, 1, 10)}, 273, 0),
        *(({k: v for k, v in STRIPED.items() if k != tag}, 273, 0) for tag in (256, 257)),
        *(({k: v for k, v in TILED.items() if k != tag}, 324, 0) for tag in (322, 323)),
        (TILED | {322: (3, 1, 0)}, 324, 0),
        (TILED | {323: (3, 1, 0)}, 324, 0),
        ({256: (3, 1, 10), 257: (3, 1, 7)}, 324, 0),
    ],
)
def test_a_tiff_has_as_many_pieces_as_its_size_at_most(
    order: str, fields: dict[int, tuple[int, int, int]], pieces: int, most: int
) -> None:
    fields = dict(sorted(fields.items()))
    for count in {1, max(most, 1), most + 1}:
        content = tiff(order, {**fields, pieces: (4, count, 8)})
        if count <= most:
            assert tiff_parts(content, "x", 20).content
        else:
            with pytest.raises(
                DataError, match=r"^x: its strips or tiles are not those of its siz"
            ):
                tiff_parts(content, "x", 20)


def test_a_tile_is_no_larger_than_an_image_may_be() -> None:
    assert tiff_parts(tiff("<", TILED), "x", 4 * 5).content
    with pytest.raises(DataError, match=r"^x: its strips or tiles"):
        tiff_parts(tiff("<", TILED), "x", 4 * 5 - 1)
    assert tiff_parts(tiff("<", STRIPED), "x", 1).content
    with pytest.raises(DataError, match=r"^x: its strips or tiles"):
        tiff_parts(tiff("<", {256: (3, 1, 10), 257: (3, 1, 7)}), "x", 100)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_are_read_uncompressed_or_in_ways_that_cost_no_more_than_their_pixels(
    order: str,
) -> None:
    for compression in (1, 2, 3, 4, 5, 8, 32773, 32946):
        assert tiff_parts(tiff(order, STRIPED | {259: (3, 1, compression)}), "x", 9).content
    for compression in (0, 6, 7, 9, 32771, 32774, 32947, 34712, 50000):
        with pytest.raises(DataError, match=rf"^x: TIFF compression {compression} is not read"):
            tiff_parts(tiff(order, STRIPED | {259: (4, 1, compression)}), "x", 9)
    for data in (b"", b"\xff" * 9):  # which may stand behind the fields too
        assert not holds_several(tiff(order, STRIPED) + data)
    for then in (8, 2**24):
        assert holds_several(tiff(order, STRIPED, b"odd", then))


@pytest.mark.parametrize(("header", "compressions"), [(12, range(7)), (40, [0, 3, 6]), (124, [0])])
def test_a_bmp_that_is_not_compressed_stays(header: int, compressions: list[int]) -> None:
    for compression in range(7):
        content = b"BM" + bytes(12) + struct.pack("<I", header) + bytes(12)
        content += struct.pack("<I", compression) + bytes(10)
        if compression in compressions or compression in (3, 6):
            assert bmp_parts(content, "x") == (content, b"", 1, ())
        else:
            with pytest.raises(DataError, match=r"^x: a compressed BMP is not read"):
                bmp_parts(content, "x")
        for size in (17, 33):
            if size < (34 if header >= 40 else 18):
                with pytest.raises(struct.error):
                    bmp_parts(content[:size], "x")


def test_animations_of_other_formats_are_told() -> None:
    data = (b"IDAT", b"acTL")
    assert not holds_several(png(png_header(8, 0), data, (b"acTL", bytes(8))))
    assert holds_several(png(png_header(8, 0), (b"acTL", bytes(8)), data))
    for flags in range(64):
        webp = b"RIFF\x24\0\0\0WEBPVP8X\x0a\0\0\0" + bytes([flags]) + bytes(9)
        assert holds_several(webp) == bool(flags & 2)
        assert not holds_several(webp.replace(b"VP8X", b"VP8 "))
    assert not holds_several(b"\0\0\0\x20ftypavif" + bytes(8) + b"avis" + bytes(8))
    assert holds_several(b"\0\0\0\x20ftypavis" + bytes(20))
    assert not holds_several(JPEG_START + bytes(20))


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_read_where_exif_has_it(order: str) -> None:
    before = {0x010E: (4, 9, 3), 0x0111: (3, 1, 5)}
    for value in range(12):
        expected = value if 1 <= value <= 8 else 1
        for fields in ({ORIENTATION: (3, 1, value)}, before | {ORIENTATION: (3, 1, value)}):
            data = tiff(order, fields, b"")
            assert orientation(data) == orientation(b"Exif\0\0" + data) == expected
            assert orientation(tiff(order, fields, b"elsewhere")) == expected
            cut = tiff(order, fields, b"")[:-4]
            assert orientation(cut) == expected
            assert orientation(cut[:-3]) == 1
    upright = {0x0111: (3, 1, 6), ORIENTATION: (4, 1, 6), 0x0113: (3, 1, 6)}
    assert orientation(tiff(order, upright, b"")) == 1, "a short alone is one"
    beyond = tiff(order, before, b"")[:-4] + tiff(order, {ORIENTATION: (3, 1, 6)}, b"")[10:]
    assert orientation(beyond) == 1, "what is beyond the entries that are counted"
    assert orientation(b"PK" + tiff(order, {ORIENTATION: (3, 1, 6)}, b"")[2:]) == 1


def test_as_many_parts_as_allowed_are_read() -> None:
    chunk, comment = png_chunk(b"teSt", b""), jpeg_segment(0xFE, b"")
    for parts, start, part in ((png_parts, PNG_START, chunk), (jpeg_parts, b"\xff\xd8", comment)):
        assert parts(start + part * MAX_PARTS, "x").content == start
        with pytest.raises(
            DataError, match=r"^x: over 4096 chunks or segments; save the image ane"
        ):
            parts(start + part * (MAX_PARTS + 1), "x")
