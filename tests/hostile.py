"""Bodies and files of an attacker, each with the statuses that are right for it."""

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from models.images import encode_png
from tests.servers import array_file, npz_file


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


CANARY = Path(os.environ.get("TMPDIR", "/tmp")) / f"wgan-canary-{os.getpid()}"


GOOD = np.zeros((8, 8, 1), np.uint8)


PNG = encode_png(GOOD)


class Attack(NamedTuple):
    statuses: tuple[int, ...]
    content: bytes
    content_type: str = "application/json"
    path: str = "/v1/samples"
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    raw: bool = False
    """The content is all that is sent, head included."""


def form(content: bytes, filename: str = "x.png", name: str = "files", more: bytes = b"") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
    kind = "Content-Type: application/octet-stream\r\n\r\n"
    return (
        head.encode("utf-8", "surrogateescape")
        + kind.encode()
        + content
        + b"\r\n"
        + more
        + b"--b--\r\n"
    )


def file_attack(statuses: tuple[int, ...], content: bytes, filename: str = "x.png") -> Attack:
    body = form(content, filename)
    return Attack(statuses, body, "multipart/form-data; boundary=b", "/v1/scores")


def samples_bodies() -> Iterator[tuple[str, str, int]]:
    """JSON for /v1/samples, and its status."""
    wrong_counts = ["-1", "0", "100001", str(2**31), str(2**63), str(2**64), "1e308", "1.5", '"1"']
    for value in [*wrong_counts, "true", "null", "[]", "{}", "9" * 4000, "9" * 100_000, "-0.0"]:
        yield f"count {value[:20]} {len(value)}", f'{{"count": {value}}}', 400
    for value in ["-1", str(2**63), str(10**400), "1.0", '"7"', "[1]", "1e5", "true"]:
        yield f"seed {value[:20]}", f'{{"seed": {value}}}', 400
    for value in [
        "exe",
        "PNG",
        "../../etc/passwd",
        "png\\u0000",
        "",
        "npy",
        "file:///etc/passwd",
        "\U0001d4f9\U0001d4f7\U0001d4f0",
    ]:
        yield f"format {value}", f'{{"format": "{value}"}}', 400
    for value in ["[]", "{}", "1", "NaN", "true", '"\\ud800"']:
        yield f"class {value}", f'{{"class": {value}}}', 400
    for value in [
        "../../etc/passwd",
        "'; DROP TABLE models; --",
        "{{7*7}}",
        "\\u0000",
        "\\u202e",
        "x" * 10**6,
    ]:
        yield f"class name {value[:20]}", f'{{"class": "{value}"}}', 422
    for value in ["-1", "0", "6", "1e-400", "1e999", "NaN", "Infinity", '"1"', "true"]:
        yield f"truncation {value}", f'{{"truncation": {value}}}', 400
    for value in [
        "[]",
        "1",
        "[1]",
        "[[NaN]]",
        "[[1e999]]",
        "[[1e9]]",
        '[["0"]]',
        "[[true]]",
        "[[[0]]]",
    ]:
        yield f"latents {value}", f'{{"latents": {value}}}', 400
    for value in ["[[]]", "[[0]]", "[[0,0,0,0],[0]]", "[[0,0,0,0,0]]"]:
        yield f"latents {value}", f'{{"latents": {value}}}', 422
    rows = ",".join(["[0,0,0,0]"] * 1025)
    yield "1025 latents", f'{{"latents": [{rows}]}}', 400
    yield "a latent of 5000 numbers", f'{{"latents": [[{",".join(["0"] * 5000)}]]}}', 400
    for value in [
        "{}",
        "8",
        '{"to": -1}',
        '{"to": 1, "at": []}',
        '{"to": 1, "at": [2]}',
        '{"to": 1, "at": [NaN]}',
    ]:
        yield f"interpolation {value}", f'{{"interpolation": {value}}}', 400
    points = ",".join(["0.5"] * 1025)
    yield "1025 points", f'{{"interpolation": {{"to": 1, "at": [{points}]}}}}', 400
    walk = '"interpolation": {"to": 1}, "count": 3'
    for format in ("json", "npz", "png"):
        value = f'{{"truncation": 1e-300, {walk}, "format": "{format}"}}'
        yield f"a walk of latents that are 0 as {format}", value, 200
    for value in [
        '{"__proto__": {}}',
        '{"__class__": "x"}',
        '{"$ref": "http://127.0.0.1/"}',
        '{"url": "x"}',
        '{"path": "/etc/passwd"}',
    ]:
        yield f"unknown field {value[:14]}", value, 400
    yield "a path as a model", '{"model": "../../etc"}', 404
    yield "a long model", f'{{"model": "{"x" * 10_000}"}}', 400
    for value in [
        "",
        " ",
        "{",
        "}",
        "[]",
        "1",
        '"x"',
        "null",
        "{}{}",
        "{,}",
        '{"count": 1,}',
        "{'count': 1}",
        "// x\n{}",
        "\ufeff{",
        "count=1",
        "<a/>",
        "[" * 10**5,
        '{"a":' * 10**5,
        "[" * 300 + "]" * 300,
    ]:
        yield f"no object {value[:12]!r} {len(value)}", value, 400


def scores_bodies() -> Iterator[tuple[str, str, int]]:
    """The value of ``samples`` for /v1/scores, and its status."""
    image = "[" + ",".join(["[0,0,0,0,0,0,0,0]"] * 8) + "]"
    for value in [
        '"http://127.0.0.1/x.png"',
        '"/etc/passwd"',
        "{}",
        "null",
        "1",
        "NaN",
        f"[{image}",
        "[1e999",
    ]:
        yield value, value, 400
    url = "http://127.0.0.1/x.png"
    deep = "[" * 60 + "0" + "]" * 60
    for value in [
        "[]",
        "[[]]",
        "[[[]]]",
        "[null]",
        "[{}]",
        f'["{url}"]',
        f'[["{url}"]]',
        '["data:image/png;base64,AAAA"]',
        '["file:///etc/passwd"]',
        "[0]",
        "[[0]]",
        "[[[0]]]",
        f"[{image},[]]",
        f"[{image},1]",
        deep,
        "[" + ",".join([image] * 1025) + "]",
        "[" + "[]," * 100_000 + "[]]",
        "[" + image.replace("0", "256", 1) + "]",
        "[" + image.replace("0", "-1", 1) + "]",
        "[" + image.replace("0", "0.5", 1) + "]",
        "[" + image.replace("0", "1e300", 1) + "]",
        "[" + image.replace("0", "1e999", 1) + "]",
        "[" + image.replace("0", str(10**400), 1) + "]",
        "[" + image.replace("0", "true", 1) + "]",
        "[" + image.replace("0", '"0"', 1) + "]",
        "[" + image.replace("0", "null", 1) + "]",
        "[" + image.replace("0", "[]", 1) + "]",
    ]:
        yield f"{value[:40]} {len(value)}", value, 422


def png_chunk(kind: bytes, content: bytes) -> bytes:
    sum_ = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + sum_


def png_of(width: int, height: int, content: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def image_file(format: str, size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, format)
    return out.getvalue()


def archive_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def npy_with_header(header: str, version: bytes = b"\x01\x00", content: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + content


def files() -> Iterator[tuple[str, bytes, tuple[int, ...]]]:
    """Hostile files, and their statuses."""
    mixed = np.empty(1, object)
    mixed[0] = Canary(str(CANARY))
    payload = pickle.dumps(Canary(str(CANARY)))
    npy, whole = array_file(GOOD[None]), npz_file(samples=GOOD[None])
    no = (415,)
    yield "nothing", b"", no
    yield "text", b"hello", no
    for url in (
        "http://127.0.0.1/x.png",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "s3://b/x",
        "/etc/passwd",
        "data:image/png;base64,AAAA",
    ):
        yield f"URL {url}", url.encode(), no
    for protocol in range(6):
        yield f"pickle {protocol}", pickle.dumps(Canary(str(CANARY)), protocol), no
    yield "pickle in npy", array_file(mixed, allow_pickle=True), no
    yield "pickle in npz", npz_file(samples=mixed), no
    yield "pickle named samples.npy", archive_of({"samples.npy": payload}), no
    yield "torch file", archive_of({"archive/data.pkl": payload, "archive/version": b"3"}), no
    yield "pickle in gzip", gzip.compress(payload), no
    # Bombs
    yield "PNG of 3.6 gigapixels", png_of(60_000, 60_000, zlib.compress(bytes(100))), (422,)
    yield "PNG of 2^31 pixels a side", png_of(2**31 - 1, 2**31 - 1, b""), (422,)
    yield "PNG of 17 megapixels", png_of(4200, 4200, zlib.compress(bytes(4201 * 4200))), (422,)
    yield "PNG whose data go on", png_of(9, 8, zlib.compress(bytes(10**7))), (422,)
    yield (
        "JPEG of 65500 a side",
        image_file("JPEG").replace(b"\x00\x08\x00\x08", b"\xff\xdc\xff\xdc", 1),
        (422,),
    )
    yield (
        "npz bomb",
        archive_of({"samples.npy": array_file(np.zeros((1, 10**7)))}, zipfile.ZIP_DEFLATED),
        (415, 422),
    )
    yield (
        "npz of many items",
        archive_of(
            {"samples.npy": array_file(np.zeros((10**6, 8, 8), np.uint8))}, zipfile.ZIP_DEFLATED
        ),
        (422,),
    )
    yield (
        "lzma npz",
        archive_of({"samples.npy": array_file(np.zeros((1, 10**7)))}, zipfile.ZIP_LZMA),
        (415, 422),
    )
    yield "gzip", gzip.compress(bytes(10**6)), no
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "y" * 2**21, zip=True)
    out = io.BytesIO()
    Image.fromarray(GOOD[..., 0]).save(out, "PNG", pnginfo=info)
    yield "PNG with a text bomb", out.getvalue(), (200,)  # texts are not read
    # Truncated and broken
    for size in (8, 20, 40):
        yield f"PNG of {size} bytes", PNG[:size], no
    yield "PNG with a wrong sum", PNG[:29] + bytes([PNG[29] ^ 1]) + PNG[30:], no
    yield "PNG without data", png_of(8, 8, b""), no
    yield "PNG of no size", png_of(0, 0, b""), no
    for format in ("JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"):
        content = image_file(format)
        yield f"{format} cut", content[: len(content) // 2], no
        yield f"{format} of zeros", content[:12] + bytes(len(content)), no
    for size in (6, 10, 64, len(npy) - 1):
        yield f"npy of {size} bytes", npy[:size], no
    for size in (4, 30, 100, len(whole) - 10):
        yield f"npz of {size} bytes", whole[:size], no
    # Other formats, and files that are several at once
    for format in ("GIF", "BMP", "TIFF", "AVIF"):
        yield format, image_file(format), (422,)  # in colour, and the model's are grey
    for format in (
        "ICO",
        "PPM",
        "TGA",
        "PDF",
        "EPS",
        "PCX",
        "SGI",
        "JPEG2000",
        "DDS",
    ):
        yield format, image_file(format), no
    yield (
        "SVG",
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/'/></svg>",
        no,
    )
    yield "HTML", b"<script>alert(1)</script>", no
    yield "ELF", b"\x7fELF" + bytes(60), no
    yield "GIF and script", b"GIF89a/*" + bytes(30) + b"*/=1;alert(1)", no
    yield "zip and PNG", b"PK\x03\x04" + PNG, no
    yield "PNG and zip of another size", encode_png(np.zeros((9, 9, 1), np.uint8)) + whole, (422,)
    yield "npy and PNG", b"\x93NUMPY" + PNG, no
    # Archives
    for name in (
        "../../../tmp/x.npy",
        "/etc/x.npy",
        "..\\x.npy",
        "a/../../samples.npy",
        "C:\\x.npy",
    ):
        yield f"zip slip {name}", archive_of({name: npy}), no
    yield "empty zip", archive_of({}), no
    yield "two arrays", npz_file(a=GOOD[None], b=GOOD[None]), no
    yield "zip in zip", archive_of({"samples.npy": whole}), no
    yield "2000 members", archive_of({f"{i}.npy": b"" for i in range(2000)}), no
    yield (
        "encrypted",
        whole[:6]
        + b"\x01\x00"
        + whole[8:].replace(
            b"PK\x01\x02\x2d\x03\x2d\x00\x00\x00", b"PK\x01\x02\x2d\x03\x2d\x00\x01\x00"
        ),
        no,
    )
    # Arrays
    for kind in ("S3", "U3", "M8[s]", "c8", "b1", [("a", "u1")], "V4"):
        yield f"dtype {kind}", array_file(np.zeros((1, 8, 8), kind)), no
    yield "code in a header", npy_with_header("__import__('os').system('id')"), no
    yield "no header", npy_with_header(""), no
    yield "long header", npy_with_header("{" + " " * 60_000 + "}"), no
    yield "deep header", npy_with_header("(" * 9000), no
    yield "version 9", npy_with_header("{}", b"\x09\x09"), no
    claim = "{{'descr': '|u1', 'fortran_order': False, 'shape': {}}}"
    for shape in (
        "(10**9,)",
        "(-1, 8, 8)",
        "(1, 8.0, 8)",
        "8",
        "None",
        "(True, 8, 8)",
        "(1, 99999999999999, 8)",
    ):
        yield f"shape {shape}", npy_with_header(claim.format(shape)), no
    yield "items without number", npy_with_header(claim.format("(99999999999999, 8, 8)")), (422,)
    for name, array in {
        "scalar": np.array(3.0),
        "empty": np.zeros((0, 8, 8)),
        "no sides": np.zeros((1, 0, 0)),
        "other size": np.zeros((1, 8, 9)),
        "sixty axes": np.zeros((1,) * 60),
        "NaN": np.full((1, 8, 8), np.nan),
        "infinite": np.full((1, 8, 8), -np.inf),
        "large": np.full((1, 8, 8), 1e300),
        "256": np.full((1, 8, 8), 256),
        "negative": np.full((1, 8, 8), -1),
        "half": np.full((1, 8, 8), 0.5),
        "three channels": np.zeros((1, 8, 8, 3)),
    }.items():
        yield f"array: {name}", array_file(array), (422,)
