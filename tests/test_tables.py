"""The codec of tables: each kind of column there and back, valid for any code, under conditions."""

import datetime as dt
import decimal
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import norm

from models.config import ColumnConfig
from models.errors import ConditionError, DataError
from models.networks.rows import RowHeads
from models.tables import Condition, TableSchema, parse_conditions
from models.tables.category import uniform
from models.tables.column import arrow_type, converted
from models.tables.conditions import conditions_of
from models.tables.gaps import complete
from models.tables.layout import LARGEST_SCORE, Choice
from models.tables.scores import from_scores, quantile_levels, to_scores
from training.data.rules import fit_rules, with_rules
from training.data.schema import find_structure, fit_schema

RNG = np.random.default_rng(0)
N = 400
MICROSECOND = np.arange(N)
MOMENTS = 1_700_000_000 + RNG.integers(0, 10**6, N)


def gaps(values: list[Any], every: int = 7) -> list[Any]:
    return [None if i % every == 3 else value for i, value in enumerate(values)]


def moments(unit: str, zone: str | None = None) -> pa.Array:
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    return pa.array(MOMENTS * factor, pa.int64()).cast(pa.timestamp(unit, zone))


CASES: dict[str, pa.Array] = {
    "floats": pa.array(RNG.normal(size=N)),
    "floats far off": pa.array(1e9 + RNG.normal(size=N)),
    "float32": pa.array(RNG.normal(size=N).astype(np.float32)),
    "tenths in float32": pa.array((RNG.integers(0, 500, N) / 10).astype(np.float32)),
    "cents": pa.array(RNG.integers(-(10**6), 10**6, N) / 100),
    "cents with gaps": pa.array(gaps((RNG.integers(0, 10**5, N) / 100).tolist())),
    "whole": pa.array(RNG.integers(-5000, 5000, N)),
    "whole to 2**53": pa.array(RNG.integers(2**53 - 10**6, 2**53, N)),
    "int8 with gaps": pa.array(gaps(RNG.integers(-128, 128, N).tolist()), pa.int8()),
    "uint16": pa.array(RNG.integers(0, 2**16, N), pa.uint16()),
    "zero in half of the rows": pa.array(np.where(RNG.random(N) < 0.5, 0, RNG.random(N))),
    "few values": pa.array(RNG.choice([1, 5, 20], N)),
    "few values with gaps": pa.array(gaps(RNG.choice([0.5, 2.25], N).tolist())),
    "one value or none": pa.array(gaps([3] * N)),
    "decimal": pa.array(
        [decimal.Decimal(int(x)) / 100 for x in RNG.integers(0, 10**6, N)], pa.decimal128(10, 2)
    ),
    "truth": pa.array(RNG.random(N) < 0.3),
    "truth with gaps": pa.array(gaps((RNG.random(N) < 0.3).tolist())),
    "categories": pa.array(RNG.choice(["a", "b", "c d", "é"], N)),
    "categories with gaps": pa.array(gaps(RNG.choice(["a", "", "NA"], N).tolist())),
    "dictionary": pa.array(RNG.choice(["x", "y"], N)).dictionary_encode(),
    "ordered dictionary": pa.DictionaryArray.from_arrays(
        pa.array(RNG.integers(0, 3, N), pa.int8()), ["S", "M", "L", "XL"], ordered=True
    ),
    "large strings": pa.array(RNG.choice(["x", "y"], N), pa.large_string()),
    "dates": pa.array(
        [dt.date(2020, 1, 1) + dt.timedelta(int(x)) for x in RNG.integers(0, 900, N)]
    ),
    "dates with gaps": pa.array(
        gaps([dt.date(2020, 1, 1 + int(x)) for x in RNG.integers(0, 30, N)])
    ),
    "date64": moments("s").cast(pa.date32()).cast(pa.date64()),
    "seconds": moments("s"),
    "nanoseconds": moments("ns"),
    "with a zone": moments("us", "Europe/Berlin"),
    "time of day": pa.array(RNG.integers(0, 1440, N) * 60, pa.int32()).cast(pa.time32("s")),
    "time of day in microseconds": pa.array(RNG.integers(0, 10**6, N)).cast(pa.time64("us")),
    "durations": pa.array(RNG.integers(0, 10**5, N)).cast(pa.duration("ms")),
    "text dates": pc.strftime(moments("s"), "%d.%m.%Y"),
    "text times": pc.strftime(moments("s"), "%Y-%m-%dT%H:%M:%SZ"),
}


def fitted(values: pa.Array, is_training: np.ndarray | None = None, **told: Any) -> TableSchema:
    table = pa.table({"x": values, "y": RNG.normal(size=len(values))})
    words = {"x": ColumnConfig(**told)} if told else {}
    everything = np.ones(len(values), bool)
    structure = find_structure(table, words)
    return fit_schema(table, structure, words, everything if is_training is None else is_training)


@pytest.mark.parametrize("values", [range(40), np.arange(40) / 4, np.arange(40).astype("M8[D]")])
def test_numbers_and_times_of_a_dictionary_come_back_without_it(values: Any) -> None:
    plain = pa.array(RNG.choice(values, N))
    schema = fitted(plain.dictionary_encode())
    table = pa.table({"x": plain.dictionary_encode(), "y": np.zeros(N)})
    assert schema.decode(schema.encode(table))["x"].combine_chunks().equals(plain)


DECIMALS = pa.array([decimal.Decimal(int(x)) / 100 for x in RNG.integers(0, 999, N)])


@pytest.mark.parametrize("kind", [pa.decimal32(6, 2), pa.decimal64(10, 2), pa.decimal256(60, 2)])
@pytest.mark.parametrize("told", [None, "category"])
def test_decimals_of_all_sizes(kind: pa.DataType, told: str | None) -> None:
    values = DECIMALS.cast(kind)
    schema = fitted(values, kind=told, max_categories=999 if told else None)
    table = pa.table({"x": values, "y": np.zeros(N)})
    back = schema.decode(schema.encode(table))["x"].combine_chunks()
    assert back.to_pylist() == values.to_pylist()
    assert back.type == pa.decimal128(min(kind.precision, 38), 2)


def test_columns_that_no_model_can_hold_are_named() -> None:
    wide = pa.array([decimal.Decimal(10**50), decimal.Decimal(1)] * N, pa.decimal256(60, 2))
    nested = pa.DictionaryArray.from_arrays(pa.array([0, 1] * N), pa.array([[1], [2]]))
    with pytest.raises(DataError, match=r"^column 'x': [^;]*precision[^;]*; round it, or leave"):
        fitted(wide)
    assert list(fitted(wide, kind="left_out").left_out) == ["x"]
    assert "list<item: int64>" in fitted(nested).left_out["x"]
    for name in ("time of day", "time of day in microseconds", "durations"):
        for kind in ("category", "boolean"):
            with pytest.raises(DataError, match=r"column 'x': (\S+ cannot be cat|has \d+ diff)"):
                fitted(CASES[name], kind=kind)
    with pytest.raises(DataError, match="column 'x': halffloat cannot be categories"):
        fitted(pa.array(np.zeros(N, np.float16)), kind="category")


def test_a_value_that_a_copys_type_does_not_have_is_named() -> None:
    b = np.arange(N) % 97
    table = pa.table({"a": b / 1, "b": b, "c": RNG.normal(size=N)})
    schema = fit_schema(table, find_structure(table, {}), {}, np.ones(N, bool))
    rows = pa.table({"a": [1.5, 2.0]})
    with pytest.raises(DataError, match=r"^column 'a': has no copy in 'b': not int64: .*1\.5"):
        complete(schema, rows, lambda _: rows, 0, 0)


def test_a_whole_number_that_floats_do_not_have_is_no_copy() -> None:
    for kind, largest in ((pa.float64(), 2**53), (pa.float32(), 2**24)):
        values = pa.chunked_array([[largest, -largest]])
        assert converted(values, kind).to_pylist() == [largest, -largest]
        with pytest.raises(DataError, match=rf"^not {kind}: .*{largest + 1}"):
            converted(pa.chunked_array([[largest + 1]]), kind)


def test_a_copy_in_another_type_comes_back() -> None:
    whole = pa.array(RNG.integers(10, 99, N))
    every = pa.int64(), pa.decimal128(2, 0), pa.int8(), pa.float32()
    for kinds in itertools.permutations(every, 2):
        a, b = (converted(whole, kind) for kind in kinds)
        table = pa.table({"a": a, "b": b, "c": RNG.normal(size=N)})
        structure = find_structure(table, {})
        assert structure.copies == {"b": "a"}
        schema = fit_schema(table, structure, {}, np.ones(N, bool))
        back = schema.decode(schema.encode(table))
        assert back.select(["a", "b"]).equals(table.select(["a", "b"])), kinds


@pytest.mark.parametrize("name", CASES)
def test_values_come_back_as_they_were(name: str) -> None:
    """To the digit, from float32 codes too, which networks see."""
    values = CASES[name]
    column = fitted(values).column("x")
    back = column.decode(column.encode(values))
    assert back.type == values.type
    assert column.is_valid(back).all()
    assert column.is_valid(values).all()
    if column.kind == "number" and column.decimals is None:  # type: ignore[attr-defined]
        quantiles = np.array(column.quantiles)  # type: ignore[attr-defined]
        steps = np.diff(quantiles).max()
        assert np.abs(back.to_numpy() - values.to_numpy()).max() < 2e-4 * steps
    else:
        assert back.equals(values)


def any_codes(width: int) -> np.ndarray:
    """Codes as no network makes them."""
    codes = RNG.normal(scale=RNG.choice([1e-3, 1, 10, 1e30], (300, 1)), size=(300, width))
    codes[0], codes[1], codes[2] = 0, np.inf, -np.inf
    codes[3] = np.nan
    return codes.astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_any_code_is_a_valid_value(name: str) -> None:
    schema = fitted(CASES[name])
    column = schema.column("x")
    values = column.decode(any_codes(sum(part.width for part in column.parts)))
    assert values.type == CASES[name].type
    assert column.is_valid(values).all()
    assert values.null_count == 0 or column.missing > 0


def test_a_schema_is_kept_in_json_and_loses_nothing() -> None:
    table = pa.table(CASES)
    structure = find_structure(table, {})
    schema = fit_schema(table, structure, {}, np.arange(N) % 5 > 0)
    again = TableSchema.model_validate_json(schema.model_dump_json())
    assert again == schema
    codes = any_codes(schema.width)
    assert again.decode(codes, 5).equals(schema.decode(codes, 5))
    assert again.encode(table).tobytes() == schema.encode(table).tobytes()
    assert schema.model_dump().keys() == {"columns", "left_out"}, "nothing that is not told"
    comma = schema.model_copy(update={"decimal": ","})
    assert TableSchema.model_validate_json(comma.model_dump_json()) == comma
    with pytest.raises(ValidationError, match="frozen"):
        schema.columns = ()  # type: ignore[misc]


def test_packed_codes_are_the_codes_without_their_zeros() -> None:
    names = {
        "all": [*CASES],
        "numbers alone": ["floats", "whole"],
        "choices alone": ["truth", "categories", "few values"],
    }
    for some in names.values():
        table = pa.table({name: CASES[name] for name in some})
        schema = fit_schema(table, find_structure(table, {}), {}, np.ones(N, bool))
        scores, options = schema.pack(table)
        assert (scores.dtype, options.dtype) == (np.float32, np.uint16)
        numbers, choices, pieces = iter(scores.T), iter(options.T), list[np.ndarray]()
        for part in schema.parts:
            if isinstance(part, Choice):
                pieces.append(np.eye(part.width, dtype=np.float32)[next(choices)])
            else:
                pieces.append(next(numbers)[:, None])
        assert (next(numbers, None), next(choices, None)) == (None, None)
        assert (len(scores), len(options)) == (N, N)
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), schema.encode(table))


def test_a_column_is_needed_if_it_has_a_code_or_a_rule() -> None:
    city = RNG.choice(["a", "b"], N)
    table = pa.table({"city": city, "land": ["NL"] * N, "x": RNG.normal(size=N)})
    structure = find_structure(table, {})
    plain = fit_schema(table, structure, {}, np.ones(N, bool))
    assert plain.encode(table.drop_columns(["land"])).tobytes() == plain.encode(table).tobytes()
    ruled = with_rules(plain, ["combination(city, land)"])
    ruled = fit_rules(ruled, table, np.ones(N, bool))
    for schema, name in ((plain, "x"), (plain, "city"), (ruled, "x"), (ruled, "land")):
        there = table.drop_columns([name]).append_column(f"{name}s", table[name])
        says = f"^no column '{name}'; did you mean '{name}s'"
        with pytest.raises(DataError, match=says):
            schema.encode(there)
        with pytest.raises(DataError, match=says):
            schema.pack(there)


# ---- scores ----------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=50))
@settings(max_examples=60, deadline=None)
def test_scores_are_undone(numbers: list[float]) -> None:
    quantiles = np.sort(numbers)
    back = from_scores(to_scores(quantiles, quantiles), quantiles)
    np.testing.assert_allclose(back, quantiles, rtol=1e-9, atol=1e-9 * np.ptp(quantiles))


@pytest.mark.parametrize("count", [2, 5, 1000])
def test_quantiles_lie_at_equal_distances_of_a_normal_cut_off_at_its_ends(count: int) -> None:
    cut = norm.cdf(-3.5)
    levels = (norm.cdf(np.linspace(-3.5, 3.5, count)) - cut) / (1 - 2 * cut)
    found = quantile_levels(count)
    np.testing.assert_allclose(found, levels, rtol=1e-9, atol=1e-15)
    assert (found[0], found[-1]) == (0, 1)


def test_a_score_is_the_normal_one_of_the_rank_and_equal_numbers_have_their_middle() -> None:
    cut = norm.cdf(-3.5)

    def score(rank: float) -> float:
        return float(norm.ppf(cut + (1 - 2 * cut) * rank))

    numbers = np.array([-1.0, 0.0, 1.0, 2.5, 5.0, 10.0, 11.0])
    expected = [score(rank) for rank in (0, 0, 0.1, 0.25, 0.5, 1, 1)]
    found = to_scores(numbers, [0.0, 10.0])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(from_scores(found, [0.0, 10.0]), numbers.clip(0, 10), atol=1e-9)
    ends = from_scores(np.array([-9.0, 9.0, -np.inf, np.inf]), [0.0, 10.0])
    np.testing.assert_allclose(ends, [0, 10, 0, 10], atol=1e-9)
    second, third = (float(quantile_levels(4)[i]) for i in (1, 2))
    found = to_scores(np.array([5.0]), [5.0, 5.0, 10.0, 10.0])
    np.testing.assert_allclose(found, score(second / 2), atol=1e-9)
    found = to_scores(np.array([0.0, 5.0, 7.5, 10.0]), [0.0, 5.0, 5.0, 10.0])
    ranks = 0, 0.5, (third + 1) / 2, 1
    np.testing.assert_allclose(found, [score(rank) for rank in ranks], atol=1e-9)


def test_scores_of_a_normal_are_standard() -> None:
    """The normal's own quantile function is the oracle."""
    quantiles = 5 + 2 * norm.ppf(quantile_levels(1000).clip(1e-9, 1 - 1e-9))
    numbers = 5 + 2 * np.linspace(-2, 2, 9)
    assert np.abs(to_scores(numbers, quantiles) - np.linspace(-2, 2, 9)).max() < 0.02


def test_a_far_value_is_rare_among_generated_numbers_too() -> None:
    """Normal scores make the data's own distribution again, out to the tails."""
    rng = np.random.default_rng(0)
    numbers = np.sort(np.append(rng.lognormal(0, 1, 9999), 1e6))
    made = from_scores(rng.normal(size=100_000), np.quantile(numbers, quantile_levels(1000)))
    levels = [0.001, 0.01, 0.5, 0.99, 0.999, 0.9995]
    ratios = np.quantile(made, levels) / np.quantile(numbers, levels)
    assert np.abs(ratios - 1).max() < 0.15


# ---- conditions ------------------------------------------------------------------------------


def meets(value: Any, condition: Condition, read: Callable[[Any], Any]) -> bool:
    """What a condition says, in plain Python."""
    if condition.missing:
        return value is None
    if value is None:
        return False
    return (
        (condition.one_of is None or value in [read(v) for v in condition.one_of])
        and value not in [read(v) for v in condition.none_of]
        and (condition.above is None or value > read(condition.above))
        and (condition.at_least is None or value >= read(condition.at_least))
        and (condition.below is None or value < read(condition.below))
        and (condition.at_most is None or value <= read(condition.at_most))
    )


def obeying(schema: TableSchema, restrictions: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Codes brought into what restrictions allow, as the generator's last layer does."""
    finite = torch.from_numpy(np.nan_to_num(codes).clip(-1e6, 1e6))
    limits = torch.from_numpy(restrictions).expand(len(codes), -1)
    return RowHeads(schema.parts)(finite, limits).numpy()


def check(schema: TableSchema, condition: Condition, read: Callable[[Any], Any]) -> None:
    """Every code gives a value that meets the condition, and the restriction lets it through."""
    refused = ""
    try:
        restrictions = schema.restrict({"x": condition})
    except ConditionError as error:
        refused = str(error)
    if refused:
        every = schema.column("x").decode(any_codes(schema.width)).to_pylist()
        assert "together" in refused or not any(meets(v, condition, read) for v in every)
        return
    for codes in (any_codes(schema.width), obeying(schema, restrictions, any_codes(schema.width))):
        made = schema.decode(codes, conditions={"x": condition})["x"]
        assert schema.column("x").is_valid(made.combine_chunks()).all()
        assert all(meets(value, condition, read) for value in made.to_pylist()), condition


def as_float(value: Any) -> float:
    return float(value)


NUMBERS = {
    "floats": (CASES["floats"], as_float),
    "float32": (CASES["float32"], lambda v: float(np.float32(v))),
    "tenths in float32": (CASES["tenths in float32"], lambda v: float(np.float32(v))),
    "cents with gaps": (CASES["cents with gaps"], as_float),
    "whole to 2**53": (CASES["whole to 2**53"], as_float),
    "int8 with gaps": (CASES["int8 with gaps"], as_float),
    "zero in half of the rows": (CASES["zero in half of the rows"], as_float),
    "few values": (CASES["few values"], as_float),
    "few values with gaps": (CASES["few values with gaps"], as_float),
}
SCHEMAS = {name: fitted(values) for name, (values, _) in NUMBERS.items()}


@pytest.mark.parametrize("name", NUMBERS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_numbers_meet_every_condition(name: str, data: st.DataObject) -> None:
    values, read = NUMBERS[name]
    known = [v for v in values.to_pylist() if v is not None]
    low, high = min(known), max(known)
    number = st.one_of(
        st.sampled_from(known),
        st.floats(low - 0.1 * (high - low), high + 0.1 * (high - low)),
        st.sampled_from(known).map(lambda v: round(float(v), 1)),
    )
    fields: dict[str, Any] = {}
    for end in ("above", "at_least", "below", "at_most"):
        if data.draw(st.integers(0, 3)) == 0:
            fields[end] = float(data.draw(number))
    if data.draw(st.integers(0, 3)) == 0:
        fields["none_of"] = tuple(data.draw(st.lists(number, min_size=1, max_size=3)))
    if data.draw(st.integers(0, 3)) == 0:
        fields["one_of"] = tuple(data.draw(st.lists(number, min_size=1, max_size=3)))
    if not fields:
        fields["missing"] = data.draw(st.booleans())
    check(SCHEMAS[name], Condition(**fields), read)


RARE = pa.array([f"c{min(int(x), 99)}" for x in RNG.exponential(12, 4000)])
SMALL = pa.dictionary(pa.int8(), pa.string())
TYPES = {int: pa.int64(), str: pa.string()}
CHOICES = {
    "categories": fitted(CASES["categories"]),
    "categories with gaps": fitted(CASES["categories with gaps"]),
    "rare": fitted(RARE, max_categories=5),
}


@pytest.mark.parametrize("name", CHOICES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_categories_meet_every_condition(name: str, data: st.DataObject) -> None:
    column = CHOICES[name].column("x")
    known = st.sampled_from([*column.categories, *column.others])  # type: ignore[attr-defined]
    fields: dict[str, Any] = {}
    for field in ("one_of", "none_of"):
        if data.draw(st.booleans()):
            fields[field] = tuple(data.draw(st.lists(known, min_size=1, max_size=4)))
    if not fields:
        fields["missing"] = data.draw(st.booleans())
    check(CHOICES[name], Condition(**fields), str)


@pytest.mark.parametrize(
    ("name", "text", "meets"),
    [
        ("dates", "x>=2021-05-31", lambda v: v >= dt.date(2021, 5, 31)),
        ("dates", "x=2021-05-31", lambda v: v == dt.date(2021, 5, 31)),
        ("seconds", "x<2023-11-20 12:00", lambda v: v < dt.datetime(2023, 11, 20, 12)),
        ("with a zone", "x>2023-11-20T12:00:00Z", lambda v: v.timestamp() > 1700481600),
        # 12:00 in Berlin is 11:00 in UTC.
        ("with a zone", "x>2023-11-20 12:00", lambda v: v.timestamp() > 1700478000),
        ("time of day", "x<=06:30", lambda v: v <= dt.time(6, 30)),
        ("durations", "x<5000", lambda v: v < dt.timedelta(seconds=5)),
        ("text dates", "x>20.11.2023", lambda v: v[-4:] + v[3:5] + v[:2] > "20231120"),
        ("text dates", "x>2023-11-20", lambda v: v[-4:] + v[3:5] + v[:2] > "20231120"),
        ("text times", "x<2023-11-20", lambda v: v < "2023-11-20"),
        ("truth", "x=true", lambda v: v is True),
        ("truth with gaps", "x!=1", lambda v: v is False),
        ("truth with gaps", "x=", lambda v: v is None),
        ("cents with gaps", "x!=", lambda v: v is not None),
        ("decimal", "x<=12.34", lambda v: v <= decimal.Decimal("12.34")),
    ],
)
def test_times_and_others_meet_conditions(name: str, text: str, meets: Any) -> None:
    schema, conditions = fitted(CASES[name]), parse_conditions([text])
    assert schema.restrict(conditions).any()
    for value in schema.decode(any_codes(schema.width), conditions=conditions)["x"].to_pylist():
        assert meets(value), value


@pytest.mark.parametrize(
    ("name", "condition", "says"),
    [
        ("whole", "x>1e6", r"x is from -\d+ to \d+, and whole"),
        ("whole", "x=1.5", "no row has x in"),
        ("whole", "x=", "never missing"),
        ("whole", "x>deep", "'deep' is not a number"),
        ("whole", "x=nan", "'nan' is not a number"),
        ("few values", "x=7", "one of 1, 5, 20"),
        ("cents", "x=0.005", "of 2 decimals"),
        ("categories", "x=q", "no category 'q'; there are"),
        ("categories", "x>a", "no order"),
        ("categories", "x=", "never missing"),
        ("dates", "x>soon", "not a date or time such as 2020"),
        ("dates", "x>2030-01-01", "from 2020-01-0"),
        ("whole", "z=1", "no column 'z'"),
    ],
)
def test_what_no_row_meets_is_one_clear_line(name: str, condition: str, says: str) -> None:
    schema = fitted(CASES[name])
    for ask in (schema.restrict, lambda c: schema.decode(np.zeros((1, schema.width)), 0, c)):
        with pytest.raises(ConditionError, match=says) as caught:
            ask(parse_conditions([condition]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["x"], "write a condition as"),
        (["x>"], "write a value after >"),
        (["x>1", "x>2"], "twice"),
        (["x=", "x=1"], "asks for no value and for more"),
    ],
)
def test_conditions_that_are_none(texts: list[str], says: str) -> None:
    with pytest.raises(ConditionError, match=says):
        parse_conditions(texts)


@pytest.mark.parametrize(
    ("texts", "fields"),
    [
        (["x=1", "x = 2 "], {"one_of": ("1", "2")}),
        (["x!=1", "x != 2"], {"none_of": ("1", "2")}),
        (["x>1", "x>=2"], {"above": "1", "at_least": "2"}),
        (["x<9", "x <= 8"], {"below": "9", "at_most": "8"}),
        (["x="], {"missing": True}),
        (["x!="], {"missing": False}),
        (["x!=", "x>1"], {"missing": False, "above": "1"}),
    ],
)
def test_conditions_are_read_as_people_write_them(texts: list[str], fields: dict[str, Any]) -> None:
    assert parse_conditions(texts) == {"x": Condition(**fields)}
    assert [*parse_conditions([*texts, "fixed acidity>7"])] == ["x", "fixed acidity"]


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        (None, {"missing": True}),
        ("a", {"one_of": ("a",)}),
        (True, {"one_of": (True,)}),
        (np.float64(0.5), {"one_of": (0.5,)}),
        (dt.datetime(2024, 2, 29), {"one_of": ("2024-02-29",)}),
        (dt.date(2024, 2, 29), {"one_of": ("2024-02-29",)}),
        (dt.datetime(2024, 2, 29, 1), {"one_of": ("2024-02-29T01:00:00",)}),
        (dt.datetime(2024, 2, 29, tzinfo=dt.UTC), {"one_of": ("2024-02-29T00:00:00+00:00",)}),
        ((dt.time(6, 30), 2), {"one_of": ("06:30:00", 2)}),
        ({"above": np.int64(3)}, {"above": 3}),
    ],
)
def test_values_stand_for_conditions(given: Any, fields: dict[str, Any]) -> None:
    assert Condition.model_validate(given) == Condition(**fields)


def test_the_json_schema_of_a_condition_takes_its_short_forms_too() -> None:
    validator = jsonschema_rs.Draft202012Validator(Condition.model_json_schema())
    for short in (None, "a", 2, 0.5, True, ["a"], ["a", 2], {"above": 1}, {"one_of": ["a"]}):
        assert validator.is_valid(short)
        Condition.model_validate(short)
    for short in ([], [["a"]], {"y": 1}, {"one_of": []}):
        assert not validator.is_valid(short)
        with pytest.raises(ValidationError):
            Condition.model_validate(short)


def test_a_condition_in_words() -> None:
    full = Condition(one_of=("a",), none_of=("b", 3), above=1, at_least=2, below=9, at_most=8)
    words = "x in ['a'] and x != b and x != 3 and x > 1 and x >= 2 and x < 9 and x <= 8"
    assert full.in_words("x") == words
    assert Condition(missing=True).in_words("x") == "x is missing"
    assert Condition(missing=False, above=0).in_words("x") == "x > 0 and x is not missing"
    assert [
        Condition(**{end: 0}).has_ends for end in ("above", "at_least", "below", "at_most")
    ] == ([True] * 4)
    assert not Condition(one_of=(1,), missing=False).has_ends


@pytest.mark.parametrize(
    "nothing", [{}, {"none_of": ()}, [], {"missing": True, "above": 1}, {"y": 1}]
)
def test_what_is_no_condition_is_refused_by_its_column(nothing: Any) -> None:
    with pytest.raises(ConditionError, match=r"^x: "):
        conditions_of({"x": nothing})


def test_all_ends_hold_together() -> None:
    schema = fitted(CASES["whole"])
    both = Condition(above=10, at_least=0, below=20, at_most=100)
    made = schema.decode(any_codes(schema.width), conditions={"x": both})["x"].to_numpy()
    assert made.min() == 11
    assert made.max() == 19


# ---- what is drawn or made anew --------------------------------------------------------------


def test_rows_draw_by_the_numbers_of_splitmix64() -> None:
    def mixed(z: int) -> int:
        """Steele, Lea & Flood 2014, figure 16."""
        z = z * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert mixed(1) == 0xE220A8397B1DCDAF  # its first number of the seed 0
    rows = [0, 1, 5, 10**9]
    for seed in (0, 7, 2**63 - 1):
        state = mixed((mixed(seed) + zlib.crc32(b"x")) % 2**64)
        expected = [(mixed((state + row) % 2**64) >> 11) / 2**53 for row in rows]
        assert uniform(np.array(rows), "x", seed).tolist() == expected


def test_what_is_no_category_is_invalid() -> None:
    for name, values, valid in (
        ("categories", ["a", "q", None], [True, False, False]),
        ("categories with gaps", ["a", "q", None], [True, False, True]),
        ("truth", [True, False, None], [True, True, False]),
        ("truth with gaps", [True, None], [True, True]),
    ):
        assert fitted(CASES[name]).column("x").is_valid(pa.array(values)).tolist() == valid
    rare = CHOICES["rare"].column("x")
    other = rare.others[-1]  # type: ignore[attr-defined]
    assert rare.is_valid(pa.array(["c0", other, "c100"])).tolist() == [True, True, False]
    words = rare.in_words()
    assert len(words["categories"]) + words["others"] == len(RARE.unique())


def test_rare_categories_are_drawn_by_their_counts() -> None:
    schema = CHOICES["rare"]
    column = schema.column("x")
    codes = np.zeros((20_000, schema.width), np.float32)
    codes[:, len(column.categories)] = 1  # type: ignore[attr-defined]
    counts = dict(zip(column.others, column.other_counts, strict=True))  # type: ignore[attr-defined]
    total = sum(counts.values())
    first_rows = [schema.decode(codes[:1], seed=seed)["x"][0].as_py() for seed in range(2000)]
    for drawn in (schema.decode(codes)["x"].to_pylist(), first_rows):
        for other, count in counts.items():
            share = count / total
            bound = 5 * np.sqrt(share * (1 - share) / len(drawn))
            assert abs(drawn.count(other) / len(drawn) - share) < bound, other
    first, second = schema.decode(codes[:9], 0, seed=3), schema.decode(codes[:5], 4, seed=3)
    assert first["x"][4:].to_pylist() == second["x"].to_pylist()
    assert schema.decode(codes).equals(schema.decode(codes, 0, seed=0))


def test_rare_categories_of_two_columns_are_independent() -> None:
    table = pa.table({"a": RARE, "b": RARE.take(pa.array(RNG.permutation(len(RARE))))})
    words = {name: ColumnConfig(max_categories=1) for name in table.column_names}
    schema = fit_schema(table, find_structure(table, words), words, np.ones(len(RARE), bool))
    codes = np.zeros((5000, schema.width), np.float32)
    codes[:, [1, 3]] = 1
    made = schema.decode(codes).to_pandas()
    by_chance = (made.a.value_counts(normalize=True) * made.b.value_counts(normalize=True)).sum()
    assert abs((made.a == made.b).mean() - by_chance) < 0.03


@pytest.mark.parametrize(
    ("values", "made"),
    [
        (pa.array(range(1, N + 1)), [N + 1, N + 2]),
        (pa.array(range(7)), [7, 8]),
        (pa.array(range(-128, 128), pa.int8()), [128, 129]),
        (pa.array(range(32768 - N, 32768), pa.int16()), [32768, 32769]),
        (pa.array(range(2**32 - N, 2**32), pa.uint32()), [2**32, 2**32 + 1]),
        (pa.array(range(2**63, 2**63 + N), pa.uint64()), [2**63 + N, 2**63 + N + 1]),
        (pa.array([5, 2**64 - 1], pa.uint64()), [6, 7]),
        (pa.array([2**63 - 1, 2**63 - 2]), [1, 2]),
        (pa.array([-(2**63), 2**63 - 1, 5]), [-(2**63) + 1, -(2**63) + 2]),
        (pa.array([-7, 2**63 - 1]), [-6, -5]),
        (pa.array([f"C{i:05d}" for i in range(N)]), ["C00400", "C00401"]),
        (pa.array([f"C{i}" for i in range(100)]).dictionary_encode().cast(SMALL), ["C100", "C101"]),
        (pa.array([f"user-{7 * i}" for i in range(N)]), ["user-2794", "user-2795"]),
    ],
)
def test_identifiers_are_made_anew(values: pa.Array, made: list[Any]) -> None:
    schema = fitted(values, kind="identifier")
    schema = TableSchema.model_validate_json(schema.model_dump_json())
    column = schema.column("x")
    assert column.kind == "identifier"  # type: ignore[attr-defined]
    rows = schema.decode(any_codes(schema.width))["x"].combine_chunks()
    assert rows[:2].to_pylist() == made
    kept = pa.uint64(), pa.string()
    assert rows.type == (values.type if values.type in kept else TYPES[made[0].__class__])
    assert column.is_valid(rows).all()
    assert not set(rows.to_pylist()) & set(values.to_pylist())
    assert schema.decode(any_codes(schema.width), 1)["x"][0].as_py() == made[1]
    with pytest.raises(ConditionError, match="is made anew"):
        schema.restrict({"x": Condition(one_of=(made[0],))})


@pytest.mark.parametrize(
    "value",
    [None, 5, -0.25, "text", True, dt.date(2024, 2, 29), dt.datetime(2024, 2, 29, 1, 2, 3),
     dt.datetime(2024, 2, 29, tzinfo=dt.UTC), dt.time(3, 4), dt.timedelta(3, 4),
     decimal.Decimal("1.50"), 2**60, pa.scalar(2**63 + 5, pa.uint64())],
)  # fmt: skip
def test_constants_are_repeated(value: Any) -> None:
    values = pa.array([value] * N)
    schema = fitted(values)
    again = TableSchema.model_validate_json(schema.model_dump_json())
    made = again.decode(any_codes(schema.width)[:N])["x"].combine_chunks()
    assert made.type == values.type
    assert made.equals(values[: len(made)])
    assert again.column("x").is_valid(values).all() or value is None


def test_columns_that_are_made_anew_have_no_code_and_know_their_values() -> None:
    constant, names = fitted(pa.array([5] * N)).column("x"), [f"C{i:05d}" for i in range(N)]
    identifier = fitted(pa.array(names)).column("x")
    assert constant.is_valid(pa.array([5, 6, None])).tolist() == [True, False, False]
    found = identifier.is_valid(pa.array(["a", "b", "a", None]))
    assert found.tolist() == [False, True, False, False]
    assert constant.in_words() == {"value": "5"}
    assert fitted(pa.array([None] * N)).column("x").in_words() == {"value": None}
    assert identifier.in_words() == {"new": "C00400 and so on"}
    same = pa.table({"a": RNG.integers(0, 1000, N)}).select([0, 0]).rename_columns(["a", "b"])
    schema = fit_schema(same, find_structure(same, {}), {}, np.ones(N, bool))
    copy = schema.column("b")
    assert copy.in_words() == {"of": "a"}
    assert copy.is_valid(pa.array([1, None])).tolist() == [True, True]
    for column in (constant, identifier, copy):
        assert not column.parts
        assert (column.option_count, column.has_number) == (1, False)
        assert column.encode(same["a"].combine_chunks()).shape == (N, 0)
        with pytest.raises(ConditionError, match="and takes no condition"):
            column.allowed(Condition(missing=True))
    with pytest.raises(ConditionError, match=r"x: is made anew \(value 5\)"):
        constant.allowed(Condition(one_of=(5,)))


def test_a_column_that_equals_another_stays_so() -> None:
    whole = RNG.integers(0, 1000, N)
    table = pa.table({"a": whole, "b": whole.astype(float), "c": RNG.normal(size=N)})
    structure = find_structure(table, {})
    schema = fit_schema(table, structure, {}, np.ones(N, bool))
    made = schema.decode(any_codes(schema.width))
    assert made.schema == table.schema
    assert made["a"].cast(pa.float64()).equals(made["b"])


@pytest.mark.parametrize(
    "name",
    ["int8", "double", "float", "halffloat", "string", "large_string", "bool", "null",
     "date32[day]", "date64[ms]", "timestamp[ns]", "timestamp[us, tz=Europe/Berlin]", "time64[us]",
     "duration[ms]", "decimal128(10, 2)",
     "dictionary<values=string, indices=int8, ordered=0>"],
)  # fmt: skip
def test_types_are_found_by_their_names(name: str) -> None:
    assert str(arrow_type(name)) == name


def test_values_that_a_column_may_not_hold_are_refused() -> None:
    for name, values, says in (
        ("whole", pa.array([1, None]), "row 2 has no value"),
        ("few values", pa.array([7]), "7 is none of 1, 5, 20"),
        ("categories", pa.array(["q"]), "row 1 has the unknown category 'q'"),
        ("categories", pa.array([None], pa.string()), "row 1 has no value"),
        ("floats", pa.array(["deep"]), "not numbers"),
        ("floats", pa.array([np.inf]), "row 1 is infinite"),
        ("text dates", pa.array(["2023-11-20"]), "is not written as %d.%m.%Y"),
        ("dates", pa.array(["soon"]), "not dates or times"),
    ):
        with pytest.raises(DataError, match=says):
            fitted(CASES[name]).column("x").encode(values)


def test_a_restriction_of_the_outermost_number_is_none() -> None:
    schema = fitted(CASES["whole"])
    column = schema.column("x")
    everything = Condition(at_least=column.low, at_most=column.high)  # type: ignore[attr-defined]
    assert not schema.restrict({"x": everything}).any()
    exact = schema.restrict({"x": Condition(one_of=(17,))})[:2]
    code = column.encode(pa.array([17]))[0, 0]
    np.testing.assert_allclose(exact, [code + LARGEST_SCORE, LARGEST_SCORE - code], rtol=1e-5)
