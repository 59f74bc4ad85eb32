"""torchgan 0.1.0 on the tasks of `benchmarks.quality`: the published recipe with our networks.

It runs as it was released, in its own trainer. torchvision, which it imports to draw pictures that
are not asked for, need not load beside every build of torch: an empty module stands in for it.
torch-mimicry 0.1.16 cannot be run: importing it imports `torch._six`, which torch has no more; and
its penalty takes images of three channels only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.step import stock
from models.config import Config
from models.networks import build_networks
from training.data.dataset import Dataset

PACKAGE = "torchgan==0.1.0"
"""Installed without what it depends on."""


class Ended(Exception):
    """The run is over."""


class Absent(ModuleType):
    """Has whatever it is asked for, which can be called and does nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Absent:
        return self


def train(config: Config, data: Dataset, watch: Any) -> None:
    """Train with torchgan's `Trainer`, losses and gradient penalty until ``watch`` has ended."""
    os.environ["CONSOLE_LOGGING"] = "0"
    for name in ("torchvision", "torchvision.models", "torchvision.utils"):
        sys.modules[name] = Absent(name)
    losses, models, trainer = (
        importlib.import_module(f"torchgan.{part}") for part in ("losses", "models", "trainer")
    )
    torch.manual_seed(config.training.seed)
    generator, critic = (stock(network) for network in build_networks(config, data.card.shape))
    items = data.scaling.to_model(torch.from_numpy(data.training))
    loader = DataLoader(
        TensorDataset(items, torch.zeros(len(items), dtype=torch.long)),
        config.training.batch_size,
        shuffle=True,
        drop_last=True,
    )

    class Generator(models.Generator):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__(config.generator.latent_size)
            self.inner = generator

        def forward(self, z: Tensor) -> Tensor:
            made: Tensor = self.inner(z)
            return made

    class Discriminator(models.Discriminator):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__(data.card.shape[0])
            self.inner = critic

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.inner(x)
            return scores

    class Watched(trainer.Trainer):  # type: ignore[name-defined, misc]
        step = 0

        def train_iter(self) -> Any:
            found = super().train_iter()
            if found[2]:  # a step of the generator
                self.step += 1
                watch(self.step, self.generator)
                if watch.ended:
                    raise Ended
            return found

    optimizer = {
        "name": torch.optim.Adam,
        "args": {"lr": config.training.learning_rate, "betas": config.training.betas},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Watched(
            {
                "generator": {"name": Generator, "optimizer": optimizer},
                "discriminator": {"name": Discriminator, "optimizer": optimizer},
            },
            [
                losses.WassersteinGeneratorLoss(),
                losses.WassersteinDiscriminatorLoss(),
                losses.WassersteinGradientPenalty(lambd=config.constraint.strength),  # type: ignore[union-attr]
            ],
            device=torch.device("cpu"),
            ncritic=config.training.num_critic_steps,
            epochs=config.training.steps,
            checkpoints=f"{folder}/gan",
            recon=f"{folder}/images",
        )
        with contextlib.suppress(Ended):
            run(loader)
