"""Initial weights: orthogonal and Xavier's, and none that anybody had before are others."""

import pytest
import torch
from torch import nn

from models.networks import CriticConfig, GeneratorConfig, build_critic, build_generator
from models.networks.initial import Weighted, weighted_layers

NETWORKS = [
    ("mlp", (5,)),
    ("dcgan", (3, 33, 28)),
    ("resnet", (1, 16, 20)),
    ("gru", (4, 3)),
    ("lstm", (4, 3)),
]


def both(
    architecture: str, shape: tuple[int, ...], classes: int, **more: object
) -> list[nn.Module]:
    """A generator and a critic, each made after the same seed."""
    settings = {"architecture": architecture, "width": 6, "depth": 3, **more}
    networks = []
    for config, build in ((GeneratorConfig, build_generator), (CriticConfig, build_critic)):
        torch.manual_seed(0)
        latents = {"latent_size": 8} if config is GeneratorConfig else {}
        networks.append(build(config(**settings, **latents), shape, classes))  # type: ignore[operator, arg-type]
    return networks


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [layer.weight.detach() for layer in weighted_layers(network)]


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize(("architecture", "shape"), NETWORKS)
def test_all_singular_values_of_an_orthogonal_start_are_1(
    architecture: str, shape: tuple[int, ...], classes: int
) -> None:
    for network in both(architecture, shape, classes, start="orthogonal"):
        found = [torch.linalg.svdvals(weight.flatten(1).double()) for weight in weights(network)]
        assert len(found) > 3
        for values in found:
            torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("architecture", "shape"), NETWORKS)
def test_xavier_weights_are_uniform_as_glorot_and_bengio_say(
    architecture: str, shape: tuple[int, ...]
) -> None:
    from scipy.stats import kstest

    for network in both(architecture, shape, 0, start="xavier"):
        drawn = []
        for weight in weights(network):
            taps = weight[0, 0].numel()  # of a kernel; 1 in a dense layer
            limit = (6 / ((weight.shape[0] + weight.shape[1]) * taps)) ** 0.5
            drawn.append(weight.flatten() / limit)
        together = torch.cat(drawn).numpy()
        assert abs(together).max() <= 1
        assert kstest(together, "uniform", (-1, 2)).pvalue > 0.001


@pytest.mark.parametrize("start", ["orthogonal", "xavier"])
@pytest.mark.parametrize(("architecture", "shape"), NETWORKS)
def test_a_start_changes_no_shape_and_draws_no_bias(
    architecture: str, shape: tuple[int, ...], start: str
) -> None:
    plain, drawn = (both(architecture, shape, 0, start=s) for s in ("default", start))
    for network, other in zip(plain, drawn, strict=True):
        shapes, its = ({k: t.shape for k, t in n.state_dict().items()} for n in (network, other))
        assert shapes == its
        biases = [m.bias for m in other.modules() if isinstance(m, Weighted) and m.bias is not None]
        assert biases
        assert all((bias == 0).all() for bias in biases)
        assert not any(map(torch.equal, weights(network), weights(other)))


def test_the_default_is_torch_s_own_and_draws_nothing_more() -> None:
    torch.manual_seed(0)
    found = build_critic(CriticConfig(width=4, depth=1), (3,)), torch.rand(1)
    torch.manual_seed(0)
    expected = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), torch.rand(1)
    assert all(map(torch.equal, weights(found[0]), weights(expected[0])))
    assert torch.equal(found[1], expected[1])
    assert "start" not in CriticConfig().model_dump()  # old records are written as they were
    assert CriticConfig(start="xavier").model_dump()["start"] == "xavier"


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("architecture", "shape"), NETWORKS)
def test_nothing_is_drawn_for_options_that_are_not_chosen(
    architecture: str, shape: tuple[int, ...], classes: int
) -> None:
    """So seeds keep their networks: they are what the layers draw by themselves, in order."""
    settings = {"architecture": architecture, "width": 4, "depth": 4}
    for config, build in ((GeneratorConfig, build_generator), (CriticConfig, build_critic)):
        torch.manual_seed(0)
        latents = {"latent_size": 8} if config is GeneratorConfig else {}
        network = build(config(**settings, **latents), shape, classes)  # type: ignore[operator, arg-type]
        after = torch.rand(1)
        drawn = [weight.clone() for weight in weights(network)]
        torch.manual_seed(0)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
            if module is getattr(network, "projection", None):
                nn.init.normal_(module.weight, std=module.out_features**-0.5)  # type: ignore[arg-type, operator, union-attr]
        assert torch.equal(torch.rand(1), after)
        if architecture not in ("gru", "lstm"):  # these draw their dense layers first
            assert all(map(torch.equal, drawn, weights(network)))
