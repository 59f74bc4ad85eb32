"""Errors as problem+json (RFC 9457), whoever made them, and the bound on a request's body."""

from __future__ import annotations

import http
import json
import logging
import math
import uuid
from collections.abc import Mapping
from typing import Any

import anyio
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import ClassError, DataError, ShapeError

MEDIA_TYPE = "application/problem+json"
MAX_BODY = 16 * 2**20
"""Bytes."""
MAX_ERRORS = 100
"""Schema errors that are listed: a body can break the schema a million times."""
TIMEOUT = 60.0
"""Seconds from a request's first byte to its answer's."""
log = logging.getLogger("wgan.service")


class BadRequest(Exception):
    """The body does not follow the schema: 400, with what is wrong and where."""

    def __init__(self, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


class NoModel(Exception):
    """There is no model to serve, yet or at all: 503."""


def problem(
    status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """Build a problem+json response."""
    title = http.HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return Response(json.dumps(body), status, headers, MEDIA_TYPE)


def describe(error: ValidationError) -> BadRequest:
    """Turn pydantic's complaints into paths and messages."""
    detail, count = "the body does not follow the schema", error.error_count()
    if count > MAX_ERRORS:
        return BadRequest(detail, [{"path": "/", "message": f"{count} errors, too many to list"}])
    errors = [
        {"path": "/" + "/".join(map(str, e["loc"])), "message": e["msg"]} for e in error.errors()
    ]
    return BadRequest(detail, errors)


async def on_bad_request(request: Request, error: Exception) -> Response:
    """400."""
    assert isinstance(error, BadRequest)
    return problem(400, str(error), errors=error.errors)


async def on_wrong_shape(request: Request, error: Exception) -> Response:
    """422: well formed, but not what this model takes."""
    return problem(422, str(error))


async def on_undecodable(request: Request, error: Exception) -> Response:
    """415: a file that is nothing we read."""
    return problem(415, str(error))


async def on_no_model(request: Request, error: Exception) -> Response:
    """503."""
    return problem(503, str(error), {"Retry-After": "5"})


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Whatever status Starlette chose, such as 404 or 405."""
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, error.headers)


HANDLERS: dict[Any, Any] = {
    BadRequest: on_bad_request,
    ShapeError: on_wrong_shape,
    ClassError: on_wrong_shape,
    DataError: on_undecodable,
    NoModel: on_no_model,
    HTTPException: on_http_exception,
}


class ProblemMiddleware:
    """Bounds bodies and time, and makes problem+json of every error that is not one yet.

    BentoML answers an unknown path or a failed probe in plain text, and an unexpected exception
    reaches nobody's handler: one layer around everything treats both alike.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body: bytes | None = None
        answer: Response | None = None
        started = False

        async def replaying() -> Message:
            nonlocal body
            if body is not None:
                whole, body = body, None
                return {"type": "http.request", "body": whole, "more_body": False}
            return await receive()

        async def mending(message: Message) -> None:
            nonlocal answer, started
            if message["type"] == "http.response.start":
                answer = _mended(message)
                started = answer is None
                if started:
                    limit.deadline = math.inf  # a client may read slowly
            if started:
                await send(message)

        with anyio.move_on_after(TIMEOUT) as limit:
            try:
                body = await _bounded(scope, receive)
                if body is None:
                    answer = problem(413, f"the body is over {MAX_BODY} bytes")
                else:
                    await self.app(scope, replaying, mending)
            except Exception:  # nothing may reach the client but an id to find it in the log by
                request_id = uuid.uuid4().hex
                log.exception("request %s failed", request_id)
                if started:
                    raise
                answer = problem(500, f"an error of ours; it is logged as {request_id}")
        if limit.cancelled_caught and not started:
            answer = problem(504, f"not done within {TIMEOUT:g} seconds")
        if answer is not None:
            await answer(scope, receive, send)


def _mended(start: Message) -> Response | None:
    """The problem to send in place of an error that is not one yet; else None."""
    status = start["status"]
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in start["headers"]}
    if status < 400 or headers.get("content-type", "").startswith(MEDIA_TYPE):
        return None
    kept = {k: v for k, v in headers.items() if not k.startswith("content-")}  # such as Allow
    return problem(status, _detail(status), kept)


async def _bounded(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body, or None if it is over the bound: said in its header, or found by reading."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > MAX_BODY:
            return None
    parts, size = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            return None
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _detail(status: int) -> str:
    if status == 503:
        return "no model is ready"
    return http.HTTPStatus(status).description or http.HTTPStatus(status).phrase
