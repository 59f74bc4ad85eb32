"""The base of the configuration's parts."""

from __future__ import annotations

from pydantic import BaseModel


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A part of the configuration. JSON has no infinity, so a record could not hold it."""
