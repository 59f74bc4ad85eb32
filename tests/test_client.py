"""The Python client and the commands of docs/service.md, against real servers."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from models.images import encode_png
from service.client import (
    BadRequestError,
    BusyError,
    Client,
    NotFoundError,
    ServiceError,
    TooLargeError,
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
