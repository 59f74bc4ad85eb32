"""The registry, against a real MLflow database."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models import registry
from models.artifact import load_artifact
from models.errors import RegistryError
from tests.artifacts import make_artifact
from training.tracking import track_and_register

WGAN = Path(sys.executable).with_name("wgan")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of a model called tiny."""
    home = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        for seed in range(3):
            folder = make_artifact(home / f"artifact{seed}", seed=seed)
            assert track_and_register(load_artifact(folder), folder) == f"tiny@{seed + 1}"
    return home


@pytest.fixture(autouse=True)
def _use_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")


def test_versions_are_listed(home: Path) -> None:
    rows = registry.versions()
    assert [(r["name"], r["version"]) for r in rows] == [
        ("tiny", "3"),
        ("tiny", "2"),
        ("tiny", "1"),
    ]
    assert rows[0]["tags"]["constraint"] == "gradient_penalty"
    assert rows[0]["tags"][registry.DIGEST_TAG] == load_artifact(home / "artifact2").digest


def test_a_version_is_fetched_whole(home: Path, tmp_path: Path) -> None:
    fetched = load_artifact(registry.download("tiny@2", tmp_path))
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


def test_champions_come_and_go_with_their_history() -> None:
    assert registry.promote("tiny", "1", "first") is None
    assert registry.promote("tiny", "3", "better") == "1"
    assert registry.promote("tiny", "2", "better still") == "3"
    assert registry.resolve("tiny@champion") == ("tiny", "2")
    assert registry.rollback("tiny", "it was not") == ("2", "3")
    assert registry.rollback("tiny", "nor that") == ("3", "1")
    assert registry.resolve("tiny@champion") == ("tiny", "1")
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.rollback("tiny", "what now")
    found = [(h["action"], h["from"], h["to"], h["why"]) for h in registry.history("tiny")]
    assert found == [
        ("promote", None, "1", "first"),
        ("promote", "1", "3", "better"),
        ("promote", "3", "2", "better still"),
        ("rollback", "2", "3", "it was not"),
        ("rollback", "3", "1", "nor that"),
    ]
    assert all(h["who"] and h["when"] for h in registry.history("tiny"))
    registry.promote("tiny", "3", "again")
    registry.promote("tiny", "1", "and back")
    assert registry.rollback("tiny", "so 3 it is") == ("1", "3")


@pytest.mark.parametrize(
    "model", ["tiny@9", "tiny@nobody", "absent@1", "absent@champion", "@1", "tiny@"]
)
def test_what_is_not_there_is_said(model: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError):
        registry.download(model, tmp_path)
    if model.startswith(("tiny@9", "absent")):
        name, _, version = model.partition("@")
        with pytest.raises(RegistryError):
            registry.promote(name, version, "why not")


def test_a_tampered_version_is_not_promoted(home: Path) -> None:
    folder = make_artifact(home / "spoilt", seed=9)
    reference = track_and_register(load_artifact(folder), folder)
    (stored,) = [
        p for p in (home / "mlartifacts").rglob("SHA256SUMS")
        if p.read_bytes() == (folder / "SHA256SUMS").read_bytes()
    ]  # fmt: skip
    card = stored.with_name("MODEL_CARD.md")
    card.write_text(card.read_text() + "perfect\n")
    result = subprocess.run(
        [WGAN, "promote", reference], capture_output=True, text=True, check=False, env=os.environ
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error:")
    assert "MODEL_CARD.md" in result.stderr


def test_the_command_line_tells_the_same() -> None:
    def wgan(*arguments: str) -> str:
        return subprocess.run(
            [WGAN, *arguments], capture_output=True, text=True, check=True, env=os.environ
        ).stdout

    wgan("promote", "tiny@2", "--why", "a test")
    assert registry.history("tiny")[-1]["why"] == "a test"
    rows = json.loads(wgan("models", "--json"))
    assert [r["version"] for r in rows if "champion" in r["aliases"]] == ["2"]
    assert "tiny@2" in wgan("models")
    assert "@champion" in wgan("models")


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


def test_promotions_at_once_leave_one_champion_and_both_histories() -> None:
    before = len(registry.history("tiny"))
    code = "import sys; from models import registry; registry.promote('tiny', sys.argv[1], 'race')"
    both = [subprocess.Popen([sys.executable, "-c", code, version]) for version in ("1", "3")]
    assert [p.wait(120) for p in both] == [0, 0]
    assert registry.champion("tiny") in {"1", "3"}
    added = registry.history("tiny")[before:]
    assert sorted(str(h["to"]) for h in added) == ["1", "3"]
    registry.promote("tiny", "2", "after the race")
    assert registry.history("tiny")[-1]["to"] == "2"
    assert len(registry.history("tiny")) == before + 3


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
