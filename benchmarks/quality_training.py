"""Train one solver of `benchmarks.quality` under a watch that stops the time while it looks."""

from __future__ import annotations

import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import quality_torchgan
from benchmarks.quality_tasks import TASKS, Judge, first_sustained, meets, settings
from benchmarks.step import autocast, stock, textbook
from models.config import Config
from models.networks import build_networks
from training.data.dataset import Dataset, load_data
from training.engine.loop import train
from training.engine.runs import Diverged, Interrupted

Array = np.ndarray
CPU = torch.device("cpu")


def now() -> Array:
    """Seconds of this process and its children on the processor, and by the clock."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() + children.ru_utime + children.ru_stime
    return np.array([cpu, time.perf_counter()])


class Observer(Protocol):
    """Is shown a generator after each of its steps, and says when the run is to end."""

    ended: str
    """Why; empty while the run goes on."""

    def __call__(self, step: int, generator: nn.Module) -> None:
        """After ``step`` steps of the generator."""


class Watch:
    """Is shown a generator after each of its steps, and stops the time while it looks."""

    def __init__(self, every: int, budget: float, judge: Judge, critic_steps: int) -> None:
        self.every, self.budget, self.judge = every, budget, judge
        self.critic_steps = critic_steps
        self.trajectory: list[dict[str, float]] = []
        self.good: list[bool] = []
        self.start_up: list[float] = []
        self.ended = ""
        """Why; empty while the run goes on."""
        self.began = now()

    @property
    def spent(self) -> Array:
        return now() - self.began

    def __call__(self, step: int, generator: nn.Module) -> None:
        """After ``step`` steps of the generator."""
        spent = self.spent
        if not self.start_up:
            self.start_up = list(map(float, spent))
        if step % self.every == 0:
            if self.judge.device.type == "cuda":
                torch.cuda.synchronize()  # what was asked of the device is work of these steps
            spent = self.spent
            training = generator.training
            figures = self.judge(generator.eval())
            generator.train(training)
            self.good.append(meets(figures, self.judge.bounds))
            self.trajectory.append(
                {
                    "generator_steps": step,
                    "critic_steps": step * self.critic_steps,
                    "cpu_seconds": float(spent[0]),
                    "seconds": float(spent[1]),
                    **figures,
                }
            )
            self.began += self.spent - spent
            if first_sustained(self.good) is not None:
                self.ended = "reached"
        if not self.ended and spent[0] > self.budget:
            self.ended = "budget"


def train_ours(config: Config, data: Dataset, watch: Observer, device: torch.device) -> None:
    """Our loop and step, with its checkpoints, as `wgan train` calls it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(
                config,
                data,
                Path(folder),
                device,
                stop_requested=lambda: bool(watch.ended),
                watch=lambda step, state: watch(step, state.ema),
            )
        except Interrupted:
            pass
        except Diverged:
            watch.ended = watch.ended or "diverged"


def textbook_steps(
    config: Config, data: Dataset, device: torch.device
) -> tuple[nn.Module, Callable[[], None]]:
    """The published recipe in plain torch, with stock layers and everything eager.

    Returns:
        The generator, and a function that makes one of its steps with the critic's.
    """
    steps = config.training
    context = autocast(steps.precision, device.type)
    torch.manual_seed(steps.seed)
    generator, critic = (stock(n).to(device) for n in build_networks(config, data.card.shape))
    items = data.scaling.to_model(torch.from_numpy(data.training).to(device))
    strength: float = config.constraint.strength  # type: ignore[union-attr]
    critic_step = textbook(critic, strength, steps.precision)
    optimizer = torch.optim.Adam(generator.parameters(), steps.learning_rate, steps.betas)

    def fakes() -> Tensor:
        return generator(torch.randn(steps.batch_size, config.generator.latent_size, device=device))

    def make_step() -> None:
        for number in range(steps.num_critic_steps):
            real = items[torch.randint(len(items), (steps.batch_size,), device=device)]
            with torch.no_grad(), context:
                fake = fakes().float()
            critic_step(real, fake, number)
        optimizer.zero_grad()
        with context:
            loss = -critic(fakes()).mean()
        loss.backward()
        optimizer.step()

    return generator, make_step


def train_textbook(config: Config, data: Dataset, watch: Observer, device: torch.device) -> None:
    """Train by `textbook_steps`."""
    generator, make_step = textbook_steps(config, data, device)
    for step in range(1, config.training.steps + 1):
        make_step()
        watch(step, generator)
        if watch.ended:
            return


def train_one(
    task: str,
    solver: str,
    seed: int,
    budget: float,
    device: torch.device = CPU,
    config: Config | None = None,
) -> dict[str, Any]:
    """Train one solver on one task until its end.

    Args:
        task: one of `TASKS`.
        solver: its name.
        seed: of the run.
        budget: seconds of the processor.
        device: where to train.
        config: another configuration than the solver's own; then our loop trains.

    Returns:
        The run's record: settings, targets, times, and its figures on the way.
    """
    torch.set_num_threads(1)
    config = config or settings(task, solver, seed)
    data = load_data(config.data, config.training.batch_size)
    judge = Judge(config, data, device)
    load = os.getloadavg()[0]
    watch = Watch(TASKS[task].every, budget, judge, config.training.num_critic_steps)
    if solver == "torchgan":
        quality_torchgan.train(config, data, watch)
    else:
        (train_textbook if solver == "textbook" else train_ours)(config, data, watch, device)
    spent = watch.spent
    at = first_sustained(watch.good)
    return {
        "task": task,
        "solver": solver,
        "seed": seed,
        "budget": budget,
        "ended": watch.ended or "steps",
        "reached": None if at is None else watch.trajectory[at],
        "spent": {"cpu_seconds": float(spent[0]), "seconds": float(spent[1])},
        "start_up": dict(zip(("cpu_seconds", "seconds"), watch.start_up, strict=True)),
        "bounds": judge.bounds,
        "floor": judge.floor,
        "config": config.model_dump(mode="json"),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "load_average": load,
        "trajectory": watch.trajectory,
    }
