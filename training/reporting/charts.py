"""Charts, tables and pictures in one HTML file that needs nothing else: SVG by hand, PNG inline."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from models.images import encode_small_png
from models.record import Chart, Line

Array = np.ndarray
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a7a7a")
"""Okabe & Ito 2008: told apart by colour-blind people too."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top }
th { background: #f3f3f3 }
figure { display: inline-block; margin: .5em 1em .5em 0; vertical-align: top }
figcaption { font-size: 14px; max-width: 520px }
.critical { color: #b00020; font-weight: bold }
.warning { color: #a04a00; font-weight: bold }
"""


class _Axis(NamedTuple):
    low: float
    high: float
    start: float
    """Pixels of `low`."""
    stop: float
    log: bool
    whole: bool = False
    """Whether only whole numbers are named."""

    def place(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and text of each."""
        span = self.high - self.low
        if not self.log:
            step = _step(span)
            values = _multiples(self.low, self.high, max(step, 1.0) if self.whole else step)
        elif span < 0.5:  # no power of ten may be inside: evenly spaced values are
            ends = 10**self.low, 10**self.high
            values = [math.log10(v) for v in _multiples(*ends, _step(ends[1] - ends[0])) if v > 0]
        elif span < 2:  # hardly a whole power of ten: its parts are shown too
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            parts = [p + math.log10(m) for p in powers for m in (1, 1.5, 2, 3, 5, 7)]
            values = [v for v in parts if self.low <= v <= self.high]
        else:
            values = _multiples(self.low, self.high, max(1.0, round(_step(span))))
        scale = (self.stop - self.start) / span
        return [
            (self.start + (v - self.low) * scale, f"{10**v if self.log else round(v, 12):.4g}")
            for v in values
        ]


def _step(span: float) -> float:
    """Between ticks, 1, 2 or 5 times a power of ten, so that some five fit."""
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough)


def _multiples(low: float, high: float, step: float) -> list[float]:
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _axis(values: Sequence[float], start: float, stop: float, log: bool, margin: float) -> _Axis:
    shown = [math.log10(v) for v in values if v > 0] if log else list(values)
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    room = margin * (high - low)
    whole = all(float(v).is_integer() for v in values)
    return _Axis(low - room, high + room, start, stop, log, whole)


def svg(chart: Chart, width: int = 520, height: int = 320) -> str:
    """Draw a chart as an SVG element; a point that a logarithmic axis cannot hold is left out."""
    legend, rows = _legend(chart, width)
    top, bottom, left, right = 30 + 18 * rows, height - 46, 66, width - 16
    xs = [x for line in chart.lines for x in line.x]
    ys = [y for line in chart.lines for y in (*line.y, *line.low, *line.high) if y is not None]
    if chart.bars:
        spacing = min((b - a for line in chart.lines for a, b in pairwise(line.x)), default=1.0)
        xs = [x + d for x in xs for d in (-spacing / 2, spacing / 2)]
        ys = [*ys, 0.0]
    if chart.x_names:
        xs = [-0.5, len(chart.x_names) - 0.5]
    x_axis = _axis(xs, left, right, chart.log_x, 0.0 if chart.bars else 0.03)
    y_axis = _axis(ys, bottom, top, chart.log_y, 0.06)._replace(whole=False)
    if chart.bars and min(ys) >= 0:
        y_axis = y_axis._replace(low=0.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12" role="img" '
        f'aria-label="{escape(chart.title)}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(width / 2, 18, chart.title, "middle", 'font-size="14"'),
        _text((left + right) / 2, height - 8, chart.x_label, "middle"),
        _text(14, (top + bottom) / 2, chart.y_label, "middle",
              f'transform="rotate(-90 14 {(top + bottom) / 2:.0f})"'),
        *legend,
    ]  # fmt: skip
    names = [(x_axis.place(i), name) for i, name in enumerate(chart.x_names)]
    for x, label in names or x_axis.ticks():
        parts.append(f'<path d="M{x:.1f} {bottom}v4" stroke="#444"/>')
        parts.append(_text(x, bottom + 17, label, "middle"))
    for y, label in y_axis.ticks():
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#e4e4e4"/>')
        parts.append(_text(left - 5, y + 4, label, "end"))
    parts.append(f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#444"/>')
    draw = _bars if chart.bars else _curve
    for i, line in enumerate(chart.lines):
        parts += draw(chart, i, line, x_axis, y_axis)
    return "\n".join([*parts, "</svg>"])


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _legend(chart: Chart, width: int) -> tuple[list[str], int]:
    if len(chart.lines) < 2:
        return [], 0
    parts, x, row = list[str](), 66.0, 0
    for i, line in enumerate(chart.lines):
        needed = 26 + 6.6 * len(line.name)
        if x + needed > width and x > 66:
            x, row = 66.0, row + 1
        y = 36 + 18 * row
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="9" fill="{_colour(i)}"/>')
        parts.append(_text(x + 18, y, line.name))
        x += needed
    return parts, row + 1


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _bars(chart: Chart, i: int, line: Line, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    spacing = min((b - a for a, b in pairwise(line.x)), default=1.0)
    gap = 0.8 if chart.x_names else 0.95
    each = gap * spacing / len(chart.lines)
    parts = []
    for n, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
        if y is None:
            continue
        left = x_axis.place(x - gap * spacing / 2 + i * each)
        right = x_axis.place(x - gap * spacing / 2 + (i + 1) * each)
        top, foot = sorted((y_axis.place(y), y_axis.place(0)))
        parts.append(
            f'<rect x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" '
            f'height="{foot - top:.2f}" fill="{_colour(i)}"/>'
        )
        if line.low:
            middle = (left + right) / 2
            low, high = y_axis.place(line.low[n]), y_axis.place(line.high[n])
            parts.append(f'<path d="M{middle:.1f} {low:.1f}V{high:.1f}" stroke="#222"/>')
    return parts


def _curve(chart: Chart, i: int, line: Line, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    def shown(value: float | None, axis: _Axis) -> bool:
        return value is not None and math.isfinite(value) and (value > 0 or not axis.log)

    colour, parts = _colour(i), list[str]()
    if line.low:
        edges = [
            [(x, y) for x, y in zip(line.x, side, strict=True) if shown(y, y_axis)]
            for side in (line.low, line.high)
        ]
        ring = [*edges[0], *reversed(edges[1])]
        corners = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in ring)
        parts.append(f'<polygon points="{corners}" fill="{colour}" opacity="0.15"/>')
    command, path, dots = "M", "", list[str]()
    for x, y in zip(line.x, line.y, strict=True):
        if y is None or not shown(y, y_axis) or not shown(x, x_axis):
            command = "M"
            continue
        px, py = x_axis.place(x), y_axis.place(y)
        path += f"{command}{px:.1f} {py:.1f}"
        command = "L"
        dots.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{colour}"/>')
    parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    return [*parts, *(dots if len(dots) <= 40 else [])]


def contours(field: Array, points: Sequence[tuple[Array, tuple[int, int, int]]] = ()) -> Array:
    """Draw a function on a square by lines of equal height, blue where low and red where high.

    Args:
        field: ``(S, S)``; row 0 is the top.
        points: sets of points ``(N, 2)`` in the unit square, its origin bottom left, and colours.

    Returns:
        uint8 ``(S, S, 3)``.
    """
    low, high = np.quantile(field, [0.01, 0.99])
    level = np.clip((field - low) / (high - low if high > low else 1), 0, 1)
    bands = np.floor(level * 12).clip(0, 11)
    shade = (bands / 11)[..., None]
    blue, white, red = np.array([(90, 130, 200), (248, 248, 248), (220, 110, 90)], float)
    picture = np.where(
        shade < 0.5, blue + (white - blue) * 2 * shade, white + (red - white) * (2 * shade - 1)
    )
    edge = np.zeros(field.shape, bool)
    edge[1:] |= bands[1:] != bands[:-1]
    edge[:, 1:] |= bands[:, 1:] != bands[:, :-1]
    picture[edge] *= 0.72
    sheet: Array = picture.round().astype(np.uint8)
    side = len(field)
    for positions, colour in points:
        column = (positions[:, 0] * side).astype(int)
        row = ((1 - positions[:, 1]) * side).astype(int)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = column + dx, row + dy
            inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
            sheet[y[inside], x[inside]] = colour
    return sheet


def image(content: bytes | Array, caption: str, width: int | None = None) -> str:
    """A PNG file's bytes, or pixels uint8 ``(H, W, C)``, with a caption."""
    png = content if isinstance(content, bytes) else encode_small_png(content)
    size = f' width="{width}"' if width else ""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(caption)}"{size} src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def figure(chart: Chart, caption: str = "") -> str:
    """A chart with a caption."""
    return f"<figure>{svg(chart)}<figcaption>{escape(caption)}</figcaption></figure>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", row(header, "th"), *(row(r, "td") for r in rows), "</table>"])


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def text(words: str, style: str = "") -> str:
    """A paragraph."""
    return f'<p class="{style}">{escape(words)}</p>' if style else f"<p>{escape(words)}</p>"


def page(title: str, parts: Sequence[str]) -> str:
    """The whole file."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            heading(title, 1),
            *parts,
            "</body></html>\n",
        ]
    )
