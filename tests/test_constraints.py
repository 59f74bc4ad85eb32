"""Constraints against closed forms, finite differences in float64 and the SVD."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.constraints import (
    AdversarialLipschitz,
    AlmostOrthogonal,
    AnyConstraint,
    Bjorck,
    Consistency,
    Constraint,
    Dragan,
    GradientNormalization,
    GradientPenalty,
    LipschitzPenalty,
    MaxGradientPenalty,
    NoConstraint,
    NormClipping,
    SpectralNorm,
    SpectralProjection,
    WeightClipping,
    WeightDecay,
    WeightNormalization,
    ZeroCenteredPenalty,
)
from models.constraints import bjorck as bjorck_module
from models.constraints import weight_clipping as clipping_module
from models.errors import ConfigError
from models.lipschitz import certify, gradient_norm_summary, gradient_norms, interpolate
from models.networks import CriticConfig, build_critic
from tests.artifacts import SHAPES, tiny_config

PENALTIES = [GradientPenalty, LipschitzPenalty]
KINDS = [c.model_fields["kind"].default for c in get_args(get_args(AnyConstraint)[0])]


class Linear(nn.Module):
    """Scores w . x: its gradient is w everywhere."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


class HalfSquare(nn.Module):
    """Scores k |x|^2 / 2: its gradient at x is k x."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.k * x.flatten(1).square().sum(1) / 2


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 8, 8), (6, 5, 7)])
def test_the_gradient_norm_is_per_sample_over_all_other_axes(shape: tuple[int, ...]) -> None:
    points = batch(*shape)
    found = gradient_norms(HalfSquare(2.0), points)
    expected = 2 * np.sqrt((points.numpy() ** 2).reshape(6, -1).sum(axis=1))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1000, 2), (1000, 3, 4, 5)])
def test_one_uniform_coefficient_for_each_sample(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    real, fake = batch(*shape), batch(*shape, seed=1)
    points = interpolate(real, fake)
    coefficients = ((points - fake) / (real - fake)).flatten(1)
    # The same over a sample's axes, another for each sample, uniform on [0, 1].
    torch.testing.assert_close(
        coefficients, coefficients[:, :1].expand_as(coefficients), rtol=0, atol=1e-7
    )
    one = coefficients[:, 0].numpy()
    assert len(np.unique(one)) == len(one)
    from scipy.stats import kstest

    assert kstest(one, "uniform").pvalue > 0.01


def test_the_points_between_carry_no_gradient() -> None:
    real = batch(4, 2).requires_grad_()
    fake = batch(4, 2, seed=1).requires_grad_()
    assert not interpolate(real, fake).requires_grad


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (GradientPenalty(strength=10), 10 * (5 - 1) ** 2),
        (GradientPenalty(strength=3, target=7), 3 * (5 - 7) ** 2),
        (LipschitzPenalty(strength=10), 10 * (5 - 1) ** 2),
        (LipschitzPenalty(strength=3, target=7), 0),
    ],
)
def test_penalties_of_a_linear_critic(constraint: Constraint, expected: float) -> None:
    found = constraint.penalty(Linear(3, 4), batch(9, 2), batch(9, 2, seed=1))
    assert found is not None
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_penalty_is_the_mean_of_the_samples_not_of_the_batch(penalty: type[Constraint]) -> None:
    # Two samples with norms 0.5 and 3: the mean of squares, not the square of any mean.
    points = torch.tensor([[0.5, 0.0], [0.0, 3.0]], dtype=torch.float64)
    found = penalty(strength=1).penalty(HalfSquare(1.0), points, points)
    sides = {GradientPenalty: (0.5 - 1) ** 2, LipschitzPenalty: 0.0}
    assert found is not None
    assert found.item() == pytest.approx((sides[penalty] + (3 - 1) ** 2) / 2)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("critic", [lambda: Linear(0, 0), lambda: HalfSquare(0.0)])
def test_a_gradient_of_zero_gives_finite_values(
    penalty: type[Constraint], critic: Callable[[], nn.Module]
) -> None:
    network = critic()
    found = penalty().penalty(network, batch(5, 2), batch(5, 2, seed=1))
    assert found is not None
    found.backward()
    for parameter in network.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("activation", ["tanh", "leaky_relu", "softplus"])
def test_the_penalty_is_back_propagated_exactly(
    penalty: type[Constraint], kind: str, activation: str
) -> None:
    """Central differences of the penalty in float64, parameter by parameter."""
    torch.manual_seed(0)
    config = CriticConfig(
        architecture="mlp" if kind == "vector" else "dcgan",
        width=4,
        depth=2,
        activation=activation,
        normalization="layer",
    )
    critic = build_critic(config, SHAPES[kind]).double()
    for parameter in critic.parameters():  # steep enough for the one-sided penalty to act
        parameter.data *= 3
    real, fake = batch(4, *SHAPES[kind]), batch(4, *SHAPES[kind], seed=1)

    def value() -> Tensor:
        torch.manual_seed(1)  # the same points between real and fake each time
        found = penalty(strength=2.0, target=0.1).penalty(critic, real, fake)
        assert found is not None
        return found

    value().backward()
    checked = 0
    for parameter in critic.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad
        index = int(gradient.abs().argmax()) if gradient is not None else 0
        step = 1e-6
        flat[index] += step
        above = value().item()
        flat[index] -= 2 * step
        below = value().item()
        flat[index] += step
        found = 0.0 if gradient is None else gradient.view(-1)[index].item()
        assert found == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)
        checked += abs(found) > 1e-3
    assert checked > 2, "the check saw no gradient worth the name"


def test_the_norm_is_taken_in_float32_under_autocast() -> None:
    critic = build_critic(CriticConfig(architecture="dcgan", width=8, depth=2), SHAPES["rgb"])
    points = torch.randn(8, *SHAPES["rgb"])
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient_norms(critic, points)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient_norms(critic, points), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(
    ("scope", "clipped"),
    [
        ("all", {"weight", "bias", "gain", "offset"}),
        ("weights", {"weight"}),
        ("all_but_normalization", {"weight", "bias"}),
    ],
)
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_clipping_takes_what_its_scope_says(
    scope: str, clipped: set[str], norm: type[nn.Module]
) -> None:
    critic = nn.Sequential(nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Linear(4, 1))
    for parameter in critic.parameters():
        nn.init.constant_(parameter, 5.0)
    constraint = WeightClipping(clip_value=0.25, scope=scope)  # type: ignore[arg-type]
    constraint.after_critic_step(critic)
    names = {
        "0.weight": "weight",
        "0.bias": "bias",
        "1.weight": "gain",
        "1.bias": "offset",
        "3.weight": "weight",
        "3.bias": "bias",
    }
    for name, parameter in critic.named_parameters():
        expected = 0.25 if names[name] in clipped else 5.0
        assert (parameter == expected).all(), name


def test_clipping_keeps_the_sign_and_what_lies_inside() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[-2.0, 0.05, 0.3]])
    WeightClipping(clip_value=0.1).after_critic_step(layer)
    assert layer.weight.tolist() == [[pytest.approx(-0.1), pytest.approx(0.05), pytest.approx(0.1)]]


def test_clipping_holds_from_the_first_step_on() -> None:
    critic = WeightClipping().before_training(nn.Linear(50, 50))
    assert max(p.abs().max().item() for p in critic.parameters()) <= 0.01


def test_every_normalisation_counts_as_normalisation() -> None:
    for norm in (nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.GroupNorm(1, 4), nn.LayerNorm(4)):
        assert isinstance(norm, clipping_module.NORMALIZATION)


@pytest.mark.parametrize("kind", SHAPES)
def test_spectral_norm_against_the_svd(kind: str) -> None:
    torch.manual_seed(0)
    architecture = "mlp" if kind == "vector" else "dcgan"
    config = CriticConfig(architecture=architecture, width=16, depth=3)
    critic = build_critic(config, SHAPES[kind]).double()
    raw = [m.weight.detach().clone() for m in critic.modules() if hasattr(m, "weight")]
    constraint = SpectralNorm()
    critic = constraint.before_training(critic)
    for _ in range(300):
        constraint.after_critic_step(critic)
    layers = [m for m in critic.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == len(raw) == 4
    for layer, before in zip(layers, raw, strict=True):
        largest = np.linalg.svd(before.flatten(1).numpy(), compute_uv=False)[0]
        np.testing.assert_allclose(
            layer.weight.detach().numpy(), before.numpy() / largest, rtol=1e-4, atol=1e-6
        )


def test_spectral_vectors_advance_in_the_hook_and_nowhere_else() -> None:
    torch.manual_seed(0)
    constraint = SpectralNorm()
    critic = constraint.before_training(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1)))
    for parameter in critic.parameters():  # the vectors are out of date now
        nn.init.normal_(parameter)

    def vectors() -> list[Tensor]:
        return [b.clone() for b in critic.buffers()]

    before = vectors()
    for mode in (True, False):
        critic.train(mode)
        critic(torch.randn(3, 6))
    assert all(map(torch.equal, vectors(), before))
    constraint.after_critic_step(critic)
    assert not any(map(torch.equal, vectors()[:2], before[:2]))


def test_the_gradient_through_spectral_norm_is_exact() -> None:
    """Equation 10 of Miyato et al.: with the vectors held, checked by finite differences."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    SpectralNorm().before_training(layer)
    original = layer.parametrizations.weight.original  # type: ignore[union-attr]
    x = batch(5, 4)
    layer(x).square().sum().backward()
    for i, j in ((0, 0), (2, 3), (1, 2)):
        values = []
        for sign in (1, -1):
            original.data[i, j] += sign * 1e-6
            values.append(layer(x).square().sum().item())
            original.data[i, j] -= sign * 1e-6
        slope = (values[0] - values[1]) / 2e-6
        assert original.grad[i, j].item() == pytest.approx(slope, rel=1e-5)


def test_a_new_state_is_used_at_once() -> None:
    """No cached weight survives a load."""
    torch.manual_seed(0)
    one = SpectralNorm().before_training(nn.Linear(4, 4))
    other = SpectralNorm().before_training(nn.Linear(4, 4))
    x = torch.randn(2, 4)
    one.eval()
    one(x)
    one.load_state_dict(other.state_dict())
    torch.testing.assert_close(one(x), other(x), rtol=0, atol=0)


def test_no_constraint_does_nothing() -> None:
    critic = nn.Linear(2, 1)
    before = critic.weight.clone()
    assert NoConstraint().before_training(critic) is critic
    assert NoConstraint().penalty(critic, batch(2, 2), batch(2, 2)) is None
    NoConstraint().after_critic_step(critic)
    assert torch.equal(critic.weight, before)


@pytest.mark.parametrize("constraint", get_args(get_args(AnyConstraint)[0]))
def test_every_constraint_is_frozen_described_and_strict(constraint: type[Constraint]) -> None:
    made = constraint()
    assert len(constraint.guarantee) > 20
    assert {"optimizer", "learning_rate", "num_critic_steps"} <= set(constraint.published)
    assert constraint.__doc__
    with pytest.raises(ValidationError):
        made.kind = "another"  # type: ignore[attr-defined]
    with pytest.raises(ValidationError):
        constraint(strenght=1)


def test_the_kinds() -> None:
    assert KINDS == [
        "none",
        "weight_clipping",
        "norm_clipping",
        "weight_normalization",
        "weight_decay",
        "gradient_penalty",
        "lipschitz_penalty",
        "max_gradient_penalty",
        "zero_centered_penalty",
        "dragan",
        "consistency",
        "adversarial_lipschitz",
        "spectral_norm",
        "spectral_projection",
        "bjorck",
        "aol",
        "cayley",
        "sandwich",
        "gradient_normalization",
    ]


def test_the_summary_of_a_linear_critic() -> None:
    real, fake = batch(50, 2).float(), batch(50, 2, seed=1).float()
    summary = gradient_norm_summary(Linear(3, 4).float(), real, fake)
    assert set(summary) == {"real", "fake", "between"}
    for place in summary.values():
        assert place.mean == pytest.approx(5)
        assert place.max == pytest.approx(5)
        assert all(q == pytest.approx(5) for q in place.quantiles.values())


# --- what each of the other constraints says of a critic that can be worked out by hand ----------


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (MaxGradientPenalty(strength=2), 2 * 5**2),
        (MaxGradientPenalty(strength=2, target=6), 0),
        (ZeroCenteredPenalty(strength=3), 3 / 2 * 5**2),
        (ZeroCenteredPenalty(strength=3, where="both"), 3 / 2 * 5**2),
        (Dragan(strength=2, target=4), 2 * 1),
        (Consistency(strength=2, target=4), 2 * 1),
        (AdversarialLipschitz(strength=2, target=2), 2 * 3**2),
        (AdversarialLipschitz(strength=2, target=6), 0),
        (GradientPenalty(strength=2, target=4, every=3), 3 * 2 * 1),
    ],
)
def test_more_penalties_of_a_linear_critic(constraint: Constraint, expected: float) -> None:
    torch.manual_seed(0)
    found = constraint.penalty(Linear(3, 4), batch(9, 2), batch(9, 2, seed=1))
    assert found is not None
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_maximum_is_over_the_batch() -> None:
    points = torch.tensor([[0.5, 0.0], [0.0, 3.0]], dtype=torch.float64)
    found = MaxGradientPenalty(strength=1).penalty(HalfSquare(1.0), points, points)
    assert found is not None
    assert found.item() == pytest.approx(9)


@pytest.mark.parametrize(
    ("where", "norms"),
    [("real", [1, 2]), ("fake", [3, 4]), ("both", [1, 2, 3, 4]), ("between", None)],
)
def test_where_a_penalty_looks(where: str, norms: list[float] | None) -> None:
    real = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    fake = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    penalty = ZeroCenteredPenalty(strength=2, where=where)  # type: ignore[arg-type]
    found = penalty.norms(HalfSquare(1.0), real, fake).tolist()
    if norms is None:
        assert 1 <= found[0] <= 3
        assert 2 <= found[1] <= 4
    else:
        assert found == pytest.approx(norms)


def test_around_real_is_normal_noise_of_the_batch_s_own_spread() -> None:
    torch.manual_seed(0)
    real = 7 * batch(20_000, 2)
    moved = Dragan(spread=0.25).points(real, real) - real
    assert moved.std().item() == pytest.approx(0.25 * 7, rel=0.02)
    assert moved.mean().abs().item() < 0.05


def test_a_lazy_penalty_counts_as_often_as_it_is_left_out() -> None:
    lazy, plain = ZeroCenteredPenalty(every=4), ZeroCenteredPenalty()
    points = batch(5, 2)
    found = [lazy.penalty(HalfSquare(1.0), points, points, step) for step in range(8)]
    assert [f is None for f in found] == [False, True, True, True] * 2
    expected = plain.penalty(HalfSquare(1.0), points, points)
    assert found[4] is not None
    assert expected is not None
    assert found[4].item() == pytest.approx(4 * expected.item())


def test_the_adversarial_neighbour_is_where_the_score_changes_most() -> None:
    torch.manual_seed(0)
    constraint = AdversarialLipschitz()
    direction = constraint._direction(Linear(3, 4), batch(5, 2))
    cosine = (direction @ torch.tensor([0.6, 0.8], dtype=torch.float64)).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_consistency_pays_for_what_dropout_changes() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Dropout(0.5), nn.Flatten(0)).double()
    real = torch.ones(40_000, 1, dtype=torch.float64)
    constraint = Consistency(strength=1e-9, consistency=3)
    found = constraint.penalty(critic, real, real)
    # Scores are 0 or 2, so their squared difference is 4 half the time.
    assert found is not None
    assert found.item() == pytest.approx(3 * 2, rel=0.03)
    with_margin = Consistency(strength=1e-9, consistency=3, margin=1).penalty(critic, real, real)
    assert with_margin is not None
    assert with_margin.item() == pytest.approx(3 * 1.5, rel=0.03)


def test_consistency_needs_dropout() -> None:
    with pytest.raises(ConfigError, match=r"set critic\.dropout"):
        tiny_config(constraint={"kind": "consistency"})
    tiny_config(constraint={"kind": "consistency"}, critic={"dropout": 0.3})


def test_weight_decay_is_the_gradient_of_its_term() -> None:
    layer = nn.Linear(3, 2).double()
    reference = copy.deepcopy(layer)
    WeightDecay(strength=0.5).before_training(layer)
    x = batch(4, 3)
    layer(x).square().sum().backward()
    loss = reference(x).square().sum() + 0.25 * reference.weight.square().sum()
    loss.backward()
    torch.testing.assert_close(layer.weight.grad, reference.weight.grad)
    torch.testing.assert_close(layer.bias.grad, reference.bias.grad)


def test_norm_clipping_shortens_what_is_long_and_keeps_its_direction() -> None:
    layer = nn.Conv2d(1, 2, 2).double()
    layer.weight.data = torch.tensor([[[[3.0, 0], [0, 4]]], [[[0.1, 0], [0, 0]]]]).double()
    NormClipping(max_norm=0.5).after_critic_step(layer)
    expected = [[[[0.3, 0], [0, 0.4]]], [[[0.1, 0], [0, 0]]]]
    torch.testing.assert_close(layer.weight.data, torch.tensor(expected).double())


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Conv2d(2, 3, 4)])
def test_weight_normalisation_gives_rows_of_length_one(layer: nn.Module) -> None:
    WeightNormalization().before_training(layer)
    rows = layer.weight.flatten(1).norm(dim=1)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(rows, torch.ones(3))


def test_a_trained_gain_starts_from_the_weights_as_they_were() -> None:
    layer = nn.Linear(5, 3)
    before = layer.weight.detach().clone()
    WeightNormalization(gain="trained").before_training(layer)
    torch.testing.assert_close(layer.weight, before)
    assert len(list(layer.parameters())) == 3


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_target_is_what_weights_at_their_bounds_certify(
    kind: str, activation: str, classes: int
) -> None:
    architecture = "mlp" if kind == "vector" else "dcgan"
    config = CriticConfig(architecture=architecture, width=8, depth=3, activation=activation)
    critic = build_critic(config, SHAPES[kind], classes)
    constraint = WeightClipping(target_lipschitz=3.0)
    critic = constraint.before_training(critic)
    for parameter in critic.parameters():
        nn.init.constant_(parameter, 1e3)
    constraint.after_critic_step(critic)
    assert constraint.broken_claim(critic) is None
    bound, _ = certify(critic)
    assert bound is not None
    assert bound <= 3.0
    assert bound == pytest.approx(3.0, rel=1e-5)
    nn.init.constant_(next(critic.parameters()), 1e3)
    assert "1000" in str(constraint.broken_claim(critic))


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_ranges_follow_from_the_architecture_alone(architecture: str) -> None:
    constraint = WeightClipping(target_lipschitz=1.0)
    ranges = []
    for seed in range(4):
        torch.manual_seed(seed)
        config = CriticConfig(architecture=architecture, width=4, depth=3)  # type: ignore[arg-type]
        critic = constraint.before_training(build_critic(config, SHAPES["image"], classes=3))
        ranges.append([bound for _, bound in constraint.clipped(critic)])
    assert ranges[1:] == ranges[:1] * 3


def test_a_given_norm_replaces_that_of_every_layer() -> None:
    critic = build_critic(CriticConfig(width=4, depth=2), (2,), classes=3)
    assert certify(critic, lambda layer: 3.0) == (3.0 * 3.0 * (3.0 + 3.0), None)


def test_a_target_needs_layers_that_have_a_bound() -> None:
    constraint = WeightClipping(target_lipschitz=1.0)
    for norm in (nn.BatchNorm1d(4), nn.LayerNorm(4)):
        with pytest.raises(ConfigError, match="normalization=none"):
            constraint.before_training(nn.Sequential(nn.Linear(2, 4), norm, nn.Linear(4, 1)))
    with pytest.raises(ConfigError, match="Bilinear"):
        constraint.before_training(nn.Sequential(nn.Bilinear(2, 2, 1)))
    with pytest.raises(ValidationError, match="not both"):
        WeightClipping(target_lipschitz=1.0, clip_value=0.5)
    again = WeightClipping.model_validate(constraint.model_dump())
    assert again == constraint


@pytest.mark.parametrize("method", ["reshaped", "operator"])
def test_a_convolution_s_norm_under_each_method(method: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 4, 2, 1).double()
    kernel = layer.weight.detach().clone()
    constraint = SpectralNorm(method=method)  # type: ignore[arg-type]
    constraint.before_training(layer)
    for _ in range(300):
        constraint.after_critic_step(layer)
    matrix = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
    basis = torch.eye(3 * 16 * 16, dtype=torch.float64).view(-1, 3, 16, 16)
    rows = nn.functional.conv2d(basis, layer.weight.detach(), None, 2, 1).flatten(1)
    operator = torch.linalg.matrix_norm(rows, 2).item()
    assert {"reshaped": matrix, "operator": operator}[method] == pytest.approx(1, rel=1e-4)
    assert {"reshaped": operator, "operator": matrix}[method] != pytest.approx(1, rel=1e-2)
    ratio = layer.weight.detach() / kernel
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio.mean().item()))


def test_projection_scales_back_what_is_too_large_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).double()
    constraint = SpectralProjection(max_norm=2.0, iterations=100)
    constraint.before_training(critic)
    large = 3 * nn.init.orthogonal_(torch.empty(5, 6, dtype=torch.float64))
    small = 0.5 * nn.init.orthogonal_(torch.empty(4, 5, dtype=torch.float64))
    critic[0].weight.data, critic[1].weight.data = large.clone(), small.clone()
    constraint.after_critic_step(critic)
    torch.testing.assert_close(critic[0].weight.data, large * 2 / 3)
    assert torch.equal(critic[1].weight.data, small)


@pytest.mark.parametrize("method", ["project", "iterate"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5)])
def test_orthonormal_weights_stay_so_through_large_steps(
    method: str, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0]).double()
    constraint = Bjorck(method=method, iterations=40)  # type: ignore[arg-type]
    constraint.before_training(layer)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    goal = batch(50, shape[0])
    for _ in range(20):
        loss = (layer(batch(50, shape[1], seed=1)) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        constraint.after_critic_step(layer)
        values = torch.linalg.svdvals(layer.weight.detach())
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5), (40, 40)])
@pytest.mark.parametrize("error", [1e-3, 0.3, 0.97, 2.0, 30.0])
def test_retraction_that_reads_no_number_finds_the_nearest_orthonormal_matrix(
    shape: tuple[int, int], error: float
) -> None:
    """What a GPU does, against the singular value decomposition."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(batch(*shape), full_matrices=False)
    drawn = torch.rand(len(right), dtype=torch.float64)
    excess = drawn * error / drawn.norm()  # of the Gram matrix's eigenvalues over 1
    found = bjorck_module._retract_unread(left * (1 + excess).sqrt() @ right)
    torch.testing.assert_close(found, left @ right, rtol=0, atol=1e-5)


@pytest.fixture
def short_products() -> Iterator[Any]:
    """CUDA's matrix products in TF32."""
    settings = torch.backends.cuda.matmul
    settings.allow_tf32 = True
    yield settings
    settings.allow_tf32 = False


def test_weights_on_a_gpu_are_retracted_by_products_to_all_digits(short_products: Any) -> None:
    """TF32's ten bits would break the claim of singular values within 0.001 of 1."""
    short: list[bool] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.__name__.partition(".")[0] in ("mm", "addmm"):
                short.append(short_products.allow_tf32)
            return func(*args, **(kwargs or {}))

    critic = Bjorck().before_training(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))
    with Products():
        Bjorck().after_critic_step(critic.to("meta"))  # any device but the CPU
    assert short
    assert not any(short)
    assert short_products.allow_tf32


def test_the_projected_gradient_is_tangent() -> None:
    """Along it the Gram matrix does not change, to first order, and a tangent one is kept."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3).double()
    Bjorck().before_training(layer)
    layer(batch(9, 6)).square().sum().backward()
    weight, gradient = layer.weight.detach(), layer.weight.grad
    assert gradient is not None
    change = gradient @ weight.T + weight @ gradient.T
    assert change.abs().max().item() < 1e-10
    assert gradient.norm() > 0.1
    layer.weight.grad = None
    (layer.weight * gradient).sum().backward()
    torch.testing.assert_close(layer.weight.grad, gradient)


@pytest.mark.parametrize("constraint", [Bjorck(), Bjorck(method="iterate"), AlmostOrthogonal()])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv2d(2, 3, 3, 1, 1),
        nn.Conv2d(2, 3, 4, 2, 1),
        nn.Conv2d(3, 2, (3, 4), 2, 1),
    ],
)
def test_layers_of_norm_one_at_most(constraint: Constraint, layer: nn.Module) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    nn.init.normal_(layer.weight, std=3.0)  # type: ignore[arg-type]
    constraint.before_training(layer)
    bound, _ = certify(layer)
    assert bound is not None
    assert 0.4 < bound <= 1.003  # the bound of a convolution is up to 0.25% above its norm


def test_aol_of_a_dense_layer_against_its_theorem() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4).double()
    weight = layer.weight.detach().numpy().copy()
    AlmostOrthogonal().before_training(layer)
    gram = np.abs(weight.T @ weight)
    expected = weight / np.sqrt(gram.sum(axis=0))
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected)


def test_gradient_normalisation_against_its_formula() -> None:
    critic = GradientNormalization().before_training(HalfSquare(2.0))
    x = batch(5, 3)
    scores, norms = x.square().sum(1), 2 * x.norm(dim=1)
    expected = scores / (norms + scores)
    torch.testing.assert_close(critic(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(critic(x), expected)
    assert not critic(x.requires_grad_()).detach().requires_grad
    with torch.no_grad():
        assert not critic(x).requires_grad
    bound, reason = certify(critic)
    assert bound is None
    assert "gradient normalisation" in str(reason)


def test_a_training_step_goes_through_gradient_normalisation() -> None:
    """Its second derivative in the weights, by central differences."""
    k = 0.7
    x = batch(5, 3)
    critic = GradientNormalization().before_training(HalfSquare(k))
    critic(x).sum().backward()

    def value(k: float) -> float:
        size = x.square().sum(1)
        return (k * size / 2 / (k * size.sqrt() + k * size / 2)).sum().item()

    slope = (value(k + 1e-6) - value(k - 1e-6)) / 2e-6
    assert critic.critic.k.grad.item() == pytest.approx(slope, abs=1e-8)
