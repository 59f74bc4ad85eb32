"""A champion of another schema needs a reason, which is kept; a service says what it does then."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from models import champions, registry
from models.artifact import load_artifact
from models.champions import SchemaChangeError
from models.record import Run
from models.schema_changes import schema_changes
from service.holder import ModelHolder
from service.room import Room
from service.settings import Settings
from tests.artifacts import make_artifact
from tests.mixed import people_schema
from tests.registries import new_database
from training.tracking import track_and_register
from wgan_cli import main

TEN = {str(digit): 1 for digit in range(10)}


def run_of(folder: Path, kind: str, **settings: Any) -> Run:
    return load_artifact(
        make_artifact(folder / str(len(list(folder.iterdir()))), kind, **settings)
    ).run


def test_what_a_client_would_notice(tmp_path: Path) -> None:
    rows, image = run_of(tmp_path, "rows"), run_of(tmp_path, "image")
    assert schema_changes(rows, rows) == []
    assert schema_changes(run_of(tmp_path, "rows", seed=1), rows) == []
    schema = people_schema()
    first, *others = schema.columns
    fewer = schema.model_copy(update={"columns": others})
    of_fewer = rows.model_copy(update={"data": rows.data.model_copy(update={"table": fewer})})
    assert schema_changes(of_fewer, rows) == [f"it lacks the columns {first.name}"]
    assert schema_changes(rows, of_fewer) == [f"it adds the columns {first.name}"]
    swapped = first.model_copy(update={"name": others[-1].name})
    other = schema.model_copy(update={"columns": [first, *others[:-1], swapped]})
    of_other = rows.model_copy(update={"data": rows.data.model_copy(update={"table": other})})
    (phrase,) = schema_changes(of_other, rows)
    assert phrase == (
        f"of another kind are the columns {swapped.name} ({swapped.kind}, not {others[-1].kind})"
    )
    assert schema_changes(run_of(tmp_path, "rgb"), image) == [
        "it makes images of 12x16 pixels and 3 channels, not images of 8x8 pixels and 1 channel"
    ]
    assert schema_changes(run_of(tmp_path, "sequence"), run_of(tmp_path, "vector")) == [
        "it makes sequences of 4 steps of 2 values, not vectors of 2 values"
    ]
    assert schema_changes(image, rows) == [
        "it makes images of 8x8 pixels and 1 channel, not rows of a table"
    ]
    (phrase,) = schema_changes(run_of(tmp_path, "image", class_counts=TEN), image)
    assert phrase == "it has the classes 0, 1, 2, 3, 4 and 5 more, not no classes to ask for"
    unseen = run_of(tmp_path, "image", class_counts=TEN | {"9": 0})
    (phrase,) = schema_changes(unseen, run_of(tmp_path, "image", class_counts=TEN))
    assert phrase.startswith("it has the classes 0, 1, 2, 3, 4 and 4 more, not the classes 0,")
    for count, more in ((5, ""), (6, " and 1 more")):
        some = run_of(tmp_path, "image", class_counts=dict.fromkeys(list(TEN)[:count], 1))
        told = f"it has the classes 0, 1, 2, 3, 4{more}, not no classes to ask for"
        assert schema_changes(some, image) == [told]
    two = image.model_copy(update={"data": image.data.model_copy(update={"shape": (2, 8, 8)})})
    (phrase,) = schema_changes(two, image)
    assert phrase.startswith("it makes images of 8x8 pixels and 2 channels, not")
    unnamed = run_of(tmp_path, "vector")
    a, b = (
        unnamed.model_copy(update={"data": unnamed.data.model_copy(update={"columns": names})})
        for names in (["x", "y"], ["x", "z"])
    )
    assert schema_changes(a, b) == ["its columns are x, y, not x, z"]
    assert schema_changes(a, a) == []
    assert schema_changes(a, unnamed) == schema_changes(unnamed, a) == []  # it names none
    scaled = image.data.model_copy(update={"offset": [0.5], "scale": [0.5]})
    (phrase,) = schema_changes(image.model_copy(update={"data": scaled}), image)
    assert phrase.startswith("it makes images of 8x8 pixels and 1 channel in units of their own, ")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry where unrelated data were registered under one name: 1 and 3 alike, 2 not."""
    home = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", new_database(home))
        for seed, kind in enumerate(("rows", "vector", "rows")):
            folder = make_artifact(home / f"artifact{seed}", kind, seed=seed)
            track_and_register(load_artifact(folder), folder)
    return home


@pytest.fixture(autouse=True)
def _use_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")


def test_only_a_reason_replaces_a_champion_of_another_schema(home: Path) -> None:
    said = list[str]()
    assert champions.promote("tiny", "1", "first") is None
    assert champions.promote("tiny", "3", "alike", say=said.append) == "1"
    assert said == []
    with pytest.raises(SchemaChangeError, match=r"vectors of 2 values, not rows.*--force REASON"):
        champions.promote("tiny", "2", "another")
    assert registry.champion("tiny") == "3"
    assert champions.FORCED_TAG not in registry.version("tiny", "2")
    assert champions.promote("tiny", "2", "another", "rows are gone", said.append) == "3"
    assert registry.version("tiny", "2")[champions.FORCED_TAG] == "tiny@3: rows are gone"
    assert said[0].endswith("; forced: rows are gone")
    with pytest.raises(SchemaChangeError, match="rows of a table, not vectors"):
        champions.rollback("tiny", "back")
    assert champions.rollback("tiny", "back", "clients want rows", said.append) == ("2", "3")
    assert registry.version("tiny", "3")[champions.FORCED_TAG] == "tiny@2: clients want rows"


def test_the_commands_refuse_and_are_forced_alike(capsys: pytest.CaptureFixture[str]) -> None:
    registry.promote("tiny", "3", "for this test")
    assert main(["promote", "tiny@2"]) == 2
    told = capsys.readouterr().err
    assert "--force REASON" in told
    assert told.count("\n") == 1
    assert main(["promote", "tiny@2", "--force", "a new product"]) == 0
    assert "tiny@2 is champion (was tiny@3)" in capsys.readouterr().out
    assert main(["rollback", "tiny"]) == 2
    assert "--force REASON" in capsys.readouterr().err
    assert main(["rollback", "tiny", "--force", "no"]) == 0
    assert registry.champion("tiny") == "3"


def test_a_champion_whose_files_are_gone_or_not_ours_holds_nothing_up(home: Path) -> None:
    stored = registry.client().get_model_version_download_uri("tiny", "1").removeprefix("file://")

    def told() -> str:
        registry.promote("tiny", "1", "for this test")
        said = list[str]()
        assert champions.promote("tiny", "2", "whatever it was", say=said.append) == "1"
        (line,) = said
        assert line.startswith("tiny@2 is not compared with tiny@1: ")
        return line

    record = Path(stored, "run.json")
    run = json.loads(record.read_text())
    record.write_text(json.dumps({**run, "config": {**run["config"], "critic": {"width": "?"}}}))
    assert "tiny@1: its run.json cannot be read (config.critic." in told()
    record.unlink()
    assert "run.json" in told()
    shutil.rmtree(stored)
    told()


def test_a_service_says_that_another_schema_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is served, since a person forced it; a challenger gets no share of the requests."""
    source, challenger = (str(tmp_path / name) for name in ("served", "tried"))
    make_artifact(tmp_path / "tried", "image")
    settings = Settings.read(
        WGAN_MODEL=source, WGAN_CHALLENGER=challenger, WGAN_CHALLENGER_SHARE="1"
    )
    holder = ModelHolder("served", settings, Room(0), lambda name, role, outcome: None)
    versions = []
    for seed, kind in enumerate(("vector", "vector", "image")):
        shutil.rmtree(source, ignore_errors=True)
        make_artifact(tmp_path / "served", kind, seed=seed)
        holder.champion.refresh()
        assert holder.champion.served is not None
        versions.append(holder.champion.served.version)
        assert holder.champion.served.model.run.data.kind == kind
        if kind == "vector":
            assert holder.challenger is not None
            holder.challenger.refresh()
            assert holder.require().role == "champion"
            assert holder.require("challenger").role == "challenger"
    assert holder.require().role == "challenger"  # they are alike now
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    changes = "it makes images of 8x8 pixels and 1 channel, not vectors of 2 values"
    assert len(told) == 3  # one for each pair of models, and one for the exchange
    assert all(
        line.endswith(f"is given only requests that name it: {changes}") for line in told[:2]
    )
    assert f"{versions[2]} does not take the requests that {versions[1]} took: " in told[2]
    assert told[2].endswith(changes)
