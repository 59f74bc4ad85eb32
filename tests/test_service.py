"""The service: a real server in a process of its own, spoken to over HTTP."""

import asyncio
import contextlib
import hashlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.artifact import load_artifact
from models.images import encode_png, enlarge, grid
from models.model import Model
from service.endpoints.samples import MAX_COUNT, MAX_PICTURES
from service.endpoints.scores import MAX_ITEMS
from service.keys import Keys
from service.limits import MAX_BODY, Guard
from tests.artifacts import make_artifact

WGAN = Path(sys.executable).with_name("wgan")
ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    command: list[object], port: int, log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, **environment},
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/livez", process, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        finally:
            process.kill()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(address).status_code == 200:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"{address} never answered 200: {log.read_text()}")


def scale_down(artifact: Path) -> None:
    """Give a vector artifact so small a scale that float32 items can overflow in its critic.

    And the claim of a certified constant, so that there is something to divide scores by.
    """
    run = json.loads((artifact / "run.json").read_text())
    run["lipschitz"] = {"certified": 2.0, "reason": None, "sampled": 1.0}
    run["data"]["scale"] = [1e-3, 1e-3]
    (artifact / "run.json").write_text(json.dumps(run))
    sign(artifact)


def spoil_checksum(artifact: Path) -> None:
    (artifact / "run.json").write_text("{}")


def spoil_weights(artifact: Path) -> None:
    weights = load_file(artifact / "critic.safetensors")
    save_file({k: v * float("nan") for k, v in weights.items()}, artifact / "critic.safetensors")
    sign(artifact)


def sign(artifact: Path) -> None:
    """Bring the checksums up to date."""
    names = [line.split("  ")[1] for line in (artifact / "SHA256SUMS").read_text().splitlines()]
    digests = [hashlib.sha256((artifact / name).read_bytes()).hexdigest() for name in names]
    lines = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
    (artifact / "SHA256SUMS").write_text("".join(lines))


class Server:
    def __init__(self, kind: str, folder: Path, **environment: str) -> None:
        self.environment = environment
        self.artifact = make_artifact(folder / "artifact", kind)
        if kind == "vector":
            scale_down(self.artifact)
        self.model: Model = load_artifact(self.artifact)
        self.port = free_port()
        self.log = folder / "log"
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    @contextlib.contextmanager
    def running(self) -> Iterator["Server"]:
        command = [WGAN, "serve", "--model", self.artifact, "--port", self.port]
        with (
            running(command, self.port, self.log, **self.environment) as self.process,
            self.client,
        ):
            wait_for(f"http://127.0.0.1:{self.port}/readyz", self.process, self.log)
            yield self

    def samples(self, **body: object) -> httpx.Response:
        return self.client.post("/v1/samples", json=body)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    found = {kind: Server(kind, tmp_path_factory.mktemp(kind)) for kind in ("image", "vector")}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        list(pool.map(stack.enter_context, [s.running() for s in found.values()]))
        yield found


@pytest.fixture
def image(servers: dict[str, Server]) -> Server:
    return servers["image"]


@pytest.fixture
def vector(servers: dict[str, Server]) -> Server:
    return servers["vector"]


def is_problem(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["type"]
    assert "Traceback" not in response.text
    assert "/tmp" not in response.text
    assert str(ROOT) not in response.text
    return dict(body)


def read_npz(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.asarray(np.load(io.BytesIO(response.content))["samples"])


def test_every_format_holds_the_same_samples(image: Server) -> None:
    expected = image.model.sample(seed=7, count=20)
    npz = read_npz(image.samples(count=20, seed=7, format="npz"))
    assert npz.dtype == np.uint8
    assert np.array_equal(npz, expected)
    answer = image.samples(count=20, seed=7, format="json")
    assert answer.headers["content-type"] == "application/json"
    assert np.array_equal(np.uint8(answer.json()["samples"]), expected)
    archive = zipfile.ZipFile(io.BytesIO(image.samples(count=20, seed=7, format="zip").content))
    pictures = [np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in archive.namelist()]
    assert archive.namelist()[:2] == ["000000.png", "000001.png"]
    assert np.array_equal(pictures, expected[..., 0])
    answer = image.samples(count=20, seed=7)
    assert answer.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert picture.shape == (4 * 34 + 2, 5 * 34 + 2)
    assert np.array_equal(picture, grid(enlarge(expected, 4))[..., 0])


def test_webp_holds_the_pixels_of_png(image: Server) -> None:
    answers = [image.samples(count=5, seed=7, format=format) for format in ("png", "webp")]
    assert answers[1].headers["content-type"] == "image/webp"
    png, webp = (np.asarray(Image.open(io.BytesIO(a.content)).convert("L")) for a in answers)
    assert np.array_equal(png, webp)


def test_a_csv_holds_vectors_alone(vector: Server, image: Server) -> None:
    answer = vector.samples(count=40, seed=1, format="csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    lines = answer.text.splitlines()
    assert lines[0] == "x1,x2"
    rows = np.array([line.split(",") for line in lines[1:]]).astype(np.float32)
    assert np.array_equal(rows, vector.model.sample(1, 40))
    is_problem(image.samples(format="csv"), 422)


def test_given_latents_truncation_and_refinement(image: Server) -> None:
    z = image.model.latents(7, 20)
    found = read_npz(image.samples(latents=z.tolist(), format="npz"))
    assert np.array_equal(found, image.model.sample(7, 20))
    found = read_npz(image.samples(count=20, seed=7, truncation=0.5, format="npz"))
    expected = np.concatenate(list(image.model.samples(7, 20, truncation=0.5)))
    assert np.array_equal(found, expected)
    found = read_npz(image.samples(count=20, seed=7, refine=True, format="npz"))
    refined = image.model.refined.sample(7, 20)
    assert np.array_equal(found, refined)
    found = read_npz(image.samples(latents=z.tolist(), refine=True, format="npz"))
    assert np.array_equal(found, refined)
    assert "x-seed" not in image.samples(latents=z.tolist()).headers
    for latents in ([[0.0] * 5], [[0.0] * 4, [0.0] * 3], [[]]):
        assert "4 numbers" in str(is_problem(image.samples(latents=latents), 422)["detail"])


def test_a_walk_between_two_seeds(image: Server) -> None:
    first, last = (image.model.sample(seed, 1)[0].astype(int) for seed in (7, 8))
    walk = read_npz(image.samples(count=5, seed=7, interpolation={"to": 8}, format="npz"))
    assert len(walk) == 5
    assert np.abs(walk[0] - first).max() == 0
    assert np.abs(walk[-1] - last).max() <= 1  # another row of a chunk may round differently
    points = {"to": 8, "at": [0.5, 1, 0.25]}
    found = read_npz(image.samples(seed=7, interpolation=points, format="npz"))
    assert np.abs(found.astype(int) - walk[[2, 4, 1]]).max() <= 1


def resident(server: Server) -> int:
    """Bytes that the worker holds now."""
    return 1024 * memory(server, "VmRSS")


def test_large_counts_stream_in_bounded_memory(image: Server) -> None:
    image.samples(count=2000, format="json")
    before, largest, content = resident(image), 0, hashlib.sha256()
    body = {"count": 20_000, "seed": 3, "format": "json"}
    with image.client.stream("POST", "/v1/samples", json=body) as answer:
        assert "content-length" not in answer.headers
        for i, part in enumerate(answer.iter_raw()):
            content.update(part)
            if i % 16 == 0:
                largest = max(largest, resident(image))
    # As a whole they would be 10 MB of lists, and 5 MB of text that is joined.
    assert largest - before < 8 * 2**20
    expected = {"samples": image.model.sample(3, 20_000).tolist(), "seed": 3}
    assert content.hexdigest() == hashlib.sha256(json.dumps(expected).encode()).hexdigest()


def test_streamed_archives_are_whole_and_begin_alike(image: Server) -> None:
    expected = image.model.sample(3, 20_000)
    npz = image.samples(count=20_000, seed=3, format="npz")
    assert np.array_equal(read_npz(npz), expected)
    archive = zipfile.ZipFile(io.BytesIO(image.samples(count=3000, seed=3, format="zip").content))
    assert archive.testzip() is None
    assert len(archive.namelist()) == 3000
    picture = Image.open(io.BytesIO(archive.read("002999.png")))
    assert np.array_equal(np.asarray(picture), expected[2999, ..., 0])


def made(server: Server) -> float:
    return families(server)["wgan_samples"][0][1]


def test_nothing_more_is_made_for_a_client_that_has_gone(image: Server) -> None:
    before = made(image)
    body = {"count": MAX_COUNT, "format": "json"}
    with image.client.stream("POST", "/v1/samples", json=body) as answer:
        next(answer.iter_raw())
    time.sleep(1)
    after = made(image)
    time.sleep(1)
    assert made(image) == after < before + MAX_COUNT


def test_headers_name_version_constraint_and_seed(image: Server) -> None:
    headers = image.samples(count=1, seed=2**63 - 1).headers
    assert headers["x-model-version"] == image.model.digest[:12]
    assert headers["x-constraint"] == "gradient_penalty"
    assert headers["x-seed"] == str(2**63 - 1)


def test_a_seed_left_out_is_told_and_repeats(image: Server) -> None:
    first, second = (image.samples(count=3, format="npz") for _ in range(2))
    assert first.headers["x-seed"] != second.headers["x-seed"]
    again = image.samples(count=3, format="npz", seed=int(first.headers["x-seed"]))
    assert again.content == first.content


def test_a_longer_request_begins_with_the_shorter_one(image: Server, vector: Server) -> None:
    for server in (image, vector):
        longest = read_npz(server.samples(count=200, seed=5, format="npz"))
        for count in (1, 15, 16, 17, 100):
            shorter = read_npz(server.samples(count=count, seed=5, format="npz"))
            assert np.array_equal(shorter, longest[:count])


def test_the_same_bytes_whatever_else_is_asked_for(image: Server) -> None:
    expected = {seed: image.samples(count=33, seed=seed, format="npz").content for seed in range(4)}
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(
                lambda i: (i % 4, image.samples(count=33, seed=i % 4, format="npz").content),
                range(40),
            )
        )
    assert all(content == expected[seed] for seed, content in found)


def test_vectors(vector: Server) -> None:
    expected = vector.model.sample(seed=1, count=5)
    found = read_npz(vector.samples(count=5, seed=1, format="npz"))
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)
    for format in ("png", "zip"):
        assert "npz" in str(is_problem(vector.samples(format=format), 422)["detail"])
    scores = vector.client.post("/v1/scores", json={"samples": expected.tolist()}).json()
    np.testing.assert_array_equal(np.float32(scores["scores"]), vector.model.score(expected))
    np.testing.assert_array_equal(scores["normalized_scores"], np.array(scores["scores"]) / 2)
    answer = vector.samples(count=5, seed=1, format="json").json()
    assert answer["seed"] == 1
    assert np.array_equal(np.float32(answer["samples"]), expected)
    files = upload(vector, array_file(expected[:2]), npz_file(samples=expected[2:]))
    assert files.json() == scores


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("[[1e300, 1]]", "float32"),
        ("[[3e38, -3e38]]", "not finite"),
        ("[[1e999, 1]]", "infinite"),
        (f"[[{10**400}, 1]]", "float64"),
        ('[["1", "2"]]', "numbers"),
        ("[[true, 0.5]]", "numbers"),
        ("[[1, 2], [3]]", "one array"),
        ("[" * 70 + "1" + "]" * 70, "one array"),
        ("[" * 40 + "1" + "]" * 40, "shape"),
        ("[1, 2]", "shape"),
    ],
)
def test_vectors_that_cannot_be_scored_are_422(vector: Server, rows: str, says: str) -> None:
    response = vector.client.post(
        "/v1/scores", content=f'{{"samples": {rows}}}', headers={"content-type": "application/json"}
    )
    assert says in str(is_problem(response, 422)["detail"])


@pytest.mark.parametrize(
    "body",
    [
        {"count": 0},
        {"count": -1},
        {"count": MAX_COUNT + 1},
        {"count": "3"},
        {"count": 3.5},
        {"count": True},
        {"count": None},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 10**400},
        {"seed": 1.0},
        {"format": "gif"},
        {"truncation": 0},
        {"truncation": 6},
        {"truncation": "1"},
        {"refine": 1},
        {"latents": []},
        {"latents": [1.0]},
        {"latents": [["1"]]},
        {"latents": [[1e9]]},
        {"interpolation": 8},
        {"format": None},
        {"cuont": 3},
        [],
        "count",
        None,
    ],
)
def test_schema_errors_are_400_and_say_where(image: Server, body: object) -> None:
    response = image.client.post(
        "/v1/samples", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    errors = is_problem(response, 400)["errors"]
    assert isinstance(errors, list)
    assert all(set(e) == {"path", "message"} for e in errors)
    if isinstance(body, dict):
        assert errors[0]["path"].split("/")[1] == next(iter(body))


@pytest.mark.parametrize(
    "body",
    [
        {"latents": [[0.0] * 4], "seed": 1},
        {"latents": [[0.0] * 4], "count": 1},
        {"latents": [[0.0] * 4], "truncation": 1.0},
        {"latents": [[0.0] * 4], "interpolation": {"to": 1}},
        {"interpolation": {"to": 1, "at": [0.5]}, "count": 1},
        {"interpolation": {"to": 1, "at": [1.5]}},
        {"interpolation": {"to": -1}},
        {"interpolation": {}},
        {"interpolation": {"to": 1, "form": 2}},
        {"count": MAX_PICTURES + 1},
        {"count": MAX_PICTURES + 1, "format": "webp"},
    ],
)
def test_fields_that_do_not_go_together_are_400(image: Server, body: dict[str, object]) -> None:
    assert is_problem(image.samples(**body), 400)["errors"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"count": NaN}', b"[" * 100_000, b"{}{}"]
)
@pytest.mark.parametrize("path", ["/v1/samples", "/v1/scores"])
def test_what_is_not_json_is_400(image: Server, content: bytes, path: str) -> None:
    response = image.client.post(
        path, content=content, headers={"content-type": "application/json"}
    )
    is_problem(response, 400)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "a/b;c"])
@pytest.mark.parametrize("path", ["/v1/samples", "/v1/scores"])
def test_another_content_type_is_415(image: Server, path: str, kind: str) -> None:
    response = image.client.post(path, content=b"{}", headers={"content-type": kind})
    assert "application/json" in str(is_problem(response, 415)["detail"])


def test_scores_are_the_models_own(image: Server) -> None:
    items = image.model.sample(seed=3, count=37)
    expected = image.model.score(items)
    for samples in (items.tolist(), items[..., 0].tolist()):
        answer = image.client.post("/v1/scores", json={"samples": samples}).json()
        assert set(answer) == {"scores", "percentiles", "out_of_range", "normalized_scores"}
        assert answer["out_of_range"] == [not -1 <= score <= 1 for score in answer["scores"]]
        assert answer["normalized_scores"] is None  # nothing certifies this critic
        np.testing.assert_array_equal(np.float32(answer["scores"]), expected)
        np.testing.assert_allclose(answer["percentiles"], image.model.percentiles(expected))


def array_file(array: np.ndarray, **options: bool) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def npz_file(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def upload(server: Server, *contents: bytes, name: str = "files") -> httpx.Response:
    files = [(name, (f"{i}.png", content)) for i, content in enumerate(contents)]
    return server.client.post("/v1/scores", files=files)


def test_scores_of_files_keep_their_order(image: Server) -> None:
    items = image.model.sample(seed=4, count=9)
    expected = image.model.score(items)
    webp = io.BytesIO()
    Image.fromarray(items[1, ..., 0]).convert("L").save(webp, "WEBP", lossless=True)
    response = upload(
        image,
        encode_png(items[0]),
        array_file(items[1:4]),
        npz_file(samples=items[4:6]),
        *[encode_png(i) for i in items[6:]],
    )
    assert response.status_code == 200, response.text
    np.testing.assert_array_equal(np.float32(response.json()["scores"]), expected)


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([], "shape"),
        ([[0] * 8] * 8, "shape"),
        ([[[0] * 9] * 8], "shape"),
        ([[[0] * 8] * 8, [[0] * 8] * 7], "one array"),
        ([[[256] * 8] * 8], "0 to 255"),
        ([[[-1] * 8] * 8], "0 to 255"),
        ([[[0.5] * 8] * 8], "0 to 255"),
        ([[[1e999] * 8] * 8], "infinite"),
        ([[[10**400] * 8] * 8], "numbers"),
        ([[[2**64] * 8] * 8], "0 to 255"),
        ([[["a"] * 8] * 8], "numbers"),
        ([[[None] * 8] * 8], "numbers"),
        ([[[True] * 8] * 8], "numbers"),
        ([[[True] + [0] * 7] * 8], "numbers"),
        ([[[{}] * 8] * 8], "numbers"),
        ([[[0] * 8] * 8] * (MAX_ITEMS + 1), "at most"),
    ],
)
def test_wrong_content_is_422(image: Server, samples: list[object], says: str) -> None:
    content = json.dumps({"samples": samples}).replace("Infinity", "1e999")
    response = image.client.post(
        "/v1/scores", content=content, headers={"content-type": "application/json"}
    )
    assert says in str(is_problem(response, 422)["detail"])


@pytest.mark.parametrize("body", [{}, {"samples": 3}, {"samples": [], "x": 1}, {"sample": []}])
def test_score_bodies_that_break_the_schema_are_400(image: Server, body: object) -> None:
    is_problem(image.client.post("/v1/scores", json=body), 400)


def test_images_of_another_size_are_scored_when_resizing_is_asked_for(image: Server) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (20, 30, 4), np.uint8)
    expected = image.model.score(image.model.resized(photo[None]))
    files = {"files": encode_png(photo)}
    assert "resize" in str(is_problem(image.client.post("/v1/scores", files=files), 422)["detail"])
    answer = image.client.post("/v1/scores", files=files, data={"resize": "true"})
    np.testing.assert_array_equal(np.float32(answer.json()["scores"]), expected)
    body = {"samples": [photo.tolist()], "resize": True}
    answer = image.client.post("/v1/scores", json=body)
    np.testing.assert_array_equal(np.float32(answer.json()["scores"]), expected)


def hostile_files() -> dict[str, bytes]:
    mixed = np.empty(1, object)
    mixed[0] = np.zeros(3)
    png = encode_png(np.zeros((8, 8, 1), np.uint8))
    bomb = bytearray(encode_png(np.zeros((8, 8, 1), np.uint8)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # the header's size, now 3.6 gigapixels
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        huge, {"descr": "|u1", "fortran_order": False, "shape": (1000, 8, 10**9)}
    )
    negative = array_file(np.zeros((1, 8, 8), np.uint8)).replace(b"(1, 8, 8)", b"(1,-8, 8)")
    return {
        "empty": b"",
        "text": b"hello",
        "a URL": b"http://127.0.0.1/x.png",
        "pickle": b"\x80\x04\x95.",
        "object array": array_file(mixed, allow_pickle=True),
        "pickle in npz": npz_file(samples=mixed),
        "truncated PNG": png[:40],
        "bomb": bytes(bomb),
        "array that claims 8 TB": huge.getvalue(),
        "array of negative size": negative,
        "truncated array": array_file(np.zeros((4, 8, 8), np.uint8))[:-10],
        "broken zip": b"PK\x03\x04" + bytes(50),
        "GIF": b"GIF89a" + bytes(30),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/'/></svg>",
    }


@pytest.mark.parametrize("name", hostile_files())
def test_files_that_are_nothing_we_read_are_415(image: Server, name: str) -> None:
    is_problem(upload(image, hostile_files()[name]), 415)


def test_files_of_another_shape_are_422(image: Server) -> None:
    for shape in ((9, 8, 1), (8, 8, 3)):
        detail = is_problem(upload(image, encode_png(np.zeros(shape, np.uint8))), 422)["detail"]
        assert "0.png" in str(detail)
    good = encode_png(np.zeros((8, 8, 1), np.uint8))
    is_problem(upload(image, good, array_file(np.zeros((2, 8, 9), np.uint8))), 422)
    is_problem(upload(image, array_file(np.array(3))), 422)


def test_parts_of_another_name_are_400(image: Server) -> None:
    good = encode_png(np.zeros((8, 8, 1), np.uint8))
    is_problem(upload(image, good, name="file"), 400)
    is_problem(image.client.post("/v1/scores", data={"files": "x"}, files={"f": b""}), 400)
    is_problem(image.client.post("/v1/scores", data={"x": "1"}, files={"files": good}), 400)
    is_problem(image.client.post("/v1/scores", data={"resize": "1"}, files={"files": good}), 400)
    broken = {"content-type": "multipart/form-data; boundary=x"}
    is_problem(image.client.post("/v1/scores", content=b"--y\r\n", headers=broken), 400)
    none = {"content-type": "multipart/form-data"}
    is_problem(image.client.post("/v1/scores", content=b"--y\r\n", headers=none), 400)
    is_problem(upload(image, *[good] * 300), 400)


def test_nothing_is_fetched_on_a_clients_word(image: Server) -> None:
    """A listener sees no connection, whichever field its address is sent in."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        is_problem(upload(image, url.encode()), 415)
        is_problem(image.client.post("/v1/scores", json={"samples": url}), 400)
        is_problem(image.client.post("/v1/scores", json={"samples": [url]}), 422)
        is_problem(image.client.post("/v1/scores", data={"files": url}), 415)
        is_problem(image.client.post("/v1/scores", json={"url": url}), 400)
        with pytest.raises(TimeoutError):
            listener.accept()


def memory(server: Server, what: str) -> int:
    """Kilobytes that BentoML's worker, the only child of its supervisor, holds."""
    pid = server.process.pid
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def peak_memory(server: Server) -> int:
    """Bytes that the worker has held at most."""
    return 1024 * memory(server, "VmHWM")


def test_small_bodies_cannot_claim_much_memory(image: Server) -> None:
    before = peak_memory(image)
    # numpy's own guess at a type would make each string as wide as the longest: 4 GB.
    strings = ["a" * 2**20] + ["b"] * 1000
    is_problem(image.client.post("/v1/scores", json={"samples": strings}), 422)
    out = io.BytesIO()
    np.savez_compressed(out, samples=np.zeros((200_000, 8, 8), np.uint8))
    assert "at most" in str(is_problem(upload(image, *[out.getvalue()] * 200), 422)["detail"])
    assert peak_memory(image) - before < 2**28


def test_a_million_schema_errors_are_counted_not_listed(image: Server) -> None:
    response = image.client.post("/v1/samples", json={f"k{i}": 1 for i in range(10**6)})
    assert is_problem(response, 400)["errors"] == [
        {"path": "/", "message": "1000000 errors, too many to list"}
    ]


def raw(server: Server, *parts: bytes) -> tuple[int, str]:
    """Status and content type that answer bytes sent as they are; httpx would not send these."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, str(answer.getheader("content-type"))


def test_large_bodies_are_413(image: Server) -> None:
    problem = (413, "application/problem+json")
    start = b"POST /v1/scores HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    # Told in advance, it is refused before it is sent; in chunks, as soon as it is too long.
    assert raw(image, start + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1)) == problem
    chunks = [b"100000\r\n" + bytes(2**20) + b"\r\n"] * (MAX_BODY // 2**20)
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    assert raw(image, chunked, *chunks, b"1\r\n \r\n") == problem
    assert image.client.get("/readyz").status_code == 200


def test_a_body_just_within_the_bound_is_read(image: Server) -> None:
    body = json.dumps({"count": 1}).encode().ljust(MAX_BODY)
    headers = {"content-type": "application/json"}
    assert image.client.post("/v1/samples", content=body, headers=headers).status_code == 200


def test_unknown_paths_and_methods(image: Server) -> None:
    is_problem(image.client.get("/v1/nothing"), 404)
    is_problem(image.client.delete("/v1/model"), 405)
    for path, method, allowed in (("/v1/samples", "GET", "POST"), ("/livez", "POST", "GET")):
        response = image.client.request(method, path)
        is_problem(response, 405)
        assert allowed in response.headers["allow"]


def test_the_record_of_the_model(image: Server) -> None:
    about = image.client.get("/v1/model").json()
    run = image.model.run
    assert about["version"] == image.model.digest[:12]
    assert about["digest"] == image.model.digest
    assert about["constraint"] == run.constraint.model_dump(mode="json")
    assert about["results"] == run.results.model_dump(mode="json")
    assert about["data"]["sha256"] == run.data.sha256
    for key in ("engine", "lipschitz", "findings", "provenance", "config", "shape"):
        assert key in about


def families(server: Server) -> dict[str, list[tuple[dict[str, str], float]]]:
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(response.text)
    }


def test_metrics_tell_of_the_model_and_its_work(image: Server) -> None:
    before = families(image)
    image.samples(count=11)
    image.client.post("/v1/scores", json={"samples": image.model.sample(0, 3).tolist()})
    after = families(image)
    ((labels, _),) = after["wgan_model_info"]
    assert labels["constraint"] == "gradient_penalty"
    assert labels["version"] == image.model.digest[:12]
    assert labels["data_sha256"] == image.model.run.data.sha256
    figure = {"role": "champion", "metric": "precision", "extractor": ""}
    assert after["wgan_quality"] == [(figure, 0.5)]
    assert after["wgan_quality_floor"] == [(figure, 0.9)]
    assert after["wgan_model_ready"] == [({}, 1.0)]

    def total(found: dict[str, list[tuple[dict[str, str], float]]], name: str) -> float:
        return found[name][0][1] if name in found else 0.0

    assert total(after, "wgan_samples") - total(before, "wgan_samples") == 11
    assert total(after, "wgan_scores") - total(before, "wgan_scores") == 3


def test_unknown_paths_add_no_series(image: Server) -> None:
    image.client.get("/unknown-0")
    before = image.client.get("/metrics").text.count("\n")
    for i in range(30):
        image.client.get(f"/unknown-{i}")
        image.client.get(f"/v1/model/{i}")
    assert image.client.get("/metrics").text.count("\n") == before


def test_the_page_of_the_api(image: Server) -> None:
    page = image.client.get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text.replace("http-equiv", ""), "nothing is loaded from outside"
    for part in ("swagger-ui.css", "swagger-ui-bundle.js", "swagger-initializer.js"):
        assert part in page.text
        assert image.client.get(f"/static_content/{part}").status_code == 200
    description = image.client.get("/docs.json").json()
    assert set(description["paths"]) >= {"/v1/samples", "/v1/scores", "/v1/model"}
    assert description["components"]["schemas"]["SamplesRequest"]["example"]


def test_a_second_server_leaves_the_first_ones_metrics_and_ends_with_0_on_sigterm(
    image: Server, tmp_path: Path
) -> None:
    image.samples(count=2)
    before = families(image)["wgan_samples"]
    with Server("vector", tmp_path).running() as second:
        second.samples(count=5, format="npz")
        assert families(second)["wgan_samples"][0] == ({"role": "champion"}, 5.0)
        assert families(image)["wgan_samples"] == before
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(timeout=30) == 0
    image.samples(count=3)
    assert families(image)["wgan_samples"][0][1] == before[0][1] + 3


async def spoken_to(app: ASGIApp) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/")


def test_an_unexpected_error_is_a_500_with_an_id_that_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(request: Request) -> Response:
        raise RuntimeError("a secret")

    app = Guard(Starlette(routes=[Route("/", fail)]), Keys(None))
    response = asyncio.run(spoken_to(app))
    request_id = str(is_problem(response, 500)["detail"]).split()[-1]
    assert request_id in caplog.text
    assert "a secret" in caplog.text
    assert "a secret" not in response.text


def test_a_request_that_takes_too_long_is_504(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dawdle(request: Request) -> Response:
        await asyncio.sleep(60)
        return Response()

    monkeypatch.setattr("service.limits.TIMEOUT", 0.05)
    app = Guard(Starlette(routes=[Route("/", dawdle)]), Keys(None))
    is_problem(asyncio.run(spoken_to(app)), 504)


def test_an_answer_that_begins_just_too_late_is_cut_and_begins_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[str] = []

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.CancelScope(shield=True):  # as a thread is
            await asyncio.sleep(0.2)
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    async def ask() -> None:
        waiting = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            return waiting.pop() if waiting else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message["type"])

        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await Guard(late, Keys(None), statuses.append)(scope, receive, send)

    statuses: list[int] = []
    monkeypatch.setattr("service.limits.TIMEOUT", 0.05)
    asyncio.run(ask())
    assert sent == ["http.response.start"]
    assert statuses == [200]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_checksum, "run.json: changed or truncated"),
        (spoil_weights, "its own sample has the score nan"),
    ],
)
def test_a_broken_model_leaves_the_process_alive_and_unready(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    spoil(artifact)
    port = free_port()
    code = f"from service.server import serve; serve({str(artifact)!r}, '127.0.0.1', {port})"
    with running([sys.executable, "-c", code], port, tmp_path / "log"):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(300):
                if "no model:" in (tmp_path / "log").read_text():
                    break
                time.sleep(0.1)
            assert client.get("/livez").status_code == 200
            is_problem(client.get("/readyz"), 503)
            response = client.post("/v1/samples", json={})
            assert "could not be loaded" in str(is_problem(response, 503)["detail"])
            assert response.headers["retry-after"]
            is_problem(client.get("/v1/model"), 503)
            assert "wgan_model_ready 0.0" in client.get("/metrics").text
        assert says in (tmp_path / "log").read_text()


def test_the_champion_is_served_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models import registry
    from training.tracking import track_and_register

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    artifact = make_artifact(tmp_path / "artifact")
    track_and_register(load_artifact(artifact), artifact)
    shutil.rmtree(artifact)
    registry.promote("tiny", "1", "a test")
    port = free_port()
    command = [WGAN, "serve", "--model", "tiny@champion", "--port", port]
    cache = tmp_path / "cache"
    cache.mkdir()
    with running(command, port, tmp_path / "log", WGAN_CACHE=str(cache)) as process:
        wait_for(f"http://127.0.0.1:{port}/readyz", process, tmp_path / "log")
        response = httpx.post(f"http://127.0.0.1:{port}/v1/samples", json={})
        assert response.headers["x-model-version"] == "tiny@1"
        (kept,) = cache.glob("models/*/1")
        assert load_artifact(kept).digest in httpx.get(f"http://127.0.0.1:{port}/v1/model").text


def test_probes_answer_while_samples_are_made(image: Server) -> None:
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            image.samples(count=20_000, seed=1, format="json")

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(load)
        try:
            for _ in range(20):
                assert image.client.get("/livez", timeout=5).status_code == 200
        finally:
            done.set()
