"""TLS handshakes are connections from their first byte: counted, bounded, ended in time."""

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
import uvloop
from prometheus_client import Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response
from uvicorn.server import ServerState

from service.connections import SHARE_OF_FILES, Connections
from service.handshakes import TlsProtocol
from service.tls import Certificate
from tests.artifacts import make_artifact
from tests.servers import WGAN, free_port, running
from tests.test_connections import HEAD_SECONDS, LIVE, TICK, answers, hurried
from tests.test_machine import limited
from tests.test_tls import write_certificate

FILES = 256
"""Files that the server may open."""
LIMIT = int(SHARE_OF_FILES * FILES)


class Https(NamedTuple):
    port: int
    context: ssl.SSLContext

    def connect(self) -> socket.socket:
        """A connection that has not begun to shake hands."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def over_tls(self) -> ssl.SSLSocket:
        return self.context.wrap_socket(self.connect(), server_hostname="127.0.0.1")

    def metric(self, name: str, **labels: str) -> float:
        address = f"https://127.0.0.1:{self.port}/metrics"
        (value,) = (
            sample.value
            for family in text_string_to_metric_families(
                httpx.get(address, verify=self.context).text
            )
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        )
        return value

    def closed(self, reason: str) -> float:
        return self.metric("wgan_connections_closed_total", reason=reason)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Https]:
    folder = tmp_path_factory.mktemp("handshakes")
    cert, key = write_certificate(folder / "mounted", "wgan")
    port = free_port()
    command = [WGAN, "serve", "--model", make_artifact(folder / "artifact"), "--port", port]
    command += ["--tls-cert", cert, "--tls-key", key]
    with contextlib.ExitStack() as stack:
        with limited(resource.RLIMIT_NOFILE, FILES):
            stack.enter_context(running(command, port, folder / "log", True, **hurried(folder)))
        yield Https(port, ssl.create_default_context(cafile=cert))
        assert "Traceback" not in (folder / "log").read_text()


def hello(server: Https) -> bytes:
    """The first message of a client."""
    outgoing = ssl.MemoryBIO()
    client = server.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_handshakes_that_do_not_end_are_closed_as_heads_are(server: Https) -> None:
    before = {reason: server.closed(reason) for reason in ("no_request", "no_tls")}
    with contextlib.ExitStack() as stack:
        silent, half, slow, plain, left = (stack.enter_context(server.connect()) for _ in range(5))
        began = time.monotonic()
        half.sendall(hello(server)[:100])
        plain.sendall(LIVE)
        left.sendall(hello(server)[:100])
        left.close()
        time.sleep(2 * TICK)
        assert server.metric("wgan_connections") >= 3
        for byte in hello(server):
            with contextlib.suppress(OSError):
                slow.sendall(bytes([byte]))
            time.sleep(0.04)
            if time.monotonic() - began > HEAD_SECONDS / 2:
                break
        late = stack.enter_context(server.connect())
        time.sleep(HEAD_SECONDS / 2 - TICK)
        late_tls = stack.enter_context(
            server.context.wrap_socket(late, server_hostname="127.0.0.1")
        )
        late_tls.sendall(b"GET /")
        for connection in (silent, half, slow):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        assert HEAD_SECONDS <= time.monotonic() - began < HEAD_SECONDS + 4 * TICK
        shaken = time.monotonic()
        assert late_tls.recv(12) == b"HTTP/1.1 408"
        assert time.monotonic() - shaken < HEAD_SECONDS / 2 + 4 * TICK
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP/1.1" not in plain.recv(2**16)
    assert server.closed("no_request") - before["no_request"] == 4
    assert server.closed("no_tls") - before["no_tls"] == 1


def test_a_crowd_of_handshakes_shuts_nobody_out(server: Https) -> None:
    before = server.closed("crowded")
    with contextlib.ExitStack() as stack:
        for number in range(2 * LIMIT):
            stack.enter_context(server.connect())
            if number % 20 == 0:
                with server.over_tls() as probe:
                    probe.sendall(LIVE)
                    assert probe.recv(12) == b"HTTP/1.1 200"
        assert server.closed("crowded") - before >= LIMIT


def test_a_connection_over_tls_is_used_again(server: Https) -> None:
    with server.over_tls() as connection:
        connection.sendall(LIVE * 2)
        assert answers(connection) == [200, 200]
        connection.sendall(LIVE)
        assert answers(connection) == [200]


LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


class Listening(NamedTuple):
    """A server in this process."""

    port: int
    watch: Connections
    closed: Counter
    context: ssl.SSLContext
    """Of its clients."""
    protocols: list[TlsProtocol]
    """One for each connection."""

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_true():
                await asyncio.sleep(0.001)

    async def open(
        self, context: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context)

    def count(self, reason: str) -> float:
        return float(self.closed.labels(reason)._value.get())


@contextlib.asynccontextmanager
async def listening(folder: Path, limit: int) -> AsyncIterator[Listening]:
    closed = Counter("c", "d", ["reason"], registry=None)
    watch = Connections(Gauge("a", "b", registry=None), closed)
    watch.limit = limit
    cert, key = write_certificate(folder, "wgan")
    members = {"watch": watch, "certificate": Certificate(cert, key), "direct": {}}
    protocol = type("Protocol", (TlsProtocol,), members)
    config = uvicorn.Config(Response("served"), log_config=None)
    config.load()
    protocols = list[TlsProtocol]()

    def accept() -> asyncio.Protocol:
        made = protocol(config, ServerState(), {}, None)
        assert isinstance(made, TlsProtocol)
        protocols.append(made)
        return made

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        context = ssl.create_default_context(cafile=cert)
        yield Listening(port, watch, closed, context, protocols)
    finally:
        server.close()


@LOOPS
def test_a_connection_for_which_there_is_no_room_is_closed(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def connect() -> tuple[bytes, float]:
        async with listening(tmp_path, 0) as server:
            reader, writer = await server.open()
            try:
                return await asyncio.wait_for(reader.read(), 10), server.count("crowded")
            finally:
                writer.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(connect()) == (b"", 1)


@LOOPS
def test_a_connection_is_known_from_its_handshake_to_its_end(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    faults = list[dict[str, Any]]()

    async def connect() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: faults.append(told))
        async with listening(tmp_path, 100) as server:
            known = server.watch._open
            reader, writer = await server.open(server.context)
            (spoken,) = server.protocols
            assert known == {spoken}
            for _ in range(2):
                writer.write(LIVE)
                assert b"200 OK" in await reader.readuntil(b"served")
            assert (spoken.client or ("", 0))[0] == "127.0.0.1"
            assert known == {spoken}
            writer.close()
            await server.until(lambda: not known)
            half = b"\x16\x03\x01\x02"
            for sent, reason in ((LIVE, "no_tls"), (half, "given up"), (b"", "left")):
                reader, writer = await server.open()
                await server.until(lambda: len(known) == 1)
                (silent,) = known
                assert silent.unread() is None
                writer.write(sent)
                if reason == "given up":
                    await asyncio.sleep(0.01)
                    silent.give_up("no_request")
                if reason == "left":
                    writer.close()
                await server.until(lambda: not known)
                if reason != "left":
                    # Its end, perhaps after an alert of TLS.
                    assert b"HTTP" not in await asyncio.wait_for(reader.read(), 10)
                    writer.close()
                assert server.count("no_tls") == 1, "of the one that did not speak TLS"
            reader, writer = await server.open(server.context)
            (other,) = known
            assert isinstance(other, TlsProtocol)
            await server.until(lambda: other.transport is not None)
            other.give_up("no_request")
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            await server.until(lambda: not known)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(connect())
    assert not faults
