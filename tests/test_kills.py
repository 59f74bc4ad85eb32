"""A retraining that is killed anywhere and run again ends as one that nobody disturbed.

Anywhere is each system call that writes below its folder, MLflow's database and files included. At
every other such call a write is made by half before the kill.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.registries import new_database
from tests.test_retrain import mixture

COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def kills(folder: Path, stride: int, first: int, seconds: float) -> list[dict[str, Any]]:
    """What is left without a kill, and after each ``stride``-th kill."""
    preloaded = folder / "killing.so"
    source = Path(__file__).with_name("killing.c")
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", "-o", str(preloaded), str(source), "-ldl"]
    subprocess.run([str(COMPILER), *flags], check=True)
    (folder / "home").mkdir()
    np.save(folder / "home" / "data.npy", mixture(0, 600))
    new_database(folder / "home")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(preloaded),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # or a process whose gradients were computed cannot be forked
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "tests.killing", str(folder / "home"), str(stride), str(first)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=seconds
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(undisturbed: dict[str, Any], found: list[dict[str, Any]]) -> None:
    assert undisturbed.pop("calls") > 300
    assert (undisturbed.pop("at"), undisturbed.pop("codes")) == (0, [0])
    assert undisturbed.pop("outcomes") == ["promoted", "promoted"]
    assert undisturbed["champion"] == "2"
    assert undisturbed["history"] == [["promote", None, "1"], ["promote", "1", "2"]]
    assert not undisturbed["left"]
    for left in found:
        at, codes, _ = left.pop("at"), left.pop("codes"), left.pop("calls")
        assert codes[0] == 137, at
        assert codes[-1] == 0, at
        assert set(codes[1:]) <= {0, 75}, at
        # A kill is no outcome, and one between the end and its line leaves nothing to do.
        assert left.pop("outcomes")[-1] in ("promoted", "skipped"), at
        assert left == undisturbed, at


@needs_compiler
@pytest.mark.timeout(900)  # a minute, on a machine that is not busy
def test_a_kill_at_some_calls_changes_nothing(tmp_path: Path) -> None:
    undisturbed, *found = kills(tmp_path, 240, 239, 880)  # the last writes the decision again
    check(undisturbed, found)


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)  # ten minutes, when a core is free for each of the two cases
@pytest.mark.parametrize("first", [1, 2])
def test_a_kill_at_any_call_changes_nothing(first: int, tmp_path: Path) -> None:
    undisturbed, *found = kills(tmp_path, 2, first, 4 * 3600)
    assert [left["at"] for left in found] == list(range(first, undisturbed["calls"] + 1, 2))
    check(undisturbed, found)
