"""The parts of an endpoint: its description, its context, and helpers that several share."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.drift import Windows
from service.exchange import exchange_of
from service.holders import Holders
from service.keys import Keys
from service.limits import SMALL_BODY
from service.metrics import Metrics
from service.problems import ANSWERING, MAX_ERRORS, BadRequest, TooOften, describe
from service.processors import Processors, Turns
from service.scoring import ScoreBatcher, ScoreResult
from service.served import Served
from service.settings import Settings
from service.shares import Rate
from service.telemetry import Tracing

M = TypeVar("M", bound=BaseModel)
LARGE_BODY = 2**17
"""Bytes of JSON above which it is parsed one body at a time: objects take twenty times as much."""
PLAIN = "".join(chr(i) for i in range(0x20, 0x7F) if chr(i) != "%")
"""Characters that stay as they are in a header."""
MAX_LISTS, MAX_OBJECTS = 2**21, 2**17
"""Lists and objects in JSON. Each takes 80 bytes or 200, however short its text is."""
MAX_NAME = 4000
"""Characters in the name of a model and version; the registry allows 256 in the former, and the
header of an answer has up to twelve for one of them."""
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
"""``champion``, ``challenger``, or a version as X-Model-Version tells it."""


@dataclass(frozen=True)
class Context:
    """The state that endpoints share; `create_app` makes one and hands it to each of them."""

    settings: Settings
    keys: Keys
    holders: Holders
    windows: Windows
    metrics: Metrics
    tracing: Tracing
    processors: Processors
    sample_rate: Rate
    batcher: ScoreBatcher[ScoreResult]
    one_large: Turns = field(default_factory=lambda: Turns(1))
    """Held while a body is read that takes much memory: one at a time."""

    def turn(self, body: bytes) -> AbstractAsyncContextManager[None]:
        """Wait for a turn to parse JSON, which only large bodies need."""
        return self.one_large if len(body) > LARGE_BODY else contextlib.nullcontext()


Handler = Callable[[Context, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    handle: Handler
    operation: dict[str, Any] | None = None
    """Its description in the OpenAPI document; None: the document leaves it out."""
    schemas: tuple[type[BaseModel], ...] = ()
    """The schemas that the description names."""
    scope: str | None = None
    """The scope that a key needs. Where there are keys, all of /v1 needs a known key anyway."""
    is_counted: bool = True
    """True if requests are counted and timed, and go past BentoML's layers."""
    by_name: str | None = None
    """The path to the same of a model that it names, ``{name}``; None: it is of no one model. The
    path without a name is there too, for processes with one model."""

    def paths(self, holders: Holders) -> dict[str, str | None]:
        """All its paths, each with the name of the model that it asks; None if it asks none."""
        if self.by_name is None:
            return {self.path: None}
        named = {self.by_name.format(name=name): name for name in holders.names}
        return {self.path: holders.only, **named}


async def read_json(context: Context, request: Request, schema: type[M], others: str = "") -> M:
    """Read a JSON body that follows a schema; a large one in a thread.

    For ``others`` see `json_content`.

    Raises:
        BadRequest: the body is not JSON, or does not follow the schema.
        HTTPException: 415, the content type is another.
    """
    body = await json_content(request, others)
    if len(body) <= SMALL_BODY:
        return parse_json(body, schema)
    async with context.turn(body):
        return await context.processors.run("body", lambda: parse_json(body, schema))


async def json_content(request: Request, others: str = "") -> bytes:
    """Read the body of a request that says it is JSON.

    Args:
        request: the request.
        others: the end of the error's message: what else the endpoint takes.

    Raises:
        HTTPException: 415, the content type is another.
    """
    if content_type(request) != "application/json":
        raise HTTPException(
            415, f"send JSON, with the header Content-Type: application/json{others}"
        )
    return await request.body()


def parse_json(content: bytes, schema: type[M]) -> M:
    """Parse JSON that follows a schema.

    Raises:
        BadRequest: it is not JSON, has too many lists or objects, or does not follow the schema.
    """
    if content.count(b"[") > MAX_LISTS or content.count(b"{") > MAX_OBJECTS:
        raise BadRequest(f"the body has over {MAX_LISTS} lists, or {MAX_OBJECTS} objects")
    with _without_collection() if len(content) > LARGE_BODY else contextlib.nullcontext():
        try:
            body = from_json(content, allow_inf_nan=False)  # refuses deep nesting too
        except ValueError as error:
            raise BadRequest(f"the body is not JSON: {error}") from None
        try:
            return schema.model_validate(body)
        except ValidationError as error:
            raise describe(error) from None


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Hold the garbage collector back: it looks at every new list again and again.

    Of a large body, which is parsed one at a time, that takes most of the time, and no other thread
    runs meanwhile. What is parsed has no cycles, so nothing is lost.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def spend_samples(context: Context, request: Request, count: int) -> None:
    """Count samples that a request asks for.

    Raises:
        TooOften: its caller has used its rate.
    """
    rate, caller = context.sample_rate, exchange_of(request.scope).caller
    if wait := rate.wait(caller):
        raise TooOften("samples", rate.per_second, wait)
    rate.spend(caller, count)


def content_type(request: Request) -> str:
    """Return the body's media type, without parameters such as the charset."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_query(endpoint: Endpoint, request: Request) -> None:
    """Check that a query has only the parameters that an endpoint's description names, each once.

    Raises:
        BadRequest: it has others; ignored, they would be taken for obeyed.
    """
    parameters = (endpoint.operation or {}).get("parameters", [])
    known = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
    sent = [name for name, _ in request.query_params.multi_items()]
    wrong = {name: "is no parameter of this endpoint" for name in sent if name not in known}
    wrong |= {name: "is given twice" for name in known if sent.count(name) > 1}
    if wrong:
        raise _bad_query(wrong)


def queried_model(request: Request) -> str | None:
    """Return the model that the query names; None if it names none.

    Raises:
        BadRequest: the name is empty or too long.
    """
    name = request.query_params.get("model")
    if name is not None and not 0 < len(name) <= MAX_NAME:
        raise _bad_query({"model": f"should have 1 to {MAX_NAME} characters"})
    return name


def _bad_query(wrong: dict[str, str]) -> BadRequest:
    """Describe what is wrong with a query, by parameter."""
    errors = [{"path": f"/{name:.100}", "message": says} for name, says in wrong.items()]
    return BadRequest("the query does not follow the schema", errors[:MAX_ERRORS])


def choose_model(context: Context, request: Request, wanted: str | None) -> Served:
    """Take the model for a request; whatever is answered from now on names it, errors too.

    Args:
        context: holds the models.
        request: the request.
        wanted: see `ModelHolder.require`, which says what is raised.

    Raises:
        NotServed: the path names no model that is served; see `Holders.of`.
    """
    served = context.holders.of(exchange_of(request.scope).model).require(wanted)
    request.scope[ANSWERING] = model_headers(served)
    return served


def model_headers(served: Served) -> dict[str, str]:
    """Return the headers that name the model that answered.

    Headers are ASCII: what else a registry name has is percent-encoded, as in a URL.
    """
    constraint = served.model.run.constraint.kind
    version = quote(served.version, safe=PLAIN)
    return {"X-Model-Version": version, "X-Constraint": constraint}


def cached(
    request: Request, content: bytes, tag: str, media_type: str, headers: dict[str, str]
) -> Response:
    """Answer with content, or with 304 if the client has it: it must ask each time.

    Args:
        request: its If-None-Match names the tags that the client has (RFC 9110, 13.1.2).
        content: body of the answer.
        tag: differs for each content.
        media_type: media type of the content.
        headers: headers of both answers.
    """
    etag = f'"{tag}"'
    headers = {**headers, "ETag": etag, "Cache-Control": "no-cache"}
    named = request.headers.get("if-none-match", "").split(",")
    if {name.strip().removeprefix("W/") for name in named} & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)
