"""Judging a model on held-out data: every figure beside its floor, with an interval."""

from __future__ import annotations

import numpy as np
import torch

from models.config import EvaluationConfig
from models.model import Model
from models.record import Results
from training.data.dataset import Dataset, Mixture
from training.data.sources.cache import take
from training.judging.classifier import classify, fit_classifier
from training.judging.extractors import FeatureExtractor, choose_extractor
from training.judging.figures import HEADLINES, distances, figure
from training.judging.intervals import Estimate, measure
from training.judging.metrics import (
    Metric,
    autocovariance,
    mode_coverage,
    precision_recall_density_coverage,
)

Array = np.ndarray
SAMPLE_SEED = 0
"""Seed of the judged samples: two evaluations of one model agree."""
MAX_CLASSIFIED = 20_000
"""Items, at most, that the classifier is trained on and that it classifies."""


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
    n = config.samples
    extractor = extractor if model.is_image else None
    if model.is_image:  # features of more items would not be used
        n = min(n, data.card.heldout_count, data.card.training_count)
        extractor = extractor or choose_extractor(config, data)

    def points(items: Array) -> Array:
        if extractor:
            return extractor(items)
        return model.scaling.to_model(torch.from_numpy(items)).double().numpy()

    heldout = points(data.some(n, heldout=True))
    training = points(data.some(n, heldout=False))
    fake = points(model.sample(SAMPLE_SEED, n))
    estimates = dict[str, Estimate]()
    for metric in _metrics(data):
        estimates |= measure(metric, heldout, fake, training)
    estimates |= class_accuracy(model, data)
    return Results(
        extractor=extractor.card if extractor else None,
        figures={name: figure(name, estimate) for name, estimate in estimates.items()},
    )


def class_accuracy(model: Model, data: Dataset) -> dict[str, Estimate]:
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
    places = data.places(MAX_CLASSIFIED, heldout=False)
    classifier = fit_classifier(
        model.scaling.to_model(torch.from_numpy(take(data.items, places))),
        torch.from_numpy(data.labels[places]),
        len(model.classes),
    )
    places = data.places(MAX_CLASSIFIED, heldout=True)
    rows = []
    for items, found in (
        (take(data.items, places), data.labels[places]),
        (model.sample(SAMPLE_SEED, len(places)), model.labels(SAMPLE_SEED, len(places))),
    ):
        labels = torch.from_numpy(found)
        answers = classify(classifier, model.scaling.to_model(torch.from_numpy(items)))
        rows.append(torch.stack([labels, (answers == labels).long()], dim=1).numpy())
    real, fake = rows
    return measure(_accuracies, real, fake, real)


def _accuracies(real: Array, fake: Array) -> dict[str, float]:
    """Shares of items that were classified as their label.

    Args:
        real: not used; a metric takes two sets.
        fake: ``(N, 2)``, for each item its label and 1 if the classifier found it, else 0.
    """
    by_class = [fake[fake[:, 0] == label, 1].mean() for label in np.unique(fake[:, 0])]
    return {
        "class_accuracy": float(fake[:, 1].mean()),
        "lowest_class_accuracy": float(min(by_class)),
    }


def _metrics(data: Dataset) -> list[Metric]:
    """The metrics that suit a data set, in the order of the figures."""
    kind = data.card.kind
    general = _distances_and_shares(kind)
    found = [_sequence_metric(general, data.autocovariance) if kind == "sequence" else general]
    if data.card.columns:
        found.append(distances("marginal_wasserstein_1", "correlation_difference"))
    if data.mixture:
        found.append(_mixture_metric(data.mixture))
    return found


def _distances_and_shares(kind: str) -> Metric:
    headlines = distances(*HEADLINES[kind])
    return lambda real, fake: {
        **headlines(real, fake),
        **precision_recall_density_coverage(real, fake),
    }


def _sequence_metric(general: Metric, known: Array | None) -> Metric:
    """Add the autocovariance to a metric of flattened sequences.

    Args:
        general: of points ``(N, T * D)``.
        known: the true autocovariance ``(T, D)``; None: the held-out items' own.
    """

    def compute(real: Array, fake: Array) -> dict[str, float]:
        lags = max(1, real.shape[1] // 2)
        target = autocovariance(real, lags) if known is None else known[:lags]
        error = np.sqrt(np.mean((autocovariance(fake, lags) - target) ** 2))
        flat = general(real.reshape(len(real), -1), fake.reshape(len(fake), -1))
        return {"autocovariance_error": float(error), **flat}

    return compute


def _mixture_metric(mixture: Mixture) -> Metric:
    def compute(real: Array, fake: Array) -> dict[str, float]:
        modes, share = mode_coverage(fake, mixture.centers, mixture.sd)
        return {"modes_covered": modes, "high_quality_share": share}

    return compute
