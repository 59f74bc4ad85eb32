"""Tables that are not held in memory: the same rows, codes and split as of those that are."""

import gzip
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather

from models.config import parse_data
from models.errors import DataError
from models.tables import Choice, Value
from models.tables.files import write_rows
from tests.artifacts import tiny_config
from training.data import coding
from training.data.coding import PackedCodes
from training.data.dataset import Dataset, load_data
from training.data.sources import large, streaming
from training.data.sources.files import locate
from training.data.sources.tables import load_table
from training.engine.loop import train

RNG = np.random.default_rng(0)
COUNT = 3000


def frame(count: int = COUNT) -> pd.DataFrame:
    """Columns of all kinds, some with gaps."""
    number = RNG.normal(size=count)
    return pd.DataFrame(
        {
            "number": np.where(RNG.random(count) < 0.1, np.nan, number),
            "whole": RNG.integers(-5000, 5000, count),
            "kind": RNG.choice(["oak", "ash", "elm"], count, p=[0.6, 0.3, 0.1]),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(RNG.integers(0, 9999, count), "h"),
            "is": RNG.random(count) < 0.3,
            "id": np.arange(count) + 17,
        }
    )


def load(path: Path) -> Dataset:
    return load_data(parse_data({"source": str(path)}))


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Dataset]:
    frame().to_parquet(tmp_path / "t.parquet", row_group_size=700)
    return tmp_path / "t.parquet", load(tmp_path / "t.parquet")


def test_large_tables_are_the_same_as_small_ones(
    small: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, inside = small
    monkeypatch.setattr(large, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(large, "BATCH", 512)
    monkeypatch.setattr(coding, "BATCH", 512)
    monkeypatch.setattr(coding, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # the second comes from the cache
        outside = load(path)
        assert isinstance(outside.items, PackedCodes)
        assert outside.card == inside.card
        np.testing.assert_array_equal(outside.is_heldout, inside.is_heldout)
        np.testing.assert_array_equal(outside.digests, inside.digests)
        indices = RNG.integers(0, COUNT, 400)
        np.testing.assert_array_equal(outside.items_at(indices), inside.items_at(indices))
        np.testing.assert_array_equal(outside.training, inside.training)
    assert len(list((tmp_path / "cache" / "tables").iterdir())) == 1


def of_every_type(count: int = 400) -> pa.Table:
    """Columns of types that a CSV file does not have, or has otherwise."""
    rng = np.random.default_rng(1)
    hours = pa.array(rng.integers(0, 10**6, count) * 3600)
    late = pa.array(rng.random(count) < 0.1)
    columns = {
        "seconds": hours.cast(pa.timestamp("s")),
        "gaps": pc.if_else(late, None, hours.cast(pa.timestamp("s")).cast(pa.timestamp("ns"))),
        "micro": pa.array(rng.integers(0, 10**12, count)).cast(pa.timestamp("us")),
        "zoned": hours.cast(pa.timestamp("s", "Europe/Berlin")),
        "clock": pa.array(rng.integers(0, 86400, count) * 10**6).cast(pa.time64("us")),
        "span": pa.array(rng.integers(0, 10**6, count)).cast(pa.duration("s")),
        "day": pa.array(rng.integers(0, 9999, count).astype(np.int32)).cast(pa.date32()),
        "single": pa.array(rng.normal(size=count).astype(np.float32)),
        "small": pa.array(rng.integers(0, 99, count), pa.int8()),
        "exact": pa.array(rng.integers(0, 9999, count) / 100).cast(pa.decimal128(9, 2)),
        "kind": pa.array(rng.choice(["7", "8"], count)).dictionary_encode(),
        "always": pa.repeat(pa.scalar(9).cast(pa.time64("us")), count),
    }
    columns["again"] = columns["micro"]
    return pa.table(columns)


@pytest.mark.parametrize("is_large", [False, True])
def test_a_row_is_on_its_side_in_a_file_of_any_format(
    is_large: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Trained on Parquet, and judged on the CSV that wgan writes of it."""
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    table = of_every_type()
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_bytes(b"".join(write_rows([table], "csv")))
    trained = load(tmp_path / "t.parquet")
    if is_large:
        monkeypatch.setattr(large, "MAX_BYTES_IN_MEMORY", 0)
        monkeypatch.setattr(large, "BATCH", 64)
        monkeypatch.setattr(coding, "BATCH", 64)
    judged = load_data(parse_data({"source": str(tmp_path / "t.csv")}), card=trained.card)
    assert isinstance(judged.table, large.LargeRows) == is_large
    np.testing.assert_array_equal(judged.digests, trained.digests)
    np.testing.assert_array_equal(judged.is_heldout, trained.is_heldout)
    np.testing.assert_array_equal(judged.items, trained.items)
    assert judged.table.take(pa.array([5])).to_pylist() == table.slice(5, 1).to_pylist()


def test_texts_that_the_user_calls_numbers_stay_on_their_side(tmp_path: Path) -> None:
    """Training hashes the texts, as it did before."""
    texts = [f"{i % 90:03d}" for i in range(400)]
    pq.write_table(pa.table({"x": texts, "y": range(400)}), tmp_path / "t.parquet")
    told = {"source": str(tmp_path / "t.parquet"), "columns": {"x": {"kind": "number"}}}
    trained = load_data(parse_data(told))
    judged = load_data(parse_data(told), card=trained.card)
    np.testing.assert_array_equal(judged.is_heldout, trained.is_heldout)
    np.testing.assert_array_equal(judged.items, trained.items)


CSVS = {
    "plain.csv": b"a,b,c\n" + b"".join(b"%d,x%d,0.%d\n" % (i, i % 7, i) for i in range(300)),
    "late.csv": b"a,b\n" + b"1,ash\n" * 300 + b"2,\xe9rable\n",
    "told.tsv.gz": gzip.compress(b"a\tb\r\n" + b"1\ttrue\r\n\t\r\n3\tfalse\r\n" * 90),
    "german.csv": b"# von 2024\nPreis;Wann;\n" + b"1.234,5;31.12.2024;\n?;;\n" * 80,
    "quoted.csv": b'a,b\n"x,""y""",1\n"two\nlines",-\n' * 1 + b'"z",2\n' * 200,
    "padded.csv": b'a, b\n1, "x, y"\n2, "z"\n',
    "wide.csv": "a,b\n1,é\n2,ü\n".encode("utf-16"),
}


@pytest.mark.parametrize("name", CSVS)
def test_streamed_csv_files_are_those_read_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(CSVS[name])
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    location, config = locate(str(tmp_path / name)), parse_data({"source": str(tmp_path / name)})
    whole = load_table(location, config)
    monkeypatch.setattr(large, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(streaming, "BLOCK", 256)
    monkeypatch.setattr(streaming, "AT_ONCE", 100)
    monkeypatch.setattr(streaming, "SAMPLE", 64)
    rows = load_table(location, config)
    if name in ("padded.csv", "wide.csv"):
        assert isinstance(rows.table, pa.Table)
        assert re.match("all 0 MB are held in memory at once, since", rows.notes[0])
        assert rows.notes[1:] == whole.notes
        return
    assert isinstance(rows.table, large.ColumnFiles)
    assert rows.notes == whole.notes
    assert rows.table.schema == whole.table.schema
    assert pa.Table.from_batches(rows.table.to_batches(50)).equals(whole.table)
    for column in rows.columns:
        assert rows.table[column].combine_chunks().equals(whole.table[column].combine_chunks())
    del rows
    assert not list((tmp_path / "cache" / "tables").iterdir())


def test_what_streaming_cannot_read_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(large, "MAX_BYTES_IN_MEMORY", 0)
    path = tmp_path / "t.csv"
    for content, told, line in (
        (b"a,b\n" + b"1,x\n" * 99 + b"2\n", {}, "row 100 below the header has 1 values"),
        (b"a,b\n" + b"1,x\n" * 99 + b'2,"x\n', {}, "row 100 below the header opens a quote"),
        (b"a,b\n" + b"1,x\n" * 99999 + b"2,\xe9\n", {"encoding": "utf-8"}, "byte 0xe9"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=line):
            load_table(locate(str(path)), parse_data({"source": str(path), "csv": told}))
        assert not list((tmp_path / "cache" / "tables").iterdir())


def test_large_arrow_files_are_read_in_batches(
    small: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = pq.read_table(small[0])
    kinds = table["kind"].dictionary_encode()
    table = table.set_column(table.schema.get_field_index("kind"), "kind", kinds)
    path = tmp_path / "t.arrow"
    feather.write_feather(table, path, chunksize=700)
    inside = load(path)
    monkeypatch.setattr(large, "MAX_BYTES_IN_MEMORY", 0)
    rows = load_table(locate(str(path)), parse_data({"source": str(path)})).table
    assert isinstance(rows, large.ArrowRows)
    assert len(rows) == COUNT
    assert rows["number"].equals(table["number"])
    indices = pa.array(RNG.integers(0, COUNT, 100))
    assert rows.take(indices).equals(table.take(indices))
    outside = load(path)
    assert outside.card == inside.card
    np.testing.assert_array_equal(outside.items, inside.items)
    np.testing.assert_array_equal(outside.is_heldout, inside.is_heldout)


def test_rows_are_taken_from_a_file(
    small: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = small
    monkeypatch.setattr(large, "BATCH", 512)
    monkeypatch.setattr(large, "MAX_BYTES_IN_MEMORY", 0)
    rows = load_table(locate(str(path)), parse_data({"source": str(path)})).table
    assert isinstance(rows, large.ParquetRows)
    indices = pa.array(RNG.integers(0, COUNT, 100))
    assert rows.take(indices).equals(pq.read_table(path).take(indices))
    assert rows.take(pa.array([], pa.int64())).num_rows == 0


def test_packed_codes_are_those_that_were_packed() -> None:
    parts = (Value(), Choice(3), Choice(2), Value(), Choice(400))
    scores = RNG.normal(size=(50, 2)).astype(np.float32)
    options = np.stack([RNG.integers(0, n, 50) for n in (3, 2, 400)], axis=1).astype(np.uint16)
    codes = PackedCodes(parts, scores, options)
    assert codes.shape == (50, 407)
    one_hot = [np.eye(n, dtype=np.float32)[options[:, i]] for i, n in enumerate((3, 2, 400))]
    expected = np.hstack([scores[:, :1], *one_hot[:2], scores[:, 1:], one_hot[2]])
    np.testing.assert_array_equal(codes[:], expected)
    np.testing.assert_array_equal(codes[np.array([7, 3, 7])], expected[[7, 3, 7]])
    np.testing.assert_array_equal(codes[expected[:, 0] > 0], expected[expected[:, 0] > 0])


def test_training_on_the_disk_is_training_in_memory(
    small: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, _ = small
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    states = []
    for limit in (2**28, 0):
        monkeypatch.setattr(large, "MAX_BYTES_IN_MEMORY", limit)
        monkeypatch.setattr(coding, "MAX_BYTES_IN_MEMORY", limit)
        settings = {"data": {"source": str(path)}, "training": {"steps": 2}}
        config = tiny_config("table", **settings)
        folder = tmp_path / f"checkpoints{limit}"
        state, _ = train(config, load(path), folder, torch.device("cpu"))
        states.append(state.generator.state_dict())
    for name, weights in states[0].items():
        torch.testing.assert_close(states[1][name], weights, rtol=0, atol=0)


def test_a_full_disk_is_named(
    small: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, _ = small
    monkeypatch.setattr(coding, "MAX_BYTES_IN_MEMORY", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"t\.parquet: .*set WGAN_CACHE"):
        load(path)


def test_columns_are_matched_by_name(small: tuple[Path, Dataset], tmp_path: Path) -> None:
    path, data = small
    rows = pd.read_parquet(path)
    order = ["when", "is", "whole", "id", "kind", "number"]
    rows[order].to_parquet(tmp_path / "other.parquet")
    config = parse_data({"source": str(tmp_path / "other.parquet")})
    for other in (load_data(config, card=data.card), load_data(config)):
        # The split does not depend on the order, in training either.
        np.testing.assert_array_equal(other.is_heldout, data.is_heldout)
    other = load_data(config, card=data.card)
    np.testing.assert_array_equal(other.items, data.items)
    assert other.card.shape == data.card.shape
    assert other.card.columns == data.card.columns
    assert other.notes == ()

    rows.drop(columns="id").assign(new=1, newer=2).to_parquet(tmp_path / "other.parquet")
    other = load_data(config, card=data.card)
    assert other.notes == ("columns that the model does not know: new, newer",)
    np.testing.assert_array_equal(other.items, data.items)
    np.testing.assert_array_equal(other.is_heldout, data.is_heldout)

    rows.drop(columns=["kind", "is"]).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other.parquet: has no column 'kind', 'is'"):
        load_data(config, card=data.card)
