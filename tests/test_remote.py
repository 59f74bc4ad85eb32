"""Servers of data and registries that are away, busy, strange or strict, over HTTP, TLS and S3."""

import contextlib
import errno
import http.server
import os
import re
import socket
import socketserver
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import numpy as np
import psycopg2
import pytest
import sqlalchemy
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from sqlalchemy.exc import InterfaceError, OperationalError

import wgan_cli
from models import bulk, registry, remote, tracking_server
from models.artifact import load_artifact
from models.config import DataConfig
from models.errors import (
    AbsentError,
    AwayError,
    DataError,
    ForbiddenError,
    MachineError,
    RegistryError,
    UnreachableError,
)
from models.registry_errors import failure
from tests.artifacts import make_artifact
from tests.s3 import KEY, SECRET, disconnect, s3_server
from tests.servers import WGAN
from tests.test_tls import write_certificate
from training.data.dataset import load_data
from training.run import REGISTERED, _register_once

ITEMS = np.random.default_rng(0).standard_normal((150, 2)).astype(np.float32)


class Door(socketserver.ThreadingTCPServer):
    """Lets connections through to a server, but answers the next ``refusals`` itself."""

    daemon_threads = True
    refusals = 0
    status = "503 Service Unavailable"

    def __init__(self, port: int) -> None:
        self.upstream = port
        super().__init__(("127.0.0.1", 0), _Guard)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Guard(socketserver.BaseRequestHandler):
    server: Door

    def handle(self) -> None:
        if self.server.refusals > 0:
            self.server.refusals -= 1
            self.request.recv(2**16)
            head = f"HTTP/1.1 {self.server.status}\r\nConnection: close\r\n"
            self.request.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())
            return
        with socket.create_connection(("127.0.0.1", self.server.upstream)) as far:
            back = threading.Thread(target=_copy, args=(far, self.request), daemon=True)
            back.start()
            _copy(self.request, far)
            back.join()


def _copy(source: socket.socket, end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            end.sendall(data)
        end.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def files(folder: Path) -> http.server.ThreadingHTTPServer:
    def handler(*arguments: object) -> _Files:
        return _Files(*arguments, directory=str(folder))  # type: ignore[arg-type]

    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    np.save(folder / "set.npy", ITEMS)
    return folder


@pytest.fixture
def door(folder: Path) -> Iterator[Door]:
    server = files(folder)
    door = Door(server.server_address[1])
    with serving(server), serving(door):
        yield door


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[str]:
    import s3fs

    with s3_server(tmp_path_factory.mktemp("s3") / "server") as url:
        fs = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=url)
        fs.mkdir("bucket")
        fs.put(str(folder / "set.npy"), "bucket/set.npy")
        yield url


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(remote, "WAITS", (0.01,) * 4)
    disconnect()
    yield
    disconnect()


def load(url: str) -> np.ndarray:
    return load_data(DataConfig(source=url)).items


@pytest.mark.parametrize("refusals", [2, 3])
def test_a_server_that_is_busy_for_a_moment_is_asked_again(
    door: Door, refusals: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of HTTP's two questions, HEAD and GET, either may meet it."""
    door.refusals = refusals
    np.testing.assert_array_equal(load(f"{door.url}/set.npy"), ITEMS)
    assert "503 Service Unavailable; trying again" in caplog.text


def test_s3_that_is_busy_for_a_moment_is_asked_again(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused_at_first(door: Door, refusals: int) -> None:
        disconnect()
        door.refusals = refusals

    door = Door(int(s3.rpartition(":")[2]))
    with serving(door):
        monkeypatch.setenv("AWS_ENDPOINT_URL", door.url)
        refused_at_first(door, 2)
        np.testing.assert_array_equal(load("s3://bucket/set.npy"), ITEMS)
        assert door.refusals == 0
        refused_at_first(door, 2)
        assert bulk.Folder("s3://bucket").names() == {"set.npy"}
        assert door.refusals == 0
        refused_at_first(door, 1000)
        with pytest.raises(UnreachableError, match="503 Service Unavailable"):
            load("s3://bucket/set.npy")
        with pytest.raises(UnreachableError, match="503 Service Unavailable"):
            bulk.Folder("s3://bucket").names()


@pytest.mark.parametrize(
    ("status", "passes", "says"),
    [
        ("503 Service Unavailable", True, "answered 503 Service Unavailable"),
        ("429 Too Many Requests", True, "answered 429"),
        ("401 Unauthorized", False, "access denied (401 Unauthorized); check the permissions"),
        ("403 Forbidden", False, "access denied (403 Forbidden)"),
        ("404 Not Found", False, "no such file"),
        ("400 Bad Request", False, "answered 400 Bad Request"),
    ],
)
def test_what_a_server_answers_is_told(
    door: Door,
    status: str,
    passes: bool,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    door.status, door.refusals = status, 1000
    url = f"{door.url}/set.npy"
    with pytest.raises(DataError) as caught:
        load(url)
    assert isinstance(caught.value, UnreachableError) is passes
    assert says in str(caught.value)
    assert url in str(caught.value)
    asked = 1000 - door.refusals
    assert asked == 2 * (1 + len(remote.WAITS) * passes), "what is wrong is not asked again"
    code = wgan_cli.main(["data", "inspect", url])
    assert code == (75 if passes else 2)
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for url in ("http://127.0.0.1:9/set.npy", "s3://bucket/set.npy"):
        with pytest.raises(UnreachableError, match=r"cannot be reached: .*127\.0\.0\.1:9"):
            load(url)
    with pytest.raises(DataError, match="no such host") as caught:
        load("http://host.invalid/set.npy")
    assert not isinstance(caught.value, UnreachableError)


def test_a_certificate_that_is_not_trusted_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate(tmp_path / "tls", "ours")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = files(folder)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = f"https://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with serving(server):
        for source in (f"{url}/set.npy", "s3://bucket/set.npy"):
            with pytest.raises(DataError, match="certificate is not trusted") as caught:
                load(source)
            assert not isinstance(caught.value, UnreachableError)
        # Of a process: aiohttp reads the variable when it is imported.
        done = subprocess.run(
            [WGAN, "data", "inspect", f"{url}/set.npy"],
            env={**os.environ, "SSL_CERT_FILE": str(certificate)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_a_server_without_tls_is_told(door: Door) -> None:
    with pytest.raises(DataError, match="no TLS connection") as caught:
        load(door.url.replace("http", "https") + "/set.npy")
    assert not isinstance(caught.value, UnreachableError)


def test_files_of_this_machine_are_not_waited_for(tmp_path: Path) -> None:
    asked = []

    def step() -> None:
        asked.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        remote.reached("set.npy", step)
    assert len(asked) == 1


# ---- the registry -------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type[RegistryError]]:
    """Ask a registry, and return the class of the error that this ends with."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking_server, "DATABASE_TRIES", 1)

    def ask(address: str) -> type[RegistryError]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(RegistryError) as caught:
            registry.champion("digits")
        return type(caught.value)

    return ask


@pytest.mark.parametrize(
    ("status", "passes"),
    [(400, False), (404, False), (408, True), (425, True), (429, True), (500, True), (503, True)],
)
def test_a_registry_that_is_busy_is_told_from_an_answer(
    status: int, passes: bool, asked: Callable[[str], type[RegistryError]]
) -> None:
    class Answers(_Files):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"Connection refused, says a page")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    with serving(server):
        found = asked(f"http://127.0.0.1:{server.server_address[1]}")
    assert found is (AwayError if passes else RegistryError)


def test_a_registry_that_is_not_trusted_is_no_registry_that_is_away(
    folder: Path, tmp_path: Path, asked: Callable[[str], type[RegistryError]]
) -> None:
    certificate, key = write_certificate(tmp_path / "tls", "ours")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    plain, server = files(folder), files(folder)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server), serving(plain):
        for one in (server, plain):
            assert asked(f"https://127.0.0.1:{one.server_address[1]}") is RegistryError


@pytest.mark.parametrize(
    ("address", "passes"),
    [
        ("http://127.0.0.1:9", True),
        ("http://host.invalid", True),
        ("http://127.0.0.1:port", False),
        ("postgresql+psycopg2://127.0.0.1:9/mlflow", True),
        ("sqlite:///{folder}/text.db", False),
        ("sqlite:///{folder}/text.db/mlflow.db", False),
        ("file://{folder}/mlruns", False),
    ],
)
def test_where_nobody_answers_now_is_told_from_where_nobody_ever_will(
    address: str, passes: bool, tmp_path: Path, asked: Callable[[str], type[RegistryError]]
) -> None:
    (tmp_path / "text.db").write_text("no database" * 100)
    found = asked(address.format(folder=tmp_path))
    assert found is (AwayError if passes else RegistryError)


def test_a_lock_of_sqlite_passes_and_a_missing_table_does_not(tmp_path: Path) -> None:
    database = tmp_path / "some.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{database}", connect_args={"timeout": 0})
    found = []
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("CREATE TABLE here (x)")
        for lock in ("BEGIN EXCLUSIVE", "ROLLBACK"):
            other.execute(lock)
            with pytest.raises(OperationalError) as caught, engine.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT * FROM absent"))
            said = MlflowException(str(caught.value), error_code=TEMPORARILY_UNAVAILABLE)
            said.__cause__ = caught.value  # as MLflow's sessions raise it
            found.append(type(failure(str(said), said)))
    engine.dispose()
    assert found == [AwayError, RegistryError]


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ('connection to server at "db", port 5432 failed: Connection refused', True),
        ("server closed the connection unexpectedly", True),
        ("FATAL:  the database system is starting up", True),
        ('FATAL:  password authentication failed for user "mlflow"', False),
        ('FATAL:  database "mlflow" does not exist', False),
    ],
)
def test_what_postgresql_says_of_a_connection(said: str, passes: bool) -> None:
    error = OperationalError("SELECT 1", {}, psycopg2.OperationalError(said))
    assert type(failure(said, error)) is (AwayError if passes else RegistryError)


def answered(code: str, status: int) -> ClientError:
    told = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(told, "GetObject")


def of_system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


OF_STORAGE = [
    (EndpointConnectionError(endpoint_url="http://s3"), True),
    (ReadTimeoutError(endpoint_url="http://s3"), True),
    (answered("SlowDown", 503), True),
    (answered("NoSuchBucket", 404), False),
    (NoCredentialsError(), False),
    (of_system(errno.ECONNREFUSED), True),
    (of_system(errno.ECONNRESET), True),
    (of_system(errno.ECONNABORTED), True),
    (of_system(errno.ETIMEDOUT), True),
    (of_system(errno.EACCES), False),
    (of_system(errno.EPERM), False),
    (of_system(errno.ENOTDIR), False),
    (of_system(errno.ENOENT), False),
]


@pytest.mark.parametrize(("error", "passes"), OF_STORAGE, ids=repr)
def test_what_storage_says(error: Exception, passes: bool) -> None:
    of_download = MlflowException(f"Failures occurred:\n{error}")  # MLflow keeps the text alone
    for shown in (error, of_download):
        assert type(failure(str(shown), shown)) is (AwayError if passes else RegistryError)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (MlflowException("x", error_code=TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("x", error_code=REQUEST_LIMIT_EXCEEDED), True),
        (MlflowException("out-of-date database schema; run 'mlflow db upgrade'"), False),
        (ModuleNotFoundError("No module named 'pymysql'"), False),
    ],
    ids=repr,
)
def test_what_mlflow_says(error: Exception, passes: bool) -> None:
    assert type(failure(str(error), error)) is (AwayError if passes else RegistryError)


def test_a_run_counts_as_registered_while_the_registry_is_away_and_not_at_a_wrong_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact"))
    (tmp_path / REGISTERED).write_text('{"model": "tiny@1"}')
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert _register_once(model, tmp_path, print) == "tiny@1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    with pytest.raises(RegistryError, match="unsupported URI"):
        _register_once(model, tmp_path, print)


class _Answered(Exception):
    """As requests raise it: the answer is at hand."""

    def __init__(self, status: object) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


def test_each_status_of_http_is_a_refusal_or_a_fault_that_may_pass() -> None:
    """Those that may pass say nothing of the request: see RFC 9110, 15, and RFC 6585, 4."""
    passing = {408, 425, 429, 500, 502, 503, 504}
    says = dict.fromkeys((401, 403, 407), "access denied") | dict.fromkeys((404, 410), "no such")
    for status in range(400, 600):
        found = remote.fault("http://a/b", _Answered(status))
        assert isinstance(found, DataError), status
        assert isinstance(found, UnreachableError) is (status in passing), status
        assert str(found).startswith(f"http://a/b: {says.get(status, 'the server answered')}")
        assert str(status) in str(found)
    for nothing in (399, 304, 200, None, "404"):
        assert remote.fault("http://a/b", _Answered(nothing)) is None


def test_a_file_that_may_not_be_read_says_more_than_its_status() -> None:
    error = PermissionError(errno.EACCES, "Forbidden")
    error.__cause__ = answered("AccessDenied", 403)
    assert remote.http_status(error) == 403
    assert remote.fault("s3://a/b", error) is None


def test_the_cause_of_an_error_says_if_it_may_pass() -> None:
    def because(cause: BaseException) -> DataError | None:
        error = FileNotFoundError("http://a/b")  # as fsspec has it, whatever happened
        error.__cause__ = cause
        return remote.fault("http://a/b", error)

    no_host = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    cut, strange = ssl.SSLEOFError(8, "EOF occurred"), ssl.SSLError(1, "[SSL: ...]")
    cut.reason, strange.reason = "UNEXPECTED_EOF", "WRONG_VERSION_NUMBER"  # as OpenSSL's have it
    for cause, passes, says in (
        (ConnectionResetError(errno.ECONNRESET, "reset\nby peer"), True, "reset by peer"),
        (TimeoutError(), True, "cannot be reached: TimeoutError"),
        (aiohttp.ClientPayloadError("cut off"), True, "cannot be reached: cut off"),
        (cut, True, "cannot be reached"),
        (strange, False, r"no TLS connection \(WRONG_VERSION_NUMBER\)"),
        (no_host, False, r"no such host \(Name or service not known\)"),
    ):
        found = because(cause)
        assert isinstance(found, DataError), cause
        assert isinstance(found, UnreachableError) is passes, cause
        assert re.search(says, str(found)), found
    for cause in (ValueError("no image"), socket.gaierror(socket.EAI_AGAIN, "try again")):
        assert because(cause) is None
    busy = aiohttp.ClientConnectionError("no connection")  # as aiohttp has it of a name server
    busy.__cause__ = socket.gaierror(socket.EAI_AGAIN, "try again")
    assert isinstance(because(busy), UnreachableError)


def test_what_does_not_pass_is_asked_once_and_the_rest_once_more_than_there_are_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited = list[float]()
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    monkeypatch.setattr(remote, "WAITS", (1.0, 2.0))
    for status, waits in ((404, []), (503, [1.0, 2.0])):
        error, asked = _Answered(status), list[int]()

        def step(error: Exception = error, asked: list[int] = asked) -> None:
            asked.append(1)
            raise error

        with pytest.raises(DataError) as caught:
            remote.reached("http://a/b", step)
        assert caught.value.__cause__ is error
        assert waited == waits
        assert len(asked) == 1 + len(waits)
    assert "trying again in 2 s" in caplog.text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AbsentError("x"), AbsentError),
        (of_system(errno.ENOSPC), MachineError),
        (MlflowException("[Errno 28] No space left on device"), MachineError),
        (MlflowException("[Errno 2] No such file"), RegistryError),
        (MlflowException("unsupported URI 'x'", INVALID_PARAMETER_VALUE), RegistryError),
        (MlflowException("no such alias", INVALID_PARAMETER_VALUE), AbsentError),
        (MlflowException("no such run", RESOURCE_DOES_NOT_EXIST), AbsentError),
        (MlflowException("not for you", PERMISSION_DENIED), ForbiddenError),
        (answered("AccessDenied", 401), ForbiddenError),
        (answered("AccessDenied", 403), ForbiddenError),
        (answered("PaymentRequired", 402), RegistryError),
        (answered("NoSuchKey", 404), RegistryError),
        (MlflowException("the request failed with error code 503 != 200"), AwayError),
        (MlflowException("the request failed with error code 501 != 200"), RegistryError),
        (MlflowException("503 Server Error: busy for url"), AwayError),
        (MlflowException("400 Client Error: Connection refused, says a page"), RegistryError),
        (MlflowException("Max retries exceeded (Connection refused)"), AwayError),
        (MlflowException("Max retries exceeded (certificate verify failed)"), RegistryError),
        (MlflowException("certificate verify failed"), RegistryError),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), AwayError),
        (InterfaceError("", {}, Exception("gone"), connection_invalidated=True), AwayError),
        (InterfaceError("", {}, Exception("gone")), RegistryError),
        (
            OperationalError("", {}, Exception("permission denied"), connection_invalidated=True),
            RegistryError,
        ),
    ],
    ids=repr,
)
def test_an_error_of_a_registry_has_a_kind(error: Exception, kind: type[RegistryError]) -> None:
    """Of the error itself, or of its text where no number is left."""
    message = "it failed" if isinstance(error, OSError) else str(error)
    assert type(failure(message, error)) is kind
