"""Real MLflow for tests: databases, and a server behind a door that can be shut."""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from models import registry
from models.artifact import load_artifact
from tests.artifacts import make_artifact
from tests.forks import Forked
from tests.servers import free_port, spoil_weights
from training.tracking import track_and_register


@functools.cache
def _empty_database() -> bytes:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        assert registry.versions() == []
        return Path(folder, "mlflow.db").read_bytes()


def new_database(folder: Path) -> str:
    """Put an MLflow database without models into a folder, and return its URI.

    Its tables take a second of work and many writes to disk; they are made once in a process.
    """
    database = folder / "mlflow.db"
    database.write_bytes(_empty_database())
    return f"sqlite:///{database}"


def register(folder: Path, number: int, is_spoilt: bool = False) -> None:
    """Make an artifact, in a folder beside others, and register it as that version of ``tiny``."""
    made = make_artifact(folder / f"artifact{number}", seed=number)
    if is_spoilt:
        spoil_weights(made)
    assert track_and_register(load_artifact(made), made) == f"tiny@{number}"


class Registry:
    """A real MLflow server, behind a door of our own that can be shut: then nothing listens."""

    def __init__(self, folder: Path, program: Path | None = None) -> None:
        self.folder = folder
        self.program = program
        self.log = folder / "registry-log"
        self.database = f"sqlite:///{folder / 'mlflow.db'}" if program else new_database(folder)
        self.port, self.door = free_port(), free_port()
        self.uri = f"http://127.0.0.1:{self.door}"
        self.loop = asyncio.new_event_loop()
        self.server: asyncio.Server | None = None
        self.open_ends: set[asyncio.StreamWriter] = set()
        self.hangs = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        options = [f"--backend-store-uri={self.database}", "--workers=1", f"--port={self.port}"]
        options += [f"--artifacts-destination={self.folder / 'stored'}"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process: subprocess.Popen[bytes] | Forked
        if self.program is None:
            process = Forked("keep_registry", self.log, environment, *options)
        else:
            with self.log.open("wb") as out:
                process = subprocess.Popen(
                    [str(self.program), "server", *options],
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    env=environment,
                )
        thread = threading.Thread(target=self.loop.run_forever)
        thread.start()
        try:
            until(self._healthy, "a healthy registry", self.log)
            self.open()
            yield
            self.shut()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            thread.join()
            self.loop.close()
            os.killpg(process.pid, signal.SIGKILL)  # with its worker; nothing of it is kept
            process.wait(30)

    def _healthy(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200
        return False

    def open(self) -> None:
        async def serve() -> None:
            self.server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.door)

        asyncio.run_coroutine_threadsafe(serve(), self.loop).result(30)

    def shut(self) -> None:
        async def close() -> None:
            assert self.server is not None
            self.server.close()
            for end in self.open_ends:
                end.transport.abort()
            await asyncio.sleep(0.1)  # for the transports to be closed

        asyncio.run_coroutine_threadsafe(close(), self.loop).result(30)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """For a while, connections are accepted and nothing is answered."""
        self.shut()
        self.hangs = True
        self.open()
        try:
            yield
        finally:
            self.shut()
            self.hangs = False
            self.open()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.hangs:
            self.open_ends.add(writer)
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)

        async def copy(source: asyncio.StreamReader, end: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(2**16):
                    end.write(data)
                    await end.drain()
            end.close()

        ends = {writer, far_writer}
        self.open_ends |= ends
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        for end in ends:
            end.transport.abort()
        self.open_ends -= ends


def until(holds: Callable[[], bool], what: str, log: Path) -> None:
    for _ in range(2400):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError(f"never {what}: {log.read_text()[-3000:]}")
