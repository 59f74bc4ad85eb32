"""A real service in a process of its own, for tests that speak to it over HTTP."""

import asyncio
import contextlib
import hashlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from models.artifact import load_artifact
from models.model import Model
from service.app import create_app
from service.protocol import BoundedProtocol
from service.settings import Settings
from tests.artifacts import make_artifact
from tests.forks import Forked

WGAN = Path(sys.executable).with_name("wgan")


ROOT = Path(__file__).parent.parent
IN_THREAD = "WGAN_TESTS_IN_THREAD"
"""Variable that, if it is set, has a `Server` run in this process, for `make mutate` to see."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    command: list[object], port: int, log: Path, supervised: bool = False, **environment: str
) -> Iterator[subprocess.Popen[bytes] | Forked]:
    """A command that serves; a fork does its work, unless BentoML's supervisor is wanted."""
    process: subprocess.Popen[bytes] | Forked
    forks = {WGAN: "serve", sys.executable: "serve_unseen"}
    if supervised or command[0] not in forks:
        with log.open("wb") as out:
            process = subprocess.Popen(
                list(map(str, command)),
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env={**os.environ, **environment},
            )
    else:
        given = command[2:] if command[0] == WGAN else command[3:]
        process = Forked(forks[command[0]], log, {**os.environ, **environment}, *given)
    try:
        scheme = "https" if "--tls-cert" in command else "http"
        wait_for(f"{scheme}://127.0.0.1:{port}/livez", process, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        finally:
            process.kill()


def serving(model: Path | str, port: int) -> list[object]:
    """Command of `wgan serve` less its look at the model beforehand, which takes a second."""
    code = "import sys; from service.server import serve; serve(*sys.argv[1:3], int(sys.argv[3]))"
    return [sys.executable, "-c", code, model, "127.0.0.1", port]


def wait_for(address: str, process: subprocess.Popen[bytes] | Forked, log: Path) -> None:
    with httpx.Client(verify=False) as client:
        for _ in range(1200):
            with contextlib.suppress(httpx.TransportError):
                if client.get(address).status_code == 200:
                    return
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
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


@contextlib.contextmanager
def in_thread(artifact: Path, port: int, **environment: str) -> Iterator[None]:
    """A service in a thread of this process: uvicorn as it is installed, but without BentoML."""
    app = create_app(Settings.read(WGAN_MODEL=str(artifact), **environment))

    async def probe(request: Request) -> Response:  # as BentoML has them
        return Response(status_code=200 if app.is_ready else 503)

    app.routes.router.routes += [Route(path, probe) for path in ("/livez", "/readyz")]
    members = {"direct": app.direct(), "watch": app.connections}
    protocol = type("Protocol", (BoundedProtocol,), members)
    config = uvicorn.Config(
        app.surround(app.routes), port=port, http=protocol, lifespan="off", proxy_headers=False,
        timeout_keep_alive=app.settings.keep_alive_seconds, log_config=None,
    )  # fmt: skip
    server = uvicorn.Server(config)

    async def serve() -> None:
        await app.start()
        await server.serve()

    thread = threading.Thread(target=asyncio.run, args=[serve()], daemon=True)
    thread.start()
    try:
        while not (server.started and app.is_ready):
            assert thread.is_alive()
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(30)


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
    def running(self, supervised: bool = False) -> Iterator["Server"]:
        if os.environ.get(IN_THREAD):
            with in_thread(self.artifact, self.port, **self.environment), self.client:
                yield self
            return
        command = serving(self.artifact, self.port)
        with (
            running(command, self.port, self.log, supervised, **self.environment) as self.process,
            self.client,
        ):
            wait_for(f"http://127.0.0.1:{self.port}/readyz", self.process, self.log)
            yield self

    def samples(self, **body: object) -> httpx.Response:
        return self.client.post("/v1/samples", json=body)


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


def resident(server: Server) -> int:
    """Bytes that the worker holds now."""
    return 1024 * memory(server, "VmRSS")


def made(server: Server) -> float:
    return families(server)["wgan_samples"][0][1]


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


def raw(server: Server, *parts: bytes) -> tuple[int, str]:
    """Status and content type that answer bytes sent as they are; httpx would not send these."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, str(answer.getheader("content-type"))


def worker(server: Server) -> Path:
    """The folder in /proc of BentoML's worker, the only child of its supervisor, if it has one."""
    pid = server.process.pid
    if isinstance(server.process, Forked):
        return Path(f"/proc/{pid}")
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return Path(f"/proc/{child}")


def processor_seconds(server: Server) -> float:
    """Seconds of processors that the worker has taken."""
    fields = (worker(server) / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def memory(server: Server, what: str) -> int:
    """Kilobytes that the worker holds."""
    lines = (worker(server) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def peak_memory(server: Server) -> int:
    """Bytes that the worker has held at most."""
    return 1024 * memory(server, "VmHWM")


def forget_peak_memory(server: Server) -> None:
    """Have the peak begin at what the worker holds now."""
    (worker(server) / "clear_refs").write_text("5")


def families(server: Server) -> dict[str, list[tuple[dict[str, str], float]]]:
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(response.text)
    }
