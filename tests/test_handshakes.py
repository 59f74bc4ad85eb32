"""TLS handshakes are connections from their first byte: counted, bounded, ended in time."""

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import uvicorn
import uvloop
from prometheus_client import Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families
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
            stack.enter_context(running(command, port, folder / "log", **hurried(folder)))
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


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_for_which_there_is_no_room_is_closed(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def app(scope: object, receive: object, send: object) -> None: ...

    closed = Counter("c", "d", ["reason"], registry=None)
    watch = Connections(Gauge("a", "b", registry=None), closed)
    watch.limit = 0
    certificate = Certificate(*write_certificate(tmp_path, "wgan"))
    protocol = type("Protocol", (TlsProtocol,), {"watch": watch, "certificate": certificate})
    config = uvicorn.Config(app, log_config=None)
    config.load()

    async def connect() -> bytes:
        def accept() -> asyncio.Protocol:
            made = protocol(config, ServerState(), {}, None)
            assert isinstance(made, asyncio.Protocol)
            return made

        listening = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        try:
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
            listening.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(connect()) == b""
    assert closed.labels("crowded")._value.get() == 1
