"""The BentoML service. Its routes are a mounted Starlette application.

Why mounted: one layer makes every error, no parameter of BentoML's fetches a URL that a client
sends, JSON and multipart share a route, and a request costs less (docs/decisions.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import anyio
import anyio.from_thread
import anyio.to_thread
import bentoml
import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import ShapeError
from models.formats import MAX_BYTES, read_items, stream
from models.images import MAX_PIXELS
from service import metrics, telemetry
from service.drift import LEVEL, Windows
from service.keys import Keys, allow
from service.limits import SMALL_BODY, TIMEOUT, BoundedProtocol, Guard, bound_protocol
from service.page import FILES, cached, get_page
from service.problems import HANDLERS, BadRequest, describe
from service.schemas import (
    MAX_FILES,
    MAX_ITEMS,
    MEDIA_TYPES,
    Drift,
    SamplesRequest,
    Scores,
    ScoresRequest,
    openapi,
)
from service.scoring import Gathered, Given
from service.state import (
    ROLES,
    ModelHolder,
    Served,
    instant,
    processors,
    setting,
    workers_wanted,
)

if TYPE_CHECKING:  # torch is for the worker alone: importing it here costs the supervisor too
    from models.model import Model

Array = np.ndarray
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]
telemetry.log_as_json()
bound_protocol()
KEYS = Keys.configured()
HOLDER = ModelHolder.configured()
WINDOWS = Windows.configured()
WORKING = anyio.CapacityLimiter(processors())
"""Forwards and encodings under way at once; the event loop stays free for probes."""
THREADS = anyio.CapacityLimiter(math.inf)
"""For those who hold a processor already."""
FIRST_MODEL_SECONDS = 60.0
"""How long one worker among several may wait for its model before it takes part."""
TURN_SECONDS, TURN_BYTES = 0.1, 2**18
"""How long a request may hold a thread, and what it may make there, before it queues again."""

# BentoML's own page loads a tag manager from outside; this one loads nothing but its scripts.
API_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>wgan-foundry API</title>
<link rel="stylesheet" href="static_content/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="static_content/swagger-ui-bundle.js"></script>
<script src="static_content/swagger-ui-standalone-preset.js"></script>
<script src="static_content/swagger-initializer.js"></script></body></html>"""


def measured(endpoint: str, handle: Endpoint, scope: str | None) -> Endpoint:
    """Count and time an endpoint; errors too, which its handlers make afterwards.

    Where there are keys, `Guard` lets none of /v1 be asked without one; ``scope`` is what the key
    must have besides.
    """

    async def counted(request: Request) -> Response:
        started = time.perf_counter()
        status = 500
        try:
            try:
                with metrics.IN_FLIGHT.track_inprogress():
                    if scope is not None:
                        allow(request.scope.get("key"), scope)
                    response = await handle(request)
            except tuple(HANDLERS) as error:
                kind = next(k for k in HANDLERS if isinstance(error, k))
                response = await HANDLERS[kind](request, error)
            status = response.status_code
            return response
        finally:
            metrics.REQUESTS.labels(endpoint, status).inc()
            metrics.DURATION.labels(endpoint).observe(time.perf_counter() - started)

    return counted


async def post_samples(request: Request) -> Response:
    """Generate samples; what takes long is streamed."""
    wanted = await _json_body(request, SamplesRequest)
    served = HOLDER.require(wanted.model)
    seed = None
    if wanted.latents is None:
        seed = secrets.randbelow(2**63) if wanted.seed is None else wanted.seed
    parts, count = _samples(served.model, wanted, seed)
    columns, facts = served.model.run.data.columns, {} if seed is None else {"seed": seed}

    # Nothing is made before the first turn, whose errors are still answered with a status.
    spent = metrics.Spent(served.role, wanted.format)
    at_once = count <= served.at_once and not wanted.refine
    watched = _watched(parts, spent, at_once)
    pieces = itertools.chain.from_iterable(
        stream(p, count, wanted.format, columns, facts) for p in [watched]
    )
    headers = {**_headers(served), **({} if seed is None else {"X-Seed": str(seed)})}
    first, is_all = await _turn(pieces, spent, at_once)
    if is_all:
        return Response(first, headers=headers, media_type=MEDIA_TYPES[wanted.format])

    async def content() -> AsyncIterator[bytes]:
        yield first
        done = False
        while not done:
            piece, done = await _turn(pieces, spent)
            yield piece

    return StreamingResponse(content(), headers=headers, media_type=MEDIA_TYPES[wanted.format])


def _samples(model: Model, wanted: SamplesRequest, seed: int | None) -> tuple[Iterator[Array], int]:
    """The samples that are wanted, made as they are taken, and how many they are."""
    model = model.refined if wanted.refine else model
    label = None if wanted.class_ is None else model.label(wanted.class_)
    if wanted.latents is not None:
        sizes = {len(latent) for latent in wanted.latents}
        if wrong := sizes - {model.latent_size}:
            raise ShapeError(f"a latent has {model.latent_size} numbers here, not {min(wrong)}")
        return model.decode(np.array(wanted.latents, np.float32), label), len(wanted.latents)
    assert seed is not None
    if wanted.interpolation is not None:
        to, at = wanted.interpolation.to, wanted.interpolation.at
        points = np.linspace(0, 1, wanted.count) if at is None else np.array(at)
        return model.walk(seed, to, points, label, wanted.truncation), len(points)
    return model.samples(seed, wanted.count, 0, label, wanted.truncation), wanted.count


def _watched(parts: Iterator[Array], spent: metrics.Spent, at_once: bool) -> Iterator[Array]:
    """Count samples as they are made, and in a thread stop when nobody waits for them any more."""
    while True:
        if not at_once:
            anyio.from_thread.check_cancelled()
        with spent.generating():
            part = next(parts, None)
        if part is None:
            return
        metrics.SAMPLES.labels(spent.role).inc(len(part))
        yield part


async def _turn(
    pieces: Iterator[bytes], spent: metrics.Spent, at_once: bool = False
) -> tuple[bytes, bool]:
    """Make the next bytes to send, in a thread unless ``at_once``; True if they are the last.

    A turn is short, so that long requests and short ones share the threads.
    """

    def work() -> tuple[bytes, bool]:
        found, size, until = [], 0, time.monotonic() + TURN_SECONDS
        with spent.working():
            for piece in pieces:
                found.append(piece)
                size += len(piece)
                if size >= TURN_BYTES or time.monotonic() > until:
                    return b"".join(found), False
        spent.done()
        return b"".join(found), True

    if at_once:
        with telemetry.span("samples"):
            return work()
    return await _in_thread("samples", work)


async def post_scores(request: Request) -> Response:
    """Score items given as JSON or as files."""
    role = _asked_for(request)
    if _content_type(request) == "multipart/form-data":
        uploads, classes, resize = await _form(request)
        alone = True  # a small file may hold a large image

        def read() -> Given:
            served = HOLDER.require(role)
            items = _file_items(served.model, uploads, resize)
            return _given(served, items, classes)
    else:
        body = await _json_content(request)
        alone = len(body) > SMALL_BODY

        def read() -> Given:
            wanted = _parsed(body, ScoresRequest)
            served = HOLDER.require(wanted.model or role)
            items = _items(served.model, _array(wanted.samples), wanted.resize)
            return _given(served, items, wanted.classes)

    served, answer = await GATHERED.score(read, alone)
    return JSONResponse(answer.model_dump(), headers=_headers(served))


def _given(served: Served, items: Array, classes: list[str] | None) -> Given:
    labels = None if classes is None else np.array(list(map(served.model.label, classes)))
    served.model.require_labels(len(items), labels)
    return Given(served, items, labels)


def _scored(served: Served, scores: Array, seconds: float) -> tuple[Served, Scores]:
    """Count scores and put them beside those of real items."""
    if not np.isfinite(scores).all():  # finite items can still overflow in the critic
        raise ShapeError("the items are so large that their scores are not finite")
    model = served.model
    percentiles = model.percentiles(scores)
    metrics.SCORING.labels(served.role).observe(seconds)
    metrics.scored(served.role, scores, percentiles)
    WINDOWS.add(served, scores)
    return served, Scores(
        scores=scores.tolist(),
        percentiles=percentiles.tolist(),
        out_of_range=model.out_of_range(scores).tolist(),
        normalized_scores=(scores / model.certified).tolist() if model.certified else None,
    )


async def get_model(request: Request) -> Response:
    """Tell all that is known of a model: the champion, unless the query names another."""
    served = HOLDER.require(_asked_for(request) or "champion")
    run = served.model.run.model_dump(mode="json", exclude={"history"})
    for card in (run["data"], run["config"]["data"]):  # may be a path of the training machine
        card["source"] = os.path.basename(card["source"])
    about = {
        "version": served.version,
        "role": served.role,
        "digest": served.model.digest,
        "shape": served.model.shape,
        "score_percentiles": served.model.quantiles[::10].tolist(),
        "serving_since": instant(served),
    }
    return JSONResponse({**about, **run}, headers=_headers(served))


async def get_picture(request: Request) -> Response:
    """The picture of samples that was drawn when the model was made."""
    served = HOLDER.require(_asked_for(request) or "champion")
    model = served.model
    return cached(request, model.picture, model.digest, "image/png", _headers(served))


async def get_models(request: Request) -> Response:
    """Tell which versions the registry has, and which are served."""
    return JSONResponse(await anyio.to_thread.run_sync(HOLDER.listing))


async def get_drift(request: Request) -> Response:
    """Compare the scores of recent traffic with those of real held-out items."""
    if not WINDOWS.size:
        raise HTTPException(404, "drift is off; the operator may set WGAN_DRIFT_WINDOW")
    served = HOLDER.require(_asked_for(request) or "champion")
    report = await anyio.to_thread.run_sync(WINDOWS.report, served, limiter=WORKING)
    drifted = None if report.distance is None else report.distance > report.threshold
    answer = Drift(
        version=served.version,
        window=WINDOWS.size,
        level=LEVEL,
        drifted=drifted,
        **report._asdict(),
    )
    return JSONResponse(answer.model_dump(), headers=_headers(served))


async def get_metrics(request: Request) -> Response:
    """Prometheus metrics; open unless some key has the scope for them."""
    if KEYS.metrics_need_one():
        allow(KEYS.authenticate(request.headers.get("authorization")), "metrics")
    content = await anyio.to_thread.run_sync(metrics.render, HOLDER, WINDOWS)
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def get_docs(request: Request) -> Response:
    """The OpenAPI description."""
    return JSONResponse(openapi(with_keys=KEYS.path is not None))


async def get_api_page(request: Request) -> Response:
    """The page of the API."""
    return HTMLResponse(API_PAGE)


@contextlib.asynccontextmanager
async def _processor() -> AsyncIterator[None]:
    """Wait for a processor, if none is free, and hold it."""
    try:
        WORKING.acquire_nowait()
    except anyio.WouldBlock:
        with metrics.QUEUE.track_inprogress():
            await WORKING.acquire()
    try:
        yield
    finally:
        WORKING.release()


async def _in_thread(name: str, work: Callable[[], T]) -> T:
    """Do what takes a processor, when one is free."""
    async with _processor():
        return await _traced(name, work)


async def _scored_unless(is_done: Callable[[], bool], work: Callable[[], None]) -> None:
    """The same for scores, if nobody has done it by then."""
    async with _processor():
        if not is_done():
            await _traced("scores", work)


async def _traced(name: str, work: Callable[[], T]) -> T:
    def begin() -> T:
        with telemetry.span(name):
            return work()

    return await anyio.to_thread.run_sync(begin, limiter=THREADS)


def _asked_for(request: Request) -> str | None:
    """The model that a query names."""
    roles = request.query_params.getlist("model")
    if len(roles) > 1 or set(roles) - set(ROLES):
        raise BadRequest(
            "the query does not follow the schema",
            [{"path": "/model", "message": f"should be one of {', '.join(ROLES)}"}],
        )
    return roles[0] if roles else None


def _headers(served: Served) -> dict[str, str]:
    constraint = served.model.run.constraint.kind
    return {"X-Model-Version": served.version, "X-Constraint": constraint}


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _json_content(request: Request) -> bytes:
    if _content_type(request) != "application/json":
        raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
    return await request.body()


async def _json_body(request: Request, schema: type[M]) -> M:
    body = await _json_content(request)
    if len(body) <= SMALL_BODY:
        return _parsed(body, schema)
    return await _in_thread("body", lambda: _parsed(body, schema))


def _parsed(content: bytes, schema: type[M]) -> M:
    try:
        body = from_json(content, allow_inf_nan=False)  # refuses deep nesting too
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise describe(error) from None


def _within_bound(count: int) -> None:
    if count > MAX_ITEMS:
        raise ShapeError(f"over {MAX_ITEMS} items; at most {MAX_ITEMS} are scored at once")


def _array(rows: list[Any]) -> Array:
    """Nested lists of numbers to float64, or a ShapeError.

    Through objects, because numpy's own guess takes true for 1, and makes every string as wide as
    the longest: gigabytes from one small body.
    """
    _within_bound(len(rows))
    array = np.array(rows, dtype=object)
    if {type(value) for value in array.ravel()} - {int, float}:
        raise ShapeError("the samples do not make one array of numbers")
    try:
        return array.astype(np.float64)
    except OverflowError:
        raise ShapeError("the samples hold numbers too large for float64") from None


def _items(model: Model, values: Array, resize: bool) -> Array:
    """Values as the model takes them; a refusal says when resizing would help."""
    if resize:
        return model.resized(values)
    try:
        return model.items(values)
    except ShapeError as error:
        channels, *size = model.shape if model.is_image else (0,)
        if values.ndim == 4 and size and [*values.shape[1:]] != [*size, channels]:
            raise ShapeError(f"{error}; with resize=true, images are brought to it") from None
        raise


def _file_items(model: Model, uploads: list[tuple[str, bytes]], resize: bool) -> Array:
    """The items in files, in order; what is past a bound is not unpacked.

    The bounds are of all files together: a small file can decode to a thousand times its size.
    """
    parts, pixels, items = [], MAX_PIXELS, MAX_ITEMS
    most = 4 * MAX_PIXELS if resize else min(MAX_BYTES, 8 * MAX_ITEMS * math.prod(model.shape))
    for name, content in uploads:
        anyio.from_thread.check_cancelled()
        rows = read_items(content, name, items, pixels, most)
        try:
            part = _items(model, rows, resize)
        except ShapeError as error:
            raise ShapeError(f"{name}: {error}") from None
        items -= len(part)
        pixels -= math.prod(rows.shape[:3]) if model.is_image else 0
        if items < 0 or pixels < 0:
            raise ShapeError(f"{name}: at most {MAX_ITEMS} items, or {MAX_PIXELS} pixels, at once")
        parts.append(part)
    return np.concatenate(parts)


async def _form(request: Request) -> tuple[list[tuple[str, bytes]], list[str] | None, bool]:
    """The files of a form, their classes, and whether to resize them."""
    # The parser raises 400 for a broken body and for too many parts.
    async with request.form(max_files=MAX_FILES, max_fields=MAX_ITEMS + 1) as form:
        if set(form) - {"files", "classes", "resize"}:
            raise BadRequest("the form's parts are 'files', and if need be 'classes' and 'resize'")
        files, classes = form.getlist("files"), form.getlist("classes")
        resize = form.getlist("resize")
        if not files or not all(isinstance(file, UploadFile) for file in files):
            raise BadRequest("send the files as parts named 'files', each with a file name")
        if not all(isinstance(name, str) for name in classes):
            raise BadRequest("the parts named 'classes' are text, one for each item")
        if resize not in ([], ["true"], ["false"]):
            raise BadRequest("the part named 'resize' is true or false")
        uploads = [
            (f"file {i} ({(file.filename or 'no name')[:100]})", await file.read())
            for i, file in enumerate(files)
            if isinstance(file, UploadFile)
        ]
        names = [name for name in classes if isinstance(name, str)]
        return uploads, names or None, resize == ["true"]


GATHERED = Gathered(_scored_unless, _scored)
DIRECT: dict[tuple[str, str], ASGIApp] = {}
"""By method and path: the routes that make all their errors themselves."""


def _route(path: str, handle: Endpoint, method: str, scope: str | None = None) -> Route:
    endpoint = measured(path, handle, scope)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = API  # of Starlette's requests: without it their errors are of other types
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    DIRECT[method, path] = answer
    return Route(path, endpoint, methods=[method])


API = Starlette(
    routes=[
        _route("/v1/samples", post_samples, "POST", "samples"),
        _route("/v1/scores", post_scores, "POST", "scores"),
        _route("/v1/model", get_model, "GET"),
        _route("/v1/model/samples.png", get_picture, "GET"),
        _route("/v1/models", get_models, "GET"),
        _route("/v1/drift", get_drift, "GET"),
        Route("/metrics", get_metrics),
        Route("/docs.json", get_docs),
        Route("/docs", get_api_page),
        *(_route(path, get_page, "GET") for path in FILES),
    ],
    exception_handlers=HANDLERS,
)
API.router.redirect_slashes = False  # a path is right or it is unknown


def leave_slowly(holder: ModelHolder) -> None:
    """On SIGTERM be unready for a while, still answering, before the server stops.

    Load balancers learn of it, and clients that keep a connection are told to close it; a request
    that is sent just when a server closes its end would be lost.
    """
    seconds = setting("WGAN_DRAIN_SECONDS", 0)
    if not seconds:
        return
    stop = signal.getsignal(signal.SIGTERM)  # uvicorn's
    assert callable(stop)
    loop = asyncio.get_running_loop()

    def leave(number: int, frame: FrameType | None) -> None:
        if holder.is_leaving:  # asked twice
            stop(number, frame)
            return
        holder.is_leaving = True
        loop.call_soon_threadsafe(loop.call_later, seconds, stop, number, None)

    signal.signal(signal.SIGTERM, leave)


def surrounded(app: ASGIApp) -> ASGIApp:
    """Our layers, around what they do not answer themselves."""
    guard = Guard(app, KEYS, lambda status: metrics.rejected(status, HOLDER), DIRECT)
    paths = telemetry.QUIET | {route.path for route in API.routes if isinstance(route, Route)}
    entry = telemetry.RequestMiddleware(guard, paths, lambda: HOLDER.is_leaving)
    BoundedProtocol.entries = dict.fromkeys(DIRECT, entry)
    return entry


# BentoML's own request metrics label each raw path, so every unknown path would add a series.
@bentoml.service(
    name="wgan",
    workers=workers_wanted(),
    # Only a backstop: it lies outside `Guard`, whose own bound strikes first.
    traffic={"timeout": 2 * TIMEOUT},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class WganService:
    """Serves samples and scores; see `API` for the routes."""

    @bentoml.on_startup  # type: ignore[untyped-decorator] # BentoML leaves it untyped
    async def load(self) -> None:
        """Start to load the models; probes answer meanwhile."""
        telemetry.trace_if_configured()
        leave_slowly(HOLDER)
        metrics.started(HOLDER)
        HOLDER.start()
        if workers_wanted() > 1:  # the others answer meanwhile: accept nothing before a model
            await anyio.to_thread.run_sync(HOLDER.tried.wait, FIRST_MODEL_SECONDS)

    async def __is_ready__(self) -> bool:
        """Whether a verified model has run once, and the worker is not about to end."""
        return HOLDER.served is not None and not HOLDER.is_leaving


# The decorator makes a Service of the class, which mypy does not see.
WganService.mount_asgi_app(API, path="/")  # type: ignore[attr-defined]
WganService.add_asgi_middleware(surrounded)  # type: ignore[attr-defined]
