"""Retraining when something is gone, refused or full: it ends, and says why."""

import http.server
import json
import os
import shutil
import socketserver
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from models import registry
from models.artifact import SIGNATURE, load_artifact
from models.durable import read_lines
from models.errors import ForbiddenError, MachineError
from tests.artifacts import tiny_config
from tests.registries import new_database
from tests.runs import trained
from tests.test_retrain import gateway, mixture, pushed, run, steps
from tests.test_signing import write_pair
from training.data.dataset import load_data
from training.engine.room import COPIES, LEAST_BYTES, MARGIN, needed_bytes
from training.progress import silent
from training.retraining import cycle, outcomes
from training.retraining.config import RetrainConfig
from training.retraining.folder import make_room
from training.retraining.outcomes import Decision, Outcome, OutcomeKind, publish

pytestmark = pytest.mark.usefixtures("charts_undrawn")
ANY = {"gates": {"margin": 10.0}}
"""A challenger need not be better."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry without models, and data."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    np.save(tmp_path / "data.npy", mixture(0))
    return tmp_path


def kinds(home: Path) -> list[str]:
    return [line["outcome"] for line in read_lines(home / "runs" / "outcomes.jsonl", pytest.fail)]


def champion() -> str | None:
    return registry.champion("corners")


def test_what_is_gone_from_the_registry_is_done_without(home: Path) -> None:
    """The best champion is deleted, then the files of the champion, then the challenger."""
    api = registry.client()
    assert run(home, **ANY).kind == "promoted"
    assert run(home, set=steps(2, seed=1), **ANY).kind == "promoted"
    api.set_model_version_tag("corners", "2", "best_champion", "1")
    api.delete_model_version("corners", "1")
    outcome = run(home, set=steps(2, seed=2), **ANY)
    assert outcome.kind == "promoted"
    assert "version 1 was not compared with, since it is gone" in outcome.reason
    assert outcome.decision.champion == "2"
    assert registry.version("corners", "3")["best_champion"] in ("2", "3")

    shutil.rmtree(
        registry.client().get_model_version("corners", "3").source.removeprefix("file://")
    )
    outcome = run(home, set=steps(2, seed=3))
    assert outcome.kind == "promoted"
    assert "version 3 was not compared with" in outcome.reason
    assert [g.name for g in outcome.decision.gates][-1] == "latency", "floors alone"

    # The decision was made, and its version was deleted before it was carried out.
    path = outcome.folder / "decision.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recorded": False}))
    api.delete_model_version("corners", "4")
    assert champion() is None
    outcome = run(home, set=steps(2, seed=3))
    assert (outcome.kind, champion()) == ("promoted", "5")
    assert not (outcome.folder / "checkpoints").exists(), "nothing is trained twice"
    # A run of MLflow's that was deleted takes no files, and the version its tags all the same.
    api.delete_run(registry.version("corners", "5")["run_id"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recorded": False}))
    assert run(home, set=steps(2, seed=3)).kind == "promoted"


def files_of(version: str) -> Path:
    return Path(registry.client().get_model_version("corners", version).source[len("file://") :])


def test_a_challenger_whose_files_are_gone_is_registered_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cycle, "_decide", killed)
        with pytest.raises(KeyboardInterrupt):
            run(home)
    shutil.rmtree(files_of("1"))
    outcome = run(home)
    assert (outcome.kind, champion()) == ("promoted", "2")

    # Decided, and not yet carried out; then decided, and without a champion, here and elsewhere.
    path = outcome.folder / "decision.json"
    elsewhere = str(home / "elsewhere")
    for version, changes in ((3, {"recorded": False}), (4, {}), (5, {})):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        registry.client().delete_registered_model_alias("corners", "champion")
        shutil.rmtree(files_of(str(version - 1)))
        outcome = run(home, **({"folder": elsewhere} if version == 5 else {}))
        assert (outcome.kind, champion()) == ("promoted", str(version))
        assert load_artifact(files_of(str(version))).digest
    assert run(home, folder=elsewhere).kind == "skipped"


def test_what_was_not_trained_here_is_trained_again_to_be_signed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WGAN_SIGNING_KEY", str(write_pair(home, "ours")))
    folder = run(home).folder
    for version, gone in (("2", home / "runs"), ("3", folder / "artifact")):
        registry.client().delete_registered_model_alias("corners", "champion")
        shutil.rmtree(gone)
        assert (run(home).kind, champion()) == ("promoted", version)
        assert (files_of(version) / SIGNATURE).exists()
        assert run(home).kind == "skipped"


def test_a_registry_that_refuses_ends_it_before_training(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ForbiddenError, match="401"):
            run(home)
        server.shutdown()
    assert kinds(home) == ["mistake"]
    assert not list((home / "runs").glob("corners-*"))


class _NoHttp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH\r\n")
        self.rfile.read()  # or the connection is reset before the answer is read


def test_no_gateway_is_an_error(tmp_path: Path) -> None:
    """Neither one that answers what is no HTTP, nor an address that is none."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _NoHttp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        no_http = f"http://127.0.0.1:{server.server_address[1]}"
        for address in (no_http, "http://[::1", "gateway:9091/x y", "http://127.0.0.1:99999"):
            settings = RetrainConfig(preset="digits", folder=tmp_path, pushgateway=address)
            said: list[str] = []
            outcome = publish(settings, "digits", Outcome("promoted", ""), time.time(), said.append)
            assert outcome.kind == "promoted"
            assert f"the Pushgateway {address} was not told" in said[0]
        server.shutdown()


def test_interruptions_that_get_no_further_fail_in_the_end(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "MAX_INTERRUPTIONS", 3)
    for _ in range(2):  # each makes a step
        assert run(home, stopped=True, set=steps(4)).kind == "interrupted"
    with monkeypatch.context() as patch, gateway() as address:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        found = [run(home, pushgateway=address, set=steps(4)) for _ in range(4)]
        told = pushed()
    assert [outcome.kind for outcome in found] == ["interrupted"] * 2 + ["failed", "interrupted"]
    assert "interrupted 3 times without getting further; MLflow at http" in found[2].reason
    assert told["wgan_retrain_interrupted_in_a_row",] == 4, "the alert stays"
    assert run(home, set=steps(4)).kind == "promoted", "it goes on all the same"
    assert kinds(home)[-2:] == ["interrupted", "promoted"]


def test_an_end_that_was_good_ends_the_count_of_interruptions(tmp_path: Path) -> None:
    settings = RetrainConfig(preset="digits", folder=tmp_path)
    place = "digits-0123456789ab no checkpoint"

    def count(kind: OutcomeKind, at: str | None) -> int:
        publish(settings, "digits", Outcome(kind, ""), time.time(), silent, at)
        return read_lines(tmp_path / "outcomes.jsonl", pytest.fail)[-1]["interruptions"]

    assert [count("interrupted", None) for _ in range(2)] == [1, 2]
    count("skipped", place)  # nothing changed
    assert count("interrupted", None) == 1
    count("killed", None)
    assert count("interrupted", None) == 2
    assert count("interrupted", place) == 1
    count("killed", None)
    count("skipped", place)  # another one is under way
    assert count("interrupted", place) == 2


def test_without_a_champion_nothing_is_settled(home: Path) -> None:
    api = registry.client()
    assert run(home).kind == "promoted"
    worse = {"set": steps(1, seed=5)}
    assert run(home, **worse).kind == "rejected"
    assert run(home).kind == run(home, **worse).kind == "skipped"
    changes = len(registry.history("corners"))

    api.delete_registered_model_alias("corners", "champion")
    said: list[str] = []
    outcome = run(home, say=said.append)
    assert (outcome.kind, champion()) == ("promoted", "1")
    assert any("there is no champion any more" in line for line in said)
    assert [h["action"] for h in registry.history("corners")[changes:]] == ["moved", "promote"]
    assert run(home).kind == "skipped"

    # What only the registry remembers is judged anew too, without training.
    api.delete_registered_model_alias("corners", "champion")
    elsewhere = {"folder": str(home / "elsewhere")}
    outcome = run(home, **worse, **elsewhere)
    assert (outcome.kind, champion()) == ("promoted", "2"), "the floors pass it"
    assert not list((home / "elsewhere").rglob("artifact"))
    assert len(registry.versions("corners")) == 2

    # A rejection by floors needs no champion, and stays one.
    api.delete_registered_model_alias("corners", "champion")
    slow = {"set": steps(1, seed=6), "gates": {"max_seconds": 1e-9}}
    assert run(home, **slow).kind == "rejected"
    assert run(home, **slow).kind == run(home, **slow, **elsewhere).kind == "skipped"


def folders(home: Path) -> set[str]:
    return {path.name for path in (home / "runs").glob("corners-*")}


def test_old_runs_are_removed_by_the_rule(home: Path) -> None:
    others = home / "runs" / "corners-of-another-0123456789ab"
    others.mkdir(parents=True)
    found = [run(home, set=steps(1, seed=seed), keep_runs=2, **ANY) for seed in range(3)]
    names = [outcome.folder.name for outcome in found]
    assert folders(home) == {others.name, *names[1:]}
    left = home / "runs" / f".{names[0]}.0123abcd.partial"
    left.mkdir()
    (home / "runs" / ".corners-of-another-0123456789ab.0123abcd.partial").mkdir()
    said: list[str] = []
    assert run(home, set=steps(1, seed=0), keep_runs=2, say=said.append).kind == "skipped"
    assert "corners-" not in "".join(said), "the registry knows the decision"
    assert run(home, set=steps(1, seed=3), keep_runs=1, **ANY).kind == "promoted"
    assert len(folders(home)) == 2
    assert [p.name for p in (home / "runs").glob(".*")] == [f".{others.name}.0123abcd.partial"]


def test_a_full_disk_is_foreseen(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=LEAST_BYTES))
    with gateway() as address:
        outcome = run(home, pushgateway=address)
        told = pushed()
    assert outcome.kind == "failed"
    assert "runs: has room for 67 MB, and this run needs about " in outcome.reason
    assert told["wgan_retrain_disk_free_bytes",] == LEAST_BYTES
    assert told["wgan_retrain_disk_free_bytes",] < told["wgan_retrain_disk_needed_bytes",]
    assert told["wgan_retrain_outcome", "failed"] == 1
    assert not list((home / "runs").glob("corners-*"))
    # What the run holds already is not needed again.
    current = home / "runs" / "corners-0123456789ab"
    current.mkdir()
    (current / "held").write_bytes(bytes(1000))
    make_room(current, "corners", 1, LEAST_BYTES + 1000, silent)
    with pytest.raises(MachineError, match="enlarge the disk, or lower keep_runs"):
        make_room(current, "corners", 1, LEAST_BYTES + 1001, silent)


@pytest.mark.parametrize(
    ("kind", "has_decision", "keep", "free"),
    [
        ("interrupted", False, 1, 1800),
        ("interrupted", True, 2, 1500),
        ("failed", False, 2, 1500),
        ("promoted", True, 2, 1300),
    ],
)
def test_the_room_that_is_told_is_what_the_next_run_finds(
    kind: OutcomeKind,
    has_decision: bool,
    keep: int,
    free: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a disk of 1800 bytes: the run at work has 500 of them, and an older one 300."""
    old, current, new = (tmp_path / f"corners-{digit * 12}" for digit in "012")
    for when, (folder, count) in enumerate([(old, 300), (current, 500)]):
        folder.mkdir()
        (folder / "held").write_bytes(bytes(count))
        os.utime(folder, (when, when))
    usage = shutil.disk_usage(tmp_path)

    def disk(_: object) -> object:
        held = sum(path.stat().st_size for path in tmp_path.glob("corners-*/*"))
        return usage._replace(free=1800 - held)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    decided = kind == "promoted"
    outcome = Outcome(kind, "", Decision.model_construct(gates=[]) if has_decision else None)
    with gateway() as address:
        settings = RetrainConfig(
            preset="digits", folder=tmp_path, pushgateway=address, keep_runs=keep
        )
        publish(settings, "corners", outcome, time.time(), pytest.fail, "place", 1, current)
    assert pushed()["wgan_retrain_disk_free_bytes",] == free
    assert pushed()["wgan_retrain_disk_needed_bytes",] == 1
    following = new if decided else current
    make_room(following, "corners", keep, free, silent)
    with pytest.raises(MachineError):
        make_room(following, "corners", keep, free + 1, silent)


def test_the_room_that_a_run_needs_is_estimated(tmp_path: Path) -> None:
    """Beside what a run takes at its end, and one more checkpoint that is being written."""
    wide = {"generator": {"width": 256}, "critic": {"width": 256}}
    short = {"steps": 3, "checkpoint_every": 1, "batch_size": 8}
    config = tiny_config("vector", training=short, **wide)
    state = torch.get_rng_state()
    data = load_data(config.data, 8)
    needed = needed_bytes(config, data.card)
    assert torch.equal(state, torch.get_rng_state())
    trained(config, tmp_path / "run", register=False)
    files = list((tmp_path / "run").rglob("*.safetensors"))
    found = sum(path.stat().st_size for path in files)
    largest = max(path.stat().st_size for path in files)
    assert len(files) == COPIES - 1 + 2
    assert (needed - LEAST_BYTES) / MARGIN == pytest.approx(found + largest, rel=0.05)
