"""A Wasserstein-1 distance as Python code gets it; `wgan` measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Distance:
    """A Wasserstein-1 distance, measured with a critic; in the samples' own units."""

    value: float
    """The estimate."""
    lower: float
    """The distance is at least this, at the ``confidence`` of the report: 95% by default."""
    verdict: str
    """A sentence that says whether the sets are the same, and what differs most."""
    report: dict[str, Any]
    """Everything measured, as docs/w1.md describes it."""
    gradient: Callable[[np.ndarray], np.ndarray]
    """The critic's gradient at points like the samples: the direction towards ``a``."""


class DistributionsDiffer(AssertionError):
    """What `wgan.assert_same_distribution` raises; it says what differs, and by how much."""

    __module__ = "wgan"  # as it is imported from, and shown where a test fails

    def __init__(self, message: str, distance: Distance | None = None) -> None:
        """Take what is said, and what was measured."""
        super().__init__(message)
        self.distance = distance
