"""HTTP/1.1 as the workers speak it: uvicorn's protocol, with bounds and a short cut.

It uses private parts of uvicorn: pyproject.toml bounds the version, tests/test_protocol.py holds
what is used.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import math
import termios
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.connections import HEAD_SECONDS, LINGER_SECONDS, Connections
from service.exchange import exchange_of, network
from service.limits import MAX_HEADERS
from service.problems import MEDIA_TYPE, problem

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application


MAX_PIPELINED = 16
"""Requests that may wait for the answer to another on one connection."""


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 with bounds on heads, on time and on the number of connections."""

    direct: ClassVar[Mapping[tuple[str, str], ASGIApp]] = {}
    """Applications by method and path that bypass BentoML's layers."""
    watch: ClassVar[Connections]
    """All connections of this worker."""
    unparsed = 0
    """Bytes since the last whole head or part of a body."""
    coming: Literal["head", "body"] | None = None
    """The part of a request of which some has come."""
    peer = ""
    since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch a connection."""
        super().connection_made(transport)
        self.begin()

    def begin(self) -> None:
        """Begin to watch the connection with the client."""
        self.peer = network(self.client[0]) if self.client else ""
        self.since = self.loop.time()
        self.watch.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self.watch.remove(self)
        super().connection_lost(exc)

    @property
    def patience(self) -> float:
        """Seconds for which it may stay as it is."""
        if not self.awaits_request:
            return math.inf  # the guard's affair
        if self._was_answered:
            # While it is being taken, it is the least rate's affair. Uvicorn sees to most of the
            # idle, but not after a body that was thrown away.
            return math.inf if self._untaken() else self.timeout_keep_alive
        return LINGER_SECONDS if self.coming == "body" else HEAD_SECONDS

    @property
    def awaits_request(self) -> bool:
        """True if no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_idle(self) -> bool:
        """True if it is kept for its next request, of which nothing has come."""
        # What is not taken would be held for as long.
        return self._was_answered and not self._untaken()

    @property
    def _was_answered(self) -> bool:
        """True if an answer is whole, and nothing of another request has come."""
        is_whole = self.cycle is not None and self.cycle.response_complete
        return is_whole and self._is_between_requests

    @property
    def _is_between_requests(self) -> bool:
        return self.coming is None and not self.unparsed

    def _untaken(self) -> int:
        return self.transport.get_write_buffer_size() + _sent_but_not_taken(self.transport)

    @property
    def awaits_client(self) -> bool:
        """True if nothing is done for it before more comes from its client."""
        return self.awaits_request or self.cycle.more_body

    def unread(self) -> int | None:
        """Return the bytes that the client has yet to take; None unless they are in the way.

        They are if the answer waits for them, or the end of the connection, or if they are what is
        left of a whole answer. Nothing is added to them then, so they tell what the client takes;
        the kernel's own buffer counts, because it can hold more than a slow client takes in a
        minute.
        """
        if self._was_answered:
            return self._untaken() or None
        is_waited_for = self.flow.write_paused or self.transport.is_closing()
        if not is_waited_for or not self.transport.get_write_buffer_size():
            return None
        return self._untaken()

    def give_up(self, reason: str) -> None:
        """Close the connection; with a half-sent head, say why."""
        if reason == "no_request" and self.coming == "head" and not self.transport.is_closing():
            self.refuse(408, f"the head did not come within {HEAD_SECONDS:g} seconds")
        if self.cycle is not None:
            exchange_of(cast("Scope", self.cycle.scope)).is_too_slow = True
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and refuse a head that is longer than any that is let through."""
        if self.cycle is not None and self._is_between_requests:
            self.since = self.loop.time()
        self.unparsed += len(data)
        super().data_received(data)
        if self.unparsed > 2 * MAX_HEADERS and not self.transport.is_closing():
            self.send_400_response(f"the headers are over {MAX_HEADERS} bytes")

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self.coming = "head"
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that a head is whole; refuse it if too many wait for the answer to another."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests sent ahead")  # the parser turns it into a 400
        self.unparsed = 0
        self.coming = "body"
        self.since = self.loop.time()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that a part of a body came."""
        self.unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that a request is whole."""
        self.unparsed = 0
        self.coming = None
        self.since = self.loop.time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note that an answer is whole; read no more while requests wait that were read already."""
        self.since = self.loop.time()
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    def resume_writing(self) -> None:
        """Note that the client has taken what was in the way."""
        self.watch.has_read(self)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or has a head without end."""
        self.watch.count("not_http")
        self.refuse(400, msg)

    def refuse(self, status: int, detail: str) -> None:
        """Answer what is no request with problem+json, and close the connection."""
        answer = problem(status, detail)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        end = f"connection: close\r\ncontent-length: {len(answer.body)}\r\n\r\n"
        self.transport.write((head + end).encode() + bytes(answer.body))
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        exchange_of(cast("Scope", cycle.scope))  # made here, so that all layers see the same one
        direct = self.direct.get((cycle.scope["method"], cycle.scope["path"]))
        if direct and app is self.app:  # otherwise it is uvicorn's own refusal
            app = cast("ASGI3Application", direct)
        super()._start_asgi_task(cycle, app)

    def _should_upgrade_to_ws(self) -> bool:
        return False  # there is no websocket here


def _sent_but_not_taken(transport: asyncio.Transport) -> int:
    """Return the bytes that the kernel has yet to see acknowledged; 0 where it does not tell."""
    size = array.array("i", [0])
    with contextlib.suppress(OSError, ValueError):  # it is closed, or cannot be asked this
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, size)
    return size[0]


def install(
    direct: Mapping[tuple[str, str], ASGIApp],
    watch: Connections,
    kind: type[BoundedProtocol] = BoundedProtocol,
    **members: object,
) -> None:
    """Have uvicorn speak the bounded protocol: BentoML, which starts it, offers no choice.

    Args:
        direct: applications by method and path that bypass BentoML's layers, which cost as much
            time as a small answer.
        watch: watches over the connections.
        kind: the protocol.
        members: what else it needs.
    """
    auto.AutoHTTPProtocol = type("Protocol", (kind,), {"direct": direct, "watch": watch, **members})
