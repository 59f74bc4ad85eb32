"""Items that the service keeps: the last ones, of all workers, as `wgan w1` reads them."""

import logging
import os
import shutil
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from models.artifact import load_artifact
from service import kept_items
from service.kept_items import KeptItems
from service.ring import COUNT_BYTES
from service.served import Served
from tests.artifacts import make_artifact
from tests.mixed import people
from tests.test_app import made, talk
from tests.waiting import waits_for_the_lock

SIZE = 100


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings that are soon full, and files that are written with each request."""
    monkeypatch.setattr(kept_items, "MAX_ITEMS", SIZE)
    monkeypatch.setattr(kept_items, "SECONDS", 0)


def served(folder: Path, kind: str = "vector", name: str = "a/b c") -> Served:
    model = load_artifact(make_artifact(folder, kind))
    return Served(model, "a@1", "champion", None, 0.0, name=name)


def the_file(folder: Path) -> Path:
    (path,) = [p for p in folder.iterdir() if not p.name.startswith(".")]
    return path


@pytest.mark.parametrize("kind", ["vector", "image", "sequence"])
def test_the_last_items_of_all_workers_are_kept(tmp_path: Path, kind: str) -> None:
    model = served(tmp_path / "artifact", kind)
    items = model.model.sample(seed=0, count=2 * SIZE + 77)
    folder = tmp_path / "of" / "its own"
    workers = [KeptItems(folder), KeptItems(folder)]
    end = 0
    for i, size in enumerate((3, SIZE - 10, 1, SIZE + 23, 60)):
        workers[i % 2].add(model, items[end : end + size])
        end += size
        found = np.load(the_file(folder))
        expected = items[max(0, end - SIZE) : end]
        assert (found.dtype, found.shape) == (items.dtype, expected.shape)
        assert sorted(map(bytes, found)) == sorted(map(bytes, expected))
    assert end == len(items)


def test_rows_are_kept_as_a_table(tmp_path: Path) -> None:
    model, rows = served(tmp_path / "artifact", "rows"), people(30)
    KeptItems(tmp_path / "kept").add(model, model.model.codes(rows))
    path = the_file(tmp_path / "kept")
    assert path.suffix == ".parquet"
    kept = pq.read_table(path)
    assert kept.column_names == rows.column_names
    values = kept.drop_columns("id")  # these are made anew
    assert values.equals(rows.drop_columns("id").cast(values.schema))
    assert not set(kept["id"].to_pylist()) & set(rows["id"].to_pylist())


def test_another_server_goes_on_and_another_version_begins_anew(tmp_path: Path) -> None:
    model, folder = served(tmp_path / "artifact"), tmp_path / "kept"
    items = model.model.sample(seed=0, count=40)
    for first in (0, 10):
        KeptItems(folder).add(model, items[first : first + 10])
    assert np.array_equal(np.load(the_file(folder)), items[:20])
    model.model.digest = "another"
    KeptItems(folder).add(model, items[20:])
    assert np.array_equal(np.load(the_file(folder)), items[20:])
    assert len(list(folder.iterdir())) == 2, "nothing is left of the version before"


def test_models_and_hosts_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    one, other = served(tmp_path / "artifact"), served(tmp_path / "artifact", name="../a/b")
    items = one.model.sample(seed=0, count=10)
    for host in ("pod", "pod-1"):
        monkeypatch.setattr("platform.node", lambda host=host: host)
        KeptItems(folder).add(one, items)
        KeptItems(folder).add(other, items[:4])
    one.model.digest = "another"
    monkeypatch.setattr("platform.node", lambda: "pod")
    KeptItems(folder).add(one, items[:3])
    counts = {path.name: len(np.load(path)) for path in folder.glob("*.npy")}
    assert counts == {
        "a%2Fb%20c-champion-pod.npy": 3,
        "a%2Fb%20c-champion-pod-1.npy": 10,
        "..%2Fa%2Fb-champion-pod.npy": 4,
        "..%2Fa%2Fb-champion-pod-1.npy": 4,
    }
    assert len(list(folder.glob(".*.ring"))) == 4


def test_the_file_is_written_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_items, "SECONDS", 60)
    model, now = served(tmp_path / "artifact"), [0.0]
    items = model.model.sample(seed=0, count=40)
    kept, folder = KeptItems(tmp_path / "kept"), tmp_path / "kept"
    for count, seconds in ((10, 0), (10, 30), (30, 61)):
        kept.add(model, items[:10])
        assert len(np.load(the_file(folder))) == count
        written = the_file(folder).stat().st_mtime
        now[0] = written + 30 + seconds
        monkeypatch.setattr("time.time", lambda: now[0])


def test_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = served(tmp_path / "artifact"), tmp_path / "kept"
    items = model.model.sample(seed=0, count=40)
    for most, kept in ((7 * items[0].nbytes + 1, 7), (1, 1)):  # at least one, however large it is
        monkeypatch.setattr(kept_items, "MAX_BYTES", most)
        KeptItems(folder).add(model, items)
        found = np.load(the_file(folder))
        assert sorted(map(bytes, found)) == sorted(map(bytes, items[-kept:]))


def test_items_that_cannot_be_kept_spoil_no_scores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = served(tmp_path / "artifact"), tmp_path / "kept"
    items = model.model.sample(seed=0, count=10)
    folder.write_text("a file")
    kept = KeptItems(folder)
    with caplog.at_level(logging.ERROR, "wgan.service"):
        for _ in range(2):
            kept.add(model, items)
            (line,) = [record.getMessage() for record in caplog.records]
            assert line.startswith("items are not kept: ")
            assert str(folder) in line
        folder.unlink()
        kept.add(model, items[:4])
        (ring,) = folder.glob(".*.ring")
        ring.write_bytes(ring.read_bytes()[:-1])  # as a full disk leaves it
        kept.add(model, items[4:])
        assert np.array_equal(np.load(the_file(folder)), items[4:])
        assert len(caplog.records) == 1
        shutil.rmtree(folder)
        folder.touch()
        kept.add(model, items)
    assert len(caplog.records) == 2, "told again, since it had worked meanwhile"


def test_items_come_one_by_one(tmp_path: Path) -> None:
    model, folder = served(tmp_path / "artifact"), tmp_path / "kept"
    items = model.model.sample(seed=0, count=3)
    for i in range(3):
        KeptItems(folder).add(model, items[i : i + 1])
        assert np.array_equal(np.load(the_file(folder)), items[: i + 1])


@pytest.mark.parametrize("damage", ["long", "negative"])
def test_a_ring_that_is_not_whole_begins_anew(tmp_path: Path, damage: str) -> None:
    model, folder = served(tmp_path / "artifact"), tmp_path / "kept"
    items = model.model.sample(seed=0, count=SIZE)
    KeptItems(folder).add(model, items)
    (ring,) = folder.glob(".*.ring")
    content = ring.read_bytes()
    damaged = content + b"x" if damage == "long" else np.int64(-1).tobytes() + content[COUNT_BYTES:]
    ring.write_bytes(damaged)
    KeptItems(folder).add(model, items[:5])
    assert np.array_equal(np.load(the_file(folder)), items[:5])


def test_a_worker_waits_while_another_has_the_ring(tmp_path: Path) -> None:
    model, folder = served(tmp_path / "artifact"), tmp_path / "kept"
    items = model.model.sample(seed=0, count=10)
    KeptItems(folder).add(model, items[:4])
    (ring,) = folder.glob(".*.ring")
    assert waits_for_the_lock(ring, lambda: KeptItems(folder).add(model, items[4:]))
    assert np.array_equal(np.load(the_file(folder)), items)


def test_of_an_old_ring_another_worker_may_be_rid_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = served(tmp_path / "artifact"), tmp_path / "kept"
    items = model.model.sample(seed=0, count=10)
    KeptItems(folder).add(model, items[:4])
    model.model.digest = "another"
    original = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".ring":
            os.unlink(path)
        original(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        KeptItems(folder).add(model, items[4:])
    assert np.array_equal(np.load(the_file(folder)), items[4:])
    assert not caplog.records


def test_the_service_keeps_what_it_scores(tmp_path: Path) -> None:
    artifact, folder = make_artifact(tmp_path / "artifact"), tmp_path / "kept"
    items = load_artifact(artifact).sample(seed=0, count=5)

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/scores", json={"samples": items.tolist()})
        assert answer.status_code == 200
        assert (await client.post("/v1/scores", json={"samples": [[1]]})).status_code == 422

    talk(made(WGAN_MODEL=str(artifact), WGAN_KEPT_ITEMS=str(folder)), ask)
    assert np.array_equal(np.load(the_file(folder)), items)
