"""Generators and critics: a multi-layer perceptron for vectors, a DCGAN for images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.errors import ConfigError

Activation = Literal["relu", "leaky_relu", "tanh", "softplus", "silu", "groupsort"]
Normalization = Literal["none", "batch", "layer", "instance"]
Shape = tuple[int, ...]
"""Of one item: ``(D,)`` for a vector, ``(C, H, W)`` for an image."""


class GroupSort(nn.Module):
    """Sort each pair of channels (Anil et al. 2019, section 4.1, with groups of 2: MaxMin).

    It keeps every gradient's norm, where ReLU loses what it cuts off. Takes and returns
    ``(N, C, ...)``; if C is odd, the last channel passes unchanged.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Sort the pairs, larger first."""
        pairs = x.shape[1] // 2
        first, second = x[:, : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2]
        largest, smallest = torch.maximum(first, second), torch.minimum(first, second)
        return torch.cat([largest, smallest, x[:, 2 * pairs :]], dim=1)


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "groupsort": GroupSort,
}
SMALLEST_MAP = 4
"""Pixels: a DCGAN does not halve an image below this height or width."""


class NetworkConfig(BaseModel):
    """One network. ``depth`` counts hidden layers; ``width`` their units or base channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["mlp", "dcgan"] = "mlp"
    width: int = Field(default=128, ge=1, le=8192)
    depth: int = Field(default=3, ge=1, le=100)
    activation: Activation = "leaky_relu"
    normalization: Normalization = "none"


class GeneratorConfig(NetworkConfig):
    """A generator: latents ``(N, latent_size)`` to samples ``(N, *shape)``."""

    latent_size: int = Field(default=64, ge=1, le=65536)


class CriticConfig(NetworkConfig):
    """A critic: samples ``(N, *shape)`` to scores ``(N,)``, real numbers without a bound."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the units that each activation's output loses while training."""


class Critic(nn.Module):
    """Maps samples ``(N, *shape)`` to scores ``(N,)``."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, samples: Tensor) -> Tensor:
        """Score ``samples`` of shape ``(N, *shape)``; returns ``(N,)``."""
        scores: Tensor = self.body(samples)
        return scores.squeeze(1)


def build_generator(config: GeneratorConfig, shape: Shape) -> nn.Module:
    """Build a generator of items of ``shape``; image pixels lie in [-1, 1].

    Raises:
        ConfigError: the architecture or normalisation does not fit the shape.
    """
    _check(config, shape, "generator")
    if config.architecture == "mlp":
        return nn.Sequential(*_mlp(config, config.latent_size, shape[0]))
    return nn.Sequential(*_dcgan_generator(config, shape))


def build_critic(config: CriticConfig, shape: Shape) -> Critic:
    """Build a critic of items of ``shape``.

    Raises:
        ConfigError: the architecture or normalisation does not fit the shape.
    """
    _check(config, shape, "critic")
    layers = _mlp(config, shape[0], 1) if config.architecture == "mlp" else _dcgan(config, shape)
    return Critic(nn.Sequential(*_with_dropout(layers, config)))


def _with_dropout(layers: list[nn.Module], config: CriticConfig) -> list[nn.Module]:
    if not config.dropout:
        return layers
    activation = type(_activation(config))
    return [
        part
        for layer in layers
        for part in ([layer, nn.Dropout(config.dropout)] if type(layer) is activation else [layer])
    ]


def _check(config: NetworkConfig, shape: Shape, role: str) -> None:
    is_image = len(shape) == 3
    if is_image != (config.architecture == "dcgan"):
        right = "dcgan" if is_image else "mlp"
        raise ConfigError(
            f"{role}.architecture: '{config.architecture}' does not take "
            f"{'images' if is_image else 'vectors'}; set {role}.architecture={right}"
        )
    if is_image and not all(8 <= side <= 128 for side in shape[1:]):
        raise ConfigError(
            f"images are {shape[1]}x{shape[2]}; dcgan takes sides of 8 to 128 pixels: resize them"
        )
    if not is_image and config.normalization == "instance":
        raise ConfigError(f"{role}.normalization: 'instance' needs images; use 'layer' for vectors")


def _norm(kind: Normalization, channels: int, *, image: bool) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm2d(channels) if image else nn.BatchNorm1d(channels)]
    if kind == "layer":  # over all channels and positions of one sample, as in WGAN-GP's critic
        return [nn.GroupNorm(1, channels) if image else nn.LayerNorm(channels)]
    if kind == "instance":
        return [nn.InstanceNorm2d(channels, affine=True)]
    return []


def _mlp(config: NetworkConfig, inputs: int, outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(config.depth):
        layers += [
            nn.Linear(inputs, config.width),
            *_norm(config.normalization, config.width, image=False),
            ACTIVATIONS[config.activation](),
        ]
        inputs = config.width
    return [*layers, nn.Linear(inputs, outputs)]


def image_sizes(height: int, width: int, depth: int) -> list[tuple[int, int]]:
    """Map sizes from the image inwards: at most ``depth`` halvings, rounded up, none below 4."""
    sizes = [(height, width)]
    while len(sizes) <= depth:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        if min(height, width) < SMALLEST_MAP:
            break
        sizes.append((height, width))
    return sizes


def _channels(config: NetworkConfig, stage: int) -> int:
    """Channels after ``stage`` halvings (1, 2, ...): doubling, up to eight times the width."""
    return config.width * min(2 ** max(stage - 1, 0), 8)


def _kernel(size: tuple[int, int]) -> tuple[int, int]:
    """Kernel that halves ``size`` exactly (rounding up), or doubles back to it, at stride 2."""
    return (4 - size[0] % 2, 4 - size[1] % 2)


def _dcgan(config: CriticConfig, shape: Shape) -> list[nn.Module]:
    """Strided convolutions (Radford et al. 2016); depth beyond the halvings is at full size."""
    sizes = image_sizes(shape[1], shape[2], config.depth)
    stages = len(sizes) - 1
    convolutions: list[nn.Module] = []
    inputs = shape[0]
    for _ in range(config.depth - stages):
        convolutions.append(nn.Conv2d(inputs, config.width, 3, padding=1))
        inputs = config.width
    for stage in range(1, stages + 1):
        outputs = _channels(config, stage)
        convolutions.append(nn.Conv2d(inputs, outputs, _kernel(sizes[stage - 1]), 2, 1))
        inputs = outputs
    layers: list[nn.Module] = []
    for i, convolution in enumerate(convolutions):
        layers.append(convolution)
        if i > 0:  # no normalisation on the image itself
            outputs = int(convolution.out_channels)  # type: ignore[arg-type]
            layers += _norm(config.normalization, outputs, image=True)
        layers.append(ACTIVATIONS[config.activation]())
    return [*layers, nn.Flatten(), nn.Linear(inputs * math.prod(sizes[-1]), 1)]


def _dcgan_generator(config: GeneratorConfig, shape: Shape) -> list[nn.Module]:
    """The critic's mirror image: a dense layer, then convolutions back to the image and tanh."""
    sizes = image_sizes(shape[1], shape[2], config.depth)
    stages = len(sizes) - 1
    channels = _channels(config, stages)
    layers: list[nn.Module] = [
        nn.Linear(config.latent_size, channels * math.prod(sizes[-1])),
        nn.Unflatten(1, (channels, *sizes[-1])),
    ]
    extra = config.depth - stages
    for stage in range(stages, 0, -1):
        layers += [*_norm(config.normalization, channels, image=True), _activation(config)]
        outputs = _channels(config, stage - 1) if stage > 1 or extra else shape[0]
        layers.append(nn.ConvTranspose2d(channels, outputs, _kernel(sizes[stage - 1]), 2, 1))
        channels = outputs
    for i in range(extra):
        layers += [*_norm(config.normalization, channels, image=True), _activation(config)]
        outputs = config.width if i < extra - 1 else shape[0]
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
        channels = outputs
    return [*layers, nn.Tanh()]


def _activation(config: NetworkConfig) -> nn.Module:
    return ACTIVATIONS[config.activation]()
