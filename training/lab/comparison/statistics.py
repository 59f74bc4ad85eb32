"""Means over seeds, the constraint to recommend, and the table of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from training.lab.comparison.runs import BUDGETS, Plan

CLEAR_CONFIDENCE = 0.95
"""Confidence from which a recommendation is called clear."""
SHOWN_FIGURES = {"modes_covered", "coverage", "recall", "precision", "high_quality_share"}
"""Figures that the table shows beside the headline."""


class Mean(NamedTuple):
    """A mean over seeds and its 95% interval (Student's t); of one seed none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3g} (one seed)"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """The mean of one value a seed, with its interval."""
    array = np.asarray(values, float)
    mean = float(array.mean())
    if len(array) < 2:
        return Mean(mean, math.nan, math.nan)
    margin = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / math.sqrt(len(array))
    return Mean(mean, mean - margin, mean + margin)


def probability_lower(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The probability that the mean of ``a`` is the lower, by Welch's t; None for one seed."""
    if min(len(a), len(b)) < 2:
        return None
    variances = [np.var(x, ddof=1) / len(x) for x in (a, b)]
    error = float(sum(variances))
    difference = float(np.mean(b) - np.mean(a))
    if error == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    freedom = error**2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (a, b), strict=True))
    return float(stdtr(freedom, difference / math.sqrt(error)))


def recommend(values: dict[str, Sequence[float]], figure: str) -> dict[str, Any]:
    """Choose the constraint with the lowest mean, and say how sure that is.

    The confidence is ``1 - p``, where p is the largest p-value of the choice against any other
    constraint, by Welch's test. The test is two-sided because the choice is made by the same
    values: with a one-sided one each of two equal constraints has its chance to be called better
    (Hung & Fithian 2019, "Rank verification for exponential families"). Taking the largest p-value
    needs no correction for the number of constraints, as the choice must beat them all (Berger
    1982). Among equal constraints a confidence of c or more comes out in at most ``1 - c`` of the
    comparisons; of three seeds and very unequal spreads, 0.95 in 6%. docs/compare.md has the
    simulations.

    Args:
        values: one a seed, by constraint; lower is better.
        figure: name of the figure that the values are.

    Returns:
        ``constraint``, ``over`` (the other constraint that it is least surely better than; of one
        seed the runner-up), ``confidence`` (that the choice is better than every other, from 0 to
        1; None for one seed) and ``reason``. Both are None if there is no other.
    """
    first, *others = sorted(values, key=lambda kind: float(np.mean(values[kind])))
    if not others:
        reason = f"{first}: the only one of which no run diverged"
        return {"constraint": first, "over": None, "confidence": None, "reason": reason}
    probabilities = {kind: probability_lower(values[first], values[kind]) for kind in others}
    known = {kind: p for kind, p in probabilities.items() if p is not None}
    rival = min(known, key=known.__getitem__, default=others[0])
    confidence = max(0.0, 2 * known[rival] - 1) if len(known) == len(others) else None
    means = {kind: mean_over_seeds(values[kind]) for kind in (first, rival)}
    reason = f"{first}: its {figure} at equal seconds is {means[first]}, that of {rival}"
    if confidence is None:
        reason += (
            f", the next, {means[rival]}; with one seed nothing can be said of chance: use "
            "--seeds 3 or more"
        )
    else:
        reason += f", the hardest to tell from it, {means[rival]}; "
        if confidence >= CLEAR_CONFIDENCE:
            reason += f"it is better than every other with a confidence of {confidence:.3g}"
        else:
            reason += (
                f"that it is better than every other has a confidence of {confidence:.2g} only: "
                "these seeds do not decide; more would"
            )
    return {"constraint": first, "over": rival, "confidence": confidence, "reason": reason}


def summarise(
    plan: Plan,
    answers: dict[str, Any],
    seeds: int,
    data_name: str,
    headline: str,
    diverged: dict[str, str],
) -> dict[str, Any]:
    """Gather every constraint's figures within both budgets, and recommend one.

    Args:
        plan: what was run.
        answers: what `run_job` returned, by run name.
        seeds: how many.
        data_name: name of the data set.
        headline: the figure that decides, see `HEADLINES`.
        diverged: how a run did, of each constraint that is left out for it.

    Returns:
        What ``comparison.json`` holds.
    """
    rows = []
    for kind in plan.configs:
        for budget in BUDGETS:
            runs = [answers[name] for name in plan.run_names(kind, budget, seeds)]
            figures = runs[0]["figures"]
            rows.append(
                {
                    "constraint": kind,
                    "budget": budget,
                    "steps": runs[0]["steps"],
                    "critic_steps": runs[0]["critic_steps"],
                    "seconds": [run["curve"][-1]["seconds"] for run in runs],
                    "figures": {
                        name: [run["figures"][name]["value"] for run in runs] for name in figures
                    },
                    "floors": {name: figure["floor"] for name, figure in figures.items()},
                }
            )
    at_equal_seconds = {
        str(row["constraint"]): row["figures"][headline]
        for row in rows
        if row["budget"] == "seconds"
    }
    recommendation = recommend(at_equal_seconds, headline)
    if diverged:
        recommendation["reason"] += f"; left out: {in_words(diverged)}"
    return {
        "data": data_name,
        "headline": headline,
        "critic_steps": plan.critic_steps,
        "seconds": plan.seconds,
        "seeds": seeds,
        "rows": rows,
        "diverged": diverged,
        "recommendation": recommendation,
    }


def in_words(diverged: dict[str, str]) -> str:
    """Name the constraints of which a run diverged, and say how it did."""
    return ", ".join(f"{kind} ({how})" for kind, how in diverged.items())


def table_rows(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the one table, as texts."""
    names = [summary["headline"]]
    names += [n for n in summary["rows"][0]["figures"] if n in SHOWN_FIGURES]
    header = ["constraint", "equal", "critic steps", "seconds", *names]
    rows = [
        [
            row["constraint"],
            row["budget"],
            str(row["critic_steps"]),
            f"{np.mean(row['seconds']):.3g}",
            *(str(mean_over_seeds(row["figures"][name])) for name in names),
        ]
        for row in summary["rows"]
    ]
    floors = summary["rows"][0]["floors"]
    rows.append(["real against real", "", "", "", *(f"{floors[name]:.3g}" for name in names)])
    return header, rows
