"""MLflow as it is run in earnest: a server on PostgreSQL, with artifacts on a real S3 server."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import yaml

from models import registry, registry_files
from models.artifact import load_artifact
from models.errors import RegistryError
from tests.artifacts import make_artifact
from tests.postgres import needs_postgres, postgres_server
from tests.s3 import KEY, SECRET, s3_server
from tests.servers import free_port
from tests.test_retrain import killed_at_last, mixture, start, steps, values, wait_for_step
from training.tracking import track_and_register

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    needs_postgres,
]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URL of an empty database of a PostgreSQL server of our own."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "server") as url:
        deadline = time.monotonic() + 90
        with s3_client(url) as client:
            while True:
                try:
                    client.create_bucket(Bucket="models")
                    break
                except client.exceptions.ClientError:  # its volumes come up after its port
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(1)
        yield url


def s3_client(url: str) -> contextlib.closing[Any]:
    secrets = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **secrets)
    return contextlib.closing(client)


@contextlib.contextmanager
def mlflow_server(database: str, s3: str, port: int, log: Path, secret: str) -> Iterator[str]:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": s3,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [Path(sys.executable).with_name("mlflow"), "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--backend-store-uri", database]
    command += ["--artifacts-destination", "s3://models/artifacts"]
    with log.open("ab") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no MLflow: {log.read_text()[-3000:]}") from None
                time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):  # it never came up
            os.killpg(server.pid, signal.SIGKILL)  # it and its workers, at once
        server.wait(60)


def test_versions_champions_and_artifacts(
    database: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow_server(database, s3, free_port(), tmp_path / "log", SECRET) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        digests = []
        for seed in range(2):
            folder = make_artifact(tmp_path / f"artifact{seed}", seed=seed)
            model = load_artifact(folder)
            digests.append(model.digest)
            assert track_and_register(model, folder) == f"tiny@{seed + 1}"
            assert track_and_register(model, folder) == f"tiny@{seed + 1}", "none is made twice"
        assert registry.champion("tiny") is None
        registry.promote("tiny", "1", "first")
        registry.promote("tiny", "2", "second")
        assert registry.rollback("tiny", "back") == ("2", "1")
        fetched = load_artifact(registry_files.download("tiny@champion", tmp_path / "fetched"))
        assert fetched.digest == digests[0]
        assert [h["action"] for h in registry.history("tiny")] == ["promote", "promote", "rollback"]
        assert registry.find("tiny", registry.DIGEST_TAG, digests[1]) is not None
        with pytest.raises(RegistryError):
            registry.resolve("tiny@3")
    with s3_client(s3) as client:
        keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="models")["Contents"]]
    assert sum(key.endswith("/artifact/SHA256SUMS") for key in keys) == 2


def test_a_wrong_secret_is_refused(
    database: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_artifact(tmp_path / "artifact", seed=7)
    model = load_artifact(folder)
    with mlflow_server(database, s3, free_port(), tmp_path / "log", "wrong") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(RegistryError, match="the artifact is safe"):
            track_and_register(model, folder)
        assert registry.find("tiny", registry.DIGEST_TAG, model.digest) is None
    assert load_artifact(folder).digest == model.digest


def test_the_server_goes_away_while_a_challenger_trains(
    database: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "data.npy", mixture(0))
    config = tmp_path / "retrain.yaml"
    config.write_text(yaml.safe_dump(values(tmp_path, set=steps(300, seed=91))))
    port = free_port()
    with mlflow_server(database, s3, port, tmp_path / "log", SECRET) as address:
        process = start(tmp_path, config, address)
        wait_for_step(tmp_path / "runs", 50, process)
    with killed_at_last(process):
        out, _ = process.communicate(timeout=900)
    assert process.returncode == 75, out
    assert "the artifact is safe" in out
    (artifact,) = (tmp_path / "runs").glob("corners-*/artifact")
    digest = load_artifact(artifact).digest
    with mlflow_server(database, s3, port, tmp_path / "log", SECRET) as address:
        process = start(tmp_path, config, address)
        with killed_at_last(process):
            out, _ = process.communicate(timeout=900)
        assert process.returncode == 0, out
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        champion = registry.champion("corners")
        assert champion is not None
        assert registry.version("corners", champion)[registry.DIGEST_TAG] == digest
