"""Files that are cut at any byte, disks that fill up, and what is written in which order."""

import contextlib
import fcntl
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.bulk import UNFINISHED, Folder
from models.durable import (
    append_line,
    new_folder,
    put,
    read_file,
    read_lines,
    remove_folder,
    remove_partial,
    write_file,
)
from models.errors import BrokenFileError
from tests.artifacts import tiny_config
from tests.test_machine import limited
from training.engine.checkpoint import (
    CheckpointError,
    TrainingState,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    provenance_of,
    save_checkpoint,
)
from training.engine.origin import Origin
from training.engine.privacy import keep_secret
from training.progress import silent
from training.retraining.config import RetrainConfig
from training.retraining.outcomes import Decision, Outcome, publish

LINES = [{"a": 1}, {"b": "ü\n"}, {"c": None}]


def test_a_file_of_lines_survives_being_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for line in LINES:
        append_line(path, json.dumps(line))
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        kept = LINES[: sum(end <= cut for end in ends)]
        said: list[str] = []
        found = read_lines(path, said.append)
        # A line without its end may be whole all the same.
        assert found in (kept, LINES[: len(kept) + 1])
        assert bool(said) == (found == kept and cut not in (0, *ends)), cut
        assert all(str(path) in line for line in said)
        append_line(path, '{"d": 2}')
        assert read_lines(path, pytest.fail) == [*kept, {"d": 2}]
    assert read_lines(tmp_path / "none", pytest.fail) == []


def test_what_is_no_line_of_ours_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n\x00\x00\x00\n[3]\n\xff\n{"b": 2}\n')
    said: list[str] = []
    assert read_lines(path, said.append) == [{"a": 1}, {"b": 2}]
    assert ["line 2" in said[0], "line 3" in said[1], "line 4" in said[2]] == [True] * 3


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """The kernel takes a part of what is written, and then refuses."""
    path = tmp_path / "lines"
    append_line(path, '"before"')
    code = f"""
import resource, signal
from pathlib import Path
from models.durable import append_line, write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
for write in append_line, write_file:
    try:
        write(Path({str(path)!r}), "x" * 100)
    except OSError as error:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused"] * 2
    assert path.read_text() == '"before"\n'
    assert os.listdir(tmp_path) == ["lines"]


def test_what_fails_while_it_is_written_leaves_all_as_it_was(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("no more")

    write_file(tmp_path / "file", [b"a", b"b"])
    with pytest.raises(ValueError, match="no more"):
        write_file(tmp_path / "file", pieces())
    with contextlib.suppress(KeyError), new_folder(tmp_path / "folder") as new:
        (new / "half").touch()
        raise KeyError("no more")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"ab"


def test_a_new_folder_takes_its_name_when_it_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "far" / "above" / "folder"
    for name in ("first", "second"):
        with new_folder(folder) as new:
            (new / name).touch()
            assert name not in (os.listdir(folder) if folder.exists() else [])
        assert os.listdir(folder) == [name]
    assert os.listdir(folder.parent) == ["folder"]
    assert folder.stat().st_mode & 0o777 == 0o755, "others may read it"


def test_a_line_that_the_disk_takes_in_part_is_cut_off_again(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, '"before"')
    with limited(resource.RLIMIT_FSIZE, 20), pytest.raises(OSError, match="only a part"):
        append_line(path, "x" * 100)
    assert path.read_bytes() == b'"before"\n'


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    write_file(tmp_path / "file", "a")
    append_line(tmp_path / "lines", "1")
    assert os.listdir("/proc/self/fd") == before


def test_two_do_not_append_at_once(tmp_path: Path) -> None:
    """The one that waits does not take a line that the other has begun for one that was cut."""
    path = tmp_path / "lines"
    other = threading.Thread(target=append_line, args=(path, '{"b": 2}'))
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b'{"a"')
        file.flush()
        other.start()
        other.join(0.1)
        assert other.is_alive()
        file.write(b": 1}\n")
    other.join(10)
    assert read_lines(path, pytest.fail) == [{"a": 1}, {"b": 2}]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The calls of fsync and of replace, with the names of what they were about."""
    found = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(number: int) -> None:
        found.append(("fsync", Path(os.readlink(f"/proc/self/fd/{number}")).name))
        fsync(number)

    def noted_replace(old: Any, new: Any) -> None:
        found.append(("replace", Path(new).name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return found


def test_the_disk_has_a_file_before_it_has_its_name(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    write_file(tmp_path / "file", "ü")
    assert (tmp_path / "file").read_text() == "ü"
    new = calls[0][1]
    assert calls == [("fsync", new), ("replace", "file"), ("fsync", tmp_path.name)]
    assert new.endswith(".partial")
    calls.clear()
    (tmp_path / "new" / "inner").mkdir(parents=True)
    (tmp_path / "new" / "inner" / "part").write_text("content")
    put(tmp_path / "new", tmp_path / "folder")
    assert calls == [
        ("fsync", "inner"), ("fsync", "part"), ("fsync", "new"),
        ("replace", "folder"), ("fsync", tmp_path.name),
    ]  # fmt: skip
    (tmp_path / "new").mkdir()
    put(tmp_path / "new", tmp_path / "folder")
    assert not list((tmp_path / "folder").iterdir()), "an older folder is replaced as a whole"
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "folder", "a file takes no folder's place")
    calls.clear()
    append_line(tmp_path / "lines", "1")
    assert calls == [("fsync", "lines"), ("fsync", tmp_path.name)]


def test_the_disk_has_samples_before_their_file_has_its_name(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    """What has a name is not made again, so it must be whole after a crash of the machine."""
    Folder(str(tmp_path)).write("0.npz", [b"a", b"b"], "me")
    assert (tmp_path / "0.npz").read_bytes() == b"ab"
    new = calls[0][1]
    assert calls == [("fsync", new), ("replace", "0.npz"), ("fsync", tmp_path.name)]
    assert new.endswith(UNFINISHED)


VECTORS = tiny_config("vector")
ORIGIN = Origin(data={"items": 5}, threads=1, extended=[7])


def new_state() -> TrainingState:
    generator, critic, ema = (nn.Linear(2, 2) for _ in range(3))
    optimizers = [torch.optim.Adam(network.parameters()) for network in (generator, critic)]
    return TrainingState(generator, critic, ema, *optimizers)


def step(state: TrainingState) -> None:
    for network, optimizer in (
        (state.generator, state.generator_optimizer),
        (state.critic, state.critic_optimizer),
    ):
        optimizer.zero_grad()
        network(torch.ones(3, 2)).square().sum().backward()
        optimizer.step()


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    state, other = new_state(), new_state()
    step(state)
    folder, history = tmp_path / "run" / "checkpoints", [{"step": 1.0, "loss": 0.25}]
    path = save_checkpoint(folder, 1, VECTORS, history, state, "graph", ORIGIN)
    found = load_checkpoint(path)
    assert found[:3] == (1, VECTORS.model_dump(mode="json"), history)
    assert (found.critic_step, found.origin) == ("graph", ORIGIN)
    other.restore(found.tensors)
    for each in (state, other):
        step(each)
    expected = state.tensors()
    assert expected.keys() == found.tensors.keys()
    assert len(expected) == 3 * 2 + 2 * 2 * 3  # networks; of Adam two moments and a step each
    for name, tensor in other.tensors().items():
        assert torch.equal(tensor, expected[name]), name


def test_two_checkpoints_stay_and_one_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert newest_checkpoint(tmp_path) is None
    for number in (1, 20, 3, 100):
        save_checkpoint(tmp_path, number, VECTORS, [], new_state(), "eager", ORIGIN)
    names = ["step-00000020.safetensors", "step-00000100.safetensors"]
    assert [path.name for path in checkpoints(tmp_path)] == names
    assert newest_checkpoint(tmp_path) == tmp_path / names[1]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.engine.checkpoint.put", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 101, VECTORS, [], new_state(), "eager", ORIGIN)
    assert sorted(os.listdir(tmp_path)) == names
    (tmp_path / names[1]).write_bytes((tmp_path / names[0]).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{names[1]}: a broken checkpoint .*; remove it"):
        load_checkpoint(tmp_path / names[1])


def test_the_record_tells_of_the_run_s_machine_and_its_beginning(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, VECTORS, [], new_state(), "graph", ORIGIN)
    told = provenance_of(torch.device("cpu"), 12.345, tmp_path)
    assert told["torch"] == torch.__version__
    assert told["device"] == "cpu"
    assert told["seconds"] == 12.3
    assert told["threads"] == torch.get_num_threads()
    assert (told["critic_step"], told["extended"]) == ("graph", [7])


def test_the_disk_has_a_checkpoint_before_it_has_its_name(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    save_checkpoint(tmp_path, 3, VECTORS, [], new_state(), "eager", ORIGIN)
    name = "step-00000003"
    assert calls == [
        ("fsync", f"{name}.partial"), ("replace", f"{name}.safetensors"), ("fsync", tmp_path.name),
    ]  # fmt: skip


def test_a_folder_is_whole_or_gone(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    remove_folder(tmp_path / "folder")
    assert not list(tmp_path.iterdir())
    assert calls[0][0] == "replace", "what rmtree has not removed yet has another name"
    (tmp_path / ".folder.1.partial" / "below").mkdir(parents=True)
    (tmp_path / ".file.2.partial").touch()
    (tmp_path / "kept").touch()
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def decision(folder: Path) -> None:
    Decision.read(folder)


def secret(folder: Path) -> None:
    keep_secret(folder, is_new=True)


@pytest.mark.parametrize(
    ("name", "read"), [("decision.json", decision), ("secret", secret)], ids=lambda x: str(x)[:8]
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, read: Callable[[Path], None]) -> None:
    if name == "decision.json":
        whole = Decision(
            model="m", outcome="promoted", reason="r", who="w", when="2026-01-01", key="k",
            challenger="1", champion=None, best="1", data={}, extractor=None, loss="l", gates=[],
        )  # fmt: skip
        whole.write(tmp_path)
        assert Decision.read(tmp_path) == whole
    else:
        read(tmp_path)
    content = (tmp_path / name).read_bytes().rstrip()
    for cut in range(len(content)):
        (tmp_path / name).write_bytes(content[:cut])
        with pytest.raises(BrokenFileError, match=f"{name}: broken .*; (remove it|start anew)"):
            read(tmp_path)


def test_reading_needs_a_parser_that_tells(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"[1]")
    assert read_file(tmp_path / "file", json.loads, "") == [1]
    (tmp_path / "file").write_bytes(b"[1")
    with pytest.raises(BrokenFileError, match=r"file: broken .*; remove it"):
        read_file(tmp_path / "file", json.loads, "remove it")


def test_an_outcome_is_listed_after_one_that_was_cut(tmp_path: Path) -> None:
    """A disk that was full once breaks no later run."""
    settings = RetrainConfig(preset="8gaussians", folder=tmp_path, pushgateway="http://127.0.0.1:9")
    name, said = tiny_config().name, list[str]()
    publish(settings, name, Outcome("promoted", "first"), time.time(), silent)
    path = tmp_path / "outcomes.jsonl"
    path.write_bytes(path.read_bytes() + b'{"model": "tiny", "when": "20')
    publish(settings, name, Outcome("rejected", "second"), time.time(), said.append)
    assert "outcomes.jsonl: line 2 is cut off" in said[0]
    assert [line["outcome"] for line in read_lines(path, pytest.fail)] == ["promoted", "rejected"]
    # A folder that takes nothing more hides no outcome, and the gateway is told.
    said.clear()
    path.unlink()
    path.mkdir()
    publish(settings, name, Outcome("promoted", "third"), time.time(), said.append)
    assert ["not written" in said[0], "was not told" in said[1]] == [True, True]
