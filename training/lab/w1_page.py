"""The page of a W1 measurement: what was found, and pictures of what differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from models.images import MODES, encode_small_png, enlarge, grid
from models.record import Chart, Line
from training.judging.histogram import histogram
from training.lab.changes import found_in
from training.lab.differences import SIGNIFICANCE, column_names, kind_of
from training.lab.samples import Sets
from training.reporting.charts import COLOURS, horizontal_bars
from training.reporting.pages import render
from training.reporting.pictures import heat_map, traces

Array = np.ndarray
MAX_BARS = 20
"""Columns whose blame is drawn."""
MAX_CHARTS = 6
"""Columns whose values are drawn."""
MIN_SHARE = 0.01
"""Columns with less blame are not drawn, unless none has more."""
MAX_COLUMNS = 12
"""Columns of a table of rows."""
MAX_ROWS = 8
"""Rows of each table, and sequences on each side of a picture."""
BINS = 40
PICTURE_SIDE = 280
"""Least width of a heat map or of the mean of images, in pixels."""
Picture = tuple[bytes, str, int]
"""PNG, caption and width on the page."""


def w1_page(report: dict[str, Any], sets: Sets, a_name: str, b_name: str) -> str:
    """Write what `training.lab.measure.measure` found as one HTML file that needs no other.

    Args:
        report: of the measurement.
        sets: the samples that it was made from.
        a_name: what A is called, such as the name of its file.
        b_name: likewise.
    """
    a, b = sets.a, sets.b
    kind, blame = kind_of(a.shape[1:]), np.array(report["blame"])
    numbers = report["typical"]
    places = [
        list(rows if drawn is None else np.searchsorted(drawn, rows))
        for rows, drawn in zip(numbers, sets.rows, strict=True)
    ]
    names = sets.names or column_names(blame.shape)
    vectors = partial(_vectors, names=names, numbers=numbers)
    drawn: dict[str, Callable[..., dict[str, Any]]] = {
        "image": _images,
        "sequence": _sequences,
        "vector": vectors,
    }
    return render(
        "w1.html.j2",
        title=f"Are {a_name} and {b_name} the same?",
        verdict=report["verdict"][0].upper() + report["verdict"][1:],
        cautions=report["cautions"],
        a=a_name,
        b=b_name,
        changes=_changes(report, kind),
        figures=_figures(report),
        scores=(
            _scores(report["scores"]),
            "Of held-out samples; values beyond the ends count there.",
        ),
        chance=report["p_value"] > SIGNIFICANCE,
        **{"bars": "", "bars_caption": "", "charts": [], "pictures": [], "tables": [], "items": []}
        | drawn[kind](blame, a, b, places),
    )


def _figures(report: dict[str, Any]) -> list[list[str]]:
    low, high = report["interval"]
    confidence = f"{100 * report['confidence']:.4g}%"
    return [
        ["W1, the estimate", f"{report['w1']:.4g}"],
        [f"at least, with {confidence} confidence", f"{report['lower']:.4g}"],
        [f"{confidence} interval, its upper end approximate", f"{low:.4g} to {high:.4g}"],
        ["p-value of no difference", f"{report['p_value']:.2g}"],
        ["held-out samples of A and of B", " and ".join(map(str, report["heldout"]))],
        [
            f"exact distance of {report['plug_in_samples']} samples a side, and its bias",
            f"{report['plug_in']:.4g}, {report['plug_in_bias']:.4g}",
        ],
        ["critic steps", f"{report['steps']}" + (f"; {s}" if (s := report["stopped"]) else "")],
    ]


def _changes(report: dict[str, Any], kind: str) -> tuple[str, list[list[str]]]:
    """A sentence on the columns that changed by themselves, and a row for each."""
    what = {"vector": "columns", "image": "properties of the images"}.get(kind, "features")
    changed, count = found_in(report), len(report["changes"])
    rows = [
        [c.name, c.a, c.b, "; ".join([c.moved, *c.notes]), f"{c.p_value:.2g}"]
        for c in changed[:MAX_BARS]
    ]
    hidden = len(changed) - len(rows)
    share = f"{len(changed) or 'None'} of {count} {what}"
    more = f", and {hidden} of them are not listed" if hidden else ""
    said = (
        f"{share} changed by themselves beyond what chance does (p at most {SIGNIFICANCE:g} for "
        f"all {what} together){more}."
    )
    return said, rows


def _scores(scores: dict[str, list[float]]) -> Chart:
    edges = np.array(scores["edges"])
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    return Chart(
        title="Critic scores of A and B",
        x_label="score, above the mean of B",
        y_label="share of the samples",
        lines=[Line(name=name.upper(), x=middles, y=scores[name]) for name in ("a", "b")],
    )


def _values(name: str, a: Array, b: Array) -> Chart:
    """Histograms of one column; the ends hold what is beyond them."""
    both = np.concatenate([a, b]).astype(np.float64)
    low, high = np.quantile(both, [0.001, 0.999])
    if not high > low:
        low, high = both.min() - 0.5, both.max() + 0.5
    edges = np.linspace(low, high, BINS + 1)
    return Chart(
        title=name,
        x_label="value",
        y_label="share of the samples",
        lines=[histogram("A", a, edges), histogram("B", b, edges)],
    )


def _marginals(blame: Array, a: Array, b: Array, names: Sequence[str]) -> list[tuple[Chart, str]]:
    """Values of the columns that are blamed most."""
    shares = blame.ravel()
    most = np.argsort(-shares, kind="stable")[:MAX_CHARTS]
    chosen = [i for i in most if shares[i] >= MIN_SHARE] or most[:1]
    flat = [x.reshape(len(x), -1) for x in (a, b)]
    return [
        (_values(names[i], flat[0][:, i], flat[1][:, i]), f"All samples; blame {shares[i]:.0%}.")
        for i in chosen
    ]


def _vectors(
    blame: Array,
    a: Array,
    b: Array,
    typical: list[list[int]],
    names: Sequence[str],
    numbers: list[list[int]],
) -> dict[str, Any]:
    order = np.argsort(-blame, kind="stable")
    shown = order[:MAX_BARS]
    rows = [(names[i], float(blame[i]), COLOURS[0]) for i in shown]
    even = 1 / len(blame)
    hidden = len(names) - len(shown)
    left = f" Not drawn: {hidden} columns with less." if hidden else ""
    columns = order[:MAX_COLUMNS]
    header = [names[i] for i in columns]

    def table(title: str, side: int, every: Array) -> tuple[str, list[str], list[list[str]]]:
        rows = typical[side][:MAX_ROWS]
        cells = [[f"{v:.4g}" for v in every[row, columns]] for row in rows]
        means = [f"{v:.4g}" for v in every[:, columns].mean(axis=0)]
        labels = map(str, numbers[side])
        numbered = [[row, *values] for row, values in zip(labels, cells, strict=False)]
        return title, ["row, from 0", *header], [*numbered, ["mean of all", *means]]

    return {
        "bars": horizontal_bars("Blame of each column", rows, even),
        "bars_caption": f"Share of the distance. Dashed: an even share, {even:.2g}.{left}",
        "charts": _marginals(blame, a, b, names),
        "tables": [
            table("Most typical of A, and not of B", 0, a),
            table("Most typical of B, and not of A", 1, b),
        ],
    }


def _sequences(blame: Array, a: Array, b: Array, typical: list[list[int]]) -> dict[str, Any]:
    most = np.argsort(-blame.sum(axis=0), kind="stable")[:MAX_CHARTS]
    lines = [
        Line(
            name=f"x{j + 1} ({blame[:, j].sum():.0%})",
            x=[float(t + 1) for t in range(len(blame))],
            y=blame[:, j].tolist(),
        )
        for j in most
    ]
    by_step = Chart(title="Blame of each step", x_label="step", y_label="share", lines=lines)
    first = most[0]
    most_typical = [x[rows[:MAX_ROWS]] for x, rows in zip((a, b), typical, strict=True)]
    halves = [x[:, :, first : first + 1] for x in most_typical]
    drawn = traces(halves[0], halves[1], names=("A", "B"), whole=True)
    caption = (
        f"x{first + 1} of the sequences most typical of A (left) and of B (right), {MAX_ROWS} each."
    )
    return {
        "charts": [
            (by_step, "In brackets: a feature's blame over all steps."),
            *_marginals(blame, a, b, column_names(blame.shape)),
        ],
        "items": [(encode_small_png(drawn), caption, 960)],
    }


def _images(blame: Array, a: Array, b: Array, typical: list[list[int]]) -> dict[str, Any]:
    low, high = (float(f([f(x) for x in (a, b)])) for f in (np.min, np.max))

    def pixels(x: Array) -> Array:
        """As uint8 ``(N, H, W, C)``, on one scale for all."""
        scaled = (x.astype(np.float64) - low) * (255 / (high - low))
        scaled = scaled.reshape(*x.shape[:3], -1)
        if scaled.shape[3] not in MODES:  # more channels than a picture has: show the first
            scaled = scaled[..., :1]
        return np.rint(scaled).astype(np.uint8)

    def picture(images: Array, caption: str, columns: int, width: int) -> Picture:
        factor = max(1, width // (columns * images.shape[2]))
        sheet = grid(enlarge(images, factor), columns)
        return encode_small_png(sheet), caption, sheet.shape[1]

    means = [pixels(x.mean(axis=0, dtype=np.float64)[None]) for x in (a, b)]
    by_place = blame.reshape(*blame.shape[:2], -1).sum(axis=2)
    top = np.unravel_index(by_place.argmax(), by_place.shape)
    where = f"row {top[0] + 1}, column {top[1] + 1}"
    heat = f"Blame of each pixel, in percent; the most, {by_place.max():.1%}, in {where}."
    return {
        "pictures": [
            (encode_small_png(heat_map(100 * by_place)), heat, 480),
            picture(means[0], "Mean of A.", 1, PICTURE_SIDE),
            picture(means[1], "Mean of B.", 1, PICTURE_SIDE),
        ],
        "items": [
            picture(pixels(x[rows]), f"Most typical of {name}, and not of {other}.", 4, 480)
            for x, rows, name, other in zip((a, b), typical, "AB", "BA", strict=True)
        ],
    }
