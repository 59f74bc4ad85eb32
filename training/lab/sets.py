"""The two sets of samples that are compared: files, data in memory, or a model's own samples."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models.artifact import SUMS
from models.config import DataConfig
from models.errors import DataError
from models.images import fit
from models.model import Model
from models.model_names import locate
from models.record import DataCard
from models.run_folder import artifact_of
from models.tables.files import read_npz
from models.tables.frames import to_table
from models.trained import load_served
from training.data.builtin import BUILT_IN
from training.data.layout import arranged, find_layout, find_range, in_units, require_use
from training.data.loading import READERS, read_source
from training.data.sources import large
from training.data.sources.cache import AT_ONCE, items_at
from training.data.sources.tables import as_numbers
from training.lab.differences import kind_of
from training.lab.samples import Sets, drawn, most_items
from training.lab.tables import OWN_UNITS, coded

Array = np.ndarray
LEVELS = "0..255"
"""The range of uint8."""
MAX_GENERATED = 10_000
"""Samples, at most, that a model makes unless it is told how many."""


@dataclasses.dataclass
class Side:
    """One of the two sets."""

    source: str
    """As the user wrote it; of data in memory, A or B."""
    said: str
    """What it is, in words."""
    items: Any
    """An array ``(N, ...)``, or a `pyarrow.Table`."""
    model: Model | None = None
    """That made the items; None for data."""
    rows: Array | None = None
    """Numbers of the items in their source, ascending; None: these are all."""
    is_array: bool = False
    """The items were read as an array, by what their shape tells and the user says."""
    range: str | None = None
    """Of images: the values of black and white, as ``data.range`` names them."""


def load_sets(a: Any, b: Any, config: DataConfig, count: int | None = None, seed: int = 0) -> Sets:
    """Read two sets, and bring them to one form.

    Args:
        a: data as `training.data.loading.read_source` takes them; or a model, by the folder of its
            run or artifact or by a registry name. A built-in set, a file or a folder comes before a
            registry name without a version. Or what is in memory: a `Model`, an array, a DataFrame
            or a `pyarrow.Table`.
        b: likewise.
        config: says how data are read; where one side is a model, its own configuration does so in
            the places that this one leaves out, and images are brought to its units. Two arrays in
            memory stay as they are if nothing is said of their axes, values and size.
        count: samples that a model makes; None: as many as the other side has, at most
            `MAX_GENERATED`.
        seed: of the samples of a model on side A; on side B it is one more. Also of the items that
            are drawn of too many for memory.

    Raises:
        DataError: one of them cannot be read, or the two do not fit each other.
        UserError: there is no such model.
    """
    sources, names = (a, b), [x if isinstance(x, str) else side for x, side in ((a, "A"), (b, "B"))]
    models = [_model(source) for source in sources]
    guide = models[0] or models[1]
    said_of_arrays = (config.layout, config.range, config.size) != (None, None, None)
    as_given = not (guide or said_of_arrays or isinstance(a, str) or isinstance(b, str))
    data = [
        None if model else _data(source, name, config, guide, seed, as_given=as_given)
        for source, name, model in zip(sources, names, models, strict=True)
    ]
    axes = [side.items.ndim for side in data if side and side.is_array]
    require_use(config, bool(axes), max(axes, default=0))
    others = [len(side.items) for side in data if side]
    count = count or min([*others, MAX_GENERATED])
    sides = [
        side or _generated(name, model, count, seed + number)
        for number, (name, side, model) in enumerate(zip(names, data, models, strict=True))
    ]
    said = [f"{name}: {side.said}" for name, side in zip("AB", sides, strict=True)]
    if all(isinstance(side.items, pa.Table) for side in sides):
        schema = guide.table if guide else None
        found = coded([side.items for side in sides], names, schema, config.columns, seed)
    else:
        found = _alike(sides, as_given)
    rows = [
        side.rows if some is None else some if side.rows is None else side.rows[some]
        for side, some in zip(sides, found.rows, strict=True)
    ]
    return dataclasses.replace(found, said=[*said, *found.said], rows=(rows[0], rows[1]))


def _model(source: Any) -> Model | None:
    if isinstance(source, str):
        return load_served(source) if is_model(source) else None
    return source if isinstance(source, Model) else None


def is_model(source: str) -> bool:
    """True if a source names a model: a run, an artifact or a registry name."""
    if os.path.exists(source):
        return os.path.isfile(artifact_of(Path(source)) / SUMS)
    if "://" in source or source in BUILT_IN or source.lower().endswith((*READERS, ".gz")):
        return False
    return "@" in source or isinstance(locate(source), str)


def _data(
    source: Any, name: str, config: DataConfig, guide: Model | None, seed: int, as_given: bool
) -> Side:
    """Read data, as those of a model were read where there is one, and draw some of too many."""
    problems, notes, is_array = tuple[str, ...](), tuple[str, ...](), not as_given
    card = None if guide is None else guide.run.data
    if guide is not None:
        config = config.over(guide.run.config.data.of(name))
    config = config.model_copy(update={"source": name})
    items: Any
    if not isinstance(source, str):
        items = _in_memory(source, name)
    elif (items := _columns(source) if config.key is None else None) is None:
        raw = read_source(config, card)
        items = raw.items if raw.table is None else raw.table
        problems, notes, is_array = raw.problems, raw.notes, raw.is_array
    is_table = not isinstance(items, np.ndarray)
    is_array = is_array and not is_table
    if not is_array:
        config = config.model_copy(update={"layout": None, "range": None})
    if not (is_table or as_given):
        items = _with_axes(items, is_array, config, card)
    width = len(items.column_names) if is_table else math.prod(items.shape[1:])
    rows = drawn(len(items), most_items(width), seed)
    said = f"{len(items)} {'rows' if is_table else 'items'} of {name}"
    if not isinstance(source, str):
        said = said.removesuffix(f"of {name}") + "in memory"
    if rows is not None:
        said = f"{len(rows)} {'rows' if is_table else 'items'}, drawn at random, of {said}"
    if is_table and not (rows is None and isinstance(items, pa.Table)):
        items = items.take(pa.array(np.arange(len(items)) if rows is None else rows))
    elif rows is not None:
        # In parts: what was read of a file's map stays in memory until it is released.
        parts = np.array_split(rows, -(-len(rows) // AT_ONCE))
        items = np.concatenate([items_at(items, part) for part in parts])
    values_range = None
    if not (is_table or as_given) and items.ndim == 4:
        items, values_range = _in_range(items, config, card)
        if config.size is not None and items.shape[1:3] != (config.size, config.size):
            items = np.stack([fit(image, config.size, config.size) for image in items])
            said += f", resized to {config.size}x{config.size} pixels"
    if problems:
        said += f"; {len(problems)} files could not be read, such as {problems[0]}"
    said = "; ".join([said, *notes])
    return Side(name, said, items, None, rows, is_array, values_range)


def _with_axes(items: Array, is_array: bool, config: DataConfig, card: DataCard | None) -> Array:
    """Bring images to ``(N, H, W, C)`` and sequences to ``(N, T, D)``, as training does."""
    if is_array and items.ndim in (3, 4) and items.dtype.kind in "uif":
        return arranged(items, find_layout(items, config, card))
    return items if is_array else _with_channels(items)


def _in_range(images: Array, config: DataConfig, card: DataCard | None) -> tuple[Array, str | None]:
    """Bring images to the units that training would bring them to, and tell their range.

    Raises:
        DataError: they hold no finite numbers, or no numbers of the range that is meant.
    """
    if not images.size or images.dtype.kind not in "uif":  # `require_samples` says so
        return images, None
    if not np.isfinite(images).all():
        raise DataError(f"{config.source}: holds NaN or infinite values")
    images, found = in_units(images, config, card)
    return images, LEVELS if images.dtype == np.uint8 else found


def _in_memory(source: Any, name: str) -> Array | pa.Table:
    """Take an array, or rows with named columns, and say what else it is.

    Raises:
        DataError: it is neither.
    """
    if hasattr(source, "columns"):
        table = to_table(source)
        for column, times in Counter(table.column_names).items():
            if times > 1:
                raise DataError(f"{name}: there are {times} columns {column!r}; rename them")
        return table
    if isinstance(source, np.ma.MaskedArray):
        raise DataError(f"{name}: is a masked array; fill what is masked, or leave it out")
    try:
        return np.atleast_1d(np.asarray(source))
    except (ValueError, TypeError, RuntimeError) as error:  # as torch says that it needs gradients
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name}: cannot be made an array of numbers: {reason}") from None


def read_points(source: str, config: DataConfig, sets: Sets) -> Array:
    """Read an array of points in the form of two sets; grey images may lack the axis of channels.

    Raises:
        DataError: it cannot be read, or has another form.
    """
    config = config.model_copy(update={"source": source})
    raw = read_source(config)
    points, item = raw.items, sets.a.shape[1:]
    forms = (item, *[item[:-1]] * (item[-1] == 1))
    layout = config.layout
    if layout is None and points.ndim == 4 and points.shape[1:] not in forms:
        layout = "nchw"
    if layout is not None and points.ndim == len(layout):
        points = arranged(points, layout)
    if raw.table is not None or points.shape[1:] not in forms:
        found = "columns" if raw.table is not None else f"shape {raw.items.shape[1:]}"
        raise DataError(
            f"{source}: has items of {found}; points are an array of A's and B's values, of shape "
            f"{item} each"
        )
    if points.dtype == np.uint8 != sets.a.dtype and kind_of(item) == "image":
        raise DataError(f"{source}: holds grey levels (uint8); the points' units are {sets.units}")
    return points


def _columns(source: str) -> Any:
    """What the readers of training would not take: a table in a .npz, or the map of a large .npy.

    The former is an array for each column, as `wgan sample` writes a table's rows. None of others,
    and of broken files: the reader of arrays says what is wrong.
    """
    name = source.lower()
    with contextlib.suppress(DataError, ValueError):
        if name.endswith(".npz") and zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as file:
                members = file.namelist()
            if len(members) > 1 and "samples.npy" not in members:
                return read_npz(Path(source).read_bytes(), source)
        is_array = name.endswith(".npy") and os.path.isfile(source)
        if is_array and os.path.getsize(source) > large.MAX_BYTES_IN_MEMORY:
            return np.load(source, mmap_mode="r", allow_pickle=False)
    return None


def _generated(source: str, model: Model | None, count: int, seed: int) -> Side:
    """Draw samples of a model: all classes as often as in training."""
    assert model is not None, "a side is a model or data"
    said = f"{count} samples of {source} (digest {model.digest[:12]}), seed {seed}"
    if model.table is None:
        items, card = model.sample(seed, count), model.run.data
        values_range = LEVELS if items.dtype == np.uint8 else card.range
        return Side(source, said, items, model, range=values_range)
    tables = model.tables(model.samples(seed, count), seed)
    return Side(source, said, pa.concat_tables(tables), model)


# ---- arrays and images --------------------------------------------------------------------------


def _alike(sides: list[Side], as_given: bool) -> Sets:
    """Bring two sets of numbers or images to one form, if they have one.

    Args:
        sides: A and B.
        as_given: they stay as they are if they have one form already.
    """
    said, names = list[str](), list[str]()
    for side, other in (sides, sides[::-1]):
        if isinstance(side.items, pa.Table):
            columns = side.items.column_names
            if other.items.shape[1:] != (len(columns),):
                raise DataError(
                    f"{side.source} has {len(columns)} columns, {other.source} items of shape "
                    f"{other.items.shape[1:]}: they cannot be compared"
                )
            side.items, names = as_numbers(side.items, columns, side.source), columns
            said.append(f"{other.source} has no names of columns: its order counts")
    a, b = (side.items for side in sides)
    if as_given and a.shape[1:] != b.shape[1:]:
        a, b = _with_channels(a), _with_channels(b)
    _require_one_range(sides, as_given)
    if a.ndim == b.ndim == 4:
        # A model's images stay as they are.
        height, width, depth = (b if sides[1].model else a).shape[1:]
        if a.shape[1:3] != b.shape[1:3]:
            sizes = " and ".join(
                f"{side.source} of {x.shape[2]}x{x.shape[1]} pixels"
                for side, x in zip(sides, (a, b), strict=True)
            )
            remedy = f"--set data.size={height}" if height == width else "bring images of one size"
            raise DataError(f"the images have two sizes, {sizes}: {remedy}")
        if {a.shape[3], b.shape[3]} == {1, 3}:
            channels = depth if sides[0].model or sides[1].model else 3
            a, b = (np.stack([fit(image, height, width, channels) for image in x]) for x in (a, b))
            said.append(f"all are made {'grey' if channels == 1 else 'RGB'} to be compared")
    return Sets(a, b, names, _units(a), said)


def _require_one_range(sides: list[Side], as_given: bool) -> None:
    """Require that black and white are the same two values on both sides, where they are images.

    Floats in memory beside other floats are taken as they are: their owner knows their units.
    """
    first, second = (side.range for side in sides)
    is_image = all(kind_of(side.items.shape[1:]) == "image" for side in sides)
    if as_given and is_image and len({side.items.dtype == np.uint8 for side in sides}) > 1:
        first, second = (
            find_range(side.items, DataConfig(source=side.source)) or LEVELS for side in sides
        )
    if first is None or second is None or first == second:
        return
    if LEVELS in (first, second):
        remedy = "bring them to one, such as uint8"
    else:
        remedy = "if their units are the same, say data.range=own, or else bring them to one"
    raise DataError(
        f"{sides[0].source} has images of the range {first}, {sides[1].source} of {second}: "
        + remedy
    )


def _with_channels(items: Array) -> Array:
    """Give grey images, uint8 ``(N, H, W)``, the axis of channels that all others have."""
    return items[..., None] if items.ndim == 3 and items.dtype == np.uint8 else items


def _units(items: Array) -> str:
    if items.ndim > 1 and kind_of(items.shape[1:]) == "image":
        levels = "grey levels, 0 to 255" if items.dtype == np.uint8 else "the values' own units"
        return f"Euclidean over all {np.prod(items.shape[1:])} pixel values, in {levels}"
    return OWN_UNITS
