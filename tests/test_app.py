"""`create_app`: a service made from settings, in this process; nothing is made by importing."""

import asyncio
import gc
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic as clock
from typing import Any, ClassVar
from urllib.parse import unquote

import httpx
import pytest
from pydantic import BaseModel, RootModel, field_validator
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message

from models.artifact import load_artifact
from service import endpoint
from service.app import App, create_app
from service.endpoint import (
    LARGE_BODY,
    Context,
    Endpoint,
    json_content,
    model_headers,
    parse_json,
    read_json,
)
from service.endpoints import ENDPOINTS
from service.limits import SMALL_BODY
from service.openapi import TEXT
from service.problems import BadRequest
from service.served import Served
from service.settings import Settings
from tests.artifacts import make_artifact
from tests.attacks import KEYS, bearer, line
from tests.servers import is_problem


def made(**settings: object) -> App:
    return create_app(Settings.read(**settings))


def talk(app: App, ask: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Start an app, let ``ask`` speak to it over ASGI once it is ready."""

    async def run() -> None:
        await app.start()
        await asyncio.to_thread(app.context.holders.champions_tried.wait, 60)
        transport = httpx.ASGITransport(app.surround(app.routes))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await ask(client)

    asyncio.run(run())


def test_an_app_that_starts_says_who_may_ask_and_counts_from_0(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = made(WGAN_MODEL=str(make_artifact(tmp_path / "artifact", "vector")))

    async def ask(client: httpx.AsyncClient) -> None:
        told = (await client.get("/metrics")).text
        assert "wgan_worker_starts_total 1.0" in told
        for reason in ("schema", "unknown_path"):
            assert f'wgan_rejections_total{{reason="{reason}"}} 0.0' in told
        assert (await client.get("/v1/models/")).status_code == 404, "only the exact path is known"
        assert (await client.post("/v1/samples", json={"count": 0})).status_code == 400
        told = (await client.get("/metrics")).text
        assert 'wgan_rejections_total{reason="schema"} 1.0' in told

    talk(app, ask)
    assert "anybody may ask" in caplog.text


@pytest.mark.parametrize("kind", ["image", "vector"])
def test_an_app_serves_the_model_of_its_settings(tmp_path: Path, kind: str) -> None:
    artifact = make_artifact(tmp_path / "artifact", kind)
    app = made(WGAN_MODEL=str(artifact))
    assert not app.is_ready

    async def ask(client: httpx.AsyncClient) -> None:
        assert app.is_ready
        answer = await client.post("/v1/samples", json={"count": 5, "seed": 7, "format": "json"})
        expected = load_artifact(artifact).sample(seed=7, count=5)
        assert answer.json()["samples"] == expected.tolist()
        scores = await client.post("/v1/scores", json={"samples": answer.json()["samples"]})
        assert len(scores.json()["scores"]) == 5
        told = (await client.get("/metrics")).text
        assert 'wgan_scores_total{model="artifact",role="champion"} 5.0' in told

    talk(app, ask)


def test_two_apps_in_one_process_share_nothing(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("")
    one = made(WGAN_MODEL=str(make_artifact(tmp_path / "one", seed=1)), WGAN_DRIFT_WINDOW=50)
    other = made(WGAN_MODEL=str(tmp_path / "none"), WGAN_API_KEYS_FILE=str(keys))

    async def ask_one(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/samples", json={"count": 3})).status_code == 200
        assert (await client.get("/v1/drift")).status_code == 200

    async def ask_other(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/samples", json={"count": 3})).status_code == 401
        told = (await client.get("/metrics")).text
        assert 'wgan_model_ready{model="none"} 0.0' in told
        assert "wgan_samples_total{" not in told

    talk(one, ask_one)
    talk(other, ask_other)


def test_an_endpoint_is_added_by_a_line(tmp_path: Path) -> None:
    async def get_greeting(context: Context, request: Request) -> Response:
        return JSONResponse(context.settings.drift_window)

    operation = {"summary": "Greet", "responses": TEXT}
    added = Endpoint("GET", "/v1/greeting", get_greeting, operation)
    ENDPOINTS.append(added)
    try:
        app = made(WGAN_MODEL=str(tmp_path / "none"), WGAN_DRIFT_WINDOW=60)

        async def ask(client: httpx.AsyncClient) -> None:
            assert (await client.get("/v1/greeting")).json() == 60
            description = (await client.get("/docs.json")).json()
            assert description["paths"]["/v1/greeting"]["get"] == operation
            told = (await client.get("/metrics")).text
            assert 'wgan_requests_total{endpoint="/v1/greeting",model="",status="200"} 1.0' in told

        talk(app, ask)
        assert ("GET", "/v1/greeting") in app.direct()
    finally:
        ENDPOINTS.remove(added)


def test_importing_makes_nothing() -> None:
    """The environment's settings are read by service/entry.py alone."""
    code = "import service.app, service.server, service.endpoints, service.protocol"
    bad = {"WGAN_DRIFT_WINDOW": "abc", "WGAN_MAX_IN_FLIGHT": "abc", "PATH": ""}
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=bad, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["digits", "модель", "höhe", "50% off", "a\nSet-Cookie: b", "模型"]
)
def test_any_registry_name_can_be_sent_in_a_header(tmp_path: Path, name: str) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact"))
    served = Served(model, f"{name}@3", "champion", None, 0.0)
    sent = Response(headers=model_headers(served)).headers["x-model-version"]
    assert sent.isascii()
    assert sent.isprintable()
    assert unquote(sent) == served.version
    assert sent == served.version or name != "digits"


class Noted(BaseModel):
    """A body that notes how it is read."""

    text: str
    by: ClassVar[list[tuple[bool, bool]]] = []
    """Whether it was the event loop's thread, and whether garbage was collected meanwhile."""

    @field_validator("text")
    @classmethod
    def note(cls, text: str) -> str:
        cls.by.append((threading.current_thread() is threading.main_thread(), gc.isenabled()))
        return text


def body_of(size: int) -> bytes:
    return b'{"text": "%s"}' % (b"x" * (size - 12))


def request_with(body: bytes, media_type: str) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(
        {"type": "http", "headers": [(b"content-type", media_type.encode())]}, receive
    )  # fmt: skip


def test_a_large_body_is_read_beside_the_loop_and_a_very_large_one_alone(tmp_path: Path) -> None:
    context = made(WGAN_MODEL=str(tmp_path / "none")).context
    Noted.by.clear()

    async def read() -> None:
        for size in (100, SMALL_BODY, SMALL_BODY + 1, LARGE_BODY, LARGE_BODY + 1):
            assert len(body_of(size)) == size
            found = await read_json(context, request_with(body_of(size), "application/json"), Noted)
            assert len(found.text) == size - 12
            async with context.turn(bytes(size)):
                assert context.one_large.must_wait is (size > LARGE_BODY)
        assert not context.one_large.must_wait

    asyncio.run(read())
    assert Noted.by == [(True, True), (True, True), (False, True), (False, True), (False, False)]
    assert gc.isenabled()
    with pytest.raises(BadRequest, match="not JSON"):
        parse_json(b"x" * (LARGE_BODY + 1), Noted)
    assert gc.isenabled()


def test_json_says_what_it_is_and_is_not_all_that_python_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for media_type in ("application/json", "Application/JSON ; charset=utf-8"):
        assert asyncio.run(json_content(request_with(b"1", media_type))) == b"1"
    for media_type in ("", "text/json", "charset=utf-8; application/json"):
        with pytest.raises(HTTPException, match="application/json, or what else") as caught:
            asyncio.run(json_content(request_with(b"1", media_type), ", or what else"))
        assert caught.value.status_code == 415
    with pytest.raises(BadRequest) as refused:
        parse_json(b'{"text": 3}', Noted)
    assert [error["path"] for error in refused.value.errors] == ["/text"]
    monkeypatch.setattr(endpoint, "MAX_LISTS", 3)
    monkeypatch.setattr(endpoint, "MAX_OBJECTS", 2)
    anything = RootModel[Any]
    for content, says in (
        (b"[[[]]]", None),
        (b"[[[[]]]]", "over 3 lists, or 2 objects"),
        (b"[{}, {}]", None),
        (b"[{}, {}, {}]", "over 3 lists, or 2 objects"),
        (b"NaN", "the body is not JSON"),
        (b"[Infinity]", "the body is not JSON"),
        (b"{", "the body is not JSON"),
    ):
        if says is None:
            assert parse_json(content, anything).root == json.loads(content)
            continue
        with pytest.raises(BadRequest, match=says):
            parse_json(content, anything)


def test_a_query_names_what_the_endpoint_takes_once_each(tmp_path: Path) -> None:
    app = made(WGAN_MODEL=str(make_artifact(tmp_path / "artifact", "vector")))

    async def ask(client: httpx.AsyncClient) -> None:
        version = (await client.get("/v1/model")).json()["version"]
        for query, wrong in (
            ("", {}),
            (f"model={version}", {}),
            ("modle=champion", {"/modle": "is no parameter of this endpoint"}),
            ("model=champion&model=champion", {"/model": "is given twice"}),
            ("model=", {"/model": "should have 1 to 4000 characters"}),
            (f"model={'a' * 4001}", {"/model": "should have 1 to 4000 characters"}),
            ("a=1&b=2&a=3", dict.fromkeys(("/a", "/b"), "is no parameter of this endpoint")),
        ):
            answer = await client.get(f"/v1/model?{query}")
            assert answer.status_code == (400 if wrong else 200)
            if wrong:
                errors = is_problem(answer, 400)["errors"]
                assert isinstance(errors, list)
                assert {error["path"]: error["message"] for error in errors} == wrong
        for name in ("a", "a" * 4000):
            is_problem(await client.get(f"/v1/model?model={name}"), 404)
        # Of an endpoint whose description names no parameters too; of probes nothing is checked.
        is_problem(await client.get("/v1/models?model=champion"), 400)
        assert (await client.get("/metrics?a=1")).status_code == 200

    talk(app, ask)


def test_samples_count_against_their_caller_s_rate(tmp_path: Path) -> None:
    app = made(
        WGAN_MODEL=str(make_artifact(tmp_path / "artifact", "vector")), WGAN_SAMPLES_PER_SECOND="1"
    )

    async def ask(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/samples", json={"count": 1000})).status_code == 200
        refused = await client.post("/v1/samples", json={"count": 1})
        is_problem(refused, 429)
        assert 900 < int(refused.headers["retry-after"]) <= 1000

    talk(app, ask)


def test_the_record_of_a_model_tells_what_its_artifact_says(tmp_path: Path) -> None:
    """But for its history, classes that the model has not seen, and the folder of its data."""
    artifact = make_artifact(
        tmp_path / "artifact", class_counts={"a": 3, "b": 0, "c": 4}, data={"source": "x/cats.npy"}
    )
    model = load_artifact(artifact)

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/model")
        found = answer.json()
        assert answer.headers["x-model-version"] == found["version"] == model.digest[:12]
        assert answer.headers["x-constraint"] == "gradient_penalty"
        assert found["role"] == "champion"
        assert found["digest"] == model.digest
        assert found["shape"] == [1, 8, 8]
        assert found["score_percentiles"] == model.quantiles[::10].tolist()
        assert len(found["score_percentiles"]) == 101
        assert found["detector"] is None
        assert found["data"]["classes"] == ["a", "c"]
        assert found["data"]["class_counts"] == [3, 4]
        assert found["data"]["source"] == "test"
        assert found["config"]["data"]["source"] == "cats.npy"
        assert "history" not in found
        assert found["results"] == model.run.results.model_dump(mode="json")

    talk(made(WGAN_MODEL=str(artifact)), ask)


def test_a_picture_is_sent_to_those_who_do_not_have_it(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", "vector")

    async def ask(client: httpx.AsyncClient) -> None:
        whole = await client.get("/v1/model/samples.png")
        tag = whole.headers["etag"]
        assert whole.content == (artifact / "samples.png").read_bytes()
        assert whole.headers["content-type"] == "image/png"
        assert tag == f'"{load_artifact(artifact).digest}"'
        for named, has_it in (
            (tag, True),
            (f"W/{tag}", True),
            (f'"other", W/{tag}', True),
            ("*", True),
            ('"other"', False),
            (tag.strip('"'), False),
            ("", False),
        ):
            answer = await client.get("/v1/model/samples.png", headers={"if-none-match": named})
            assert answer.status_code == (304 if has_it else 200)
            assert answer.content == (b"" if has_it else whole.content)
            for name in ("etag", "x-model-version", "cache-control", "vary"):
                assert answer.headers[name] == whole.headers[name]
        assert (whole.headers["cache-control"], whole.headers["vary"]) == ("no-cache", "Accept")
        accept = {"accept": "application/octet-stream"}
        answer = await client.get("/v1/model/samples.png", headers=accept)
        assert answer.headers["content-type"] == accept["accept"]
        is_problem(await client.get("/v1/model/samples.png?model=other"), 404)
        listed = (await client.get("/v1/models")).json()
        assert (listed["names"], listed["models"]) == (["artifact"], [])
        assert [row["role"] for row in listed["serving"]] == ["champion"]

    talk(made(WGAN_MODEL=str(artifact)), ask)


def test_drift_is_told_of_a_full_window(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", "vector")
    far = load_artifact(artifact).sample(seed=1, count=50) * 100

    async def ask(client: httpx.AsyncClient) -> None:
        few = (await client.get("/v1/drift")).json()
        assert (few["window"], few["items"], few["level"]) == (50, 0, 0.99)
        assert few["distance"] is few["drifted"] is few["lower_bound"] is None
        assert (await client.post("/v1/scores", json={"samples": far.tolist()})).status_code == 200
        answer = await client.get("/v1/drift")
        found = answer.json()
        assert answer.headers["x-model-version"] == found["version"]
        assert found["items"] == 50
        assert found["distance"] > found["threshold"] == few["threshold"]
        assert found["drifted"] is True
        is_problem(await client.get("/v1/drift?model=other"), 404)
        served = app.context.holders.of("artifact").require(None)
        app.context.windows._file(served).write_bytes(b"cut off")
        told = is_problem(await client.get("/v1/drift"), 503)
        assert "the recent scores cannot be read" in str(told["detail"])

    app = made(WGAN_MODEL=str(artifact), WGAN_DRIFT_WINDOW=50)
    talk(app, ask)

    async def ask_without(client: httpx.AsyncClient) -> None:
        assert "WGAN_DRIFT_WINDOW" in str(is_problem(await client.get("/v1/drift"), 404)["detail"])

    talk(made(WGAN_MODEL=str(artifact)), ask_without)


def test_a_worker_among_others_accepts_nothing_before_its_models_were_tried(
    tmp_path: Path,
) -> None:
    artifact = make_artifact(tmp_path / "artifact", "vector")

    async def start(workers: int) -> bool:
        app = made(WGAN_MODEL=str(artifact), WGAN_WORKERS=workers)
        await app.start()
        was_tried = app.context.holders.champions_tried.is_set()
        await asyncio.to_thread(app.context.holders.champions_tried.wait, 60)
        assert app.is_ready
        return was_tried

    assert [asyncio.run(start(workers)) for workers in (1, 2)] == [False, True]


def test_a_request_is_refused_for_its_key_then_its_model_then_its_query(tmp_path: Path) -> None:
    """Through the routes, and past the router."""
    keys = tmp_path / "keys"
    keys.write_text(line("all", KEYS["all"], "samples") + line("nobody", KEYS["nobody"], "scores"))
    artifact = make_artifact(tmp_path / "artifact", "vector")
    app = made(WGAN_MODEL=str(artifact), WGAN_API_KEYS_FILE=str(keys))

    async def ask(client: httpx.AsyncClient) -> None:
        direct = httpx.ASGITransport(app.direct()["POST", "/v1/samples"])
        async with httpx.AsyncClient(transport=direct, base_url="http://test") as past:
            for path, key, query, status in (
                ("/v1/models/other/samples", {}, {"a": "1"}, 401),
                ("/v1/models/other/samples", bearer("nobody"), {"a": "1"}, 403),
                ("/v1/models/other/samples", bearer("all"), {"a": "1"}, 404),
                ("/v1/models/artifact/samples", bearer("all"), {"a": "1"}, 400),
                ("/v1/samples", {}, {}, 401),
                ("/v1/samples", bearer("nobody"), {}, 403),
                ("/v1/samples", bearer("all"), {"a": "1"}, 400),
                ("/v1/samples", bearer("all"), {}, 200),
            ):
                for one in (client, past) if path == "/v1/samples" else (client,):
                    answer = await one.post(path, headers=key, params=query, json={"count": 2})
                    assert answer.status_code == status
                    assert answer.headers["x-request-id"]
                    if status != 200:
                        is_problem(answer, status)

    talk(app, ask)


def test_a_server_that_is_told_to_end_is_unready_for_a_while_first(tmp_path: Path) -> None:
    """And ends at once when it is told again."""
    artifact = make_artifact(tmp_path / "artifact", "vector")
    stopped = list[tuple[float, int]]()
    before = signal.signal(signal.SIGTERM, lambda number, _: stopped.append((clock(), number)))
    own = signal.getsignal(signal.SIGTERM)

    async def drain(seconds: str, again: bool) -> float:
        signal.signal(signal.SIGTERM, own)
        stopped.clear()
        app = made(WGAN_MODEL=str(artifact), WGAN_DRAIN_SECONDS=seconds)
        await app.start()
        await asyncio.to_thread(app.context.holders.champions_tried.wait, 60)
        assert app.is_ready
        assert (signal.getsignal(signal.SIGTERM) is own) is (seconds == "0")
        began = clock()
        signal.raise_signal(signal.SIGTERM)
        if seconds != "0":
            assert app.is_leaving
            assert not app.is_ready
            assert not stopped
        if again:
            signal.raise_signal(signal.SIGTERM)
        while not stopped:
            await asyncio.sleep(0.01)
        ((ended, number),) = stopped
        assert number == signal.SIGTERM
        return ended - began

    try:
        assert asyncio.run(drain("0.1", False)) >= 0.1
        asyncio.run(drain("1000", True))
        asyncio.run(drain("0", False))
    finally:
        signal.signal(signal.SIGTERM, before)
