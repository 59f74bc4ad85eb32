"""Bounds of normalisation and of recurrent layers, against their derivatives and closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.lipschitz import certify
from models.lipschitz.operators import ROUNDING
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


def by_the_formulas(layer: GRU | LSTM, steps: int) -> float:
    """The bound of the module's text, written out in numpy."""
    weights = [part.weight.detach().numpy() for part in (layer.input, layer.state)]
    blocks = [np.split(weight, 3 if isinstance(layer, GRU) else 4) for weight in weights]
    bias = layer.state.bias.detach().numpy()
    width = layer.state.in_features

    def norm(matrix: np.ndarray) -> float:
        return float(np.linalg.norm(matrix, 2))

    def stacked(total: Any, *terms: tuple[Any, np.ndarray]) -> float:
        """By Cauchy and Schwarz, in each row."""
        ones = np.ones((width, 1))
        return norm(np.concatenate([np.sqrt(total * k * ones) * m for k, m in terms]))

    def of_gru(r: np.ndarray, u: np.ndarray, n: np.ndarray, h: float, keep: Any) -> float:
        """Of ``u keep + (1 - u) n' + (h - n) u'`` for states of at most h."""
        p = (h * np.abs(blocks[1][2]).sum(1) + np.abs(bias[-width:]))[:, None]
        both = norm(n if keep is None else np.concatenate([keep, n]))
        apart = both + (h + 1) / 4 * norm(u) + norm(p / 4 * r)
        terms = [(1.0, n), ((h + 1) / 4, u), (p / 4, r)]
        total = 1 + (h + 1) / 4 + p / 4
        return min(apart, stacked(total, *terms, *([] if keep is None else [(1.0, keep)])))

    def of_lstm(i: np.ndarray, f: np.ndarray, g: np.ndarray, c: float) -> float:
        """Of ``c f' + g i' + i g'`` for cells of at most c."""
        apart = norm(i) / 4 + c / 4 * norm(f) + norm(g)
        return min(apart, stacked(1 / 4 + c / 4 + 1, (1 / 4, i), (c / 4, f), (1.0, g)))

    states = np.zeros((steps, steps))  # of state t by input s
    cells = np.zeros((steps, steps))
    for s in range(steps):
        for t in range(s, steps):
            if isinstance(layer, GRU):
                if s == t:
                    states[t, s] = of_gru(*blocks[0], float(s > 0), None)
                else:
                    states[t, s] = of_gru(*blocks[1], 1.0, np.eye(width)) * states[t - 1, s]
            else:
                before = 1.0 if s == t else states[t - 1, s]
                own = blocks[int(t > s)]
                cells[t, s] = of_lstm(*own[:3], t) * before + (cells[t - 1, s] if t > s else 0)
                states[t, s] = cells[t, s] + norm(own[3]) / 4 * before
    return norm(states)


@pytest.mark.parametrize("kind", [GRU, LSTM])
@pytest.mark.parametrize("size", [0.1, 1.0, 6.0])
def test_a_bound_is_that_of_the_formulas_and_rounded_up(kind: Any, size: float) -> None:
    """Of few rows the sum of norms is less, of rows that point elsewhere the stacked one."""
    for seed in range(6):
        torch.manual_seed(seed)
        layer = kind(3, 2 + 4 * (seed % 2)).double().requires_grad_(False)
        for parameter in layer.parameters():
            parameter.mul_(size)
        if seed > 3:  # gates that look at other inputs than the candidate
            for part in (layer.input, layer.state):
                part.weight.copy_(part.weight * (torch.rand_like(part.weight) < 0.4))
        for steps in (1, 2, 4):
            expected = by_the_formulas(layer, steps)
            found = recurrent_slope(layer, steps)
            assert expected * (1 + 0.99 * ROUNDING) <= found <= expected * (1 + 3 * ROUNDING)


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_a_recurrent_layer_without_weights_has_no_slope(kind: Any) -> None:
    layer = kind(2, 3)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    assert recurrent_slope(layer, 4) == 0
