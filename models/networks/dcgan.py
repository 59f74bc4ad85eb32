"""Convolutional networks for images (Radford et al. 2016, "DCGAN")."""

from __future__ import annotations

import math

from torch import nn

from models.networks.convolution import Conv2d, Head
from models.networks.parts import (
    MinibatchStatistics,
    activation,
    before_convolution,
    channels_after,
    image_sizes,
    normalization,
)
from models.networks.settings import CriticConfig, GeneratorConfig, Shape
from models.networks.skips import Skip, with_input_skips, with_output_skips


def _kernel(size: tuple[int, int]) -> tuple[int, int]:
    """Size of the kernel that at stride 2 halves ``size``, rounded up, or doubles back to it."""
    return (4 - size[0] % 2, 4 - size[1] % 2)


def dcgan_critic(config: CriticConfig, shape: Shape, with_features: bool) -> list[nn.Module]:
    """Build strided convolutions; those beyond the last possible halving keep the full size."""
    sizes = image_sizes(shape[1], shape[2], config.depth)
    stages = len(sizes) - 1
    convolutions: list[nn.Module] = []
    inputs = shape[0]
    shown = int(config.minibatch_statistics)  # channels that the last convolution sees besides
    for _ in range(config.depth - stages):
        convolutions.append(Conv2d(inputs, config.width, 3, padding=1))
        inputs = config.width
    for stage in range(1, stages + 1):
        outputs = channels_after(config, stage)
        inputs += shown if stage == stages else 0
        convolutions.append(Conv2d(inputs, outputs, _kernel(sizes[stage - 1]), 2, 1))
        inputs = outputs
    layers: list[nn.Module] = []
    skips: list[Skip] = []
    for i, convolution in enumerate(convolutions):
        if shown and i == config.depth - 1:
            layers.append(MinibatchStatistics())
        layers.append(convolution)
        outputs = int(convolution.out_channels)  # type: ignore[arg-type]
        if i > 0:  # no normalisation on the image itself
            layers += normalization(config.normalization, outputs, image=True)
        layers.append(activation(config))
        if config.skips and i >= config.depth - stages:
            skips.append(Skip(len(layers), [Conv2d(shape[0], outputs, 1), activation(config)]))
    if config.skips:
        layers = with_input_skips(layers, skips, sizes)
    size = inputs * math.prod(sizes[-1])
    if with_features:  # a projection critic reads the flattened features
        return [*layers, nn.Flatten(), nn.Linear(size, 1)]
    # Saved weights are named by position, so Identity stands where nn.Flatten would.
    return [*layers, nn.Identity(), Head(size, 1)]


def dcgan_generator(
    config: GeneratorConfig, inputs: int, shape: Shape, classes: int
) -> list[nn.Module]:
    """Build the critic's mirror image: a dense layer, convolutions that grow to the image, tanh."""
    sizes = image_sizes(shape[1], shape[2], config.depth)
    stages = len(sizes) - 1
    channels = channels_after(config, stages)
    layers: list[nn.Module] = [
        nn.Linear(inputs, channels * math.prod(sizes[-1])),
        nn.Unflatten(1, (channels, *sizes[-1])),
    ]
    extra = config.depth - stages
    skips: list[Skip] = []
    for stage in range(stages, 0, -1):
        layers += before_convolution(config, channels, classes)
        if config.skips:
            skips.append(Skip(len(layers), [Conv2d(channels, shape[0], 1)]))
        outputs = channels_after(config, stage - 1) if stage > 1 or extra else shape[0]
        layers.append(nn.ConvTranspose2d(channels, outputs, _kernel(sizes[stage - 1]), 2, 1))
        channels = outputs
    for i in range(extra):
        layers += before_convolution(config, channels, classes)
        outputs = config.width if i < extra - 1 else shape[0]
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
        channels = outputs
    if config.skips:
        layers = [with_output_skips(layers, skips, sizes)]
    return [*layers, nn.Tanh()]
