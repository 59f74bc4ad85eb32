"""Rows in and out of a model of a table: formats, conditions, gaps, DataFrames, commands."""

import contextlib
import datetime as dt
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

import wgan
from models.artifact import load_artifact
from models.config import ColumnConfig
from models.errors import ConditionError, DataError, ShapeError, UserError
from models.formats import stream
from models.model import ROWS_AT_ONCE, Model
from models.tables import Condition, TableSchema, files
from models.tables import records as record_files
from models.tables.category import BooleanColumn
from models.tables.files import read_npz, write_rows
from models.tables.fixed import ConstantColumn
from models.tables.frames import to_frame, to_table
from models.tables.gaps import complete
from models.tables.reading.dialect import NO_VALUE
from models.tables.records import read_rows, rows_of_records, typed, typed_values
from models.trained import TrainedModel, load
from service import rows as service_rows
from service import uploads
from tests.artifacts import make_artifact
from tests.hostile_rows import arrow, nested_parquet, parquet
from tests.mixed import people
from tests.test_app import made as app_of
from tests.test_app import talk
from tests.test_machine import limited
from tests.test_tables import CASES, fitted
from training.data.rules import fit_rules, with_rules
from training.data.schema import find_structure, fit_schema
from wgan_cli import main

RNG = np.random.default_rng(0)
FORMATS = ["csv", "json", "npz", "parquet", "arrow"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("rows") / "artifact", "rows")


@pytest.fixture(scope="module")
def model(artifact: Path) -> Model:
    return load_artifact(artifact)


@pytest.fixture(scope="module")
def trained(artifact: Path) -> TrainedModel:
    return load(str(artifact))


def rows_of(model: Model, seed: int, count: int, start: int = 0, **conditions: Any) -> pa.Table:
    wanted = {name: Condition.model_validate(given) for name, given in conditions.items()}
    parts = model.samples(seed, count, start, restrictions=model.restrict(wanted))
    return pa.concat_tables(model.tables(parts, seed, start, wanted))


# ---- formats -----------------------------------------------------------------------------------


def as_file(table: pa.Table, format: str, cut: int) -> bytes:
    return b"".join(write_rows([table.slice(0, cut), table.slice(cut)], format))


@pytest.mark.parametrize("name", CASES)
def test_values_come_back_from_every_format(name: str) -> None:
    values = CASES[name]
    table, schema = pa.table({"x": values}), fitted(values)
    plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    for cut in (1, 200):
        parquet = pq.read_table(io.BytesIO(as_file(table, "parquet", cut)))
        assert typed(schema, parquet)["x"].combine_chunks() == plain
        arrow = pyarrow.feather.read_table(io.BytesIO(as_file(table, "arrow", cut)))
        assert arrow["x"].combine_chunks() == plain
        content = json.loads(as_file(table, "json", cut))
        again = typed(schema, rows_of_records(schema, content["samples"]))
        assert again["x"].combine_chunks() == plain
    if name == "categories with gaps":
        return  # a CSV file does not tell an empty text or "NA" from a missing one
    text = as_file(table, "csv", 7)
    assert text == as_file(table, "csv", 300), "its parts do not change the file"
    assert typed(schema, read_rows(text, "x.csv", schema))["x"].combine_chunks() == plain


# A CSV file has no zero bytes, and does not tell an empty text or "NA" from a missing one.
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=6).filter(
    lambda text: text.strip() not in {"", *NO_VALUE}
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    texts=st.sets(TEXTS, min_size=2, max_size=6),
    name=TEXTS.filter(lambda name: name == name.strip() and name != "y"),
    has_gaps=st.booleans(),
)
def test_any_texts_and_names_come_back(texts: set[str], name: str, has_gaps: bool) -> None:
    choices = [*sorted(texts), *([None] if has_gaps else [])]
    values = pa.array([choices[i % len(choices)] for i in range(120)])
    table = pa.table({name: values, "y": RNG.normal(size=120)})
    schema = fit_schema(table, find_structure(table, {}), {}, np.ones(120, bool))
    for format in ("parquet", "arrow", "csv"):
        found = typed(schema, read_rows(as_file(table, format, 50), f"x.{format}", schema))
        assert found[name].combine_chunks() == values, format
    content = json.loads(as_file(table, "json", 50))
    found = typed(schema, rows_of_records(schema, content["samples"]))
    assert found[name].combine_chunks() == values


def test_names_of_vectors_come_back_from_csv() -> None:
    names = ["#first", "with\ra return", "plain"]
    content = b"".join(stream([np.eye(3)], 3, "csv", names))
    assert read_rows(content, "x.csv").column_names == names
    assert b"".join(stream([np.eye(2)], 2, "csv")) == b"x1,x2\n1.0,0.0\n0.0,1.0\n"


def test_arrays_of_npz_are_plain_ones(model: Model) -> None:
    table = rows_of(model, 0, 300)
    with np.load(io.BytesIO(as_file(table, "npz", 9))) as arrays:
        found = {name: arrays[name] for name in arrays}
    assert list(found) == table.column_names
    assert found["age"].dtype == np.int64
    assert found["member"].dtype == bool
    assert found["since"].dtype == np.dtype("datetime64[D]")
    np.testing.assert_array_equal(found["income"], table["income"].to_numpy())
    assert (found["home"] == table["home"].fill_null("").to_numpy()).all()


def test_an_npz_file_has_room_for_members_beyond_2_gb() -> None:
    """As numpy writes it, which is told by the version that a member's header asks for."""
    beside = io.BytesIO()
    np.savez(beside, x=np.arange(3))
    assert as_file(pa.table({"x": [1, 2, 3]}), "npz", 1)[:6] == beside.getvalue()[:6]


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def test_arrays_of_npz_become_columns_with_gaps() -> None:
    days = np.array(["2024-02-29", "NaT"], "datetime64[D]")
    found = read_npz(npz(n=[1.5, np.nan], day=days, text=["", "a"], whole=[2**62 + 1, 0]), "x.npz")
    assert found.to_pydict() == {
        "n": [1.5, None],
        "day": [dt.date(2024, 2, 29), None],
        "text": [None, "a"],
        "whole": [2**62 + 1, 0],
    }


unpickled = list[str]()


class Harmful:
    """What tells that it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return harm, ("done",)


def harm(what: str) -> None:
    unpickled.append(what)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npz(a=np.zeros(3), b=np.zeros(2)), "no columns, one-dimensional and equally long"),
        (npz(a=np.zeros((3, 2)), b=np.zeros((3, 2))), "no columns, one-dimensional"),
        (npz(a=np.zeros(())), "no columns, one-dimensional"),
        (npz(a=np.array([Harmful()], object)), "no .npz file of columns, or a broken one"),
        (npz(a=np.zeros(300))[:-40], "no .npz file of columns, or a broken one"),
    ],
)
def test_arrays_that_are_no_columns_are_refused(content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=rf"^x\.npz: .*{says}"):
        read_npz(content, "x.npz")
    assert not unpickled


def test_row_groups_are_held_until_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROW_GROUP", 10)
    table = pa.table({"x": range(24)})
    parts = [table.slice(i, 5) for i in range(0, 24, 5)]
    written = pq.ParquetFile(io.BytesIO(b"".join(write_rows(parts, "parquet"))))
    groups = [written.metadata.row_group(i).num_rows for i in range(written.num_row_groups)]
    assert groups == [10, 10, 4]
    assert written.read().equals(table)


def test_row_groups_have_65_536_rows() -> None:
    """Each goes out with the part that fills it."""
    table = pa.table({"x": np.arange(2 * 65_536 + 1)})
    parts = [table.slice(0, 65_535), *(table.slice(start, 1) for start in (65_535, 65_536))]
    pieces = list(write_rows([*parts, table.slice(65_537)], "parquet"))
    sizes = [len(piece) for piece in pieces]
    assert max(sizes[0], sizes[2]) < 100
    assert min(sizes[1], sizes[3]) > 65_536
    written = pq.ParquetFile(io.BytesIO(b"".join(pieces)))
    groups = [written.metadata.row_group(i).num_rows for i in range(written.num_row_groups)]
    assert groups == [65_536, 65_536, 1]
    assert written.read().equals(table)


# ---- rows of files, by a schema ------------------------------------------------------------------


def test_columns_are_known_and_there_once() -> None:
    schema = fitted(pa.array([1.5, 2.5, 4.0] * 40))
    twice = pa.table([pa.array([1.5]), pa.array([2.5])], names=["x", "x"])
    with pytest.raises(DataError, match=r"^column 'x': there are several of this name$"):
        typed(schema, twice)
    with pytest.raises(DataError, match=r"^no column 'z'"):
        typed(schema, pa.table({"z": [1.5]}))
    with pytest.raises(DataError, match=r"^no column 'z'"):
        rows_of_records(schema, [{"x": 1.5}, {"z": 1.5}])
    with pytest.raises(DataError, match=r"^column 'x': not values of one type"):
        rows_of_records(schema, [{"x": 1.5}, {"x": "a"}])


def test_numbers_are_truth_values_if_they_are_0_or_1() -> None:
    column = BooleanColumn(name="x", missing=0.5)
    for values in (
        pa.array([1, 0, None]),
        pa.array([1.0, 0.0, None]),
        pa.array([1, 0, None], "u1"),
    ):
        assert typed_values(column, values).to_pylist() == [True, False, None]
    for values in (pa.array([1, 2]), pa.array([0.0, 0.5]), pa.array([-1, 0])):
        with pytest.raises(DataError, match=r"^column 'x': (2|0.5|-1) is not true or false$"):
            typed_values(column, values)


@pytest.mark.parametrize("format", [*FORMATS[3:], "csv"])
def test_a_file_may_have_some_columns_more_than_its_table(
    monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Those that were left out of the schema are its table's too."""
    monkeypatch.setattr(record_files, "SPARE_COLUMNS", 2)
    schema = fitted(pa.array([1.5, 2.5, 4.0] * 40))
    schema = schema.model_copy(update={"left_out": {"notes": "of many kinds"}})
    assert len(schema.columns) == 2
    for count in (5, 6):
        wide = pa.table([[1]] * count, names=[f"c{i}" for i in range(count)])
        content = as_file(wide, format, 1)
        assert len(read_rows(content, "x").columns) == count
        if count == 5:
            assert len(read_rows(content, "x", schema).columns) == count
        else:
            with pytest.raises(ShapeError, match=r"^x: has 6 columns, of which at most 5 are read"):
                read_rows(content, "x", schema)


def test_a_file_that_names_values_that_are_not_there_is_broken() -> None:
    spoilt = pa.DictionaryArray.from_arrays(pa.array([0, 5]), pa.array(["a"]), safe=False)
    with pytest.raises(DataError, match=r"^x\.arrow: no table as CSV, Parquet or Arrow"):
        read_rows(arrow(pa.table({"x": spoilt})), "x.arrow")


# ---- conditions --------------------------------------------------------------------------------


CONDITIONS: list[dict[str, Any]] = [
    {"home": "own"},
    {"home": None, "age": {"above": 40, "at_most": 50}},
    {"home": ["own", "rent, old"], "member": True},
    {"income": {"missing": False, "below": 0.25}},
    {"since": {"at_least": "2021-06-01"}},
]


@pytest.mark.parametrize("conditions", CONDITIONS)
def test_rows_meet_conditions_whatever_their_division(
    model: Model, conditions: dict[str, Any]
) -> None:
    table = rows_of(model, 3, 700, **conditions)
    homes, ages = table["home"].to_pylist(), table["age"].to_pylist()
    for name, wanted in conditions.items():
        if name == "home":
            assert set(homes) <= (set(wanted) if isinstance(wanted, list) else {wanted})
        if name == "age":
            assert all(40 < age <= 50 for age in ages)
        if name == "member":
            assert all(table["member"].to_pylist())
        if name == "income":
            assert all(x is not None and x < 0.25 for x in table["income"].to_pylist())
        if name == "since":
            assert min(table["since"].to_pylist()) >= dt.date(2021, 6, 1)
    assert table["years"] == table["age"]
    again = rows_of(model, 3, 300, 100, **conditions)
    assert again.equals(table.slice(100, 300).combine_chunks()), "a row depends on its index alone"
    assert not again.equals(rows_of(model, 4, 300, 100, **conditions))


def test_each_seed_has_other_rare_categories(tmp_path: Path) -> None:
    city = np.random.default_rng(0).integers(0, 100, 2000)
    table = pa.table({"city": city.astype(str), "x": city / 10})
    schema = fit_schema(table, find_structure(table, {}), {}, np.arange(len(table)) % 5 > 0)
    folder = make_artifact(tmp_path / "a", "rows", table_schema=schema)
    rare, seeds = schema.column("city").others, range(20)  # type: ignore[attr-defined]
    trained = load(str(folder))
    made = [trained.sample(2, seed, where={"city": rare}).city.tolist() for seed in seeds]
    assert len({cities[0] for cities in made}) > 10, "of 50"
    command = ["sample", str(folder), "-n", "1", *(f"--where=city={city}" for city in rare)]
    where = {"city": list(rare)}
    asked = [{"seed": seed, "where": where} for seed in seeds]
    asked += [{"latents": [z.tolist()], "where": where} for z in trained.model.latents(0, 20)]
    answers = list[str]()

    async def send(client: httpx.AsyncClient) -> None:
        for one in asked:
            answer = await client.post("/v1/samples", json=one)
            answers.append(answer.json()["samples"][0]["city"])

    talk(app_of(WGAN_MODEL=str(folder)), send)
    assert answers[:20] == [cities[0] for cities in made]
    assert len(set(answers[20:])) > 10
    for seed in (0, 1):
        out = tmp_path / f"{seed}.csv"
        assert main([*command, "--seed", str(seed), "--out", str(out)]) == 0
        assert pd.read_csv(out, dtype=str).city.tolist() == made[seed][:1]


def test_ordered_categories_keep_their_order(tmp_path: Path) -> None:
    rng, some = np.random.default_rng(0), np.arange(400) % 2 == 0
    sizes = pd.CategoricalDtype(["S", "M", "L", "unused"], ordered=True)
    levels = pd.CategoricalDtype([10, 9, 2], ordered=True)
    frame = pd.DataFrame({"x": rng.normal(size=400)})
    for name in ("size", "one", "other", "joint"):
        frame[name] = pd.Categorical(rng.choice(["L", "S", "M"], 400), dtype=sizes)
    frame["level"] = pd.Categorical(rng.choice([9, 2, 10], 400), dtype=levels)
    frame.loc[some, "one"], frame.loc[~some, "other"] = None, None
    table, told = pa.Table.from_pandas(frame), {"level": ColumnConfig(kind="category")}
    everything = np.ones(400, bool)
    schema = fit_schema(table, find_structure(table, told), told, everything)
    schema = with_rules(schema, ["one_of(one, other)", "combination(joint, level)"])
    schema = fit_rules(schema, table, everything)
    trained = load(str(make_artifact(tmp_path / "a", "rows", table_schema=schema)))
    pd.testing.assert_series_equal(trained.sample(9).dtypes, frame.dtypes)
    gaps = frame.mask(rng.random(frame.shape) < 0.5).astype(frame.dtypes)
    completed = trained.impute(gaps)
    pd.testing.assert_series_equal(completed.dtypes, frame.dtypes)
    for name in frame:
        known = gaps[name].notna()
        pd.testing.assert_series_equal(completed[name][known], frame[name][known])
    assert trained.impute(gaps[["x"]]).dtypes.to_dict() == frame.dtypes.to_dict()


def test_each_row_may_have_its_own_conditions(model: Model) -> None:
    each = [model.restrict({"home": Condition(one_of=(home,))}) for home in ("own", "rent, old")]
    restrictions = np.stack(each * 200)
    parts = model.samples(0, 400, restrictions=restrictions)
    homes = pa.concat_tables(model.tables(parts, 0))["home"].to_pylist()
    assert homes == ["own", "rent, old"] * 200


def test_a_condition_holds_in_bfloat16_too(tmp_path: Path) -> None:
    serving = {"precision": "bf16"}
    folder = make_artifact(tmp_path / "a", "rows", serving=serving)
    model = load_artifact(folder)
    wanted = {"age": Condition(one_of=(33,)), "home": Condition(one_of=("own",))}
    codes = np.concatenate(list(model.samples(0, 300, restrictions=model.restrict(wanted))))
    table = model.rows(codes, 0)  # by the network alone, without the conditions
    assert set(table["age"].to_pylist()) == {33}
    assert set(table["home"].to_pylist()) == {"own"}
    assert model.error()[0] < 0.1


def test_models_that_take_no_conditions_say_so(tmp_path: Path) -> None:
    plain = load_artifact(make_artifact(tmp_path / "plain", "table"))
    with pytest.raises(ConditionError, match="no table of mixed columns"):
        plain.restrict({"age": Condition(above=1)})
    with pytest.raises(ShapeError, match="give numbers"):
        plain.codes(people())
    folder = make_artifact(tmp_path / "without", "rows", table={"conditions": 0})
    with pytest.raises(ConditionError, match=r"table\.conditions=0"):
        load_artifact(folder).impute(people(), 0)


# ---- gaps --------------------------------------------------------------------------------------


def test_gaps_are_filled_and_known_cells_stay(model: Model) -> None:
    real = people(200)
    holes = {
        name: pc.if_else(pa.array(RNG.random(200) < 0.6), real[name], None)
        for name in ("age", "income", "home", "member", "since")
    }
    rows = pa.table({"home": holes.pop("home"), **holes})
    filled = model.impute(rows, 1)
    assert filled.column_names[:5] == rows.column_names
    assert set(filled.column_names) == set(real.column_names)
    for name in rows.column_names:
        known = rows[name].is_valid()
        assert filled[name].null_count == 0, name
        assert filled[name].filter(known).equals(rows[name].filter(known)), name
        assert filled[name].type == rows[name].type
    assert filled["years"] == filled["age"]
    assert set(filled["country"].to_pylist()) == {"NL"}
    assert len(set(filled["id"].to_pylist())) == 200
    assert model.impute(rows.slice(0, 50), 1).equals(filled.slice(0, 50).combine_chunks())
    assert not model.impute(rows, 2).equals(filled)


def test_no_rows_to_complete(model: Model) -> None:
    with pytest.raises(DataError, match="no rows"):
        model.impute(people(0), 0)


def test_a_known_copy_fills_what_it_copies(model: Model) -> None:
    filled = model.impute(pa.table({"years": [20, 30, None], "age": [None, None, 40]}), 0)
    assert filled["age"].to_pylist() == filled["years"].to_pylist() == [20, 30, 40]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"hom": ["own"]}, "no column 'hom'; did you mean 'home'"),
        ({"home": ["castle"]}, "unknown category 'castle'"),
        ({"age": ["old"]}, "column 'age': not int64"),
        ({"age": [True]}, "true and false are no int64"),
        ({"age": [33.5]}, "column 'age': not int64"),
    ],
)
def test_cells_that_a_column_may_not_hold(
    model: Model, rows: dict[str, list[Any]], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        model.impute(pa.table(rows), 0)


def test_a_bad_row_is_counted_from_the_beginning(model: Model) -> None:
    ages, at = np.full(ROWS_AT_ONCE + 9, 40), ROWS_AT_ONCE + 5
    homes = ["own"] * at + ["castle"] + ["own"] * 3
    with pytest.raises(DataError, match=f"row {at + 1} has the unknown category 'castle'"):
        model.impute(pa.table({"age": ages, "home": homes}), 0)


# ---- Python ------------------------------------------------------------------------------------


def test_frames_go_out_and_in(trained: TrainedModel) -> None:
    frame = trained.sample(seed=7, count=400, where={"home": ["own", "rent, old"], "age": 50})
    assert isinstance(frame, pd.DataFrame)
    assert (frame.age == 50).all()
    assert frame.age.dtype == np.int64
    scores = trained.score(frame)
    assert scores.shape == (400,)
    np.testing.assert_array_equal(scores, trained.score(frame[frame.columns[::-1]]))
    holed = frame.set_index(pd.RangeIndex(1000, 1400)).assign(age=None).drop(columns="years")
    filled = trained.impute(holed, seed=1)
    assert list(filled.index) == list(range(1000, 1400))
    assert filled.notna().all().all()
    assert (filled.home.to_numpy() == frame.home.to_numpy()).all()


def test_what_python_callers_get_wrong(trained: TrainedModel) -> None:
    with pytest.raises(ConditionError, match="did you mean 'home'"):
        trained.sample(where={"hom": "own"})
    with pytest.raises(ConditionError, match="age"):
        trained.sample(where={"age": {"over": 3}})
    with pytest.raises(ShapeError, match="a DataFrame"):
        trained.score(np.zeros((3, 8)))
    with pytest.raises(UserError, match="seed"):
        trained.impute(people(2), seed=-1)


def test_conditions_as_python_has_values(trained: TrainedModel) -> None:
    """Dates and numpy's scalars ask for the same as what JSON has."""
    asked = {"since": {"at_least": dt.date(2021, 6, 1), "below": dt.date(2021, 7, 1)}}
    frame = trained.sample(count=50, where={**asked, "age": {"above": np.int64(50)}})
    same = {"since": {"at_least": "2021-06-01", "below": "2021-07-01"}, "age": {"above": 50}}
    pd.testing.assert_frame_equal(frame, trained.sample(count=50, where=same))
    wanted = [np.int64(30), 40]
    with pytest.raises(ConditionError, match="cannot be asked for together"):
        trained.sample(where={"age": wanted})
    one = trained.sample(count=9, where={"since": pd.Timestamp("2021-08-23"), "member": np.True_})
    assert set(one.since) == {dt.date(2021, 8, 23)}
    assert one.member.all()


def test_whole_numbers_with_gaps_stay_whole() -> None:
    frame = to_frame(pa.table({"n": pa.array([2**60 + 1, None]), "b": pa.array([True, None])}))
    assert frame.n.dtype == pd.Int64Dtype()
    assert frame.n[0] == 2**60 + 1
    assert frame.b.dtype == pd.BooleanDtype()
    for sign in ("int", "uint"):
        for bits in (8, 16, 32, 64):
            values = pa.array([1, None, 7], f"{sign}{bits}")
            frame = to_frame(pa.table({"gaps": values, "whole": values.fill_null(0)}))
            assert str(frame.gaps.dtype).lower() == frame.whole.dtype.name == f"{sign}{bits}"
            assert str(frame.gaps.dtype) != frame.whole.dtype.name, "pandas' own, with gaps"
            assert frame.gaps.tolist() == [1, pd.NA, 7]
    plain = to_frame(pa.table({"x": [0.5, None], "t": ["a", None]}))
    assert plain.x.dtype == np.float64
    assert plain.t.isna().tolist() == [False, True]


def test_frames_become_tables_of_their_columns() -> None:
    frame = pd.DataFrame(
        {
            "x": [1.5, None],
            "many zeros": pd.arrays.SparseArray([0, 3]),
            "ages": pd.cut([5, 30], [0, 18, 99]),
            "months": pd.Categorical(pd.period_range("2026-01", periods=2, freq="M")),
            "sizes": pd.Categorical([9, 2]),
        },
        index=["first", "second"],
    )
    before = frame.copy(deep=True)
    table = to_table(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert table.to_pydict() == {
        "x": [1.5, None],
        "many zeros": [0, 3],
        "ages": ["(0, 18]", "(18, 99]"],
        "months": ["2026-01", "2026-02"],
        "sizes": [9, 2],
    }
    assert table.schema.field("sizes").type.value_type == pa.int64()
    assert to_table(table) is table
    (batch,) = table.to_batches()
    assert to_table(batch) == table
    for broken, says in (
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "is no table .*: Duplicate column names"),
        (pd.DataFrame({"a": [1, "x"]}), "is no table of values of one type: "),
        (pd.Series([1, 2]), "rows with named columns"),
        ([1, 2], "rows with named columns"),
    ):
        with pytest.raises((DataError, ShapeError), match=says):
            to_table(broken)


# ---- commands ----------------------------------------------------------------------------------


def test_commands(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.parquet"
    where = ["--where", "home=own", "--where", "age>30"]
    assert main(["sample", str(artifact), "-n", "500", "--out", str(out), *where]) == 0
    rows = pd.read_parquet(out)
    assert len(rows) == 500
    assert (rows.home == "own").all()
    assert (rows.age > 30).all()
    gaps = tmp_path / "gaps.csv"
    rows.assign(income=None, age=rows.age.where(rows.age > 60)).drop(columns="years").to_csv(
        gaps, index=False
    )
    for seed in ("0", "1"):
        completed = tmp_path / f"{seed}.csv"
        arguments = ["impute", str(artifact), str(gaps), "--out", str(completed), "--seed", seed]
        assert main(arguments) == 0
    assert main(["impute", str(artifact), str(gaps), "--out", str(tmp_path / "unsaid.csv")]) == 0
    assert (tmp_path / "unsaid.csv").read_bytes() == (tmp_path / "0.csv").read_bytes()
    zero, one = (pd.read_csv(tmp_path / f"{seed}.csv") for seed in "01")
    assert zero.notna().all().all()
    assert (zero.age[rows.age > 60] == rows.age[rows.age > 60]).all()
    assert (zero.income != one.income).any()
    capsys.readouterr()
    assert main(["score", str(artifact), str(tmp_path / "0.csv"), str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    np.testing.assert_array_equal(
        np.float32(answer["scores"][500:]), wgan.load(artifact).score(rows)
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample", "A", "--out", "x.csv", "--where", "home=castle"], "no category 'castle'"),
        (["sample", "A", "--out", "x.csv", "--where", "age>200"], "age is from 18 to 89"),
        (["sample", "A", "--out", "x.png"], "the model makes rows, not png"),
        (["impute", "A", "none.csv", "--out", "x.csv"], "none.csv: no such file"),
        (["impute", "A", ".", "--out", "x.csv"], "error: .: no such file"),
        (["impute", "A", "castle.csv", "--out", "x.csv"], "error: castle.csv: "),
        (["impute", "A", "bad.parquet", "--out", "x.csv"], "no table as CSV, Parquet or Arrow"),
        (["impute", "A", "bad.parquet", "--out", "x.png"], "ends in none of"),
    ],
)
def test_commands_say_what_is_wrong(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.parquet").write_bytes(b"PAR1 and no more")
    Path("castle.csv").write_text("home\ncastle\n")
    assert main([str(artifact) if a == "A" else a for a in arguments]) == 2
    assert says in capsys.readouterr().err


def test_the_time_that_wide_rows_take_grows_as_their_width() -> None:
    names = [f"c{i}" for i in range(5000)]
    columns = tuple(ConstantColumn(name=name, type="int64", value=1) for name in names)
    schema = TableSchema(columns=columns)
    began = time.process_time()
    rows = typed(schema, rows_of_records(schema, [dict.fromkeys(names, 1)] * 20))
    assert complete(schema, rows, lambda _: rows, 0, 0).equals(rows)
    assert len(schema.encode(rows)) == 20
    assert time.process_time() - began < 5, "minutes if each name were compared with all others"


# ---- files in requests -------------------------------------------------------------------------


def test_a_machine_too_busy_to_read_rows_is_not_the_clients_fault(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.table is not None
    monkeypatch.setattr(uploads, "PATIENCE", 0.001)
    with pytest.raises(HTTPException, match="the machine is busy") as caught:
        uploads.read_tables([("a.csv", b"age\n1\n")], model.table)
    assert caught.value.status_code == 503
    assert caught.value.headers == {"Retry-After": "5"}


def test_a_reader_that_cannot_start_is_our_fault_and_says_why(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert model.table is not None
    (tmp_path / "pyarrow.py").write_text("raise ImportError('no pyarrow here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no pyarrow here"):
        uploads.read_tables([("a.csv", b"age\n1\n")], model.table)


def reader_ends(folder: Path, by: signal.Signals, first: str = "") -> str:
    """Where a reader finds, in pyarrow's place, what ends it by a signal."""
    script = f"import os, signal\n{first}\nos.kill(os.getpid(), signal.{by.name})\n"
    (folder / "pyarrow.py").write_text(script)
    return str(folder)


def test_a_reader_that_the_machine_ended_is_tried_once_more(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And is not the rows' fault, as the bounds on memory and time are."""
    assert model.table is not None
    rows = [("a.csv", b"age\n1\n")]
    path = os.environ.get("PYTHONPATH", "")
    once = reader_ends(tmp_path, signal.SIGKILL, "os.remove(__file__)")
    monkeypatch.setenv("PYTHONPATH", f"{once}:{path}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # or the file of a moment ago is run again
    assert [len(table) for table in uploads.read_tables(rows, model.table)] == [1]
    reader_ends(tmp_path, signal.SIGKILL)
    with pytest.raises(HTTPException, match="the machine lacks memory") as caught:
        uploads.read_tables(rows, model.table)
    assert caught.value.status_code == 503
    for by in (signal.SIGSEGV, signal.SIGABRT):
        reader_ends(tmp_path, by)
        with pytest.raises(RuntimeError, match=rf"the reader of rows failed \({-by}\)"):
            uploads.read_tables(rows, model.table)


@pytest.mark.parametrize(
    ("content", "by", "times"),
    [
        (b"age\n1\n", None, 1),
        (b"PAR1 and no more", None, 1),
        (b"," * 5000 + b"\n", None, 1),
        (b"age\n1\n", signal.SIGXCPU, 1),
        (b"age\n1\n", signal.SIGKILL, 2),
    ],
)
def test_only_if_a_reader_was_ended_its_rows_are_read_once_more(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    content: bytes, by: signal.Signals | None, times: int,
) -> None:  # fmt: skip
    assert model.table is not None
    log = tmp_path / "log"
    (tmp_path / "sitecustomize.py").write_text(f"open({str(log)!r}, 'a').write('read ')")
    if by:
        reader_ends(tmp_path, by)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with contextlib.suppress(DataError, ShapeError, HTTPException):
        uploads.read_tables([("a.csv", content)], model.table)
    assert log.read_text().split() == ["read"] * times


def test_a_reader_that_takes_too_long_is_the_rows_fault(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert model.table is not None
    code = "from service import uploads; uploads.MAX_SECONDS = 0; uploads._bound()\nwhile 1: pass"
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGXCPU
    monkeypatch.setenv("PYTHONPATH", reader_ends(tmp_path, signal.SIGXCPU))
    with pytest.raises(ShapeError, match="5 seconds of a processor"):
        uploads.read_tables([("a.csv", b"age\n1\n")], model.table)


def test_a_file_that_crashes_what_reads_it_is_broken(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    assert model.table is not None
    with pytest.raises(DataError, match="its reader crashes"):
        uploads.read_tables([("a.parquet", nested_parquet(100_000))], model.table)
    assert "rows crashed the process that reads them, twice (SIGSEGV)" in caplog.text


def test_typed_rows_are_read_without_threads() -> None:
    rows = pa.table({"age": np.arange(100_000), "home": ["own"] * 100_000})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    code = (
        "import os, sys; from models.tables.records import read_rows; tasks = '/proc/self/task'; "
        "before = os.listdir(tasks); read_rows(sys.stdin.buffer.read(), 'x'); "
        "sys.exit(os.listdir(tasks) != before)"
    )
    for content in (parquet(rows), arrow(rows, options=options)):
        assert not subprocess.run(
            [sys.executable, "-c", code], input=content, check=False
        ).returncode


def test_what_crashes_while_a_reader_ends_spoils_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert model.table is not None
    (tmp_path / "sitecustomize.py").write_text("import atexit, os; atexit.register(os.abort)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (table,) = uploads.read_tables([("a.csv", b"age\n1\n")], model.table)
    assert table.to_pydict() == {"age": [1]}


def test_a_machine_without_room_for_a_reader_is_not_the_clients_fault(model: Model) -> None:
    assert model.table is not None
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with (
        limited(resource.RLIMIT_NOFILE, lowest_free),
        pytest.raises(HTTPException, match="Too many open files") as caught,
    ):
        uploads.read_tables([("a.csv", b"age\n1\n")], model.table)
    assert caught.value.status_code == 503


def test_a_machine_without_room_for_a_process_is_told_from_a_mistake_of_ours(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.table is not None
    for number, kind in ((errno.EAGAIN, HTTPException), (errno.ENOEXEC, OSError)):

        def run(*given: object, number: int = number, **more: object) -> None:
            raise OSError(number, "as the system says it")

        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises(kind, match="as the system says it"):
            uploads.read_tables([("a.csv", b"age\n1\n")], model.table)


def test_a_reader_takes_lower_limits_and_dies_before_the_worker() -> None:
    code = """
import ctypes, os, resource, sys
if len(sys.argv) == 1:
    assert ctypes.CDLL(None).prctl(24, 24) == 0  # without the superuser's right to raise limits
    resource.setrlimit(resource.RLIMIT_CPU, (2, 3))
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "again"])
from service import rows as service_rows
from service import uploads
uploads._bound()
print(*resource.getrlimit(resource.RLIMIT_CPU), open("/proc/self/oom_score_adj").read())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["3", "3", "1000"], "")


def read_here(
    monkeypatch: pytest.MonkeyPatch, schema: TableSchema, *files: tuple[str, bytes]
) -> tuple[int, bytes]:
    """The reader's exit status and output, without the bounds, which this process would keep."""
    head = json.dumps([schema.model_dump_json(), [(n, len(content)) for n, content in files]])
    sent = head.encode() + b"\n" + b"".join(content for _, content in files)
    out = io.TextIOWrapper(io.BytesIO())
    bounded: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "_bound", lambda: bounded.append(1))
        patch.setattr(sys, "meta_path", [*sys.meta_path])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sent)))
        patch.setattr(sys, "stdout", out)
        status = uploads.main()
        assert bounded == [1]
        assert isinstance(sys.meta_path[0], type(uploads._NoPandas)), "pandas is hidden first"
    return status, out.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_reader_answers_with_a_table_of_each_file(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.table is not None
    rows = pa.table({"age": [1, 2, 3], "home": pa.array(["own", "own", None]).dictionary_encode()})
    files = ("a.csv", b"age\n1\n"), ("b.parquet", parquet(rows)), ("c.arrow", arrow(rows))
    status, content = read_here(monkeypatch, model.table, *files)
    assert status == 0
    source = pa.BufferReader(content)
    tables = [pa.ipc.open_stream(source).read_all() for _ in files]
    assert source.read() == b""
    expected = {"age": [1, 2, 3], "home": ["own", "own", None]}
    assert [table.to_pydict() for table in tables] == [{"age": [1]}, expected, expected]
    # As many bytes as it says, a dictionary's repeated values included.
    assert not any(pa.types.is_dictionary(field.type) for field in tables[1].schema)


def test_a_reader_takes_a_thousand_rows_in_all_files_together(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.table is not None
    one, many = ("a.csv", b"age\n1\n"), ("b.csv", b"age\n" + b"1\n" * 1023)
    assert read_here(monkeypatch, model.table, one, many)[0] == 0
    status, says = read_here(monkeypatch, model.table, one, many, ("c.csv", b"age\n1\n"))
    assert (status, says) == (66, b"c.csv: at most 1024 rows are taken at once")


def test_a_reader_tells_what_is_wrong_by_its_status(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.table is not None
    deep = pa.array([1])
    for _ in range(200):
        deep = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), deep)
    for file, status, says in (
        (("a.csv", b"PAR1 and no more"), 65, b"a.csv: "),
        (("a.csv", b"home,age\n"), 0, b""),
        (("a.csv", b"," * 5000 + b"\n"), 66, b"a.csv: has 5001 columns"),
        (("a\udcff.csv", b"," * 5000 + b"\n"), 66, b"a?.csv: has 5001 columns"),
    ):
        found, content = read_here(monkeypatch, model.table, file)
        assert (found, content[: len(says)]) == (status, says)
    found, content = read_here(monkeypatch, model.table, ("a.parquet", nested_parquet(200)))
    assert (found, content[:35]) == (65, b"a.parquet: a column's lists are nes")
    with pytest.raises(DataError, match=r"^a\.arrow: a column's lists are nested too deep"):
        uploads._require_readable(pa.table({"age": deep}), "a.arrow")
    uploads._require_readable(pa.table({"age": [1]}), "a.arrow")

    def lack(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr("models.tables.records.read_rows", lack)
    assert read_here(monkeypatch, model.table, ("a.csv", b"age\n1\n")) == (67, b"")


def test_a_thousand_records_are_taken_and_long_messages_are_cut(
    model: Model, tmp_path: Path
) -> None:
    assert service_rows.MAX_ROWS == 1024
    assert len(service_rows.to_table(model, [{"age": 1}] * 1024)) == 1024
    with pytest.raises(ShapeError, match="over 1024 rows; at most 1024 are taken at once"):
        service_rows.to_table(model, [{"age": 1}] * 1025)
    with pytest.raises(ShapeError) as caught, service_rows.unsuitable():
        raise DataError("x" * 1000)  # as of a cell that is as long as the body
    assert str(caught.value) == "x" * 500
    vectors = load_artifact(make_artifact(tmp_path / "vectors", "vector"))
    with pytest.raises(ShapeError, match="takes no rows of named columns"):
        service_rows.to_table(vectors, [])


def test_pandas_alone_is_hidden() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        uploads._NoPandas.find_spec("pandas")
    assert caught.value.name == "pandas"
    uploads._NoPandas.find_spec("pandas_more")  # others are for the next finder


def test_a_reader_bounds_its_time_its_memory_and_what_it_leaves() -> None:
    code = """
import resource, time
from service import rows as service_rows
from service import uploads
pages = int(open("/proc/self/statm").read().split()[0])
began = int(time.process_time())
uploads._bound()
cpu = resource.getrlimit(resource.RLIMIT_CPU)
assert began + 6 <= cpu[0] <= began + 8, (cpu, began)
assert cpu[1] == cpu[0] + 1
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
assert soft == hard
assert 0 <= soft - pages * resource.getpagesize() - 256 * 2**20 < 2**24
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_limit_that_is_lower_stays() -> None:
    code = """
import resource
from service import rows as service_rows
from service import uploads
kind = resource.RLIMIT_NOFILE
soft, hard = resource.getrlimit(kind)
resource.setrlimit(kind, (100, 200))
for soft, hard, expected in ((50, 300, (50, 200)), (300, 300, (200, 200)), (20, 30, (20, 30))):
    uploads._limit(kind, soft, hard)
    assert resource.getrlimit(kind) == expected, resource.getrlimit(kind)
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
uploads._limit(resource.RLIMIT_DATA, 2**40, 2**41)
assert resource.getrlimit(resource.RLIMIT_DATA) == (2**40, 2**41)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_reader_that_a_library_ends_for_want_of_memory_met_its_bound(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert model.table is not None
    says = "print('terminate called: std::bad_alloc', file=__import__('sys').stderr, flush=True)"
    monkeypatch.setenv("PYTHONPATH", reader_ends(tmp_path, signal.SIGABRT, says))
    with pytest.raises(ShapeError, match="over 256 MiB of memory"):
        uploads.read_tables([("a.csv", b"age\n1\n")], model.table)


def test_a_file_of_far_more_columns_than_the_table_is_refused_at_once(model: Model) -> None:
    assert model.table is not None
    wide = pa.table([[1]] * 10_000, names=[f"c{i}" for i in range(10_000)])
    files = {format: b"".join(write_rows([wide], format)) for format in ("parquet", "arrow")}
    files["csv"] = b"," * 4_000_000 + b"\n"
    for format, content in files.items():
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        with pytest.raises(ShapeError, match=rf"^x\.{format}: has \d+ columns, of which at most"):
            uploads.read_tables([(f"x.{format}", content)], model.table)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 3
