"""The service's operation: workers that die, an end under load, logs, traces and drift."""

import contextlib
import gzip
import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.artifacts import make_artifact
from tests.servers import WGAN, free_port, is_problem, running, wait_for

WINDOW = 100


class Collector:
    """What takes spans by OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Collector"]:
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


class Service:
    def __init__(self, folder: Path, collector: Collector) -> None:
        self.artifact = make_artifact(folder / "artifact", "vector")
        self.port = free_port()
        self.log = folder / "log"
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "WGAN_DRIFT_WINDOW": str(WINDOW),
            "WGAN_DRAIN_SECONDS": "2",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    def get(self, path: str) -> httpx.Response:
        """Over a new connection, so that any worker may answer."""
        return httpx.get(self.address + path, timeout=60)

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def value(self, name: str) -> float:
        """The one value of a metric that is told once."""
        (value,) = [
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            if sample.name == name
        ]
        return value


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector().running() as found:
        yield found


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[tuple[Service, int]]:
    found = Service(tmp_path_factory.mktemp("operations"), collector)
    command = [WGAN, "serve", "--model", found.artifact, "--port", found.port, "--workers", 2]
    with running(command, found.port, found.log, True, **found.environment) as process:
        wait_for(found.address + "/readyz", process, found.log)
        until(lambda: found.value("wgan_workers") == 2, found.log)
        yield found, process.pid


def until(holds: Any, log: Path) -> None:
    for _ in range(900):
        with contextlib.suppress(httpx.TransportError):
            if holds():
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-3000:])


def test_a_request_is_followed_by_its_id_and_its_trace(
    service: tuple[Service, int], collector: Collector
) -> None:
    found, _ = service
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"x-request-id": "mine-1", "traceparent": f"00-{trace}-{parent}-01"}
    answer = httpx.post(
        found.address + "/v1/samples", json={"format": "npz", "seed": 1}, headers=headers
    )
    assert answer.headers["x-request-id"] == "mine-1"

    def logged() -> list[dict[str, Any]]:
        return [e for e in found.entries() if e.get("request_id") == "mine-1"]

    until(logged, found.log)  # the line is written once the answer is sent: it may come after it
    (entry,) = logged()
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/v1/samples", 200)
    assert entry["version"] == answer.headers["x-model-version"]

    def ours() -> list[Any]:
        return [span for span in collector.spans if span.trace_id.hex() == trace]

    until(lambda: len(ours()) == 2, found.log)
    spans = {span.name: span for span in ours()}
    outer = spans.pop("POST /v1/samples")
    assert outer.parent_span_id.hex() == parent
    (inner,) = spans.values()
    assert inner.parent_span_id == outer.span_id
    # An id that could be taken for more than one line, or field, is replaced.
    for bad in ('a"b', "a b", "x" * 65):
        got = httpx.get(found.address + "/v1/model", headers={"x-request-id": bad})
        assert got.headers["x-request-id"] != bad
    assert found.get("/a%0Ab").status_code == 404
    assert all({"time", "level", "logger", "message"} <= set(e) for e in found.entries())


def test_drift_is_of_both_workers_scores(service: tuple[Service, int]) -> None:
    found, _ = service
    assert found.get("/v1/drift").json()["distance"] is None
    random = np.random.default_rng(0)
    for _ in range(2 * WINDOW // 10):
        body = {"samples": random.normal(size=(10, 2)).tolist()}
        assert httpx.post(found.address + "/v1/scores", json=body, timeout=60).status_code == 200
    answer = found.get("/v1/drift").json()
    assert (answer["items"], answer["window"]) == (WINDOW, WINDOW)
    assert answer["drifted"] is (answer["distance"] > answer["threshold"])
    assert found.value("wgan_drift_distance") == answer["distance"]
    assert found.value("wgan_scores_total") == 2 * WINDOW
    is_problem(found.get("/v1/drift?model=challenger"), 422)


def test_a_worker_that_is_killed_is_replaced_and_counted(service: tuple[Service, int]) -> None:
    found, supervisor = service
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    before = {"samples": found.value("wgan_samples_total"), "scores": 2 * WINDOW}
    worker = int(children.read_text().split()[0])
    os.kill(worker, signal.SIGKILL)
    until(lambda: found.value("wgan_workers") == 1, found.log)  # none is left of the dead
    assert found.get("/readyz").status_code == 200  # the other one answers meanwhile
    until(lambda: found.value("wgan_workers") == 2, found.log)
    assert found.value("wgan_worker_starts_total") == 3
    assert found.value("wgan_samples_total") == before["samples"]  # what it did stays counted
    assert found.value("wgan_scores_total") == before["scores"]
    assert str(worker) not in children.read_text().split()
    for _ in range(20):
        assert found.get("/v1/model").status_code == 200


def test_unready_then_stopped_under_load_no_accepted_request_is_lost(
    service: tuple[Service, int],
) -> None:
    """Clients that keep their connection, and new ones; they stop when it is unready."""
    found, supervisor = service
    leave, failures, answers = threading.Event(), [], []

    def keep_asking(keeps: bool) -> None:
        client = httpx.Client(timeout=60)
        while not leave.is_set():
            try:
                body = {"count": 200, "seed": 1, "format": "npz"}
                answers.append(client.post(found.address + "/v1/samples", json=body).status_code)
            except httpx.HTTPError as error:
                failures.append(repr(error))
            if not keeps:
                client.close()
                client = httpx.Client(timeout=60)
        client.close()

    clients = [threading.Thread(target=keep_asking, args=(i % 2 == 0,)) for i in range(6)]
    for client in clients:
        client.start()
    time.sleep(1)
    os.kill(supervisor, signal.SIGTERM)
    # As a load balancer does: it sees that the service is unready, and sends no more.
    until(lambda: found.get("/readyz").status_code == 503, found.log)
    accepted = len(answers)
    time.sleep(0.5)
    assert len(answers) > accepted, "it goes on answering while it is unready"
    leave.set()
    for client in clients:
        client.join(60)
    assert not failures
    assert set(answers) == {200}
    until(lambda: not Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(), found.log)
