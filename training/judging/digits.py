"""The extractor ``digits-cnn-v1``: a small classifier of 8x8 digits.

Its weights are checked in: figures of different machines compare.
``python -m training.judging.digits`` trains them again, on the training share of the digits only,
and prints how well they classify the held-out ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.config import DataConfig
from training.data.dataset import load_data
from training.judging.classifier import FeatureClassifier, shift, train_network

WEIGHTS = Path(__file__).with_name("digits-cnn-v1.safetensors")
STEPS = 2000


def digit_classifier() -> FeatureClassifier:
    """Build the network: images ``(N, 1, 8, 8)`` in [-1, 1] to logits ``(N, 10)``."""
    features = nn.Sequential(
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
    return FeatureClassifier(features, 10)


def train_digit_classifier(steps: int = STEPS) -> tuple[nn.Module, float]:
    """Train the classifier on the training share of the digits, with a fixed seed.

    Returns:
        The network and its accuracy, 0 to 1, on the held-out digits.
    """
    from sklearn.datasets import load_digits

    data = load_data(DataConfig(source="digits"))
    labels = torch.from_numpy(load_digits().target)
    images = torch.from_numpy(data.items).permute(0, 3, 1, 2).float() / 127.5 - 1
    heldout = torch.from_numpy(data.is_heldout)
    training = images[~heldout]

    def batch(indices: Tensor) -> Tensor:
        return shift(training[indices], 1, "constant", -1.0)

    network = train_network(digit_classifier, batch, labels[~heldout], steps)
    with torch.inference_mode():
        correct = network(images[heldout]).argmax(1) == labels[heldout]
    return network, correct.double().mean().item()


if __name__ == "__main__":
    classifier, accuracy = train_digit_classifier()
    save_file(classifier.state_dict(), WEIGHTS)
    print(f"accuracy on held-out digits: {accuracy:.4f}; wrote {WEIGHTS}")
