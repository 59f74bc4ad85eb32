"""The dialect of a CSV file: encoding, separator and header, told by the user or else found."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from models.errors import DataError, ShapeError
from models.section import Section

SEPARATORS = "\t;|,"
"""Where several fit, the first does: commas stand in numbers and texts more often."""
SAMPLE = 2**18
"""Characters that are looked at, and the rest of the line: a header may be longer."""
LINE_END = re.compile(r"\r\n?|\n")
MAX_LINES_BEFORE = 50
"""Lines before the header that may be something else."""
DECLARED = re.compile(r'"?sep=(.)"?[,;\t|]*\s*', re.I)
"""Excel's line before the header, which names the separator."""
LETTER = re.compile(r"[^\W\d_]")
NO_VALUE = (
    *("NA", "N/A", "n/a", "#N/A", "<NA>", "#NA", "NULL", "null", "Null", "NaN", "nan", "-nan"),
    *("-NaN", "None", "none", "#N/A N/A", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN"),
    *("#VALUE!", "#DIV/0!", "#REF!", "#NUM!", "?", "-", "--", "."),
)
"""Texts that stand where there is no value: those of pandas, of spreadsheets, and of habit."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks at the beginning of a file, each with the encoding it stands for."""


Sign = Literal[".", ","]
"""A decimal sign."""


class CsvConfig(Section):
    """The user's word on how a CSV file is written; what is not given is found from its text."""

    separator: str | None = Field(default=None, min_length=1, max_length=1)
    """Between values; found: comma, semicolon, tab or bar."""
    decimal: Sign | None = None
    """The decimal sign."""
    encoding: str | None = None
    """Such as utf-8, cp1252 or utf-16; found: by the byte order mark, UTF-8, or else cp1252."""
    missing: tuple[str, ...] | None = None
    """Texts for no value, beside the empty one; found: NA, N/A, null, ?, - and the like."""
    quote: str = Field(default='"', min_length=1, max_length=1)
    escape: str | None = Field(default=None, min_length=1, max_length=1)
    """Before a quote within quotes, such as a backslash; None: the quote is doubled."""
    comment: str | None = Field(default=None, min_length=1)
    """What lines begin with that are no rows; found: # at the beginning of the file."""
    skip: int = Field(default=0, ge=0)
    """Lines before the header; lines that are empty or narrower than the rows are found."""
    header: bool = True
    """False: the columns have no names, and are called x1, x2 and so on."""

    @field_validator("missing", mode="before")
    @classmethod
    def _texts(cls, missing: Any) -> Any:
        """A single text is one of one; numbers such as -99 stand for their texts."""
        if missing is None:
            return None
        return tuple(map(str, missing if isinstance(missing, list | tuple) else [missing]))


class Dialect(NamedTuple):
    """How a CSV file is written."""

    separator: str
    names: tuple[str, ...]
    """Of the columns; each is unique."""
    first_line: int
    """Number of lines before the first row of values."""
    comment: str | None
    """What lines begin with that are no rows."""
    has_padding: bool
    """True if spaces stand between separators and quotes."""
    notes: tuple[str, ...]
    """What was guessed, for the user to read."""


class _Row(NamedTuple):
    values: list[str]
    lines_before: int
    """Number of lines before its first."""
    last_line: int
    """Number of its last line, counted from 1; a value may hold line breaks."""


def decoded(content: bytes, config: CsvConfig) -> tuple[str, str]:
    """Decode a file: the text, and the name of its encoding.

    The encoding is the one that is told; or that of the byte order mark; or UTF-8, if all bytes
    are; or else Windows' for western languages, in which few files are wrong.

    Raises:
        DataError: the bytes are not of the encoding, or no text.
    """
    told = config.encoding
    mark = next((m for m in MARKS if content.startswith(m)), None)
    sample = content[:SAMPLE]
    candidates = ["utf-8", "cp1252"]
    if told is not None:
        candidates = ["utf-8-sig" if told.lower().replace("_", "-") in ("utf-8", "utf8") else told]
    elif mark is not None:
        candidates = [MARKS[mark]]
    elif sample[1::2].count(0) > len(sample) / 5:
        candidates = ["utf-16-le"]
    elif sample[::2].count(0) > len(sample) / 5:
        candidates = ["utf-16-be"]
    for encoding in candidates:
        try:
            text = content.decode(encoding)
        except LookupError:
            raise DataError(f"data.csv.encoding: there is no {encoding!r}") from None
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            byte = content[error.start]
        else:
            if "\0" in text:
                row = text[: text.index("\0")].count("\n") + 1
                raise DataError(f"line {row} holds a zero byte: this is no text, or broken")
            return text, encoding
    what = f"line {line} holds byte 0x{byte:02x}, which is not {' or '.join(candidates)}"
    raise DataError(f"{what}: set data.csv.encoding to another, such as latin-1")


def find_dialect(
    text: str, config: CsvConfig, suffix: str = ".csv", max_columns: float = math.inf
) -> Dialect:
    """Find how a text is written, from its beginning.

    Lines before the header are those that begin with a comment's mark, are empty, have fewer values
    than the rows, or hold numbers while the next line is names alone and has numbers below it.

    Raises:
        DataError: it has no header.
        ShapeError: it has more columns than ``max_columns``.
    """
    end = LINE_END.search(text, SAMPLE - 1)
    sample = text[: end.end()] if end else text
    notes = list[str]()
    comment, lines = config.comment, io.StringIO(sample, newline="").readlines()
    declared, config = _declared(lines, config)
    content = [line for line in lines[config.skip :] if line.strip()]
    if comment is None and content and content[0].startswith("#") and not config.skip:
        comment = "#"
    told = config.separator or declared or ("\t" if suffix.startswith(".tsv") else None)
    separator = told or _find_separator(lines, comment, config)
    has_padding = separator != " " and any(
        f"{separator} {config.quote}" in line for line in content
    )
    rows = list(_rows(lines, separator, comment, config))
    if not rows:
        raise DataError("holds no rows: bring a header and values")
    width = _usual([len(row.values) for row in rows])
    if told is None and separator != "," and width > 1:
        notes.append(f"{separator!r} is taken for the separator")
    start = _header(rows, width, config)
    header = rows[start]
    require_width(max(width, len(header.values)), max_columns)
    before = [line for line in lines[config.skip : header.lines_before] if line.strip()]
    others = [line for line in before if not (comment and line.startswith(comment))]
    names, first_line = [value.strip() for value in header.values], header.last_line
    if comment and not config.comment:
        last = next(csv.reader([before[-1].lstrip(comment)], delimiter=separator), [])
        if len(last) == width > 1 and any(map(_is_number, names)):
            # As in bioinformatics, the header itself begins with the mark.
            names, first_line = [value.strip() for value in last], header.lines_before
        notes.append(f"lines that begin with {comment!r} are comments")
    if others:
        number = header.lines_before + 1
        notes.append(f"line {number} is the header, after {others[0].strip()[:40]!r}")
    if not config.header:
        names, first_line = [f"x{i + 1}" for i in range(width)], header.lines_before
    elif all(map(_is_number, names)):
        raise DataError(
            f"begins with numbers ({separator.join(names)[:60]}); put the names of the columns "
            "into the first row, or set data.csv.header=false"
        )
    elif len(names) == width - 1 > 1:
        below = [row.values for row in rows[start + 1 :] if len(row.values) == width]
        is_last = not any(values[-1].strip() for values in below)
        names = [*names, ""] if is_last else ["", *names]
        column = "last column is empty" if is_last else "first column is the rows' names"
        notes.append(f"the header has one name less: the {column}")
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    notes += [f"the name {name!r} stands above several columns" for name in twice]
    return Dialect(separator, _unique(names), first_line, comment, has_padding, tuple(notes))


def require_width(count: int, max_columns: float) -> None:
    """Refuse a table by its number of columns, before anything is made of them.

    Raises:
        ShapeError: there are more than ``max_columns``.
    """
    if count > max_columns:
        raise ShapeError(
            f"has {count} columns, of which at most {max_columns} are read for this model; leave "
            "out those that its table does not have"
        )


def _find_separator(lines: list[str], comment: str | None, config: CsvConfig) -> str:
    """Find the separator by which the largest share of rows has one number of values."""
    shares = dict.fromkeys(SEPARATORS, 0.0)
    for separator in SEPARATORS:
        rows = list(_rows(lines, separator, comment, config))
        widths = [len(row.values) for row in rows]
        width = _usual(widths)
        if width > 1 and not all(map(_is_number, rows[_header(rows, width, config)].values)):
            shares[separator] = widths.count(width) / len(widths)
    if any(shares.values()):
        return max(shares, key=lambda separator: shares[separator])
    # One column, in which commas may be decimal signs; or rows that are refused.
    unused = (s for s in ",;\t|" if not any(s in line for line in lines))
    header = next((line for line in lines if line.strip()), "")
    return "," if "," in header else next(unused, ",")


def _rows(
    lines: list[str], separator: str, comment: str | None, config: CsvConfig
) -> Iterator[_Row]:
    """Yield each row that is no comment, and no empty one."""
    read = list[int]()

    def uncommented() -> Iterator[str]:
        for number in range(config.skip, len(lines)):
            is_comment = comment and lines[number].startswith(comment)
            if not is_comment and lines[number].strip():
                read.append(number)
                yield lines[number]

    reader = csv.reader(
        uncommented(), delimiter=separator, quotechar=config.quote, escapechar=config.escape,
        skipinitialspace=True,
    )  # fmt: skip
    try:
        for values in reader:
            yield _Row(values, read[0], read[-1] + 1)
            read.clear()
    except csv.Error:  # a quote that is never closed: pyarrow says where
        return


def _usual(widths: list[int]) -> int:
    """The most frequent width, of two the one that comes first."""
    return Counter(widths).most_common(1)[0][0] if widths else 0


def _declared(lines: list[str], config: CsvConfig) -> tuple[str | None, CsvConfig]:
    """The separator that a first line such as ``sep=;`` names, and the word to skip that line."""
    for number, line in enumerate(lines[config.skip :], config.skip + 1):
        if found := DECLARED.fullmatch(line):
            return found[1], config.model_copy(update={"skip": number})
        if line.strip():
            break
    return None, config


def _header(rows: list[_Row], width: int, config: CsvConfig) -> int:
    """Index of the header: the first row that is as wide as the rows, or one narrower.

    But the next one, if it reads as names, and two of three signs speak for a title before it: that
    is narrower, holds a number, or numbers stand below the next.
    """
    if not config.header:
        return 0
    for i, (values, *_) in enumerate(itertools.islice(rows, MAX_LINES_BEFORE)):
        follows = rows[i + 1].values if i + 1 < len(rows) else []
        is_narrow = len(values) == width - 1 > 1 and len(follows) == width
        if len(values) != width and not is_narrow:
            continue
        if len(follows) != width or not _are_names(follows):
            return i
        has_number = any(map(_is_number, values))
        below = [row.values for row in rows[i + 2 :] if len(row.values) == width]
        has_numbers_below = any(map(_are_numbers, zip(*below, strict=True)))
        return i + (is_narrow + has_number + has_numbers_below >= 2)
    return 0


def _are_names(values: list[str]) -> bool:
    """True of different texts that have letters, none of which stands for no value."""
    texts = {value.strip() for value in values}
    return len(texts) == len(values) and all(
        LETTER.search(text) and text not in NO_VALUE for text in texts
    )


def _are_numbers(column: tuple[str, ...]) -> bool:
    """True of a column that has no letters: of numbers however they are written, and of dates."""
    texts = [text for value in column if (text := value.strip()) and text not in NO_VALUE]
    return any(texts) and not any(map(LETTER.search, texts))


def _unique(names: list[str]) -> tuple[str, ...]:
    """Names as pandas makes them unique: ``a``, ``a.1``, and ``Unnamed: 2`` for an empty one."""
    unique, repeats = dict[str, None](), Counter[str]()
    for i, name in enumerate(names):
        first = found = name or f"Unnamed: {i}"
        while found in unique:
            repeats[first] += 1
            found = f"{first}.{repeats[first]}"
        unique[found] = None
    return tuple(unique)


def _is_number(text: str) -> bool:
    try:
        float(text.strip())
    except ValueError:
        return False
    return True
