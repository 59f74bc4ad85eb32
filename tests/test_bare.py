"""A clone trains and is measured without an installation, the registry and the service."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import __version__

ROOT = Path(__file__).parent.parent
NOT_THERE = [
    "alembic", "bentoml", "fsspec", "mlflow", "opentelemetry", "prometheus_client",
    "pydantic_settings", "sklearn", "sqlalchemy", "starlette", "uvicorn", "yaml",
]  # fmt: skip
HIDING = f"""
import importlib.metadata, runpy, sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        is_hidden = name.partition(".")[0] in {NOT_THERE!r}
        return None if is_hidden else super().find_spec(name, path, target)

def distribution(name):
    if name == "wgan-foundry":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

found, importlib.metadata.distribution = importlib.metadata.distribution, distribution
sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Runs a module in an interpreter that has neither what is named nor our own installation."""


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDING, *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=280,
    )  # fmt: skip


@pytest.mark.parametrize("name", NOT_THERE)
def test_what_is_hidden_is_there_otherwise(name: str) -> None:
    assert importlib.util.find_spec(name)


def test_a_run_is_complete(tmp_path: Path) -> None:
    done = bare(
        "wgan_cli", "train", "--preset", "8gaussians", "--no-register", "--steps", "4",
        "--out", str(tmp_path / "a"), "--set", "evaluation.samples=100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "a/artifact/run.json").read_text())
    assert run["provenance"]["wgan_foundry"] == __version__
    assert run["results"]["figures"]


def test_time_to_quality_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    done = bare(
        "benchmarks.quality", "--one", "25gaussians", "ours", "0", "--budget", "1",
        "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["ended"] == "budget"


@pytest.mark.parametrize(
    "arguments",
    [
        # zarr, which is not there either, has a plugin.
        ["pytest", "tests/test_gpu.py", "--collect-only", "-q", "-p", "no:zarr"],
        ["benchmarks.step", "--help"],
        ["benchmarks.gpu", "--help"],
    ],
)
def test_what_measures_starts(arguments: list[str]) -> None:
    done = bare(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
