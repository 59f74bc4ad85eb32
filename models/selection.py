"""Settings by which the step is chosen whose networks are judged and served."""

from __future__ import annotations

from pydantic import Field

from models.section import Section

VALIDATION_SHARE = 0.1
"""Share of the training items that a run within a budget leaves out, unless another is set."""


class SelectionConfig(Section):
    """How often samples are measured against validation items; docs/budget.md."""

    every: int = Field(default=0, ge=0)
    """Generator steps between measurements; 0: a twentieth of all, which a run's own configuration
    then says."""
    patience: int | None = Field(default=None, ge=1)
    """Measurements in a row without a better one after which training ends; None: all steps."""
    samples: int = Field(default=1000, ge=20)
    """Samples, and validation items, at most, in a measurement."""
