"""Pictures of vectors, tables, sequences and critics, as pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.judging.metrics import correlations
from training.reporting.charts import COLOURS, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray
SIDE = 480
REAL_COLOUR, FAKE_COLOUR = "#999999", COLOURS[1]
PANEL = (180, 120)
"""Width and height, in pixels, of each column's histogram."""
TITLE, NUMBERS, EDGE = 16, 18, 6
"""Pixels of a panel above, below and at the sides of its histogram."""
PANELS_A_ROW = 5
BINS = 40
SURFACE = 240
"""Pixels of a critic surface's side."""
LEVELS = 12
"""Bands of equal score on a critic surface."""
LOW_TO_HIGH = ("#5a82c8", "#f8f8f8", "#dc6e5a")
"""Blue, white, red; light enough for dark points to be seen on them."""


def scatter(real: Array, fake: Array) -> Array:
    """Draw the first two features of real points (grey) and, over them, generated ones (orange).

    Args:
        real: ``(N, D)``.
        fake: ``(M, D)``.

    Returns:
        uint8 ``(480, 480, 3)``.
    """
    with drawing():
        figure = _figure(SIDE, SIDE, layout="constrained")
        axes = figure.subplots()
        for name, points, colour in (("real", real, REAL_COLOUR), ("generated", fake, FAKE_COLOUR)):
            y = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
            axes.plot(points[:, 0], y, "s", ms=2, mew=0, color=colour, label=name)
        low, high = _range(real[:, :2])
        axes.set_xlim(low[0], high[0])
        if real.shape[1] > 1:
            axes.set_ylim(low[1], high[1])
        else:
            axes.set_yticks([])
        figure.legend(loc="outside upper center", ncols=2, markerscale=4)
        return _pixels(figure)


def marginals(columns: Sequence[str], real: Array, fake: Array | None = None) -> Array:
    """Draw each column's histogram: real values grey and, over them, generated ones as a line.

    With generated values two more panels show the columns' correlations, real and generated:
    blue for -1, white for 0, red for 1.

    Args:
        columns: names; without any x1, x2 and so on.
        real: ``(N, D)``; NaN, where there is no value, is left out.
        fake: ``(M, D)``, or None.

    Returns:
        uint8 ``(H, W, 3)``.
    """
    names = columns or [f"x{i + 1}" for i in range(real.shape[1])]
    tables = {}
    if fake is not None and len(names) > 1:
        tables = {"correlations, real": real, "correlations, generated": fake}
    count = len(names) + len(tables)
    across = min(PANELS_A_ROW, count)
    width, height = across * PANEL[0], -(-count // across) * PANEL[1]
    with drawing(**{"font.size": 10, "axes.titlesize": 10}):
        figure = _figure(width, height)
        for panel in range(count):
            row, column = divmod(panel, across)
            left, bottom = column * PANEL[0] + EDGE, height - (row + 1) * PANEL[1] + NUMBERS
            size = PANEL[0] - 2 * EDGE, PANEL[1] - TITLE - NUMBERS
            axes = figure.add_axes(
                (left / width, bottom / height, size[0] / width, size[1] / height)
            )
            axes.grid(visible=False)
            if panel < len(names):
                axes.set_title(names[panel][:28], loc="left", pad=3)
                shown = None if fake is None else fake[:, panel]
                _histogram(axes, real[:, panel], shown)
            else:
                title = list(tables)[panel - len(names)]
                axes.set_title(title, pad=3)
                axes.set_axis_off()
                axes.imshow(correlations(_filled(tables[title])), cmap="bwr", vmin=-1, vmax=1)
        return _pixels(figure)


def traces(
    real: Array,
    fake: Array,
    names: tuple[str, str] = ("real", "generated"),
    whole: bool = False,
) -> Array:
    """Draw the first feature of real sequences (grey, left) beside generated ones (orange, right).

    Args:
        real: ``(N, T, D)``.
        fake: ``(M, T, D)``.
        names: titles of the two halves.
        whole: both halves show the range of both sets, not of the real ones alone.

    Returns:
        uint8 ``(480, 960, 3)``, both halves on one scale.
    """
    scale = np.concatenate([real, fake]) if whole else real
    with drawing():
        figure = _figure(2 * SIDE, SIDE, layout="constrained")
        halves = figure.subplots(1, 2, sharey=True)
        parts = ((names[0], real, REAL_COLOUR), (names[1], fake, FAKE_COLOUR))
        for axes, (name, sequences, colour) in zip(halves, parts, strict=True):
            axes.plot(sequences[..., 0].T, color=colour, linewidth=1)
            axes.set_title(name)
            axes.set_xlabel("step")
        halves[0].set_ylim(*_range(scale[..., 0].reshape(-1)))
        return _pixels(figure)


def heat_map(values: Array) -> Array:
    """Draw a value for each pixel of an image, white for 0 and the darker the larger.

    Args:
        values: ``(H, W)``, each at least 0.

    Returns:
        uint8 ``(480, 480, 3)``, with a scale of the values.
    """
    with drawing():
        figure = _figure(SIDE, SIDE, layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=False)
        rows, columns = values.shape
        extent = (0.5, columns + 0.5, rows + 0.5, 0.5)  # pixels are counted from 1
        shown = axes.imshow(values, cmap="Reds", vmin=0, extent=extent)
        axes.set(xlabel="column", ylabel="row")
        figure.colorbar(shown, location="bottom", shrink=0.8)
        return _pixels(figure)


def surface(
    score: Callable[[Array], Array],
    low: Array,
    high: Array,
    points: Sequence[tuple[Array, tuple[float, float, float]]],
) -> Array:
    """Draw a critic of the plane by bands of equal score, blue low and red high, under points.

    Args:
        score: ``(N, 2)`` to ``(N,)``.
        low: lower corner of the rectangle that is drawn, ``(2,)``.
        high: its upper corner.
        points: sets of points ``(N, 2)`` in the same units, each with its colour, RGB in [0, 1].

    Returns:
        uint8 ``(240, 240, 3)``.
    """
    from matplotlib.colors import LinearSegmentedColormap

    x, y = (np.linspace(low[i], high[i], SURFACE) for i in range(2))
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    field = score(grid).reshape(SURFACE, SURFACE)
    bottom, top = np.quantile(field, [0.01, 0.99])
    levels = np.linspace(bottom, top if top > bottom else bottom + 1, LEVELS + 1)
    with drawing():
        figure = _figure(SURFACE, SURFACE)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        colours = LinearSegmentedColormap.from_list("", LOW_TO_HIGH)
        axes.contourf(x, y, field, levels, cmap=colours, extend="both")
        axes.contour(x, y, field, levels, colors="black", linewidths=0.5, linestyles="solid")
        for positions, colour in points:
            axes.plot(*positions.T, "o", ms=2.5, mew=0, color=colour)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        return _pixels(figure)


def _figure(width: int, height: int, **settings: str) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width / 72, height / 72), dpi=72, **settings)  # type: ignore[arg-type]


def _pixels(figure: Figure) -> Array:
    content = io.BytesIO()
    figure.savefig(content, format="rgba", dpi=72)
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    return np.frombuffer(content.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def _range(values: Array) -> tuple[Array, Array]:
    """Nearly all the values ``(N, ...)``, with a margin."""
    low, high = np.quantile(values, [0.001, 0.999], axis=0)
    margin = 0.1 * (high - low) + 1e-6
    return low - margin, high + margin


def _ends(low: float, high: float) -> list[str]:
    """Write the ends of a range in four digits, or in as many as tell them apart."""
    digits = 4
    while f"{low:.{digits}g}" == f"{high:.{digits}g}":
        digits += 1
    return [f"{low:.{digits}g}", f"{high:.{digits}g}"]


def _filled(rows: Array) -> Array:
    """Rows ``(N, D)`` with each column's mean in place of NaN."""
    is_nan = np.isnan(rows)
    means = np.where(is_nan, 0, rows).sum(axis=0) / np.maximum(1, (~is_nan).sum(axis=0))
    return np.where(is_nan, means, rows)


def _histogram(axes: Axes, real: Array, fake: Array | None) -> None:
    real = real[~np.isnan(real)]
    fake = None if fake is None else fake[~np.isnan(fake)]
    if not len(real):
        return
    low, high = np.quantile(real, [0.001, 0.999])
    if low == high:
        room = max(0.5, 1e-9 * abs(low))
        low, high = low - room, high + room
    edges = np.linspace(low, high, BINS + 1)
    shares = [np.histogram(x, edges)[0] / max(1, len(x)) for x in (real, fake) if x is not None]
    axes.stairs(shares[0], edges, fill=True, color=REAL_COLOUR, antialiased=False)
    for share in shares[1:]:
        axes.stairs(share, edges, baseline=None, color=FAKE_COLOUR, linewidth=1.5)
    axes.set(xlim=(low, high), ylim=(0, 1.02 * max(share.max() for share in shares)), yticks=[])
    axes.set_xticks([low, high], _ends(low, high))
    axes.tick_params(axis="x", length=0)
    axes.spines["left"].set_visible(False)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
