"""The cells of a CSV file: what a column of texts holds, numbers, truth values or texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from models.tables.category import CategoryColumn
from models.tables.column import Column, is_number, value_type
from models.tables.reading.dialect import NO_VALUE, CsvConfig, Sign
from models.tables.schema import TableSchema

SIGNS = ("-", "--", ".")
"""Those that are values in a column in which ``+`` is one, such as of blood groups."""
CURRENCIES = "$€£¥₹"
SPACES = " \u00a0\u202f'\u2019"
"""What may stand between thousands beside a comma or a point."""
PLAIN = r"^-?(?:0|[1-9]\d*)(?:\.\d+)?$"
TOO_LONG = "they are whole and have more than 64 bits"
INFINITE = r"^[-+]?(?i:inf|infinity)$"


class Cells(NamedTuple):
    """A column as it is understood."""

    values: pa.Array
    example: tuple[str, Any] | None = None
    """A text and the number it was taken for, where these are not the same on their face."""
    is_ambiguous: bool = False
    """True if the example could be another number, with another decimal sign."""
    without_value: tuple[str, ...] = ()
    """Texts, other than the empty one, that were taken for no value."""
    why_text: str | None = None
    """The reason why what looks like numbers was left as texts."""


def understand(
    texts: Mapping[str, pa.ChunkedArray],
    decimal: str,
    config: CsvConfig,
    schema: TableSchema | None = None,
) -> dict[str, Cells]:
    """Find what columns of texts hold.

    Numbers become int64, uint64 or float64, ``true`` and ``false`` bool; all else stays text: dates
    too, of which the schema keeps how they were written.

    Args:
        texts: columns by name.
        decimal: the decimal sign, as `find_decimal` finds it.
        config: the user's word.
        schema: of a model that the rows are for. Its categories and dates are texts.
    """
    columns = {} if schema is None else schema.by_name
    cells = {
        name: _understand(values, decimal, config, columns.get(name))
        for name, values in texts.items()
    }
    if schema is None:
        return cells
    # The schema tells its decimal sign; of these rows none can be set.
    return {name: column._replace(is_ambiguous=False) for name, column in cells.items()}


def _understand(
    values: pa.ChunkedArray, decimal: str, config: CsvConfig, column: Column | None
) -> Cells:
    texts = values.combine_chunks()
    trimmed = pc.utf8_trim_whitespace(texts)
    categories = (*column.categories, *column.others) if isinstance(column, CategoryColumn) else ()
    is_missing, without_value = _missing(trimmed, config, categories)
    trimmed = pc.if_else(is_missing, None, trimmed)
    if trimmed.null_count == len(trimmed):
        return Cells(pa.nulls(len(trimmed)), without_value=without_value)
    if not _holds_texts(column) and _all(pc.match_substring_regex(trimmed, "^(?i:true|false)$")):
        return Cells(pc.equal(pc.utf8_lower(trimmed), "true"), without_value=without_value)
    cells = None if _holds_texts(column) else _numbers(trimmed, decimal, config)
    if cells is None:
        padded = _all(pc.if_else(is_missing, True, pc.match_substring_regex(texts, r"^\s")))
        cells = Cells(trimmed if padded else pc.if_else(is_missing, None, texts))
    elif cells.why_text:
        cells = cells._replace(values=trimmed)
    return cells._replace(without_value=without_value)


def _holds_texts(column: Column | None) -> bool:
    """True of a column whose values are texts, or other than numbers and truth values."""
    if column is None:
        return False
    kind = value_type(column.type)
    return not (is_number(kind) or pa.types.is_boolean(kind))


def _missing(
    trimmed: pa.Array, config: CsvConfig, categories: Collection[str] = ()
) -> tuple[pa.Array, tuple[str, ...]]:
    """Which values are missing, and by which texts this is said, none of which is a category."""
    said = NO_VALUE if config.missing is None else config.missing
    said = tuple(text for text in said if text not in categories)
    if config.missing is None and pc.any(pc.equal(trimmed, "+")).as_py():
        said = tuple(text for text in said if text not in SIGNS)
    is_said = pc.is_in(trimmed, pa.array(said, pa.string()))
    found = sorted(trimmed.filter(is_said).unique().to_pylist())
    return pc.or_(is_said, pc.equal(trimmed, "")), tuple(text for text in found if text)


def find_decimal(
    texts: Mapping[str, pa.ChunkedArray],
    config: CsvConfig,
    schema: TableSchema | None = None,
    usual: Sign = ".",
) -> Sign:
    """Find the decimal sign: of comma and point, the one that can only be one in some column.

    All columns are asked together, since one alone may not tell: ``1,234``.

    Args:
        texts: columns by name.
        config: the user's word.
        schema: of a model that the rows are for; its texts tell nothing of numbers.
        usual: the sign if no column tells, or they contradict.
    """
    if config.decimal is not None:
        return config.decimal
    columns = {} if schema is None else schema.by_name

    def is_only(sign: str, other: str) -> bool:
        for name, values in texts.items():
            if (
                not _holds_texts(columns.get(name))
                and pc.any(pc.match_substring(values, sign)).as_py()
            ):
                bare = pc.utf8_trim_whitespace(values.combine_chunks())
                bare = _bare(bare.filter(pc.invert(_missing(bare, config)[0])))[0]
                fits = [_all(pc.match_substring_regex(bare, _grammar(s))) for s in (sign, other)]
                if fits == [True, False]:
                    return True
        return False

    is_comma, is_point = is_only(",", "."), is_only(".", ",")
    return usual if is_comma == is_point else "," if is_comma else "."


def _grammar(decimal: str) -> str:
    """The regular expression (RE2) of numbers with a decimal sign."""
    other = "," if decimal == "." else "."
    groups = "|".join(rf"(?:[{sign}]\d{{3}})+" for sign in (other, *SPACES))
    whole = rf"\d+|[1-9]\d{{0,2}}(?:{groups})"
    point = f"[{decimal}]"
    return rf"^[-+\x{{2212}}]?(?:(?:{whole})(?:{point}\d*)?|{point}\d+)(?:[eE][-+]?\d+)?$"


def _bare(texts: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Numbers without currency and percent signs, and which stand in parentheses: those below 0."""
    is_below = pc.match_substring_regex(texts, r"^\(.*\)$")
    bare = pc.replace_substring_regex(texts, r"^\((.*)\)$", r"\1")
    for sign in CURRENCIES:
        if pc.any(pc.match_substring(bare, sign)).as_py():
            bare = pc.replace_substring_regex(bare, rf"^([-+]?)\s*[{sign}]\s*", r"\1")
            bare = pc.replace_substring_regex(bare, rf"\s*[{sign}]$", "")
            break  # amounts in two currencies are not numbers that compare
    if _all(pc.match_substring_regex(texts, r"%\s*\)?$")):
        bare = pc.replace_substring_regex(bare, r"\s*%$", "")
    return bare, is_below


def _numbers(texts: pa.Array, decimal: str, config: CsvConfig) -> Cells | None:
    """Numbers of texts, None if they are no numbers."""
    if decimal == "." and _all(pc.match_substring_regex(texts, PLAIN)):  # most are, and it is fast
        values = _cast(texts)
        return Cells(texts, why_text=TOO_LONG) if values is None else Cells(values)
    bare, is_below = _bare(texts)
    is_infinite = pc.match_substring_regex(bare, INFINITE)
    signs = [decimal] if config.decimal else [decimal, *(s for s in ".," if s != decimal)]
    fits = [
        sign
        for sign in signs
        if _all(pc.or_(is_infinite, pc.match_substring_regex(bare, _grammar(sign))))
    ]
    if not fits:
        return None
    sign = fits[0]
    other = "," if sign == "." else "."
    plain = pc.replace_substring_regex(bare, f"[{other}{SPACES}]", "")
    plain = pc.replace_substring_regex(plain, r"^[-\x{2212}]", "-")
    plain = pc.replace_substring_regex(plain, r"^\+", "")
    plain = pc.replace_substring(plain, ",", ".") if sign == "," else plain
    plain = pc.if_else(is_below, pc.binary_join_element_wise("-", plain, ""), plain)
    zeros = plain.filter(pc.match_substring_regex(plain, r"^-?0\d"))
    if len(zeros.drop_null()):
        return Cells(texts, why_text=f"{zeros.drop_null()[0]} begins with a zero")
    values = _cast(plain)
    if values is None:
        return Cells(texts, why_text=TOO_LONG)
    changed = pc.invert(pc.equal(texts, plain))
    if not pc.any(changed).as_py():
        return Cells(values)
    at = pc.index(changed, True).as_py()
    is_ambiguous = not config.decimal and len(fits) > 1 and pc.any(
        pc.match_substring_regex(bare, "[.,]")
    ).as_py()  # fmt: skip
    return Cells(values, (texts[at].as_py(), values[at].as_py()), is_ambiguous)


def _cast(plain: pa.Array) -> pa.Array | None:
    """Plain numbers in the type that holds them."""
    if not _all(pc.match_substring_regex(plain, r"^-?\d+$")):
        return plain.cast(pa.float64())
    for kind in (pa.int64(), pa.uint64()):
        try:
            return plain.cast(kind)
        except pa.ArrowInvalid:
            continue
    return None


def _all(is_so: pa.Array) -> bool:
    """True if it is so of each value that there is."""
    return bool(pc.all(is_so, skip_nulls=True).as_py())
