"""Judging a model on held-out data: every figure beside its floor, with an interval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.artifact import load_artifact
from models.config import DataConfig, EvaluationConfig
from models.device import require_device
from models.errors import ConfigError, UserError
from models.model import Model
from models.record import DataCard, Results
from training.data.dataset import Dataset, load_data
from training.judging.classes import Labelled, class_distances
from training.judging.classifier import classify, fit_classifier
from training.judging.copying import authentic, membership
from training.judging.extractors import (
    CLASSIFIER,
    FeatureExtractor,
    artifact_weights,
    choose_extractor,
    load_extractor,
)
from training.judging.figures import distances, figure, headlines
from training.judging.image_metrics import measure_infinity, vendi_score
from training.judging.intervals import Estimate, measure
from training.judging.metrics import (
    Metric,
    autocovariance,
    mode_coverage,
    precision_recall_density_coverage,
)
from training.judging.neighbours import nearest_distances
from training.judging.tables.judge import judge_table, target_field
from training.progress import phase, silent

Array = np.ndarray
SAMPLE_SEED = 0
"""Seed of the judged samples: two evaluations of one model agree."""
MAX_SEARCHED = 5000
"""Training items, at most, among which the nearest to a sample is sought."""
AT_ONCE = 2500
"""Training items in memory at once."""
MAX_CLASSIFIED = 20_000
"""Items, at most, that the classifier is trained on and that it classifies."""


def judge(
    model: Model,
    data: Dataset,
    config: EvaluationConfig,
    extractor: FeatureExtractor | None = None,
) -> Results:
    """Judge the generator, as it is served, against held-out real data.

    Vectors and sequences are compared in the critic's units, images over an extractor's features,
    tables by their rows (`training.judging.tables.judge.judge_table`). A
    class-conditional generator is judged by `class_accuracy` and
    `training.judging.classes.class_distances` too, if the data have its classes. What tells if
    training items are copied or given away, by samples and by the critic, comes last.

    Args:
        model: the generator and its scaling; it is judged on its device.
        data: its held-out items are compared with; its training items give the floor.
        config: number of samples, and the extractor's name.
        extractor: makes the features of images; None: the one that ``config`` means for the data.

    Returns:
        Every figure with its floor and interval, and the extractor.
    """
    n = config.samples
    if data.card.table is not None:
        figures = judge_table(model, data, config, SAMPLE_SEED)
        for name, estimate in critic_membership(model, data, n).items():
            figures[name] = figure(name, estimate)
        return Results(extractor=None, figures=figures)
    extractor = extractor if model.is_image else None
    if model.is_image:  # features of more items would not be used
        n = min(n, data.card.heldout_count, data.card.training_count)
        extractor = (extractor or choose_extractor(config, data)).on(model.device)

    def points(items: Array) -> Array:
        if extractor:
            return extractor(model.scaling.to_levels(items))
        return model.scaling.to_model(torch.from_numpy(items)).double().numpy()

    real, trained = (data.sample_indices(n, heldout=heldout) for heldout in (True, False))
    searched = np.union1d(trained, data.sample_indices(MAX_SEARCHED, heldout=False))
    parts = np.split(searched, range(AT_ONCE, len(searched), AT_ONCE))
    known = np.concatenate([points(data.items_at(part)) for part in parts])
    heldout, training = points(data.items_at(real)), known[np.searchsorted(searched, trained)]
    fake = points(model.sample(SAMPLE_SEED, n))
    estimates = measure(_figures(data, model.device), heldout, fake, training, device=model.device)
    if extractor:
        estimates |= measure_infinity(heldout, fake, training)
    estimates |= class_accuracy(model, data)
    heldout, training, fake, known = (
        x.reshape(len(x), -1) for x in (heldout, training, fake, known)
    )
    if model.classes and data.labels is not None and model.classes == data.card.classes:
        asked = model.labels(SAMPLE_SEED, n)
        assert asked is not None, "a model with classes has labels"
        estimates |= class_distances(
            Labelled(heldout, data.labels[real]),
            Labelled(fake, asked),
            Labelled(training, data.labels[trained]),
            model.classes,
            model.device,
        )
    estimates["authenticity"] = _authenticity(fake, heldout, known, model.device)
    of_training, of_heldout = (
        -nearest_distances(x, fake, device=model.device) for x in (training, heldout)
    )
    estimates["membership_auroc"] = _area(of_training, of_heldout, n)
    estimates |= critic_membership(model, data, n)
    return Results(
        extractor=extractor.card if extractor else None,
        figures={name: figure(name, estimate) for name, estimate in estimates.items()},
    )


def require_evaluation(config: EvaluationConfig, data: Dataset) -> None:
    """Require that what ``evaluation`` names suits the data, before a model is trained on them.

    A target, if it is set, is a column that can be predicted. Of images, a named extractor can be
    had and takes them; a classifier is trained later.

    Raises:
        ConfigError: it does not suit them, or is not there.
    """
    if config.target is not None and data.card.table is None:
        raise ConfigError("evaluation.target: only a table has columns; leave it out (null)")
    if data.card.table is not None:
        target_field(config.target, data.card.table)
    if data.card.kind == "image" and config.extractor not in ("auto", CLASSIFIER):
        images = data.scaling.to_levels(data.items_at(np.arange(2)))
        load_extractor(config.extractor, config)(images)


def class_accuracy(model: Model, data: Dataset) -> dict[str, Estimate]:
    """Measure how often an independent classifier finds the class that a sample was asked for.

    The classifier has seen real training items only. The floor is its accuracy on held-out real
    items; labels are distributed as in training.

    Args:
        model: the generator and its scaling.
        data: with labels.

    Returns:
        ``class_accuracy``, and the ``lowest_class_accuracy`` among the classes; empty if model and
        data do not have the same classes.
    """
    if data.labels is None or not model.classes or model.classes != data.card.classes:
        return {}

    def inputs(items: Array) -> Tensor:
        return model.scaling.to_model(torch.from_numpy(items))

    training = data.sample_indices(MAX_CLASSIFIED, heldout=False)
    classifier = fit_classifier(
        inputs(data.items_at(training)),
        torch.from_numpy(data.labels[training]),
        len(model.classes),
        device=model.device,
    )

    def answers(items: Array, labels: Array) -> Array:
        correct = classify(classifier, inputs(items)).numpy() == labels
        return np.stack([labels, correct], axis=1)

    heldout = data.sample_indices(MAX_CLASSIFIED, heldout=True)
    n = len(heldout)
    real = answers(data.items_at(heldout), data.labels[heldout])
    asked = model.labels(SAMPLE_SEED, n)
    assert asked is not None, "a model with classes has labels"
    fake = answers(model.sample(SAMPLE_SEED, n), asked)
    return measure(_accuracies, real, fake, real)


def critic_membership(model: Model, data: Dataset, n: int) -> dict[str, Estimate]:
    """Measure how well the critic's scores tell training items from held-out ones.

    Args:
        model: with its critic.
        data: with labels, if the model is class-conditional.
        n: items of each kind, at most.

    Returns:
        ``critic_membership_auroc``; empty if a conditional model and data do not have the same
        classes.
    """
    if model.classes and (data.labels is None or model.classes != data.card.classes):
        return {}

    def scores(heldout: bool) -> Array:
        indices = data.sample_indices(n, heldout=heldout)
        labels = data.labels[indices] if model.classes and data.labels is not None else None
        return model.score(data.items_at(indices), labels)

    training, heldout = scores(False), scores(True)
    n = min(len(training), len(heldout))
    return {"critic_membership_auroc": _area(training, heldout, n)}


def _area(training: Array, heldout: Array, n: int) -> Estimate:
    """The area under the curve of an attack; the floor is that of one that knows nothing."""
    found = membership(training, heldout)
    return Estimate(found.auroc, 0.5, found.low, found.high, n)


def _authenticity(fake: Array, heldout: Array, training: Array, device: torch.device) -> Estimate:
    """The share of samples that are `authentic`; the floor is that of held-out items."""
    n = len(fake)
    is_new = authentic(np.concatenate([fake, heldout]), training, device)
    value, floor = float(is_new[:n].mean()), float(is_new[n:].mean())
    margin = float(1.96 * is_new[:n].std() / np.sqrt(n))
    return Estimate(value, floor, value - margin, value + margin, n)


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


def _figures(data: Dataset, device: torch.device) -> Metric:
    """Make the metric of all figures that suit a data set, in the order of ``run.json``.

    It takes points ``(N, D)``, or sequences ``(N, T, D)``.
    """
    kind, mixture = data.card.kind, data.mixture
    compared = distances(*headlines(data.card), device=device)
    column_distances = distances("marginal_wasserstein_1", "correlation_difference")

    def compute(real: Array, fake: Array) -> dict[str, float]:
        found = dict[str, float]()
        if kind == "sequence":
            error = _autocovariance_error(real, fake, data.autocovariance)
            found["autocovariance_error"] = error
            real, fake = (x.reshape(len(x), -1) for x in (real, fake))
        found |= compared(real, fake)
        found |= precision_recall_density_coverage(real, fake, device=device)
        if kind == "image":
            found["vendi_score"] = vendi_score(fake)
        if data.card.columns:
            found |= column_distances(real, fake)
        if mixture:
            found["modes_covered"], found["high_quality_share"] = mode_coverage(fake, *mixture)
        return found

    return compute


def _autocovariance_error(real: Array, fake: Array, known: Array | None) -> float:
    """Root mean square error of the autocovariance over half the lags.

    Args:
        real: ``(N, T, D)``.
        fake: ``(M, T, D)``.
        known: the true autocovariance ``(T, D)``; None: the real sequences' own.
    """
    lags = max(1, real.shape[1] // 2)
    expected = autocovariance(real, lags) if known is None else known[:lags]
    return float(np.sqrt(np.mean((autocovariance(fake, lags) - expected) ** 2)))


class Evaluation(NamedTuple):
    """A model that was judged again, the data that it was judged on, and its figures."""

    model: Model
    data: Dataset
    results: Results


def judge_again(
    folder: Path,
    source: str | None = None,
    say: Callable[[str], None] = silent,
    device: str = "cpu",
    told: DataConfig | None = None,
) -> Evaluation:
    """Judge a finished model again, over the features that it was judged over in its run.

    Args:
        folder: the artifact's.
        source: data to compare with, as ``data.source``; by default those it was trained on.
        say: takes a line for each thing that the user should know of how the data were read.
        device: ``cpu`` or ``cuda``.
        told: the user's word on how the data are read, as far as it is set; the rest is that of the
            training.

    Returns:
        With every figure, its floor and interval. On the same data and kind of device, those of the
        run; another kind rounds differently.

    Raises:
        UserError: there is no such device, the artifact or the data cannot be used, or they do not
            fit each other.
    """
    model = load_artifact(folder, require_device(device))
    weights = artifact_weights(folder)
    config, judged = model.run.config, model.run.results.extractor
    source = source or config.data.source
    read = config.data.of(source)
    if told:
        read = told.over(read).model_copy(update={"source": source})
    with phase("loading the data"):
        # Held as the model's data, which decides what is held out.
        data = load_data(read, card=model.run.data)
    for note in data.notes:
        say(f"{source}: {note}")
    if data.card.shape != model.shape:
        raise UserError(
            f"{source}: has items of shape {data.card.shape}, and the model takes {model.shape}: "
            f"{_remedy(data.card, model.shape)}"
        )
    with phase("judging"):
        # The same features as in the run, or none: figures over others would not compare.
        extractor = (
            load_extractor(judged.name, config.evaluation, judged.sha256, weights)
            if judged
            else None
        )
        return Evaluation(model, data, judge(model, data, config.evaluation, extractor))


def _remedy(found: DataCard, wanted: tuple[int, ...]) -> str:
    """What makes items of a data set those that a model takes, of the shape that is wanted."""
    if found.kind != "image" or len(wanted) != 3:
        return "bring items of that shape"
    channels, height, width = wanted
    remedies = []
    if found.shape[0] != channels:
        kinds = {1: "grey images", 3: "images in colour"}
        remedies.append(f"bring {kinds.get(channels, f'images of {channels} channels')}")
    if found.shape[1:] != (height, width):
        size = f"images of {width}x{height} pixels"
        remedies.append(f"--set data.size={width}" if width == height else f"bring {size}")
    return " and ".join(remedies)


def evaluate_artifact(folder: Path, source: str | None = None, device: str = "cpu") -> Results:
    """The figures of `judge_again`."""
    return judge_again(folder, source, device=device).results
