"""Plugin of pytest for `make test-quick`: under a minute of what pytest-testmon chooses."""

import time
from collections.abc import Iterator

import pytest

SECONDS = 45.0
"""Time since the start after which no test begins."""
LONGEST = 10.0
"""Seconds that a test may have taken when it was recorded, lest it end after the minute."""
BEGAN = time.monotonic()
LEFT_OUT: list[pytest.Item] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    if not session.config.testmon_data.all_tests:
        pytest.exit("no record of what tests reach with these packages: run `make test-map`", 2)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    yield  # testmon chooses, and puts the quickest files first
    seconds = config.testmon_data.avg_durations
    LEFT_OUT.extend(item for item in items if seconds[item.nodeid] > LONGEST)
    items[:] = [item for item in items if item not in LEFT_OUT]


def pytest_runtest_protocol(item: pytest.Item) -> None:
    if time.monotonic() - BEGAN > SECONDS:
        items = item.session.items
        LEFT_OUT.extend(items[items.index(item) :])
        # Unlike `shouldstop`, this lets testmon record the tests that have run.
        pytest.exit(f"{SECONDS:.0f} seconds are over", min(item.session.testsfailed, 1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LEFT_OUT:
        terminalreporter.write_line(
            f"Tests left out: {len(LEFT_OUT)}. To run all of them: "
            '.venv/bin/python -m pytest -m "not slow" --testmon-forceselect'
        )
