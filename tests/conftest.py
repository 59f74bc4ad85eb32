"""The order of the tests."""

from __future__ import annotations

import pytest

LONGEST = "test_readme.py"
"""It installs the project and runs the demo: minutes, in one process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, lest one process be at it when the others have ended."""
    items.sort(key=lambda item: item.path.name != LONGEST)
