"""Kinds of a table's columns: found from the data, with the user's word above it."""

import datetime as dt
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.config import ColumnConfig, DataConfig, parse_data
from models.errors import ConfigError, DataError, UserError
from models.record import DataCard
from models.tables import TableSchema
from training.data import coding, columns, digests
from training.data.columns import date_format, find_decimals, find_kind, numbering
from training.data.dataset import Dataset, load_data
from training.data.digests import hash_values, row_digests
from training.data.schema import MIN_SPIKE, _frequent, find_structure, fit_schema, fit_values
from training.judging.tables.rows import comparable
from training.presets import build_config
from wgan_cli import main

RNG = np.random.default_rng(0)
N = 400
UNIQUE = RNG.permutation(10 * N)[:N]
MIXED = ["?" if i % 10 == 0 else str(i % 90) for i in range(N)]


def kind(name: str, values: Any, **told: Any) -> str:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return find_kind(name, array, ColumnConfig(**told)).kind


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("price", UNIQUE, "number"),
        ("price", RNG.normal(size=N), "number"),
        ("day", np.arange(N) % 7, "number"),
        ("Unnamed: 0", UNIQUE, "left_out"),
        ("__index_level_0__", [f"row {i}" for i in range(N)], "left_out"),
        ("__index_level_0__", [i % 50 for i in range(N)], "left_out"),
        ("", UNIQUE, "left_out"),
        ("index", np.arange(N) % 7, "number"),
        ("n", np.arange(1, N + 1), "identifier"),
        ("n", RNG.permutation(N), "identifier"),
        ("customer_id", UNIQUE, "identifier"),
        ("customerId", UNIQUE, "identifier"),
        ("paid", UNIQUE, "number"),
        ("customer_id", UNIQUE % 50, "number"),
        ("code", [f"A{i:04d}" for i in UNIQUE], "identifier"),
        ("snowflake_id", 2**60 + UNIQUE, "identifier"),
        ("name", [f"{i:x} {i}" for i in RNG.integers(0, 2**60, 2000)], "left_out"),
        ("city", RNG.choice(["Bonn", "Rome"], N), "category"),
        ("zip", [f"{i % 90:05d}" for i in range(N)], "category"),
        ("mixed", MIXED, "category"),
        ("born", [str(dt.date(2000, 1, 1) + dt.timedelta(i)) for i in range(N)], "time"),
        ("month", ["Mar-2018", "Jan-2018"] * 200, "category"),
        ("when", pa.array(UNIQUE).cast(pa.timestamp("s")), "time"),
        ("true", pa.array([True, None] * 200), "boolean"),
        ("same", [7] * N, "constant"),
        ("same or none", [7, None] * 200, "number"),
        ("none", pa.nulls(N), "constant"),
        ("none", pa.nulls(N, pa.float64()), "constant"),
        ("list", pa.array([[i] for i in range(N)]), "left_out"),
        ("struct", pa.array([{"a": i} for i in range(N)]), "left_out"),
        ("bytes", pa.array([b"a", b"b"] * 200), "left_out"),
    ],
)
def test_kinds_are_found(name: str, values: Any, expected: str) -> None:
    assert kind(name, values) == expected


@pytest.mark.parametrize(
    ("values", "told", "says"),
    [
        (2**60 + UNIQUE // 2, {}, "more digits than float64 holds; say that its kind is"),
        ([1.0, np.inf], {}, "infinite"),
        ([1.5, 2.0], {"kind": "integer"}, "1.5 is no whole number"),
        (["a", "b"], {"kind": "number"}, "no numbers"),
        ([True, False], {"kind": "number"}, "bool is no number"),
        ([1, 2, 3], {"kind": "boolean"}, "has 3 different values"),
        ([1, 2, 3], {"kind": "time"}, "int64 is no date or time"),
        (["soon", "later"], {"kind": "time"}, "in one of the forms %Y-%m-%d"),
        ([1, 2], {"kind": "constant"}, "has 2 different values"),
        ([1.5, 2.0], {"kind": "identifier"}, "not double"),
        ([[1], [2]], {"kind": "category"}, "cannot be categories"),
        (["a", "b"], {"low": 3}, "low does not go with a category"),
        ([1, 2, 3], {"max_categories": 3}, "max_categories does not go with a number"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: Any, told: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=f"^column 'x': .*{re.escape(says)}"):
        kind("x", values, **told)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1.25, 2.5, 100.0], (2, 1)),
        ([1.0, 2.0, 1e15], (0, 1)),
        ([0.1 + 0.2, 0.7], (1, 1)),
        (RNG.normal(size=100), (None, 1)),
        (1e9 + RNG.normal(size=100), (None, 1)),
        (np.float32([0.1, 2.7, 9.9]), (1, 1)),
        (RNG.normal(size=100).astype(np.float32), (None, 1)),
        ([*(np.arange(95) / 100), *RNG.normal(size=5)], (2, 0.95)),
        ([0.0] * 900 + RNG.exponential(size=100).tolist(), (None, 1)),
    ],
)
def test_decimals_are_those_of_nearly_all_numbers(numbers: Any, expected: Any) -> None:
    assert find_decimals(pa.array(numbers)) == pytest.approx(expected)


WIDE = pa.decimal128(38, 18)  # Spark's own


@pytest.mark.parametrize(
    ("values", "decimals"),
    [
        (pa.array(UNIQUE % 50).cast(WIDE), 0),
        (pa.array([Decimal("0.25"), Decimal("49.5"), None] * 9, WIDE), 2),
        (pa.array([Decimal("0.001"), Decimal("-0.009")] * 9, WIDE), 3),
        (pa.array([Decimal("99.99"), Decimal("1")] * 9, pa.decimal128(4, 2)), 2),
    ],
)
def test_decimal_numbers_have_the_digits_of_their_values(values: pa.Array, decimals: int) -> None:
    """Not those that their type has room for."""
    assert kind("x", values) == "number"
    assert find_decimals(values) == (decimals, 1)


def test_decimal_numbers_with_too_many_digits() -> None:
    values = pa.array([Decimal(f"{i}.123456789012345678") for i in range(9)], WIDE)
    with pytest.raises(DataError, match=r"8\.1.* holds; .* kind is number with decimals, category"):
        kind("x", values)
    assert kind("x", values, kind="number") == kind("x", values, decimals=2) == "number"
    column: Any = fit_values("number", "x", values, np.ones(9, bool), ColumnConfig(decimals=2))
    codes = RNG.normal(size=(50, 1))
    assert all(x == round(x, 2) for x in column.decode(codes).to_pylist())
    assert column.is_valid(column.decode(codes)).all()


def test_nan_is_no_category(tmp_path: Path) -> None:
    """Parquet and Arrow have both NaN and null."""
    codes = pa.array([float(i % 4) if i % 9 else np.nan for i in range(N)])
    pq.write_table(pa.table({"code": codes, "x": UNIQUE}), tmp_path / "t.parquet")
    told = {"code": {"kind": "category"}}
    data = load_data(parse_data({"source": str(tmp_path / "t.parquet"), "columns": told}))
    column: Any = data.card.table.column("code")
    assert set(column.categories) == {"0", "1", "2", "3"}
    assert data.card.table.decode(data.items)["code"].null_count == len(range(0, N, 9))
    rows = comparable(data.table, data.card.table)["0"]
    assert (rows == -1).tolist() == [i % 9 == 0 for i in range(N)]


def test_a_bad_row_is_counted_from_the_beginning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(coding, "BATCH", 64)
    people().to_csv(tmp_path / "t.csv", index=False)
    card = load(tmp_path / "t.csv").card
    frame = people()
    frame.loc[199, "kind"] = "c"
    frame.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match="column 'kind': row 200 has the unknown category 'c'"):
        load(tmp_path / "bad.csv", card)


def test_texts_are_read_as_dates_only_if_they_can_be_written_back() -> None:
    assert date_format(pa.array(["31.12.2024", "01.02.2024"])) == "%d.%m.%Y"
    assert date_format(pa.array(["12/31/2024", "01/02/2024"])) == "%m/%d/%Y"
    assert date_format(pa.array(["2024-12-31", None])) == "%Y-%m-%d"
    assert date_format(pa.array(["2024-12-31", "2024-1-1"])) is None
    assert date_format(pa.array(["a"])) is None


def test_identifiers_keep_their_form() -> None:
    assert numbering(pa.array(["C007", "C123"])) == ("C", 3, 123)
    assert numbering(pa.array(["C7", "C123"])) == ("C", 1, 123)
    assert numbering(pa.array(["C7", "D8"])) is None
    assert numbering(pa.array(["C7", "x"])) is None


# ---- the user's word -------------------------------------------------------------------------


def fit(values: Any, **told: Any) -> Any:
    table = pa.table({"x": values, "y": RNG.normal(size=len(values))})
    words = {"x": ColumnConfig(**told)}
    schema = fit_schema(table, find_structure(table, words), words, np.ones(len(values), bool))
    return next((column for column in schema.columns if column.name == "x"), schema)


def test_the_users_word_stands_above_the_data() -> None:
    years = RNG.integers(2000, 2050, N)
    assert fit(years, kind="category").type == "int64"
    assert fit(years, kind="category", max_categories=5).option_count == 6
    assert fit(years.astype(float), kind="integer").decimals == 0
    assert fit(years, low=1900, high=2100).is_valid(pa.array([1900, 2100, 2101])).tolist() == [
        True, True, False,
    ]  # fmt: skip
    assert fit(RNG.random(N), decimals=1).decimals == 1
    assert fit(years, spikes=[2001, 2000]).spikes == (2000, 2001)
    assert fit(years, kind="left_out").left_out == {"x": "as data.columns says"}
    assert fit(years, kind="identifier").first == years.max() + 1
    assert fit(["a"] * N, kind="constant").value == "a"
    assert fit(["1", "25"] * 200, kind="number").type == "int64"
    assert fit(["1.5", "25"] * 200, kind="number").type == "double"
    assert fit(["31.12.2024", "30.12.2024"] * 200, kind="time").format == "%d.%m.%Y"
    assert fit([0, 1] * 200, kind="boolean").categories == ("0", "1")
    with pytest.raises(DataError, match="200 values are outside 5 to 25, such as 1; repair"):
        fit([1, 25] * 200, low=5)


def test_all_faults_of_a_table_are_said_at_once() -> None:
    table = pa.table({"a": [1.0, np.inf], "b": [1, 2], "c": [np.inf, 1.0]})
    with pytest.raises(DataError, match=r"'a': .*; column 'b': .*; column 'c': "):
        find_structure(table, {"b": ColumnConfig(kind="constant")})
    with pytest.raises(ConfigError, match=r"data.columns: no column 'prise'; did you mean 'price'"):
        find_structure(pa.table({"price": [1]}), {"prise": ColumnConfig()})


def test_columns_are_set_by_name_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "columns.yaml").write_text(
        '"a.b c": {kind: integer, low: 0}\n2024: {kind: left_out}\n'
    )
    config = build_config(
        "table",
        "t.csv",
        None,
        {
            "data.columns": str(tmp_path / "columns.yaml"),
            "data.columns.a.b c.high": 9,
            "data.columns.price.spikes": [0],
        },
    )
    assert config.data.columns == {
        "a.b c": ColumnConfig(kind="integer", low=0, high=9),
        "2024": ColumnConfig(kind="left_out"),
        "price": ColumnConfig(spikes=(0,)),
    }


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"data.columns.price.knd": "integer"}, "data.columns.price.knd: no such key; .*'kind'"),
        ({"data.columns.price.kind": "int"}, "data.columns.price.kind: Input should be"),
        ({"data.columns.price": "integer"}, "write data.columns.NAME.SETTING"),
        ({"data.columns": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
        ({"data.columns": __file__}, "test_columns.py"),
    ],
)
def test_mistakes_in_columns_are_one_line(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        build_config("table", "t.csv", None, overrides)
    assert "\n" not in str(caught.value)


# ---- from a file -----------------------------------------------------------------------------


def people(count: int = N) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "height": RNG.normal(175, 9, count).round(1),
            "kind": RNG.choice(["a", "b"], count),
            "born": pd.to_datetime("2000-01-01") + pd.to_timedelta(np.arange(count), "D"),
        }
    )


def load(path: Path, card: DataCard | None = None, **settings: Any) -> Dataset:
    return load_data(DataConfig(source=str(path), **settings), card=card)


@pytest.mark.parametrize("validation_fraction", [0, 0.5])
def test_only_training_rows_are_told_of(tmp_path: Path, validation_fraction: float) -> None:
    """Quantiles and counts are of the training rows; the set of categories is of all."""
    frame = people().assign(rare=["r" if i < 3 else "c" for i in range(N)])
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = load(tmp_path / "t.csv", validation_fraction=validation_fraction)
    schema: TableSchema = data.card.table
    training = frame[data.is_training]
    assert data.card.validation_count == N - len(training) - data.is_heldout.sum()
    assert (data.card.validation_count > 0) == (validation_fraction > 0)
    column: Any = schema.column("height")
    assert column.quantiles[0] == training["height"].min()
    assert column.quantiles[-1] == training["height"].max()
    assert column.quantiles[len(column.quantiles) // 2] == pytest.approx(
        training["height"].median(), abs=0.2
    )
    rare: Any = schema.column("rare")
    assert set(rare.categories) == {"r", "c"}


def test_a_row_stays_on_its_side_whatever_is_beside_it(tmp_path: Path) -> None:
    frame = people()
    twins = pd.concat([frame, frame], ignore_index=True)
    twins.assign(number=np.arange(2 * N)).to_csv(tmp_path / "twins.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    twice, once = load(tmp_path / "twins.csv"), load(tmp_path / "t.parquet")
    assert twice.card.table.column("number").kind == "identifier"  # no part of the hash
    np.testing.assert_array_equal(twice.is_heldout[:N], twice.is_heldout[N:])
    more = pd.concat([frame, people(50)], ignore_index=True)
    more.to_parquet(tmp_path / "more.parquet")
    np.testing.assert_array_equal(load(tmp_path / "more.parquet").is_heldout[:N], once.is_heldout)
    assert 0.1 < once.is_heldout.mean() < 0.3


def test_equal_numbers_have_equal_hashes() -> None:
    whole = pa.array([0, 1, 2**40])
    for other in (pa.array([0.0, 1, 2**40]), pa.array([-0.0, 1, 2**40]), whole.cast(pa.uint64())):
        np.testing.assert_array_equal(hash_values(whole), hash_values(other))
    assert len(np.unique(hash_values(pa.array(RNG.random(1000))))) == 1000
    none, nan = hash_values(pa.array([None, 1.0])), hash_values(pa.array([np.nan, 1.0]))
    np.testing.assert_array_equal(none, nan)


def test_data_are_coded_by_the_schema_of_a_model(tmp_path: Path) -> None:
    frame = people()
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.iloc[:200, ::-1].assign(more=1).to_csv(tmp_path / "part.csv", index=False)
    data = load(tmp_path / "t.csv")
    part = load(tmp_path / "part.csv", data.card)
    assert part.card.table == data.card.table
    np.testing.assert_array_equal(part.items, data.items[:200])
    np.testing.assert_array_equal(part.is_heldout, data.is_heldout[:200])
    frame.assign(kind="c").to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(DataError, match=r"other.csv: .*'kind'.*unknown category 'c'"):
        load(tmp_path / "other.csv", data.card)
    frame.drop(columns="kind").to_csv(tmp_path / "less.csv", index=False)
    with pytest.raises(DataError, match="no column 'kind'"):
        load(tmp_path / "less.csv", data.card)


def test_a_model_without_schema_is_judged_on_numbers_as_before(tmp_path: Path) -> None:
    numbers = RNG.normal([5.0, -1.0, 1000.0], [3.0, 0.1, 1.0], (N, 3))
    np.save(tmp_path / "t.npy", numbers)
    before = load(tmp_path / "t.npy")
    card = before.card.model_copy(update={"columns": ["a", "b", "c"]})
    frame = pd.DataFrame(numbers, columns=["a", "b", "c"])
    frame[["c", "a", "b"]].to_csv(tmp_path / "t.csv", index=False)
    now = load(tmp_path / "t.csv", card)
    np.testing.assert_array_equal(now.items, before.items)
    np.testing.assert_array_equal(now.is_heldout, before.is_heldout)
    assert now.card.sha256 == before.card.sha256
    frame.assign(b="oak").to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=r"column 'b' holds 'oak'.* row 1 below"):
        load(tmp_path / "bad.csv", card)


def test_types_of_a_parquet_file_are_kept_and_its_index_is_not_learned(tmp_path: Path) -> None:
    frame = people().astype({"height": "float32", "kind": "category"})
    frame.index = RNG.permutation(N) + 7
    frame.to_parquet(tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet")
    assert list(data.card.table.left_out) == ["__index_level_0__"]
    made, stored = data.card.table.decode(data.items), pq.read_table(tmp_path / "t.parquet")
    assert {f.name: f.type for f in made.schema} == {
        f.name: f.type for f in stored.schema if f.name != "__index_level_0__"
    }
    assert made["kind"].to_pylist() == stored["kind"].to_pylist()


def test_headers_are_checked(tmp_path: Path) -> None:
    rows = "".join(f"{i % 17},{i % 5},{i % 3}\n" for i in range(N))
    (tmp_path / "twice.csv").write_text("a,b,a\n" + rows)
    notes = load(tmp_path / "twice.csv").notes
    assert "the name 'a' stands above several columns" in notes
    (tmp_path / "shifted.csv").write_text("a,b\n" + rows)
    notes = load(tmp_path / "shifted.csv").notes
    assert "the header has one name less: the first column is the rows' names" in notes
    pq.write_table(
        pa.Table.from_arrays([pa.array([1, 2]), pa.array([1, 2])], names=["a", "a"]),
        tmp_path / "twice.parquet",
    )
    with pytest.raises(UserError, match="several columns named 'a'"):
        load(tmp_path / "twice.parquet")


def test_the_command_line_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    people().to_csv(path, index=False)
    for told, says in (
        ("data.columns.hight.low=0", "no column 'hight'; did you mean 'height'?"),
        ("data.columns.height.low=200", "values are outside 200 to"),
        ("data.columns.height.size=2", "data.columns.height.size: no such key"),
    ):
        assert main(["data", "inspect", str(path), "--set", told]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert len(said.splitlines()) == 1


def test_values_that_many_rows_share_are_found() -> None:
    for share in (0.04, 0.049, 0.051, 0.3):
        numbers = RNG.normal(size=2000)
        numbers[: int(share * 2000)] = 7.5
        numbers[1000 : 1000 + int(share * 2000)] = -3.0
        RNG.shuffle(numbers)
        distinct, counts = np.unique(numbers, return_counts=True)
        np.testing.assert_array_equal(_frequent(numbers), distinct[counts > MIN_SPIKE * 2000])


@pytest.mark.parametrize("limit", [0, 2**20])
def test_texts_in_many_rows_are_what_they_are_in_few(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MANY_DIFFERENT", limit)
    monkeypatch.setattr(digests, "AT_ONCE", 300)
    texts = {
        "id": [f"c{n:05d}" for n in RNG.permutation(2000)],
        "day": [f"2024-{n % 12 + 1:02d}-{n % 28 + 1:02d}" for n in range(2000)],
        "free": [f"{n} words {n}" for n in range(2000)],
        "kind": [f"k{n % 20}" for n in range(2000)],
        "mixed": ["12"] * 1500 + ["many"] * 500,
    }
    found = {n: find_kind(n, pa.array(v), ColumnConfig()) for n, v in texts.items()}
    kinds = ("identifier", "time", "left_out", "category", "category")
    assert tuple(f.kind for f in found.values()) == kinds
    assert found["free"].note.startswith("2000 different texts")
    assert found["mixed"].note.startswith("1500 numbers and 500 texts such as 'many'")
    assert numbering(pa.array(texts["id"])) == ("c", 5, 1999)
    assert numbering(pa.array([*texts["id"], "d7"])) is None
    assert numbering(pa.array(["a1234567890123456"])) == ("a1", 1, 234567890123456)


def test_hashes_do_not_depend_on_how_many_rows_are_hashed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrays = [
        pa.array(RNG.choice([0.5, -0.0, np.nan, 7], 500)),
        pa.array(RNG.choice(["ash", "oak", None], 500)),
        pa.array(RNG.integers(0, 9, 500), pa.timestamp("s")),
    ]
    whole = row_digests(zip("abc", arrays, strict=True), 500)
    monkeypatch.setattr(digests, "AT_ONCE", 37)
    np.testing.assert_array_equal(row_digests(zip("abc", arrays, strict=True), 500), whole)
