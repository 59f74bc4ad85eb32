"""The figures that models are judged by: which way is better, and which are shares.

A new figure is one line in `FIGURES`, and its value in what `training.judging.evaluate` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from models.record import DataCard, Figure
from training.judging import metrics
from training.judging.intervals import Estimate, kernel_distance_error
from training.judging.tables import likeness

Array = np.ndarray


class FigureKind(NamedTuple):
    """One kind of figure."""

    better: Literal["lower", "higher"]
    is_share: bool = False
    """The figure lies in [0, 1], and its interval is cut there."""
    distance: Callable[[Array, Array], float] | None = None
    """The distance of fake points ``(M, D)`` from real ones ``(N, D)``, if the figure is one."""
    standard_error: Callable[[Array, Array], float] | None = None
    """That of the distance, if it can be told from the same points."""


FIGURES = {
    "wasserstein_1": FigureKind("lower", distance=metrics.wasserstein_1),
    "sliced_wasserstein_1": FigureKind("lower", distance=metrics.sliced_wasserstein_1),
    "kernel_distance": FigureKind(
        "lower", distance=metrics.kernel_distance, standard_error=kernel_distance_error
    ),
    "frechet_distance": FigureKind("lower", distance=metrics.frechet_distance),
    "frechet_distance_infinity": FigureKind("lower"),
    "marginal_wasserstein_1": FigureKind("lower", distance=metrics.marginal_wasserstein_1),
    "correlation_difference": FigureKind("lower", distance=metrics.correlation_difference),
    "autocovariance_error": FigureKind("lower"),
    "precision": FigureKind("higher", is_share=True),
    "recall": FigureKind("higher", is_share=True),
    "density": FigureKind("higher"),
    "coverage": FigureKind("higher", is_share=True),
    "vendi_score": FigureKind("higher"),
    "modes_covered": FigureKind("higher"),
    "high_quality_share": FigureKind("higher", is_share=True),
    "class_accuracy": FigureKind("higher", is_share=True),
    "lowest_class_accuracy": FigureKind("higher", is_share=True),
    "class_kernel_distance": FigureKind("lower"),
    "highest_class_kernel_distance": FigureKind("lower"),
    "column_shapes": FigureKind("higher", is_share=True),
    "pair_trends": FigureKind("higher", is_share=True),
    "pair_distance": FigureKind("lower", is_share=True, distance=likeness.pair_distance),
    "missing_difference": FigureKind("lower", is_share=True),
    "rare_category_coverage": FigureKind("higher", is_share=True),
    "valid_share": FigureKind("higher", is_share=True),
    "rules_kept": FigureKind("higher", is_share=True),
    "tstr": FigureKind("higher"),
    "detection_auroc": FigureKind("lower", is_share=True),
    "authenticity": FigureKind("higher", is_share=True),
    "nearer_to_training": FigureKind("lower", is_share=True),
    "distance_ratio": FigureKind("higher"),
    "exact_copies": FigureKind("lower", is_share=True),
    "membership_auroc": FigureKind("lower", is_share=True),
    "critic_membership_auroc": FigureKind("lower", is_share=True),
}
COPY_FIGURES = (
    "authenticity", "nearer_to_training", "distance_ratio", "exact_copies",
    "membership_auroc", "critic_membership_auroc",
)  # fmt: skip
"""Figures that tell if samples, or the critic, give training items away."""
HEADLINES: dict[str, tuple[str, ...]] = {
    "image": ("kernel_distance", "frechet_distance"),
    "vector": ("wasserstein_1", "sliced_wasserstein_1"),
    "sequence": ("sliced_wasserstein_1",),
    "table": ("pair_distance",),
}
"""Distances between whole distributions, by kind of data; the first decides unless told otherwise.
Images are compared over an extractor's features, tables as `tables.rows.comparable` makes them."""


def headlines(card: DataCard) -> tuple[str, ...]:
    """`HEADLINES` of a data set."""
    return HEADLINES["table" if card.table is not None else card.kind]


def distance(name: str, real: Array, fake: Array) -> float:
    """Compute a figure that is a distance.

    Args:
        name: of a figure that has a distance in `FIGURES`.
        real: ``(N, D)``, or comparable rows of a table.
        fake: ``(M, D)``, likewise.

    Raises:
        KeyError: there is no such figure.
        ValueError: the figure is no distance, or the arrays do not fit each other.
    """
    compute = FIGURES[name].distance
    if compute is None:
        raise ValueError(f"{name} is no distance between two sets of points")
    return compute(real, fake)


def distances(*names: str, device: metrics.Device = "cpu") -> metrics.Metric:
    """Make a metric of several distances, for `training.judging.intervals`.

    Args:
        names: of figures that have a distance in `FIGURES`.
        device: where a kernel distance is computed; the others are for the CPU.
    """

    def compute(real: Array, fake: Array) -> dict[str, float]:
        return {
            name: metrics.kernel_distance(real, fake, device)
            if name == "kernel_distance"
            else distance(name, real, fake)
            for name in names
        }

    return compute


def figure(name: str, estimate: Estimate, baseline: float | None = None) -> Figure:
    """Turn an estimate, and the baseline's figure, into the figure that ``run.json`` holds."""
    kind, (low, high) = FIGURES[name], (estimate.low, estimate.high)
    return Figure(
        value=estimate.value,
        floor=estimate.floor,
        interval=(max(low, 0), min(high, 1)) if kind.is_share else (low, high),
        n=estimate.n,
        better=kind.better,
        baseline=baseline,
        of_class=estimate.of_class,
    )
