"""The order of the tests, and the servers that several files of tests speak to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # it imports torch and httpx, which not every test needs
    from tests.servers import Server

LONGEST = "test_readme.py"
"""It installs the project and runs the demo: minutes, in one process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, lest one process be at it when the others have ended."""
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    from tests.servers import Server

    found = {kind: Server(kind, tmp_path_factory.mktemp(kind)) for kind in ("image", "vector")}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        list(pool.map(stack.enter_context, [s.running() for s in found.values()]))
        yield found


@pytest.fixture
def image(servers: dict[str, Server]) -> Server:
    return servers["image"]


@pytest.fixture
def vector(servers: dict[str, Server]) -> Server:
    return servers["vector"]
