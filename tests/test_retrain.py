"""Scheduled retraining: real training, a real MLflow database, real processes that are killed."""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families

import wgan_cli
from models import registry, registry_files, remote
from models.artifact import load_artifact
from models.errors import ConfigError, DataError, RegistryError
from models.outputs import lease
from tests.registries import new_database
from tests.runs import forked, trained
from tests.test_sources import encoded
from training.engine.workers import ALONE
from training.progress import never, silent
from training.retraining.begin import begin
from training.retraining.config import RetrainConfig, read_config
from training.retraining.cycle import retrain
from training.retraining.outcomes import Outcome, _in_a_row

pytestmark = pytest.mark.usefixtures("charts_undrawn")
WGAN = Path(sys.executable).with_name("wgan")
OPEN = {
    "precision": 0,
    "recall": 0,
    "coverage": 0,
    "max_seconds": 1e6,
    "tolerated_findings": ["low_diversity"],
}
"""Gates that a network of a few steps passes."""


def mixture(seed: int, count: int = 900) -> np.ndarray:
    """Points around the corners of a square."""
    rng = np.random.default_rng(seed)
    return rng.choice([-1.0, 1.0], (count, 2)) + 0.1 * rng.normal(size=(count, 2))


def values(home: Path, **changes: Any) -> dict[str, Any]:
    settings = {
        "name": "corners",
        "generator": {"width": 32, "depth": 2},
        "critic": {"width": 32, "depth": 2},
        **steps(2),
        "evaluation": {"samples": 200},
    }
    given = {
        "preset": "8gaussians",
        "data": str(home / "data.npy"),
        "set": settings,
        "folder": str(home / "runs"),
        "gates": OPEN,
    }
    for key, change in changes.items():
        given[key] = {**given[key], **change} if isinstance(change, dict) else change
    return given


def run(
    home: Path,
    say: Callable[[str], None] = silent,
    stopped: bool = False,
    **changes: Any,
) -> Outcome:
    return retrain(
        RetrainConfig.model_validate(values(home, **changes)),
        say=say,
        stop_requested=lambda: stopped,
    )


def steps(count: int, **more: Any) -> dict[str, Any]:
    """Eager ones: these are so few that a capture takes longer."""
    training = {"steps": count, "batch_size": 32, "checkpoint_every": 50, "critic_step": "eager"}
    return {"training": {**training, **more}}


def passed(outcome: Outcome) -> dict[str, bool]:
    assert outcome.decision is not None
    return {gate.name: gate.passed for gate in outcome.decision.gates}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry whose model `corners` has a first champion, hardly trained."""
    home = tmp_path_factory.mktemp("retrain")
    np.save(home / "data.npy", mixture(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", new_database(home))
        outcome = run(home)
        assert outcome.kind == "promoted"
        assert registry.champion("corners") == "1"
        yield home


@pytest.fixture(autouse=True)
def _use_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")


def test_settings_that_the_data_fill_in_are_those_of_the_champion(home: Path) -> None:
    """A champion that `wgan train` made of the same data and settings is not trained again."""
    filled = {"set": {"name": "filled", **steps(0)}, "folder": str(home / "filled")}
    config = RetrainConfig.model_validate(values(home, **filled)).build()
    _, reference, _ = trained(config, home / "by hand")
    registry.promote("filled", str(reference).partition("@")[2], "by hand")
    assert "the champion, version 1, is of them" in run(home, **filled).reason


def test_a_first_model_passes_the_absolute_gates_alone(home: Path) -> None:
    (folder,) = (home / "runs").glob("corners-*/decision.json")
    decision = json.loads(folder.read_text())
    assert decision["champion"] is None
    names = [gate["name"] for gate in decision["gates"]]
    assert names == [
        "checksums", "heldout", "precision", "recall", "coverage", "memorisation", "membership",
        "findings", "latency",
    ]  # fmt: skip
    assert decision["recorded"]
    assert not (folder.parent / "checkpoints").exists()
    version = registry.version("corners", "1")
    assert version["retrain_outcome"] == "promoted"
    run = registry.client().get_run(version["run_id"])
    stored = Path(run.info.artifact_uri.removeprefix("file://")) / "decision.json"
    assert json.loads(stored.read_text()) == decision
    shown = stored.with_name("diagnosis.html")
    assert shown.read_bytes() == (folder.parent / shown.name).read_bytes()
    (change,) = registry.history("corners")
    assert (change["from"], change["to"]) == (None, "1")
    assert "retraining: passed 9 gates" in str(change["why"])


def test_nothing_changed_is_no_reason_to_train(home: Path) -> None:
    before = len(registry.versions())
    outcome = run(home)
    assert outcome.kind == "skipped"
    assert "nothing changed" in outcome.reason
    shuffled = home / "elsewhere.npy"  # the order of the items and the file's name are no change
    np.save(shuffled, np.random.default_rng(0).permutation(mixture(0)))
    assert run(home, data=str(shuffled), folder=str(home / "empty")).kind == "skipped"
    assert len(registry.versions()) == before
    assert not list((home / "empty").glob("corners-*"))


def test_champions_change_for_the_better_only(home: Path) -> None:
    outcome = run(home, set=steps(300, learning_rate=2e-3))
    assert outcome.kind == "promoted", outcome.reason
    assert registry.champion("corners") == outcome.decision.challenger
    assert outcome.decision.champion == "1"
    champion = next(g for g in outcome.decision.gates if g.name == "champion")
    assert champion.challenger < champion.reference
    assert champion.interval[0] < champion.challenger - champion.reference < champion.interval[1]
    assert champion.interval[1] <= 0
    assert run(home, set=steps(300, learning_rate=2e-3)).kind == "skipped"

    worse = run(home, set=steps(1, seed=5))
    assert worse.kind == "rejected"
    assert [name for name, ok in passed(worse).items() if not ok] == ["champion"]
    assert "worse" in worse.reason
    assert registry.champion("corners") == outcome.decision.challenger
    assert registry.version("corners", worse.decision.challenger)["retrain_outcome"] == "rejected"
    assert run(home, set=steps(1, seed=5)).kind == "skipped", "a rejection is final"


def test_a_clipped_critic_is_rejected(home: Path) -> None:
    outcome = run(home, constraint="weight_clipping", set=steps(50))
    assert outcome.kind == "rejected"
    assert not passed(outcome)["champion"]


def test_spoiled_data_do_not_judge_in_their_own_favour(home: Path) -> None:
    """A model of the spoiled data beats the champion on their own held-out items."""
    spoiled = home / "spoiled.npy"
    np.save(spoiled, np.random.default_rng(3).normal([5, 5], 0.3, (900, 2)))
    before = registry.champion("corners")
    outcome = run(home, data=str(spoiled), set=steps(200, learning_rate=2e-3))
    assert outcome.kind == "rejected"
    assert passed(outcome)["champion"]
    assert not passed(outcome)["data"]
    # Judged on data that are trusted, it loses for what it is.
    outcome = run(home, data=str(spoiled), reference=str(home / "data.npy"), set=steps(199))
    assert outcome.kind == "rejected"
    assert not passed(outcome)["champion"]
    assert passed(outcome)["data"]
    assert registry.champion("corners") == before


def test_small_losses_do_not_add_up(home: Path) -> None:
    """Within a wide margin of a poor champion, but not of the best there was."""
    best = registry.champion("corners")
    assert best is not None
    settings = {"gates": {"margin": 10.0}}
    poor = run(home, set=steps(2, seed=11), **settings)
    assert poor.kind == "promoted"
    assert registry.version("corners", poor.decision.challenger)["best_champion"] == best
    rows = {g.name: g for g in poor.decision.gates}
    margin = (rows["champion"].challenger - rows["champion"].reference) / 2
    poorer = run(home, set=steps(2, seed=12), gates={"margin": margin})
    assert not passed(poorer)["best_champion"]
    assert poorer.kind == "rejected"
    registry.rollback("corners", "after the test")
    assert registry.champion("corners") == best


def test_a_champion_that_changes_meanwhile_is_not_overruled(home: Path) -> None:
    champion = registry.champion("corners")

    def promote_by_hand(line: str) -> None:
        if line.startswith("comparing with"):
            registry.promote("corners", "1", "by hand, meanwhile")

    settings = {"set": steps(3, seed=21), "gates": {"margin": 10.0}}
    outcome = run(home, say=promote_by_hand, **settings)
    assert outcome.kind == "interrupted"
    assert "version 1" in outcome.reason
    assert registry.champion("corners") == "1"
    versions = len(registry.versions())
    outcome = run(home, **settings)
    assert outcome.kind == "promoted"
    assert outcome.decision.champion == "1"
    assert len(registry.versions()) == versions, "the same model is judged again"
    registry.promote("corners", str(champion), "after the test")


def test_a_decision_that_the_registry_does_not_know_is_told_again(home: Path) -> None:
    """The run was killed between the promotion and the end of its paperwork."""
    settings = {"set": steps(4, seed=31), "gates": {"margin": 10.0}}
    champion = registry.champion("corners")
    outcome = run(home, **settings)
    path = outcome.folder / "decision.json"
    unfinished = json.loads(path.read_text()) | {"recorded": False}
    changes = len(registry.history("corners"))

    path.write_text(json.dumps(unfinished))  # killed after promoting
    assert run(home, **settings).kind == "promoted"
    assert len(registry.history("corners")) == changes
    assert json.loads(path.read_text())["recorded"]

    registry.rollback("corners", "as if it had not been promoted")
    path.write_text(json.dumps(unfinished))  # killed before promoting
    assert run(home, **settings).kind == "promoted"
    assert registry.champion("corners") == outcome.decision.challenger
    registry.promote("corners", str(champion), "after the test")


def test_one_retraining_at_a_time(home: Path) -> None:
    with lease(home / "runs" / "corners.lease") as holder:
        assert holder is None
        outcome = run(home, set=steps(5, seed=41))
    assert outcome.kind == "skipped"
    assert f"process {os.getpid()}" in outcome.reason


def test_a_challenger_may_start_from_the_champion(home: Path, tmp_path: Path) -> None:
    """A first one begins with random weights; each later one with the champion of its time."""
    np.save(tmp_path / "data.npy", mixture(7))
    given: dict[str, Any] = {
        "set": {"name": "started", **steps(3)},
        "folder": str(tmp_path),
        "data": str(tmp_path / "data.npy"),
        "start_from": "champion",
        "gates": {"margin": 10},
    }
    said = list[str]()
    assert run(home, said.append, **given).kind == "promoted"
    assert any("no champion to start from" in line for line in said)
    assert run(home, **given).kind == "skipped", "nothing changed"
    np.save(tmp_path / "data.npy", mixture(8))
    outcome = run(home, **given)
    assert outcome.folder is not None
    found = load_artifact(outcome.folder / "artifact").run.provenance["parent"]
    digest = registry.version("started", "1")[registry.DIGEST_TAG]
    assert found == {"model": "started@1", "digest": digest, "steps": 3}
    assert registry.version("started", "2")["parent"] == "started@1"
    registry.promote("started", "2", "if it was not")
    assert run(home, **given).kind == "skipped", "the promotion is no change"
    assert run(home, **{**given, "start_from": None}).kind != "skipped"


def test_a_private_challenger_never_starts_from_a_champion(tmp_path: Path) -> None:
    """Told at once: the first run has no champion, and only later ones would have been refused."""
    private = {"privacy.epsilon": 1.0, "constraint.kind": "none", "generator.normalization": "none"}
    given: dict[str, Any] = {"preset": "table", "data": "rows.csv", "folder": tmp_path}
    RetrainConfig(**given, set=private).build()
    with pytest.raises(ConfigError, match="private run begins with random weights"):
        RetrainConfig(**given, set=private, start_from="champion").build()


def test_a_registry_that_is_away_never_spoils_a_training(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"set": steps(6, seed=51), "gates": {"margin": 10.0}}
    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        outcome = run(home, say=lines.append, **settings)
    assert outcome.kind == "interrupted"
    assert "the artifact is safe" in outcome.reason
    assert any("training goes on" in line for line in lines)
    (folder,) = [p.parent for p in (home / "runs").glob("corners-*/artifact")
                 if load_artifact(p).run.config.training.seed == 51]  # fmt: skip
    digest = load_artifact(folder / "artifact").digest
    champion = registry.champion("corners")
    outcome = run(home, **settings)
    assert outcome.kind == "promoted"
    version = registry.version("corners", outcome.decision.challenger)
    assert version[registry.DIGEST_TAG] == digest, "what was trained meanwhile, and nothing else"
    registry.promote("corners", str(champion), "after the test")


def test_a_registry_that_nobody_can_reach_is_told_before_training(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host/path")
    with pytest.raises(RegistryError, match="nonsense"):
        run(home, folder=str(tmp_path))
    assert not list(tmp_path.rglob("checkpoints"))
    (line,) = (tmp_path / "outcomes.jsonl").read_text().splitlines()
    assert json.loads(line)["outcome"] == "mistake"


def test_data_that_cannot_be_reached_are_no_mistake(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.01,))
    outcome = run(home, data="http://127.0.0.1:9/data.npy", folder=str(tmp_path))
    assert outcome.kind == "interrupted"
    assert "http://127.0.0.1:9/data.npy: cannot be reached" in outcome.reason


class _Gateway(http.server.BaseHTTPRequestHandler):
    bodies: dict[str, str] = {}  # noqa: RUF012 # of the test

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        self.bodies[self.path] = self.rfile.read(length).decode()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def gateway() -> Iterator[str]:
    """Takes what is pushed; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def pushed() -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(v for key, v in sample.labels.items() if key != "model")): sample.value
        for family in text_string_to_metric_families(
            _Gateway.bodies["/metrics/job/wgan_retrain/model/corners"]
        )
        for sample in family.samples
    }


def test_outcomes_are_pushed_and_listed(home: Path) -> None:
    with gateway() as address:
        outcome = run(home, set=steps(1, seed=61), pushgateway=address)
        assert outcome.kind == "rejected"
        with pytest.raises(ConfigError):
            run(home, gates={"loss": "kernel_distance"}, pushgateway=address)
        mistaken = _Gateway.bodies["/metrics/job/wgan_retrain/model/corners"]
        run(home, set=steps(1, seed=61), pushgateway=address)
    told = pushed()
    assert told["wgan_retrain_outcome", "skipped"] == 1
    assert told["wgan_retrain_outcome", "rejected"] == 0
    assert told["wgan_retrain_gate_passed", "champion"] == 0
    assert told["wgan_retrain_gate_passed", "checksums"] == 1
    assert told["wgan_retrain_rejected_in_a_row",] == 1
    assert told["wgan_retrain_failed_in_a_row",] == 0
    assert abs(told["wgan_retrain_finished_timestamp_seconds",] - time.time()) < 600
    assert 'wgan_retrain_outcome{model="corners",outcome="mistake"} 1.0' in mistaken
    assert 'wgan_retrain_failed_in_a_row{model="corners"} 1.0' in mistaken
    lines = [json.loads(x) for x in (home / "runs" / "outcomes.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in lines[-3:]] == ["rejected", "mistake", "skipped"]
    # A gateway that has gone changes nothing.
    said: list[str] = []
    assert run(home, say=said.append, set=steps(1, seed=61), pushgateway=address).kind == "skipped"
    assert any("was not told" in line for line in said)


def test_an_interruption_is_no_end(home: Path, tmp_path: Path) -> None:
    """One that is interrupted again and again would else never be overdue."""
    settings = {"set": steps(5, seed=62), "folder": str(tmp_path)}
    finished = ("wgan_retrain_finished_timestamp_seconds",)
    with gateway() as address:
        assert run(home, stopped=True, pushgateway=address, **settings).kind == "interrupted"
        (line,) = (tmp_path / "outcomes.jsonl").read_text().splitlines()
        first = json.loads(line) | {"when": "2026-01-01T00:00:00+00:00"}
        (tmp_path / "outcomes.jsonl").write_text(json.dumps(first) + "\n")
        assert run(home, stopped=True, pushgateway=address, **settings).kind == "interrupted"
        told = pushed()
        assert told["wgan_retrain_outcome", "interrupted"] == 1
        assert told[finished] == 1767225600
        assert run(home, pushgateway=address, **settings).kind in ("promoted", "rejected")
        assert pushed()[finished] > time.time() - 600


def test_a_rejection_ends_with_3(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0, 75 and 2 are of other tests here and in test_cli."""
    changes = {"set": steps(1, seed=63), "gates": {"max_seconds": 1e-9}}
    config = tmp_path / "retrain.yaml"
    config.write_text(yaml.safe_dump(values(home, **changes)))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert wgan_cli.main(["retrain", "--config", str(config), "--device", "cpu"]) == 3
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "rejected: latency: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("preset: digits", "folder: Field required"),
        ("preset: digits\nfolder: x\ngates: {margn: 1}", "did you mean 'margin'"),
        ("preset: digits\nfolder: x\nfolde: y", "did you mean 'folder'"),
        ("preset: digits\nfolder: x\ngates: {margin: -1}", "gates.margin"),
        ('{"preset": "digits", "folder": 3}', "folder"),
        ("- a\n- b", "no settings"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_mistaken_file_is_said(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "retrain.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"retrain\.yaml") as caught:
        read_config(tmp_path / "retrain.yaml")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("mistake", "device", "says"),
    [
        ({"gates": {"margn": 1}}, "cpu", "did you mean 'margin'"),
        ({"set": {"training.stepz": 1}}, "cpu", "did you mean 'steps'"),
        ({}, "cuda", "no CUDA device"),
    ],
)
def test_a_mistaken_configuration_has_an_outcome(
    mistake: dict[str, Any], device: str, says: str, tmp_path: Path
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it has a CUDA device")
    config = tmp_path / "retrain.yaml"
    with gateway() as address:
        given = {"preset": "8gaussians", "folder": str(tmp_path), "pushgateway": address, **mistake}
        given["set"] = {"name": "corners", **mistake.get("set", {})}
        config.write_text(yaml.safe_dump(given))
        _Gateway.bodies.clear()
        assert wgan_cli.main(["retrain", "--config", str(config), "--device", device]) == 2
    assert pushed()["wgan_retrain_outcome", "mistake"] == 1
    (line,) = (tmp_path / "outcomes.jsonl").read_text().splitlines()
    assert json.loads(line)["model"] == "corners"
    assert says in json.loads(line)["reason"]


@pytest.mark.parametrize(
    ("labels", "group"),
    [
        ({"namespace": "gan", "release": "wgan"}, "namespace/gan/release/wgan"),
        ({"Name Space": 1}, "model/corners"),
    ],
)
def test_a_mistake_is_pushed_with_the_labels_that_can_be_read(
    labels: dict[str, Any], group: str, tmp_path: Path
) -> None:
    """Alerts of a chart see what has their own release's labels, and nothing else."""
    config = tmp_path / "retrain.yaml"
    _Gateway.bodies.clear()
    with gateway() as address:
        given = {"preset": "8gaussians", "folder": str(tmp_path), "pushgateway": address}
        given |= {"set": {"name": "corners"}, "push_labels": labels, "no_such_key": 1}
        config.write_text(yaml.safe_dump(given))
        assert wgan_cli.main(["retrain", "--config", str(config)]) == 2
    assert list(_Gateway.bodies) == [f"/metrics/job/wgan_retrain/{group}"]


def test_json_and_dotted_keys_mean_the_same(tmp_path: Path) -> None:
    given = {"preset": "digits", "folder": "x", "set": {"training.steps": 7, "name": "mine"}}
    (tmp_path / "a.json").write_text(json.dumps(given))
    given["set"] = {"training": {"steps": 7}, "name": "mine"}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(given))
    one, other = (read_config(tmp_path / name).build() for name in ("a.json", "b.yaml"))
    assert one == other
    assert (one.training.steps, one.name, one.training.batch_size) == (7, "mine", 64)


def start(home: Path, config: Path, uri: str | None = None) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": uri or f"sqlite:///{home / 'mlflow.db'}",
    }
    command = [str(WGAN), "retrain", "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    ("line", "stopped"),
    [
        pytest.param("judging on held-out data", "stopped while judging", marks=pytest.mark.slow),
        ("comparing with", "stopped while judging the challenger"),
    ],
)
def test_sigterm_ends_judging(home: Path, tmp_path: Path, line: str, stopped: str) -> None:
    """Thousands of points are judged for seconds; what is not finished leaves nothing behind."""
    np.save(tmp_path / "data.npy", mixture(4, 20_000))
    settings = {"set": steps(1) | {"evaluation": {"samples": 1200}}, "folder": str(tmp_path)}
    config = tmp_path / "retrain.yaml"
    config.write_text(yaml.safe_dump(values(home, data=str(tmp_path / "data.npy"), **settings)))
    log = tmp_path / "log"
    log.touch()
    uri = new_database(tmp_path)
    process = forked(wgan_cli.main, ["retrain", "--config", config], log, MLFLOW_TRACKING_URI=uri)
    try:
        while not any(text.startswith(line) for text in log.read_text().splitlines()):
            assert process.is_alive(), "it says so before it judges"
            time.sleep(0.02)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(200)
        assert process.exitcode == 75
    finally:
        process.kill()
        process.join()
    assert f"interrupted: {stopped}" in log.read_text()
    (folder,) = tmp_path.glob("corners-*/")
    assert (folder / "artifact").exists() == (line != "judging on held-out data")
    assert not (folder / "decision.json").exists()
    assert not list(folder.glob(".artifact-*")), "nor parts of an artifact"


def test_one_that_was_killed_has_an_outcome(home: Path, tmp_path: Path) -> None:
    """The next start finds that the last one did not end; one that ended leaves nothing to find."""
    settings = {"set": steps(3, seed=91) | {"name": "killed"}, "folder": str(tmp_path)}
    for count in (1, 2):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "killed.lease")],
            stdout=subprocess.PIPE,
            text=True,
        )
        with killed_at_last(process):
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
        with gateway() as address:
            given = values(home, pushgateway=address, **settings)
            given["data"] = str(tmp_path / "none.npy") if count == 1 else given["data"]
            with contextlib.suppress(DataError):  # the first ends by a mistake, after it has told
                retrain(RetrainConfig.model_validate(given))
        lines = [json.loads(x) for x in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
        assert [line["outcome"] for line in lines[-2:-1]] == ["killed"]
        assert f"process {process.pid} on" in lines[-2]["reason"]
    assert [line["outcome"] for line in lines] == ["killed", "mistake", "killed", "promoted"]
    run(home, **settings)
    lines = [json.loads(x) for x in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in lines][4:] == ["skipped"]
    assert _in_a_row(["promoted", "killed", "interrupted", "killed"]) == (0, 0, 2)
    assert _in_a_row(["killed", "killed", "rejected"]) == (1, 0, 0)


HOLDER = """
import sys, time
from pathlib import Path
from models.outputs import lease
with lease(Path(sys.argv[1])) as holder:
    print("held", flush=True)
    time.sleep(600)
"""


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and process.poll() is None:
        found = [int(p.stem.split("-")[1]) for p in folder.glob("*/checkpoints/step-*.safetensors")]
        if max(found, default=0) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step}; exit code {process.returncode}")


@contextlib.contextmanager
def killed_at_last(*processes: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several processes in turn, on a machine that may be busy
def test_killed_retrainings_go_on_to_the_same_weights(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, then SIGKILL, then an end; beside a run that nothing disturbed."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    long = {"set": steps(240, seed=71) | {"name": "killed"}, "folder": str(tmp_path / "runs")}
    config = tmp_path / "retrain.yaml"
    config.write_text(yaml.safe_dump(values(home, **long)))

    process = start(tmp_path, config)
    with killed_at_last(process):
        wait_for_step(tmp_path / "runs", 50, process)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=500)
        assert process.returncode == 75
        assert "interrupted: stopped after" in out
    process = start(tmp_path, config)
    with killed_at_last(process):
        wait_for_step(tmp_path / "runs", 150, process)
        process.kill()
    process = start(tmp_path, config)
    with killed_at_last(process):
        out, _ = process.communicate(timeout=500)
        assert process.returncode == 0, out
    assert registry.champion("killed") == "1"

    undisturbed = run(home, **(long | {"set": steps(240, seed=71) | {"name": "calm"}}))
    assert undisturbed.kind == "promoted"
    (killed,) = (tmp_path / "runs").glob("killed-*/artifact")
    (calm,) = (tmp_path / "runs").glob("calm-*/artifact")
    for file in ("generator.safetensors", "critic.safetensors", "training_state.safetensors"):
        assert (killed / file).read_bytes() == (calm / file).read_bytes()
    lines = (tmp_path / "runs" / "outcomes.jsonl").read_text().splitlines()
    outcomes = [json.loads(line)["outcome"] for line in lines]
    assert outcomes == ["interrupted", "killed", "promoted", "promoted"], "told at the next start"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_started_at_once_leave_one_champion(home: Path, tmp_path: Path) -> None:
    """In one folder the lease lets one train; in two, as on two machines, the registry holds."""
    shared, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    settings = {"set": steps(60, seed=81) | {"name": "twins"}, "gates": {"margin": 10.0}}
    shared.write_text(yaml.safe_dump(values(home, folder=str(tmp_path / "a"), **settings)))
    other.write_text(yaml.safe_dump(values(home, folder=str(tmp_path / "b"), **settings)))
    processes = [start(home, config) for config in (shared, shared, other)]
    with killed_at_last(*processes):
        outs = [process.communicate(timeout=500)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert set(codes) <= {0, 75}, outs
    assert sum("another retraining is under way" in out for out in outs[:2]) == 1
    for config, code in ((shared, max(codes[:2])), (other, codes[2])):
        if code == 75:  # the champion changed while it compared: it goes on when run again
            process = start(home, config)
            with killed_at_last(process):
                out, _ = process.communicate(timeout=500)
                assert process.returncode in {0, 3}, out
    champion = registry.champion("twins")
    changes = registry.history("twins")
    assert champion == changes[-1]["to"]
    assert len({str(change["to"]) for change in changes}) == len(changes)
    found = registry_files.download("twins@champion", tmp_path / "champion")
    assert load_artifact(found).run.config.training.seed == 81


def test_a_split_in_folders_counts_by_what_it_holds_out(tmp_path: Path) -> None:
    """It counted by how many: the same images with others held out were no change."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)

    def key(name: str, heldout: range) -> str:
        for i, image in enumerate(pixels):
            side = tmp_path / name / ("test" if i in heldout else "train")
            side.mkdir(parents=True, exist_ok=True)
            (side / f"{i}.png").write_bytes(encoded(image))
        settings = RetrainConfig(
            preset="images",
            data=str(tmp_path / name),
            set={"data": {"split": "folders", "size": None}, "training": {"batch_size": 8}},
            folder=tmp_path / "runs",
        )
        return begin(settings, settings.build(), silent, never, ALONE).key

    first = key("first", range(30))
    assert key("again", range(30)) == first
    assert key("others", range(30, 60)) != first
