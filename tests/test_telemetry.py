"""Lines of the log, ids of requests and spans, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import telemetry
from service.exchange import Exchange
from service.telemetry import REQUEST_ID, JsonFormatter, RequestMiddleware, Tracing, new_id

PATHS: dict[str, str | None] = {"/v1/samples": "digits", "/livez": None, "/readyz": None}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Spans that have ended, by a provider of the test's own."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "TRACER", provider.get_tracer("test"))
    return exporter


def ask(
    path: str,
    answer: ASGIApp,
    *,
    sent: dict[str, str] | None = None,
    is_leaving: bool = False,
    is_tracing: bool = False,
) -> tuple[list[Message], list[tuple[str, Exchange]]]:
    """Serve a request; what was sent, and what was known when it had ended."""
    messages, ended = list[Message](), list[tuple[str, Exchange]]()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    app = RequestMiddleware(
        answer, Tracing(is_tracing, "test"), PATHS, lambda: is_leaving, 0,
        lambda *told: ended.append(told),
    )  # fmt: skip
    headers = [(k.encode(), v.encode()) for k, v in (sent or {}).items()]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}

    async def serve() -> None:
        with contextlib.suppress(ZeroDivisionError):
            await app({**scope, "client": ("192.0.2.1", 5)}, receive, send)
        assert REQUEST_ID.get() is None, "what is logged next is of no request"

    asyncio.run(serve())
    return messages, ended


def headers_of(messages: list[Message]) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in messages[0]["headers"]}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "wgan.access")
    return caplog


def fields_of(lines: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [line.fields for line in lines.records]  # type: ignore[attr-defined]


def test_a_line_tells_the_time_the_request_the_trace_and_the_fields_of_a_record(
    spans: InMemorySpanExporter,
) -> None:
    record = logging.LogRecord("wgan.x", logging.WARNING, "f", 1, "%s\nsaid", ("he",), None)
    plain = json.loads(JsonFormatter().format(record))
    assert plain == {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": "warning",
        "logger": "wgan.x",
        "message": "he\nsaid",
    }
    record.fields = {"path": "/x"}
    try:
        raise ZeroDivisionError("of one by zero")
    except ZeroDivisionError:
        record.exc_info = sys.exc_info()
    token = REQUEST_ID.set("mine")
    with telemetry.TRACER.start_as_current_span("one"):
        text = JsonFormatter().format(record)
    REQUEST_ID.reset(token)
    assert "\n" not in text
    found = json.loads(text)
    (span,) = spans.get_finished_spans()
    assert span.context is not None
    assert found["exception"].endswith("ZeroDivisionError: of one by zero")
    assert {**found, "exception": ""} == {
        **plain,
        "request_id": "mine",
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "path": "/x",
        "exception": "",
    }
    record.exc_text = "without secrets"  # as it was made before
    assert json.loads(JsonFormatter().format(record))["exception"] == "without secrets"


def test_ids_have_32_digits_of_which_all_are_drawn() -> None:
    made = [new_id() for _ in range(300)]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert len({*made}) == 300
    assert {one[0] for one in made} == {*"0123456789abcdef"}


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("a" * 64, True), ("A-b_9.z", True), ("a" * 65, False), ("a b", False), ("", False)],
)
def test_an_id_of_the_client_is_kept_if_it_has_the_form(sent: str, is_kept: bool) -> None:
    seen = list[str | None]()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(REQUEST_ID.get())
        await Response("x", headers={"a": "b"})(scope, receive, send)

    messages, _ = ask("/v1/samples", answer, sent={"x-request-id": sent})
    told = headers_of(messages)
    assert seen == [told["x-request-id"]]
    assert (seen == [sent]) is is_kept
    assert is_kept or re.fullmatch("[0-9a-f]{32}", told["x-request-id"])
    assert (told["a"], told.get("connection")) == ("b", None)
    assert messages[1]["body"] == b"x"


def test_clients_are_told_to_close_their_connections_to_a_server_that_leaves() -> None:
    messages, _ = ask("/livez", Response(), is_leaving=True)
    assert headers_of(messages)["connection"] == "close"


def test_a_request_is_told_when_it_has_ended(lines: pytest.LogCaptureFixture) -> None:
    answer = Response(status_code=201, headers={"X-Model-Version": "digits@3"})
    _, ended = ask("/v1/samples", answer)
    (fields,) = fields_of(lines)
    assert 0 <= fields.pop("seconds") < 60
    assert fields == {
        "method": "GET",
        "path": "/v1/samples",
        "status": 201,
        "model": "digits",
        "version": "digits@3",
        "key": None,
        "client": "192.0.2.1",
    }
    ((path, exchange),) = ended
    assert (path, exchange.status, exchange.version) == ("/v1/samples", 201, "digits@3")
    assert (exchange.model, exchange.client) == ("digits", "192.0.2.1")


@pytest.mark.parametrize(
    ("path", "status", "is_logged"),
    [
        ("/livez", 200, False),
        ("/readyz", 399, False),
        ("/readyz", 400, True),
        ("/metrics", 503, True),
        ("/v1/samples", 200, True),
        ("/" + "a" * 300, 404, True),
    ],
)
def test_probes_are_logged_when_they_fail(
    path: str, status: int, is_logged: bool, lines: pytest.LogCaptureFixture
) -> None:
    _, ended = ask(path, Response(status_code=status))
    assert [fields["path"] for fields in fields_of(lines)] == [path[:200]] * is_logged
    assert [(p, e.status) for p, e in ended] == [(path, status)]


def test_a_request_without_an_answer_has_no_status(lines: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    for path in ("/livez", "/v1/samples"):
        messages, ((_, exchange),) = ask(path, fails)
        assert messages == []
        assert (exchange.status, exchange.version) == (None, None)
    assert [fields["status"] for fields in fields_of(lines)] == [None, None]


def test_what_is_no_request_passes(lines: pytest.LogCaptureFixture) -> None:
    seen = list[Scope]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    def ended(*_: object) -> None:
        pytest.fail("there was no request")

    made = RequestMiddleware(app, Tracing(False, "x"), {}, lambda: False, 0, ended)
    asyncio.run(made({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == [{"type": "lifespan"}]
    assert not lines.records


def test_a_span_of_a_request_lies_within_the_client_s(spans: InMemorySpanExporter) -> None:
    parent = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        with Tracing(True, "x").span("work"):
            await Response(status_code=404)(scope, receive, send)

    def made() -> Iterator[ReadableSpan]:
        yield from spans.get_finished_spans()
        spans.clear()

    ask("/v1/samples", answer, sent=parent, is_tracing=True)
    work, request = made()
    assert (work.name, request.name) == ("work", "GET /v1/samples")
    assert request.kind is trace.SpanKind.SERVER
    assert request.attributes == {
        "http.request.method": "GET",
        "http.route": "/v1/samples",
        "http.response.status_code": 404,
    }
    assert request.context is not None
    assert request.parent is not None
    assert work.parent is not None
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert work.parent.span_id == request.context.span_id
    ask("/made/up", Response(), is_tracing=True)
    (request,) = made()
    assert (request.name, request.parent) == ("GET unknown path", None)


def test_without_tracing_only_the_client_s_ids_are_known(spans: InMemorySpanExporter) -> None:
    """They are in our log lines even where no span is sent."""
    seen = list[str]()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")
        await Response()(scope, receive, send)

    ask("/v1/samples", answer)
    ask("/v1/samples", answer, sent={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    assert seen == ["0" * 32, TRACE]
    with Tracing(False, "x").span("work"):
        pass
    assert "work" not in [span.name for span in spans.get_finished_spans()]


def test_nothing_is_sent_where_nothing_is_traced() -> None:
    before = trace.get_tracer_provider()
    Tracing(False, "x").start()
    assert trace.get_tracer_provider() is before


def test_all_lines_of_a_server_are_json_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    for name in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    monkeypatch.setattr(logging, "logAsyncioTasks", True, raising=False)
    ours, other = logging.StreamHandler(), logging.StreamHandler()
    ours.set_name(telemetry.BENTOML_HANDLER)
    bentoml = logging.getLogger("bentoml")
    monkeypatch.setattr(bentoml, "handlers", [ours, other])
    monkeypatch.setattr(logging.getLogger("wgan"), "level", logging.WARNING)
    make = logging.getLogRecordFactory()
    try:
        telemetry.log_as_json()
        made = bentoml.makeRecord("bentoml", 20, "f", 1, "http://ann:password@host/", (), None)
    finally:
        logging.setLogRecordFactory(make)
    assert isinstance(ours.formatter, JsonFormatter)
    assert other.formatter is None
    assert logging.getLogger("wgan").level == logging.INFO
    assert made.getMessage() == "http://ann:***@host/"
    facts = ("thread", "threadName", "process", "processName", "taskName")
    assert {getattr(made, fact, None) for fact in facts} == {None}
