"""Residual networks: depth as asked, any size, and exact second derivatives."""

from typing import Any

import pytest
import torch
from torch import nn

from models.networks import (
    CriticConfig,
    GeneratorConfig,
    build_critic,
    build_generator,
    image_sizes,
)
from models.networks.parts import Residual
from models.networks.resnet import num_blocks

SIZES = [(8, 8), (9, 13), (28, 28), (31, 17), (256, 256), (8, 256)]


def on_longest_path(network: nn.Module) -> int:
    """Layers with weights, without those of shortcuts."""
    shortcuts = {
        id(layer)
        for block in network.modules()
        if isinstance(block, Residual)
        for layer in block.shortcut.modules()
    }
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(id(layer) not in shortcuts for layer in layers)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [1, 2, 3, 6, 9])
def test_images_of_any_size(size: tuple[int, int], depth: int) -> None:
    shape = (3, *size)
    generator = build_generator(
        GeneratorConfig(architecture="resnet", width=2, depth=depth, latent_size=5), shape
    )
    critic = build_critic(CriticConfig(architecture="resnet", width=2, depth=depth), shape)
    images = generator(torch.randn(2, 5))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert critic(images).shape == (2,)


@pytest.mark.parametrize("layers", range(4, 51))
def test_the_depth_is_as_asked(layers: int) -> None:
    shape, depth = (1, 16, 16), layers - 1
    critic = build_critic(CriticConfig(architecture="resnet", width=2, depth=depth), shape)
    generator = build_generator(
        GeneratorConfig(architecture="resnet", width=2, depth=depth, latent_size=2), shape
    )
    for network in (generator, critic):
        assert on_longest_path(network) == layers
        blocks = [m for m in network.modules() if isinstance(m, Residual)]
        assert len(blocks) == num_blocks(depth)
    pools = [m for m in critic.modules() if isinstance(m, nn.AvgPool2d)]
    assert len(pools) == min(2, num_blocks(depth)) + 1  # 16 to 4 at most, and then to 1


@pytest.mark.parametrize("normalization", ["none", "batch", "layer", "instance"])
def test_fifty_layers_keep_their_gradient(normalization: str) -> None:
    torch.manual_seed(0)
    for seed_shape in ((1, 28, 28), (3, 32, 32)):
        config = {"architecture": "resnet", "width": 8, "depth": 49, "normalization": normalization}
        critic = build_critic(CriticConfig(**config), seed_shape)  # type: ignore[arg-type]
        critic(torch.randn(4, *seed_shape)).sum().backward()
        norms = [p.grad.norm() for n, p in critic.named_parameters() if n.endswith("weight")]  # type: ignore[union-attr]
        # The first layer's gradient against the last's: a plain network of this depth has 1e-10.
        assert norms[0] > 1e-4 * norms[-1]
        generator = build_generator(GeneratorConfig(**config, latent_size=4), seed_shape)  # type: ignore[arg-type]
        assert generator(torch.randn(8, 4)).std(0).mean() > 1e-4, "the latent does not matter"


def test_growing_repeats_pixels_and_shrinking_averages_them() -> None:
    generator = build_generator(
        GeneratorConfig(architecture="resnet", width=2, depth=3, latent_size=2), (1, 9, 13)
    )
    (grow,) = {type(m): m for m in generator.modules() if isinstance(m, nn.Upsample)}.values()
    x = torch.arange(35.0).reshape(1, 1, 5, 7)
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(grow(x), doubled[:, :, :9, :13])
    critic = build_critic(CriticConfig(architecture="resnet", width=2, depth=3), (1, 9, 13))
    pool = next(m for m in critic.modules() if isinstance(m, nn.AvgPool2d))
    found = pool(torch.arange(9.0).reshape(1, 1, 3, 3))
    assert found.tolist() == [[[[2.0, 3.5], [6.5, 8.0]]]]


@pytest.mark.parametrize("normalization", ["none", "layer", "instance"])
@pytest.mark.parametrize("depth", [3, 4])
def test_second_derivatives_are_exact(normalization: str, depth: int) -> None:
    """Against finite differences in float64: what a gradient penalty back-propagates."""
    torch.manual_seed(0)
    config = CriticConfig(
        architecture="resnet",
        width=2,
        depth=depth,
        activation="tanh",
        normalization=normalization,  # type: ignore[arg-type]
    )
    critic = build_critic(config, (1, 9, 8)).double()
    images = torch.randn(2, 1, 9, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(critic, (images,), fast_mode=True)
    parameters = tuple(critic.parameters())

    def slope(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        names = [name for name, _ in critic.named_parameters()]
        scores = torch.func.functional_call(critic, dict(zip(names, weights, strict=True)), (x,))
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return gradient.flatten(1).norm(dim=1)

    weights = tuple(p.detach().clone().requires_grad_() for p in parameters)
    assert torch.autograd.gradcheck(slope, (images, *weights), fast_mode=True)


@pytest.mark.parametrize("normalization", ["layer", "instance"])
def test_per_sample_normalisation_keeps_samples_apart(normalization: str) -> None:
    config = CriticConfig(
        architecture="resnet",
        width=4,
        depth=4,
        normalization=normalization,  # type: ignore[arg-type]
    )
    critic = build_critic(config, (1, 16, 16))
    images = torch.randn(6, 1, 16, 16)
    torch.testing.assert_close(critic(images)[:2], critic(images[:2]))


def of_block(block: Residual) -> tuple[int, int, bool, int]:
    """Its channels, at both ends, whether it resizes, and its convolutions."""
    branch, shortcut = ([*part.modules()] for part in (block.branch, block.shortcut))
    convolutions = [m for m in branch if isinstance(m, nn.Conv2d)]
    inputs, outputs = convolutions[0].in_channels, convolutions[-1].out_channels
    resizing = (nn.AvgPool2d, nn.Upsample)
    resizes = [any(isinstance(m, resizing) for m in part) for part in (branch, shortcut)]
    assert resizes[0] == resizes[1]
    matching = [m for m in shortcut if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in matching] == [
        (inputs, outputs, (1, 1))
    ] * (inputs != outputs)
    return inputs, outputs, resizes[0], len(convolutions)


@pytest.mark.parametrize("depth", [1, 2, 4, 7, 9, 16])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 9, 33)])
def test_blocks_are_spread_over_resolutions_those_left_over_inwards(
    shape: tuple[int, int, int], depth: int
) -> None:
    config: dict[str, Any] = {"architecture": "resnet", "width": 2, "depth": depth}
    config |= {"normalization": "layer"}
    critic = build_critic(CriticConfig(**config), shape)
    generator = build_generator(GeneratorConfig(**config, latent_size=2), shape)
    count = num_blocks(depth)
    sizes = image_sizes(*shape[1:], count)
    halvings = len(sizes) - 1
    expected, channels = [], 2
    for stage in range(halvings):
        after = min(2 * 2**stage, 16)
        for i in range(count // halvings + (stage >= halvings - count % halvings)):
            expected.append((channels, after, i == 0, 2))
            channels = after
    if depth > 1 and depth % 2 == 0:
        expected[-1] = (*expected[-1][:3], 1)
    found = [of_block(m) for m in critic.modules() if isinstance(m, Residual)]
    assert found == expected
    mirrored = [of_block(m) for m in generator.modules() if isinstance(m, Residual)]
    assert [(o, i, *rest) for i, o, *rest in reversed(mirrored)] == expected
    for network in (critic, generator):
        assert sum(isinstance(m, nn.GroupNorm) for m in network.modules()) == depth
    maps = list[torch.Tensor]()
    *_, pool = (m for m in critic.modules() if isinstance(m, nn.AvgPool2d))
    pool.register_forward_hook(lambda _, given, made: maps.extend((*given, made)))
    critic(generator(torch.randn(2, 2)))
    assert maps[0].shape == (2, channels, *sizes[-1])
    torch.testing.assert_close(maps[1][:, :, 0, 0], maps[0].mean(dim=(2, 3)))
