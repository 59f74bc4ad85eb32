"""Serve honest clients at 70% of saturation while attackers do what they can.

    python -m benchmarks.anger --minutes 20

Two services take turns, each for so many minutes: one with keys, where the attackers
(`tests/attackers.py`) have none, and an open one, where they are two more peers. Meanwhile the
operator exchanges the champion every 20 seconds. The service has one core and 1,024 file
descriptors; all clients share another core.

Honest clients keep to a rate: small samples and scores in turn, every hundredth request a stream,
every tenth over a new connection. A request is lost if it is not answered with 200 and the right
bytes; nobody tries again. Probes come once a second, each over a new connection, and fail after a
second, as a kubelet's.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.load import ask_for
from benchmarks.markdown import put_between, table
from benchmarks.serve import CLIENT_CORE, PIN, process_tree
from benchmarks.swaps import GROWTH, SHARE, resident, served
from models import registry

RESULTS = Path("benchmarks/results/anger.json")
PAGE = Path("docs/operating.md")
BEGIN, END = "<!-- made by `python -m benchmarks.anger` -->", "<!-- end of anger -->"
CLIENTS = 16
DESCRIPTORS = 1024
"""The usual limit of a process."""
SWAP_SECONDS = 20.0
PROBES = ("/livez", "/readyz")
PROBE_SECONDS = 1.0
SLOWER, SLOWER_AFTERWARDS, MEMORY_MB = 5.0, 1.5, 1024
"""Limits: of the 99th percentile over its quiet value, of the median afterwards over its own, and
of the worker's resident memory."""
QUIET = 4.0
"""Length of the quiet phases before and afterwards, over that of a warm-up."""
SERVICES = {"keys": "with keys", "open": "without keys"}
KEY = "an-honest-key"
SMALL = json.dumps({"count": 64, "seed": 1, "format": "npz"})
STREAM = json.dumps({"count": 20_000, "seed": 1, "format": "npz"})
ITEMS = json.dumps({"samples": np.arange(16 * 64).reshape(16, 8, 8).__mod__(256).tolist()})
STREAM_EVERY, RECONNECT_EVERY = 100, 10


class Lost(NamedTuple):
    """A request or probe that got no right answer."""

    second: float
    """When it was due, from the beginning of its phase."""
    asked: str
    got: str


class Honest:
    """Clients that ask for small samples and scores, and now and then for a stream."""

    def __init__(self, port: int, key: str | None) -> None:
        self.port = port
        self.headers = {"content-type": "application/json"}
        if key:
            self.headers["authorization"] = f"Bearer {key}"
        self._numbers = itertools.count(1)
        self._contents: dict[tuple[str, str], bytes] = {}
        """Digests of what each version answered to each body first: it must not change."""

    def run(self, seconds: float, rate: float | None = None, clients: int = CLIENTS) -> float:
        """Ask at a rate, or without it as fast as can be; the rate of right answers."""
        self.begun = time.monotonic()
        self.waits: list[float] = []
        """Seconds from when each small request was due until its answer."""
        self.streams: list[float] = []
        self.lost: list[Lost] = []
        took = ask_for(seconds, self.port, clients, rate, self._ask)
        return (len(self.waits) + len(self.streams)) / took

    def quantiles(self) -> tuple[float, float]:
        """Median and 99th percentile of the waits for small requests."""
        p50, p99 = np.quantile(self.waits, [0.5, 0.99]) if self.waits else (np.inf, np.inf)
        return float(p50), float(p99)

    def _ask(self, connection: http.client.HTTPConnection, due: float) -> None:
        number = next(self._numbers)
        is_stream = number % STREAM_EVERY == 0
        path, body = ("/v1/scores", ITEMS) if number % 2 else ("/v1/samples", SMALL)
        body = STREAM if is_stream else body
        if number % RECONNECT_EVERY == 0:
            connection.close()
        try:
            connection.request("POST", path, body, self.headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.lost.append(Lost(due - self.begun, path, repr(error)))
            return
        wait = time.monotonic() - due
        digest = hashlib.sha256(content).digest()
        version = str(answer.getheader("x-model-version"))
        if answer.status != 200:
            self.lost.append(Lost(due - self.begun, path, f"{answer.status}: {content[:200]!r}"))
        elif self._contents.setdefault((version, body), digest) != digest:
            self.lost.append(Lost(due - self.begun, path, f"other bytes of {version}"))
        else:
            (self.streams if is_stream else self.waits).append(wait)


class Watch(threading.Thread):
    """Probes and memory, once a second."""

    def __init__(self, port: int, worker: int) -> None:
        super().__init__()
        self.port, self.worker = port, worker
        self.begun = time.monotonic()
        self.failed: list[Lost] = []
        self.memory: list[int] = []
        """Resident bytes of the worker; 0 when it is gone."""
        self.peak = 0
        """Bytes of the whole service at most, shared pages counted once."""
        self._service = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        self._done = threading.Event()

    def run(self) -> None:
        due = self.begun
        while not self._done.wait(max(0.0, due - time.monotonic())):
            for path in PROBES:
                self._probe(path)
            try:
                self.memory.append(resident(self.worker))
            except OSError:
                self.memory.append(0)
            with contextlib.suppress(OSError):  # a process has just ended
                self.peak = max(self.peak, sum(map(proportional, process_tree(self._service))))
            due = max(due + PROBE_SECONDS, time.monotonic())

    def stop(self) -> None:
        self._done.set()
        self.join()

    def _probe(self, path: str) -> None:
        begun = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PROBE_SECONDS)
        try:
            connection.request("GET", path)
            status = connection.getresponse().status
            took = time.monotonic() - begun
            got = f"{status} in {took:.2f} s" if status != 200 or took > PROBE_SECONDS else ""
        except (OSError, http.client.HTTPException) as error:
            got = repr(error)
        finally:
            connection.close()
        if got:
            self.failed.append(Lost(begun - self.begun, path, got))


def proportional(pid: int) -> int:
    """Bytes of a process, of shared pages its share.

    Raises:
        OSError: it has ended.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(text.partition("\nPss:")[2].split()[0])


class Operator(threading.Thread):
    """Exchanges the champion again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.swaps = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(SWAP_SECONDS):
            self.swaps += 1
            registry.promote("tiny", str(1 + self.swaps % 2), "a benchmark")

    def stop(self) -> None:
        self._done.set()
        self.join()


def measure(
    seconds: float, service: str, descriptors: int = DESCRIPTORS, warm_up: float = 10.0
) -> dict[str, Any]:
    """Run one service under attack and return what was found."""
    with tempfile.TemporaryDirectory(prefix="wgan-anger-") as name:
        keys = Path(name) / "keys"
        keys.write_text(f"honest:{hashlib.sha256(KEY.encode()).hexdigest()}:samples,scores\n")
        variables = {"WGAN_API_KEYS_FILE": str(keys)} if service == "keys" else {}
        prefix = [*PIN, "prlimit", f"--nofile={descriptors}"]
        with served(Path(name), prefix, **variables) as (port, worker):
            attackers = subprocess.Popen(
                # Nice, as they are to take time from the service and not from the other clients.
                ["nice", sys.executable, "-m", "tests.attackers", str(port), str(seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert attackers.stdin
            assert attackers.stdout
            attackers.stdout.readline()  # what they send is made
            honest = Honest(port, KEY if variables else None)
            honest.run(warm_up)
            saturation = honest.run(warm_up)
            rate = SHARE * saturation
            honest.run(QUIET * warm_up, rate)
            quiet, before = honest.quantiles(), resident(worker)
            lost_while_quiet = len(honest.lost)
            watch, operator = Watch(port, worker), Operator()
            watch.start()
            operator.start()
            print(file=attackers.stdin, flush=True)
            reached = honest.run(seconds, rate)
            watch.stop()
            operator.stop()
            got, _ = attackers.communicate(timeout=60)
            loud, lost = honest.quantiles(), honest.lost
            small, streams = len(honest.waits), len(honest.streams)
            honest.run(QUIET * warm_up, rate)
            afterwards, lost_afterwards = honest.quantiles(), len(honest.lost)
        minutes = np.array_split(watch.memory, max(1, round(seconds / 60)))
        quarters = [float(np.median(part)) for part in np.array_split(watch.memory, 4)]
        return {
            "seconds": seconds,
            "saturation_per_second": round(saturation, 1),
            "rate_per_second": round(reached, 1),
            "requests": small + streams + len(lost),
            "streams": streams,
            "lost": len(lost),
            "lost_first": lost[:20],
            "lost_quiet_and_afterwards": [lost_while_quiet, lost_afterwards],
            "quiet_seconds_median_and_99th": quiet,
            "seconds_median_and_99th": loud,
            "afterwards_seconds_median_and_99th": afterwards,
            "p99_over_quiet": loud[1] / quiet[1],
            "median_afterwards_over_quiet": afterwards[0] / quiet[0],
            "probes": len(PROBES) * len(watch.memory),
            "probes_failed": len(watch.failed),
            "probes_failed_first": watch.failed[:20],
            "swaps": operator.swaps,
            "memory_mb_before": before / 2**20,
            "memory_mb_by_minute": [float(np.median(part)) / 2**20 for part in minutes],
            "memory_mb_peak_of_service": watch.peak / 2**20,
            "memory_growth": quarters[3] / quarters[1] if quarters[1] else None,
            "worker_died": 0 in watch.memory,
            "attackers_got": json.loads(got),
        }


class Limit(NamedTuple):
    """What is asked of a result."""

    what: str
    asked: str
    found: str
    is_kept: bool


def limits(found: dict[str, Any]) -> list[Limit]:
    """Compare a result with what is asked of it."""
    lost, failed, growth = found["lost"], found["probes_failed"], found["memory_growth"]
    times, peak = found["p99_over_quiet"], found["memory_mb_peak_of_service"]
    seconds = [
        f"{1000 * found[key][1]:.0f} ms"
        for key in ("quiet_seconds_median_and_99th", "seconds_median_and_99th")
    ]
    again = found["median_afterwards_over_quiet"]
    flat = growth is not None and growth <= GROWTH and not found["worker_died"]
    return [
        Limit("honest requests lost", "0", f"{lost:,} of {found['requests']:,}", not lost),
        Limit(
            "99th percentile over its quiet value", f"under {SLOWER:g}",
            f"{times:.2f} ({seconds[0]}, then {seconds[1]})", times < SLOWER,
        ),
        Limit(
            "median afterwards over its quiet value", f"under {SLOWER_AFTERWARDS:g}",
            f"{again:.2f}", again < SLOWER_AFTERWARDS,
        ),
        Limit("probes failed", "0", f"{failed:,} of {found['probes']:,}", not failed),
        Limit(
            "memory in the last quarter over that in the second", f"at most {GROWTH:g}",
            "the worker died" if found["worker_died"] else f"{growth:.3f}", flat,
        ),
        Limit(
            "highest memory of the service", f"under {MEMORY_MB} MB",
            f"{peak:.0f} MB", peak < MEMORY_MB,
        ),
    ]  # fmt: skip


def shown(result: dict[str, Any]) -> str:
    """What is known of each service, as a sentence and a Markdown table."""
    services = [service for service in SERVICES if service in result]
    runs = [
        f"{SERVICES[service]}: {found['seconds'] / 60:g} minutes on {found['date']}, load average "
        f"{found['load_average'][0]:.1f} when it began, {found['swaps']} swaps"
        for service in services
        for found in [result[service]]
    ]
    rows = [
        [SERVICES[service], limit.what, limit.asked, limit.found, "yes" if limit.is_kept else "no"]
        for service in services
        for limit in limits(result[service])
    ]
    return (
        "; ".join(runs).capitalize()
        + ".\n\n"
        + table(["service", "what", "asked", "found", "reached"], rows)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="of each service's attack")
    parser.add_argument("--service", choices=SERVICES, help="one alone; the other's result stays")
    parser.add_argument("--descriptors", type=int, default=DESCRIPTORS, help="of the service")
    options = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    are_kept = True
    for service in [options.service] if options.service else SERVICES:
        begun = {"date": time.strftime("%Y-%m-%d"), "load_average": list(os.getloadavg())}
        found = measure(60 * options.minutes, service, options.descriptors)
        result[service] = {**begun, **found}
        print(json.dumps(result[service], indent=2))
        for limit in limits(result[service]):
            print("kept:    " if limit.is_kept else "NOT KEPT:", *limit[:3], sep="  ", flush=True)
            are_kept = are_kept and limit.is_kept
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        put_between(PAGE, BEGIN, END, shown(result))
    return int(not are_kept)


if __name__ == "__main__":
    sys.exit(main())
