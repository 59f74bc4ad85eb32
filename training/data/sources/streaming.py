"""Large CSV files: read piece by piece into files of one column each, from which training reads."""

from __future__ import annotations

import functools
import io
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from models.cache import cache_folder
from models.errors import DataError
from models.tables import TableSchema
from models.tables.reading.cells import Cells, find_decimal, understand
from models.tables.reading.dialect import SAMPLE, CsvConfig, Dialect, Sign, decoded, find_dialect
from models.tables.reading.texts import (
    ReadingOptions,
    has_nothing,
    notes_on,
    plain,
    usual_sign,
    without_comments,
    without_values,
)
from training.data.sources import large
from training.data.sources.files import COMPRESSIONS, Location
from training.progress import track

PACKED = 8
"""How many times smaller a compressed file is taken to be, at most."""
AT_ONCE = 2**16
"""Characters that are decoded at once."""
BLOCK = 2**23
"""Bytes whose rows are understood at once."""
ENCODINGS = ("utf-8", "utf-8-sig", "cp1252")
"""Those that can be read from the beginning of a file on, as their lines end with a byte."""


class Streamed(NamedTuple):
    """A large CSV file that was read."""

    rows: large.ColumnFiles
    decimal: Sign
    """The decimal sign."""
    notes: tuple[str, ...]
    """What was guessed, for the user to read."""


def streamed(
    location: Location, config: CsvConfig, schema: TableSchema | None
) -> tuple[Streamed | None, tuple[str, ...]]:
    """Read a large CSV file, of which a piece is in memory at once, and then a column.

    Args:
        location: the file.
        config: the user's word.
        schema: of the model that the rows are for.

    Returns:
        The file as it was read. None if it is small, or written so that it has to be read at once;
        then a line says this of a large one.

    Raises:
        DataError: see `models.tables.reading.texts.read_csv`.
    """
    with location.open() as file:
        size = file.seek(0, 2)
        file.seek(0)
        is_packed = location.suffix.endswith(tuple(COMPRESSIONS))
        if size * (PACKED if is_packed else 1) <= large.MAX_BYTES_IN_MEMORY:
            return None, ()
        with plain(file) as unpacked:
            sample = bytes(unpacked.read(4 * SAMPLE))
    lines = sample[: sample.rfind(b"\n") + 1]
    if not lines or b"\0" in lines:
        return None, _at_once(size, "it is no text of a byte a letter, or has no lines")
    text, encoding = decoded(lines, config)
    if encoding not in ENCODINGS:
        return None, _at_once(size, f"its encoding is {encoding}")
    dialect = find_dialect(text, config, location.suffix)
    if dialect.has_padding:
        return None, _at_once(size, "spaces stand before its quotes")
    try:
        return _read(location, config, schema, dialect, encoding), ()
    except UnicodeDecodeError as error:
        if config.encoding is not None or encoding != "utf-8":
            byte = error.object[error.start]
            raise DataError(
                f"holds byte 0x{byte:02x}, which is not {encoding}: set data.csv.encoding to "
                "another, such as latin-1"
            ) from None
    return _read(location, config, schema, dialect, "cp1252"), ()  # as of a small file


def _at_once(size: int, why: str) -> tuple[str, ...]:
    return (f"all {size / 1e6:.0f} MB are held in memory at once, since {why}",)


def _read(
    location: Location,
    config: CsvConfig,
    schema: TableSchema | None,
    dialect: Dialect,
    encoding: str,
) -> Streamed:
    parent = cache_folder() / "tables"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".csv-", dir=parent))
    except OSError as error:
        raise DataError(
            f"{parent}: cannot be written ({error}); set WGAN_CACHE to a folder with room"
        ) from None
    remove = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    try:
        no_rows = _write_texts(location, config, dialect, encoding, folder / "texts")
        texts = _Texts(folder / "texts", dialect.names)
        decimal = find_decimal(texts, config, schema, usual_sign(dialect, schema))
        cells, paths = dict[str, Cells](), dict[str, Path]()
        for i, name in enumerate(track(dialect.names, "understanding columns")):
            found = understand({name: texts[name]}, decimal, config, schema)[name]
            if not has_nothing(name, found):
                paths[name] = folder / str(i)
                pq.write_table(pa.table({name: found.values}), paths[name], large.BATCH * 8)
            cells[name] = found._replace(values=found.values[:0])
        (folder / "texts").unlink()
        rows = large.ColumnFiles(paths)
    except BaseException:
        remove()
        raise
    weakref.finalize(rows, remove)
    notes = notes_on(dialect, cells, encoding, config)
    if no_rows:
        notes += (f"{no_rows} rows without any value are left out",)
    return Streamed(rows, decimal, notes)


class _Texts(Mapping[str, pa.ChunkedArray]):
    """Columns of texts in a Parquet file, each read when it is asked for."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self._rows, self._names = large.ParquetRows(Location(str(path), str(path), None)), names

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _write_texts(
    location: Location, config: CsvConfig, dialect: Dialect, encoding: str, path: Path
) -> int:
    """Write all rows as texts into a Parquet file; the number of those without any value."""
    schema = pa.schema([(name, pa.string()) for name in dialect.names])
    options, no_rows, count, last = ReadingOptions(dialect, config), 0, 0, schema.empty_table()
    options.given["read_options"].block_size = BLOCK
    with (
        location.open() as file,
        plain(file) as unpacked,
        _Utf8(unpacked, encoding, dialect.first_line, config.quote) as body,
        pyarrow.csv.open_csv(io.BufferedReader(body, BLOCK), **options.given) as batches,
        pq.ParquetWriter(path, schema) as writer,
    ):
        for batch in track(batches, "reading rows"):
            last = pa.Table.from_batches([batch]) if len(batch) else last
            rows = without_comments(pa.Table.from_batches([batch]), dialect)
            is_empty = without_values(rows)
            writer.write_table(rows.filter(pc.invert(is_empty)))
            count, no_rows = count + len(batch), no_rows + (pc.sum(is_empty).as_py() or 0)
    options.check(last, body.quotes, count - len(last))
    return no_rows


class _Utf8(io.RawIOBase):
    """The lines of a file from one on, as UTF-8 and with plain ends."""

    def __init__(self, file: Any, encoding: str, first: int, quote: str) -> None:
        """Take a file whose lines ``first`` and following are wanted, and its sign for quotes."""
        self.quotes = 0
        """Number of quotes that were read."""
        self._text = io.TextIOWrapper(file, encoding, newline=None)
        self._quote, self._rest = quote, b""
        for _ in range(first):
            self._text.readline()

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read some bytes; 0 at the end."""
        if not self._rest:
            text = self._text.read(AT_ONCE)
            if "\0" in text:
                raise DataError("holds a zero byte: this is no text, or broken")
            self.quotes += text.count(self._quote)
            self._rest = text.encode()
        some, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(some)] = some
        return len(some)
