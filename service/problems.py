"""Errors as problem+json (RFC 9457), from our endpoints and from other layers."""

from __future__ import annotations

import http
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from models.errors import ClassError, DataError, ShapeError
from service.keys import Forbidden, Unauthorized

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 100
"""Schema errors that are listed; a body can have a million."""


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


def unauthorized(detail: str) -> Response:
    """Build a 401, which says how to send a key."""
    return problem(401, detail, {"WWW-Authenticate": "Bearer"})


def describe(error: ValidationError) -> BadRequest:
    """Turn pydantic's errors into paths and messages."""
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
    """415: a file of no kind that is read."""
    return problem(415, str(error))


async def on_no_model(request: Request, error: Exception) -> Response:
    """503."""
    return problem(503, str(error), {"Retry-After": "5"})


async def on_forbidden(request: Request, error: Exception) -> Response:
    """403: a key without the scope."""
    return problem(403, str(error))


async def on_unauthorized(request: Request, error: Exception) -> Response:
    """401: no key, or an unknown one."""
    return unauthorized(str(error))


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
    Unauthorized: on_unauthorized,
    Forbidden: on_forbidden,
    HTTPException: on_http_exception,
}


def as_problem(start: Message) -> Response | None:
    """Return the problem to send in place of another layer's error; None for all other answers."""
    status = start["status"]
    if status == 307:  # BentoML's router redirects to any host that a client names
        return problem(404, _detail(404))
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in start["headers"]}
    if status < 400 or headers.get("content-type", "").startswith(MEDIA_TYPE):
        return None
    kept = {k: v for k, v in headers.items() if not k.startswith("content-")}  # e.g. Allow
    return problem(status, _detail(status), kept)


def _detail(status: int) -> str:
    if status == 503:
        return "no model is ready"
    return http.HTTPStatus(status).description or http.HTTPStatus(status).phrase
