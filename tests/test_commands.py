"""The command line's parts: nothing that was there has gone, and what is not installed is told."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperOption

import wgan_cli
from models import __version__, command_line
from models.command_line import StopNow, StopRequest
from models.config import constraint_class
from models.errors import UserError
from tests.command_line import command, parsed
from tests.command_table import COMMANDS, Parameter
from training.presets import PRESETS

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "bentoml", "mlflow", "numpy", "pandas", "rich"}


def as_in_the_table(parameter: object) -> Parameter:
    is_option = isinstance(parameter, TyperOption)
    how = "one"
    if is_option and parameter.is_flag:
        how = "flag"
    elif is_option and parameter.multiple:
        how = "append"
    elif parameter.nargs == -1:
        how = "many"
    return Parameter(
        "", parameter.opts[0] if is_option else None, how, parameter.required, parameter.default
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_before_is_there(name: str) -> None:
    now = [as_in_the_table(p) for p in command(name).params if p.name != "help"]
    before = [parameter._replace(name="") for parameter in COMMANDS[name]]
    arguments, former = ([p for p in all if p.option is None] for all in (now, before))
    assert arguments[: len(former)] == former
    assert not any(p.required for p in arguments[len(former) :])
    once = {p._replace(how="one") for p in now if p.how == "append"}  # may still be given once
    given = {p._replace(required=True) for p in now}  # where it may be left out now
    assert {p for p in before if p.option} <= once | given | {p for p in now if p.option}


def test_every_command_of_before_is_there() -> None:
    assert {name.split()[0] for name in COMMANDS} <= set(wgan_cli.COMMANDS)


def test_option_values_reach_the_command() -> None:
    found = parsed(
        [
            "train",
            "--preset",
            "digits",
            "--set",
            "a.b=1",
            "--set",
            "c=2",
            "--out",
            "run",
            "--resume",
        ]
    )
    assert found.command == "train"
    assert found.settings == ["a.b=1", "c=2"]
    assert (found.preset, found.out, found.resume) == ("digits", Path("run"), True)
    assert parsed(["data", "inspect", "photos", "--size", "8"]).command == "data inspect"


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=200,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["score", "--help"], ["serve"]])
def test_help_and_mistakes_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, wgan_cli; wgan_cli.main(sys.argv[1:]); "
        "print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    done = run_python(code, *arguments)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stderr.split())


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in {absent} else there(name, *more)
import wgan_cli
sys.exit(wgan_cli.main(sys.argv[1:]))
"""


def test_an_installation_without_training_serves() -> None:
    code = WITHOUT.format(absent={"training"})
    helped = run_python(code, "--help")
    assert helped.returncode == 0, helped.stderr
    assert "Serve a model over HTTP" in helped.stdout
    assert "(not installed)" in helped.stdout
    served = run_python(code, "serve", "--model", "absent")
    assert served.returncode == 2
    assert "no such folder" in served.stderr
    done = run_python(code, "train", "--preset", "digits", "--out", "run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: training is not installed")
    assert "pip install 'wgan-foundry[train]'" in line


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    code = WITHOUT.format(absent={"scipy"})
    out = str(tmp_path / "run")
    done = run_python(code, "train", "--preset", "8gaussians", "--out", out)
    assert done.returncode == 2, done.stderr
    assert "pip install 'wgan-foundry[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_mistake_of_ours_is_no_missing_package() -> None:
    from models.errors import needs

    with pytest.raises(ModuleNotFoundError), needs("train"):
        import models.no_such_module  # noqa: F401


def wgan(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("wgan"), *arguments],
        capture_output=True, text=True, check=False, timeout=200,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_version() -> None:
    done = wgan("--version")
    assert (done.returncode, done.stdout) == (0, f"wgan-foundry {__version__}\n")


def test_train_help_lists_presets_and_constraints(capsys: pytest.CaptureFixture[str]) -> None:
    assert wgan_cli.main(["train", "--help"]) == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(PRESETS) <= set(words)
    assert {"gradient_penalty", "weight_clipping", "bjorck"} <= set(words)


def test_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert wgan_cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert wgan_cli.main(["presets", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["digits"]["data"] == {"source": "digits"}
    assert list(shown) == list(PRESETS)


def test_constraints(capsys: pytest.CaptureFixture[str]) -> None:
    assert wgan_cli.main(["constraints", "--json"]) == 0
    shown = {row["kind"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(shown) == 19
    for kind, row in shown.items():
        constraint = constraint_class(kind)()
        assert row["guarantee"] == constraint.guarantee
        assert {**row["hyperparameters"], "kind": kind} == constraint.model_dump(mode="json")
    assert wgan_cli.main(["constraints"]) == 0
    text = capsys.readouterr().out
    assert "\n\nweight_clipping\n" in text
    assert "  constraint.clip_value=0.01\n" in text
    for block, (kind, row) in zip(text.strip().split("\n\n"), shown.items(), strict=True):
        settings = [f"{name}={json.dumps(it)}" for name, it in row["hyperparameters"].items()]
        lines = [kind, f"  {row['guarantee']}", *(f"  constraint.{line}" for line in settings)]
        assert block.splitlines() == lines


MISTAKES = {
    ("sample", "m", "--out", "a.png", "--seed", "9223372036854775808"): "--seed",
    ("compare", "--data", "d", "--constraints", "a,b", "--out", "o", "--seeds", "0"): "--seeds",
    ("compare", "--data", "d", "--constraints", "a,b", "--out", "o", "--jobs", "0"): "--jobs",
    ("study", "clipping", "--out", "o", "--jobs", "0"): "--jobs",
    ("w1", "a", "b", "--json", "o", "--steps", "0"): "--steps",
    ("w1", "a", "b", "--json", "o", "--seed", "-1"): "--seed",
    ("w1", "a", "b", "--json", "o", "--batch-size", "0"): "--batch-size",
    ("serve", "--model", "m", "--port", "65536"): "--port",
    ("serve", "--model", "m", "--workers", "0"): "--workers",
    ("train", "--preset", "digits", "--out", "o", "--device", "gpu"): "'cpu', 'cuda'",
    ("export", "no/model", "--to", "onnx", "--out", "."): ".: is there already",
    ("trian",): "did you mean 'train'",
    ("train", "--preset", "digits", "--out", "o", "--sed", "1"): "--seed",
    ("study",): "missing command",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_told_before_anything_runs(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert wgan_cli.main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert MISTAKES[arguments] in line


def interrupt(*arguments: object, **more: object) -> None:
    raise KeyboardInterrupt


def test_an_interruption_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import training.lab.comparison
    import training.lab.study
    from models import registry

    monkeypatch.setattr(registry, "versions", interrupt)
    monkeypatch.setattr(training.lab.comparison, "compare", interrupt)
    monkeypatch.setattr(training.lab.study, "study", interrupt)
    assert wgan_cli.main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    compare = ["compare", "--data", "d", "--constraints", "a,b", "--out", "o"]
    for line in (compare, ["study", "clipping", "--out", "o"]):
        assert wgan_cli.main(line) == 75
        assert capsys.readouterr().err == "interrupted: the same command goes on from here\n"


def asked_by_the_shell(words: str) -> dict[str, str]:
    """The variables with which a shell asks how its words may go on."""
    return {
        "_WGAN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }


def test_the_shell_completes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def completions(words: str) -> list[str]:
        for name, value in asked_by_the_shell(words).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit, match="0"):
            wgan_cli.main([])
        return capsys.readouterr().out.split()

    assert completions("wgan tra") == ["train", "train-detector"]
    assert "--constraint" in completions("wgan train --co")
    assert completions("wgan train --preset 8") == ["8gaussians"]
    assert completions("wgan w1 --constraint bj") == ["bjorck"]


def test_the_command_completes_in_a_process_of_its_own() -> None:
    done = wgan(**asked_by_the_shell("wgan tra"))
    assert (done.returncode, done.stdout.split()) == (0, ["train", "train-detector"])


def test_a_reader_that_goes_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    assert wgan_cli.main(["constraints"]) == 0
    assert len(capsys.readouterr().out) > 1000
    wgan_path = Path(sys.executable).with_name("wgan")
    done = subprocess.run(
        ["bash", "-c", f"{wgan_path} constraints | head -1"],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("none\n", "")


# ---- parts that commands share ------------------------------------------------------------------


def test_exit_codes_are_those_of_the_docs() -> None:
    told = re.findall(r"^\| (\d+) \| ([^|]+) \|$", (ROOT / "docs/commands.md").read_text(), re.M)
    begins = {
        0: "done",
        command_line.EXIT_FAILED: "failed",
        command_line.EXIT_MISTAKE: "a mistake",
        command_line.EXIT_REJECTED: "`wgan retrain`: a gate rejected",
        command_line.EXIT_INTERRUPTED: "interrupted, or a server",
        command_line.EXIT_SIGINT: "interrupted, with nothing to go on from",
    }
    assert [int(code) for code, _ in told] == list(begins)
    assert all(meaning.startswith(begins[int(code)]) for code, meaning in told)


def test_a_command_that_is_not_installed_has_no_options_of_its_own() -> None:
    app = command_line.new_app()
    app.command()(lambda: None)
    assert typer.main.get_command(app).params == []


def test_a_time_is_seconds_minutes_or_hours() -> None:
    times = {"90": 90, "90s": 90, " 30m ": 1800, "1.5h": 5400, "0.25": 0.25}
    assert {text: command_line.duration(text) for text in times} == times
    for text in ("", "0", "0.0h", "m", "1d", "-1s", "1e3", "1 h", "1.m"):
        with pytest.raises(UserError, match="is no time; write such as 90s, 30m or 2h"):
            command_line.duration(text)


def test_settings_are_json_or_text_and_where_nothing_is_trained_of_data_alone() -> None:
    texts = ["data.size=32", "data.name=a=b", "data.on=true", "data.csv={}", "data.none="]
    values = {"data.size": 32, "data.name": "a=b", "data.on": True, "data.csv": {}, "data.none": ""}
    assert command_line.assignments(texts) == command_line.data_assignments(texts) == values
    assert command_line.assignments(None) == command_line.assignments([]) == {}
    assert command_line.assignments(["seed=1"]) == {"seed": 1}
    with pytest.raises(UserError, match=r"--set data\.size: write key=value"):
        command_line.assignments(["data.size"])
    with pytest.raises(UserError, match=r"^--set training\.data: nothing is trained here"):
        command_line.data_assignments(["data.size=3", "training.data=1"])


def test_output_takes_any_text_though_it_is_closed_or_poor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it where the shell closed it
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    command_line.prepare_output()
    with sys.stdout:
        print("goes nowhere: \u00e9", flush=True)
    command_line.complain("caf\u00e9 http://ann:canary@host")
    assert raw.getvalue() == b"caf\\xe9 http://ann:***@host\n", "at once, and without the password"


def test_what_nobody_reads_is_dropped_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:  # closing it writes what it holds: an error if it cannot
        stdout.write("figures")
        monkeypatch.setattr(sys, "stdout", stdout)
        command_line.drop_output()
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept))
    print("figures")
    command_line.drop_output()
    assert kept.getvalue() == b"figures\n"


@pytest.fixture
def _handlers() -> Iterator[None]:
    """Put back what answers signals."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


STOPS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])


@STOPS
@pytest.mark.usefixtures("_handlers")
def test_the_first_signal_is_a_request_and_a_second_one_ends_the_process(
    number: signal.Signals,
) -> None:
    """A terminal that is gone is not written to any more."""
    here, there = pty.openpty()
    streams = (1, 2)
    kept = [os.dup(stream) for stream in streams]
    try:
        for stream in streams:
            os.dup2(there, stream)
        stop = StopRequest()
        assert not stop()
        with stop.raised():
            pass
        signal.raise_signal(number)  # and nothing is raised outside of the block
        are_dropped = [os.path.samestat(os.fstat(s), os.stat(os.devnull)) for s in streams]
    finally:
        for stream, copy in zip(streams, kept, strict=True):
            os.dup2(copy, stream)
        for descriptor in (here, there, *kept):
            os.close(descriptor)
    assert stop()
    assert signal.getsignal(number) == signal.SIG_DFL
    assert are_dropped == [number == signal.SIGHUP] * 2
    with pytest.raises(StopNow), stop.raised():
        pytest.fail("the stop was requested before")


@STOPS
@pytest.mark.usefixtures("_handlers")
def test_work_is_stopped_as_soon_as_that_is_requested(number: signal.Signals) -> None:
    stop, reached = StopRequest(), []
    with pytest.raises(StopNow), stop.raised():
        reached += [signal.raise_signal(number)]
    assert stop()
    assert not reached, "the work went on"


@pytest.mark.usefixtures("_handlers")
def test_nohup_is_heeded_and_other_signals_are_never_ignored() -> None:
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    stop = StopRequest()
    signal.raise_signal(signal.SIGHUP)
    assert not stop()
    signal.raise_signal(signal.SIGTERM)
    assert stop()
