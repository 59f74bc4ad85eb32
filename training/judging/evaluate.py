"""Judging a model on held-out data: every figure beside its floor, with an interval."""

from __future__ import annotations

import numpy as np
import torch

from models.config import EvaluationConfig
from models.model import Model
from models.record import Figure, Results
from training.data.dataset import Dataset, Mixture
from training.data.sources.cache import take
from training.judging import metrics
from training.judging.classifier import classify, fit_classifier
from training.judging.extractors import FeatureExtractor, choose_extractor
from training.judging.metrics import (
    Metric,
    autocovariance,
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
CLASSIFIED = 20_000
"""Items, at most, that the classifier is trained on and that it classifies."""
SHARES = {
    "precision",
    "recall",
    "coverage",
    "high_quality_share",
    "class_accuracy",
    "lowest_class_accuracy",
}
"""Figures from 0 to 1; their intervals are cut there."""
LOWER_IS_BETTER = {
    "wasserstein_1",
    "sliced_wasserstein_1",
    "kernel_distance",
    "frechet_distance",
    "marginal_wasserstein_1",
    "correlation_difference",
    "autocovariance_error",
}


def judge(
    model: Model,
    data: Dataset,
    config: EvaluationConfig,
    extractor: FeatureExtractor | None = None,
) -> Results:
    """Judge the generator, as it is served, against held-out real data.

    Vectors and sequences are compared in the critic's units, images over an extractor's features. A
    class-conditional one is judged by `class_accuracy` too, if the data has the same classes.

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
        found = measure(_image_figures, heldout, fake, training) | class_accuracy(model, data)
        return Results(extractor=extractor.card, figures=_figures(found))
    heldout, training = _real(data, config.samples)
    sets = (heldout, model.sample(SEED, config.samples), training)
    heldout, fake, training = (
        model.scaling.to_model(torch.from_numpy(x)).double().numpy() for x in sets
    )
    is_sequence = len(model.shape) == 2
    figures = _sequence_figures(data.autocovariance) if is_sequence else _vector_figures
    found = measure(figures, heldout, fake, training)
    if data.card.columns:
        found |= measure(_table_figures, heldout, fake, training)
    if data.mixture:
        found |= measure(_mixture_figures(data.mixture), heldout, fake, training)
    found |= class_accuracy(model, data)
    return Results(extractor=None, figures=_figures(found))


def class_accuracy(model: Model, data: Dataset) -> dict[str, metrics.Figure]:
    """How often an independent classifier finds the class that a sample was asked for.

    The classifier has seen real training items only. The floor is its accuracy on held-out real
    items; labels are distributed as in training.

    Args:
        model: any; one without classes has no such figure.
        data: with the model's classes, or else there is no such figure.

    Returns:
        ``class_accuracy``, and ``lowest_class_accuracy`` of any one class; or nothing.
    """
    if data.labels is None or not model.classes or model.classes != data.card.classes:
        return {}
    places = data.places(CLASSIFIED, heldout=False)
    classifier = fit_classifier(
        model.scaling.to_model(torch.from_numpy(take(data.items, places))),
        torch.from_numpy(data.labels[places]),
        len(model.classes),
    )
    places = data.places(CLASSIFIED, heldout=True)
    rows = []
    for items, found in (
        (take(data.items, places), data.labels[places]),
        (model.sample(SEED, len(places)), model.labels(SEED, len(places))),
    ):
        labels = torch.from_numpy(found)
        answers = classify(classifier, model.scaling.to_model(torch.from_numpy(items)))
        rows.append(torch.stack([labels, (answers == labels).long()], dim=1).numpy())
    real, fake = rows
    return measure(_accuracies, real, fake, real)


def _accuracies(real: Array, fake: Array) -> dict[str, float]:
    """Of rows of a label and whether it was found."""
    each = [fake[fake[:, 0] == label, 1].mean() for label in np.unique(fake[:, 0])]
    return {
        "class_accuracy": float(fake[:, 1].mean()),
        "lowest_class_accuracy": float(min(each)),
    }


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


def _sequence_figures(known: Array | None) -> Metric:
    """``known``: the true autocovariance ``(T, D)``; without it, the held-out items' own."""

    def figures(real: Array, fake: Array) -> dict[str, float]:
        lags = max(1, real.shape[1] // 2)
        target = autocovariance(real, lags) if known is None else known[:lags]
        error = np.sqrt(np.mean((autocovariance(fake, lags) - target) ** 2))
        real, fake = (x.reshape(len(x), -1) for x in (real, fake))
        return {
            "autocovariance_error": float(error),
            "sliced_wasserstein_1": sliced_wasserstein_1(real, fake),
            **precision_recall_density_coverage(real, fake),
        }

    return figures


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
