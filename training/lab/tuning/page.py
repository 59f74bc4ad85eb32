"""The report of a search: its winner, the best of each constraint, and every trial."""

from __future__ import annotations

from typing import Any

from models.record import Chart, Line, Run
from training.lab.tuning.search import CHOSEN, KIND, RUNGS
from training.reporting.pages import figures_in_words, render


def tuning_page(answer: dict[str, Any], run: Run, samples: bytes) -> str:
    """The report as HTML.

    Args:
        answer: as `training.lab.tuning.tune` returns it.
        run: the winner's record.
        samples: of the winner, PNG.
    """
    rows = [row for row in answer["trials"] if row["values"]]
    lines = []
    for kind in dict.fromkeys(row[KIND] for row in rows):
        values = [row["values"] for row in rows if row[KIND] == kind]
        parts = [part for part in RUNGS if any(str(part) in v for v in values)]
        best = [min(v[str(part)] for v in values if str(part) in v) for part in parts]
        lines.append(Line(name=kind, x=[part / RUNGS[-1] for part in parts], y=best))
    rows.sort(key=lambda row: (-len(row["values"]), list(row["values"].values())[-1]))
    return render(
        "tuning.html.j2",
        title=f"Settings searched for {run.config.name}",
        headline=answer["headline"],
        command=answer["command"],
        judged=figures_in_words(run.results.figures),
        samples=samples,
        chart=Chart(
            title=f"{answer['headline']} of validation items",
            x_label="share of a trial's seconds",
            y_label="lower is better",
            lines=lines,
        ),
        header=["trial", KIND, *(f"{part}/{RUNGS[-1]}" for part in RUNGS), "settings"],
        rows=[
            [
                row["number"],
                row[KIND],
                *(f"{row['values'][str(p)]:.4g}" if str(p) in row["values"] else "" for p in RUNGS),
                ", ".join(
                    f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}"
                    for k, v in row[CHOSEN].items()
                ),
            ]
            for row in rows
        ],
    )
