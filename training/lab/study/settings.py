"""Settings of the study, its scale, and names of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from training.judging.doctor.checks import CHECKS

Values = dict[str, Any]
Answers = dict[str, dict[str, Values]]
"""Answers by part of the study, then by name of the job."""
DATA_SETS = ("8gaussians", "25gaussians", "swissroll")
PENALTY: Values = {"kind": "gradient_penalty"}
ONE_SIDED: Values = {"kind": "lipschitz_penalty"}
SPECTRAL: Values = {"kind": "spectral_norm"}


def clipping(c: float) -> Values:
    """Weight clipping with a clip value."""
    return {"kind": "weight_clipping", "clip_value": c}


PUBLISHED = clipping(0.01)
SURFACE_CONSTRAINTS = (PUBLISHED, clipping(0.1), PENALTY, ONE_SIDED)
GRID_CONSTRAINTS = (PUBLISHED, clipping(0.1), PENALTY, SPECTRAL)
MOMENT_CONSTRAINTS = (*GRID_CONSTRAINTS, ONE_SIDED)
NORMALIZATIONS = ("none", "batch", "layer", "recurrent")
DEPTHS = (4, 8, 12, 20)
CLIPS = (0.003, 0.01, 0.03, 0.1, 0.3)
CLIPPED_RATE = 4e-4
"""Learning rate of deep clipped critics in training: eight times the published one, so that in a
short run too their weights get to where they go."""
RECURRENT_STEPS = 2
"""Length of the sequence that a recurrent critic reads: each point, so many times."""
TRAINS_FROM = 1 - CHECKS["slow_optimisation"].threshold
"""A critic trains if it finds more than this share of the distance."""


class Scale(NamedTuple):
    """The amount of computation."""

    seeds: int
    """Seeds of each setting, but for `grid_seeds`."""
    grid_seeds: int
    """Seeds of the grid of what trains, and of the moment probe."""
    fit_steps: int
    """Critic steps on a fixed generator."""
    moment_steps: int
    grid_steps: int
    deep_steps: int
    """Generator steps of the deep critic's training."""
    widths: tuple[int, ...]
    """Widths of the deep critic."""
    mixture_steps: int
    digits_steps: int


QUICK_SCALE = Scale(3, 1, 1000, 300, 100, 40, (128,), 200, 60)
FULL_SCALE = Scale(3, 3, 4000, 4000, 1000, 300, (128, 256), 3000, 1000)


def name_of(constraint: Values) -> str:
    """A short name of a constraint, for people."""
    if constraint["kind"] == "weight_clipping":
        return f"clip {constraint['clip_value']:g}"
    return {
        "gradient_penalty": "gradient penalty",
        "lipschitz_penalty": "lipschitz penalty",
        "spectral_norm": "spectral norm",
    }[constraint["kind"]]


def jobs(part: str, settings: Mapping[str, Values], seeds: int) -> dict[str, Values]:
    """The jobs of a part of the study by name: each of the settings with each seed."""
    return {
        f"{part}-{name}-{seed}": {"part": part, **values, "seed": seed}
        for name, values in settings.items()
        for seed in range(seeds)
    }


def answers_of(answers: dict[str, Values], *words: str) -> list[Values]:
    """The answers whose name holds each of the words between its dashes."""
    return [a for name, a in answers.items() if set(words) <= set(name.split("-"))]
