"""Class-conditional models, from the network's layers to the command line and the service."""

import dataclasses
import io
import json
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from models.artifact import load_artifact
from models.config import DataConfig, EvaluationConfig
from models.constraints import GradientPenalty, SpectralNorm, WeightClipping
from models.errors import ClassError, ConfigError
from models.formats import encode
from models.model import Model
from models.networks import CriticConfig, GeneratorConfig, build_critic, build_generator
from models.networks.conditional import ProjectionCritic, WithLabels, repeated
from models.networks.parts import ConditionalNorm
from models.sampling import CHUNK, draw_labels
from models.trained import TrainedModel
from tests.artifacts import make_artifact, tiny_config
from tests.servers import Server
from tests.test_app import made, talk
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.engine.runs import Interrupted
from training.judging import evaluate
from training.judging.classes import Labelled, class_distances
from training.judging.classifier import classify, fit_classifier
from training.judging.evaluate import class_accuracy, critic_membership, judge
from training.judging.intervals import kernel_distance_margin
from training.judging.metrics import kernel_distance
from training.reporting.pages import figures_in_words, model_card
from training.reporting.preview import samples_picture
from training.reporting.words import data_in_words
from wgan_cli import main

pytestmark = pytest.mark.usefixtures("charts_undrawn")

CPU = torch.device("cpu")
COUNTS = {"cat": 10, "dog": 60, "no emu": 30}
NORMS = ("none", "batch", "layer", "instance")
NETWORKS = [
    ("mlp", (5,), "none"),
    ("mlp", (5,), "batch"),
    *(("dcgan", (1, 9, 8), norm) for norm in NORMS),
    *(("resnet", (1, 9, 8), norm) for norm in NORMS),
    ("gru", (3, 2), "none"),
    ("lstm", (3, 2), "layer"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_artifact(make_artifact(tmp_path_factory.mktemp("m") / "a", class_counts=COUNTS))


@pytest.mark.parametrize(
    ("plain", "bare"),
    [
        (nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)),
        (nn.GroupNorm(1, 3), nn.GroupNorm(1, 3, affine=False)),
        (nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm2d(3)),
    ],
)
def test_a_conditional_norm_is_one_norm_for_each_class(plain: nn.Module, bare: nn.Module) -> None:
    torch.manual_seed(0)
    norm = ConditionalNorm(bare, 3, classes=2)
    x = torch.randn(4, 3, 5, 6)
    torch.testing.assert_close(norm(x, torch.tensor([0, 1, 0, 1])), plain(x))  # at first
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        plain.weight.copy_(norm.gain.weight[1])  # type: ignore[operator, union-attr]
        plain.bias.copy_(norm.offset.weight[1])  # type: ignore[operator, union-attr]
    torch.testing.assert_close(norm(x, torch.tensor([1, 1, 1, 1])), plain(x))


@pytest.mark.parametrize(("architecture", "shape", "norm"), NETWORKS)
def test_each_sample_follows_its_own_label(
    architecture: str, shape: tuple[int, ...], norm: str
) -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(architecture=architecture, width=4, normalization=norm, latent_size=3)
    generator = build_generator(config, shape, classes=3)
    for module in generator.modules():  # as if trained: at first a norm's classes are all equal
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    generator.eval()
    z = torch.randn(4, 3)
    samples = generator(z, torch.tensor([0, 1, 2, 0]))
    assert samples.shape == (4, *shape)
    changed = generator(z, torch.tensor([0, 2, 2, 0]))
    same = (samples - changed).flatten(1).abs().amax(1) < 1e-6
    assert same.tolist() == [True, False, True, True]
    conditional = any(isinstance(m, ConditionalNorm) for m in generator.modules())
    assert conditional == (len(shape) == 3 and norm != "none")
    left = {type(m) for m in generator.modules() if getattr(m, "affine", False)}
    assert not conditional or not left, "a norm is not conditional"


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [("mlp", (5,)), ("dcgan", (1, 9, 8)), ("resnet", (1, 9, 8)), ("gru", (3, 2))],
)
def test_the_critic_projects(architecture: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(architecture=architecture, width=4), shape, classes=3)
    assert isinstance(critic, ProjectionCritic)
    x, labels = torch.randn(6, *shape), torch.tensor([0, 1, 2, 2, 1, 0])
    features = critic.features(x).detach().numpy()
    vectors = critic.projection.weight.detach().numpy().T
    weight, bias = (p.detach().numpy() for p in critic.head.parameters())
    expected = [f @ weight[0] + bias[0] + f @ vectors[y] for f, y in zip(features, labels)]  # noqa: B905
    np.testing.assert_allclose(critic(x, labels).detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    bound = WithLabels(critic, labels)
    torch.testing.assert_close(bound(x), critic(x, labels))
    torch.testing.assert_close(bound(torch.cat([x, 2 * x]))[6:], critic(2 * x, labels))


def test_labels_are_repeated_as_often_as_there_are_batches() -> None:
    one, two = torch.tensor([3]), torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert repeated(one, 3).tolist() == [3, 3, 3]
    assert repeated(two, 4).tolist() == [*two.tolist(), *two.tolist()]
    assert repeated(two, 2).tolist() == two.tolist()
    assert repeated(two[:0], 0).shape == (0, 3), "a private batch may have no rows"


def test_constraints_reach_the_classes_vectors() -> None:
    critic = build_critic(CriticConfig(width=8), (2,), classes=3)
    constraint = SpectralNorm()
    constraint.before_training(critic)
    for _ in range(100):
        constraint.after_critic_step(critic)
    assert isinstance(critic, ProjectionCritic)
    assert torch.linalg.matrix_norm(critic.projection.weight, 2).item() == pytest.approx(1)
    clipped = WeightClipping(clip_value=0.01, scope="weights").before_training(
        build_critic(CriticConfig(width=8), (2,), classes=3)
    )
    assert isinstance(clipped, ProjectionCritic)
    assert clipped.projection.weight.abs().max().item() == pytest.approx(0.01)


def test_the_penalty_with_labels_is_back_propagated_exactly() -> None:
    torch.manual_seed(0)
    config = CriticConfig(width=4, depth=2, activation="tanh")
    critic = build_critic(config, (3,), classes=2).double()
    real, fake = torch.randn(2, 5, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1])
    names = [name for name, _ in critic.named_parameters()]

    def penalty(*weights: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)

        def bound(x: torch.Tensor) -> torch.Tensor:
            named = dict(zip(names, weights, strict=True))
            return torch.func.functional_call(critic, named, (x, labels))

        return GradientPenalty().penalty(bound, real, fake)  # type: ignore[arg-type]

    weights = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())
    assert torch.autograd.gradcheck(penalty, weights)
    penalty(*weights).backward()
    assert weights[names.index("projection.weight")].grad.abs().max() > 1e-3  # type: ignore[union-attr]


def test_labels_are_distributed_as_in_training() -> None:
    labels = draw_labels(3, 0, 20_000, np.array([10, 60, 0, 30]))
    found = np.bincount(labels, minlength=4)
    assert found[2] == 0
    assert stats.chisquare(found[[0, 1, 3]], [2000, 12_000, 6000]).pvalue > 0.01
    assert np.array_equal(labels[700:720], draw_labels(3, 700, 20, np.array([10, 60, 0, 30])))
    assert not np.array_equal(labels, draw_labels(4, 0, 20_000, np.array([10, 60, 0, 30])))


@pytest.mark.parametrize("label", [None, 1])
@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, CHUNK + 1), (3, 20), (2 * CHUNK + 1, 9)])
def test_a_sample_depends_on_seed_index_and_label_alone(
    model: Model, label: int | None, start: int, count: int
) -> None:
    whole = model.sample(7, 4 * CHUNK, label)
    part = np.concatenate(list(model.samples(7, count, start, label)))
    assert np.array_equal(part, whole[start : start + count])
    labels = model.labels(7, 4 * CHUNK)
    assert labels is not None
    given = model.sample(7, 4 * CHUNK, labels)
    assert np.array_equal(given, model.sample(7, 4 * CHUNK))


def test_a_score_depends_on_its_own_class_alone(model: Model) -> None:
    items = model.sample(5, 2 * CHUNK + 3)
    labels = np.arange(len(items)) % 3
    scores = model.score(items, labels)
    assert np.array_equal(model.score(items[4:5], labels[4:5]), scores[4:5])
    assert model.score(items[4:5], (labels[4:5] + 1) % 3) != scores[4]


def test_what_does_not_fit_is_refused(model: Model, tmp_path: Path) -> None:
    plain = load_artifact(make_artifact(tmp_path / "a"))
    items = plain.sample(0, 2)
    with pytest.raises(ClassError, match="there are: cat, dog, no emu"):
        model.label("emu")
    with pytest.raises(ClassError, match="not class-conditional"):
        plain.label("cat")
    with pytest.raises(ClassError, match="not class-conditional"):
        plain.sample(0, 1, label=0)
    with pytest.raises(ClassError, match="not class-conditional"):
        plain.score(items, np.zeros(2, np.int64))
    with pytest.raises(ClassError, match="give the class of each item"):
        model.score(items)
    with pytest.raises(ClassError, match="2 items have 1 classes"):
        model.score(items, np.zeros(1, np.int64))
    with pytest.raises(ConfigError, match="no labels"):
        train_here(tiny_config("vector", conditional=True), load("8gaussians"), tmp_path)


def load(source: str) -> Dataset:
    return load_data(tiny_config(data={"source": source}).data)


def train_here(
    config: object, data: Dataset, folder: Path, stop_after: int | None = None
) -> TrainingState:
    asked = iter(range(1, 10**6))
    state, _ = train(
        config,  # type: ignore[arg-type]
        data,
        folder,
        CPU,
        stop_requested=lambda: next(asked) == stop_after,
    )
    return state


@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_a_resumed_run_equals_an_uninterrupted_one(normalization: str, tmp_path: Path) -> None:
    data = load("digits")
    config = tiny_config(
        conditional=True,
        generator={"normalization": normalization},
        # One of them captures the critic's step; of the other the generator is what differs.
        training={"steps": 5, "critic_step": "auto" if normalization == "none" else "eager"},
    )
    whole = train_here(config, data, tmp_path / "whole").tensors()
    with pytest.raises(Interrupted):
        train_here(config, data, tmp_path / "parts", stop_after=3)
    parts = train_here(config, data, tmp_path / "parts").tensors()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    other = dataclasses.replace(data, labels=9 - data.labels)  # type: ignore[operator]
    changed = train_here(config, other, tmp_path / "other").tensors()
    for network in ("generator", "critic", "ema"):
        names = [n for n in whole if n.startswith(f"{network}.") and n.endswith("weight")]
        assert any(not torch.equal(whole[n], changed[n]) for n in names)


def two_blobs() -> Dataset:
    """Class 0 around (-1, 0), class 1, three times as frequent, around (1, 0)."""
    data = load("8gaussians")
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.75).astype(np.int64)
    items = rng.normal(0, 0.2, (2000, 2)) + np.stack([2.0 * labels - 1, 0 * labels], axis=1)
    is_heldout = np.arange(2000) % 5 == 0
    counts = np.bincount(labels[~is_heldout]).tolist()
    card = data.card.model_copy(update={"classes": ["left", "right"], "class_counts": counts})
    return Dataset(items.astype(np.float32), is_heldout, labels, card, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Dataset]:
    folder = tmp_path_factory.mktemp("blobs")
    make_artifact(folder / "a", "vector", class_counts={"left": 1, "right": 1})
    made, data = load_artifact(folder / "a"), two_blobs()
    config = tiny_config(
        "vector",
        conditional=True,
        generator={"width": 32, "activation": "relu"},
        critic={"width": 32, "activation": "relu"},
        constraint={"kind": "lipschitz_penalty", "strength": 1.0},
        training={
            "steps": 400,
            "batch_size": 64,
            "learning_rate": 2e-3,
            "decay_from": 0.3,
            "ema_decay": 0.98,
        },
    )
    state = train_here(config, data, folder)
    run = made.run.model_copy(update={"config": config, "data": data.card})
    return Model(run, state.ema.eval(), state.critic.eval(), np.zeros(1), ""), data


def test_a_classifier_is_trained_on_the_device_that_is_asked_for() -> None:
    """Torch's device without numbers stands for a GPU."""
    items, labels = torch.randn(20, 3), torch.randint(2, (20,))
    classifier = fit_classifier(items, labels, 2, steps=2, device=torch.device("meta"))
    assert {p.device.type for p in classifier.parameters()} == {"meta"}


@pytest.mark.parametrize(("shape", "seen"), [((64, 64), 32), ((33, 20), 32), ((32, 20), None)])
def test_large_images_are_classified_by_their_averages(
    shape: tuple[int, int], seen: int | None
) -> None:
    """In parts, by a critic's network of their kind with a head of the classes."""
    torch.manual_seed(1)
    images, labels = torch.randn(300, 2, *shape), torch.randint(3, (300,))
    found = fit_classifier(images, labels, 3, steps=2)
    smaller = images if seen is None else nn.functional.adaptive_avg_pool2d(images, seen)
    same = fit_classifier(smaller, labels, 3, steps=2)
    for one, other in zip(found.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
    with torch.inference_mode():
        expected = found(smaller).argmax(1)
    assert torch.equal(classify(found, images), expected)
    critic = CriticConfig(architecture="dcgan", width=32, depth=2, activation="relu")
    *features, head = build_critic(critic, tuple(smaller.shape[1:])).body  # type: ignore[misc]
    assert [type(layer) for layer in found] == [type(layer) for layer in (*features, head)]  # type: ignore[union-attr]
    assert (found[-1].in_features, found[-1].out_features) == (head.in_features, 3)  # type: ignore[index]


def test_a_trained_generator_makes_the_class_that_it_is_asked_for(
    trained: tuple[Model, Dataset],
) -> None:
    model, data = trained
    for label, center in ((0, -1), (1, 1)):
        assert model.sample(0, 500, label)[:, 0].mean() == pytest.approx(center, abs=0.2)
    figures = class_accuracy(model, data)
    assert set(figures) == {"class_accuracy", "lowest_class_accuracy"}
    assert figures["class_accuracy"].floor > 0.99
    assert figures["class_accuracy"].value > 0.9
    assert figures["lowest_class_accuracy"].value <= figures["class_accuracy"].value


def test_the_accuracy_sees_a_generator_that_confuses_classes(
    trained: tuple[Model, Dataset],
) -> None:
    model, data = trained

    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = model.generator

        def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self.generator(z, 1 - labels)  # type: ignore[no-any-return]

    wrong = Model(model.run, Swapped(), model.critic, model.quantiles, "")
    assert class_accuracy(wrong, data)["class_accuracy"].value < 0.1
    without = dataclasses.replace(data, labels=None)
    assert class_accuracy(model, without) == {}
    assert critic_membership(model, without, 100) == {}
    assert set(critic_membership(model, data, 100)) == {"critic_membership_auroc"}


def normal_classes(seed: int, *counts: int) -> Labelled:
    """Classes around points that lie 3 apart, each with as many points."""
    labels = np.repeat(np.arange(len(counts)), counts)
    centers = 3 * np.eye(4)[labels]
    return Labelled(np.random.default_rng(seed).normal(centers, 1), labels)


def test_kernel_distances_are_of_each_class_by_itself() -> None:
    heldout, fake, training = (normal_classes(i, 30, 40, 50, 9) for i in range(3))
    names = ["a", "b", "c", "too few"]
    found = class_distances(heldout, fake, training, names)
    parts = [[x.points[x.labels == label] for x in (heldout, fake, training)] for label in range(3)]
    values = [kernel_distance(real, made) for real, made, _ in parts]
    floors = [kernel_distance(real, known) for real, _, known in parts]
    margins = [kernel_distance_margin(real, made) for real, made, _ in parts]
    mean, highest = found["class_kernel_distance"], found["highest_class_kernel_distance"]
    assert (mean.value, mean.floor) == pytest.approx((np.mean(values), np.mean(floors)))
    assert mean.high - mean.value == pytest.approx(np.sqrt(np.square(margins).sum()) / 3)
    assert (mean.n, mean.of_class) == (120, None)
    worst = int(np.argmax(values))
    assert (highest.value, highest.floor) == pytest.approx((values[worst], max(floors)))
    assert highest.high - highest.value == pytest.approx(margins[worst])
    assert (highest.of_class, highest.n) == (names[worst], len(parts[worst][1]))
    few = [Labelled(*(x[:9] for x in data)) for data in (heldout, fake, training)]
    assert class_distances(*few, names) == {}
    for one in (mean, highest):
        assert one.value - one.low == pytest.approx(one.high - one.value)
    # Each kind must have enough; a class without hides none of those that follow.
    enough = [normal_classes(i, 9, 10) for i in range(3)]
    one_class = class_distances(enough[0], enough[1], enough[2], ["a", "b"])
    assert one_class["class_kernel_distance"].n == 10
    for lacking in range(3):
        data = [Labelled(*(x[: 18 if i == lacking else 19] for x in y))
                for i, y in enumerate(enough)]  # fmt: skip
        assert class_distances(data[0], data[1], data[2], ["a", "b"]) == {}


class Replaying:
    """A conditional model of digits that shows training images of a class, or of another one."""

    def __init__(self, data: Dataset, shown: dict[int, int]) -> None:
        self.is_image, self.device, self.scaling = True, CPU, data.scaling
        self.classes, self.data, self.shown = data.card.classes, data, shown

    def labels(self, seed: int, count: int) -> np.ndarray:
        return np.arange(count) % 10

    def sample(self, seed: int, count: int) -> np.ndarray:
        labels, training = self.data.labels, ~self.data.is_heldout
        items = np.zeros((count, 8, 8, 1), np.uint8)
        for label in range(10):
            shown, asked = self.shown.get(label, label), self.labels(seed, count) == label
            known = np.random.default_rng(shown).permutation(
                np.flatnonzero(training & (labels == shown))
            )
            items[asked] = self.data.items_at(known[: asked.sum()])
        return items

    def score(self, items: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return items.mean(axis=(1, 2, 3))


def test_a_model_that_swaps_two_classes_is_good_as_a_whole_and_bad_within_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The accuracy of classes is another test's.
    monkeypatch.setattr(evaluate, "fit_classifier", partial(fit_classifier, steps=2))
    data, config = load("digits"), EvaluationConfig(samples=300)
    right, swapped = (
        judge(Replaying(data, shown), data, config).figures  # type: ignore[arg-type]
        for shown in ({}, {3: 8, 8: 3})
    )
    whole, within = "kernel_distance", "class_kernel_distance"
    assert swapped[whole].value == pytest.approx(right[whole].value, rel=1e-6)
    low, high = right[within].interval
    assert low < right[within].floor < high  # type: ignore[operator]
    assert swapped[within].interval[0] > high
    assert swapped[f"highest_{within}"].of_class in {"3", "8"}
    assert swapped[f"highest_{within}"].value > 3 * swapped[within].value


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_artifact(make_artifact(tmp_path / "a", class_counts=COUNTS))
    monkeypatch.chdir(tmp_path)
    asked = ["--class", "no emu"]
    assert main(["sample", "a", "-n", "3", "--seed", "5", *asked, "--out", "s.npz"]) == 0
    samples = np.load("s.npz")["samples"]
    assert np.array_equal(samples, model.sample(5, 3, label=2))
    capsys.readouterr()
    assert main(["score", "a", "s.npz", *asked, "--json"]) == 0
    expected = model.score(samples, np.full(3, 2))
    scores = json.loads(capsys.readouterr().out)["scores"]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    for arguments in (
        ["sample", "a", "--class", "emu", "--out", "t.npz"],
        ["score", "a", "s.npz"],
    ):
        assert main(arguments) == 2
        assert "class" in capsys.readouterr().err


def test_a_run_says_that_it_leaves_classes_aside() -> None:
    """Those who brought folders by class may not know that a model can have them."""
    digits = load_data(DataConfig(source="digits"))
    line = "  its 10 classes are left aside; --set conditional=true trains by class"
    assert line in data_in_words(digits, by_class=False)
    assert line not in data_in_words(digits, by_class=True)
    without = dataclasses.replace(digits, card=digits.card.model_copy(update={"classes": []}))
    assert len(data_in_words(without, by_class=False)) == 1


def test_a_conditional_run_is_judged_by_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "fit_classifier", partial(fit_classifier, steps=100))
    arguments = [
        "train", "--preset", "digits", "--steps", "3", "--no-register", "--out", "run",
        "--set", "training.critic_step=eager",
        "--set", "conditional=true", "--set", "evaluation.samples=100",
        "--set", "generator.width=4", "--set", "critic.width=4",
    ]  # fmt: skip
    assert main(arguments) == 0
    model = load_artifact(tmp_path / "run" / "artifact")
    assert model.classes == list("0123456789")
    assert model.run.config.conditional
    figures = model.run.results.figures
    assert 0.9 < figures["class_accuracy"].floor <= 1  # type: ignore[operator]
    worst = figures["highest_class_kernel_distance"]
    assert worst.of_class in model.classes
    assert f"class {worst.of_class}" in "\n".join(figures_in_words(figures))
    assert f"highest_class_kernel_distance (class {worst.of_class})" in model_card(model.run)
    capsys.readouterr()
    assert main(["evaluate", "run/artifact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == model.run.results.model_dump(mode="json")


def test_the_service(tmp_path: Path) -> None:
    server = Server("image", tmp_path)
    make_artifact(server.artifact, class_counts=COUNTS)
    server.model = model = load_artifact(server.artifact)
    with server.running():
        answer = server.samples(count=3, seed=5, format="npz", **{"class": "dog"})
        samples = np.load(io.BytesIO(answer.content))["samples"]
        assert np.array_equal(samples, model.sample(5, 3, label=1))
        answer = server.samples(count=3, seed=5, refine=True, format="npz", **{"class": "dog"})
        refined = np.load(io.BytesIO(answer.content))["samples"]
        assert np.array_equal(refined, model.refined.sample(5, 3, label=1))
        answer = server.samples(count=20, seed=5, format="npz")
        assert np.array_equal(np.load(io.BytesIO(answer.content))["samples"], model.sample(5, 20))
        body: dict[str, object] = {"samples": samples.tolist(), "classes": ["dog", "cat", "dog"]}
        answer = server.client.post("/v1/scores", json=body)
        expected = model.score(samples, np.array([1, 0, 1]))
        np.testing.assert_allclose(answer.json()["scores"], expected, rtol=1e-5)

        answer = server.samples(**{"class": "emu"})
        assert answer.status_code == 422
        assert "there are: cat, dog, no emu" in answer.json()["detail"]
        assert server.samples(**{"class": 1}).status_code == 400
        for classes in (["dog"], ["dog", "emu", "cat"], None):
            answer = server.client.post("/v1/scores", json={**body, "classes": classes})
            assert answer.status_code == 422
            assert answer.headers["content-type"] == "application/problem+json"


def test_a_class_without_training_items_is_not_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_artifact(tmp_path / "a", class_counts={"cat": 3, "none": 0, "dog": 5})
    model = load_artifact(folder)
    assert TrainedModel(folder).classes == ["cat", "dog"]
    assert set(model.labels(5, 1000)) == {0, 2}

    async def ask(client: httpx.AsyncClient) -> None:
        data = (await client.get("/v1/model")).json()["data"]
        assert (data["classes"], data["class_counts"]) == (["cat", "dog"], [3, 5])
        answer = await client.post("/v1/samples", json={"class": "none"})
        assert answer.status_code == 422
        assert "there are: cat, dog" in answer.json()["detail"]
        body = {"count": 3, "seed": 5, "format": "npz", "class": "dog"}
        answer = await client.post("/v1/samples", json=body)
        samples = np.load(io.BytesIO(answer.content))["samples"]
        assert np.array_equal(samples, model.sample(5, 3, label=2))

    talk(made(WGAN_MODEL=str(folder)), ask)
    out = str(tmp_path / "t.npz")
    assert main(["sample", str(folder), "--class", "none", "--out", out]) == 2
    assert "there are: cat, dog" in capsys.readouterr().err


def test_the_picture_of_samples_has_rows_of_trained_classes_alone(tmp_path: Path) -> None:
    counts = {"cat": 3, "none": 0, "dog": 5}
    model = load_artifact(make_artifact(tmp_path / "a", class_counts=counts))
    data = load_data(DataConfig(source="digits"))
    drawn = samples_picture(model, data, data.heldout)
    rows = [model.sample(model.run.config.training.seed, 2, label) for label in (0, 2)]
    assert drawn == encode(np.concatenate(rows), "png")


def test_the_service_of_a_model_without_classes(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "a")

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/samples", json={"class": "3"})
        assert answer.status_code == 422
        assert "not class-conditional" in answer.json()["detail"]
        samples = load_artifact(folder).sample(0, 1).tolist()
        body = {"samples": samples, "classes": ["3"]}
        assert (await client.post("/v1/scores", json=body)).status_code == 422

    talk(made(WGAN_MODEL=str(folder)), ask)
