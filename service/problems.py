"""Errors as problem+json (RFC 9457), from our endpoints and from other layers."""

from __future__ import annotations

import http
import json
import math
import traceback
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from models.errors import ClassError, ConditionError, DataError, ShapeError
from service.exchange import exchange_of
from service.keys import Forbidden, Unauthorized
from service.metrics import NOT_SERVED

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 100
"""Schema errors that are listed; a body can have a million."""
ANSWERING = "wgan.answering"
"""Key, in a request's scope, of the headers that name the model which answers it."""


class BadRequest(Exception):
    """The body does not follow the schema: 400, with what is wrong and where."""

    def __init__(self, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


class TooOften(Exception):
    """A caller asks for more than its rate: 429."""

    def __init__(self, what: str, per_second: float, wait: float) -> None:
        super().__init__(what, per_second, wait)
        self.what, self.per_second, self.wait = what, per_second, wait


class NoModel(Exception):
    """There is no model to serve, yet or at all: 503."""


class NotServed(Exception):
    """The version that a request names is not served here: 404."""


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


def too_often(
    what: str, per_second: float, wait: float, model: Mapping[str, str] | None = None
) -> Response:
    """Build a 429 to a caller that asks for more than its rate; it must wait so many seconds."""
    headers = {**(model or {}), "Retry-After": str(math.ceil(wait))}
    return problem(429, f"over {per_second:g} {what} a second; try again later", headers)


def describe(error: ValidationError, place: Literal["body", "query"] = "body") -> BadRequest:
    """Turn pydantic's errors into paths and messages."""
    detail, count = f"the {place} does not follow the schema", error.error_count()
    if count > MAX_ERRORS:
        return BadRequest(detail, [{"path": "/", "message": f"{count} errors, too many to list"}])
    errors = [
        {"path": "/" + "/".join(map(str, e["loc"])), "message": e["msg"]} for e in error.errors()
    ]
    return BadRequest(detail, errors)


STATUSES: dict[type[Exception], int] = {
    Forbidden: 403,
    NotServed: 404,
    DataError: 415,
    ShapeError: 422,
    ClassError: 422,
    ConditionError: 422,
}
"""Statuses of errors that are answered with their message alone."""
EXPECTED: tuple[type[Exception], ...] = (
    BadRequest,
    Unauthorized,
    NoModel,
    TooOften,
    HTTPException,
    *STATUSES,
)
"""Errors that `on_error` answers."""


def forget(error: BaseException) -> None:
    """Clear the variables of the functions that an error ended.

    They hold whole bodies, and what was made of them. A future and its error hold each other, so
    all of this would stay until the garbage collector finds it, which can be a long time.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__


async def on_error(request: Request, error: Exception) -> Response:
    """Answer an error that an endpoint or Starlette raised, one of `EXPECTED`."""
    forget(error)
    error.__context__ = None  # pydantic's errors hold the body too
    model = request.scope.get(ANSWERING, {})
    match error:
        case NotServed():  # its status alone would say that the path is unknown
            exchange_of(request.scope).reason = NOT_SERVED
        case BadRequest():
            return problem(400, str(error), model, errors=error.errors)
        case Unauthorized():
            return unauthorized(str(error))
        case TooOften():
            return too_often(error.what, error.per_second, error.wait, model)
        case NoModel():
            return problem(503, str(error), {"Retry-After": "5"})
        case HTTPException():  # such as 404 or 405
            return problem(error.status_code, error.detail, {**model, **(error.headers or {})})
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    return problem(status, str(error), model)


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
