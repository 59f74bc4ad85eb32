"""What a GPU does with all of it, in at most eight minutes: `make verify-gpu`.

Each stage is a process of its own with a time limit, and writes each figure as soon as it has it;
the results are written after each stage. So an interruption, a crash or a limit loses nothing that
was measured. Without a CUDA device nothing is measured, which is said in a line.

`--device cpu --quick` runs all stages with tiny sizes, to see that they run; it measures nothing
of use. Stages are in `benchmarks.gpu_stages`, `gpu_step` and `gpu_whole` beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).with_name("results") / "gpu.json"
LIMITS = {
    "ceilings": 20,
    "tests": 110,
    "step": 70,
    "whole": 110,
    "samples": 20,
    "train": 45,
    "quality": 55,
    "service": 50,
}
"""Seconds that each stage may take, together 480, in the order of running."""


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_suffix(".new")
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(path)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a stage and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_stage(name: str, limit: float, part: Path, options: list[str]) -> dict[str, Any]:
    """One stage's figures, its seconds and how it ended."""
    command = [sys.executable, "-m", "benchmarks.gpu_stages", name, "--out", str(part), *options]
    began = time.perf_counter()
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            code = process.wait(timeout=limit)
            ended = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after its {limit:g} s"
        except SystemExit:
            ended = "interrupted"
        finally:
            stop(process)
    found = json.loads(part.read_text()) if part.exists() else {}
    part.unlink(missing_ok=True)
    return {"ended": ended, "seconds": round(time.perf_counter() - began, 1), **found}


def machine(device: str, quick: bool) -> dict[str, Any]:
    is_cuda = device == "cuda"
    return {
        "command": "make verify-gpu",
        "quick": quick,
        "card": torch.cuda.get_device_name() if is_cuda else None,
        "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if is_cuda else None,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--stages", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device, so nothing was measured on one")
        return 0
    caught: list[int] = []

    def end_stage(number: int, frame: object) -> None:
        caught.append(number)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_stage)
    result = machine(options.device, options.quick) | {"stages": {}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    passed_on = ["--device", options.device, *(["--quick"] if options.quick else [])]
    for name in options.stages:
        part = options.out.with_name(f"{options.out.stem}-{name}.part")
        part.unlink(missing_ok=True)  # of an earlier run that was killed
        limit = LIMITS[name] * (10 if options.quick else 1)  # a busy CPU is no card
        found = run_stage(name, limit, part, passed_on)
        result["stages"][name] = found
        write(options.out, result)
        print(f"{name}: {found['ended']}, {found['seconds']} s", flush=True)
        if caught:
            return 128 + caught[0]
    return int(any(stage["ended"] != "done" for stage in result["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
