"""The Lipschitz bracket against matrices of whole layers, closed forms and grids of slopes."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.lipschitz import (
    certify,
    from_phases,
    gradient_norms,
    kernel_norm,
    lipschitz_bracket,
    operator_norm,
    steepest_slope,
    to_phases,
)
from models.lipschitz.operators import GRID, largest_singular_value
from models.networks import ACTIVATIONS, Critic, CriticConfig, GroupSort, build_critic
from tests.artifacts import SHAPES


def dense(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """A linear layer as the matrix of what it does to each unit vector, without its bias."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros_like(basis))).flatten(1).T


CONVOLUTIONS = list(itertools.product((1, 3, 4, 5), (1, 2, 3), (1,), (1, 2)))


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), CONVOLUTIONS)
def test_a_convolution_is_bounded_from_above_and_closely(
    kernel: int, stride: int, padding: int, dilation: int
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, stride, padding, dilation).double()
    if stride > 1 and dilation > 1:
        bound, reason = certify(layer)
        assert bound is None
        assert reason is not None
        assert "dilation" in reason
        return
    bound = operator_norm(layer)
    for size in (9, 20):
        true = torch.linalg.matrix_norm(dense(layer, (2, size, size)), 2).item()
        assert true <= bound
    assert bound <= 1.3 * true  # the larger the map, the closer


@pytest.mark.parametrize("taps", [2, 3, 4, 7])
def test_the_grid_of_frequencies_errs_upwards_by_no_more_than_it_says(taps: int) -> None:
    """A kernel whose symbol peaks halfway between two frequencies, where the grid sees least."""
    n = GRID * (taps - 1)
    peak = math.pi / n
    wave = torch.cos(peak * torch.arange(taps, dtype=torch.float64)).view(1, 1, taps)
    fine = torch.fft.rfft(wave.flatten(), n=2**20).abs().max().item()
    bound = kernel_norm(wave, (1,))
    assert fine <= bound <= 1.0013 * fine


def test_the_grid_alone_would_be_too_low() -> None:
    kernel = torch.tensor([1.0, -1.0], dtype=torch.float64)
    # The difference of neighbours: its norm on a long line nears 2 from below.
    layer = nn.Conv1d(1, 1, 2, bias=False).double()
    layer.weight.data = kernel.view(1, 1, 2)
    true = torch.linalg.matrix_norm(dense(layer, (1, 200)), 2).item()
    assert 1.999 < true < 2 <= operator_norm(layer) < 2.003


def test_groups_and_one_dimension() -> None:
    torch.manual_seed(0)
    for layer, shape in (
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 16, 16)),
        (nn.Conv1d(3, 5, 5, stride=2, padding=2), (3, 40)),
    ):
        true = torch.linalg.matrix_norm(dense(layer.double(), shape), 2).item()
        assert true <= operator_norm(layer) <= 1.1 * true


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("taps", [(3, 4), (5, 1)])
def test_phases_are_the_same_convolution(stride: tuple[int, int], taps: tuple[int, int]) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(3, 2, *taps, dtype=torch.float64)
    phases = to_phases(kernel, stride)
    assert torch.equal(from_phases(phases, kernel.shape, stride), kernel)
    x = torch.randn(1, 2, 8 * stride[0], 8 * stride[1], dtype=torch.float64)
    split = x.view(1, 2, 8, stride[0], 8, stride[1]).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    found = nn.functional.conv2d(split, phases)
    rows, columns = found.shape[2:]
    expected = nn.functional.conv2d(nn.functional.pad(x, (0, 9, 0, 9)), kernel, stride=stride)[
        :, :, :rows, :columns
    ]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_count_with_their_steepest_slope(name: str) -> None:
    activation = ACTIVATIONS[name]()  # type: ignore[index]
    bound, _ = certify(activation)
    assert bound is not None
    points = torch.linspace(-20, 20, 400_001, dtype=torch.float64)[:, None]
    slopes = (activation(points).diff(dim=0) / points.diff(dim=0)).abs().max().item()
    assert slopes <= bound * (1 + 1e-9)
    assert bound <= slopes * 1.0001


def test_groupsort_sorts_pairs_and_keeps_norms() -> None:
    x = torch.tensor([[3.0, 1, 1, 3, 7], [1, 3, 2, 2, -7]])
    found = GroupSort()(x)
    assert found.tolist() == [[3, 3, 1, 1, 7], [3, 2, 1, 2, -7]]
    image = torch.randn(2, 6, 4, 4, requires_grad=True)
    GroupSort()(image).sum().backward()
    assert image.grad is not None
    assert torch.equal(image.grad, torch.ones_like(image))


class Residual(nn.Module):
    def __init__(self, branch: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


def diagonal(*values: float) -> nn.Linear:
    layer = nn.Linear(len(values), len(values)).double()
    layer.weight.data = torch.diag(torch.tensor(values, dtype=torch.float64))
    return layer


def test_sequences_multiply_and_branches_add() -> None:
    block = Residual(nn.Sequential(diagonal(3, 1), nn.ReLU(), diagonal(2, 2)), nn.Identity())
    assert certify(block)[0] == pytest.approx(7, rel=1e-5)
    assert certify(nn.Sequential(block, diagonal(0.5, 0.1)))[0] == pytest.approx(3.5, rel=1e-5)
    assert steepest_slope(lambda x: block(x)[:, 0], torch.randn(30, 2).double()) == pytest.approx(7)


def test_batch_norm_counts_with_its_own_scale_in_eval_mode() -> None:
    norm = nn.BatchNorm1d(3).double().eval()
    norm.running_var = torch.tensor([4.0, 0.01, 1.0], dtype=torch.float64)
    norm.weight.data = torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64)
    assert certify(norm)[0] == pytest.approx(3 / math.sqrt(0.01 + 1e-5))


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_average_pooling(kernel: int, stride: int) -> None:
    pool = nn.AvgPool2d(kernel, stride)
    true = torch.linalg.matrix_norm(dense(pool, (1, 24, 24)), 2).item()
    bound, _ = certify(pool)
    assert bound is not None
    assert true <= bound <= 1.03 * true


@pytest.mark.parametrize(
    "module",
    [nn.GRU(4, 4), nn.Bilinear(2, 2, 1)],
)
def test_no_bound_without_a_reason(module: nn.Module) -> None:
    bound, reason = certify(nn.Sequential(nn.Linear(4, 4), module))
    assert bound is None
    assert reason is not None
    assert type(module).__name__ in reason


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("activation", ["relu", "silu", "groupsort"])
def test_the_bracket_of_a_network(kind: str, activation: str) -> None:
    torch.manual_seed(0)
    architecture = "mlp" if kind == "vector" else "dcgan"
    config = CriticConfig(
        architecture=architecture, width=8, depth=2, activation=activation, dropout=0.5
    )
    critic = build_critic(config, SHAPES[kind])
    before = {name: t.clone() for name, t in critic.state_dict().items()}
    real, fake = torch.randn(12, *SHAPES[kind]), torch.randn(12, *SHAPES[kind]) + 1
    bracket = lipschitz_bracket(critic, real, fake)
    certified, sampled = bracket.certified, bracket.sampled
    assert isinstance(certified, float)
    assert isinstance(sampled, float)
    assert 0.1 * certified < sampled <= certified
    assert critic.training
    assert all(torch.equal(t, before[name]) for name, t in critic.state_dict().items())


def test_the_ascent_finds_what_no_data_point_shows() -> None:
    """A ramp of slope 9 between 5 and 6, far from the data around 0, with slope 1 elsewhere."""
    ramp = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    ramp[0].weight.data = torch.ones(3, 1).double()
    ramp[0].bias.data = torch.tensor([50.0, -5.0, -6.0]).double()
    ramp[2].weight.data = torch.tensor([[1.0, 8.0, -8.0]]).double()
    data = torch.randn(96, 1, generator=torch.Generator().manual_seed(0)).double()
    critic = lambda x: ramp(x)[:, 0]  # noqa: E731
    assert gradient_norms(critic, data).max().item() == pytest.approx(1)
    torch.manual_seed(0)
    assert steepest_slope(critic, data) == pytest.approx(9, rel=1e-6)


def test_a_linear_critic_has_no_room_between_the_bounds() -> None:
    critic = Critic(nn.Sequential(nn.Linear(5, 1)))
    true = critic.body[0].weight.norm().item()
    bracket = lipschitz_bracket(critic, torch.randn(32, 5), torch.randn(32, 5))
    assert bracket.certified == pytest.approx(true, rel=1e-5)
    assert bracket.sampled == pytest.approx(true, rel=1e-5)


class Understated(nn.Sigmoid):
    """Certified with a slope of 0.25, but steeper."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


def test_a_sample_above_the_certificate_is_an_error() -> None:
    critic = build_critic(CriticConfig(width=4, depth=1), (2,))
    critic.body[1] = Understated()
    with pytest.raises(RuntimeError, match="above the certified"):
        lipschitz_bracket(critic, torch.randn(32, 2), torch.randn(32, 2))


def test_pruned_eigenvalues_are_the_largest() -> None:
    torch.manual_seed(0)
    for shape in ((50, 6, 9), (50, 9, 6), (7, 7), (20, 5, 5)):
        matrices = torch.randn(shape, dtype=torch.complex128)
        expected = np.linalg.svd(matrices.numpy(), compute_uv=False).max()
        assert largest_singular_value(matrices) == pytest.approx(expected, rel=1e-12)
    assert largest_singular_value(torch.zeros(3, 2, 2, dtype=torch.float64)) == 0


def test_rounding_is_no_slope() -> None:
    """Scores of 0.3 differ by their last place, 5e-17, however flat the critic is."""
    critic = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    nn.init.constant_(critic[0].weight, 1e-20)
    nn.init.constant_(critic[0].bias, 0.3)
    torch.manual_seed(0)
    bounds = lipschitz_bracket(critic, torch.randn(40, 3), torch.randn(40, 3))
    assert bounds.sampled == pytest.approx(3**0.5 * 1e-20, rel=1e-3)
    assert bounds.sampled <= bounds.certified
