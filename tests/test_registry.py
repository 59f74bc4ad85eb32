"""The registry, against a real MLflow database."""

import base64
import contextlib
import http.server
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.store.db import utils as db_utils
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModel
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import wgan_cli
from models import promotions, registry, registry_files, tracking_server
from models.artifact import load_artifact
from models.errors import (
    AbsentError,
    AwayError,
    ForbiddenError,
    RegistryError,
    UnsupportedServerError,
)
from models.registry_search import model_named
from tests.artifacts import make_artifact
from tests.registries import new_database
from tests.runs import forked
from training.tracking import track_and_register

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of a model called tiny."""
    home = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", new_database(home))
        for seed in range(3):
            folder = make_artifact(home / f"artifact{seed}", seed=seed)
            assert track_and_register(load_artifact(folder), folder) == f"tiny@{seed + 1}"
    return home


@pytest.fixture(autouse=True)
def _use_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")


def test_versions_are_listed(home: Path) -> None:
    rows = registry.versions("tiny")
    assert [(r["name"], r["version"]) for r in rows] == [
        ("tiny", "3"),
        ("tiny", "2"),
        ("tiny", "1"),
    ]
    assert rows[0]["tags"]["constraint"] == "gradient_penalty"
    assert rows[0]["tags"][registry.DIGEST_TAG] == load_artifact(home / "artifact2").digest


def test_a_registry_of_many_is_listed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow gives 100 models at a time, and lets others choose names with quotes in them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    names = {*(f"m{i:03d}" for i in range(101)), "bob's", 'the "best"', """bob's "best\""""}
    registry.client()
    engine = create_engine(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with Session(engine) as session:  # at once: MLflow would take a transaction for each
        for name in names:
            session.add(SqlRegisteredModel(name=name, creation_time=0, last_updated_time=0))
            session.add(SqlModelVersion(name=name, version=1, source=str(tmp_path)))
        session.commit()
    engine.dispose()
    assert set(registry.names()) == names
    assert {(row["name"], row["version"]) for row in registry.versions()} == {
        (name, "1") for name in names
    }


def test_a_registry_that_fails_is_none_without_the_model() -> None:
    class Fails:
        def get_registered_model(self, name: str) -> None:
            raise MlflowException(name, error_code=TEMPORARILY_UNAVAILABLE)

    with pytest.raises(MlflowException, match="digits"):
        model_named(Fails(), "digits")  # type: ignore[arg-type]


def test_a_version_is_fetched_whole(home: Path, tmp_path: Path) -> None:
    fetched = load_artifact(registry_files.download("tiny@2", tmp_path))
    assert fetched.digest == load_artifact(home / "artifact1").digest


def test_artifacts_lie_beside_the_database(home: Path) -> None:
    assert list((home / "mlartifacts").rglob("run.json"))


def test_what_is_tracked() -> None:
    api = registry.client()
    version = api.get_model_version("tiny", "1")
    run = api.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["constraint.kind"] == "gradient_penalty"
    assert run.data.params["training.ema_decay"] == "0.999"
    assert run.data.metrics["precision"] == 0.5
    assert run.data.metrics["precision.floor"] == 0.9
    shown = {"samples.png", "MODEL_CARD.md", "diagnosis.html"}
    assert shown <= {f.path for f in api.list_artifacts(version.run_id)}
    assert run.data.tags["finding.low_diversity"] == "warning: coverage is 0.5"
    assert run.data.metrics["finding.low_diversity"] == 0.44
    assert run.data.tags["mlflow.note.content"] == version.description == "# tiny\n"


def test_of_a_table_the_report_and_any_names_of_columns_are_tracked(tmp_path: Path) -> None:
    told = {"Price ($), net": {"kind": "number"}}
    folder = make_artifact(
        tmp_path / "artifact", "rows", data={"source": "sales.csv", "columns": told}
    )
    (tmp_path / "report.html").write_text("<p>columns</p>")
    model = load_artifact(folder)
    run_id = track_and_register(model, folder, "compared", tmp_path / "report.html")
    api = registry.client()
    assert "report.html" in {f.path for f in api.list_artifacts(run_id)}
    said = json.loads(api.get_run(run_id).data.params["data.columns"])
    assert said["Price ($), net"]["kind"] == "number"


def test_champions_come_and_go_with_their_history(bare: str) -> None:
    assert registry.promote(bare, "1", "first") is None
    assert registry.promote(bare, "3", "better") == "1"
    assert registry.promote(bare, "2", "better still") == "3"
    assert registry.resolve(f"{bare}@champion") == (bare, "2")
    assert registry.rollback(bare, "it was not") == ("2", "3")
    assert registry.rollback(bare, "nor that") == ("3", "1")
    assert registry.resolve(f"{bare}@champion") == (bare, "1")
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.rollback(bare, "what now")
    found = [(h["action"], h["from"], h["to"], h["why"]) for h in registry.history(bare)]
    assert found == [
        ("promote", None, "1", "first"),
        ("promote", "1", "3", "better"),
        ("promote", "3", "2", "better still"),
        ("rollback", "2", "3", "it was not"),
        ("rollback", "3", "1", "nor that"),
    ]
    assert all(h["who"] and h["when"] for h in registry.history(bare))
    registry.promote(bare, "3", "again")
    registry.promote(bare, "1", "and back")
    assert registry.rollback(bare, "so 3 it is") == ("1", "3")


@pytest.mark.parametrize(
    "model", ["tiny@9", "tiny@nobody", "absent@1", "absent@champion", "@1", "tiny@"]
)
def test_what_is_not_there_is_said(model: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError):
        registry_files.download(model, tmp_path)
    if model.startswith(("tiny@9", "absent")):
        name, _, version = model.partition("@")
        with pytest.raises(RegistryError):
            registry.promote(name, version, "why not")


def test_a_tampered_version_is_not_promoted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_artifact(home / "spoilt", seed=9)
    reference = track_and_register(load_artifact(folder), folder)
    (stored,) = [
        p for p in (home / "mlartifacts").rglob("SHA256SUMS")
        if p.read_bytes() == (folder / "SHA256SUMS").read_bytes()
    ]  # fmt: skip
    card = stored.with_name("MODEL_CARD.md")
    card.write_text(card.read_text() + "perfect\n")
    assert wgan_cli.main(["promote", reference]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error:")
    assert "MODEL_CARD.md" in said


def test_the_command_line_tells_the_same(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    def wgan(*arguments: str) -> str:
        assert wgan_cli.main([*arguments]) == 0
        return capsys.readouterr().out

    wgan("promote", f"{model}@3", "--why", "a test")
    assert registry.history(model)[-1]["why"] == "a test"
    rows = json.loads(wgan("models", "--json"))
    assert [r["version"] for r in rows if r["name"] == model and r["aliases"]] == ["3"]
    registry.tag(model, "2", {"parent": "other@7", "extended": "from 3 steps"})
    listed = {line.split()[0]: line.split()[2:] for line in wgan("models").splitlines()}
    assert listed[f"{model}@3"] == ["@champion"]
    assert listed[f"{model}@2"] == ["from", "other@7", "extended", "from", "3", "steps"]
    assert listed[f"{model}@1"] == []
    assert listed["tiny@1"] == ["gradient_penalty"]
    assert all("@" in first for first in listed), "and nothing else is said"


def test_registering_twice_makes_one_version(home: Path) -> None:
    folder = home / "artifact1"
    model = load_artifact(folder)
    before = len(registry.versions())
    assert track_and_register(model, folder) == "tiny@2"
    assert len(registry.versions()) == before
    found = registry.find("tiny", registry.DIGEST_TAG, model.digest)
    assert found is not None
    assert (found["version"], found["constraint"]) == ("2", "gradient_penalty")
    assert registry.find("tiny", registry.DIGEST_TAG, "another") is None
    assert registry.find("absent", registry.DIGEST_TAG, model.digest) is None


def test_there_may_be_no_champion(home: Path) -> None:
    assert registry.champion("absent") is None
    folder = make_artifact(home / "unpromoted", seed=20, training={"seed": 20})
    loaded = load_artifact(folder)
    renamed = loaded.run.config.model_copy(update={"name": "unpromoted"})
    loaded.run = loaded.run.model_copy(update={"config": renamed})
    assert track_and_register(loaded, folder) == "unpromoted@1"
    assert registry.champion("unpromoted") is None
    registry.promote("unpromoted", "1", "only one")
    assert registry.champion("unpromoted") == "1"


def test_a_server_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with pytest.raises(RegistryError):
        registry.resolve("tiny@champion")
    with pytest.raises(RegistryError):
        registry.champion("tiny")
    with pytest.raises(RegistryError):
        registry.versions()
    folder = home / "artifact0"
    with pytest.raises(RegistryError, match="the artifact is safe"):
        track_and_register(load_artifact(folder), folder)


def changes(name: str = "tiny") -> list[tuple[str | None, ...]]:
    return [(h["action"], h["from"], h["to"]) for h in registry.history(name)]


@pytest.fixture
def bare() -> str:
    return make_bare_model()


@pytest.fixture
def model() -> str:
    return make_model()


def make_bare_model() -> str:
    """A model of three versions of its own, of which none has been champion."""
    name = f"model{next(NUMBERS)}"
    version = registry.client().get_model_version("tiny", "1")
    tags = {registry.EXTRACTOR_TAG: '{"name": "one", "sha256": "0"}'}
    for _ in range(3):
        registry.register(name, version.run_id, version.source, tags)
    return name


def make_model() -> str:
    """A model of three versions of its own, of which the first two have been champions."""
    name = make_bare_model()
    registry.promote(name, "1", "first")
    registry.promote(name, "2", "better")
    return name


def promote_in_a_race(arguments: list[str]) -> int:
    registry.promote(*arguments, "race")
    return 0


def test_promotions_at_once_leave_one_champion_and_both_histories(
    model: str, tmp_path: Path
) -> None:
    both = [
        forked(promote_in_a_race, [model, number], tmp_path / f"log{number}")
        for number in ("1", "3")
    ]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert registry.champion(model) in {"1", "3"}
    added = [h for h in registry.history(model)[2:] if h["action"] == "promote"]
    assert sorted(str(h["to"]) for h in added) == ["1", "3"]
    assert registry.history(model)[-1]["to"] == registry.champion(model)
    registry.promote(model, "2", "after the race")
    assert registry.history(model)[-1]["to"] == "2"


def test_a_promotion_that_looks_while_another_is_made_leaves_it_in_the_history(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks between the other's record and its alias, and mends after the other has ended."""
    settle, alias = promotions.settle, MlflowClient.set_registered_model_alias
    steps = {name: threading.Event() for name in ("recorded", "looked", "ended")}

    def set_alias(*arguments: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            steps["recorded"].set()
            assert steps["looked"].wait(60)
        alias(*arguments)

    def look(*arguments: object) -> object:
        found = settle(*arguments)
        if threading.current_thread() is threading.main_thread():
            steps["looked"].set()
            assert steps["ended"].wait(60)
        return found

    def promote_another() -> None:
        registry.promote(model, "3", "the other")
        steps["ended"].set()

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_alias)
    other = threading.Thread(target=promote_another)
    other.start()
    assert steps["recorded"].wait(60)
    monkeypatch.setattr(promotions, "settle", look)
    registry.promote(model, "1", "this one")
    other.join()
    assert [c[2] for c in changes(model)] == ["1", "2", "3", "1"]


def promote_and_die(models: list[str]) -> int:
    """Promote the third version of each, in processes of which the n-th dies after n calls.

    Calls that change MLflow are counted.
    """
    left = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            if not left:
                os._exit(137)
            left -= 1
            return function(*arguments, **more)

        return call

    for method in ("set_registered_model_alias", "set_registered_model_tag"):
        setattr(MlflowClient, method, dying(getattr(MlflowClient, method)))
    for count, name in enumerate(models):
        left = count
        child = os.fork()
        if child == 0:
            registry.promote(name, "3", "best")
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return 0


@pytest.fixture(scope="module")
def killed(home: Path) -> list[str]:
    """Models whose promotion was killed after 0, 1 and 2 calls, and one that was not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        models = [make_model() for _ in range(4)]
        log = home / "killed"
        process = forked(promote_and_die, models, log)
        process.join(120)
        assert process.exitcode == 0, log.read_text()
    assert log.read_text().split() == ["137", "137", "137", "0"]
    return models


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_promotion_that_is_killed_leaves_a_true_history(killed: list[str], calls: int) -> None:
    model = killed[calls]
    happened = calls > 1
    before = [("promote", None, "1"), ("promote", "1", "2")]
    after = [*before, ("promote", "2", "3")]
    for _ in range(2):  # before anything is mended, and after
        assert registry.champion(model) == ("3" if happened else "2")
        assert changes(model) == (after if happened else before)
        if happened:
            assert registry.history(model)[-1]["why"] == "best"
        registry.promote(model, str(registry.champion(model)), "again: nothing changes")
    assert registry.rollback(model, "back") == (("3", "2") if happened else ("2", "1"))
    tags = registry.client().get_registered_model(model).tags
    recorded = [value for key, value in tags.items() if key.startswith("promotion.")]
    assert len(recorded) == len(changes(model)) + (calls == 1)
    assert sum("pending" in value for value in recorded) == (calls == 1)
    assert json.loads(tags[registry.EXTRACTOR_TAG])["version"] == "1"


def test_a_promotion_that_is_made_again_takes_the_record_of_the_one_that_was_cut_off(
    model: str,
) -> None:
    api = registry.client()

    def tags() -> dict[str, str]:
        found = api.get_registered_model(model).tags
        return {key: value for key, value in found.items() if key.startswith("promotion.")}

    before = tags()
    cut = {"action": "promote", "who": "me", "when": promotions.now(), "from": "2", "pending": True}
    for to in "13":
        key = promotions.next_tag(tags())
        api.set_registered_model_tag(model, key, json.dumps({**cut, "why": "cut", "to": to}))
    registry.promote(model, "3", "made again")
    assert changes(model)[2:] == [("promote", "2", "3")]
    (told,) = [value for name, value in tags().items() if name not in before and "cut" not in value]
    assert len(tags()) == len(before) + 2, "that of version 1 is left, which another may promote"
    assert "pending" not in json.loads(told)


def test_a_killed_rollback_goes_on_backward(model: str) -> None:
    """A second one would otherwise bring the version back that was rolled back from."""
    registry.promote(model, "3", "best")
    api = registry.client()
    registry.rollback(model, "cut off after the alias")
    (key,) = [
        key for key, value in api.get_registered_model(model).tags.items() if "rollback" in value
    ]
    change = json.loads(api.get_registered_model(model).tags[key])
    api.set_registered_model_tag(model, key, json.dumps({**change, "pending": True}))
    assert registry.rollback(model, "again") == ("2", "1")


def test_an_alias_that_is_moved_by_hand_is_in_the_history(model: str) -> None:
    api = registry.client()
    api.set_registered_model_alias(model, registry.CHAMPION, "3")
    moved = ("moved", "2", "3")
    assert changes(model)[2:] == [moved], "the registry is asked"
    assert registry.rollback(model, "not meant") == ("3", "2")
    assert changes(model)[2:] == [moved, ("rollback", "3", "2")]
    assert registry.rollback(model, "nor that") == ("2", "1")
    api.delete_registered_model_alias(model, registry.CHAMPION)
    assert changes(model)[4:] == [("rollback", "2", "1"), ("moved", "1", None)]
    assert registry.rollback(model, "there must be one") == (None, "1")
    assert changes(model)[-2:] == [("moved", "1", None), ("rollback", None, "1")]
    with pytest.raises(AbsentError, match="no earlier champion"):
        registry.rollback(model, "further back")


def test_tags_of_others_are_no_changes(model: str) -> None:
    api = registry.client()
    others = {
        "promotion.note": "ask Anna first",
        "promotion.7": "{}",
        "promotion.000009.ab": "not JSON",
        "promotion.000010.ab": "[]",
    }
    for key, value in others.items():
        api.set_registered_model_tag(model, key, value)
    registry.promote(model, "3", "best")
    assert changes(model)[2:] == [("promote", "2", "3")]
    assert registry.rollback(model, "back") == ("3", "2")
    assert others.items() <= api.get_registered_model(model).tags.items()


def test_a_version_that_was_deleted_is_passed_over(model: str) -> None:
    registry.promote(model, "3", "best")
    registry.client().delete_model_version(model, "2")
    assert registry.rollback(model, "back") == ("3", "1")


def test_what_is_absent_is_told_from_what_does_not_answer(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AbsentError):
        registry.version(model, "9")
    with pytest.raises(AbsentError):
        registry.resolve(f"{model}@nobody")
    stored = tmp_path / "stored"
    shutil.copytree(Path(registry.client().get_model_version("tiny", "1").source[7:]), stored)
    run_id = registry.version("tiny", "1")["run_id"]
    version = registry.register(model, run_id, stored.as_uri(), {})
    registry_files.download(f"{model}@{version}", tmp_path / "a")
    shutil.rmtree(stored)
    with pytest.raises(AbsentError, match="nothing is stored there any more"):
        registry_files.download(f"{model}@{version}", tmp_path / "b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(AwayError):
        registry.champion(model)


@pytest.mark.parametrize(
    "address",
    [
        "nonsense://host/path",
        "sqlite:////proc/self/mlflow.db",
        "mssql+pyodbc://host/mlflow",
        "http://[::1",
    ],
)
def test_an_address_where_nothing_can_answer_is_a_mistake(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError) as caught:
        registry.champion("tiny")
    assert type(caught.value) is RegistryError, "neither absent nor away"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", ["not allowed", '{"error_code": "PERMISSION_DENIED"}'])
def test_a_registry_that_refuses_is_told_from_one_that_is_away(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str
) -> None:
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ForbiddenError):
            registry.champion("tiny")
        server.shutdown()


def test_mlflow_is_told_how_long_to_try_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment sets stays; the defaults of MLflow let a caller wait for minutes."""
    ours = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    }
    for name in ours:
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 10)
    registry.client()
    assert {name: os.environ.get(name) for name in ours} == ours
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
    assert db_utils.MAX_RETRY_COUNT == 5


@contextlib.contextmanager
def server_of(version: str) -> Iterator[tuple[str, list[str | None]]]:
    """A server that tells its version and has no models; its address, and who asked."""
    asked: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            is_version = self.path == "/version"
            body = version if is_version else '{"error_code": "RESOURCE_DOES_NOT_EXIST"}'
            self.send_response(200 if is_version else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_password_in_the_address_is_sent_and_not_kept_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    with server_of("3.1.0") as (address, asked):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:a%20secret@{address}")
        assert registry.champion("tiny") is None
    assert registry.tracking_uri() == f"http://{address}"
    assert set(asked) == {"Basic " + base64.b64encode(b"ann:a secret").decode()}


@pytest.mark.parametrize(
    ("uri", "left", "name", "password"),
    [
        ("http://ann:a%20b@host:5000/x", "http://host:5000/x", "ann", "a b"),
        ("https://ann%40home:p@ss@host", "https://host", "ann@home", "p@ss"),
        ("http://ann@host", "http://ann@host", "", ""),
        ("http://:secret@host", "http://:secret@host", "", ""),
        ("http://host", "http://host", "", ""),
        ("postgresql://ann:secret@host/x", "postgresql://ann:secret@host/x", "", ""),
    ],
)
def test_only_a_server_s_name_and_password_are_taken_from_its_address(
    uri: str, left: str, name: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (("URI", uri), ("USERNAME", ""), ("PASSWORD", "")):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{key}", value)
    tracking_server.take_credentials()
    found = [os.environ[f"MLFLOW_TRACKING_{key}"] for key in ("URI", "USERNAME", "PASSWORD")]
    assert found == [left, name, password]


def test_an_address_that_is_no_url_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://[::1")
    with pytest.raises(RegistryError, match=r"^MLFLOW_TRACKING_URI=http://\[::1: is no URL \("):
        tracking_server.take_credentials()


def test_databases_alone_are_tried_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db_utils, "MAX_RETRY_COUNT", 10)
    for uri in ("http://host", "https://host"):
        tracking_server.limit_tries(uri)
        assert db_utils.MAX_RETRY_COUNT == 10
    tracking_server.limit_tries("sqlite:///mlflow.db")
    assert db_utils.MAX_RETRY_COUNT == tracking_server.DATABASE_TRIES


def test_a_server_that_is_too_old_is_refused_before_it_is_asked_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with server_of("2.22.0") as (address, asked):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
        with pytest.raises(UnsupportedServerError, match=r"MLflow 2\.22\.0 is too old"):
            registry.champion("tiny")
    assert len(asked) == 1


def test_without_an_address_the_database_lies_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
        assert registry.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert registry.tracking_uri() == "http://there"


def test_a_reference_has_a_name_and_which_and_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs@home").mkdir()
    references = {"tiny@1": True, "tiny": False, "runs@home": False, "runs": False, "a@\0": True}
    assert {model: registry.is_reference(model) for model in references} == references
    longest = "n" * 256, "a" * 256
    assert registry.split("@".join(longest)) == longest
    assert registry.split("one@two@3") == ("one@two", "3")
    for model in (f"{'n' * 257}@1", f"tiny@{'a' * 257}"):
        with pytest.raises(RegistryError, match="a name or alias has at most 256 characters"):
            registry.split(model)
    for model in ("@1", "tiny@", "@", "tiny"):
        with pytest.raises(RegistryError, match=f"^{model}: write NAME@ALIAS or NAME@VERSION"):
            registry.split(model)


def test_versions_tell_when_they_were_made_and_what_they_are_called(model: str) -> None:
    began = datetime.now(UTC)
    api = registry.client()
    for alias, version in (("shadow", "2"), ("canary", "2"), ("old", "1")):
        api.set_registered_model_alias(model, alias, version)
    rows = registry.versions(model)
    assert [row["version"] for row in rows] == ["3", "2", "1"]
    assert [row["aliases"] for row in rows] == [[], ["canary", "champion", "shadow"], ["old"]]
    for row in rows:
        made = datetime.fromisoformat(row["created"])
        assert abs(made - began) < timedelta(hours=1)
        assert made.microsecond == 0, "to the second"
    assert registry.versions("absent") == []
    assert {row["name"] for row in registry.versions()} >= {model, "tiny"}


def test_the_newest_version_with_a_tag_is_found(bare: str) -> None:
    for number in ("1", "3"):
        registry.tag(bare, number, {"key": "a", "more": number})
    found = registry.find(bare, "key", "a")
    assert found is not None
    assert (found["version"], found["more"]) == ("3", "3")
    assert registry.find(bare, "key", "b") is None
    with pytest.raises(AbsentError):
        registry.tag(bare, "9", {"key": "a"})


def test_a_model_that_another_process_registers_meanwhile_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = MlflowClient.create_registered_model

    def twice(api: MlflowClient, name: str) -> object:
        create(api, name)
        return create(api, name)

    monkeypatch.setattr(MlflowClient, "create_registered_model", twice)
    source = registry.version("tiny", "1")
    name = f"model{next(NUMBERS)}"
    assert registry.register(name, source["run_id"], "file:///nowhere", {"a": "b"}) == "1"
    assert registry.version(name, "1")["a"] == "b"


def test_a_name_that_the_registry_refuses_is_said() -> None:
    with pytest.raises(RegistryError, match=r"^a/b: .*a/b"):
        registry.register("a/b", registry.version("tiny", "1")["run_id"], "file:///nowhere", {})


def test_a_registry_that_takes_no_models_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{home}/mlflow.db?mode=ro&uri=true")
    with pytest.raises(RegistryError, match=r"^newcomer: .*readonly database"):
        registry.register("newcomer", "0", "file:///nowhere", {})
    assert registry.champion("newcomer") is None


def test_a_version_that_is_not_there_leaves_no_trace_of_its_promotion(bare: str) -> None:
    for version in ("9", "nobody"):
        with pytest.raises(RegistryError):
            registry.promote(bare, version, "why not")
    assert registry.client().get_registered_model(bare).tags == {}


def test_a_promotion_that_was_cut_off_behind_the_alias_keeps_its_reason(
    bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As does one that is killed there, in a process of its own."""
    alias = MlflowClient.set_registered_model_alias

    def cut_off(*arguments: str) -> None:
        alias(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", cut_off)
        with pytest.raises(KeyboardInterrupt):
            registry.promote(bare, "1", "best")
    for _ in range(2):  # before it is mended, and after
        (change,) = registry.history(bare)
        assert (change["action"], change["to"], change["why"]) == ("promote", "1", "best")
        registry.promote(bare, "1", "it is the champion already")


def test_a_check_may_keep_the_champion_and_is_not_asked_without_one(bare: str) -> None:
    asked: list[tuple[str, str]] = []

    def check(before: str, version: str) -> None:
        asked.append((before, version))
        raise ValueError("kept")

    assert registry.promote(bare, "1", "first", check) is None
    assert registry.promote(bare, "1", "again", check) == "1"
    assert asked == [], "nothing is replaced"
    with pytest.raises(ValueError, match="kept"):
        registry.promote(bare, "2", "better", check)
    assert registry.champion(bare) == "1"
    registry.promote(bare, "2", "better")
    with pytest.raises(ValueError, match="kept"):
        registry.rollback(bare, "worse", check)
    assert asked == [("1", "2"), ("2", "1")]
    assert registry.champion(bare) == "2"
    assert [change[2] for change in changes(bare)] == ["1", "2"]


def test_the_first_champion_s_features_are_kept_also_where_it_was_made_by_hand(bare: str) -> None:
    assert registry.frozen_extractor("absent") is None
    assert registry.frozen_extractor(bare) is None
    registry.tag(bare, "3", {registry.EXTRACTOR_TAG: '{"name": "another", "sha256": "1"}'})
    registry.client().set_registered_model_alias(bare, registry.CHAMPION, "2")
    registry.promote(bare, "3", "better")
    expected = {"name": "one", "sha256": "0", "version": "2"}
    assert registry.frozen_extractor(bare) == expected
    other = make_bare_model()
    registry.promote(other, "3", "first")
    assert registry.frozen_extractor(other) == {**expected, "version": "3"}


def test_a_model_without_features_keeps_none() -> None:
    name = f"model{next(NUMBERS)}"
    source = registry.version("tiny", "1")
    registry.register(name, source["run_id"], "file:///nowhere", {})
    registry.promote(name, "1", "first")
    assert registry.EXTRACTOR_TAG not in registry.client().get_registered_model(name).tags
    assert registry.frozen_extractor(name) is None


def test_a_change_that_was_cut_off_long_ago_is_forgotten(model: str) -> None:
    """An hour later no process is about to make it; until then it is not told, and stays."""
    api = registry.client()
    tags = api.get_registered_model(model).tags
    change = json.loads(max(v for k, v in tags.items() if k.startswith("promotion.")))
    for key, hours in (("promotion.000007.aa", 2), ("promotion.000008.bb", 0)):
        when = promotions.now(-timedelta(hours=hours))
        pending = {**change, "when": when, "to": "3", promotions.PENDING: True}
        api.set_registered_model_tag(model, key, json.dumps(pending))
    registry.promote(model, "2", "it is the champion: nothing changes")
    left = api.get_registered_model(model).tags
    assert "promotion.000007.aa" not in left
    assert "promotion.000008.bb" in left
    assert [c[2] for c in changes(model)] == ["1", "2"]


def test_some_files_of_a_version_are_fetched(home: Path, tmp_path: Path) -> None:
    """As far as there are such; the folder is made, or was there."""
    wanted = {"run.json", "SHA256SUMS", "none.txt"}
    for _ in range(2):
        folder = registry_files.download("tiny@1", tmp_path / "new" / "folder", wanted)
        assert {path.name for path in folder.iterdir()} == {"run.json", "SHA256SUMS"}
    assert (folder / "run.json").read_bytes() == (home / "artifact0" / "run.json").read_bytes()


def test_a_file_is_put_beside_the_others_of_a_version(home: Path, tmp_path: Path) -> None:
    folder = make_artifact(home / "extended", seed=30, training={"seed": 30})
    model = track_and_register(load_artifact(folder), folder)
    registry_files.require_files(model)
    for text in ("first", "second"):
        (tmp_path / "note.txt").write_text(text)
        registry_files.upload(model, tmp_path / "note.txt")
        fetched = registry_files.download(model, tmp_path / text, {"note.txt"})
        assert (fetched / "note.txt").read_text() == text
    with pytest.raises(RegistryError, match=r"cannot store gone\.txt"):
        registry_files.upload(model, tmp_path / "gone.txt")
    stored = registry.files_uri(model).removeprefix("file://")
    shutil.rmtree(stored)
    with pytest.raises(AbsentError, match=r"cannot list .*nothing is stored there any more"):
        registry_files.require_files(model)
