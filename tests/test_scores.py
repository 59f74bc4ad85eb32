"""Scores over HTTP: POST /v1/scores of a real server."""

import asyncio
import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.types import Message

from models.artifact import load_artifact
from models.errors import OversizeError, ShapeError, UserError
from models.images import MAX_PIXELS, encode_png
from models.model import Model
from service.endpoints.scores import (
    LARGE,
    MAX_ITEMS,
    SMALL,
    Bounds,
    read_and,
    read_files,
    require_size,
    to_array,
    to_items,
)
from service.limits import SMALL_BODY
from service.scoring import ScoreJob
from tests.artifacts import make_artifact
from tests.servers import (
    Server,
    array_file,
    forget_peak_memory,
    is_problem,
    npz_file,
    peak_memory,
    scale_down,
    upload,
)
from tests.test_app import made, talk

JSON = {"content-type": "application/json"}


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


def test_small_bodies_cannot_claim_much_memory(image: Server) -> None:
    forget_peak_memory(image)
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


# ---- what a request may hold, in this process --------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_artifact(make_artifact(tmp_path_factory.mktemp("scores") / "artifact"))


def read(
    model: Model, *contents: bytes, resize: bool = False, bounds: Bounds = LARGE
) -> np.ndarray:
    """The items of files, read in a thread as the service does."""
    files = [(f"file {i}", content) for i, content in enumerate(contents)]
    return anyio.run(anyio.to_thread.run_sync, lambda: read_files(model, files, resize, bounds))


def grey(height: int, width: int) -> bytes:
    return encode_png(np.zeros((height, width, 1), np.uint8))


def test_a_thousand_items_are_scored_in_all_files_together(model: Model) -> None:
    items = model.sample(seed=0, count=MAX_ITEMS)
    files = array_file(items[:1000]), npz_file(samples=items[1000:])
    assert np.array_equal(read(model, *files), items)
    with pytest.raises(ShapeError, match=r"^file 2: at most 1024 items, or 16777216 pixels, at"):
        read(model, *files, grey(8, 8))
    assert to_array([[0.5, 2]] * MAX_ITEMS).shape == (1024, 2)
    with pytest.raises(ShapeError, match="over 1024 items; at most 1024 are scored at once"):
        to_array([[0.5, 2]] * (MAX_ITEMS + 1))


def test_bytes_are_bounded_by_what_the_model_takes(model: Model, tmp_path: Path) -> None:
    """A thousand items in float64, unless they are resized; rows are always read one at a time."""
    assert len(read(model, array_file(np.zeros((MAX_ITEMS, 8, 8))))) == MAX_ITEMS
    higher = array_file(np.zeros((MAX_ITEMS, 9, 8)))
    with pytest.raises(OversizeError):
        read(model, higher)
    assert len(read(model, higher, resize=True)) == MAX_ITEMS
    rows = load_artifact(make_artifact(tmp_path / "rows", "rows"))
    with pytest.raises(OversizeError):
        read(rows, b"age\n1\n", bounds=SMALL)


def test_pixels_are_bounded_in_each_file_and_in_all_together(model: Model) -> None:
    large = encode_png(np.zeros((2**11, 2**11, 3), np.uint8))  # channels do not count
    assert SMALL.pixels == 2**22
    assert read(model, large, resize=True, bounds=SMALL).shape == (1, 8, 8, 1)
    with pytest.raises(OversizeError):
        read(model, grey(2**11, 2**11 + 1), resize=True, bounds=SMALL)
    assert MAX_PIXELS == LARGE.pixels == 2**24
    assert len(read(model, *[large] * 4, resize=True)) == 4
    with pytest.raises(UserError, match=r"^file 4: "):
        read(model, *[large] * 4, grey(1, 1), resize=True)


def test_only_images_of_the_model_s_size_are_decoded_unless_they_are_resized(model: Model) -> None:
    require_size(model, False, "a.png", 8, 8)
    require_size(model, True, "a.png", 9, 100)
    for height, width in ((9, 8), (8, 9)):
        with pytest.raises(
            ShapeError, match=rf"^a.png: .*8x8 pixels .* not {height}x{width}; with"
        ):
            require_size(model, False, "a.png", height, width)
        images = np.zeros((1, height, width, 1))
        with pytest.raises(ShapeError, match=r"; with resize=true, images are brought to it$"):
            to_items(model, images, False)
        assert to_items(model, images, True).shape == (1, 8, 8, 1)
    for other in (np.full((1, 8, 8, 1), 256.0), np.zeros((8, 8)), np.zeros((1, 2, 8, 8, 1))):
        with pytest.raises(ShapeError) as caught:
            to_items(model, other, False)
        assert "resize" not in str(caught.value), "it would not help"


@pytest.mark.parametrize("values", [[[True, 1]], [["1", 2]], [[None]], [[1], [1, 2]], [[10**400]]])
def test_what_is_no_array_of_numbers_is_refused(values: list[Any]) -> None:
    with pytest.raises(ShapeError, match="the samples"):
        to_array(values)


def test_a_model_is_named_once(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", "vector")
    version = load_artifact(artifact).digest[:12]

    async def ask(client: httpx.AsyncClient) -> None:
        for query, body, status in (
            ({}, {}, 200),
            ({"model": "champion"}, {}, 200),
            ({}, {"model": "champion"}, 200),
            ({"model": version}, {"model": version}, 200),
            ({"model": version}, {"model": "champion"}, 400),
            ({"model": "none"}, {}, 404),
            ({}, {"model": "none"}, 404),
            ({}, {"rows": [{"a": 1}]}, 400),
        ):
            sent = {"samples": [[0.5, 0.25]], **body}
            answer = await client.post("/v1/scores", params=query, json=sent)
            assert answer.status_code == status, (query, body)
        files = [("files", ("a.npy", array_file(np.zeros((3, 2)))))]
        for resize, status in (("false", 200), ("true", 422), (["true", "true"], 400)):
            answer = await client.post("/v1/scores", files=files, data={"resize": resize})
            assert answer.status_code == status
        for count, status in ((MAX_ITEMS, 422), (MAX_ITEMS + 1, 400)):  # the model has no classes
            data = {"classes": ["a"] * count, "resize": "false"}
            assert (await client.post("/v1/scores", files=files, data=data)).status_code == status
        answer = await client.post("/v1/scores", files=files, data={"resize": "yes"})
        assert is_problem(answer, 400)["detail"] == "the part named 'resize' is true or false"
        answer = await client.post("/v1/scores", files=files, params={"model": "none"})
        is_problem(answer, 404)

    talk(made(WGAN_MODEL=str(artifact)), ask)


@pytest.mark.parametrize(
    ("sent", "alone"),
    [
        ({"json": {"samples": [[0.5, 0.25]]}}, [False]),
        ({"content": b" " * (SMALL_BODY - 2) + b"{}", "headers": JSON}, [False]),
        ({"content": b" " * (SMALL_BODY - 1) + b"{}", "headers": JSON}, [True]),
        ({"files": {"files": ("a.npy", b"")}}, [True]),
        ({"files": {"files": ("large.npy", b"")}}, [True, True]),
    ],
)
def test_what_may_take_long_makes_nobody_wait(
    tmp_path: Path, sent: dict[str, Any], alone: list[bool]
) -> None:
    """A large file is read again, with larger bounds, when no other is."""
    app = made(WGAN_MODEL=str(tmp_path))
    given = httpx.Request("POST", "http://test/", **sent)
    body, found = given.read(), list[bool]()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def work(read: Callable[[], ScoreJob], alone: bool) -> str:
        found.append(alone)
        if b"large" in body and len(found) == 1:
            raise OversizeError("too large for now")
        return "done"

    headers = [(k.lower().encode(), v.encode()) for k, v in given.headers.items()]
    scope = {"type": "http", "method": "POST", "headers": headers, "query_string": b""}
    request = Request(scope, receive)
    assert asyncio.run(read_and(work, app.context, request)) == "done"
    assert found == alone


def test_certified_scores_are_told_in_units_of_the_data(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", "vector")
    scale_down(artifact)

    async def ask(client: httpx.AsyncClient) -> None:
        answer = (await client.post("/v1/scores", json={"samples": [[0, 0], [0.001, 0]]})).json()
        constant = load_artifact(artifact).certified
        assert constant not in (None, 1)
        expected = np.array(answer["scores"]) / constant
        np.testing.assert_allclose(answer["normalized_scores"], expected, rtol=1e-6)

    talk(made(WGAN_MODEL=str(artifact)), ask)
