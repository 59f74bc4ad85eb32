"""Generators and critics: MLP for vectors, DCGAN and ResNet for images, GRU, LSTM for sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from models.errors import ConfigError
from models.networks.conditional import (
    ConditionalGenerator,
    ProjectionCritic,
    SelfModulatedGenerator,
)
from models.networks.dcgan import dcgan_critic, dcgan_generator
from models.networks.initial import draw_weights, equalize, he_constant, weighted_layers
from models.networks.parts import Critic, activation, normalization
from models.networks.recurrent import GRU, LSTM, PoolSteps, StepsFirst
from models.networks.resnet import resnet_critic, resnet_generator
from models.networks.rows import RowCritic, RowGenerator
from models.networks.settings import (
    CriticConfig,
    GeneratorConfig,
    NetworkConfig,
    Shape,
    require_fit,
)
from models.networks.skips import InputSkips
from models.tables.layout import Part, restriction_width

if TYPE_CHECKING:
    from models.config import Config

EMBEDDING = 16
"""Size of the class embedding of a generator without a normalisation to make conditional."""
STEP_EMBEDDING = 4
"""Size of the class embedding at each step of a sequence."""


def build_generator(
    config: GeneratorConfig, shape: Shape, classes: int = 0, parts: Sequence[Part] = ()
) -> nn.Module:
    """Build a generator of items of ``shape``; image pixels lie in [-1, 1].

    Args:
        config: settings of the generator.
        shape: shape of one item.
        classes: number of classes for a class-conditional generator, which also takes labels; 0 for
            any other. An image generator's normalisations become conditional; without any, and for
            other data, an embedding of the class is concatenated to the latents.
        parts: of a table's code; the generator then also takes restrictions.

    Raises:
        ConfigError: the architecture or normalisation does not fit the shape.
    """
    require_fit(config, shape, "generator")
    norm_classes = classes if len(shape) == 3 and config.normalization != "none" else 0
    embedded = 0 if norm_classes or not classes else EMBEDDING
    if embedded and len(shape) == 2:
        embedded = STEP_EMBEDDING * shape[0]
    inputs = config.latent_size + embedded + restriction_width(parts)
    match config.architecture:
        case "mlp":
            layers = _mlp(config, inputs, shape[0])
        case "dcgan":
            layers = dcgan_generator(config, inputs, shape, norm_classes)
        case "resnet":
            layers = resnet_generator(config, inputs, shape, norm_classes)
        case "gru" | "lstm":
            layers = _recurrent_generator(config, inputs, shape)
    body = nn.Sequential(*layers)
    _begin(body, config)
    if parts:
        return RowGenerator(body, parts)
    if config.self_modulation:
        return SelfModulatedGenerator(body, config.latent_size, classes)
    if not classes:
        return body
    return ConditionalGenerator(body, nn.Embedding(classes, embedded) if embedded else None)


def build_critic(
    config: CriticConfig, shape: Shape, classes: int = 0, parts: Sequence[Part] = ()
) -> nn.Module:
    """Build a critic of items of ``shape``; with ``classes``, it also takes labels.

    With the ``parts`` of a table's code it also takes restrictions.

    Raises:
        ConfigError: the architecture or normalisation does not fit the shape.
    """
    require_fit(config, shape, "critic")
    match config.architecture:
        case "mlp":
            layers = _mlp(config, shape[0] + restriction_width(parts), 1)
        case "dcgan":
            layers = dcgan_critic(config, shape, with_features=bool(classes))
        case "resnet":
            layers = resnet_critic(config, shape)
        case "gru" | "lstm":
            dense = [nn.Linear(config.width, config.width), activation(config)]
            layers = [*_recurrent(config, shape[1]), PoolSteps(), *dense]
            layers.append(nn.Linear(config.width, 1))
    layers = _with_dropout(layers, config)
    if parts:
        critic: nn.Module = RowCritic(nn.Sequential(*layers), restriction_width(parts))
    elif not classes:
        critic = Critic(nn.Sequential(*layers))
    else:
        *features, head = layers
        assert isinstance(head, nn.Linear)
        critic = ProjectionCritic(nn.Sequential(*features), head, classes)
    _begin(critic, config)
    return critic


def _begin(network: nn.Module, config: NetworkConfig) -> None:
    """Give a new network the weights that its settings say."""
    draw_weights(network, config.start)
    if not config.equalized:
        return
    for layer in list(weighted_layers(network)):
        factor = he_constant(layer)
        if isinstance(network, ProjectionCritic) and layer is network.projection:
            factor = network.head.in_features**-0.5  # its input has a single 1: length about 1
        equalize(layer, factor)


def _with_dropout(layers: list[nn.Module], config: CriticConfig) -> list[nn.Module]:
    """Add dropout after each activation that is not inside a residual block."""
    if not config.dropout:
        return layers
    kind = type(activation(config))
    for layer in layers:
        if isinstance(layer, InputSkips):
            stages = (_with_dropout(list(stage.children()), config) for stage in layer.stages)
            layer.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
    return [
        part
        for layer in layers
        for part in ([layer, nn.Dropout(config.dropout)] if type(layer) is kind else [layer])
    ]


def _mlp(config: NetworkConfig, inputs: int, outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(config.depth):
        layers += [
            nn.Linear(inputs, config.width),
            *normalization(config.normalization, config.width, image=False),
            activation(config),
        ]
        inputs = config.width
    return [*layers, nn.Linear(inputs, outputs)]


def _recurrent(config: NetworkConfig, inputs: int) -> list[nn.Module]:
    """Build recurrent layers, ``(N, T, inputs)`` to ``(N, T, width)``."""
    layers: list[nn.Module] = []
    for _ in range(config.depth):
        layers.append((GRU if config.architecture == "gru" else LSTM)(inputs, config.width))
        layers += normalization(config.normalization, config.width, image=False)
        inputs = config.width
    return layers


def _recurrent_generator(config: GeneratorConfig, inputs: int, shape: Shape) -> list[nn.Module]:
    """Build recurrent layers with separate noise for each step, and two dense layers per step."""
    steps, outputs = shape
    return [
        nn.Unflatten(1, (inputs // steps, steps)),
        StepsFirst(),
        *_recurrent(config, inputs // steps),
        nn.Flatten(0, 1),
        nn.Linear(config.width, config.width),
        activation(config),
        nn.Linear(config.width, outputs),
        nn.Unflatten(0, (-1, steps)),
    ]


def build_networks(
    config: Config, shape: Shape, num_classes: int = 0, parts: Sequence[Part] = ()
) -> tuple[nn.Module, nn.Module]:
    """Build a new generator, and a critic as its constraint prepares it.

    Args:
        config: configuration of the run.
        shape: shape of one item.
        num_classes: number of classes in the data; 0 if it has no labels.
        parts: of the code, if the data are a table.

    Raises:
        ConfigError: a network does not fit the data.
    """
    if config.conditional and not num_classes:
        raise ConfigError("conditional: the data has no labels; leave it out")
    classes = num_classes if config.conditional else 0
    generator = build_generator(config.generator, shape, classes, parts)
    critic = build_critic(config.critic, shape, classes, parts)
    return generator, config.constraint.before_training(critic)
