"""Bounds of normalisation and of recurrent layers, against their derivatives and closed forms."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.lipschitz import certify
from models.lipschitz.unrolled import recurrent_slope
from models.networks import CriticConfig, build_critic
from models.networks.recurrent import GRU, LSTM


def derivative(module: nn.Module, x: Tensor) -> float:
    """The norm of a module's derivative at one input, without the batch's axis."""
    found = torch.autograd.functional.jacobian(lambda y: module(y[None])[0], x)
    return torch.linalg.matrix_norm(found.reshape(-1, x.numel()), 2).item()


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.LayerNorm(6), (6,)),
        (nn.LayerNorm(6, eps=0.01), (6,)),
        (nn.GroupNorm(1, 4), (4, 3, 3)),
        (nn.GroupNorm(2, 4), (4, 3, 3)),
        (nn.InstanceNorm2d(3, affine=True), (3, 4, 4)),
        (nn.InstanceNorm2d(3), (3, 4, 4)),
    ],
    ids=str,
)
def test_a_norm_is_steepest_where_all_numbers_are_the_same(
    module: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    module = module.double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    bound, _ = certify(module)
    assert bound is not None
    gain = getattr(module, "weight", None)
    expected = (1.0 if gain is None else gain.abs().max().item()) / math.sqrt(module.eps)  # type: ignore[arg-type]
    assert expected <= bound <= expected * (1 + 2e-6)
    if gain is None or gain.numel() < 6:  # one gain for many numbers: the bound is attained
        assert derivative(module, torch.ones(shape).double()) == pytest.approx(bound, rel=1e-5)
    for spread in (1e-3, 1.0, 10.0):
        assert derivative(module, spread * torch.randn(shape).double()) <= bound


def test_instance_norm_with_running_statistics_scales() -> None:
    norm = nn.InstanceNorm2d(2, track_running_stats=True).eval()
    norm.running_var = torch.tensor([4.0, 0.25])
    assert certify(norm)[0] == pytest.approx(2, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    kind=st.sampled_from([GRU, LSTM]),
    steps=st.integers(1, 7),
    size=st.floats(0.1, 8),
    spread=st.floats(0.1, 10),
)
def test_no_derivative_of_a_recurrent_layer_is_above_its_bound(
    seed: int, kind: Any, steps: int, size: float, spread: float
) -> None:
    torch.manual_seed(seed)
    layer = kind(2, 3).double().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.mul_(size)
    bound = recurrent_slope(layer, steps)
    for _ in range(4):
        assert derivative(layer, spread * torch.randn(steps, 2).double()) <= bound


def test_an_open_lstm_is_as_steep_as_its_bound() -> None:
    """One step with the gates open: h = tanh(tanh(W x))."""
    torch.manual_seed(0)
    layer = LSTM(2, 3).double().requires_grad_(False)
    layer.input.weight[:6], layer.input.weight[9:] = 0, 0
    layer.input.bias.copy_(torch.tensor([40.0] * 6 + [0.0] * 3 + [40.0] * 3))
    layer.state.bias.zero_()
    exact = torch.linalg.matrix_norm(layer.input.weight, 2).item()
    assert derivative(layer, torch.zeros(1, 2).double()) == pytest.approx(exact)
    assert recurrent_slope(layer, 1) == pytest.approx(exact, rel=3e-6)


def test_a_gru_without_memory_is_as_steep_as_its_bound() -> None:
    """With the update gate shut, and no weights of the state: h = tanh(W x) at each step."""
    torch.manual_seed(0)
    layer = GRU(2, 3).double().requires_grad_(False)
    layer.input.weight[:6] = 0
    layer.input.bias.copy_(torch.tensor([0.0] * 3 + [-40.0] * 3 + [0.0] * 3))
    layer.state.weight.zero_()
    layer.state.bias.zero_()
    exact = torch.linalg.matrix_norm(layer.input.weight, 2).item()
    assert derivative(layer, torch.zeros(1, 2).double()) == pytest.approx(exact)
    assert recurrent_slope(layer, 1) == pytest.approx(exact, rel=3e-6)
    # An open update gate would keep all states: 1, 1 1, 1 1 1, ..
    kept = torch.linalg.matrix_norm(torch.ones(5, 5).double().tril(), 2).item()
    assert recurrent_slope(layer, 5) == pytest.approx(kept * exact, rel=3e-6)


@pytest.mark.parametrize("architecture", ["gru", "lstm"])
def test_a_bound_of_a_recurrent_critic_needs_the_number_of_steps(architecture: Any) -> None:
    critic = build_critic(CriticConfig(architecture=architecture, width=4, depth=1), (5, 2))
    bound, reason = certify(critic)
    assert bound is None
    assert "number of steps" in str(reason)
    bounds = [certify(critic, shape=(steps, 2))[0] for steps in (1, 5, 20)]
    assert all(isinstance(bound, float) for bound in bounds)
    assert bounds == sorted(bounds)  # type: ignore[type-var]
    assert certify(critic, lambda layer: 1.0, (5, 2))[0] is None


def test_a_bound_beyond_all_numbers_is_none() -> None:
    layer = GRU(2, 4).double()
    nn.init.constant_(layer.state.weight, 1e3)
    bound, reason = certify(layer, shape=(400, 2))
    assert bound is None
    assert "400 steps" in str(reason)
