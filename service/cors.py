"""CORS: pages of other origins that may call the service from browsers."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.exchange import exchange_of
from service.problems import problem

SENT = ("Authorization", "Content-Type", "If-None-Match", "X-Request-ID", "traceparent")
"""Headers of requests that pages may send."""
TOLD = ("ETag", "Retry-After", "X-Constraint", "X-Model-Version", "X-Request-ID", "X-Seed")
"""Headers of answers that pages may read."""


class Cors(CORSMiddleware):
    """A layer that lets pages of some origins in; keys are sent as headers, never as cookies.

    Args:
        app: answers the requests.
        origins: such as ``https://a.example``.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(app, origins, ("GET", "POST"), SENT, expose_headers=TOLD)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            named = Headers(scope=scope).keys()
            asks = "origin" in named and "access-control-request-method" in named
            exchange_of(scope).is_preflight = asks
        await super().__call__(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Say what a page may send; a refusal has the form of all errors."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        return problem(answer.status_code, bytes(answer.body).decode())
