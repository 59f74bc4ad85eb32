"""Bounds of every request, checked before an endpoint sees it: keys, sizes, number and time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.keys import Keys, Unauthorized
from service.problems import ANSWERING, as_problem, problem, unauthorized
from service.telemetry import REQUEST_ID, new_id

MAX_BODY = 16 * 2**20
"""Bytes of one body."""
MAX_BUFFERED = 8 * MAX_BODY
"""Bytes of all bodies that one worker holds at once: the buffer."""
SMALL_BODY = 2**16
"""Bodies up to this size are read even when the buffer is full, so large uploads cannot starve
small requests."""
MAX_HEADERS = 2**15
"""Bytes of all headers of a request."""
MAX_HEADER_LINES = 100
TIMEOUT = 60.0
"""Seconds from a request's first byte to the first byte of its answer."""
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


@dataclass
class Load:
    """Requests that are under way in one worker."""

    max_in_flight: int = 64
    in_flight: int = 0
    """Requests that were read and are not yet answered."""
    buffered: int = 0
    """Bytes of their bodies, and of those that are being read."""


class Guard:
    """The layer around an application that bounds requests and makes each error a problem+json.

    BentoML answers an unknown path or a failed probe in plain text, an unexpected exception
    reaches no handler, and nothing bounds a body: this layer treats all alike.

    Args:
        app: answers what is let through.
        keys: who may ask.
        on_answer: called with the status of each answer.
        load: the requests under way; several guards may share it.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        on_answer: Callable[[int], None] = lambda status: None,
        load: Load | None = None,
    ) -> None:
        self.app = app
        self.keys = keys
        self.on_answer = on_answer
        self.load = load or Load()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer: Response | None = None
        started = left = False

        async def send_or_replace(message: Message) -> None:
            nonlocal answer, started
            if message["type"] == "http.response.start":
                answer = as_problem(message)
                started = answer is None
                if started:
                    self.on_answer(message["status"])
                    if not limit.cancel_called:
                        limit.deadline = asyncio.get_running_loop().time() + ANSWER_TIMEOUT
                    nosniff = (b"x-content-type-options", b"nosniff")
                    message = {**message, "headers": [*message["headers"], nosniff]}
            if started:
                await send(message)

        def leave() -> None:
            nonlocal left
            left = True
            limit.cancel()  # work in threads checks this and stops

        with anyio.move_on_after(TIMEOUT) as limit:
            try:
                await self._admit(scope, receive, send_or_replace, leave)
            except Refused as refused:
                answer = refused.answer
            except Exception:  # the client is told nothing but an id that is in the log
                request_id = REQUEST_ID.get() or new_id()
                log.exception("request %s failed", request_id)
                if started:
                    raise
                detail = f"an error of ours; it is logged as {request_id}"
                answer = problem(500, detail, scope.get(ANSWERING))
        if limit.cancelled_caught and left:
            answer = _gone().answer
        elif limit.cancelled_caught and not started:
            answer = problem(504, f"not done within {TIMEOUT:g} seconds", scope.get(ANSWERING))
        if answer is not None:
            self.on_answer(answer.status_code)
            await answer(scope, receive, send)

    async def _admit(
        self, scope: Scope, receive: Receive, send: Send, leave: Callable[[], None]
    ) -> None:
        """Serve a request that keeps the bounds, and has a key where it needs one."""
        headers = dict(scope["headers"])
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > MAX_HEADERS or len(scope["headers"]) > MAX_HEADER_LINES:
            limits = f"{MAX_HEADERS} bytes or {MAX_HEADER_LINES} lines"
            raise Refused(problem(431, f"the headers are over {limits}"))
        if not scope["path"].isprintable():  # the router ignores a line feed at the end
            raise Refused(problem(404, "there is no such path"))
        if scope["path"].startswith("/v1/"):
            try:
                scope["key"] = self.keys.authenticate(scope["headers"])
            except Unauthorized as error:
                raise Refused(unauthorized(str(error))) from None
        is_limited = scope["path"] not in UNLIMITED
        self._check_in_flight(is_limited)  # before the body, which would be sent for nothing
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > MAX_BODY:
            raise _too_large()
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self.load.buffered += size
            if held > MAX_BODY:
                raise _too_large()
            if self.load.buffered > MAX_BUFFERED and held > SMALL_BODY:
                raise _busy()

        try:
            body = await _read(receive, hold)
            self._check_in_flight(is_limited)  # again: a client may take long to send
            self.load.in_flight += is_limited
            try:
                await _answer(self.app, scope, body, receive, send, leave)
            finally:
                self.load.in_flight -= is_limited
        finally:
            self.load.buffered -= held

    def _check_in_flight(self, is_limited: bool) -> None:
        if is_limited and self.load.in_flight >= self.load.max_in_flight:
            raise _busy()


def _busy() -> Refused:
    return Refused(problem(503, "as many requests as can be are under way", {"Retry-After": "1"}))


def _too_large() -> Refused:
    return Refused(problem(413, f"the body is over {MAX_BODY} bytes"))


def _gone() -> Refused:
    return Refused(Response(status_code=408))  # nobody reads it, but it ends the exchange


async def _read(receive: Receive, hold: Callable[[int], None]) -> bytes:
    """Read the whole body; ``hold`` is told the size of each part, and may refuse it."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _gone()
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
        await send(message)
        answered = message["type"] == "http.response.body" and not message.get("more_body")

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
