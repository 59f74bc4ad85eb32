"""What a machine does to commands: odd environments, and streams that are closed."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import wgan_cli
from tests.runs import forked
from tests.servers import WGAN
from tests.test_hostile_commands import GOOD, good, here, line_of, runs_or_complains

__all__ = ["good", "here"]
"""Fixtures."""

ENVIRONMENTS = {
    "no home": {"HOME": None, "WGAN_CACHE": None},
    "a home that is none": {"HOME": "/dev/null", "WGAN_CACHE": None},
    "no folder for temporary files": {"TMPDIR": "/nowhere"},
    "a cache that is a file": {"WGAN_CACHE": "data.npy"},
    "a cache below a file": {"WGAN_CACHE": "data.npy/cache"},
    "a cache of a long name": {"WGAN_CACHE": "x" * 300},
    "a narrow terminal": {"COLUMNS": "1"},
    "a terminal of no width": {"COLUMNS": "wide", "LINES": "-1"},
    "no language": {"LANG": "C", "LC_ALL": "nonsense"},
    "a registry that is no URL": {"MLFLOW_TRACKING_URI": "http://[::1"},
    "a registry of no kind": {"MLFLOW_TRACKING_URI": "nobody://x"},
    "a registry's host with a space": {"MLFLOW_TRACKING_URI": "http://a b"},
    "a registry's port that is none": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:x"},
    "a registry that is a folder": {"MLFLOW_TRACKING_URI": "sqlite:////tmp"},
    "a registry that is no database": {"MLFLOW_TRACKING_URI": "sqlite:///data.npy"},
    "a limit that is no number": {"MLFLOW_HTTP_REQUEST_TIMEOUT": "long"},
    "a proxy that is none": {"HTTPS_PROXY": "://", "HTTP_PROXY": "://"},
    "certificates that are none": {"SSL_CERT_FILE": "/nowhere", "REQUESTS_CA_BUNDLE": "/nowhere"},
    "keys that are none": {"WGAN_SIGNING_KEY": "/nowhere", "WGAN_TRUSTED_KEYS": "/nowhere"},
    "a secret that is none": {"MLFLOW_TRACKING_TOKEN_FILE": "/nowhere"},
    "an index that is none": {"JOB_COMPLETION_INDEX": "first"},
    "a rank that is none": {"RANK": "first", "WORLD_SIZE": "many"},
    "no way of drawing": {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": "/dev/null"},
    "settings of the service that are none": {"WGAN_WORKERS": "many", "WGAN_DEVICE": "abacus"},
}


@pytest.mark.parametrize("kind", ENVIRONMENTS)
@pytest.mark.parametrize("name", ["data inspect", "models", "verify"])
def test_an_environment(
    name: str,
    kind: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for variable, value in ENVIRONMENTS[kind].items():
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
    monkeypatch.setattr("tempfile.tempdir", None)  # it is looked up once
    runs_or_complains(capfd, line_of(name, GOOD.get(name, {})))


SAMPLE = ["sample", "artifact", "-n", "3", "--out", "s.npy"]


def test_what_is_closed_at_the_start_is_not_written_to(here: Path) -> None:
    """A file that is opened next would get the number, and lines for people in it."""
    line = f"{WGAN} {' '.join(SAMPLE)} <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert np.load(here / "s.npy").shape == (3, 2)


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_one_that_is_closed_at_the_start_is_not_written_to(
    closed: str, here: Path, tmp_path: Path
) -> None:
    log, errors = tmp_path / "log", tmp_path / "errors"
    done = forked(wgan_cli.main, SAMPLE, log, here, errors, [closed])
    done.join(100)
    assert (done.exitcode, errors.read_text()) == (0, "")
    assert np.load(here / "s.npy").shape == (3, 2)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_training_that_is_interrupted_leaves_a_checkpoint(
    number: signal.Signals, tmp_path: Path
) -> None:
    """By a terminal that goes, or by Ctrl-C; tests/test_training.py has SIGTERM."""
    line = ["train", "--preset", "8gaussians", "--steps", "100000", "--no-register", "--out", "run"]
    line += ["--set", "generator.width=16", "--set", "critic.width=16"]
    log, errors = tmp_path / "log", tmp_path / "errors"
    process = forked(wgan_cli.main, line, log, tmp_path, errors)
    while not (log.exists() and "step" in log.read_text()):
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(100)
    said = errors.read_text()
    assert process.exitcode == 75, log.read_text() + said
    (last,) = said.splitlines()
    assert last.startswith("stopped after")
    assert list((tmp_path / "run" / "checkpoints").iterdir())
