"""Kinds of a table's columns: told by the user, or else found from all rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.config import ColumnConfig
from models.errors import DataError
from models.tables.column import is_number
from models.tables.number import LARGEST_WHOLE
from models.tables.times import read_times, to_ticks
from training.data.digests import hash_values, slices

FEW_VALUES = 12
"""Different numbers up to which each is an option of its own; so many texts are no dates."""
FEWEST_IDENTIFIERS = 100
"""Rows from which on it is no chance that no two have the same value."""
MANY_TEXTS = 500
MANY_TEXTS_SHARE = 0.2
"""Different texts, and their share of the rows, beyond which they are no categories."""
MAX_DECIMALS = 9
MANY_DIFFERENT = 2**20
"""Different texts beyond which all rows are looked at, rather than a count of each text."""
FEWEST_ROUNDED = 0.9
"""Share of the different numbers that tell how many decimals there are."""
FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d",
    "%Y-%m",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%d-%b-%Y",
    "%b-%Y",
    "%H:%M:%S",
    "%H:%M",
)
"""How texts may write dates and times, the likelier first."""
ROW_NUMBER = re.compile(r"(Unnamed: \d+|index|level_\d+|__index_level_\d+__|rownames|)", re.I)
"""Names that tables give to the numbers of their rows."""
UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
"""Names by which pandas keeps an index without a name, which repeats after tables were joined."""
IDENTIFIER = re.compile(r"(.*[ _.-])?(id|key|uuid|guid)|.*[a-z](Id|ID|Key)")
"""Names of whole numbers that are told apart by their values and not measured."""
NUMBERED = r"^(?P<prefix>.*?)(?P<number>[0-9]{1,15})$"


class Found(NamedTuple):
    """What a column is taken for."""

    kind: str
    """As in `models.config.ColumnConfig`, but for ``integer``, which is a number here."""
    note: str = ""
    """What the user should know of it; of a column that is left out, the reason."""


def find_kind(name: str, values: pa.Array, told: ColumnConfig) -> Found:
    """Find what a column is.

    Args:
        name: the column's.
        values: of all rows, without NaN; a dictionary's are decoded.
        told: the user's word.

    Raises:
        DataError: the values are not what the user says, or cannot be used; one line says why.
    """
    kind = told.kind
    if told.decimals is not None and pa.types.is_decimal(values.type):
        kind = kind or "number"  # however many digits they have, so many are wanted
    found = _infer(name, values) if kind is None else TOLD[kind](name, values)
    for setting, kinds in SETTINGS.items():
        if getattr(told, setting) is not None and found.kind not in kinds:
            raise DataError(f"column {name!r}: {setting} does not go with a {found.kind}")
    return found


def date_format(values: pa.Array) -> str | None:
    """How texts write dates or times; None if they hold none."""
    texts = values.cast(pa.string()).drop_null()
    some = texts[:100]
    for text_format in FORMATS:
        if not len(some) or read_times(some, text_format).null_count:
            continue  # most formats are out already
        if not read_times(texts, text_format).null_count:
            return text_format
    return None


def find_decimals(values: pa.Array) -> tuple[int | None, float]:
    """Digits after the point that nearly all different numbers have at most; None if too many do.

    And the share of the different numbers that have no more.
    """
    kind = values.type
    if pa.types.is_decimal(kind):
        return _exact_decimals(values), 1.0
    numbers = np.unique(values.drop_null().cast(pa.float64(), safe=False).to_numpy())
    dtype = kind.to_pandas_dtype() if pa.types.is_floating(kind) else np.float64
    coarsest = float(np.finfo(dtype).eps) * np.abs(numbers).max()
    # A reader of text may be a rounding error away from the number nearest to the digits.
    rounding = max(2 * np.finfo(np.float64).eps, float(np.finfo(dtype).eps) / 2)
    for decimals in range(MAX_DECIMALS + 1):
        if decimals and 10.0**-decimals < 10 * coarsest:
            break  # so many digits hold any number of the type
        near = sum(
            int(np.isclose(some, np.round(some, decimals), rtol=rounding, atol=0).sum())
            for some in (numbers[at] for at in slices(len(numbers)))
        )
        if near / len(numbers) >= (FEWEST_ROUNDED if len(numbers) > FEW_VALUES else 1):
            return decimals, near / len(numbers)
    return None, 1.0


def _exact_decimals(values: pa.Array) -> int:
    """Digits after the point that decimal numbers have at most, of those that their type has."""
    different, scale = values.drop_null().unique(), max(0, values.type.scale)
    for decimals in range(scale):
        cut = pc.round(different, decimals, round_mode="towards_zero")
        if pc.all(pc.equal(cut, different)).as_py():
            return decimals
    return scale


def numbering(values: pa.Array) -> tuple[str, int, int] | None:
    """What texts have before their numbers, the fewest digits, and the largest number.

    None if they are not numbered so. The digits are 1 unless zeros fill the numbers up.
    """
    prefixes, is_filled, fewest, largest = set[str](), False, math.inf, 0
    for at in slices(len(values)):
        found = pc.extract_regex(values[at].cast(pa.string()), NUMBERED)
        prefixes.update(found.field("prefix").unique().to_pylist())
        if found.null_count or len(prefixes) != 1:
            return None
        numbers = found.field("number")
        zeros = pc.and_(pc.starts_with(numbers, "0"), pc.not_equal(numbers, "0"))
        is_filled |= pc.any(zeros).as_py()
        fewest = min(fewest, pc.min(pc.utf8_length(numbers)).as_py())
        largest = max(largest, pc.max(numbers.cast(pa.int64())).as_py())
    return (prefixes.pop(), int(fewest) if is_filled else 1, largest) if prefixes else None


def count_different(values: pa.Array) -> int:
    """Number of different values; of texts in many rows, of their hashes.

    Two of n texts have the same hash of 64 bits with a probability of n**2 / 2**65: 3e-6 for ten
    million.
    """
    kind = values.type
    if pa.types.is_temporal(kind):
        values = to_ticks(values)
    if pa.types.is_integer(values.type) or pa.types.is_floating(kind):
        return len(np.unique(values.to_numpy(zero_copy_only=False)))
    if _is_text(kind) and len(values) > MANY_DIFFERENT:
        return len(np.unique(hash_values(values)))
    return len(values.unique())


def _infer(name: str, values: pa.Array) -> Found:
    kind, present = values.type, values.drop_null()
    if pa.types.is_nested(kind) or not _can_be_text(kind):
        return Found(
            "left_out", f"{kind} is no kind of column: spread it over several, or leave it"
        )
    distinct = count_different(present)
    if distinct <= 1 and (not len(present) or not values.null_count):
        return Found("constant", f"always {present[0]}" if len(present) else "always missing")
    is_unique = distinct == len(values)
    is_numbered = is_unique and ROW_NUMBER.fullmatch(name) and not pa.types.is_temporal(kind)
    if is_numbered or UNNAMED_INDEX.fullmatch(name):
        return Found("left_out", "the number or name of the row")
    if is_number(kind):
        return _infer_number(name, values, is_unique)
    if _is_text(kind):
        return _infer_text(values, distinct)
    return Found("boolean" if pa.types.is_boolean(kind) else "time")


def _infer_number(name: str, values: pa.Array, is_unique: bool) -> Found:
    if pa.types.is_floating(values.type):
        if pc.any(pc.is_inf(values)).as_py():
            raise DataError(f"column {name!r}: holds infinite values; repair them, or leave it out")
        decimals, share = find_decimals(values)
        if decimals is None or share == 1:
            return Found("number")
        return Found(
            "number",
            f"{1 - share:.2g} of the different values have more than {decimals} decimals; "
            "generated ones have not",
        )
    ends = pc.min_max(values)
    low, high = int(ends["min"].as_py()), int(ends["max"].as_py())
    if is_unique and pa.types.is_integer(values.type):
        is_counted = high - low == len(values) - 1 and len(values) >= FEWEST_IDENTIFIERS
        if is_counted or IDENTIFIER.fullmatch(name):
            return Found("identifier", "a different whole number in each row: made anew")
    remedy = "identifier, category or left_out, or subtract a constant"
    scale = 1
    if pa.types.is_decimal(values.type):
        remedy, scale = "number with decimals, category or left_out", 10 ** _exact_decimals(values)
    if max(abs(low), abs(high)) * scale > LARGEST_WHOLE:
        raise DataError(
            f"column {name!r}: {ends['max']} has more digits than float64 holds; say that its kind "
            f"is {remedy}"
        )
    return Found("number")


def _infer_text(values: pa.Array, distinct: int) -> Found:
    texts, counts = values.drop_null().cast(pa.string()), None
    rows = len(texts)
    if distinct <= MANY_DIFFERENT:
        counted = texts.value_counts()
        texts, counts = (counted.field(i) for i in range(2))
    written = date_format(texts) if distinct > FEW_VALUES else None
    if written is not None:
        is_unclear = written == "%d/%m/%Y" and not read_times(texts, "%m/%d/%Y").null_count
        note = f"{texts[0]} could begin with the day or the month: taken for the day"
        return Found("time", note if is_unclear else "")
    if distinct == len(values) >= FEWEST_IDENTIFIERS and numbering(texts):
        return Found("identifier", "a different text in each row: made anew")
    example = f"{texts[0].as_py()[:30]!r}"
    if distinct > MANY_TEXTS and distinct > MANY_TEXTS_SHARE * rows:
        return Found(
            "left_out",
            f"{distinct} different texts, such as {example}: no categories, unless told so",
        )
    are_numbers = pc.match_substring_regex(texts, r"^\s*[-+]?[0-9]+([.,][0-9]+)?\s*$")
    of_each = are_numbers.cast(pa.int64())
    numbers = pc.sum(of_each if counts is None else pc.multiply(of_each, counts)).as_py()
    if rows > numbers > rows / 2:
        other = texts.filter(pc.invert(are_numbers))[0].as_py()[:30]
        return Found(
            "category",
            f"{numbers} numbers and {rows - numbers} texts such as {other!r}, taken as "
            "categories: repair the texts to make it a number",
        )
    if numbers == rows and distinct > FEW_VALUES:
        return Found("category", f"numbers as texts, such as {example}: is its kind number?")
    return Found("category")


def _can_be_text(kind: pa.DataType) -> bool:
    """True of all that a column may hold: not of binaries, and of intervals of months."""
    is_time = pa.types.is_temporal(kind) and not pa.types.is_interval(kind)
    is_other = pa.types.is_boolean(kind) or pa.types.is_null(kind)
    return _is_text(kind) or is_time or is_number(kind) or is_other


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _told_number(name: str, values: pa.Array) -> Found:
    if pa.types.is_boolean(values.type) or pa.types.is_temporal(values.type):
        raise DataError(f"column {name!r}: {values.type} is no number")
    try:
        numbers = values.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"column {name!r}: no numbers: {error}") from None
    if pc.any(pc.is_inf(numbers)).as_py() or not len(numbers.drop_null()):
        raise DataError(f"column {name!r}: holds infinite values, or none at all")
    if (pc.max(pc.abs(numbers)).as_py()) > LARGEST_WHOLE and not pa.types.is_floating(values.type):
        raise DataError(f"column {name!r}: has more digits than float64 holds")
    return Found("number")


def _told_integer(name: str, values: pa.Array) -> Found:
    found = _told_number(name, values)
    numbers = values.cast(pa.float64(), safe=False).drop_null()
    fractions = numbers.filter(pc.not_equal(pc.floor(numbers), numbers))
    if len(fractions):
        raise DataError(f"column {name!r}: {fractions[0]} is no whole number")
    return found


def _told_boolean(name: str, values: pa.Array) -> Found:
    if pa.types.is_boolean(values.type):
        return Found("boolean")
    distinct = len(values.drop_null().unique())
    if distinct > 2:
        raise DataError(f"column {name!r}: has {distinct} different values, a boolean has two")
    return _told_category(name, values)


def _told_category(name: str, values: pa.Array) -> Found:
    kind = values.type
    no_text = pa.types.is_time, pa.types.is_duration, pa.types.is_float16  # that Arrow reads again
    if any(is_such(kind) for is_such in no_text) or not _can_be_text(kind):
        raise DataError(f"column {name!r}: {kind} cannot be categories")
    if not len(values.drop_null()):
        raise DataError(f"column {name!r}: has no value at all: it is a constant")
    return Found("category")


def _told_time(name: str, values: pa.Array) -> Found:
    if _is_text(values.type):
        if date_format(values) is None:
            raise DataError(
                f"column {name!r}: its texts write no dates or times in one of the forms "
                f"{', '.join(FORMATS)}"
            )
    elif not pa.types.is_temporal(values.type) or not len(values.drop_null()):
        raise DataError(f"column {name!r}: {values.type} is no date or time")
    return Found("time")


def _told_constant(name: str, values: pa.Array) -> Found:
    distinct = len(values.unique())
    if distinct > 1:
        raise DataError(f"column {name!r}: has {distinct} different values and is no constant")
    return Found("constant")


def _told_identifier(name: str, values: pa.Array) -> Found:
    kind = values.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise DataError(f"column {name!r}: identifiers are whole numbers or texts, not {kind}")
    return Found("identifier", "made anew")


TOLD: dict[str, Callable[[str, pa.Array], Found]] = {
    "number": _told_number,
    "integer": _told_integer,
    "boolean": _told_boolean,
    "category": _told_category,
    "time": _told_time,
    "constant": _told_constant,
    "identifier": _told_identifier,
    "left_out": lambda name, values: Found("left_out", "as data.columns says"),
}
"""What checks the user's word, by kind."""
SETTINGS = {
    "decimals": {"number"},
    "low": {"number"},
    "high": {"number"},
    "spikes": {"number"},
    "max_categories": {"category"},
}
"""Kinds that a setting goes with."""
