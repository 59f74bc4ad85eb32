"""Equalised layers: He's constant, weights that constraints see, and plain ones for serving."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from models.artifact import load_artifact
from models.constraints import Constraint, NoConstraint, WeightClipping, WeightDecay
from models.errors import ConfigError
from models.folding import fold
from models.lipschitz import certify
from models.networks import CriticConfig, GeneratorConfig, build_critic, build_generator
from models.networks.conditional import ProjectionCritic
from models.networks.initial import equalize, he_constant, trained_weight, weighted_layers
from tests.artifacts import make_artifact
from tests.conformance import FAMILIES, data, make, steps
from tests.test_conformance import CONSTRAINTS

FAMILY = FAMILIES["resnet, equalized"]
NETWORKS = [("mlp", (5,)), ("dcgan", (3, 33, 28)), ("resnet", (1, 16, 20)), ("gru", (4, 3))]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(7, 3),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.Conv2d(4, 3, 4, 2, 1),
        nn.ConvTranspose2d(5, 3, 4, 2, 1),
        nn.ConvTranspose2d(5, 3, (3, 4), 2, 1),
    ],
    ids=str,
)
def test_an_output_keeps_the_size_of_its_inputs_but_for_the_root_of_2(layer: nn.Module) -> None:
    """Far from the border: with weights of 1 and squares of inputs of 1, variances add up."""
    assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    factor = he_constant(layer)
    nn.init.constant_(layer.weight, factor**2)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    if isinstance(layer, nn.Linear):
        inner = layer(torch.ones(1, 7))
    else:
        inner = layer(torch.ones(1, layer.in_channels, 64, 64))[:, :, 4:24, 4:24]
    assert inner.mean().item() == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("architecture", "shape"), NETWORKS)
def test_a_network_is_the_plain_one_with_scaled_weights(
    architecture: str, shape: tuple[int, ...], classes: int
) -> None:
    torch.manual_seed(0)
    settings = {"architecture": architecture, "width": 4, "depth": 3}
    labels = [torch.tensor([0, 2, 1])] if classes else []
    inputs = torch.randn(3, 8), torch.randn(3, *shape)
    configs = GeneratorConfig(**settings, latent_size=8), CriticConfig(**settings)  # type: ignore[arg-type]
    for config, build, x in zip(configs, (build_generator, build_critic), inputs, strict=True):
        own = build(config.model_copy(update={"equalized": True}), shape, classes)  # type: ignore[operator]
        plain = build(config, shape, classes)  # type: ignore[operator]
        pairs = list(zip(weighted_layers(own), weighted_layers(plain), strict=True))
        drawn = torch.cat([trained_weight(layer)[0].detach().flatten() for layer, _ in pairs])
        assert abs(drawn.mean()) < 5 * len(drawn) ** -0.5
        assert drawn.std().item() == pytest.approx(1, abs=5 * len(drawn) ** -0.5)
        assert all(layer.bias is None or not layer.bias.any() for layer, _ in pairs)
        plain.load_state_dict(NoConstraint().plain_state(own), strict=False)
        with torch.no_grad():
            for layer, other in pairs:
                parameter, factor = trained_weight(layer)
                class_vectors = isinstance(own, ProjectionCritic) and layer is own.projection
                assert factor == (
                    own.head.in_features**-0.5 if class_vectors else he_constant(other)
                )
                other.weight.copy_(factor * parameter)
                if other.bias is not None:
                    other.bias.zero_()
            for block in plain.modules():
                if hasattr(block, "scale"):
                    block.scale = 2**-0.5  # type: ignore[assignment]
        torch.testing.assert_close(own(x, *labels), plain(x, *labels))


def test_adam_moves_all_layers_alike() -> None:
    """A step of Adam is as long in every parameter, so a weight's is in proportion to its scale."""
    torch.manual_seed(0)
    wide, narrow = nn.Linear(400, 1), nn.Linear(4, 1)
    for layer in (wide, narrow):
        equalize(layer, he_constant(layer))
    before = [layer.weight.detach().clone() for layer in (wide, narrow)]
    optimizer = torch.optim.Adam([*wide.parameters(), *narrow.parameters()], 0.1)
    (wide(torch.randn(1, 400)) + narrow(torch.randn(1, 4))).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for layer, old in zip((wide, narrow), before, strict=True):
        moved = (layer.weight - old).abs()
        torch.testing.assert_close(moved, torch.full_like(old, 0.1 * he_constant(layer)))


@pytest.mark.parametrize("scope", ["all", "weights"])
def test_clipping_is_of_the_weights_that_the_critic_computes_with(scope: str) -> None:
    critic = make(WeightClipping(clip_value=0.03, scope=scope), FAMILY)  # type: ignore[arg-type]
    for layer in weighted_layers(critic):
        assert layer.weight.abs().max().item() == pytest.approx(0.03)
    target = WeightClipping(target_lipschitz=2.0)
    critic = make(target, FAMILY).eval()
    with torch.no_grad():
        for parameter, bound in target.clipped(critic):
            parameter.fill_(bound)
    bound, _ = certify(critic)
    assert bound == pytest.approx(2, rel=1e-3)


def test_the_decay_is_of_the_weights_that_the_critic_computes_with() -> None:
    critic = make(WeightDecay(strength=0.5), FAMILY)
    weights = [layer.weight for layer in weighted_layers(critic)]
    total = torch.stack([0.25 * w.square().sum() for w in weights]).sum()
    expected = torch.autograd.grad(total, [trained_weight(m)[0] for m in weighted_layers(critic)])
    (0 * critic(data(FAMILY)[0]).sum()).backward()
    for layer, gradient in zip(weighted_layers(critic), expected, strict=True):
        torch.testing.assert_close(trained_weight(layer)[0].grad, gradient)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_run_may_go_on_with_the_weights_under_another_constraint(name: str) -> None:
    constraint: Constraint = CONSTRAINTS[name]
    critic = make(constraint, FAMILY)
    steps(constraint, critic, FAMILY, range(3))
    dropout = 0.5 if constraint.needs_dropout else 0.0
    plain = build_critic(CriticConfig(**FAMILY.critic, dropout=dropout), FAMILY.shape).double()
    plain.load_state_dict(constraint.plain_state(critic))
    points, _ = data(FAMILY)
    inner = critic.critic if name == "gradient_normalization" else critic
    torch.testing.assert_close(plain.eval()(points), inner.eval()(points))  # type: ignore[operator, union-attr]


def test_the_certificate_is_that_of_the_scaled_sums() -> None:
    """Against the same critic written out: each block's slope is the sum's over the root of 2."""
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(**FAMILY.critic), FAMILY.shape).double().eval()
    halved = copy.deepcopy(critic)
    blocks = [m for m in halved.modules() if hasattr(m, "scale")]
    for block in blocks:
        block.scale = 1.0  # type: ignore[assignment]
    found, expected = (certify(network)[0] for network in (critic, halved))
    assert found is not None
    assert expected is not None
    assert found == pytest.approx(expected * 2 ** (-len(blocks) / 2))
    x, y = data(FAMILY)
    slopes = (critic(x) - critic(y)).abs() / (x - y).flatten(1).norm(dim=1)
    assert slopes.max() <= found


def test_what_is_served_has_plain_weights(tmp_path: Path) -> None:
    settings = {"equalized": True, "normalization": "batch"}
    model = load_artifact(
        make_artifact(tmp_path / "a", generator=settings, critic={"equalized": True})
    )
    assert not any("parametrizations" in name for name in model.forward.state_dict())
    assert any("parametrizations" in name for name in model.generator.state_dict())
    z = torch.from_numpy(model.latents(0, 5))
    torch.testing.assert_close(fold(model.generator)(z), model.generator(z))
    whole = model.sample(seed=3, count=40)
    assert np.array_equal(whole[:5], model.sample(seed=3, count=5))


def test_what_does_not_go_together_is_refused() -> None:
    config = CriticConfig(equalized=True, start="orthogonal")
    with pytest.raises(ConfigError, match=r"leave out critic.start or critic.equalized"):
        build_critic(config, (3,))


def test_a_transposed_convolution_computes_with_the_scaled_kernel() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(3, 2, 4, 2, 1)
    equalize(layer, 0.25)
    x = torch.randn(2, 3, 5, 5)
    kernel: Tensor = trained_weight(layer)[0] * 0.25
    torch.testing.assert_close(layer(x), F.conv_transpose2d(x, kernel, None, 2, 1))


@pytest.mark.parametrize(
    ("prepare", "factor"),
    [
        (lambda layer: layer, 1.0),
        (lambda layer: equalize(layer, 0.25), 0.25),
        (lambda layer: parametrize.register_parametrization(layer, "weight", nn.Tanh()), 1.0),
    ],
    ids=["plain", "equalized", "of another rule"],
)
def test_what_is_trained_of_a_layer_is_known_with_its_factor(
    prepare: Callable[[nn.Linear], object], factor: float
) -> None:
    layer = nn.Linear(3, 2)
    prepare(layer)
    trained, by = trained_weight(layer)
    assert by == factor
    assert any(trained is parameter for parameter in layer.parameters())
    assert trained.shape == (2, 3)
