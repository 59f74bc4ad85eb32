"""The two sets of samples that are compared: files, folders, URLs, or a model's own samples."""

from __future__ import annotations

import dataclasses
import os
import zipfile
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
from models.run_folder import artifact_of
from models.tables import CategoryColumn, NumberColumn, TableSchema
from models.tables.files import read_npz
from models.tables.records import typed
from models.trained import load_served
from training.data.builtin import BUILT_IN
from training.data.coding import match_columns
from training.data.loading import READERS, read_source
from training.data.schema import find_structure, fit_schema
from training.data.sources.tables import as_numbers
from training.judging.tables.rows import comparable, is_missing, is_number
from training.lab.differences import kind_of

Array = np.ndarray
MAX_GENERATED = 10_000
"""Samples, at most, that a model makes unless it is told how many."""
MAX_ROWS = 100_000
"""Rows, at most, that are taken of a table too large for memory."""


@dataclasses.dataclass
class Side:
    """One of the two sets."""

    source: str
    """As the user wrote it."""
    said: str
    """What it is, in words."""
    items: Any
    """An array ``(N, ...)``, or a `pyarrow.Table`."""
    model: Model | None = None
    """That made the items; None for data."""


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


def load_sets(a: str, b: str, config: DataConfig, count: int | None = None, seed: int = 0) -> Sets:
    """Read two sets, and bring them to one form.

    Args:
        a: data as `training.data.loading.read_source` takes them; or a model, by the folder of its
            run or artifact or by a registry name. A built-in set, a file or a folder comes before a
            registry name without a version.
        b: likewise.
        config: says how data are read; where one side is a model, its own configuration does so in
            the places that this one leaves out.
        count: samples that a model makes; None: as many as the other side has, at most
            `MAX_GENERATED`.
        seed: of the samples of a model on side A; on side B it is one more.

    Raises:
        DataError: one of them cannot be read, or the two do not fit each other.
        UserError: there is no such model.
    """
    models = [load_served(source) if is_model(source) else None for source in (a, b)]
    guide = models[0] or models[1]
    data = [
        None if model else _read(source, config, guide)
        for source, model in zip((a, b), models, strict=True)
    ]
    others = [len(side.items) for side in data if side]
    count = count or min([*others, MAX_GENERATED])
    sides = [
        side or _generated(source, model, count, seed + number)
        for number, (source, side, model) in enumerate(zip((a, b), data, models, strict=True))
    ]
    said = [f"{name}: {side.said}" for name, side in zip("AB", sides, strict=True)]
    if all(isinstance(side.items, pa.Table) for side in sides):
        found = _coded(sides, guide.table if guide else None)
    else:
        found = _alike(sides)
    return dataclasses.replace(found, said=[*said, *found.said])


def is_model(source: str) -> bool:
    """True if a source names a model: a run, an artifact or a registry name."""
    if os.path.exists(source):
        return os.path.isfile(artifact_of(Path(source)) / SUMS)
    if "://" in source or source in BUILT_IN or source.lower().endswith((*READERS, ".gz")):
        return False
    return "@" in source or isinstance(locate(source), str)


def _read(source: str, config: DataConfig, guide: Model | None) -> Side:
    """Read data, as those of a model were read where there is one."""
    card = None
    if guide is not None:
        config, card = config.over(guide.run.config.data), guide.run.data
    config = config.model_copy(update={"source": source})
    items = _columns(source)
    problems, notes = tuple[str, ...](), tuple[str, ...]()
    if items is None:
        raw = read_source(config, card)
        items = raw.items if raw.table is None else raw.table
        problems, notes = raw.problems, raw.notes
    said = f"{len(items)} {'rows' if isinstance(items, pa.Table) else 'items'} of {source}"
    if not isinstance(items, np.ndarray | pa.Table):  # a table that is not in memory
        chosen = np.random.default_rng(0).choice(len(items), min(len(items), MAX_ROWS), False)
        said = f"{len(chosen)} rows, drawn at random, of {len(items)} of {source}"
        items = items.take(pa.array(np.sort(chosen)))
    if config.size is not None and not isinstance(items, pa.Table):
        images = _with_channels(items)  # those of files are of that size already
        if images.ndim == 4 and images.shape[1:3] != (config.size, config.size):
            items = np.stack([fit(image, config.size, config.size) for image in images])
            said += f", resized to {config.size}x{config.size} pixels"
    if problems:
        said += f"; {len(problems)} files could not be read, such as {problems[0]}"
    return Side(source, "; ".join([said, *notes]), items)


def read_points(source: str, config: DataConfig, sets: Sets) -> Array:
    """Read an array of points in the form of two sets; grey images may lack the axis of channels.

    Raises:
        DataError: it cannot be read, or has another form.
    """
    raw = read_source(config.model_copy(update={"source": source}))
    item = sets.a.shape[1:]
    if raw.table is not None or raw.items.shape[1:] not in (item, *[item[:-1]] * (item[-1] == 1)):
        found = "columns" if raw.table is not None else f"shape {raw.items.shape[1:]}"
        raise DataError(
            f"{source}: has items of {found}; points are an array of A's and B's values, of shape "
            f"{item} each"
        )
    return raw.items


def _columns(source: str) -> pa.Table | None:
    """The rows of a .npz file with an array for each column, as `wgan sample` writes a table's."""
    if not source.lower().endswith(".npz") or not zipfile.is_zipfile(source):
        return None
    with zipfile.ZipFile(source) as file:
        if len(file.namelist()) < 2 or "samples.npy" in file.namelist():
            return None
    try:
        return read_npz(Path(source).read_bytes(), source)
    except DataError:
        return None  # the reader of arrays says what is wrong


def _generated(source: str, model: Model | None, count: int, seed: int) -> Side:
    """Draw samples of a model: all classes as often as in training."""
    assert model is not None, "a side is a model or data"
    said = f"{count} samples of {source} (digest {model.digest[:12]}), seed {seed}"
    if model.table is None:
        return Side(source, said, model.sample(seed, count), model)
    return Side(source, said, pa.concat_tables(model.tables(model.samples(seed, count))), model)


# ---- arrays and images --------------------------------------------------------------------------


def _alike(sides: list[Side]) -> Sets:
    """Bring two sets of numbers or images to one form, if they have one."""
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
    a, b = (_with_channels(side.items) for side in sides)
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


def _with_channels(items: Array) -> Array:
    """Give grey images, uint8 ``(N, H, W)``, the axis of channels that all others have."""
    return items[..., None] if items.ndim == 3 and items.dtype == np.uint8 else items


def _units(items: Array) -> str:
    if items.ndim > 1 and kind_of(items.shape[1:]) == "image":
        levels = "grey levels, 0 to 255" if items.dtype == np.uint8 else "the values' own units"
        return f"Euclidean over all {np.prod(items.shape[1:])} pixel values, in {levels}"
    return "Euclidean over all values, in their own units"


# ---- tables -------------------------------------------------------------------------------------


def _coded(sides: list[Side], schema: TableSchema | None) -> Sets:
    """Bring two tables to one encoding, with columns matched by name; see docs/w1.md."""
    said = list[str]()
    if schema is None:
        names = [set(side.items.column_names) for side in sides]
        if names[0] != names[1]:
            raise DataError(
                "the tables have other columns: "
                + "; ".join(
                    f"only {side.source} has {', '.join(sorted(own - other))}"
                    for side, own, other in zip(sides, names, names[::-1], strict=True)
                    if own - other
                )
            )
        order = sides[0].items.column_names
        tables = [side.items.select(order) for side in sides]
        try:
            whole = pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            why = str(error).partition("\n")[0]
            raise DataError(f"the tables' columns have other types: {why}") from None
        structure = find_structure(whole, {})
        schema = fit_schema(whole, structure, {}, np.ones(len(whole), bool))
        said += structure.notes
    rows = []
    for side in sides:
        try:
            said += match_columns(side.items.column_names, schema)
            rows.append(comparable(typed(schema, side.items), schema))
        except DataError as error:
            raise DataError(f"{side.source}: {error}") from None
    return _encoded(rows, schema, said)


def _encoded(rows: list[Array], schema: TableSchema, said: list[str]) -> Sets:
    """Encode what `comparable` made of two tables' rows: numbers alone as they are, or else all."""
    columns = [column for column in schema.columns if column.parts]  # as `comparable` takes them
    kinds = {type(column) for column in columns}
    has_gaps = any(is_missing(x[field]).any() for x in rows for field in x.dtype.names or ())
    if kinds == {NumberColumn} and not has_gaps:
        a, b = (np.stack([x[str(i)] for i in range(len(columns))], axis=1) for x in rows)
        return Sets(a, b, [column.name for column in columns], _units(a), said)
    both = np.concatenate(rows)
    values = dict[str, Array]()
    for i, column in enumerate(columns):
        found, missing = both[str(i)], is_missing(both[str(i)])
        if is_number(both, str(i)):
            known = found[~missing]
            values[column.name] = np.zeros(len(found))
            values[column.name][~missing] = (known - known.mean()) / (known.std() or 1.0)
            if missing.any():
                values[f"whether {column.name} is missing"] = missing.astype(float)
            continue
        assert isinstance(column, CategoryColumn), "only numbers and categories are learned"
        options = [*column.categories, *column.others, "another value", "no value"]
        for number in np.unique(found):  # -1 stands for no value
            # Two different categories are then 1 apart.
            values[f"{column.name} = {options[number]}"] = (found == number) / np.sqrt(2)
    every = np.stack([*values.values()], axis=1)
    said.append(
        f"mixed types: {len(columns)} columns ({', '.join(sorted({c.kind for c in columns}))}) are "
        f"compared by {len(values)} values"
    )
    units = (
        "Euclidean over all columns: numbers and times in standard deviations of both sets "
        "together, another category and a missing value count 1"
    )
    return Sets(every[: len(rows[0])], every[len(rows[0]) :], [*values], units, said)
