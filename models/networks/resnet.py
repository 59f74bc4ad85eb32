"""Pre-activation residual networks for images (He et al. 2016, "Identity Mappings")."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from models.networks.convolution import Conv2d
from models.networks.parts import (
    MinibatchStatistics,
    Residual,
    before_convolution,
    channels_after,
    image_sizes,
)
from models.networks.piecewise import AvgPool2d
from models.networks.settings import CriticConfig, GeneratorConfig, NetworkConfig, Shape
from models.networks.skips import Skip, halving, with_input_skips, with_output_skips


class _Block(NamedTuple):
    """One residual block; blocks are counted from the image inwards."""

    stage: int
    """Number of times the image is halved at the block's inner end."""
    resizes: bool
    convolutions: int


def num_blocks(depth: int) -> int:
    """Number of residual blocks in a network of ``depth`` hidden layers.

    One layer belongs to no block, and each block has two of the others; if these are odd in number,
    the block farthest from the image has a single one.
    """
    return math.ceil((depth - 1) / 2)


def _blocks(depth: int, stages: int) -> list[_Block]:
    """Spread the blocks over the stages; surplus blocks go inwards, where they cost least."""
    count = num_blocks(depth)
    plan: list[_Block] = []
    for i in range(count):
        stage = stages - (count - 1 - i) * stages // count
        resizes = stage > (plan[-1].stage if plan else 0)
        plan.append(_Block(stage, resizes, min(2, depth - 1 - 2 * i)))
    return plan


def resnet_critic(config: CriticConfig, shape: Shape) -> list[nn.Module]:
    """Build a convolution, ``depth - 1`` more in residual blocks, mean pooling, a dense layer.

    Blocks shrink their maps by average pooling (Gulrajani et al. 2017, appendix C).

    Returns:
        Layers from ``(N, C, H, W)`` to ``(N, 1)``; the last is dense.
    """
    sizes = image_sizes(shape[1], shape[2], num_blocks(config.depth))
    now = channels_after(config, 0)
    layers: list[nn.Module] = [Conv2d(shape[0], now, 3, padding=1)]
    skips: list[Skip] = []
    plan = _blocks(config.depth, len(sizes) - 1)
    for block in plan:
        if config.minibatch_statistics and block is plan[-1]:
            layers.append(MinibatchStatistics())
            now += 1
        after = channels_after(config, block.stage)
        branch = _convolutions(config, now, after, block.convolutions)
        pool: list[nn.Module] = []
        if block.resizes:
            pool = [halving(sizes[block.stage - 1])]
        shortcut = _shortcut(pool, now, after)
        layers.append(Residual(nn.Sequential(*branch, *pool), shortcut, config.equalized))
        now = after
        if config.skips and block.resizes:
            skips.append(Skip(len(layers), [Conv2d(shape[0], now, 1)]))
    if config.skips:
        layers = with_input_skips(layers, skips, sizes)
    if config.minibatch_statistics and not plan:
        layers.append(MinibatchStatistics())
        now += 1
    last = before_convolution(config, now)
    return [*layers, *last, AvgPool2d(sizes[-1]), nn.Flatten(), nn.Linear(now, 1)]


def resnet_generator(
    config: GeneratorConfig, inputs: int, shape: Shape, classes: int
) -> list[nn.Module]:
    """Build the critic's mirror image: a dense layer, residual blocks, tanh.

    Blocks enlarge their maps by repeating nearest neighbours.

    Args:
        config: settings of the generator.
        inputs: size of the latents, with the class embedding if any.
        shape: ``(C, H, W)`` of the image.
        classes: number of classes that normalisations are conditional on; 0: none.

    Returns:
        Layers from ``(N, inputs)`` to ``(N, C, H, W)`` in [-1, 1].
    """
    sizes = image_sizes(shape[1], shape[2], num_blocks(config.depth))
    plan = _blocks(config.depth, len(sizes) - 1)
    now = channels_after(config, len(sizes) - 1)
    layers: list[nn.Module] = [
        nn.Linear(inputs, now * math.prod(sizes[-1])),
        nn.Unflatten(1, (now, *sizes[-1])),
    ]
    skips: list[Skip] = []
    for i in reversed(range(len(plan))):
        block = plan[i]
        if config.skips and block.resizes:
            to_image = [*before_convolution(config, now, classes), Conv2d(now, shape[0], 1)]
            skips.append(Skip(len(layers), to_image))
        after = channels_after(config, plan[i - 1].stage if i else 0)
        branch = _convolutions(config, now, after, block.convolutions, classes)
        grow: list[nn.Module] = []
        if block.resizes:
            grow = [nn.Upsample(size=sizes[block.stage - 1], mode="nearest")]
            branch.insert(len(before_convolution(config, now, classes)), *grow)
        shortcut = _shortcut(grow, now, after)
        layers.append(Residual(nn.Sequential(*branch), shortcut, config.equalized))
        now = after
    layers += before_convolution(config, now, classes)
    layers.append(Conv2d(now, shape[0], 3, padding=1))
    if config.skips:
        layers = [with_output_skips(layers, skips, sizes)]
    return [*layers, nn.Tanh()]


def _convolutions(
    config: NetworkConfig, inputs: int, outputs: int, count: int, classes: int = 0
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += before_convolution(config, inputs, classes)
        layers.append(Conv2d(inputs, outputs, 3, padding=1))
        inputs = outputs
    return layers


def _shortcut(resize: list[nn.Module], inputs: int, outputs: int) -> nn.Module:
    """Resize maps as the branch does, and bring them to as many channels."""
    match = [] if inputs == outputs else [Conv2d(inputs, outputs, 1)]
    return nn.Sequential(*resize, *match) if resize or match else nn.Identity()
