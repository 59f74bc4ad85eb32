"""The Python client and the commands of docs/service.md, against real servers."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.images import encode_png
from service.client import (
    BadRequestError,
    BusyError,
    Client,
    ForbiddenError,
    LimitError,
    NotFoundError,
    Origin,
    ServiceError,
    TooLargeError,
    TooSlowError,
    UnauthorizedError,
    UndecodableError,
    UnreachableError,
    UnsuitableError,
)
from service.limits import MAX_BODY
from tests.code_blocks import shell, to_run
from tests.servers import ROOT, Server, free_port, running, serving
from tests.test_rows_service import of_a_table

DOCS = (ROOT / "docs/service.md").read_text()


@pytest.fixture(scope="module")
def server(image: Server) -> Server:
    return image


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{server.port}") as client:
        yield client


def test_samples(server: Server, client: Client) -> None:
    samples = client.samples(20, seed=7)
    assert np.array_equal(samples.items, server.model.sample(7, 20))
    origin = samples.origin
    assert (origin.seed, origin.version) == (7, server.model.digest[:12])
    assert origin.constraint == "gradient_penalty"
    assert client.samples().items.shape == (1, 8, 8, 1)
    walk = client.samples(5, seed=7, walk_to=8).items
    assert np.array_equal(walk[0], samples.items[0])
    assert np.array_equal(walk[-1], server.model.sample(8, 1)[0])
    latents = server.model.latents(7, 3)
    given = client.samples(latents=latents)
    assert np.array_equal(given.items, samples.items[:3])
    assert given.origin.seed is None
    cut = client.samples(3, seed=7, truncation=0.1).items
    assert not np.array_equal(cut, samples.items[:3])
    refined = client.samples(3, seed=7, refine=True).items
    assert np.array_equal(refined, server.model.refined.sample(7, 3))
    picture = client.file("webp", 4, seed=7)
    assert Image.open(io.BytesIO(picture.content)).format == "WEBP"


def test_scores(server: Server, client: Client, tmp_path: Path) -> None:
    items = server.model.sample(5, 4)
    expected = server.model.score(items)
    found = client.score(items)
    np.testing.assert_array_equal(np.float32(found.scores), expected)
    np.testing.assert_allclose(found.percentiles, server.model.percentiles(expected))
    assert found.origin.version == server.model.digest[:12]
    assert np.array_equal(found.out_of_range, server.model.out_of_range(expected))
    assert found.normalized is None
    np.save(tmp_path / "first.npy", items[:3])
    (tmp_path / "last.png").write_bytes(encode_png(items[3]))
    files = client.score_files(tmp_path / "first.npy", tmp_path / "last.png")
    np.testing.assert_array_equal(files.scores, found.scores)
    wide = np.repeat(items, 2, axis=2)
    (tmp_path / "wide.png").write_bytes(encode_png(wide[0]))
    resized = client.score(wide, resize=True, model="champion").scores
    assert client.score_files(tmp_path / "wide.png", resize=True).scores[0] == resized[0]
    with pytest.raises(UnsuitableError, match="class-conditional"):
        client.score_files(tmp_path / "last.png", classes=["3"])


def test_the_model(server: Server, client: Client) -> None:
    assert client.is_ready()
    assert client.model()["digest"] == client.model("champion")["digest"] == server.model.digest
    assert [served["role"] for served in client.models()["serving"]] == ["champion"]
    with pytest.raises(NotFoundError, match="WGAN_DRIFT_WINDOW"):
        client.drift()
    assert client.picture() == (server.artifact / "samples.png").read_bytes()


def test_each_refusal_is_an_error_of_its_own(client: Client, tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match="/count: ") as caught:
        client.samples(0)
    error = caught.value
    assert (error.status, error.title) == (400, "Bad Request")
    assert error.errors[0]["path"] == "/count"
    assert isinstance(error, ServiceError)
    with pytest.raises(UnsuitableError, match="not class-conditional"):
        client.samples(1, label="3")
    with pytest.raises(UnsuitableError, match="shape"):
        client.score(np.zeros((1, 9, 8)))
    (tmp_path / "text.png").write_bytes(b"hello")
    with pytest.raises(UndecodableError, match=r"text\.png"):
        client.score_files(tmp_path / "text.png")
    (tmp_path / "large.npy").write_bytes(bytes(MAX_BODY + 1))
    with pytest.raises((TooLargeError, UnreachableError)):
        client.score_files(tmp_path / "large.npy")
    with Client(f"{client.base_url}/nowhere") as lost, pytest.raises(NotFoundError):
        lost.model()


def test_no_answer_and_no_model(tmp_path: Path) -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(UnreachableError, match=str(port)):
            client.samples()
        assert not client.is_ready()
        with running(serving(tmp_path / "missing", port), port, tmp_path / "log"):
            assert not client.is_ready()
            with pytest.raises(BusyError) as caught:
                client.samples()
            assert caught.value.retry_after == 5


# ---- what is sent, and what is made of an answer, without a service ------------------------------

SCORES = {
    "scores": [0.5, 1],
    "percentiles": [10, 90.5],
    "out_of_range": [False, True],
    "normalized_scores": [0.25, 0.5],
}
ANOMALIES = {
    "p_values": [0.5, 1],
    "statistics": [2, 3.5],
    "calibration_items": 9,
    "residuals": [[1, 2], [3, 4]],
    "blame": None,
}


def answering(
    answer: httpx.Response, key: str | None = None, name: str | None = None
) -> tuple[Client, list[httpx.Request]]:
    """A client whose every request is answered alike, and the requests that it sends."""
    sent: list[httpx.Request] = []

    def take(request: httpx.Request) -> httpx.Response:
        request.read()
        sent.append(request)
        return answer

    client = Client("http://test/below/", key, name=name)
    own = client._http
    client._http = httpx.Client(
        transport=httpx.MockTransport(take), base_url=own.base_url, headers=own.headers
    )
    own.close()
    return client, sent


@pytest.mark.parametrize(
    ("ask", "answer", "path", "body"),
    [
        (lambda c: c.file(), {}, "/v1/samples", {}),
        (
            lambda c: c.file("csv", 3, label="a", latents=np.eye(2), walk_to=4, seed=0),
            {},
            "/v1/samples",
            {
                "format": "csv", "count": 3, "class": "a", "latents": [[1, 0], [0, 1]], "seed": 0,
                "interpolation": {"to": 4},
            },
        ),
        (lambda c: c.rows(2), {"samples": []}, "/v1/samples", {"format": "json", "count": 2}),
        (lambda c: c.impute([{"a": 1}]), {"rows": []}, "/v1/imputations", {"rows": [{"a": 1}]}),
        (
            lambda c: c.impute([], 0, model="m"),
            {"rows": []},
            "/v1/imputations",
            {"rows": [], "seed": 0, "model": "m"},
        ),
        (lambda c: c.score(np.eye(2)), SCORES, "/v1/scores",
         {"samples": [[1, 0], [0, 1]], "resize": False}),
        (lambda c: c.score([]), SCORES, "/v1/scores", {"samples": [], "resize": False}),
        (lambda c: c.score([[1, 0]]), SCORES, "/v1/scores", {"samples": [[1, 0]], "resize": False}),
        (
            lambda c: c.score([{"a": 1}], ["x"], resize=True, model="m"),
            SCORES,
            "/v1/scores",
            {"rows": [{"a": 1}], "resize": True, "classes": ["x"], "model": "m"},
        ),
        (lambda c: c.anomalies(np.eye(1)), ANOMALIES, "/v1/anomalies?explain=false",
         {"samples": [[1]], "resize": False}),
        (
            lambda c: c.anomalies([{"a": 1}], explain=True, model="m"),
            ANOMALIES,
            "/v1/anomalies?explain=true",
            {"rows": [{"a": 1}], "resize": False, "model": "m"},
        ),
        (lambda c: c.model(), {}, "/v1/model", None),
        (lambda c: c.model("m"), {}, "/v1/model?model=m", None),
        (lambda c: c.drift("m"), {}, "/v1/drift?model=m", None),
        (lambda c: c.picture(), {}, "/v1/model/samples.png", None),
        (lambda c: c.models(), {}, "/v1/models", None),
        (lambda c: c.is_ready(), {}, "/readyz", None),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_sent_and_nothing_else(
    ask: Callable[[Client], object], answer: Any, path: str, body: dict[str, object] | None
) -> None:
    client, sent = answering(httpx.Response(200, json=answer))
    with client as one:
        ask(one)
    (request,) = sent
    assert request.url.raw_path.decode() == f"/below{path}"
    assert request.method == ("GET" if body is None else "POST")
    assert (json.loads(request.content) if request.content else None) == body
    assert "authorization" not in request.headers
    assert one._http.is_closed


def test_a_key_and_a_name_go_with_every_request() -> None:
    client, sent = answering(httpx.Response(200, json={}), "secret", "a/b ü")
    named = "/below/v1/models/a%2Fb%20%C3%BC"
    for ask, path in (
        (client.model, named),
        (client.drift, f"{named}/drift"),
        (client.file, f"{named}/samples"),
        (client.picture, f"{named}/samples.png"),
        (client.models, "/below/v1/models"),
    ):
        ask()
        assert sent[-1].url.raw_path.decode() == path
        assert sent[-1].headers["authorization"] == "Bearer secret"


def test_files_are_sent_with_their_names(tmp_path: Path) -> None:
    file = tmp_path / "a b.csv"
    file.write_bytes(b"x,y")
    client, sent = answering(httpx.Response(200, json=SCORES))
    client.score_files(file, file)
    client.score_files(file, classes=["p", "q"], resize=True, model="m")
    assert [request.url.query for request in sent] == [b"", b"model=m"]
    for request, classes, resize, count in zip(
        sent, ([], [b"p", b"q"]), (b"false", b"true"), (2, 1), strict=True
    ):
        content = request.content
        assert content.count(b'name="files"; filename="a b.csv"') == count
        assert re.findall(rb'name="classes"\r\n\r\n(.*)\r\n', content) == classes
        assert re.findall(rb'name="resize"\r\n\r\n(.*)\r\n', content) == [resize]
    client, sent = answering(httpx.Response(200, json=ANOMALIES))
    client.anomalies_of_files(file)
    client.anomalies_of_files(file, explain=True, model="m")
    assert [r.url.query for r in sent] == [b"explain=false", b"explain=true&model=m"]
    client, sent = answering(httpx.Response(200, content=b"rows"))
    assert client.impute_file(file, 3, format="csv").content == b"rows"
    assert sent[0].url.query == b"seed=3&format=csv"


def test_an_answer_becomes_arrays_and_an_origin() -> None:
    headers = {"X-Model-Version": "h%C3%B6he@3", "X-Constraint": "clip", "X-Seed": "7"}
    client, _ = answering(httpx.Response(200, json=SCORES, headers=headers))
    scores = client.score([[1]])
    assert scores.origin == Origin("höhe@3", "clip", 7)
    assert scores.normalized is not None
    assert scores.normalized.tolist() == [0.25, 0.5]
    assert scores.out_of_range.tolist() == [False, True]
    client, _ = answering(httpx.Response(200, json={**SCORES, "normalized_scores": None}))
    scores = client.score([[1]])
    assert (scores.normalized, scores.origin) == (None, Origin("", "", None))
    client, _ = answering(httpx.Response(200, json=ANOMALIES))
    found = client.anomalies([[1]])
    assert found.residuals is not None
    assert found.residuals.tolist() == [[1, 2], [3, 4]]
    blamed = {**ANOMALIES, "residuals": None, "blame": [{"a": 1.0}]}
    client, _ = answering(httpx.Response(200, json=blamed))
    found = client.anomalies([[1]])
    assert (found.residuals, found.blame) == (None, [{"a": 1.0}])


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, UnauthorizedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (413, TooLargeError),
        (415, UndecodableError),
        (422, UnsuitableError),
        (429, LimitError),
        (503, BusyError),
        (504, TooSlowError),
        (500, ServiceError),
        (302, ServiceError),
    ],
)
def test_each_status_is_an_error_of_its_own(status: int, kind: type[ServiceError]) -> None:
    problem = {
        "title": "A title",
        "detail": "why",
        "errors": [{"path": "/a", "message": "is wrong"}, {"path": "/b", "message": "too"}],
    }
    headers = {"content-type": "application/problem+json", "retry-after": "7"}
    content = json.dumps(problem).encode()
    client, _ = answering(httpx.Response(status, content=content, headers=headers))
    with pytest.raises(ServiceError) as caught:
        client.model()
    error = caught.value
    assert type(error) is kind
    assert str(error) == "why; /a: is wrong; /b: too"
    assert (error.status, error.title, error.detail) == (status, "A title", "why")
    assert (error.errors, error.retry_after) == (problem["errors"], 7.0)
    client, _ = answering(httpx.Response(status))
    if kind in (BusyError, LimitError):
        assert not client.is_ready()
    else:
        with pytest.raises(kind):
            client.is_ready()


def test_an_answer_of_a_proxy_is_cut() -> None:
    client, _ = answering(httpx.Response(502, text="x" * 1000, headers={"retry-after": "soon"}))
    with pytest.raises(ServiceError) as caught:
        client.model()
    assert (str(caught.value), caught.value.title) == ("x" * 200, "Bad Gateway")
    assert (caught.value.errors, caught.value.retry_after) == ([], None)
    client, _ = answering(httpx.Response(502))
    with pytest.raises(ServiceError, match=r"^Bad Gateway$"):
        client.model()


def test_the_file_stands_alone() -> None:
    code = (
        "import sys, importlib.util as u\n"
        f"spec = u.spec_from_file_location('client', {str(ROOT / 'service/client.py')!r})\n"
        "module = u.module_from_spec(spec); sys.modules['client'] = module\n"
        "spec.loader.exec_module(module)\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'models', 'service'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_commands_of_the_docs(server: Server, tmp_path: Path) -> None:
    for name, seed in (("digit", 1), ("another", 2)):
        (tmp_path / f"{name}.png").write_bytes(encode_png(server.model.sample(seed, 1)[0]))
    address = f"127.0.0.1:{server.port}"
    for block in to_run("docs/service.md", "sh"):
        if not of_a_table(block):
            shell(block.replace("127.0.0.1:3000", address), tmp_path)
    (code,) = to_run("docs/service.md", "python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace("127.0.0.1:3000", address)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "samples.npz")["samples"].shape == (500, 8, 8, 1)
    judged = (server.artifact / "samples.png").read_bytes()
    assert (tmp_path / "judged.png").read_bytes() == judged
    for name in ("grid.png", "walk.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_docs_name_every_path(server: Server) -> None:
    paths = httpx.get(f"http://127.0.0.1:{server.port}/docs.json").json()["paths"]
    assert [path for path in paths if path not in DOCS] == []
