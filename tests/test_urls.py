"""Data behind URLs: a real S3 server, and fsspec's other file systems."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.config import DataConfig
from models.errors import DataError
from tests.s3 import KEY, SECRET, disconnect, s3_server
from tests.test_sources import encoded, photos, to_folder, to_tar_gz, to_zip
from training.data.dataset import Dataset, load_data

PIXELS = photos(100)
FILES = {f"{'ab'[i % 2]}/{i:03d}.png": encoded(p) for i, p in enumerate(PIXELS)}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    to_folder(FILES, folder / "set")
    to_zip(FILES, folder / "set")
    to_tar_gz(FILES, folder / "set")
    np.save(folder / "set.npy", np.stack(PIXELS))
    rows = np.random.default_rng(0).standard_normal((150, 2))
    pd.DataFrame(rows, columns=["a", "b"]).to_csv(folder / "set.csv", index=False)
    pd.DataFrame(rows, columns=["a", "b"]).to_parquet(folder / "set.parquet")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, local: Path) -> Iterator[str]:
    import s3fs

    with s3_server(tmp_path_factory.mktemp("s3") / "server") as url:
        fs = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=url)
        fs.mkdir("bucket")
        fs.put(str(local), "bucket/data", recursive=True)
        yield url


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    disconnect()


def load(source: str) -> Dataset:
    return load_data(DataConfig(source=source), 8)


NAMES = ["set", "set/", "set.zip", "set.tar.gz", "set.npy", "set.csv", "set.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_s3_gives_what_the_disk_gives(
    name: str, server: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    remote, near = load(f"s3://bucket/data/{name}"), load(str(local / name))
    assert remote.card.source == f"s3://bucket/data/{name}"
    same: dict[str, Any] = {"source": "", "skipped": 0}
    assert remote.card.model_copy(update=same) == near.card.model_copy(update=same)
    np.testing.assert_array_equal(remote.items, near.items)
    np.testing.assert_array_equal(remote.is_heldout, near.is_heldout)
    assert (remote.labels is None) == (near.labels is None)
    if remote.labels is not None:
        np.testing.assert_array_equal(remote.labels, near.labels)


def test_known_objects_are_not_fetched_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache answers as long as the listing says that nothing has changed."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    fs = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=server)
    fs.cp("bucket/data/set", "bucket/changing", recursive=True)
    before = load("s3://bucket/changing")
    (entry,) = (tmp_path / "cache" / "images").iterdir()
    stamp = (entry / "items").stat()
    assert load("s3://bucket/changing").card == before.card
    assert (entry / "items").stat().st_mtime_ns == stamp.st_mtime_ns
    changed = PIXELS[0].copy()
    changed[0, 0, 0] ^= 1
    fs.pipe("bucket/changing/a/000.png", encoded(changed))
    disconnect()
    assert load("s3://bucket/changing").card.sha256 != before.card.sha256


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["secret", "key"])
def test_wrong_credentials_are_told(
    name: str, what: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    variable = "AWS_SECRET_ACCESS_KEY" if what == "secret" else "AWS_ACCESS_KEY_ID"
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(DataError, match=r"access denied.*credentials") as caught:
        load(f"s3://bucket/data/{name}")
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_what_is_not_there_is_told(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    for source in ("s3://bucket/nothing.zip", "s3://bucket/none/", "s3://nobucket/a"):
        with pytest.raises(DataError, match="no such"):
            load(source)


def test_no_credentials_are_told(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match="credentials"):
        load("s3://bucket/data/set.zip")


def test_file_and_memory_urls(local: Path) -> None:
    import fsspec

    near = load(str(local / "set"))
    assert load((local / "set").as_uri()).card.sha256 == near.card.sha256
    assert load((local / "set.zip").as_uri()).card.sha256 == near.card.sha256
    memory = fsspec.filesystem("memory")
    memory.put(str(local), "/data", recursive=True)
    for name in ("set", "set.zip", "set.tar.gz"):
        found = load(f"memory://data/{name}")
        assert found.card.sha256 == near.card.sha256
        assert found.card.classes == ["a", "b"]
    with pytest.raises(DataError, match="no such"):
        load("memory://data/other")


def test_urls_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="a password or signature in it"):
        load("s3://key:secret@bucket/set")
    with pytest.raises(DataError, match="nonsense"):
        load("nonsense://bucket/set")
