"""Progress: bars on a terminal, lines elsewhere, and nothing at all unless it is asked for."""

import io
import multiprocessing
import os
import pty
import subprocess
import sys
import termios
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from models.artifact import load_artifact
from models.record import constraint_card
from training.presets import build_config
from training.progress import TrainingBar, phase, say, track
from training.run import run_training

ROW = {"step": 3, "critic_gap": 1.5, "gradient_norm": 0.9, "samples_per_second": 1000.0}


def on_a_terminal(code: str) -> tuple[str, str]:
    """What a program writes to stdout, a pipe, and to stderr, a terminal."""
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (24, 160))
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=there, check=True
    )
    os.set_blocking(here, False)  # nothing shown is a failure, not a wait
    shown = os.read(here, 1 << 16).decode()
    os.close(there)
    os.close(here)
    return done.stdout.decode(), shown


def test_a_phase_and_a_count_show_on_a_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code = """
from training.progress import phase, say, track
import time
with phase("judging"):
    say("figures")
    time.sleep(1.6)
for item in track([1, 2], "downloading"):
    say(f"item {item}")
"""
    out, shown = on_a_terminal(code)
    assert out == "figures\nitem 1\nitem 2\n", "results are not mixed with progress"
    assert "judging ... 00:00" in shown
    assert "downloading" in shown
    assert "0/2" in shown
    assert "judging ... 00:01" in shown, "the seconds of a long phase go on"
    with phase("judging"):
        say("figures")
    assert list(track([1, 2], "downloading")) == [1, 2]
    said = capsys.readouterr()
    assert (said.out, said.err) == ("figures\n", "")


def test_processes_of_a_pool_do_not_draw_over_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    with phase("judging"):
        say("figures")
    assert list(track(iter([1]), "downloading", 3)) == [1]
    shown = capsys.readouterr().err
    assert "judging ... 00:00" in shown
    assert "downloading:   0%" in shown
    assert "0/3" in shown
    assert "\n" not in shown, "both are cleared at the end"
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    with phase("judging"):
        assert list(track([1], "downloading")) == [1]
    assert capsys.readouterr().err == ""


def test_what_counts_seconds_keeps_no_program_and_ends_with_its_phase(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or it would draw the bar once more after it was cleared."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    threads, drawing = list[threading.Thread](), threading.Event()

    def made(**given: Any) -> threading.Thread:
        threads.append(threading.Thread(**given))
        return threads[-1]

    class Hasty(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return super().wait(0.01)

    def draw(bar: Any, **options: Any) -> None:
        if threading.current_thread() in threads:
            drawing.set()
            time.sleep(0.2)

    hasty = types.SimpleNamespace(Event=Hasty, Thread=made)
    monkeypatch.setattr("models.progress.threading", hasty)
    monkeypatch.setattr(tqdm, "refresh", draw)
    with phase("judging"):
        assert drawing.wait(10)
        assert [thread.daemon for thread in threads] == [True]
    assert not threads[0].is_alive()


def test_a_line_for_people_comes_at_once_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))
    say("from http://ann:canary@host")
    assert raw.getvalue() == b"from http://ann:***@host\n"


def test_training_shows_a_bar_on_a_terminal() -> None:
    code = f"from training.progress import TrainingBar; TrainingBar(3)({ROW})"
    out, shown = on_a_terminal(code)
    assert out == ""
    assert "100%" in shown
    assert "critic gap 1.5, gradient norm 0.900, 1000 samples/s" in shown


def test_training_says_a_line_now_and_then_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    bar = TrainingBar(3)
    for step in (1, 2, 3):
        bar({**ROW, "step": step})
    figures = "critic gap 1.5, gradient norm 0.900, 1000 samples/s"
    # The first row and the last one; the second came too soon.
    assert capsys.readouterr().out == f"step 1/3: {figures}\nstep 3/3: {figures}\n"


def test_a_run_is_silent_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = {"training.steps": 2, "evaluation.samples": 50}
    config = build_config("8gaussians", overrides=overrides)
    assert run_training(config, tmp_path, torch.device("cpu"), register=False) is None
    run = load_artifact(tmp_path / "artifact").run
    assert run.constraint == constraint_card(config.constraint, run.lipschitz)
    assert "This critic's slope is at most" in run.constraint.guarantee
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
