"""Serve at 70% of saturation while the champion is exchanged again and again.

    python -m benchmarks.swaps --seconds 600 --every 20 --out benchmarks/results/swaps.json

A request is failed if it is not answered with 200 and a whole body. Memory is the resident size of
the worker: flat means that its median in the last quarter is at most a tenth above that in the
second. The server and the load share this machine, so rates compare only within a run.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load import ask_for
from models import registry
from models.artifact import load_artifact
from tests.artifacts import make_artifact
from training.tracking import track_and_register

CLIENTS = 8
SHARE = 0.7
BODY = json.dumps({"count": 64, "seed": 1, "format": "npz"})
GROWTH = 1.1


class Load:
    """Requests from several clients; each keeps its connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: list[tuple[float, str]] = []
        """Seconds, from when each was due, and the version that answered."""
        self.failures: list[str] = []

    def run(self, seconds: float, rate: float | None = None) -> float:
        """Ask at a rate, or without it as fast as can be; returns the rate that was reached."""
        self.answers.clear()
        took = ask_for(seconds, self.port, CLIENTS, rate, self._ask)
        return len(self.answers) / took

    def _ask(self, connection: http.client.HTTPConnection, due: float) -> None:
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/samples", BODY, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.failures.append(repr(error))
            return
        if answer.status != 200 or not content:
            self.failures.append(f"{answer.status}: {content[:200]!r}")
            return
        version = str(answer.getheader("x-model-version"))
        self.answers.append((time.monotonic() - due, version))


@contextlib.contextmanager
def served(folder: Path, prefix: Sequence[str] = (), **variables: str) -> Iterator[tuple[int, int]]:
    """A service of a registry with two versions: its port, and its worker's process id.

    Args:
        folder: for all files, its log too.
        prefix: a command that runs the service's, such as taskset.
        variables: of the service's environment.
    """
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    for seed in (1, 2):
        made = make_artifact(folder / f"artifact{seed}", seed=seed)
        track_and_register(load_artifact(made), made)
    registry.promote("tiny", "1", "a benchmark")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {
        **os.environ,
        "WGAN_CACHE": str(folder / "cache"),
        "WGAN_REGISTRY_POLL_SECONDS": "0.5",
        **variables,
    }
    command = [*prefix, sys.executable, "-m", "wgan_cli", "serve", "--model", "tiny@champion"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=log, stderr=log
        )
    try:
        while not _ready(port):
            if server.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.2)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        yield port, int(children[0])
    finally:
        server.terminate()
        server.wait(60)


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.suppress(OSError), contextlib.closing(connection):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(seconds: float, every: float, warm_up: float = 10.0) -> dict[str, Any]:
    """Run the benchmark and return its result."""
    with tempfile.TemporaryDirectory(prefix="wgan-swaps-") as name, served(Path(name)) as found:
        port, worker = found
        load = Load(port)
        saturation = load.run(warm_up)
        memory: list[int] = []
        swaps: list[str] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(min(1.0, seconds / 40)):
                memory.append(resident(worker))

        def exchange() -> None:
            while not done.wait(every):
                swaps.append(str(2 - len(swaps) % 2))
                registry.promote("tiny", swaps[-1], "a benchmark")

        helpers = [threading.Thread(target=watch), threading.Thread(target=exchange)]
        for helper in helpers:
            helper.start()
        try:
            rate = load.run(seconds, SHARE * saturation)
        finally:
            done.set()
            for helper in helpers:
                helper.join()
        versions = [version for _, version in load.answers]
        seen = sum(a != b for a, b in itertools.pairwise(versions))
        quarter = len(memory) // 4
        before = float(np.median(memory[quarter : 2 * quarter]))
        after = float(np.median(memory[3 * quarter :]))
        waits = np.array([wait for wait, _ in load.answers])
        return {
            "saturation_per_second": round(saturation, 1),
            "rate_per_second": round(rate, 1),
            "requests": len(waits) + len(load.failures),
            "failures": load.failures[:20],
            "promotions": len(swaps),
            "answered_by": {v: versions.count(v) for v in sorted(set(versions))},
            # Answers of both versions may cross for a moment, so there are at least as many.
            "changes_of_version_seen": seen,
            "memory_mb": [round(before / 2**20, 1), round(after / 2**20, 1)],
            "memory_growth": round(after / before, 4),
            "seconds_median_and_99th": np.quantile(waits, [0.5, 0.99]).round(4).tolist(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two promotions")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    result = measure(options.seconds, options.every)
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    return int(bool(result["failures"]) or result["memory_growth"] > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
