"""Pre-activation residual networks for images (He et al. 2016, "Identity Mappings")."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from models.networks.convolution import Conv2d
from models.networks.piecewise import AvgPool2d

Before = Callable[[int], list[nn.Module]]
"""Builds the normalisation, if any, and the activation before a convolution of given channels."""
Size = tuple[int, int]


class Residual(nn.Module):
    """``shortcut(x) + branch(x)``."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, C', H', W')``."""
        total: Tensor = self.shortcut(x) + self.branch(x)
        return total


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


def resnet_critic(
    inputs: int, depth: int, sizes: list[Size], channels: Callable[[int], int], before: Before
) -> list[nn.Module]:
    """Build a convolution, ``depth - 1`` more in residual blocks, mean pooling, a dense layer.

    Blocks shrink their maps by average pooling (Gulrajani et al. 2017, appendix C).

    Args:
        inputs: channels of the image.
        depth: number of hidden layers.
        sizes: sizes of the maps, from the image inwards.
        channels: gives a map's channels by its number of halvings.
        before: see `Before`.

    Returns:
        Layers from ``(N, inputs, *sizes[0])`` to ``(N, 1)``; the last is dense.
    """
    now = channels(0)
    layers: list[nn.Module] = [Conv2d(inputs, now, 3, padding=1)]
    for block in _blocks(depth, len(sizes) - 1):
        after = channels(block.stage)
        branch = _convolutions(now, after, block.convolutions, before)
        pool: list[nn.Module] = []
        if block.resizes:  # the last row and column of an odd map are averaged over fewer pixels
            odd = any(side % 2 for side in sizes[block.stage - 1])
            pool = [AvgPool2d(2, ceil_mode=odd)]
        shortcut = [*pool, *_match(now, after)]
        layers.append(Residual(nn.Sequential(*branch, *pool), _shortcut(shortcut)))
        now = after
    return [*layers, *before(now), AvgPool2d(sizes[-1]), nn.Flatten(), nn.Linear(now, 1)]


def resnet_generator(
    latent_size: int,
    outputs: int,
    depth: int,
    sizes: list[Size],
    channels: Callable[[int], int],
    before: Before,
) -> list[nn.Module]:
    """Build the critic's mirror image: a dense layer, residual blocks, tanh.

    Blocks enlarge their maps by repeating nearest neighbours.

    Args:
        latent_size: size of the latents.
        outputs: channels of the image.
        depth: number of hidden layers.
        sizes: sizes of the maps, from the image inwards.
        channels: gives a map's channels by its number of halvings.
        before: see `Before`.

    Returns:
        Layers from ``(N, latent_size)`` to ``(N, outputs, *sizes[0])`` in [-1, 1].
    """
    plan = _blocks(depth, len(sizes) - 1)
    now = channels(len(sizes) - 1)
    layers: list[nn.Module] = [
        nn.Linear(latent_size, now * math.prod(sizes[-1])),
        nn.Unflatten(1, (now, *sizes[-1])),
    ]
    for i in reversed(range(len(plan))):
        block = plan[i]
        after = channels(plan[i - 1].stage if i else 0)
        branch = _convolutions(now, after, block.convolutions, before)
        grow: list[nn.Module] = []
        if block.resizes:
            grow = [nn.Upsample(size=sizes[block.stage - 1], mode="nearest")]
            branch.insert(len(before(now)), *grow)
        shortcut = [*grow, *_match(now, after)]
        layers.append(Residual(nn.Sequential(*branch), _shortcut(shortcut)))
        now = after
    return [*layers, *before(now), Conv2d(now, outputs, 3, padding=1), nn.Tanh()]


def _convolutions(inputs: int, outputs: int, count: int, before: Before) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [*before(inputs), Conv2d(inputs, outputs, 3, padding=1)]
        inputs = outputs
    return layers


def _match(inputs: int, outputs: int) -> list[nn.Module]:
    return [] if inputs == outputs else [Conv2d(inputs, outputs, 1)]


def _shortcut(layers: list[nn.Module]) -> nn.Module:
    return nn.Sequential(*layers) if layers else nn.Identity()
