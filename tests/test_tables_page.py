"""The page of tables shows what was measured."""

import json

from benchmarks import table_size, tables


def test_the_page_has_the_results() -> None:
    page = tables.PAGE.read_text()
    found = json.loads(tables.RESULTS.read_text())
    assert f"{tables.BEGIN}\n{tables.shown(found)}{tables.END}" in page


def test_the_page_has_the_sizes() -> None:
    found = json.loads(table_size.RESULTS.read_text())
    shown = f"{table_size.BEGIN}\n{table_size.shown(found)}{table_size.END}"
    assert shown in table_size.PAGE.read_text(), "run: python -m benchmarks.table_size FOLDER"
