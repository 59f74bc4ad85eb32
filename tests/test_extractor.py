"""Extractors: what they compute, that their hashes hold, and that a name keeps its own."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.utils import Bunch
from torch.nn import functional

from models import registry
from models.config import Config, DataConfig, EvaluationConfig, parse_config
from models.errors import ConfigError
from models.images import encode_small_png
from tests.artifacts import tiny_config
from tests.registries import new_database
from tests.runs import trained
from tests.test_judging import dataset
from training.data.dataset import Dataset, load_data
from training.judging import extractors as module
from training.judging.digits import WEIGHTS, digit_classifier, train_digit_classifier
from training.judging.efficientnet import load_efficientnet, weights_file
from training.judging.extractors import (
    artifact_weights,
    choose_extractor,
    load_extractor,
    train_classifier,
)
from wgan_cli import main

pytestmark = pytest.mark.usefixtures("charts_undrawn")

RNG = np.random.default_rng(2)


@pytest.fixture(scope="module", autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("WGAN_CACHE", str(folder))
        # Enough for these images; the real count is for handwriting.
        patch.setattr(module, "train_classifier", functools.partial(train_classifier, steps=60))
        yield folder


def save_images(folder: Path, side: int = 12, count: int = 90) -> Path:
    """Three classes of colour images that differ in shape: bars down, bars across, a square."""
    rng = np.random.default_rng(0)
    for name in ("down", "across", "square"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 60, (side, side, 3), np.uint8)
            at = rng.integers(1, side - 4)
            rows, columns = slice(at, at + 3), slice(at, at + 3)
            if name == "down":
                rows = slice(None)
            elif name == "across":
                columns = slice(None)
            image[rows, columns] += rng.integers(100, 180, 3, dtype=np.uint8)
            (folder / name / f"{i}.png").write_bytes(encode_small_png(image))
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(save_images(tmp_path_factory.mktemp("labelled") / "set"))


def load(source: Path | str) -> Dataset:
    return load_data(DataConfig(source=str(source)), 8)


def array(path: Path, *shape: int) -> Dataset:
    np.save(path, RNG.integers(0, 256, (150, *shape), np.uint8))
    return load(path)


def chosen(data: Dataset, **settings: object) -> str:
    return choose_extractor(EvaluationConfig(**settings), data).card.name


def test_auto_depends_on_the_data(
    labelled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(load("digits")) == "digits-cnn-v1"
    assert chosen(labelled) == "classifier"
    assert chosen(array(tmp_path / "grey.npy", 9, 9)) == "pixels"
    colour = array(tmp_path / "colour.npy", 9, 9, 3)
    assert chosen(colour) == "efficientnet-lite0"
    monkeypatch.setattr(module, "weights_file", lambda: None)
    assert chosen(colour) == "pixels"
    with pytest.raises(ConfigError, match="pip install"):
        chosen(colour, extractor="efficientnet-lite0")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "classifier"),
        ({"training_count": 60}, "classifier"),  # twenty of each class
        ({"training_count": 59}, "pixels"),
        ({"shape": (1, 64, 64)}, "classifier"),
        ({"shape": (1, 65, 64)}, "pixels"),
        ({"shape": (1, 64, 65)}, "pixels"),
        ({"classes": ["a", "b"], "training_count": 40}, "classifier"),
        ({"classes": ["a"]}, "pixels"),
        ({"classes": []}, "pixels"),
        ({"classes": [], "shape": (3, 9, 9)}, "efficientnet-lite0"),
        ({"shape": (3, 9, 9)}, "classifier"),
        ({"name": "digits", "licence": "BSD"}, "classifier"),
        ({"name": "digits", "shape": (1, 8, 8)}, "classifier"),
        ({"licence": "BSD", "shape": (1, 8, 8)}, "classifier"),
        ({"name": "digits", "licence": "BSD", "shape": (1, 8, 8)}, "digits-cnn-v1"),
    ],
)
def test_auto_means_a_classifier_of_few_pixels_and_enough_items(
    changes: dict[str, Any], name: str
) -> None:
    """By what the card says; only the built-in digits have a classifier of their own."""
    items = np.zeros((90, 9, 9, 1), np.uint8)
    data = dataset(items, 20, classes=["a", "b", "c"])
    card = data.card.model_copy(update=changes)
    assert module._best_for(dataclasses.replace(data, card=card)) == name


def test_an_extractor_that_is_frozen_for_the_name_is_what_auto_means() -> None:
    data = dataset(np.zeros((90, 9, 9, 1), np.uint8), 20)
    frozen = load_extractor("digits-cnn-v1", EvaluationConfig())
    assert choose_extractor(EvaluationConfig(), data, frozen) is frozen
    named = choose_extractor(EvaluationConfig(extractor="pixels"), data, frozen)
    assert named.card.name == "pixels"
    colours = np.arange(2 * 16 * 16 * 2, dtype=np.uint8).reshape(2, 16, 16, 2)
    squares = colours.reshape(2, 8, 2, 8, 2, 2).mean(axis=(2, 4)) / 255
    expected = squares.transpose(0, 3, 1, 2).reshape(2, -1)
    np.testing.assert_allclose(named(colours), expected, rtol=1e-6)


def test_a_classifier_is_kept_for_its_items_labels_and_split(
    labelled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one of them that is other, another one is trained; of all the same, none."""
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path))
    trained_for: list[Dataset] = []

    def train(data: Dataset) -> torch.nn.Module:
        trained_for.append(data)
        return module.image_classifier(3, 3)

    monkeypatch.setattr(module, "train_classifier", train)
    assert labelled.labels is not None
    card = labelled.card
    others = [
        dataclasses.replace(labelled, labels=(labelled.labels + 1) % 3),
        *(
            dataclasses.replace(labelled, card=card.model_copy(update=change))
            for change in (
                {"sha256": "1" * 64},
                {"heldout_fraction": 0.3},
                {"validation_count": 7},
                {"validation_count": 8},
            )
        ),
    ]
    config = EvaluationConfig(extractor="classifier")
    for number, data in enumerate([labelled, *others]):
        for _ in range(2):
            choose_extractor(config, data)
        assert len(trained_for) == number + 1
    assert len(list((tmp_path / "extractors").iterdir())) == 6
    two = dataclasses.replace(labelled, labels=labelled.labels % 2,
                              card=card.model_copy(update={"classes": ["a", "b"]}))  # fmt: skip
    assert choose_extractor(config, two).channels == 3
    grey = module.image_classifier(1, 2).state_dict()
    again = load_extractor("classifier", config, weights=grey)
    assert (again.channels, again(np.zeros((5, 9, 9, 1), np.uint8)).shape) == (1, (5, 64))
    assert again.weights == grey
    one_class = dataclasses.replace(labelled, card=card.model_copy(update={"classes": ["a"]}))
    for lacking in (one_class, dataclasses.replace(labelled, labels=None)):
        with pytest.raises(ConfigError, match="classifier needs labels"):
            choose_extractor(config, lacking)


def test_an_extractor_that_does_not_suit_the_data_is_told(tmp_path: Path) -> None:
    data = array(tmp_path / "a.npy", 9, 9, 3)
    with pytest.raises(ConfigError, match="needs labels"):
        chosen(data, extractor="classifier")
    digits = choose_extractor(EvaluationConfig(extractor="digits-cnn-v1"), data)
    with pytest.raises(ConfigError, match=r"does not take images of shape \(9, 9, 3\).*pixels"):
        digits(data.items)


def test_efficientnet_is_the_packages_network() -> None:
    """Against the network that the weights were published with."""
    from efficientnet_lite_pytorch import EfficientNet

    file = weights_file()
    assert file is not None
    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(file, weights_only=True))
    reference.eval()
    last: list[torch.Tensor] = []
    reference._blocks[-1].register_forward_hook(lambda _, inputs, output: last.append(output))
    images = torch.from_numpy(RNG.integers(0, 256, (4, 3, 64, 64))).float()
    with torch.inference_mode():
        reference.extract_features((images - 127) / 128)
        network = load_efficientnet(file)
        found = network(images)
    expected = last[0].mean((2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for shape in ((40, 90), (64, 40)):  # of other sizes it sees 64 pixels a side
        images = 255 * torch.rand(2, 3, *shape)
        seen = functional.interpolate(images, (64, 64), mode="bilinear", antialias=True)
        torch.testing.assert_close(network(images), network(seen))


def test_efficientnet_knows_a_picture(tmp_path: Path) -> None:
    """Its features tell shapes apart that it never saw, whatever their size in pixels."""
    small, large = (load(save_images(tmp_path / str(side), side, 60)) for side in (12, 96))
    extract = load_extractor("efficientnet-lite0", EvaluationConfig())
    for data in (small, large):
        assert data.labels is not None
        features = extract(data.items)
        assert features.shape == (180, 320)
        features = (features - features.mean(0)) / features.std(0)
        train = features[~data.is_heldout]
        distance = ((features[data.is_heldout][:, None] - train) ** 2).sum(2)
        guess = data.labels[~data.is_heldout][distance.argmin(1)]
        assert (guess == data.labels[data.is_heldout]).mean() > 0.6  # by chance: 0.33


def test_efficientnet_takes_grey_images_as_colour() -> None:
    grey = RNG.integers(0, 256, (5, 16, 16, 1), np.uint8)
    extract = load_extractor("efficientnet-lite0", EvaluationConfig())
    colour = extract(grey.repeat(3, axis=3))
    np.testing.assert_allclose(extract(grey), colour, rtol=1e-3, atol=1e-3)


def test_a_classifier_learns_and_is_trained_once(
    labelled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert labelled.labels is not None
    found = choose_extractor(EvaluationConfig(extractor="classifier"), labelled)
    network = module.image_classifier(3, 3)
    network.load_state_dict(dict(found.weights))
    held = torch.from_numpy(labelled.heldout).permute(0, 3, 1, 2).float() / 127.5 - 1
    right = network(held).argmax(1).numpy() == labelled.labels[labelled.is_heldout]
    assert right.mean() > 0.95
    monkeypatch.setattr(module, "train_classifier", None)
    again = choose_extractor(EvaluationConfig(extractor="classifier"), labelled)
    assert again.card == found.card
    np.testing.assert_array_equal(again(labelled.items[:9]), found(labelled.items[:9]))
    assert found(labelled.items[:9]).shape == (9, 64)


def test_a_classifier_is_a_function_of_the_training_items(labelled: Dataset) -> None:
    torch.manual_seed(5)
    first = train_classifier(labelled, steps=3).state_dict()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1)), "training must not disturb others' randomness"
    second = train_classifier(labelled, steps=3).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert labelled.labels is not None
    items, labels = labelled.items.copy(), labelled.labels.copy()
    items[labelled.is_heldout], labels[labelled.is_heldout] = 0, 0
    changed = dataclasses.replace(labelled, items=items, labels=labels)
    third = train_classifier(changed, steps=3).state_dict()
    assert all(torch.equal(first[k], third[k]) for k in first)


def features_by_hand(
    weights: list[torch.Tensor], images: torch.Tensor, *strides: int
) -> torch.Tensor:
    """What a classifier of images has below its last layer: convolutions, and a linear layer."""
    x = images
    for i, stride in enumerate(strides):
        x = functional.conv2d(x, weights[2 * i], weights[2 * i + 1], stride, padding=1).relu()
    return functional.linear(
        functional.adaptive_avg_pool2d(x, 4).flatten(1), weights[6], weights[7]
    ).relu()


def trained_by_hand(
    network: torch.nn.Module,
    batch: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor,
    strides: tuple[int, ...],
    steps: int,
) -> list[torch.Tensor]:
    """The weights after some steps of AdamW on smoothed labels and noisy images, without torch's
    losses and schedules."""
    weights = list(network.parameters())
    optimizer = torch.optim.AdamW(weights, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        chosen = torch.randint(len(labels), (128,))
        images = batch(chosen)
        images = images + 0.1 * torch.randn_like(images)  # whose order is that of the memory
        logits = features_by_hand(weights, images, *strides) @ weights[8].T + weights[9]
        classes = logits.shape[1]
        wanted = 0.95 * functional.one_hot(labels[chosen], classes) + 0.05 / classes
        loss = -(wanted * logits.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weights


def shifted(images: np.ndarray, most: int, **pad: Any) -> torch.Tensor:
    """Images ``(N, H, W, C)`` in [-1, 1], all shifted by the same numbers of pixels."""
    side = images.shape[1]
    top, left = torch.randint(2 * most + 1, (2,)).tolist()
    wide = np.pad(
        images.astype(np.float32) / 127.5 - 1, ((0, 0), (most, most), (most, most), (0, 0)), **pad
    )
    part = wide[:, top : top + side, left : left + side].transpose(0, 3, 1, 2)
    return torch.from_numpy(part)


def test_classifiers_are_trained_as_their_version_was(labelled: Dataset) -> None:
    """Another training makes other features: `CLASSIFIER_VERSION`, or a name, must tell them apart.

    That of images of any size, and that of digits, whose weights are checked in.
    """
    digits = load("digits")
    assert digits.labels is not None
    cases: list[tuple[Dataset, Any, Any, tuple[int, ...], int, dict[str, Any]]] = [
        (labelled, train_classifier(labelled, steps=3), module.image_classifier(3, 3),
         (1, 2, 2), 2, {"mode": "edge"}),
        (digits, train_digit_classifier(3)[0], digit_classifier(),
         (1, 2, 1), 1, {"constant_values": -1.0}),
    ]  # fmt: skip
    for data, found, fresh, strides, most, pad in cases:
        assert data.labels is not None
        items, labels = data.training, torch.from_numpy(data.labels[~data.is_heldout])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for layer in fresh.modules():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
            expected = trained_by_hand(
                fresh,
                lambda chosen, items=items, most=most, pad=pad: shifted(items[chosen], most, **pad),
                labels,
                strides,
                steps=3,
            )
        for one, other in zip(found.parameters(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        assert not found.training
        channels, classes = data.card.shape[0], len(data.card.classes)
        first, second, third, squares = (32, 32, 64, 16) if data is labelled else (16, 32, 32, 16)
        shapes = [
            (first, channels, 3, 3), (second, first, 3, 3), (third, second, 3, 3),
            (64, third * squares), (classes, 64),
        ]  # fmt: skip
        assert [tuple(weight.shape) for weight in expected[::2]] == shapes


def test_digits_are_known_that_the_classifier_has_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of held-out digits that are given wrong labels it finds the right ones, and so none."""
    data, known = load("digits"), load_digits()
    wrong = known.target.copy()
    wrong[data.is_heldout] = (wrong[data.is_heldout] + 1) % 10
    monkeypatch.setattr(
        sklearn.datasets, "load_digits", lambda: Bunch(**{**known, "target": wrong})
    )
    network, accuracy = train_digit_classifier(60)
    images = torch.from_numpy(data.heldout.transpose(0, 3, 1, 2) / 127.5 - 1).float()
    answers = network(images).argmax(1).numpy()
    assert (answers == known.target[data.is_heldout]).mean() > 0.4
    assert accuracy == (answers == wrong[data.is_heldout]).mean()
    extract = load_extractor("digits-cnn-v1", EvaluationConfig())
    learned = digit_classifier()
    learned.load_state_dict(load_file(WEIGHTS))
    expected = features_by_hand(list(learned.parameters()), images, 1, 2, 1)
    np.testing.assert_allclose(extract(data.heldout), expected.detach(), rtol=1e-4, atol=1e-4)
    answers = learned(images).argmax(1).numpy()
    assert (answers == known.target[data.is_heldout]).mean() > 0.97


def test_another_extractor_of_the_same_name_is_refused(labelled: Dataset) -> None:
    for name in ("pixels", "digits-cnn-v1", "efficientnet-lite0"):
        card = load_extractor(name, EvaluationConfig()).card
        assert load_extractor(name, EvaluationConfig(), card.sha256).card == card
        with pytest.raises(ConfigError, match="other figures"):
            load_extractor(name, EvaluationConfig(), "0" * 64)
    weights = choose_extractor(EvaluationConfig(extractor="classifier"), labelled).weights
    with pytest.raises(ConfigError, match="other figures"):
        load_extractor("classifier", EvaluationConfig(), "0" * 64, weights)
    with pytest.raises(ConfigError, match="not at hand"):
        load_extractor("classifier", EvaluationConfig(), "0" * 64)


# The whole way


def configured(source: Path, **evaluation: object) -> Config:
    values = tiny_config().model_dump(mode="json")
    values["data"]["source"] = str(source)
    values["training"] |= {"steps": 2, "batch_size": 8, "critic_step": "eager"}
    values["evaluation"] = {"samples": 40, **evaluation}
    return parse_config(values)


def test_a_name_keeps_the_extractor_of_its_first_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    source = save_images(tmp_path / "set", count=40)
    first, reference, said = trained(configured(source), tmp_path / "1")
    assert first.run.results.extractor is not None
    card = first.run.results.extractor
    assert card.name == "classifier"
    assert "over classifier" in said
    name, version = registry.resolve(str(reference))
    assert registry.frozen_extractor(name) is None, "no champion yet"
    registry.promote(name, version, "first")
    assert registry.frozen_extractor(name) == {**card.model_dump(), "version": version}

    # More data, another cache: a new classifier would be another one.
    save_images(source / "more", count=20)
    for kind in ("down", "across", "square"):
        for i, file in enumerate((source / "more" / kind).iterdir()):
            file.rename(source / kind / f"new{i}.png")
        (source / "more" / kind).rmdir()
    (source / "more").rmdir()
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "other"))
    alone, _, _ = trained(configured(source), tmp_path / "2", register=False)
    assert alone.run.results.extractor != card
    second, reference, _ = trained(configured(source), tmp_path / "3")
    assert second.run.results.extractor == card
    assert (
        artifact_weights(tmp_path / "3" / "artifact").keys()
        == artifact_weights(tmp_path / "1" / "artifact").keys()
    )

    # Whoever asks for another is told; a later champion changes nothing.
    third, reference, said = trained(configured(source, extractor="pixels"), tmp_path / "4")
    assert third.run.results.extractor is not None
    assert third.run.results.extractor.name == "pixels"
    assert "do not compare" in said
    registry.promote(name, registry.resolve(str(reference))[1], "another")
    assert registry.frozen_extractor(name) == {**card.model_dump(), "version": version}


def test_evaluate_uses_the_models_own_extractor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that has only the artifact and the data, and not the trained classifier."""
    source = save_images(tmp_path / "set", count=40)
    model, _, _ = trained(configured(source), tmp_path / "run", register=False)
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "empty"))
    assert main(["evaluate", str(tmp_path / "run" / "artifact"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == model.run.results.model_dump(mode="json")
    assert not (tmp_path / "empty" / "extractors").exists()


# Inception

STAND_IN = {
    # Its wheels fit one build of torch each; torch-fidelity needs it for other things than this.
    "torchvision/__init__.py": "",
    "torchvision/datasets.py": "CIFAR10 = STL10 = CIFAR100 = object",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "",
}


@pytest.fixture(scope="module")
def fidelity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real torch-fidelity, with an empty torchvision beside it."""
    folder = tmp_path_factory.mktemp("fidelity")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "torch-fidelity==0.4.0"]
    done = subprocess.run([*command, "-d", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr[-200:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name, content in STAND_IN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


INCEPTION = """
import hashlib, sys, numpy as np, torch
from pathlib import Path
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from models.config import EvaluationConfig
from models.errors import ConfigError
from training.judging.extractors import load_extractor

make = fidelity.FeatureExtractorInceptionV3
torch.manual_seed(0)
load, torch.load = torch.load, lambda *a, **k: {}
make.load_state_dict, original = lambda self, state: None, make.load_state_dict
network = make("a", ["2048"], "none")  # its own random weights
torch.load, make.load_state_dict = load, original
weights = Path(sys.argv[1])
torch.save(network.state_dict(), weights)
digest = hashlib.sha256(weights.read_bytes()).hexdigest()

def settings(sha256, file=weights):
    return EvaluationConfig(
        extractor="inception", inception_weights=str(file), inception_sha256=sha256
    )

images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
extract = load_extractor("inception", settings(digest))
assert extract.card.sha256 == digest
expected = network(torch.from_numpy(images).permute(0, 3, 1, 2))[0].double().numpy()
np.testing.assert_allclose(extract(images), expected, rtol=1e-5, atol=1e-6)
assert extract(images).shape == (3, 2048)
for wrong in (settings("0" * 64), settings(digest, "/nowhere.pth")):
    try:
        load_extractor("inception", wrong)
        raise SystemExit("loaded the wrong weights")
    except ConfigError as error:
        print(error)
bad = weights.with_name("evil.pth")
class Evil:
    def __reduce__(self):
        return (Path.touch, (weights.with_name("touched"),))
torch.save(Evil(), bad)
try:
    load_extractor("inception", settings("0" * 64, bad))
except ConfigError as error:
    print(error)
assert not weights.with_name("touched").exists(), "code ran before the hash was checked"
print("done")
"""


def test_inception_is_torch_fidelitys_with_checked_weights(fidelity: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(fidelity), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", INCEPTION, str(tmp_path / "weights.pth")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr
    assert "it is not loaded" in done.stdout
    assert "no such file" in done.stdout


def test_inception_without_torch_fidelity_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    settings = EvaluationConfig(
        extractor="inception", inception_weights=str(tmp_path / "w.pth"), inception_sha256=digest
    )
    with pytest.raises(ConfigError, match=r"torch-fidelity .*'wgan-foundry\[inception\]'"):
        load_extractor("inception", settings)


def test_inception_gets_bytes_in_colour_once_its_file_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a network in torch-fidelity's place, which tells what it was given."""

    class Seen(torch.nn.Module):
        def __init__(self, name: str, features: list[str], weights: str) -> None:
            super().__init__()
            if Path(weights).read_bytes() != b"weights":
                raise RuntimeError("other weights")
            assert features == ["2048"]

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, str]:
            assert pixels.dtype == torch.uint8
            return pixels.float().mean((2, 3)), "logits"

    place = "torch_fidelity.feature_extractor_inceptionv3"
    stand_in = SimpleNamespace(FeatureExtractorInceptionV3=Seen)
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setitem(sys.modules, place, stand_in)
    file = tmp_path / "w.pth"

    def load(told: bytes) -> module.FeatureExtractor:
        digest = hashlib.sha256(told).hexdigest()
        settings = EvaluationConfig(
            extractor="inception", inception_weights=str(file), inception_sha256=digest
        )
        return load_extractor("inception", settings)

    with pytest.raises(ConfigError, match=r"w\.pth: no such file"):
        load(b"weights")
    file.write_bytes(b"weights")
    with pytest.raises(ConfigError, match="it is not loaded"):
        load(b"others")
    extract = load(b"weights")
    assert extract.card.sha256 == hashlib.sha256(b"weights").hexdigest()
    for channels in (1, 3):
        found = extract(np.full((2, 8, 8, channels), 77, np.uint8))
        np.testing.assert_array_equal(found, np.full((2, 3), 77.0), strict=True)
    file.write_bytes(b"of another network")
    with pytest.raises(ConfigError, match=r"not the weights that .* loads \(RuntimeError\)"):
        load(b"of another network")


def test_inception_needs_a_file_and_its_hash() -> None:
    values = tiny_config().model_dump(mode="json")
    values["evaluation"]["extractor"] = "inception"
    with pytest.raises(ConfigError, match="give all three, or none"):
        parse_config(values)


def test_features_do_not_depend_on_company() -> None:
    """Chunks change nothing but rounding."""
    images = RNG.integers(0, 256, (module.CHUNK + 9, 8, 8, 1), np.uint8)
    extract = load_extractor("digits-cnn-v1", EvaluationConfig())
    np.testing.assert_allclose(extract(images)[-9:], extract(images[-9:]), rtol=1e-5, atol=1e-6)
