"""Activation checkpointing: the same gradients, of any order, from less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.constraints import Constraint, GradientPenalty, NoConstraint
from models.lipschitz import gradient_norms, layer_signals
from models.networks import CriticConfig, GeneratorConfig, build_critic, build_generator
from models.networks.stages import Stages, with_stages
from tests.conformance import FAMILIES, data, make
from tests.test_conformance import CONSTRAINTS
from tests.test_split import TOLERANCE, run_of, step
from tests.test_step import difference, gradients
from training.data.dataset import load_data
from training.engine.loop import train
from training.engine.split import Split
from training.engine.step import CriticStep

CPU = torch.device("cpu")


def staged(network: nn.Module) -> nn.Module:
    """A copy in stages."""
    twin = with_stages(copy.deepcopy(network))
    assert [*twin.state_dict()] == [*network.state_dict()]
    return twin


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_critic_in_stages_has_the_same_gradients(name: str, family: str) -> None:
    constraint = CONSTRAINTS[name]
    if name == "weight_clipping, target" and family in ("gru", "lstm"):
        pytest.skip("refused: no bound is known for a recurrent critic")
    if constraint.joins_layers:
        pytest.skip("refused: its weights are made of several layers' numbers")
    critic = make(constraint, FAMILIES[family]).train()
    twin = with_stages(make(constraint, FAMILIES[family])).train()
    expected = step(critic, constraint, Split(), FAMILIES[family])
    found = step(twin, constraint, Split(), FAMILIES[family])
    torch.testing.assert_close(found[:2], expected[:2])
    assert difference(found[2], expected[2]) <= TOLERANCE
    assert torch.equal(found[0], expected[0])
    if constraint.needs_whole_batch() is None:
        parts = step(twin, constraint, Split(3), FAMILIES[family])
        assert difference(parts[2], expected[2]) <= TOLERANCE


def test_a_third_derivative_is_right() -> None:
    """In finite differences of the second, which torch's own gradcheck takes."""
    torch.manual_seed(0)
    config = CriticConfig(architecture="dcgan", width=2, depth=2, activation="softplus")
    critic = with_stages(build_critic(config, (1, 8, 8)).double())

    def slopes(points: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), points, create_graph=True)
        return second

    points = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(slopes, points)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("kind", ["none", "batch", "layer"])
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_a_generator_in_stages_is_the_same(architecture: str, kind: Any, classes: int) -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(
        architecture=architecture,  # type: ignore[arg-type]
        width=4,
        depth=3,
        normalization=kind,
        latent_size=5,
    )
    network = build_generator(config, (1, 16, 16), classes).double().train()
    twin = copy.deepcopy(staged(network))  # as the moving average is a copy of the generator
    z = torch.randn(6, 5, dtype=torch.float64)
    labels = [torch.tensor([0, 1, 2, 2, 1, 0])] if classes else []
    for each in (network, twin):
        each(z, *labels).square().sum().backward()
    assert difference(gradients(twin), gradients(network)) <= TOLERANCE
    for name, tensor in network.state_dict().items():  # statistics of batches count once
        torch.testing.assert_close(twin.state_dict()[name], tensor)


@pytest.mark.parametrize("name", ["gradient_penalty", "spectral_norm"])
@pytest.mark.parametrize("family", ["mlp", "dcgan", "resnet"])
def test_stages_in_bfloat16_have_gradients_for_all_weights(family: str, name: str) -> None:
    """Under autocast, whose cache would give a backward pass weights without a graph.

    What is rounded to bfloat16, of a relative 4e-3, is not the same.
    """
    constraint, found = CONSTRAINTS[name], []
    critic = make(constraint, FAMILIES[family]).float().train()
    for network in (critic, staged(critic)):
        autocast = torch.autocast("cpu", torch.bfloat16)
        find = CriticStep("eager", network, constraint, "bf16", autocast)
        torch.manual_seed(0)
        real, fake = (x.float() for x in data(FAMILIES[family]))
        find(real, fake, [], 0)
        found.append(gradients(network))
    assert difference(found[1], found[0]) <= 1e-2


def held(network: nn.Module, constraint: Constraint) -> int:
    """Numbers of the graph of a critic's loss that are alive before its backward pass."""
    alive: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        alive[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    real, fake = (x.float() for x in data(FAMILIES["mlp"], 4))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        penalty = constraint.penalty(network, real, fake)
        loss = network(fake).mean() - network(real).mean()
        loss = loss if penalty is None else loss + penalty
    return sum(alive.values())


def test_less_is_held_under_a_penalty() -> None:
    """Unlike by torch's own checkpointing, whose backward pass makes a graph of all it finds."""
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(width=64, depth=8, activation="softplus"), (3,))
    for constraint in (NoConstraint(), GradientPenalty()):
        weights = sum(p.numel() * p.element_size() for p in critic.parameters())
        plain = held(critic, constraint) - weights
        assert held(staged(critic), constraint) - weights < 0.7 * plain


def test_a_stage_with_dropout_is_held() -> None:
    torch.manual_seed(0)
    critic = with_stages(build_critic(CriticConfig(width=4, depth=2, dropout=0.5), (3,)))
    stages = critic.body.stages()  # type: ignore[union-attr, operator]
    kinds = [[type(layer).__name__ for layer in stage] for stage in stages]
    assert kinds == [
        ["Linear", "LeakyReLU"],
        ["Dropout"],
        ["Linear", "LeakyReLU"],
        ["Dropout"],
        ["Linear"],
    ]
    assert [stage.is_recomputed for stage in stages] == [True, False, True, False, True]


def recomputed(result: Tensor) -> int:
    """Number of stages in a result's graph of which the inputs alone are held."""
    seen, count = set[Any](), 0
    nodes = [result.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            count += "_Recomputed" in node.name()
            nodes += [following for following, _ in node.next_functions]
    return count


@pytest.mark.parametrize(("normalization", "classes"), [("none", 0), ("layer", 0), ("batch", 3)])
def test_a_stage_is_a_layer_with_weights_and_what_follows_it(
    normalization: Any, classes: int
) -> None:
    config = GeneratorConfig(
        architecture="dcgan", width=2, depth=2, latent_size=3, normalization=normalization
    )
    network = staged(build_generator(config, (1, 16, 16), classes))
    body = network if isinstance(network, Stages) else network.body
    assert isinstance(body, Stages)
    kinds = [type(stage[0]).__name__ for stage in body.stages()]
    assert kinds == ["Linear", "ConvTranspose2d", "ConvTranspose2d"]
    assert [layer for stage in body.stages() for layer in stage] == [*body]
    given = [torch.randn(2, 3), *([torch.tensor([0, 2])] if classes else [])]
    assert recomputed(network(*given)) == 3
    body.recomputes = False
    assert recomputed(network(*given)) == 0


def test_a_layer_that_drops_nothing_is_computed_anew() -> None:
    for share, count in ((0.0, 3), (0.5, 2)):
        network = Stages(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Dropout(share))
        assert recomputed(network(torch.ones(1, 2, requires_grad=True))) == count


def test_networks_with_skips_have_stages_inside() -> None:
    """Or their whole would be computed anew as one, which holds all of it in the backward pass."""
    options: dict[str, Any] = {"architecture": "dcgan", "width": 2, "depth": 2, "skips": True}
    for network, count in (
        # Each resolution's first layer, the layers of maps and the image's way in or out.
        (build_critic(CriticConfig(**options), (1, 16, 16)), {"stages": 2, "entries": 2}),
        (build_generator(GeneratorConfig(**options), (1, 16, 16)), {"stages": 3, "heads": 2}),
    ):
        parts = [m for m in staged(network).modules() if type(m) is Stages]
        assert len(parts) == 1 + sum(count.values())
        outer, *inner = parts
        assert not outer.stages()[0].is_recomputed
        assert all(stage.is_recomputed for part in inner for stage in part.stages())


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(
    "option",
    [{"skips": True}, {"self_modulation": True}, {"equalized": True}, {"start": "orthogonal"}],
    ids=lambda option: next(iter(option)),
)
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_a_generator_with_options_in_stages_is_the_same(
    architecture: Any, option: dict[str, Any], classes: int
) -> None:
    """Its self-modulated normalisations follow the latent, which has a gradient of its own."""
    torch.manual_seed(0)
    config = GeneratorConfig(
        architecture=architecture, width=4, depth=3, normalization="layer", latent_size=5, **option
    )
    network = build_generator(config, (1, 16, 16), classes).double().train()
    twin = staged(network)
    labels = [torch.tensor([0, 1, 2, 2, 1, 0])] if classes else []
    by_latents = []
    for each in (network, twin):
        z = torch.linspace(-1, 1, 30, dtype=torch.float64).view(6, 5).requires_grad_()
        each(z, *labels).square().sum().backward()
        by_latents.append(z.grad)
    assert difference(gradients(twin), gradients(network)) <= TOLERANCE
    torch.testing.assert_close(by_latents[1], by_latents[0])


def test_a_critic_in_stages_is_examined_as_any() -> None:
    critic = make(NoConstraint(), FAMILIES["resnet"])
    points, _ = data(FAMILIES["resnet"])
    twin = staged(critic)
    assert layer_signals(twin, points) == layer_signals(critic, points)
    torch.testing.assert_close(gradient_norms(twin, points), gradient_norms(critic, points))


@pytest.mark.parametrize("mode", ["auto", "captured"])
def test_a_step_in_stages_is_eager(mode: str) -> None:
    critic, said = with_stages(make(NoConstraint(), FAMILIES["mlp"])), list[str]()
    find = CriticStep(mode, critic, NoConstraint(), say=said.append)
    find(*data(FAMILIES["mlp"]), [], 0)
    assert find.mode == "eager"
    assert len(said) == (mode == "captured")
    assert all("would hold the activations" in line for line in said)


def test_a_run_in_stages_is_the_same_run(tmp_path: Path) -> None:
    """With conditions, dropout and augmentation; but for a step's rounding."""
    found = []
    for checkpointing in (False, True):
        config = run_of(
            "images", tmp_path, critic_step="eager", activation_checkpointing=checkpointing
        )
        folder = tmp_path / str(checkpointing)
        state, _ = train(config, load_data(config.data), folder, CPU)
        found.append(state)
    assert any(isinstance(m, Stages) for m in found[1].critic.modules())
    plain, ours = (state.tensors() for state in found)
    for name, tensor in plain.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)
