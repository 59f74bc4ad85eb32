"""Settings of a generator and of a critic, and which of them fit which data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.errors import ConfigError
from models.section import Section

Activation = Literal["relu", "leaky_relu", "tanh", "softplus", "silu", "abs", "groupsort"]
Normalization = Literal["none", "batch", "layer", "instance"]
Architecture = Literal["mlp", "dcgan", "resnet", "gru", "lstm"]
Start = Literal["default", "orthogonal", "xavier"]
Shape = tuple[int, ...]
"""Shape of one item: ``(D,)`` for a vector, ``(C, H, W)`` an image, ``(T, D)`` a sequence."""

ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    "vectors": ("mlp",),
    "images": ("dcgan", "resnet"),
    "sequences": ("gru", "lstm"),
}
"""Architectures for each kind of data; the first is the one we advise."""
SIDES = (8, 256)
"""Pixels: the smallest and the largest side of an image that networks take."""
MAX_DEPTH = 100
"""Hidden layers, at most."""
KINDS = {1: "vectors", 2: "sequences", 3: "images"}
"""Kinds of data, by the number of axes of one item."""


class NetworkConfig(Section):
    """Settings of one network.

    ``depth`` is the number of hidden layers, ``width`` their units or base channels. For ``resnet``
    the longest path counts, so shortcuts do not. For ``gru`` and ``lstm`` the depth is the number
    of recurrent layers; one dense hidden layer, with the activation, follows them. A width or depth
    of 0 stands, in the preset ``images``, for what suits the images.
    """

    architecture: Architecture = "mlp"
    width: int = Field(default=128, ge=0, le=8192)
    depth: int = Field(default=3, ge=0, le=MAX_DEPTH)
    activation: Activation = "leaky_relu"
    normalization: Normalization = "none"
    start: Start = Field(default="default", exclude_if=lambda start: start == "default")
    """Initial weights of dense and convolutional layers. orthogonal: all singular values of the
    weight as a matrix are 1 (Saxe et al. 2014; BigGAN's, Brock et al. 2019). xavier: uniform, of
    variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010, eq. 16). Biases are then 0. default:
    torch's own, uniform of variance ``1 / (3 fan_in)``, biases likewise. Written unless default."""
    equalized: bool = Field(default=False, exclude_if=lambda equalized: not equalized)
    """Weights begin as standard normal numbers and are scaled in each forward by He's constant, so
    that an optimiser that adapts its steps, such as Adam, moves all layers alike; ResNets divide
    the sum of each block by the root of 2, which keeps its size (Karras et al. 2018, section 4.1;
    2020, appendix B). Written if it is set."""
    skips: bool = Field(default=False, exclude_if=lambda skips: not skips)
    """Images at every resolution (Karras et al. 2020, figure 7b): a generator adds up its own, a
    critic sees the image, made smaller, again. Written if it is set."""


class GeneratorConfig(NetworkConfig):
    """Settings of a generator: latents ``(N, latent_size)`` to samples ``(N, *shape)``."""

    latent_size: int = Field(default=64, ge=1, le=65536)
    self_modulation: bool = Field(default=False, exclude_if=lambda modulated: not modulated)
    """Gain and offset of each channel's normalisation follow from the latent, by a small network
    (Chen et al. 2019, "On Self Modulation"); for images. Written if it is set."""


class CriticConfig(NetworkConfig):
    """Settings of a critic: samples ``(N, *shape)`` to scores ``(N,)``, which have no bound."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of each activation's outputs that is dropped while training."""
    minibatch_statistics: bool = Field(default=False, exclude_if=lambda statistics: not statistics)
    """Show the critic how much the samples of a group differ (Karras et al. 2018, section 3), of
    images; a finished critic has a fixed value instead. Written if it is set."""


def size_problem(height: int, width: int) -> str | None:
    """Say what to do about images of a size that no network takes; None if one does."""
    if SIDES[0] <= min(height, width) and max(height, width) <= SIDES[1]:
        return None
    return (
        f"images are {width}x{height} pixels; networks take sides of {SIDES[0]} to {SIDES[1]}: "
        f"set data.size to one of these, such as data.size=64"
    )


def require_fit(config: NetworkConfig, shape: Shape, role: str) -> None:
    """Check that a network takes items of ``shape``.

    Args:
        config: settings of the network.
        shape: shape of one item.
        role: "generator" or "critic", for the message.

    Raises:
        ConfigError: it does not; the message says what to set.
    """
    kind = KINDS[len(shape)]
    if config.architecture not in ARCHITECTURES[kind]:
        raise ConfigError(
            f"{role}.architecture: '{config.architecture}' does not take {kind}; "
            f"set {' or '.join(f'{role}.architecture={a}' for a in ARCHITECTURES[kind])}"
        )
    if kind == "images" and (problem := size_problem(*shape[1:])):
        raise ConfigError(problem)
    for setting in ("width", "depth"):
        if not getattr(config, setting):
            raise ConfigError(f"{role}.{setting}: 0 stands for what suits images; set 1 or more")
    _require_options(config, kind, role)
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


def _require_options(config: NetworkConfig, kind: str, role: str) -> None:
    """Check that what is chosen beside the architecture goes with the data and together."""
    if config.equalized and config.start != "default":
        raise ConfigError(
            f"{role}.start: equalized weights begin as standard normal numbers; leave out "
            f"{role}.start or {role}.equalized"
        )
    if isinstance(config, CriticConfig) and config.minibatch_statistics:
        if kind != "images":
            raise ConfigError(
                f"critic.minibatch_statistics: are for images, not {kind}; leave it out"
            )
        if config.normalization in ("batch", "instance"):
            raise ConfigError(
                f"critic.normalization: '{config.normalization}' takes out what "
                "critic.minibatch_statistics adds; use 'layer' or 'none'"
            )
    if config.skips and kind != "images":
        raise ConfigError(f"{role}.skips: are for images, not {kind}; leave it out")
    if isinstance(config, GeneratorConfig) and config.self_modulation:
        if kind != "images":
            raise ConfigError(f"generator.self_modulation: is for images, not {kind}; leave it out")
        if config.normalization == "none":
            raise ConfigError(
                "generator.self_modulation: there is no normalisation to modulate; set "
                "generator.normalization, such as batch"
            )
