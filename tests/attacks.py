"""Requests of an attacker to every endpoint, with and without keys."""

import gzip
import hashlib
import pickle

from service.limits import MAX_BODY
from tests.hostile import (
    CANARY,
    PNG,
    Attack,
    Canary,
    file_attack,
    files,
    form,
    samples_bodies,
    scores_bodies,
)

KEYS = {
    "all": "all-scopes-key",
    "sampler": "samples-key",
    "other": "other-samples-key",
    "nobody": "no-scope-key",
}


SCOPES = {"all": "samples,scores,metrics", "sampler": "samples", "other": "samples", "nobody": ""}


def line(name: str, key: str, scopes: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}:{scopes}\n"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


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
