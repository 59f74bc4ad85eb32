"""The Python API: its examples run, it takes what users have, and the commands agree with it."""

import doctest
import gc
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import wgan
import wgan_cli
from models import registry_files
from models.errors import DataError, UserError
from models.trained import TrainedModel
from tests.artifacts import make_artifact
from training.judging import evaluate
from training.judging.classifier import fit_classifier

pytestmark = pytest.mark.usefixtures("charts_undrawn")

ROOT = Path(__file__).parent.parent
FEW: dict[str, Any] = {
    "evaluation.samples": 100,
    "critic.width": 8,
    "critic.depth": 1,
    "generator.width": 8,
    "training.critic_step": "eager",  # capturing takes longer than these few steps
}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal([170, 70], [10, 15], (400, 2)), columns=["height", "weight"])
    path = tmp_path_factory.mktemp("api") / "people.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def trained(people: Path) -> TrainedModel:
    return wgan.train(people, steps=3, out=people.parent / "run", **FEW)


def test_the_examples_of_the_docstrings() -> None:
    result = doctest.testmod(wgan)
    assert result.attempted > 8
    assert not result.failed


def test_the_ten_lines(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example that the module begins with, as it stands but for less training."""
    _, _, text = str(wgan.__doc__).partition("::\n\n")
    lines = [line for line in text.split("\n\nA constraint")[0].splitlines() if line.strip()]
    assert len(lines) == 9
    code = "\n".join(line.removeprefix("    ") for line in lines)
    code = code.replace("steps=3000", "steps=3, **few")
    monkeypatch.chdir(people.parent)
    names: dict[str, object] = {"few": FEW}
    exec(code, names)
    assert np.shape(names["rows"]) == (1000, 2)
    assert np.shape(names["scores"]) == (1000,)


def test_import_is_light_and_names_are_there() -> None:
    code = (
        "import sys, wgan; heavy = {'torch', 'numpy', 'mlflow', 'pandas', 'typer', 'tqdm'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "from wgan import *; from wgan import GradientPenalty"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        wgan.nonsense  # noqa: B018


def test_training_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    """As in the image that serves: loading, sampling and scoring work there."""
    artifact = make_artifact(tmp_path / "artifact")
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["training", "bentoml", "sklearn", "scipy", "pandas"]))
import importlib.util
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "training" else there(name, *more)
import wgan
model = wgan.load({str(artifact)!r})
print(model.score(model.sample(4)).shape, len(wgan.constraints()))
for call in (lambda: wgan.train("digits"), lambda: wgan.evaluate(model), wgan.presets):
    try:
        call()
    except wgan.UserError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    first, *others = done.stdout.splitlines()
    assert first == "(4,) 19"
    assert len(others) == 3
    for line in others:
        assert "pip install 'wgan-foundry[train]'" in line


def test_a_table_comes_back_in_its_own_units(people: Path, trained: TrainedModel) -> None:
    assert trained.record.config.name == "people"
    assert trained.columns == ["height", "weight"]
    rows = trained.sample(seed=7, count=5)
    assert rows.shape == (5, 2)
    pd.testing.assert_frame_equal(trained.sample(seed=7, count=9)[:5], rows)
    frame = pd.read_csv(people)
    assert all(rows[name].between(*frame[name].agg(["min", "max"])).all() for name in frame)
    scores = trained.score(frame)
    np.testing.assert_array_equal(scores, trained.score(frame[["weight", "height"]]))
    assert np.percentile(trained.percentiles(scores), 50) == pytest.approx(50, abs=15)
    assert repr(trained) == "<TrainedModel people, lipschitz_penalty, items (2,)>"


def test_the_command_line_gives_the_same(
    people: Path, trained: TrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "rows.parquet"
    train = ["train", "--preset", "table", "--data", str(people), "--steps", "3", "--no-register"]
    few = [part for key, value in FEW.items() for part in ("--set", f"{key}={value}")]
    assert wgan_cli.main([*train, *few, "--out", str(run)]) == 0
    by_command = wgan.load(run / "artifact")
    assert by_command.figures == trained.figures
    assert wgan_cli.main(["sample", str(run / "artifact"), "-n", "5", "--out", str(out)]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(out), trained.sample(seed=0, count=5))
    capsys.readouterr()
    assert wgan_cli.main(["evaluate", str(run / "artifact"), "--json"]) == 0
    evaluated = wgan.evaluate(trained)
    assert json.loads(capsys.readouterr().out) == json.loads(evaluated.model_dump_json())
    assert evaluated.figures == trained.figures
    assert wgan_cli.main(["diagnose", str(run), "--json"]) == 0
    findings = [finding.model_dump(mode="json") for finding in wgan.diagnose(trained)]
    assert json.loads(capsys.readouterr().out) == findings
    assert wgan.diagnose(people.parent / "run") == wgan.diagnose(trained)


def test_a_downloaded_artifact_lasts_as_long_as_the_call(
    trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(model: str, folder: Path, needed: object) -> Path:
        return Path(shutil.copytree(trained.artifact, folder / "artifact"))

    monkeypatch.setattr(registry_files, "download", download)
    monkeypatch.setattr("models.model_names.resolve", lambda model: ("people", "1"))
    assert wgan.evaluate("people@champion").figures == trained.figures
    assert wgan.diagnose("people@champion") == wgan.diagnose(trained)


def test_the_first_number_is_the_number_of_rows(trained: TrainedModel) -> None:
    pd.testing.assert_frame_equal(trained.sample(50), trained.sample(seed=0, count=50))


def test_frames_that_are_no_tables(people: Path) -> None:
    frame = pd.read_csv(people)
    twice = pd.concat([frame, frame[["height"]]], axis=1)
    for bad, says in (
        (twice, "Duplicate column names"),
        (frame.assign(x=[1, "a"] * 200), "Conversion failed for column x"),
    ):
        with pytest.raises(UserError, match=says):
            wgan.train(bad, steps=2)


def test_frames_of_types_that_only_pandas_has(people: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(people)
    frame["band"] = pd.cut(frame.height, 3)
    frame["month"] = pd.Series(pd.period_range("2020-01", periods=4, freq="M").repeat(100))
    frame["month"] = frame.month.astype("category")
    dummies = pd.get_dummies(frame.weight > frame.weight.median(), prefix="heavy", sparse=True)
    made = wgan.train(frame.join(dummies), steps=2, out=tmp_path / "run", **FEW).sample(20)
    bands = frame.band.cat.categories.astype(str)
    assert made.band.cat.ordered
    assert list(made.band.cat.categories) == list(bands)
    assert set(made.month) <= {"2020-01", "2020-02", "2020-03", "2020-04"}
    assert all(made[name].dtype == bool for name in dummies)
    pairs = frame.assign(pair=pd.Series([(1, 2), (3, 4)] * 200).astype("category"))
    with pytest.raises(DataError, match=r"column 'pair': dictionary.* has no place in a Parquet"):
        wgan.train(pairs, steps=2)


def test_arrays_and_frames(people: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(people)
    of_frame = wgan.train(frame, steps=2, out=tmp_path / "frame", **FEW)
    of_array = wgan.train(frame.to_numpy(), steps=2, out=tmp_path / "array", **FEW)
    assert (of_frame.columns, of_array.columns) == (["height", "weight"], [])
    assert list(of_frame.sample(4)) == ["height", "weight"]
    assert of_array.sample(4).shape == (4, 2)
    # The same data go on with the same run.
    again = wgan.train(frame, steps=2, out=tmp_path / "frame", resume=True, **FEW)
    assert again.record == of_frame.record
    assert wgan.evaluate(of_frame, frame).figures == of_frame.figures
    with pytest.raises(UserError, match="already holds a run"):
        wgan.train(frame, steps=2, out=tmp_path / "frame", **FEW)
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8)
    pixels = {"evaluation.samples": 20, "evaluation.extractor": "pixels", "data.size": None}
    of_images = wgan.train(images, preset="digits", steps=1, **{**FEW, **pixels})
    assert of_images.sample(2).shape == (2, 8, 8, 1)
    assert of_images.score(images[:3]).shape == (3,)


def test_a_temporary_run_goes_with_its_model(people: Path, tmp_path: Path) -> None:
    model = wgan.train(people, constraint=wgan.GradientPenalty(strength=3), steps=1, seed=5, **FEW)
    folder = model.artifact
    assert folder.is_dir()
    assert model.record.constraint.hyperparameters["strength"] == 3
    assert model.record.config.training.seed == 5
    model.save(tmp_path / "kept")
    samples = model.sample(3, seed=1)
    del model
    gc.collect()
    assert not folder.exists()
    pd.testing.assert_frame_equal(wgan.load(tmp_path / "kept").sample(3, seed=1), samples)


def test_mistakes(trained: TrainedModel, tmp_path: Path) -> None:
    for mistake, says in (
        (wgan.train, "data or a preset"),
        (lambda: wgan.train("digits", constraint="weight_cliping"), "weight_clipping"),
        (lambda: wgan.train(np.zeros((9, 2)), preset="table", register=True), "name='...'"),
        (lambda: wgan.train("digits", trainin={"steps": 3}), "training"),
        (lambda: wgan.load(tmp_path), "not an artifact"),
        (lambda: trained.sample(count=0), "at least one"),
        (lambda: trained.sample(seed=-1), "seed -1"),
        (lambda: trained.sample(class_name="7"), "not class-conditional"),
        (lambda: trained.score(np.zeros((3, 5))), "named columns"),
        (lambda: wgan.evaluate(trained, "digits"), "items of shape"),
    ):
        with pytest.raises(UserError, match=says):
            mistake()


def test_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    # How well the classes are made is another test's.
    monkeypatch.setattr(evaluate, "fit_classifier", partial(fit_classifier, steps=2))
    model = wgan.train("digits", steps=1, conditional=True, **FEW)
    assert model.classes[7] == "7"
    sevens = model.sample(2, class_name="7")
    assert sevens.shape == (2, 8, 8, 1)
    assert not np.array_equal(model.score(sevens, class_name="7"), model.score(sevens, "1"))
    with pytest.raises(UserError, match="class"):
        model.score(sevens)


def test_compare(tmp_path: Path) -> None:
    said: list[str] = []
    summary = wgan.compare(
        "8gaussians", ["gradient_penalty", "none"], seeds=1, steps=2, out=tmp_path,
        say=said.append, **{**FEW, "critic.depth": 2, "training.critic_step": "auto"},
    )  # fmt: skip
    assert summary["recommendation"]["constraint"] in ("gradient_penalty", "none")
    assert (tmp_path / "report.html").is_file()
    assert said


def test_wasserstein_1() -> None:
    a = np.random.default_rng(0).normal(size=(400, 2))
    distance = wgan.wasserstein_1(a + np.array([3, 0]), a, steps=50)
    assert distance.value == pytest.approx(3, abs=0.3)
    assert 0 < distance.lower <= 3
    assert distance.gradient(a[:4]).shape == (4, 2)


@pytest.mark.parametrize("name", ["GradientPenalty", "WeightClipping", "Bjorck"])
def test_a_constraint_in_somebody_elses_loop(name: str) -> None:
    constraint = getattr(wgan, name)()
    torch.manual_seed(0)
    critic = constraint.before_training(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(critic.parameters(), 0.02)
    real, fake = torch.randn(64, 2), torch.randn(64, 2) + 2
    for step in range(30):
        loss = critic(fake).mean() - critic(real).mean()
        penalty = constraint.penalty(critic, real, fake, step)
        loss = loss if penalty is None else loss + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        constraint.after_critic_step(critic)
    assert critic(real).mean() > critic(fake).mean()
    assert constraint.broken_claim(critic) is None
