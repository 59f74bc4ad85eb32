"""A search over a real PostgreSQL: processes that begin at once, are killed, stopped, refused."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

import wgan_cli
from models import registry
from models.artifact import load_artifact
from models.command_line import EXIT_INTERRUPTED, EXIT_MISTAKE
from models.config import DataConfig
from tests.chart import needs_helm, render
from tests.manifests import of_kind
from tests.postgres import needs_postgres, postgres_server
from tests.registries import new_database
from tests.test_tuning import TINY
from tests.test_tuning_tracking import search_and_trials
from training.data.dataset import load_data
from training.lab.tuning import study as studies
from training.lab.tuning.search import Search

PASSWORD = "canary#pass/word"
QUOTED = "canary%23pass%2Fword"
COMMAND = """
import sys
from training.lab.tuning import study
study.HEARTBEAT_SECONDS, study.SILENT_SECONDS = 1, 4
import wgan_cli
sys.exit(wgan_cli.main(sys.argv[1:]))
"""
"""The command line, with a heart that beats quicker."""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URL of a database as users write it, with the password of a server that asks for one."""
    with postgres_server(PASSWORD) as url:
        yield url.replace("postgresql+psycopg2://mlflow@", f"postgresql://mlflow:{QUOTED}@")


def command(out: Path, *more: str, steps: int = 3000) -> list[str]:
    chosen = {**TINY, "training.steps": steps}
    told = [f"--set={key}={value}" for key, value in chosen.items()]
    fixed = ["tune", "--data=8gaussians", "--constraints=gradient_penalty,weight_clipping"]
    return [sys.executable, "-c", COMMAND, *fixed, *told, f"--out={out}", "--no-register", *more]


def start(words: list[str], **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == code, out
    assert "canary" not in out
    return out


def trials(database: str, name: str) -> list[FrozenTrial]:
    storage = studies._open_storage(database)
    try:
        return optuna.load_study(study_name=name, storage=storage).trials
    except KeyError:
        return []
    finally:
        if "://" in database:
            storage.engine.dispose()


def wait_until(holds: Callable[[], bool], *processes: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.3)


@pytest.mark.slow
@needs_postgres
def test_processes_that_begin_at_once_share_one_study(database: str) -> None:
    """On a database without Optuna's tables, which all of them try to make."""
    with sqlalchemy.create_engine(database.replace("://", "+psycopg2://")).connect() as connection:
        found = sqlalchemy.inspect(connection).get_table_names()
    assert not found, "this test must be the first one"
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [context.Process(target=begin_at_once, args=(database, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    kinds = [t.system_attrs["fixed_params"]["constraint"] for t in trials(database, "at once")]
    assert kinds == ["gradient_penalty", "weight_clipping"]


def begin_at_once(database: str, barrier: Any) -> None:
    data = load_data(DataConfig(source="8gaussians", validation_fraction=0.2))
    search = Search(
        "8gaussians",
        "8gaussians",
        ("gradient_penalty", "weight_clipping"),
        {"training.batch_size": 32},
        {},
        1.0,
        "cpu",
        database,
        "at once",
        0.0,
        None,
        False,
    )
    barrier.wait(100)
    studies.begin(search, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_postgres
def test_a_killed_process_costs_one_trial_that_is_made_again(database: str, tmp_path: Path) -> None:
    """One that sleeps for long loses its trial alone; one that is killed or stopped leaves it."""
    name, environment = "killed", {"WGAN_TUNE_STORAGE": database}
    more = ["--budget=2h", f"--study={name}"]

    def in_state(state: TrialState) -> list[FrozenTrial]:
        return [trial for trial in trials(database, name) if trial.state == state]

    def failed() -> list[int]:
        return [trial.number for trial in in_state(TrialState.FAIL)]

    def again() -> set[int]:
        found = trials(database, name)
        return {t.user_attrs["again"] for t in found if "again" in t.user_attrs}

    first = start(command(tmp_path / "0", "--only-trials", *more), **environment)
    second = start(command(tmp_path / "1", "--only-trials", *more), **environment)
    try:
        for expected in (1, 2):
            while True:  # until it is stopped in the middle of a trial
                wait_until(lambda: len(in_state(TrialState.RUNNING)) == 2, first, second)
                first.send_signal(signal.SIGSTOP)
                if len(in_state(TrialState.RUNNING)) == 2:
                    break
                first.send_signal(signal.SIGCONT)
            wait_until(lambda: len(failed()) == expected, first, second)  # noqa: B023
            wait_until(lambda: again() == set(failed()), second)
            if expected == 1:
                first.send_signal(signal.SIGCONT)
                count = len(trials(database, name))
                wait_until(lambda: len(trials(database, name)) > count + 3, first, second)  # noqa: B023
        first.kill()
        first.communicate()
        wait_until(lambda: len(in_state(TrialState.RUNNING)) == 1, second)
        second.send_signal(signal.SIGTERM)
        assert "the same command goes on" in finish(second, EXIT_INTERRUPTED)
    finally:
        for process in (first, second):
            process.kill()
    assert not in_state(TrialState.RUNNING)
    assert len(failed()) in (2, 3), "the stopped one, unless it just ended"
    assert again() == set(failed())
    repeated = {t.user_attrs["again"]: t for t in trials(database, name) if "again" in t.user_attrs}
    before = {trial.number: trial for trial in trials(database, name)}
    for number in failed()[:2]:
        fixed = repeated[number].system_attrs["fixed_params"]
        assert fixed == before[number].params

    made = len(in_state(TrialState.COMPLETE)) + len(in_state(TrialState.PRUNED))
    out = tmp_path / "1"
    third = start(command(out, *more, f"--trials={made}", f"--storage={database}"))
    said = finish(third)
    answer = json.loads((out / "tuning.json").read_text())
    assert f"is the best of {len(answer['trials'])}" in said
    assert {row["number"] for row in answer["trials"]} >= set(failed())
    numbers = [row["number"] for row in answer["trials"] if row["failed"]]
    assert numbers == failed()
    for file in out.rglob("*"):
        if file.is_file():
            assert b"canary" not in file.read_bytes(), file


@pytest.mark.slow
@needs_postgres
def test_a_database_that_goes_away_is_told_in_one_line(tmp_path: Path) -> None:
    with postgres_server() as url:
        process = start(command(tmp_path, "--budget=2h", f"--storage={url}", "--study=gone"))
        wait_until(lambda: bool(trials(url, "gone")), process)
    said = finish(process, EXIT_INTERRUPTED)
    assert "the database does not answer" in said
    assert "Traceback" not in said


def test_a_stopped_command_stops_its_processes(tmp_path: Path) -> None:
    """What they were at is tried again by the next call."""
    process = start(command(tmp_path, "--budget=2h", "--jobs=2", steps=500_000))
    journal = tmp_path / "study.journal"

    def found() -> list[TrialState]:
        return [t.state for t in trials(str(journal), "searched")] if journal.exists() else []

    wait_until(lambda: found().count(TrialState.RUNNING) == 2, process)
    process.send_signal(signal.SIGTERM)
    said = finish(process, EXIT_INTERRUPTED)
    assert "Traceback" not in said
    assert sorted(state.name for state in found()) == ["FAIL", "FAIL", "WAITING", "WAITING"]
    assert json.loads((tmp_path / "unfinished.json").read_text())["seconds"] > 0


@pytest.mark.parametrize(
    ("url", "says", "code"),
    [
        ("postgrse://localhost/x", "write such as postgresql://", EXIT_MISTAKE),
        ("oracle://ann:canary@localhost/x", "is not installed", EXIT_MISTAKE),
        ("postgresql://ann:canary@127.0.0.1:1/x", "does not answer", EXIT_INTERRUPTED),
        ("postgresql://ann:canary@127.0.0.1:port/x", "write such as", EXIT_MISTAKE),
        ("postgresql://ann:canary@127.0.0.1:1/x?foo=bar", "invalid dsn", EXIT_MISTAKE),
        ("postgresql://ann:canary@127.0.0.1:1/x?keepalives=a", "invalid integer", EXIT_MISTAKE),
    ],
)
def test_what_is_no_database_is_told_in_one_line(
    url: str, says: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_one_line(url, says, code, tmp_path, capsys)


@needs_postgres
def test_what_the_database_refuses_is_told_in_one_line(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = database.replace(QUOTED, "canary-wrong")
    require_one_line(wrong, "password authentication failed", EXIT_MISTAKE, tmp_path, capsys)
    absent = database.replace("/postgres", "/absent")
    require_one_line(absent, '"absent" does not exist', EXIT_MISTAKE, tmp_path, capsys)
    replica = f"{database}?options=-cdefault_transaction_read_only%3Don"
    require_one_line(replica, "read-only transaction", EXIT_MISTAKE, tmp_path, capsys)


def require_one_line(
    url: str, says: str, code: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", "--data=8gaussians", "--budget=9s", f"--out={folder / 'out'}"]
    assert wgan_cli.main([*arguments, f"--storage={url}"]) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in said
    assert "canary" not in said


def test_a_missing_driver_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    says = "pip install 'wgan-foundry[postgres]'"
    require_one_line("postgresql://localhost/x", says, EXIT_MISTAKE, tmp_path, capsys)


def test_the_storage_may_be_named_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "url").write_text("postgresql://ann:canary@127.0.0.1:1/x\n")
    monkeypatch.setenv("WGAN_TUNE_STORAGE_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("WGAN_TUNE_STORAGE", "")
    arguments = ["tune", "--data=8gaussians", "--budget=9s", f"--out={tmp_path / 'out'}"]
    assert wgan_cli.main([*arguments, "--only-trials"]) == EXIT_INTERRUPTED
    assert "canary" not in capsys.readouterr().err
    monkeypatch.setenv("WGAN_TUNE_STORAGE_FILE", str(tmp_path / "absent"))
    assert wgan_cli.main([*arguments, "--only-trials"]) == EXIT_MISTAKE
    assert "WGAN_TUNE_STORAGE_FILE" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_helm
@needs_postgres
def test_the_job_of_the_chart_finds_and_registers_a_winner(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its containers' own command lines and variables, in folders of ours; one pod is evicted."""
    told = [f"{key}={value}" for key, value in TINY.items()]
    values = {"enabled": True, "storage": {"secret": "tuning"}, "data": "8gaussians", "trials": 6}
    values |= {"constraints": ["gradient_penalty", "weight_clipping"], "set": told, "workers": 3}
    documents = render("values", False, f"--set-json=tune={json.dumps(values)}")
    (job,) = of_kind(documents, "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (tmp_path / "url").write_text(database)
    address = new_database(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    environment = {
        **{v["name"]: v["value"] for v in container["env"] if "value" in v},
        "MLFLOW_TRACKING_URI": address,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    assert environment["WGAN_TUNE_STORAGE_FILE"] == "/etc/wgan-tune/url"
    environment["WGAN_TUNE_STORAGE_FILE"] = str(tmp_path / "url")
    script, *more = container["args"]
    assert "/runs/" in script
    (study,) = re.findall(r"--study (\S+)", script)
    words = [*container["command"], script.replace("/runs/", f"{tmp_path}/runs/"), *more]

    def pod(index: int) -> "subprocess.Popen[str]":
        return start(words, **environment, JOB_COMPLETION_INDEX=str(index))

    pods = [pod(index) for index in range(job["spec"]["completions"])]
    try:
        wait_until(lambda: bool(trials(database, study)), *pods)
        pods[2].send_signal(signal.SIGTERM)
        pods[2].communicate(timeout=240)
        assert pods[2].returncode in (EXIT_INTERRUPTED, -signal.SIGTERM), "or it only just began"
        pods[2] = pod(2)
        for process in pods:
            finish(process)
    finally:
        for process in pods:
            process.kill()
    folder = tmp_path / "runs/tune" / study / "0"
    answer = json.loads((folder / "tuning.json").read_text())
    ended = [row for row in answer["trials"] if row["ended"] and not row["failed"]]
    assert len(ended) >= 5, "others may be under way"
    assert load_artifact(Path(answer["winner"]) / "artifact").run.config.name == "8gaussians"
    search, nested = search_and_trials()
    assert search.data.tags["winner.model"] == "8gaussians@1"
    assert search.info.status == "FINISHED"
    assert {row["number"] for row in ended} <= nested.keys()
    (version,) = registry.versions()
    assert version["version"] == "1"
    for file in folder.rglob("*"):
        if file.is_file():
            assert b"canary" not in file.read_bytes(), file
