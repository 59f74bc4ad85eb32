"""Judging a model on held-out data: every figure beside its floor, with an interval."""

from __future__ import annotations

import numpy as np
import torch

from models.artifact import Figure, Model, Results
from models.config import EvaluationConfig
from training import metrics
from training.data import Dataset, Mixture
from training.extractor import FeatureExtractor, choose_extractor
from training.metrics import (
    Metric,
    correlation_difference,
    frechet_distance,
    kernel_distance,
    marginal_wasserstein_1,
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
    "marginal_wasserstein_1",
    "correlation_difference",
}


def judge(
    model: Model,
    data: Dataset,
    config: EvaluationConfig,
    extractor: FeatureExtractor | None = None,
) -> Results:
    """Judge the generator, as it is served, against held-out real data.

    Vectors are compared in the critic's units, images over an extractor's features.

    Args:
        model: the generator and its scaling.
        data: held-out items are compared with; training items give the floor.
        config: how many samples, and which features.
        extractor: of images; None: the one that ``config`` means for the data.

    Returns:
        Every figure with its floor and interval, and the extractor.
    """
    if model.is_image:
        n = min(config.samples, data.card.heldout_count, data.card.training_count)
        fake, heldout, training = model.sample(SEED, n), *_real(data, n)
        extractor = extractor or choose_extractor(config, data)
        heldout, fake, training = (extractor(x) for x in (heldout, fake, training))
        found = measure(_image_figures, heldout, fake, training)
        return Results(extractor=extractor.card, figures=_figures(found))
    heldout, training = _real(data, config.samples)
    sets = (heldout, model.sample(SEED, config.samples), training)
    heldout, fake, training = (
        model.scaling.to_model(torch.from_numpy(x)).double().numpy() for x in sets
    )
    found = measure(_vector_figures, heldout, fake, training)
    if data.card.columns:
        found |= measure(_table_figures, heldout, fake, training)
    if data.mixture:
        found |= measure(_mixture_figures(data.mixture), heldout, fake, training)
    return Results(extractor=None, figures=_figures(found))


def _real(data: Dataset, n: int) -> tuple[Array, Array]:
    """At most n held-out and n training items: more would not be used, and may not fit memory."""
    return data.some(n, heldout=True), data.some(n, heldout=False)


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


def _table_figures(real: Array, fake: Array) -> dict[str, float]:
    return {
        "marginal_wasserstein_1": marginal_wasserstein_1(real, fake),
        "correlation_difference": correlation_difference(real, fake),
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
