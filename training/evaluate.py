"""Judging a model on held-out data: every figure beside its floor, with an interval."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from models.artifact import Figure, Model, Results
from models.config import EvaluationConfig
from training import metrics
from training.data import Dataset, Mixture
from training.extractor import extract, extractor_card, extractor_for
from training.metrics import (
    Metric,
    frechet_distance,
    kernel_distance,
    measure,
    mode_coverage,
    precision_recall_density_coverage,
    sliced_wasserstein_1,
    wasserstein_1,
)

Array = np.ndarray
SEED = 0
"""Of the judged samples, so that two evaluations of one model agree."""
SHARES = {"precision", "recall", "coverage", "high_quality_share"}
"""Figures from 0 to 1; their intervals are cut there."""
LOWER_IS_BETTER = {
    "wasserstein_1",
    "sliced_wasserstein_1",
    "kernel_distance",
    "frechet_distance",
}


def judge(model: Model, data: Dataset, config: EvaluationConfig) -> Results:
    """Judge the generator, as it is served, against held-out real data.

    Vectors are compared in the critic's units, images over an extractor's features.

    Args:
        model: the generator and its scaling.
        data: held-out items are compared with; training items give the floor.
        config: how many samples, and which features.

    Returns:
        Every figure with its floor and interval, and the extractor.
    """
    name, represent = representation(model, config)
    sets = (data.heldout, judged_samples(model, data, config), data.training)
    heldout, fake, training = map(represent, sets)
    if name:
        found = measure(_image_figures, heldout, fake, training)
        return Results(extractor=extractor_card(name), figures=_figures(found))
    found = measure(_vector_figures, heldout, fake, training)
    if data.mixture:
        found |= measure(_mixture_figures(data.mixture), heldout, fake, training)
    return Results(extractor=None, figures=_figures(found))


def judged_samples(model: Model, data: Dataset, config: EvaluationConfig) -> Array:
    """The samples that a model is judged by, the same each time; in data units."""
    count = min(config.samples, len(data.heldout)) if model.is_image else config.samples
    return model.sample(SEED, count)


def representation(
    model: Model, config: EvaluationConfig
) -> tuple[str | None, Callable[[Array], Array]]:
    """The space in which items are compared.

    Args:
        model: whose units vectors are compared in.
        config: which features.

    Returns:
        The name of the images' extractor (None for vectors), and a function from items in data
        units, ``(N, ...)``, to points, float64 ``(N, D)``.
    """
    if model.is_image:
        name = extractor_for(config.extractor, model.run.config.data.source)
        return name, functools.partial(extract, name)
    return None, lambda items: model.scaling.to_model(torch.from_numpy(items)).double().numpy()


def _image_figures(real: Array, fake: Array) -> dict[str, float]:
    return {
        "kernel_distance": kernel_distance(real, fake),
        "frechet_distance": frechet_distance(real, fake),
        **precision_recall_density_coverage(real, fake),
    }


def _vector_figures(real: Array, fake: Array) -> dict[str, float]:
    return {
        "wasserstein_1": wasserstein_1(real, fake),
        "sliced_wasserstein_1": sliced_wasserstein_1(real, fake),
        **precision_recall_density_coverage(real, fake),
    }


def _mixture_figures(mixture: Mixture) -> Metric:
    def figures(real: Array, fake: Array) -> dict[str, float]:
        modes, share = mode_coverage(fake, mixture.centers, mixture.sd)
        return {"modes_covered": modes, "high_quality_share": share}

    return figures


def _figures(found: dict[str, metrics.Figure]) -> dict[str, Figure]:
    return {
        name: Figure(
            value=m.value,
            floor=m.floor,
            interval=(max(m.low, 0), min(m.high, 1)) if name in SHARES else (m.low, m.high),
            n=m.n,
            better="lower" if name in LOWER_IS_BETTER else "higher",
        )
        for name, m in found.items()
    }
