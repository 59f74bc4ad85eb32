"""Image skips of generators and critics, against sums written out, at every size."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import load_artifact
from models.constraints import WeightClipping
from models.errors import ConfigError
from models.folding import fold
from models.lipschitz import certify, operator_norm
from models.networks import (
    CriticConfig,
    GeneratorConfig,
    build_critic,
    build_generator,
    image_sizes,
)
from models.networks.skips import InputSkips, OutputSkips
from tests.artifacts import make_artifact

SIDES = [(8, 8), (28, 28), (33, 33), (64, 64), (128, 128), (256, 256), (9, 40), (256, 8)]


def both(shape: tuple[int, ...], classes: int = 0, **settings: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    settings = {"width": 2, "depth": 5, "skips": True, **settings}
    generator = build_generator(GeneratorConfig(**settings, latent_size=3), shape, classes)
    return generator, build_critic(CriticConfig(**settings), shape, classes)


def only(network: nn.Module, kind: type[nn.Module]) -> Any:
    (found,) = (module for module in network.modules() if isinstance(module, kind))
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", SIDES, ids=str)
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_every_resolution_has_its_image(
    architecture: str, side: tuple[int, int], channels: int
) -> None:
    shape = (channels, *side)
    generator, critic = both(shape, architecture=architecture)
    images = generator(torch.randn(2, 3))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert critic(images).shape == (2,)
    resolutions = len(image_sizes(*side, depth=5 if architecture == "dcgan" else 2))
    assert len(only(generator, OutputSkips).heads) == resolutions - 1
    assert len(only(critic, InputSkips).entries) == resolutions - 1


@pytest.mark.parametrize(("channels", "classes"), [(1, 3), (3, 0)])
@pytest.mark.parametrize("side", SIDES, ids=str)
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_all_options_together_fit_every_side(
    architecture: str, side: tuple[int, int], channels: int, classes: int
) -> None:
    torch.manual_seed(0)
    shape = (channels, *side)
    both: dict[str, Any] = {
        "architecture": architecture,
        "width": 2,
        "depth": 5,
        "skips": True,
        "equalized": True,
    }
    generator = build_generator(
        GeneratorConfig(**both, latent_size=3, normalization="batch", self_modulation=True),
        shape,
        classes,
    )
    critic = build_critic(CriticConfig(**both, minibatch_statistics=True), shape, classes)
    labels = [torch.tensor([0, 2, 1, 1])] if classes else []
    images = generator(torch.randn(4, 3), *labels)
    assert images.shape == (4, *shape)
    scores = critic(images, *labels)
    assert scores.shape == (4,)
    scores.sum().backward()
    moved = [*generator.parameters(), *critic.parameters()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in moved)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_the_image_is_the_sum_of_the_enlarged_ones(architecture: str, classes: int) -> None:
    generator, _ = both((3, 33, 20), classes, architecture=architecture, normalization="batch")
    generator.eval()
    skips = only(generator, OutputSkips)
    seen: list[Tensor] = []
    for part in (*skips.heads, skips.stages[-1]):
        # A conditional generator runs the layers of a Sequential one by one.
        list(part.modules())[-1].register_forward_hook(lambda m, i, output: seen.append(output))
    labels = [torch.tensor([0, 2, 1, 1])] if classes else []
    found = generator(torch.randn(4, 3), *labels)
    sizes = [tuple(image.shape[2:]) for image in seen]
    total: np.ndarray = np.zeros((4, 3, 0, 0))
    for image in seen:
        own = image.detach().numpy()
        if total.size:
            total = total.repeat(2, axis=2).repeat(2, axis=3)[:, :, : own.shape[2], : own.shape[3]]
            own = own + total
        total = own
    np.testing.assert_allclose(found.detach().numpy(), np.tanh(total), rtol=1e-5, atol=1e-6)
    assert len(sizes) == len(set(sizes))
    assert sizes[-1] == (33, 20)


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_a_critic_sees_the_smaller_image_after_each_stage(architecture: str) -> None:
    _, critic = both((3, 32, 16), architecture=architecture)
    skips = only(critic, InputSkips)
    x = torch.randn(4, 3, 32, 16)
    maps, image = x, x
    for stage, entry in zip(skips.stages, skips.entries, strict=True):
        image = image.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
        kernel = entry[0].weight[:, :, 0, 0]
        more = torch.einsum("oc,nchw->nohw", kernel, image) + entry[0].bias[:, None, None]
        if architecture == "dcgan":
            more = F.leaky_relu(more, 0.2)
        maps = stage(maps) + more
    torch.testing.assert_close(skips(x), maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("equalized", [False, True])
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_second_derivatives_are_exact(architecture: str, equalized: bool) -> None:
    """Against finite differences in float64: what a gradient penalty back-propagates."""
    settings = {"architecture": architecture, "activation": "tanh", "equalized": equalized}
    _, critic = both((1, 9, 16), depth=3, **settings)
    critic.double()
    images = torch.randn(2, 1, 9, 16, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in critic.named_parameters()]

    def slope(x: Tensor, *weights: Tensor) -> Tensor:
        scores = torch.func.functional_call(critic, dict(zip(names, weights, strict=True)), (x,))
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return gradient.flatten(1).norm(dim=1)

    weights = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())
    assert torch.autograd.gradcheck(slope, (images, *weights), fast_mode=True)


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_the_certificate_counts_every_way_of_the_image(architecture: str) -> None:
    """It is above every slope; of the way through the smallest image alone it is the norm."""
    _, critic = both((1, 32, 32), architecture=architecture, activation="relu", depth=3)
    critic.double().eval()
    bound, reason = certify(critic)
    assert reason is None
    assert bound is not None
    x = torch.randn(64, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x)
    assert gradient.flatten(1).norm(dim=1).max() <= bound
    skips = only(critic, InputSkips)
    with torch.no_grad():  # only the way through the smallest image is left: its norm is known
        for stage in skips.stages:
            for parameter in stage.parameters():
                parameter.zero_()
        for entry in skips.entries[:-1]:
            for parameter in entry.parameters():
                parameter.zero_()
    alone, _ = certify(nn.Sequential(skips))
    shrunk = 0.5 ** len(skips.entries)
    assert alone == pytest.approx(shrunk * operator_norm(skips.entries[-1][0]), rel=1e-5)


def test_a_target_constant_takes_the_skips_into_account() -> None:
    constraint = WeightClipping(target_lipschitz=1.5)
    _, critic = both((1, 16, 16), architecture="resnet")
    constraint.before_training(critic)
    with torch.no_grad():
        for parameter, bound in constraint.clipped(critic):
            parameter.fill_(bound)
    assert certify(critic.double().eval())[0] == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_dropout_follows_each_activation_that_it_follows_without_skips(architecture: str) -> None:
    settings = {"architecture": architecture, "width": 2, "depth": 3, "dropout": 0.5}
    counts = [
        sum(
            isinstance(m, nn.Dropout)
            for m in build_critic(CriticConfig(**settings, skips=skips), (1, 32, 32)).modules()  # type: ignore[arg-type]
        )
        for skips in (True, False)
    ]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("architecture", "normalization", "counts"),
    list(itertools.product(["dcgan", "resnet"], ["none", "batch"], [None, {"a": 3, "b": 5}])),
)
def test_samples_depend_on_seed_and_index_alone(
    tmp_path: Path, architecture: str, normalization: str, counts: dict[str, int] | None
) -> None:
    settings = {"architecture": architecture, "depth": 3, "skips": True}
    model = load_artifact(
        make_artifact(
            tmp_path / "a",
            class_counts=counts,
            generator={**settings, "normalization": normalization},
            critic=settings,
        )
    )
    z = torch.from_numpy(model.latents(0, 5))
    labels = [torch.tensor([0, 1, 1, 0, 1])] if counts else []
    torch.testing.assert_close(fold(model.generator)(z, *labels), model.generator(z, *labels))
    whole = model.sample(3, 40)
    assert np.array_equal(np.concatenate(list(model.samples(3, 9, 11))), whole[11:20])


@pytest.mark.parametrize(
    ("config", "shape", "says"),
    [
        (CriticConfig(skips=True), (3,), "are for images, not vectors"),
        (CriticConfig(architecture="gru", skips=True), (4, 2), "are for images, not sequences"),
        (CriticConfig(architecture="resnet", depth=1, skips=True), (1, 8, 8), "set critic.depth"),
    ],
)
def test_what_has_one_resolution_is_refused(
    config: CriticConfig, shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        build_critic(config, shape)
