"""Digits of ``mnist5k``: our preset beside other recipes that had as many seconds of the processor.

    python -m benchmarks.images_peers --runs runs/image-peers --seeds 0 1 2

Each run has a process of its own with one thread. Ours takes the preset's steps. The others, with
the same seed, begin no step after the seconds of ours, reading the data left out; so none of them
decays its rate towards an end. All but the diffusion model have the preset's networks:

- ``published``: WGAN-GP (Gulrajani et al. 2017) on our engine.
- ``textbook``: the same in plain torch; ``torchgan``: in that package's own trainer.
- ``DRAGAN``: the non-saturating loss, and slopes near real images held at 1 (Kodali et al. 2017):
  strength 10, one critic step, Adam of rate 1e-4.
- ``R1``: the same loss, and a penalty on slopes at real images (Mescheder et al. 2018): gamma 10,
  one critic step, Adam of rate 1e-4 and betas of 0 and 0.99, averaged weights.
- ``DDPM``: a diffusion model (Ho et al. 2020) of the package diffusers, with a U-Net of 280,000
  weights; its samples take 50 steps of DDIM (Song et al. 2021).

As many samples as there are held-out digits are judged against these, in features of a classifier
of the labels.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import quality_torchgan
from benchmarks.markdown import mean_and_range, put_between, table
from benchmarks.quality import install
from benchmarks.quality_tasks import SAMPLE_SEED, Judge, settings
from benchmarks.quality_training import CPU, now, train_ours, train_textbook
from benchmarks.step import stock
from models.config import Config
from models.images import encode_png, enlarge, grid
from models.networks import build_networks
from training.data.dataset import Dataset, load_data
from training.engine.optimisers import update_average
from training.judging.extractors import FeatureExtractor
from training.judging.metrics import kernel_distance, precision_recall_density_coverage

Array = np.ndarray
Sampler = Callable[[Tensor], Tensor]
"""Makes images, scaled as for networks, of latents."""
TASK = "mnist5k"
RESULTS = Path(__file__).with_name("results") / "images_peers.json"
DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- made by benchmarks.images_peers -->", "<!-- end of the peers -->"
PACKAGES = (
    *("diffusers==0.42.1", "huggingface_hub==2.4.0", "regex", "httpx2", "httpcore2", "truststore"),
    quality_torchgan.PACKAGE,
)
"""The diffusion model's, with what it imports and we do not have, and torchgan."""
FIGURES = {
    "kernel_distance": ("kernel distance", "{:.3g}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
}
"""Each figure's title and form."""
SHOWN = 16
"""Samples of each solver in the picture, of its first seed."""


class Clock:
    """Is shown a generator after each of its steps, and ends the run when its time is spent."""

    def __init__(self, budget: float) -> None:
        self.budget, self.ended, self.steps = budget, "", 0
        self.generator: nn.Module | None = None
        self.began = now()[0]

    @property
    def spent(self) -> float:
        """Seconds of the processor since the start."""
        return float(now()[0] - self.began)

    def __call__(self, step: int, generator: nn.Module) -> None:
        """After ``step`` steps of the generator."""
        self.steps, self.generator = step, generator
        if self.spent > self.budget:
            self.ended = "budget"


def made_by(clock: Clock) -> Sampler:
    """The last generator that a clock was shown."""
    assert clock.generator is not None
    return clock.generator.eval()


def ours(config: Config, data: Dataset, clock: Clock) -> Sampler:
    train_ours(config, data, clock, CPU)
    return made_by(clock)


def textbook(config: Config, data: Dataset, clock: Clock) -> Sampler:
    train_textbook(config, data, clock, CPU)
    return made_by(clock)


def torchgan(config: Config, data: Dataset, clock: Clock) -> Sampler:
    quality_torchgan.train(config, data, clock)
    return made_by(clock)


def slopes(critic: nn.Module, points: Tensor) -> Tensor:
    """Gradients of the critic's output at points ``(N, ...)``, as ``(N, D)``."""
    points = points.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return slope.flatten(1)


def dragan_penalty(critic: nn.Module, real: Tensor) -> Tensor:
    """As in the authors' code: noise of half the batch's deviation, all upwards."""
    near = real + 0.5 * real.std() * torch.rand_like(real)
    return 10 * (slopes(critic, near).norm(dim=1) - 1).square().mean()


def r1_penalty(critic: nn.Module, real: Tensor) -> Tensor:
    """Half of gamma times the mean square slope."""
    return 5 * slopes(critic, real).square().sum(1).mean()


def classifying(
    penalty: Callable[[nn.Module, Tensor], Tensor], betas: tuple[float, float], average: float
) -> Callable[[Config, Dataset, Clock], Sampler]:
    """Trains with the non-saturating loss and a penalty at real images; see the module's text."""

    def train(config: Config, data: Dataset, clock: Clock) -> Sampler:
        torch.manual_seed(config.training.seed)
        generator, critic = (stock(n) for n in build_networks(config, data.card.shape))
        averaged = deepcopy(generator)
        items = scaled(data)
        of_generator = torch.optim.Adam(generator.parameters(), 1e-4, betas)
        of_critic = torch.optim.Adam(critic.parameters(), 1e-4, betas)
        while not clock.ended:
            real = items[torch.randint(len(items), (config.training.batch_size,))]
            fake = generator(torch.randn(len(real), config.generator.latent_size))
            loss = functional.softplus(critic(fake.detach())) + functional.softplus(-critic(real))
            follow(of_critic, loss.mean() + penalty(critic, real))
            follow(of_generator, functional.softplus(-critic(fake)).mean())
            move(averaged, generator, 1 - average)
            clock(clock.steps + 1, averaged)
        return made_by(clock)

    return train


def ddpm(config: Config, data: Dataset, clock: Clock) -> Sampler:
    diffusers = importlib.import_module("diffusers")
    torch.manual_seed(config.training.seed)
    channels, size, _ = data.card.shape
    network = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    averaged = deepcopy(network)
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    steps = diffusers.DDIMScheduler.from_config(noising.config)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    items = scaled(data)
    while not clock.ended:
        real = items[torch.randint(len(items), (config.training.batch_size,))]
        noise, times = torch.randn_like(real), torch.randint(1000, (len(real),))
        found = network(noising.add_noise(real, noise, times), times).sample
        follow(optimizer, functional.mse_loss(found, noise))
        move(averaged, network, 0.01)
        clock(clock.steps + 1, averaged)

    def sample(z: Tensor) -> Tensor:
        images = torch.randn(len(z), *data.card.shape)
        steps.set_timesteps(50)
        for time_step in steps.timesteps:
            images = steps.step(averaged(images, time_step).sample, time_step, images).prev_sample
        return images.clamp(-1, 1)

    return sample


def follow(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def move(averaged: nn.Module, network: nn.Module, share: float) -> None:
    """Move averaged weights and statistics by a share of the way to a network's."""
    states = (list(each.state_dict().values()) for each in (averaged, network))
    update_average(*states, share)


def scaled(data: Dataset) -> Tensor:
    """The training items as networks take them."""
    return data.scaling.to_model(torch.from_numpy(data.training))


SOLVERS: dict[str, tuple[str, Callable[[Config, Dataset, Clock], Sampler]]] = {
    "ours": ("ours", ours),
    "published": ("published", ours),
    "textbook": ("textbook", textbook),
    "torchgan": ("torchgan", torchgan),
    "DRAGAN": ("ours", classifying(dragan_penalty, (0.5, 0.999), 0.0)),
    "R1": ("ours", classifying(r1_penalty, (0.0, 0.99), 0.999)),
    "DDPM": ("ours", ddpm),
}
"""By name: whose settings of `quality_tasks` it has, and what trains it."""


def run_one(solver: str, seed: int, budget: float, out: Path) -> None:
    """Train and judge one solver, and write its record and its picture's samples."""
    torch.set_num_threads(1)
    whose, train = SOLVERS[solver]
    config = settings(TASK, whose, seed)
    data = load_data(config.data, config.training.batch_size)
    judge = Judge(config, data)
    clock = Clock(budget)
    sampler = train(config, data, clock)
    spent = clock.spent
    began = time.process_time()
    with torch.no_grad():
        torch.manual_seed(SAMPLE_SEED)
        images = torch.cat([sampler(part) for part in judge.z.split(50)])
    seconds = time.process_time() - began
    samples = judge.scaling.to_data(images).numpy()
    record = {
        "solver": solver,
        "seed": seed,
        "cpu_seconds": spent,
        "steps": clock.steps,
        "samples_per_cpu_second": len(samples) / seconds,
        "figures": figures(judge.extractor, judge.real, samples),
        "floor": figures(judge.extractor, judge.real, data.sample(len(samples), heldout=False)),
    }
    np.save(out.with_suffix(".npy"), samples[:SHOWN])
    if solver == "ours":
        np.save(out.with_name(f"real-{seed}.npy"), data.sample(SHOWN, heldout=True))
    out.write_text(json.dumps(record) + "\n")


def figures(extractor: FeatureExtractor, real: Array, samples: Array) -> dict[str, float]:
    """Figures of samples against the features of held-out items."""
    features = extractor(samples)
    found = precision_recall_density_coverage(real, features)
    found["kernel_distance"] = kernel_distance(real, features)
    return {name: found[name] for name in FIGURES}


def figure_cells(results: list[dict[str, float]]) -> list[str]:
    """Cells of a table: each figure's mean over seeds, and range."""
    return [
        mean_and_range([result[name] for result in results], form)
        for name, (_, form) in FIGURES.items()
    ]


def finish(runs: Path, solver: str, seed: int) -> dict[str, Any]:
    """A run's record; the run itself, in a process of its own, only if there is none yet."""
    where = runs / f"{solver}-{seed}.json"
    if not where.exists():
        budget = math.inf if solver == "ours" else finish(runs, "ours", seed)["cpu_seconds"]
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(runs / "packages")]))
        subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.images_peers", "--runs", str(runs)),
                *("--one", solver, str(seed), "--budget", str(budget)),
            ],
            check=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
    found: dict[str, Any] = json.loads(where.read_text())
    return found


def shown(results: list[dict[str, Any]]) -> str:
    """The table of the page: means over seeds, with ranges."""

    head = ["", "seeds", "steps", "CPU s", *(title for title, _ in FIGURES.values())]
    head.append("samples per CPU s")
    known = {
        solver: [result for result in results if result["solver"] == solver] for solver in SOLVERS
    }
    rows = [
        [
            "real digits",
            "",
            "",
            "",
            *figure_cells([result["floor"] for result in known["ours"]]),
            "",
        ]
    ]
    for solver, mine in known.items():
        if mine:
            steps = mean_and_range([result["steps"] for result in mine], "{:,.0f}")
            seconds = mean_and_range([result["cpu_seconds"] for result in mine], "{:,.0f}")
            speed = f"{max(result['samples_per_cpu_second'] for result in mine):,.0f}"
            found = figure_cells([result["figures"] for result in mine])
            rows.append([solver, str(len(mine)), steps, seconds, *found, speed])
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=Path, required=True, help="a file a run")
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=list(SOLVERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--one", nargs=2, metavar=("SOLVER", "SEED"), help="only this run")
    parser.add_argument("--budget", type=float, default=math.inf, help="CPU seconds of the one")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    if options.one:
        solver, seed = options.one
        run_one(solver, int(seed), options.budget, options.runs / f"{solver}-{seed}.json")
        return
    install(options.runs / "packages", *PACKAGES)
    rest = [solver for solver in options.solvers if solver != "ours"]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda seed: finish(options.runs, "ours", seed), options.seeds))
        wanted = [(solver, seed) for seed in options.seeds for solver in rest]
        results += pool.map(lambda run: finish(options.runs, *run), wanted)
    RESULTS.write_text(json.dumps({"runs": results}, indent=1) + "\n")
    put_between(DOCS / "images.md", BEGIN, END, shown(results))
    names = ["real", *dict.fromkeys(result["solver"] for result in results)]
    rows = [np.load(options.runs / f"{name}-{options.seeds[0]}.npy") for name in names]
    picture = grid(enlarge(np.concatenate(rows), 2), columns=SHOWN)
    (DOCS / "images-peers.png").write_bytes(encode_png(picture))


if __name__ == "__main__":
    main()
