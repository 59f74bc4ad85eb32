"""The whole cycle on real digits, with the service under load throughout.

First run promotes, unchanged data skip, spoiled data and a bad constraint setting are rejected, a
better model is promoted and picked up, and is rolled back. `python -m benchmarks.cycle --out DIR`;
it ends with an error if any of this, or any request, fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from models import registry
from models.config import DataConfig
from training.data.dataset import load_data

WGAN = Path(sys.executable).with_name("wgan")
POLL_SECONDS = "2"
PATIENCE = 900


class Load:
    """Clients that ask for samples without a pause, and note each answer."""

    def __init__(self, address: str, clients: int) -> None:
        self.address, self.stopping = address, threading.Event()
        self.answers: list[tuple[float, str, float]] = []
        """Time, version or error, and duration in seconds, by answer."""
        self.threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self, client: int) -> None:
        seed = client
        while not self.stopping.is_set():
            body = json.dumps({"count": 4, "seed": seed, "format": "npz"}).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{self.address}/v1/samples", body, headers)
            started = time.monotonic()
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    answer.read()
                    said = str(answer.headers["X-Model-Version"])
            except OSError as error:
                said = f"failed: {error}"
            now = time.monotonic()
            self.answers.append((now, said, now - started))
            seed += 1
            time.sleep(0.05)  # the load shall not starve the training beside it

    def version(self) -> str:
        """The version of the last answer."""
        return self.answers[-1][1] if self.answers else "none yet"

    def wait_for(self, version: str) -> None:
        """Wait until every client is served by a version."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if {said for _, said, _ in self.answers[-2 * len(self.threads) :]} == {version}:
                return
            time.sleep(0.2)
        sys.exit(f"error: {version} was not picked up; served is {self.version()}")

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def retrain(folder: Path, name: str, expected: int, **changes: object) -> dict[str, object]:
    """Run `wgan retrain`, and tell what it decided."""
    settings = yaml.safe_load((folder / "retrain.yaml").read_text()) | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    started = time.monotonic()
    done = subprocess.run(
        [WGAN, "retrain", "--config", path], capture_output=True, text=True, check=False
    )
    print(f"--- {name}: exit code {done.returncode}, {time.monotonic() - started:.0f} s")
    print("\n".join(done.stdout.splitlines()[-14:]), flush=True)
    if done.returncode != expected:
        sys.exit(f"error: {name}: exit code {expected} was expected\n{done.stderr}")
    return {
        "step": name,
        "exit_code": done.returncode,
        "said": done.stdout.strip().splitlines()[-2],  # the last line names a file
        "champion": registry.champion("digits"),
    }


def main() -> None:
    """Run the cycle and write ``cycle.json``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60, help="of the first model")
    parser.add_argument("--better", type=int, default=250, help="steps of the better one")
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    folder = options.out.absolute()
    folder.mkdir(parents=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ["WGAN_REGISTRY_POLL_SECONDS"] = POLL_SECONDS
    digits = load_data(DataConfig(source="digits")).items
    np.save(folder / "digits.npy", digits)
    np.save(folder / "spoiled.npy", 255 - digits)  # scanned as negatives
    # Low floors, since the first model is trained briefly: here the champion's gates must tell.
    gates = {"precision": 0.1, "recall": 0.1, "coverage": 0.05, "max_seconds": 60}
    settings: dict[str, Any] = {
        "preset": "digits",
        "data": str(folder / "digits.npy"),
        "set": {
            "training": {"steps": options.steps, "checkpoint_every": 100},
            # An array has no labels, and pixels hardly tell such models apart.
            "evaluation": {"extractor": "digits-cnn-v1"},
        },
        "folder": str(folder / "runs"),
        # Of 385 held-out items the kernel distance is too uncertain to tell these models apart.
        "gates": {
            **gates,
            "loss": "frechet_distance",
            "tolerated_findings": ["low_diversity"],
        },
    }
    (folder / "retrain.yaml").write_text(yaml.safe_dump(settings))
    longer = copy.deepcopy(settings["set"])
    longer["training"]["steps"] = options.better

    rows = [retrain(folder, "first", 0)]
    first = registry.champion("digits")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "service.log").open("w") as log:
        service = subprocess.Popen(
            [WGAN, "serve", "--model", "digits@champion", "--port", str(port)],
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    load = None
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"{address}/readyz", timeout=10):
                    break
            except OSError:
                if time.monotonic() > deadline or service.poll() is not None:
                    sys.exit(f"error: not ready: {(folder / 'service.log').read_text()[-2000:]}")
                time.sleep(0.5)
        load = Load(address, options.clients)
        load.wait_for(f"digits@{first}")
        rows.append(retrain(folder, "unchanged", 0))
        spoiled = str(folder / "spoiled.npy")
        rows.append(retrain(folder, "spoiled", 3, data=spoiled))
        # A hundredth of the paper's clip range: hardly a critic is left.
        rows.append(
            retrain(
                folder,
                "bad-constraint",
                3,
                constraint="weight_clipping",
                set={**settings["set"], "constraint": {"clip_value": 0.0001}},
            )
        )
        if load.version() != f"digits@{first}":
            sys.exit(f"error: a rejected model is served: {load.version()}")
        rows.append(retrain(folder, "better", 0, set=longer))
        better = registry.champion("digits")
        load.wait_for(f"digits@{better}")
        subprocess.run([WGAN, "rollback", "digits"], check=True)
        load.wait_for(f"digits@{first}")
        rows.append({"step": "rollback", "exit_code": 0, "champion": registry.champion("digits")})
    finally:
        if load:
            load.stop()
        service.terminate()
        code = service.wait(120)
    counts = Counter(said for _, said, _ in load.answers)
    times = np.array([seconds for _, _, seconds in load.answers])
    summary = {
        "steps": rows,
        "requests": len(load.answers),
        "by_version": dict(counts),
        "failed": sum(n for said, n in counts.items() if said.startswith("failed")),
        "median_ms": float(np.median(times) * 1000),
        "p99_ms": float(np.quantile(times, 0.99) * 1000),
        "service_exit_code": code,
        "history": registry.history("digits"),
    }
    (folder / "cycle.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps({k: v for k, v in summary.items() if k != "steps"}, indent=2))
    if summary["failed"] or code:
        sys.exit("error: not every request was answered")


if __name__ == "__main__":
    main()
