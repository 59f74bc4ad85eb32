"""Named, hashed feature extractors: figures over other features are other figures.

`digits-cnn-v1` is a small classifier of 8x8 digits, trained once; its weights are checked in, so
that its figures compare between machines. ``python -m training.extractor`` trains it again (on
the training share of the digits only) and says how well it classifies the held-out ones.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import Extractor
from models.errors import ConfigError

Array = np.ndarray
DIGITS = "digits-cnn-v1"
PIXELS = "pixels"
WEIGHTS = Path(__file__).with_name("digits-cnn-v1.safetensors")
PIXEL_SIDE = 8


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


def extractor_for(name: str, source: str) -> str:
    """Which extractor a configured name means for a data source: `auto` depends on the data."""
    if name != "auto":
        return name
    return DIGITS if source == "digits" else PIXELS


def extract(name: str, images: Array) -> Array:
    """Compute the features of images.

    Args:
        name: of the extractor. ``pixels``: colours averaged over an 8x8 grid, as a fraction of
            255; crude, but it needs no training and is the same everywhere.
        images: uint8 ``(N, H, W, C)``.

    Returns:
        float64 ``(N, features)``.

    Raises:
        ConfigError: the extractor does not take such images.
    """
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if name == PIXELS:
        return F.adaptive_avg_pool2d(pixels / 255, PIXEL_SIDE).flatten(1).double().numpy()
    if images.shape[1:] != (8, 8, 1):
        raise ConfigError(
            f"evaluation.extractor: {name} takes 8x8 grey images, not {images.shape[1:]}; "
            "use pixels"
        )
    network = DigitClassifier()
    network.load_state_dict(load_file(WEIGHTS))
    with torch.inference_mode():
        features: Tensor = network.features(pixels / 127.5 - 1)
    return features.double().numpy()


def extractor_card(name: str) -> Extractor:
    """Name and hash: of the weights, or of the definition where there are none."""
    definition = f"adaptive_avg_pool2d {PIXEL_SIDE}".encode()
    content = WEIGHTS.read_bytes() if name == DIGITS else definition
    return Extractor(name=name, sha256=hashlib.sha256(content).hexdigest())


def train_digit_classifier(steps: int = 2000, batch_size: int = 128) -> tuple[nn.Module, float]:
    """Train the classifier on the training share of the digits, with a fixed seed.

    Returns:
        The network and its accuracy, 0 to 1, on the held-out digits.
    """
    from sklearn.datasets import load_digits

    from models.config import DataConfig
    from training.data import load_data

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
