"""Settings of the service: each is checked at the start, and told in docs/operating.md."""

import inspect
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from annotated_types import Ge, Le

import wgan_cli
from models.errors import ConfigError, UserError
from service import command, settings
from service.server import serve
from service.settings import Settings, misspelt, public_fields
from tests.artifacts import make_artifact
from tests.servers import free_port

ROOT = Path(__file__).parent.parent
WGAN = Path(sys.executable).with_name("wgan")
NUMBERS = {
    name: f for name, f in public_fields().items() if any(isinstance(m, Ge) for m in f.metadata)
}
BAD_TEXTS = {
    "WGAN_CHALLENGER": "/no/such/folder",
    "WGAN_CACHE": "/etc/passwd",
    "WGAN_KEPT_ITEMS": "/etc/passwd",
    "WGAN_DEVICE": "gpu",
    "WGAN_API_KEYS_FILE": "/no/such/file",
    "WGAN_TLS_CERT": "/no/such/file",
    "WGAN_TLS_KEY": "/no/such/file",
    "WGAN_TRUSTED_KEYS": "/no/such/file",
    "WGAN_CORS_ORIGINS": "https://a.example,*",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "abc",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "ftp://collector",
}
"""A bad value of each setting that is no number."""
FREE = {"WGAN_MODEL", "WGAN_MODELS", "MLFLOW_TRACKING_URI", "OTEL_SERVICE_NAME"}
"""Any text will do, as far as the settings can tell; the command itself looks at the models, and
tests/test_several_models.py at how they are named."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in public_fields():
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("settings") / "artifact")


Started = list[tuple[list[str], dict[str, str]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    """Arguments and environment of each program that this process would have become."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where BentoML's home is made
    found: Started = []

    def become(program: str, command: list[str], environment: dict[str, str]) -> None:
        assert program == command[0] == sys.executable
        found.append((command[1:], environment))

    monkeypatch.setattr("os.execve", become)
    return found


def bad_numbers() -> list[tuple[str, str]]:
    found = []
    for name, field in NUMBERS.items():
        (highest,) = [m.le for m in field.metadata if isinstance(m, Le)]
        for value in ("abc", "1 2", "nan", "inf", "-1", "1e300", "9" * 5000, "0x10", f"{highest}1"):
            found.append((name, value))
    return found


def test_every_setting_is_tried_with_bad_values() -> None:
    assert public_fields().keys() == NUMBERS.keys() | BAD_TEXTS.keys() | FREE
    assert len(NUMBERS) > 4


@pytest.mark.parametrize(("name", "value"), bad_numbers())
def test_a_bad_number_is_told_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        Settings.read()
    line = str(caught.value)
    assert line.startswith(f"{name}=")
    assert "\n" not in line
    assert len(line) < 200


@pytest.mark.parametrize("name", public_fields())
def test_an_empty_variable_is_as_good_as_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings.read()
    monkeypatch.setenv(name, "")
    assert Settings.read() == expected


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_are_allowed_themselves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGAN_CHALLENGER", "a@b")
    (lowest,) = [m.ge for m in NUMBERS[name].metadata if isinstance(m, Ge)]
    (highest,) = [m.le for m in NUMBERS[name].metadata if isinstance(m, Le)]
    for value in (lowest, highest):
        monkeypatch.setenv(name, str(value))
        assert Settings.read().model_dump(by_alias=True)[name] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [*BAD_TEXTS.items(), *((name, "x" * 5000) for name in BAD_TEXTS)],
)
def test_a_bad_text_ends_the_server_at_once(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it was started"))
    with pytest.raises(ConfigError) as caught:
        serve("some/folder", "127.0.0.1", free_port())
    line = str(caught.value)
    assert line.startswith(name)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70_000), ("localhost", 0), ("192.0.2.1", 0), ("", 0)]
)
def test_an_address_of_no_use_is_told(
    host: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it was started"))
    with pytest.raises(ConfigError, match=f"cannot listen on {host}, port {port}: ...") as caught:
        serve("some/folder", host, port)
    assert not str(caught.value).endswith(": None")


def test_the_command_ends_at_once_in_one_line(artifact: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [WGAN, "serve", "--model", artifact, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"port {port}: Address already in use" in done.stderr


def test_bentoml_gets_the_address_the_times_and_what_was_checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    variables = {"KEEP_ALIVE_SECONDS": "7", "FINISH_SECONDS": "11", "CHALLENGER": "tiny@challenger"}
    for name, value in variables.items():
        monkeypatch.setenv(f"WGAN_{name}", value)
    port = free_port()
    serve("some/folder", "127.0.0.1", port, workers=3)
    ((command, environment),) = started
    assert command[:4] == ["-m", "bentoml", "serve", "service.entry:WganService"]
    assert dict(zip(command[4::2], command[5::2], strict=True)) == {
        "--working-dir": str(ROOT),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--timeout-keep-alive": "7",
        "--timeout-graceful-shutdown": "11",
    }
    expected = Settings.read(WGAN_MODEL="some/folder", WGAN_WORKERS=3).environment()
    assert expected.keys() >= {"WGAN_MODEL", "WGAN_WORKERS", "WGAN_CHALLENGER"}
    assert expected.items() <= environment.items()
    assert environment["PATH"] == os.environ["PATH"]
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"
    assert Path(environment["BENTOML_HOME"]).is_dir()
    assert capsys.readouterr().err == ""
    # A folder will do as well, if it is there; and a home that is given is taken.
    monkeypatch.setenv("WGAN_CHALLENGER", str(tmp_path))
    monkeypatch.setenv("WGAN_FINISH_SECOND", "3")
    monkeypatch.setenv("BENTOML_HOME", "/home/bento")
    serve("some/folder", "127.0.0.1", port)
    other = started[1][1]
    assert other["BENTOML_HOME"] == "/home/bento"
    assert "WGAN_WORKERS" not in other
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: WGAN_FINISH_SECOND ")


def test_a_port_whose_last_connections_linger_is_free(started: Started) -> None:
    with socket.create_server(("127.0.0.1", 0)) as last:
        port = last.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        last.accept()[0].close()  # the end that closes first is the one that lingers
        client.close()
    serve("some/folder", "127.0.0.1", port)
    assert str(port) in started[0][0]


@pytest.mark.parametrize(
    ("arguments", "model", "models"),
    [
        (["a@1"], "a@1", ""),
        (["--model", "a@1"], "a@1", ""),
        (["x=a@1"], "", "x=a@1"),
        (["a@1", "x=b@2"], "", "a=a@1,x=b@2"),
        (["a@1", "--model", "x=b@2", "--model", "c@3"], "", "a=a@1,x=b@2,c=c@3"),
        ([], "", "d=d@1,e=e@1"),
    ],
)
def test_models_of_the_command_take_the_place_of_the_environment_s(
    arguments: list[str],
    model: str,
    models: str,
    monkeypatch: pytest.MonkeyPatch,
    started: Started,
) -> None:
    monkeypatch.setenv("WGAN_MODELS", "d@1,e@1")
    assert wgan_cli.main(["serve", "--port", "0", *arguments]) == 0
    ((_, environment),) = started
    told = environment.get("WGAN_MODEL", ""), environment.get("WGAN_MODELS", "")
    assert told == (model, models)


def test_the_command_serves_where_the_docs_look_for_it() -> None:
    asked = set(re.findall(r"http://127\.0\.0\.1:(\d+)", (ROOT / "docs/service.md").read_text()))
    assert asked == {str(inspect.signature(command.serve).parameters["port"].default)}


def test_a_folder_with_a_sign_of_equality_in_its_name_is_no_name_and_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: Started
) -> None:
    folder = make_artifact(tmp_path / "lr=0.1", "vector")
    monkeypatch.chdir(tmp_path)
    assert wgan_cli.main(["serve", "--port", "0", "lr=0.1"]) == 0
    assert started[0][1]["WGAN_MODEL"] == str(folder)


@pytest.mark.parametrize("model", ["x" * 5000, "x" * 5000 + "@champion", "", "/etc/passwd"])
def test_a_model_that_cannot_be_is_told(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WGAN_MODEL", model)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(UserError):
        command.serve()


LONG = "x" * 60
DEVICES = "write 'cpu' or 'cuda'"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WGAN_DRIFT_WINDOW": "1"}, "WGAN_DRIFT_WINDOW=1: write 0, or at least 50 items"),
        ({"WGAN_DRIFT_WINDOW": "49"}, "WGAN_DRIFT_WINDOW=49: write 0, or at least 50 items"),
        ({"WGAN_DRIFT_WINDOW": "x"}, "WGAN_DRIFT_WINDOW=x: write a whole number, 0 to 1,000,000"),
        ({"WGAN_DRAIN_SECONDS": "x"}, "WGAN_DRAIN_SECONDS=x: write a number, 0 to 86,400"),
        ({"WGAN_DEVICE": "gpu"}, f"WGAN_DEVICE=gpu: {DEVICES}"),
        ({"WGAN_DEVICE": "a\nb"}, f"WGAN_DEVICE='a\\nb': {DEVICES}"),
        ({"WGAN_DEVICE": LONG}, f"WGAN_DEVICE={LONG}: {DEVICES}"),
        ({"WGAN_DEVICE": f"{LONG}x"}, f"WGAN_DEVICE={LONG}...: {DEVICES}"),
        ({"WGAN_TLS_CERT": "/a"}, "WGAN_TLS_CERT: give WGAN_TLS_KEY too"),
        ({"WGAN_TLS_KEY": "/a"}, "WGAN_TLS_KEY: give WGAN_TLS_CERT too"),
        (
            {"WGAN_CACHE": "/etc/passwd/a"},
            "WGAN_CACHE=/etc/passwd/a: write the path of a folder; /etc/passwd is a file",
        ),
        (
            {"WGAN_CACHE": f"/{'x' * 5000}"},
            f"WGAN_CACHE=/{LONG[:59]}...: write the path of a folder (File name too long)",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "abc"},
            "OTEL_EXPORTER_OTLP_ENDPOINT=abc: write a URL that begins with http:// or https://",
        ),
        (
            {"WGAN_CORS_ORIGINS": "https://a.example,http://b/path"},
            "WGAN_CORS_ORIGINS=https://a.example,http://b/path: write origins such as "
            "https://a.example, separated by commas",
        ),
        (
            {"WGAN_CHALLENGER_SHARE": "0.5"},
            "WGAN_CHALLENGER_SHARE: name the challenger in WGAN_CHALLENGER",
        ),
        (
            {"WGAN_MODEL": "a@1", "WGAN_MODELS": "b@1"},
            "WGAN_MODELS: leave out WGAN_MODEL, and name its model here",
        ),
        (
            {"WGAN_MODELS": "a@1", "WGAN_CHALLENGER": "b=c@1"},
            "WGAN_CHALLENGER: b is none of the models a; write NAME=MODEL",
        ),
    ],
)
def test_what_is_wrong_is_told_in_words(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.read(**variables)
    assert str(caught.value) == says


def test_what_goes_together_is_taken(tmp_path: Path) -> None:
    read = Settings.read
    assert [read(WGAN_DRIFT_WINDOW=size).drift_window for size in ("0", "50")] == [0, 50]
    assert read(WGAN_CACHE=str(tmp_path / "a" / "b")).cache == tmp_path / "a" / "b"
    assert read(WGAN_CORS_ORIGINS=" HTTPS://a.Example:8,,http://b ").cors_origins == (
        "https://a.example:8,http://b"
    )
    assert read(WGAN_TLS_CERT="/a", WGAN_TLS_KEY="/b").tls_key == Path("/b")
    one = read(WGAN_MODEL="a@1", WGAN_CHALLENGER="b@1", WGAN_CHALLENGER_SHARE="0.5")
    assert (one.champions, one.challengers) == ({"a": "a@1"}, {"a": "b@1"})
    assert read(WGAN_MODEL="a@1").challengers == {}
    several = read(WGAN_MODELS="a@1,x=b@1", WGAN_CHALLENGER="x=c@1")
    assert (several.champions, several.challengers) == ({"a": "a@1", "x": "b@1"}, {"x": "c@1"})
    assert read(WGAN_CHALLENGER="x=c@1").challengers == {"x": "c@1"}, "no model is named yet"
    url = "http://collector:4318"
    for variables in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        assert read(**{variables: url}).is_tracing
    assert not read().is_tracing


def test_a_misspelt_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGAN_DRAIN_SECOND", "3")
    monkeypatch.setenv("WGAN_PORT_3000_TCP_ADDR", "10.0.0.1")  # Kubernetes sets it for a Service
    monkeypatch.setenv("WGAN_EMOJI_FONT", "x")  # training reads it
    (line,) = misspelt()
    assert "WGAN_DRAIN_SECOND " in line
    assert line.endswith("did you mean WGAN_DRAIN_SECONDS?")


def test_the_workers_get_what_was_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WGAN_CACHE", "cache")
    monkeypatch.setenv("WGAN_API_KEYS_FILE", "keys")
    checked = Settings.read(WGAN_MODEL="runs/a", WGAN_WORKERS=3)
    assert checked.model == str(tmp_path / "runs/a")
    for name, value in checked.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    assert Settings.read() == checked


def test_the_table_in_the_docs_is_that_of_the_class() -> None:
    content = settings.PAGE.read_text()
    assert settings.page(content) == content, "run `python -m service.settings`"


def test_only_the_settings_read_the_environment() -> None:
    allowed = {
        "settings.py": "tells misspelt variables",
        "server.py": "hands the environment on to the server",
        "uploads.py": "hands the environment on to the process that reads files",
        "entry.py": "sets BentoML's own variable before it is imported",
    }
    reading = {
        file.name
        for file in (ROOT / "service").rglob("*.py")
        if re.search(r"os\.environ|getenv", file.read_text())
    }
    assert reading == allowed.keys()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("WGAN_DRIFT_WINDOW", "abc", "WGAN_DRIFT_WINDOW=abc: write"),
        ("WGAN_MAX_IN_FLIGHT", "abc", "WGAN_MAX_IN_FLIGHT=abc: write"),
        ("WGAN_DRAIN_SECONDS", "abc", "WGAN_DRAIN_SECONDS=abc: write"),
        ("WGAN_CHALLENGER_SHARE", "2", "WGAN_CHALLENGER_SHARE"),
        ("WGAN_CHALLENGER_SHARE", "0.5", "WGAN_CHALLENGER_SHARE"),  # of no challenger
        ("WGAN_REGISTRY_POLL_SECONDS", "soon", "WGAN_REGISTRY_POLL_SECONDS"),
        ("WGAN_WORKERS", "0", "WGAN_WORKERS"),
    ],
)
def test_a_setting_of_no_use_is_told_at_once(
    artifact: Path,
    name: str,
    value: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it was started"))
    assert wgan_cli.main(["serve", "--model", str(artifact), "--port", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize("model", ["@champion", "tiny@"])
def test_a_name_that_is_none_is_told_at_once(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it was started"))
    assert wgan_cli.main(["serve", "--model", model]) == 2
    assert "NAME@ALIAS" in capsys.readouterr().err
