"""Kernel distances within the classes of a conditional model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from training.judging.intervals import Estimate, kernel_distance_margin
from training.judging.metrics import Device, kernel_distance

Array = np.ndarray
LEAST_IN_CLASS = 10
"""Points of each kind without which a class does not count."""


class Labelled(NamedTuple):
    """Points and their classes."""

    points: Array
    """``(N, D)``"""
    labels: Array
    """int64 ``(N,)``"""


def class_distances(
    heldout: Labelled,
    fake: Labelled,
    training: Labelled,
    classes: list[str],
    device: Device = "cpu",
) -> dict[str, Estimate]:
    """Measure the kernel distance within each class: the mean, and the class that is worst.

    A conditional model that makes good items of the wrong classes has a small distance over all
    items, and large ones here. The intra-class FID (Miyato & Koyama 2018, "cGANs with Projection
    Discriminator") is the same for the Fréchet distance, for which a class has too few held-out
    items.

    Args:
        heldout: real points.
        fake: samples, with the classes that they were asked for.
        training: real points in the samples' place, for the floor.
        classes: names by label.
        device: where to compute.

    Returns:
        ``class_kernel_distance``, the mean over the classes that have `LEAST_IN_CLASS` points of
        each kind, with the jackknife's interval; and ``highest_class_kernel_distance``, that of one
        class, beside the highest floor. Empty if there is no such class.
    """
    by_class = list[Estimate]()
    for label, name in enumerate(classes):
        real, drawn, known = (x.points[x.labels == label] for x in (heldout, fake, training))
        if min(len(real), len(drawn), len(known)) < LEAST_IN_CLASS:
            continue
        value, floor = (kernel_distance(real, points, device) for points in (drawn, known))
        margin = kernel_distance_margin(real, drawn, device=device)
        by_class.append(Estimate(value, floor, value - margin, value + margin, len(drawn), name))
    if not by_class:
        return {}
    value, floor = (float(np.mean(x)) for x in zip(*[found[:2] for found in by_class], strict=True))
    # Classes have no points in common, so their errors are independent.
    margin = float(np.linalg.norm([x.value - x.low for x in by_class])) / len(by_class)
    highest = max(by_class, key=lambda found: found.value)
    return {
        "class_kernel_distance": Estimate(
            value, floor, value - margin, value + margin, sum(x.n for x in by_class)
        ),
        "highest_class_kernel_distance": highest._replace(floor=max(x.floor for x in by_class)),
    }
