"""A real PostgreSQL server for tests."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import free_port

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
needs_postgres = pytest.mark.skipif(
    not BINARIES, reason="PostgreSQL is not installed: nothing was verified"
)


@contextlib.contextmanager
def postgres_server(password: str | None = None) -> Iterator[str]:
    """Run a server; yields the URL of an empty database, without the password if there is one."""
    folder = Path(tempfile.mkdtemp(prefix="wgan-postgres-"))
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    (folder / "password").write_text(f"{password}\n")
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    port = free_port()

    def run(*command: object) -> None:
        words = [str(word) for word in command]
        subprocess.run(
            [BINARIES[-1] / words[0], *words[1:]],
            check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip

    how = ["-A", "scram-sha-256", "--pwfile", folder / "password"] if password else ["-A", "trust"]
    run("initdb", "-D", folder / "data", "-U", "mlflow", "--no-sync", *how)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run("pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
    try:
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(folder)
