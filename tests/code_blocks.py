"""Commands and Python in the documentation: what a test runs, and what does not run and why."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import wgan_cli
from tests.registries import new_database
from training.presets import PRESETS

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DOCS = sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
NOT_RUN = "<!-- not run by the tests: "
"""Stands before a block that no test runs; one of `REASONS` follows, and perhaps more words."""
REASONS = (
    "takes long",
    "installs packages",
    "needs Docker",
    "needs a cluster",
    "needs a GPU",
    "needs what is not here",
    "serves until it is stopped",
)
BLOCK = re.compile(
    rf"(?:^{NOT_RUN}(?P<reason>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of a page between two lines of three backquotes."""

    language: str
    text: str
    reason: str | None
    """The reason why it is not run; None if a test runs it."""


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    found = BLOCK.finditer((ROOT / page).read_text())
    return [Block(match["language"], match["text"], match["reason"]) for match in found]


def to_run(page: str, language: str) -> list[str]:
    """The texts of the blocks of a language that a page's test must run, in order."""
    return [b.text for b in blocks(page) if b.language == language and b.reason is None]


def lines(block: str) -> list[str]:
    """Whole commands: what a backslash continues is one."""
    joined = block.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def shell(command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What runs a line in a folder as a reader types it.

    `wgan` runs in this process, which imports its packages once. The presets have small networks
    and batches, train for few steps and judge few samples: their exact distances and bounds
    would take most of the time. An empty registry is there, so that none is made.
    """
    monkeypatch.chdir(folder)
    new_database(folder)
    for preset in PRESETS.values():
        monkeypatch.setitem(preset, "evaluation", {"samples": 100})
        monkeypatch.setitem(preset["training"], "steps", 5)
        monkeypatch.setitem(preset["training"], "batch_size", 16)
        for network in ("generator", "critic"):
            monkeypatch.setitem(preset[network], "width", 8)
            monkeypatch.setitem(preset[network], "depth", 1)

    def run(line: str) -> None:
        words = shlex.split(line, comments=True)
        if words[0] == "wgan":
            assert wgan_cli.main(words[1:]) == 0, line
        else:
            shell(line, folder)

    return run
