"""Rules between columns: there and back, kept to by rows of any codes, under conditions too."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from models.config import ColumnConfig, parse_data
from models.errors import ConditionError, ConfigError, DataError
from models.tables import Condition, TableSchema, parse_conditions, parse_rule, rule_shares
from models.tables.category import CategoryColumn
from models.tables.fixed import ConstantColumn, IdentifierColumn
from models.tables.number import NumberColumn
from models.tables.rules import in_order
from models.tables.rules.base import quoted
from models.tables.rules.numbers import between, number_column, on_scale_of
from models.tables.rules.total import Term, Total
from training.data import coding
from training.data.dataset import load_data
from training.data.rules import broken_rows, fit_rules, with_rules
from training.data.schema import find_structure, fit_schema
from training.data.sources import large
from training.presets import build_config

N = 60


def fitted(table: pa.Table, *rules: str) -> TableSchema:
    everything = np.ones(len(table), bool)
    schema = fit_schema(table, find_structure(table, {}), {}, everything)
    schema = with_rules(schema, rules)
    is_broken, lines = broken_rows(schema, table)
    assert not is_broken.any(), lines
    return fit_rules(schema, table, everything)


def any_codes(width: int, seed: int, count: int = 300) -> np.ndarray:
    """Codes as no network makes them."""
    rng = np.random.default_rng(seed)
    scales = rng.choice([1e-3, 1, 10], (count, 1))
    return rng.normal(scale=scales, size=(count, width)).astype(np.float32)


def assert_kept(schema: TableSchema, table: pa.Table) -> None:
    assert set(rule_shares(schema, table).values()) == {1.0}
    for column in schema.columns:
        values = table[column.name].combine_chunks()
        is_valid = column.is_valid(values)
        assert is_valid.all(), (column, values.filter(pa.array(~is_valid)))


def check(table: pa.Table, *rules: str, seed: int = 0, exact: bool = True) -> TableSchema:
    """Rows come back through the code; rows of any codes keep to rules and ranges."""
    schema = fitted(table, *rules)
    back = schema.decode(schema.encode(table))
    if exact:
        assert back.select(table.column_names).equals(table)
    assert_kept(schema, back)
    made = schema.decode(any_codes(schema.width, seed))
    assert made.schema.types == [table.schema.field(n).type for n in schema.names]
    assert_kept(schema, made)
    assert TableSchema.model_validate_json(schema.model_dump_json()) == schema
    return schema


def with_gaps(values: np.ndarray, rng: np.random.Generator, share: float) -> list[Any]:
    return [None if rng.random() < share else v for v in values.tolist()]


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    span=st.sampled_from([3, 40, 5000]),
    unit=st.sampled_from([1, 100]),
    missing=st.sampled_from([0, 0.2]),
    strict=st.booleans(),
)
def test_inequalities_of_numbers(
    seed: int, span: int, unit: int, missing: float, strict: bool
) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(-span, span, N)
    b = a + rng.integers(strict, span, N)
    a, b = (x / unit if unit > 1 else x for x in (a, b))
    table = pa.table(
        {"a": with_gaps(a, rng, missing), "b": with_gaps(b, rng, missing), "x": rng.normal(size=N)}
    )
    check(table.select(["a", "b"]), "a < b" if strict else "a <= b", seed=seed)
    check(table, "b > a" if strict else "b >= a", seed=seed, exact=False)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, dtype=st.sampled_from(["float64", "float32"]))
def test_inequalities_of_real_numbers(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=N)
    b = a + rng.exponential(scale=rng.choice([1e-6, 1, 1e6]), size=N) * (rng.random(N) < 0.8)
    table = pa.table({"a": pa.array(a.astype(dtype)), "b": pa.array(b.astype(dtype))})
    check(table, "a <= b", seed=seed, exact=False)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_chains_of_times_of_several_types(seed: int) -> None:
    rng = np.random.default_rng(seed)
    days = rng.integers(0, 400, N)
    hours = days * 24 + rng.integers(0, 100, N)
    start = [dt.date(2020, 2, 1) + dt.timedelta(int(d)) for d in days]
    due = [dt.datetime(2020, 2, 1) + dt.timedelta(hours=int(h)) for h in hours]
    end = [(t + dt.timedelta(1 + int(d))).date() for t, d in zip(due, days, strict=True)]
    gaps = [None if rng.random() < 0.2 else t for t in due]
    table = pa.table({"start": start, "due": gaps, "end": list(map(str, end))})
    schema = check(table, "start <= due < end", seed=seed)
    assert [str(rule) for rule in schema.rules] == ["start <= due", "due < end"]


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    span=st.sampled_from([3, 40, 3000]),
    unit=st.sampled_from([1, 100]),
    missing=st.sampled_from([0, 0.2]),
    sign=st.sampled_from("+-"),
)
def test_sums(seed: int, span: int, unit: int, missing: float, sign: str) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, span, (2, N))
    if sign == "-":
        a = np.maximum(a, b)  # the difference is never negative, and must stay so
    c = a + b if sign == "+" else a - b
    a, b, c = (x / unit if unit > 1 else x for x in (a, b, c))
    is_missing = rng.random((3, N)) < missing
    is_missing[2] |= is_missing[0] | is_missing[1]
    table = pa.table(
        {name: pa.array(x, mask=m) for name, x, m in zip("abc", (a, b, c), is_missing, strict=True)}
    )
    schema = check(table, f"c = a {sign} b", seed=seed)
    if span == 3000 and schema.rules[0].keeps_range:  # type: ignore[union-attr]
        assert schema.column("c").low == pc.min(table["c"]).as_py()  # type: ignore[attr-defined]


def test_inequalities_of_numbers_with_other_decimals() -> None:
    """A whole number above tenths may be rounded to below them, and is then the next one."""
    rng = np.random.default_rng(0)
    tenths = rng.integers(0, 300, N) / 10
    whole = (np.floor(tenths) + rng.integers(1, 9, N)).astype(int)
    above = np.round(whole + rng.integers(0, 50, N) / 10, 1)
    table = pa.table({"a": tenths, "b": whole, "c": above})
    schema = check(table, "a < b", "b <= c")
    gaps = schema.rules[0].before_coding(table, schema.by_name)["b - a"]  # to the digit
    assert gaps.to_pylist() == [round(b - a, 1) for a, b in zip(tenths, whole, strict=True)]
    assert schema.rules[0].gap.decimals == 1  # type: ignore[union-attr]
    real = pa.table({"a": tenths + rng.random(N) / 20, "b": whole})
    schema = check(real, "a < b", exact=False)
    gaps = schema.rules[0].before_coding(real, schema.by_name)["b - a"]
    np.testing.assert_array_equal(gaps, real["b"].to_numpy() - real["a"].to_numpy())


def test_a_row_with_equal_values_keeps_to_no_strict_rule() -> None:
    table = pa.table({"a": [1, 2, 3, None, 4], "b": [2, 2, 2, 2, None]})
    schema = fitted(table)
    strict, loose = (
        with_rules(schema, [text]).rules[0].satisfied(table, schema.by_name).tolist()
        for text in ("a < b", "a <= b")
    )
    assert strict == [True, False, False, True, True]
    assert loose == [True, True, False, True, True]


def test_a_larger_value_must_be_there_for_each_smaller_one_that_the_user_allows() -> None:
    a = np.arange(N) % 30
    table = pa.table({"a": a, "b": a + 1 + np.arange(N) // 30, "x": np.sin(a)})
    told = {"a": ColumnConfig(high=100)}
    everything = np.ones(N, bool)
    schema = with_rules(fit_schema(table, find_structure(table, told), told, everything), ["a < b"])
    with pytest.raises(
        DataError, match=r"a may be 100, for which b has no value: its largest is 31"
    ):
        fit_rules(schema, table, everything)
    gone = pc.if_else(pa.array(np.arange(N) % 9 > 0), table["b"], None)
    table = table.set_column(1, "b", gone)  # then it may be missing
    schema = with_rules(fit_schema(table, find_structure(table, told), told, everything), ["a < b"])
    made = fit_rules(schema, table, everything)
    assert_kept(made, made.decode(any_codes(made.width, 0)))


def test_gaps_beside_an_inequality_are_narrowed_and_settled() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 50, N)
    gaps = rng.integers(1, 60, N) + rng.integers(0, 10, N) / 10
    a[:2], gaps[:2] = [0, 49], [0.5, 41]  # so all ranges are known
    table = pa.table({"a": a, "b": a + gaps})
    schema = fitted(table, "a < b")
    (rule,), columns = schema.rules, schema.by_name

    def ends(**told: tuple[float, float]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {name: (np.array([low]), np.array([high])) for name, (low, high) in told.items()}

    ranges = ends(a=(2, 40), b=(1.5, 20.5))
    rule.tightened(ranges, columns)
    assert {name: [*map(float, np.concatenate(pair))] for name, pair in ranges.items()} == {
        "a": [2, 20],
        "b": [2.1, 20.5],
    }
    narrowed = rule.narrowed(table[:1], columns, ends(a=(2, 4), b=(10, 12)))
    gap: Any = rule.gap  # type: ignore[union-attr]
    expected = between(gap, np.array([6.0]), np.array([10.0]))
    np.testing.assert_array_equal(narrowed[gap.name], expected)
    made = pa.table({"a": [3] * 4, "b": [10.5] * 4})
    rows = pa.table({"a": [5, None, None, 1], "b": [None, 30.5, None, 9.5]})
    wide = {"a": (np.zeros(4), np.full(4, 49.0)), "b": (np.zeros(4), np.full(4, 90.0))}
    filled = rule.settled(rows, made, columns, wide, lambda *_: np.zeros(4))
    assert filled.to_pydict() == {"a": [5, 23, 3, 1], "b": [12.5, 30.5, 10.5, 9.5]}


def number(name: str, low: float, high: float, decimals: int | None = 0, **own: Any) -> Any:
    kind = "int64" if decimals == 0 else "double"
    own = {"type": kind, "quantiles": (low, high), **own}
    return NumberColumn(name=name, low=low, high=high, decimals=decimals, **own)


def by_name(*columns: Any) -> dict[str, Any]:
    return {column.name: column for column in columns}


def total(text: str, **own: Any) -> Any:
    (rule,) = parse_rule(text)
    return rule.model_copy(update=own)


ABC = by_name(number("a", 0, 10), number("b", 0, 10), number("c", 0, 15))
SMALL = pa.table({"a": [1, 2], "b": [3, 4], "c": [4, 6]})


@pytest.mark.parametrize(
    ("text", "columns", "shared", "keeps"),
    [
        ("c = a + b", ABC, set(), True),
        ("c = a + b + 3", ABC, {"c"}, True),
        ("c = a - b - 3", ABC, {"x"}, True),
        ("c = a + b + 0.5", ABC, set(), False),
        ("c = a + b", ABC, {"b", "x"}, False),
        ("c = a + 2 * b", ABC, set(), False),
        ("c = a + b", {**ABC, "a": number("a", 1, 2, quantiles=(), spikes=(1, 2))}, set(), False),
        ("c = a + b", {**ABC, "c": number("c", 0, 15, 1)}, set(), False),
        ("c = a + b", {**ABC, "c": number("c", 0, 15, None)}, set(), False),
        ("c = a + b", {n: number(n, 0, 10, None) for n in "abc"}, set(), False),
        ("c = a + b", {n: number(n, 0, 10, 2) for n in "abc"}, set(), True),
    ],
)
def test_a_range_is_kept_where_steps_lead_back_into_it(
    text: str, columns: dict[str, Any], shared: set[str], keeps: bool
) -> None:
    rule: Any = parse_rule(text)[0].fitted(SMALL, columns, shared, lambda *_: ABC["a"])
    assert rule.keeps_range == keeps
    assert rule.may_be_missing is False
    gone = SMALL.set_column(2, "c", pa.array([4, None]))
    assert total(text).fitted(gone, columns, shared, None).may_be_missing


def test_what_is_not_told_of_a_total_is_as_it_was_before() -> None:
    """Records from before a setting have not got it."""
    plain = Total(total="c", terms=(Term(1.0, "a"), Term(1.0, "b")))
    assert (plain.constant, plain.may_be_missing, plain.keeps_range) == (0, False, False)
    assert total("c = a + b") == plain
    with pytest.raises(ValidationError, match="frozen"):
        plain.total = "d"  # type: ignore[misc]
    day = columns_of(a=TIMES["days"], b=TIMES["s"][::-1], c=TIMES["us"].take(np.arange(49) // 2))
    with pytest.raises(DataError, match=r"^rule 'c = a [+] b': dates and times have no sum$"):
        total("c = a + b").fitted(SMALL, day, set(), None)


def test_a_range_that_is_not_kept_is_what_terms_add_up_to() -> None:
    for text, columns, low, high in (
        ("c = 2 * a - b + 1", {"b": number("b", 1, 5)}, -4, 20),
        ("c = a - 0.5 * b", {"b": number("b", 1, 5)}, -2, 10),  # -2.5 and 9.5, to even
        ("c = a", {"c": number("c", 3, 4, spikes=(3, 4), quantiles=())}, 0, 10),
    ):
        every = {**ABC, **columns}
        (name, made), *more = total(text).revised(SMALL, every, None).items()
        assert (name, more) == ("c", [])
        spans = (low, high) if not every["c"].has_number else (0, 15)
        assert (made.low, made.high, made.quantiles) == (low, high, spans)
    assert total("c = a", keeps_range=True).revised(SMALL, ABC, None) == {}
    narrow = {**ABC, "a": number("a", 0, 100), "c": number("c", 0, 15, type="int8")}
    says = (
        r"^rule 'c = a [+] 2 [*] b \+ 9': c can be from 9 to 129, which its type int8 does not hold"
    )
    with pytest.raises(DataError, match=says):
        total("c = a + 2 * b + 9").revised(SMALL, narrow, None)
    assert total("c = a + 2 * b + 7").revised(SMALL, narrow, None)["c"].high == 127


@pytest.mark.parametrize(
    ("text", "ends", "conditions", "is_met"),
    [
        ("c = a + b", (5, 10), {"a": {"at_least": 8}}, True),
        ("c = a + b", (5, 9), {"a": {"at_least": 8}}, False),  # 10, and b at least 0
        ("c = a + b", (10, 15), {"a": {"at_most": 3}}, True),  # 0, and b at most 10
        ("c = a + b", (11, 15), {"a": {"at_most": 3}}, False),
        ("c = a - b", (-5, 5), {"a": {"at_least": 8}}, True),
        ("c = a - b", (-5, 0), {"a": {"at_least": 8}}, True),  # b is 10 then
        ("c = a - b", (-5, -1), {"a": {"at_least": 8}}, False),
        ("c = a - b", (-9, -1), {"b": {"at_most": 1}}, False),
        ("c = a + b", (0, 5), {"a": {"one_of": (5,)}}, True),
        ("c = a + b", (0, 4), {"a": {"one_of": (5,)}}, False),
        ("c = d + b", (0, 19), {"d": {"one_of": (20,)}}, False),  # a spike of its own
        ("c = d + b", (0, 20), {"d": {"one_of": (20,)}}, True),
        ("c = d + b", (0, 9), {"d": {"missing": True}}, True),
        ("c = b + a", (0, 9), {"a": {"at_least": 8}}, False),
        ("c = a + b + d", (0, 9), {"d": {"at_least": 8, "at_most": 9}}, True),
        ("c = a + b + d", (0, 8), {"d": {"at_least": 8, "at_most": 9}}, False),
        ("c = e + f", (0, 0.3), {"e": {"one_of": (0.1,)}}, True),  # 0.1 + 0.2 is above 0.3
        ("c = - e - f", (-0.3, 0), {"e": {"at_most": 0.1}, "f": {"at_most": 0.2}}, True),
    ],
)
def test_conditions_on_terms_must_leave_the_total_its_range(
    text: str, ends: tuple[float, float], conditions: dict[str, Any], is_met: bool
) -> None:
    own = by_name(
        number("c", *ends, 1),
        number("d", 0, 30, spikes=(20,), missing=0.5),
        number("e", 0, 0.1, 1),
        number("f", 0.2, 0.9, 1),
    )
    asked = {name: Condition(**words) for name, words in conditions.items()}
    rule = total(text, keeps_range=True)
    if is_met:
        assert rule.translated(asked, {**ABC, **own}) == asked
    else:
        with pytest.raises(ConditionError, match=r"by the rule 'c = .*', c could leave its range"):
            rule.translated(asked, {**ABC, **own})
    assert total(text).translated(asked, {**ABC, **own}) == asked, "ranges that are not kept"
    with pytest.raises(ConditionError, match=r"^c: the rule 'c = .* so it takes no condition; ask"):
        rule.translated({"c": Condition(above=0)}, {**ABC, **own})


def test_terms_are_moved_one_after_the_other_until_the_total_is_in_its_range() -> None:
    rule = total("c = a + b", keeps_range=True)
    codes = pa.table({"a": [10, 9, 0, 10, 8], "b": [10, 7, 0, 5, 8]})
    made = rule.after_decoding(codes, {**ABC, "c": number("c", 2, 15)}, set())
    assert made.to_pydict() == {
        "a": [10, 9, 0, 10, 8],
        "b": [5, 6, 2, 5, 7],
        "c": [15, 15, 2, 15, 15],
    }
    were = {"a": [10, 9, 0, 10, 8], "b": [10, 7, 0, 5, 8]}
    for fixed, moved in (({"b"}, {"a": [5, 8, 2, 10, 7]}), ({"a", "b"}, {})):
        made = rule.after_decoding(codes, {**ABC, "c": number("c", 2, 15)}, fixed)
        assert made.select(["a", "b"]).to_pydict() == were | moved
    tenths = by_name(*(number(n, 0, 9, 1) for n in "ab"), number("c", 0, 5, 1))
    made = rule.after_decoding(pa.table({"a": [2.0, 2.5], "b": [3.1, 2.5]}), tenths, set())
    assert made.to_pydict() == {"a": [2.0, 2.5], "b": [3.0, 2.5], "c": [5.0, 5.0]}
    assert rule.satisfied(made, tenths).all()
    flagged = total("c = a + b", may_be_missing=True)
    asked = flagged.with_gaps(SMALL, ABC)
    assert asked.to_pydict() == {"a": [1, 2], "b": [3, 4], "c is missing": [False, False]}
    assert rule.with_gaps(SMALL, ABC).column_names == ["a", "b"]


def test_gaps_in_a_sum_are_settled_so_that_it_is_the_total() -> None:
    def settled(text: str, columns: Any, made: list[float], **known: float | None) -> Any:
        kinds = pa.schema({n: columns[n].type for n in known})
        rows = pa.Table.from_pylist([known], kinds)
        others = pa.Table.from_pylist([dict(zip("ab", made, strict=True))], kinds)
        ranges = {n: (np.array([c.low]), np.array([c.high])) for n, c in columns.items()}
        filled = total(text).settled(rows, others, columns, ranges, lambda *_: None)
        return tuple(filled.to_pylist()[0][n] for n in "abc")

    wide = {**ABC, "c": number("c", 0, 40)}
    assert settled("c = a + b", wide, [1, 1], a=3, b=None, c=10) == (3, 7, 10)
    assert settled("c = a + b", wide, [1, 1], a=None, b=None, c=14) == (4, 10, 14)
    assert settled("c = a + b", wide, [1, 1], a=3, b=None, c=20) == (3, 10, 20), "a is known"
    assert settled("c = a + b", wide, [1, 2], a=None, b=None, c=None) == (1, 2, 3)
    assert settled("c = a + 2 * b", wide, [1, 1], a=3, b=None, c=15) == (3, 6, 15)
    assert settled("c = a - b", wide, [1, 1], a=9, b=None, c=4) == (9, 5, 4)
    real = {n: number(n, 0, 10, None) for n in "abc"}
    found = settled("c = a + b", real, [0, 0.25], a=0.1, b=None, c=0.5)
    np.testing.assert_allclose(found, (0.1, 0.4, 0.5), rtol=1e-12)
    finer = by_name(number("a", 0, 10, 2), number("b", 0, 10, 2), number("c", 0, 20, 1))
    kept = settled("c = a + b", finer, [1, 6.71], a=3.33, b=None, c=10.0)
    assert kept == (3.33, 6.71, 10.0), "to the total's decimals it is the sum"
    assert settled("c = a + b", finer, [1, 6.8], a=3.33, b=None, c=10.0) == (3.33, 6.67, 10.0)


@pytest.mark.parametrize(
    ("kinds", "tolerance"),
    [
        (("double", "double", "double"), 1e-9),
        (("float", "double", "double"), 1e-6),
        (("double", "double", "float"), 1e-6),
        (("double", "halffloat", "double"), 1e-6),
        (("halffloat", "double", "double"), 1e-3),
    ],
)
def test_a_total_is_the_sum_but_for_rounding(kinds: tuple[str, ...], tolerance: float) -> None:
    """Of real numbers a share of the terms' sizes; of others half a digit too."""
    names = ("c", "a", "b")
    columns = by_name(
        *(number(n, -4e3, 4e3, None, type=k) for n, k in zip(names, kinds, strict=True))
    )
    digits = {**columns, "c": number("c", -4e3, 4e3, 1, type=kinds[0])}
    for share, is_kept in ((0, True), (0.7, True), (2, False), (-0.7, True), (-2, False)):
        values = {"c": 2 * share * tolerance * 1024, "a": 1024.0, "b": 512.0}
        table = pa.table({n: pa.array([np.float64(x)]).cast(k) for (n, x), k in zip(
            values.items(), kinds, strict=True)})  # fmt: skip
        assert total("c = a - 2 * b").satisfied(table, columns).tolist() == [is_kept], share
        assert total("c = a - 2 * b").satisfied(table, digits).all() == (
            tolerance < 1e-3 or is_kept
        )
    tenths = by_name(*(number(n, 0, 40, 2) for n in "ab"), number("c", 0, 40, 1))
    rows = pa.table({"a": [1.0] * 5, "b": [9.04, 9.05, 9.06, 8.95, 8.94], "c": [10.0] * 5})
    found = total("c = a + b").satisfied(rows, tenths).tolist()
    assert found == [True, True, False, True, False]


WORDS = ("u", "v", "w", "x", "y", "z")
JOINED = [
    *('["x", "1"]', '["y", "2"]', '["w", null]'),
    *('["x", "3"]', '["z", "1"]', '["z", "4"]'),  # rare ones
]
PAIRS = by_name(
    CategoryColumn(name="a", type="string", categories=WORDS),
    number("b", 1, 9, missing=0.1),
    number("c", 0, 15),
)


def combination(others: int = 3) -> Any:
    joint = CategoryColumn(
        name="combination(a, b)",
        type="string",
        categories=tuple(JOINED[:3]),
        others=tuple(JOINED[3 : 3 + others]),
        other_counts=(1, 2, 5)[:others],
    )
    return parse_rule("combination(a, b)")[0].model_copy(update={"joint": joint})


def pairs(*rows: tuple[str | None, int | None]) -> pa.Table:
    a, b = zip(*rows, strict=True)
    return pa.table({"a": pa.array(a, pa.string()), "b": pa.array(b, pa.int64())})


def test_known_cells_leave_the_combinations_that_have_them() -> None:
    """With a value in each gap, if one has; all, where none has the known cells."""
    rule = combination()
    rows = pairs(("x", None), (None, 1), (None, None), ("w", None), ("q", None), ("x", 2), ("z", 4))
    fits = {
        0: (1, 0, 0, 1),
        1: (1, 0, 0, 1),
        2: (1, 1, 0, 1),
        3: (0, 0, 1, 0),
        4: (1, 1, 1, 1),
        5: (1, 1, 1, 1),
        6: (0, 0, 0, 1),
    }
    (found,) = rule.narrowed(rows, PAIRS, {}).values()
    assert found.dtype == np.float32
    assert found.tolist() == [[1 - is_fit for is_fit in fits[i]] for i in range(7)]
    (found,) = combination(0).narrowed(rows, PAIRS, {}).values()
    assert found[:3].tolist() == [[0, 1, 1], [0, 1, 1], [0, 0, 1]]
    alone = rule.model_copy(
        update={"joint": rule.joint.model_copy(update={"categories": (), "other_counts": (1,) * 3})}
    )
    assert alone.narrowed(rows, PAIRS, {}) == {}, "one option is no choice"
    two = rule.model_copy(
        update={"joint": rule.joint.model_copy(update={"categories": tuple(JOINED[:1])})}
    )
    (found,) = two.narrowed(rows[6:], PAIRS, {}).values()
    assert found.tolist() == [[1, 0]]
    with pytest.raises(ConditionError, match="b is from 1 to 9"):
        rule.translated({"b": Condition(one_of=(99,))}, PAIRS)
    coded = rule.with_gaps(rows.append_column("c", [range(7)]), PAIRS)
    assert coded.to_pydict() == {"c": [*range(7)], "combination(a, b)": [None] * 6 + [JOINED[5]]}
    assert rule.satisfied(rows, PAIRS).tolist() == [False] * 3 + [True] + [False] * 2 + [True]
    accented = rule.before_coding(pairs(("é", 1)), PAIRS)["combination(a, b)"]
    assert accented.to_pylist() == ['["é", "1"]'], "as records have it"
    unfitted = parse_rule("combination(a, b)")[0]
    assert unfitted.satisfied(rows, PAIRS).all()


def test_a_rare_combination_is_drawn_by_its_count_among_those_that_fit() -> None:
    rule = combination()
    common = ("x", None)  # of the two that fit, the frequent one was not made
    rows = pairs(*[(None, None)] * 2, *[("z", None)] * 8, (None, 3), common, ("w", None), ("x", 2))
    made = pairs(("x", 1), ("z", 4), *[("y", 2)] * 9, ("y", 2), ("w", None), ("z", 1))
    shares = iter([*np.linspace(0, 0.99, 8), 0.5, 0.0, 0.99])
    asked = list[tuple[list[int], str]]()

    def draw(row: np.ndarray, name: str) -> np.ndarray:
        asked.append((row.tolist(), name))
        return np.array([next(shares)])

    filled = rule.settled(rows, made, PAIRS, {}, draw)
    assert [*zip(*filled.to_pydict().values(), strict=True)] == [
        ("x", 1),
        ("z", 4),
        *[("z", 1)] * 3,  # two of seven
        *[("z", 4)] * 5,
        ("x", 3),
        ("x", 3),
        ("w", None),
        ("x", 2),
    ]
    assert asked == [([row], "combination(a, b)") for row in range(2, 12)]


@pytest.mark.parametrize(
    ("conditions", "meets"),
    [
        ({"word": {"one_of": ("p", "q")}}, lambda r: r[0] in ("p", "q")),
        ({"word": {"none_of": ("p",)}}, lambda r: r[0] not in ("p", None)),
        ({"word": {"missing": True}}, lambda r: r[0] is None),
        ({"many": {"at_least": 7, "at_most": 12}}, lambda r: 7 <= r[1] <= 12),
        ({"many": {"above": 7, "below": 12, "none_of": (9,)}}, lambda r: r[1] in (8, 10, 11)),
        ({"many": {"at_most": 3}}, lambda r: r[1] <= 3),
        ({"many": {"one_of": (0,)}}, lambda r: r[1] == 0),
        ({"many": {"none_of": (0,)}}, lambda r: r[1] > 0),
        ({"flag": {"one_of": (True,)}}, lambda r: r[2]),
        ({"day": {"above": "2020-01-20"}}, lambda r: r[3] > dt.date(2020, 1, 20)),
        ({"land": {"missing": False}, "many": {"above": 9}}, lambda r: r[1] > 9),
        ({"many": {"above": 9}, "word": {"one_of": ("p",)}}, lambda r: r[1] > 9 and r[0] == "p"),
    ],
)
def test_conditions_on_columns_ask_for_the_combinations_that_meet_them(
    conditions: dict[str, Any], meets: Any
) -> None:
    count = 300
    i = np.arange(count)
    many = np.where(i % 2, 0, i % 29)
    rows = {
        "word": [None if k % 11 == 3 else "pqrs"[k % 4] for k in i],
        "many": many.tolist(),
        "flag": (i % 3 == 0).tolist(),
        "day": [dt.date(2020, 1, 1) + dt.timedelta(int(k) % 37) for k in i],
        "x": np.sin(i).tolist(),
    }
    table = pa.table(rows)
    schema = fitted(table, "combination(word, many, flag, day)")
    (rule,), columns = schema.rules, dict(schema.by_name)
    if "land" in conditions:
        other = {"land": Condition(**conditions.pop("land"))}
    else:
        other = {"x": Condition(above=0)}
    asked = {name: Condition(**words) for name, words in conditions.items()}
    found = rule.translated({**other, **asked}, columns)
    assert rule.translated(other, columns) == other
    (name,) = (n for n in found if n not in other)
    assert {n: c for n, c in found.items() if n in other} == other
    joined = rule.before_coding(table, columns)[name].to_pylist()
    values = zip(*(rows[n] for n in ("word", "many", "flag", "day")), strict=True)
    expected = {text for text, row in zip(joined, values, strict=True) if meets(row)}
    assert 0 < len(expected) < len(set(joined))
    assert set(found[name].one_of) == expected  # type: ignore[arg-type]


def test_what_no_combination_meets_and_what_goes_with_nothing_is_told() -> None:
    rng = np.random.default_rng(0)
    town = rng.integers(0, 5, N)
    table = pa.table(
        {
            "town": town.astype(str),
            "land": (town % 2).astype(str),
            "key": [f"k{i:03d}" for i in range(N)],
            "long": pa.array(rng.integers(0, 4, N)).cast(pa.duration("s")),
        }
    )
    schema = fitted(table, "combination(town, land)")
    says = (
        r"^no row has town in \['1'\] and land in \['0'\], by the rule 'combination\(town, land\)'"
    )
    with pytest.raises(ConditionError, match=says):
        schema.restrict(parse_conditions(["town=1", "land=0"]))
    with pytest.raises(ConditionError, match="no category 'q'"):
        schema.restrict(parse_conditions(["town=q"]))
    with pytest.raises(
        DataError, match=r"combination\(town, long\)': long, of type duration\[s\], c"
    ):
        fitted(table, "combination(town, long)")
    key = {**schema.by_name, "key": IdentifierColumn(name="key", type="string", first=60)}
    with pytest.raises(
        DataError, match=r"^rule .*: key is an identifier, which goes with nothing$"
    ):
        parse_rule("combination(town, key)")[0].fitted(table, key, set(), None)  # type: ignore[arg-type]


def test_one_column_of_several_has_a_value() -> None:
    rng = np.random.default_rng(0)
    which = rng.integers(0, 3, N)
    table = pa.table(
        {
            "card": pa.array(rng.integers(0, 90, N), mask=which != 0),
            "bank": pa.array(rng.choice(["p", "q"], N), mask=which != 1).dictionary_encode(),
            "paid": pa.array(rng.integers(0, 90, N) / 4, mask=which != 2),
            "x": rng.normal(size=N),
            "full": rng.integers(0, 9, N),
        }
    )
    schema = fitted(table, "one_of(card, bank, paid)")
    (rule,), columns = schema.rules, schema.by_name
    name = "one_of(card, bank, paid)"
    kind, *parts = rule.coded(columns)
    assert (kind.name, kind.categories) == (name, ("card", "bank", "paid"))  # type: ignore[union-attr]
    assert [(part.name, part.missing) for part in parts] == [(n, 0) for n in kind.categories]  # type: ignore[union-attr]
    coded = rule.before_coding(table, columns)
    assert coded[name].to_pylist() == [("card", "bank", "paid")[k] for k in which]
    assert all(coded[n].null_count == 0 for n in rule.names)
    assert len({x for x, k in zip(coded["card"].to_pylist(), which, strict=True) if k}) == 1
    assert rule.after_decoding(coded, columns, set()).equals(table.select(coded.column_names[:-1]))
    gone = {n: Condition(missing=True) for n in rule.names}
    there = Condition(missing=False)
    x = {"x": Condition(above=0)}
    for asked, expected in (
        ({}, {}),
        (x, x),
        ({"card": there}, {name: Condition(one_of=("card",))}),
        (
            {"paid": Condition(above=3)},
            {"paid": Condition(above=3), name: Condition(one_of=("paid",))},
        ),
        ({"bank": gone["bank"], **x}, {**x, name: Condition(one_of=("card", "paid"))}),
        ({"bank": gone["bank"], "paid": there}, {name: Condition(one_of=("paid",))}),
    ):
        assert rule.translated(asked, columns) == expected
    for asked in (gone, {"card": there, "bank": there}, {"card": there, "bank": there, "x": there}):
        with pytest.raises(
            ConditionError, match=r"^no row has a value in all these columns, by the "
        ):
            rule.translated(asked, columns)
    with pytest.raises(ConditionError, match="no category 'castle'"):
        rule.translated({"bank": Condition(one_of=("castle",))}, columns)
    rows = pa.table({"card": [None, 3, None], "bank": [None, None, "p"], "paid": [None] * 3}).cast(
        pa.schema({"card": "int64", "bank": "string", "paid": "double"})
    )
    assert rule.with_gaps(rows, columns)[name].to_pylist() == [None, "card", "bank"]
    made = pa.table({"card": [None] * 3, "bank": [None] * 3, "paid": [2.5] * 3}).cast(rows.schema)
    filled = rule.settled(rows, made, columns, {}, None)  # type: ignore[arg-type]
    assert [*map(tuple, zip(*filled.to_pydict().values(), strict=True))] == [
        (None, None, 2.5),
        (3, None, None),
        (None, "p", None),
    ]
    two = pa.table({"card": [1, None], "bank": ["p", None], "paid": [None, None]})
    assert rule.satisfied(two, columns).tolist() == [False, False]
    assert rule.satisfied(filled, columns).all()
    for other in ("full", "x"):
        says = rf"^rule 'one_of\(card, {other}\)': {other} must be a number, a time or a category"
        with pytest.raises(DataError, match=says):
            parse_rule(f"one_of(card, {other})")[0].fitted(table, columns, set(), None)  # type: ignore[arg-type]
    constant = {**columns, "x": ConstantColumn(name="x", type="int64", value="3", missing=0.5)}
    with pytest.raises(DataError, match="x must be a number"):
        parse_rule("one_of(card, x)")[0].fitted(table, constant, set(), None)  # type: ignore[arg-type]


def test_a_key_counts_from_its_second_row_on_as_broken() -> None:
    rows = pa.table({"a": [1, 1, 2, None, 1, None], "b": ["x", "y", "x", "x", "x", "x"]})
    one, two = (parse_rule(text)[0] for text in ("unique(a)", "unique(a, b)"))
    assert one.satisfied(rows, {}).tolist() == [True, False, True, False, False, False]
    assert two.satisfied(rows, {}).tolist() == [True, True, True, False, False, False]
    assert rows["a"].null_count == 2
    made = IdentifierColumn(name="a", type="int64", first=3)
    asked = list[Any]()

    def fit(kind: str, name: str, values: pa.Array) -> Any:
        asked.append((kind, name, values.to_pylist()))
        return made

    assert one.revised(rows, by_name(number("a", 1, 2)), fit) == {"a": made}
    assert asked == [("identifier", "a", rows["a"].to_pylist())]
    assert one.revised(rows, {"a": made}, fit) == {}, "it is one already"
    assert two.revised(rows, by_name(number("a", 1, 2)), fit) == {}
    assert len(asked) == 1


def test_sums_with_factors_and_sums_of_sums() -> None:
    rng = np.random.default_rng(0)
    net, fee = rng.integers(100, 10**5, N) / 100, rng.integers(0, 10, N)
    tax = np.round(0.19 * net, 2)
    gross = np.round(net + tax + fee, 2)
    table = pa.table({"net": net, "fee": fee, "tax": tax, "gross": gross})
    check(table, "gross = net + tax + fee", "tax = 0.19 * net")


def test_a_total_keeps_its_range() -> None:
    rng = np.random.default_rng(0)
    used = rng.integers(0, 1000, N)
    total = used + rng.integers(0, 500, N)
    table = pa.table({"used": used, "total": total, "left": total - used})
    schema = fitted(table, "left = total - used")
    made = schema.decode(any_codes(schema.width, 1))
    assert min(made["left"].to_pylist()) >= 0
    with pytest.raises(ConditionError, match="could leave its range"):
        schema.restrict(parse_conditions(["total<100", "used>900"]))
    conditions = parse_conditions(["total<600"])
    made = schema.decode(any_codes(schema.width, 2), conditions=conditions)
    assert max(made["total"].to_pylist()) < 600
    assert_kept(schema, made)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, many=st.booleans(), missing=st.sampled_from([0, 0.2]))
def test_combinations(seed: int, many: bool, missing: float) -> None:
    rng = np.random.default_rng(seed)
    city = rng.integers(0, 70 if many else 5, N)
    table = pa.table(
        {
            "city": with_gaps(np.char.add('c"', city.astype(str)), rng, missing),
            "country": pa.array((city % 3).astype(str)).dictionary_encode(),
            "zone": city % 2,
            "since": [dt.date(2020, 1, 1 + int(c) % 4) for c in city],
            "x": rng.integers(0, 1000, N),
        }
    )
    schema = check(table, "combination(city, country, zone, since)", seed=seed, exact=not many)
    conditions = parse_conditions(["country=1", "zone=0"])
    if not any(z == 0 and c % 3 == 1 for c, z in zip(city, city % 2, strict=True)):
        return
    made = schema.decode(any_codes(schema.width, seed), conditions=conditions)
    assert set(made["country"].to_pylist()) == {"1"}
    assert set(made["zone"].to_pylist()) == {0}
    assert_kept(schema, made)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_one_of(seed: int) -> None:
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, N)
    which[:3] = range(3)
    table = pa.table(
        {
            "card": pa.array(rng.integers(1000, 9999, N), mask=which != 0),
            "bank": pa.array(rng.choice(["x", "y"], N), mask=which != 1),
            "paid": pa.array([dt.date(2020, 1, 1)] * N, mask=which != 2),
            "x": rng.integers(0, 1000, N),
        }
    )
    schema = check(table, "one_of(card, bank, paid)", seed=seed)
    codes = any_codes(schema.width, seed)
    made = schema.decode(codes, conditions=parse_conditions(["bank="]))
    assert made["bank"].null_count == len(made)
    assert_kept(schema, made)
    made = schema.decode(codes, conditions=parse_conditions(["bank=x"]))
    assert set(made["bank"].to_pylist()) == {"x"}
    with pytest.raises(ConditionError, match=r"one_of\(card, bank, paid\)"):
        schema.restrict(parse_conditions(["bank=x", "card>2000"]))


def test_keys() -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {"order": rng.permutation(N) * 3, "line": rng.integers(0, 3, N), "x": rng.normal(size=N)}
    )
    schema = fitted(table, "unique(order)", "unique(order, line)")
    made = schema.decode(any_codes(schema.width, 0, 50))
    assert rule_shares(schema, made) == {"unique(order)": 1.0, "unique(order, line)": 1.0}
    assert not set(made["order"].to_pylist()) & set(table["order"].to_pylist())
    schema = with_rules(fitted(table), ["unique(line, x)", "unique(line)"])
    shares = rule_shares(schema, table)
    assert shares == {"unique(line, x)": 1.0, "unique(line)": 3 / N}


def test_keys_are_whole_numbers_or_texts() -> None:
    count = np.arange(N)
    whole = fitted(pa.table({"key": count * 2.0, "x": np.sin(count)}), "unique(key)")
    made = whole.decode(any_codes(whole.width, 0, 3))["key"]
    assert made.to_pylist() == [2 * N - 1, 2 * N, 2 * N + 1]
    for values in (count / 4, pa.array(count.astype(np.int32)).cast(pa.date32())):
        with pytest.raises(DataError, match=r"column 'key': (no identifiers|identifiers are)"):
            fitted(pa.table({"key": values, "x": np.sin(count)}), "unique(key)")


def test_rules_together() -> None:
    rng = np.random.default_rng(0)
    low, city = rng.integers(0, 500, N), rng.integers(0, 6, N)
    high = low + rng.integers(0, 500, N)
    table = pa.table(
        {"spread": high - low, "high": high, "low": low, "city": city + 10, "region": city % 2}
    )
    rules = ("spread = high - low", "low <= high", "combination(city, region)")
    schema = check(table, *rules)
    made = schema.decode(any_codes(schema.width, 3))
    assert min(made["spread"].to_pylist()) >= 0
    with pytest.raises(ConditionError, match=r"high: the rule 'low <= high' computes it.* low"):
        schema.restrict(parse_conditions(["high>5"]))
    with pytest.raises(DataError, match="row 1 breaks the rule 'spread = high - low'"):
        schema.encode(table.set_column(0, "spread", pa.array(high - low + 1)))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["a << b"], "write a rule as"),
        (["a < bb"], "no column 'bb'; did you mean 'b'"),
        (["a < b", "b < a"], "go in a circle"),
        (["a < c", "b < c"], "both make c"),
        (["a < t"], "t is a category"),
    ],
)
def test_rules_that_cannot_be(rules: list[str], message: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 50, N)
    table = pa.table({"a": a, "b": a + 1, "c": a + 2, "t": rng.choice(["x", "y"], N)})
    with pytest.raises((ConfigError, DataError), match=message):
        fitted(table, *rules)


@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "a <= b",
        "`a-x` <= `<`",
        "`a=b` = `c=` + `<`",
        "c = a - 2 * `b-x` + 4",
        "c = - a + b - 0.5",
        "c = 0.1 * a",
        "`c+` = a + 2.5e-05 * b",
        "unique(id)",
        "unique(id, line)",
        "combination(a, the b)",
        "one_of(a, b, `c,d`)",
    ],
)
def test_rules_are_read_as_they_are_written(text: str) -> None:
    (rule,) = parse_rule(text)
    assert str(rule) == text
    assert parse_rule(f"  {text} ") == (rule,)


def test_what_a_text_states() -> None:
    (total,) = parse_rule("c = 3 - 1.5e1*a + 2 + b - 4")
    assert (total.total, total.constant) == ("c", 1.0)  # type: ignore[union-attr]
    assert total.terms == ((-15.0, "a"), (1.0, "b"))  # type: ignore[union-attr]
    assert total.reads == ("a", "b")
    assert total.makes == ("c",)
    assert total.names == ("a", "b", "c")
    (less,) = parse_rule("b >= a")
    assert (less.low, less.high, less.strict) == ("a", "b", False)  # type: ignore[union-attr]
    chain = parse_rule("a < `b c` <= c > d >= e")
    assert list(map(str, chain)) == ["a < b c", "b c <= c", "d < c", "e <= d"]
    (either,) = parse_rule("one_of( `a(` ,b c,d )")
    assert either.makes == either.names == ("a(", "b c", "d")
    (key,) = parse_rule("unique(a, b)")
    assert (key.makes, key.names, key.by_construction) == ((), ("a", "b"), False)
    assert parse_rule("unique(a)")[0].by_construction
    assert less.by_construction
    assert quoted("a") == "a"
    chain = parse_rule("`a-x` <= `<` < `b>=c`")
    assert list(map(str, chain)) == ["`a-x` <= `<`", "`<` < `b>=c`"]
    for text in ("a < b", "c = a", "unique(a)", "combination(a, b)", "one_of(a, b)"):
        (rule,) = parse_rule(text)
        with pytest.raises(ValidationError, match="frozen"):
            rule.kind = "total"  # type: ignore[misc,assignment]


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a < b c <",
        "a < b + c",
        "< a < b",
        "a = ",
        "= a + b",
        "a + b = c",
        "c = a b * 2 * d",
        "c = a + + b",
        "c = 2 * 3 * a",
        "c = 3",
        "c = a = b",
        "c = a + a",
        "c = c + a",
        "`c` = c + a",
        "a, b",
        "some(a, b)",
        "one_of(a, b",
    ],
)
def test_what_is_no_rule_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write a rule as a < b, a <= b, c = a [+] b, unique"):
        parse_rule(text)


@pytest.mark.parametrize(
    "text", ["one_of(a)", "one_of(a, a)", "combination(a, b <)", "combination()", "unique(a, a)"]
)
def test_a_function_of_too_few_columns_is_refused(text: str) -> None:
    count = "1" if text.startswith("unique") else "2"
    with pytest.raises(ConfigError, match=rf"with at least {count} different columns$"):
        parse_rule(text)


def test_rules_stand_after_those_that_make_what_they_read() -> None:
    rules = [parse_rule(text)[0] for text in ("d < e", "unique(e)", "c < d", "b = a + f", "b < c")]
    ordered = list(map(str, in_order(tuple(rules))))
    assert sorted(ordered) == sorted(map(str, rules))
    chain = ["b = a + f", "b < c", "c < d", "d < e"]
    assert [text for text in ordered if text in chain] == chain
    with pytest.raises(ConfigError, match=r"^rules 'a < b', 'b = c \+ a' go in a circle|both make"):
        in_order((*parse_rule("a < b"), *parse_rule("b = c + a")))
    with pytest.raises(ConfigError, match=r"^rules 'b < c', 'c < b' go in a circle$"):
        in_order((*parse_rule("x < b2"), *parse_rule("b < c"), *parse_rule("c < b")))


MOMENTS = [dt.datetime(2020, 2, 1) + dt.timedelta(days=3 * i) for i in range(1, 50)]
TIMES = {
    "days": pa.array([m.date() for m in MOMENTS], pa.date32()),
    "milliseconds of days": pa.array([m.date() for m in MOMENTS], pa.date64()),
    **{unit: pa.array(MOMENTS, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")},
    "texts": pa.array([f"{m:%d.%m.%Y}" for m in MOMENTS]),
}


def columns_of(**values: Any) -> dict[str, Any]:
    table = pa.table(values)
    everything = np.ones(len(table), bool)
    return dict(fit_schema(table, find_structure(table, {}), {}, everything).by_name)


@pytest.mark.parametrize("name", TIMES)
def test_times_of_all_units_are_brought_to_the_scale_of_each_other(name: str) -> None:
    """The number of an instant in another column is what that column itself says."""
    x = np.arange(49) ** 2 % 47
    finer = pa.array([m + dt.timedelta(hours=5 * i) for i, m in enumerate(MOMENTS)])
    own = columns_of(a=TIMES[name], x=x)["a"]
    for other, values in {**TIMES, "finer": finer}.items():
        later = values[2:].take(np.arange(47))  # another origin
        column = columns_of(a=later, x=x[:47])["a"]
        if other == "finer":
            np.testing.assert_allclose(
                on_scale_of(column.numbers(later), column, own),
                [2 + i + i * 5 / 72 + 10 / 72 for i in range(47)],
            )
            continue
        found = on_scale_of(own.numbers(TIMES[name]), own, column)
        np.testing.assert_array_equal(found[2:], column.numbers(later), err_msg=other)
        assert found[0] < found[1] < 0


def test_only_numbers_and_times_of_one_sort_are_compared() -> None:
    x, day = np.arange(49) ** 2 % 47, TIMES["days"]
    kinds = {
        "x": x,
        "day": day,
        "moment": TIMES["us"],
        "zoned": TIMES["us"][::-1].cast(pa.timestamp("us", "UTC")),
        "hour": pa.array((x * 60).astype(np.int32)).cast(pa.time32("s")),
        "wait": pa.array(x).cast(pa.duration("s")),
        "word": np.char.add("w", (x % 5).astype(str)),
    }
    columns = columns_of(**kinds)
    sorts = [{"x"}, {"day", "moment"}, {"zoned"}, {"hour"}, {"wait"}]
    for a in kinds:
        for b in kinds:
            pair = columns[a], columns[b]
            if any({a, b} <= sort for sort in sorts):
                assert number_column(pair, "r") == list(pair)
            else:
                says = rf"^rule 'r': needs numbers.* of one sort: {a} is a \w+, {b} is a \w+$"
                with pytest.raises(DataError, match=says):
                    number_column(pair, "r")


def write(path: Path, *, broken: int = 0) -> str:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 500, 200)
    b = a + rng.integers(0, 300, 200)
    a[:broken] = b[:broken] + 1
    lines = [f"{x},{y},{x + y},{x % 4},{x % 2}" for x, y in zip(a, b, strict=True)]
    path.write_text("\n".join(["a,b,c,town,side", *lines]))
    return str(path)


def test_data_that_break_a_rule_are_refused_or_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", broken=3)
    values: dict[str, Any] = {"source": source, "rules": ["a <= b"]}
    with pytest.raises(DataError, match="3 of 200 rows break the rule 'a <= b', such as row 1: a"):
        load_data(parse_data(values))
    data = load_data(parse_data({**values, "rows_that_break_rules": "leave_out"}))
    assert len(data.items) == data.card.count == 197
    with pytest.raises(DataError, match="row 1 breaks the rule"):
        data.card.table.encode(pa.csv.read_csv(source))  # type: ignore[union-attr]
    assert any("3 rows that break rules are left out" in note for note in data.notes)


def test_rules_from_a_file(tmp_path: Path) -> None:
    source, file = write(tmp_path / "t.csv"), tmp_path / "rules.yaml"
    file.write_text("- a <= b\n- c = a + b\n- combination(town, side)\n")

    def rules(told: Any) -> tuple[str, ...]:
        return build_config("table", source, None, {"data.rules": told}).data.rules

    assert rules(str(file)) == ("a <= b", "c = a + b", "combination(town, side)")
    assert rules("a <= b") == ("a <= b",)
    for content, says in ("a: b", "holds no list"), ("[", "cannot be read as YAML"):
        file.write_text(content)
        with pytest.raises(ConfigError, match=f"data.rules: .*rules.yaml {says}"):
            rules(str(file))
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        rules("nowhere.yaml")


def test_rules_of_large_tables_are_those_of_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pyarrow.csv.read_csv(write(tmp_path / "t.csv")), path, row_group_size=70)
    rules = ["a <= b", "c = a + b", "combination(town, side)"]
    config = parse_data({"source": str(path), "rules": rules})
    inside = load_data(config)
    monkeypatch.setattr(large, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(coding, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(coding, "BATCH", 32)
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    for card in (None, inside.card):
        outside = load_data(config, card=card)
        assert isinstance(outside.items, coding.PackedCodes)
        assert outside.card == inside.card
        np.testing.assert_array_equal(outside.items[:], inside.items)
    assert inside.card.table is not None
    assert rule_shares(inside.card.table, outside.table) == dict.fromkeys(rules, 1.0)

    pq.write_table(pyarrow.csv.read_csv(write(tmp_path / "t.csv", broken=3)), path)
    values = {"source": str(path), "rules": rules[:1], "rows_that_break_rules": "leave_out"}
    with pytest.raises(DataError, match=r"t\.parquet: 3 of 200 rows break .* cannot be left out"):
        load_data(parse_data(values))


def test_rows_are_held_out_by_other_columns_than_their_key(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys, x = rng.permutation(200) * 3, rng.normal(size=200)
    pq.write_table(pa.table({"order": keys, "x": x}), tmp_path / "t.parquet")
    values: dict[str, Any] = {"source": str(tmp_path / "t.parquet")}
    plain = load_data(parse_data(values))
    assert plain.card.table is not None
    assert plain.card.table.column("order").kind == "number"  # type: ignore[attr-defined]
    config = parse_data({**values, "rules": ["unique(order)"]})
    data = load_data(config)
    again = load_data(config, card=data.card)
    np.testing.assert_array_equal(again.is_heldout, data.is_heldout)
    assert again.card == data.card


def test_a_model_keeps_to_rules_through_the_command_line(tmp_path: Path) -> None:
    from models.artifact import load_artifact
    from wgan_cli import app

    source, out = write(tmp_path / "t.csv"), tmp_path / "run"
    rules = '["a <= b", "c = a + b", "combination(town, side)"]'
    sets = [f"data.rules={rules}", "training.batch_size=16", "evaluation.samples=50"]
    command = ["train", "--preset", "table", "--data", source, "--steps", "3", "--out", str(out)]
    command += ["--no-register", *(part for one in sets for part in ("--set", one))]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    model = load_artifact(out / "artifact")
    made = model.rows(np.concatenate(list(model.samples(0, 100))), 0)
    assert model.table is not None
    assert_kept(model.table, made)
    completed = model.impute(made.select(["c", "b", "side"]), 0)
    assert completed.select(["a", "b", "c", "side"]).equals(made.select(["a", "b", "c", "side"]))
    assert_kept(model.table, completed)
    settings = ["--set", sets[0], "--json", "--out", str(tmp_path / "t.png")]
    result = CliRunner().invoke(app, ["data", "inspect", source, *settings])
    assert json.loads(result.stdout)["rules"] == rule_shares(model.table, made)
