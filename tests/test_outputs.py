"""Where commands write: one process at a time, checked at the start, and whole on a full disk."""

import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

import wgan
import wgan_cli
from models.errors import MachineError, UserError
from models.networks import build_networks
from models.outputs import (
    LEASE,
    lease,
    require_file,
    save,
    sole_writer,
    turn,
    unwritable,
)
from tests.artifacts import make_artifact, tiny_config
from tests.runs import forked
from training.data.dataset import load_data
from training.engine.checkpoint import load_checkpoint, newest_checkpoint
from training.engine.room import needed_bytes, require_room
from training.lab.comparison import compare
from training.lab.study import study
from training.lab.study.settings import QUICK_SCALE
from training.run import run_training

WGAN = Path(sys.executable).with_name("wgan")
HOLDER = """
import sys, time
from pathlib import Path
from models.outputs import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path: Path) -> None:
    """The line says who holds it; once that process is dead, the folder is free."""
    out = tmp_path / "run"
    config = tiny_config("vector", training={"steps": 2})
    hold = [sys.executable, "-c", HOLDER, out]
    holder = subprocess.Popen(hold, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        who = rf"in use by process {holder.pid} on \S+ since 20\d\d-\d\d-\d\dT"
        for resume in (False, True):
            with pytest.raises(UserError, match=who):
                run_training(config, out, torch.device("cpu"), register=False, resume=resume)
        with pytest.raises(UserError, match=who):
            compare("8gaussians", ["none", "weight_clipping"], 1, out)
        with pytest.raises(UserError, match=who):
            study(out, QUICK_SCALE)
        assert [p.name for p in out.iterdir()] == [LEASE], "they have written nothing"
    finally:
        holder.kill()
        holder.communicate()
    run_training(config, out, torch.device("cpu"), register=False)
    assert not (out / LEASE).exists()


def test_two_runs_of_one_folder_are_one_model(tmp_path: Path) -> None:
    """Without the lock the second one trained too, said 'already complete', and ended with 0."""
    arguments = [
        *("train", "--preset", "8gaussians", "--no-register", "--steps", "8", "--out", "run"),
        *("--set", "training.checkpoint_every=1", "--set", "evaluation.samples=100"),
        *("--set", "generator.width=16", "--set", "critic.width=16"),
    ]
    logs = [(tmp_path / f"log-{seed}", tmp_path / f"errors-{seed}") for seed in (1, 2)]
    both = [
        forked(wgan_cli.main, [*arguments, "--seed", seed], log, tmp_path, errors)
        for seed, (log, errors) in enumerate(logs, 1)
    ]
    for process in both:
        process.join(300)
    said = [errors.read_text() for _, errors in logs]
    codes = [process.exitcode for process in both]
    assert sorted(map(str, codes)) == ["0", "2"], said
    (line,) = said[codes.index(2)].splitlines()
    assert "in use by process" in line or "already holds a run" in line


COUNTS = """
import sys, time
from pathlib import Path
from models.outputs import turn

path = Path(sys.argv[1])
for _ in range(40):
    with turn(path):
        before = int(path.read_text()) if path.exists() else 0
        time.sleep(0.0005)  # long enough for another one to read the same number
        path.write_text(str(before + 1))
"""


def test_a_lock_that_its_holder_removes_locks_nobody_out(tmp_path: Path) -> None:
    """Several processes in turn: never two at once, and nothing stays."""
    command = [sys.executable, "-c", COUNTS, tmp_path / "sum"]
    for worker in [subprocess.Popen(command) for _ in range(3)]:
        assert worker.wait(120) == 0
    assert (tmp_path / "sum").read_text() == "120"
    assert [p.name for p in tmp_path.iterdir()] == ["sum"]


def test_a_cache_entry_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that comes while another decodes waits for it, and takes what that one made."""
    from PIL import Image

    from training.data.sources import images
    from training.data.sources.files import locate

    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    location, config = locate(str(tmp_path / "photos")), tiny_config().data
    built = []
    build = images._build

    def slow_build(folder: Path, *rest: object) -> None:
        built.append(folder)
        with lease(folder.with_name(f".{folder.name}{LEASE}")) as holder:
            assert holder is not None, "others wait while it is made"
        build(folder, *rest)

    monkeypatch.setattr(images, "_build", slow_build)
    for _ in range(2):
        images.load_images(location, config)
    assert len(built) == 1
    assert not list((tmp_path / "cache").rglob(f"*{LEASE}"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_artifact(folder / "digits")
    np.save(folder / "a.npy", np.random.default_rng(0).normal(size=(60, 2)))
    (folder / "file").write_text("")
    (folder / "folder.png").mkdir()
    (folder / "folder.html").mkdir()
    return folder


WRITERS = {
    "train": "train --preset 8gaussians --no-register --out {}",
    "compare": "compare --data 8gaussians --constraints none,bjorck --no-track --out {}",
    "study": "study clipping --out {}",
    "sample": "sample digits --out {}.png",
    "many samples": "sample digits --format npz --out {}",
    "evaluate": "evaluate digits --report {}.html",
    "diagnose": "diagnose digits --out {}.html",
    "inspect": "data inspect digits --out {}.png",
    "w1": "w1 a.npy a.npy --json {}.json",
    "w1's page": "w1 a.npy a.npy --json w1.json --out {}.html",
    "w1's gradients": "w1 a.npy a.npy --json w1.json --gradients-at a.npy --gradients-out {}.npy",
    "retrain": "retrain --config retrain.yaml",
    "train-detector": "train-detector digits --out {}",
    "export": "export digits --to onnx --out {}",
}


@pytest.fixture
def here(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of `models` as the working directory; a command's signal handlers go again."""
    monkeypatch.chdir(models)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield models
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("path", ["file/out", "/dev/null/out"])
def test_what_cannot_be_written_is_told_before_the_work(
    writer: str, path: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "retrain.yaml").write_text(json.dumps({"preset": "8gaussians", "folder": path}))
    before = sorted(p.name for p in here.iterdir())
    assert wgan_cli.main(WRITERS[writer].format(path).split()) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert "cannot be written" in line
    assert path in line
    assert not said.out
    assert sorted(p.name for p in here.iterdir()) == before


@pytest.mark.parametrize("line", ["sample absent --out {}.png", "impute absent a.csv --out {}.csv"])
def test_where_a_result_goes_is_looked_at_before_the_model(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wgan_cli.main(line.format("/dev/null/out").split()) == 2
    assert "/dev/null/out" in (told := capsys.readouterr().err)
    assert "cannot be written" in told


def test_a_folder_is_no_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for writer in ("sample digits --out folder.png", "diagnose digits --out folder.html"):
        assert wgan_cli.main(writer.split()) == 2
        assert "is a folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="file name too long; shorten the name"):
        require_file(here / ("x" * 300))


def test_a_file_is_written_whole_or_stays(tmp_path: Path) -> None:
    path, link = tmp_path / "new" / "page.html", tmp_path / "latest.html"
    save(path, "one")
    link.symlink_to(path)
    save(link, iter([b"t", b"wo"]))
    assert link.is_symlink()
    assert path.read_text() == "two"
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    save(circle, "three")
    assert circle.read_text() == "three"

    def pieces() -> "object":
        yield b"three"
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot be written: no space left on device; make room"):
        save(path, pieces())  # type: ignore[arg-type]
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_a_pipe_or_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    """A file took its place: as root, --out /dev/null was the end of /dev/null."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for path, content in ((pipe, "one"), (link, iter([b"t", b"wo"]))):
        require_file(path)
        save(path, content)
    assert os.read(reader, 100) == b"onetwo"
    os.close(reader)
    assert pipe.is_fifo()
    assert link.is_symlink()


def fill_up(arguments: list[str]) -> int:
    """Train in a folder whose disk is full after three steps."""

    def watch(step: int, _: object) -> None:
        if step == 3:  # from here on files stay short, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))

    config = tiny_config("vector", training={"steps": 6, "checkpoint_every": 2})
    try:
        run_training(config, Path(arguments[0]), torch.device("cpu"), register=False, watch=watch)
    except MachineError as error:
        print(error, flush=True)
    return 0


def test_a_disk_that_fills_up_is_one_line_and_what_was_saved_loads(tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    process = forked(fill_up, [out], log)
    process.join(100)
    assert process.exitcode == 0, log.read_text()
    (line,) = log.read_text().splitlines()
    assert line.startswith(f"{out}: cannot be written any more")
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000002.safetensors"]
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    assert load_checkpoint(path).step == 2
    config = tiny_config("vector", training={"steps": 6, "checkpoint_every": 2})
    run_training(config, out, torch.device("cpu"), register=False, resume=True)


def test_a_disk_without_room_for_the_run_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the folder holds already, such as the checkpoints of a run that goes on, counts."""
    out, config = tmp_path / "run", tiny_config(training={"steps": 2})
    needed = needed_bytes(config, load_data(config.data).card)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1000))
    with pytest.raises(MachineError, match="and this run needs about"):
        run_training(config, out, torch.device("cpu"), register=False, watch=pytest.fail)
    assert not out.exists()
    line = ["train", "--preset", "8gaussians", "--no-register", "--out", str(out)]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    assert wgan_cli.main(line) == 2
    (complaint,) = capsys.readouterr().err.splitlines()
    assert complaint.startswith(f"error: {out}: has room for 10 MB, and this run needs about ")
    out.mkdir()
    (out / "held").write_bytes(bytes(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1000))
    run_training(config, out, torch.device("cpu"), register=False)


def test_room_is_wanted_for_three_checkpoints_and_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many bytes as are needed suffice, and those that the run's own folder holds count."""
    config = tiny_config("vector")
    card = load_data(config.data).card
    generator, critic = (
        sum(4 * weights.numel() for weights in network.parameters())
        for network in build_networks(config, card.shape)
    )
    # Each state has two moments of Adam for each weight, and the generator's average.
    state = 3 * (generator + critic) + generator
    needed = needed_bytes(config, card)
    assert needed == 64 * 2**20 + int(1.25 * (4 * state + generator + critic))
    (tmp_path / "run" / "deep").mkdir(parents=True)
    for name in ("run/one", "run/deep/two", "beside"):
        (tmp_path / name).write_bytes(bytes(500))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1000))
    require_room(tmp_path / "run", config, card)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1001))
    with pytest.raises(MachineError, match="has room for 67 MB, and this run needs about 67 MB"):
        require_room(tmp_path / "run", config, card)


def test_a_disk_error_in_the_block_is_one_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No space left on device"), sole_writer(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert not (tmp_path / "x").exists()
    with pytest.raises(FileNotFoundError), sole_writer(tmp_path / "x"):
        raise FileNotFoundError("a fault of ours stays one")


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS without its lock service, and Lustre by default."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for lock in (sole_writer(tmp_path), turn(tmp_path / "entry")):
        with pytest.raises(UserError, match="cannot be locked: No locks available"), lock:
            pass


def test_a_folder_that_is_gone_meanwhile_hides_no_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def fail() -> None:
        (folder / LEASE).unlink()
        folder.rmdir()
        folder.write_text("")
        raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"), sole_writer(folder):
        fail()


def test_a_holder_that_did_not_end_its_block_is_told_of_once(tmp_path: Path) -> None:
    """What the file says goes with the block, so what is left is of a process that was killed."""
    path, told = tmp_path / "new" / "lock", list[str]()
    with lease(path, told.append) as holder:
        assert holder is None
        said = path.read_text()
        assert said.startswith(f"process {os.getpid()} on ")
        with lease(path, told.append) as other:
            assert other == said.strip()
    assert path.read_text() == ""
    path.write_text("process 7 on another\n" * 9)  # longer than what is written in its place
    with lease(path, told.append):
        assert path.read_text().count("\n") == 1
    with lease(path, told.append):
        pass
    assert told == ["process 7 on another\n" * 8 + "process 7 on another"]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), MachineError, "no space .*; make room"),
        (OSError(errno.EACCES, "Permission denied"), UserError, "denied; check its permissions"),
        (SafetensorError("no space"), MachineError, "cannot be written: no space$"),
    ],
)
def test_whose_fault_it_is_that_nothing_can_be_written(
    error: Any, kind: type[Exception], says: str
) -> None:
    found = unwritable(Path("x"), error)
    assert type(found) is kind
    assert re.search(f"^x: cannot be written: .*{says}|^x: {says}", str(found))


def test_python_writes_likewise(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    points = load_data(tiny_config("vector").data).sample(60, heldout=False)
    with pytest.raises(UserError, match="cannot be written"):
        wgan.wasserstein_1(points, points, steps=1, out=tmp_path / "file" / "page.html")
    with pytest.raises(UserError, match="cannot be written"):
        wgan.train(points, steps=1, out=tmp_path / "file" / "run")
