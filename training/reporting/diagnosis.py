"""The doctor's findings as a page, with a plot of each."""

from __future__ import annotations

from collections.abc import Sequence

from models.record import Finding
from training.judging.doctor import CHECKS
from training.reporting import charts as report


def findings_page(title: str, findings: Sequence[Finding]) -> str:
    """Write findings as one HTML file that needs nothing else."""
    rows = [
        [f.name, f"{f.value:.3g}", f"{f.threshold:g}", CHECKS[f.name].meaning,
         f.severity if f.present else "not present", f.evidence, f.remedy]
        for f in findings
    ]  # fmt: skip
    header = ["finding", "value", "threshold", "the value is", "severity", "evidence", "remedy"]
    charts = [report.figure(f.chart, f.evidence) for f in findings if f.chart]
    return report.page(title, [report.table(header, rows), *charts])
