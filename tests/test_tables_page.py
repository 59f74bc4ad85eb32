"""The page of tables shows what was measured."""

import json

from benchmarks import tables


def test_the_page_has_the_results() -> None:
    page = tables.PAGE.read_text()
    found = json.loads(tables.RESULTS.read_text())
    assert f"{tables.BEGIN}\n{tables.shown(found)}{tables.END}" in page
