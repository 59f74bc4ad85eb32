"""Passes of an ellipsoid through whole critics, against exact norms and known minima."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.lipschitz import tighter
from models.lipschitz.ellipsoid import Multipliers
from models.lipschitz.tighter import _improved, ellipsoid_bound
from models.networks.conditional import ProjectionCritic, WithLabels
from models.networks.parts import Residual
from models.networks.piecewise import AvgPool2d, GroupSort
from models.networks.recurrent import PoolSteps
from models.networks.skips import InputSkips
from tests.test_ellipsoids import below, chain, dense, product, steepest_pattern


def slope_of_one(_: nn.Module) -> float:
    return 1.0


class Unknown(nn.Module):
    """A part of which the slope alone is known."""


class Half(Unknown):
    """One that has a branch, but is no sum."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(3, 3)


class Sum(nn.Module):
    """One that is a sum, without a scale of its own."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut


def weighted(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.weight.data = weight.double()
    return layer


# --- parts ----------------------------------------------------------------------------------------


def test_the_longest_vector_of_all_classes_counts() -> None:
    torch.manual_seed(0)
    into = weighted(torch.randn(4, 3))
    critic = ProjectionCritic(nn.Sequential(into), nn.Linear(4, 1), 3).double()
    each = (critic.head.weight + critic.projection.weight.T) @ into.weight
    exact = each.norm(dim=1).max().item()
    assert exact <= below(critic) <= exact * (1 + 3e-6)
    assert below(WithLabels(critic, torch.zeros(2, dtype=torch.long))) == below(critic)


def test_sequences_are_passed_by_slopes_until_their_steps_are_one_vector() -> None:
    torch.manual_seed(0)
    first, then, pool = nn.Linear(2, 3), nn.Linear(3, 3), PoolSteps()
    last = weighted(torch.randn(1, 3))
    slopes: dict[nn.Module, float] = {first: 3.0, then: 5.0, pool: 2.0}
    exact = 30 * last.weight.norm().item()
    # Of another layer than these no slope is asked.
    found = ellipsoid_bound(nn.Sequential(first, then, pool, last), (5, 2), slopes.__getitem__)
    assert found == pytest.approx(exact, rel=3e-6)


def test_parts_of_which_the_slope_alone_is_known_count_with_it() -> None:
    weight = torch.diag(torch.tensor([2.0, 0.5, 1.0]))
    for part in (Unknown(), Half(), nn.LayerNorm(3)):
        critic = nn.Sequential(weighted(weight), part, weighted(weight))
        slopes: dict[nn.Module, float] = {part: 3.0}
        found = ellipsoid_bound(critic, None, slopes.__getitem__)
        assert found == pytest.approx(12, rel=3e-6)
    norm = nn.LayerNorm([2, 4, 4])
    slopes = {norm: 3.0}
    maps = nn.Sequential(norm, nn.Flatten(), weighted(torch.ones(1, 32)))
    found = ellipsoid_bound(maps, (2, 4, 4), slopes.__getitem__)
    assert found == pytest.approx(3 * 32**0.5, rel=3e-6)
    assert ellipsoid_bound(nn.Sequential(Unknown()), None, lambda _: math.inf) is None
    assert ellipsoid_bound(nn.Sequential(Unknown()), None, lambda _: math.nan) is None


@pytest.mark.parametrize("has_scale", [False, True])
def test_a_sum_counts_with_its_scale(has_scale: bool) -> None:
    half = weighted(0.5 * torch.eye(3))
    block = Sum(half, nn.Identity())
    if has_scale:
        block.scale = 2.0  # type: ignore[assignment]
    found = ellipsoid_bound(nn.Sequential(block), None, slope_of_one)
    assert found == pytest.approx(3.0 if has_scale else 1.5, rel=3e-6)


def test_each_pair_that_is_sorted_has_one_multiplier() -> None:
    """The smaller of the second pair is the first of it, where that is below: its slope is 1."""
    critic = nn.Sequential(
        weighted(torch.diag(torch.tensor([0.01, 0.01, 1.0, 0.01]))),
        GroupSort(),
        weighted(torch.tensor([[0.0, 0.0, 0.0, 1.0]])),
    )
    x = torch.tensor([[0.0, 0.0, -5.0, 1.0]]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x)
    assert gradient.norm() == pytest.approx(1)
    assert 1 <= below(critic) <= 1.01


IMAGES = (2, 4, 4)


def conv(taps: int | tuple[int, int] = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(2, 2, taps, groups=groups).double()


@pytest.mark.parametrize(
    ("critic", "shape"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)), None),
        (nn.Sequential(conv(), Unknown()), IMAGES),
        (nn.Sequential(conv(), Half()), IMAGES),
        (Residual(nn.Sequential(conv()), nn.Sequential(nn.AvgPool2d(2), conv())), IMAGES),
        (Residual(nn.Sequential(conv()), nn.ReLU()), IMAGES),
        (Residual(nn.Sequential(conv()), nn.Sequential(conv(), nn.ReLU())), IMAGES),
        (Residual(nn.Sequential(conv()), conv(groups=2)), IMAGES),
        (Residual(nn.Sequential(conv()), conv((3, 1))), IMAGES),
        (Residual(nn.Sequential(conv()), conv((1, 3))), IMAGES),
        (InputSkips([nn.Sequential(conv())], [AvgPool2d(2)], [conv()]), IMAGES),
    ],
)
def test_what_no_ellipsoid_is_known_of_has_none(
    critic: nn.Module, shape: tuple[int, ...] | None
) -> None:
    assert ellipsoid_bound(critic.eval(), shape, slope_of_one) is None


# --- multipliers that are improved ----------------------------------------------------------------


class Made(Multipliers):
    """Multipliers of a function that is made up, with what it counts and its barrier."""

    def __init__(self, start: list[float], value: Callable[[Tensor], Tensor], push: float) -> None:
        super().__init__()
        self.logs = [torch.tensor(start[:1]).double(), torch.tensor(start[1:]).double()]
        self.value, self.push, self.calls = value, push, 0
        self.used = self.square()

    def square(self) -> Tensor:
        x = torch.cat(self.logs)
        self.calls += self.mode == "use"
        self.work = 100
        self.barrier = -self.push * x.sum()
        self.used = x.detach()
        return self.value(x).exp()

    def improved(self) -> float:
        return _improved(self.square, self)


def bowl(x: Tensor) -> Tensor:
    return (x - 1).square().sum() / 2


def valley(x: Tensor) -> Tensor:
    """Rosenbrock's function, in which twenty steps do not end."""
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def test_multipliers_end_where_the_square_and_a_little_barrier_are_least() -> None:
    """Of ``(x - 1)^2 / 2 - w p x`` the minimum is at ``1 + w p``."""
    made = Made([3.0, -2.0], bowl, 2.0)
    found = made.improved()
    assert made.mode == "tighten"
    shift = 2 * tighter.SOFTNESS[-1]
    torch.testing.assert_close(made.used, torch.ones(2).double() + shift, rtol=0, atol=0.02)
    assert found == pytest.approx(math.exp(bowl(made.used).item()))


def test_without_a_barrier_all_evaluations_are_of_the_square_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tighter, "PASSES", 21)
    made = Made([-1.2, 1.0], valley, 0.0)
    made.improved()
    assert made.calls == 21
    easy = Made([3.0, -2.0], bowl, 0.0)
    assert easy.improved() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("passes", "work", "most"), [(20, 1e9, 20), (1000, 1000, 10), (20, 1000, 10), (20, 50, 0)]
)
def test_neither_evaluations_nor_work_are_more_than_is_set(
    monkeypatch: pytest.MonkeyPatch, passes: int, work: float, most: int
) -> None:
    """Each evaluation counts 100 products of numbers."""
    monkeypatch.setattr(tighter, "PASSES", passes)
    monkeypatch.setattr(tighter, "WORK", work)
    made = Made([-1.2, 1.0], valley, 1e-3)
    made.improved()
    assert made.calls == most
    assert made.mode == "tighten"


def test_multipliers_of_large_critics_stay_as_they_are_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    layers = dense(2, 6, 1)
    critic, steepest = chain(layers, "relu"), steepest_pattern(layers, 0.0, 1.0)
    monkeypatch.setattr(tighter, "ENTRIES", 6 * 6)
    improved = below(critic)
    monkeypatch.setattr(tighter, "ENTRIES", 6 * 6 - 1)
    chosen = below(critic)
    assert steepest <= improved < 0.97 * chosen
    assert chosen <= product(critic) * (1 + 1e-5)
