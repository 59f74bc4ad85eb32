"""Class-conditional and self-modulated networks; labels are indices of classes, int64 ``(N,)``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.parts import ConditionalNorm, Residual, SelfModulatedNorm
from models.networks.skips import OutputSkips
from models.networks.stages import Stages


class ConditionalGenerator(nn.Module):
    """Generator of latents ``(N, latent_size)`` and labels ``(N,)`` to samples ``(N, *shape)``.

    The class enters through the conditional normalisations in ``body``, or as an embedding that is
    concatenated to the latents.
    """

    def __init__(self, body: nn.Sequential, embedding: nn.Embedding | None) -> None:
        super().__init__()
        self.body = body
        self.embedding = embedding

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Generate a sample of each label's class."""
        if self.embedding is not None:
            latents = torch.cat([latents, self.embedding(labels)], dim=1)
        return _apply(self.body, latents, labels)


class SelfModulatedGenerator(nn.Module):
    """Generator of latents ``(N, latent_size)``, and of labels ``(N,)`` if there are classes.

    Normalisations in ``body`` follow the latent z (Chen et al. 2019, section 2); with classes
    they follow ``z + E(y) + z * E'(y)`` for two embeddings E and E' of the class y. The first layer
    takes z itself.
    """

    def __init__(self, body: nn.Sequential, latent_size: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.shift = nn.Embedding(classes, latent_size) if classes else None
        self.factor = nn.Embedding(classes, latent_size) if classes else None
        if self.factor is not None:
            nn.init.zeros_(self.factor.weight)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Generate a sample of each latent, and of each label's class."""
        modulating = latents
        if self.shift is not None and self.factor is not None:
            assert labels is not None, "a class-conditional generator takes labels"
            modulating = latents + self.shift(labels) + latents * self.factor(labels)
        return _apply(self.body, latents, modulating)


def _apply(module: nn.Module, x: Tensor, given: Tensor) -> Tensor:
    """Compute ``module(x)``, giving labels, or latents, to the normalisations that take them."""
    if isinstance(module, ConditionalNorm | SelfModulatedNorm):
        return module(x, given)
    if isinstance(module, Residual | OutputSkips):
        return module.through(x, lambda part, y: _apply(part, y, given))
    if isinstance(module, Stages):
        return module(x, given, _apply)
    if isinstance(module, nn.Sequential):
        for part in module:
            x = _apply(part, x, given)
        return x
    return module(x)


class ProjectionCritic(nn.Module):
    """Critic of samples ``(N, *shape)`` and labels ``(N,)`` to scores ``(N,)``.

    The score is ``head(f(x)) + <v_y, f(x)>`` for features f(x) and a vector v_y of each class
    (Miyato & Koyama 2018, eq. 3). The vectors are the columns of a dense layer's weight, so a
    constraint treats them as it treats any dense layer.
    """

    def __init__(self, features: nn.Sequential, head: nn.Linear, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.projection = nn.Linear(classes, head.in_features, bias=False)
        nn.init.normal_(self.projection.weight, std=head.in_features**-0.5)  # length about 1

    def forward(self, samples: Tensor, labels: Tensor) -> Tensor:
        """Score each sample as one of its label's class."""
        features = self.features(samples)
        # torch's `one_hot` reads the largest label's value, which a traced step cannot do.
        one_hot = torch.eye(self.projection.in_features, dtype=features.dtype, device=labels.device)
        classes = self.projection(one_hot[labels])
        return self.head(features).squeeze(1) + (classes * features).sum(dim=1)


def repeated(labels: Tensor, count: int) -> Tensor:
    """Labels ``(N,)`` or restrictions ``(N, C)`` one batch after another, ``count`` in all."""
    times = count // max(1, len(labels))  # a private batch may have no rows
    return labels.repeat(times, *[1] * (labels.dim() - 1))


class WithLabels(nn.Module):
    """A conditional critic with its labels bound, so it takes samples only, like any critic.

    Samples may be several batches one after another, each with these labels.
    """

    def __init__(self, critic: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.critic = critic
        self.labels = labels

    def forward(self, samples: Tensor) -> Tensor:
        """Score samples ``(k * N, *shape)``, for N labels; returns ``(k * N,)``."""
        return self.critic(samples, repeated(self.labels, len(samples)))
