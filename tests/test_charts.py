"""Charts: where points are, what is named, and the same bytes each time."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from models.record import Chart, Line
from training.judging.histogram import histogram
from training.reporting.charts import SVG_NAMESPACE, horizontal_bars, svg

SPACE = f"{{{SVG_NAMESPACE}}}"
ROOT = Path(__file__).parent.parent


def chart(*lines: Line, **settings: object) -> Chart:
    return Chart.model_validate(
        {"title": "t", "x_label": "x", "y_label": "y", "lines": lines, **settings}
    )


def texts(root: ET.Element) -> dict[str, ET.Element]:
    return {t.text: t for t in root.iter(f"{SPACE}text") if t.text}


def series(root: ET.Element, name: str) -> list[ET.Element]:
    """The groups of a line or of each bar."""
    found = [g for g in root.iter(f"{SPACE}g") if g.findtext(f"{SPACE}title") == name]
    assert found, f"{name} is not drawn"
    return found


def points(root: ET.Element, name: str) -> list[tuple[float, float]]:
    (line,) = series(root, name)
    return [(float(c.attrib["x"]), float(c.attrib["y"])) for c in line.iter(f"{SPACE}use")]


def box(bar: ET.Element) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a bar."""
    (path,) = bar.iter(f"{SPACE}path")
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.attrib["d"])]
    return min(numbers[::2]), max(numbers[::2]), min(numbers[1::2]), max(numbers[1::2])


def test_a_chart_puts_points_where_they_belong() -> None:
    root = ET.fromstring(svg(chart(Line(name="a < b", x=[0, 1, 2], y=[1, None, 100]), log_y=True)))
    circles = points(root, "a < b")
    assert len(circles) == 2, "there is no point where there is no value"
    levels = {name: float(t.attrib["y"]) - 4.2 for name, t in texts(root).items()}
    assert circles[0][1] == pytest.approx(levels["1"], abs=0.2)  # on the level of its tick
    assert circles[1][1] == pytest.approx(levels["100"], abs=0.2)
    middle = histogram("h", np.array([0.1, 0.1, 0.9, 7.0]), np.linspace(0, 1, 3))
    assert middle.y == [0.5, 0.5]
    assert middle.x == [0.25, 0.75]


def test_a_histogram_has_the_share_of_each_bin_and_what_is_outside_at_its_ends() -> None:
    edges = np.array([-1.0, 0.0, 2.0, 5.0])
    found = histogram("h", np.array([-9.0, -1, 0, 1, 2, 5, 6, 7]), edges)
    assert (found.x, found.y) == ([-0.5, 1.0, 3.5], [0.25, 0.25, 0.5])
    assert histogram("h", np.array([1.0]), edges).y == [0, 1, 0]
    assert histogram("h", np.array([]), edges).y == [0, 0, 0]


def test_a_chart_names_values_on_its_axes() -> None:
    root = ET.fromstring(svg(chart(Line(name="a", x=[1, 2], y=[1.32, 1.46]), log_y=True)))
    names = set(texts(root))
    assert {"1", "2"} <= names
    assert "1.5" not in names, "a layer has a whole number"
    assert len({t for t in names if t.startswith("1.")}) >= 3, "a short logarithmic axis too"


def test_a_chart_says_what_it_shows() -> None:
    lines = [Line(name=name, x=[1, 2], y=[1, 2]) for name in ("<script>", "$x^2$")]
    root = ET.fromstring(svg(chart(*lines, title="$a$ & b", x_label="seconds", y_label="<i>")))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "$a$ & b"
    assert {"$a$ & b", "seconds", "<i>", "<script>", "$x^2$"} <= set(texts(root))
    assert "seconds" not in set(texts(ET.fromstring(svg(chart(lines[0])))))


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 0.0, -1.0])
def test_a_line_is_broken_where_a_value_cannot_be_drawn(bad: float | None) -> None:
    x = [float(i) for i in range(1, 6)]
    root = ET.fromstring(svg(chart(Line(name="a", x=x, y=[1, 10, bad, 10, 1]), log_y=True)))
    (line,) = series(root, "a")
    path = next(iter(line.iter(f"{SPACE}path"))).attrib["d"]
    assert path.count("M") == 2
    assert len(points(root, "a")) == 4
    assert all(0 < y < 320 for _, y in points(root, "a"))


@pytest.mark.parametrize("values", [[], [None, None], [0.0, 0.0], [-1.0, -2.0]])
@pytest.mark.parametrize("bars", [True, False])
def test_a_chart_may_have_nothing_to_show(values: list[float | None], bars: bool) -> None:
    lines = [Line(name=name, x=[-1.0, 0.0][: len(values)], y=values) for name in ("_a", "b")]
    root = ET.fromstring(svg(chart(*lines, bars=bars, log_x=not bars, log_y=not bars)))
    assert {"t", "x", "y", "_a", "b"} <= set(texts(root))
    assert "t" in texts(ET.fromstring(svg(chart(bars=bars, log_x=not bars, log_y=not bars))))


def test_a_band_may_reach_below_what_a_logarithmic_axis_holds() -> None:
    line = Line(name="a", x=[1, 2, 3], y=[1, 2, 3], low=[0.5, -1, 0.5], high=[2, 4, 9])
    root = ET.fromstring(svg(chart(line, log_y=True)))
    levels = [y for _, y in points(root, "a")]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] - levels[2] > 50, "the band does not squeeze the line"


def test_bars_are_as_high_as_their_values_and_stand_on_zero() -> None:
    lines = [
        Line(name="a", x=[0, 1], y=[1, 4], low=[0.5, 3], high=[2, 5]),
        Line(name="b", x=[0, 1], y=[2, -1]),
    ]
    root = ET.fromstring(svg(chart(*lines, bars=True, x_names=["one", "two"])))
    assert {"one", "two", "a", "b"} <= set(texts(root))
    (left, right, top, foot), second = map(box, series(root, "a"))
    unit = foot - top
    assert second[3] == pytest.approx(foot, abs=0.1)
    assert second[3] - second[2] == pytest.approx(4 * unit, abs=0.1)
    beside, below = map(box, series(root, "b"))
    assert beside[0] == pytest.approx(right, abs=0.1)
    assert beside[1] - beside[0] == pytest.approx(right - left, abs=0.1)
    assert below[2] == pytest.approx(foot, abs=0.1)
    assert below[3] - below[2] == pytest.approx(unit, abs=0.1)


def test_horizontal_bars_are_as_long_as_their_values() -> None:
    rows = [("one < two", 1.0, "#0072b2"), ("two", 2.0, "#b0b0b0")]
    root = ET.fromstring(horizontal_bars("a < b", rows, 1.0))
    (one,), (two,), (line,) = (series(root, name) for name in ("one < two", "two", "1"))
    left, right, top, _ = box(one)
    other = box(two)
    assert other[0] == left
    assert other[1] - left == pytest.approx(2 * (right - left), abs=0.1)
    assert other[2] > top, "the first row is above the second"
    assert box(line)[:2] == pytest.approx((right, right), abs=0.1)
    assert {"a < b", "one < two", "1.00", "2.00"} <= set(texts(root))


def test_two_charts_in_a_page_share_no_id() -> None:
    first, second = (
        svg(chart(Line(name=name, x=[1, 2], y=[1, 2]), title=name)) for name in ("a", "b")
    )
    ids = [set(re.findall(r' id="([^"]+)"', drawing)) for drawing in (first, second)]
    assert all(ids)
    assert not ids[0] & ids[1]
    for drawing, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r"(?:href=\"|url\()#(\w+)", drawing)) <= own


def test_a_chart_is_always_the_same_bytes_and_needs_no_other_file(tmp_path: Path) -> None:
    code = (
        "import sys; from models.record import *; from training.reporting.charts import svg;"
        "assert 'matplotlib' not in sys.modules;"
        "print(svg(Chart(title='t', x_label='x', y_label='y', log_y=True, lines=["
        "Line(name=n, x=[1, 2], y=[1, 2]) for n in 'ab'])))"
    )
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 30\n")
    # Another process, day, hash seed and matplotlibrc.
    environment = {"PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "0", "PYTHONHASHSEED": "7"}
    environment["MPLCONFIGDIR"] = str(tmp_path)
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment,
    ).stdout  # fmt: skip
    here = svg(chart(*(Line(name=n, x=[1, 2], y=[1, 2]) for n in "ab"), log_y=True))
    assert other == here + "\n"
    assert "http" not in here.replace(SVG_NAMESPACE, "")
