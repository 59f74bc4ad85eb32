"""Parts that architectures share: activations, normalisations, sizes of maps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.errors import ShapeError
from models.networks.piecewise import Abs, GroupSort, LeakyReLU, ReLU
from models.networks.settings import Activation, GeneratorConfig, NetworkConfig, Normalization

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": ReLU,
    "leaky_relu": lambda: LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "abs": Abs,
    "groupsort": GroupSort,
}
GROUP = 4
"""Samples of which `MinibatchStatistics` are taken, as in StyleGAN2."""
TINY_VARIANCE = 1e-8
"""Added to variances, as in ProGAN: the root has no derivative at 0."""
MOMENTUM = 0.1
"""Share of a new batch in the running mean, as in torch's batch normalisation."""
HIDDEN = 32
"""Units of the hidden layer of a self-modulation, as in its paper."""
Run = Callable[[nn.Module, Tensor], Tensor]
"""Applies a module to maps, with whatever else it takes."""
SMALLEST_MAP = 4
"""Pixels; no network halves an image below this height or width."""


class Critic(nn.Module):
    """Maps samples ``(N, *shape)`` to scores ``(N,)``."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, samples: Tensor) -> Tensor:
        """Score ``samples`` of shape ``(N, *shape)``; returns ``(N,)``."""
        return self.body(samples).squeeze(1)


class Residual(nn.Module):
    """``shortcut(x) + branch(x)``; of equalised layers divided by the root of 2."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module, equalized: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.scale = 2**-0.5 if equalized else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, C', H', W')``."""
        return self.through(x, lambda part, y: part(y))

    def through(self, x: Tensor, run: Run) -> Tensor:
        """Compute the block with ``run``, which gives each of its parts what that takes."""
        total = run(self.shortcut, x) + run(self.branch, x)
        return total if self.scale == 1 else self.scale * total


class ConditionalNorm(nn.Module):
    """A normalisation whose gain and offset of each channel depend on the class.

    De Vries et al. 2017 ("Modulating early visual processing by language"), for classes as in
    Dumoulin et al. 2017.
    """

    def __init__(self, norm: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = norm
        """The normalisation itself, which has no gain and offset of its own."""
        self.gain = nn.Embedding(classes, channels)
        self.offset = nn.Embedding(classes, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.offset.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the same shape."""
        gain, offset = (e(labels)[:, :, None, None] for e in (self.gain, self.offset))
        return self.norm(x) * gain + offset


class SelfModulatedNorm(nn.Module):
    """A normalisation whose gain and offset of each channel depend on the latent.

    Chen et al. 2019, section 2: both are affine functions of a hidden layer of the latent.
    """

    def __init__(self, norm: nn.Module, channels: int, latents: int) -> None:
        super().__init__()
        self.norm = norm
        """The normalisation itself, which has no gain and offset of its own."""
        self.hidden = nn.Linear(latents, HIDDEN)
        self.gain = nn.Linear(HIDDEN, channels)
        """What is added to a gain of 1."""
        self.offset = nn.Linear(HIDDEN, channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the same shape, for latents ``(N, latents)``."""
        hidden = nn.functional.relu(self.hidden(latents))
        gain, offset = (layer(hidden)[:, :, None, None] for layer in (self.gain, self.offset))
        return self.norm(x) * (1 + gain) + offset


class MinibatchStatistics(nn.Module):
    """How much the samples of a group differ, as one more channel of their maps.

    In each group of `GROUP` samples the standard deviation of each number of the maps is taken,
    and their mean fills the channel (Karras et al. 2018, section 3; 2020, in groups). In eval mode
    the channel holds the running mean of the batches seen in training, so a score then depends on
    its own sample alone.
    """

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C + 1, H, W)``; samples of a group follow each other.

        Raises:
            ShapeError: in training, the batch is not made of whole groups.
        """
        if not self.training:
            known = self.running.to(x.dtype).expand(x.shape[0], 1, *x.shape[2:])
            return torch.cat([x, known], dim=1)
        if len(x) % GROUP:
            raise ShapeError(
                f"critic.minibatch_statistics: {len(x)} samples are no groups of {GROUP}; set "
                f"training.batch_size to a multiple of {GROUP}"
            )
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        groups = exact.reshape(-1, GROUP, *x.shape[1:])
        deviations = (groups.var(dim=1, unbiased=False) + TINY_VARIANCE).sqrt()
        found = deviations.flatten(1).mean(dim=1)
        with torch.no_grad():
            self.running.lerp_(found.mean().to(self.running.dtype), MOMENTUM)
        own = found.repeat_interleave(GROUP).to(x.dtype)[:, None, None, None]
        return torch.cat([x, own.expand(-1, 1, *x.shape[2:])], dim=1)


MIXES_SAMPLES = (nn.modules.batchnorm._BatchNorm, MinibatchStatistics)
"""Layers that make a score depend on its batch while training, and hold a mean of what they saw."""


def normalization(
    kind: Normalization, channels: int, *, image: bool, classes: int = 0, latents: int = 0
) -> list[nn.Module]:
    """Build a normalisation of ``channels``: one layer, or none.

    Args:
        kind: kind of normalisation.
        channels: number of channels of a map, or units of a vector.
        image: True if it takes maps ``(N, C, H, W)``.
        classes: number of classes that each get a gain and offset; 0: one for all. Images only.
        latents: size of the latents that gain and offset follow from; 0: from none. Images only.
    """
    if (classes or latents) and kind != "none":
        plain: dict[str, nn.Module] = {
            "batch": nn.BatchNorm2d(channels, affine=False),
            "layer": nn.GroupNorm(1, channels, affine=False),
            "instance": nn.InstanceNorm2d(channels),
        }
        if latents:
            return [SelfModulatedNorm(plain[kind], channels, latents)]
        return [ConditionalNorm(plain[kind], channels, classes)]
    if kind == "batch":
        return [nn.BatchNorm2d(channels) if image else nn.BatchNorm1d(channels)]
    if kind == "layer":  # over all channels and positions of one sample, as in WGAN-GP's critic
        return [nn.GroupNorm(1, channels) if image else nn.LayerNorm(channels)]
    if kind == "instance":
        return [nn.InstanceNorm2d(channels, affine=True)]
    return []


def image_sizes(height: int, width: int, depth: int) -> list[tuple[int, int]]:
    """Sizes of maps from the image inwards: at most ``depth`` halvings, rounded up, none below 4.

    >>> image_sizes(28, 28, 3)
    [(28, 28), (14, 14), (7, 7), (4, 4)]
    """
    sizes = [(height, width)]
    while len(sizes) <= depth:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        if min(height, width) < SMALLEST_MAP:
            break
        sizes.append((height, width))
    return sizes


def channels_after(config: NetworkConfig, stage: int) -> int:
    """Channels after ``stage`` halvings (1, 2, ...): they double, up to eight times the width."""
    return config.width * min(2 ** max(stage - 1, 0), 8)


def before_convolution(config: NetworkConfig, channels: int, classes: int = 0) -> list[nn.Module]:
    """Build the normalisation, if any, and the activation that precede a convolution."""
    latents = 0
    if isinstance(config, GeneratorConfig) and config.self_modulation:
        latents = config.latent_size
    norm = normalization(
        config.normalization, channels, image=True, classes=classes, latents=latents
    )
    return [*norm, activation(config)]


def activation(config: NetworkConfig) -> nn.Module:
    """Build the configured activation."""
    return ACTIVATIONS[config.activation]()
