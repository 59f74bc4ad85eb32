"""`make test-quick`: it runs the tests that a change touches, and stops in time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = "def double(x):\n    return x * 2\n\n\ndef halve(x):\n    return x / 2\n"
TESTS = """
from code_under_test import double, halve
from tests import quick

def test_double():
    assert double(2) == 4

def test_halve():
    assert halve(4) == 2
"""
QUICK = "--testmon-forceselect", "-p", "tests.quick"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two functions with a test each."""
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "code_under_test.py").write_text(CODE)
    (tmp_path / "test_code.py").write_text(TESTS)
    return tmp_path


def run(project: Path, *options: str) -> tuple[int, str]:
    """The exit code of pytest in a process of its own, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "testmon.pytest_testmon", *options],
        cwd=project,
        # To import the other plugins takes longer than all else.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def record_and_change(project: Path, tests: str) -> None:
    """Record other tests, and then change what both of them reach."""
    (project / "test_code.py").write_text(tests)
    run(project, "--testmon-noselect")
    (project / "code_under_test.py").write_text("NUMBER = 2\n" + CODE)


def test_only_tests_of_a_changed_function_run(project: Path) -> None:
    code, told = run(project, *QUICK)
    assert (code, "run `make test-map`" in told, "passed" in told) == (2, True, False)
    assert "2 passed" in run(project, "--testmon-noselect")[1]
    assert "passed" not in run(project, *QUICK)[1]
    (project / "code_under_test.py").write_text(CODE.replace("x / 2", "x / 3"))
    code, told = run(project, *QUICK)
    assert (code, "1 failed" in told, "test_halve FAILED" in told) == (1, True, True)
    assert "left out" not in told


@pytest.mark.slow
def test_what_no_time_is_left_for_is_counted_and_runs_the_next_time(project: Path) -> None:
    tests = TESTS.replace("assert", "quick.SECONDS = 0; assert")
    record_and_change(project, tests)
    code, told = run(project, *QUICK)
    assert (code, "1 passed" in told, "Tests left out: 1." in told) == (0, True, True)
    passed = [name for name in ("test_double", "test_halve") if f"{name} PASSED" in told]
    code, told = run(project, *QUICK)
    assert (code, "1 passed" in told, "left out" in told) == (0, True, False)
    assert f"{passed[0]} PASSED" not in told
    (project / "code_under_test.py").write_text(CODE.replace("return x", "return 7 + x"))
    code, told = run(project, *QUICK)
    assert (code, "1 failed" in told, "Tests left out: 1." in told) == (1, True, True)


def test_a_test_longer_than_the_time_left_does_not_begin(project: Path) -> None:
    tests = TESTS.replace("import quick", "import quick; quick.LONGEST = 0")
    record_and_change(project, tests)
    _, told = run(project, *QUICK)
    assert ("passed" in told, "Tests left out: 2." in told) == (False, True)
