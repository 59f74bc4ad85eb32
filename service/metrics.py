"""Prometheus metrics. Every label has few values: none comes from a request's path or body."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from service.state import ModelHolder

REGISTRY = CollectorRegistry()
REQUESTS = Counter("wgan_requests", "Requests answered.", ["endpoint", "status"], registry=REGISTRY)
DURATION = Histogram(
    "wgan_request_duration_seconds",
    "Time from a request's whole body to its whole answer.",
    ["endpoint"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    registry=REGISTRY,
)
SAMPLES = Counter("wgan_samples", "Samples generated.", registry=REGISTRY)
SCORED = Counter("wgan_scores", "Items scored.", registry=REGISTRY)


class ModelCollector(Collector):
    """What is known of the model being served, read anew at each scrape."""

    def __init__(self, holder: ModelHolder) -> None:
        self.holder = holder

    def collect(self) -> Iterator[InfoMetricFamily | GaugeMetricFamily]:
        """Yield the model's figures, or only that there is none."""
        served = self.holder.served
        yield GaugeMetricFamily(
            "wgan_model_ready", "1 when a verified model has run once.", float(served is not None)
        )
        if served is None:
            return
        run = served.model.run
        yield InfoMetricFamily(
            "wgan_model",
            "The model being served.",
            {
                "version": served.version,
                "digest": served.model.digest,
                "constraint": run.constraint.kind,
                "data": run.data.name,
                "data_sha256": run.data.sha256,
            },
        )
        values = GaugeMetricFamily(
            "wgan_constraint_hyperparameter", "Numeric hyperparameters.", labels=["name"]
        )
        for name, value in run.constraint.hyperparameters.items():
            if isinstance(value, int | float):
                values.add_metric([name], value)
        yield values
        extractor = run.results.extractor.name if run.results.extractor else ""
        quality = GaugeMetricFamily(
            "wgan_quality", "Quality on held-out data.", labels=["metric", "extractor"]
        )
        floor = GaugeMetricFamily(
            "wgan_quality_floor", "The same of real against real.", labels=["metric", "extractor"]
        )
        for name, figure in run.results.figures.items():
            quality.add_metric([name, extractor], figure.value)
            if figure.floor is not None:
                floor.add_metric([name, extractor], figure.floor)
        yield quality
        yield floor
        norms = GaugeMetricFamily(
            "wgan_critic_gradient_norm",
            "Quantiles of the critic's gradient norm, as measured after training.",
            labels=["place", "quantile"],
        )
        for place, summary in run.lipschitz.get("gradient_norm", {}).items():
            for quantile, value in summary["quantiles"].items():
                norms.add_metric([place, quantile], value)
        yield norms
