"""A check: a measurement of a critic, and the severity of its values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from models.record import Chart, Finding, Severity
from training.judging.doctor.subject import Subject


class Measurement(NamedTuple):
    """A value of one critic, with what explains it."""

    value: float
    """Larger is worse."""
    evidence: str
    remedy: str
    """Advice for a value beyond the threshold."""
    chart: Chart | None


Measure = Callable[[Subject], Measurement | None]
"""Measures a critic; None if the check does not apply to it."""


@dataclass(frozen=True)
class Check:
    """One finding: how it is measured, when it is present, and how bad it may be called."""

    name: str
    measure: Measure
    meaning: str
    """Describes the value, for a table."""
    threshold: float
    """A larger value is a finding."""
    ceiling: Severity
    """The worst severity allowed: a value that does not predict bad samples must not alarm."""
    critical: float = math.inf
    """A larger value is critical, if the ceiling allows it."""
    warns_early: bool = True
    """The finding may warn while the run trains."""

    def severity(self, value: float) -> Severity:
        """Grade a value.

        Example:
            >>> check = Check("slope", lambda subject: None, "a slope", 1.0, "critical", 2.0)
            >>> [check.severity(value) for value in (1.0, 1.5, 2.5)]
            ['info', 'warning', 'critical']
        """
        if value <= self.threshold or self.ceiling == "info":
            return "info"
        return "critical" if self.ceiling == "critical" and value > self.critical else "warning"

    def examine(self, subject: Subject) -> Finding | None:
        """Measure a critic; None if the check does not apply to it."""
        measurement = self.measure(subject)
        if measurement is None:
            return None
        value = float(measurement.value)
        present = value > self.threshold
        return Finding(
            name=self.name,
            value=value,
            threshold=self.threshold,
            present=present,
            severity=self.severity(value),
            evidence=measurement.evidence,
            remedy=measurement.remedy if present else "",
            chart=measurement.chart,
        )
