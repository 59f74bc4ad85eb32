"""Prometheus metrics. Every label has few values: none comes from a request's path or body.

Counters, histograms and live gauges are shared by the workers through files, so any worker can
answer for all. Figures of the models are those of the worker that is asked.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from service import connections
from service.exchange import GONE, Exchange
from service.served import Served

Array = np.ndarray
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
OUTCOMES = (
    *("swapped", "cached", "refused", "no_room", "machine", "broken", "missing", "unreachable"),
)
REASONS = {
    400: "schema",
    401: "no_key",
    403: "scope",
    404: "unknown_path",
    405: "method",
    408: "slow",
    413: "too_large",
    431: "too_large",
    415: "undecodable",
    422: "content",
    429: "rate",
    GONE: "gone",
    503: "busy",
    504: "timeout",
}
"""Reasons of rejections by status; a 503 without a model is `NO_MODEL`."""
NO_MODEL = "no_model"
NOT_SERVED = "not_served"
"""Reason of a 404 to a request that names a version."""
SHARE = "share"
"""Reason of a 429 to a caller that has more requests under way than is fair."""


class Metrics:
    """Counters, gauges and histograms of one worker.

    Args:
        folder: where the workers share their counts; None: this process is the only one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._registry = CollectorRegistry()

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(name, description, labels, registry=self._registry)

        def gauge(name: str, description: str) -> Gauge:
            return Gauge(name, description, multiprocess_mode="livesum", registry=self._registry)

        def histogram(
            name: str, description: str, label: str, buckets: tuple[float, ...] = SECONDS
        ) -> Histogram:
            labels = ["model", label]
            return Histogram(name, description, labels, buckets=buckets, registry=self._registry)

        self.requests = counter(
            "wgan_requests",
            "Requests, by the status that the client saw; 499: it left before the end.",
            "model",
            "endpoint",
            "status",
        )
        self.duration = histogram(
            "wgan_request_duration_seconds",
            "Time from a request's whole body to its whole answer.",
            "endpoint",
            (*SECONDS[1:], 10.0, 30.0, 60.0, 300.0),  # a stream takes as long as its client reads
        )
        self.rejections = counter(
            "wgan_rejections", "Requests that were refused, by reason.", "reason"
        )
        self.samples = counter("wgan_samples", "Samples generated.", "model", "role")
        self.scores = counter("wgan_scores", "Items scored.", "model", "role")
        self.score = histogram(
            "wgan_score",
            "The critic's scores, in its own unit.",
            "role",
            (-1000, -300, -100, -30, -10, -3, -1, -0.3, 0, 0.3, 1, 3, 10, 30, 100, 300, 1000),
        )
        self.percentile = histogram(
            "wgan_score_percentile",
            "Where scores stand among those of real held-out items, 0 to 100.",
            "role",
            (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100),
        )
        self.generation = histogram(
            "wgan_generation_seconds",
            "Time to generate a request's samples, without waiting.",
            "role",
        )
        self.encoding = histogram(
            "wgan_encoding_seconds", "Time to encode a request's samples.", "format"
        )
        self.scoring = histogram(
            "wgan_scoring_seconds",
            "Time to decode and score a request's items, without waiting.",
            "role",
        )
        self.queue = gauge("wgan_queue_depth", "Requests that wait for a processor.")
        self.in_flight = gauge(
            "wgan_requests_in_flight", "Requests being answered, waiting ones included."
        )
        self.connections = gauge("wgan_connections", "Connections that are open.")
        self.connections_closed = counter(
            "wgan_connections_closed",
            "Connections closed: no_request (no whole head came in time), no_tls (the handshake "
            "failed), not_http, slow_reader, crowded (too many were open).",
            "reason",
        )
        self.workers = gauge("wgan_workers", "Workers alive.")
        self.worker_starts = counter(
            "wgan_worker_starts",
            "Workers started; above the number of workers, some died and were replaced.",
        )
        self.reloads = counter(
            "wgan_model_reloads",
            "Attempts to serve another version: swapped, cached (last good one, after a restart), "
            "refused (not sound), no_room (beyond WGAN_MODELS_MEMORY), machine (such as a full "
            "disk), missing (the registry has none), unreachable (registry or its storage).",
            "model",
            "role",
            "outcome",
        )
        for reason in (*REASONS.values(), SHARE, NO_MODEL, NOT_SERVED):
            self.rejections.labels(reason)  # shown from the start, at 0
        for reason in connections.REASONS:
            self.connections_closed.labels(reason)

    def count_start(self, models: Iterable[tuple[str, str]]) -> None:
        """Count this worker, and show the outcomes of each model, by its name and role, at 0."""
        self.workers.set(1)
        self.worker_starts.inc()
        for labels in models:
            for outcome in OUTCOMES:
                self.reloads.labels(*labels, outcome)

    def count_outcome(self, model: str, role: str, outcome: str) -> None:
        """Count the outcome of an attempt to serve another version of a model."""
        self.reloads.labels(model, role, outcome).inc()

    def count_request(self, endpoint: str, exchange: Exchange) -> None:
        """Count a request that has ended, and time it if its body was read."""
        model = exchange.model or ""  # to Prometheus an empty label is none
        self.requests.labels(model, endpoint, exchange.status or 503).inc()  # none: we were stopped
        if exchange.received is not None:
            seconds = time.perf_counter() - exchange.received
            self.duration.labels(model, endpoint).observe(seconds)

    def count_rejection(self, exchange: Exchange, has_model: bool) -> None:
        """Count a request if it was refused."""
        reason = exchange.reason or REASONS.get(exchange.status or 0)
        if reason:
            is_without = exchange.status == 503 and not has_model
            self.rejections.labels(NO_MODEL if is_without else reason).inc()

    def count_scores(self, served: Served, scores: Array, percentiles: Array) -> None:
        """Count a model's scores ``(N,)`` and their percentiles ``(N,)``."""
        labels = served.labels
        self.scores.labels(*labels).inc(len(scores))
        score, percentile = self.score.labels(*labels), self.percentile.labels(*labels)
        for value in scores.tolist():
            score.observe(value)
        for value in percentiles.tolist():
            percentile.observe(value)

    def render(self, models: Collector) -> bytes:
        """Write the metrics of all workers, and those of ``models``, in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(models)
        if self.folder:
            _forget_dead_workers(self.folder)
            MultiProcessCollector(registry, str(self.folder))  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self._registry) + generate_latest(registry)


class SampleTimer:
    """Time that a request's samples take: to generate, and to encode, which take turns."""

    def __init__(self, metrics: Metrics, served: Served, format: str) -> None:
        self._metrics = metrics
        self._served = served
        self._format = format
        self._generation = 0.0
        self._total = 0.0

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """Time the generator; this lies within `working`."""
        began = time.perf_counter()
        yield
        self._generation += time.perf_counter() - began

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Time all work: generating and encoding, but no waiting."""
        began = time.perf_counter()
        yield
        self._total += time.perf_counter() - began

    def done(self) -> None:
        """Record the whole request."""
        metrics, served = self._metrics, self._served
        metrics.generation.labels(*served.labels).observe(self._generation)
        encoding = metrics.encoding.labels(served.name, self._format)
        encoding.observe(self._total - self._generation)


def cache_process_id() -> None:
    """Make the counts that are shared through files look up the process id only once.

    Workers never fork, so cache the pid: asking the system at each of a dozen counts a request
    costs as much as the counts.
    """
    values.ValueClass = values.MultiProcessValue(partial(int, os.getpid()))  # type: ignore[no-untyped-call]


def _forget_dead_workers(folder: Path) -> None:
    """Delete the live gauges of workers that were killed; they would be counted for ever."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with contextlib.suppress(FileNotFoundError):  # another worker was quicker
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
