"""The base of the configuration's parts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, field_validator

END = 2**63
"""Whole numbers are smaller: nothing counts further, and far above it they are no floats."""


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A part of the configuration. JSON has no infinity, so a record could not hold it."""

    @field_validator("*")
    @classmethod
    def _can_be_counted(cls, value: Any) -> Any:
        if isinstance(value, int) and not -END < value < END:
            raise ValueError("a whole number here is less than 2**63")
        return value
