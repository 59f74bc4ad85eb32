"""Servers of older versions of MLflow: those that are supported, and those that are not."""

import contextlib
import http.server
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import yaml

import wgan_cli
from deploy import tools
from models import registry, registry_files, tracking_server
from models.artifact import load_artifact
from models.errors import UnsupportedServerError
from tests.artifacts import make_artifact
from tests.chart import CHART, helm, needs_helm
from tests.registries import Registry, until
from tests.servers import WGAN, free_port
from training.tracking import track_and_register

OLDEST = tools.TOOLS / "mlflow/bin/mlflow"
needs_oldest = pytest.mark.skipif(not OLDEST.exists(), reason="python deploy/tools.py mlflow")


class _Version(http.server.BaseHTTPRequestHandler):
    status, text = 200, ""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.text)))
        self.end_headers()
        self.wfile.write(self.text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "text", "supported"),
    [
        (200, "2.14.3", False),
        (200, "2.22.1", False),
        (200, "3.0.0", True),
        (200, "3.17.2", True),
        (200, "4.0.0rc1", True),
        (200, "<html>", True),
        (404, "no such page", True),
    ],
)
def test_a_server_that_is_too_old_is_told_at_first_contact(
    status: int,
    text: str,
    supported: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever does not tell a version is asked no further."""
    tracking_server.known.clear()
    handler = type("Handler", (_Version,), {"status": status, "text": text})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        if supported:
            registry.client()
        else:
            with pytest.raises(UnsupportedServerError, match=f"MLflow {text} is too old"):
                registry.champion("digits")
            assert wgan_cli.main(["promote", "digits@1"]) == 2
            assert "update the server to 3.0 or newer" in capsys.readouterr().err
        server.shutdown()


@pytest.mark.parametrize(
    ("statuses", "asked"), [((401, 200), 2), ((403, 200), 2), ((200, 200), 1), ((404, 404), 1)]
)
def test_a_server_that_refuses_to_tell_its_version_is_asked_again(
    statuses: tuple[int, int], asked: int
) -> None:
    tracking_server.known.clear()
    told = iter(statuses)
    answers = {"status": property(lambda _: next(told)), "text": "3.1"}
    handler = type("Handler", (_Version,), answers)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in statuses:
            tracking_server.require_supported(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert len(statuses) - len(list(told)) == asked


def is_healthy(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    return False


def use(artifact: Path) -> str:
    """Register, promote, list, fetch, and roll back; returns the champion."""
    model = load_artifact(artifact)
    name = model.run.config.name
    assert track_and_register(model, artifact) == f"{name}@1"
    registry.promote(name, "1", "the first")
    assert registry.champion(name) == "1"
    client = registry.client()
    source = client.get_model_version(name, "1").source
    registry.register(name, registry.version(name, "1")["run_id"], source, {"a": "b"})
    registry.promote(name, "2", "the second")
    assert [(v["version"], v["aliases"]) for v in registry.versions()] == [
        ("2", ["champion"]),
        ("1", []),
    ]
    found = registry.find(name, registry.DIGEST_TAG, model.digest)
    assert found is not None
    assert found["version"] == "1"
    registry.tag(name, "1", {"c": "d"})
    assert registry.version(name, "1")["c"] == "d"
    assert registry.rollback(name, "back") == ("2", "1")
    assert [change["to"] for change in registry.history(name)] == ["1", "2", "1"]
    return name


@needs_oldest
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_oldest_server_does_all_that_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`OLDEST` is what `deploy/tools.py` fetches."""
    said = subprocess.run([OLDEST, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.split()[-1] == ".".join(map(str, tracking_server.OLDEST)) + ".0"
    server = Registry(tmp_path, OLDEST)
    artifact = make_artifact(tmp_path / "artifact")
    with server.running():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        name = use(artifact)
        fetched = registry_files.download(f"{name}@champion", tmp_path / "fetched")
        assert load_artifact(fetched).digest == load_artifact(artifact).digest


def chart_command(volume: Path, port: int) -> list[str]:
    """The command line of the chart's MLflow, on this machine."""
    done = helm("template", "wgan", CHART, "--show-only", "templates/mlflow.yaml")
    (deployment,) = [d for d in yaml.safe_load_all(done.stdout) if d["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    changes = {"/mlflow/": f"{volume}/", "--port=5000": f"--port={port}", "0.0.0.0": "127.0.0.1"}
    command = [*container["command"], *container["args"]]
    for word, ours in changes.items():
        command = [part.replace(word, ours) for part in command]
    return command


def content(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        return list(connection.iterdump())


KILLED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("create table runs (number integer primary key, name)")
connection.execute("create index names on runs (name)")
rows = [(i, "a" * 500 + str(i)) for i in range(4000)]
connection.executemany("insert into runs values (?, ?)", rows)
connection.commit()
connection.execute("pragma cache_size = 10")  # so that the change reaches the disk at once
connection.execute("begin")
connection.execute("update runs set name = 'b' || name")
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_helm
def test_the_chart_copies_the_database_of_a_pod_that_was_killed(tmp_path: Path) -> None:
    """In a transaction: a journal lies beside the database, without which it is malformed."""
    volume, programs = tmp_path / "mlflow", tmp_path / "bin"
    volume.mkdir()
    programs.mkdir()
    (programs / "mlflow").symlink_to("/bin/true")
    database = volume / "mlflow.db"
    subprocess.run([sys.executable, "-c", KILLED, database], check=False)
    assert (volume / "mlflow.db-journal").stat().st_size
    path = f"{programs}:{WGAN.parent}:{os.environ['PATH']}"
    command = chart_command(volume, free_port())
    for _ in range(2):
        subprocess.run(command, env={**os.environ, "PATH": path}, check=True)
        (copy,) = volume.glob("mlflow.db.before-*")
        assert content(copy) == content(database)
        assert sum(line.startswith("INSERT") for line in content(copy)) == 4000
        assert not any("'baaa" in line for line in content(copy))


@needs_oldest
@needs_helm
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_chart_s_mlflow_takes_over_an_older_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own command line, on a volume that the oldest version wrote; then once more."""
    volume = tmp_path / "mlflow"
    volume.mkdir()
    server = Registry(volume, OLDEST)
    artifact = make_artifact(tmp_path / "artifact")
    with server.running():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        name = use(artifact)
    written = content(volume / "mlflow.db")
    port = free_port()
    command = chart_command(volume, port)
    for _ in range(2):
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "PATH": f"{WGAN.parent}:{os.environ['PATH']}",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
            )
        try:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://localhost:{port}")
            until(lambda: is_healthy(port), "a healthy registry", tmp_path / "log")
            assert [v["version"] for v in registry.versions()] == ["2", "1"]
            assert registry.champion(name) == "1"
        finally:
            os.killpg(process.pid, 9)
            process.wait()
        (copy,) = volume.glob("mlflow.db.before-*")
        assert content(copy) == written
