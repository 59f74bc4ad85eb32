"""Every command with what users and machines can do to it: one line, an exit code, no traceback."""

import contextlib
import functools
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import wgan_cli
from models.config import flatten
from tests.artifacts import make_artifact
from tests.command_line import command
from tests.test_signing import write_pair
from training.presets import build_config

TEXTS = (str, Path, list[str], list[Path])
GOOD = {
    "train": {"preset": "8gaussians", "out": "run", "settings": "training.steps=2"},
    "sample": {"model": "artifact", "out": "s.npz", "n": "2"},
    "impute": {"model": "rows", "file": "rows.csv", "out": "o.csv"},
    "score": {"model": "artifact", "files": "data.npy"},
    "evaluate": {"model": "artifact", "data": "data.npy", "report": "r.html"},
    "diagnose": {"run": "artifact", "out": "d.html"},
    "compare": {
        "data": "data.npy",
        "constraints": "none,weight_clipping",
        "out": "compared",
        "steps": "2",
        "seeds": "1",
    },
    "study clipping": {"out": "study"},
    "data inspect": {"data": "data.npy", "out": "p.png"},
    "retrain": {"config": "retrain.yaml"},
    "sign": {"model": "artifact", "key": "ours.key"},
    "verify": {"model": "artifact", "key": "ours.pem"},
    "promote": {"model": "digits@1", "key": "ours.key"},
    "rollback": {"name": "digits"},
    "w1": {
        "a": "data.npy",
        "b": "data.npy",
        "report": "w.json",
        "out": "w.html",
        "steps": "1",
        "gradients_at": "data.npy",
        "gradients_out": "g.npy",
    },
    "serve": {"model": "artifact", "host": "203.0.113.1"},  # which is nobody's
}
"""Arguments of a command that work, by the parameter's name, but where a registry is asked or an
address bound."""
WRITTEN = {"out", "report", "gradients_out"}
"""Parameters of files that are written."""
LONG = {
    ("train", "out"),
    ("compare", "out"),
    ("study clipping", "out"),
    ("evaluate", "report"),
    ("diagnose", "out"),
    ("w1", "report"),
    ("w1", "out"),
    ("w1", "gradients_out"),
}
"""They compute for long where the place turns out to be a good one."""


@functools.cache
def leaves() -> dict[str, Any]:
    """Every command by its name, the sub-commands of groups too."""
    found = {}
    for name in wgan_cli.COMMANDS:
        made = command(name)
        below = getattr(made, "commands", {"": made})
        found |= {f"{name} {sub}".strip(): leaf for sub, leaf in below.items()}
    return found


def slots(leaf: Any) -> list[Any]:
    """Parameters of a command that take any text."""
    return [p for p in leaf.params if p.type_descriptor.annotation in TEXTS]


CASES = {(name, p.name): p.required for name, leaf in leaves().items() for p in slots(leaf)}
"""Commands and their parameters, and whether a command needs it."""


def line_of(name: str, values: dict[str, str]) -> list[str]:
    words, options, arguments = name.split(), [], []
    for parameter in leaves()[name].params:
        if value := values.get(parameter.name):
            is_option = parameter.param_type_name == "option"
            (options if is_option else arguments).extend(
                [parameter.opts[0], value] if is_option else [value]
            )
    return [*words, *options, "--", *arguments] if arguments else [*words, *options]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what commands need."""
    folder = tmp_path_factory.mktemp("good")
    make_artifact(folder / "artifact", "vector")
    make_artifact(folder / "rows", "rows")
    np.save(folder / "data.npy", np.random.default_rng(0).normal(size=(300, 2)))
    (folder / "rows.csv").write_text("age\n3\n")
    write_pair(folder, "ours")
    (folder / "retrain.yaml").write_text(yaml.safe_dump({"preset": "x", "folder": "runs"}))
    return folder


@pytest.fixture
def here(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with links to what is good, and an empty registry."""
    for file in good.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    database = good.parent / "registry.db"  # one for all: making its tables takes seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _file(content: bytes) -> Callable[[Path, str], str]:
    def make(folder: Path, suffix: str) -> str:
        path = folder / f"file{suffix}"
        path.write_bytes(content)
        return path.name

    return make


def _link(to: str) -> Callable[[Path, str], str]:
    def make(folder: Path, suffix: str) -> str:
        (folder / f"link{suffix}").symlink_to(to)
        return f"link{suffix}"

    return make


def _folder(folder: Path, suffix: str) -> str:
    (folder / f"folder{suffix}").mkdir()
    return f"folder{suffix}"


def _loop(folder: Path, suffix: str) -> str:
    (folder / f"loop{suffix}").symlink_to(f"loop{suffix}")
    return f"loop{suffix}"


def _pipe(folder: Path, suffix: str) -> str:
    path = folder / f"pipe{suffix}"
    os.mkfifo(path)
    return path.name


PATHS: dict[str, Callable[[Path, str], str]] = {
    "nothing": lambda folder, suffix: "",
    "a missing one": lambda folder, suffix: f"missing/file{suffix}",
    "a folder": _folder,
    "below a file": lambda folder, suffix: f"data.npy/file{suffix}",
    "an empty file": _file(b""),
    "noise": _file(bytes(range(256)) * 8),
    "deep brackets": _file(b"[" * 100_000),
    "deep braces": _file(b'{"a":' * 100_000),
    "no UTF-8": _file(b"\xff\xfe\xfd,\xff\n\xff,\xff\n"),
    "a huge claim": _file(
        b"\x93NUMPY\x01\x00\x46\x00"
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (900000000000, 2)}  \n"
    ),
    "the null device": _link("/dev/null"),
    "the full device": _link("/dev/full"),
    "a broken link": _link("not/there"),
    "a looping link": _loop,
    "a pipe": _pipe,
    "two lines": lambda folder, suffix: f"a\nb{suffix}",
    "a name of no UTF-8": lambda folder, suffix: os.fsdecode(b"a\xffb") + suffix,
    "a long name": lambda folder, suffix: "x" * 300 + suffix,
    "a long path": lambda folder, suffix: "x/" * 3000 + suffix,
    "an option": lambda folder, suffix: f"--not-an-option{suffix}",
    "a registry's": lambda folder, suffix: f"a'b`\"\\@champion{suffix}",
    "a URL": lambda folder, suffix: f"http://[::1/x{suffix}",
    "a URL of nobody": lambda folder, suffix: f"nobody://x/y{suffix}",
}


@contextlib.contextmanager
def other_end(folder: Path, mode: str) -> Iterator[None]:
    """Whoever reads a pipe in the folder gets noise, and whoever writes to one is read."""
    pipes = [path for path in folder.iterdir() if path.is_fifo()]

    def hold(path: Path) -> None:
        with contextlib.suppress(OSError), path.open(mode) as file:
            file.write(b"noise") if mode == "wb" else file.read()

    threads = [threading.Thread(target=hold, args=[path], daemon=True) for path in pipes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for path, thread in zip(pipes, threads, strict=True):
            while thread.is_alive():  # lets one go on to which nobody has come, once it waits
                os.close(os.open(path, os.O_RDWR))
                thread.join(0.01)


def runs_or_complains(capfd: pytest.CaptureFixture[str], line: list[str]) -> None:
    """Run a command here, and check how it ends."""
    code = wgan_cli.main(line)
    out, err = capfd.readouterr()
    said = f"wgan {line!r}: {code}\n{out[-2000:]}\n{err[-6000:]}"
    assert code in (0, 1, 2, 75), said
    assert "Traceback" not in out + err, said
    if code:
        (complaint,) = err.splitlines() or [""]
        assert complaint.startswith("error: "), said
        assert len(complaint) > len("error: something"), said


TRIED = [
    (*case, kind)
    for case, is_required in CASES.items()
    for kind in PATHS
    if is_required or kind != "nothing"
]
SHORT = [case for case in TRIED if case[:2] not in LONG]
QUICK = set(SHORT[::5])
"""A fifth, in which every parameter and every kind of path is: all take minutes."""


@pytest.mark.parametrize(
    ("name", "slot", "kind"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in SHORT],
)
def test_a_path(
    name: str, slot: str, kind: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = dict(GOOD.get(name, {}))
    made = PATHS[kind](here, Path(values.get(slot, "")).suffix)
    with other_end(here, "rb" if slot in WRITTEN else "wb"):
        runs_or_complains(capfd, line_of(name, {**values, slot: made}))


def test_the_rest_of_the_arguments_is_good(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Else what is tried would not be reached."""
    for name in ("sample", "impute", "score", "data inspect", "sign", "verify"):
        assert wgan_cli.main(line_of(name, GOOD[name])) == 0, capfd.readouterr().err


def edits(values: Any, place: tuple[str, ...] = ()) -> Iterator[Any]:
    """Copies of settings, each with one value in the way of people who edit by hand."""
    for key, value in values.items():
        for new in (None, -1, "", "a\nb", [], {}, 1e999, 10**30, "x" * 10_000, [[]], True):
            yield (*place, key), {**values, key: new}
        yield (*place, key), {other: values[other] for other in values if other != key}
        if isinstance(value, dict):
            for where, below in edits(value, (*place, key)):
                yield where, {**values, key: below}
    yield place, {**values, "anothér\n": 1}


def test_a_configuration_that_was_edited(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The data are not there, so that none of them trains."""
    config = {
        "preset": "digits",
        "data": "missing.npy",
        "constraint": "gradient_penalty",
        "folder": "runs",
        "keep_runs": 2,
        "reference": "missing.npy",
        "pushgateway": "http://[::1",
        "push_labels": {"namespace": "a"},
        "gates": {"least": {"precision": 0.1}},
        "set": {"name": "x", "training": {"steps": 3}, "data": {"size": 32}},
    }
    (here / "retrain.yaml").unlink()
    for _, edited in edits(config):
        edited.setdefault("data", "missing.npy")
        (here / "retrain.yaml").write_text(json.dumps(edited))
        runs_or_complains(capfd, ["retrain", "--config", "retrain.yaml"])


def test_every_setting(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The data are not there, so that none of them trains."""
    config = build_config("digits", None, None, {}).model_dump(mode="json")
    for key in flatten(config):
        for text in ("-1", "0", "1e999", "NaN", "x", "[]", "{}", "null", "1" + "0" * 400, "a\0b"):
            line = ["train", "--preset", "digits", "--out", "run", "--set", f"{key}={text}"]
            runs_or_complains(capfd, [*line, "--data", "missing.npy"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slot", "kind"), [case for case in TRIED if case[:2] in LONG])
def test_a_place_for_long_work(
    name: str, slot: str, kind: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    test_a_path(name, slot, kind, here, capfd)


def test_every_command_is_tried() -> None:
    """A new command comes in by itself; what is known of its arguments is still true."""
    assert {name for name, _ in CASES} | {"models", "presets", "constraints"} == set(leaves())
    for name, values in GOOD.items():
        assert values.keys() <= {parameter.name for parameter in leaves()[name].params}
