"""What an attacker or a crowd may send: each hostile request gets its 4xx, and leaves no trace."""

import gzip
import hashlib
import http.client
import io
import json
import os
import pickle
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from models.errors import ConfigError
from models.images import encode_png, fit
from service.keys import Forbidden, Key, Keys, Unauthorized, allow, read_keys
from service.limits import MAX_BODY
from tests.test_service import Server, array_file, npz_file, resident

PLACES = 8
"""Requests in flight that the server is told to bear."""
KEYS = {"all": "all-scopes-key", "sampler": "samples-key", "nobody": "no-scope-key"}
SCOPES = {"all": "samples,scores,metrics", "sampler": "samples", "nobody": ""}


def line(name: str, key: str, scopes: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}:{scopes}\n"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


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
    for value in [
        '{"__proto__": {}}',
        '{"__class__": "x"}',
        '{"$ref": "http://127.0.0.1/"}',
        '{"url": "x"}',
        '{"model": "../../etc"}',
        '{"path": "/etc/passwd"}',
    ]:
        yield f"unknown field {value[:14]}", value, 400
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
    yield "PNG of 3.6 gigapixels", png_of(60_000, 60_000, zlib.compress(bytes(100))), no
    yield "PNG of 2^31 pixels a side", png_of(2**31 - 1, 2**31 - 1, b""), no
    yield "PNG of 17 megapixels", png_of(4200, 4200, zlib.compress(bytes(4201 * 4200))), no
    yield "PNG whose data go on", png_of(9, 8, zlib.compress(bytes(10**7))), (422,)
    yield (
        "JPEG of 65500 a side",
        image_file("JPEG").replace(b"\x00\x08\x00\x08", b"\xff\xdc\xff\xdc", 1),
        no,
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
    yield "PNG with a text bomb", out.getvalue(), (415, 422)
    # Truncated and broken
    for size in (8, 20, 40):
        yield f"PNG of {size} bytes", PNG[:size], no
    yield "PNG with a wrong sum", PNG[:29] + bytes([PNG[29] ^ 1]) + PNG[30:], no
    yield "PNG without data", png_of(8, 8, b""), no
    yield "PNG of no size", png_of(0, 0, b""), no
    for format in ("JPEG", "WEBP"):
        content = image_file(format)
        yield f"{format} cut", content[: len(content) // 2], no
        yield f"{format} of zeros", content[:12] + bytes(len(content)), no
    for size in (6, 10, 64, len(npy) - 1):
        yield f"npy of {size} bytes", npy[:size], no
    for size in (4, 30, 100, len(whole) - 10):
        yield f"npz of {size} bytes", whole[:size], no
    # Other formats, and files that are several at once
    for format in (
        "GIF",
        "BMP",
        "TIFF",
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


def raw(head: str, body: bytes = b"") -> bytes:
    return head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body


def attacks_in_json() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for name, text, status in samples_bodies():
        found[f"samples: {name}"] = Attack((status,), text.encode("utf-8", "surrogatepass"))
    for name, text, status in scores_bodies():
        body = f'{{"samples": {text}}}'.encode()
        found[f"scores: {name}"] = Attack((status,), body, path="/v1/scores")
    for name, text in {
        "resize": '{"samples": [], "resize": "true"}',
        "classes": '{"samples": [], "classes": "x"}',
        "unknown": '{"samples": [], "url": "http://127.0.0.1/"}',
        "none": "{}",
    }.items():
        found[f"scores field: {name}"] = Attack((400,), text.encode(), path="/v1/scores")
    return found


def attacks_in_forms() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for name, content, statuses in files():
        found[f"file: {name}"] = file_attack(statuses, content)
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "x" * 10_000,
        "\u202egnp.exe",
        "a\x00b",
        "%00",
        "con",
        "'\\",
    ):
        found[f"file name {name[:20]!r}"] = file_attack((400, 415), b"hello", name)
    multipart, boundary = "multipart/form-data", "multipart/form-data; boundary=b"
    for name, (kind, body) in {
        "no boundary": (multipart, form(PNG)),
        "another boundary": ("multipart/form-data; boundary=c", form(PNG)),
        "empty": (boundary, b""),
        "no files": (boundary, b"--b--\r\n"),
        "another name": (boundary, form(PNG, name="file")),
        "a URL as a field": (
            boundary,
            b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nhttp://127.0.0.1/\r\n--b--\r\n',
        ),
        "no name": (boundary, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        "no disposition": (boundary, b"--b\r\nX: y\r\n\r\nx\r\n--b--\r\n"),
        "not closed": (boundary, form(PNG)[:-30]),
        "300 files": (boundary, form(PNG)[:-7] * 300 + b"--b--\r\n"),
        "2000 fields": (
            boundary,
            b'--b\r\nContent-Disposition: form-data; name="classes"\r\n\r\nx\r\n' * 2000
            + b"--b--\r\n",
        ),
        "large field": (
            boundary,
            b'--b\r\nContent-Disposition: form-data; name="classes"\r\n\r\n'
            + bytes(2**21)
            + b"\r\n--b--\r\n",
        ),
        "resize maybe": (
            boundary,
            form(
                PNG, more=b'--b\r\nContent-Disposition: form-data; name="resize"\r\n\r\nmaybe\r\n'
            ),
        ),
    }.items():
        found[f"form: {name}"] = Attack((400,), body, kind, "/v1/scores")
    return found


def attacks_by_content_type() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    payload = pickle.dumps(Canary(str(CANARY)))
    for kind in (
        "application/vnd.bentoml+pickle",
        "application/vnd.bentoml.pickle",
        "application/x-pickle",
        "application/python-pickle",
        "application/octet-stream",
        "application/vnd.bentoml.stream_outputs",
        "application/vnd.apache.arrow.stream",
        "application/vnd.bentoml+multipart",
        "multipart/mixed; boundary=b",
        "application/x-www-form-urlencoded",
        "application/x-yaml",
        "application/xml",
        "text/plain",
        "image/png",
        "*/*",
        "",
    ):
        for path in ("/v1/samples", "/v1/scores"):
            headers = (
                ("bento-name", "wgan"),
                ("payload-container", "PickleContainer"),
                ("batch-size", "1"),
                ("payload-meta", "{}"),
            )
            found[f"pickle as {kind or 'nothing'} to {path}"] = Attack(
                (415,), payload, kind, path, headers=headers
            )
    found["pickle as JSON"] = Attack((400,), payload)
    gzipped = gzip.compress(b'{"count": 1}')
    found["gzipped JSON"] = Attack((400,), gzipped, headers=(("content-encoding", "gzip"),))
    found["UTF-16"] = Attack((400,), '{"count": 1}'.encode("utf-16"))
    found["not UTF-8"] = Attack((400,), b'{"class": "\xff"}')
    return found


def attacks_on_routes() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for path in (
        "/v1/samples/",
        "/v1/samples/submit",
        "/V1/samples",
        "/v1/scores/submit",
        "/v1/samples%0A",
        "/v1/samples;x",
        "/call",
        "/v1//samples",
    ):
        found[f"POST {path}"] = Attack((404,), b"{}", path=path)
    for method in ("PUT", "PATCH", "DELETE"):
        for path in ("/v1/samples", "/v1/scores", "/v1/model", "/livez", "/readyz"):
            found[f"{method} {path}"] = Attack((405,), b"{}", path=path, method=method)
    for path in ("/v1/x", "/.env", "/.git/config", "/admin", "/static_content/none", "/v1/model/1"):
        found[f"GET {path}"] = Attack((404,), b"", path=path, method="GET")
    for path in (
        "/../../etc/passwd",
        "/static_content/../../../../../../etc/passwd",
        "/static_content/%2e%2e/%2e%2e/app.py",
        "/static_content/..%2f..%2f..%2fetc%2fpasswd",
        "/static_content//etc/passwd",
        "//etc/passwd",
        "/%00",
        "/static_content/\\..\\..\\x",
        "/static_content/%00",
        "/" + "a" * 5000,
    ):
        found[f"raw GET {path[:40]}"] = Attack(
            (400, 404), raw(f"GET {path} HTTP/1.1\nHost: x"), raw=True
        )
    return found


def attacks_on_the_protocol() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    post = (
        "POST /v1/samples HTTP/1.1\nHost: x\nContent-Type: application/json\n"
        + f"Authorization: {bearer('all')['authorization']}\n"
    )
    for name, (statuses, content) in {
        "content length of 1 TB": ((413,), raw(post + f"Content-Length: {10**12}")),
        "content length just over": ((413,), raw(post + f"Content-Length: {MAX_BODY + 1}")),
        "negative content length": ((400,), raw(post + "Content-Length: -1")),
        "content length in words": ((400,), raw(post + "Content-Length: many")),
        "two content lengths": ((400,), raw(post + "Content-Length: 2\nContent-Length: 3", b"{}")),
        "length and chunks": (
            (400,),
            raw(post + "Content-Length: 2\nTransfer-Encoding: chunked", b"{}"),
        ),
        "broken chunks": (
            (400,),
            raw(post + "Transfer-Encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n"),
        ),
        "one header of 40 kB": ((431,), raw(post + f"X: {'a' * 40_000}\nContent-Length: 2", b"{}")),
        "4000 headers": (
            (400, 431),
            raw(post + "".join(f"X{i}: y\n" for i in range(4000)) + "Content-Length: 2", b"{}"),
        ),
        "one header of 1 MB": (
            (400, 431),
            raw(post + f"X: {'a' * 10**6}\nContent-Length: 2", b"{}"),
        ),
        "a header without end": (
            (400,),
            (post + "X: ").replace("\n", "\r\n").encode() + b"a" * 300_000,
        ),
        "no HTTP": ((400,), b"\x16\x03\x01" + bytes(50) + b"\r\n\r\n"),
        "no such version": ((400,), raw("GET / HTTP/9.9\nHost: x")),
        "spaces in a header": ((400,), raw(post + "Content Length : 2", b"{}")),
        "line feed in a header": ((400,), raw(post + "X: a\x00b\nContent-Length: 2", b"{}")),
        "another host's URL": ((400, 404), raw("GET http://127.0.0.1:1/x HTTP/1.1\nHost: x")),
        "tunnel": ((400, 404, 405), raw("CONNECT 127.0.0.1:1 HTTP/1.1\nHost: x")),
        "websocket": (
            (404, 405),
            raw(
                "GET /v1/samples HTTP/1.1\nHost: x\nConnection: upgrade\nUpgrade: websocket\n"
                "Sec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n"
                f"Authorization: {bearer('all')['authorization']}"
            ),
        ),
    }.items():
        found[f"raw: {name}"] = Attack(statuses, content, raw=True)
    return found


def attacks_with_keys() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for name, value in {
        "none": "",
        "another scheme": "Basic YTpi",
        "no key": "Bearer",
        "wrong": "Bearer x",
        "two": f"Bearer {KEYS['all']} x",
        "its hash": "Bearer " + hashlib.sha256(KEYS["all"].encode()).hexdigest(),
        "long": "Bearer " + "x" * 20_000,
        "prefix": f"Bearer {KEYS['all'][:-1]}",
        "upper case": f"Bearer {KEYS['all'].upper()}",
    }.items():
        found[f"key: {name}"] = Attack((401,), b"{}", headers=(("authorization", value),))
    for path, method in (("/v1/scores", "POST"), ("/metrics", "GET")):
        headers = (("authorization", f"Bearer {KEYS['sampler']}"),)
        found[f"key without scope: {path}"] = Attack(
            (403,), b"{}", path=path, method=method, headers=headers
        )
    return found


ATTACKS = {
    **attacks_in_json(),
    **attacks_in_forms(),
    **attacks_by_content_type(),
    **attacks_on_routes(),
    **attacks_on_the_protocol(),
    **attacks_with_keys(),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("safety")
    keys = folder / "keys"
    keys.write_text("# a comment\n\n" + "".join(line(n, KEYS[n], SCOPES[n]) for n in KEYS))
    environment = {"WGAN_API_KEYS_FILE": str(keys), "WGAN_MAX_IN_FLIGHT": str(PLACES)}
    server = Server("image", folder, **environment)
    server.client.headers.update(bearer("all"))
    with server.running():
        yield server


def quickest(server: Server) -> float:
    """Seconds of the quickest of some small requests: what the machine does besides adds to it."""
    took = []
    for _ in range(30):
        started = time.perf_counter()
        assert server.samples(count=1, seed=1).status_code == 200
        took.append(time.perf_counter() - started)
    return min(took)


@pytest.fixture(scope="module")
def before(server: Server) -> tuple[int, float]:
    """Memory and latency of a server that has been used, but not yet attacked."""
    body = json.dumps({"samples": [[[0] * 8] * 8] * 1000})
    for _ in range(3):
        server.samples(count=1000, format="zip")
        server.client.post("/v1/scores", content=body, headers={"content-type": "application/json"})
    took = quickest(server)
    return resident(server), took


class Answer(NamedTuple):
    status: int
    content_type: str | None
    content: bytes


def sent(server: Server, attack: Attack) -> Answer:
    if attack.raw:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(attack.content)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return Answer(answer.status, answer.getheader("content-type"), answer.read())
    headers = [("content-type", attack.content_type), *attack.headers]
    response = server.client.request(
        attack.method, attack.path, content=attack.content, headers=dict(headers)
    )
    return Answer(response.status_code, response.headers["content-type"], response.content)


def test_the_corpus_is_large() -> None:
    assert len(ATTACKS) >= 150


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_requests_are_refused(server: Server, before: tuple[int, float], name: str) -> None:
    attack = ATTACKS[name]
    answer = sent(server, attack)
    assert answer.status in attack.statuses, answer
    assert answer.content_type == "application/problem+json"
    problem = json.loads(answer.content)
    assert problem["status"] == answer.status
    assert problem["title"]
    assert problem["detail"]
    assert len(answer.content) < 10_000
    for secret in ("Traceback", "/tmp", "site-packages", '.py"', *KEYS.values()):
        assert secret not in answer.content.decode()


def test_afterwards_all_is_as_before(server: Server, before: tuple[int, float]) -> None:
    memory, latency = before
    assert not CANARY.exists(), "nothing was unpickled"
    assert server.process.poll() is None
    assert quickest(server) < 3 * latency
    assert resident(server) - memory < 48 * 2**20
    log = server.log.read_text()
    assert "an error of ours" not in log
    assert "Traceback" not in log


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(str(tmp_path / "song"))))
    assert (tmp_path / "song").exists()


def test_beyond_its_places_it_is_busy(server: Server) -> None:
    body = json.dumps({"count": 100_000, "format": "json"}).encode()
    head = raw(
        "POST /v1/samples HTTP/1.1\nHost: x\nContent-Type: application/json\n"
        f"Authorization: {bearer('all')['authorization']}\nContent-Length: {len(body)}"
    )
    crowd = [
        socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(PLACES)
    ]
    try:
        for connection in crowd:  # each has its answer's first bytes, and does not read on
            connection.sendall(head + body)
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        answer = server.samples()
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["content-type"] == "application/problem+json"
        for path in ("/livez", "/readyz", "/metrics"):
            assert server.client.get(path).status_code == 200
    finally:
        for connection in crowd:
            connection.close()
    for _ in range(300):  # the crowd has gone: what it asked for is dropped
        if server.samples().status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("its places are not given back")


def test_a_large_upload_cannot_shut_small_ones_out(server: Server) -> None:
    """Eight clients that have sent nearly all of a large body fill what may be buffered."""
    head = raw(
        "POST /v1/scores HTTP/1.1\nHost: x\nContent-Type: application/json\n"
        f"Authorization: {bearer('all')['authorization']}\nContent-Length: {MAX_BODY}"
    )
    crowd = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(9)]
    try:
        statuses = []
        for connection in crowd:
            connection.sendall(head + bytes(MAX_BODY - 1))
        crowd[-1].settimeout(60)
        statuses = [c.recv(12) for c in crowd if _has_answer(c)]
        assert statuses
        assert set(statuses) == {b"HTTP/1.1 503"}
        assert server.samples().status_code == 200
    finally:
        for connection in crowd:
            connection.close()


def _has_answer(connection: socket.socket) -> bool:
    connection.settimeout(1)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False


def test_keys_open_what_their_scopes_say(server: Server) -> None:
    with httpx.Client(base_url=server.client.base_url, timeout=60) as client:
        for path in ("/livez", "/readyz", "/docs", "/docs.json"):
            assert client.get(path).status_code == 200
        answer = client.get("/v1/model")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics").status_code == 401
        for name in KEYS:
            assert client.get("/v1/model", headers=bearer(name)).status_code == 200
        sample = {"count": 1}
        statuses = [
            client.post("/v1/samples", json=sample, headers=bearer(n)).status_code for n in KEYS
        ]
        assert statuses == [200, 200, 403]
        assert [client.get("/metrics", headers=bearer(n)).status_code for n in KEYS] == [
            200,
            403,
            403,
        ]
        security = client.get("/docs.json").json()["paths"]["/v1/samples"]["post"]["security"]
        assert security == [{"key": []}]


def test_other_origins_are_not_let_in(server: Server) -> None:
    origin = {"origin": "https://example.com", "access-control-request-method": "POST"}
    answers = [
        server.client.options("/v1/samples", headers=origin),
        server.client.post("/v1/samples", json={}, headers=origin),
    ]
    assert [a.status_code for a in answers] == [405, 200]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_changed_file_of_keys_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("a", "1", "samples") + line("a", "1", "scores"))
    keys = Keys(path)
    assert keys.authenticate("bearer 1") == Key(
        "a", hashlib.sha256(b"1").digest(), frozenset({"samples", "scores"})
    )
    assert not keys.metrics_need_one()
    (tmp_path / "new").write_text(line("b", "2", "metrics"))
    (tmp_path / "new").replace(path)
    with pytest.raises(Unauthorized):
        keys.authenticate("Bearer 1")
    key = keys.authenticate("Bearer 2")
    assert keys.metrics_need_one()
    with pytest.raises(Forbidden, match="samples"):
        allow(key, "samples")
    path.write_text("half a li")  # a mistake locks nobody out
    assert keys.authenticate("Bearer 2") == key
    path.unlink()
    assert keys.authenticate("Bearer 2") == key
    with pytest.raises(Unauthorized):  # but nobody is let in by a file that was never there
        Keys(path).authenticate("Bearer 2")
    assert Keys(None).authenticate(None) is None


@pytest.mark.parametrize(
    "content",
    ["a", "a:b:c", f"a:{'0' * 63}:", f"a:{'0' * 64}:all", f"ä:{'0' * 64}:", "a:key:samples"],
)
def test_a_mistake_in_a_file_of_keys_is_told_without_its_content(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "keys").write_text("# keys\n" + content)
    with pytest.raises(ConfigError, match="line 2: write name:sha256hex:scopes") as caught:
        read_keys(tmp_path / "keys")
    assert "key:samples" not in str(caught.value)


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
