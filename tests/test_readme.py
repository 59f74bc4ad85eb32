"""The README's commands, run as they stand."""

import re
import shlex
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.code_blocks import BIN, ROOT, lines, shell, terminal, to_run
from tests.registries import new_database
from tests.servers import free_port

README = (ROOT / "README.md").read_text()
PUBLISHED = ("our engine", "textbook loop", "torchgan")
"""What ran the published recipe, in the README's table of times."""


COMMANDS = [line for block in to_run("README.md", "sh") for line in lines(block)]
OURS = [line for line in COMMANDS if not line.startswith("make ")]


def test_the_two_commands_stand_first() -> None:
    assert [line.split("#")[0].strip() for line in COMMANDS[:2]] == ["make demo", "make test"]


def test_ci_runs_the_test_command() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text().splitlines()


@pytest.mark.timeout(900)
def test_make_demo(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    new_database(tmp_path / "demo")  # else it is made, which takes seconds
    settings = {"DEMO_DIR": str(tmp_path / "demo"), "DEMO_STEPS": "200"}
    settings["DEMO_SET"] = "evaluation.samples=100"
    out = shell("make demo", ROOT, DEMO_EXIT="1", **settings)
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


def own_data(folder: Path) -> None:
    """What the README's reader has: a folder of images, and a table with a header."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(130):
        pixels = np.full((40, 48, 3), rng.integers(0, 256, 3), np.uint8)
        top, left = rng.integers(0, 20, 2)
        pixels[top : top + 20, left : left + 20] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"photos/{i}.png")
    table = rng.normal((170, 65), (8, 10), (300, 2))
    np.savetxt(folder / "table.csv", table, "%.6g", ",", header="height,weight", comments="")


@pytest.mark.timeout(900)
def test_the_other_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_data(tmp_path)
    run = terminal(tmp_path, monkeypatch)
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
                run(command)
    finally:
        for server in servers:
            server.terminate()
            server.wait(timeout=60)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new.csv").read_text().startswith("height,weight\n")


@pytest.mark.timeout(900)
def test_the_lines_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_data(tmp_path)
    terminal(tmp_path, monkeypatch)
    (code,) = to_run("README.md", "python")
    assert len(code.splitlines()) <= 10
    exec(code, {})
    assert "(64, 32, 32, 3)" in capsys.readouterr().out


def test_it_fits_on_three_screens() -> None:
    assert len(README.splitlines()) <= 125


def row(text: str, name: str) -> list[str]:
    """The cells after the first of the first row that begins with ``name``."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_w1_figures_are_copied() -> None:
    page = (ROOT / "docs/w1.md").read_text()
    cells = row(README, "cosine")
    assert len(cells) == 6
    for ours, theirs in (
        ("`wgan w1`", "default, 4,000 steps"),
        ("best published", "best published solver, on its own pairs"),
    ):
        for cell, figure in zip(cells, row(README, ours), strict=True):
            dimension, funnels = cell.split(" x ")
            table = page[page.index(f"| {funnels} funnels, in dimension |") :]
            column = row(table, f"{funnels} funnels, in dimension").index(dimension)
            assert row(table, theirs)[column] == figure, (ours, cell)


def test_the_times_to_quality_are_copied() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    tasks = row(README, "solver")
    assert len(tasks) == 3
    for solver in ("our preset", *(f"published recipe, {x}" for x in PUBLISHED)):
        for task, cell in zip(tasks, row(README, solver), strict=True):
            assert row(page[page.index(f"### {task}") :], solver)[0] == cell, (solver, task)


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
    assert len(targets) > 10
    for target in (a or b for a, b in targets):
        assert (ROOT / target).exists(), target
