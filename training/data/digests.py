"""Hashes of a table's values, and of its rows, in whatever order their columns come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

from models.config import DataConfig
from models.tables.column import is_number

Array = np.ndarray
AT_ONCE = 2**18
"""Rows that are hashed at once, so that what it takes does not grow with the table."""


class RowDigests:
    """A hash of each row: the sum over columns of the mixed hash of the name and the value."""

    def __init__(self, count: int) -> None:
        """Begin without columns.

        Args:
            count: number of rows.
        """
        self._words = np.zeros((count, 2), np.uint64)

    def add(self, name: str, hashes: Array) -> None:
        """Take in a column by its name and the hashes of its values, uint64 ``(N,)``."""
        salts = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), np.uint64)
        for at in slices(len(hashes)):
            self._words[at] += _mixed(hashes[at, None] ^ salts)

    def bytes(self) -> Array:
        """The hashes, uint8 ``(N, 16)``."""
        words = np.empty(self._words.shape, ">u8")
        for at in slices(len(words)):
            words[at] = _mixed(self._words[at])
        return words.view(np.uint8)


def row_digests(columns: Iterable[tuple[str, pa.Array]], count: int) -> Array:
    """Hash ``count`` rows of columns, each given by its name and values: uint8 ``(count, 16)``."""
    rows = RowDigests(count)
    for name, values in columns:
        rows.add(name, hash_values(values))
    return rows.bytes()


def hash_values(values: pa.Array) -> Array:
    """Hash values: uint64 ``(N,)``; equal numbers have equal hashes, whatever their type."""
    hashes = np.empty(len(values), np.uint64)
    for at in slices(len(values)):
        hashes[at] = _hashes(values[at])
    return hashes


def slices(count: int) -> Iterator[slice]:
    """Yield slices of `AT_ONCE` rows that make up ``count``."""
    for first in range(0, count, AT_ONCE):
        yield slice(first, min(first + AT_ONCE, count))


def _hashes(values: pa.Array) -> Array:
    kind = values.type
    if is_number(kind):
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        # Adding zero makes -0.0 into 0.0; one NaN stands for all.
        return pd.util.hash_array(np.where(np.isnan(numbers), np.nan, numbers + 0.0))
    if pa.types.is_timestamp(kind):
        ticks = values.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64())
        return pd.util.hash_array(ticks.fill_null(-1).to_numpy(zero_copy_only=False))
    texts = values.cast(pa.string()).fill_null("\0")
    coded = texts.dictionary_encode()  # so that each different text is hashed once
    different = coded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    hashes = pd.util.hash_array(different, categorize=False)
    return np.asarray(hashes[coded.indices.to_numpy(zero_copy_only=False)])


def uniform(digests: Array) -> Array:
    """A number in [0, 1) for each item, uniform, from its hash, uint8 ``(N, 16)``."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.float64) / 2.0**64


def split(
    numbers: Array, config: DataConfig, is_heldout: Array | None = None
) -> tuple[Array, Array]:
    """Choose the items that are not trained on: those held out, and a share of the others.

    Args:
        numbers: of each item, uniform in [0, 1), from its hash.
        config: says both shares.
        is_heldout: bool ``(N,)``, if the source itself says what is held out.

    Returns:
        What is held out, and what validates; bool ``(N,)`` each, and no item is both.
    """
    first = config.heldout_fraction if is_heldout is None else 0.0
    if is_heldout is None:
        is_heldout = numbers < first
    last = first + (1 - first) * config.validation_fraction
    return is_heldout, ~is_heldout & (numbers < last)


def digest_order(digests: Array) -> Array:
    """Indices, int64 ``(N,)``, that put hashes, uint8 ``(N, 16)``, in ascending order."""
    words = digests.view(">u8")
    return np.lexsort((words[:, 1], words[:, 0]))


def _mixed(words: Array) -> Array:
    """Mix 64 bits so that each depends on all: the finaliser of SplitMix64 (Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
