"""Constraints against closed forms, finite differences in float64 and the SVD."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models.constraints import (
    AnyConstraint,
    Constraint,
    GradientPenalty,
    LipschitzPenalty,
    NoConstraint,
    SpectralNorm,
    WeightClipping,
)
from models.constraints import weight_clipping as clipping_module
from models.lipschitz import gradient_norm_summary, gradient_norms, interpolate
from models.networks import CriticConfig, build_critic
from tests.artifacts import SHAPES

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
        "gradient_penalty",
        "lipschitz_penalty",
        "spectral_norm",
    ]


def test_the_summary_of_a_linear_critic() -> None:
    real, fake = batch(50, 2).float(), batch(50, 2, seed=1).float()
    summary = gradient_norm_summary(Linear(3, 4).float(), real, fake)
    assert set(summary) == {"real", "fake", "between"}
    for place in summary.values():
        assert place["mean"] == pytest.approx(5)  # type: ignore[index]
        assert place["max"] == pytest.approx(5)  # type: ignore[index]
        assert all(q == pytest.approx(5) for q in place["quantiles"].values())  # type: ignore[index]
