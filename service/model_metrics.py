"""Metrics of the models that are being served, read anew at each scrape."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.drift import Windows
from service.holders import Holders
from service.served import Served

SEVERITIES = ("info", "warning", "critical")


class ModelCollector(Collector):
    """Figures of the models, from their records and from recent traffic."""

    def __init__(self, holders: Holders, windows: Windows) -> None:
        self.holders = holders
        self.windows = windows

    def collect(self) -> Iterator[Metric]:
        """Yield the figures; of a model that is not served, only that."""
        holders = self.holders
        ready = GaugeMetricFamily(
            "wgan_model_ready", "1 when a verified champion has run once.", labels=["model"]
        )
        for holder in holders:
            ready.add_metric([holder.name], float(holder.served is not None))
        yield ready
        answers = holders.registry_answers
        if answers is not None:
            yield GaugeMetricFamily(
                "wgan_registry_reachable",
                "1 when the registry answered the last question.",
                float(answers),
            )
        yield GaugeMetricFamily(
            "wgan_models_bytes",
            "Bytes of the files of all versions that are held, old ones still in use included.",
            float(holders.room.held),
        )
        refused = InfoMetricFamily(
            "wgan_model_refused", "The version that was refused; another may go on serving."
        )
        for slot in holders.slots:
            if version := slot.refused:  # read once: another thread may set it to None
                labels = {"model": slot.name, "role": slot.role, "version": version}
                refused.add_metric([], labels)
        yield refused
        served = [slot.served for slot in holders.slots if slot.served]
        yield from _record_metrics(served)
        if self.windows.size:
            yield from _drift_metrics(served, self.windows)


def _record_metrics(models: list[Served]) -> Iterator[Metric]:
    def gauge(name: str, description: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, description, labels=["model", "role", *labels])

    info = InfoMetricFamily("wgan_model", "The model being served.")
    age = gauge("wgan_model_age_seconds", "Time since the model was made.")
    values = gauge("wgan_constraint_hyperparameter", "Numeric hyperparameters.", "name")
    norms = gauge(
        "wgan_critic_gradient_norm",
        "Quantiles of the critic's gradient norm, as measured after training.",
        "place",
        "level",  # of the quantile; the label `quantile` is for summaries
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
    epsilon = gauge(
        "wgan_model_privacy_epsilon",
        "Epsilon that differentially private training has spent; none for other models.",
        "delta",
    )
    findings = gauge("wgan_findings", "What is wrong with the run, by severity.", "severity")
    for model in models:
        labels, run = model.labels, model.model.run
        info.add_metric(
            [],
            {
                "model": model.name,
                "role": model.role,
                "version": model.version,
                "digest": model.model.digest,
                "constraint": run.constraint.kind,
                "guarantee": run.constraint.guarantee,
                "data": run.data.name,
                "data_sha256": run.data.sha256,
                "engine": f"{run.engine.name}-{run.engine.precision}",
            },
        )
        age.add_metric(labels, time.time() - datetime.fromisoformat(run.created).timestamp())
        for name, value in run.constraint.hyperparameters.items():
            if isinstance(value, int | float):
                values.add_metric([*labels, name], value)
        for place, summary in run.lipschitz.gradient_norm.items():
            for quantile, value in summary.quantiles.items():
                norms.add_metric([*labels, place, quantile], value)
        bounds = {"certified": run.lipschitz.certified, "sampled": run.lipschitz.sampled}
        for bound, value in bounds.items():
            if value is not None:
                lipschitz.add_metric([*labels, bound], value)
        if run.privacy is not None:
            epsilon.add_metric([*labels, f"{run.privacy.delta:g}"], run.privacy.epsilon)
        if model.saturated_share is not None:
            saturated.add_metric(labels, model.saturated_share)
        extractor = run.results.extractor.name if run.results.extractor else ""
        for name, figure in run.results.figures.items():
            quality.add_metric([*labels, name, extractor], figure.value)
            if figure.floor is not None:
                floor.add_metric([*labels, name, extractor], figure.floor)
        for severity in SEVERITIES:
            count = sum(f.severity == severity for f in run.findings)
            findings.add_metric([*labels, severity], count)
    yield from (info, age, values, norms, lipschitz, saturated, quality, floor, epsilon, findings)


def _drift_metrics(models: list[Served], windows: Windows) -> Iterator[Metric]:
    gauges = {
        name: GaugeMetricFamily(f"wgan_drift_{name}", description, labels=["model", "role"])
        for name, description in (
            ("items", "Scores in the window of recent traffic."),
            ("distance", "W1 between recent scores and those of real held-out items."),
            ("threshold", "What that distance of real data stays below in 99% of windows."),
            ("lower_bound", "Lower bound of W1 between the items, from the certified constant."),
        )
    }
    for model in models:
        report = windows.report(model)
        for name, value in report._asdict().items() if report else ():
            if value is not None:
                gauges[name].add_metric(model.labels, value)
    yield from gauges.values()
