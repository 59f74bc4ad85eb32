"""Settings of differentially private training."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from models.section import Section


class PrivacyConfig(Section):
    """Settings of differentially private training of a table; docs/privacy.md says what holds."""

    epsilon: float | None = Field(default=None, gt=0)
    """What the whole training may spend; the noise follows from it."""
    noise_multiplier: float | None = Field(default=None, gt=0)
    """Standard deviation of the noise, in units of `clip_norm`; given in place of `epsilon`."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Chance, at most, with which `epsilon` may not hold; below one over the training rows."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Length, at most, of each row's gradient of the critic's loss."""
    public: tuple[Literal["schema", "figures"], ...] = ()
    """What the user declares public, as no noise hides it: the schema that is learned from the
    rows, and the figures, findings and history, which are otherwise not in the artifact."""

    @field_validator("public", mode="before")
    @classmethod
    def _one_is_a_list(cls, public: Any) -> Any:
        return (public,) if isinstance(public, str) else public

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("set epsilon or noise_multiplier, one of the two")
        return self
