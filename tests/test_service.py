"""The service: a real server in a process of its own, spoken to over HTTP."""

import asyncio
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.artifact import SERVED, load_artifact
from service.exchange import exchange_of
from service.keys import Keys
from service.limits import MAX_BODY, Guard
from service.room import size_of
from tests.artifacts import make_artifact
from tests.servers import (
    WGAN,
    Server,
    families,
    free_port,
    is_problem,
    raw,
    running,
    serving,
    spoil_checksum,
    spoil_weights,
    wait_for,
)


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


def test_metrics_tell_of_the_model_and_its_work(image: Server) -> None:
    before = families(image)
    image.samples(count=11)
    image.client.post("/v1/scores", json={"samples": image.model.sample(0, 3).tolist()})
    after = families(image)
    ((labels, _),) = after["wgan_model_info"]
    assert labels["constraint"] == "gradient_penalty"
    assert labels["version"] == image.model.digest[:12]
    assert labels["data_sha256"] == image.model.run.data.sha256
    figure = {"model": "artifact", "role": "champion", "metric": "precision", "extractor": ""}
    assert after["wgan_quality"] == [(figure, 0.5)]
    assert after["wgan_quality_floor"] == [(figure, 0.9)]
    assert after["wgan_model_ready"] == [({"model": "artifact"}, 1.0)]
    assert after["wgan_models_bytes"] == [({}, size_of(image.artifact))]

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
        image.client.post(f"/v1/models/stranger-{i}/samples", json={})
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
    with Server("vector", tmp_path).running(supervised=True) as second:
        second.samples(count=5, format="npz")
        labels = {"model": "artifact", "role": "champion"}
        assert families(second)["wgan_samples"][0] == (labels, 5.0)
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


def test_a_body_that_comes_too_slowly_is_the_client_s_408(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it has no whole body")

    monkeypatch.setattr("service.limits.TIMEOUT", 0.05)
    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(Guard(app, Keys(None))(scope, receive, send))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


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

        await Guard(late, Keys(None))(scope, receive, send)

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    monkeypatch.setattr("service.limits.TIMEOUT", 0.05)
    asyncio.run(ask())
    assert sent == ["http.response.start"]
    assert exchange_of(scope).status == 504


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
    with running(serving(artifact, port), port, tmp_path / "log"):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(300):
                if "no model is served" in (tmp_path / "log").read_text():
                    break
                time.sleep(0.1)
            assert client.get("/livez").status_code == 200
            is_problem(client.get("/readyz"), 503)
            response = client.post("/v1/samples", json={})
            assert "could not be loaded" in str(is_problem(response, 503)["detail"])
            assert response.headers["retry-after"]
            is_problem(client.get("/v1/model"), 503)
            assert 'wgan_model_ready{model="artifact"} 0.0' in client.get("/metrics").text
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
    command = [WGAN, "serve", "tiny@champion", "--port", port]
    cache = tmp_path / "cache"
    cache.mkdir()
    with running(command, port, tmp_path / "log", WGAN_CACHE=str(cache)) as process:
        wait_for(f"http://127.0.0.1:{port}/readyz", process, tmp_path / "log")
        response = httpx.post(f"http://127.0.0.1:{port}/v1/samples", json={})
        assert response.headers["x-model-version"] == "tiny@1"
        (kept,) = cache.glob("models/*/1")
        assert (
            load_artifact(kept, needed=SERVED).digest
            in httpx.get(f"http://127.0.0.1:{port}/v1/model").text
        )


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
