"""A classifier trained on real items alone: an independent judge of class-conditional samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks import ARCHITECTURES, KINDS, Critic, CriticConfig, build_critic

STEPS = 400
BATCH_SIZE = 128
CHUNK = 256
LARGEST = 32
"""Pixels: larger images are averaged down to this side, which is enough to tell classes apart."""


def fit_classifier(items: Tensor, labels: Tensor, classes: int, steps: int = STEPS) -> nn.Module:
    """Train a small classifier, with a fixed seed.

    Args:
        items: ``(N, *shape)``, real training items in the critic's units.
        labels: int64 ``(N,)``.
        classes: how many.
        steps: of AdamW, its rate falling to zero along a cosine.

    Returns:
        Items to logits ``(N, classes)``, in eval mode.
    """
    shrunk = _shrink(items)
    kind = KINDS[items.dim() - 1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CriticConfig(
            architecture=ARCHITECTURES[kind][0], width=32, depth=2, activation="relu"
        )
        body = build_critic(config, tuple(shrunk.shape[1:]))
        assert isinstance(body, Critic)
        *features, head = body.body
        assert isinstance(head, nn.Linear)
        network = nn.Sequential(*features, type(head)(head.in_features, classes))
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            chosen = torch.randint(len(shrunk), (BATCH_SIZE,))
            batch = shrunk[chosen]
            # A little noise: a judge of samples should not lean on single values.
            logits = network(batch + 0.1 * torch.randn_like(batch))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def classify(classifier: nn.Module, items: Tensor) -> Tensor:
    """The likeliest label of each item, int64 ``(N,)``; ``items`` are ``(N, *shape)``."""
    return torch.cat([classifier(_shrink(part)).argmax(1) for part in torch.split(items, CHUNK)])


def _shrink(items: Tensor) -> Tensor:
    if items.dim() != 4 or max(items.shape[2:]) <= LARGEST:
        return items
    return F.adaptive_avg_pool2d(items, LARGEST)
