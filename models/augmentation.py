"""Settings of augmentation: random changes of the images that the critic sees, real and fake."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from models.section import Section

Operation = Literal["colour", "translation", "cutout"]


class AugmentationConfig(Section):
    """What is done to each image before the critic sees it, and how often; docs/augmentation.md."""

    operations: tuple[Operation, ...] = Field(
        default=("colour", "translation", "cutout"), min_length=1
    )
    """In this order. colour: brightness, saturation and contrast, each for itself."""
    strength: float | None = Field(default=None, ge=0, le=1)
    """Chance with which each operation changes an image; 1 is DiffAugment (Zhao et al. 2020)."""
    target: float | None = Field(default=None, gt=0, lt=1)
    """In place of a strength: the critic's overfitting, r_v of Karras et al. 2020 (eq. 1), that a
    changing strength is to keep, from 0 on. It needs ``data.validation_fraction``."""
    ramp: int = Field(default=500_000, ge=1)
    """Real images that the critic sees while such a strength goes from 0 to 1 at the fastest."""

    @field_validator("operations", mode="before")
    @classmethod
    def _are_listed(cls, operations: Any) -> Any:
        return operations.split(",") if isinstance(operations, str) else operations

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.strength is None) == (self.target is None):
            raise ValueError("set strength or target, one of the two, and null for the other")
        return self


def follows_overfitting(settings: AugmentationConfig | None) -> bool:
    """True if there is augmentation, and its strength changes while training."""
    return settings is not None and settings.target is not None
