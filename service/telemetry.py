"""Logs in JSON with request ids, and traces where they are configured."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from opentelemetry import propagate, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.redaction import redact_logs
from service.exchange import Exchange, client_address, exchange_of

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that is being answered."""
HEADER = "x-request-id"
ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Form of a client's own request id; any other id is replaced by ours."""
IDS = random.Random()
"""Request ids must differ from each other; they need not be secret."""
QUIET = frozenset(("/livez", "/readyz", "/metrics"))
"""Paths that are asked every few seconds: logged only when they fail."""
MAX_PATH = 200
"""Characters of a path in the log."""
BENTOML_HANDLER = "tracehandler"
TRACER = trace.get_tracer("wgan")
log = logging.getLogger("wgan.access")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; line ends in a message are escaped, so one entry cannot pose as two."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            entry["request_id"] = request_id
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            entry["trace_id"] = trace.format_trace_id(span.trace_id)
            entry["span_id"] = trace.format_span_id(span.span_id)
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(entry)


def log_as_json() -> None:
    """Format all lines of BentoML's processes, ours included, as JSON, without the secrets in them.

    Facts that the lines do not show are not collected (the logging HOWTO, "Optimization").
    """
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined] # not in its types
    logging.getLogger("wgan").setLevel(logging.INFO)
    redact_logs(but=log.name)
    for name in ("", "bentoml", "uvicorn.error", "circus"):
        for handler in logging.getLogger(name).handlers:
            if handler.get_name() == BENTOML_HANDLER:
                handler.setFormatter(JsonFormatter())


def new_id() -> str:
    """Make an id for a request that came without one."""
    return f"{IDS.getrandbits(128):032x}"


class Tracing:
    """Spans of requests and of their parts, sent by OTLP over HTTP.

    `OTEL_TRACES_SAMPLER` and OpenTelemetry's other variables hold too.

    Args:
        is_on: True if spans are sent anywhere. To make them costs a small answer some per cent of
            its time, so otherwise none are made.
        service_name: the service's name in traces.
    """

    def __init__(self, is_on: bool, service_name: str) -> None:
        self.is_on = is_on
        self._service_name = service_name

    def start(self) -> None:
        """Send spans from now on, in this process."""
        if not self.is_on:
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({SERVICE_NAME: self._service_name})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)

    def span(self, name: str) -> AbstractContextManager[object]:
        """Make a span within the present one."""
        return TRACER.start_as_current_span(name) if self.is_on else contextlib.nullcontext()

    @contextlib.contextmanager
    def request_span(
        self, method: str, route: str, headers: dict[str, str]
    ) -> Iterator[trace.Span]:
        """Make the span of a request, within the client's own if the headers name one."""
        # The ids of a client's trace are in our log lines even where no span is sent.
        if not self.is_on and "traceparent" not in headers:
            yield trace.INVALID_SPAN
            return
        with TRACER.start_as_current_span(
            f"{method} {route}",
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        ) as span:
            yield span


class RequestMiddleware:
    """Gives each request an id, a span and a line in the log, and has it counted.

    It is the outermost layer, so it sees the status that the client sees.

    Args:
        app: answers the requests.
        tracing: makes the spans.
        paths: known ones, each with the name of the model that it asks, if it asks one; clients
            must not be able to make up names of spans.
        is_leaving: tells whether clients are to close their connections.
        proxies: how many each request comes through, by which the client's address is found.
        on_end: called with each request's path and what is known of it, when it has ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        tracing: Tracing,
        paths: Mapping[str, str | None],
        is_leaving: Callable[[], bool],
        proxies: int,
        on_end: Callable[[str, Exchange], None],
    ) -> None:
        self.app = app
        self.tracing = tracing
        self.paths = paths
        self.is_leaving = is_leaving
        self.proxies = proxies
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        sent_id = headers.get(HEADER, "")
        request_id = sent_id if ACCEPTED_ID.fullmatch(sent_id) else new_id()
        token = REQUEST_ID.set(request_id)
        began = time.perf_counter()
        exchange = exchange_of(scope)
        exchange.client = client_address(scope, self.proxies)
        exchange.model = self.paths.get(scope["path"])

        async def add_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                added = [(HEADER.encode(), request_id.encode())]
                if self.is_leaving():
                    added.append((b"connection", b"close"))
                exchange.version = next(
                    (v.decode() for k, v in message["headers"] if k == b"x-model-version"), None
                )
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            route = scope["path"] if scope["path"] in self.paths else "unknown path"
            with self.tracing.request_span(scope["method"], route, headers) as span:
                await self.app(scope, receive, add_headers)
                if exchange.status is not None:
                    span.set_attribute("http.response.status_code", exchange.status)
        finally:
            self.on_end(scope["path"], exchange)
            status = exchange.status
            if scope["path"] not in QUIET or status is None or status >= 400:
                fields = {
                    "method": scope["method"],
                    "path": scope["path"][:MAX_PATH],
                    "status": status,  # null: the service was stopped before it could answer
                    "seconds": round(time.perf_counter() - began, 6),
                    "model": exchange.model,
                    "version": exchange.version,
                    "key": exchange.key,
                    "client": exchange.client,
                }
                log.info("request", extra={"fields": fields})
            REQUEST_ID.reset(token)
