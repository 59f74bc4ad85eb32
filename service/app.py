"""The service as an application: `create_app` builds it from its settings.

Its routes are a Starlette application that BentoML mounts. BentoML's own API methods are not used:
one layer makes every error, no parameter fetches a URL that a client sends, JSON and multipart
share a route, and a request costs less (docs/decisions.md).
"""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections.abc import Awaitable, Callable
from types import FrameType

import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.cors import Cors
from service.drift import Windows
from service.endpoint import Context, Endpoint, check_query
from service.endpoints import ENDPOINTS
from service.holder import ModelHolder
from service.keys import Keys, allow
from service.limits import Guard, Load
from service.metrics import Metrics
from service.problems import EXPECTED, on_error
from service.processors import Processors
from service.scoring import ScoreBatcher, compare
from service.settings import Settings
from service.telemetry import QUIET, RequestMiddleware, Tracing

FIRST_MODEL_SECONDS = 60.0
"""Longest wait of one worker among several for its model before it takes part."""


def create_app(settings: Settings) -> App:
    """Build the service."""
    metrics = Metrics(settings.metrics_folder)
    tracing = Tracing(settings.is_tracing, settings.otel_service_name)
    processors = Processors(tracing, metrics.queue)
    windows = Windows(settings.drift_window, settings.metrics_folder)
    context = Context(
        settings=settings,
        keys=Keys(settings.api_keys_file),
        holder=ModelHolder(settings, metrics.count_outcome),
        windows=windows,
        metrics=metrics,
        tracing=tracing,
        processors=processors,
        batcher=ScoreBatcher(
            lambda is_done, work: processors.run_unless(is_done, "scores", work),
            functools.partial(compare, metrics, windows),
        ),
    )
    return App(context)


class App:
    """The routes, the layers around them, and the start and end of a worker."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings = context.settings
        self._load = Load(context.settings.max_in_flight)
        self._counted_handlers = {
            (endpoint.method, endpoint.path): self._counted(endpoint)
            for endpoint in ENDPOINTS
            if endpoint.is_counted
        }
        routes = [
            Route(
                endpoint.path,
                self._counted_handlers.get((endpoint.method, endpoint.path))
                or functools.partial(endpoint.handle, context),
                methods=[endpoint.method],
            )
            for endpoint in ENDPOINTS
        ]
        self.routes = Starlette(routes=routes, exception_handlers=dict.fromkeys(EXPECTED, on_error))
        self.routes.router.redirect_slashes = False  # only the exact path is known
        self._paths = QUIET | {endpoint.path for endpoint in ENDPOINTS}

    def surround(self, app: ASGIApp) -> ASGIApp:
        """Put our layers around an application: ids, logs and traces; CORS; bounds and keys."""
        holder, metrics = self.context.holder, self.context.metrics

        def count(status: int) -> None:
            metrics.count_rejection(status, has_model=holder.served is not None)

        bounded: ASGIApp = Guard(app, self.context.keys, count, self._load)
        if origins := self.settings.cors_origins:
            bounded = Cors(bounded, origins.split(","))  # around the guard: pages read errors too
        tracing = self.context.tracing
        return RequestMiddleware(bounded, tracing, self._paths, lambda: holder.is_leaving)

    def direct(self) -> dict[tuple[str, str], ASGIApp]:
        """Applications by method and path, layers included, that need no router.

        BentoML's layers and two routers cost as much time as a small answer.
        """
        return dict.fromkeys(self._counted_handlers, self.surround(self._answer_directly))

    async def start(self) -> None:
        """Begin to load the models; probes answer meanwhile."""
        context = self.context
        context.tracing.start()
        context.keys.announce()
        drain_on_sigterm(context.holder, self.settings.drain_seconds)
        context.metrics.count_start(slot.role for slot in context.holder.slots)
        context.holder.start()
        if self.settings.workers > 1:  # the others answer meanwhile: accept nothing before a model
            tried = context.holder.champion_tried
            await anyio.to_thread.run_sync(tried.wait, FIRST_MODEL_SECONDS)

    @property
    def is_ready(self) -> bool:
        """True if a verified model has run once, and the worker is not about to end."""
        holder = self.context.holder
        return holder.served is not None and not holder.is_leaving

    def _counted(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """Answer requests to an endpoint, errors too; count and time them."""
        context, metrics = self.context, self.context.metrics

        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            status = 500
            try:
                try:
                    with metrics.in_flight.track_inprogress():
                        if endpoint.scope is not None:
                            allow(request.scope.get("key"), endpoint.scope)
                        if endpoint.path.startswith("/v1/"):
                            check_query(endpoint, request)
                        response = await endpoint.handle(context, request)
                except EXPECTED as error:
                    response = await on_error(request, error)
                status = response.status_code
                return response
            finally:
                metrics.requests.labels(endpoint.path, status).inc()
                metrics.duration.labels(endpoint.path).observe(time.perf_counter() - started)

        return answer

    async def _answer_directly(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self.routes  # without it, Starlette raises errors of other types
        handle = self._counted_handlers[scope["method"], scope["path"]]
        response = await handle(Request(scope, receive, send))
        await response(scope, receive, send)


def drain_on_sigterm(holder: ModelHolder, seconds: float) -> None:
    """On SIGTERM be unready for a while, still answering, before the server stops.

    Load balancers notice meanwhile, and clients that keep a connection are told to close it: a
    request that is sent just when a server closes its end would be lost.
    """
    if not seconds:
        return
    stop = signal.getsignal(signal.SIGTERM)  # uvicorn's
    assert callable(stop)
    loop = asyncio.get_running_loop()

    def leave(number: int, frame: FrameType | None) -> None:
        if holder.is_leaving:  # a second SIGTERM
            stop(number, frame)
            return
        holder.is_leaving = True
        loop.call_soon_threadsafe(loop.call_later, seconds, stop, number, None)

    signal.signal(signal.SIGTERM, leave)
