"""Bounds of every request, checked before an endpoint sees it: keys, sizes, number and time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping

import anyio
from prometheus_client import Gauge
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from service.broken import end_worker, is_broken
from service.exchange import GONE, Exchange, exchange_of
from service.keys import Keys, Unauthorized
from service.metrics import SHARE
from service.problems import ANSWERING, as_problem, problem, too_often, unauthorized
from service.processors import CALLER
from service.shares import Rate, Shares
from service.telemetry import REQUEST_ID, new_id

MAX_BODY = 16 * 2**20
"""Bytes of one body."""
MAX_BUFFERED = 8 * MAX_BODY
"""Bytes of all bodies that one worker holds at once: the buffer."""
GREED_FOR_PLACES, GREED_FOR_BYTES = 0.5, 3
"""One caller may hold so many times what is free. Slow clients keep places for minutes, so most are
left to others; bytes are kept shortly, and memory has no more of them."""
SMALL_BODY = 2**16
"""Bodies up to this size are read even when the buffer is full, so large uploads cannot starve
small requests."""
MAX_HEADERS = 2**15
"""Bytes of all headers of a request."""
MAX_HEADER_LINES = 100
TIMEOUT = 60.0
"""Seconds from a request's head to the first byte of its answer."""
ANSWER_TIMEOUT = 600.0
"""Seconds from an answer's first byte to its last: clients may read slowly, but not for ever."""
UNWATCHED = 0.02
"""Seconds before we begin to watch whether the client leaves: watching costs time itself."""
UNLIMITED = ("/livez", "/readyz", "/healthz", "/metrics")
"""Paths that must answer however busy the service is."""
log = logging.getLogger("wgan.service")


class Refused(Exception):
    """Refusal of a request, with the answer to send."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


class Load:
    """Requests that are under way in one worker, and who asked for them.

    Args:
        max_in_flight: requests that are answered at the same time.
        requests_per_second: of one caller, to what lies below /v1; 0: no bound.
        gauge: shows how many are in flight.
    """

    def __init__(
        self,
        max_in_flight: int = 144,
        requests_per_second: float = 0,
        gauge: Gauge | None = None,
    ) -> None:
        self.places = Shares(max_in_flight, GREED_FOR_PLACES)
        """Of requests that were read and are not yet answered to the end."""
        self.buffer = Shares(MAX_BUFFERED, GREED_FOR_BYTES)
        """Bytes of their bodies, and of those that are being read."""
        self.rate = Rate(requests_per_second)
        self.gauge = gauge

    @contextlib.contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """Hold a place."""
        self.places.take(caller)
        with self.gauge.track_inprogress() if self.gauge else contextlib.nullcontext():
            try:
                yield
            finally:
                self.places.give_back(caller)


class Guard:
    """The layer around an application that bounds requests and makes each error a problem+json.

    BentoML answers an unknown path or a failed probe in plain text, an unexpected exception
    reaches no handler, and nothing bounds a body: this layer treats all alike.

    Args:
        app: answers what is let through.
        keys: who may ask.
        load: the requests under way; several guards may share it.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        load: Load | None = None,
    ) -> None:
        self.app = app
        self.keys = keys
        self.load = load or Load()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        clock = asyncio.get_running_loop().time
        answer: Response | None = None
        started = left = False
        unread = 0.0  # seconds in which the answer waited for the client to take more of it

        async def send_or_replace(message: Message) -> None:
            nonlocal answer, started, unread
            if message["type"] == "http.response.start":
                answer = as_problem(message)
                started = answer is None
                if started:
                    if not limit.cancel_called:
                        limit.deadline = clock() + ANSWER_TIMEOUT
                    nosniff = (b"x-content-type-options", b"nosniff")
                    message = {**message, "headers": [*message["headers"], nosniff]}
            if started:
                began = clock()
                try:
                    await send(message)
                finally:
                    unread += clock() - began

        def leave() -> None:
            nonlocal left
            left = True
            limit.cancel()  # work in threads checks this and stops

        with anyio.move_on_after(TIMEOUT) as limit:
            try:
                await self._admit(scope, receive, send_or_replace, leave)
            except Refused as refused:
                answer = refused.answer
            except Exception as error:  # the client is told nothing but an id that is in the log
                request_id = REQUEST_ID.get() or new_id()
                log.exception("request %s failed", request_id)
                if is_broken(error):
                    end_worker()
                if started:
                    exchange.status = 500
                    raise
                detail = f"an error of ours; it is logged as {request_id}"
                answer = problem(500, detail, scope.get(ANSWERING))
        if limit.cancelled_caught or left:  # of a whole answer the end may come before the cancel
            exchange.is_too_slow |= unread > ANSWER_TIMEOUT / 2
            is_theirs = left or exchange.is_too_slow
            answer = _gone(exchange) if is_theirs else _late(exchange, scope.get(ANSWERING))
            if started:  # what was sent cannot be taken back: the connection is closed
                exchange.status, answer = answer.status_code, None
        if answer is not None:
            await answer(scope, receive, send)

    async def _admit(
        self, scope: Scope, receive: Receive, send: Send, leave: Callable[[], None]
    ) -> None:
        """Serve a request that keeps the bounds, and has a key where it needs one."""
        exchange = exchange_of(scope)
        headers = dict(scope["headers"])
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > MAX_HEADERS or len(scope["headers"]) > MAX_HEADER_LINES:
            limits = f"{MAX_HEADERS} bytes or {MAX_HEADER_LINES} lines"
            raise Refused(problem(431, f"the headers are over {limits}"))
        if not scope["path"].isprintable():  # the router ignores a line feed at the end
            raise Refused(problem(404, "there is no such path"))
        if scope["path"].startswith("/v1/"):
            try:
                scope["key"] = key = self.keys.authenticate(scope["headers"])
            except Unauthorized as error:
                raise Refused(unauthorized(str(error))) from None
            exchange.key = key and key.name
            if wait := self.load.rate.wait(exchange.caller):
                raise Refused(too_often("requests", self.load.rate.per_second, wait))
            self.load.rate.spend(exchange.caller, 1)
        is_limited = scope["path"] not in UNLIMITED
        if is_limited:  # before the body, which would be sent for nothing
            _check(self.load.places, exchange)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > MAX_BODY:
            raise _too_large()
        caller, held = exchange.caller, 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self.load.buffer.take(caller, size)
            if held > MAX_BODY:
                raise _too_large()
            if held > SMALL_BODY:
                _check(self.load.buffer, exchange)

        try:
            body = await _read(receive, hold)
            if body is None:
                raise Refused(_gone(exchange))
            exchange.received = time.perf_counter()
            if not is_limited:
                await _answer(self.app, scope, body, receive, send, leave)
                return
            _check(self.load.places, exchange)  # again: a client may take long to send
            CALLER.set(caller)
            with self.load.place(caller):
                await _answer(self.app, scope, body, receive, send, leave)
        finally:
            self.load.buffer.give_back(caller, held)


def _check(shares: Shares, exchange: Exchange) -> None:
    """Refuse a request if nothing is left, or its caller has as much as it may have."""
    if shares.is_full:
        raise Refused(
            problem(503, "as many requests as can be are under way", {"Retry-After": "1"})
        )
    if shares.has_its_share(exchange.caller):
        exchange.reason = SHARE
        detail = "so many requests of yours are under way that others would find no room"
        raise Refused(problem(429, detail, {"Retry-After": "1"}))


def _too_large() -> Refused:
    return Refused(problem(413, f"the body is over {MAX_BODY} bytes"))


def _gone(exchange: Exchange) -> Response:
    """Build what ends the exchange with a client that is no longer there; nobody reads it."""
    return Response(status_code=408 if exchange.is_too_slow else GONE)


def _late(exchange: Exchange, model: Mapping[str, str] | None) -> Response:
    """Build the answer to a request that was not done in time, by the fault of ours or theirs."""
    if exchange.received is not None:
        return problem(504, f"not done within {TIMEOUT:g} seconds", model)
    detail = f"the body did not come within {TIMEOUT:g} seconds"
    return problem(408, detail, {"Connection": "close"})


async def _read(receive: Receive, hold: Callable[[int], None]) -> bytes | None:
    """Read the whole body; ``hold`` is told the size of each part, and may refuse it.

    None: the client left before its end.
    """
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        hold(len(part))
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(
    app: ASGIApp,
    scope: Scope,
    body: bytes,
    receive: Receive,
    send: Send,
    leave: Callable[[], None],
) -> None:
    """Let the application answer; call ``leave`` if the client leaves before that."""
    whole: bytes | None = body
    answered = False
    gone = asyncio.Event()
    watcher: asyncio.Task[None] | None = None

    async def replay() -> Message:
        nonlocal whole
        if whole is not None:
            message = {"type": "http.request", "body": whole, "more_body": False}
            whole = None
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def track(message: Message) -> None:
        nonlocal answered
        is_last = message["type"] == "http.response.body" and not message.get("more_body")
        if is_last and len(message.get("body", b"")) > HIGH_WATER_LIMIT:
            # The next message waits until the client has taken this one, so the request keeps its
            # place until then, and nobody can have one answer after another held for them.
            await send({**message, "more_body": True})
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)
        answered = is_last

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        if not answered:
            leave()

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    beginning = asyncio.get_running_loop().call_later(UNWATCHED, begin)
    try:
        await app(scope, replay, track)
    finally:
        beginning.cancel()
        if watcher:
            watcher.cancel()
