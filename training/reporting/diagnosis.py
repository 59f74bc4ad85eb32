"""The doctor's findings as a page, with a plot of each."""

from __future__ import annotations

from collections.abc import Sequence

from models.record import Finding
from training.judging.doctor.checks import CHECKS
from training.reporting.pages import render


def findings_page(title: str, findings: Sequence[Finding]) -> str:
    """Write findings as one HTML file that needs nothing else."""
    meanings = {name: check.meaning for name, check in CHECKS.items()}
    return render("diagnosis.html.j2", title=title, findings=findings, meanings=meanings)
