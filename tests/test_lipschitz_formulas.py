"""Bounds, gradient norms and signals of critics whose own can be worked out by hand."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models.lipschitz import (
    ASCENT_STARTS,
    certify,
    gradient_norm_summary,
    gradient_norms,
    kernel_norm,
    layer_signals,
    lipschitz_bracket,
    operator_norm,
    score_points,
    steepest_slope,
)
from models.lipschitz.operators import (
    GRID,
    ROUNDING,
    largest_eigenvalue,
    largest_singular_value,
)
from models.networks import Critic, CriticConfig, build_critic
from models.networks.conditional import ProjectionCritic, WithLabels
from models.networks.cones import Cones
from models.networks.parts import Residual


def half_square(x: Tensor) -> Tensor:
    """Its gradient at x is x."""
    return x.flatten(1).square().sum(1) / 2


def scaling(*values: float) -> nn.Linear:
    layer = nn.Linear(len(values), len(values), bias=False).double()
    layer.weight.data = torch.diag(torch.tensor(values, dtype=torch.float64))
    return layer


# --- gradient norms -------------------------------------------------------------------------------


def test_the_summary_of_known_norms() -> None:
    """Norms 0, 1, .. 100 in two axes; between equal partners they are the same."""
    sizes = torch.arange(101.0)[torch.randperm(101)]
    points = sizes[:, None] * torch.tensor([[0.6, 0.8]])
    summary = gradient_norm_summary(half_square, points, 2 * points)
    for place, factor in (("real", 1), ("fake", 2)):
        found = summary[place]  # type: ignore[index]
        assert found.mean == pytest.approx(50 * factor)
        assert found.max == pytest.approx(100 * factor)
        levels = {"0.05": 5, "0.25": 25, "0.5": 50, "0.75": 75, "0.95": 95}
        assert found.quantiles == pytest.approx({k: v * factor for k, v in levels.items()})
    assert 50 < summary["between"].mean < 100
    with pytest.raises(ValidationError, match="frozen"):
        summary["real"].mean = 0.0


def test_a_norm_has_a_graph_only_where_one_is_asked_for() -> None:
    points = torch.tensor([[3.0, 4.0]])
    assert not gradient_norms(half_square, points).requires_grad
    norm = gradient_norms(half_square, points, create_graph=True)
    assert norm.requires_grad
    assert norm.item() == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_scores_are_a_row_in_float32_or_better(dtype: torch.dtype) -> None:
    found = score_points(lambda x: x[:, :1], torch.ones(3, 2, dtype=dtype))
    assert found.shape == (3,)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# --- certificates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "slope"),
    [
        (nn.LeakyReLU(0.2), 1),
        (nn.LeakyReLU(3.0), 3),
        (nn.LeakyReLU(-3.0), 3),
        (nn.Sigmoid(), 0.25),
        (nn.Softplus(beta=5), 1),
        (nn.Dropout(), 1),
        (nn.Flatten(), 1),
        (nn.Identity(), 1),
        (nn.AdaptiveAvgPool2d(1), 1),
        (nn.BatchNorm1d(2, affine=False).eval(), 1 / math.sqrt(1 + 1e-5)),
        (nn.AvgPool2d(2), 0.5),
        (nn.AvgPool2d((2, 8)), 0.25),
        (nn.AvgPool2d(2, 2, (0, 0)), 0.5),
        (nn.AvgPool2d(2, ceil_mode=True), 1),
        (nn.AvgPool2d(2, 2, (0, 0), ceil_mode=True), 1),
        (Residual(nn.Sequential(scaling(2, 1)), scaling(3, 3)), 5),
        (Residual(nn.Sequential(scaling(2, 1)), scaling(3, 3), equalized=True), 5 / 2**0.5),
        (Cones(torch.ones(2, 3), torch.ones(2), torch.zeros(2)), 1),
        (nn.Sequential(), 1),
    ],
    ids=str,
)
def test_a_module_s_slope(module: nn.Module, slope: float) -> None:
    assert certify(module) == (pytest.approx(slope, rel=3e-6), None)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.AvgPool2d(2, 1, ceil_mode=True), "unequal windows"),
        (nn.AvgPool2d(2, (2, 1), ceil_mode=True), "unequal windows"),
        (nn.AvgPool2d(2, ceil_mode=True, divisor_override=1), "unequal windows"),
        (nn.AvgPool2d(2, divisor_override=1), "unequal windows"),
        (nn.AvgPool2d(3, padding=1), "unequal windows"),
        (nn.AvgPool2d(3, padding=1, ceil_mode=True), "unequal windows"),
        (nn.BatchNorm1d(2, track_running_stats=False), "without running statistics"),
        (nn.Conv2d(1, 1, 3, padding_mode="circular"), "padding mode 'circular'"),
        (nn.Conv1d(1, 1, 3, stride=2, dilation=2), "a stride and a dilation"),
        (nn.Conv2d(1, 1, 3, stride=(1, 2), dilation=(1, 2)), "a stride and a dilation"),
        (nn.Softmax(1), "no bound is known for Softmax"),
    ],
    ids=str,
)
def test_no_slope_of_a_module(module: nn.Module, says: str) -> None:
    bound, reason = certify(module)
    assert bound is None
    assert says in str(reason)


def test_half_a_residual_block_has_no_slope() -> None:
    block = nn.Module()
    block.branch = scaling(1.0)
    assert certify(block) == (None, "no bound is known for Module")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_counts_with_its_steepest_slope(approximate: str) -> None:
    x = torch.linspace(0, 4, 100_001, dtype=torch.float64, requires_grad=True)
    gelu = nn.GELU(approximate)
    (slopes,) = torch.autograd.grad(gelu(x).sum(), x)
    bound, _ = certify(gelu)
    assert bound is not None
    assert slopes.max().item() <= bound <= slopes.max().item() * 1.001


def test_an_envelope_of_cones_is_rounded_up() -> None:
    bound, _ = certify(Cones(torch.ones(2, 3), torch.ones(2), torch.zeros(2)))
    assert 1 < float(str(bound)) < 1 + 3e-6


def test_a_stride_on_one_axis_and_a_dilation_on_the_other_have_a_bound() -> None:
    layer = nn.Conv2d(1, 1, (2, 2), stride=(2, 1), dilation=(1, 2), bias=False)
    nn.init.ones_(layer.weight)
    # Over rows windows are apart: sqrt(2). Over columns each is read twice: 2.
    assert certify(layer) == (pytest.approx(2 * 2**0.5, rel=1e-5), None)


def test_the_steepest_class_decides() -> None:
    torch.manual_seed(0)
    head = nn.Linear(2, 1).double()
    critic = ProjectionCritic(nn.Sequential(scaling(2, 2)), head, 2).double()
    head.weight.data = torch.tensor([[2.0, 0.0]]).double()
    critic.projection.weight.data = torch.tensor([[-1.0, 1.0], [0.0, 4.0]]).double()
    # Heads (1, 0) and (3, 4), of lengths 1 and 5.
    assert 10 <= float(str(certify(critic)[0])) <= 10 * (1 + 3e-6)
    critic.features = nn.Sequential()
    assert 5 <= float(str(certify(critic)[0])) <= 5 * (1 + 2e-6)
    critic.features = nn.Sequential(scaling(2, 2))
    points = torch.randn(40, 2).double()
    for label, slope in ((0, 2), (1, 10)):
        bound = WithLabels(critic, torch.tensor([label]))
        assert certify(bound)[0] == pytest.approx(10, rel=3e-6)
        assert steepest_slope(bound, points) == pytest.approx(slope)


# --- operators ------------------------------------------------------------------------------------


def test_a_dense_layer_s_norm_is_rounded_up_by_a_millionth() -> None:
    for values in ((3.0, 1.0), (0.0, 0.0)):
        assert max(values) <= operator_norm(scaling(*values)) <= max(values) * (1 + 2e-6)


@pytest.mark.parametrize("taps", list(itertools.product((1, 2, 3, 5), (1, 4))))
def test_a_kernel_of_ones_has_the_norm_of_constant_inputs(taps: tuple[int, int]) -> None:
    """Each of two outputs is the sum of three inputs' taps; no padding of frequencies is added."""
    ones = torch.ones(2, 3, *taps, dtype=torch.float64)
    exact = math.prod(taps) * 6**0.5
    assert exact <= kernel_norm(ones, (1, 1)) <= exact * (1 + 2e-6)
    assert exact <= kernel_norm(-ones, (1, 1)) <= exact * (1 + 2e-6)


@pytest.mark.parametrize("taps", [(2, 3), (4, 4), (5, 2)])
def test_the_grid_errs_upwards_on_each_axis(taps: tuple[int, int]) -> None:
    """The symbol of a product of two waves is the product of theirs."""
    waves = [torch.cos((2 + i) * torch.arange(float(t)).double()) for i, t in enumerate(taps)]
    fine = math.prod(torch.fft.rfft(wave, n=2**18).abs().max().item() for wave in waves)
    bound = kernel_norm(torch.outer(*waves)[None, None], (1, 1))
    assert fine <= bound <= 1.0013**2 * fine


@pytest.mark.parametrize("taps", [2, 3, 6])
def test_the_grid_s_error_is_allowed_for_exactly(taps: int) -> None:
    """A first tap of 1 and a last one that turns by a: the norm is 2, halfway between frequencies.

    The grid sees 2 cos(a / 2), the least that there is by M. Riesz.
    """
    a = math.pi / GRID
    kernel = torch.zeros(2, 2, taps, dtype=torch.float64)
    kernel[:, :, 0] = torch.eye(2)
    turn = [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]
    kernel[:, :, -1] = torch.tensor(turn, dtype=torch.float64)
    assert kernel_norm(kernel, (1,)) == pytest.approx(2 * (1 + ROUNDING), rel=1e-12)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Sizes of the batches of matrices whose eigenvalues are computed, which takes long."""
    sizes = list[torch.Size]()
    compute = torch.linalg.eigvalsh

    def counted(matrices: Tensor) -> Tensor:
        sizes.append(matrices.shape)
        return compute(matrices)

    monkeypatch.setattr(torch.linalg, "eigvalsh", counted)
    return sizes


def test_eigenvalues_are_computed_only_where_they_may_be_the_largest(
    asked: list[torch.Size],
) -> None:
    """The entries of a unit matrix are larger together, 4, than those of one of eigenvalue 2."""
    steep = torch.zeros(16, 16).double()
    steep[0, 0] = 2
    flat = torch.eye(16).double().expand(99, 16, 16)
    assert largest_eigenvalue(torch.cat([flat, steep[None]])) == 2
    assert len(asked) == 1
    assert largest_eigenvalue(steep.expand(99, 16, 16)) == 2  # no other is larger
    assert len(asked) == 2


def test_singular_values_are_those_of_the_smaller_product(asked: list[torch.Size]) -> None:
    torch.manual_seed(0)
    for shape in ((3, 2, 40), (3, 40, 2), (2, 40), (40, 2)):
        matrices = torch.randn(shape).double()
        exact = torch.linalg.matrix_norm(matrices, 2).max().item()
        assert largest_singular_value(matrices) == pytest.approx(exact)
    assert all(size[-2:] == (2, 2) for size in asked)


def test_a_kernel_of_one_tap_is_one_matrix(asked: list[torch.Size]) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(5, 4, 1, 1).double()
    exact = torch.linalg.matrix_norm(kernel[:, :, 0, 0], 2).item()
    assert kernel_norm(kernel, (1, 1)) == pytest.approx(exact, rel=3e-6)
    assert [*asked] == [(1, 4, 4)] * 2  # it, and the sizes of its taps


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("is_flat", [False, True])
def test_the_largest_singular_value_is_found_among_many(is_flat: bool, scale: float) -> None:
    """Of one matrix among 40 that have another spectrum, flat or peaked, and nearly its norm."""
    flat, peaked = torch.eye(9).double(), torch.zeros(9, 9).double()
    peaked[0, 0] = 1
    one, others = (flat, peaked) if is_flat else (peaked, flat)
    matrices = scale * torch.cat([one[None], 0.9 * others.expand(40, 9, 9)])
    assert largest_singular_value(matrices) == pytest.approx(scale, rel=1e-12)


def test_groups_count_by_the_steepest() -> None:
    layer = nn.Conv1d(4, 2, 1, groups=2, bias=False)
    layer.weight.data = torch.tensor([[[1.0], [0.0]], [[3.0], [4.0]]])
    assert operator_norm(layer) == pytest.approx(5, rel=2e-6)


# --- slopes that are found ------------------------------------------------------------------------


def test_pairs_of_points_find_a_slope_that_no_gradient_has() -> None:
    """A critic of steps, whose gradient is zero; its steps are as high as they are long."""
    torch.manual_seed(0)
    found = steepest_slope(lambda x: x[:, 0].floor() + 0 * x[:, 0], torch.randn(30, 1).double())
    assert found > 1
    flat = steepest_slope(lambda x: 0 * x[:, 0], torch.randn(30, 1).double())
    assert flat == 0


def test_a_slope_within_the_rounding_is_none() -> None:
    torch.manual_seed(0)
    starts = torch.randn(30, 1).double()
    steps = lambda x: 1e-3 * x[:, 0].floor() + 0 * x[:, 0]  # noqa: E731
    assert steepest_slope(steps, starts) > 0
    assert steepest_slope(steps, starts, rounding=1.0) == 0


def test_no_step_finds_nothing_and_one_step_the_gradient_at_the_starts() -> None:
    starts = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).double()
    assert steepest_slope(half_square, starts, steps=0) == 0
    torch.manual_seed(0)
    assert steepest_slope(half_square, starts, steps=1) >= 5


def test_starts_are_taken_from_real_and_fake_and_from_between() -> None:
    """Also where one has fewer rows; and no more of them than are needed."""
    seen: list[Tensor] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    critic = Critic(nn.Sequential(Watched(1, 1)))
    for real, fake, count in ((5, 3, 5 + 3 + 3), (200, 300, ASCENT_STARTS)):
        seen.clear()
        lipschitz_bracket(critic, torch.zeros(real, 1), torch.ones(fake, 1))
        starts = seen[0]
        assert len(starts) == count
        n, m = min(real, ASCENT_STARTS // 3), min(fake, ASCENT_STARTS // 3)
        assert (starts[:n] == 0).all()
        assert (starts[n : n + m] == 1).all()
        assert ((starts[n + m :] > 0) & (starts[n + m :] < 1)).all()


def test_a_slope_above_the_certificate_is_an_error_however_little() -> None:
    class Understated(nn.Sigmoid):  # certified with 0.25
        factor = 0.25

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

    activation = Understated()
    critic = Critic(nn.Sequential(scaling(1.0), activation))
    points = torch.randn(2, 32, 1)
    assert lipschitz_bracket(critic, *points).certified == pytest.approx(0.25, rel=2e-6)
    activation.factor = 0.25 * (1 + 1.5e-6)  # the bound is rounded up by 1e-6; so may a slope be
    lipschitz_bracket(critic, *points)
    activation.factor = 0.25 * (1 + 5e-6)
    with pytest.raises(RuntimeError, match=r"above the certified 0\.25"):
        lipschitz_bracket(critic, *points)


def test_a_bracket_without_a_certificate_says_why() -> None:
    critic = Critic(nn.Sequential(nn.Linear(2, 4), nn.Softmax(1), nn.Linear(4, 1)))
    bracket = lipschitz_bracket(critic, *torch.randn(2, 32, 2))
    assert bracket.certified is None
    assert "Softmax" in str(bracket.reason)
    assert bracket.sampled is not None
    assert bracket.sampled > 0


# --- signals --------------------------------------------------------------------------------------


def test_a_layer_s_variation_is_the_deviation_of_its_output_over_its_size() -> None:
    rng = np.random.default_rng(0)
    x = 2 + rng.normal(size=(7, 2))
    head: Any = nn.Linear(2, 1).double()
    head.weight.data = torch.tensor([[3.0, 4.0]]).double()
    critic = Critic(nn.Sequential(scaling(1.0, 5.0), head))
    (signal,) = layer_signals(critic, torch.from_numpy(x))
    output = x * [1, 5]
    expected = np.sqrt(((output - output.mean(axis=0)) ** 2).mean() / (output**2).mean())
    assert signal.variation == pytest.approx(expected)
    assert signal.gradient == pytest.approx(5)
    assert layer_signals(critic, torch.zeros(3, 2))[0].variation == 0
    assert layer_signals(critic, torch.ones(1, 2)) == [(pytest.approx(5), 0)]


def test_signals_leave_the_critic_as_it_is() -> None:
    critic = build_critic(CriticConfig(width=4, depth=2, dropout=0.5), (2,)).train()
    state = {name: value.clone() for name, value in critic.state_dict().items()}
    layer_signals(critic, torch.randn(3, 2))
    assert critic.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in critic.parameters())
    assert all(torch.equal(value, state[name]) for name, value in critic.state_dict().items())
    assert not any(module._forward_hooks for module in critic.modules())


def test_a_critic_of_one_layer_has_no_signals() -> None:
    assert layer_signals(Critic(nn.Sequential(nn.Linear(2, 1))), torch.randn(3, 2)) == []
