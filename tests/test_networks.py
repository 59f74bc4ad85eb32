"""Networks: shapes, depth as asked, and what is refused."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from models.errors import ConfigError
from models.networks import (
    ACTIVATIONS,
    CriticConfig,
    GeneratorConfig,
    build_critic,
    build_generator,
    image_sizes,
)
from models.networks.parts import ConditionalNorm, Residual, channels_after, normalization
from models.networks.settings import NetworkConfig, size_problem


@pytest.mark.parametrize(
    "size", [(8, 8), (9, 13), (28, 28), (31, 17), (32, 32), (256, 256), (8, 256)]
)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_images_of_any_size(size: tuple[int, int], channels: int, depth: int) -> None:
    shape = (channels, *size)
    generator = build_generator(
        GeneratorConfig(architecture="dcgan", width=4, depth=depth, latent_size=6), shape
    )
    critic = build_critic(CriticConfig(architecture="dcgan", width=4, depth=depth), shape)
    images = generator(torch.randn(3, 6))
    assert images.shape == (3, *shape)
    assert images.abs().max() <= 1
    assert critic(images).shape == (3,)
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    for network in (generator, critic):
        assert sum(isinstance(m, layers) for m in network.modules()) == depth + 1


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_vectors(depth: int) -> None:
    generator = build_generator(GeneratorConfig(width=8, depth=depth, latent_size=3), (5,))
    critic = build_critic(CriticConfig(width=8, depth=depth), (5,))
    vectors = generator(torch.randn(4, 3))
    assert vectors.shape == (4, 5)
    assert critic(vectors).shape == (4,)
    assert sum(isinstance(m, nn.Linear) for m in critic.modules()) == depth + 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_is_used(activation: str) -> None:
    kind = type(ACTIVATIONS[activation]())  # type: ignore[index]
    for architecture, shape in (("mlp", (3,)), ("dcgan", (1, 8, 8))):
        config = CriticConfig(architecture=architecture, depth=3, width=4, activation=activation)
        assert sum(isinstance(m, kind) for m in build_critic(config, shape).modules()) == 3


@pytest.mark.parametrize(
    ("normalization", "vector", "image"),
    [
        ("none", None, None),
        ("batch", nn.BatchNorm1d, nn.BatchNorm2d),
        ("layer", nn.LayerNorm, nn.GroupNorm),
        ("instance", None, nn.InstanceNorm2d),
    ],
)
def test_the_normalisation_is_used(
    normalization: str, vector: type[nn.Module] | None, image: type[nn.Module] | None
) -> None:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
    for architecture, shape, kind in (("mlp", (3,), vector), ("dcgan", (1, 16, 16), image)):
        if normalization == "instance" and architecture == "mlp":
            continue
        for config, build in ((CriticConfig, build_critic), (GeneratorConfig, build_generator)):
            network = build(  # type: ignore[operator]
                config(architecture=architecture, width=4, normalization=normalization), shape
            )
            found = {type(m) for m in network.modules() if isinstance(m, norms)}
            assert found == ({kind} if kind else set())


@pytest.mark.parametrize("normalization", ["layer", "instance"])
def test_per_sample_normalisation_keeps_samples_apart(normalization: str) -> None:
    config = CriticConfig(architecture="dcgan", width=4, depth=3, normalization=normalization)
    critic = build_critic(config, (1, 16, 16))
    images = torch.randn(6, 1, 16, 16)
    torch.testing.assert_close(critic(images)[:2], critic(images[:2]))


def test_map_sizes_halve_rounding_up_to_no_less_than_four() -> None:
    assert image_sizes(28, 28, 5) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert image_sizes(8, 128, 5) == [(8, 128), (4, 64)]
    assert image_sizes(32, 32, 2) == [(32, 32), (16, 16), (8, 8)]


@pytest.mark.parametrize(
    ("config", "shape", "says"),
    [
        (CriticConfig(), (1, 8, 8), "critic.architecture=dcgan"),
        (CriticConfig(architecture="dcgan"), (3,), "critic.architecture=mlp"),
        (CriticConfig(architecture="dcgan"), (1, 7, 8), "8 to 256"),
        (CriticConfig(architecture="dcgan"), (1, 257, 8), "8 to 256"),
        (CriticConfig(normalization="instance"), (3,), "use 'layer'"),
    ],
)
def test_what_does_not_fit_is_refused(
    config: CriticConfig, shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        build_critic(config, shape)


def test_a_block_of_equalised_layers_is_divided_by_the_root_of_2() -> None:
    x = torch.randn(2, 3)
    branch = nn.Sequential(nn.Linear(3, 3))
    for equalized, factor in ((False, 1.0), (True, 0.5**0.5)):
        found = Residual(branch, nn.Identity(), equalized)(x)
        torch.testing.assert_close(found, factor * (x + branch(x)))


@pytest.mark.parametrize("more", [{}, {"classes": 3}, {"latents": 5}])
def test_layer_normalisation_is_over_all_channels_of_a_map(more: dict[str, int]) -> None:
    (norm,) = normalization("layer", 4, image=True, **more)
    plain = getattr(norm, "norm", norm)
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(plain(x), nn.functional.layer_norm(x, (4, 3, 5)))


def test_a_conditional_norm_begins_without_a_gain_or_offset_and_gains_before_it_is_moved() -> None:
    norm = ConditionalNorm(nn.Identity(), 2, 3)
    x, labels = torch.randn(2, 2, 1, 1), torch.tensor([2, 0])
    torch.testing.assert_close(norm(x, labels), x)
    with torch.no_grad():
        norm.gain.weight.copy_(torch.tensor([[2.0, 3], [0, 0], [4, 5]]))
        norm.offset.weight.copy_(torch.tensor([[1.0, 1], [0, 0], [7, 8]]))
    expected = x[:, :, 0, 0] * torch.tensor([[4.0, 5], [2, 3]]) + torch.tensor([[7.0, 8], [1, 1]])
    torch.testing.assert_close(norm(x, labels)[:, :, 0, 0], expected)


def test_channels_double_up_to_eight_times_the_width() -> None:
    config = CriticConfig(width=3)
    assert [channels_after(config, stage) for stage in range(1, 7)] == [3, 6, 12, 24, 24, 24]


def test_instance_normalisation_has_a_gain_and_an_offset_for_each_channel() -> None:
    (norm,) = normalization("instance", 4, image=True)
    assert {name: p.shape for name, p in norm.named_parameters()} == {"weight": (4,), "bias": (4,)}


@pytest.mark.parametrize(
    ("config", "name", "least", "most"),
    [
        (GeneratorConfig, "width", 0, None),
        (CriticConfig, "depth", 0, 100),
        (GeneratorConfig, "latent_size", 1, None),
    ],
)
def test_sizes_have_bounds(
    config: type[NetworkConfig], name: str, least: int, most: int | None
) -> None:
    for size in (least, 100 if most is None else most):
        assert getattr(config(**{name: size}), name) == size
    for size in (least - 1, 10**6 if most is None else most + 1):
        with pytest.raises(ValidationError, match=name):
            config(**{name: size})


def test_a_share_of_activations_may_be_dropped_but_not_all() -> None:
    assert CriticConfig().dropout == 0
    for share in (0.0, 0.99):
        assert CriticConfig(dropout=share).dropout == share
    for share in (-0.01, 1.0):
        with pytest.raises(ValidationError, match="dropout"):
            CriticConfig(dropout=share)


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (CriticConfig, {"start": "orthogonal"}),
        (CriticConfig, {"equalized": True}),
        (GeneratorConfig, {"skips": True}),
        (GeneratorConfig, {"self_modulation": True}),
        (CriticConfig, {"minibatch_statistics": True}),
    ],
)
def test_an_option_is_off_and_is_written_when_it_is_set(
    config: type[NetworkConfig], option: dict[str, Any]
) -> None:
    """So that records of models that do without it stay as they were."""
    ((name, value),) = option.items()
    assert getattr(config(), name) in (False, "default")
    assert name not in config().model_dump()
    assert config(**option).model_dump()[name] == value


@pytest.mark.parametrize("side", [(7, 8), (8, 7), (257, 256), (256, 257), (8, 257)])
def test_both_sides_of_images_are_bounded(side: tuple[int, int]) -> None:
    assert size_problem(8, 256) is size_problem(256, 8) is size_problem(8, 8) is None
    found = size_problem(*side)
    assert found is not None
    assert f"{side[1]}x{side[0]} pixels; networks take sides of 8 to 256" in found


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 9, 33)])
def test_a_dcgan_generator_is_its_critic_s_mirror_image(
    shape: tuple[int, int, int], depth: int
) -> None:
    """In its channels; and only what is no image, and no score, is normalised."""
    settings: dict[str, Any] = {"architecture": "dcgan", "width": 3, "depth": depth}
    settings |= {"normalization": "layer"}
    critic = build_critic(CriticConfig(**settings), shape)
    generator = build_generator(GeneratorConfig(**settings, latent_size=2), shape)
    layers = (nn.Conv2d, nn.ConvTranspose2d)
    inwards, outwards = (
        [m for m in network.modules() if isinstance(m, layers)] for network in (critic, generator)
    )
    channels = [(m.in_channels, m.out_channels) for m in inwards]
    assert channels == [(m.out_channels, m.in_channels) for m in reversed(outwards)]
    halvings = len(image_sizes(*shape[1:], depth)) - 1
    plain = depth - halvings
    expected = [3] * plain + [min(3 * 2**i, 24) for i in range(halvings)]
    assert [m.out_channels for m in inwards] == expected
    assert [m.in_channels for m in inwards] == [shape[0], *expected[:-1]]
    for network, count in ((critic, depth - 1), (generator, depth)):
        assert sum(isinstance(m, nn.GroupNorm) for m in network.modules()) == count
