"""The stages of `benchmarks.gpu`: each is run by name, in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_step, gpu_whole
from benchmarks.gpu import write
from benchmarks.gpu_step import PRECISIONS, milliseconds, multiply_by, synchronize
from benchmarks.quality_training import train_one
from models.folding import InHalf, channels_last, fold
from models.networks import build_networks
from models.sampling import Scaling, generate, latents
from training.presets import build_config

ROOT = Path(__file__).parent.parent
Keep = Callable[[str, Any], None]
"""Takes a name and a figure, and writes both at once."""
WGAN = [sys.executable, "-m", "wgan_cli"]
READY_WITHIN = 30
"""Seconds that a service may take to start; its log is shown if it takes longer."""


def ceilings(device: torch.device, quick: bool, keep: Keep) -> None:
    """What a copy and a matrix product reach on the card."""
    size, n = (2**16, 64) if quick else (2**30, 8192)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = 0.0 if quick else 0.5
    copy = milliseconds(lambda: target.copy_(source), device, seconds)["device_ms"]
    keep("copy_gb_per_s", 2 * size / copy / 1e6)
    for precision in PRECISIONS if device.type == "cuda" else ("fp32",):
        multiply_by(precision)
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = torch.randn(2, n, n, device=device).to(kind)
        product = milliseconds(lambda a=a, b=b: a @ b, device, seconds)["device_ms"]
        keep(f"product_{precision}_tflop_per_s", 2 * n**3 / product / 1e9)


def tests(device: torch.device, quick: bool, keep: Keep) -> None:
    """The tests marked `gpu`, counted as they end; without a device they are skipped."""
    chosen = ["tests/test_gpu.py"] if quick else ["-m", "gpu", "tests/test_gpu.py"]
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider"]
    counts, failed = dict.fromkeys(("passed", "skipped"), 0), list[str]()
    with subprocess.Popen(
        [*command, *chosen],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.search(r"collected (\d+) items(?: / (\d+) deselected)?", line):
                keep("tests", int(found[1]) - int(found[2] or 0))
            if found := re.match(r"tests/\S+?::(.+) (PASSED|SKIPPED|FAILED|ERROR)\b", line):
                if found[2] in ("FAILED", "ERROR"):
                    failed.append(found[1])
                    keep("failed", failed)
                else:
                    counts[found[2].lower()] += 1
                    keep(found[2].lower(), counts[found[2].lower()])
    if process.returncode:
        sys.exit(process.returncode)


def step(device: torch.device, quick: bool, keep: Keep) -> None:
    """The critic's step of each network, at each precision, in each mode."""
    gpu_step.table(device, quick, keep)


def whole(device: torch.device, quick: bool, keep: Keep) -> None:
    """The whole generator step of each network, at each precision, beside the textbook's loop."""
    gpu_whole.table(device, quick, keep)


def samples(device: torch.device, quick: bool, keep: Keep) -> None:
    """Samples of 28x28 a second, by rows of a forward: the forward alone, and all up to bytes."""
    config = build_config("mnist5k")
    generator, _ = build_networks(config, (1, 28, 28))
    forward = channels_last(fold(generator.eval().requires_grad_(False)))
    scaling = Scaling((1, 28, 28), [], [])
    size = config.generator.latent_size
    for precision, rows in itertools.product(
        ("fp32", "bf16"), (16,) if quick else (16, 64, 256, 1024, 4096, 16384)
    ):
        network = (InHalf(forward) if precision == "bf16" else forward).to(device)
        z = torch.from_numpy(latents(0, 0, rows, size)).to(device)
        with torch.inference_mode():
            alone = milliseconds(lambda f=network, z=z: f(z), device, 0 if quick else 0.5)
        count = rows if quick else max(4 * rows, 4096)
        began = time.perf_counter()
        for _ in generate(
            network, scaling, lambda start, n: latents(0, start, n, size), count, chunk=rows
        ):
            pass
        synchronize(device)
        whole = count / (time.perf_counter() - began)
        keep(
            f"{precision} {rows}",
            {"forward_per_s": 1e3 * rows / alone["device_ms"], "bytes_per_s": whole},
        )


def train(device: torch.device, quick: bool, keep: Keep) -> None:
    """`wgan train` as users get it, with judging."""
    cases = {"8gaussians": 4} if quick else {"8gaussians": 1000, "digits": 500, "mnist5k": 200}
    for preset, steps in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            done = trained(preset, Path(folder), device, steps)
            if done.returncode:
                keep(preset, {"error": done.stderr.strip().splitlines()[-1][:300]})
                continue
            run = json.loads((Path(folder) / "artifact/run.json").read_text())
        keep(
            preset,
            {
                "steps": steps,
                "seconds": time.perf_counter() - began,
                "training_seconds": run["provenance"]["seconds"],
                "critic_step": run["provenance"]["critic_step"],
            },
        )


def trained(
    preset: str, folder: Path, device: torch.device, steps: int, *settings: str
) -> subprocess.CompletedProcess[str]:
    chosen = [word for setting in settings for word in ("--set", setting)]
    return subprocess.run(
        [*WGAN, "train", "--preset", preset, "--no-register", "--device", device.type,
         "--steps", str(steps), "--set", "evaluation.samples=500", *chosen, "--out", str(folder)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


def quality(device: torch.device, quick: bool, keep: Keep) -> None:
    """Time until the target of `benchmarks.quality` is met, by the clock."""
    task = "25gaussians" if quick else "mnist5k"
    for solver in ("ours",) if quick else ("ours", "textbook"):
        record = train_one(task, solver, 0, 0.1 if quick else 25, device)
        kept = ("ended", "reached", "spent", "start_up", "bounds", "floor")
        keep(f"{task} {solver}", {name: record[name] for name in kept})


def service(device: torch.device, quick: bool, keep: Keep) -> None:
    """Milliseconds of a request, for one sample and for many, on the device and on the CPU."""
    if importlib.util.find_spec("bentoml") is None:
        keep("skipped", "bentoml is not installed")
        return
    for kind in dict.fromkeys((device.type, "cpu")):
        with tempfile.TemporaryDirectory() as folder:
            preset = "8gaussians" if quick else "digits"
            made = trained(preset, Path(folder), device, 4, f"serving.device={kind}")
            if made.returncode:
                keep(kind, {"error": made.stderr.strip().splitlines()[-1][:300]})
                continue
            found = dict[str, Any]()
            try:
                with serving(Path(folder) / "artifact", kind) as ask:
                    for count, times in ((1, 3), (8, 3)) if quick else ((1, 100), (4096, 10)):
                        taken = [ask(count) for _ in range(times + 3)][3:]
                        found[f"{count} samples, median ms"] = 1e3 * statistics.median(taken)
            except (OSError, RuntimeError) as error:  # one device must not cost the other's figures
                found["error"] = str(error)
            keep(kind, found)


@contextlib.contextmanager
def serving(artifact: Path, kind: str) -> Iterator[Callable[[int], float]]:
    """A service of an artifact; gives a function that asks for samples and returns its seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    command = [*WGAN, "serve", "--model", str(artifact), "--port", str(port)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "WGAN_DEVICE": kind, "PYTHONPATH": paths}
    log = artifact.with_name("service.log")
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, env=environment, cwd=artifact.parent, stdout=output, stderr=output
        ) as process,
    ):
        try:
            end = time.monotonic() + READY_WITHIN
            while not is_ready(address):
                if process.poll() is not None or time.monotonic() > end:
                    lines = log.read_text().splitlines()
                    print("\n".join(line for line in lines if "wgan.access" not in line))
                    raise RuntimeError("the service did not start; its log is above")
                time.sleep(0.2)

            def ask(count: int) -> float:
                request = urllib.request.Request(
                    f"{address}/v1/samples",
                    json.dumps({"count": count, "seed": 1, "format": "npz"}).encode(),
                    {"Content-Type": "application/json"},
                )
                began = time.perf_counter()
                with urllib.request.urlopen(request, timeout=30) as answer:
                    answer.read()
                return time.perf_counter() - began

            yield ask
        finally:
            process.terminate()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


STAGES = {f.__name__: f for f in (ceilings, tests, step, whole, samples, train, quality, service)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = dict[str, Any]()

    def keep(name: str, figure: Any) -> None:
        found[name] = figure
        write(options.out, {"figures": found})
        print(f"  {name}: {json.dumps(figure)}", flush=True)

    STAGES[options.stage](torch.device(options.device), options.quick, keep)


if __name__ == "__main__":
    main()
