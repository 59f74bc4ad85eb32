"""File formats of tables; values keep their types as far as a format has them."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet

from models.errors import DataError
from models.pipe import Pipe
from models.tables.column import whole
from models.text_files import write_csv, write_json

Array = np.ndarray
ROW_GROUP = 2**16
"""Rows of each row group of a Parquet file, which is held in memory until it is written."""


def write_rows(
    parts: Iterable[pa.Table], format: str, facts: Mapping[str, object] | None = None
) -> Iterator[bytes]:
    """Write tables one after another as one file, piece by piece.

    All formats but npz need little memory: csv has a header row, dates and times as ISO 8601 writes
    them and nothing where there is no value; json has records by column name, and null; npz has an
    array for each column; parquet and arrow (the file format, Feather V2) have the columns' types
    and the metadata of the first table's schema.

    Args:
        parts: tables of the same columns.
        format: one of `models.formats.TABLE_FORMATS`.
        facts: further entries of a json file, after the records.
    """
    writers: dict[str, Callable[[Iterable[pa.Table]], Iterator[bytes]]] = {
        "csv": _csv,
        "json": lambda tables: write_json(map(records, tables), facts or {}),
        "npz": _npz,
        "parquet": _parquet,
        "arrow": _arrow,
    }
    return writers[format](parts)


def records(table: pa.Table) -> list[dict[str, object]]:
    """Rows as JSON has them: dates and times as texts, None where there is no value."""
    return [dict(zip(table.column_names, row, strict=True)) for row in _tuples(table)]


def _tuples(table: pa.Table) -> Iterator[tuple[object, ...]]:
    return zip(*(_plain(column).to_pylist() for column in table.columns), strict=True)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as JSON and CSV have them: numbers, truth values and texts.

    A duration is a number of its type's unit.
    """
    kind = values.type
    if pa.types.is_timestamp(kind):
        zone = "Z" if kind.tz == "UTC" else "%z" if kind.tz else ""
        return pc.strftime(values, format=f"%Y-%m-%dT%H:%M:%S{zone}")
    if pa.types.is_duration(kind):
        return values.cast(pa.int64())
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return values.cast(pa.string())
    if pa.types.is_float32(kind):  # with its own fewest digits, not those of a float64
        return values.cast(pa.string()).cast(pa.float64())
    return values


def _csv(parts: Iterable[pa.Table]) -> Iterator[bytes]:
    tables = iter(parts)
    for first in tables:  # and then for all
        yield from write_csv(first.column_names, map(_tuples, itertools.chain([first], tables)))


def _npz(parts: Iterable[pa.Table]) -> Iterator[bytes]:
    table = pa.concat_tables(parts)
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name in table.column_names:
            # np.savez does this too: the member may exceed 2 GB, and its date is fixed.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, as_array(table[name]), allow_pickle=False)
            yield pipe.take()
    yield pipe.take()


def as_array(values: pa.ChunkedArray) -> Array:
    """A column as a plain array: NaN, NaT or an empty text where there is no value."""
    kind = values.type
    if pa.types.is_timestamp(kind):  # numpy has no time zones; these are in UTC
        return values.cast(pa.timestamp(kind.unit)).to_numpy()
    if pa.types.is_date(kind):
        return values.to_numpy().astype("datetime64[D]")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return (values.cast(pa.float64()) if values.null_count else values).to_numpy()
    texts = values.cast(pa.string()).fill_null("").to_pylist()
    return np.array(texts, dtype=str)


def read_npz(content: bytes, name: str) -> pa.Table:
    """Read rows of a .npz file with an array for each column, as `write_rows` writes them.

    Args:
        content: the file's bytes.
        name: the file's name, for error messages.

    Returns:
        A column for each array; NaN, NaT and empty texts become missing values.

    Raises:
        DataError: it is no such file; objects are never unpickled.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {column: file[column] for column in file.files}
    except Exception:  # numpy and zipfile raise many kinds on a broken file
        raise DataError(f"{name}: no .npz file of columns, or a broken one") from None
    if (
        len({array.shape for array in arrays.values()}) != 1
        or next(iter(arrays.values())).ndim != 1
    ):
        raise DataError(f"{name}: its arrays are no columns, one-dimensional and equally long")
    return pa.table({column: _values(array) for column, array in arrays.items()})


def _values(array: Array) -> pa.Array:
    if array.dtype.kind == "U":
        return pa.array([text or None for text in array.tolist()], pa.string())
    return pa.array(array, from_pandas=True)


def _parquet(parts: Iterable[pa.Table]) -> Iterator[bytes]:
    pipe = Pipe()
    writer: pyarrow.parquet.ParquetWriter | None = None
    held: list[pa.Table] = []
    for part in parts:
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(pipe, part.schema)
        held.append(part)
        if sum(map(len, held)) >= ROW_GROUP:
            writer.write_table(pa.concat_tables(held), ROW_GROUP)
            held = []
        yield pipe.take()
    assert writer is not None, "there is at least one table"
    if held:
        writer.write_table(pa.concat_tables(held), ROW_GROUP)
    writer.close()
    yield pipe.take()


def _arrow(parts: Iterable[pa.Table]) -> Iterator[bytes]:
    pipe = Pipe()
    writer: pyarrow.ipc.RecordBatchFileWriter | None = None
    for part in parts:
        # A file has one dictionary for each column, but each part may have its own.
        plain = pa.table({name: whole(part[name]) for name in part.column_names})
        if writer is None:
            schema = plain.schema.with_metadata(part.schema.metadata)
            writer = pyarrow.ipc.new_file(pipe, schema)
        writer.write_table(plain)
        yield pipe.take()
    assert writer is not None, "there is at least one table"
    writer.close()
    yield pipe.take()
