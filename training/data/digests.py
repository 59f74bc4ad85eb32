"""Hashes of a table's rows, made of those of its columns, in whatever order these come."""

from __future__ import annotations

import hashlib

import numpy as np

Array = np.ndarray


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
        for i, salt in enumerate(salts):
            self._words[:, i] += _mixed(hashes ^ salt)

    def bytes(self) -> Array:
        """The hashes, uint8 ``(N, 16)``."""
        words = np.stack([_mixed(word) for word in self._words.T], axis=1)
        return words.astype(">u8").view(np.uint8)


def uniform(digests: Array) -> Array:
    """A number in [0, 1) for each item, uniform, from its hash, uint8 ``(N, 16)``."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.float64) / 2.0**64


def _mixed(words: Array) -> Array:
    """Mix 64 bits so that each depends on all: the finaliser of SplitMix64 (Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
