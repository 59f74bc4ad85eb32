"""Whether what is scored lately still looks like the real held-out data.

Scores are compared, never items: W1 between those of recent traffic and those of real held-out
items. For a critic whose Lipschitz constant is certified to be at most K, that distance divided by
K bounds from below the W1 between the items themselves (Kantorovich and Rubinstein 1958). Only
scores are kept, in a file that the workers share.
"""

from __future__ import annotations

import fcntl
import functools
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.errors import ConfigError
from service.state import Served, setting

Array = np.ndarray
LEVEL = 0.99
"""Share of windows of real data that stay below the threshold."""
REPEATS = 400
"""Pairs of real windows that the threshold is found from."""
SMALLEST = 50
"""Scores in a window: with fewer, only gross changes would show."""
COUNT = np.dtype(np.int64).itemsize
"""Bytes at the head of the file: how many scores there were so far."""


class Report(NamedTuple):
    """What the window of one model says."""

    items: int
    """Scores in the window so far; the rest is None until it is full."""
    distance: float | None
    """W1 between the window's scores and those of real held-out items, in score units."""
    threshold: float
    """That distance for real data stays below this in `LEVEL` of windows."""
    lower_bound: float | None
    """Of W1 between the items themselves, in units of the critic's input; None without a
    certified constant, or with classes, whose shares move the scores too."""


class Windows:
    """The last scores of each model being served."""

    def __init__(self, size: int) -> None:
        self.size = size
        """Scores in a window; 0: drift is off."""
        # In the folder of the workers' metrics, which begins empty with each server.
        self.folder = Path(
            os.environ.get("PROMETHEUS_MULTIPROC_DIR") or tempfile.mkdtemp(prefix="wgan-drift-")
        )

    @classmethod
    def configured(cls) -> Windows:
        """As `WGAN_DRIFT_WINDOW` says.

        Raises:
            ConfigError: it is no number of use.
        """
        size = int(setting("WGAN_DRIFT_WINDOW", 0))
        if 0 < size < SMALLEST:
            raise ConfigError(f"WGAN_DRIFT_WINDOW={size}: write 0, or at least {SMALLEST} items")
        return cls(size)

    def add(self, served: Served, scores: Array) -> None:
        """Take in scores ``(N,)``; the oldest leave."""
        if not self.size:
            return
        with self._file(served).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = file.read()
            count = int(np.frombuffer(content[:COUNT], np.int64)[0])
            ring = np.frombuffer(content, np.float32, offset=COUNT).copy()
            kept = scores[-self.size :]
            places = (count + len(scores) - len(kept) + np.arange(len(kept))) % self.size
            ring[places] = kept
            file.seek(0)
            file.write(np.int64(count + len(scores)).tobytes() + ring.tobytes())

    def report(self, served: Served) -> Report:
        """Compare a model's window with its reference."""
        with self._file(served).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            content = file.read()
        count = min(int(np.frombuffer(content[:COUNT], np.int64)[0]), self.size)
        model = served.model
        limit = threshold(_Key(model.quantiles), self.size, _reference_count(served))
        if count < self.size:
            return Report(count, None, limit, None)
        window = np.frombuffer(content, np.float32, offset=COUNT).astype(np.float64)
        distance = wasserstein(window, model.quantiles)
        certified = None if model.classes else model.run.lipschitz.certified
        return Report(count, distance, limit, distance / certified if certified else None)

    def _file(self, served: Served) -> Path:
        """Of a model: another's scores have another unit."""
        path = self.folder / f"drift-{served.role}-{served.model.digest}"
        if not path.exists():
            # Made aside and linked, so that no other worker finds half of it.
            with tempfile.NamedTemporaryFile(dir=self.folder) as new:
                new.write(np.zeros(1, np.int64).tobytes())
                new.write(np.zeros(self.size, np.float32).tobytes())
                new.flush()
                try:
                    os.link(new.name, path)
                except FileExistsError:
                    return path
            for old in self.folder.glob(f"drift-{served.role}-*"):
                if old != path:
                    old.unlink(missing_ok=True)
        return path


def wasserstein(a: Array, b: Array) -> float:
    """W1 between two samples of numbers ``(N,)`` and ``(M,)``: the area between their CDFs."""
    a, b = np.sort(a), np.sort(b)
    points = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(x, points[:-1], side="right") / len(x) for x in (a, b)]
    return float(np.sum(np.abs(shares[0] - shares[1]) * np.diff(points)))


class _Key:
    """An array that a cache can look up."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self._bytes = array.tobytes()

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._bytes == other._bytes


@functools.lru_cache(maxsize=4)
def threshold(quantiles: _Key, window: int, reference: int) -> float:
    """The distance that real data stays below in `LEVEL` of windows.

    Both sides are drawn anew from the distribution of real scores, as often as traffic and
    reference were: the reference is a sample as well, and its own noise counts.

    Args:
        quantiles: of the scores of real items, evenly spaced.
        window: scores of traffic.
        reference: scores of real items that the quantiles are of.
    """
    random = np.random.default_rng(0)
    levels = np.linspace(0, 1, len(quantiles.array))

    def draw(count: int) -> Array:
        return np.interp(random.random(count), levels, quantiles.array)

    distances = [
        # As the report sees a reference: by its quantiles.
        wasserstein(draw(window), np.quantile(draw(reference), levels))
        for _ in range(REPEATS)
    ]
    return float(np.quantile(distances, LEVEL))


def _reference_count(served: Served) -> int:
    from models.artifact import MAX_SCORED_ITEMS  # torch, for the worker alone

    return min(served.model.run.data.heldout_count, MAX_SCORED_ITEMS)
