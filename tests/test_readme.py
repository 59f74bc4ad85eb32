"""The README's commands, run as they stand."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.test_service import free_port

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
NOT_RUN = "<!-- not run by the tests: "
"""Stands before a block of commands that takes too long, and says why."""


def blocks() -> list[str]:
    """The shell commands that a reader is told to type, a block each, in order."""
    found = re.findall(r"((?:<!--.*?-->\n)?)```sh\n(.*?)```", README, re.DOTALL)
    return [block for comment, block in found if not comment.startswith(NOT_RUN)]


def lines(block: str) -> list[str]:
    """Whole commands: what a backslash continues is one."""
    joined = block.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


COMMANDS = [line for block in blocks() for line in lines(block)]
OURS = [line for line in COMMANDS if not line.startswith("make ")]


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


def test_the_two_commands_stand_first() -> None:
    assert [line.split("#")[0].strip() for line in COMMANDS[:2]] == ["make demo", "make test"]


def test_ci_runs_the_test_command() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text().splitlines()


@pytest.mark.timeout(900)
def test_make_demo(tmp_path: Path) -> None:
    out = shell("make demo", ROOT, DEMO_DIR=str(tmp_path / "demo"), DEMO_EXIT="1")
    assert (tmp_path / "demo/digits.png").stat().st_size > 1000
    rows = re.findall(r"^  (real held-out digits|noise) +(.*)$", out, re.MULTILINE)
    real, noise = (
        [float(score) for score in re.findall(r"(-?[\d.]+) \( *\d+%\)", scores)]
        for _, scores in rows
    )
    assert len(real) == len(noise) == 8
    assert min(real) > max(noise), "the critic tells digits from noise"
    for address in ("/metrics", "mlflow", "page of the API"):
        assert address in out


def test_the_other_commands(tmp_path: Path) -> None:
    port = free_port()
    servers = []
    try:
        for line in OURS:
            command = line.replace(":3000", f":{port}").replace("--port 3000", f"--port {port}")
            if command.startswith("wgan serve"):
                servers.append(
                    subprocess.Popen([BIN / "wgan", *shlex.split(command)[1:]], cwd=tmp_path)
                )
                wait_until_ready(f"http://127.0.0.1:{port}/readyz", servers[-1])
            else:
                shell(command, tmp_path)
    finally:
        for server in servers:
            server.terminate()
            server.wait(timeout=60)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def wait_until_ready(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{address} never answered 200")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)|<img src=\"([^\"]+)\"", README)
    for target in (a or b for a, b in targets):
        assert (ROOT / target).exists(), target
