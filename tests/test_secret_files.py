"""Secrets in files, as MLflow's own client sends them to a server."""

import base64
import http.server
import json
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import registry
from models.errors import MachineError, RegistryError
from models.secret_files import SECRETS, read_secret_files
from tests.test_machine import limited


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """What a registry is sent as authorization, request by request."""
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/version":  # asked for once, before anything else
                seen.append(self.headers["Authorization"])
            body = json.dumps({"registered_model": {"name": "digits"}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    for name in SECRETS:  # both are put back after the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield seen
    server.shutdown()
    server.server_close()


def test_a_token_is_read_again_when_its_file_changes(
    asked: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN_FILE", str(tmp_path / "token"))
    for token in ("first", "second"):
        (tmp_path / "token").write_text(f"{token}\n")
        registry.champion("digits")
    assert asked == ["Bearer first", "Bearer second"]


def test_a_name_and_a_password(
    asked: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (("USERNAME", "ann"), ("PASSWORD", "a secret")):
        (tmp_path / key).write_text(value)
        monkeypatch.setenv(f"MLFLOW_TRACKING_{key}_FILE", str(tmp_path / key))
    registry.champion("digits")
    assert asked == ["Basic " + base64.b64encode(b"ann:a secret").decode()]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file or directory$"),
        (b"\n", "is empty$"),
        (b"\xff", "cannot be read: .*0xff"),
    ],
)
def test_a_file_that_is_of_no_use_is_named(
    asked: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    says: str,
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN_FILE", str(file))
    with pytest.raises(RegistryError, match=f"MLFLOW_TRACKING_TOKEN_FILE={file}: .*{says}"):
        registry.champion("digits")
    assert asked == []


def test_too_few_open_files_are_an_error_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the registry's, which `RegistryError` alone would say."""
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN_FILE", str(tmp_path / "token"))
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with (
        limited(resource.RLIMIT_NOFILE, lowest_free),
        pytest.raises(MachineError, match="Too many"),
    ):
        read_secret_files()
