"""Items as a source gives them, before they are checked, scaled and split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Mixture(NamedTuple):
    """A mixture of equally likely Gaussians, each with covariance ``sd**2 * I``."""

    centers: Array
    """``(K, D)``"""
    sd: float


class RawData(NamedTuple):
    """What a built-in set or a reader of files returns."""

    items: Array
    """``(N, D)``, ``(N, T, D)``, ``(N, H, W)`` or ``(N, H, W, C)``, of any type; not yet checked"""
    name: str
    source: str
    """Where the items come from, for people."""
    licence: str | None = None
    mixture: Mixture | None = None
    """The distribution that the items were drawn from, if it is known."""
    labels: Array | None = None
    """int64 ``(N,)``, indices into ``classes``."""
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """Names of a table's columns."""
    digests: Array | None = None
    """uint8 ``(N, 16)``, a hash of each item, if the source has it already."""
    groups: tuple[str, ...] = ()
    """Name of each item's group of near-duplicates: a group is held out as a whole."""
    problems: tuple[str, ...] = ()
    """What was skipped, and why; one line each."""
    autocovariance: Array | None = None
    """``(T, D)``, by lag, of sequences from a known stationary process."""
