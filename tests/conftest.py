"""The order of the tests, and the servers that several files of tests speak to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # it imports torch and httpx, which not every test needs
    from tests.servers import Server

LONGEST = "test_readme.py"
"""It installs the project and runs the demo: minutes, in one process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, lest one process be at it when the others have ended."""
    items.sort(key=lambda item: item.path.name != LONGEST)


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
