"""HTTP/1.1 as the workers speak it: uvicorn's protocol, with a bound and a short cut.

It uses private parts of uvicorn: pyproject.toml bounds the version, tests/test_protocol.py holds
what is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, cast

from starlette.types import ASGIApp
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.limits import MAX_HEADERS
from service.problems import MEDIA_TYPE, problem

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 with a bound on the head: one connection could fill the memory."""

    direct: ClassVar[Mapping[tuple[str, str], ASGIApp]] = {}
    """Applications by method and path that bypass BentoML's layers."""
    unparsed = 0
    """Bytes since the last whole head or part of a body."""

    def data_received(self, data: bytes) -> None:
        """Take bytes, and refuse a head that is longer than any that is let through."""
        self.unparsed += len(data)
        super().data_received(data)
        if self.unparsed > 2 * MAX_HEADERS and not self.transport.is_closing():
            self.send_400_response(f"the headers are over {MAX_HEADERS} bytes")

    def on_headers_complete(self) -> None:
        """Note that a head is whole."""
        self.unparsed = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that a part of a body came."""
        self.unparsed = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, as problem+json."""
        answer = problem(400, msg)
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: {MEDIA_TYPE}\r\nconnection: close\r\n"
        length = f"content-length: {len(answer.body)}\r\n\r\n"
        self.transport.write((head + length).encode() + bytes(answer.body))
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        direct = self.direct.get((cycle.scope["method"], cycle.scope["path"]))
        if direct and app is self.app:  # otherwise it is uvicorn's own refusal
            app = cast("ASGI3Application", direct)
        super()._start_asgi_task(cycle, app)

    def _should_upgrade_to_ws(self) -> bool:
        return False  # there is no websocket here


def install(direct: Mapping[tuple[str, str], ASGIApp]) -> None:
    """Have uvicorn speak the bounded protocol: BentoML, which starts it, offers no choice.

    Args:
        direct: applications by method and path that bypass BentoML's layers, which cost as much
            time as a small answer.
    """
    auto.AutoHTTPProtocol = type("Protocol", (BoundedProtocol,), {"direct": direct})
