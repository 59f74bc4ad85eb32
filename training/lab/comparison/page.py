"""The report of a comparison: its charts, pictures and findings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.artifact import GRID, load_artifact
from models.constraints.layers import layers
from models.images import encode_small_png
from models.model import Model
from models.record import Chart, Finding, Line
from models.run_folder import ARTIFACT
from models.sampling import score
from training.data.dataset import Dataset
from training.judging.headline import MAX_COMPARED_SAMPLES
from training.judging.histogram import histogram
from training.lab.comparison.runs import BUDGETS, Budget, Plan
from training.lab.comparison.statistics import mean_over_seeds, table_rows
from training.reporting.pages import render
from training.reporting.pictures import surface

REAL_POINTS, GENERATED_POINTS = (0.24, 0.24, 0.24), (0.08, 0.47, 0.16)
SCORED_ROWS = 4096
"""Points of a surface that the critic scores at once; rounding moves nothing that can be seen."""


def comparison_page(
    plan: Plan,
    answers: dict[str, Any],
    seeds: int,
    data: Dataset,
    out: Path,
    summary: dict[str, Any],
) -> str:
    """The report as HTML.

    Args:
        plan: what was run.
        answers: what `run_job` returned, by run name.
        seeds: how many.
        data: that all trained on.
        out: folder of the comparison.
        summary: as `compare` returns it.
    """
    header, rows = table_rows(summary)
    names = {kind: plan.run_names(kind, "steps", 1)[0] for kind in plan.configs}  # seed 0
    artifacts = {kind: out / "runs" / name / ARTIFACT for kind, name in names.items()}
    models = {kind: load_artifact(folder) for kind, folder in artifacts.items()}
    charts = [
        (
            _quality(plan, answers, seeds, budget, summary["headline"], data.card.kind != "image"),
            f"Runs of equal {budget}; bands: 95% over seeds.",
        )
        for budget in BUDGETS
    ]
    by_layer = _gradient_by_layer(answers, names)
    if by_layer.lines:
        charts.append((by_layer, "Seed 0, at the end of the equal steps."))
    charts.append((_weights(models), "Each layer's weights over their largest; seed 0."))
    findings = [
        [kind, str(seed), f.name, f.severity, f.evidence]
        for kind in plan.configs
        for seed, name in enumerate(plan.run_names(kind, "steps", seeds))
        for f in map(Finding.model_validate, answers[name]["findings"])
        if f.present
    ]
    is_plane = data.card.kind == "vector" and data.card.shape == (2,)
    return render(
        "comparison.html.j2",
        title=f"Constraints compared on {summary['data']}",
        reason=summary["recommendation"]["reason"],
        seeds=seeds,
        critic_steps=plan.critic_steps,
        seconds=plan.seconds,
        header=header,
        rows=rows,
        charts=charts,
        findings=findings,
        samples={kind: (folder / GRID).read_bytes() for kind, folder in artifacts.items()},
        surfaces={k: _surface(model, data) for k, model in models.items()} if is_plane else {},
    )


def _quality(
    plan: Plan,
    answers: dict[str, Any],
    seeds: int,
    budget: Budget,
    headline: str,
    logarithmic: bool,
) -> Chart:
    x = "critic steps" if budget == "steps" else "seconds"
    return Chart(
        title=f"Quality against {x}",
        x_label=x,
        y_label=f"{headline} (lower is better)",
        lines=[_curve(plan, answers, kind, budget, seeds) for kind in plan.configs],
        log_y=logarithmic,
    )


def _curve(plan: Plan, answers: dict[str, Any], kind: str, budget: Budget, seeds: int) -> Line:
    """Means over seeds at each measurement, with their intervals."""
    curves = [answers[name]["curve"] for name in plan.run_names(kind, budget, seeds)]
    each = plan.configs[kind].training.num_critic_steps
    means = [mean_over_seeds([r["value"] for r in rows]) for rows in zip(*curves, strict=True)]
    where = [
        float(np.mean([r["seconds"] if budget == "seconds" else r["step"] * each for r in rows]))
        for rows in zip(*curves, strict=True)
    ]
    many = seeds > 1
    return Line(
        name=kind,
        x=where,
        y=[m.value for m in means],
        low=[m.low for m in means] if many else [],
        high=[m.high for m in means] if many else [],
    )


def _gradient_by_layer(answers: dict[str, Any], names: dict[str, str]) -> Chart:
    lines = []
    for kind, name in names.items():
        for finding in map(Finding.model_validate, answers[name]["findings"]):
            if finding.name == "depth" and finding.chart:
                lines.append(finding.chart.lines[0].model_copy(update={"name": kind}))
    return Chart(
        title="Gradient of the score by layer",
        x_label="layer, from the input on",
        y_label="norm, of the largest",
        lines=lines,
        log_y=True,
    )


def _weights(models: dict[str, Model]) -> Chart:
    edges = np.linspace(-1, 1, 42)
    lines = []
    for kind, model in models.items():
        parts = [layer.weight.detach().flatten() for layer in layers(model.critic)]
        shares = torch.cat([w / w.abs().max().clamp_min(1e-12) for w in parts]).numpy()
        lines.append(histogram(kind, shares, edges))
    return Chart(
        title="Weights of the critic",
        x_label="weight, of its layer's largest",
        y_label="share of the weights",
        lines=lines,
    )


def _surface(model: Model, data: Dataset) -> bytes:
    real = data.sample(MAX_COMPARED_SAMPLES, heldout=True)
    fake = model.sample(0, MAX_COMPARED_SAMPLES)
    low, high = real.min(axis=0), real.max(axis=0)
    margin = 0.25 * (high - low)
    low, high = low - margin, high + margin
    picture = surface(
        lambda points: score(model.critic, model.scaling, model.items(points), chunk=SCORED_ROWS),
        low,
        high,
        [(real, REAL_POINTS), (fake, GENERATED_POINTS)],
    )
    return encode_small_png(picture)
