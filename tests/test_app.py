"""`create_app`: a service made from settings, in this process; nothing is made by importing."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.artifact import load_artifact
from service.app import App, create_app
from service.endpoint import Context, Endpoint, model_headers
from service.endpoints import ENDPOINTS
from service.openapi import TEXT
from service.served import Served
from service.settings import Settings
from tests.artifacts import make_artifact


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
