"""The OpenAPI description against the server: schemathesis makes requests up from it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks import KEYS, SCOPES, bearer, line
from tests.servers import Server

ST = Path(sys.executable).with_name("st")
# Not `positive_data_acceptance`: a schema cannot say which shape or class the model at hand has,
# nor that a picture has fewer samples than an archive.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)


@pytest.fixture(
    scope="module", params=["open", "keys", pytest.param("rows", marks=pytest.mark.slow)]
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    if request.param == "open":
        yield request.getfixturevalue("vector")
        return
    folder = tmp_path_factory.mktemp(request.param)
    environment = {"WGAN_DRIFT_WINDOW": "50"}
    if request.param == "keys":
        keys = folder / "keys"
        keys.write_text("".join(line(n, KEYS[n], SCOPES[n]) for n in KEYS))
        environment["WGAN_API_KEYS_FILE"] = str(keys)
    kind = "rows" if request.param == "rows" else "vector"
    server = Server(kind, folder, **environment)
    with server.running():
        yield server


def explore(server: Server, phases: str, examples: int, folder: Path) -> int:
    """Let schemathesis try the API; the number of requests it made up."""
    command = [
        ST, "run", f"http://127.0.0.1:{server.port}/docs.json", "--max-examples", examples,
        "--checks", ",".join(CHECKS), "--phases", phases, "--seed", 1,
        "--request-timeout", 120, "--continue-on-failure",
        "--suppress-health-check", "all",
    ]  # fmt: skip
    if "WGAN_API_KEYS_FILE" in server.environment:
        command += ["--header", f"Authorization: {bearer('all')['authorization']}"]
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"([\d,]+) generated", done.stdout)
    assert found, done.stdout
    print(done.stdout)
    return int(found[1].replace(",", ""))


def test_answers_are_as_described(server: Server, tmp_path: Path) -> None:
    assert explore(server, "examples,fuzzing", 25, tmp_path) >= 100


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands_of_answers_are_as_described(server: Server, tmp_path: Path) -> None:
    assert explore(server, "examples,coverage,fuzzing", 900, tmp_path) >= 5000
