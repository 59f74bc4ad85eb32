"""Items as a source gives them, before they are checked, scaled and split."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from models.tables.reading.dialect import Sign

Array = np.ndarray


class Mixture(NamedTuple):
    """A mixture of equally likely Gaussians, each with covariance ``sd**2 * I``."""

    centers: Array
    """``(K, D)``"""
    sd: float


class RawData(NamedTuple):
    """The result of a built-in set, or of a reader of files."""

    items: Array
    """``(N, D)``, ``(N, T, D)``, ``(N, H, W)`` or ``(N, H, W, C)``, of any type; not yet checked"""
    name: str
    source: str
    """A path, URL or description of where the items come from."""
    licence: str | None = None
    mixture: Mixture | None = None
    """The distribution that the items were drawn from, if it is known."""
    labels: Array | None = None
    """int64 ``(N,)``, indices into ``classes``."""
    classes: tuple[str, ...] = ()
    table: Any = None
    """A `pyarrow.Table`; ``items`` then have no values."""
    columns: tuple[str, ...] = ()
    """Names of a table's columns."""
    decimal: Sign = "."
    """The decimal sign of a CSV file."""
    digests: Array | None = None
    """uint8 ``(N, 16)``, a hash of each item, if the source has it already."""
    is_heldout: Array | None = None
    """bool ``(N,)``, if the source says which items to hold out."""
    groups: tuple[str, ...] = ()
    """Name of each item's group of near-duplicates: a group is held out as a whole."""
    problems: tuple[str, ...] = ()
    """One line for each item that was skipped, with the reason."""
    not_read: dict[str, int] | None = None
    """How many files were not looked at, by suffix or by what they are."""
    is_ours: bool = False
    """True if this product wrote all items, which are then no data to train on."""
    notes: tuple[str, ...] = ()
    """One line for each thing that the user should know of the data."""
    is_array: bool = False
    """The items are an array file's, whose axes and values are still to be understood."""
    autocovariance: Array | None = None
    """``(T, D)``, by lag, of sequences from a known stationary process."""
