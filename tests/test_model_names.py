"""A model's name: folder, run, registry name; and what is said where there is none."""

import shutil
from pathlib import Path

import pytest

import wgan
from models import registry
from models.artifact import load_artifact
from models.errors import AbsentError, ArtifactError, UserError
from models.model_names import _instead, locate, require_name, require_version, resolve
from models.trained import artifact_folder, load
from service.sources import absolute
from tests.artifacts import make_artifact
from tests.registries import new_database
from training.tracking import track_and_register
from wgan_cli import main


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, one that has not ended, and two versions of a registered model, 2 the champion."""
    home = tmp_path_factory.mktemp("names")
    (home / "runs" / "unfinished" / "checkpoints").mkdir(parents=True)
    (home / "photos" / "cats").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", new_database(home))
        for seed, folder in enumerate((home / "other", home / "runs" / "first" / "artifact")):
            make_artifact(folder, "vector", seed=seed)
            track_and_register(load_artifact(folder), folder)
        registry.promote("tiny", "2", "for tests")
    return home


@pytest.fixture(autouse=True)
def _use_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # mlflow.db in the working folder


NAMES = ("runs/first", "runs/first/", "./runs/first/artifact", "tiny", "tiny@champion", "tiny@2")


def test_every_name_means_the_same_model(home: Path) -> None:
    digest = load_artifact(home / "runs" / "first" / "artifact").digest
    for name in NAMES:
        with artifact_folder(name) as folder:
            assert load_artifact(folder).digest == digest
    assert wgan.load("runs/first").model.digest == load("tiny").model.digest == digest
    assert absolute("runs/first") == str(home / "runs" / "first" / "artifact")
    assert absolute("runs/later") == str(home / "runs" / "later")  # it may come


def test_every_command_takes_a_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "runs/first", "-n", "4", "--out", "four.npz"]) == 0
    assert main(["verify", "runs/first"]) == 0
    assert "no file has changed" in capsys.readouterr().out


def test_a_folder_comes_before_a_registered_name(home: Path) -> None:
    shutil.copytree(home / "other", home / "tiny")
    assert locate("tiny") == Path("tiny")
    shutil.rmtree(home / "tiny")
    assert locate("tiny") == "tiny@champion"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("runs/frist", r"runs/frist: no such folder; did you mean 'runs/first'\?"),
        ("runs/frist/artifact", r"no such folder; did you mean 'runs/first/artifact'\?"),
        ("./xyzzy/at/all", r"xyzzy/at/all: no such folder: \. has no xyzzy$"),
        ("./xyzzy", r"no such folder: \. has no xyzzy; a registry name has an @"),
        ("runs", r"not an artifact.*; did you mean 'runs/first'\?"),
        ("photos", "not an artifact.*; of the registry, say photos@champion"),
        ("photos/cats", r"not an artifact \(it has no SHA256SUMS\)$"),
        ("runs/unfinished", "not an artifact.*; its run has not ended: .*--resume"),
        ("runs/first/artifact/run.json", "it is a file: name its folder, runs/first/artifact"),
        ("tyny", r"the registry has no model 'tyny'; did you mean 'tiny'\?"),
        ("tyny@1", r"the registry has no model 'tyny'; did you mean 'tiny'\?"),
        ("tiny@3", "tiny@3: no such version or alias; there are: 2, 1, champion"),
        ("tiny@champoin", r"no such version or alias; did you mean 'champion'\?"),
        ("tiny@", "write NAME@ALIAS or NAME@VERSION"),
    ],
)
def test_what_is_not_there_names_what_is(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(name)
    assert isinstance(caught.value, ArtifactError | registry.RegistryError)


def test_nothing_is_said_to_be_missing_that_has_come_meanwhile() -> None:
    """A version that was not there when it was asked for, and is in the list that is made then."""
    assert _instead("tiny@1", "tiny", "1") == _instead("tiny@2", "tiny", "2") == ""


def test_promotion_wants_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert require_version("tiny@champion") == ("tiny", "2")
    for arguments, says in (
        (["promote", "tiny"], "say which version, such as tiny@2, the newest"),
        (["promote", "tyny"], "did you mean 'tiny'?"),
        (["promote", "runs/first"], "runs/first is a folder, and a version of the registry"),
        (["rollback", "tiny@1"], "name the model alone: tiny"),
        (["rollback", "tyny"], "did you mean 'tiny'?"),
    ):
        assert main(arguments) == 2
        assert says in capsys.readouterr().err


def test_a_name_without_a_champion_says_how_to_make_one() -> None:
    client = registry.client()
    client.delete_registered_model_alias("tiny", "champion")
    with pytest.raises(AbsentError, match=r"tiny has no champion: .* wgan promote tiny@2"):
        load("tiny")
    client.set_registered_model_alias("tiny", "champion", "2")


def test_no_registry_is_made_by_asking_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AbsentError, match="absent@champion: no such folder, and no registry in"):
        resolve("absent@champion")
    with pytest.raises(AbsentError, match="absent: no such folder, and no registry in"):
        require_name("absent")
    assert not list(tmp_path.iterdir())
