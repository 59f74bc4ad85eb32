"""The private parts of uvicorn that service/protocol.py uses are still there, and what it does."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import inspect
import math
import socket
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from packaging.requirements import Requirement
from prometheus_client import Counter, Gauge
from starlette.types import ASGIApp
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.connections import HEAD_SECONDS, LINGER_SECONDS, Connections
from service.exchange import NAME, exchange_of
from service.limits import MAX_HEADERS
from service.protocol import MAX_PIPELINED, BoundedProtocol, _sent_but_not_taken, install

VERSION = importlib.metadata.version("uvicorn")
HELP = (
    f"uvicorn {VERSION} changed what service/protocol.py builds on: adapt it, then move the bound"
)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("connection_made", ["self", "transport"]),
        ("connection_lost", ["self", "exc"]),
        ("data_received", ["self", "data"]),
        ("on_message_begin", ["self"]),
        ("on_headers_complete", ["self"]),
        ("on_body", ["self", "body"]),
        ("on_message_complete", ["self"]),
        ("on_response_complete", ["self"]),
        ("resume_writing", ["self"]),
        ("send_400_response", ["self", "msg"]),
        ("_start_asgi_task", ["self", "cycle", "app"]),
        ("_should_upgrade_to_ws", ["self"]),
    ],
)
def test_what_is_overridden_is_there(method: str, parameters: list[str]) -> None:
    assert method in vars(HttpToolsProtocol), HELP
    assert method in vars(BoundedProtocol)
    assert list(inspect.signature(getattr(HttpToolsProtocol, method)).parameters) == parameters, (
        HELP
    )


def test_what_is_called_and_read_is_as_expected() -> None:
    source = inspect.getsource(HttpToolsProtocol)
    for use in (
        "self._start_asgi_task(self.cycle, app)",  # each request goes through it
        "self._start_asgi_task(cycle, app)",  # pipelined ones too
        "self.send_400_response(",
        "app = self.app",
        "self.transport",
        "self.client = ",
        "self.timeout_keep_alive = config.timeout_keep_alive",
        "on_response=self.on_response_complete",
    ):
        assert use in source, f"{HELP} ({use})"
    assert "scope" in inspect.signature(RequestResponseCycle.__init__).parameters, HELP
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    assert "self.response_complete = False" in cycle, HELP
    assert "self.more_body = True" in cycle, HELP
    assert "self.write_paused = False" in inspect.getsource(FlowControl), HELP


def test_uvicorn_speaks_the_installed_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: object, receive: object, send: object) -> None: ...

    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    direct = {("GET", "/x"): app}
    watch = Connections(Gauge("a", "b", registry=None), Counter("c", "d", registry=None))
    install(direct, watch)  # type: ignore[arg-type]
    config = uvicorn.Config("x", log_config=None)
    config.http_protocol_class = None  # type: ignore[assignment]
    config.app = app  # type: ignore[assignment]
    config.load()
    spoken = config.http_protocol_class
    assert issubclass(spoken, BoundedProtocol), HELP
    assert spoken.direct == direct
    assert spoken.watch is watch
    assert BoundedProtocol.direct == {}


def test_the_version_is_bounded_and_within_the_bound() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    wanted = map(Requirement, project["project"]["optional-dependencies"]["service"])
    (uvicorn_wanted,) = (r for r in wanted if r.name == "uvicorn")
    assert any(bound.operator == "<" for bound in uvicorn_wanted.specifier)
    assert VERSION in uvicorn_wanted.specifier


# ---- connections in each of their states -------------------------------------------------------


class Spoken:
    """A server of the protocol, a client of it, and the protocol of the client's connection.

    Its application reads the body, unless the path is ``/refused``, and waits for `goes_on`; then
    it answers with `size` bytes.
    """

    KEEP_ALIVE = 50

    def __init__(self, **direct: ASGIApp) -> None:
        gauge, self.closed = Gauge("a", "b", registry=None), Counter("c", "d", "e", registry=None)
        self.goes_on = asyncio.Event()
        self.size = 2
        self.asked: list[str] = []
        self.body = b""
        self.reads: list[bool] = []
        """Whether more is read from the client, as each request is begun with."""
        self.watch = Connections(gauge, self.closed)
        members = {
            "direct": {("GET", f"/{name}"): app for name, app in direct.items()},
            "watch": self.watch,
        }
        self.kind = type("Protocol", (BoundedProtocol,), members)
        self.config = uvicorn.Config(
            self.app, http=self.kind, lifespan="off", log_config=None, interface="asgi3",
            proxy_headers=False, timeout_keep_alive=self.KEEP_ALIVE,
        )  # fmt: skip
        self.config.load()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        assert NAME in scope, "made early, so that all layers see the same exchange"
        self.asked.append(scope["path"])
        self.reads.append(not self.protocol.flow.read_paused)
        while scope["path"] != "/refused":
            message = await receive()
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await self.goes_on.wait()
        headers = [(b"content-length", str(self.size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(self.size)})

    async def __aenter__(self) -> Spoken:
        loop, made = asyncio.get_running_loop(), list[BoundedProtocol]()

        def make() -> BoundedProtocol:
            made.append(self.kind(config=self.config, server_state=ServerState(), app_state={}))
            return made[-1]

        self.server = await loop.create_server(make, "127.0.0.1", 0)
        self.client = socket.socket()
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        self.client.setblocking(False)
        await loop.sock_connect(self.client, self.server.sockets[0].getsockname())
        while not (made and made[0].transport):
            await asyncio.sleep(0.001)
        self.protocol = made[0]
        return self

    async def __aexit__(self, *error: object) -> None:
        self.client.close()
        self.server.close()
        while self.protocol in self.watch._open:
            await asyncio.sleep(0.001)

    async def sends(self, content: bytes) -> None:
        """Send bytes, and wait until they have been looked at."""
        taken, original = asyncio.Event(), self.protocol.data_received

        def look(data: bytes) -> None:
            original(data)
            taken.set()

        self.protocol.data_received = look  # type: ignore[method-assign]
        await asyncio.get_running_loop().sock_sendall(self.client, content)
        async with asyncio.timeout(10):
            await taken.wait()
        self.protocol.data_received = original  # type: ignore[method-assign]

    async def gets(self, content: bytes) -> bytes:
        """Read until some bytes have come."""
        found = b""
        async with asyncio.timeout(10):
            while content not in found:
                part = await asyncio.get_running_loop().sock_recv(self.client, 2**16)
                assert part, found
                found += part
        return found

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.001)

    def counted(self, reason: str) -> float:
        return float(self.closed.labels(reason)._value.get())


def spoken(test: Callable[[Spoken], Awaitable[None]], **direct: ASGIApp) -> None:
    async def run() -> None:
        async with Spoken(**direct) as found:
            await test(found)

    asyncio.run(run())


POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


def test_each_state_of_a_connection_has_its_own_patience() -> None:
    async def test(s: Spoken) -> None:
        one, loop = s.protocol, asyncio.get_running_loop()

        def state() -> tuple[float, bool, bool, bool]:
            return one.patience, one.awaits_request, one.is_idle, one.awaits_client

        assert one.peer == "127.0.0.1"
        assert s.watch._open == {one}
        assert 0 <= loop.time() - one.since < 30
        assert state() == (HEAD_SECONDS, True, False, True)
        since = one.since
        await s.sends(POST[:20])
        assert state() == (HEAD_SECONDS, True, False, True)
        assert one.since == since, "the time of a first head counts from the beginning"
        await s.sends(POST[20:])
        assert one.since > since
        assert one.unparsed == 0
        await s.until(lambda: s.asked)
        assert state() == (math.inf, False, False, True)
        await s.sends(b"ab")
        assert state() == (math.inf, False, False, True)
        since = one.since
        await s.sends(b"cd")
        assert state() == (math.inf, False, False, False)
        assert one.since > since
        assert one.unparsed == 0
        since = one.since
        s.goes_on.set()
        await s.gets(b"\0\0")
        assert one.since > since
        await s.until(lambda: one.is_idle)
        assert s.body == b"abcd"
        assert state() == (s.KEEP_ALIVE, True, True, True)
        assert one.unread() is None
        since = one.since
        await s.sends(GET[:5])
        assert one.since > since, "a later head begins with its first byte"
        since = one.since
        assert state() == (HEAD_SECONDS, True, False, True)
        await s.sends(GET[5:10])
        assert one.since == since
        await s.sends(GET[10:])
        await s.gets(b"\0\0")
        await s.until(lambda: one.is_idle)
        # A body of which a part is thrown away: the client has not looked at its answer yet.
        s.goes_on.set()
        await s.sends(POST.replace(b"/a", b"/refused"))
        await s.gets(b"\0\0")
        assert state() == (LINGER_SECONDS, True, False, True)
        since = one.since
        await s.sends(b"ab")
        assert (one.patience, one.unparsed, one.since) == (LINGER_SECONDS, 0, since)
        await s.sends(b"cd")
        assert state() == (s.KEEP_ALIVE, True, True, True)
        await s.sends(b"\r\n")  # ends of lines may lie between requests
        assert state() == (HEAD_SECONDS, True, False, True)

    spoken(test)


def test_what_a_client_has_yet_to_take_is_told_while_it_is_in_the_way() -> None:
    async def test(s: Spoken) -> None:
        one = s.protocol
        s.size = 2**23
        s.goes_on.set()
        assert one.unread() is None
        await s.sends(GET)
        await s.until(lambda: one.cycle is not None and one.cycle.response_complete)
        assert not one.is_idle
        assert one.patience == math.inf, "the least rate's affair"
        before = one.unread()
        assert before is not None
        assert one.transport.get_write_buffer_size() < before, "what the kernel holds counts"
        assert before <= 2**23 + 1000
        taken = 0
        while taken < 2**22:
            taken += len(await asyncio.get_running_loop().sock_recv(s.client, 2**16))
        await s.until(lambda: (one.unread() or 0) <= before - taken + 2**17)
        assert one.unread() is not None
        while taken < 2**23:
            taken += len(await asyncio.get_running_loop().sock_recv(s.client, 2**16))
        await s.until(lambda: one.unread() is None)
        assert one.is_idle

    spoken(test)


def test_of_a_whole_answer_also_what_the_kernel_holds_is_in_the_way() -> None:
    async def test(s: Spoken) -> None:
        one = s.protocol
        s.size = 2**17
        s.goes_on.set()
        await s.sends(GET)
        await s.until(lambda: one.cycle is not None and one.cycle.response_complete)
        await s.until(lambda: one.transport.get_write_buffer_size() == 0)
        assert (one.unread() or 0) > 2**14
        assert not one.is_idle

    spoken(test)


def test_what_an_answer_waits_for_is_in_the_way_and_no_more() -> None:
    async def long(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not spoken_by[0].transport.get_write_buffer_size():  # until the kernel takes no more
            await send({"type": "http.response.body", "body": bytes(2**14), "more_body": True})
        sent.set()
        await goes_on.wait()
        await send({"type": "http.response.body", "body": bytes(2**23), "more_body": True})
        await asyncio.Event().wait()

    goes_on, sent, spoken_by = asyncio.Event(), asyncio.Event(), list[BoundedProtocol]()

    async def test(s: Spoken) -> None:
        one, read, loop = s.protocol, list[object](), asyncio.get_running_loop()
        s.watch.has_read = read.append  # type: ignore[method-assign]
        spoken_by.append(one)
        await s.sends(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        await sent.wait()
        assert one.transport.get_write_buffer_size() > 0
        assert one.unread() is None, "more may come at once, though the client has not taken it"
        goes_on.set()
        await s.until(lambda: one.flow.write_paused)
        unread = one.unread()
        assert unread is not None
        assert unread > one.transport.get_write_buffer_size() > 0
        assert not read
        async with asyncio.timeout(30):
            while one.flow.write_paused:
                await loop.sock_recv(s.client, 2**16)
        assert read == [one], "it has taken enough for the next piece"
        assert one.unread() is None, "whatever is left, nothing waits for it"
        one.give_up("slow_reader")
        assert exchange_of(one.cycle.scope).is_too_slow

    spoken(test, long=long)


def test_who_waits_for_a_client_is_told_that_it_left() -> None:
    left = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async def test(s: Spoken) -> None:
        await s.sends(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
        s.client.close()
        async with asyncio.timeout(10):
            await left.wait()
        assert not s.watch._open

    spoken(test, waits=waits)


@pytest.mark.parametrize(
    ("sent", "reason", "answer"),
    [
        (GET[:10], "no_request", b"HTTP/1.1 408 Request Timeout\r\n"),
        (GET[:10], "crowded", b""),
        (b"", "no_request", b""),
        (POST, "no_request", b""),
    ],
)
def test_only_of_a_half_sent_head_it_is_said_why(sent: bytes, reason: str, answer: bytes) -> None:
    async def test(s: Spoken) -> None:
        if sent:
            await s.sends(sent)
        s.protocol.give_up(reason)
        content = b""
        with contextlib.suppress(ConnectionResetError):
            while part := await asyncio.get_running_loop().sock_recv(s.client, 2**16):
                content += part
        assert content.startswith(answer)
        assert bool(content) is bool(answer)
        if answer:
            assert content.endswith(b'the head did not come within 10 seconds"}')
            assert b"content-type: application/problem+json\r\nconnection: close\r\n" in content
        s.protocol.give_up(reason)  # twice harms nothing

    spoken(test)


def test_a_head_without_end_is_refused() -> None:
    async def test(s: Spoken) -> None:
        head = b"GET /a HTTP/1.1\r\nX: "
        await s.sends(head)
        rest, step = 2 * MAX_HEADERS - len(head), 2**14
        while rest:
            await s.sends(b"a" * min(step, rest))
            rest -= min(step, rest)
        assert s.protocol.unparsed == 2 * MAX_HEADERS
        assert s.counted("not_http") == 0
        await s.sends(b"a")
        answer = await s.gets(b"}")
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert f"the headers are over {MAX_HEADERS} bytes".encode() in answer
        assert s.counted("not_http") == 1
        async with asyncio.timeout(10):
            assert await asyncio.get_running_loop().sock_recv(s.client, 1) == b"", "it is closed"

    spoken(test)


def test_requests_sent_ahead_wait_up_to_a_bound() -> None:
    async def test(s: Spoken) -> None:
        one = s.protocol
        await s.sends(GET * 17)
        await s.until(lambda: s.asked)
        assert len(one.pipeline) == MAX_PIPELINED == 16
        assert not one.is_idle
        s.goes_on.set()
        content = b""
        while content.count(b"HTTP/1.1 200") < 17:
            content += await s.gets(b"\0\0")
        assert s.reads[1:] == [False] * 15 + [True], "no more is read while requests wait"
        await s.until(lambda: one.is_idle)
        assert not one.flow.read_paused
        s.goes_on.clear()
        await s.sends(GET * 18)
        assert b"400" in await s.gets(b"}")
        assert s.counted("not_http") == 1

    spoken(test)


def test_what_is_direct_goes_past_the_other_layers_and_nothing_becomes_a_websocket() -> None:
    async def quick(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b"quick"})

    async def test(s: Spoken) -> None:
        s.goes_on.set()
        await s.sends(b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 299 " in await s.gets(b"quick")
        for request in (b"HEAD /quick", b"GET /quicker"):
            await s.sends(request + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in await s.gets(b"\r\n\r\n")
        assert s.asked == ["/quick", "/quicker"]
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        await s.sends(b"GET /ws HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
        assert b" 200 " in await s.gets(b"\r\n\r\n")

    spoken(test, quick=quick)


def test_of_a_connection_that_is_closed_nothing_is_untaken() -> None:
    class Closed:
        def get_extra_info(self, name: str) -> socket.socket:
            found = socket.socket()
            found.close()
            return found

    assert _sent_but_not_taken(Closed()) == 0  # type: ignore[arg-type]
