"""Scores of one image a request, gathered by BentoML's adaptive batching or not.

    python -m benchmarks.batching

Two services of the same critic that differ in `batchable` alone, and this project's own, each on
one core with the client on another, take turns. A forward is of 16 rows however many are scored
(`models.sampling.score`), so gathering has as much to win here as it ever has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import DType, Shape

from benchmarks.serve import CLIENT_CORE, Answers, Load, Server, free_port, make_artifacts
from models.artifact import load_artifact

Image = Annotated[np.ndarray, DType("uint8"), Shape((1, 28, 28, 1))]
SETTINGS: dict[str, Any] = {
    "workers": 1,
    "traffic": {"timeout": 60.0},
    "metrics": {"enabled": False},
    "logging": {"access": {"enabled": False}},
    "tracing": {"excluded_urls": ".*"},
}
SCORES = "/v1/scores"
COMMANDS = {
    "own": ["wgan_cli", "serve"],
    "single": ["bentoml", "serve", "benchmarks.batching:Single"],
    "gathered": ["bentoml", "serve", "benchmarks.batching:Batched"],
}
CLIENTS = (1, 4, 16)
"""Connections at once."""
MAX_BATCH = 16


class Scorer:
    """The part that both services share."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.model = load_artifact(Path(os.environ["WGAN_MODEL"]))

    def scores(self, samples: np.ndarray) -> list[float]:
        found: list[float] = self.model.score(samples).tolist()
        return found


@bentoml.service(**SETTINGS)
class Single(Scorer):
    """A forward for each request."""

    @bentoml.api(route="/v1/scores")
    def score(self, samples: Image) -> list[float]:
        return self.scores(samples)


@bentoml.service(**SETTINGS)
class Batched(Scorer):
    """A forward for the requests that BentoML has gathered."""

    @bentoml.api(route="/v1/scores", batchable=True, max_batch_size=MAX_BATCH)
    def score(self, samples: Image) -> list[float]:
        return self.scores(samples)


def measure(seconds: float, rounds: int) -> dict[str, Any]:
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 1)).tolist()
    body = {"samples": image}
    up: dict[str, Server] = {}
    answers: dict[str, list[Answers]] = {}
    with tempfile.TemporaryDirectory(prefix="wgan-batching-") as name:
        folder = Path(name)
        make_artifacts(folder)
        images = folder / "images"
        try:
            for service, command in COMMANDS.items():
                environment = {
                    "OMP_NUM_THREADS": "1",
                    "WGAN_MODEL": str(images),
                    "BENTOML_HOME": str(folder / service),
                    "BENTOML_DO_NOT_TRACK": "True",
                }
                port = free_port()
                whole = [sys.executable, "-m", *command, "--port", str(port)]
                whole += ["--model", str(images)] if service == "own" else []
                up[service] = Server(
                    whole, port, folder / f"{service}.log", environment, asked=(SCORES, body)
                )
            os.sched_setaffinity(0, {CLIENT_CORE})
            for number in range(rounds):
                for clients in CLIENTS:
                    for service, server in up.items():
                        load = Load(server.port, body, SCORES)
                        load.run(seconds / 2, clients=clients)  # what it learns of waiting
                        found = load.run(seconds, clients=clients)
                        answers.setdefault(f"{service} {clients}", []).append(found)
                print(f"round {number + 1} of {rounds}", flush=True)
        finally:
            for server in up.values():
                server.stop()

    def over_single(service: str, clients: int) -> dict[str, float]:
        pairs = zip(answers[f"{service} {clients}"], answers[f"single {clients}"], strict=True)
        ratios = [
            (a.rate / b.rate, statistics.median(a.waits) / statistics.median(b.waits))
            for a, b in pairs
        ]
        rates, waits = zip(*ratios, strict=True)
        return {
            "rate_over_single": statistics.median(rates),
            "median_wait_over_single": statistics.median(waits),
        }

    return {
        str(clients): {service: over_single(service, clients) for service in COMMANDS}
        for clients in CLIENTS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/batching.json"))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result = {
        "command": "python -m benchmarks.batching",
        "seconds_a_turn": options.seconds,
        "rounds": options.rounds,
        "clients": measure(options.seconds, options.rounds),
    }
    text = json.dumps(result, indent=2)
    print(text)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
