"""Tasks, targets and solvers of `benchmarks.quality`, and who judges them.

Targets were committed before any solver was tuned or run on them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.config import Config, parse_config
from models.sampling import latents
from training.data.dataset import Dataset
from training.judging.extractors import choose_extractor
from training.judging.metrics import (
    kernel_distance,
    mode_coverage,
    precision_recall_density_coverage,
)
from training.presets import build_config

Figures = dict[str, float]
Bounds = dict[str, tuple[str, float]]
"""By figure: ``>=`` or ``<=``, and the bound."""
SUSTAINED = 5
"""Evaluations in a row that must meet the target."""
HIGH_QUALITY = 0.95
"""Share of points within three standard deviations of a mode. A perfect sampler has 0.989."""
RECALL_OF_FLOOR = 0.95
"""Share of the recall that real training items have."""
DRAWS = 20
"""Draws of real items over which their recall is averaged."""
SAMPLE_SEED = 0
SEEDS = (0, 1, 2)
"""Seeds of the results; any search takes others."""


class Task(NamedTuple):
    """How often a solver is judged on a task, and how long it may take."""

    every: int
    """Generator steps between evaluations, of all solvers."""
    budget: float
    """Seconds of the processor."""


TASKS = {
    "25gaussians": Task(every=100, budget=340),
    "digits": Task(every=50, budget=180),
    "mnist5k": Task(every=50, budget=400),
}
"""Tasks by preset. The target of points is all modes and `HIGH_QUALITY`; that of images follows
from real ones: see `Judge`."""

PUBLISHED: dict[str, Any] = {
    "constraint": {"kind": "gradient_penalty", "strength": 10.0},
    "training.optimizer": "adam",
    "training.learning_rate": 1e-4,
    "training.betas": (0.5, 0.9),
    "training.num_critic_steps": 5,
    "training.decay_from": 1.0,
    "training.ema_decay": 0.0,
    "training.steps": 20_000,
}
"""Gulrajani et al. 2017, and their code's betas: on our engine, with the preset's networks. They
take five times the steps; no budget here lasts so long."""
PUBLISHED_BATCH = {"25gaussians": 256, "digits": 64, "mnist5k": 64}
"""The batch of the authors' code, by task."""
SOLVERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "published": PUBLISHED,
    "textbook": PUBLISHED,
    "torchgan": PUBLISHED,
}
"""Settings over the preset's. `textbook` is the published recipe in plain torch, eager; `torchgan`
is that package's."""
POINT_SOLVERS: dict[str, dict[str, Any]] = {
    "published, strength 0.1": {
        **PUBLISHED,
        "constraint": {"kind": "gradient_penalty", "strength": 0.1},
    },
}
"""The authors' code, unlike their paper, has this strength for points in the plane."""
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "25gaussians": {
        "rate 1e-4": {"training.learning_rate": 1e-4},
        "5 critic steps": {"training.num_critic_steps": 5},
        "no average": {"training.ema_decay": 0.0},
        "no decay": {"training.decay_from": 1.0},
        "strength 10": {"constraint.strength": 10.0},
        "two-sided": {"constraint.kind": "gradient_penalty"},
        "latents of 64": {"generator.latent_size": 64},
        "ReLU critic": {"critic.activation": "relu"},
        "batch of 256": {"training.batch_size": 256},
    },
    "mnist5k": {
        "rate 1e-4": {"training.learning_rate": 1e-4},
        "rate 1e-3": {"training.learning_rate": 1e-3},
        "5 critic steps": {"training.num_critic_steps": 5},
        "no average": {"training.ema_decay": 0.0},
        "two-sided": {"constraint.kind": "gradient_penalty"},
        "leaky ReLU critic": {"critic.activation": "leaky_relu"},
        "width of 48": {"generator.width": 48, "critic.width": 48},
    },
}
"""Ours on a task, less one thing each."""


def solvers(task: str) -> dict[str, dict[str, Any]]:
    """All that run it, each with its settings over the preset's."""
    return {
        **SOLVERS,
        **(POINT_SOLVERS if task == "25gaussians" else {}),
        **ABLATIONS.get(task, {}),
    }


def settings(task: str, solver: str, seed: int) -> Config:
    """The configuration of a run."""
    values = build_config(task).model_dump()
    values["training"]["seed"] = seed
    if solver != "ours" and solver not in ABLATIONS.get(task, {}):
        values["training"]["batch_size"] = PUBLISHED_BATCH[task]
    for key, value in solvers(task)[solver].items():
        section, _, name = key.partition(".")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    return parse_config(values)


def first_sustained(good: Sequence[bool], length: int = SUSTAINED) -> int | None:
    """The index at which the first ``length`` true values in a row begin; None if nowhere."""
    row = 0
    for i, each in enumerate(good):
        row = row + 1 if each else 0
        if row == length:
            return i - length + 1
    return None


def meets(figures: Figures, bounds: Bounds) -> bool:
    """True if every figure is within its bound; a figure that is no number is not."""
    return all(
        figures[name] >= bound if sign == ">=" else figures[name] <= bound
        for name, (sign, bound) in bounds.items()
    )


class Judge:
    """Evaluates generators of one task, all on the same latents and the same held-out items."""

    def __init__(self, config: Config, data: Dataset, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.scaling = data.scaling
        self.mixture = data.mixture
        size, count = config.generator.latent_size, config.evaluation.samples
        self.floor: Figures = {}
        if data.mixture:
            self.bounds: Bounds = {
                "modes_covered": (">=", float(len(data.mixture.centers))),
                "high_quality_share": (">=", HIGH_QUALITY),
            }
        else:
            self.extractor = choose_extractor(config.evaluation, data).on(self.device)
            count = min(count, data.card.heldout_count, data.card.training_count)
            self.real = self.extractor(data.sample(count, heldout=True))
            self.bounds = self._image_bounds(data, count)
        self.z = torch.from_numpy(latents(SAMPLE_SEED, 0, count, size)).to(self.device)

    def _image_bounds(self, data: Dataset, count: int) -> Bounds:
        """No further from held-out items than real ones that lack a class, and nearly all of them.

        The kernel distance of real items from real ones is zero in the mean, so that no multiple of
        it makes a target. That of training items without one class, in the mean over the classes,
        is one in the same unit: what a perfect generator would get that forgot one class. Recall
        is of as many training items as are judged, in the mean over some draws.
        """
        assert data.labels is not None
        indices = np.flatnonzero(~data.is_heldout)
        features, labels = self.extractor(data.items_at(indices)), data.labels[indices]
        rng = np.random.default_rng(SAMPLE_SEED)
        lacking = statistics.mean(
            kernel_distance(self.real, features[labels != label])
            for label in range(len(data.card.classes))
        )
        recall = statistics.mean(
            precision_recall_density_coverage(
                self.real, features[rng.choice(len(features), count, replace=False)]
            )["recall"]
            for _ in range(DRAWS)
        )
        self.floor = {"kernel_distance": kernel_distance(self.real, features), "recall": recall}
        return {
            "kernel_distance": ("<=", lacking),
            "recall": (">=", RECALL_OF_FLOOR * recall),
        }

    @torch.no_grad()
    def __call__(self, generator: Callable[[Tensor], Tensor]) -> Figures:
        """Figures of a generator in eval mode."""
        fake = self.scaling.to_data(generator(self.z)).cpu().numpy()
        if self.mixture:
            points = np.nan_to_num(fake, nan=1e9, posinf=1e9, neginf=-1e9)  # far from all modes
            modes, share = mode_coverage(points, self.mixture.centers, self.mixture.sd)
            return {"modes_covered": modes, "high_quality_share": share}
        features = self.extractor(fake)
        return {
            "kernel_distance": kernel_distance(self.real, features),
            "recall": precision_recall_density_coverage(self.real, features)["recall"],
        }
