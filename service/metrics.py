"""Prometheus metrics. Every label has few values: none comes from a request's path or body.

Counters, histograms and live gauges are shared by the workers through files, so that whichever
worker is asked tells of all; what is known of a model is told by the worker that is asked.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from service.drift import Windows
from service.state import ModelHolder, Served

Array = np.ndarray
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    # A worker does not fork: to ask the system who it is at each of a dozen counts costs as much.
    values.ValueClass = values.MultiProcessValue(partial(int, os.getpid()))  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
SEVERITIES = ("info", "warning", "critical")
SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds."""

REQUESTS = Counter("wgan_requests", "Requests answered.", ["endpoint", "status"], registry=REGISTRY)
DURATION = Histogram(
    "wgan_request_duration_seconds",
    "Time from a request's whole body to its whole answer.",
    ["endpoint"],
    buckets=(*SHORT[1:], 10.0),
    registry=REGISTRY,
)
REJECTIONS = Counter(
    "wgan_rejections", "Requests that were refused, by reason.", ["reason"], registry=REGISTRY
)
SAMPLES = Counter("wgan_samples", "Samples generated.", ["role"], registry=REGISTRY)
SCORED = Counter("wgan_scores", "Items scored.", ["role"], registry=REGISTRY)
SCORE = Histogram(
    "wgan_score",
    "The critic's scores, in its own unit.",
    ["role"],
    buckets=(-1000, -300, -100, -30, -10, -3, -1, -0.3, 0, 0.3, 1, 3, 10, 30, 100, 300, 1000),
    registry=REGISTRY,
)
PERCENTILE = Histogram(
    "wgan_score_percentile",
    "Where scores stand among those of real held-out items, 0 to 100.",
    ["role"],
    buckets=(0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100),
    registry=REGISTRY,
)
GENERATION = Histogram(
    "wgan_generation_seconds",
    "Time to generate a request's samples, without waiting.",
    ["role"],
    buckets=SHORT,
    registry=REGISTRY,
)
ENCODING = Histogram(
    "wgan_encoding_seconds",
    "Time to encode a request's samples.",
    ["format"],
    buckets=SHORT,
    registry=REGISTRY,
)
SCORING = Histogram(
    "wgan_scoring_seconds",
    "Time to decode and score a request's items, without waiting.",
    ["role"],
    buckets=SHORT,
    registry=REGISTRY,
)
QUEUE = Gauge(
    "wgan_queue_depth",
    "Requests that wait for a processor.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
IN_FLIGHT = Gauge(
    "wgan_requests_in_flight",
    "Requests being answered, waiting ones included.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
WORKERS = Gauge("wgan_workers", "Workers alive.", multiprocess_mode="livesum", registry=REGISTRY)
WORKER_STARTS = Counter(
    "wgan_worker_starts",
    "Workers started; above the number of workers, some died and were replaced.",
    registry=REGISTRY,
)
RELOADS = Counter(
    "wgan_model_reloads",
    "Attempts to serve another version: swapped, cached (last good one, after a restart), refused "
    "(not sound), missing (the registry has none), unreachable (registry or its storage).",
    ["role", "outcome"],
    registry=REGISTRY,
)
OUTCOMES = ("swapped", "cached", "refused", "missing", "unreachable")
REASONS = {
    400: "schema",
    401: "no_key",
    403: "scope",
    404: "unknown_path",
    405: "method",
    408: "gone",
    413: "too_large",
    431: "too_large",
    415: "undecodable",
    422: "content",
    503: "busy",
    504: "timeout",
}
"""By status; a 503 without a model is ``no_model``."""
NO_MODEL = "no_model"
for _reason in (*REASONS.values(), NO_MODEL):
    REJECTIONS.labels(_reason)


class Spent:
    """Time that a request's samples take: to generate, and to encode, which go by turns."""

    def __init__(self, role: str, format: str) -> None:
        self.role = role
        self.format = format
        self._generation = 0.0
        self._all = 0.0

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """Within `working`."""
        began = time.perf_counter()
        yield
        self._generation += time.perf_counter() - began

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Whatever is no waiting."""
        began = time.perf_counter()
        yield
        self._all += time.perf_counter() - began

    def done(self) -> None:
        """Count the whole request."""
        GENERATION.labels(self.role).observe(self._generation)
        ENCODING.labels(self.format).observe(self._all - self._generation)


def started(holder: ModelHolder) -> None:
    """Count this worker, and from now on what becomes of its models."""
    WORKERS.set(1)
    WORKER_STARTS.inc()
    for slot in holder.slots:
        for outcome in OUTCOMES:
            RELOADS.labels(slot.role, outcome)
        slot.outcomes = lambda role, outcome: RELOADS.labels(role, outcome).inc()


def rejected(status: int, holder: ModelHolder) -> None:
    """Count an answer's status if it is a refusal."""
    reason = REASONS.get(status)
    if reason:
        is_without = status == 503 and holder.served is None
        REJECTIONS.labels(NO_MODEL if is_without else reason).inc()


def scored(role: str, scores: Array, percentiles: Array) -> None:
    """Count scores ``(N,)`` and where they stand."""
    SCORED.labels(role).inc(len(scores))
    score, percentile = SCORE.labels(role), PERCENTILE.labels(role)
    for value in scores.tolist():
        score.observe(value)
    for value in percentiles.tolist():
        percentile.observe(value)


def render(holder: ModelHolder, windows: Windows) -> bytes:
    """The metrics of all workers, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(ModelCollector(holder, windows))
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder:
        _forget_dead_workers(Path(folder))
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest(REGISTRY) + generate_latest(registry)


class ModelCollector(Collector):
    """What is known of the models being served, read anew at each scrape."""

    def __init__(self, holder: ModelHolder, windows: Windows) -> None:
        self.holder = holder
        self.windows = windows

    def collect(self) -> Iterator[Metric]:
        """Yield the models' figures; of a model that is not there, only that."""
        holder = self.holder
        yield GaugeMetricFamily(
            "wgan_model_ready",
            "1 when a verified champion has run once.",
            float(holder.served is not None),
        )
        reachable = [slot.reachable for slot in holder.slots if slot.reachable is not None]
        if reachable:
            yield GaugeMetricFamily(
                "wgan_registry_reachable",
                "1 when the registry answered the last question.",
                float(all(reachable)),
            )
        refused = InfoMetricFamily(
            "wgan_model_refused", "The version that was refused; another may go on serving."
        )
        for slot in holder.slots:
            if slot.refused:
                refused.add_metric([], {"role": slot.role, "version": slot.refused})
        yield refused
        served = [slot.served for slot in holder.slots if slot.served]
        yield from _about(served)
        if self.windows.size:
            yield from _drift(served, self.windows)


def _about(models: list[Served]) -> Iterator[Metric]:
    def gauge(name: str, says: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, says, labels=["role", *labels])

    info = InfoMetricFamily("wgan_model", "The model being served.")
    age = gauge("wgan_model_age_seconds", "Time since the model was made.")
    values = gauge("wgan_constraint_hyperparameter", "Numeric hyperparameters.", "name")
    norms = gauge(
        "wgan_critic_gradient_norm",
        "Quantiles of the critic's gradient norm, as measured after training.",
        "place",
        "quantile",
    )
    lipschitz = gauge(
        "wgan_critic_lipschitz",
        "The critic's Lipschitz constant: certified from above, sampled from below.",
        "bound",
    )
    saturated = gauge(
        "wgan_critic_saturated_ratio", "Share of the clipped weights that lie at their bound."
    )
    quality = gauge("wgan_quality", "Quality on held-out data.", "metric", "extractor")
    floor = gauge("wgan_quality_floor", "The same of real against real.", "metric", "extractor")
    findings = gauge("wgan_findings", "What is wrong with the run, by severity.", "severity")
    for model in models:
        role, run = model.role, model.model.run
        info.add_metric(
            [],
            {
                "role": role,
                "version": model.version,
                "digest": model.model.digest,
                "constraint": run.constraint.kind,
                "guarantee": run.constraint.guarantee,
                "data": run.data.name,
                "data_sha256": run.data.sha256,
                "engine": f"{run.engine.name}-{run.engine.precision}",
            },
        )
        age.add_metric([role], time.time() - datetime.fromisoformat(run.created).timestamp())
        for name, value in run.constraint.hyperparameters.items():
            if isinstance(value, int | float):
                values.add_metric([role, name], value)
        for place, summary in run.lipschitz.gradient_norm.items():
            for quantile, value in summary.quantiles.items():
                norms.add_metric([role, place, quantile], value)
        bounds = {"certified": run.lipschitz.certified, "sampled": run.lipschitz.sampled}
        for bound, value in bounds.items():
            if value is not None:
                lipschitz.add_metric([role, bound], value)
        if model.saturated_share is not None:
            saturated.add_metric([role], model.saturated_share)
        extractor = run.results.extractor.name if run.results.extractor else ""
        for name, figure in run.results.figures.items():
            quality.add_metric([role, name, extractor], figure.value)
            if figure.floor is not None:
                floor.add_metric([role, name, extractor], figure.floor)
        for severity in SEVERITIES:
            found = sum(f.severity == severity for f in run.findings)
            findings.add_metric([role, severity], found)
    yield from (info, age, values, norms, lipschitz, saturated, quality, floor, findings)


def _drift(models: list[Served], windows: Windows) -> Iterator[Metric]:
    gauges = {
        name: GaugeMetricFamily(f"wgan_drift_{name}", says, labels=["role"])
        for name, says in (
            ("items", "Scores in the window of recent traffic."),
            ("distance", "W1 between recent scores and those of real held-out items."),
            ("threshold", "What that distance of real data stays below in 99% of windows."),
            ("lower_bound", "Lower bound of W1 between the items, from the certified constant."),
        )
    }
    for model in models:
        for name, value in windows.report(model)._asdict().items():
            if value is not None:
                gauges[name].add_metric([model.role], value)
    yield from gauges.values()


def _forget_dead_workers(folder: Path) -> None:
    """Live gauges of a worker that was killed would be counted for ever."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with contextlib.suppress(FileNotFoundError):  # another worker was quicker
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
