"""Draw docs/flow.svg: how data becomes a model, and how a model answers.

Run `python docs/diagram.py` after a change here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

WIDTH, HEIGHT = 1.72, 0.72
COLUMNS, ROWS = (1.0, 3.1, 5.2, 7.3), (2.5, 1.5, 0.5)
TRAINING, MODEL, SERVICE, OUTSIDE = "#dbe7fb", "#fdeccb", "#d9f2e0", "#ffffff"
BOXES = {
    # name: column, row, title, what it does, colour
    "data": (0, 0, "your data", "images, CSV, arrays, URL", OUTSIDE),
    "read": (1, 0, "training/data", "reads it, holds items out", TRAINING),
    "train": (2, 0, "training/engine", "generator against critic", TRAINING),
    "judge": (3, 0, "training/judging", "figures and findings", TRAINING),
    "client": (0, 2, "a client", "HTTP, Python, the page", OUTSIDE),
    "service": (1, 2, "service/", "samples, scores, metrics", SERVICE),
    "registry": (2, 2, "registry (MLflow)", "versions, the champion", MODEL),
    "artifact": (3, 1, "the artifact", "weights and their record", MODEL),
    "gates": (2, 1, "training/retraining", "gates beside the champion", TRAINING),
}
ARROWS = [
    ("data", "read", ""),
    ("read", "train", ""),
    ("train", "judge", ""),
    ("judge", "artifact", ""),
    ("artifact", "gates", ""),
    ("gates", "registry", "promotes"),
    ("registry", "service", "loads"),
    ("client", "service", "asks"),
]


def draw(path: Path) -> None:
    """Write the diagram as SVG; the same bytes each time."""
    settings = {"svg.hashsalt": "wgan", "svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context(settings):
        figure = plt.figure(figsize=(8.3, 3.0), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 8.3), ylim=(0, 3.0))
        axes.axis("off")
        for column, row, title, text, colour in BOXES.values():
            x, y = COLUMNS[column], ROWS[row]
            corner = (x - WIDTH / 2, y - HEIGHT / 2)
            style = {"facecolor": colour, "edgecolor": "#445", "linewidth": 1}
            axes.add_patch(plt.Rectangle(corner, WIDTH, HEIGHT, **style))
            axes.text(x, y + 0.12, title, ha="center", va="center", weight="bold")
            axes.text(x, y - 0.15, text, ha="center", va="center", size=8)
        for start, end, label in ARROWS:
            (x0, y0), (x1, y1) = (
                (COLUMNS[BOXES[name][0]], ROWS[BOXES[name][1]]) for name in (start, end)
            )
            dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
            axes.annotate(
                "",
                (x1 - dx * WIDTH / 2, y1 - dy * HEIGHT / 2),
                (x0 + dx * WIDTH / 2, y0 + dy * HEIGHT / 2),
                arrowprops={"arrowstyle": "-|>", "color": "#445", "shrinkA": 0, "shrinkB": 0},
            )
            side = {"va": "bottom", "ha": "center"} if dx else {"va": "center", "ha": "left"}
            place = ((x0 + x1) / 2 + (0 if dx else 0.06), (y0 + y1) / 2 + (0.04 if dx else 0))
            axes.text(*place, label, size=7, **side)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "flow.svg")
