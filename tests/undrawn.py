"""Pages without their charts, for tests that look at none: one chart takes a tenth of a second."""

from collections.abc import Iterator

import pytest

from training.reporting import charts


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """In a file of tests that imports it, charts are laid out and stay empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "_to_svg", lambda figure, title: "<svg/>")
        yield
