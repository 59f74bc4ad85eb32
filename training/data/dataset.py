"""A data set: loaded, checked, described, and split item by item into training and held-out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from models.config import DataConfig, Layout
from models.errors import DataError
from models.images import fit
from models.record import DataCard, Numbers
from models.remote import reached
from models.sampling import Scaling
from models.values import OWN
from training.data.builtin import BUILT_IN
from training.data.coding import code_table
from training.data.digests import digest_order, slices, split, uniform
from training.data.layout import (
    arranged,
    channel_scale,
    find_layout,
    in_units,
    range_notes,
    require_use,
)
from training.data.loading import read_source
from training.data.raw import Mixture, RawData
from training.data.sources.cache import item_digests, items_at
from training.data.sources.tables import as_numbers

Array = np.ndarray
FEWEST_HELDOUT = 20
KINDS: dict[int, Literal["vector", "sequence", "image"]] = {2: "vector", 3: "sequence", 4: "image"}
"""The kind of items, by the number of axes that `_canonical` leaves."""
MAX_ROUNDING = 1e-4
"""Rounding error of a feature, in its deviations, up to which float32 holds it well."""


@dataclass(frozen=True)
class Dataset:
    """Items in data units, which of them are held out, and what is known about them."""

    items: Array
    """uint8 ``(N, H, W, C)``, perhaps a memory map; or ``(N, H, W, C)``, ``(N, D)`` or
    ``(N, T, D)``, float32, or float64 where float32 does not hold every feature well; of a large
    table a `PackedCodes`"""
    is_heldout: Array
    """bool ``(N,)``"""
    labels: Array | None
    """int64 ``(N,)``, indices into ``card.classes``, or None"""
    card: DataCard
    mixture: Mixture | None
    autocovariance: Array | None = None
    """``(T, D)``, by lag, of sequences from a known stationary process, in data units"""
    problems: tuple[str, ...] = ()
    """One line for each item that was skipped, with the reason"""
    notes: tuple[str, ...] = ()
    """One line for each column of a table that the user should know something of"""
    digests: Array | None = None
    """uint8 ``(N, 16)``, a hash of each item"""
    table: Any = None
    """The rows as they were read, a `pyarrow.Table`, of which ``items`` are the codes; or None"""
    is_validation: Array | None = None
    """bool ``(N,)``, which items are neither held out nor trained on, if there are any"""

    @property
    def scaling(self) -> Scaling:
        """Between data units and those of the networks."""
        return self.card.scaling

    @property
    def is_training(self) -> Array:
        """Which items are trained on, bool ``(N,)``."""
        if self.is_validation is None:
            return ~self.is_heldout
        return ~(self.is_heldout | self.is_validation)

    @property
    def training(self) -> Array:
        """All items that are trained on, in memory."""
        return self.items_at(np.flatnonzero(self.is_training))

    @property
    def heldout(self) -> Array:
        """All items that are judged on and never trained on, in memory."""
        return self.items_at(np.flatnonzero(self.is_heldout))

    def to_validate(self) -> Dataset:
        """The same data with validation items in the place of the held-out ones, to judge on."""
        assert self.is_validation is not None, "see DataConfig.validation_fraction"
        return replace(self, is_heldout=self.is_validation, is_validation=self.is_heldout)

    def sample_indices(self, count: int, *, heldout: bool, seed: int = 0) -> Array:
        """Choose ``count`` training or held-out items at random; all, if there are no more.

        Returns:
            int64 ``(n,)``, indices into ``items``; ``n`` is at most ``count``.
        """
        indices = np.flatnonzero(self.is_heldout if heldout else self.is_training)
        if len(indices) > count:
            indices = np.random.default_rng(seed).choice(indices, count, replace=False)
        return indices

    def sample(self, count: int, *, heldout: bool) -> Array:
        """At most ``count`` training or held-out items, chosen at random, in memory."""
        return self.items_at(self.sample_indices(count, heldout=heldout))

    def items_at(self, indices: Array) -> Array:
        """Copy the items at ``indices`` into memory."""
        return items_at(self.items, indices)


def load_data(
    config: DataConfig,
    batch_size: int = 2,
    card: DataCard | None = None,
    *,
    to_train: bool = False,
) -> Dataset:
    """Load, check and split a data set.

    The hash of an item's decoded content alone decides if it is held out: a duplicate goes with
    its twin, and the answer stays the same as data is added. Where items come in groups of
    near-duplicates, the hash is of the group's name; of a table's row, of the columns that are
    learned. Only folders of images decide it themselves, if ``config.split`` says so.

    Args:
        config: what to load.
        batch_size: refuse data with fewer training items; 0: with fewer than 2.
        card: of the data that a model was trained on: items are then held and coded as those
            were, and so split as those were; None: as these items themselves need it.
        to_train: refuse what no model is trained on, such as samples, though there is a ``card``.

    Raises:
        DataError: the data cannot be used; one line says why and what to do.
        UnreachableError: a server does not answer, or is busy, and was so for some seconds.

    Example:
        >>> data = load_data(DataConfig(source="digits"))
        >>> data.items.shape, data.card.kind
        ((1797, 8, 8, 1), 'image')
    """
    return reached(config.source, lambda: _load(config, batch_size, card, to_train))


def _load(config: DataConfig, batch_size: int, card: DataCard | None, to_train: bool) -> Dataset:
    raw = read_source(config, card)
    schema, table, layout, values_range, notes = None, None, None, None, raw.notes
    if card is None:
        require_use(config, raw.is_array, raw.items.ndim)
    _require_usable(raw, config, card is None or to_train)
    if raw.table is not None and (card is None or card.table is not None):
        schema, items, digests, is_heldout, is_validation, found, table = code_table(
            raw, config, None if card is None else card.table
        )
        notes += found
    else:
        values = raw.items
        if raw.table is not None and card is not None:
            values = as_numbers(raw.table, card.columns or raw.columns, config.source)
        items, layout, values_range = _canonical(values, raw.is_array, config, card)
        items = _resized(items, config)
        digests = item_digests(items) if raw.digests is None else raw.digests
        numbers = _uniform(raw.groups, digests)
        is_heldout, is_validation = split(numbers, config, raw.is_heldout)
    is_training = ~(is_heldout | is_validation)
    if len(digests) > 1 and (digests == digests[0]).all():
        raise DataError(
            f"{config.source}: all {len(digests)} items are the same once they are read; bring "
            "items that differ"
        )
    class_counts = _class_counts(raw.labels, is_training, len(raw.classes))
    notes += tuple(
        f"class {name!r} has no items to train on, and cannot be asked for"
        for name, n in zip(raw.classes, class_counts, strict=True)
        if not n
    )
    training, validation, heldout = (int(s.sum()) for s in (is_training, is_validation, is_heldout))
    if training < 2 or heldout < FEWEST_HELDOUT:
        raise DataError(
            f"{config.source}: too few items: {len(items)}, of which {training} to train on and "
            f"{heldout} held out; at least 2 and {FEWEST_HELDOUT} are needed: bring more data, "
            f"or hold out more than data.heldout_fraction={config.heldout_fraction:g}"
        )
    if (card is None or to_train) and config.validation_fraction and validation < FEWEST_HELDOUT:
        raise DataError(
            f"{config.source}: {validation} items to validate, and at least {FEWEST_HELDOUT} are "
            "needed: bring more data, or raise "
            f"data.validation_fraction={config.validation_fraction:g}"
        )
    if training < batch_size:
        raise DataError(
            f"{config.source}: a batch of {batch_size} is more than the {training} items to train "
            f"on: lower training.batch_size to at most {training}, or bring more data"
        )
    kind = KINDS[items.ndim]
    features = items.shape[-1]
    if kind == "image" and items.dtype != np.uint8 and values_range is not None:
        offset, scale = channel_scale(items[is_training], values_range)
        notes += range_notes(items[is_training]) if values_range == OWN else ()
    elif kind != "image" and schema is None and config.source not in BUILT_IN:
        other_axes = tuple(range(items.ndim - 1))  # items and, of sequences, steps
        known = items[is_training]
        offset = known.mean(axis=other_axes, dtype=np.float64)
        scale = known.std(axis=other_axes, dtype=np.float64)
        # A constant feature has no scale of its own, but the rounding of its mean.
        scale[(scale == 0) | (np.ptp(known, axis=other_axes) == 0)] = 1
    else:  # uint8 have a range of their own; the built-in sets are scaled as published
        scaled = 0 if kind == "image" else features
        offset, scale = np.zeros(scaled), np.ones(scaled)
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
            class_counts=class_counts,
            columns=list(raw.columns) if schema is None else schema.names,
            table=schema,
            count=len(items),
            skipped=len(raw.problems),
            not_read=raw.not_read or {},
            training_count=training,
            validation_count=validation,
            heldout_count=heldout,
            heldout_fraction=config.heldout_fraction
            if raw.is_heldout is None
            else heldout / len(items),
            sha256=_content_hash(items, digests),
            layout=layout,
            range=values_range,
            offset=list(map(float, offset)),
            scale=list(map(float, scale)),
            dtype="float64" if items.dtype == np.float64 else "float32",
        ),
        raw.mixture,
        raw.autocovariance,
        raw.problems,
        notes,
        digests,
        table,
        is_validation if validation else None,
    )


def _require_usable(raw: RawData, config: DataConfig, to_train: bool) -> None:
    if not to_train:
        return
    if raw.is_ours:
        raise DataError(
            f"{config.source}: wgan wrote all of it, and a model's samples are no data; bring "
            "other data"
        )
    if config.split == "folders" and raw.is_heldout is None:
        raise DataError(
            f"{config.source}: has no folders train and test (or val) of images, as "
            "data.split=folders says; leave that out"
        )


def _canonical(
    items: Array, is_array: bool, config: DataConfig, card: DataCard | None
) -> tuple[Array, Layout | None, str | None]:
    """Bring an array to uint8 (N, H, W, C) or floats (N, [T,] D), or say why it cannot be.

    Returns:
        The items; the layout of an array file of images or sequences; and the range of its images.
    """
    source = config.source
    if items.dtype == object or items.dtype.kind not in "uif":
        raise DataError(f"{source}: holds {items.dtype}, not numbers; save one plain array")
    if items.ndim not in (2, 3, 4):
        raise DataError(
            f"{source}: has shape {items.shape}; bring images (N,H,W[,C]) or (N,C,H,W), vectors "
            "(N,D) or sequences (N,T,D); volumes are not trained on"
        )
    if items.size == 0:
        raise DataError(f"{source}: is empty (shape {items.shape}); bring data")
    layout = find_layout(items, config, card) if is_array and items.ndim > 2 else None
    if layout is not None:
        items = arranged(items, layout)
    elif items.ndim == 3 and items.dtype == np.uint8:
        items = items[..., None]
    if items.dtype != np.uint8 or items.ndim < 4:
        items = _numbers(items, source, None if card is None else card.dtype)
    values_range = None
    if items.ndim == 4:
        items, values_range = in_units(items, config, card)
    elif config.range is not None:
        raise DataError(f"{source}: data.range is for images; leave it out (null)")
    # A memory map stays one, which a copy would not.
    items = items if items.flags.c_contiguous else np.ascontiguousarray(items)
    return items, layout, values_range


def _numbers(items: Array, source: str, dtype: Numbers | None) -> Array:
    """Bring finite numbers to float32, or to float64 where float32 loses what varies in them."""
    with np.errstate(over="ignore"):
        # Adding zero makes -0.0 into 0.0: equal items must have equal hashes.
        rounded = np.ascontiguousarray(items, np.float32) + np.float32(0)
    bad = ~np.isfinite(rounded).all(axis=tuple(range(1, items.ndim)))
    if bad.any():
        raise DataError(
            f"{source}: {bad.sum()} of {len(items)} items hold NaN, infinite or too large "
            f"values (the first is item {bad.argmax()}); remove or repair them"
        )
    if dtype == "float32" or (dtype is None and _holds(rounded, items)):
        return rounded
    return np.ascontiguousarray(items, np.float64) + 0


def _holds(rounded: Array, items: Array) -> bool:
    """True if float32 ``(N, [T,] D)`` keeps what varies in each feature of the items.

    Neither a mean nor a median of the rounding errors may be large against that of the deviations.
    The median sees that times lie close together though a missing one is written as 0; the mean
    sees what varies where more than half of the values are the same.
    """
    if np.can_cast(items.dtype, np.float32):
        return True
    features = items.shape[-1]
    exact = items.astype(np.float64).reshape(-1, features)
    errors = np.abs(rounded.reshape(-1, features) - exact)
    rows = exact - exact[0]
    for middle in (np.mean, np.median):
        spreads = middle(np.abs(rows - middle(rows, axis=0)), axis=0)
        coarse = middle(errors, axis=0) > MAX_ROUNDING * spreads
        if (coarse & (spreads > 0)).any():  # a constant feature has nothing to keep
            return False
    return True


def _resized(items: Array, config: DataConfig) -> Array:
    """Bring arrays of images to the size asked for; image files are resized as they are read."""
    size = config.size
    if size is None or items.shape[1:3] == (size, size):
        return items
    if items.ndim != 4:
        raise DataError(
            f"{config.source}: data.size is for images; say null, or take a preset without it"
        )
    return np.stack([fit(image, size, size) for image in items])


def _uniform(groups: tuple[str, ...], digests: Array) -> Array:
    """A number in [0, 1) for each item, uniform, from the hash of its group or else its content."""
    if groups:
        hashes = [hashlib.blake2b(g.encode(), digest_size=digests.shape[1]) for g in groups]
        digests = np.array([np.frombuffer(h.digest(), np.uint8) for h in hashes])
    return uniform(digests)


def _class_counts(labels: Array | None, is_training: Array, classes: int) -> list[int]:
    """Training items of each class; empty without labels."""
    if labels is None:
        return []
    return list(map(int, np.bincount(labels[is_training], minlength=classes)))


def _content_hash(items: Array, digests: Array) -> str:
    """SHA-256 in hex of all items, whatever their order."""
    content = hashlib.sha256(f"{items.dtype.str}{items.shape[1:]}".encode())
    order = digest_order(digests)
    for at in slices(len(order)):
        content.update(digests[order[at]])
    return content.hexdigest()
