"""Samples over HTTP: POST /v1/samples of a real server."""

import asyncio
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from models.images import enlarge, grid
from service.endpoints import samples
from service.endpoints.samples import MAX_COUNT, MAX_PICTURES, SamplesRequest
from tests.artifacts import make_artifact
from tests.servers import (
    Server,
    array_file,
    is_problem,
    made,
    npz_file,
    read_npz,
    resident,
    upload,
)
from tests.test_app import made as app_of
from tests.test_app import talk


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


def test_the_format_follows_the_model(image: Server, vector: Server) -> None:
    picture = image.samples(count=5, seed=7)
    assert picture.headers["content-type"] == "image/png"
    assert picture.content == image.samples(count=5, seed=7, format="png").content
    rows = vector.samples(count=5, seed=7)
    assert rows.headers["content-type"] == "application/json"
    assert rows.content == vector.samples(count=5, seed=7, format="json").content


@pytest.mark.parametrize("body", [{}, {"format": "png"}, {"format": "webp"}])
def test_more_images_than_one_picture_holds(image: Server, body: dict[str, str]) -> None:
    assert image.samples(count=MAX_PICTURES, **body).status_code == 200
    problem = is_problem(image.samples(count=MAX_PICTURES + 1, **body), 422)
    assert "ask for zip" in str(problem["detail"])


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


def test_an_archive_of_pictures_streams_in_bounded_memory(image: Server) -> None:
    image.samples(count=2000, format="zip")
    before, largest = resident(image), 0
    body = {"count": 40_000, "seed": 3, "format": "zip"}
    with image.client.stream("POST", "/v1/samples", json=body) as answer:
        for i, _ in enumerate(answer.iter_raw()):
            if i % 16 == 0:
                largest = max(largest, resident(image))
    # As a whole it is 9 MB; what its list of files is made of, 4 MB, is held to the end.
    assert largest - before < 7 * 2**20


def test_streamed_archives_are_whole_and_begin_alike(image: Server) -> None:
    expected = image.model.sample(3, 20_000)
    npz = image.samples(count=20_000, seed=3, format="npz")
    assert np.array_equal(read_npz(npz), expected)
    archive = zipfile.ZipFile(io.BytesIO(image.samples(count=3000, seed=3, format="zip").content))
    assert archive.testzip() is None
    assert len(archive.namelist()) == 3000
    picture = Image.open(io.BytesIO(archive.read("002999.png")))
    assert np.array_equal(np.asarray(picture), expected[2999, ..., 0])


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
        {"latents": [[0.0] * 4], "count": 2},
        {"latents": [[0.0] * 4], "truncation": 1.0},
        {"latents": [[0.0] * 4], "interpolation": {"to": 1}},
        {"interpolation": {"to": 1, "at": [0.5]}, "count": 2},
        {"interpolation": {"to": 1, "at": [1.5]}},
        {"interpolation": {"to": -1}},
        {"interpolation": {}},
        {"interpolation": {"to": 1, "form": 2}},
    ],
)
def test_fields_that_do_not_go_together_are_400(image: Server, body: dict[str, object]) -> None:
    assert is_problem(image.samples(**body), 400)["errors"]


def test_few_samples_are_made_without_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(WGAN_MODEL=str(make_artifact(tmp_path / "artifact", "vector")))
    processors = app.context.processors
    original, taken = processors.run, list[str]()

    async def run(what: str, work: Callable[[], Any]) -> Any:
        taken.append(what)
        return await original(what, work)

    async def ask(client: httpx.AsyncClient) -> None:
        (slot,) = app.context.holders.slots
        assert slot.served is not None
        slot.served = slot.served._replace(inline_limit=16)
        for body, threads in (({"count": 16}, 0), ({"count": 17}, 1), ({"refine": True}, 1)):
            taken.clear()
            answer = await client.post("/v1/samples", json={"format": "json", **body})
            assert len(answer.json()["samples"]) == body.get("count", 1)
            assert taken == ["samples"] * threads
        told = (await client.get("/metrics")).text
        labels = 'model="artifact",role="champion"'
        assert f"wgan_samples_total{{{labels}}} 34.0" in told
        assert f"wgan_generation_seconds_count{{{labels}}} 3.0" in told
        assert 'wgan_encoding_seconds_count{format="json",model="artifact"} 3.0' in told

    monkeypatch.setattr(processors, "run", run)
    talk(app, ask)


def test_a_turn_ends_by_bytes_or_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(WGAN_MODEL=str(make_artifact(tmp_path / "artifact", "vector")))
    (slot,) = app.context.holders.slots
    slot.refresh()
    assert slot.served is not None
    work = samples.SampleWork(app.context, slot.served, "json", True)

    def turns(*sizes: int) -> list[int]:
        pieces, found, is_all = iter([bytes(size) for size in sizes]), list[int](), False
        while not is_all:
            made, is_all = asyncio.run(work.next_turn(pieces, inline=True))
            found.append(len(made))
        return found

    monkeypatch.setattr(samples, "TURN_SECONDS", 1000)
    assert turns(2**18 - 1, 1, 2**17, 2**17, 2**18, 5, 7) == [2**18, 2**18, 2**18, 12]
    monkeypatch.setattr(samples, "TURN_SECONDS", -1)
    assert turns(1, 2, 3) == [1, 2, 3, 0]


def test_samples_that_are_asked_for_are_spent(tmp_path: Path) -> None:
    app = app_of(
        WGAN_MODEL=str(make_artifact(tmp_path / "artifact", "rows")), WGAN_SAMPLES_PER_SECOND=1
    )

    async def ask(client: httpx.AsyncClient) -> None:
        rows = {"rows": [{"age": 40}] * 3}
        assert (await client.post("/v1/imputations", json=rows)).status_code == 200
        for path, body in (("imputations", rows), ("samples", {"count": 1})):
            is_problem(await client.post(f"/v1/{path}", json=body), 429)
        told = (await client.get("/metrics")).text
        assert 'wgan_samples_total{model="artifact",role="champion"} 3.0' in told

    talk(app, ask)


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        ({"count": 1}, {"count": 0}),
        ({"count": 100_000}, {"count": 100_001}),
        ({"seed": 0}, {"seed": -1}),
        ({"seed": 2**63 - 1}, {"seed": 2**63}),
        ({"truncation": 0.001}, {"truncation": 0}),
        ({"truncation": 5}, {"truncation": 5.01}),
        ({"latents": [[0.0]] * 1024}, {"latents": [[0.0]] * 1025}),
        ({"latents": [[0.0]]}, {"latents": []}),
        ({"latents": [[0.0] * 4096]}, {"latents": [[0.0] * 4097]}),
        ({"latents": [[100.0, -100.0]]}, {"latents": [[100.5]]}),
        ({"latents": [[100.0, -100.0]]}, {"latents": [[-100.5]]}),
        ({"interpolation": {"to": 1, "at": [0]}}, {"interpolation": {"to": 1, "at": []}}),
        ({"interpolation": {"to": 1, "at": [0, 1]}}, {"interpolation": {"to": 1, "at": [-0.01]}}),
        ({"interpolation": {"to": 1, "at": [0, 1]}}, {"interpolation": {"to": 1, "at": [1.01]}}),
        (
            {"interpolation": {"to": 1, "at": [0.5] * 1024}},
            {"interpolation": {"to": 1, "at": [0.5] * 1025}},
        ),
        ({"where": {"a": 1}}, {"where": {}}),
        ({"where": {"a": [*range(1024)]}}, {"where": {"a": [*range(1025)]}}),
        (
            {"where": {"a": {"one_of": [1] * 1000, "none_of": [2] * 24, "above": 3}}},
            {"where": {"a": {"one_of": [1] * 1000, "none_of": [2] * 25}}},
        ),
        ({"where": {"a": "x" * 1000}}, {"where": {"a": "x" * 1001}}),
        ({"where": {"x" * 1000: 1}}, {"where": {"x" * 1001: 1}}),
        ({"where": {"a": {"none_of": [2**64 - 1]}}}, {"where": {"a": {"none_of": [2**64]}}}),
        ({"where": {"a": {"above": 1 - 2**64}}}, {"where": {"a": {"above": -(2**64)}}}),
        ({"where": {"a": {"below": "x"}}}, {"where": {"a": {"below": "x" * 1001}}}),
    ],
)
def test_what_is_asked_for_is_bounded_where_the_docs_say(
    within: dict[str, Any], beyond: dict[str, Any]
) -> None:
    assert SamplesRequest.model_validate(within).model_fields_set == within.keys()
    with pytest.raises(ValidationError):
        SamplesRequest.model_validate(beyond)


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


@pytest.mark.parametrize(
    "body",
    [{"latents": [[0.5] * 4, [0.0] * 4]}, {"seed": 3, "interpolation": {"to": 1, "at": [0.5, 1]}}],
)
def test_what_has_a_number_of_its_own_goes_with_the_default_count(
    image: Server, body: dict[str, object]
) -> None:
    """Generated clients send every default; null is as good as left out."""
    expected = image.samples(**body, format="npz")
    assert len(read_npz(expected)) == 2
    defaults = {"class": None, "truncation": None, "where": None, "refine": False, "model": None}
    for count in (1, 2):
        sent = image.samples(**{"seed": None, **defaults, **body}, count=count, format="npz")
        assert sent.content == expected.content
