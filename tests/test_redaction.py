"""Secrets, planted wherever a user may give one, are in nothing that anybody reads."""

import json
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import httpx
import numpy as np
import pytest
import yaml

import wgan_cli
from models import registry
from models.errors import DataError, RegistryError, UserError
from models.redaction import holds_credentials, redact_logs, redacted
from service.client import Client, UnreachableError
from service.settings import Settings
from tests.registries import Registry, until
from tests.servers import WGAN, free_port, running
from tests.test_retrain import mixture, values
from tests.test_signing import write_pair
from training.data.sources.files import locate

PLANTED = "canary"
"""A part of every secret that is planted here."""
ENVIRONMENT = {
    "MLFLOW_TRACKING_TOKEN": "canary-token",
    "AWS_ACCESS_KEY_ID": "canary-id",
    "AWS_SECRET_ACCESS_KEY": "canary-key",
    "AWS_SESSION_TOKEN": "canary-session",
    "WGAN_API_KEYS": "canary-api",
    "PGPASSWORD": "canary-pg",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20canary-otel",
}
LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "100"}
NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD"):  # put back after the test: an address may set them
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    for name, value in {**ENVIRONMENT, **LIMITS}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def logs_redacted() -> Iterator[None]:
    make, show = logging.getLogRecordFactory(), warnings.formatwarning
    redact_logs()
    yield
    logging.setLogRecordFactory(make)
    warnings.formatwarning = show


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach http://ann:canary@mlflow:5000/api",
        "https://canary@github.com/a.zip",
        "postgresql+psycopg2://mlflow:canary%21@db/mlflow is down",
        "'htp://ann:canary:1@host' is unsupported",
        "https://b/x.zip?X-Amz-Date=1&X-Amz-Signature=canary&X-Amz-Credential=canary",
        "https://b/x?AWSAccessKeyId=canary&Signature=canary%3D&Expires=1",
        "https://b/x?sv=1&sig=canary",
        "connection to host=db password=canary dbname=x failed",
        "AccountName=a;AccountKey=canary==;EndpointSuffix=b",
        "sent {'Authorization': 'Basic canarycanary'}",
        "sent [(b'Authorization', b'Basic canarycanary')]",
        'took {"user": "a", "password": "canary two"}',
        "took {'x-api-key': 'canary'}",
        "the key canary-key is no key",
        "name=canary-session",
    ],
)
def test_a_secret_is_hidden(text: str) -> None:
    for error in (UserError(text), DataError(text), RegistryError(text)):
        assert PLANTED not in str(error)
        assert "***" in str(error)
    assert PLANTED not in redacted(text)
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "no such file: runs/a@b:c",
        "http://127.0.0.1:5000, digits@champion",
        "postgresql://mlflow@db/mlflow",
        "abfs://container@account.dfs.core.windows.net/x",
        "MLFLOW_TRACKING_PASSWORD_FILE=/run/secrets/mlflow: No such file",
        "send a key: Authorization: Bearer KEY",
        "training.steps=3 data.csv.delimiter=;",
        "there are: 'token': a column of text",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("canary/next#part", "invalid port 'canary', path '/next#part'"),
        ("canary%40next", "user ann, password canary@next"),
        ("canary@next", "no such host: next"),
    ],
)
def test_what_a_library_makes_of_a_password_is_hidden(
    password: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with a sign that ends a host is cut there; messages show the parts."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{password}@host")
    shown = redacted(says)
    assert PLANTED not in shown
    assert "next" not in shown


@pytest.mark.parametrize("written", [str, quote, quote_plus, json.dumps, repr])
def test_a_secret_of_the_environment_is_hidden_however_it_is_written(
    written: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the end of a line that a mounted file gave it."""
    secret = 'canary/é "one"'
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{secret}\n")
    shown = redacted(f"no user has {written(secret)}")
    assert PLANTED not in shown
    assert re.fullmatch(r"""no user has (["']?)\*\*\*\1""", shown), shown


def test_of_two_secrets_that_begin_alike_the_longer_is_hidden_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, secret in enumerate(("canary", "canary/word", "canary/w")):
        monkeypatch.setenv(f"N{number}_PASSWORD", secret)
    assert redacted("with canary/word, canary/w and canary") == "with ***, *** and ***"


@pytest.mark.parametrize("value", ["1", "yes", "true", "False", "none"])
def test_a_flag_is_no_secret(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_EMPTY_PASSWORD", value)
    assert redacted(f"write {value}, or nothing") == f"write {value}, or nothing"


def test_a_long_text_is_no_long_work() -> None:
    """The patterns must not take time that grows with the square of what a client sends."""
    for text in ("x" * 10**6, "://" * 10**5, "a://b:" * 10**5, "token " * 10**5, "token':" * 10**5):
        assert redacted(text + "=") == text + "="


def test_logs_and_warnings(logs_redacted: None, capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    logger = logging.getLogger("somebody.elses")
    logger.addHandler(handler)
    try:
        raise OSError("http://ann:canary@host")
    except OSError:
        logger.exception("%s failed: %d", "http://ann:canary@host", 3)
    try:
        logger.warning("http://ann:canary@plain")
    finally:
        logger.removeHandler(handler)
    print(warnings.formatwarning(UserWarning("http://ann:canary@host"), UserWarning, "a.py", 1))
    out, err = capfd.readouterr()
    assert "http://ann:***@host failed: 3" in err
    assert "\nhttp://ann:***@plain\n" in err
    assert "OSError: http://ann:***@host" in err
    assert "http://ann:***@host" in out
    assert PLANTED not in out + err


def test_the_client_names_its_address_without_the_password() -> None:
    with (
        Client(f"http://ann:canary@{NOWHERE}/wgan") as client,
        pytest.raises(UnreachableError, match=f"^http://{NOWHERE}/wgan: ") as raised,
    ):
        client.samples(1)
    assert PLANTED not in str(raised.value)


@pytest.mark.parametrize(
    "source",
    [
        "s3://key:canary@bucket/set",
        "https://canary@host/set.zip",
        "https://host/set.zip?X-Amz-Signature=canary",
        "https://host/set.zip?sv=2024&sig=canary",
    ],
)
def test_a_source_with_a_secret_is_not_taken_into_a_record(source: str) -> None:
    assert holds_credentials(source)
    with pytest.raises(DataError, match="would be written into the run") as raised:
        locate(source)
    assert PLANTED not in str(raised.value)


def test_a_setting_is_hidden_before_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"htp://ann:{'canary' * 20}@host")
    with pytest.raises(UserError, match=r"ENDPOINT=htp://ann:\*\*\*@host: write a URL") as raised:
        Settings.read()
    assert PLANTED not in str(raised.value)


def commands(folder: Path, key: Path) -> list[list[str]]:
    """Commands that ask the registry."""
    return [
        ["models"],
        ["models", "--json"],
        ["sample", "corners@champion", "--out", str(folder / "s.npz")],
        ["sign", "corners@1", "--key", str(key)],
        ["verify", "corners@1"],
        ["promote", "corners@1"],
        ["rollback", "corners"],
        ["evaluate", "corners@1"],
        ["diagnose", "corners@1"],
        ["retrain", "--config", str(folder / "retrain.yaml")],
        ["serve", "--model", "corners@champion", "--host", "203.0.113.1"],
    ]


def write_inputs(folder: Path) -> None:
    np.save(folder / "data.npy", mixture(0))
    settings = values(folder, pushgateway=f"http://ann:canary-push@{NOWHERE}")
    (folder / "retrain.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("keys"), "ours")


@pytest.mark.parametrize(
    "uri",
    [
        f"http://ann:canary-uri@{NOWHERE}",
        f"http://ann:canary/uri@{NOWHERE}",
        f"http://canary-uri@{NOWHERE}",
        "http://ann:canary-uri@[::1",
        f"htp://ann:canary-uri@{NOWHERE}",
        f"postgresql://ann:canary-uri@{NOWHERE}/x",
        "mysql+pymysql://ann:canary-uri@localhost/x",
    ],
)
def test_no_command_shows_the_address_of_a_registry_that_is_not_there(
    uri: str,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    write_inputs(tmp_path)
    is_address = "canary/uri" not in uri  # a slash in a password leaves no port that is a number
    may_pass = uri.startswith("http://") and NOWHERE in uri and is_address
    for command in commands(tmp_path, key)[:-2]:
        assert wgan_cli.main(command) == (75 if may_pass else 2), command
        out, err = capfd.readouterr()
        assert PLANTED not in out + err, command
        assert "Traceback" not in err
    with pytest.raises(RegistryError) as raised:
        registry.versions()
    trace = "".join(traceback.format_exception(raised.value))
    assert PLANTED not in trace


def test_no_secret_in_what_is_printed_logged_answered_or_stored(
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With a real MLflow server, and with the same server down."""
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    asked = Registry(tmp_path)
    seen: list[str] = []

    def run(*command: str) -> int:
        # Anew each time, as a process of its own would find it.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:canary-uri@127.0.0.1:{asked.door}")
        code = wgan_cli.main(list(command))
        out, err = capfd.readouterr()
        seen.append(f"$ {' '.join(command)}\n{out}{err}")
        return code

    port = free_port()
    environment = {
        "MLFLOW_TRACKING_URI": f"http://ann:canary-uri@127.0.0.1:{asked.door}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://ann:canary-otlp@{NOWHERE}",
        "WGAN_REGISTRY_POLL_SECONDS": "0.2",
        "WGAN_CACHE": str(tmp_path / "cache"),
    }
    log = tmp_path / "service-log"
    with asked.running():
        assert run("retrain", "--config", "retrain.yaml") == 0, seen
        for command in commands(tmp_path, key)[:-1]:
            code = run(*command)
            assert code == 0 or command[0] == "rollback", seen[-1]
        served: list[object] = [WGAN, "serve", "--model", "corners@champion", "--port", port]
        with (
            running(served, port, log, **environment),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        ):
            until(lambda: client.get("/readyz").status_code == 200, "ready", log)
            asked.shut()
            until(lambda: "is unreachable" in log.read_text(), "unreachable", log)
            for path in ("/", "/metrics", "/v1/models", "/v1/model", "/livez", "/none?sig=canary"):
                answer = client.get(path)
                seen.append(f"{answer.text}\n{dict(answer.headers)}")
            for body in ({"count": 2}, {"count": -1}, {"class": "x"}):
                seen.append(client.post("/v1/samples", json=body).text)
        for command in commands(tmp_path, key):
            run(*command)
        asked.open()
    for text in seen:
        assert PLANTED not in text
    inputs = {tmp_path / "retrain.yaml"}
    for file in set(tmp_path.rglob("*")) - inputs:
        if file.is_file():
            assert PLANTED.encode() not in file.read_bytes(), file
    run_json = json.loads(next((tmp_path / "runs").rglob("run.json")).read_text())
    assert run_json["config"]["name"] == "corners"
