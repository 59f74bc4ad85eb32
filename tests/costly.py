"""Small files and bodies that once cost a service minutes, or more memory than it has.

Each is made when it is asked for: together they would take half a gigabyte.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.hostile import Attack, archive_of, form, image_file, npy_with_header, png_chunk

FULL = 15 * 2**20
"""Bytes of a body that is nearly as long as it may be."""
SMALL_ROWS = zlib.compress(bytes(9 * 8))
"""The pixels of a black image of 8 by 8."""


def png(width: int, height: int, data: bytes, kind: int = 0, before: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    rest = png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + before + rest


def transparent_png(side: int) -> bytes:
    return png(side, side, zlib.compress(bytes(side * (4 * side + 1)), 9), 6)


def png_with(chunk: bytes, count: int) -> bytes:
    return png(8, 8, SMALL_ROWS, before=chunk * count)


def unpacking(size: int) -> bytes:
    """The end of a chunk that unpacks to ``size`` bytes."""
    return b"a\0\0" + zlib.compress(bytes(size), 9)


def progressive(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (9, 99, 199)).save(out, "JPEG", progressive=True)
    return out.getvalue()


def with_scans(content: bytes, count: int, marker: bytes = b"") -> bytes:
    """Repeat the second scan of a progressive JPEG."""
    first = content.index(b"\xff\xda")
    start = content.index(b"\xff\xda", first + 2)
    end = content.index(b"\xff\xda", start + 2)
    return content[:start] + (marker + content[start:end]) * count + content[start:]


def jpeg_with(segment: bytes, count: int) -> bytes:
    content = image_file("JPEG")
    return content[:2] + segment * count + content[2:]


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(content) + 2) + content


def webp_with(chunk: bytes, count: int) -> bytes:
    body = image_file("WEBP")[12:] + chunk * count
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def large_webp(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (side, side), (1, 2, 3, 4)).save(out, "WEBP", lossless=True)
    return out.getvalue()


def large(format: str, mode: str, **options: object) -> bytes:
    """A black image of 16 megapixels, in few bytes."""
    out = io.BytesIO()
    Image.new(mode, (4096, 4096)).save(out, format, **options)
    return out.getvalue()


def gif_with(block: bytes, count: int) -> bytes:
    """A GIF with blocks before its image."""
    content = image_file("GIF")
    start = content.index(b",")
    return content[:start] + block * count + content[start:]


def gif_of_frames(count: int) -> bytes:
    content = image_file("GIF")
    return content[:-1] + content[content.index(b",") : -1] * count + b";"


def avif_with(box: bytes, count: int) -> bytes:
    content = image_file("AVIF")
    end = int.from_bytes(content[:4])
    return content[:end] + box * count + content[end:]


def tiff_of_strips(count: int, width: int = 8) -> bytes:
    """A grey TIFF of strips of one row each, which all lie in the same place."""
    offsets = 8 + width
    fields = [
        (256, width), (257, count), (258, 8), (259, 1), (262, 1), (273, offsets), (277, 1),
        (278, 1), (279, offsets + 4 * count),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, 4, count if tag in (273, 279) else 1, value)
        for tag, value in fields
    )
    lists = struct.pack("<I", 8) * count + struct.pack("<I", width) * count
    head = b"II*\0" + struct.pack("<I", offsets + len(lists))
    return head + bytes(width) + lists + struct.pack("<H", len(fields)) + entries + bytes(4)


def deflated(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, samples=array)
    return out.getvalue()


def npz_of(content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    return archive_of({"samples.npy": content}, compression)


def many_members(count: int) -> bytes:
    return archive_of({str(i): b"" for i in range(count)})


def claiming(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"
    return npy_with_header(header, content=b"\0")


FILES: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    # JPEG
    "30,000 scans of 16 megapixels": (lambda: with_scans(progressive(4096), 30_000), (415, 422)),
    "300 scans of 16 megapixels": (lambda: with_scans(progressive(4096), 300), (415, 422)),
    "scans behind markers without length": (
        lambda: with_scans(progressive(4096), 300, b"\xff\x02\xff\xff"),
        (415, 422),
    ),
    "4,000 scans of 64 pixels": (lambda: with_scans(progressive(8), 4000), (200, 415)),
    "4 million segments": (lambda: jpeg_with(jpeg_segment(0xE1, b""), FULL // 4), (415,)),
    "4 million comments": (lambda: jpeg_with(jpeg_segment(0xFE, b""), FULL // 4), (415,)),
    "16 million fill bytes": (lambda: jpeg_with(b"\xff", FULL), (200, 415)),
    "16 million fill bytes of no marker": (lambda: b"\xff\xd8" + b"\xff" * FULL + b"\0", (415,)),
    "tables": (lambda: jpeg_with(jpeg_segment(0xDB, b"\0" + b"\1" * 64), FULL // 69), (415,)),
    "Photoshop's blocks": (
        lambda: jpeg_with(
            jpeg_segment(0xED, b"Photoshop 3.0\0" + b"8BIM".ljust(12, b"\0") * 5000), FULL // 60_016
        ),
        (200, 415),
    ),
    "EXIF in 250 segments": (
        lambda: jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + bytes(60_000)), FULL // 60_010),
        (200, 415),
    ),
    # PNG
    "16 megapixels of nothing": (
        lambda: transparent_png(4096),
        (200, 415, 422),
    ),
    "15,000 colour profiles of 1 MB": (
        lambda: png_with(png_chunk(b"iCCP", unpacking(2**20 - 10)), 15_000),
        (200, 415),
    ),
    "60 texts of 1 MB": (
        lambda: png_with(png_chunk(b"zTXt", unpacking(2**20 - 10)), 60),
        (200, 415),
    ),
    "a million chunks": (lambda: png_with(png_chunk(b"teSt", b""), FULL // 12), (415,)),
    "a million empty parts": (lambda: png_with(png_chunk(b"IDAT", b""), FULL // 12), (415,)),
    # WebP
    "WebP of 16 megapixels": (lambda: large_webp(4096), (200, 422)),
    "two million WebP chunks": (lambda: webp_with(b"abcd\0\0\0\0", FULL // 8), (200, 415)),
    # GIF, TIFF and AVIF
    "400,000 frames": (lambda: gif_of_frames(400_000), (200,)),
    "GIF of 16 megapixels": (lambda: large("GIF", "L"), (200,)),
    "5 million extensions": (lambda: gif_with(b"!\xfe\0", FULL // 3), (415,)),
    "TIFF of 16 megapixels": (
        lambda: large("TIFF", "RGBA", compression="tiff_adobe_deflate"),
        (200,),
    ),
    "1.9 million strips of a row": (lambda: tiff_of_strips(FULL // 8 - 100), (415,)),
    "AVIF of 16 megapixels": (lambda: large("AVIF", "RGB", speed=10), (200,)),
    "2 million AVIF boxes": (lambda: avif_with(b"\0\0\0\x08free", FULL // 8), (200, 415)),
    # Arrays
    "an array's header of 256 MB": (
        lambda: npz_of(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**28) + bytes(2**28)),
        (415,),
    ),
    "50,000 members": (lambda: many_members(50_000), (415,)),
    "an array of 250 MB": (lambda: deflated(np.zeros((1000, 1000, 250), np.uint8)), (415, 422)),
    "bzip2": (lambda: npz_of(deflated(np.zeros((1, 8, 8))), zipfile.ZIP_BZIP2), (415,)),
    "shape (0, -1)": (lambda: claiming("(0, -1)"), (415,)),
    "shape (-1, -1)": (lambda: claiming("(-1, -1)"), (415,)),
    "shape (0, 2**70)": (lambda: claiming(f"(0, {2**70})"), (415,)),
    "65 axes": (lambda: claiming("(" + "1, " * 65 + ")"), (415,)),
}


def repeated(item: bytes) -> bytes:
    """JSON of nearly as many items as a body can hold."""
    return b'{"samples":[' + b",".join([item] * (FULL // (len(item) + 1))) + b"]}"


BODIES: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    "lists 190 deep": (lambda: repeated(b"[" * 190 + b"]" * 190), (400,)),
    "empty lists": (lambda: repeated(b"[]"), (400,)),
    "lists of a number": (lambda: repeated(b"[0]"), (400,)),
    "objects": (lambda: repeated(b"{}"), (400,)),
    "objects of a number": (lambda: repeated(b'{"a":1}'), (400,)),
    "numbers": (lambda: repeated(b"0"), (422,)),
    "texts": (lambda: repeated(b'"ab"'), (422,)),
    "lists open": (lambda: b"[" * FULL, (400,)),
}


DELIMITERS = {
    "almost": (b"", b"\r\n--bx"),
    "with a dash": (b"", b"\r\n--b-"),
    "with half a line end": (b"", b"\r\n--b\r"),
    "with spaces": (b"\r\n--b", b" "),
}
"""Starts, and what follows them over and over, of files with lines that begin like a delimiter."""


def full(start: bytes, repeated: bytes) -> bytes:
    return start + repeated * (FULL // len(repeated))


def of_file(content: bytes, statuses: tuple[int, ...], resize: str = "true") -> Attack:
    field = f'--b\r\nContent-Disposition: form-data; name="resize"\r\n\r\n{resize}\r\n'
    multipart = "multipart/form-data; boundary=b"
    return Attack(statuses, form(content, more=field.encode()), multipart, "/v1/scores")


def attacks() -> dict[str, Callable[[], Attack]]:
    """All of them, by name."""
    found: dict[str, Callable[[], Attack]] = {}
    for name, (make, statuses) in FILES.items():
        found[name] = lambda make=make, statuses=statuses: of_file(make(), statuses)
    for name, (make, statuses) in BODIES.items():
        found[f"JSON: {name}"] = lambda make=make, statuses=statuses: Attack(
            statuses, make(), path="/v1/scores"
        )
        found[f"JSON to samples: {name}"] = lambda make=make: Attack((400,), make())
    for name, parts in DELIMITERS.items():
        found[f"form: delimiters, {name}"] = lambda parts=parts: of_file(full(*parts), (400,))
    return found


COSTLY = attacks()
