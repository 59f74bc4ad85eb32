"""Show the main use from start to end: train, promote, serve, then sample and score over HTTP.

`make demo` runs this. It writes everything into one folder; a second run serves the model in there.
`DEMO_STEPS` and `DEMO_SET`, such as ``"evaluation.samples=100"``, change how it trains.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from models.config import DataConfig
from training.data.dataset import load_data

WGAN = Path(sys.executable).with_name("wgan")
PREFERRED_PORT = 3000
SHOWN_ITEMS = 8


def main() -> int:
    """Run the demo and return the exit code."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # Two threads do not speed up networks this small, and on a busy machine they are far slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    started = time.monotonic()

    run = str(folder / "run")
    steps = os.environ.get("DEMO_STEPS", "1500")
    settings = [f"--set={pair}" for pair in os.environ.get("DEMO_SET", "").split()]
    wgan("train", "--preset", "digits", "--steps", steps, *settings, "--out", run, "--resume")
    registered = json.loads((folder / "run" / "registered.json").read_text())["model"]
    wgan("promote", registered, "--why", "the demo's first model")

    port = free_port()
    print(f"\n$ wgan serve digits@champion --port {port}", flush=True)
    with (folder / "service.log").open("w") as log:
        service = subprocess.Popen(
            [WGAN, "serve", "digits@champion", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(service, address, folder / "service.log")
        show(address, folder)
        print(f"\nthe whole demo took {time.monotonic() - started:.0f} s")
        print_addresses(address, folder)
        if os.environ.get("DEMO_EXIT") == "1":
            return 0
        print("\nthe service runs until you press Ctrl-C", flush=True)
        service.wait()
    except KeyboardInterrupt:
        pass
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=60)
    return 0


def wgan(*arguments: str) -> None:
    """Run a wgan command, showing it."""
    print(f"\n$ wgan {' '.join(arguments)}", flush=True)
    code = subprocess.run([WGAN, *arguments], check=False).returncode
    if code:
        sys.exit(code)


def free_port() -> int:
    """Return the preferred port if it is free, or else any free one."""
    for port in (PREFERRED_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    sys.exit("error: no free port")


def wait_until_ready(service: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until the service is ready; end with its log if it does not get ready."""
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            if service.poll() is not None:
                break
            time.sleep(0.5)
    sys.exit(f"error: the service did not get ready; its log:\n{log.read_text()[-3000:]}")


def post(address: str, body: object) -> bytes:
    """POST JSON and return the answer's bytes."""
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def show(address: str, folder: Path) -> None:
    """Fetch generated digits, and score real held-out digits beside noise."""
    picture = folder / "digits.png"
    picture.write_bytes(post(f"{address}/v1/samples", {"count": 64, "seed": 7, "format": "png"}))
    print(f"\n64 generated digits: {picture}")
    real = load_data(DataConfig(source="digits")).heldout[:SHOWN_ITEMS]
    noise = np.random.default_rng(0).integers(0, 256, real.shape)
    print("the critic's scores (percentile among real held-out digits):")
    for name, items in (("real held-out digits", real), ("noise", noise)):
        answer = json.loads(post(f"{address}/v1/scores", {"samples": items.tolist()}))
        cells = [
            f"{score:7.2f} ({percentile:3.0f}%)"
            for score, percentile in zip(answer["scores"], answer["percentiles"], strict=True)
        ]
        print(f"  {name:20s} {' '.join(cells)}")


def print_addresses(address: str, folder: Path) -> None:
    """Print the addresses of the service's pages, of MLflow and of the artifact."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    print(f"\n  the page          {address}/")
    print(f"  page of the API   {address}/docs")
    print(f"  the model         {address}/v1/model")
    print(f"  metrics           {address}/metrics")
    print(f"  MLflow's page     {WGAN.with_name('mlflow')} ui --backend-store-uri {uri}")
    print(f"  the artifact      {folder / 'run' / 'artifact'}")


if __name__ == "__main__":
    sys.exit(main())
