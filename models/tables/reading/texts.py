"""CSV files as people write them: texts whose dialect and values are found, or told."""

from __future__ import annotations

import csv
import functools
import io
import lzma
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from models.errors import DataError
from models.tables.reading.cells import Cells, find_decimal, understand
from models.tables.reading.dialect import (
    CsvConfig,
    Dialect,
    Sign,
    decoded,
    find_dialect,
)
from models.tables.schema import TableSchema

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""What compressed files begin with, each with the method's name."""
SMALLEST_BLOCK, LARGEST_BLOCK = 2**20, 2**30
"""Bytes whose rows Arrow parses at once."""
MAX_NAMED = 5
"""Columns that one note names."""


class CsvTable(NamedTuple):
    """A CSV file that was read."""

    table: pa.Table
    is_empty: pa.ChunkedArray
    """bool ``(N,)``, true of rows in which nothing is written; some stand below a table."""
    decimal: Sign
    """The decimal sign."""
    notes: tuple[str, ...]
    """What was guessed, for the user to read."""


def read_csv(
    content: bytes,
    config: CsvConfig,
    suffix: str = ".csv",
    schema: TableSchema | None = None,
    max_columns: float = math.inf,
) -> CsvTable:
    """Read a CSV file.

    How it is written is found from its text, or as ``config`` says. What its columns are is found
    too, unless a schema knows it: then texts stay texts, though these few look like numbers.

    Args:
        content: the file's bytes, not compressed.
        config: the user's word.
        suffix: the end of the file's name.
        schema: of a model that the rows are for.
        max_columns: more are refused.

    Raises:
        DataError: it cannot be read.
        ShapeError: it has more columns than ``max_columns``.
    """
    text, encoding = decoded(content, config)
    dialect = find_dialect(text, config, suffix, max_columns)
    table = without_comments(_rows(text, dialect, config), dialect)
    del text
    texts = {name: table[name] for name in table.column_names}
    decimal = find_decimal(texts, config, schema, usual_sign(dialect, schema))
    cells = understand(texts, decimal, config, schema)
    columns = {name: c.values for name, c in cells.items() if not has_nothing(name, c)}
    notes = notes_on(dialect, cells, encoding, config)
    return CsvTable(pa.table(columns), without_values(table), decimal, notes)


def without_comments(table: pa.Table, dialect: Dialect) -> pa.Table:
    """Rows of texts but for those that are comments."""
    if not dialect.comment:
        return table
    first = pc.utf8_trim_whitespace(table[0])
    return table.filter(pc.invert(pc.starts_with(first, dialect.comment)))


def without_values(table: pa.Table) -> pa.ChunkedArray:
    """Tell for each row of texts, bool ``(N,)``, if nothing is written in it."""
    return functools.reduce(
        pc.and_, (pc.equal(pc.utf8_trim_whitespace(column), "") for column in table.columns)
    )


def usual_sign(dialect: Dialect, schema: TableSchema | None) -> Sign:
    """The decimal sign if no column tells: that of the model's data, unless commas separate."""
    return "." if schema is None or dialect.separator == "," else schema.decimal


def has_nothing(name: str, cells: Cells) -> bool:
    """True of a column without a name or a value, which is left out."""
    return name.startswith("Unnamed: ") and pa.types.is_null(cells.values.type)


def notes_on(
    dialect: Dialect, cells: Mapping[str, Cells], encoding: str, config: CsvConfig
) -> tuple[str, ...]:
    """What was guessed of a file, for the user to read."""
    notes = [*dialect.notes, *_notes(cells)]
    if config.encoding is None and encoding not in ("utf-8", "utf-8-sig"):
        notes.insert(0, f"{encoding} is taken for the encoding")
    return tuple(notes)


def decompressed(content: bytes) -> bytes:
    """Unpack what gzip, bzip2, xz or zstd packed, as the first bytes tell; else the same bytes."""
    file = io.BytesIO(content)
    with plain(file) as unpacked:
        return content if unpacked is file else bytes(unpacked.read())


def plain(file: IO[bytes]) -> Any:
    """What a file holds that may be packed: a file to read from the beginning on."""
    start = file.read(max(map(len, MAGIC)))
    file.seek(0)
    method = next((m for mark, m in MAGIC.items() if start.startswith(mark)), None)
    if method == "xz":
        return lzma.open(file)
    return file if method is None else pa.input_stream(file, compression=method)


def _rows(text: str, dialect: Dialect, config: CsvConfig) -> pa.Table:
    """The rows below the header as texts, a `pyarrow.Table`.

    Raises:
        DataError: some have more or fewer values than there are names; the first is named.
    """
    rows = io.StringIO(text, newline="")
    for _ in range(dialect.first_line):
        rows.readline()
    if dialect.has_padding:  # pyarrow takes a quote for one at the beginning of a value only
        plain = io.StringIO()
        lines = csv.reader(
            rows, delimiter=dialect.separator, quotechar=config.quote, skipinitialspace=True
        )
        csv.writer(plain, delimiter=dialect.separator, quotechar=config.quote).writerows(lines)
        body = plain.getvalue()
    else:
        body = rows.read()
    if not body.strip():
        return pa.table({name: pa.array([], pa.string()) for name in dialect.names})
    content, size = body.encode(), SMALLEST_BLOCK
    while True:
        options = ReadingOptions(dialect, config)
        options.given["read_options"].block_size = size
        try:
            table = pyarrow.csv.read_csv(pa.BufferReader(content), **options.given)
            break
        except pa.ArrowInvalid:  # it reads no row that is longer than two blocks
            if size >= min(len(content), LARGEST_BLOCK):
                raise
            size = min(8 * size, LARGEST_BLOCK)
    options.check(table, body.count(config.quote))
    return table


class ReadingOptions:
    """What pyarrow is told of a CSV file, and what it says of rows that it cannot read."""

    def __init__(self, dialect: Dialect, config: CsvConfig) -> None:
        """Take how the file is written."""
        self._dialect, self._bad = dialect, list[pyarrow.csv.InvalidRow]()
        self.given: dict[str, Any] = {
            "read_options": pyarrow.csv.ReadOptions(
                column_names=list(dialect.names), use_threads=False
            ),
            "parse_options": pyarrow.csv.ParseOptions(
                delimiter=dialect.separator,
                quote_char=config.quote,
                escape_char=config.escape or False,
                newlines_in_values=True,
                invalid_row_handler=self._skip,
            ),
            "convert_options": pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(dialect.names, pa.string()),
                strings_can_be_null=False,
            ),
        }

    def _skip(self, row: pyarrow.csv.InvalidRow) -> str:
        comment = self._dialect.comment
        if row.text.strip() and not (comment and row.text.lstrip().startswith(comment)):
            self._bad.append(row)
        return "skip"

    def check(self, last_rows: pa.Table, quotes: int, before: int = 0) -> None:
        """Check what was read.

        Args:
            last_rows: the last rows of the file.
            quotes: number of quotes in the file.
            before: number of rows before those.

        Raises:
            DataError: rows have more or fewer values than there are names, or a quote is not
                closed; the first is named.
        """
        bad, names = self._bad, self._dialect.names
        if bad:
            more = f" (and {len(bad) - 1} more such rows)" if len(bad) > 1 else ""
            raise DataError(
                f"row {bad[0].number} below the header has {bad[0].actual_columns} values, but "
                f"there are {len(names)} columns{more}: {bad[0].text[:60]!r}; repair it, or set "
                "data.csv.separator, data.csv.quote or data.csv.comment"
            )
        last = [last_rows[name][-1].as_py() for name in names] if len(last_rows) else []
        if quotes % 2 and any("\n" in value for value in last):
            raise DataError(
                f"row {before + len(last_rows)} below the header opens a quote that is never "
                "closed: close it, or set data.csv.quote"
            )


def _notes(cells: Mapping[str, Cells]) -> Iterator[str]:
    """What was guessed from the cells, in few lines."""
    for name, column in cells.items():
        if column.example is not None:
            text, number = column.example
            doubt = " (or set data.csv.decimal)" if column.is_ambiguous else ""
            yield f"column {name!r}: {text!r} is read as {number}{doubt}"
        if column.why_text is not None:
            yield f"column {name!r}: numbers are left as texts, since {column.why_text}"
    said = defaultdict[str, list[str]](list)
    for name, column in cells.items():
        for text in column.without_value:
            said[text].append(name)
    for text, names in said.items():
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        yield f"{text!r} stands for no value in {', '.join(names[:MAX_NAMED])}{more}"
