"""Cost against work: the critic's step, samples and retraining. Some minutes on two idle cores.

    python -m benchmarks.scale

Steps, forwards and retraining are counted in the processor's seconds, which other work on the
machine stretches little; samples over HTTP by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.constraints import KINDS
from benchmarks.cycle import WGAN
from benchmarks.serve import COUNT, Load, Server, free_port, make_artifacts
from models.artifact import load_artifact
from models.config import constraint_class
from models.constraints import Constraint, GradientPenalty
from models.networks import CriticConfig, Shape, build_critic
from training.engine.step import CriticStep

ROUNDS = 7
WIDTHS = {"mlp": [64, 128, 256, 512, 1024], "dcgan28": [8, 16, 32, 64, 128]}
BATCHES = {"mlp": [16, 64, 256, 1024], "dcgan28": [4, 16, 64, 256]}
WIDTH, BATCH = {"mlp": 256, "dcgan28": 32}, {"mlp": 256, "dcgan28": 64}
COUNTS = [1, 4, 16, 64, 256]
ROWS = [1_000, 10_000, 100_000]


def critic_config(network: str, width: int, **more: Any) -> tuple[CriticConfig, Shape]:
    if network == "mlp":
        return CriticConfig(architecture="mlp", width=width, activation="relu", **more), (2,)
    return CriticConfig(architecture="dcgan", width=width, depth=2, **more), (1, 28, 28)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Median of some rounds, after one that is not counted."""
    found = []
    for _ in range(ROUNDS + 1):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return statistics.median(found[1:])


def step(network: str, width: int, batch: int, constraint: Constraint) -> dict[str, Any]:
    """One critic step, the optimiser's and the constraint's own work included."""
    torch.manual_seed(0)
    settings = {"dropout": 0.2} if constraint.needs_dropout else {}
    config, shape = critic_config(network, width, **settings)
    critic = constraint.before_training(build_critic(config, shape))
    optimizer = torch.optim.Adam(critic.parameters(), 1e-4, (0.5, 0.9), fused=True)
    real, fake = torch.randn(2, batch, *shape)
    said: list[str] = []
    find = CriticStep("auto", critic, constraint, say=said.append)

    def work() -> None:
        find(real, fake, [], 0)
        optimizer.step()
        constraint.after_critic_step(critic)

    return {
        "cpu_seconds": cpu_seconds(work),
        "parameters": sum(p.numel() for p in critic.parameters()),
        "width": width,
        "batch": batch,
        "mode": find.mode,
    }


def http_rate(folder: Path, workers: int, seconds: float) -> float:
    """Samples a second that a service gives: one process on one core, or more on all."""
    port = free_port()
    environment = {"OMP_NUM_THREADS": "1", "WGAN_WORKERS": str(workers)}
    command = [str(WGAN), "serve", "--model", str(folder), "--port", str(port)]
    log = folder.with_name(f"{workers}.log")
    server = Server(command, port, log, environment, pinned=workers == 1)
    try:
        load = Load(port, {"count": COUNT, "seed": 0, "format": "npz"})
        load.run(1.0)
        return COUNT * load.run(seconds).rate
    finally:
        server.stop()


def retraining(folder: Path, rows: int, steps: int) -> dict[str, Any]:
    """A cycle on uint8 images, first of its registry: load, train, judge, register, promote."""
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (rows, 28, 28), np.uint8)
    np.save(folder / "data.npy", images)
    settings = {
        "preset": "images",
        "data": str(folder / "data.npy"),
        # The networks and critic steps with which the results were recorded.
        "set": {
            "data.size": 28,
            "training.steps": steps,
            "training.batch_size": 64,
            "training.learning_rate": 1e-3,
            "training.num_critic_steps": 2,
            "constraint.every": 1,
            "critic.activation": "leaky_relu",
            "generator.self_modulation": False,
            **{f"{role}.width": 8 for role in ("generator", "critic")},
            **{f"{role}.depth": 3 for role in ("generator", "critic")},
            **{f"{role}.skips": False for role in ("generator", "critic")},
        },
        "folder": str(folder / "runs"),
        "gates": {"precision": 0, "recall": 0, "coverage": 0},
    }
    (folder / "retrain.yaml").write_text(yaml.safe_dump(settings))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [WGAN, "retrain", "--config", folder / "retrain.yaml"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 3):  # the data are noise, so gates may refuse the model
        raise RuntimeError(done.stdout[-1000:] + done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rows": rows, "steps": steps, "cpu_seconds": spent, "exit_code": done.returncode}


def measure(seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"parameters": {}, "batch": {}, "constraints": {}}
    penalty = GradientPenalty()
    for network, widths in WIDTHS.items():
        found["parameters"][network] = [
            step(network, width, BATCH[network], penalty) for width in widths
        ]
        found["batch"][network] = [
            step(network, WIDTH[network], batch, penalty) for batch in BATCHES[network]
        ]
        print(f"{network}: done", flush=True)
    for kind in KINDS:
        found["constraints"][kind] = step("dcgan28", 32, 64, constraint_class(kind)())
    print("constraints: done", flush=True)
    with tempfile.TemporaryDirectory(prefix="wgan-scale-") as name:
        make_artifacts(Path(name))
        images = Path(name) / "images"
        model = load_artifact(images)
        found["samples"] = [
            {"count": n, "cpu_seconds": cpu_seconds(lambda n=n: list(model.samples(0, n)))}  # type: ignore[misc]
            for n in COUNTS
        ]
        found["workers"] = {str(workers): http_rate(images, workers, seconds) for workers in (1, 2)}
        print("samples: done", flush=True)
        found["retraining"] = []
        for rows in ROWS:
            found["retraining"].append(retraining(Path(name) / str(rows), rows, 20))
            print(f"{rows} rows: done", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    parser.add_argument("--seconds", type=float, default=8.0, help="of load over HTTP")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": "python -m benchmarks.scale",
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        **measure(options.seconds),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
