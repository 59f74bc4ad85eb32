"""Errors as problem+json: each kind's status, what it says, and which headers go with it."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from models.errors import ClassError, ConditionError, DataError, OversizeError, ShapeError
from service.exchange import exchange_of
from service.keys import Forbidden, Unauthorized
from service.metrics import NOT_SERVED
from service.problems import (
    ANSWERING,
    MAX_ERRORS,
    MEDIA_TYPE,
    BadRequest,
    NoModel,
    NotServed,
    TooOften,
    as_problem,
    describe,
    on_error,
)

MODEL = {"X-Model-Version": "digits@3"}


def answered(error: Exception) -> tuple[Response, dict[str, Any], str | None]:
    """The answer to an error, its body, and the reason by which it is counted."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], ANSWERING: MODEL}
    response = asyncio.run(on_error(Request(scope), error))
    assert response.media_type == MEDIA_TYPE
    return response, json.loads(response.body), exchange_of(scope).reason


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (BadRequest("why"), 400, MODEL),
        (Unauthorized("why"), 401, {"WWW-Authenticate": "Bearer"}),
        (Forbidden("why"), 403, MODEL),
        (NotServed("why"), 404, MODEL),
        (DataError("why"), 415, MODEL),
        (OversizeError("why"), 415, MODEL),
        (ShapeError("why"), 422, MODEL),
        (ClassError("why"), 422, MODEL),
        (ConditionError("why"), 422, MODEL),
        (NoModel("why"), 503, {"Retry-After": "5"}),
        (HTTPException(405, "why", {"Allow": "GET"}), 405, {**MODEL, "Allow": "GET"}),
        (HTTPException(404, "why"), 404, MODEL),
    ],
)
def test_each_error_has_its_status_and_its_headers(
    error: Exception, status: int, headers: dict[str, str]
) -> None:
    response, body, reason = answered(error)
    assert (response.status_code, body["status"], body["detail"]) == (status, status, "why")
    sent = {k.lower(): v for k, v in response.headers.items() if not k.startswith("content-")}
    assert sent == {k.lower(): v for k, v in headers.items()}
    assert reason == (NOT_SERVED if isinstance(error, NotServed) else None)


def test_a_rate_says_how_long_to_wait_in_whole_seconds() -> None:
    response, body, _ = answered(TooOften("samples", 2.5, 1.01))
    assert response.status_code == 429
    assert body["detail"] == "over 2.5 samples a second; try again later"
    assert response.headers["retry-after"] == "2"
    assert response.headers["x-model-version"] == "digits@3"


class Numbers(BaseModel):
    numbers: list[int]


def invalid(count: int) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Numbers.model_validate({"numbers": ["a"] * count})
    return caught.value


def test_schema_errors_are_listed_by_path_up_to_a_hundred() -> None:
    assert MAX_ERRORS == 100
    told = describe(invalid(100))
    assert str(told) == "the body does not follow the schema"
    assert [error["path"] for error in told.errors] == [f"/numbers/{i}" for i in range(100)]
    assert all(error["message"].startswith("Input should be") for error in told.errors)
    told = describe(invalid(101), "query")
    assert str(told) == "the query does not follow the schema"
    assert told.errors == [{"path": "/", "message": "101 errors, too many to list"}]
    _, body, _ = answered(told)
    assert body["errors"] == told.errors
    assert answered(BadRequest("why"))[1]["errors"] == []


def test_what_an_error_held_is_let_go() -> None:
    """The frames of its functions, and of its causes', which may hold whole bodies."""

    def parse(body: bytes) -> None:
        raise ValueError

    def read(body: bytes) -> None:
        try:
            parse(body)
        except ValueError:
            raise BadRequest("why") from None

    with pytest.raises(BadRequest) as caught:
        read(b"a whole body")
    error = caught.value
    cause = error.__context__
    assert cause is not None
    frames = []
    for one in (error, cause):
        trace = one.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_name in ("read", "parse"):
                frames.append(trace.tb_frame)
            trace = trace.tb_next
    assert len(frames) == 3
    answered(error)
    assert not any(frame.f_locals for frame in frames)
    assert error.__context__ is None


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {}, None),
        (399, {}, None),
        (307, {"location": "http://evil.example/"}, (404, {})),
        (400, {"content-type": "text/plain", "content-length": "5"}, (400, {})),
        (404, {"Content-Type": MEDIA_TYPE}, None),
        (404, {"content-type": f"{MEDIA_TYPE}; charset=utf-8"}, None),
        (405, {"allow": "GET"}, (405, {"allow": "GET"})),
        (503, {}, (503, {})),
    ],
)
def test_errors_of_other_layers_become_problems(
    status: int, headers: dict[str, str], expected: tuple[int, dict[str, str]] | None
) -> None:
    sent = [(k.encode(), v.encode()) for k, v in headers.items()]
    found = as_problem({"type": "http.response.start", "status": status, "headers": sent})
    if expected is None:
        assert found is None
        return
    assert found is not None
    body = json.loads(found.body)
    assert found.media_type == MEDIA_TYPE
    kept = {k: v for k, v in found.headers.items() if not k.startswith("content-")}
    assert (found.status_code, kept) == expected
    says = {404: "Nothing matches the given URI", 503: "no model is ready"}
    assert body["detail"] == says.get(found.status_code, body["detail"]) != ""
