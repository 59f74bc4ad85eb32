"""Very many samples: the same bytes for any number of shards, resumed, on real object storage."""

import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import wgan_cli
from models import bulk
from models.artifact import load_artifact
from models.bulk import RECORD, Folder, Sampling, write_samples
from models.errors import DataError, ShapeError, UnreachableError, UserError
from models.model import Model
from tests.artifacts import make_artifact, tiny_config
from tests.s3 import KEY, SECRET, disconnect, s3_server
from training.data.dataset import load_data

KINDS = {"vector": "npz", "image": "zip", "rows": "parquet"}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bulk")
    return {kind: make_artifact(folder / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def models(artifacts: dict[str, Path]) -> dict[str, Model]:
    return {kind: load_artifact(artifact) for kind, artifact in artifacts.items()}


def sampling(of: Model, format: str, **changes: Any) -> Sampling:
    values = {"model": of.digest, "count": 1100, "seed": 3, "format": format, "where": []}
    return Sampling(**{**values, "class_name": None, "samples_per_file": 256, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples_in(folder: Path, format: str) -> Any:
    files = sorted(folder.glob(f"*.{format}"))
    assert len(files) == 5
    if format == "npz":
        return np.concatenate([np.load(file)["samples"] for file in files])
    if format == "parquet":
        return pa.concat_tables([pyarrow.parquet.read_table(file) for file in files])
    return [name for file in files for name in zipfile.ZipFile(file).namelist()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_the_same_for_any_number_of_shards(
    kind: str, models: dict[str, Model], tmp_path: Path
) -> None:
    model, format = models[kind], KINDS[kind]
    job = sampling(model, format)
    for shards in (1, 3, 7):
        for shard in reversed(range(shards)):
            write_samples(model, job, Folder(str(tmp_path / str(shards))), shard, shards)
    one = contents(tmp_path / "1")
    assert len(one) == 6
    assert one == contents(tmp_path / "3") == contents(tmp_path / "7")
    found = samples_in(tmp_path / "1", format)
    if kind == "vector":
        assert found.tobytes() == model.sample(3, 1100).tobytes()
    elif kind == "rows":
        expected = pa.concat_tables(model.tables(model.samples(3, 1100), 3))
        assert found.to_pydict() == expected.to_pydict()
    else:
        assert found == [f"{i:06d}.png" for i in range(1100)]


def test_an_interrupted_sampling_goes_on(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["vector"]
    job, folder = sampling(model, "npz"), tmp_path / "out"

    def interrupted(*arguments: Any, **options: Any) -> Iterator[np.ndarray]:
        parts = Model.samples(model, *arguments, **options)
        for number, part in enumerate(parts):
            if arguments[2] == 512 and number == 3:
                raise KeyboardInterrupt
            yield part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "samples", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            write_samples(model, job, Folder(str(folder)))
    whole = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert sorted(whole) == ["000000000000.npz", "000000000256.npz"]
    write_samples(model, job, Folder(str(folder)))
    assert samples_in(folder, "npz").tobytes() == model.sample(3, 1100).tobytes()
    assert {n: (folder / n).stat().st_mtime_ns for n in whole} == whole, "not made again"
    assert len(contents(folder)) == 6, "nothing unfinished is left"


def test_how_far_a_sampling_has_come_is_said(
    models: dict[str, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By files that were written now, and by bars that end at their total."""
    model = models["vector"]
    job, bars = sampling(model, "npz"), list[tuple[int | None, int]]()

    def counted(items: Iterable[Any], what: str, total: int | None) -> Iterator[Any]:
        taken = list(items)
        bars.append((total, len(taken)))
        yield from taken

    def said(*clock: float) -> list[str]:
        times = SimpleNamespace(monotonic=iter(clock).__next__)
        with monkeypatch.context() as patch:
            patch.setattr(bulk, "time", times)
            patch.setattr(bulk, "track", counted)
            write_samples(model, job, Folder(str(tmp_path)))
        return capsys.readouterr().out.splitlines()

    names = [f"{first:012d}.npz" for first in range(0, 1100, 256)]
    rates = [256 / 2, 512 / 3, 768 / 4, 1024 / 5, 1100 / 6]
    assert said(10, 12, 13, 14, 15, 16) == [
        f"wrote {name}: {number} of 5 files, {rate:.0f} samples a second"
        for number, (name, rate) in enumerate(zip(names, rates, strict=True), 1)
    ]
    assert len(bars) == 5
    assert all(total == taken for total, taken in bars), "though the last file holds fewer"
    for name in names[3:]:
        (tmp_path / name).unlink()
    assert said(20, 22, 26) == [
        "3 of 5 files are there already",
        f"wrote {names[3]}: 1 of 2 files, 128 samples a second",
        f"wrote {names[4]}: 2 of 2 files, {(256 + 76) / 6:.0f} samples a second",
    ]


@pytest.mark.parametrize("change", [{"seed": 4}, {"model": "another"}, {"count": 1101}])
def test_a_folder_of_other_samples_is_refused(
    change: dict[str, Any], models: dict[str, Model], tmp_path: Path
) -> None:
    model = models["vector"]
    write_samples(model, sampling(model, "npz"), Folder(str(tmp_path)))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"of {next(iter(change))} .*empty folder"):
        write_samples(model, sampling(model, "npz", **change), Folder(str(tmp_path)))
    assert contents(tmp_path) == before


def test_of_two_samplings_that_begin_at_once_one_ends(
    models: dict[str, Model], tmp_path: Path
) -> None:
    """Both find the folder empty, so the second replaces the record of the first."""
    model = models["vector"]
    first, second = (sampling(model, "npz", seed=seed) for seed in (3, 4))
    barrier = threading.Barrier(2, timeout=30)

    class Together(Folder):
        def names(self) -> set[str]:
            found = super().names()
            barrier.wait()
            return found

        def write(self, name: str, pieces: Iterable[bytes], writer: str) -> None:
            super().write(name, pieces, writer)
            if name == RECORD:
                barrier.wait()

    def write(job: Sampling) -> str:
        try:
            write_samples(model, job, Together(str(tmp_path)))
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(write, (first, second)))
    recorded = Sampling.model_validate_json((tmp_path / RECORD).read_bytes())
    kept = 0 if recorded == first else 1
    assert told[kept] == ""
    assert f"holds samples of seed {recorded.seed}, not" in told[1 - kept]
    expected = model.sample(recorded.seed, 1100)
    assert samples_in(tmp_path, "npz").tobytes() == expected.tobytes()


def test_a_sampling_whose_record_was_replaced_writes_no_file(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["vector"]

    def replaced(*arguments: Any, **options: Any) -> Iterator[np.ndarray]:
        for part in Model.samples(model, *arguments, **options):
            if (tmp_path / RECORD).exists():
                other = sampling(model, "npz", seed=4).model_dump_json()
                (tmp_path / RECORD).write_text(other)
            yield part

    monkeypatch.setattr(model, "samples", replaced, raising=False)
    with pytest.raises(UserError, match=r"of seed 4, not 3; name an empty folder"):
        write_samples(model, sampling(model, "npz"), Folder(str(tmp_path)))
    assert not list(tmp_path.glob("*.npz"))


def test_what_cannot_be_written_is_told_before_anything_is(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, format in (("vector", "zip"), ("image", "parquet"), ("rows", "zip")):
        with pytest.raises(ShapeError):
            write_samples(models[kind], sampling(models[kind], format), Folder(str(tmp_path)))
    assert contents(tmp_path) == {}
    (tmp_path / "theirs.txt").touch()
    model = models["vector"]
    with pytest.raises(UserError, match="holds other files"):
        write_samples(model, sampling(model, "npz"), Folder(str(tmp_path)))
    with pytest.raises(UserError, match="cannot be written"):
        Folder(str(tmp_path / "theirs.txt" / "folder"))
    folder = Folder(str(tmp_path))
    with pytest.raises(UserError, match="cannot be read"):
        folder.read("none")
    with pytest.raises(UserError, match=r"cannot be opened: .*nowhere"):
        Folder("nowhere://bucket")
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"^gs://bucket: .*gcsfs.*; for s3://: pip install"):
        Folder("gs://bucket")
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(UserError, match=r"its sampling\.json cannot be read; name an empty folder"):
        write_samples(model, sampling(model, "npz"), Folder(str(tmp_path)))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError(), "cannot be read: ValueError"),
        (ValueError(" one\ntwo"), "cannot be read: one"),
        (ConnectionRefusedError("nobody"), "cannot be reached: nobody"),
    ],
)
def test_what_goes_wrong_behind_a_url_is_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: str) -> bytes:
        raise error

    monkeypatch.setattr("models.remote.WAITS", ())
    folder = Folder("memory://bucket")
    monkeypatch.setattr(folder._fs, "cat_file", fails)
    with pytest.raises(UserError) as caught:
        folder.read("name")
    assert str(caught.value) == f"memory://bucket: {says}"
    assert isinstance(caught.value, UnreachableError) == isinstance(error, ConnectionError)


def test_a_bucket_is_filled_and_resumed(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    model, bucket = models["rows"], "s3://bucket/rows/"
    job = sampling(model, "parquet")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with s3_server(tmp_path / "server") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        fs = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=url)
        fs.mkdir("bucket")
        for shard in (1, 0):
            write_samples(model, job, Folder(bucket), shard, 2)
        lost = "bucket/rows/000000000256.parquet"
        before = {entry["name"]: entry["ETag"] for entry in fs.ls("bucket/rows", detail=True)}
        assert len(Folder(bucket).names()) == 6
        fs.rm_file(lost)  # by another: what was listed is asked for again
        write_samples(model, job, Folder(bucket), 0, 1)
        fs.get("bucket/rows", str(tmp_path / "got"), recursive=True)
        after = {e["name"]: e["ETag"] for e in fs.ls("bucket/rows", detail=True, refresh=True)}
        assert before == after, "the file that was lost was made again, with the same bytes"
        disconnect()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(UserError, match=r"s3://bucket/rows/: cannot be read: .*signature"):
            write_samples(model, job, Folder(bucket))
    write_samples(model, job, Folder(str(tmp_path / "here")))
    assert contents(tmp_path / "got") == contents(tmp_path / "here")


def test_each_pod_of_an_indexed_job_writes_its_shard(
    artifacts: dict[str, Path],
    models: dict[str, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["-n", "70000", "--seed", "5", "--format", "npz", "--shards", "2"]
    job = ["sample", str(artifacts["vector"]), "--out", str(tmp_path), *options]
    files = ["000000000000.npz", "000000065536.npz"]
    for shard in range(2):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(shard))
        assert wgan_cli.main(job) == 0
        assert f"wrote {files[shard]}: 1 of 1 files" in capsys.readouterr().out
    assert sorted(contents(tmp_path)) == [*files, RECORD]
    assert json.loads((tmp_path / RECORD).read_text())["model"] == models["vector"].digest
    found = np.concatenate([np.load(tmp_path / name)["samples"] for name in files])
    assert found.tobytes() == models["vector"].sample(5, 70_000).tobytes()


def test_without_an_index_a_command_writes_all_files(
    artifacts: dict[str, Path],
    models: dict[str, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    options = ["-n", "20", "--format", "arrow", "--shards", "3", "--where", "age>40"]
    command = ["sample", str(artifacts["rows"]), "--out", str(tmp_path), *options]
    assert wgan_cli.main(command) == 0
    assert f"shard 0 of 1 is in {tmp_path}" in capsys.readouterr().out
    recorded = Sampling.model_validate_json((tmp_path / RECORD).read_bytes())
    job = sampling(models["rows"], "arrow", count=20, seed=0, where=["age>40"])
    assert recorded == job.model_copy(update={"samples_per_file": 2**16})
    (table,) = (pa.ipc.open_file(file).read_all() for file in tmp_path.glob("*.arrow"))
    assert len(table) == 20
    assert min(table["age"].to_pylist()) > 40


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "png"], "--format png"),
        (["--format", "npz", "--shards", "2", "--shard", "2"], "the last is 1"),
        (["--format", "npz", "--shard", "1"], "of 1 shards the last is 0"),
        ([], "say --format"),
    ],
)
def test_a_command_that_cannot_be_is_told(
    options: list[str],
    says: str,
    artifacts: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["sample", str(artifacts["vector"]), "-n", "10", "--out", str(tmp_path / "out")]
    assert wgan_cli.main([*command, *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


PEAK = """
import resource, sys
from models.artifact import load_artifact
from models.bulk import Folder, Sampling, write_samples
from pathlib import Path

artifact, out, format = sys.argv[1:]
model = load_artifact(Path(artifact))
peaks = []
for count in (8_000, 40_000):
    sampling = Sampling(model=model.digest, count=count, seed=0, format=format, class_name=None,
                        where=[], samples_per_file=4096)
    write_samples(model, sampling, Folder(f"{out}/{count}"))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks)
"""


@pytest.mark.parametrize("kind", ["image", "rows"])
def test_memory_does_not_grow_with_the_number(
    kind: str, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", PEAK, artifacts[kind], tmp_path, KINDS[kind]]
    few, many = map(int, subprocess.check_output(list(map(str, command)), text=True).split()[-2:])
    # Kilobytes; all 40,000 images alone would be 2.5 MB as pixels, and 4 MB as files.
    assert many - few < 2_000


@pytest.mark.parametrize(
    ("kind", "format"), [("vector", "npz"), ("rows", "parquet"), ("rows", "arrow")]
)
def test_files_of_samples_are_no_data_but_are_judged(
    kind: str, format: str, models: dict[str, Model], artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """They were trained on like any others: a model's faults would be the next one's data."""
    write_samples(models[kind], sampling(models[kind], format), Folder(str(tmp_path / "many")))
    one = tmp_path / f"one.{format}"
    line = ["sample", str(artifacts[kind]), "-n", "200", "--out", str(one)]
    assert wgan_cli.main(line) == 0
    for path in (one, tmp_path / "many" / f"000000000000.{format}"):
        config = tiny_config(kind, data={"source": str(path)}).data
        with pytest.raises(DataError, match="wgan wrote all of it, and a model's samples are no"):
            load_data(config)
        assert load_data(config, card=models[kind].run.data).card.count in (200, 256)
