"""The benchmark of swaps under load, in a short form; its own command runs ten minutes."""

import pytest

from benchmarks.swaps import measure


@pytest.mark.slow
def test_no_request_fails_while_the_champion_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # measure sets its own; this puts it back
    found = measure(seconds=16, every=4, warm_up=3)
    assert found["failures"] == []
    assert found["promotions"] >= 2
    assert set(found["answered_by"]) == {"tiny@1", "tiny@2"}
    assert found["requests"] > 20
