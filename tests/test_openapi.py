"""The description says all that clients are made from, and the service keeps to it."""

from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from service.endpoint import MAX_NAME, Context, Endpoint, choose_model
from service.endpoints import ENDPOINTS
from service.openapi import describe
from tests.artifacts import make_artifact
from tests.attacks import line
from tests.servers import is_problem
from tests.test_app import made, talk


def operations() -> dict[tuple[str, str], dict[str, object]]:
    paths = describe(ENDPOINTS)["paths"]
    return {(path, method): o for path, found in paths.items() for method, o in found.items()}


def test_each_operation_has_what_a_client_is_made_from() -> None:
    description = describe(ENDPOINTS)
    assert description["servers"]
    tags = {tag["name"] for tag in description["tags"]}
    found = operations()
    for place, operation in found.items():
        assert str(operation["operationId"]).isidentifier(), place
        assert operation["description"], place
        assert operation["tags"], place
        assert set(operation["tags"]) <= tags, place  # type: ignore[call-overload]
    assert len({operation["operationId"] for operation in found.values()}) == len(found)


def test_of_several_models_only_paths_with_a_name_are_described() -> None:
    by_name = "/v1/models/{name}/samples"
    for names, paths in (([], 2), (["a"], 2), (["a", "b"], 1)):
        found = describe(ENDPOINTS, names=names)["paths"]
        assert by_name in found
        assert ("/v1/samples" in found) is (paths == 2)
        assert "/v1/models" in found, "it is of no one model"
        named = found[by_name]["post"]
        assert named["operationId"] == "generateSamplesByName"
        assert named["summary"] == "Generate samples, of the model of this name"
        name, *others = named["parameters"]
        assert (name["name"], name["in"], name["required"]) == ("name", "path", True)
        assert name["schema"] == {
            "type": "string", "minLength": 1, **({"enum": names} if names else {})
        }  # fmt: skip
        assert others == []
        imputed = found["/v1/models/{name}/imputations"]["post"]["parameters"]
        assert [p["name"] for p in imputed] == ["name", "seed", "format", "model"]
    # An endpoint without a description answers, and is left out.
    hidden = Endpoint("GET", "/hidden", ENDPOINTS[0].handle)
    assert "/hidden" not in describe([*ENDPOINTS, hidden])["paths"]


def test_a_key_is_described_where_one_is_needed() -> None:
    for place, operation in operations().items():
        assert "security" not in operation, place
    paths = describe(ENDPOINTS, lambda path: path == "/v1/scores")["paths"]
    with_key = {
        path for path, found in paths.items() if any("security" in o for o in found.values())
    }
    assert with_key == {"/v1/scores", "/v1/models/{name}/scores"}
    assert paths["/v1/scores"]["post"]["security"] == [{"key": []}]


def test_every_answer_is_described_with_its_headers_and_its_content() -> None:
    description = describe(ENDPOINTS)
    schemas = description["components"]["schemas"]
    assert schemas["Problem"]["properties"].keys() >= {"type", "title", "status", "detail"}
    for place, operation in operations().items():
        answers = operation["responses"]
        assert isinstance(answers, dict)
        for status, answer in answers.items():
            assert answer["description"], (place, status)
            if status >= "400":
                problem = answer["content"]["application/problem+json"]["schema"]
                assert problem == {"$ref": "#/components/schemas/Problem"}
                assert answer["headers"].keys() == {"X-Model-Version"}
    scores = description["paths"]["/v1/scores"]["post"]["responses"]["200"]
    assert scores["headers"].keys() == {"X-Model-Version", "X-Constraint"}
    assert scores["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/Scores"}}
    }
    (model,) = description["paths"]["/v1/scores"]["post"]["parameters"]
    assert model["schema"] == {"type": "string", "minLength": 1, "maxLength": MAX_NAME}
    for probe in ("/livez", "/readyz"):
        answers = description["paths"][probe]["get"]["responses"]
        assert [*answers] == ["200", "408", "413", "429", "431", "503", "504"]
    answers = description["paths"]["/metrics"]["get"]["responses"]
    assert [*answers] == ["200", "401", "403", "408", "413", "429", "431", "503", "504"]
    listing = description["paths"]["/v1/models"]["get"]["responses"]["200"]
    assert "headers" not in listing, "it is of no one model"


def test_unknown_parameters_of_the_query_are_400(tmp_path: Path) -> None:
    """Ignored, `?model=challenger` would be taken for obeyed."""
    app = made(WGAN_MODEL=str(make_artifact(tmp_path / "artifact")), WGAN_DRIFT_WINDOW=50)

    async def ask(client: httpx.AsyncClient) -> None:
        asked = 0
        for endpoint in ENDPOINTS:
            if not endpoint.path.startswith("/v1/"):
                continue
            body: dict[str, object] | None = {} if endpoint.method == "POST" else None
            query = {"modell": "challenger", "x" * 1000: "y"}
            wrong = await client.request(endpoint.method, endpoint.path, params=query, json=body)
            errors = is_problem(wrong, 400)["errors"]
            assert isinstance(errors, list)
            assert [error["path"] for error in errors] == ["/modell", "/" + "x" * 100]
            asked += 1
        assert asked > 6
        # A POST with a JSON body names its model there.
        is_problem(await client.post("/v1/samples?model=champion", json={}), 400)
        assert (await client.get("/v1/model?model=champion")).status_code == 200
        # What a scraper or a browser adds does no harm.
        for path in ("/metrics?x=1", "/page.js?v=2", "/?from=mail"):
            assert (await client.get(path)).status_code == 200

    talk(app, ask)


def test_errors_name_the_model_that_was_to_answer(tmp_path: Path) -> None:
    async def fail(context: Context, request: Request) -> Response:
        choose_model(context, request, None)
        raise RuntimeError

    by_name = "/v1/models/{name}/failure"
    ENDPOINTS.append(Endpoint("GET", "/v1/failure", fail, by_name=by_name))
    try:
        app = made(WGAN_MODEL=str(make_artifact(tmp_path / "artifact", "vector")))
    finally:
        ENDPOINTS.pop()

    async def ask(client: httpx.AsyncClient) -> None:
        good = await client.post("/v1/samples", json={"format": "json"})
        version = good.headers["x-model-version"]
        files = [("files", ("a.npy", b"no array"))]
        for status, answer in (
            (422, await client.post("/v1/samples", json={"format": "png"})),
            (422, await client.post("/v1/scores", json={"samples": [[1, 2, 3]]})),
            (415, await client.post("/v1/scores", files=files)),
            (422, await client.post("/v1/imputations", json={"rows": [{"a": 1}]})),
            (500, await client.get("/v1/failure")),
        ):
            is_problem(answer, status)
            assert answer.headers["x-model-version"] == version
        for status, body in ((400, {"count": 0}), (404, {"model": "none"})):
            answer = await client.post("/v1/samples", json=body)
            is_problem(answer, status)
            assert "x-model-version" not in answer.headers
        pinned = await client.post("/v1/samples", json={"format": "json", "model": version})
        assert pinned.headers["x-model-version"] == version

    talk(app, ask)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "image/png"),
        ("*/*", "image/png"),
        ("image/avif,image/*;q=0.8", "image/png"),
        ("application/octet-stream", "application/octet-stream"),
    ],
)
def test_the_picture_comes_as_bytes_to_clients_that_know_no_pictures(
    tmp_path: Path, accept: str | None, media_type: str
) -> None:
    app = made(WGAN_MODEL=str(make_artifact(tmp_path / "artifact")))

    async def ask(client: httpx.AsyncClient) -> None:
        headers = {} if accept is None else {"accept": accept}
        answer = await client.get("/v1/model/samples.png", headers=headers)
        assert answer.headers["content-type"] == media_type
        assert answer.content.startswith(b"\x89PNG")
        assert answer.headers["vary"] == "Accept"

    talk(app, ask)


def test_what_asks_about_the_service_itself_is_neither_counted_nor_kept_from_bentoml(
    tmp_path: Path,
) -> None:
    app = made(WGAN_MODEL=str(tmp_path / "none"))

    async def ask(client: httpx.AsyncClient) -> None:
        for path, media_type in (
            ("/docs", "text/html; charset=utf-8"),
            ("/docs.json", "application/json"),
            ("/metrics", "text/plain; version=1.0.0; charset=utf-8"),
            ("/", "text/html; charset=utf-8"),
            ("/page.css", "text/css; charset=utf-8"),
            ("/page.js", "text/javascript; charset=utf-8"),
        ):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == media_type
        told = (await client.get("/metrics")).text
        assert told.count('wgan_requests_total{endpoint="/') == 3
        assert 'wgan_requests_total{endpoint="/page.js",model="",status="200"} 1.0' in told

    talk(app, ask)
    assert ("GET", "/page.js") in app.direct()
    assert not app.direct().keys() & {("GET", path) for path in ("/docs", "/docs.json", "/metrics")}


def test_metrics_need_a_key_once_some_key_is_for_them(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line("a", "1", "samples"))
    app = made(WGAN_MODEL=str(tmp_path / "none"), WGAN_API_KEYS_FILE=str(keys))

    async def ask(client: httpx.AsyncClient) -> None:
        async def status(key: str = "") -> int:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return (await client.get("/metrics", headers=headers)).status_code

        assert await status() == 200
        keys.write_text(keys.read_text() + line("b", "2", "metrics"))
        assert [await status(), await status("1"), await status("2")] == [401, 403, 200]

    talk(app, ask)
