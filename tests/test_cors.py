"""CORS: pages of the origins that are allowed, and of no others, may read answers."""

from pathlib import Path

import httpx
import pytest

from models.errors import ConfigError
from service.app import App
from service.settings import Settings
from tests.artifacts import make_artifact
from tests.attacks import KEYS, bearer, line
from tests.servers import is_problem
from tests.test_app import made, talk

PAGE, OTHER = "https://page.example", "https://other.example"


@pytest.fixture
def app(tmp_path: Path) -> App:
    keys = tmp_path / "keys"
    keys.write_text(line("all", KEYS["all"], "samples,scores"))
    return made(
        WGAN_MODEL=str(make_artifact(tmp_path / "artifact")),
        WGAN_API_KEYS_FILE=str(keys),
        WGAN_CORS_ORIGINS=f"http://127.0.0.1:8080, {PAGE.upper()}",
    )


def test_a_page_asks_first(app: App) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        for origin, method, sent, status in (
            (PAGE, "POST", "authorization,content-type,x-request-id", 200),
            ("http://127.0.0.1:8080", "GET", "authorization", 200),
            (OTHER, "POST", "authorization", 400),
            (PAGE + ".evil.example", "POST", "authorization", 400),
            ("null", "POST", "authorization", 400),
            (PAGE, "DELETE", "authorization", 400),
            (PAGE, "POST", "cookie", 400),
        ):
            headers = {
                "origin": origin,
                "access-control-request-method": method,
                "access-control-request-headers": sent,
            }
            answer = await client.options("/v1/samples", headers=headers)
            allowed = answer.headers.get("access-control-allow-origin")
            assert "access-control-allow-credentials" not in answer.headers
            if status == 200:
                assert (answer.status_code, allowed) == (200, origin)
                assert method in answer.headers["access-control-allow-methods"]
            else:
                is_problem(answer, status)
        told = (await client.get("/metrics")).text
        assert "wgan_requests_total{" not in told, "nobody has asked for samples yet"
        assert 'wgan_rejections_total{reason="schema"} 0.0' in told
        assert (await client.options("/v1/samples", headers={"origin": PAGE})).status_code == 401
        told = (await client.get("/metrics")).text
        counted = 'wgan_requests_total{endpoint="/v1/samples",model="artifact",status="401"} 1.0'
        assert counted in told
        asking = {"origin": PAGE, "access-control-request-method": "GET"}
        answer = await client.get("/v1/models", headers={**bearer("all"), **asking})
        assert answer.status_code == 200
        told = (await client.get("/metrics", headers=bearer("all"))).text
        assert 'wgan_requests_total{endpoint="/v1/models",model="",status="200"} 1.0' in told

    talk(app, ask)


def test_a_page_reads_answers_and_errors(app: App) -> None:
    key = bearer("all")

    async def ask(client: httpx.AsyncClient) -> None:
        for status, headers, body in (
            (200, key, {"count": 1}),
            (401, {}, {"count": 1}),
            (400, key, {"count": 0}),
        ):
            for origin in (PAGE, OTHER, None):
                named = {} if origin is None else {"origin": origin}
                answer = await client.post("/v1/samples", headers={**headers, **named}, json=body)
                assert answer.status_code == status
                allowed = answer.headers.get("access-control-allow-origin")
                assert allowed == (PAGE if origin == PAGE else None)
                assert "Origin" in answer.headers["vary"], "caches must tell origins apart"
        answer = await client.post("/v1/samples", headers={**key, "origin": PAGE}, json={})
        told = answer.headers["access-control-expose-headers"].lower()
        for name in ("x-model-version", "x-constraint", "x-seed", "x-request-id"):
            assert name in told
            assert name in answer.headers

    talk(app, ask)


@pytest.mark.parametrize("origins", ["*", "page.example", "https://a.example/", "https://*.a.b"])
def test_an_origin_that_no_browser_sends_is_told(origins: str) -> None:
    with pytest.raises(ConfigError, match="write origins such as"):
        Settings.read(WGAN_CORS_ORIGINS=origins)
