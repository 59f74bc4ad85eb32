"""Charts as SVG elements, drawn with matplotlib: the same chart always gives the same text.

matplotlib is imported when something is drawn, because importing it takes half a second.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from models.record import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Array = np.ndarray
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a7a7a")
"""Okabe & Ito 2008: told apart by colour-blind people too."""
MAX_POINTS_WITH_MARKERS = 40
MAX_NAMED_TICKS = 30
NAMES_WITH_NUMBERS = 12
"""Names, at most, of a heat map with a number in each cell."""
NAMES_FIT = 50
"""Characters of all names under an axis that fit side by side; longer ones are slanted."""
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"
SETTINGS = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same widths on all machines
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "axes.formatter.useoffset": False,
    "axes.prop_cycle": "cycler('color', [" + ", ".join(f"'{c}'" for c in COLOURS) + "])",
    "grid.color": "#e4e4e4",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "legend.borderaxespad": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a column may be named "$"
}


@contextmanager
def drawing(**settings: object) -> Iterator[None]:
    """Draw with our settings inside the block, whatever the user's matplotlibrc holds."""
    import matplotlib.style

    with (
        matplotlib.style.context(["default", {**SETTINGS, **settings}]),
        warnings.catch_warnings(),
    ):
        # Names may be in any script. The browser, not matplotlib, chooses the font of an SVG.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def svg(chart: Chart, width: int = 520, height: int = 320) -> str:
    """Draw a chart.

    A point without a finite value, or one that a logarithmic axis cannot hold, is left out, and
    its line is broken there.

    Args:
        chart: what to draw.
        width: in pixels.
        height: in pixels.

    Returns:
        An SVG element. Its text is text, its ids are unique to this chart, and pointing at a
        series shows the name of that series.
    """
    with drawing(**{"svg.hashsalt": chart.model_dump_json()}):
        figure, axes = _figure(width, height)
        axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        axes.margins(x=0 if chart.bars else 0.03, y=0.06)
        log_x = chart.log_x and any(x > 0 for line in chart.lines for x in line.x)
        log_y = chart.log_y and any(y is not None and y > 0 for line in chart.lines for y in line.y)
        # A band that reaches below 0 is cut at the axis.
        if log_x:
            axes.set_xscale("log", nonpositive="clip")
        if log_y:
            axes.set_yscale("log", nonpositive="clip")
        drawn = (_draw_bars if chart.bars else _draw_lines)(axes, chart)
        if chart.x_names:
            _name_ticks(axes, chart.x_names)
        elif log_x:
            _logarithmic_ticks(axes.xaxis)
        elif all(float(x).is_integer() for line in chart.lines for x in line.x):
            axes.locator_params(axis="x", integer=True)
        if log_y:
            _logarithmic_ticks(axes.yaxis)
        if len(chart.lines) > 1:
            longest = max(len(line.name) for line in chart.lines)
            columns = max(1, min(len(chart.lines), width // (45 + 7 * longest)))
            names = [line.name for line in chart.lines]
            figure.legend(drawn, names, loc="outside lower center", ncols=columns)
        return _to_svg(figure, chart.title)


def horizontal_bars(
    title: str, rows: Sequence[tuple[str, float, str]], reference: float, width: int = 640
) -> str:
    """Draw a labelled bar for each row, from 0, and a dashed line at a reference value.

    Args:
        title: above the bars.
        rows: label, value and colour, from top to bottom.
        reference: the value that others are compared with.
        width: in pixels.

    Returns:
        An SVG element.
    """
    labels, values, colours = zip(*rows, strict=True)
    with drawing(**{"svg.hashsalt": repr((title, rows)), "axes.grid.axis": "x"}):
        figure, axes = _figure(width, 70 + 24 * len(rows))
        axes.set_title(title)
        places = range(len(rows))
        bars = axes.barh(places, values, 0.7, color=colours)
        for bar, label in zip(bars, labels, strict=True):
            bar.set_gid(label)
        patch = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the dashed line
        axes.bar_label(bars, fmt="{:.2f}", padding=4, bbox=patch)
        axes.set_yticks(places, labels)
        axes.tick_params(axis="y", length=0)
        axes.margins(y=0.02)
        axes.set_xlim(0, 1.12 * max(reference, *values))
        axes.invert_yaxis()
        axes.axvline(reference, color=COLOURS[1], linestyle="--", gid=f"{reference:g}")
        return _to_svg(figure, title)


def heat_map(
    title: str, names: Sequence[str], values: Array, limit: float = 1.0, width: int = 720
) -> str:
    """Draw a square matrix: blue for -limit, white for 0, red for limit; numbers if there is room.

    Args:
        title: above the matrix.
        names: of its rows and columns, ``(C,)``.
        values: ``(C, C)``.
        limit: the value of the strongest colour.
        width: in pixels.

    Returns:
        An SVG element.
    """
    places = range(len(names))
    settings = {"svg.hashsalt": repr((title, names, values.tobytes())), "axes.grid": False}
    size = max(7.0, min(11.0, 420 / max(len(names), 1)))
    with drawing(**settings, **{"xtick.labelsize": size, "ytick.labelsize": size}):
        figure, axes = _figure(width, round(0.85 * width))
        axes.set_title(title)
        image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_xticks(places, names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, names)
        if len(names) <= NAMES_WITH_NUMBERS:
            for i, j in itertools.product(places, places):
                colour = "white" if abs(values[i, j]) > 0.7 * limit else "black"
                axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour)
        figure.colorbar(image, shrink=0.6)
        return _to_svg(figure, title)


def _figure(width: int, height: int) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure((width / 72, height / 72), layout="constrained")  # an SVG has 72 dots an inch
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    return figure, figure.subplots()


def _draw_lines(axes: Axes, chart: Chart) -> list[Any]:
    """Draw curves and their bands; returns what the legend shows of each."""
    curves = []
    for line in chart.lines:
        x, y = _drawable(line.x, chart.log_x), _drawable(line.y, chart.log_y)
        known = int(np.isfinite(x + y).sum())
        marker = "o" if known <= MAX_POINTS_WITH_MARKERS else ""
        (curve,) = axes.plot(x, y, marker=marker, gid=line.name)
        curves.append(curve)
        if line.low:
            low, high = np.array(line.low), np.array(line.high)
            axes.fill_between(x, low, high, color=curve.get_color(), alpha=0.15, linewidth=0)
    return curves


def _draw_bars(axes: Axes, chart: Chart) -> list[Any]:
    """Draw groups of bars; returns what the legend shows of each series."""
    groups = []
    spacing = min((b - a for line in chart.lines for a, b in pairwise(line.x)), default=1.0)
    group = (0.8 if chart.x_names else 0.95) * spacing
    each = group / max(1, len(chart.lines))
    for i, line in enumerate(chart.lines):
        middles = np.array(line.x) - group / 2 + (i + 0.5) * each
        bars = axes.bar(middles, _drawable(line.y, chart.log_y), each)
        groups.append(bars)
        for bar in bars:
            bar.set_gid(line.name)
        if line.low:
            axes.vlines(middles, line.low, line.high, "#222222")
    axes.axhline(0, color="#444444", linewidth=0.8)
    places = [x for line in chart.lines for x in line.x] or [0.0]
    axes.set_xlim(min(places) - spacing / 2, max(places) + spacing / 2)
    return groups


def _drawable(values: Sequence[float | None], logarithmic: bool) -> Array:
    """The values as an array, with NaN in place of those that cannot be drawn."""
    array = np.array([math.nan if v is None else v for v in values], float)
    return np.where(np.isfinite(array) & ((array > 0) | (not logarithmic)), array, math.nan)


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    every = 1 + len(names) // MAX_NAMED_TICKS
    axes.set_xticks(range(0, len(names), every), names[::every])
    if sum(map(len, names)) > NAMES_FIT:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(names) - 0.5)


def _logarithmic_ticks(axis: Axis) -> None:
    """Name powers of ten; on a short axis their multiples too, or else evenly spaced values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    powers = math.log10(high / low)
    multiples = (1, 1.5, 2, 3, 5, 7) if powers < 1 else (1, 2, 5) if powers < 3 else (1,)
    axis.set_major_locator(LogLocator(subs=multiples))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axis.set_minor_locator(NullLocator())


def _to_svg(figure: Figure, title: str) -> str:
    """The figure as an element for HTML, without what only a file of its own needs."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    content = io.BytesIO()
    # `figure.savefig` writes the same bytes, and draws once more before, for other formats.
    metadata = dict.fromkeys(("Date", "Creator"), None)
    FigureCanvasSVG(figure).print_svg(content, metadata=metadata)  # type: ignore[no-untyped-call]
    root = ET.fromstring(content.getvalue())
    for unwanted in root[:2]:  # the metadata, and a style that would hold for the whole page
        root.remove(unwanted)
    width, height = (str(round(72 * inches)) for inches in figure.get_size_inches())
    root.attrib = {"role": "img", "aria-label": title, "viewBox": f"0 0 {width} {height}"}
    root.attrib |= {"width": width, "height": height, "style": "stroke-linejoin: round"}
    named = {gid: gid for artist in figure.findobj() if (gid := artist.get_gid())}
    defined = {e.get("id") for d in root.iter(f"{{{SVG_NAMESPACE}}}defs") for e in d.iter()}
    for element in list(root.iter()):
        if XLINK in element.attrib:
            element.set("href", element.attrib.pop(XLINK))
        if (name := element.get("id")) not in defined:
            element.attrib.pop("id", None)
        if name in named:
            label = ET.Element(f"{{{SVG_NAMESPACE}}}title")
            label.text = name
            element.insert(0, label)
        for key in ("d", "x", "y", "transform"):  # the last digits differ between processors
            if key in element.attrib:
                short = re.sub(r"-?\d+\.\d+", _rounded, element.attrib[key])
                element.set(key, " ".join(short.split()))
    ET.indent(root, "")
    ET.register_namespace("", SVG_NAMESPACE)
    return ET.tostring(root, encoding="unicode")


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
