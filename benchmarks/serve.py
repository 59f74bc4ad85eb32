"""Samples over HTTP beside the bare forward and other servers: `make bench-serve`, some minutes.

One DCGAN generator of 28x28 images, 64 of them a request. Every server is pinned to one core, the
client to another; the baseline is the generator's eager forward in a loop on the servers' core.
All take turns, some seconds each, and each figure is the median over rounds of a ratio within a
round. A figure above 1 says that ours is the faster, or that the whole service is faster than the
bare forward.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.load import ask_for
from benchmarks.swaps import resident
from models.artifact import load_artifact
from models.model import Model
from tests.artifacts import ALL_SHAPES, make_artifact

COUNT = 64
NETWORK = {
    "architecture": "dcgan",
    "width": 64,
    "depth": 2,
    "activation": "relu",
    "normalization": "batch",
    "latent_size": 64,
}
ENGINES = {"ours": "images", "half": "half"}
"""Generators of images: names of this project's servers, and their artifacts."""
SERVED = {
    **ENGINES,
    "fastapi": "images",
    "litserve": "images",
    "small": "vectors",
    "bare": "vectors",
}
OURS = (*ENGINES, "small")
CLIENTS, MANY_CLIENTS = 4, 96
"""Connections at once; many are more than the service lets in."""
SHARE, BEYOND = 0.7, 2.0
"""Shares of the saturated rate: for the tail of waits, and for the answers to too much."""
SERVER_CORE, CLIENT_CORE = (sorted(os.sched_getaffinity(0)) * 2)[:2]
PIN = ["taskset", "-c", str(SERVER_CORE)]
LITSERVE = ["litserve==0.2.19", "pyzmq==27.1.0"]
START_SECONDS = 180.0
SAMPLES = "/v1/samples"
REFUSED = (429, 503)
"""One caller has as many requests under way as it may have; or all together have."""


class Load:
    """Requests of one kind from several clients, each on its own connection."""

    def __init__(self, port: int, body: dict[str, Any], path: str = SAMPLES) -> None:
        self.port, self.body, self.path = port, json.dumps(body), path

    def run(self, seconds: float, rate: float | None = None, clients: int = CLIENTS) -> Answers:
        """Ask at a constant rate, or else each client as soon as it has its answer."""
        answers, lock = Answers(), threading.Lock()

        def ask(connection: http.client.HTTPConnection, due: float) -> None:
            connection.request("POST", self.path, self.body, {"content-type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            with lock:
                answers.add(answer, content, time.monotonic() - due)

        answers.seconds = ask_for(seconds, self.port, clients, rate, ask)
        return answers


class Answers:
    """Answers to one load: waits, statuses and rate."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waits: list[float] = []
        """Seconds from when a request was due until its answer, for answers with 200."""
        self.statuses: Counter[int] = Counter()
        self.without_retry = 0
        """Refusals that do not say when to try again."""

    def add(self, answer: http.client.HTTPResponse, content: bytes, wait: float) -> None:
        self.statuses[answer.status] += 1
        if answer.status == 200:
            self.waits.append(wait)
        elif answer.status not in REFUSED:
            raise RuntimeError(f"{answer.status}: {content[:300]!r}")
        elif not answer.getheader("retry-after"):
            self.without_retry += 1

    @property
    def refused(self) -> int:
        return sum(self.statuses[status] for status in REFUSED)

    @property
    def rate(self) -> float:
        return len(self.waits) / self.seconds


class Server:
    """A server in a process tree of its own, on the servers' core."""

    def __init__(
        self,
        command: list[str],
        port: int,
        log: Path,
        environment: dict[str, str],
        pinned: bool = True,
        asked: tuple[str, dict[str, Any]] = (SAMPLES, {"count": 1, "seed": 0, "format": "json"}),
    ) -> None:
        self.port, self.asked = port, asked
        begun = time.monotonic()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*(PIN if pinned else []), *command],
                env={**os.environ, **environment},
                stdout=out,
                stderr=out,
                start_new_session=True,  # schedulers that group by session treat all alike
            )
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.1)
        self.start_cpu_seconds = self.cpu_seconds()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            path, body = self.asked
            headers = {"content-type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            return connection.getresponse().status == 200
        return False

    def tree(self) -> list[int]:
        """The processes, oldest first."""
        return process_tree(self.process.pid)

    def cpu_seconds(self) -> float:
        """Processor time of all processes since they were started."""
        ticks = 0
        for pid in self.tree():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Resident memory of all processes; a shared page counts once for each of them."""
        return sum(map(resident, self.tree())) / 2**20

    def stop(self) -> None:
        children = self.tree()[1:]
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for pid in children:  # of a server that leaves its workers behind
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def process_tree(root: int) -> list[int]:
    """A process and all below it, oldest first."""
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def forwards(folder: str) -> None:
    """A process that runs generators alone: reads a name and seconds, prints forwards/s."""
    torch.set_num_threads(1)
    models = {name: load_artifact(Path(folder) / artifact) for name, artifact in ENGINES.items()}
    z = torch.from_numpy(models["ours"].latents(1, COUNT))

    def eager() -> None:
        with torch.no_grad():
            models["ours"].generator(z)

    def engine(model: Model) -> None:
        with torch.inference_mode():
            for part in z.split(model.run.engine.chunk):
                model.forward(part)

    runs = {"eager": eager, **{f"{k} engine": partial(engine, m) for k, m in models.items()}}
    for line in sys.stdin:
        name, seconds = line.rsplit(maxsplit=1)
        run = runs[name]
        run()
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < float(seconds):
            run()
            count += 1
        print(count / (time.perf_counter() - begun), flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_artifacts(folder: Path) -> None:
    """A generator of images, also in bf16, and a small one of vectors: untrained, at equal cost."""
    ALL_SHAPES["28x28"] = (1, 28, 28)
    critic = {"architecture": "dcgan", "width": 16, "depth": 2}
    for name, precision in (("images", "fp32"), ("half", "bf16")):
        make_artifact(
            folder / name,
            "28x28",
            generator=NETWORK,
            critic=critic,
            serving={"precision": precision},
        )
    make_artifact(folder / "vectors", "vector")


@contextlib.contextmanager
def servers(folder: Path, said: list[str]) -> Iterator[dict[str, Server]]:
    """Ours and the others, by name; `small` and `bare` serve the small model."""
    make_artifacts(folder)
    wgan = [sys.executable, "-m", "wgan_cli", "serve", "--model"]
    peers = [sys.executable, "-m", "benchmarks.peers"]
    found: dict[str, Server] = {}
    litserve = folder / "litserve"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    got = subprocess.run(
        [*pip, str(litserve), *LITSERVE], check=False, capture_output=True, text=True
    )
    path = os.pathsep.join(filter(None, [str(litserve), os.environ.get("PYTHONPATH")]))
    try:
        for name, artifact in SERVED.items():
            port = free_port()
            if name == "litserve" and got.returncode:
                said.append(f"LitServe was not installed: {got.stderr.strip()[-300:]}")
                continue
            command = [*wgan, str(folder / artifact), "--port", str(port)]
            if name not in OURS:
                peer = "starlette" if name == "bare" else name
                command = [*peers, peer, str(port), str(folder / artifact)]
            environment = {"OMP_NUM_THREADS": "1"}
            if name == "litserve":
                environment["PYTHONPATH"] = path
            found[name] = Server(command, port, folder / f"{name}.log", environment)
            print(f"{name} is up", flush=True)
        yield found
    finally:
        for server in found.values():
            server.stop()


def middle(values: list[float]) -> dict[str, Any]:
    quartiles = statistics.quantiles(values, n=4)
    return {"ratio": statistics.median(values), "spread": [quartiles[0], quartiles[2]]}


def measure(seconds: float, rounds: int) -> dict[str, Any]:
    os.sched_setaffinity(0, {CLIENT_CORE})
    said: list[str] = []
    with tempfile.TemporaryDirectory(prefix="wgan-serve-") as name, servers(Path(name), said) as up:
        alone = subprocess.Popen(
            [*PIN, sys.executable, "-m", "benchmarks.serve", "--forwards", name],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert alone.stdin
        assert alone.stdout
        start = {name: round(s.start_cpu_seconds, 2) for name, s in up.items()}
        rates: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}
        for number in range(rounds):
            for forward in ("eager", *(f"{engine} engine" for engine in ENGINES)):
                print(forward, seconds, file=alone.stdin, flush=True)
                rates.setdefault(forward, []).append(float(alone.stdout.readline()))
            for server in [s for s in (*ENGINES, "fastapi", "litserve") if s in up]:
                for format in ("npz", "png"):
                    body = {"count": COUNT, "seed": number, "format": format}
                    answers = Load(up[server].port, body).run(seconds)
                    rates.setdefault(f"{server} {format}", []).append(answers.rate)
            for server in ("small", "bare"):
                before = up[server].cpu_seconds()
                body = {"count": 1, "seed": number, "format": "npz"}
                answers = Load(up[server].port, body).run(seconds)
                spent = up[server].cpu_seconds() - before
                cpu.setdefault(server, []).append(spent / len(answers.waits))
            print(f"round {number + 1} of {rounds}", flush=True)
        alone.stdin.close()
        alone.wait(30)

        def ratios(a: list[float], b: list[float]) -> dict[str, Any]:
            return middle([x / y for x, y in zip(a, b, strict=True)])

        ours = up["ours"]
        body = {"count": COUNT, "seed": 1, "format": "npz"}
        saturated = statistics.median(rates["ours npz"])
        tail = Load(ours.port, body).run(5 * seconds, SHARE * saturated, 16)
        p50, p99 = np.quantile(tail.waits, [0.5, 0.99])
        beyond = Load(ours.port, body).run(4 * seconds, BEYOND * saturated, MANY_CLIENTS)

        def beside_forwards(server: str) -> dict[str, Any]:
            own = f"{server} engine"
            return {
                "engine": load_artifact(Path(name) / ENGINES[server]).run.engine.model_dump(),
                "over_eager_forward": {
                    key: ratios(rates[f"{server} {key}"], rates["eager"]) for key in ("npz", "png")
                },
                "over_own_forward": {
                    key: ratios(rates[f"{server} {key}"], rates[own]) for key in ("npz", "png")
                },
                "engine_over_eager": ratios(rates[own], rates["eager"]),
            }

        return {
            **beside_forwards("ours"),
            "bf16": beside_forwards("half"),
            **{
                f"over_{peer}": {
                    key: ratios(rates[f"ours {key}"], rates[f"{peer} {key}"])
                    for key in ("npz", "png")
                }
                for peer in ("fastapi", "litserve")
                if peer in up
            },
            "small_sample_cpu_over_bare_starlette": ratios(cpu["small"], cpu["bare"]),
            "tail": {
                "arrivals_of_saturation": SHARE,
                "p99_over_p50": float(p99 / p50),
                "answers": len(tail.waits),
                "refused": tail.refused,
            },
            "beyond_saturation": {
                "arrivals_of_saturation": BEYOND,
                "throughput_kept": beyond.rate / saturated,
                "refused": beyond.refused,
                "without_retry_after": beyond.without_retry,
            },
            "start_cpu_seconds": start,
            "resident_mb": {name: round(s.resident_mb(), 1) for name, s in up.items()},
            "rounds": rounds,
            "skipped": said,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve.json"))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forwards", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.forwards:
        forwards(options.forwards)
        return
    result = {
        "command": "make bench-serve",
        "seconds_a_turn": options.seconds,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "images_a_request": COUNT,
        "load_average": list(os.getloadavg()),
        **measure(options.seconds, options.rounds),
    }
    text = json.dumps(result, indent=2)
    print(text)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
