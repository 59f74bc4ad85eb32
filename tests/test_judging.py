"""What a model is judged by, from its samples and the data, against other ways to compute it."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from models.config import EvaluationConfig
from models.errors import ConfigError, UserError
from models.record import DataCard, Figure
from models.sampling import latents
from tests.artifacts import make_artifact, tiny_config
from training.data.dataset import Dataset
from training.data.raw import Mixture
from training.judging import evaluate
from training.judging.classes import Labelled, class_distances
from training.judging.classifier import fit_classifier
from training.judging.evaluate import (
    Array,
    class_accuracy,
    critic_membership,
    judge,
    judge_again,
    require_evaluation,
)
from training.judging.extractors import load_extractor
from training.judging.headline import headline, headline_and_error
from training.judging.image_metrics import measure_infinity, vendi_score
from training.judging.intervals import half_sample_margins, kernel_distance_error
from training.judging.metrics import (
    autocovariance,
    correlation_difference,
    frechet_distance,
    kernel_distance,
    marginal_wasserstein_1,
    mode_coverage,
    precision_recall_density_coverage,
    sliced_wasserstein_1,
    wasserstein_1,
)

CPU = torch.device("cpu")
COPIES = ["authenticity", "membership_auroc", "critic_membership_auroc"]
NEIGHBOURS = ["precision", "recall", "density", "coverage"]
SAMPLES = 40


def dataset(items: Array, heldout: int, labels: Array | None = None, **card: Any) -> Dataset:
    """Items of which some, spread over all, are held out; they are scaled by 2 and shifted by 1."""
    count, shape = len(items), items.shape[1:]
    kind = {1: "vector", 2: "sequence", 3: "image"}[len(shape)]
    if kind == "image":
        shape = (shape[2], *shape[:2])
    features = 0 if kind == "image" else shape[-1]
    is_heldout = default_rng(1).permutation(np.arange(count) < heldout)
    described = {
        "name": "made up", "source": "made-up.npy", "licence": None, "kind": kind, "shape": shape,
        "count": count, "training_count": count - heldout, "heldout_count": heldout,
        "heldout_fraction": heldout / count, "sha256": "", "offset": [1.0] * features,
        "scale": [2.0] * features, **card,
    }  # fmt: skip
    return Dataset(items, is_heldout, labels, DataCard(**described), None)


class Showing:
    """A model that shows given items, and scores items by their mean."""

    device = CPU

    def __init__(self, data: Dataset, shown: Array, asked: Array | None = None) -> None:
        self.is_image, self.scaling = data.card.kind == "image", data.scaling
        self.classes = data.card.classes
        self.shown, self.asked = shown, asked

    def sample(self, seed: int, count: int) -> Array:
        assert seed == evaluate.SAMPLE_SEED
        return self.shown[:count]

    def labels(self, seed: int, count: int) -> Array | None:
        return None if self.asked is None else self.asked[:count]

    def score(self, items: Array, labels: Array | None = None) -> Array:
        assert (labels is None) == (not self.classes)
        return items.reshape(len(items), -1).mean(axis=1)


def judged(model: Any, data: Dataset, **config: Any) -> dict[str, Figure]:
    return judge(model, data, EvaluationConfig(**{"samples": SAMPLES, **config})).figures


def authentic_share(points: Array, training: Array) -> float:
    """Of points, how many lie farther from the nearest training item than that from the others."""
    between = cdist(training, training)
    np.fill_diagonal(between, np.inf)
    found = cdist(points, training)
    return float((found.min(axis=1) > between.min(axis=1)[found.argmin(axis=1)]).mean())


def attack(training: Array, heldout: Array, fake: Array) -> float:
    """Area under the curve of the attack that takes what is near a sample for a training item."""
    near = [-cdist(x, fake).min(axis=1) for x in (training, heldout)]
    truth = [1] * len(training) + [0] * len(heldout)
    return float(roc_auc_score(truth, np.concatenate(near)))


def require(
    figures: dict[str, Figure], metric: Any, real: Array, fake: Array, known: Array
) -> None:
    """Require a metric's values, floors and margins of figures, of sets of one size.

    Which halves the margins are of is not said, so that they may differ by as much as two draws of
    20 halves do.
    """
    values, floors = metric(real, fake), metric(real, known)
    margins = half_sample_margins(metric, real, fake, repeats=60)
    for name, value in values.items():
        found = figures[name]
        assert found.value == pytest.approx(value, rel=1e-6, abs=1e-9), name
        assert found.floor == pytest.approx(floors[name], rel=1e-6, abs=1e-9), name
        assert found.n == len(real), name
        low, high = found.interval
        if 0 < low < high < 1 and name != "kernel_distance":  # it has a margin of its own
            assert 0.4 < (high - low) / 2 / margins[name] < 2.5, name


@pytest.mark.parametrize("searched", [20, 70, 5000])
def test_vectors_are_judged_in_the_critic_s_units_and_by_what_they_give_away(
    searched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies are sought among the training items that are compared, and some more."""
    rng = default_rng(0)
    data = dataset(rng.normal(1, 2, (130, 2)).astype(np.float32), 50)
    shown = rng.normal(1.5, 2, (SAMPLES, 2)).astype(np.float32)
    shown[::4] = data.training[:10] + 0.01
    monkeypatch.setattr(evaluate, "MAX_SEARCHED", searched)
    monkeypatch.setattr(evaluate, "AT_ONCE", 16)
    figures = judged(Showing(data, shown), data)
    assert list(figures) == ["wasserstein_1", "sliced_wasserstein_1", *NEIGHBOURS, *COPIES]

    def points(items: Array) -> Array:
        return (items.astype(np.float64) - 1) / 2

    chosen = [data.sample_indices(SAMPLES, heldout=heldout) for heldout in (True, False)]
    real, known = (points(data.items[indices]) for indices in chosen)
    fake = points(shown)

    def metric(real: Array, fake: Array) -> dict[str, float]:
        found = precision_recall_density_coverage(real, fake)
        found["wasserstein_1"] = wasserstein_1(real, fake)
        found["sliced_wasserstein_1"] = sliced_wasserstein_1(real, fake)
        return found

    require(figures, metric, real, fake, known)
    sought = np.union1d(chosen[1], data.sample_indices(searched, heldout=False))
    among = points(data.items[sought])
    found = figures["authenticity"]
    value = authentic_share(fake, among)
    assert (found.value, found.floor) == pytest.approx((value, authentic_share(real, among)))
    margin = 1.96 * np.sqrt(value * (1 - value) / SAMPLES)
    assert found.interval == pytest.approx((value - margin, value + margin))
    assert found.n == SAMPLES
    found = figures["membership_auroc"]
    assert (found.value, found.floor) == pytest.approx((attack(known, real, fake), 0.5))
    assert found.interval[0] < found.value < found.interval[1]
    found = figures["critic_membership_auroc"]
    truth, means = [1] * SAMPLES + [0] * SAMPLES, np.concatenate([known, real]).mean(axis=1)
    assert found.value == pytest.approx(roc_auc_score(truth, means))
    assert (found.floor, found.n) == (0.5, SAMPLES)


@pytest.mark.parametrize("known", [True, False])
def test_sequences_have_an_autocovariance_and_are_points_of_all_values(known: bool) -> None:
    """The error is of half the lags, from the process's own values where it is known."""
    rng = default_rng(0)
    data = dataset(rng.normal(1, 2, (130, 7, 2)).astype(np.float32), 50)
    own = rng.normal(1, 1, (7, 2))
    if known:
        data = dataclasses.replace(data, autocovariance=own)
    shown = rng.normal(1.5, 2, (SAMPLES, 7, 2)).astype(np.float32)
    figures = judged(Showing(data, shown), data)
    assert list(figures) == ["autocovariance_error", "sliced_wasserstein_1", *NEIGHBOURS, *COPIES]
    chosen = [data.sample(SAMPLES, heldout=heldout) for heldout in (True, False)]
    real, training, fake = ((x.astype(np.float64) - 1) / 2 for x in (*chosen, shown))

    def metric(real: Array, fake: Array) -> dict[str, float]:
        expected = own[:3] if known else autocovariance(real, 3)
        error = np.sqrt(np.mean((autocovariance(fake, 3) - expected) ** 2))
        one, other = (x.reshape(len(x), 14) for x in (real, fake))
        found = precision_recall_density_coverage(one, other)
        return {
            **found,
            "autocovariance_error": float(error),
            "sliced_wasserstein_1": sliced_wasserstein_1(one, other),
        }

    require(figures, metric, real, fake, training)
    flat = [x.reshape(-1, 14) for x in (training, real, fake)]
    assert figures["membership_auroc"].value == pytest.approx(attack(*flat))
    assert figures["authenticity"].floor == pytest.approx(
        authentic_share(flat[1], ((data.training.astype(np.float64) - 1) / 2).reshape(-1, 14))
    )


def test_sequences_of_one_step_have_one_lag() -> None:
    items = default_rng(0).normal(1, 2, (90, 1, 1)).astype(np.float32)
    data = dataset(items, 45)
    shown = 3 * items[::2]
    found = judged(Showing(data, shown), data)["autocovariance_error"].value
    variances = [x[:, 0].var() / 4 for x in (data.sample(40, heldout=True), shown[:SAMPLES])]
    assert found == pytest.approx(variances[1] - variances[0], rel=1e-5)


@pytest.mark.parametrize(
    ("heldout", "training", "asked", "count"),
    [(50, 80, 40, 40), (30, 100, 40, 30), (95, 35, 40, 35), (140, 130, 200, 130)],
)
def test_images_are_judged_over_features_of_as_many_items_as_there_are_of_each(
    heldout: int, training: int, asked: int, count: int
) -> None:
    """The last have enough points for the 64 features of the limit of the Fréchet distance."""
    rng = default_rng(0)
    data = dataset(rng.integers(0, 256, (heldout + training, 8, 8, 1), np.uint8), heldout)
    shown = rng.integers(0, 200, (asked, 8, 8, 1), np.uint8)
    extract = load_extractor("pixels", EvaluationConfig())
    model: Any = Showing(data, shown)
    results = judge(model, data, EvaluationConfig(samples=asked))
    assert results.extractor == extract.card
    figures = results.figures
    limit = ["frechet_distance_infinity"] if count > 128 else []
    names = ["kernel_distance", "frechet_distance", *NEIGHBOURS, "vendi_score", *limit, *COPIES]
    assert list(figures) == names
    chosen = [data.sample(count, heldout=heldout) for heldout in (True, False)]
    real, known, fake = (extract(x) for x in (*chosen, shown[:count]))

    def metric(real: Array, fake: Array) -> dict[str, float]:
        found = precision_recall_density_coverage(real, fake)
        found["kernel_distance"] = kernel_distance(real, fake)
        found["frechet_distance"] = frechet_distance(real, fake)
        found["vendi_score"] = vendi_score(fake)
        return found

    require(figures, metric, real, fake, known)
    assert figures["membership_auroc"].value == pytest.approx(attack(known, real, fake))
    for name, estimate in measure_infinity(real, fake, known).items():
        found = figures[name]
        assert (found.value, found.floor) == (estimate.value, estimate.floor)
        assert found.interval == (estimate.low, estimate.high)


def test_an_extractor_that_is_given_is_taken_for_images_alone() -> None:
    rng = default_rng(0)
    extract = load_extractor("pixels", EvaluationConfig())
    other = extract._replace(card=extract.card.model_copy(update={"name": "another"}))
    data = dataset(rng.integers(0, 256, (60, 8, 8, 1), np.uint8), 30)
    config = EvaluationConfig(samples=20)
    model: Any = Showing(data, data.items)
    assert judge(model, data, config, other).extractor == other.card
    data = dataset(rng.normal(size=(60, 2)).astype(np.float32), 30)
    model = Showing(data, data.items)
    assert judge(model, data, config, other).extractor is None


def test_a_mixture_s_modes_are_counted_and_columns_compared_one_by_one() -> None:
    rng = default_rng(0)
    centers, sd = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), 0.1
    drawn = centers[rng.integers(3, size=90)] + rng.normal(0, sd, (90, 2))
    data = dataset(drawn.astype(np.float32), 45, offset=[0.0] * 2, scale=[1.0] * 2)
    shown = np.where(np.arange(SAMPLES)[:, None] < 30, drawn[:SAMPLES], 9.0)
    plain = list(judged(Showing(data, shown), data))
    data = dataclasses.replace(data, mixture=Mixture(centers, sd))
    figures = judged(Showing(data, shown), data)
    assert list(figures) == [*plain[:-3], "modes_covered", "high_quality_share", *COPIES]
    covered, good = mode_coverage(shown, centers, sd)
    assert (figures["modes_covered"].value, figures["high_quality_share"].value) == (covered, good)
    assert figures["modes_covered"].floor == 3
    card = data.card.model_copy(update={"columns": ["x", "y"]})
    figures = judged(Showing(data, shown), dataclasses.replace(data, card=card, mixture=None))
    of_columns = ["marginal_wasserstein_1", "correlation_difference"]
    assert list(figures) == [*plain[:-3], *of_columns, *COPIES]
    real = data.sample(SAMPLES, heldout=True)
    assert figures[of_columns[0]].value == pytest.approx(marginal_wasserstein_1(real, shown))
    assert figures[of_columns[1]].value == pytest.approx(correlation_difference(real, shown))


NAMES = ["left", "middle", "right"]


def labelled(count: int, heldout: int) -> Dataset:
    """Points around -2, 0 and 2, of classes that nobody confuses."""
    rng = default_rng(0)
    labels = rng.integers(3, size=count)
    items = (2 * labels[:, None] - 2 + rng.normal(0, 0.1, (count, 1))).astype(np.float32)
    return dataset(items, heldout, labels, classes=NAMES, offset=[0.0], scale=[1.0])


def test_samples_are_of_the_class_that_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The classifier's share is of as many as there are held-out items, its floor of those.

    It has learned from training items alone: held-out ones of other labels are all wrong to it.
    """
    quick = functools.partial(fit_classifier, steps=60)  # enough for classes that are far apart
    monkeypatch.setattr(evaluate, "fit_classifier", quick)
    data = labelled(180, 60)
    assert data.labels is not None
    asked = np.arange(100) % 3
    made = np.where(np.arange(100) < np.array([50, 40, 30])[asked], asked, (asked + 1) % 3)
    shown = (2.0 * made[:, None] - 2 + default_rng(2).normal(0, 0.1, (100, 1))).astype(np.float32)
    figures = judged(Showing(data, shown, asked), data, samples=50)
    right = (asked == made)[:60]
    found = figures["class_accuracy"]
    assert (found.value, found.floor, found.n) == (right.mean(), 1, 60)
    found = figures["lowest_class_accuracy"]
    assert (found.value, found.floor, found.n) == (right[asked[:60] == 2].mean(), 1, 60)
    chosen = [data.sample_indices(50, heldout=heldout) for heldout in (True, False)]
    real, known = (Labelled(data.items[x].astype(np.float64), data.labels[x]) for x in chosen)
    fake = Labelled(shown[:50].astype(np.float64), asked[:50])
    for name, expected in class_distances(real, fake, known, NAMES).items():
        value = figures[name].value, figures[name].floor, *figures[name].interval
        assert value == pytest.approx(expected[:4], rel=1e-6), name
        assert (figures[name].n, figures[name].of_class) == expected[4:]
    other = np.where(data.is_heldout, (data.labels + 1) % 3, data.labels)
    model: Any = Showing(data, shown, asked)
    found_again = class_accuracy(model, dataclasses.replace(data, labels=other))
    assert found_again["class_accuracy"].floor == 0


@pytest.mark.parametrize("change", ["no labels", "no classes", "other classes"])
def test_a_model_of_other_classes_is_not_judged_by_class(change: str) -> None:
    """Nor are a model's critic's scores, which need labels; a model without classes has scores."""
    data, labels = labelled(90, 45), default_rng(0).integers(3, size=90)
    model: Any = Showing(data, data.items, labels)
    if change == "no labels":
        data = dataclasses.replace(data, labels=None)
    elif change == "no classes":
        model.classes = []
    else:
        model.classes = ["left", "middle", "wrong"]
    assert class_accuracy(model, data) == {}
    figures = judged(model, data)
    assert not [name for name in figures if "class" in name]
    assert ("critic_membership_auroc" in figures) == (change == "no classes")
    assert (critic_membership(model, data, 30) != {}) == (change == "no classes")


def test_a_critic_of_classes_scores_each_item_with_its_own_label() -> None:
    """It gives away which items it has seen by their labels alone, if it was made so."""
    data = labelled(100, 40)
    assert data.labels is not None
    known = np.flatnonzero(data.is_training)
    labels = np.where(data.is_heldout, 0, 1)

    class Knowing(Showing):
        def score(self, items: Array, labels: Array | None = None) -> Array:
            assert labels is not None
            return labels.astype(float)

    model: Any = Knowing(data, data.items, labels)
    found = critic_membership(model, dataclasses.replace(data, labels=labels), 200)
    estimate = found["critic_membership_auroc"]
    assert (estimate.value, estimate.floor, estimate.n) == (1, 0.5, min(len(known), 40))
    assert (
        critic_membership(model, dataclasses.replace(data, labels=labels), 30)[
            "critic_membership_auroc"
        ].n
        == 30
    )


@pytest.mark.parametrize(
    ("items", "settings", "told"),
    [
        (np.zeros((40, 2), np.float32), {"target": "x"}, "evaluation.target: only a table"),
        (np.zeros((40, 2), np.float32), {"extractor": "onnx"}, None),
        (np.zeros((40, 9, 8, 1), np.uint8), {"extractor": "pixels"}, None),
        (np.zeros((40, 9, 8, 1), np.uint8), {"extractor": "digits-cnn-v1"}, "does not take"),
        (np.zeros((40, 9, 8, 1), np.uint8), {"extractor": "auto"}, None),
        (np.zeros((40, 9, 8, 1), np.uint8), {"extractor": "classifier"}, None),
    ],
)
def test_what_does_not_suit_the_data_is_told_before_training(
    items: Array, settings: dict[str, Any], told: str | None
) -> None:
    data, config = dataset(items, 20), EvaluationConfig.model_construct(**settings)
    if told is None:
        require_evaluation(config, data)
    else:
        with pytest.raises(ConfigError, match=told):
            require_evaluation(config, data)


@pytest.mark.parametrize(
    ("kind", "shape", "remedy"),
    [
        ("image", (90, 8, 8, 3), "bring grey images"),
        ("image", (90, 9, 8, 1), "--set data.size=8"),
        ("image", (90, 8, 9, 1), "--set data.size=8"),
        ("image", (90, 16, 16, 3), "bring grey images and --set data.size=8"),
        ("rgb", (90, 16, 12, 1), "bring images in colour"),
        ("rgb", (90, 8, 8, 3), "bring images of 12x16 pixels"),
        ("rgb", (90, 3), "bring items of that shape"),
        ("vector", (90, 3), "bring items of that shape"),
        ("vector", (120, 8, 8, 1), "bring items of that shape"),
    ],
)
def test_how_items_come_to_the_shape_that_a_model_takes_is_told(
    kind: str, shape: tuple[int, ...], remedy: str, tmp_path: Path
) -> None:
    folder = make_artifact(tmp_path / "a", kind)
    rng = default_rng(0)
    items = rng.integers(0, 256, shape, np.uint8) if len(shape) == 4 else rng.normal(size=shape)
    np.save(tmp_path / "d.npy", items)
    with pytest.raises(UserError, match=f"the model takes .*: {remedy}$"):
        judge_again(folder, str(tmp_path / "d.npy"))


class Shifted(nn.Module):
    """A generator that adds numbers to its latents, and others for each class."""

    def __init__(self, shape: tuple[int, ...], shift: float) -> None:
        super().__init__()
        self.shape, self.shift = shape, nn.Parameter(torch.full(shape, shift))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not self.training
        items = z.reshape(-1, *self.shape) + self.shift
        if labels is not None:
            items = items + 5 * labels.reshape(-1, *[1] * len(self.shape))
        return items.clamp(-1, 1) if len(self.shape) == 3 else items


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 8, 8)])
@pytest.mark.parametrize("count", [30, 70])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_deciding_figure_is_of_the_first_samples_and_as_many_held_out_items(
    shape: tuple[int, ...], count: int, conditional: bool
) -> None:
    """It is the first of its kind's, of 60 held-out items at most, and leaves the network alone."""
    rng, is_image = default_rng(0), len(shape) == 3
    items = (
        rng.integers(0, 256, (130, 8, 8, 1), np.uint8)
        if is_image
        else rng.normal(size=(130, *shape)).astype(np.float32)
    )
    labels = rng.integers(2, size=130)
    data = dataset(items, 60, labels, classes=["a", "b"])
    size = int(np.prod(shape))
    config = tiny_config("vector", conditional=conditional, generator={"latent_size": size})
    generator = Shifted(shape, 0.5).train()
    extract = load_extractor("pixels", EvaluationConfig()) if is_image else None
    found = headline(config, data, generator, extract, count)
    assert generator.training
    chosen = data.sample_indices(count, heldout=True)
    made: Array = latents(0, 0, len(chosen), size).reshape(-1, *shape) + np.float32(0.5)
    if conditional:
        made += 5 * labels[chosen].reshape(-1, *[1] * len(shape)).astype(np.float32)
    if extract is None:
        real = (items[chosen].astype(np.float64) - 1) / 2
        real, made = (x.reshape(len(x), -1).astype(np.float64) for x in (real, made))
        metric = wasserstein_1 if len(shape) == 1 else sliced_wasserstein_1
        assert found == pytest.approx(metric(real, made), rel=1e-5)
    else:
        levels = np.rint((made.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
        expected = kernel_distance(extract(items[chosen]), extract(levels))
        assert found == pytest.approx(expected, rel=1e-4)
    error = headline_and_error(config, data, generator, extract, count)[1]
    if is_image:
        features = extract(items[chosen]), extract(levels)
        assert error == pytest.approx(kernel_distance_error(*features), rel=1e-4)
    else:
        assert error == 0


def test_a_generator_of_what_is_no_number_has_no_deciding_figure() -> None:
    data = dataset(default_rng(0).normal(size=(60, 2)).astype(np.float32), 30)
    config = tiny_config("vector", generator={"latent_size": 2})
    assert np.isnan(headline(config, data, Shifted((2,), np.inf), None))
    assert np.isfinite(headline(config, data, Shifted((2,), 0.0), None))
