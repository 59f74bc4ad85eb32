"""Gaps are filled beside rules between columns: known cells stay, and every rule is kept."""

import datetime as dt
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models.artifact import load_artifact
from models.errors import ConditionError, DataError
from models.model import Model
from models.tables import Condition, TableSchema, rule_shares
from models.tables.category import uniform
from models.tables.column import arrow_type, value_type, whole
from models.tables.gaps import _require_rules, complete
from models.tables.layout import Choice, place
from models.tables.number import NumberColumn
from models.tables.rules.numbers import between, first_from, nearest
from tests.artifacts import make_artifact
from tests.test_rules import fitted

N = 400


def orders(seed: int = 0) -> pa.Table:
    """Rows under every kind of rule."""
    rng = np.random.default_rng(seed)
    net, tax = rng.integers(1, 900, (2, N))
    days, wait = rng.integers(0, 700, N), rng.geometric(0.3, N)
    city = rng.zipf(1.3, N).clip(max=60)
    which = rng.integers(0, 3, N)
    which[:3] = range(3)
    used = rng.integers(0, 50, N)
    limit = used + rng.integers(0, 30, N)
    day = dt.date(2020, 1, 1)
    return pa.table(
        {
            "net": net / 100,
            "tax": tax / 100,
            "gross": (net + tax) / 100,
            "ordered": [day + dt.timedelta(int(d)) for d in days],
            "shipped": [day + dt.timedelta(int(d)) for d in days + wait],
            "arrived": [str(day + dt.timedelta(int(d))) for d in days + 2 * wait],
            "city": np.char.add("c", city.astype(str)),
            "region": pa.array((city % 4).astype(str)).dictionary_encode(),
            "card": pa.array(rng.integers(1000, 9999, N), mask=which != 0),
            "bank": pa.array(rng.choice(["x", "y"], N), mask=which != 1),
            "cash": pa.array(rng.random(N).round(2), mask=which != 2),
            "used": used,
            "limit": limit,
            "left": limit - used,
            "x": rng.normal(size=N),
        }
    )


RULES = (
    "gross = net + tax",
    "ordered <= shipped < arrived",
    "combination(city, region)",
    "one_of(card, bank, cash)",
    "used <= limit",
    "left = limit - used",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_of(fitted(orders(), *RULES), tmp_path_factory.mktemp("rules"))


def model_of(schema: TableSchema, folder: Path) -> Model:
    return load_artifact(make_artifact(folder / "artifact", "rows", table_schema=schema))


def with_holes(rows: pa.Table, share: float, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    holes = {}
    for name in rows.column_names:
        values = rows[name].combine_chunks()
        holes[name] = pc.if_else(pa.array(rng.random(len(rows)) < share), None, values)
    return pa.table(holes)


def assert_completed(model: Model, rows: pa.Table, completed: pa.Table) -> None:
    assert model.table is not None
    assert set(rule_shares(model.table, completed).values()) == {1.0}
    for column in model.table.columns:
        values = completed[column.name].combine_chunks()
        assert column.is_valid(values).all(), column.name
        if column.name not in ("card", "bank", "cash"):  # one of them has the value
            assert values.null_count == 0, column.name
        if column.name in rows.column_names:
            known = rows[column.name].is_valid()
            plain = rows[column.name].cast(value_type(column.type))
            assert values.type == arrow_type(column.type)
            assert whole(completed[column.name].filter(known)).equals(
                plain.filter(known).combine_chunks()
            ), column.name


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1])
def test_rows_with_any_gaps(model: Model, share: float) -> None:
    rows = with_holes(orders(), share, 1)
    completed = model.impute(rows, 2)
    assert completed.column_names == rows.column_names
    assert_completed(model, rows, completed)
    some = rows.select(["gross", "arrived", "region", "bank", "left"])
    assert_completed(model, some, model.impute(some, 3))
    assert model.impute(rows.slice(0, 90), 2).equals(completed.slice(0, 90).combine_chunks())
    assert share == 0.1 or not model.impute(rows, 3).equals(completed)


def one(model: Model, **cells: Any) -> dict[str, Any]:
    rows = pa.table({name: [value] for name, value in cells.items()})
    return dict(model.impute(rows, 0).to_pylist()[0])


def test_what_known_cells_decide(model: Model) -> None:
    assert one(model, net=1.25, tax=2.5)["gross"] == 3.75
    assert one(model, net=1.25, gross=3.75)["tax"] == 2.5
    parts = one(model, gross=3.75)
    assert round(parts["net"] + parts["tax"], 2) == 3.75
    assert one(model, left=7, limit=20)["used"] == 13
    day = dt.date(2020, 6, 1)
    between = one(model, ordered=day, arrived="2020-06-02")
    assert between["shipped"] == day, "the only day from the one to the other"
    assert one(model, arrived="2020-06-02")["shipped"] <= day
    assert one(model, city="c7")["region"] == "3"
    paid = one(model, bank="x")
    assert (paid["card"], paid["bank"], paid["cash"]) == (None, "x", None)
    made = one(model, x=0.5)
    assert sum(made[name] is not None for name in ("card", "bank", "cash")) == 1


def test_rare_combinations_fit_known_cells(model: Model) -> None:
    assert model.table is not None
    table = orders()
    pairs = sorted(set(zip(*(table[n].to_pylist() for n in ("city", "region")), strict=True)))
    rows = pa.table(
        {
            "region": [region for _, region in pairs for _ in range(50)],
            "city": [known for city, _ in pairs for known in (*[None] * 49, city)],
        },
        pa.schema({"region": "str", "city": "str"}),
    )
    completed = model.impute(rows, 5)
    assert rule_shares(model.table, completed)["combination(city, region)"] == 1.0
    assert completed["region"].to_pylist() == rows["region"].to_pylist()
    assert completed["city"].to_pylist()[49::50] == [city for city, _ in pairs]


def test_each_seed_completes_a_row_with_another_rare_combination() -> None:
    city = np.random.default_rng(0).integers(0, 200, 4000)
    table = pa.table({"city": city.astype(str), "region": (city % 2).astype(str)})
    schema = fitted(table.append_column("x", [city / 100]), "combination(city, region)")
    cities = list[list[str]]()
    for seed in range(30):
        rows = pa.table({"city": pa.nulls(5, pa.string()), "region": ["1"] * 5})
        made = pa.table({"city": ["0"] * 5, "region": ["0"] * 5})  # fits none of the known cells
        settled = schema.rules[0].settled(
            rows, made, schema.by_name, {}, partial(uniform, seed=seed)
        )
        cities.append(settled["city"].to_pylist())
    assert all(int(one) % 2 for five in cities for one in five)
    for i in range(5):
        assert len({five[i] for five in cities}) > 10, "of 75 rare ones in this region, or so"


def test_rows_are_completed_alike_in_any_pieces() -> None:
    """Of rare combinations each row draws one by its number."""
    city = np.random.default_rng(0).integers(0, 200, 4000)
    table = pa.table({"city": city.astype(str), "region": (city % 2).astype(str)})
    table = table.append_column("x", [city / 100])
    schema, rows = fitted(table, "combination(city, region)"), pa.table({"region": ["1"] * 150})
    unfit = table.take(np.flatnonzero(city == 0)[:1].repeat(150))  # of no known cell

    def completed(start: int, end: int) -> list[str]:
        some = complete(schema, rows[start:end], lambda r: unfit[: len(r)], start, 2)
        return list(some["city"].to_pylist())

    at_once = completed(0, 150)
    assert len(set(at_once)) > 20
    assert completed(0, 64) + completed(64, 150) == at_once


def test_rules_that_make_nothing_may_stand_beside_others(tmp_path: Path) -> None:
    model = model_of(fitted(orders(), "unique(x, net)", *RULES[:1]), tmp_path)
    parts = one(model, gross=3.75)
    assert round(parts["net"] + parts["tax"], 2) == 3.75
    with pytest.raises(DataError, match=r"'gross = net [+] tax'"):
        one(model, net=5.0, tax=1.0, gross=7.0)


def test_a_constant_under_a_rule_may_be_a_column_that_is_not_there(tmp_path: Path) -> None:
    cities = [f"c{i % 5}" for i in range(N)]
    table = pa.table({"city": cities, "land": ["NL"] * N, "x": np.arange(N) / 7})
    model = model_of(fitted(table, "combination(city, land)"), tmp_path)
    assert one(model, city="c3")["land"] == "NL"
    assert one(model, x=3.0)["city"] in cities


def test_gaps_beside_a_rule_are_filled_where_the_difference_is_always_the_same() -> None:
    low = np.random.default_rng(0).integers(0, 50, N)
    table = pa.table({"low": low, "high": low + 1, "x": np.sin(low * 1.7)})
    schema = fitted(table, "low < high")
    rows = pa.table({"low": [3, None, None, 7], "high": [None, 5, None, 8]})
    filled = complete(schema, rows, lambda asked: table.slice(0, len(asked)), 0, 0)
    lows = filled["low"].to_pylist()
    assert lows == [3, 4, low[2], 7]
    assert filled["high"].to_pylist() == [x + 1 for x in lows]


def test_what_a_known_sum_decides_comes_before_other_rules() -> None:
    """The largest sum leaves its terms no choice, though another rule could take any of them."""
    rng = np.random.default_rng(0)
    a, b, more = rng.integers(0, 51, (3, N))
    a[:2], b[:2] = 50, (0, 50)
    table = pa.table({"a": a, "b": b, "sum": a + b, "d": a + more})
    schema = fitted(table, "sum = a + b", "a <= d")
    made = table.slice(5, 1)
    assert made["a"].to_pylist()[0] < 50
    filled = complete(schema, pa.table({"sum": [100]}), lambda asked: made, 0, 0).to_pylist()[0]
    assert (filled["a"], filled["b"], filled["sum"]) == (50, 50, 100)
    assert filled["d"] >= 50


def test_a_gap_that_nothing_fills_breaks_the_rule() -> None:
    """Though a comparison with no value is no fault of the rule's own."""
    low = np.random.default_rng(0).integers(0, 50, N)
    schema = fitted(pa.table({"low": low, "high": low + 1 + low % 3}), "low < high")
    rows = pa.table({"low": [1, 2, 3], "high": [2, 4, None]})
    _require_rules(schema, rows.slice(0, 2), 7)
    with pytest.raises(DataError, match=r"^row 10: .* the rule 'low < high', or leave no value"):
        _require_rules(schema, rows, 7)


def test_the_network_is_asked_for_the_known_cells_and_for_values() -> None:
    """Nothing else is restricted: what is not known may be anything but missing."""
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "same": ["a"] * N,  # has no part in the code
            "n": rng.normal(size=N),
            "gaps": pa.array(rng.normal(size=N), mask=rng.random(N) < 0.2),
            "kind": rng.choice(["a", "b", "c"], N),
            "some": pa.array(rng.choice(["a", "b"], N), mask=rng.random(N) < 0.2),
        }
    )
    schema, asked = fitted(table), list[np.ndarray]()

    def make(restrictions: np.ndarray) -> pa.Table:
        asked.append(restrictions)
        return table.slice(0, len(restrictions))

    known = table.slice(5, 1).to_pylist()[0] | {"gaps": 0.5, "some": "b"}
    rows = pa.Table.from_pylist([dict.fromkeys(known), known], table.schema)
    complete(schema, rows, make, 0, 0)
    assert len(asked) == 1
    values = {name: Condition(missing=False) for name in ("gaps", "some")}
    np.testing.assert_array_equal(asked[0][0], schema.restrict(values))
    code = schema.encode(rows.slice(1))[0]
    for part, at, restriction in place(schema.parts):
        numbers, limits = code[at], asked[0][1][restriction]
        if isinstance(part, Choice):
            np.testing.assert_array_equal(limits, numbers == 0)
        else:  # both ends are the number
            np.testing.assert_allclose([limits[0] - 3.5, 3.5 - limits[1]], numbers[0], atol=1e-6)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"net": 5.0, "tax": 1.0, "gross": 7.0}, "row 1: .* 'gross = net [+] tax'"),
        ({"net": 5.0, "gross": 1.0}, "'gross = net [+] tax'"),
        ({"shipped": dt.date(2020, 5, 2), "ordered": dt.date(2020, 5, 3)}, "'ordered <= shipped'"),
        ({"ordered": dt.date(2020, 5, 2), "arrived": "2020-05-02"}, "'(ordered <|shipped <)"),
        ({"city": "c7", "region": "0"}, r"'combination\(city, region\)'"),
        ({"card": 1234, "bank": "x"}, r"'one_of\(card, bank, cash\)'"),
    ],
)
def test_known_cells_that_break_a_rule(model: Model, cells: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        one(model, **cells)


def test_the_row_that_breaks_a_rule_is_named_in_long_tables(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.model.ROWS_AT_ONCE", 64)
    used = np.zeros(200, int)
    used[150] = 40
    with pytest.raises(DataError, match="row 151: its known cells break the rule 'used <= limit'"):
        model.impute(pa.table({"used": used, "limit": [20] * 200}), 0)


def test_values_next_to_ends() -> None:
    whole = NumberColumn(name="x", type="int64", low=0, high=9, decimals=0, quantiles=(0, 9))
    spikes = NumberColumn(name="x", type="int64", low=0, high=8, decimals=0, spikes=(0, 4, 8))
    ends = np.array([-1, 0, 3.5, 4, 8.5, 20, np.nan])
    nan = np.nan
    for column, values in ((whole, np.arange(10.0)), (spikes, np.array([0, 4, 8.0]))):
        for step in (1, -1):
            for beyond in (False, True):
                expected = []
                for end in ends:
                    found = values[
                        (values - end) * step > 0 if beyond else (values - end) * step >= 0
                    ]
                    expected.append(
                        (found.min() if step > 0 else found.max()) if len(found) else nan
                    )
                found = first_from(column, ends, beyond=beyond, step=step)  # type: ignore[arg-type]
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["double", "float"])
@pytest.mark.parametrize("decimals", [None, 2])
def test_numbers_next_to_ends(kind: str, decimals: int | None) -> None:
    """Of all numbers of the type near an end, the nearest that the column may hold."""
    dtype: Any = {"double": np.float64, "float": np.float32}[kind]
    column = NumberColumn(
        name="x", type=kind, low=-1.5, high=2.0**60, decimals=decimals, quantiles=(-1.5, 2.0**60)
    )
    for end in (-9.0, -1.5, -1.499, 0.0, 0.1, 0.105, 7.0, 2.0**59, 2.0**60, 2.0**61):
        near = {dtype((np.floor(end * 100) + i) / 100) for i in range(-2, 4)}
        if decimals is None or end > 2**53:  # no digits to round to
            near |= {dtype(end)}
            for _ in range(3):
                near |= {np.nextafter(x, dtype(to)) for x in near for to in (-np.inf, np.inf)}
        values = np.array(sorted({float(x) for x in near} | {-1.5, 2.0**60}))
        values = values[(values >= -1.5) & (values <= 2.0**60)]
        for step in (1, -1):
            for beyond in (False, True):
                is_there = (values - end) * step > 0 if beyond else (values - end) * step >= 0
                some = values[is_there]
                expected = np.nan if not len(some) else some.min() if step > 0 else some.max()
                found = first_from(column, np.array([end]), beyond=beyond, step=step)  # type: ignore[arg-type]
                np.testing.assert_array_equal(found, [expected], err_msg=f"{end} {step} {beyond}")


@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("spikes", [(), (10.0,), (10.0, 50.0)])
@pytest.mark.parametrize("has_number", [True, False])
def test_rows_between_ends_are_asked_for_as_by_a_condition(
    missing: float, spikes: tuple[float, ...], has_number: bool
) -> None:
    """Where a condition can be met; the outermost numbers of training are not restricted."""
    quantiles = tuple(np.linspace(3, 90, 30).round()) if has_number else ()
    column = NumberColumn(
        name="x", type="int64", low=0, high=99, decimals=0, missing=missing, quantiles=quantiles,
        spikes=spikes,
    )  # fmt: skip
    if not has_number and not spikes:
        return
    ends = np.array([0, 3, 4, 10, 11, 30, 50, 51, 89, 90, 99.0])
    for low in ends:
        for high in ends:
            (found,) = between(column, np.array([low]), np.array([high]))
            assert found.dtype == np.float32
            try:
                expected = column.restrict(Condition(at_least=low, at_most=high))
            except ConditionError:  # nothing can be: then anything but missing
                assert low > high or not has_number
                expected = column.restrict(Condition(missing=False)) if missing else 0 * found
            np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=f"{low} {high}")
    one_by_one = [between(column, ends[i : i + 1], ends[i : i + 1]) for i in range(len(ends))]
    np.testing.assert_array_equal(between(column, ends, ends), np.concatenate(one_by_one))


def test_codes_between_ends() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 100, 500).astype(float)
    column = NumberColumn(
        name="x",
        type="int64",
        low=0,
        high=99,
        decimals=0,
        missing=0.1,
        quantiles=tuple(np.quantile(numbers, np.linspace(0, 1, 65))),
        spikes=(10.0, 50.0),
    )
    low, high = np.sort(rng.integers(-5, 110, (2, 40)), axis=0).astype(float)
    restrictions = between(column, low, high)
    assert restrictions.shape == (40, 2 + 4)
    assert (restrictions[:, -1] == 1).all(), "never missing"
    spikes = np.array(column.spikes)
    for row, a, b in zip(restrictions, low, high, strict=True):
        np.testing.assert_array_equal(row[3:5] == 0, (spikes >= a) & (spikes <= b))
        scores = np.array([row[0] - 3.5, 3.5 - row[1]])
        made = column.decode(np.column_stack([scores, np.tile([1, 0, 0, 0], (2, 1))]))
        wanted = nearest(column, np.array([a, b]))
        assert np.abs(np.array(made.to_pylist()) - wanted).max() <= 1
