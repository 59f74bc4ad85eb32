"""Mutation testing: which small faults in a module its tests notice (docs/mutation.md).

The tests of a module run once, with coverage by test. Then each mutant is tried in a fork of that
process, by the tests that reach its line: they are imported and collected already, and the fault is
put into the functions that are there. A fault outside of functions takes effect on import, so the
fork imports the project again, unless that fails without a fault: then it is a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from coverage import Coverage

from benchmarks.mutants import Mutant, mutants

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/mutation.json"
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", "--no-header"]
PATIENCE, FACTOR = 10.0, 5
"""Seconds, and times the tests' own time, after which a mutant counts as found by the timeout."""
MOST_SECONDS = 60.0
"""Seconds of tests for one mutant: the quickest that reach its line, until they take so long."""
KINDS = ("killed", "timed_out", "survived", "not_reached")
PR_SET_CHILD_SUBREAPER = 36


def tests_of(module: str) -> list[str]:
    """Return the files of tests that import a module by its name, or are named like it."""
    name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    package, _, last = name.rpartition(".")
    found = []
    for file in sorted((ROOT / "tests").glob("test_*.py")):
        lines = file.read_text()
        names = f"from {name} import", f"import {name}\n", f"from {package} import {last}\n"
        if any(text in lines for text in names) or file.name == f"test_{last}.py":
            found.append(f"tests/{file.name}")
    return found


def examine(module: str, tests: list[str]) -> dict[str, Any]:
    """Try every mutant of a module in a copy of the project, which becomes the working folder."""
    copy = Path(tempfile.mkdtemp(prefix="wgan-mutation-")) / "copy"
    try:
        files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"],
                               cwd=ROOT, capture_output=True, check=True).stdout  # fmt: skip
        for name in files.decode().strip("\0").split("\0"):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        for name in (".venv", ".tools"):
            if (ROOT / name).exists():
                (copy / name).symlink_to(ROOT / name)
        os.chdir(copy)
        os.environ["PYTHONPATH"], os.environ["PYTHONDONTWRITEBYTECODE"] = str(copy), "1"
        sys.dont_write_bytecode = True
        sys.path[:] = [str(copy), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        return _Module(copy / module, tests or tests_of(module)).examine()
    finally:
        os.chdir("/")
        shutil.rmtree(copy.parent)


class _Module:
    """A module and its tests: a plugin of pytest, which first measures and then tries mutants."""

    def __init__(self, path: Path, tests: list[str]) -> None:
        self.path = path
        self.source = path.read_text()
        self.tests = tests
        self.found: dict[str, Any] = {}
        self._cover = Coverage(data_file=None, config_file=False, include=[str(path)])
        self._is_repeated = False
        self._can_import_again = True
        self._failed: list[str] | None = None
        """Names of tests that fail when they are repeated; None: the first ends the process."""
        self._items: dict[str, pytest.Item] = {}
        self._seconds: dict[str, float] = {}

    def examine(self) -> dict[str, Any]:
        """Measure the tests, and try the mutants."""
        self._cover.start()
        status = pytest.main([*OPTIONS, *self.tests], [self]) if self.tests else 0
        if not self.tests:
            self._cover.stop()
            self._examine()
        if status != 0:
            raise SystemExit(f"{self.path.name}: its tests fail without any mutant")
        return self.found

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Keep the time of a test, and which lines it reaches."""
        if self._is_repeated:
            yield
            return
        self._cover.switch_context(item.nodeid)
        began = time.monotonic()
        yield
        self._seconds[item.nodeid] = time.monotonic() - began
        self._items[item.nodeid] = item
        self._cover.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """End the process of a mutant that a test has noticed."""
        if self._is_repeated and report.failed:
            if self._failed is None:
                os._exit(1)
            self._failed.append(report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Try the mutants while the session's plugins are still there."""
        self._cover.stop()
        if exitstatus == 0:
            self._examine()

    def _examine(self) -> None:
        self._reached = self._cover.get_data().contexts_by_lineno(str(self.path))
        self._codes = _places(self._compiled(self.source))
        self._functions = [
            value
            for value in gc.get_objects()
            if type(value) is FunctionType and value.__code__.co_filename == str(self.path)
        ]
        for name in self._unfit():
            print(f"\n{name} fails when it is repeated in one process, and is not asked")
            del self._seconds[name]
        found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        every = sorted(mutants(self.source), key=lambda mutant: not mutant.is_in_function)
        if every and not every[-1].is_in_function:  # those outside last: each takes seconds
            whole = Mutant(0, range(0), "", False, self.source)
            self._can_import_again = self._try(whole, list(self._seconds)) == "survived"
        began = time.monotonic()
        for mutant in every:
            tests = self._reaching(mutant)
            kind = self._try(mutant, tests) if tests else "not_reached"
            found[kind].append(f"{mutant.line}: {mutant.what}")
            if kind == "survived":
                print(f"\n{self.path.name}:{found[kind][-1]}", flush=True)
        counts = {kind: len(names) for kind, names in found.items()}
        seconds = round(time.monotonic() - began)
        self.found = {**counts, "seconds": seconds, "tests": self.tests, "left": found["survived"]}

    def _reaching(self, mutant: Mutant) -> list[str]:
        """Return the tests that reach a mutant, the quickest first.

        Outside of functions those that reach the module come first: others may read its values.
        """
        lines = mutant.lines if mutant.is_in_function else self._reached
        reaching = {name for line in lines for name in self._reached.get(line, [])}
        tests = self._seconds.keys() & reaching if mutant.is_in_function else self._seconds
        chosen, total = [], 0.0
        for name in sorted(tests, key=lambda name: (name not in reaching, self._seconds[name])):
            total += self._seconds[name]
            if chosen and total > MOST_SECONDS:
                break
            chosen.append(name)
        return chosen

    def _try(self, mutant: Mutant, tests: list[str]) -> str:
        limit = PATIENCE + FACTOR * sum(self._seconds[name] for name in tests)
        self.path.write_text(mutant.source)  # for processes that the tests start
        child = os.fork()
        if child == 0:
            os.setsid()
            _silence()
            try:
                if mutant.is_in_function and self._put(mutant.source):
                    self._run(tests)
                    os._exit(0)
                if self._can_import_again:
                    _forget_project()
                    os._exit(pytest.main([*OPTIONS, *tests]))
            except BaseException:  # a mutant may raise anything
                os._exit(1)
            command = [sys.executable, "-m", "pytest", *OPTIONS, *tests]
            os.execv(sys.executable, command)
        try:
            code = _wait(child, limit)
        finally:
            self.path.write_text(self.source)
        return "timed_out" if code is None else "killed" if code else "survived"

    def _unfit(self) -> list[str]:
        """Return the tests that fail when they are repeated although there is no fault."""
        told = self.path.with_suffix(".unfit")
        child = os.fork()
        if child == 0:
            _silence()
            self._failed = []
            self._run(list(self._seconds))
            told.write_text(json.dumps(sorted({*self._failed})))
            os._exit(0)
        _wait(child, PATIENCE + FACTOR * sum(self._seconds.values()))
        found: list[str] = json.loads(told.read_text())
        return found

    def _put(self, source: str) -> bool:
        """Put a mutant into the functions that are loaded; False: it has another form.

        Code is known by the name and the first line of its function, which no mutant changes.
        """
        new = _places(self._compiled(source))
        for function in self._functions:
            place = function.__code__.co_qualname, function.__code__.co_firstlineno
            if new.get(place) == self._codes.get(place):
                continue
            if place not in new or new[place].co_freevars != function.__code__.co_freevars:
                return False
            function.__code__ = new[place]
        return True

    def _run(self, tests: list[str]) -> None:
        self._is_repeated = True
        items = [self._items[name] for name in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item._initrequest()  # type: ignore[attr-defined]  # as plugins do that repeat tests
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)

    def _compiled(self, source: str) -> CodeType:
        return compile(source, str(self.path), "exec", dont_inherit=True)


def _forget_project() -> None:
    """Let the working folder's modules be imported again; what they import stays: torch is slow."""
    here = f"{Path.cwd()}{os.sep}"
    for name, module in [*sys.modules.items()]:
        if (getattr(module, "__file__", None) or "").startswith(here):
            del sys.modules[name]


def _silence() -> None:
    """Throw away what this process prints."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _places(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """Return a module's code objects, by their name and first line."""
    found = {(code.co_qualname, code.co_firstlineno): code}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _places(constant)
    return found


def _wait(child: int, limit: float) -> int | None:
    """Wait for a process, end all that it has started, and return its status; None: too long."""
    ends, status = time.monotonic() + limit, None
    while time.monotonic() < ends:
        done, raw = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(raw)
            break
        time.sleep(0.01)
    # We adopt what its parents have left; see prctl(2).
    while left := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for number in map(int, left):
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
    return status


def main() -> None:
    """Examine modules, and write what was found into `RESULTS`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="modules, or folders of them")
    parser.add_argument(
        "--tests", nargs="*", default=[], help="files; default: those that import the module"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    modules = [
        str(file.resolve().relative_to(ROOT))
        for path in given.paths
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    os.environ["OMP_NUM_THREADS"] = "1"  # threads of OpenMP do not live on in a fork
    # A process for each module: what the tests of one have loaded is of its own copy.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, context, max_tasks_per_child=1) as pool:
        every = pool.map(examine, modules, [given.tests] * len(modules))
        for module, found in zip(modules, every, strict=True):
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            results[module] = found
            RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
            counts = ", ".join(f"{v} {k}" for k, v in found.items() if isinstance(v, int))
            print(f"{module}: {counts}", flush=True)


if __name__ == "__main__":
    main()
