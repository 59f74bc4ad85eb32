"""The metrics of a worker and of its models, read in this process as Prometheus reads them."""

import math
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from models.artifact import load_artifact
from models.lipschitz import LipschitzBounds
from models.lipschitz.gradients import NormSummary
from models.record import Extractor, Figure, PrivacyCard, Results
from service.drift import Windows
from service.exchange import GONE, Exchange
from service.holders import Holders
from service.metrics import NO_MODEL, NOT_SERVED, OUTCOMES, SHARE, Metrics, SampleTimer
from service.model_metrics import ModelCollector
from service.served import Served
from service.settings import Settings
from tests.artifacts import make_artifact

Series = dict[tuple[str, ...], float]


def told(text: bytes, name: str) -> Series:
    """The values of a series by its labels' values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == name
    }


def rendered(metrics: Metrics) -> bytes:
    return metrics.render(CollectorRegistry())


@pytest.fixture
def served(tmp_path: Path) -> Served:
    model = load_artifact(make_artifact(tmp_path / "artifact", "vector"))
    return Served(model, "a@1", "champion", None, 0.0, name="a")


def test_all_that_can_be_counted_is_shown_at_0_from_the_start() -> None:
    metrics = Metrics()
    metrics.count_start([("a", "champion"), ("b", "champion")])
    text = rendered(metrics)
    assert told(text, "wgan_workers") == {(): 1}
    assert told(text, "wgan_worker_starts_total") == {(): 1}
    reloads = told(text, "wgan_model_reloads_total")
    assert reloads == {(name, o, "champion"): 0 for name in ("a", "b") for o in OUTCOMES}
    rejections = told(text, "wgan_rejections_total")
    assert not any(rejections.values())
    assert {(NO_MODEL,), (NOT_SERVED,), (SHARE,), ("gone",), ("busy",)} <= rejections.keys()
    closed = told(text, "wgan_connections_closed_total")
    assert closed == {
        (reason,): 0 for reason in ("no_request", "no_tls", "not_http", "slow_reader", "crowded")
    }
    metrics.count_outcome("b", "champion", "refused")
    found = told(rendered(metrics), "wgan_model_reloads_total")
    assert found == reloads | {("b", "refused", "champion"): 1}


def test_a_request_is_timed_from_its_whole_body_on() -> None:
    metrics = Metrics()
    began = time.perf_counter() - 7
    metrics.count_request("/v1/scores", Exchange(model="a", status=200, received=began))
    metrics.count_request("/v1/scores", Exchange(model="a", status=408))
    metrics.count_request("/v1/scores", Exchange())
    text = rendered(metrics)
    assert told(text, "wgan_requests_total") == {
        ("/v1/scores", "a", "200"): 1,
        ("/v1/scores", "a", "408"): 1,
        ("/v1/scores", "", "503"): 1,  # the worker was stopped before its answer
    }
    assert told(text, "wgan_request_duration_seconds_count") == {("/v1/scores", "a"): 1}
    (seconds,) = told(text, "wgan_request_duration_seconds_sum").values()
    assert 7 <= seconds < 17


@pytest.mark.parametrize(
    ("exchange", "has_model", "reason"),
    [
        (Exchange(status=200), True, None),
        (Exchange(status=304), True, None),
        (Exchange(), True, None),
        (Exchange(status=500), True, None),
        (Exchange(status=400), True, "schema"),
        (Exchange(status=403), True, "scope"),
        (Exchange(status=405), True, "method"),
        (Exchange(status=408), True, "slow"),
        (Exchange(status=413), True, "too_large"),
        (Exchange(status=415), True, "undecodable"),
        (Exchange(status=422), True, "content"),
        (Exchange(status=431), True, "too_large"),
        (Exchange(status=504), True, "timeout"),
        (Exchange(status=429), True, "rate"),
        (Exchange(status=429, reason=SHARE), True, SHARE),
        (Exchange(status=404), True, "unknown_path"),
        (Exchange(status=404, reason=NOT_SERVED), False, NOT_SERVED),
        (Exchange(status=503), True, "busy"),
        (Exchange(status=503), False, NO_MODEL),
        (Exchange(status=401), False, "no_key"),
        (Exchange(status=GONE), True, "gone"),
    ],
)
def test_refusals_are_counted_by_reason(
    exchange: Exchange, has_model: bool, reason: str | None
) -> None:
    metrics = Metrics()
    metrics.count_rejection(exchange, has_model)
    counted = {k: v for k, v in told(rendered(metrics), "wgan_rejections_total").items() if v}
    assert counted == ({} if reason is None else {(reason,): 1})


def test_scores_and_their_percentiles_are_counted(served: Served) -> None:
    metrics = Metrics()
    metrics.count_scores(served, np.array([-2.0, 0.2, 5.0]), np.array([0.0, 50.0, 99.5]))
    text = rendered(metrics)
    assert told(text, "wgan_scores_total") == {("a", "champion"): 3}
    assert told(text, "wgan_score_count") == {("a", "champion"): 3}
    buckets = told(text, "wgan_score_bucket")
    bounds = sorted(float(bound) for bound, *_ in buckets)
    assert bounds == [*sorted(-bound for bound in bounds if bound < math.inf), math.inf]
    # Labels in order: le, model, role.
    below = {float(bound): count for (bound, *_), count in buckets.items()}
    assert (below[-3.0], below[-1.0], below[0.0], below[0.3], below[10.0]) == (0, 1, 1, 2, 3)
    below = {float(b): n for (b, *_), n in told(text, "wgan_score_percentile_bucket").items()}
    bounds = sorted(bound for bound in below if bound < math.inf)
    assert bounds == sorted(100 - bound for bound in bounds), "both tails are told alike"
    assert (below[0.0], below[25.0], below[50.0], below[99.0], below[100.0]) == (1, 1, 2, 2, 3)


def test_encoding_is_the_work_that_is_no_generating(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, now = Metrics(), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    timer = SampleTimer(metrics, served, "csv")
    for generates, encodes in ((2.0, 0.5), (1.0, 0.25)):
        with timer.working():
            with timer.generating():
                now[0] += generates
            now[0] += encodes
        now[0] += 100  # it waits for its turn
    timer.done()
    text = rendered(metrics)
    assert told(text, "wgan_generation_seconds_sum") == {("a", "champion"): 3}
    assert told(text, "wgan_encoding_seconds_sum") == {("csv", "a"): 0.75}
    assert told(text, "wgan_encoding_seconds_count") == {("csv", "a"): 1}


WORKER = """
import sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from service import metrics

metrics.cache_process_id()
one = metrics.Metrics(Path(sys.argv[1]))
one.count_start([("a", "champion")])
one.in_flight.inc()
found = one.render(CollectorRegistry())
print(found.count(b"wgan_workers 1.0"), flush=True)
sys.stdin.read()
"""


def test_workers_are_counted_together_and_the_dead_are_forgotten(tmp_path: Path) -> None:
    """A worker that was killed is alive no more, but what it has counted stays."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = []
    try:
        for _ in range(2):
            worker = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            workers.append(worker)
            assert worker.stdout is not None
            worker.stdout.readline()
        reader = Metrics(tmp_path)
        text = rendered(reader)
        assert told(text, "wgan_workers") == {(): 2}
        assert told(text, "wgan_worker_starts_total") == {(): 2}
        assert [worker.poll() for worker in workers] == [None, None], "to be asked harms none"
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        text = rendered(reader)
        assert told(text, "wgan_workers") == {(): 1}
        assert told(text, "wgan_requests_in_flight") == {(): 1}
        assert told(text, "wgan_worker_starts_total") == {(): 2}
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def holders_of(folder: Path, **more: object) -> Holders:
    settings = Settings.read(WGAN_MODELS=f"a={folder},b={folder.parent}/none", **more)
    return Holders(settings, lambda model, role, outcome: None)


def collected(holders: Holders, windows: Windows) -> bytes:
    return Metrics().render(ModelCollector(holders, windows))


def test_the_figures_of_a_model_are_those_of_its_record(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact", "vector")
    holders = holders_of(folder)
    for slot in holders.slots:
        slot.refresh()
    served = holders.of("a").champion.served
    assert served is not None
    before = served.model.run
    privacy: dict[str, Any] = {"noise_multiplier": 1.0, "clip_norm": 1.0, "sampling_rate": 0.5}
    figure = {"interval": (0.0, 1.0), "n": 10, "better": "lower"}
    finding = before.findings[0]
    served.model.run = before.model_copy(
        update={
            "created": (datetime.now(UTC) - timedelta(seconds=5000)).isoformat(),
            "lipschitz": LipschitzBounds(
                certified=None,
                sampled=1.5,
                gradient_norm={"real": NormSummary(mean=1, max=2, quantiles={"0.5": 0.9})},
            ),
            "privacy": PrivacyCard(epsilon=3.5, delta=1e-5, steps=2, public=[], **privacy),
            "results": Results(
                extractor=Extractor(name="digits", sha256="0" * 64),
                figures={
                    "kid": Figure(value=0.25, floor=0.125, **figure),
                    "w1": Figure(value=0.5, floor=None, **figure),
                },
            ),
            "findings": [
                finding,
                finding.model_copy(update={"name": "b"}),
                finding.model_copy(update={"name": "c", "severity": "critical"}),
            ],
        }
    )
    holders.of("a").champion.served = served._replace(saturated_share=0.25)
    text, labels = collected(holders, Windows(0)), ("a", "champion")
    assert told(text, "wgan_model_ready") == {("a",): 1, ("b",): 0}
    assert told(text, "wgan_models_bytes") == {(): holders.room.held}
    assert holders.room.held > 0
    assert not told(text, "wgan_registry_reachable")
    (age,) = told(text, "wgan_model_age_seconds").values()
    assert 5000 <= age < 5100
    hyperparameters = before.constraint.hyperparameters
    numbers = {k: v for k, v in hyperparameters.items() if isinstance(v, int | float)}
    assert told(text, "wgan_constraint_hyperparameter") == {
        ("a", name, "champion"): value for name, value in numbers.items()
    }
    assert numbers
    norms = told(text, "wgan_critic_gradient_norm")
    assert norms == {("0.5", "a", "real", "champion"): 0.9}
    assert told(text, "wgan_critic_lipschitz") == {("sampled", *labels): 1.5}
    assert told(text, "wgan_critic_saturated_ratio") == {labels: 0.25}
    quality = {("digits", "kid", *labels): 0.25, ("digits", "w1", *labels): 0.5}
    assert told(text, "wgan_quality") == quality
    assert told(text, "wgan_quality_floor") == {("digits", "kid", *labels): 0.125}
    assert told(text, "wgan_model_privacy_epsilon") == {("1e-05", *labels): 3.5}
    assert told(text, "wgan_findings") == {
        ("a", "champion", "info"): 0,
        ("a", "champion", "warning"): 2,
        ("a", "champion", "critical"): 1,
    }
    (info,) = told(text, "wgan_model_info")
    assert {"a", "champion", served.version, served.model.digest, "gradient_penalty"} <= {*info}


def test_of_other_models_what_they_have_not_is_left_out(tmp_path: Path) -> None:
    holders = holders_of(make_artifact(tmp_path / "artifact", "vector"))
    holders.of("a").champion.refresh()
    text = collected(holders, Windows(0))
    for name in ("wgan_critic_saturated_ratio", "wgan_model_privacy_epsilon"):
        assert not told(text, name)
    assert told(text, "wgan_quality") == {("", "precision", "a", "champion"): 0.5}
    assert b"wgan_drift" not in text
    for slot, answers in zip(holders.slots, (True, False), strict=True):
        slot.reachable = answers
    holders.of("b").champion.refused = "b@3"
    text = collected(holders, Windows(0))
    assert told(text, "wgan_registry_reachable") == {(): 0}
    assert told(text, "wgan_model_refused_info") == {("b", "champion", "b@3"): 1}
    holders.of("b").champion.reachable = True
    assert told(collected(holders, Windows(0)), "wgan_registry_reachable") == {(): 1}


def test_drift_is_told_as_far_as_it_is_measured(tmp_path: Path) -> None:
    holders = holders_of(make_artifact(tmp_path / "artifact", "vector"))
    holders.of("a").champion.refresh()
    served, windows = holders.of("a").served, Windows(50, tmp_path)
    assert served is not None
    windows.add(served, np.zeros(49, np.float32))
    text = collected(holders, windows)
    assert told(text, "wgan_drift_items") == {("a", "champion"): 49}
    assert not told(text, "wgan_drift_distance")
    windows.add(served, np.zeros(1, np.float32))
    text, report = collected(holders, windows), windows.report(served)
    assert report is not None
    assert told(text, "wgan_drift_distance") == {("a", "champion"): report.distance}
    assert told(text, "wgan_drift_threshold") == {("a", "champion"): report.threshold}
    assert not told(text, "wgan_drift_lower_bound"), "the constant is not certified"
    for file in tmp_path.glob("drift-*"):
        file.write_bytes(b"")
    assert not told(collected(holders, windows), "wgan_drift_items")
