"""What is refused before a route sees it: who may ask, how much at once, and for how long."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, cast

import anyio
import uvicorn.protocols.http.auto
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.keys import Keys, Unauthorized
from service.problems import MEDIA_TYPE, mended, problem, unauthorized
from service.telemetry import REQUEST_ID, new_id

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

MAX_BODY = 16 * 2**20
"""Bytes of one body."""
MAX_BUFFERED = 8 * MAX_BODY
"""Bytes of all bodies that are held at once."""
SMALL_BODY = 2**16
"""Bytes up to which a body is read even so: large ones must not shut small ones out."""
MAX_HEADERS = 2**15
"""Bytes of a request's headers."""
MAX_HEADER_LINES = 100
MAX_IN_FLIGHT = int(os.environ.get("WGAN_MAX_IN_FLIGHT", "64"))
"""Requests whose bodies are read and whose answers are not yet sent, in one worker."""
TIMEOUT = 60.0
"""Seconds from a request's first byte to its answer's."""
ANSWER_TIMEOUT = 600.0
"""Seconds that an answer may take from its first byte on: clients may read slowly, not for ever."""
UNWATCHED = 0.02
"""Seconds after which it matters whether the client is still there: to look costs time itself."""
UNLIMITED = ("/livez", "/readyz", "/healthz", "/metrics")
"""What must answer however busy the service is."""
log = logging.getLogger("wgan.service")


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


class Guard:
    """The layer around everything: bounds, keys, and problem+json of each error.

    BentoML answers an unknown path or a failed probe in plain text, an unexpected exception
    reaches nobody's handler, and nothing bounds a body: one layer treats all alike.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        answered: Callable[[int], None] = lambda status: None,
        direct: Mapping[tuple[str, str], ASGIApp] | None = None,
    ) -> None:
        self.app = app
        self.keys = keys
        self.direct = direct or {}
        """By method and path: what is answered here; two routers cost as much as a small answer."""
        self.answered = answered
        """Is told the status of each answer."""
        self.in_flight = 0
        self.buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer: Response | None = None
        started = left = False

        async def mending(message: Message) -> None:
            nonlocal answer, started
            if message["type"] == "http.response.start":
                answer = mended(message)
                started = answer is None
                if started:
                    self.answered(message["status"])
                    if not limit.cancel_called:
                        limit.deadline = asyncio.get_running_loop().time() + ANSWER_TIMEOUT
                    nosniff = (b"x-content-type-options", b"nosniff")
                    message = {**message, "headers": [*message["headers"], nosniff]}
            if started:
                await send(message)

        def leave() -> None:
            nonlocal left
            left = True
            limit.cancel()  # threads ask it whether they work for nobody

        with anyio.move_on_after(TIMEOUT) as limit:
            try:
                await self._admitted(scope, receive, mending, leave)
            except Refused as refused:
                answer = refused.answer
            except Exception:  # nothing may reach the client but an id to find it in the log by
                request_id = REQUEST_ID.get() or new_id()
                log.exception("request %s failed", request_id)
                if started:
                    raise
                answer = problem(500, f"an error of ours; it is logged as {request_id}")
        if limit.cancelled_caught and left:
            answer = _gone().answer
        elif limit.cancelled_caught and not started:
            answer = problem(504, f"not done within {TIMEOUT:g} seconds")
        if answer is not None:
            self.answered(answer.status_code)
            await answer(scope, receive, send)

    async def _admitted(
        self, scope: Scope, receive: Receive, send: Send, leave: Callable[[], None]
    ) -> None:
        """Serve a request that has a key where it needs one, and a place."""
        headers = dict(scope["headers"])
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > MAX_HEADERS or len(scope["headers"]) > MAX_HEADER_LINES:
            limits = f"{MAX_HEADERS} bytes or {MAX_HEADER_LINES} lines"
            raise Refused(problem(431, f"the headers are over {limits}"))
        if not scope["path"].isprintable():  # the router would let a line feed at its end pass
            raise Refused(problem(404, "there is no such path"))
        if scope["path"].startswith("/v1/"):
            authorization = headers.get(b"authorization")
            try:
                scope["key"] = self.keys.authenticate(
                    None if authorization is None else authorization.decode("latin-1")
                )
            except Unauthorized as error:
                raise Refused(unauthorized(str(error))) from None
        is_limited = scope["path"] not in UNLIMITED
        self._find_place(is_limited)  # whoever is refused anyway need not send a body first
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > MAX_BODY:
            raise _too_large()
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self.buffered += size
            if held > MAX_BODY:
                raise _too_large()
            if self.buffered > MAX_BUFFERED and held > SMALL_BODY:
                raise _busy()

        try:
            body = await _read(receive, hold)
            self._find_place(is_limited)  # a client may take its time to send
            self.in_flight += is_limited
            try:
                app = self.direct.get((scope["method"], scope["path"]), self.app)
                await _attended(app, scope, body, receive, send, leave)
            finally:
                self.in_flight -= is_limited
        finally:
            self.buffered -= held

    def _find_place(self, is_limited: bool) -> None:
        if is_limited and self.in_flight >= MAX_IN_FLIGHT:
            raise _busy()


def _busy() -> Refused:
    return Refused(problem(503, "as many requests as can be are under way", {"Retry-After": "1"}))


def _too_large() -> Refused:
    return Refused(problem(413, f"the body is over {MAX_BODY} bytes"))


def _gone() -> Refused:
    return Refused(Response(status_code=408))  # nobody will read it, but it ends the exchange


async def _read(receive: Receive, hold: Callable[[int], None]) -> bytes:
    """The whole body, part by part as ``hold`` lets them in."""
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


async def _attended(
    app: ASGIApp,
    scope: Scope,
    body: bytes,
    receive: Receive,
    send: Send,
    leave: Callable[[], None],
) -> None:
    """Let the application answer, and tell when the client leaves before it has."""
    whole: bytes | None = body
    answered = False
    gone = asyncio.Event()
    watcher: asyncio.Task[None] | None = None

    async def replaying() -> Message:
        nonlocal whole
        if whole is not None:
            message = {"type": "http.request", "body": whole, "more_body": False}
            whole = None
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def sending(message: Message) -> None:
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
        await app(scope, replaying, sending)
    finally:
        beginning.cancel()
        if watcher:
            watcher.cancel()


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1, which has no bound on a head: one connection could fill the memory."""

    entries: ClassVar[Mapping[tuple[str, str], ASGIApp]] = {}
    """By method and path: what goes by none of BentoML's layers, which would cost as much as a
    small answer."""
    unread = 0
    """Bytes since a head was whole, or a part of a body came."""

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless they make a head longer than any that is let through."""
        self.unread += len(data)
        super().data_received(data)
        if self.unread > 2 * MAX_HEADERS and not self.transport.is_closing():
            self.send_400_response(f"the headers are over {MAX_HEADERS} bytes")

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self.unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body came."""
        self.unread = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, as problem+json."""
        answer = problem(400, msg)
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: {MEDIA_TYPE}\r\nconnection: close\r\n"
        length = f"content-length: {len(answer.body)}\r\n\r\n"
        self.transport.write((head + length).encode() + bytes(answer.body))
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        entry = self.entries.get((cycle.scope["method"], cycle.scope["path"]))
        if entry and app is self.app:  # not uvicorn's own refusal
            app = cast("ASGI3Application", entry)
        super()._start_asgi_task(cycle, app)

    def _should_upgrade_to_ws(self) -> bool:
        return False  # there is no websocket here


def bound_protocol() -> None:
    """Have uvicorn, which BentoML starts without a choice of protocol, speak the bounded one."""
    uvicorn.protocols.http.auto.AutoHTTPProtocol = BoundedProtocol
