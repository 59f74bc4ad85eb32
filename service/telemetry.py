"""What an operator can follow: JSON logs with request ids, and traces where they are configured."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from opentelemetry import propagate, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered."""
HEADER = "x-request-id"
ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a client's own request id may be; another is replaced by ours."""
IDS = random.Random()
"""Ours need be unlike each other, not secret."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
TRACING = any(map(os.environ.get, ENDPOINTS))
"""Whether spans are sent anywhere; making them costs a small answer some per cent of its time."""
QUIET = frozenset(("/livez", "/readyz", "/metrics"))
"""Asked every few seconds: logged only where they fail."""
LONGEST_PATH = 200
BENTOML_HANDLER = "tracehandler"
TRACER = trace.get_tracer("wgan")
log = logging.getLogger("wgan.access")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; line ends in a message are escaped, so it cannot pose as two."""
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
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def log_as_json() -> None:
    """Have what BentoML's processes write, ours included, be JSON.

    What its lines do not tell need not be found out for each (the logging HOWTO, "Optimization").
    """
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined] # not in its types
    logging.getLogger("wgan").setLevel(logging.INFO)
    for name in ("", "bentoml", "uvicorn.error", "circus"):
        for handler in logging.getLogger(name).handlers:
            if handler.get_name() == BENTOML_HANDLER:
                handler.setFormatter(JsonFormatter())


def trace_if_configured() -> None:
    """Send spans by OTLP over HTTP, if OpenTelemetry's own variables name an endpoint.

    `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and the like hold too.
    """
    if not TRACING:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", "wgan")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def new_id() -> str:
    """An id for a request that came without one."""
    return f"{IDS.getrandbits(128):032x}"


def span(name: str) -> AbstractContextManager[object]:
    """A span within the present one, if spans are sent anywhere."""
    return TRACER.start_as_current_span(name) if TRACING else contextlib.nullcontext()


class RequestMiddleware:
    """Gives each request an id, a span and a line in the log.

    It lies outside everything else, so that it sees the status that the client sees.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: frozenset[str],
        is_leaving: Callable[[], bool],
    ) -> None:
        self.app = app
        self.paths = paths
        """Known ones: a span's name is not taken from just any client."""
        self.is_leaving = is_leaving
        """Whether clients are to let go of their connections."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        given = headers.get(HEADER, "")
        request_id = given if ACCEPTED_ID.fullmatch(given) else new_id()
        token = REQUEST_ID.set(request_id)
        began = time.perf_counter()
        status: int | None = None
        version: str | None = None

        async def telling(message: Message) -> None:
            nonlocal status, version
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(HEADER.encode(), request_id.encode())]
                if self.is_leaving():
                    added.append((b"connection", b"close"))
                version = next(
                    (v.decode() for k, v in message["headers"] if k == b"x-model-version"), None
                )
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            with self._span(scope, headers) as span:
                await self.app(scope, receive, telling)
                if status is not None:
                    span.set_attribute("http.response.status_code", status)
        finally:
            if scope["path"] not in QUIET or status is None or status >= 400:
                fields = {
                    "method": scope["method"],
                    "path": scope["path"][:LONGEST_PATH],
                    "status": status,  # null: the client left before its answer
                    "seconds": round(time.perf_counter() - began, 6),
                    "version": version,
                }
                log.info("request", extra={"fields": fields})
            REQUEST_ID.reset(token)

    @contextlib.contextmanager
    def _span(self, scope: Scope, headers: dict[str, str]) -> Iterator[trace.Span]:
        if not TRACING and "traceparent" not in headers:  # whose ids are for the log at least
            yield trace.INVALID_SPAN
            return
        known = scope["path"] in self.paths
        path = scope["path"] if known else "unknown path"
        with TRACER.start_as_current_span(
            f"{scope['method']} {path}",
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "http.route": path},
        ) as span:
            yield span
