"""The service as an application: `create_app` builds it from its settings.

Its routes are a Starlette application that BentoML mounts. BentoML's own API methods are not used:
one layer makes every error, no parameter fetches a URL that a client sends, JSON and multipart
share a route, and a request costs less (docs/decisions.md).
"""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Awaitable, Callable
from types import FrameType

import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.connections import Connections
from service.cors import Cors
from service.drift import Windows
from service.endpoint import Context, Endpoint, check_query
from service.endpoints import ENDPOINTS
from service.exchange import Exchange, exchange_of
from service.holders import FIRST_MODEL_SECONDS, Holders
from service.kept_items import KeptItems
from service.keys import Keys, allow
from service.limits import Guard, Load
from service.metrics import Metrics
from service.problems import EXPECTED, on_error
from service.processors import Processors
from service.scoring import ScoreBatcher, compare
from service.settings import Settings
from service.shares import Rate
from service.telemetry import QUIET, RequestMiddleware, Tracing

Handled = Callable[[Request], Awaitable[Response]]


def create_app(settings: Settings) -> App:
    """Build the service."""
    metrics = Metrics(settings.metrics_folder)
    tracing = Tracing(settings.is_tracing, settings.otel_service_name)
    processors = Processors(tracing, metrics.queue)
    windows = Windows(settings.drift_window, settings.metrics_folder)
    kept = KeptItems(settings.kept_items)
    context = Context(
        settings=settings,
        keys=Keys(settings.api_keys_file),
        holders=Holders(settings, metrics.count_outcome),
        windows=windows,
        metrics=metrics,
        tracing=tracing,
        processors=processors,
        sample_rate=Rate(settings.samples_per_second),
        batcher=ScoreBatcher(
            lambda is_done, work: processors.run_unless(is_done, "scores", work),
            functools.partial(compare, metrics, windows, kept),
        ),
    )
    return App(context)


class App:
    """The routes, the layers around them, and the start and end of a worker."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings = context.settings
        settings, metrics = context.settings, context.metrics
        self.connections = Connections(metrics.connections, metrics.connections_closed)
        self._load = Load(settings.max_in_flight, settings.requests_per_second, metrics.in_flight)
        self.is_leaving = False
        """True when the server is about to end."""
        self._handlers: dict[tuple[str, str], Handled] = {}
        self._models: dict[str, str | None] = dict.fromkeys(QUIET)
        self._counted: dict[str, str] = {}
        routes = []
        for endpoint in ENDPOINTS:
            paths = endpoint.paths(context.holders)
            self._models |= paths
            handle: Handled = functools.partial(endpoint.handle, context)
            if endpoint.is_counted:
                handle = self._handled(endpoint)
                self._counted |= dict.fromkeys(paths, endpoint.path)
                self._handlers |= {(endpoint.method, path): handle for path in paths}
            for path in filter(None, (endpoint.path, endpoint.by_name)):
                routes.append(Route(path, handle, methods=[endpoint.method]))
        self.routes = Starlette(routes=routes, exception_handlers=dict.fromkeys(EXPECTED, on_error))
        self.routes.router.redirect_slashes = False  # only the exact path is known

    def surround(self, app: ASGIApp) -> ASGIApp:
        """Put our layers around an application: ids, logs and traces; CORS; bounds and keys."""
        context = self.context
        bounded: ASGIApp = Guard(app, context.keys, self._load)
        if origins := self.settings.cors_origins:
            bounded = Cors(bounded, origins.split(","))  # around the guard: pages read errors too
        return RequestMiddleware(
            bounded,
            context.tracing,
            self._models,
            lambda: self.is_leaving,
            self.settings.proxies,
            self._count,
        )

    def _count(self, path: str, exchange: Exchange) -> None:
        """Count a request that has ended; probes are none of our clients', nor are preflights."""
        if exchange.is_preflight:
            return
        metrics = self.context.metrics
        if path in self._counted:
            metrics.count_request(self._counted[path], exchange)
        if path not in QUIET:
            metrics.count_rejection(exchange, self.context.holders.has_model(exchange.model))

    def direct(self) -> dict[tuple[str, str], ASGIApp]:
        """Applications by method and path, layers included, that need no router.

        BentoML's layers and two routers cost as much time as a small answer.
        """
        return dict.fromkeys(self._handlers, self.surround(self._answer_directly))

    async def start(self) -> None:
        """Begin to load the models; probes answer meanwhile."""
        context = self.context
        context.tracing.start()
        context.keys.announce()
        drain_on_sigterm(self, self.settings.drain_seconds)
        context.metrics.count_start((slot.name, slot.role) for slot in context.holders.slots)
        context.holders.start()
        if self.settings.workers > 1:  # the others answer meanwhile: accept nothing before a model
            tried = context.holders.champions_tried
            await anyio.to_thread.run_sync(tried.wait, FIRST_MODEL_SECONDS)

    @property
    def is_ready(self) -> bool:
        """True if the models are ready, and the worker is not about to end."""
        return self.context.holders.is_ready and not self.is_leaving

    def _handled(self, endpoint: Endpoint) -> Handled:
        """Answer requests to an endpoint, errors too."""
        context = self.context

        async def answer(request: Request) -> Response:
            try:
                if endpoint.scope is not None:
                    allow(request.scope.get("key"), endpoint.scope)
                if endpoint.by_name is not None:
                    context.holders.of(exchange_of(request.scope).model)
                if endpoint.path.startswith("/v1/"):
                    check_query(endpoint, request)
                return await endpoint.handle(context, request)
            except EXPECTED as error:
                return await on_error(request, error)

        return answer

    async def _answer_directly(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self.routes  # without it, Starlette raises errors of other types
        handle = self._handlers[scope["method"], scope["path"]]
        response = await handle(Request(scope, receive, send))
        await response(scope, receive, send)


def drain_on_sigterm(app: App, seconds: float) -> None:
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
        if app.is_leaving:  # a second SIGTERM
            stop(number, frame)
            return
        app.is_leaving = True
        loop.call_soon_threadsafe(loop.call_later, seconds, stop, number, None)

    signal.signal(signal.SIGTERM, leave)
