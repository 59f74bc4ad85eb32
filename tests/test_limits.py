"""Bounds of a request, in this process: what is taken is given back, whatever happens."""

import asyncio
import contextlib
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.sampling import CHUNK
from service import limits, served
from service.exchange import Exchange, exchange_of
from service.keys import Keys
from service.limits import (
    MAX_BODY,
    MAX_BUFFERED,
    MAX_HEADER_LINES,
    MAX_HEADERS,
    SMALL_BODY,
    Guard,
    Load,
)
from service.processors import CALLER
from service.telemetry import REQUEST_ID
from tests.servers import ROOT

LEAVES = -1
"""In place of a size: the client leaves."""


def request(path: str = "/v1/samples", **more: object) -> Scope:
    return {"type": "http", "method": "POST", "path": path, "headers": [], **more}


def parts(*sizes: int) -> Receive:
    """A client that sends a body in parts of some sizes, and then waits; see `LEAVES`."""
    messages: list[Message] = [
        {"type": "http.disconnect"}
        if size == LEAVES
        else {"type": "http.request", "body": bytes(size), "more_body": number < len(sizes)}
        for number, size in enumerate(sizes, 1)
    ]

    async def receive() -> Message:
        return messages.pop(0) if messages else await asyncio.Future()

    return receive


def status(guard: Guard, scope: Scope, receive: Receive) -> int | None:
    """The status of the answer; None if there is none."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"] if sent else None


async def reads(scope: Scope, receive: Receive, send: Send) -> None:
    assert await receive() == {"type": "http.request", "body": bytes(3), "more_body": False}
    await Response(b"done")(scope, receive, send)


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a mistake of ours")


async def dawdles(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(60)


ENDS: dict[str, tuple[ASGIApp, Scope, tuple[int, ...], int]] = {
    "answered": (reads, request(), (1, 2), 200),
    "a path without places": (reads, request("/livez"), (3,), 200),
    "our mistake": (fails, request(), (3,), 500),
    "too late": (dawdles, request(), (3,), 504),
    "half a body, and no more": (reads, request(), (3, LEAVES), 499),
    "too large in parts": (reads, request(), (MAX_BODY, 1), 413),
    "too large by its head": (
        reads, request(headers=[(b"content-length", b"%d" % (MAX_BODY + 1))]), (3,), 413,
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_what_a_request_takes_is_given_back(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app, scope, sizes, expected = ENDS[end]
    monkeypatch.setattr(limits, "TIMEOUT", 0.2)
    load = Load()
    assert status(Guard(app, Keys(None), load), dict(scope), parts(*sizes)) == expected
    for shares in (load.places, load.buffer):
        assert shares.taken == 0
        assert not shares._held


def test_the_bounds_are_those_that_the_docs_tell() -> None:
    told = (ROOT / "docs/service.md").read_text()
    body, buffered = (number / 2**20 for number in (MAX_BODY, MAX_BUFFERED))
    assert (
        f"| a body | {body:g} MiB; all that are held at once, {buffered:g} MiB; beyond: 503, "
        f"but for bodies of {SMALL_BODY / 2**10:g} KiB or less |"
    ) in told
    head, lines = MAX_HEADERS / 2**10, MAX_HEADER_LINES
    assert f"| headers | {head:g} KiB, {lines} lines |" in told
    assert f"| requests in flight, in one process | {Load().places.size}, or" in told
    assert (
        f"; {limits.TIMEOUT:g} seconds from a request's head to the first byte of its answer, "
        f"{limits.ANSWER_TIMEOUT:g} more to its last;"
    ) in told
    assert (
        f"{CHUNK} samples or fewer of a model that makes them within a millisecond, "
        f"where they are at most {served.MAX_INLINE_NUMBERS:,} numbers |"
    ) in told
    assert served.MAX_INLINE_SECONDS == 0.001
    buffer = Load().buffer
    assert buffer.size == MAX_BUFFERED
    assert "MiB three times what is left: one caller alone has three quarters, two" in told
    buffer.take("alone", MAX_BUFFERED * 3 // 4 - 1)
    assert not buffer.has_its_share("alone")
    buffer.take("alone")
    assert buffer.has_its_share("alone")
    assert Load().rate.per_second == 0, "nothing bounds it unless it is set"


CLIENTS = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.sampled_from([0, 1, SMALL_BODY, SMALL_BODY + 1, 2**20, LEAVES])),
        "app": st.sampled_from(["reads", "fails", "fails after its head", "waits for the end"]),
        "sends": st.integers(0, 3),
        "turns": st.none() | st.integers(0, 12),
        "key": st.sampled_from("ab"),
    }
)
"""Parts of a body, then nothing; what the application does; messages until the connection breaks;
turns of the loop until the server cancels the request, None: it does not."""


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(CLIENTS, min_size=1, max_size=6))
def test_whatever_a_crowd_does_its_places_and_bytes_are_given_back(
    crowd: list[dict[str, Any]],
) -> None:
    load = Load(max_in_flight=3)
    most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal most
        most = max(most, load.places.taken)
        await receive()
        if scope["app"] == "fails":
            raise RuntimeError("a mistake of ours")
        if scope["app"] == "waits for the end":
            await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["app"] == "fails after its head":
            raise RuntimeError("a mistake of ours")
        await send({"type": "http.response.body", "body": b"done"})

    guard = Guard(app, Keys(None), load)

    async def serve(client: dict[str, Any]) -> None:
        left = client["sends"]
        end = parts(*client["sizes"])

        async def receive() -> Message:
            await asyncio.sleep(0)
            return await end()

        async def send(message: Message) -> None:
            nonlocal left
            await asyncio.sleep(0)
            left -= 1
            if left < 0:
                raise OSError("the connection is broken")

        scope = request(app=client["app"], client=(client["key"], 1))
        task = asyncio.ensure_future(guard(scope, receive, send))
        if client["turns"] is not None:
            for _ in range(client["turns"]):
                await asyncio.sleep(0)
            task.cancel()
        with contextlib.suppress(OSError, RuntimeError, asyncio.CancelledError):
            await task

    async def serve_all() -> None:
        await asyncio.gather(*map(serve, crowd))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "TIMEOUT", 0.05)  # of those who send no whole body
        asyncio.run(serve_all())
    assert most <= load.places.size
    for shares in (load.places, load.buffer):
        assert shares.taken == 0
        assert not shares._held


def test_a_request_holds_its_place_and_its_bytes_while_it_is_answered() -> None:
    load = Load(max_in_flight=4)
    held: list[tuple[int, int]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        held.append((load.places.taken, load.buffer.taken))
        await Response()(scope, receive, send)

    for path in ("/v1/samples", "/livez"):
        assert status(Guard(app, Keys(None), load), request(path), parts(5, 7)) == 200
    assert held == [(1, 12), (0, 12)]


def test_places_are_looked_for_again_when_the_body_has_come() -> None:
    """A client may take long to send; meanwhile others may have taken all places."""
    load = Load(max_in_flight=1)
    answered: list[Scope] = []
    end = parts(3)

    async def receive() -> Message:
        load.places.take("another")
        return await end()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answered.append(scope)

    assert status(Guard(app, Keys(None), load), request(), receive) == 503
    assert not answered
    assert load.places.taken == 1


def test_large_bodies_need_room_and_small_ones_none() -> None:
    load = Load()
    guard = Guard(Response(), Keys(None), load)
    load.buffer.take("another", MAX_BUFFERED)
    assert status(guard, request(), parts(SMALL_BODY)) == 200
    assert status(guard, request(), parts(SMALL_BODY, 1)) == 503
    load.buffer.give_back("another", MAX_BUFFERED)
    assert status(guard, request(), parts(MAX_BODY)) == 200
    load.buffer.take("another", MAX_BUFFERED // 2)
    # The rest is 64 MiB, of which one caller may hold three quarters.
    caller = Exchange().caller
    load.buffer.take(caller, 3 * MAX_BUFFERED // 8 - SMALL_BODY - 1)
    assert status(guard, request(), parts(SMALL_BODY + 1)) == 429


def test_the_headers_are_bounded_by_lines_and_by_bytes() -> None:
    guard = Guard(Response(), Keys(None))

    def answers(lines: int, size: int) -> int | None:
        first = (b"a", b"b" * (size - 2 * (lines - 1) - 1))
        headers = [first, *[(b"a", b"b")] * (lines - 1)]
        assert sum(len(name) + len(value) for name, value in headers) == size
        return status(guard, request(headers=headers), parts(0))

    assert answers(MAX_HEADER_LINES, 1000) == 200
    assert answers(MAX_HEADER_LINES + 1, 1000) == 431
    assert answers(10, MAX_HEADERS) == 200
    assert answers(10, MAX_HEADERS + 1) == 431


def test_a_place_that_is_not_there_is_told_before_the_body_is_sent() -> None:
    load = Load(max_in_flight=2)
    load.places.take("another", 2)

    async def receive() -> Message:
        pytest.fail("the body is read for nothing")

    assert status(Guard(Response(), Keys(None), load), request(), receive) == 503
    assert status(Guard(Response(), Keys(None), load), request("/livez"), parts(0)) == 200


def test_a_rate_is_spent_by_what_lies_below_v1(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Load(requests_per_second=2)
    monkeypatch.setattr("service.shares.time.monotonic", lambda: 100.0)
    guard = Guard(Response(), Keys(None), load)
    found = [status(guard, request(), parts(0)) for _ in range(4)]
    assert found == [200, 200, 200, 429], "a second's worth at once, and the one that passes it"
    assert status(guard, request("/livez"), parts(0)) == 200
    assert status(guard, request("/docs"), parts(0)) == 200
    assert load.places.taken == load.buffer.taken == 0


def test_who_left_is_told_from_who_read_too_slowly() -> None:
    scope = request()
    assert status(Guard(Response(), Keys(None)), scope, parts(3, LEAVES)) == 499
    assert exchange_of(scope).received is None


def test_an_answer_that_began_in_time_has_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b"whole"})

    async def send(message: Message) -> None:
        sent.append(message)

    monkeypatch.setattr(limits, "TIMEOUT", 0.1)
    asyncio.run(Guard(app, Keys(None))(request(), parts(0), send))
    assert sent[0]["headers"] == [(b"a", b"b"), (b"x-content-type-options", b"nosniff")]
    assert sent[1:] == [{"type": "http.response.body", "body": b"whole"}]


def test_a_mistake_of_ours_is_logged_by_the_request_s_id(caplog: pytest.LogCaptureFixture) -> None:
    token = REQUEST_ID.set("the request's own")
    try:
        assert status(Guard(fails, Keys(None)), request(), parts(3)) == 500
    finally:
        REQUEST_ID.reset(token)
    assert "request the request's own failed" in caplog.text


def test_a_client_that_leaves_while_it_waits_ends_the_work() -> None:
    ended: list[str] = []
    messages: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"a"}]

    async def receive() -> Message:
        return messages.pop()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(CALLER.get())

    scope = request()
    exchange_of(scope).client = "192.0.2.7"
    began = time.monotonic()
    assert status(Guard(app, Keys(None)), scope, receive) == 499
    assert time.monotonic() - began < 30
    assert ended == ["192.0.2.7"], "the processors know whose work it is"


def test_a_body_may_be_as_long_as_its_head_may_say() -> None:
    head = [(b"content-length", b"%d" % MAX_BODY)]
    assert status(Guard(Response(), Keys(None)), request(headers=head), parts(MAX_BODY)) == 200
