"""The hosted workflow is valid and does what .ci/run does."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import tools

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github/workflows/ci.yaml"
ACTIONLINT = tools.find("actionlint")


def verbs(job: str) -> list[str]:
    """The verbs of the Makefile that a job calls, in order."""
    jobs: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    commands = "\n".join(step.get("run", "") for step in jobs[job]["steps"])
    return re.findall(r"^make (\S+)$", commands, re.MULTILINE)


def lint(path: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(ACTIONLINT), "-no-color", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(ACTIONLINT is None, reason="no actionlint: run `make tools`")
def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    done = lint(WORKFLOW)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(WORKFLOW.read_text().replace("github.ref }}", "github.reference }}"))
    assert 'property "reference" is not defined' in lint(wrong).stdout


def test_the_workflow_calls_the_verbs_of_ci_run() -> None:
    ours = re.findall(r"^make (\S+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert verbs("test") == ours
    assert {"install", "lint", "test"} <= set(ours)


def test_every_verb_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for job in ("test", "arm64", "nightly"):
        for verb in verbs(job):
            assert re.search(rf"^{verb}:", makefile, re.MULTILINE)


def test_slow_tests_and_the_deployment_are_checked_at_night() -> None:
    assert {"test-slow", "verify-deploy"} <= set(verbs("nightly"))
    # YAML 1.1 reads the key `on` as true.
    assert yaml.safe_load(WORKFLOW.read_text())[True]["schedule"]


def test_make_test_fetches_the_tools_that_it_needs() -> None:
    """On a new machine the tests of deploy/ run, and are not skipped."""
    done = subprocess.run(
        ["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    fetch, _, tests = done.stdout.partition(" -m pytest ")
    assert "deploy/tools.py helm prometheus venv" in fetch
    assert tests
