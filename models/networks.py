"""Generators and critics: MLP for vectors, DCGAN and ResNet for images, GRU, LSTM for sequences."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.conditional import ConditionalGenerator, ConditionalNorm, ProjectionCritic
from models.convolution import Conv2d, Head
from models.errors import ConfigError
from models.piecewise import Abs, LeakyReLU, ReLU
from models.recurrent import GRU, LSTM, PoolSteps, StepsFirst
from models.resnet import Before, num_blocks, resnet_critic, resnet_generator

if TYPE_CHECKING:
    from models.config import Config

Activation = Literal["relu", "leaky_relu", "tanh", "softplus", "silu", "abs", "groupsort"]
Normalization = Literal["none", "batch", "layer", "instance"]
Architecture = Literal["mlp", "dcgan", "resnet", "gru", "lstm"]
Shape = tuple[int, ...]
"""Of one item: ``(D,)`` for a vector, ``(C, H, W)`` for an image, ``(T, D)`` for a sequence."""


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
    "relu": ReLU,
    "leaky_relu": lambda: LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "abs": Abs,
    "groupsort": GroupSort,
}
SMALLEST_MAP = 4
"""Pixels: no network halves an image below this height or width."""
ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    "vectors": ("mlp",),
    "images": ("dcgan", "resnet"),
    "sequences": ("gru", "lstm"),
}
"""What takes what; the first is what we advise."""
KINDS = {1: "vectors", 2: "sequences", 3: "images"}
"""Of items, by their number of axes."""
EMBEDDING = 16
"""Size of a class's embedding, where a generator has no normalisation to make conditional."""
STEP_EMBEDDING = 4
"""The same, for each step of a sequence."""


class NetworkConfig(BaseModel):
    """One network. ``depth`` counts hidden layers; ``width`` their units or base channels.

    A shortcut of a ResNet is no layer: the longest path counts. For ``gru`` and ``lstm`` it is the
    number of recurrent layers; a dense hidden layer, with the activation, follows them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "mlp"
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


def build_generator(config: GeneratorConfig, shape: Shape, classes: int = 0) -> nn.Module:
    """Build a generator of items of ``shape``; image pixels lie in [-1, 1].

    Args:
        config: of the generator.
        shape: of one item.
        classes: how many, for a class-conditional generator, whose forward takes labels too. An
            image generator's normalisations become conditional; without any, and for other data,
            an embedding of the class is concatenated to the latents.

    Raises:
        ConfigError: the architecture or normalisation does not fit the shape.
    """
    _check(config, shape, "generator")
    norms = classes if len(shape) == 3 and config.normalization != "none" else 0
    embedded = 0 if norms or not classes else EMBEDDING
    if embedded and len(shape) == 2:
        embedded = STEP_EMBEDDING * shape[0]
    inputs = config.latent_size + embedded
    channels = functools.partial(_channels, config)
    match config.architecture:
        case "mlp":
            layers = _mlp(config, inputs, shape[0])
        case "dcgan":
            layers = _dcgan_generator(config, inputs, shape, norms)
        case "resnet":
            sizes = image_sizes(shape[1], shape[2], num_blocks(config.depth))
            layers = resnet_generator(
                inputs, shape[0], config.depth, sizes, channels, _before(config, norms)
            )
        case "gru" | "lstm":
            layers = _recurrent_generator(config, inputs, shape)
    body = nn.Sequential(*layers)
    if not classes:
        return body
    return ConditionalGenerator(body, nn.Embedding(classes, embedded) if embedded else None)


def build_critic(config: CriticConfig, shape: Shape, classes: int = 0) -> nn.Module:
    """Build a critic of items of ``shape``; with ``classes``, one whose forward takes labels too.

    Raises:
        ConfigError: the architecture or normalisation does not fit the shape.
    """
    _check(config, shape, "critic")
    channels = functools.partial(_channels, config)
    match config.architecture:
        case "mlp":
            layers = _mlp(config, shape[0], 1)
        case "dcgan":
            layers = _dcgan(config, shape, with_features=bool(classes))
        case "resnet":
            sizes = image_sizes(shape[1], shape[2], num_blocks(config.depth))
            layers = resnet_critic(shape[0], config.depth, sizes, channels, _before(config))
        case "gru" | "lstm":
            dense = [nn.Linear(config.width, config.width), _activation(config)]
            layers = [*_recurrent(config, shape[1]), PoolSteps(), *dense]
            layers.append(nn.Linear(config.width, 1))
    layers = _with_dropout(layers, config)
    if not classes:
        return Critic(nn.Sequential(*layers))
    *features, head = layers
    assert isinstance(head, nn.Linear)
    return ProjectionCritic(nn.Sequential(*features), head, classes)


def _with_dropout(layers: list[nn.Module], config: CriticConfig) -> list[nn.Module]:
    """Dropout after each activation that is not inside a residual block."""
    if not config.dropout:
        return layers
    activation = type(_activation(config))
    return [
        part
        for layer in layers
        for part in ([layer, nn.Dropout(config.dropout)] if type(layer) is activation else [layer])
    ]


def _check(config: NetworkConfig, shape: Shape, role: str) -> None:
    kind = KINDS[len(shape)]
    if config.architecture not in ARCHITECTURES[kind]:
        raise ConfigError(
            f"{role}.architecture: '{config.architecture}' does not take {kind}; "
            f"set {' or '.join(f'{role}.architecture={a}' for a in ARCHITECTURES[kind])}"
        )
    if kind == "images" and not all(8 <= side <= 128 for side in shape[1:]):
        raise ConfigError(
            f"images are {shape[1]}x{shape[2]}; networks take sides of 8 to 128 pixels: resize them"
        )
    if kind == "vectors" and config.normalization == "instance":
        raise ConfigError(f"{role}.normalization: 'instance' needs images; use 'layer' for vectors")
    if kind == "sequences" and config.normalization in ("batch", "instance"):
        raise ConfigError(
            f"{role}.normalization: '{config.normalization}' does not take sequences; use 'layer'"
        )
    if isinstance(config, GeneratorConfig) and kind == "sequences":
        steps, size = shape[0], config.latent_size
        if size % steps:
            raise ConfigError(
                f"generator.latent_size: each of the {steps} steps gets its share of the latent, "
                f"which {size} does not divide into; set a multiple, such as {2 * steps}"
            )


def _norm(kind: Normalization, channels: int, *, image: bool, classes: int = 0) -> list[nn.Module]:
    if classes and kind != "none":  # of an image: only those are made conditional
        plain: dict[str, nn.Module] = {
            "batch": nn.BatchNorm2d(channels, affine=False),
            "layer": nn.GroupNorm(1, channels, affine=False),
            "instance": nn.InstanceNorm2d(channels),
        }
        return [ConditionalNorm(plain[kind], channels, classes)]
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


def _recurrent(config: NetworkConfig, inputs: int) -> list[nn.Module]:
    """Recurrent layers, ``(N, T, inputs)`` to ``(N, T, width)``."""
    layers: list[nn.Module] = []
    for _ in range(config.depth):
        layers.append((GRU if config.architecture == "gru" else LSTM)(inputs, config.width))
        layers += _norm(config.normalization, config.width, image=False)
        inputs = config.width
    return layers


def _recurrent_generator(config: GeneratorConfig, inputs: int, shape: Shape) -> list[nn.Module]:
    """Noise of its own for each step, recurrent layers, and two dense ones at each step."""
    steps, outputs = shape
    return [
        nn.Unflatten(1, (inputs // steps, steps)),
        StepsFirst(),
        *_recurrent(config, inputs // steps),
        nn.Flatten(0, 1),
        nn.Linear(config.width, config.width),
        _activation(config),
        nn.Linear(config.width, outputs),
        nn.Unflatten(0, (-1, steps)),
    ]


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


def _before(config: NetworkConfig, classes: int = 0) -> Before:
    """What stands between an image network's convolutions."""

    def before(channels: int) -> list[nn.Module]:
        norm = _norm(config.normalization, channels, image=True, classes=classes)
        return [*norm, _activation(config)]

    return before


def _kernel(size: tuple[int, int]) -> tuple[int, int]:
    """Kernel that halves ``size`` exactly (rounding up), or doubles back to it, at stride 2."""
    return (4 - size[0] % 2, 4 - size[1] % 2)


def _dcgan(config: CriticConfig, shape: Shape, with_features: bool) -> list[nn.Module]:
    """Strided convolutions (Radford et al. 2016); depth beyond the halvings is at full size."""
    sizes = image_sizes(shape[1], shape[2], config.depth)
    stages = len(sizes) - 1
    convolutions: list[nn.Module] = []
    inputs = shape[0]
    for _ in range(config.depth - stages):
        convolutions.append(Conv2d(inputs, config.width, 3, padding=1))
        inputs = config.width
    for stage in range(1, stages + 1):
        outputs = _channels(config, stage)
        convolutions.append(Conv2d(inputs, outputs, _kernel(sizes[stage - 1]), 2, 1))
        inputs = outputs
    layers: list[nn.Module] = []
    for i, convolution in enumerate(convolutions):
        layers.append(convolution)
        if i > 0:  # no normalisation on the image itself
            outputs = int(convolution.out_channels)  # type: ignore[arg-type]
            layers += _norm(config.normalization, outputs, image=True)
        layers.append(ACTIVATIONS[config.activation]())
    size = inputs * math.prod(sizes[-1])
    if with_features:  # which a projection takes too
        return [*layers, nn.Flatten(), nn.Linear(size, 1)]
    return [*layers, nn.Identity(), Head(size, 1)]  # as many layers, for weights go by their places


def _dcgan_generator(
    config: GeneratorConfig, inputs: int, shape: Shape, classes: int
) -> list[nn.Module]:
    """The critic's mirror image: a dense layer, then convolutions back to the image and tanh."""
    sizes = image_sizes(shape[1], shape[2], config.depth)
    stages = len(sizes) - 1
    channels = _channels(config, stages)
    layers: list[nn.Module] = [
        nn.Linear(inputs, channels * math.prod(sizes[-1])),
        nn.Unflatten(1, (channels, *sizes[-1])),
    ]
    before = _before(config, classes)
    extra = config.depth - stages
    for stage in range(stages, 0, -1):
        layers += before(channels)
        outputs = _channels(config, stage - 1) if stage > 1 or extra else shape[0]
        layers.append(nn.ConvTranspose2d(channels, outputs, _kernel(sizes[stage - 1]), 2, 1))
        channels = outputs
    for i in range(extra):
        layers += before(channels)
        outputs = config.width if i < extra - 1 else shape[0]
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
        channels = outputs
    return [*layers, nn.Tanh()]


def _activation(config: NetworkConfig) -> nn.Module:
    return ACTIVATIONS[config.activation]()


def build_networks(
    config: Config, shape: Shape, num_classes: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Build a new generator, and a critic as its constraint prepares it.

    Args:
        config: of the run.
        shape: of one item.
        num_classes: of the data; 0 if it has no labels.

    Raises:
        ConfigError: a network does not fit the data.
    """
    if config.conditional and not num_classes:
        raise ConfigError("conditional: the data has no labels; leave it out")
    classes = num_classes if config.conditional else 0
    generator = build_generator(config.generator, shape, classes)
    critic = build_critic(config.critic, shape, classes)
    return generator, config.constraint.before_training(critic)
