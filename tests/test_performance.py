"""The page of performance is what its script makes of the results that are checked in."""

import xml.etree.ElementTree as ET

import pytest

from benchmarks.performance import DOCS, bars, over, page, times


def test_the_page_is_made_from_the_results() -> None:
    for name, content in page().items():
        assert (DOCS / name).read_text() == content, "run: python -m benchmarks.performance"


def test_bars_are_as_long_as_their_values() -> None:
    root = ET.fromstring(bars("a < b", [("one", 1.0, "ours"), ("two", 2.0, "limit")]))
    space = "{http://www.w3.org/2000/svg}"
    _, one, two = root.iter(f"{space}rect")
    assert float(two.attrib["width"]) == pytest.approx(2 * float(one.attrib["width"]), abs=0.1)
    line = root.find(f"{space}path")
    assert line is not None
    end = float(one.attrib["x"]) + float(one.attrib["width"])
    assert line.attrib["d"].startswith(f"M{end:.1f} ")


def test_what_was_not_reached_is_shown_as_a_bound() -> None:
    found = {
        "cpu_seconds": [100.0, 90.0, 80.0],
        "reached": [False, True, True],
        "ratio_cpu_seconds": 4.0,
        "ratios_cpu_seconds": [5.0, 3.0, None],
        "is_lower_bound": True,
    }
    assert times(found) == "> 100, 90, 80"
    assert over(found) == "> 4.0 (> 5.0, 3.0, -)"
    assert over({"cpu_seconds": [1.0], "reached": [True]}).startswith("none")
