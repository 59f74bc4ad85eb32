"""What a person looks at: the model card, and a picture of vectors or sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from models.artifact import Run

Array = np.ndarray
SIDE = 480
REAL_COLOUR = (150, 150, 150)
FAKE_COLOUR = (200, 30, 60)


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
    for place, norms in run.lipschitz.get("gradient_norm", {}).items():
        median = norms["quantiles"]["0.5"]
        lines.append(f"| {place} | {norms['mean']:.3f} | {median:.3f} | {norms['max']:.3f} |")
    if "sampled" in run.lipschitz:
        lines += ["", f"Its Lipschitz constant {_bracket(run.lipschitz)}."]
    return "\n".join(lines) + "\n"


def _bracket(lipschitz: dict[str, Any]) -> str:
    least = f"is at least {lipschitz['sampled']:.4g} (found by ascent)"
    if lipschitz["certified"] is None:
        return f"{least}; no upper bound is certified: {lipschitz['reason']}"
    return f"{least} and at most {lipschitz['certified']:.4g} (certified)"
