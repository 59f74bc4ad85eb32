"""CSV files as people write them: texts whose dialect and values are found, or told."""

from __future__ import annotations

import csv
import functools
import io
import lzma
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from models.errors import DataError
from models.tables.reading.cells import Cells, find_decimal, understand
from models.tables.reading.dialect import CsvConfig, Dialect, Sign, decoded, find_dialect
from models.tables.schema import TableSchema

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""What compressed files begin with, each with the method's name."""
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
    content: bytes, config: CsvConfig, suffix: str = ".csv", schema: TableSchema | None = None
) -> CsvTable:
    """Read a CSV file.

    How it is written is found from its text, or as ``config`` says. What its columns are is found
    too, unless a schema knows it: then texts stay texts, though these few look like numbers.

    Args:
        content: the file's bytes, not compressed.
        config: the user's word.
        suffix: the end of the file's name.
        schema: of a model that the rows are for.

    Raises:
        DataError: it cannot be read.
    """
    text, encoding = decoded(content, config)
    dialect = find_dialect(text, config, suffix)
    table = _rows(text, dialect, config)
    del text
    if dialect.comment:
        first = pc.utf8_trim_whitespace(table[0])
        table = table.filter(pc.invert(pc.starts_with(first, dialect.comment)))
    texts = {name: table[name] for name in table.column_names}
    is_empty = functools.reduce(
        pc.and_, (pc.equal(pc.utf8_trim_whitespace(column), "") for column in table.columns)
    )
    usual: Sign = "."
    if schema is not None and dialect.separator != ",":
        usual = schema.decimal
    decimal = find_decimal(texts, config, schema, usual)
    cells = understand(texts, decimal, config, schema)
    notes = [*dialect.notes, *_notes(cells)]
    if config.encoding is None and encoding not in ("utf-8", "utf-8-sig"):
        notes.insert(0, f"{encoding} is taken for the encoding")
    columns = {
        name: c.values
        for name, c in cells.items()
        if not (name.startswith("Unnamed: ") and pa.types.is_null(c.values.type))
    }
    return CsvTable(pa.table(columns), is_empty, decimal, tuple(notes))


def decompressed(content: bytes) -> bytes:
    """Unpack what gzip, bzip2, xz or zstd packed, as the first bytes tell; else the same bytes."""
    method = next((m for mark, m in MAGIC.items() if content.startswith(mark)), None)
    if method == "xz":
        return lzma.decompress(content)
    if method is None:
        return content
    with pa.input_stream(pa.BufferReader(content), compression=method) as stream:
        return bytes(stream.read())


def _rows(text: str, dialect: Dialect, config: CsvConfig) -> pa.Table:
    """The rows below the header as texts, a `pyarrow.Table`.

    Raises:
        DataError: some have more or fewer values than there are names; the first is named.
    """
    rows = io.StringIO(text, newline=None)
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
    bad = list[pyarrow.csv.InvalidRow]()

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        is_row = row.text.strip() and not (
            dialect.comment and row.text.lstrip().startswith(dialect.comment)
        )
        if is_row:
            bad.append(row)
        return "skip"

    if not body.strip():
        return pa.table({name: pa.array([], pa.string()) for name in dialect.names})
    table = pyarrow.csv.read_csv(
        pa.BufferReader(body.encode()),
        read_options=pyarrow.csv.ReadOptions(column_names=list(dialect.names), use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=dialect.separator,
            quote_char=config.quote,
            escape_char=config.escape or False,
            newlines_in_values=True,
            invalid_row_handler=skip,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(dialect.names, pa.string()),
            null_values=[],
            strings_can_be_null=False,
        ),
    )
    if bad:
        more = f" (and {len(bad) - 1} more such rows)" if len(bad) > 1 else ""
        raise DataError(
            f"row {bad[0].number} below the header has {bad[0].actual_columns} values, but there "
            f"are {len(dialect.names)} columns{more}: {bad[0].text[:60]!r}; repair it, or set "
            "data.csv.separator, data.csv.quote or data.csv.comment"
        )
    last = [table[name][-1].as_py() for name in table.column_names] if len(table) else []
    if body.count(config.quote) % 2 and any("\n" in value for value in last):
        raise DataError(
            f"row {len(table)} below the header opens a quote that is never closed: close it, or "
            "set data.csv.quote"
        )
    return table


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
