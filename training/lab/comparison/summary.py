"""The figures of a comparison, as a summary and as the rows of its table."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.lab.comparison.runs import BUDGETS, Plan
from training.lab.comparison.statistics import mean_over_seeds, recommend

SHOWN_FIGURES = {"modes_covered", "coverage", "recall", "precision", "high_quality_share"}
"""Figures that the table shows beside the headline."""


def summarise(
    plan: Plan, answers: dict[str, Any], seeds: int, data_name: str, headline: str
) -> dict[str, Any]:
    """Gather every constraint's figures within both budgets, and recommend one.

    Args:
        plan: what was run.
        answers: what `run_job` returned, by run name.
        seeds: how many.
        data_name: name of the data set.
        headline: the figure that decides, see `HEADLINES`.

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
    return {
        "data": data_name,
        "headline": headline,
        "critic_steps": plan.critic_steps,
        "seconds": plan.seconds,
        "seeds": seeds,
        "rows": rows,
        "recommendation": recommend(at_equal_seconds, headline),
    }


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
