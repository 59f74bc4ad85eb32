"""Columns of a table, each by itself: what they hold, and how a person's word for it is read."""

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from models.config import ColumnConfig
from models.errors import ConditionError, DataError
from models.tables import Condition
from models.tables.category import BooleanColumn, CategoryColumn
from models.tables.column import Column
from models.tables.fixed import ConstantColumn, CopyColumn, IdentifierColumn
from models.tables.layout import LARGEST_SCORE
from models.tables.number import NumberColumn
from models.tables.records import typed_values
from models.tables.scores import to_scores
from models.tables.times import TimeColumn
from training.data.schema import fit_values

COLUMNS: list[Column] = [
    ConstantColumn(name="x", type="int64", value=5),
    CopyColumn(name="x", type="int64", of="y"),
    IdentifierColumn(name="x", type="string", first=7, prefix="C"),
    NumberColumn(name="x", type="double", low=0, high=1),
    CategoryColumn(name="x", type="string", categories=("a", "b")),
    BooleanColumn(name="x"),
    TimeColumn(name="x", type="date32[day]", origin=0, low=0, high=9),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: type(column).__name__)
def test_a_column_stays_as_it_is(column: Column) -> None:
    """Codes are made and read by the same column."""
    with pytest.raises(ValidationError, match="frozen"):
        column.name = "z"  # type: ignore[misc]


def test_what_a_schema_may_leave_out() -> None:
    """Identifiers without digits are not filled up, and times without a step have all units."""
    identifier, dates = COLUMNS[2], COLUMNS[6]
    assert identifier.in_words() == {"new": "C7 and so on"}
    days = pa.array([3, 4], pa.int32()).cast(pa.date32())
    assert dates.numbers(days).tolist() == [3, 4]  # type: ignore[attr-defined]
    assert dates.array(np.array([3.0, 4.0])).equals(days)  # type: ignore[attr-defined]


def test_a_share_of_missing_values_is_one() -> None:
    assert NumberColumn(name="x", type="double", low=0, high=1).missing == 0
    for share in (0, 1):
        assert BooleanColumn(name="x", missing=share).option_count == 2 + share
    for share in (-0.01, 1.01):
        with pytest.raises(ValidationError, match="missing"):
            BooleanColumn(name="x", missing=share)


def test_rows_are_those_of_the_beginning_and_of_the_seed_0_unless_told() -> None:
    identifier, nothing = COLUMNS[2], np.zeros((2, 0), np.float32)
    assert identifier.decode(nothing).to_pylist() == ["C7", "C8"]
    assert identifier.decode(nothing, 2).to_pylist() == ["C9", "C10"]
    counts = {"others": tuple("bcdefgh"), "other_counts": (1,) * 7}
    rare = CategoryColumn(name="x", type="string", categories=("a",), **counts)
    codes = np.tile(np.float32([0, 1]), (30, 1))
    assert rare.decode(codes).equals(rare.decode(codes, 0, None, 0))
    assert not rare.decode(codes).equals(rare.decode(codes, 0, None, 1))


def test_a_code_has_a_number_and_a_choice_only_where_there_is_one() -> None:
    """One option is no choice; of none, nothing is left."""
    ends: dict[str, Any] = {"name": "x", "type": "int64", "low": 0, "high": 9, "decimals": 0}
    for own, values, width in (
        ({"quantiles": (0, 9)}, [0, 9], 1),
        ({"quantiles": (0, 9), "missing": 0.5}, [0, None], 3),
        ({"quantiles": (0, 9), "spikes": (4,)}, [4, 9], 3),
        ({"spikes": (4, 6)}, [4, 6], 2),
        ({"spikes": (4,)}, [4, 4], 0),
        ({"spikes": (4,), "missing": 0.5}, [None, 4], 2),
    ):
        column = NumberColumn(**{**ends, **own})
        array = pa.array(values)
        code = column.encode(array)
        assert code.shape == (2, width)
        assert code.dtype == np.float32
        assert sum(part.width for part in column.parts) == width
        assert column.decode(code).equals(array)
        if width > 1:
            assert (code[:, bool(column.quantiles) :].sum(axis=1) == 1).all()
            asked = column.restrict(Condition(one_of=(4,)))
            assert len(asked) == width + bool(column.quantiles)
            made = column.decode(np.zeros((3, width), np.float32), 0, Condition(one_of=(4,)))
            assert made.to_pylist() == [4] * 3


def test_a_time_is_told_as_the_column_writes_it() -> None:
    dates = COLUMNS[6]
    assert dates.in_words() == {"low": "1970-01-01", "high": "1970-01-10"}
    days = {"origin": 0, "step": 86400, "low": 0, "high": 9}
    texts = TimeColumn(name="x", type="string", format="%d.%m.%Y", **days)
    assert texts.in_words() == {"low": "01.01.1970", "high": "10.01.1970", "format": "%d.%m.%Y"}


BERLIN = TimeColumn(
    name="x", type="timestamp[us, tz=Europe/Berlin]", origin=0, low=0, high=1e18, quantiles=(0, 1)
)
NAIVE = BERLIN.model_copy(update={"type": "timestamp[us]"})
TEN = dt.datetime(2023, 3, 5, 10)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([TEN, None]),
        pa.array(["2023-03-05 10:00", None]),
        pa.array(["2023-03-05T10:00:00+0100", "2023-03-05T09:00:00Z"]),
        pa.array(["2023-03-05 10:00", "2023-03-05T09:00Z", "2023-03-05 04:00-05"]),
        pa.array(["2023-03-05 10:00"], pa.large_string()),
        pa.array([dt.datetime(2023, 3, 5, 9)], pa.timestamp("s", "UTC")),
    ],
)
def test_times_without_a_zone_are_of_the_column_s(values: pa.Array) -> None:
    """As a condition's is, which is such a text."""
    known = typed_values(BERLIN, values).drop_null()
    assert set(known.to_pylist()) == {TEN.replace(tzinfo=ZoneInfo("Europe/Berlin"))}
    moment = BERLIN.numbers(known)[0]
    assert BERLIN.number("2023-03-05 10:00") == BERLIN.number("2023-03-05T09:00Z") == moment


def test_a_day_begins_at_midnight_of_the_column_s_zone() -> None:
    (day,) = typed_values(BERLIN, pa.array([dt.date(2023, 7, 1)])).to_pylist()
    assert day == dt.datetime(2023, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize("value", ["2023-03-26 02:30", "2023-10-29 02:30"])
def test_times_that_clocks_skip_or_show_twice_are_refused(value: str) -> None:
    says = f"clocks in Europe/Berlin skip {value}.*; give its offset, such as .01:00"
    for values in (pa.array([value]), pa.array([dt.datetime.fromisoformat(value)])):
        with pytest.raises(DataError, match=f"^column 'x': {says}$"):
            typed_values(BERLIN, values)
    with pytest.raises(ConditionError, match=f"^x: {says}$"):
        BERLIN.number(value)
    assert typed_values(BERLIN, pa.array([f"{value}+01:00"]))[0].is_valid


@pytest.mark.parametrize(
    "values",
    [
        pa.array([None, dt.datetime(2023, 3, 5, 9)], pa.timestamp("us", "America/New_York")),
        pa.array([None, "2023-03-05T10:00:00Z"]),
        pa.array(["2023-03-05 10:00", "2023-03-05 10:00+01"]),
    ],
)
def test_a_column_without_a_zone_takes_no_times_that_have_one(values: pa.Array) -> None:
    with pytest.raises(DataError, match="has a zone, and the column has none; give times as"):
        typed_values(NAIVE, values)
    plain = typed_values(NAIVE, pa.array(["2023-03-05", "2023-03-05T10:00:00", None]))
    assert plain.to_pylist() == [dt.datetime(2023, 3, 5), TEN, None]
    assert typed_values(NAIVE, pa.array([TEN, None])).to_pylist() == [TEN, None]


@pytest.mark.parametrize("column", [BERLIN, NAIVE])
def test_what_is_no_time_is_named(column: TimeColumn) -> None:
    with pytest.raises(DataError, match=r"column 'x': not timestamp.*'noon'") as caught:
        typed_values(column, pa.array(["noon"]))
    assert "zone offset" not in str(caught.value)


DURATIONS = TimeColumn(
    name="x", type="duration[ms]", origin=1000, step=250, low=0, high=40, quantiles=(0, 40)
)
"""1 to 11 seconds, in quarters of a second."""


@pytest.mark.parametrize(
    ("condition", "low", "high"),
    [
        (Condition(below=5000), 0, 15),
        (Condition(below="5000.5"), 0, 16),
        (Condition(at_most=5249), 0, 16),
        (Condition(above=5000), 17, 40),
        (Condition(above=4999.5, at_most=1e9), 16, 40),
        (Condition(at_least="5000.5"), 17, 40),
        (Condition(one_of=(1250,)), 1, 1),
    ],
    ids=str,
)
def test_a_duration_is_a_number_of_units_and_may_lie_between_two(
    condition: Condition, low: int, high: int
) -> None:
    allowed = DURATIONS.limits(condition)
    assert (allowed.low, allowed.high) == (low, high)


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "3 s"])
def test_what_is_no_duration_is_refused(value: str) -> None:
    with pytest.raises(ConditionError, match=f"^x: '{value}' is not a number$"):
        DURATIONS.limits(Condition(above=value))


def test_rare_categories_are_one_option() -> None:
    column = CategoryColumn(
        name="x", type="string", categories=("a", "b"), others=("c", "d"), other_counts=(2, 1)
    )
    assert column.split(pa.array(["d", "a", "c", "b"])).options.tolist() == [2, 0, 2, 1]
    with pytest.raises(DataError, match="row 2 has the unknown category 'e'"):
        column.split(pa.array(["a", "e"]))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("int64", [5, 7]),
        ("int64", [5.0, 7.0]),
        ("int64", ["5", "7"]),
        ("double", ["5.0", "7"]),
        ("double", [5, 7]),
    ],
)
def test_categories_that_are_numbers_are_known_however_they_are_read(
    kind: str, values: list[Any]
) -> None:
    column = CategoryColumn(name="x", type=kind, categories=("7", "5"))
    assert column.split(pa.array(values)).options.tolist() == [1, 0]
    assert column.is_valid(pa.array(values)).all()


@pytest.mark.parametrize("values", [[7.0, 5.5], ["7", "5.5"], ["7", "five"], ["7", ""]], ids=str)
@pytest.mark.parametrize("kind", ["int64", "double"])
def test_what_is_none_of_the_categories_is_named(kind: str, values: list[Any]) -> None:
    column = CategoryColumn(name="x", type=kind, categories=("7", "5"))
    with pytest.raises(DataError, match=f"row 2 has the unknown category '{values[1]}'"):
        column.split(pa.array(values))
    assert column.is_valid(pa.array(values)).tolist() == [True, False]


def test_truth_values_are_known_as_people_write_them() -> None:
    column = BooleanColumn(name="x", missing=0.5)
    values = pa.array(["1", "True", "false", "0", None, "FALSE"])
    assert column.split(values).options.tolist() == [1, 1, 0, 0, 2, 0]
    with pytest.raises(DataError, match="row 1 has the unknown category 'yes'"):
        column.split(pa.array(["yes"]))


# ---- numbers ---------------------------------------------------------------------------------

WHOLE = NumberColumn(
    name="x", type="int64", low=-5, high=9, decimals=0, quantiles=(-5, 9), spikes=(0, 3),
    missing=0.1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "low", "high"),
    [
        (Condition(at_least=1.4), 2, 9),
        (Condition(at_least=1.5), 2, 9),
        (Condition(at_least=2), 2, 9),
        (Condition(above=1.6), 2, 9),
        (Condition(above=2), 3, 9),
        (Condition(at_most=1.4), -5, 1),
        (Condition(at_most=1.6), -5, 1),
        (Condition(at_most=1), -5, 1),
        (Condition(below=1.6), -5, 1),
        (Condition(below=1), -5, 0),
        (Condition(one_of=(-5,)), -5, -5),
        (Condition(one_of=(9, 0)), 9, 9),
        (Condition(one_of=(-5,), at_most=-5), -5, -5),
        (Condition(at_least=1, none_of=(1, 5)), 2, 9),
        (Condition(at_least=1, none_of=(1, 2, 5)), 3, 9),
        (Condition(at_most=7, none_of=(7, 6, 2)), -5, 5),
    ],
    ids=str,
)
def test_an_end_between_two_whole_numbers_is_the_one_inside(
    condition: Condition, low: int, high: int
) -> None:
    allowed = WHOLE.limits(condition)
    assert (allowed.low, allowed.high) == (low, high)


@pytest.mark.parametrize(
    "condition",
    [
        Condition(at_least=7, at_most=7, none_of=(7,)),
        Condition(at_least=7, at_most=8, none_of=(7, 8)),
        Condition(one_of=(7,), none_of=(7,)),
        Condition(one_of=(7,), above=7),
        Condition(one_of=(1.5,)),
        Condition(above=9),
        Condition(above=1, below=2),
    ],
    ids=str,
)
def test_what_no_number_meets_is_told(condition: Condition) -> None:
    allowed = WHOLE.limits(condition)
    assert allowed.low > allowed.high
    with pytest.raises(ConditionError, match=r"x is from -5 to 9, and whole, or missing$"):
        WHOLE.allowed(condition)


def test_numbers_that_are_not_wanted_become_the_next_ones() -> None:
    """Whatever the code; its options are any number, 0, 3 and missing."""
    codes = np.zeros((100, 5), np.float32)
    codes[:, 0], codes[:, 1] = np.linspace(-4, 4, 100), 1
    condition = Condition(above=-3, none_of=(1, 2, 9))
    made = set(WHOLE.decode(codes, condition=condition).to_pylist())
    assert made == {-2, -1, 0, 3, 4, 5, 6, 7, 8}
    for unwanted in (-1, 1):
        code = WHOLE.encode(pa.array([unwanted]))
        made_of_it = WHOLE.decode(code, condition=Condition(none_of=(unwanted,)))
        assert made_of_it.to_pylist() == [unwanted + 1]


def test_what_is_no_number_of_its_own_has_the_score_0() -> None:
    """The score of a spike or of a missing value says nothing."""
    coded = WHOLE.split(pa.array([0, 3, None, 9]))
    assert coded.options.tolist() == [1, 2, 3, 0]
    assert coded.scores is not None
    assert coded.scores[:3].tolist() == [0, 0, 0]
    assert coded.scores[3] > 3


def test_a_number_with_more_digits_than_float64_has_is_none_of_the_column() -> None:
    assert WHOLE.is_valid(pa.array([2**60 + 1, 9])).tolist() == [False, True]


@pytest.mark.parametrize("values", [[3, 5.5], ["3", "5.5"]], ids=str)
def test_what_is_none_of_few_numbers_is_named_as_it_stands(values: list[Any]) -> None:
    few = NumberColumn(name="x", type="int64", low=3, high=5, decimals=0, spikes=(3, 5))
    with pytest.raises(DataError, match=r"^column 'x': 5\.5 is none of 3, 5$"):
        few.split(pa.array(values))


@pytest.mark.parametrize(
    ("condition", "spikes"),
    [
        (Condition(at_least=0, at_most=3), [True, True]),
        (Condition(above=0), [False, True]),
        (Condition(below=3), [True, False]),
        (Condition(above=3), [False, False]),
        (Condition(none_of=(3,)), [True, False]),
        (Condition(one_of=(3, 7)), [False, True]),
        (Condition(missing=False), [True, True]),
        (Condition(missing=True), [False, False]),
    ],
    ids=str,
)
def test_spikes_are_allowed_by_their_value(condition: Condition, spikes: list[bool]) -> None:
    assert WHOLE.limits(condition).spikes.tolist() == spikes


def test_a_missing_value_alone_is_allowed_where_none_is_asked_for() -> None:
    """The options: any number, 0, 3, and missing."""
    options, _ = WHOLE.allowed(Condition(missing=True))
    assert options.tolist() == [False, False, False, True]
    options, _ = WHOLE.allowed(Condition(missing=False))
    assert options.tolist() == [True, True, True, False]


def test_several_values_are_asked_for_together_only_if_they_are_spikes() -> None:
    assert WHOLE.limits(Condition(one_of=(0, 3, 1.5))).spikes.all()
    assert WHOLE.limits(Condition(one_of=(0, 3, 7))).low == 7
    with pytest.raises(ConditionError, match=r"^x: 1, 7 cannot be asked for together"):
        WHOLE.limits(Condition(one_of=(7, 0, 1)))
    few = WHOLE.model_copy(update={"quantiles": ()})
    assert few.limits(Condition(one_of=(0, 7, 1))).spikes.tolist() == [True, False]


@pytest.mark.parametrize(("kind", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_what_is_beyond_a_number_is_the_next_one_of_the_type(kind: str, dtype: Any) -> None:
    column = NumberColumn(name="x", type=kind, low=0, high=1, quantiles=(0, 1))
    half = dtype(0.5)
    assert column.limits(Condition(above=0.5)).low == np.nextafter(half, dtype(1))
    assert column.limits(Condition(below=0.5)).high == np.nextafter(half, dtype(0))
    assert column.limits(Condition(at_least=0.5, none_of=(0.5,))).low == np.nextafter(
        half, dtype(1)
    )


CENTS = NumberColumn(name="x", type="double", low=0, high=1e18, decimals=2, quantiles=(0, 1e18))


def test_decimals_are_kept() -> None:
    numbers = np.array([0.123, 0.5, 0.509, 1234567.891, 3.0])
    assert CENTS.rounded(numbers).tolist() == [0.12, 0.5, 0.51, 1234567.89, 3.0]
    assert CENTS.limits(Condition(above=0.5)).low == 0.51
    assert CENTS.limits(Condition(below="0.5")).high == 0.49
    assert CENTS.limits(Condition(at_least=0.503)).low == 0.51


@pytest.mark.parametrize("size", [1.5 * 2**53 / 100, 1e17])
def test_numbers_without_room_for_decimals_stay_as_they_are(size: float) -> None:
    """A hundredfold they are beyond 2^53, and some would come back another number."""
    numbers = size * np.random.default_rng(0).uniform(0.7, 1.3, 10_000)
    assert (np.rint(numbers * 100) / 100 != numbers).any()
    assert (CENTS.rounded(numbers) == numbers).all()


def test_a_valid_number_has_the_column_s_decimals_but_for_the_last_place() -> None:
    values = pa.array([0.3, 0.1 + 0.2, 0.305, 0.3 + 1e-12, 1e18, -0.01, 2e18, None])
    valid = [True, True, False, False, True, False, False, False]
    assert CENTS.is_valid(values).tolist() == valid
    gaps = CENTS.model_copy(update={"missing": 0.1})
    assert gaps.is_valid(values).tolist() == [*valid[:-1], True]
    few = NumberColumn(name="x", type="int64", low=3, high=5, decimals=0, spikes=(3, 5))
    assert few.is_valid(pa.array([2, 3, 4, 5])).tolist() == [False, True, False, True]


LOGNORMAL = np.random.default_rng(0).lognormal(size=2000)
PRICES = np.random.default_rng(1).permutation(np.arange(1, 2000)) / 100
COARSE: list[tuple[str, Any, dict[str, Any], float, float]] = [
    ("more digits than told", LOGNORMAL + 0.2, {"decimals": 0}, 1, np.floor(LOGNORMAL.max() + 0.2)),
    ("some longer prices", np.append(PRICES, [0.0011, 0.0012, 19.9999] * 5), {}, 0.01, 19.99),
    ("many rows of a longer price", np.append(PRICES, [0.0011] * 900), {}, 0.01, 19.99),
    ("few different", [0.25, 0.5, 0.75, 0.9] * 50, {"decimals": 1}, 0.3, 0.9),
    ("ends that are told", LOGNORMAL, {"decimals": 0, "low": -0.5, "high": 99.5}, 0, 99),
    ("the last place", [0.1 + 0.2, *PRICES[PRICES > 0.3]], {}, 0.3, 19.99),
    ("float32", LOGNORMAL.astype("f4"), {"decimals": 1}, 0.1, float(np.float32(21.4))),
    (
        "decimal128",
        pa.array([0.26, 0.99] * 50).cast(pa.decimal128(9, 2)),
        {"decimals": 1},
        0.3,
        0.9,
    ),
]


@pytest.mark.parametrize(("values", "told", "low", "high"), [c[1:] for c in COARSE])
def test_ends_have_the_decimals_that_numbers_are_rounded_to(
    values: Any, told: dict[str, Any], low: float, high: float
) -> None:
    """So each number that is made is valid, under a condition at an end too."""
    every = np.ones(len(values), bool)
    column: Any = fit_values("number", "x", pa.array(values), every, ColumnConfig(**told))
    assert (column.low, column.high) == pytest.approx((low, high), rel=1e-6)
    assert low - 1e-9 <= column.low <= column.high <= high + 1e-6
    codes = np.random.default_rng(2).normal(size=(5000, sum(p.width for p in column.parts)))
    for condition in (None, Condition(at_most=low + 1), Condition(at_least=high - 0.1)):
        made = column.decode(codes, condition=condition)
        assert column.is_valid(made).all()
        numbers = made.cast(pa.float64()).to_numpy()
        assert np.allclose(numbers, np.round(numbers, column.decimals), rtol=1e-6)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"decimals": 0}, "from 0.2 to 0.4 there is no number of 0 decimals; raise decimals"),
        ({"decimals": 1, "spikes": (0.25,)}, "not all spikes have 1 decimals; raise decimals"),
    ],
)
def test_decimals_that_leave_no_number_are_refused(told: dict[str, Any], says: str) -> None:
    values = pa.array(np.linspace(0.2, 0.4, 100))
    with pytest.raises(DataError, match=says):
        fit_values("number", "x", values, np.ones(100, bool), ColumnConfig(**told))


def test_scores_are_restricted_between_the_ends_of_training_alone() -> None:
    column = WHOLE.model_copy(update={"quantiles": (-5, -3, 0, 4, 9)})
    middle = to_scores(np.array([-4.0, 8.0]), column.quantiles)
    for condition, low, high in (
        (Condition(at_least=-5, at_most=9), -LARGEST_SCORE, LARGEST_SCORE),
        (Condition(at_least=-4), middle[0], LARGEST_SCORE),
        (Condition(at_most=8), -LARGEST_SCORE, middle[1]),
        (Condition(at_least=-4, at_most=8), middle[0], middle[1]),
        (Condition(missing=True), -LARGEST_SCORE, LARGEST_SCORE),
    ):
        assert column.allowed(condition)[1] == (low, high)
