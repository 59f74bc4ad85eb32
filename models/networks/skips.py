"""Image skips: every resolution of a generator or a critic works on an image of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from models.errors import ConfigError
from models.networks.parts import Run
from models.networks.piecewise import AvgPool2d


class Skip(NamedTuple):
    """A place in a list of layers where an image comes out, or goes in."""

    at: int
    """Number of layers before it."""
    layers: list[nn.Module]
    """From the maps there to an image of their size; in a critic the other way round."""


class OutputSkips(nn.Module):
    """The sum of images of every resolution, each enlarged to the next by nearest neighbours.

    Karras et al. 2020, figure 7b, "output skips", but for the filter of the enlarging. The last
    stage makes its image itself.
    """

    def __init__(
        self, stages: Sequence[nn.Module], heads: Sequence[nn.Module], sizes: Sequence[list[int]]
    ) -> None:
        """Take stages, a head for the maps of each but the last, and the next image's size."""
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.enlarge = nn.ModuleList(nn.Upsample(size=tuple(size)) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map what the first stage takes to images ``(N, C, H, W)``, without bounds."""
        return self.through(x, lambda part, y: part(y))

    def through(self, x: Tensor, run: Run) -> Tensor:
        """Compute the images with ``run``, which gives each part what that takes."""
        *stages, last = self.stages
        image: Tensor | None = None
        for stage, head, enlarge in zip(stages, self.heads, self.enlarge, strict=True):
            x = run(stage, x)
            own = run(head, x)
            image = enlarge(own if image is None else image + own)
        own = run(last, x)
        return own if image is None else image + own


class InputSkips(nn.Module):
    """Stages of a critic, after each of which maps of the image itself, made smaller, are added.

    Karras et al. 2020, figure 7b, "input skips"; images become smaller by average pooling.
    """

    def __init__(
        self, stages: Sequence[nn.Module], pools: Sequence[nn.Module], entries: Sequence[nn.Module]
    ) -> None:
        """Take stages, and for each what makes the image as small as its maps, and maps of it."""
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.pools = nn.ModuleList(pools)
        self.entries = nn.ModuleList(entries)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to the maps after the last stage."""
        x = images
        for stage, pool, entry in zip(self.stages, self.pools, self.entries, strict=True):
            x, images = stage(x), pool(images)
            x = x + entry(images)
        return x


def with_output_skips(
    layers: Sequence[nn.Module], skips: Sequence[Skip], sizes: Sequence[tuple[int, int]]
) -> OutputSkips:
    """Join a generator's layers, from latents to images, with heads for images on the way.

    Args:
        layers: in order.
        skips: in order, one for each resolution but the last.
        sizes: of the maps of the resolutions, from the image inwards.

    Raises:
        ConfigError: there is one resolution only.
    """
    stages = _stages(layers, skips, "generator")
    outwards = [list(size) for size in reversed(sizes[:-1])]
    return OutputSkips(stages, [nn.Sequential(*skip.layers) for skip in skips], outwards)


def with_input_skips(
    layers: Sequence[nn.Module], skips: Sequence[Skip], sizes: Sequence[tuple[int, int]]
) -> list[nn.Module]:
    """Let images, made smaller, into a critic's layers; see `with_output_skips`."""
    *stages, rest = _stages(layers, skips, "critic")
    pools = [halving(size) for size in sizes[:-1]]
    entries = [nn.Sequential(*skip.layers) for skip in skips]
    return [InputSkips(stages, pools, entries), *rest]


def halving(size: tuple[int, int]) -> AvgPool2d:
    """Build average pooling that halves maps; odd sides round up, the last mean is over fewer."""
    return AvgPool2d(2, ceil_mode=any(side % 2 for side in size))


def _stages(layers: Sequence[nn.Module], skips: Sequence[Skip], role: str) -> list[nn.Sequential]:
    if not skips:
        raise ConfigError(
            f"{role}.skips: a network of this depth has one resolution only; set {role}.depth, "
            "such as 3, or leave it out"
        )
    cuts = [0, *(skip.at for skip in skips), len(layers)]
    return [nn.Sequential(*layers[start:stop]) for start, stop in pairwise(cuts)]
