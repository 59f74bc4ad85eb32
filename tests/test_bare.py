"""A clone trains and is measured without an installation, the registry and the service."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models import __version__

ROOT = Path(__file__).parent.parent
NOT_THERE = [
    "alembic", "bentoml", "fsspec", "mlflow", "opentelemetry", "prometheus_client",
    "pydantic_settings", "sklearn", "sqlalchemy", "starlette", "uvicorn", "yaml",
]  # fmt: skip
HIDING = f"""
import importlib.metadata, json, os, runpy, sys
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
import torch._dynamo

for line in sys.stdin:
    log, module, *sys.argv[1:] = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
os.dup2(1, 2)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Runs modules in an interpreter that has neither what is named nor our own installation.

Each runs in a fork, since to import PyTorch takes longer than most of them.
"""
Bare = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """Runs a module with arguments: its exit code, and what it printed."""
    log = tmp_path_factory.mktemp("bare") / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", HIDING],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip

    def run(*arguments: str) -> tuple[int, str]:
        assert process.stdin is not None
        assert process.stdout is not None
        log.write_text("")
        print(json.dumps([str(log), *arguments]), file=process.stdin, flush=True)
        return int(process.stdout.readline()), log.read_text()

    yield run
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("name", NOT_THERE)
def test_what_is_hidden_is_there_otherwise(name: str) -> None:
    assert importlib.util.find_spec(name)


def test_a_run_is_complete(bare: Bare, tmp_path: Path) -> None:
    code, said = bare(
        "wgan_cli", "train", "--preset", "8gaussians", "--no-register", "--steps", "4",
        "--out", str(tmp_path / "a"), "--set", "evaluation.samples=100",
        "--set", "generator.width=16", "--set", "critic.width=16",
    )  # fmt: skip
    assert code == 0, said
    run = json.loads((tmp_path / "a/artifact/run.json").read_text())
    assert run["provenance"]["wgan_foundry"] == __version__
    assert run["results"]["figures"]


def test_time_to_quality_is_measured(bare: Bare, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    code, said = bare(
        "benchmarks.quality", "--one", "25gaussians", "ours", "0", "--budget", "0.3",
        "--out", str(out),
    )  # fmt: skip
    assert code == 0, said
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
def test_what_measures_starts(bare: Bare, arguments: list[str]) -> None:
    code, said = bare(*arguments)
    assert code == 0, said
