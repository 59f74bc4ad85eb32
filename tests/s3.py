"""A real S3 server for tests: SeaweedFS, which refuses a wrong secret."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

WEED = Path(sys.executable).with_name("weed")
KEY, SECRET = "tester", "a secret of the tests"


def _free_ports(count: int) -> list[int]:
    """Ports that are free, with the port 10,000 above each, where SeaweedFS speaks gRPC."""
    found: list[int] = []
    for port in range(21_000 + (time.time_ns() // 1000) % 5000, 32_000):
        try:
            for p in (port, port + 10_000):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", p))
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def disconnect() -> None:
    """Close the connections that fsspec keeps, to S3 and HTTP, and forget what it knows.

    The garbage collector would wait a tenth of a second for each, and then leave it open.
    """
    import s3fs
    from fsspec.asyn import sync
    from fsspec.implementations.http import HTTPFileSystem

    for s3 in s3fs.S3FileSystem._cache.values():
        if s3._s3 is not None:
            sync(s3.loop, s3._s3.close)
    for fs in HTTPFileSystem._cache.values():
        if fs._session is not None:
            sync(fs.loop, fs._session.close)
    s3fs.S3FileSystem.clear_instance_cache()
    HTTPFileSystem.clear_instance_cache()


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run a server that keeps its objects below ``folder``; yields its URL."""
    folder.mkdir()
    identity = {
        "name": KEY,
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = _free_ports(4)
    command = [WEED, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command += [f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", "-volume.max=20"]
    command += ["-master.volumeSizeLimitMB=16"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(s3, server, folder / "log")
        yield f"http://127.0.0.1:{s3}"
    finally:
        disconnect()
        server.kill()  # nothing of it is kept, and an orderly end takes half a minute
        server.wait(30)


def _wait(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"no S3 server: {log.read_text()[-2000:]}")
