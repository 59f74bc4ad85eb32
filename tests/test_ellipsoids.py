"""Bounds below the product of norms, against all patterns of slopes and whole matrices."""

import itertools
import math
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.lipschitz import certify, ellipsoid, lipschitz_bracket, steepest_slope
from models.lipschitz.certificate import _Given, _slope
from models.lipschitz.ellipsoid import Ellipsoid, Multipliers
from models.lipschitz.operators import NoBoundError
from models.lipschitz.tighter import SECTORS, _sector, ellipsoid_bound
from models.networks import ACTIVATIONS, Critic, CriticConfig, GroupSort, build_critic
from models.networks.conditional import ProjectionCritic, WithLabels
from models.networks.convolution import Conv2d, Head
from models.networks.parts import MinibatchStatistics, Residual
from models.networks.piecewise import Abs, AvgPool2d, LeakyReLU, ReLU
from models.networks.skips import InputSkips, halving

SLOPES: dict[str, tuple[float, float]] = {
    "relu": (0.0, 1.0),
    "leaky_relu": (0.2, 1.0),
    "abs": (-1.0, 1.0),
    "silu": (-0.09984, 1.09984),
}


def product(critic: nn.Module, shape: tuple[int, ...] | None = None) -> float:
    """What the norms of layers amount to."""
    return _slope(critic, _Given(None, shape))


def below(critic: nn.Module, shape: tuple[int, ...] | None = None) -> float:
    """The bound by ellipsoids, which there must be."""
    bound = ellipsoid_bound(critic, shape, lambda m: _slope(m, _Given(None, shape)))
    assert bound is not None
    return bound


def dense(*sizes: int) -> list[nn.Linear]:
    return [nn.Linear(a, b).double() for a, b in itertools.pairwise(sizes)]


def patterns(low: float, high: float, count: int) -> Tensor:
    """All slopes of so many units, ``(2^count, count)``."""
    return torch.tensor(list(itertools.product((low, high), repeat=count)), dtype=torch.float64)


def steepest_pattern(layers: list[nn.Linear], low: float, high: float) -> float:
    """The largest norm of a dense network's matrix, over all patterns of its units' slopes."""
    with torch.no_grad():
        found = layers[0].weight[None]
        for layer in layers[1:]:
            each = patterns(low, high, layer.in_features)
            found = layer.weight @ (each[:, None, :, None] * found)
            found = found.flatten(0, 1)
    return torch.linalg.matrix_norm(found, 2).max().item()


def chain(layers: list[nn.Linear], name: str) -> nn.Sequential:
    parts: list[nn.Module] = [layers[0]]
    for layer in layers[1:]:
        parts += [ACTIVATIONS[name](), layer]  # type: ignore[index]
    return nn.Sequential(*parts)


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("sizes", [(2, 8, 1), (3, 5, 1), (2, 4, 4, 1), (3, 4, 4, 4, 1), (2, 6, 3)])
def test_no_pattern_of_slopes_is_steeper(name: str, sizes: tuple[int, ...]) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        layers = dense(*sizes)
        critic = chain(layers, name)
        steepest = steepest_pattern(layers, *SLOPES[name])
        bound = below(critic)
        assert steepest <= bound <= product(critic) * (1 + 1e-5)
        assert bound <= 1.6 * steepest


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_it_is_far_below_the_product_of_many_layers(name: str) -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(width=32, depth=6, activation=name), (2,)).double().eval()  # type: ignore[arg-type]
    assert below(critic) < 0.25 * product(critic)


def test_linear_layers_count_with_the_norm_of_their_product() -> None:
    torch.manual_seed(0)
    layers = dense(3, 5, 4, 2)
    scale = nn.BatchNorm1d(5).double().eval()
    scale.running_var = torch.tensor([4.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    scale.weight.data = torch.tensor([1.0, -3.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    critic = nn.Sequential(layers[0], scale, layers[1], nn.Identity(), nn.Dropout(), layers[2])
    with torch.no_grad():
        gain = scale.weight / (scale.running_var + scale.eps).sqrt()
        whole = layers[2].weight @ layers[1].weight @ (gain[:, None] * layers[0].weight)
    assert below(critic.eval()) == pytest.approx(
        torch.linalg.matrix_norm(whole, 2).item(), rel=3e-6
    )


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "softplus"])
def test_weights_of_one_sign_count_with_the_norm_of_their_product(name: str) -> None:
    """All units may be at their steepest at once, so the bound is the slope."""
    torch.manual_seed(0)
    layers = dense(3, 6, 5, 1)
    for layer in layers:
        layer.weight.data.abs_()
    whole = layers[2].weight @ layers[1].weight @ layers[0].weight
    exact = torch.linalg.vector_norm(whole).item()
    assert exact <= below(chain(layers, name)) <= 1.01 * exact


def test_groupsort_and_abs_keep_lengths() -> None:
    for activation in (GroupSort(), Abs()):
        layers = [nn.Linear(5, 5).double() for _ in range(3)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight)
        critic = nn.Sequential(layers[0], activation, layers[1], activation, layers[2])
        assert 1 <= below(critic) <= 1 + 1e-5


def test_a_pair_that_is_sorted_has_one_multiplier() -> None:
    """Two units of slopes -1 to 1 each would not hold the swap of a pair."""
    layer, head = nn.Linear(2, 2).double(), nn.Linear(2, 1).double()
    layer.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.1]]).double()
    head.weight.data = torch.tensor([[0.0, 1.0]]).double()
    critic = nn.Sequential(layer, GroupSort(), head)
    points = 10 * torch.randn(40, 2).double()
    slope = steepest_slope(lambda x: critic(x)[:, 0], points)
    assert slope == pytest.approx(1.0)  # the smaller of the two is the first where it is below
    assert 1 <= below(critic) <= 1 + 1e-5


def sorted_after(*weights: float) -> nn.Linear:
    layer = nn.Linear(len(weights), len(weights), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor(weights)))
    return layer


@pytest.mark.parametrize("weights", [(0.01, 0.01, 1.0, 1.0), (0.01, 0.01, 1.0, 0.5, 0.01)])
@pytest.mark.parametrize("is_in_a_block", [False, True])
def test_pairs_are_found_where_sorting_puts_them(
    weights: tuple[float, ...], is_in_a_block: bool
) -> None:
    """The larger ones of all pairs come first; the second of them is that of the steep pair."""
    steep, reading = sorted_after(*weights), nn.Linear(len(weights), 1, dtype=torch.float64)
    with torch.no_grad():
        reading.weight.copy_(torch.eye(len(weights))[1:2])
    sorting: Any = nn.Sequential(steep, GroupSort())
    if is_in_a_block:
        aside = nn.Linear(len(weights), len(weights), dtype=torch.float64)
        nn.init.zeros_(aside.weight)
        sorting = Residual(sorting, aside)
    critic = nn.Sequential(sorting, reading)
    x = torch.zeros(1, len(weights), dtype=torch.float64)
    x[0, 2:4] = torch.tensor([5.0, 1.0])
    (gradient,) = torch.autograd.grad(critic(x.requires_grad_()).sum(), x)
    assert gradient.norm() == pytest.approx(1)
    assert 1 <= below(critic) <= 1.01


def test_pairs_of_maps_are_found_where_sorting_puts_them() -> None:
    """Of flattened maps positions are sorted, of which no ellipsoid is known."""
    layer = Conv2d(4, 4, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([0.01, 0.01, 1.0, 0.5]))[:, :, None, None])
    reading = nn.Linear(4 * 9, 1, dtype=torch.float64)
    nn.init.zeros_(reading.weight)
    with torch.no_grad():
        reading.weight[0, 9] = 1  # the second channel
    critic = nn.Sequential(layer, GroupSort(), nn.Flatten(), reading)
    assert 1 <= below(critic, (4, 3, 3)) <= 1.01
    flattened = nn.Sequential(layer, nn.Flatten(), GroupSort(), reading)
    assert ellipsoid_bound(flattened, (4, 3, 3), lambda _: 1.0) is None


def test_a_fitted_critic_that_sorts_is_certified_above_its_slope() -> None:
    torch.manual_seed(2)
    critic = nn.Sequential(nn.Linear(2, 16), GroupSort(), nn.Linear(16, 1), nn.Flatten(0))
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(200):
        x, y = torch.randn(64, 2) + 2, torch.randn(64, 2)
        small = sum(p.abs().sum() for p in critic.parameters())
        loss = critic(y).mean() - critic(x).mean() + 0.01 * small
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bounds = lipschitz_bracket(critic, x, y)
    assert bounds.certified is not None
    assert bounds.sampled is not None
    assert bounds.sampled <= bounds.certified


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    name=st.sampled_from(sorted(ACTIVATIONS)),
    depth=st.integers(1, 5),
    width=st.integers(1, 9),
    size=st.floats(0.1, 20),
)
def test_no_slope_that_is_found_is_above_the_bound(
    seed: int, name: Any, depth: int, width: int, size: float
) -> None:
    torch.manual_seed(seed)
    critic = build_critic(CriticConfig(width=width, depth=depth, activation=name), (3,))
    critic.double().eval().requires_grad_(False)
    for parameter in critic.parameters():
        parameter.mul_(size)
    bound, _ = certify(critic)
    assert bound is not None
    assert bound <= product(critic)
    assert steepest_slope(critic, torch.randn(24, 3).double(), steps=20) <= bound


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), spread=st.floats(0, 4))
def test_any_multipliers_prove_a_bound(seed: int, spread: float) -> None:
    torch.manual_seed(seed)
    layers = dense(2, 5, 4, 1)
    multipliers = Multipliers()
    multipliers.begin("use", [spread + torch.randn(n).double() for n in (5, 4)])
    at = Ellipsoid(multipliers)
    try:
        for i, layer in enumerate(layers):
            if i:
                at.bend(0.0, 1.0)
            at.dense(layer.weight.detach())
    except NoBoundError:  # they are too small
        return
    assert steepest_pattern(layers, 0.0, 1.0) <= math.sqrt(at.longest()) * (1 + 1e-9)


def test_weights_of_zero_have_no_slope() -> None:
    layers = dense(2, 4, 4, 1)
    nn.init.zeros_(layers[1].weight)
    assert below(chain(layers, "relu")) == 0
    assert certify(chain(layers, "relu"))[0] == 0


@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_sizes_do_not_matter(size: float) -> None:
    torch.manual_seed(0)
    layers = dense(2, 4, 1)
    bound = below(chain(layers, "relu"))
    layers[0].weight.data.mul_(size)
    assert below(chain(layers, "relu")) == pytest.approx(size * bound, rel=1e-4)


@pytest.mark.parametrize(
    "activation",
    [*(kind() for kind in SECTORS if kind is not GroupSort), nn.GELU("tanh"), nn.LeakyReLU(0.2),
     nn.LeakyReLU(1.5), nn.LeakyReLU(-0.3), nn.LeakyReLU(0.0)],
    ids=str,
)  # fmt: skip
def test_a_sector_holds_every_slope_of_its_activation_and_no_more(activation: nn.Module) -> None:
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64).requires_grad_()
    (slopes,) = torch.autograd.grad(activation(x).sum(), x)
    low, high = _sector(activation)
    # GELU's own and its approximation by tanh are as far from each other.
    assert slopes.min() - 2e-3 <= low <= slopes.min() + 1e-9
    assert slopes.max() - 1e-9 <= high <= slopes.max() + 2e-3


# --- residual blocks ------------------------------------------------------------------------------


def test_a_block_that_takes_half_away_halves() -> None:
    half, none = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    half.weight.data, none.weight.data = -0.5 * torch.eye(3).double(), torch.zeros(3, 3).double()
    block = Residual(nn.Sequential(half), nn.Identity())
    assert product(block) == pytest.approx(1.5, rel=1e-5)
    assert below(block) == pytest.approx(0.5, rel=1e-5)
    assert below(nn.Sequential(block, block, block)) == pytest.approx(0.125, rel=1e-5)
    assert below(Residual(nn.Sequential(none), nn.Identity())) == pytest.approx(1, rel=1e-5)
    assert below(Residual(nn.Sequential(half), half, equalized=True)) == pytest.approx(
        0.5**0.5, rel=1e-5
    )


@pytest.mark.parametrize("has_shortcut", [False, True])
@pytest.mark.parametrize("name", SLOPES)
def test_no_pattern_of_a_block_is_steeper(name: str, has_shortcut: bool) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        into, out, head = dense(3, 8, 3, 1)
        aside = nn.Linear(3, 3, bias=False).double() if has_shortcut else nn.Identity()
        block = Residual(nn.Sequential(into, ACTIVATIONS[name](), out), aside)  # type: ignore[index]
        critic = nn.Sequential(block, head)
        with torch.no_grad():
            skip = aside(torch.eye(3).double()).T
            bent = patterns(*SLOPES[name], 8)[:, :, None] * into.weight
            whole = head.weight @ (skip + out.weight @ bent)
        steepest = torch.linalg.vector_norm(whole, dim=(1, 2)).max().item()
        assert steepest <= below(critic) <= min(product(critic) * (1 + 1e-5), 1.6 * steepest)


# --- images ---------------------------------------------------------------------------------------


def matrix(critic: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """An affine function as the matrix of what it does to each unit vector."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        return (critic(basis) - critic(torch.zeros_like(basis))).flatten(1).T


def linear_critics() -> Iterator[Any]:
    def conv(inputs: int, outputs: int, taps: Any, stride: Any = 1, padding: int = 1) -> Conv2d:
        return Conv2d(inputs, outputs, taps, stride, padding)

    flat = nn.Flatten
    yield "stride", (2, 8, 6), [conv(2, 3, 4, 2), nn.Identity(), Head(36, 1)]
    yield "odd", (1, 9, 8), [conv(1, 3, (3, 4), 2), flat(), nn.Linear(60, 2)]
    yield "groups", (2, 8, 8), [nn.Conv2d(2, 4, 3, padding=1, groups=2), flat(), nn.Linear(256, 1)]
    yield "dilation", (1, 8, 8), [nn.Conv2d(1, 2, 3, dilation=2), flat(), nn.Linear(32, 1)]
    yield (
        "pool",
        (1, 10, 10),
        [conv(1, 3, 3, 1, 0), AvgPool2d(2), AvgPool2d(4), flat(), nn.Linear(3, 1)],
    )
    yield "norm", (1, 8, 8), [conv(1, 3, 3), nn.BatchNorm2d(3), flat(), nn.Linear(192, 1)]
    statistics = [conv(1, 3, 3), MinibatchStatistics(), conv(4, 2, 1, 1, 0), flat()]
    yield "statistics", (1, 8, 8), [*statistics, nn.Linear(128, 1)]
    block = Residual(
        nn.Sequential(conv(2, 3, 3), AvgPool2d(2)),
        nn.Sequential(AvgPool2d(2), conv(2, 3, 1, 1, 0)),
    )
    yield "block", (2, 8, 8), [block, flat(), nn.Linear(48, 1)]
    yield "blocks", (2, 8, 12), [block, nn.Identity(), Head(72, 1)]
    skips = InputSkips([conv(2, 3, 4, 2)], [halving((8, 8))], [conv(2, 3, 1, 1, 0)])
    yield "skips", (2, 8, 8), [skips, nn.Identity(), Head(48, 1)]
    both = InputSkips([nn.Sequential(block)], [halving((8, 8))], [conv(2, 3, 1, 1, 0)])
    yield "skips of blocks", (2, 8, 8), [both, flat(), nn.Linear(48, 3)]


LINEAR = {name: (shape, layers) for name, shape, layers in linear_critics()}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_critic_of_images_counts_exactly(name: str) -> None:
    """Positions, strides, padding and sums are those of the critic itself.

    Weights of the maps' borders are 0, for there the critic reads what is beside the image.
    """
    shape, layers = LINEAR[name]
    torch.manual_seed(0)
    critic = nn.Sequential(*layers).double().eval()
    for layer in critic.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var = torch.tensor([0.3, 2.0, 1.0]).double()
    maps = nn.Sequential(*[m for m in layers if not isinstance(m, nn.Flatten | nn.Linear)])
    size = maps.double()(torch.zeros(1, *shape).double()).shape[1:]
    if max(size[1:]) > 1:
        inner = torch.zeros(size).double()
        inner[:, 1:-1, 1:-1] = 1
        layers[-1].weight.data *= inner.flatten()
    exact = torch.linalg.matrix_norm(matrix(critic, shape), 2).item()
    assert below(critic, shape) == pytest.approx(exact, rel=1e-5)
    assert certify(critic, shape=shape)[0] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("taps", "stride", "padding"), [(3, 1, 1), (4, 2, 1), (5, 1, 2), (3, 2, 1)]
)
def test_a_convolution_counts_with_its_norm_on_maps_of_its_size(
    taps: int, stride: int, padding: int
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, taps, stride, padding).double()
    for side in (8, 16):
        shape = (2, side, side)
        exact = torch.linalg.matrix_norm(matrix(layer, shape), 2).item()
        bound = below(nn.Sequential(layer), shape)
        assert exact <= bound <= 1.2 * exact
        assert bound <= product(layer) * (1 + 1e-6)


def test_maps_are_zero_beside_the_image_before_windows_reach_there() -> None:
    """Two convolutions without an activation, and one after a sum."""
    torch.manual_seed(0)
    pair = nn.Sequential(Conv2d(1, 2, 3, padding=1), Conv2d(2, 1, 3, padding=1)).double()
    block = Residual(nn.Sequential(Conv2d(1, 1, 3, padding=1)), nn.Identity()).double()
    for critic in (pair, nn.Sequential(block, Conv2d(1, 1, 3, padding=1)).double()):
        exact = torch.linalg.matrix_norm(matrix(critic, (1, 8, 8)), 2).item()
        assert exact <= below(critic, (1, 8, 8)) <= product(critic) * (1 + 1e-5)


def test_windows_that_are_cut_lengthen_nothing() -> None:
    torch.manual_seed(0)
    pool = halving((7, 9))
    block = Residual(
        nn.Sequential(Conv2d(2, 3, 3, padding=1), pool),
        nn.Sequential(halving((7, 9)), Conv2d(2, 3, 1)),
    )
    critic = nn.Sequential(block, nn.Identity(), Head(3 * 20, 1)).double()
    exact = torch.linalg.matrix_norm(matrix(critic, (2, 7, 9)), 2).item()
    assert exact <= below(critic, (2, 7, 9)) <= 1.2 * product(critic)
    assert certify(critic, shape=(2, 7, 9)) == (product(critic), None)


def slopes_of_patterns(critic: nn.Module, shape: tuple[int, ...], low: float, high: float) -> float:
    """The steepest gradient where each unit of each activation has one of two slopes at random."""

    def bent(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        chosen = torch.where(torch.rand_like(output[0]) < 0.5, low, high)
        return chosen * inputs[0]

    kinds = (ReLU, LeakyReLU, Abs)
    handles = [m.register_forward_hook(bent) for m in critic.modules() if isinstance(m, kinds)]
    best = 0.0
    for seed in range(30):
        torch.manual_seed(seed)
        x = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(critic(x).sum(), x)
        best = max(best, gradient.norm().item())
    for handle in handles:
        handle.remove()
    return best


IMAGE_CRITICS: list[dict[str, Any]] = [
    {"architecture": "dcgan", "depth": 2},
    {"architecture": "dcgan", "depth": 3},
    {"architecture": "dcgan", "depth": 2, "normalization": "batch"},
    {"architecture": "dcgan", "depth": 2, "skips": True},
    {"architecture": "dcgan", "depth": 2, "minibatch_statistics": True, "equalized": True},
    {"architecture": "resnet", "depth": 3},
    {"architecture": "resnet", "depth": 6, "equalized": True},
    {"architecture": "resnet", "depth": 4, "skips": True},
    {"architecture": "resnet", "depth": 5, "normalization": "batch"},
    {"architecture": "resnet", "depth": 5, "minibatch_statistics": True},
]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("shape", "name"), [((1, 16, 16), "relu"), ((1, 16, 16), "abs"), ((2, 13, 16), "relu")], ids=str
)
@pytest.mark.parametrize("options", IMAGE_CRITICS, ids=str)
def test_an_image_critic_is_bounded_below_the_product(
    options: dict[str, Any], shape: tuple[int, ...], name: Any
) -> None:
    torch.manual_seed(0)
    config = CriticConfig(width=4, activation=name, **options)
    critic = build_critic(config, shape).double().eval().requires_grad_(False)
    for module in critic.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.3, 2.0)  # type: ignore[arg-type]
    bound, reason = certify(critic, shape=shape)
    assert reason is None
    assert bound is not None
    assert bound <= product(critic)
    if shape[1] % 2 == 0:  # `abs` keeps lengths, and new weights are alike
        assert bound < (0.75 if name == "relu" else 0.95) * product(critic)
    found = max(
        steepest_slope(critic, torch.randn(6, *shape).double(), steps=8),
        slopes_of_patterns(critic, shape, *SLOPES[name]),
    )
    assert found <= bound


def test_the_steepest_class_decides() -> None:
    for shape, architecture in (((3,), "mlp"), ((1, 8, 8), "dcgan"), ((1, 16, 16), "resnet")):
        torch.manual_seed(0)
        config = CriticConfig(architecture=architecture, width=4, depth=3)  # type: ignore[arg-type]
        critic = build_critic(config, shape, classes=3).double().eval().requires_grad_(False)
        assert isinstance(critic, ProjectionCritic)
        bound = below(critic, shape)
        assert bound <= product(critic)
        alone = []
        for label in range(3):
            one = WithLabels(critic, torch.full((12,), label))
            assert steepest_slope(one, torch.randn(12, *shape).double(), steps=10) <= bound
            head = nn.Linear(critic.head.in_features, 1).double()
            head.weight.data = critic.head.weight + critic.projection.weight.T[label]
            alone.append(below(Critic(nn.Sequential(*critic.features, head)), shape))
        # Multipliers are improved for the steepest class alone, or for all at once.
        assert bound == pytest.approx(max(alone), rel=0.05)


def test_norms_and_recurrent_layers_are_passed_by_their_slope() -> None:
    torch.manual_seed(0)
    for shape, architecture, norm in (
        ((3,), "mlp", "layer"),
        ((1, 8, 8), "dcgan", "layer"),
        ((1, 8, 8), "dcgan", "instance"),
        ((5, 2), "gru", "layer"),
        ((5, 2), "lstm", "none"),
    ):
        config = CriticConfig(architecture=architecture, width=4, depth=2, normalization=norm)  # type: ignore[arg-type]
        critic = build_critic(config, shape).double().eval().requires_grad_(False)
        bound, _ = certify(critic, shape=shape)
        assert bound is not None
        assert bound <= product(critic, shape)
        assert steepest_slope(critic, torch.randn(12, *shape).double(), steps=10) <= bound


def test_what_is_not_known_falls_back_to_the_product() -> None:
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    for critic in (
        nn.Sequential(Conv2d(1, 2, 3)),  # of maps whose size is not known
        Residual(branch, nn.Identity()),
        nn.Sequential(nn.AvgPool2d(2)),
    ):
        critic.double().eval()
        assert ellipsoid_bound(critic, None, product) is None
        assert certify(critic) == (product(critic), None)


@pytest.mark.parametrize(
    ("steps", "architecture", "depth"), [(150, "lstm", 1), (380, "gru", 1), (200, "gru", 2)]
)
def test_no_bound_is_beyond_all_numbers(steps: int, architecture: Any, depth: int) -> None:
    torch.manual_seed(0)
    settings = CriticConfig(architecture=architecture, width=64, depth=depth)
    found, reason = certify(build_critic(settings, (steps, 2)).eval(), shape=(steps, 2))
    assert reason is None or "beyond the largest number" in reason
    assert found is None or 1e100 < found < math.inf


def test_a_bound_of_no_use_is_the_reason_why_there_is_none() -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(architecture="gru", width=16, depth=1), (40, 2)).eval()
    x = torch.randn(3, 40, 2)
    bounds = lipschitz_bracket(critic, x, x + 1)
    assert bounds.certified is None
    assert bounds.reason is not None
    assert "is far above the slope found" in bounds.reason


def test_a_critic_of_large_images_is_refused_before_it_takes_memory() -> None:
    """Its matrices would take tens of gigabytes, and minutes."""
    settings = CriticConfig(architecture="resnet", width=128, depth=5)
    critic = build_critic(settings, (3, 128, 128)).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert ellipsoid_bound(critic, (3, 128, 128), lambda _: 1.0) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "kilobytes"


def test_what_has_no_steepest_slope_has_no_bound() -> None:
    found, reason = certify(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3, eps=0.0)).eval())
    assert (found, reason) == (None, "LayerNorm without an epsilon has no steepest slope")


def test_the_bracket_knows_the_size_of_the_images() -> None:
    torch.manual_seed(0)
    config = CriticConfig(architecture="dcgan", width=4, depth=2)
    critic = build_critic(config, (1, 8, 8))
    bracket = lipschitz_bracket(critic, *torch.randn(2, 12, 1, 8, 8))
    assert bracket.certified == certify(critic.double().eval(), shape=(1, 8, 8))[0]
    assert bracket.certified is not None
    assert bracket.certified < 0.75 * product(critic)


def test_inference_mode_changes_nothing() -> None:
    torch.manual_seed(0)
    critic = chain(dense(2, 4, 4, 1), "relu").eval()
    expected = certify(critic)
    with torch.inference_mode():
        assert certify(critic) == expected
        assert certify(chain([nn.Linear(2, 3), nn.Linear(3, 1)], "abs"))[0] is not None
    assert all(p.grad is None for p in critic.parameters())


def test_a_ball_has_any_number_of_dimensions_until_it_is_mapped() -> None:
    ball = Ellipsoid(Multipliers())
    with pytest.raises(NoBoundError, match="the number of channels is not known"):
        ball.channels()
    ball.scale(torch.tensor([1.0, -3, 2], dtype=torch.float64))
    assert ball.longest() == 9
    ball.bend(-2.0, 1.0)
    assert ball.longest() == 36
    ball.bend(0.0, 0.5)
    assert ball.longest() == 9
    ball.become_ball(3.0)
    assert ball.longest() == 81
    assert ball.channels(3) == ball.channels() == 3
    torch.testing.assert_close(ball.longest(), torch.tensor(81.0, dtype=torch.float64))


def test_an_ellipsoid_is_mapped_as_a_vector_is_and_keeps_what_is_added_later() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3, dtype=torch.float64).unbind()
    factors = torch.tensor([2.0, -1, 3, 0.5], dtype=torch.float64)
    place = Ellipsoid(Multipliers())
    place.dense(first)
    place.bend(4.0, 4.0)
    assert place.x is not None
    torch.testing.assert_close(place.x[0], 16 * first @ first.T)
    place.scale(factors / 4)
    place.keep(4)
    assert place.channels() == 4
    place.dense(second.T)
    whole = torch.cat([torch.eye(4), second.T]) @ torch.diag(factors) @ first
    assert place.x is not None
    torch.testing.assert_close(place.x[0], whole @ whole.T)
    steepest = torch.linalg.matrix_norm(whole, 2) ** 2
    torch.testing.assert_close(place.longest(), steepest)
    torch.testing.assert_close(place.widest(), whole.square().sum(dim=1).max())
    place.x.requires_grad_()
    torch.testing.assert_close(place.longest(), steepest)
    with pytest.raises(NoBoundError, match="something is kept beside"):
        place.become_ball(1.0)


def on_torus(maps: int = 2) -> Ellipsoid:
    """The place of maps of an image of 4 x 4, on a torus of 8 x 8."""
    place = Ellipsoid(Multipliers(), (4, 4), (8, 8))
    place.convolve(nn.Conv2d(1, maps, 1).double())
    return place


def test_a_layer_that_does_not_fit_what_is_known_is_refused() -> None:
    vector = Ellipsoid(Multipliers())
    vector.dense(torch.eye(3, dtype=torch.float64))
    for refused, says in (
        (lambda: vector.scale(torch.ones(4)), "a layer takes other channels"),
        (lambda: vector.dense(torch.ones(2, 4)), "a layer takes other channels"),
        (lambda: vector.convolve(nn.Conv2d(3, 2, 1)), "the size of the maps is not known"),
        (lambda: vector.pool(AvgPool2d(2)), "no ellipsoid is known of such a pool"),
        (lambda: on_torus().convolve(nn.Conv2d(3, 2, 1).double()), "a layer takes other channels"),
        (lambda: on_torus().dense(torch.ones(1, 31)), "a dense layer takes other maps"),
        (lambda: on_torus().dense(torch.ones(1, 48)), "a dense layer takes other maps"),
        (lambda: on_torus().pool(nn.AvgPool2d(2, padding=(1, 0))), "known of such a pool"),
        (lambda: on_torus().pool(nn.AvgPool2d(2, padding=(0, 1))), "known of such a pool"),
        (lambda: on_torus().pool(nn.AvgPool2d(2, divisor_override=3)), "known of such a pool"),
        (lambda: kept().convolve(nn.Conv2d(2, 2, 2, 2).double()), "maps become smaller and what"),
        (lambda: kept().dense(torch.ones(1, 32)), "a dense layer takes other maps"),
    ):
        with pytest.raises(NoBoundError, match=says):
            refused()


def kept() -> Ellipsoid:
    place = on_torus()
    place.keep(2)
    return place


@pytest.mark.parametrize(("largest", "work"), [(100, 10**9), (10**9, 1000)])
def test_neither_memory_nor_work_is_above_what_is_set(
    monkeypatch: pytest.MonkeyPatch, largest: int, work: int
) -> None:
    monkeypatch.setattr(ellipsoid, "LARGEST", largest)
    monkeypatch.setattr(ellipsoid, "WORK", work)
    Ellipsoid(Multipliers()).dense(torch.eye(10, dtype=torch.float64))
    with pytest.raises(NoBoundError, match="too large"):
        Ellipsoid(Multipliers()).dense(torch.eye(11, dtype=torch.float64))
    place = Ellipsoid(Multipliers())
    place.dense(torch.eye(6, dtype=torch.float64))
    with pytest.raises(NoBoundError, match="too large"):
        place.keep(6)


def test_work_is_counted_in_products_of_real_numbers() -> None:
    multipliers = Multipliers()
    multipliers.count(torch.ones(2, 3, 3))
    assert (multipliers.entries, multipliers.work) == (18, 54)
    multipliers.count(torch.ones(5, 2, 2, dtype=torch.complex64))
    assert (multipliers.entries, multipliers.work) == (18 + 20, 54 + 4 * 40)
    multipliers.begin("use", [])
    assert (multipliers.entries, multipliers.work, multipliers.number) == (0, 0, 0)
