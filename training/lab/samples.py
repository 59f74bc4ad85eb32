"""Two sets of samples for a W1 estimate: read, checked, split, in a critic's units."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from models.device import device_of
from models.errors import ConfigError, DataError
from models.networks import size_problem
from models.tables import AnyColumn
from training.judging.metrics import wasserstein_1

Array = np.ndarray
Draw = Callable[[], tuple[Tensor, Tensor]]
"""Gives a batch of A and one of B, ``(batch, *shape)`` each, in the critic's units."""
MAX_PLUG_IN_SAMPLES = 2000
"""Samples a side, at most, of the discrete estimate."""
TAIL = 0.01
"""Share of the samples that counts as the tail."""
MIN_SAMPLES = 50
"""Fewest samples a side."""
MAX_ITEMS = 1_000_000
"""Items of a side, at most; of more, so many are drawn at random."""
MAX_VALUES = 2**25
"""Values of all items of a side, at most, likewise: 256 MB in float64."""
ROWS = 8192
"""Samples whose common offset is subtracted at once."""
MAX_SPREAD = 1e140
"""Of the values of a column. Such squares, summed over many columns, do not overflow; nor do those
of its inverse vanish."""
SPLIT = (0.7, 0.1, 0.2)
"""Shares of the samples to fit on, to validate on, and to hold out for the estimate."""


@dataclasses.dataclass
class Sets:
    """Two sets in one form."""

    a: Array
    """``(N, D)``, sequences ``(N, T, D)``, or images ``(N, H, W)`` or ``(N, H, W, C)``."""
    b: Array
    names: list[str]
    """Of a table's values, in their order; empty for other items."""
    units: str
    """What a distance between two items is, in words."""
    said: list[str]
    """A line for each thing that the user should know."""
    cautions: list[str] = dataclasses.field(default_factory=list)
    """Sentences on what is not compared."""
    tables: tuple[Array, Array] | None = None
    """The rows that a and b encode, as `training.judging.tables.rows.comparable` makes them; None
    of other items."""
    columns: list[AnyColumn] = dataclasses.field(default_factory=list)
    """Of the tables, in the order of their fields."""
    rows: tuple[Array | None, Array | None] = (None, None)
    """Numbers of the items in their sources, ascending; None: all of them."""


def most_items(width: int) -> int:
    """Items of a side, at most, of ``width`` values each; never too few for an estimate."""
    return max(MIN_SAMPLES, min(MAX_ITEMS, MAX_VALUES // max(1, width)))


def require_whole(name: str, value: object, least: int) -> None:
    """Check an option that is a whole number.

    Raises:
        ConfigError: it is none, or below the least.
    """
    if not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} {value}: must be a whole number, {least} or above")


def drawn(count: int, most: int, seed: int) -> Array | None:
    """Numbers of ``most`` items drawn at random of ``count``, ascending; None if there are fewer.

    They depend on nothing else, so they are the same however the items are read.
    """
    if count <= most:
        return None
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def require_samples(a: Array, b: Array) -> None:
    """Check that two sets can be compared.

    Raises:
        DataError: they are not enough finite numbers of one shape, or all the same.
    """
    for name, x in (("A", a), ("B", b)):
        if x.ndim not in (2, 3, 4) or x.dtype.kind not in "uif" or len(x) < MIN_SAMPLES:
            remedy = "; of a single column give x[:, None]" if x.ndim == 1 else ""
            raise DataError(
                f"{name}: needs at least {MIN_SAMPLES} rows of numbers, N x D or images, "
                f"not {x.dtype} {x.shape}{remedy}"
            )
        if not np.isfinite(x).all():
            raise DataError(f"{name}: holds NaN or infinite values")
    if a.shape[1:] != b.shape[1:]:
        raise DataError(f"A has items of shape {a.shape[1:]}, B of shape {b.shape[1:]}")
    if (a == a[0]).all() and (b == a[0]).all():
        raise DataError("A and B are one and the same point")
    low = np.minimum(a.min(axis=0), b.min(axis=0)).astype(float)
    high = np.maximum(a.max(axis=0), b.max(axis=0)).astype(float)
    with np.errstate(over="ignore"):
        spread = float((high - low).max())
    if not 1 / MAX_SPREAD < spread < MAX_SPREAD:
        raise DataError(
            f"A and B: the values differ by up to {spread:.3g}, whose square no number holds; "
            "bring them to other units"
        )


class Units:
    """The critic's units: samples are centred and divided by one number, and W1 with them."""

    def __init__(self, *known: tuple[Array, Array]) -> None:
        """Take the parts of A and B that the critic may depend on."""
        every = [x for pair in known for x in pair]
        self.item = every[0].shape[1:]
        # Whole numbers up to 2^64 are exact in longdouble on x86-64.
        self.center = every[0][0].astype(np.longdouble)
        rows = np.concatenate([self.rows(x) for x in every])
        self.offset = rows.mean(axis=0)
        self.scale = float(rows.std(axis=0).mean()) or 1.0
        """Length of the critic's unit in the samples' units."""

    def rows(self, samples: Array) -> Array:
        """Subtract one of the samples, which takes away a common offset exactly.

        Returns:
            float64 ``(N, D)``, in the samples' units.
        """
        found = np.empty((len(samples), math.prod(self.item)))
        for first in range(0, len(samples), ROWS):  # a long double takes 16 bytes
            part = samples[first : first + ROWS] - self.center
            found[first : first + ROWS] = part.reshape(len(part), -1)
        return found

    def to_critic(self, samples: Array) -> Tensor:
        """Bring samples to the critic's shape and units, in which distances are smaller by `scale`.

        Returns:
            float64, ``(N, D)`` or ``(N, C, H, W)``.
        """
        x = torch.from_numpy((self.rows(samples) - self.offset) / self.scale)
        if self._is_image:
            x = x.reshape(-1, *self.item)
            return x[:, None] if x.dim() == 3 else x.movedim(-1, 1).contiguous()
        return x

    def from_critic(self, x: Tensor) -> Tensor:
        """Bring ``(N, ...)`` of the critic's shape to the samples' own, ``(N, *item)``."""
        return (x.movedim(1, -1) if self._is_image else x).reshape(-1, *self.item)

    @property
    def _is_image(self) -> bool:
        sides = self.item[:2]
        return len(self.item) > 1 and size_problem(*sides) is None

    def gradient(self, critic: nn.Module, points: Array) -> Array:
        """Find a critic's gradient at points in the samples' own form, float32 of that form.

        Raises:
            DataError: the points have another shape.
        """
        if points.shape[1:] != self.item:
            raise DataError(f"points have shape {points.shape[1:]}, the samples {self.item}")
        parts = []
        exact = copy.deepcopy(critic).double()  # near the tip of a cone a little is much
        for part in torch.split(self.to_critic(points), 1024):
            x = part.to(device_of(critic), copy=True).requires_grad_()
            (gradient,) = torch.autograd.grad(exact(x).sum(), x)
            parts.append(self.from_critic(gradient.cpu()))
        # Scores and inputs are divided by one scale, so the gradient has no units.
        return torch.cat(parts).float().numpy()


def split(a: Array, b: Array, seed: int) -> list[tuple[Array, Array]]:
    """Divide A and B at random into the three parts of `SPLIT`."""
    source = torch.Generator().manual_seed(seed)
    pieces = []
    for x in (a, b):
        x = x[torch.randperm(len(x), generator=source).numpy()]  # noqa: PLW2901
        first, second = round(SPLIT[0] * len(x)), round(sum(SPLIT[:2]) * len(x))
        pieces.append((x[:first], x[first:second], x[second:]))
    return list(zip(*pieces, strict=True))


def sampler(a: Tensor, b: Tensor, batch: int, seed: int) -> Draw:
    """Draw batches of A and of B at random, with replacement."""
    source = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        rows = [torch.randint(len(x), (batch,), generator=source).to(x.device) for x in (a, b)]
        return a[rows[0]], b[rows[1]]

    return draw


def plug_in_estimate(a: Array, b: Array, seed: int) -> tuple[float, float, int]:
    """Find the exact W1 between subsets of A and B, and its bias: the W1 of halves of one set.

    Returns:
        The distance, the bias, and the number of samples a side.
    """
    rng = np.random.default_rng(seed)
    sets = [x[rng.permutation(len(x))] for x in (a, b)]
    count = min(MAX_PLUG_IN_SAMPLES, *(len(x) // 2 for x in sets))
    plug_in = wasserstein_1(sets[0][:count], sets[1][:count])
    floors = [wasserstein_1(x[:count], x[count : 2 * count]) for x in sets]
    return plug_in, sum(floors) / 2, count


def _distances(x: Array) -> Array:
    return np.linalg.norm(x - np.median(x, axis=0), axis=1)


def tail_share(x: Array) -> float:
    """Share of all distances from the median that the farthest samples hold."""
    distances = np.sort(_distances(x))
    total = distances.sum()
    return float(distances[-math.ceil(TAIL * len(x)) :].sum() / total) if total > 0 else 0.0


def discrete(a: Array, b: Array, seed: int) -> float:
    """Find the exact W1 of two sets; in large ones, samples stand for all but the farthest."""
    if a.shape[1] == 1:
        return float(wasserstein_distance(a[:, 0], b[:, 0]))
    rng = np.random.default_rng(seed)
    points, weights = [], []
    for x in (a, b):
        farthest = np.argsort(-_distances(x))
        count = min(len(x), MAX_PLUG_IN_SAMPLES)
        tail, rest = farthest[: count // 2], rng.permutation(farthest[count // 2 :])
        chosen = rest[: count - len(tail)]
        points.append(x[np.concatenate([tail, chosen])])
        each = np.full(len(chosen), len(rest) / len(chosen))
        weights.append(np.concatenate([np.ones(len(tail)), each]) / len(x))
    return wasserstein_1(*points, *weights)


def rows_to_keep(samples: Array, times: int) -> Array:
    """Numbers of the rows that are left when each was copied ``times`` times, and copies go."""
    if times == 1:
        return np.arange(len(samples))
    _, first, counts = np.unique(samples, axis=0, return_index=True, return_counts=True)
    return np.repeat(first, counts // times)


def repeats(samples: Array) -> int:
    """Number of times that a set was written over, as far as its rows show; 1 if they do not.

    A set that was written several times over holds fewer independent samples than rows. Rows that
    coincide by chance, as categories and whole numbers do, occur unequally often, but by design
    they may not. So rows are called copies only if all occur a multiple of the same number of
    times, `MIN_SAMPLES` different ones are left, no fewer than that number, and they are not every
    combination of some values, each equally often. Copies of few different rows stay, for they
    cannot be told from such a design.

    Args:
        samples: ``(N, D)``.

    >>> repeats(np.repeat(np.arange(100)[:, None], 3, axis=0))
    3
    >>> design = np.stack(np.meshgrid(np.arange(10), np.arange(10)), axis=-1).reshape(-1, 2)
    >>> repeats(np.repeat(design, 3, axis=0))
    1
    """
    rows, counts = np.unique(samples, axis=0, return_counts=True)
    times = int(np.gcd.reduce(counts))
    if len(rows) < max(MIN_SAMPLES, times) or ((counts == times).all() and _is_crossed(rows)):
        return 1
    return times


def _is_crossed(rows: Array) -> bool:
    """True if different rows, sorted, are every beginning with every end, of several of each."""
    differs = (rows[1:] != rows[:-1]).argmax(axis=1)
    for place in np.unique(differs)[1:]:  # column that an end begins with
        begins = np.flatnonzero(differs < place) + 1
        if np.array_equal(begins, np.arange(begins[0], len(rows), begins[0])):
            ends = rows[:, place:]
            if np.array_equal(ends, np.tile(ends[: begins[0]], (len(begins) + 1, 1))):
                return True
    return False
