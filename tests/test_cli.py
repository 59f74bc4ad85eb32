"""The command line, as a user meets it: its output and its exit code, here and as processes."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import registry
from models.artifact import load_artifact
from models.images import encode_png
from tests.artifacts import make_artifact
from tests.command_line import called
from tests.registries import new_database

pytestmark = pytest.mark.usefixtures("charts_undrawn")

WGAN = Path(sys.executable).with_name("wgan")


def wgan(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [WGAN, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("cli") / "artifact")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("cli") / "artifact", "vector")


QUICK = (
    "--set", "evaluation.samples=100", "--set", "critic.width=8", "--set", "generator.width=8",
    "--set", "training.critic_step=eager",  # capturing takes longer than a few steps
)  # fmt: skip
TRAIN = ("train", "--preset", "digits", "--no-register", "--out", "run")
MISTAKES = {
    "no command": ((), "COMMAND"),
    "unknown command": (("trian",), "trian"),
    "unknown preset": (("train", "--preset", "digit", "--out", "run"), "8gaussians"),
    "unknown constraint": ((*TRAIN, "--constraint", "weight_cliping"), "weight_clipping"),
    "unknown key": ((*TRAIN, "--set", "training.step=3"), "did you mean 'steps'"),
    "no value": ((*TRAIN, "--set", "training.steps"), "key=value"),
    "bad value": ((*TRAIN, "--steps", "ten"), "training.steps"),
    "bad seed": ((*TRAIN, "--seed", "-1"), "training.seed"),
    "batch norm under a penalty": ((*TRAIN, "--set", "critic.normalization=batch"), "'layer'"),
    "absent data": ((*TRAIN, "--data", "absent.npy"), "no such file"),
    "strange data": ((*TRAIN, "--data", "data.txt"), "nor a built-in"),
    "vectors in a preset for images": ((*TRAIN, "--data", "8gaussians"), "architecture=mlp"),
    "no GPU": ((*TRAIN, "--device", "cuda"), "no CUDA device; use cpu"),
    "no artifact": (("sample", "absent", "--out", "a.png"), "no such folder"),
    "unknown format": (("sample", "absent", "--out", "a.gif"), "png"),
    "no samples": (("sample", "absent", "-n", "0", "--out", "a.png"), "at least one"),
    "negative seed": (("sample", "absent", "--seed", "-1", "--out", "a.png"), "--seed"),
    "unregistered name": (("sample", "digits@champion", "--out", "a.png"), "digits"),
    "nothing to promote": (("promote", "digits@1"), "digits"),
    "promote without a version": (("promote", "digits"), "no registry in"),
    "nothing to roll back": (("rollback", "digits"), "digits"),
    "nothing to retrain by": (("retrain", "--config", "absent.yaml"), "absent.yaml"),
    "nothing to serve": (("serve", "--port", "1"), "WGAN_MODEL"),
    "serving what is not there": (("serve", "--model", "absent"), "no such folder"),
}


def test_a_registry_that_is_away_at_the_end_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = (
        "train", "--preset", "8gaussians", "--steps", "4", "--out", "run", *QUICK,
    )  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = called(*train, cwd=tmp_path)
    assert result.returncode == 75, "a Job is to try it again, not to end"
    (line,) = result.stderr.splitlines()[-1:]
    assert "the artifact is safe" in line
    made = load_artifact(tmp_path / "run" / "artifact").digest
    assert called("models", cwd=tmp_path).returncode == 75
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    assert called(*train, "--resume", cwd=tmp_path).returncode == 0
    (version,) = registry.versions()
    assert version["tags"][registry.DIGEST_TAG] == made


@pytest.mark.parametrize("address", ["sqlite:////dev/null/mlflow.db", "postgresq://db/mlflow"])
def test_a_registry_that_can_never_take_the_run_is_told_before_training(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    train = ("train", "--preset", "8gaussians", "--steps", "4", "--out", "run")
    result = called(*train, cwd=tmp_path)
    assert result.returncode == 2
    assert address in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


PROCESSES = ["no command", "strange data", "nothing to promote", "serving what is not there"]
"""Mistakes that are also made in a process of their own: one for each room, with its imports."""


@pytest.mark.parametrize(
    ("name", "run"),
    [*((name, called) for name in MISTAKES), *((name, wgan) for name in PROCESSES)],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    name: str,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, says = MISTAKES[name]
    # One database for all of them: making its tables takes seconds.
    database = tmp_path_factory.getbasetemp() / "mistakes.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error:")
    assert says in line
    assert "Traceback" not in result.stdout
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_help_comes_fast_and_names_every_command(tmp_path: Path) -> None:
    result = wgan("--help", cwd=tmp_path)
    assert result.returncode == 0
    for command in (
        "train",
        "sample",
        "score",
        "evaluate",
        "models",
        "retrain",
        "promote",
        "rollback",
        "serve",
    ):
        assert command in result.stdout
        assert called(command, "--help", cwd=tmp_path).returncode == 0


def test_sample_formats(artifact: Path, tmp_path: Path) -> None:
    expected = load_artifact(artifact).sample(3, 5)
    for suffix in ("png", "zip", "npz", "npy"):
        run = wgan if suffix == "png" else called
        result = run("sample", artifact, "-n", 5, "--seed", 3, "--out", f"s.{suffix}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"wrote 5 samples to s.{suffix}\n", "they are grey levels"
    assert np.array_equal(np.load(tmp_path / "s.npy"), expected)
    assert np.array_equal(np.load(tmp_path / "s.npz")["samples"], expected)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        images = [
            np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in sorted(archive.namelist())
        ]
    assert np.array_equal(images, expected[..., 0])
    grid = np.asarray(Image.open(tmp_path / "s.png"))
    # Enlarged four times, three in a row, two pixels between them: the second is at 2 + 32 + 2.
    assert np.array_equal(grid[2:34:4, 36:68:4], expected[1, ..., 0])
    assert (grid[:2] == 255).all()


def test_vectors_have_no_picture_and_no_cells(vectors: Path, tmp_path: Path) -> None:
    result = called("sample", vectors, "--out", "a.png", cwd=tmp_path)
    assert result.returncode == 2
    assert "npz" in result.stderr
    result = called("impute", vectors, "a.csv", "--out", "b.csv", cwd=tmp_path)
    assert result.returncode == 2
    assert "makes no table of mixed columns" in result.stderr
    for count in (1, 4):
        command = ("sample", vectors, "-n", count, "--out", "a.npy")
        assert called(*command, cwd=tmp_path).returncode == 0
        assert np.load(tmp_path / "a.npy").shape == (count, 2)


def test_scores_of_images_and_arrays(artifact: Path, tmp_path: Path) -> None:
    model = load_artifact(artifact)
    items = model.sample(1, 6)
    (tmp_path / "one.png").write_bytes(encode_png(items[0]))
    np.save(tmp_path / "some.npy", items[1:4])
    np.savez(tmp_path / "more.npz", samples=items[4:, ..., 0])
    files = ("one.png", "some.npy", "more.npz")
    result = wgan("score", artifact, *files, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    expected = model.score(items)
    np.testing.assert_array_equal(np.float32(found["scores"]), expected)
    np.testing.assert_allclose(found["percentiles"], model.percentiles(expected))
    told = [
        line.split() for line in called("score", artifact, *files, cwd=tmp_path).stdout.splitlines()
    ]
    assert [words[-1] for words in told] == found["items"]
    assert [words[0] for words in told] == [f"{score:.5g}" for score in found["scores"]]
    assert [words[-2] for words in told] == [f"{percent:.1f}" for percent in found["percentiles"]]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\x80\x04."],
)
def test_files_that_cannot_be_scored(artifact: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    result = called("score", artifact, "bad.png", "--json", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: bad.png")
    assert len(result.stderr.splitlines()) == 1


def test_images_of_another_size_are_refused(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(encode_png(np.zeros((9, 8, 1), np.uint8)))
    result = called("score", artifact, "large.png", cwd=tmp_path)
    assert result.returncode == 2
    assert "(N, 8, 8, 1)" in result.stderr


def test_evaluate_says_what_the_run_said(tmp_path: Path) -> None:
    result = called(
        "train", "--preset", "digits", "--steps", 5, "--no-register", "--out", "run", *QUICK,
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "mlflow.db").exists(), "--no-register leaves MLflow alone"
    found = json.loads(wgan("evaluate", "run/artifact", "--json", cwd=tmp_path).stdout)
    run_json = json.loads((tmp_path / "run" / "artifact" / "run.json").read_text())
    assert found == run_json["results"]
    assert found["extractor"]["name"] == "digits-cnn-v1"
    other = called("evaluate", "run/artifact", "--data", "8gaussians", cwd=tmp_path)
    assert other.returncode == 2


def test_own_images_are_trained_on_and_judged(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 12, 10, 3), np.uint8)
    np.save(tmp_path / "mine.npy", images)
    result = called(
        "train", "--preset", "digits", "--data", "mine.npy", "--steps", 3, "--no-register",
        "--out", "run", *QUICK, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    model = load_artifact(tmp_path / "run" / "artifact")
    assert model.sample(0, 2).shape == (2, 12, 10, 3)
    assert model.run.results.extractor is not None
    assert model.run.results.extractor.name == "efficientnet-lite0"


def test_own_vectors_come_back_in_their_own_units(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal([1000, -5, 0], [50, 0.1, 1], (500, 3))
    np.savez(tmp_path / "mine.npz", samples=vectors)
    result = called(
        "train", "--preset", "8gaussians", "--data", "mine.npz", "--steps", 30, "--no-register",
        "--out", "run", *QUICK, "--set", "critic.width=32", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    samples = load_artifact(tmp_path / "run" / "artifact").sample(0, 500)
    np.testing.assert_allclose(samples.mean(axis=0), [1000, -5, 0], atol=100)
    assert abs(samples[:, 1].mean() + 5) < 0.5
