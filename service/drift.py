"""Drift: the distance of recently scored items from the real held-out data.

The scores are compared, not the items: by W1 between recent scores and those of real held-out
items. If the critic's Lipschitz constant is certified to be at most K, that distance divided by K
is a lower bound of W1 between the items themselves (Kantorovich and Rubinstein 1958). Only scores
are kept, in a file that the workers share.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from service.ring import COUNT_BYTES, put
from service.served import Served

Array = np.ndarray
LEVEL = 0.99
"""Share of windows of real data that stay below the threshold."""
REPEATS = 400
"""Pairs of real windows from which the threshold is estimated."""
log = logging.getLogger("wgan.service")


class Report(NamedTuple):
    """Drift of one model's scores."""

    items: int
    """Scores in the window so far; the rest is None until it is full."""
    distance: float | None
    """W1 between the window's scores and those of real held-out items, in score units."""
    threshold: float
    """The distance that windows of real data stay below in `LEVEL` of cases."""
    lower_bound: float | None
    """Lower bound of W1 between the items themselves, in units of the critic's input; None without
    a certified constant, or with classes: their shares move the scores too."""


class Windows:
    """The last scores of each model that is being served.

    Args:
        size: scores in a window; 0: drift is off.
        folder: where the workers share the windows; it begins empty with each server. None: a
            temporary one, for this process alone.
    """

    def __init__(self, size: int, folder: Path | None = None) -> None:
        self.size = size
        self._folder = folder
        self._works = True

    @functools.cached_property
    def folder(self) -> Path:
        """The folder with the windows."""
        return self._folder or Path(tempfile.mkdtemp(prefix="wgan-drift-"))

    def add(self, served: Served, scores: Array) -> None:
        """Add scores ``(N,)`` to a model's window; the oldest ones leave it.

        A window that cannot be written spoils no request: the log says so once.
        """
        if not self.size:
            return
        try:
            self._add(served, scores)
        except OSError as error:
            self._tell(error)
        else:
            self._works = True

    def _tell(self, error: OSError) -> None:
        if self._works:
            log.error("drift is not measured: %s", error)
        self._works = False

    def _add(self, served: Served, scores: Array) -> None:
        with self._file(served).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = self._content(file)
            count = int(np.frombuffer(content[:COUNT_BYTES], np.int64)[0])
            put(file, count, self.size, scores.astype(np.float32))

    def report(self, served: Served) -> Report | None:
        """Compare a model's window with the scores of real held-out items.

        None: the window cannot be read; the log says why.
        """
        try:
            with self._file(served).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                content = self._content(file)
        except OSError as error:
            self._tell(error)
            return None
        count = min(int(np.frombuffer(content[:COUNT_BYTES], np.int64)[0]), self.size)
        model = served.model
        limit = threshold(tuple(model.quantiles), self.size, _reference_count(served))
        if count < self.size:
            return Report(count, None, limit, None)
        window = np.frombuffer(content, np.float32, offset=COUNT_BYTES).astype(np.float64)
        distance = wasserstein(window, model.quantiles)
        certified = None if model.classes else model.run.lipschitz.certified
        return Report(count, distance, limit, distance / certified if certified else None)

    def _content(self, file: IO[bytes]) -> bytes:
        content = file.read()
        if len(content) != COUNT_BYTES + self.size * np.dtype(np.float32).itemsize:
            raise OSError(f"{file.name} is damaged")
        return content

    def _file(self, served: Served) -> Path:
        """Return a model's file: its own, because scores of two critics differ in unit."""
        model = hashlib.sha256(served.name.encode()).hexdigest()[:16]  # a name may be no file's
        path = self.folder / f"drift-{model}-{served.role}-{served.model.digest}"
        if not path.exists():
            # Written aside and then linked: no other worker must find half of it.
            with tempfile.NamedTemporaryFile(dir=self.folder) as new:
                new.write(np.zeros(1, np.int64).tobytes())
                new.write(np.zeros(self.size, np.float32).tobytes())
                new.flush()
                try:
                    os.link(new.name, path)
                except FileExistsError:
                    return path
            for old in self.folder.glob(f"drift-{model}-{served.role}-*"):
                if old != path:
                    old.unlink(missing_ok=True)
        return path


def wasserstein(a: Array, b: Array) -> float:
    """Compute W1 between numbers ``(N,)`` and ``(M,)``: the area between their CDFs."""
    a, b = np.sort(a), np.sort(b)
    points = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(x, points[:-1], side="right") / len(x) for x in (a, b)]
    return float(np.sum(np.abs(shares[0] - shares[1]) * np.diff(points)))


@functools.lru_cache(maxsize=128)
def threshold(quantiles: tuple[float, ...], window: int, reference: int) -> float:
    """Compute the distance that real data stays below in `LEVEL` of windows.

    Pairs of windows are drawn from the distribution of real scores, with as many scores as traffic
    and reference have: the reference is a sample too, and its noise counts.

    Args:
        quantiles: evenly spaced quantiles of the scores of real items.
        window: number of scores of traffic.
        reference: number of scores that the quantiles summarize.
    """
    random = np.random.default_rng(0)
    values, levels = np.array(quantiles), np.linspace(0, 1, len(quantiles))

    def draw(count: int) -> Array:
        return np.interp(random.random(count), levels, values)

    distances = [
        # The report, too, knows the reference by its quantiles.
        wasserstein(draw(window), np.quantile(draw(reference), levels))
        for _ in range(REPEATS)
    ]
    return float(np.quantile(distances, LEVEL))


def _reference_count(served: Served) -> int:
    from models.artifact import MAX_SCORED_ITEMS  # torch, for the worker alone

    return min(served.model.run.data.heldout_count, MAX_SCORED_ITEMS)
