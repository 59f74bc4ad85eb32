"""A search in MLflow: its run, a run for each trial, and a server that goes away meanwhile."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from models import registry
from models.errors import RegistryError
from tests.registries import Registry, new_database
from tests.test_tuning import KINDS, TINY
from training.engine.runs import Interrupted
from training.lab.tuning import tune

pytestmark = pytest.mark.usefixtures("charts_undrawn")
METRIC = "validation_wasserstein_1"
COMMON: dict[str, Any] = {"constraints": KINDS, "overrides": TINY}


def all_runs() -> list[Any]:
    api = registry.client()
    (experiment,) = [e for e in api.search_experiments() if e.name == "wgan-foundry"]
    return list(api.search_runs([experiment.experiment_id]))


def search_and_trials() -> tuple[Any, dict[int, Any]]:
    """The one run of a search, and its trials by their number."""
    runs = all_runs()
    (search,) = [run for run in runs if run.data.tags["mlflow.runName"].startswith("search-")]
    nested = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == search.info.run_id]
    trials = {int(run.data.tags["trial"]): run for run in nested}
    assert len(trials) == len(nested), "none is written twice"
    return search, trials


def require_all(out: Path, trials: dict[int, Any]) -> dict[str, Any]:
    """Require that MLflow has what a search's own files have; returns these."""
    answer: dict[str, Any] = json.loads((out / "tuning.json").read_text())
    rows = {row["number"]: row for row in answer["trials"]}
    assert trials.keys() == rows.keys()
    api = registry.client()
    for number, row in rows.items():
        run = trials[number]
        assert run.info.status == ("FAILED" if row["failed"] else "FINISHED")
        assert run.data.tags["state"] in (("failed",) if row["failed"] else ("complete", "pruned"))
        assert (run.data.tags["state"] == "complete") == ("27" in row["values"])
        assert run.data.tags.get("reason") == row["failed"]
        expected = {"constraint": row["constraint"], **row["chosen"]}
        assert run.data.params == {key: str(value) for key, value in expected.items()}
        assert run.data.tags["constraint"] == row["constraint"]
        history = api.get_metric_history(run.info.run_id, METRIC)
        assert {str(m.step): m.value for m in history} == row["values"]
        assert len(history) == len(row["values"])
    return answer


def test_a_search_is_a_run_with_a_run_for_each_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    out = tmp_path / "out"
    for count in (4, 6):  # the same command goes on in the same run
        tune("8gaussians", 900, out, max_trials=count, **COMMON)
        search, trials = search_and_trials()
        answer = require_all(out, trials)
        assert len(trials) == count
        winner = Path(answer["winner"]).name.removeprefix("winner-")
        won = [str(n) for n, run in trials.items() if run.data.tags.get("winner") == "true"]
        assert won == [winner] == [search.data.tags["winner"]]
        model = search.data.tags["winner.model"]
        version = registry.version(*registry.split(model))
        api = registry.client()
        assert api.get_run(version["run_id"]).data.tags["search"] == search.info.run_id
        assert search.info.status == "FINISHED"
        assert search.data.params["constraints"] == ", ".join(KINDS)
        figure = answer["figures"]["wasserstein_1"]["value"]
        assert search.data.metrics["wasserstein_1"] == figure
        for name in ("report.html", "tuning.json"):
            stored = api.download_artifacts(search.info.run_id, name, str(tmp_path))
            assert Path(stored).read_bytes() == (out / name).read_bytes()
    assert not (out / "unfinished.json").exists()


@pytest.mark.slow
def test_a_server_that_goes_away_costs_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Registry(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("trial 1:"):
            server.shut()

    out = tmp_path / "out"
    with server.running():
        with pytest.raises(RegistryError, match="the artifact is safe"):
            tune("8gaussians", 900, out, max_trials=4, say=say, **COMMON)
        assert sum("what MLflow lacks is written at its end" in line for line in said) == 1
        assert (out / "report.html").exists()
        before = json.loads((out / "tuning.json").read_text())
        assert len(before["trials"]) == 4
        server.open()
        said.clear()
        answer = tune("8gaussians", 900, out, max_trials=10, say=said.append, **COMMON)
        assert answer == before, "what was found is registered, and nothing is searched anew"
        assert any("already complete" in line for line in said)
        search, trials = search_and_trials()
        require_all(out, trials)
        assert search.info.status == "FINISHED"
        assert search.data.tags["winner.model"] == "8gaussians@1"


@pytest.mark.slow
def test_trials_of_all_processes_are_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    monkeypatch.setenv("WGAN_TUNE_STORAGE", str(tmp_path / "shared.journal"))
    worker, out = tmp_path / "worker", tmp_path / "out"
    tune("8gaussians", 900, worker, max_trials=2, only_trials=True, **COMMON)
    with pytest.raises(ValueError, match="not enough values"):
        all_runs()
    tune("8gaussians", 900, out, max_trials=4, processes=2, **COMMON)
    search, trials = search_and_trials()
    require_all(out, trials)
    assert len(trials) >= 4
    count = len(trials) + 1
    tune("8gaussians", 900, worker, max_trials=count, only_trials=True, **COMMON)
    again, trials = search_and_trials()
    assert again.info.run_id == search.info.run_id
    assert len(trials) == count
    assert trials[count - 1].data.tags["state"] in ("complete", "pruned")

    def stop() -> bool:
        return search_and_trials()[1].keys() > trials.keys()

    with pytest.raises(Interrupted):
        tune("8gaussians", 900, worker, only_trials=True, stop_requested=stop, **COMMON)
    stopped = search_and_trials()[1][count]
    assert stopped.info.status == "FAILED"
    assert stopped.data.tags["reason"] == "its process was stopped"


def test_a_run_that_was_made_half_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the search, and of its first trial: nothing follows what makes them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    monkeypatch.setattr("training.lab.tuning.tracking.PAUSE", 0)
    whole, failures = MlflowClient.log_batch, [True, True]

    def log_batch(*args: Any, **named: Any) -> Any:
        if failures:
            failures.pop()
            raise MlflowException("the connection was cut")
        return whole(*args, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    out = tmp_path / "out"
    tune("8gaussians", 900, out, max_trials=2, **COMMON)
    assert not failures
    search, trials = search_and_trials()
    assert search.data.params["constraints"] == ", ".join(KINDS)
    require_all(out, trials)


def test_a_search_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time goes on too, and what was stopped is tried again."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    said: list[str] = []

    def stop() -> bool:
        """After the second trial's first step."""
        return any(line.startswith("trial 0:") for line in said)

    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        tune("8gaussians", 900, out, say=said.append, stop_requested=stop, **COMMON)
    search, trials = search_and_trials()
    assert search.info.status == "KILLED"
    assert trials[1].data.tags["reason"] == "its process was stopped"
    noted = json.loads((out / "unfinished.json").read_text())
    assert noted["winner"] is None
    assert noted["seconds"] > 0
    used = noted["seconds"] + 10_000  # more than the whole
    (out / "unfinished.json").write_text(json.dumps({"seconds": used, "winner": None}))
    said.clear()
    answer = tune("8gaussians", 900, out, say=said.append, **COMMON)
    assert answer is not None
    assert [row["number"] for row in answer["trials"]] == [0, 1], "no time is left for trials"
    assert not (out / "unfinished.json").exists()
    answer = tune("8gaussians", 900, out, max_trials=3, **COMMON)
    assert answer is not None
    rows = {row["number"]: row for row in answer["trials"]}
    # The stopped one's settings are those of the second constraint; here they are tried at last.
    assert rows[2]["constraint"] == rows[1]["constraint"] == KINDS[1]
    assert rows[2]["chosen"] == rows[1]["chosen"]
    again, trials = search_and_trials()
    assert again.info.run_id == search.info.run_id
    require_all(out, trials)


def test_without_a_server_s_address_the_trials_stay_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    tune("8gaussians", 900, tmp_path / "out", max_trials=2, **COMMON)
    (run,) = all_runs()
    assert "mlflow.parentRunId" not in run.data.tags
    assert registry.resolve("8gaussians@1") == ("8gaussians", "1")
