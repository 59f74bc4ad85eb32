"""The attackers do what they say, and honest clients beside them lose nothing.

The benchmark's own command runs twenty minutes; here it is short.
"""

from typing import Any

import pytest

from benchmarks.anger import SERVICES, limits, measure
from tests.attackers import KINDS

SOUND: dict[str, Any] = {
    "lost": 0, "requests": 100, "probes": 40, "probes_failed": 0, "p99_over_quiet": 1.5,
    "quiet_seconds_median_and_99th": [0.01, 0.02], "seconds_median_and_99th": [0.01, 0.03],
    "median_afterwards_over_quiet": 1.0, "memory_growth": 1.0, "memory_mb_peak_of_service": 500.0,
    "worker_died": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "value", "limit"),
    [
        ("lost", 1, "honest requests lost"),
        ("p99_over_quiet", 5.0, "99th percentile over its quiet value"),
        ("p99_over_quiet", float("inf"), "99th percentile over its quiet value"),
        ("median_afterwards_over_quiet", 2.0, "median afterwards over its quiet value"),
        ("probes_failed", 1, "probes failed"),
        ("memory_growth", 1.2, "memory in the last quarter over that in the second"),
        ("worker_died", True, "memory in the last quarter over that in the second"),
        ("memory_mb_peak_of_service", 1100.0, "highest memory of the service"),
    ],
)
def test_each_limit_can_be_missed(what: str, value: object, limit: str) -> None:
    assert all(found.is_kept for found in limits(SOUND))
    assert [found.what for found in limits({**SOUND, what: value}) if not found.is_kept] == [limit]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("service", SERVICES)
def test_honest_clients_lose_nothing(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # measure sets its own; this puts it back
    found = measure(seconds=30, service=service, warm_up=3)
    assert found["attackers_got"].keys() == KINDS.keys()
    assert (found["lost"], found["lost_first"]) == (0, [])
    assert (found["probes_failed"], found["probes_failed_first"]) == (0, [])
    assert found["swaps"] >= 1
