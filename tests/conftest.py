"""Which tests are fast, their order, and the servers that several files of tests speak to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.long import listed

if TYPE_CHECKING:  # it imports torch and httpx, which not every test needs
    from tests.servers import Server

LONGEST = "test_readme.py"
"""It installs the project and runs the demo: minutes, in one process."""


def is_fast(case: int) -> bool:
    """Whether a case of a test marked `sampled` runs with the fast tests: one in three does.

    Of three cases the first, of the next three the second, then the third: so all values of the
    parameter that changes with every case are met, unless there are few cases, or nine values.
    """
    return case % 9 % 4 == 0


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark long tests, and two thirds of the cases of large matrices slow.

    What takes longest comes first: else one process might be at it when the others have ended.
    """
    cases = Counter[str]()
    long_tests = listed()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in long_tests:
            item.add_marker("long")
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            if not is_fast(cases[test]):
                item.add_marker("slow")
            cases[test] += 1
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture
def charts_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose charts are made and not drawn: a run has eight, which take most of its time.

    What a module's tests share is made before this, and so drawn.
    """
    from tests.runs import draw_nothing

    draw_nothing(monkeypatch.setattr)


def serving(factory: pytest.TempPathFactory, kind: str, **environment: str) -> Iterator[Server]:
    from tests.servers import Server

    with Server(kind, factory.mktemp(kind), **environment).running() as server:
        yield server


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving(tmp_path_factory, "image")


@pytest.fixture(scope="session")
def vector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving(tmp_path_factory, "vector", WGAN_DRIFT_WINDOW="50")


@pytest.fixture(scope="session")
def rows_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving(tmp_path_factory, "rows")
