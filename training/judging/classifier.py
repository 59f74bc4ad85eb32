"""Small classifiers of real items: how each is trained, and one that judges conditional samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks import ARCHITECTURES, KINDS, Critic, CriticConfig, build_critic
from training.progress import track

Network = TypeVar("Network", bound=nn.Module)
CPU = torch.device("cpu")
STEPS = 400
BATCH_SIZE = 128
CHUNK = 256
MAX_SIDE = 32
"""Pixels: larger images are averaged down to this side, which is enough to tell classes apart."""


class FeatureClassifier(nn.Module):
    """A classifier with 64 features below its last layer.

    Args:
        features: images ``(N, C, H, W)`` to features ``(N, 64)``.
        classes: how many.
    """

    def __init__(self, features: nn.Sequential, classes: int) -> None:
        super().__init__()
        self.features = features
        self.classify = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [-1, 1] to logits ``(N, classes)``."""
        logits: Tensor = self.classify(self.features(images))
        return logits


def train_network(
    build: Callable[[], Network],
    batch: Callable[[Tensor], Tensor],
    labels: Tensor,
    steps: int,
    batch_size: int = BATCH_SIZE,
    device: torch.device = CPU,
) -> Network:
    """Train a classifier with a fixed seed, and leave the caller's randomness as it was.

    AdamW with a rate that falls to zero along a cosine; noise on the inputs and smoothed labels
    keep it from leaning on single values. Random numbers are drawn on the CPU, the same ones for
    every device.

    Args:
        build: makes the network, inputs to logits ``(B, classes)``.
        batch: makes the inputs ``(B, ...)`` of the items number ``indices``, int64 ``(B,)``. It may
            augment them with torch's random numbers.
        labels: int64 ``(N,)``.
        steps: number of batches.
        batch_size: items in each, drawn with replacement.
        device: where to train.

    Returns:
        The trained network, in eval mode, on the device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().to(device)
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in track(range(steps), "training a classifier"):
            chosen = torch.randint(len(labels), (batch_size,))
            inputs = batch(chosen)
            logits = network((inputs + 0.1 * torch.randn_like(inputs)).to(device))
            loss = F.cross_entropy(logits, labels[chosen].to(device), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
            schedule.step()
    return network.eval()


def shift(images: Tensor, most: int, mode: str, value: float | None = None) -> Tensor:
    """Shift a batch of images by a random number of pixels: features see strokes, not pixels.

    Args:
        images: ``(B, C, H, W)``.
        most: pixels in each direction.
        mode: fills the margin, as in `torch.nn.functional.pad`.
        value: fills a constant margin.

    Returns:
        ``(B, C, H, W)``, all shifted alike.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (most, most, most, most), mode, value)
    top, left = torch.randint(2 * most + 1, (2,)).tolist()
    return padded[:, :, top : top + height, left : left + width]


def fit_classifier(
    items: Tensor, labels: Tensor, classes: int, steps: int = STEPS, device: torch.device = CPU
) -> nn.Module:
    """Train an independent judge of class-conditional samples on real items alone.

    Args:
        items: ``(N, *shape)``, real training items in the critic's units.
        labels: int64 ``(N,)``.
        classes: how many.
        steps: see `train_network`.
        device: where to train.

    Returns:
        Items to logits ``(N, classes)``, in eval mode, on the device.
    """
    shrunk = _shrink(items)

    def build() -> nn.Module:
        architecture = ARCHITECTURES[KINDS[items.dim() - 1]][0]
        config = CriticConfig(architecture=architecture, width=32, depth=2, activation="relu")
        critic = build_critic(config, tuple(shrunk.shape[1:]))
        assert isinstance(critic, Critic)
        *features, head = critic.body
        assert isinstance(head, nn.Linear)
        return nn.Sequential(*features, type(head)(head.in_features, classes))

    return train_network(build, lambda chosen: shrunk[chosen], labels, steps, device=device)


@torch.inference_mode()
def classify(classifier: nn.Module, items: Tensor) -> Tensor:
    """Find the likeliest label of each item ``(N, *shape)`` on the CPU, as int64 ``(N,)``."""
    device = next(classifier.parameters()).device
    parts = [classifier(_shrink(part).to(device)) for part in torch.split(items, CHUNK)]
    return torch.cat([logits.argmax(1) for logits in parts]).cpu()


def _shrink(items: Tensor) -> Tensor:
    if items.dim() != 4 or max(items.shape[2:]) <= MAX_SIDE:
        return items
    return F.adaptive_avg_pool2d(items, MAX_SIDE)
