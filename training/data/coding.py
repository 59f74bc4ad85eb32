"""The codes of a table's rows, which networks see: in memory, or packed on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from models.cache import cache_folder
from models.config import ColumnConfig, DataConfig
from models.durable import new_folder
from models.errors import DataError, rows_from, suggestion
from models.outputs import turn
from models.tables import Choice, IdentifierColumn, Part, TableSchema, Value
from models.tables.column import column_values
from models.tables.layout import place
from models.tables.records import typed_values
from training.data.digests import row_digests, split, uniform
from training.data.raw import RawData
from training.data.rules import broken_rows, fit_rules, keys, with_rules
from training.data.schema import find_structure, fit_schema
from training.data.sources.cache import StoredRows
from training.data.sources.large import ConvertedRows, LargeRows
from training.progress import track

Array = np.ndarray
T = TypeVar("T")
MAX_BYTES_IN_MEMORY = 2**28
"""Size of codes up to which they are held in memory."""
BATCH = 2**14
"""Rows that are coded at once."""
LAYOUT = 1
"""Version of the packed files."""


class CodedTable(NamedTuple):
    """A table, coded and split."""

    schema: TableSchema
    items: Any
    """Codes: an array, float32 ``(N, width)``, or `PackedCodes`."""
    digests: Array
    is_heldout: Array
    is_validation: Array
    notes: tuple[str, ...]
    table: Any
    """Its rows, without those that are left out."""


class PackedCodes:
    """Codes as `TableSchema.encode` returns them, of which one choice takes two bytes.

    Has of an array what training needs: ``shape``, ``dtype``, and rows by indices.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(
        self, parts: Iterable[Part], scores: Array | StoredRows, options: Array | StoredRows
    ) -> None:
        """Take packed codes, in memory or on the disk.

        Args:
            parts: of the code.
            scores: float32 ``(N, values)``.
            options: uint16 ``(N, choices)``: which of the options is 1.
        """
        self.scores, self.options = scores, options
        self._values, self._choices = _places(parts)
        width = max([*(self._values + 1), *(c.stop for c in self._choices), 0])
        self.shape = (len(scores), int(width))
        self._firsts = np.array([c.start for c in self._choices], np.int64)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the codes that are not packed."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __getitem__(self, rows: Any) -> Array:
        """Unpack rows: float32 ``(n, width)``."""
        scores, options = self.scores[rows], self.options[rows]
        codes = np.zeros((len(scores), self.shape[1]), np.float32)
        codes[:, self._values] = scores
        codes[np.arange(len(codes))[:, None], self._firsts + options] = 1
        return codes


def code_table(raw: RawData, config: DataConfig, schema: TableSchema | None) -> CodedTable:
    """Code a table by a schema, or else by its own, and split it.

    Raises:
        DataError: it cannot be coded; the line names the source and what is wrong.
    """
    try:
        coded = _code(raw.table, config, schema)
    except DataError as error:
        raise DataError(f"{config.source}: {error}") from None
    if schema is None and raw.decimal != coded.schema.decimal:
        found = coded.schema.model_copy(update={"decimal": raw.decimal})
        return coded._replace(schema=found)
    return coded


def _code(table: Any, config: DataConfig, schema: TableSchema | None) -> CodedTable:
    fitted = schema
    if fitted is not None:
        notes = match_columns(table.column_names, fitted)
        table = _in_known_types(table, fitted, config)
        learned = (column.name for column in fitted.columns if column.parts)
        digests = row_digests(((n, column_values(table, n)) for n in learned), len(table))
    else:
        told = config.columns | {
            name: config.columns.get(name, ColumnConfig()).model_copy(update={"kind": "identifier"})
            for name in keys(config.rules)
            if name in table.column_names
        }
        structure = find_structure(table, told)
        digests, notes = structure.digests.bytes(), structure.notes
    is_heldout, is_validation = split(uniform(digests), config)
    is_training = ~(is_heldout | is_validation)
    if fitted is None:
        fitted = with_rules(fit_schema(table, structure, told, is_training), config.rules)
    is_broken, broken = broken_rows(fitted, table)
    if is_broken.any():
        kept, said = _without(table, is_broken, broken, config)
        # Nothing is fitted to rows that are left out.
        coded = _code(kept, config, schema)
        return coded._replace(notes=(*said, *coded.notes))
    if schema is None:
        fitted = fit_rules(fitted, table, is_training)
    if len(table) * fitted.width * PackedCodes.dtype.itemsize <= MAX_BYTES_IN_MEMORY:
        items: Any = np.concatenate(list(_coded(table, fitted.encode)))
    else:
        items = _packed(table, fitted, digests)
    return CodedTable(fitted, items, digests, is_heldout, is_validation, (*notes, *broken), table)


def _in_known_types(table: Any, schema: TableSchema, config: DataConfig) -> Any:
    """Rows in the types of a schema, which a file of another format may not have.

    So a row has the hash, and is on the side, that it had in training. Left as they are: columns
    that the schema does not know; identifiers, which nothing is learned of; and texts that the
    user calls numbers, since training hashed the texts.
    """

    def convert(name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
        column, told = schema.by_name.get(name), config.columns.get(name, ColumnConfig()).kind
        is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        if column is None or isinstance(column, IdentifierColumn):
            return values
        if is_text and told in ("number", "integer"):
            return values
        known = typed_values(column, column_values(pa.table({name: values}), name))
        return pa.chunked_array([known])

    if isinstance(table, LargeRows):
        return ConvertedRows(table, convert)
    return pa.table({name: convert(name, table[name]) for name in table.column_names})


def _without(
    table: Any, is_broken: Array, lines: list[str], config: DataConfig
) -> tuple[pa.Table, list[str]]:
    """Leave out rows that break rules, if the user says so; and lines on them."""
    if config.rows_that_break_rules == "refuse":
        raise DataError(
            f"{'; '.join(lines)}; repair them, or set data.rows_that_break_rules=leave_out"
        )
    if not isinstance(table, pa.Table):
        raise DataError(
            f"{'; '.join(lines)}; repair them: rows of a file too large for memory cannot be left "
            "out"
        )
    note = f"{is_broken.sum()} rows that break rules are left out"
    return table.filter(pa.array(~is_broken)), [*lines, note]


def match_columns(names: Iterable[str], schema: TableSchema) -> list[str]:
    """Compare the columns of a table with those of a schema, by name, in whatever order.

    Returns:
        A line on those that the schema does not know, if there are any.

    Raises:
        DataError: some that it needs are missing; the line names them all.
    """
    names = dict.fromkeys(names)
    ruled = {name for rule in schema.rules for name in rule.names}
    needed = [column.name for column in schema.columns if column.parts or column.name in ruled]
    missing = [name for name in needed if name not in names]
    if missing:
        raise DataError(
            f"has no column {', '.join(map(repr, missing))}{suggestion(missing[0], names)}"
        )
    known = {*schema.names, *schema.left_out}
    unknown = [name for name in names if name not in known]
    return [f"columns that the model does not know: {', '.join(unknown)}"] if unknown else []


def _coded(table: Any, code: Callable[[pa.Table], T]) -> Iterator[T]:
    """Yield what is made of some rows at once."""
    total = -(-len(table) // BATCH)
    first = 0
    for batch in track(table.to_batches(max_chunksize=BATCH), "coding rows", total):
        with rows_from(first):
            yield code(pa.Table.from_batches([batch]))
        first += len(batch)


def _packed(table: Any, schema: TableSchema, digests: Array) -> PackedCodes:
    """Codes on the disk, from the cache if they have been written before."""
    content = hashlib.sha256(f"{LAYOUT}{json.dumps(schema.model_dump(mode='json'))}".encode())
    content.update(digests.tobytes())
    folder = cache_folder() / "tables" / content.hexdigest()
    if not folder.is_dir():
        try:
            with turn(folder):
                _write(folder, table, schema)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written ({error}); set WGAN_CACHE to a folder with room for "
                "coded rows"
            ) from None
    values, choices = _places(schema.parts)
    return PackedCodes(
        schema.parts,
        StoredRows(folder / "scores", np.float32, (len(table), len(values))),
        StoredRows(folder / "options", np.uint16, (len(table), len(choices))),
    )


def _write(folder: Path, table: Any, schema: TableSchema) -> None:
    """Write packed codes into ``folder``, which appears whole or not at all."""
    if folder.is_dir():  # another process has made it meanwhile
        return
    with (
        new_folder(folder) as new,
        (new / "scores").open("wb") as scores,
        (new / "options").open("wb") as options,
    ):
        for numbers, chosen in _coded(table, schema.pack):
            scores.write(numbers.tobytes())
            options.write(chosen.tobytes())


def _places(parts: Iterable[Part]) -> tuple[Array, list[slice]]:
    """Where the values stand in a code, int64, and where the choices do."""
    placed = list(place(parts))
    values = [p.code.start for p in placed if isinstance(p.part, Value)]
    return np.array(values, np.int64), [p.code for p in placed if isinstance(p.part, Choice)]
