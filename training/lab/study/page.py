"""The report of the study, as HTML and as Markdown."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.images import decode_image, encode_small_png
from models.record import Chart, Line
from training.lab.study.claims import Claim, in_words
from training.lab.study.settings import (
    CLIPPED_RATE,
    CLIPS,
    DATA_SETS,
    DEPTHS,
    GRID_CONSTRAINTS,
    MOMENT_CONSTRAINTS,
    NORMALIZATIONS,
    ONE_SIDED,
    RECURRENT_STEPS,
    SURFACE_CONSTRAINTS,
    TRAINS_FROM,
    Answers,
    Scale,
    Values,
    answers_of,
    clipping,
    name_of,
)
from training.reporting import charts
from training.reporting.pages import render

TITLE = "What weight clipping does to a critic"


class Part(NamedTuple):
    """A paragraph, a heading, a table, a chart or a picture."""

    text: str = ""
    level: int = 0
    """Level of the heading; 0: the text is a paragraph, or a caption."""
    rows: tuple[tuple[str, ...], ...] = ()
    """Rows of a table, the header first."""
    chart: Chart | None = None
    pngs: tuple[str, ...] = ()
    """Pictures to be shown side by side, in base64."""
    file: str = ""
    """File name of a chart or picture, without a suffix."""

    def html(self) -> str:
        """The element in HTML."""
        return render("study_part.html.j2", part=self)

    def markdown(self, pictures: Path) -> str:
        """The element in Markdown; charts and pictures become files in ``pictures``."""
        if self.rows:
            header, *rows = [f"| {' | '.join(row)} |" for row in self.rows]
            return "\n".join([header, "|---" * len(self.rows[0]) + "|", *rows])
        if self.chart or self.pngs:
            name = f"{self.file}.svg" if self.chart else f"{self.file}.png"
            content = charts.svg(self.chart).encode() if self.chart else self.picture()
            (pictures / name).write_bytes(content)
            width = 240 * len(self.pngs) or 480
            alt = escape(self.text)
            return (
                f'<img src="{pictures.name}/{name}" alt="{alt}" width="{width}">\n\n*{self.text}*'
            )
        return f"{'#' * self.level} {self.text}" if self.level else self.text

    def picture(self) -> bytes:
        """The pictures side by side, as PNG."""
        pictures = [decode_image(base64.b64decode(png), self.file) for png in self.pngs]
        gap = np.full((len(pictures[0]), 6, pictures[0].shape[2]), 255, np.uint8)
        return encode_small_png(np.hstack([part for p in pictures for part in (gap, p)][1:]))


def study_parts(answers: Answers, claims: Sequence[Claim], scale: Scale) -> list[Part]:
    """Everything that the report says, in order."""
    table = tuple(tuple(claim) for claim in claims)
    header = ("claim", "measured", "seeds", "found (95% interval)", "verdict")
    return [
        Part(
            "Seven problems are blamed on weight clipping. Here each is measured from scratch, by "
            "rules that could come out otherwise. A verdict is called only where a 95% interval or "
            "Welch's t at 97.5% allows it."
        ),
        Part(rows=(header, *table)),
        *_surface_parts(answers["surface"], scale),
        *_layer_parts(answers["layers"], scale),
        *_grid_parts(answers["grid"], scale),
        *_moment_parts(answers["moments"]),
        *_run_parts(answers["run"], scale),
    ]


def _surface_parts(answers: dict[str, Values], scale: Scale) -> list[Part]:
    parts = [
        Part("Critics fitted to a fixed generator", 2),
        Part(
            "The generator is fixed: the real data plus standard normal noise. Critics of three "
            f"layers of 128 ReLU units were trained for {scale.fit_steps} steps. Lines of equal "
            "score; blue low, red high; dots are real data. Below: the share of the exact distance "
            "that each found (its gap over its slope, the latter the 95% quantile of its gradient "
            "norm), the mean gradient norm as a power of ten, and the share of the points where it "
            "is not within a factor of 2 of 1. The gradient penalty is two-sided: it wants a norm "
            "of 1 everywhere; the Lipschitz penalty is one-sided: it wants one of at most 1."
        ),
    ]
    rows: list[tuple[str, ...]] = [
        ("data", "constraint", "share found", "log10 of the norm", "norm far from 1")
    ]
    for source, constraint in itertools.product(DATA_SETS, SURFACE_CONSTRAINTS):
        name = name_of(constraint)
        matching = answers_of(answers, source, name)
        cells = [in_words([a[key] for a in matching]) for key in ("found", "decades", "far")]
        rows.append((source, name, *cells))
    names = [name_of(constraint) for constraint in SURFACE_CONSTRAINTS]
    for source in DATA_SETS:
        pngs = tuple(answers[f"surface-{source}-{name}-0"]["picture"] for name in names)
        caption = f"{source}, seed 0, from left to right: {', '.join(names)}"
        parts.append(Part(caption, pngs=pngs, file=f"surface-{source}"))
    return [*parts, Part(rows=tuple(rows))]


def _layer_parts(answers: dict[str, Values], scale: Scale) -> list[Part]:
    parts = [
        Part("Gradient by layer in a deep critic", 2),
        Part(
            "Twelve layers of ReLU units without normalisation, Swiss roll, each constraint with "
            f"its published settings, after {scale.deep_steps} generator steps; but clipping with "
            f"a learning rate of {CLIPPED_RATE:g}, eight times the published one, so that in a "
            "short run too its weights get to where they go. Initial weights are uniform within "
            "one over the root of the width, so at 0.01 and width 128 "
            f"{1 - 0.01 * 128**0.5:.0%} of them lie beyond a bound and are clipped at the start; a "
            "deep critic then gets no gradient that would move them. Claim 3 is judged on critics "
            "that do move."
        ),
    ]
    rows: list[tuple[str, ...]] = [
        ("width", "constraint", "decades a layer on the way back", "weights within 1% of a bound")
    ]
    for width in scale.widths:
        lines, histograms = [], []
        names = dict.fromkeys(k.split("-")[2] for k in answers if k.split("-")[1] == str(width))
        for name in names:
            matching = answers_of(answers, str(width), name)
            mean = np.mean([a["decades"] for a in matching], axis=0)
            x = [float(i + 1) for i in range(len(mean))]
            lines.append(Line(name=name, x=x, y=mean.tolist()))
            histograms.append(Line(**{**matching[0]["histogram"], "name": name}))
            slope, saturated = (in_words([a[k] for a in matching]) for k in ("slope", "saturated"))
            rows.append((str(width), name, slope, saturated if "clip" in name else "no bound"))
        parts += [
            Part(
                f"Mean over {scale.seeds} seeds, width {width}",
                chart=Chart(
                    title=f"Gradient of the score by layer, width {width}",
                    x_label="layer, from the input on",
                    y_label="log10 of the gradient norm",
                    lines=lines,
                ),
                file=f"layers-{width}",
            ),
            Part(
                f"Seed 0, width {width}; unclipped weights over each tensor's largest",
                chart=Chart(
                    title=f"Weights over their bound, width {width}",
                    x_label="weight / c",
                    y_label="share of the weights",
                    lines=histograms,
                ),
                file=f"weights-{width}",
            ),
        ]
    return [*parts, Part(rows=tuple(rows))]


def _grid_parts(answers: dict[str, Values], scale: Scale) -> list[Part]:
    rows: list[tuple[str, ...]] = [
        ("layers", "normalisation", *(name_of(constraint) for constraint in GRID_CONSTRAINTS))
    ]
    for depth, norm_name in itertools.product(DEPTHS, NORMALIZATIONS):
        cells = []
        for constraint in GRID_CONSTRAINTS:
            matching = answers_of(answers, str(depth), norm_name, name_of(constraint))
            shares = [a["found"] for a in matching if "found" in a]
            cells.append(f"{np.mean(shares):.0%}" if shares else "refused")
        rows.append((str(depth), norm_name, *cells))
    refused = next((a["refused"] for a in answers.values() if "refused" in a), "")
    return [
        Part("What trains", 2),
        Part(
            "The share of the exact distance between the Swiss roll and its noisy copy that a "
            f"critic of width 64 finds after {scale.grid_steps} steps ({scale.grid_seeds} seeds). "
            f"It trains if that is above {TRAINS_FROM:.0%}. 'recurrent': so many GRU layers that "
            f"read the point at {RECURRENT_STEPS} steps. A share above 100% is of a critic with "
            f"cliffs: steeper than its slope at fewer than one point in twenty. Refused: {refused}."
        ),
        Part(rows=tuple(rows)),
    ]


def _moment_parts(answers: dict[str, Values]) -> list[Part]:
    lines = []
    for constraint in MOMENT_CONSTRAINTS:
        name = name_of(constraint)
        means = [
            float(np.mean([a["found"] for a in answers_of(answers, f"m{nodes}", name)]))
            for nodes in range(1, 6)
        ]
        lines.append(Line(name=name, x=[2.0 * n - 1 for n in range(1, 6)], y=means))
    chart = Chart(
        title="Share of W1 found",
        x_label="moments that agree",
        y_label="gap over slope, over W1",
        lines=lines,
    )
    return [
        Part("Moments that a critic cannot see", 2),
        Part(
            "A normal distribution against 1 to 5 points (Gauss-Hermite nodes) that share its "
            "first 1, 3, 5, 7 and 9 moments; the exact distance is the area between the CDFs."
        ),
        Part("The exact distance is 1 on this scale", chart=chart, file="moments"),
    ]


def _run_parts(runs: dict[str, Values], scale: Scale) -> list[Part]:
    names = [*(name_of(clipping(c)) for c in CLIPS), name_of(ONE_SIDED)]
    lines: dict[str, list[Line]] = {"step": [], "seconds": []}
    for name in names:
        curves = [a["curve"] for a in answers_of(runs, "25gaussians", name)]
        for key, found in lines.items():
            columns = list(zip(*curves, strict=True))
            x = [float(np.mean([r[key] for r in column])) for column in columns]
            y = [float(np.mean([r["value"] for r in column])) for column in columns]
            found.append(Line(name=name, x=x, y=y))
    parts = [
        Part("Whole trainings", 2),
        Part(
            f"25gaussians for {scale.mixture_steps} and digits for {scale.digits_steps} generator "
            "steps, the same settings for all: those tuned for the one-sided penalty. Means over "
            f"{scale.seeds} seeds. That is short, so compare the rows with each other and not with "
            "what longer runs reach."
        ),
    ]
    for key, found in lines.items():
        x_label = "generator steps" if key == "step" else "seconds of training, on one thread"
        chart = Chart(
            title="25gaussians", x_label=x_label, y_label="wasserstein_1", lines=found, log_y=True
        )
        parts.append(Part(f"Convergence against {x_label}", chart=chart, file=f"curve-{key}"))
    for preset, figures in (
        ("25gaussians", ("modes_covered", "high_quality_share", "coverage", "wasserstein_1")),
        ("digits", ("precision", "recall", "coverage", "kernel_distance")),
    ):
        rows: list[tuple[str, ...]] = [(preset, *figures)]
        for name in names:
            matching = answers_of(runs, preset, name)
            if matching:
                cells = [in_words([a["figures"][f]["value"] for a in matching]) for f in figures]
                rows.append((name, *cells))
        first = answers_of(runs, preset)[0]["figures"]
        rows.append(("real against real", *(f"{first[f]['floor']:.3g}" for f in figures)))
        parts.append(Part(rows=tuple(rows)))
    for preset, shown in (
        ("25gaussians", ("clip 0.01", "clip 0.1", name_of(ONE_SIDED))),
        ("digits", ("clip 0.01", name_of(ONE_SIDED))),
    ):
        pngs = tuple(runs[f"run-{preset}-{name}-0"]["picture"] for name in shown)
        caption = f"{preset}, seed 0, from left to right: {', '.join(shown)}"
        parts.append(Part(caption, pngs=pngs, file=f"samples-{preset}"))
    return parts
