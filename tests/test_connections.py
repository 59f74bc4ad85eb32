"""Connections of clients that dawdle, and too many of them, against a real server."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import resource
import socket
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge
from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from service import connections
from service.connections import MAX_CONNECTIONS, SHARE_OF_FILES, Connections
from service.exchange import GONE, exchange_of
from service.keys import Keys
from service.limits import UNWATCHED, Guard
from tests.attacks import raw
from tests.servers import ROOT, Server, families, resident
from tests.test_exchanges import logged

HURRY = 2.5
"""How many times as fast as others the servers watch over their connections here."""
HEAD_SECONDS = connections.HEAD_SECONDS / HURRY
LINGER_SECONDS = connections.LINGER_SECONDS / HURRY
READ_SECONDS = connections.READ_SECONDS / HURRY
LEAST_RATE = connections.LEAST_RATE * HURRY
TICK = connections.TICK / HURRY
FILES = 256
"""Files that the server may open."""
LIMIT = int(SHARE_OF_FILES * FILES)
LIVE = raw("GET /livez HTTP/1.1\nHost: x")
HALF_HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 60_000


HURRIED = """
from importlib.machinery import SourceFileLoader

execute = SourceFileLoader.exec_module

def exec_module(self, module):
    execute(self, module)
    if module.__name__ == "service.connections":
        vars(module).update(%r)

SourceFileLoader.exec_module = exec_module
"""
"""It sets the constants once their module is imported, as early an import would change its log."""


def hurried(folder: Path) -> dict[str, str]:
    """The environment of a server whose constants are ours: Python runs the file as it starts."""
    names = ("HEAD_SECONDS", "LINGER_SECONDS", "READ_SECONDS", "LEAST_RATE", "TICK")
    (folder / "sitecustomize.py").write_text(HURRIED % {name: globals()[name] for name in names})
    return {"PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT)))}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder = tmp_path_factory.mktemp("connections")
    server = Server("vector", folder, **hurried(folder))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    context = server.running(supervised=True)  # with hurried modules
    try:
        context.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield server
    finally:
        context.__exit__(None, None, None)


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    """Connections that are closed after the test."""
    found: list[socket.socket] = []
    yield found
    for connection in found:
        connection.close()


def connect(opened: list[socket.socket], server: Server, content: bytes = b"") -> socket.socket:
    connection = socket.socket()
    opened.append(connection)
    # So small a buffer that a client that does not read is soon seen.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(content)
    return connection


def samples(request_id: str) -> bytes:
    body = json.dumps({"count": 100_000, "format": "json"}).encode()
    head = "POST /v1/samples HTTP/1.1\nHost: x\nContent-Type: application/json\n"
    return raw(f"{head}X-Request-ID: {request_id}\nContent-Length: {len(body)}", body)


def closed(server: Server) -> dict[str, float]:
    """Connections that the server closed, by reason."""
    found = families(server)["wgan_connections_closed"]
    return {labels["reason"]: value for labels, value in found if "reason" in labels}


def rest(connection: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(2**16):
            content += part
    return content


def whole_answer(connection: socket.socket) -> int:
    """The status of an answer, of which nothing is left to read; it may come in parts."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


def answers(connection: socket.socket) -> list[int]:
    """Statuses of the answers that come until a second passes without any."""
    content = b""
    connection.settimeout(1)
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        while part := connection.recv(2**16):
            content += part
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", content)]


def test_clients_that_dawdle_lose_their_connections_and_others_do_not(
    server: Server, opened: list[socket.socket]
) -> None:
    before, began = closed(server), time.monotonic()
    idle = connect(opened, server)
    half = connect(opened, server, HALF_HEAD[:100])
    second = connect(opened, server, raw("GET /livez HTTP/1.1\nHost: x"))
    assert whole_answer(second) == 200
    second.sendall(HALF_HEAD[:100])
    with_half = connect(opened, server, LIVE + b"GET /")
    kept, with_ends = connect(opened, server, LIVE), connect(opened, server, LIVE)
    assert whole_answer(with_ends) == 200
    with_ends.sendall(b"\r\n")
    # Bodies that trickle on after their requests were refused; one of them longer than a head has.
    refused, ending = (
        connect(opened, server, raw(f"PUT /v1/model HTTP/1.1\nHost: x\nContent-Length: {size}"))
        for size in (99999999, 120)
    )
    nonsense = connect(opened, server, b"\x16\x03\x01\r\n\r\n")
    assert rest(nonsense).startswith(b"HTTP/1.1 400")
    stuck, steady = (connect(opened, server, samples(name)) for name in ("stuck", "steady"))
    taken, sent = 0, 0
    while time.monotonic() - began < READ_SECONDS + HEAD_SECONDS:
        taken += len(steady.recv(int(4 * LEAST_RATE * 0.05)))
        refused.sendall(b"x")
        if sent < 120:
            ending.sendall(b"x")
            sent += 1
        time.sleep(0.05)
    assert taken > LEAST_RATE * READ_SECONDS
    for connection in (kept, ending):  # they may be used again
        connection.sendall(LIVE)
    assert answers(kept) == [200, 200]
    assert answers(ending) == [405, 200]
    assert idle.recv(1) == b""
    assert answers(with_half) == [200, 408]
    assert with_ends.recv(1) == b""
    for connection in (half, second):
        content = rest(connection)
        assert b"HTTP/1.1 408 Request Timeout\r\n" in content
        assert b"application/problem+json" in content
        assert content.endswith(b'the head did not come within 4 seconds"}')
    while time.monotonic() - began < LINGER_SECONDS:
        steady.recv(int(4 * LEAST_RATE * 0.05))
        refused.sendall(b"x")
        time.sleep(0.05)
    assert answers(refused) == [413]
    assert rest(refused) == b""
    rest(stuck)  # what lay in buffers, and no more
    entry = logged(server, "stuck")
    assert (entry["status"], entry["version"]) == (408, server.model.digest[:12])
    assert entry["seconds"] < 2 * READ_SECONDS
    after = closed(server)
    assert after["no_request"] - before["no_request"] == 6
    assert after["slow_reader"] - before["slow_reader"] == 1
    assert after["not_http"] - before["not_http"] == 1
    steady.settimeout(1)
    assert steady.recv(1), "a client that reads slowly, but above the least rate, is left alone"


def test_a_connection_is_kept_for_as_long_as_is_set(
    tmp_path: Path, opened: list[socket.socket]
) -> None:
    with Server("vector", tmp_path, WGAN_KEEP_ALIVE_SECONDS="1").running() as server:
        kept = connect(opened, server, LIVE)
        assert whole_answer(kept) == 200
        began = time.monotonic()
        assert kept.recv(1) == b""
        assert 0.9 < time.monotonic() - began < 4


def test_requests_that_are_sent_ahead_do_not_pile_up(
    server: Server, opened: list[socket.socket]
) -> None:
    memory, before = resident(server), closed(server)["not_http"]
    ahead = raw("GET /v1/model HTTP/1.1\nHost: x") * 50_000
    connection = connect(opened, server)
    with contextlib.suppress(OSError):  # it is closed meanwhile
        connection.sendall(ahead)
    assert b"HTTP/1.1 400" in rest(connection)
    assert resident(server) - memory < 16 * 2**20
    assert closed(server)["not_http"] == before + 1
    few = connect(opened, server, raw("GET /livez HTTP/1.1\nHost: x") * 10)
    content = b""
    while content.count(b"HTTP/1.1 200") < 10:
        content += few.recv(2**16)


@pytest.mark.parametrize(
    "content",
    [
        HALF_HEAD,
        b"",
        LIVE,
        raw(
            "POST /v1/samples HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: 9"
        ),
    ],
    ids=["half heads", "idle", "kept", "bodies that do not come"],
)
def test_a_crowd_of_connections_shuts_nobody_out(
    server: Server, opened: list[socket.socket], content: bytes
) -> None:
    memory, before = resident(server), closed(server)["crowded"]
    for number in range(2 * LIMIT):
        connect(opened, server, content)
        if number % 20 == 0:
            for path in ("/livez", "/readyz", "/v1/model"):
                with connect([], server, raw(f"GET {path} HTTP/1.1\nHost: x")) as probe:
                    assert probe.recv(12) == b"HTTP/1.1 200"
    assert server.samples(format="npz").status_code == 200
    assert families(server)["wgan_connections"][0][1] <= LIMIT
    assert closed(server)["crowded"] - before >= LIMIT
    assert resident(server) - memory < LIMIT * len(HALF_HEAD) * 2
    lines = [e for e in server.log.read_text().splitlines() if "connections are open" in e]
    assert 1 <= len(lines) <= 3  # not one for each
    assert json.loads(lines[0])["message"].endswith(
        f"{LIMIT + 1} of them from 127.0.0.1: those that wait longest for their clients are closed"
    )


@pytest.mark.parametrize(
    ("files", "limit"),
    [(256, 192), (1024, 768), (10**6, MAX_CONNECTIONS), (resource.RLIM_INFINITY, MAX_CONNECTIONS)],
)
def test_the_limit_leaves_files_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, files: int, limit: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (files, resource.RLIM_INFINITY))
    gauge, closed = Gauge("a", "b", registry=None), Counter("c", "d", registry=None)
    assert Connections(gauge, closed).limit == limit


def test_a_whole_answer_keeps_its_place_until_the_client_takes_it() -> None:
    """Else a client could ask for one after another, and have all of them held."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    for size, count in ((1000, 1), (2**20, 2)):
        sent.clear()
        asyncio.run(Guard(Response(bytes(size)), Keys(None))(scope, receive, send))
        bodies = [m for m in sent if m["type"] == "http.response.body"]
        # Uvicorn waits before each message, so one of no bytes waits for those before it.
        assert len(bodies) == count
        assert [bool(m.get("more_body")) for m in bodies] == [True] * (count - 1) + [False]
        assert b"".join(m["body"] for m in bodies) == bytes(size)


def test_a_client_that_leaves_before_it_has_a_whole_answer_is_counted_as_such() -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}

    async def serve() -> None:
        lost, writable, asked = asyncio.Event(), asyncio.Event(), False

        def lose() -> None:  # in uvicorn's order
            lost.set()
            writable.set()

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await lost.wait()
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message.get("body"):
                asyncio.get_running_loop().call_later(5 * UNWATCHED, lose)
                await writable.wait()

        await Guard(Response(bytes(2**20)), Keys(None))(scope, receive, send)

    asyncio.run(serve())
    assert exchange_of(scope).status == GONE


@pytest.mark.parametrize(("seconds", "status"), [((0.3, 0.02), 408), ((0.02, 0.3), 504)])
def test_an_answer_is_cut_off_by_the_fault_of_who_took_the_time(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], status: int
) -> None:
    monkeypatch.setattr("service.limits.ANSWER_TIMEOUT", 1.0)
    to_read, to_make = seconds

    async def content() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(to_make)
            yield b"x"

    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if not requests:
            await asyncio.Event().wait()  # the client stays
        return requests.pop()

    async def send(message: Message) -> None:
        await asyncio.sleep(to_read)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(Guard(StreamingResponse(content()), Keys(None))(scope, receive, send))
    assert exchange_of(scope).status == status


class Clockwork(asyncio.SelectorEventLoop):
    """A loop whose time passes at once where nothing is left to do; it begins at 100 seconds."""

    now = 100.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Client:
    """A connection whose client reads so many bytes a second, of what is never written whole."""

    def __init__(
        self, since: float, peer: str = "a", patience: float = 1e9, rate: float | None = None
    ) -> None:
        self.since, self.peer, self.patience = since, peer, patience
        self.rate, self.is_idle, self.awaits_client = rate, False, True
        self.ended: tuple[float, str] | None = None

    def unread(self) -> int | None:
        now = asyncio.get_running_loop().time()
        return None if self.rate is None else int(10**9 - self.rate * (now - self.since))

    def give_up(self, reason: str) -> None:
        self.ended = asyncio.get_running_loop().time(), reason


def watched(limit: int = 1000) -> tuple[Connections, Gauge, Counter]:
    gauge, closed = Gauge("a", "b", registry=None), Counter("c", "d", ["reason"], registry=None)
    watch = Connections(gauge, closed)
    watch.limit = limit
    return watch, gauge, closed


def of(counter: Counter, reason: str) -> float:
    return float(counter.labels(reason)._value.get())


def test_a_connection_is_closed_once_it_has_stayed_as_it_is_for_longer_than_it_may() -> None:
    async def run() -> None:
        watch, gauge, closed = watched()
        clients = [Client(100, patience=p) for p in (5, 5.5, 30)]
        for client in clients:
            watch.add(client)
        await asyncio.sleep(1)
        assert gauge._value.get() == 3
        await asyncio.sleep(9)
        assert [c.ended for c in clients] == [(106, "no_request"), (106, "no_request"), None]
        assert gauge._value.get() == 1
        clients[2].since = 120  # something came
        watch.remove(clients[0])  # as its protocol says, once it is closed
        await asyncio.sleep(40)
        assert clients[2].ended is None
        await asyncio.sleep(1.5)
        assert clients[2].ended == (151, "no_request")
        assert (gauge._value.get(), of(closed, "no_request")) == (0, 3)

    with asyncio.Runner(loop_factory=Clockwork) as runner:
        runner.run(run())


def test_a_reader_is_measured_over_ten_seconds_at_a_time() -> None:
    """And anew, once it has taken enough for the next piece of an answer, or has read fast."""
    least = connections.LEAST_RATE

    async def run() -> None:
        watch, _, closed = watched()
        slow, exact, fast, other = (Client(100, rate=r * least) for r in (0.5, 1, 1.5, 0.5))
        stops, taker = (Client(100, rate=r * least) for r in (2, 0))
        gone = Client(100, rate=0)
        watch.add(Client(100))  # all are looked at when the first comes, then every second
        for client in (slow, exact, fast, stops, taker, gone):
            watch.add(client)
        await asyncio.sleep(5.5)
        watch.has_read(taker)
        watch.remove(gone)
        assert gone.ended is None
        known = weakref.ref(gone)
        del gone, client
        assert known() is None, "nothing is kept of a connection that is closed"
        await asyncio.sleep(6)
        assert slow.ended == (111, "slow_reader")
        stops.rate, stops.since = 0, 0
        other.rate = None  # nothing of its is in the way
        watch.add(other)
        await asyncio.sleep(20)
        assert stops.ended == (121, "slow_reader")
        assert taker.ended == (116, "slow_reader")
        assert exact.ended is fast.ended is other.ended is None
        assert of(closed, "slow_reader") == 3

    with asyncio.Runner(loop_factory=Clockwork) as runner:
        runner.run(run())


def test_of_too_many_connections_those_of_who_has_most_go_the_idle_and_the_oldest_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        watch, _, closed = watched(limit=32)
        many = [Client(100 - i, "many") for i in range(20)]
        few = [Client(0, "few") for _ in range(12)]
        for client in many[:3]:
            client.is_idle = True
        many[2].awaits_client = False  # it waits for us
        for client in (*many, *few):
            watch.add(client)
        assert of(closed, "crowded") == 0, "as many as can be are no crowd"
        newest = Client(-100, "many")
        watch.add(newest)
        gone = [c for c in (*many, *few, newest) if c.ended]
        # A sixteenth of 32, and one: two that are idle, then the one that has waited longest.
        assert gone == [many[0], many[1], many[19]]
        assert {c.ended for c in gone} == {(100, "crowded")}
        assert of(closed, "crowded") == 3
        for client in (*many, *few, newest):
            client.awaits_client = False
        more = [Client(0, "few") for _ in range(3)]
        for client in more:
            client.awaits_client = False
            watch.add(client)
        # Where nobody can be asked to go it is the newest.
        assert [bool(client.ended) for client in more] == [False, False, True]
        assert of(closed, "crowded") == 4
        for seconds, lines in ((59, 1), (1, 2)):
            await asyncio.sleep(seconds)
            watch.add(Client(0, "few"))
            assert len(caplog.records) == lines

    with asyncio.Runner(loop_factory=Clockwork) as runner:
        runner.run(run())
    assert "33 connections are open, as many as can be, 21 of them from many" in caplog.text
