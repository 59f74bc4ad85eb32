"""The risk that a run fails: one number made of all findings, with its reasons.

A logistic regression for each share of the steps at which `benchmarks/doctor.py` looked at runs;
``risk.json`` holds its numbers, and that command makes them. A run has failed if its final samples
are no nearer to held-out data than those of a Gaussian fitted to the training data. docs/doctor.md
says how well the risk predicts that, and of which runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from models.record import Chart, Finding, Line

MODEL = Path(__file__).with_name("risk.json")
NAME = "risk"
MEANING = "share of the runs that looked like this and failed"
THRESHOLD = 0.5
SCALES: dict[str, Callable[[float], float]] = {
    "critic_too_simple": lambda value: value,
    "clip_range": lambda value: min(value, 2.0),
    "saturated_weights": lambda value: value,
    "slow_optimisation": lambda value: value,
    "depth": lambda value: math.log1p(min(value, 20.0)),
    "low_diversity": lambda value: value,
    "gradient_norm": lambda value: min(value, 4.0),
    "critic_overfitting": lambda value: math.log1p(min(value, 3.0)),
    "worse_than_gaussian": lambda value: math.log(min(max(value, 0.01), 100.0)),
}
"""Scale on which each finding's value enters: bounded, so that no value decides alone."""
MAX_REASONS = 3


class Term(NamedTuple):
    """One finding's part of the log odds: ``weight * (scale(value) - mean)``.

    A finding that does not apply to a run adds nothing: it counts as the mean.
    """

    mean: float
    weight: float


class Model(NamedTuple):
    """A logistic regression, for runs of which a share of the steps is done."""

    share: float
    intercept: float
    terms: dict[str, Term]

    def parts(self, values: Mapping[str, float]) -> dict[str, float]:
        """Parts of the log odds, by finding, from the findings' values."""
        return {
            name: term.weight * (SCALES[name](values[name]) - term.mean)
            for name, term in self.terms.items()
            if name in values
        }

    def probability(self, values: Mapping[str, float]) -> float:
        """Share of the runs with such values that fail, 0 to 1."""
        return 1 / (1 + math.exp(-self.intercept - sum(self.parts(values).values())))


@cache
def models() -> tuple[Model, ...]:
    """The regressions of ``risk.json``, by share of the steps."""
    return tuple(
        Model(m["share"], m["intercept"], {n: Term(**term) for n, term in m["terms"].items()})
        for m in json.loads(MODEL.read_text())
    )


def assess(findings: Iterable[Finding], share: float) -> Finding:
    """Put all findings together into the risk that the run fails.

    Args:
        findings: of the run, from `CHECKS`.
        share: of the training steps that are done, 0 to 1; the regression of the last share that is
            reached is used, or the first.

    Returns:
        The risk as a finding: its evidence names the findings that raise and lower it most.
    """
    first, *later = models()
    model = max((m for m in later if m.share <= share), default=first)
    by_name = {finding.name: finding for finding in findings}
    values = {name: finding.value for name, finding in by_name.items()}
    parts = model.parts(values)
    risk = model.probability(values)
    present = risk > THRESHOLD
    worst_first = sorted(parts, key=lambda name: -parts[name])
    raising = [name for name in worst_first if parts[name] > 0][:MAX_REASONS]
    lowering = [name for name in reversed(worst_first) if parts[name] < 0][:MAX_REASONS]
    when = f"at {model.share:.0%} of their steps" if model.share < 1 else "at the end"
    reasons = "; ".join(
        f"{verb} by " + ", ".join(f"{name} {values[name]:.3g}" for name in names)
        for verb, names in (("raised", raising), ("lowered", lowering))
        if names
    )
    evidence = (
        f"of 100 short runs that looked like this {when}, about {100 * risk:.0f} end with samples "
        f"no nearer to the data than a fitted Gaussian's; {reasons}"
    )
    remedies = [by_name[name].remedy for name in raising if by_name[name].remedy]
    return Finding(
        name=NAME,
        value=risk,
        threshold=THRESHOLD,
        present=present,
        severity="warning" if present else "info",
        evidence=evidence,
        remedy=remedies[0] if present and remedies else "",
        chart=Chart(
            title="What the risk is made of",
            x_label="",
            y_label="part of the log odds",
            lines=[
                Line(
                    name="part",
                    x=[float(i) for i in range(len(parts))],
                    y=[round(parts[name], 4) for name in worst_first],
                )
            ],
            x_names=worst_first,
            bars=True,
        ),
    )
