"""What a person looks at: the model card, and pictures of vectors, tables and sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from models.lipschitz import LipschitzBounds
from models.record import Run

Array = np.ndarray
SIDE = 480
REAL_COLOUR = (150, 150, 150)
FAKE_COLOUR = (200, 30, 60)
PANEL = (180, 120)
"""Width and height, in pixels, of each column's histogram."""
PANELS_A_ROW = 5
TITLE = 16
BINS = 40


def scatter(real: Array, fake: Array) -> Array:
    """Draw the first two features of real points (grey) and, over them, generated ones (red).

    Args:
        real: ``(N, D)``.
        fake: ``(M, D)``.

    Returns:
        uint8 ``(480, 480, 3)``.
    """
    sheet = np.full((SIDE, SIDE, 3), 255, np.uint8)
    low, high = np.quantile(real, [0.001, 0.999], axis=0)
    margin = 0.1 * (high - low) + 1e-6
    low, high = low - margin, high + margin
    for points, colour in ((real, REAL_COLOUR), (fake, FAKE_COLOUR)):
        place = (points - low) / (high - low) * (SIDE - 1)
        x = place[:, 0]
        y = SIDE - 1 - place[:, 1] if points.shape[1] > 1 else np.full(len(points), SIDE / 2)
        for dx in (0, 1):
            for dy in (0, 1):
                column, row = (x + dx).astype(int), (y + dy).astype(int)
                inside = (column >= 0) & (column < SIDE) & (row >= 0) & (row < SIDE)
                sheet[row[inside], column[inside]] = colour
    return sheet


def marginals(columns: Sequence[str], real: Array, fake: Array | None = None) -> Array:
    """Draw each column's histogram: real values grey and, over them, generated ones as a red line.

    With generated values two more panels show the columns' correlations, real and generated:
    blue for -1, white for 0, red for 1.

    Args:
        columns: names; without any x1, x2 and so on.
        real: ``(N, D)``.
        fake: ``(M, D)``, or None.

    Returns:
        uint8 ``(H, W, 3)``.
    """
    names = columns or [f"x{i + 1}" for i in range(real.shape[1])]
    panels = [
        _histogram(name, real[:, i], None if fake is None else fake[:, i])
        for i, name in enumerate(names)
    ]
    if fake is not None and len(names) > 1:
        panels += [
            _correlations("correlations, real", real),
            _correlations("correlations, generated", fake),
        ]
    across = min(PANELS_A_ROW, len(panels))
    width, height = PANEL
    sheet = Image.new("RGB", (across * width, -(-len(panels) // across) * height), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i % across * width, i // across * height))
    return np.asarray(sheet)


def _panel(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    panel = Image.new("RGB", PANEL, "white")
    draw = ImageDraw.Draw(panel)
    draw.text((4, 2), title[:28], fill="black")
    return panel, draw


def _histogram(title: str, real: Array, fake: Array | None) -> Image.Image:
    panel, draw = _panel(title)
    low, high = np.quantile(real, [0.001, 0.999])
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    left, bottom, room = 6, PANEL[1] - 16, PANEL[1] - 16 - TITLE
    step = (PANEL[0] - 2 * left) / BINS
    shares = [np.histogram(x, edges)[0] / len(x) for x in (real, fake) if x is not None]
    most = max(share.max() for share in shares)
    tops = [bottom - room * share / most for share in shares]
    for i, top in enumerate(tops[0].tolist()):
        if top < bottom:
            right = left + (i + 1) * step - 1
            draw.rectangle((left + i * step, top, right, bottom), REAL_COLOUR)
    for top in tops[1:]:
        heights = np.repeat(top, 2).tolist()
        sides = (left + step * np.repeat(np.arange(BINS + 1), 2)[1:-1]).tolist()
        draw.line(list(zip(sides, heights, strict=True)), FAKE_COLOUR, width=2)
    draw.text((left, bottom + 2), f"{low:.4g}", fill="black")
    draw.text((PANEL[0] - left, bottom + 2), f"{high:.4g}", fill="black", anchor="ra")
    return panel


def _correlations(title: str, rows: Array) -> Image.Image:
    panel, _ = _panel(title)
    centred = rows.astype(np.float64) - rows.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    norms[norms == 0] = 1  # a constant column is correlated with nothing
    matrix = (centred / norms).T @ (centred / norms)
    faded = 255 * (1 - np.abs(matrix))
    red, blue = np.where(matrix < 0, faded, 255), np.where(matrix > 0, faded, 255)
    picture = np.stack([red, faded, blue], axis=-1).round().astype(np.uint8)
    side = PANEL[1] - TITLE - 4
    square = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
    panel.paste(square, ((PANEL[0] - side) // 2, TITLE))
    return panel


def traces(real: Array, fake: Array) -> Array:
    """Draw the first feature of real sequences (grey, left) beside generated ones (red, right).

    Args:
        real: ``(N, T, D)``.
        fake: ``(M, T, D)``.

    Returns:
        uint8 ``(480, 960, 3)``, both halves on one scale.
    """
    picture = Image.new("RGB", (2 * SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    low, high = np.quantile(real[..., 0], [0.001, 0.999])
    margin = 0.1 * (high - low) + 1e-6
    for left, sequences, colour in ((0, real, REAL_COLOUR), (SIDE, fake, FAKE_COLOUR)):
        x = left + np.linspace(0.05, 0.95, sequences.shape[1]) * SIDE
        for values in sequences[..., 0]:
            y = SIDE - (values - low + margin) / (high - low + 2 * margin) * SIDE
            draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour)
    return np.asarray(picture)


def model_card(run: Run) -> str:
    """Describe a run in Markdown."""
    data, constraint, training = run.data, run.constraint, run.config.training
    settings = ", ".join(f"{k} = {v}" for k, v in constraint.hyperparameters.items()) or "none"
    lines = [
        f"# {run.config.name}",
        "",
        f"A Wasserstein GAN trained on **{data.name}** under **{constraint.kind}** "
        f"({training.steps} generator steps, {training.num_critic_steps} critic steps each, "
        f"seed {training.seed}).",
        "",
        f"- Constraint hyperparameters: {settings}",
        f"- What it guarantees: {constraint.guarantee}",
        f"- Data: {data.count} items of shape {data.shape}, licence {data.licence or 'unknown'}, "
        f"content SHA-256 `{data.sha256}`; {data.training_count} trained on, "
        f"{data.heldout_count} held out",
        "- A critic's score is unbounded and means nothing by itself: it is no probability, and "
        "its gap between real and generated samples is not the Wasserstein distance.",
        f"- Served {serving_in_words(run)}.",
        "",
        "## Quality on held-out data",
        "",
        "| figure | value | 95% interval | floor (real against real) | n | better |",
        "|---|---|---|---|---|---|",
    ]
    for name, f in run.results.figures.items():
        floor = "" if f.floor is None else f"{f.floor:.4g}"
        lines.append(
            f"| {name} | {f.value:.4g} | {f.interval[0]:.4g} to {f.interval[1]:.4g} | {floor} "
            f"| {f.n} | {f.better} |"
        )
    extractor = run.results.extractor
    if extractor:
        lines += ["", f"Image features: `{extractor.name}`, SHA-256 `{extractor.sha256}`."]
    lines += ["", "## The critic's gradient norm", "", "| where | mean | median | max |"]
    lines.append("|---|---|---|---|")
    for place, norms in run.lipschitz.gradient_norm.items():
        median = norms.quantiles["0.5"]
        lines.append(f"| {place} | {norms.mean:.3f} | {median:.3f} | {norms.max:.3f} |")
    if run.lipschitz.sampled is not None:
        lines += ["", f"Its Lipschitz constant {_bracket(run.lipschitz)}."]
    present = [finding for finding in run.findings if finding.present]
    if run.findings:
        lines += ["", "## Findings", ""]
        lines += [f"- **{f.name}** ({f.severity}): {f.evidence}. {f.remedy}." for f in present] or [
            "Nothing was found beyond its threshold."
        ]
    return "\n".join(lines) + "\n"


def serving_in_words(run: Run) -> str:
    """The precision that samples are made in, and what it changes."""
    engine = run.engine
    unit = "grey levels" if run.data.kind == "image" else "standard deviations of a feature"
    return (
        f"in {engine.precision}: samples differ from those of the generator as it was trained by "
        f"{engine.mean_error:.2g} {unit} on average, {engine.max_error:.2g} at most"
    )


def _bracket(lipschitz: LipschitzBounds) -> str:
    least = f"is at least {lipschitz.sampled:.4g} (found by ascent)"
    if lipschitz.certified is None:
        return f"{least}; no upper bound is certified: {lipschitz.reason}"
    return f"{least} and at most {lipschitz.certified:.4g} (certified)"
