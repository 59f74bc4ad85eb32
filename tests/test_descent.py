"""Minimisation by L-BFGS: against closed forms, dense algebra, and functions that end somewhere."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from models.lipschitz import descent
from models.lipschitz.descent import ENOUGH, FIRST, LONGEST, MEMORY, SHORTEST, _newton, minimised

Value = Callable[[Tensor], Tensor | None]


class Watched:
    """A function with its gradient, which keeps the points that it was asked at."""

    def __init__(self, value: Value) -> None:
        self.value = value
        self.points: list[Tensor] = []

    def __call__(self, x: Tensor) -> tuple[float, Tensor] | None:
        self.points.append(x.clone())
        x = x.clone().requires_grad_()
        value = self.value(x)
        if value is None:
            return None
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient


def at(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def bowl(x: Tensor) -> Tensor:
    """Steep on one axis, lowest at (1, -2, 0.5)."""
    return (at(1, 30, 5) * (x - at(1, -2, 0.5)) ** 2).sum()


def valley(x: Tensor) -> Tensor:
    """Rosenbrock's, a tenth as high."""
    return 10 * (x[1] - x[0] ** 2) ** 2 + 0.1 * (1 - x[0]) ** 2


def inside(x: Tensor) -> Tensor | None:
    """Defined between 0 and 1 in every direction, lowest at 0.5 of each."""
    return None if (x <= 0).any() or (x >= 1).any() else -(x.log() + (1 - x).log()).sum()


def falling(slope: float) -> Value:
    """A plane, which has no lowest point."""
    return lambda x: slope * x.sum()


@pytest.mark.parametrize(
    ("value", "start", "lowest"),
    [
        (bowl, at(0, 0, 0), at(1, -2, 0.5)),
        (bowl, at(4, 3, -9), at(1, -2, 0.5)),
        (inside, at(0.999, 0.001, 0.3), at(0.5, 0.5, 0.5)),
        (lambda x: x.cosh().sum(), at(3, -2), at(0, 0)),
    ],
)
def test_the_lowest_point_is_found(value: Value, start: Tensor, lowest: Tensor) -> None:
    found = minimised(Watched(value), start, 100)
    torch.testing.assert_close(found, lowest, rtol=0, atol=0.02)


def test_it_is_about_as_good_as_scipy_s() -> None:
    """The same method with another search: of a narrow valley, within the same evaluations."""
    watched = Watched(valley)
    found = minimised(watched, at(-1.2, 1), 200)
    theirs = scipy.optimize.minimize(
        lambda x: valley(torch.from_numpy(x)).item(), np.array([-1.2, 1]), method="L-BFGS-B",
        jac=lambda x: torch.func.grad(valley)(torch.from_numpy(x)).numpy(),
        options={"maxcor": MEMORY, "ftol": ENOUGH},
    )  # fmt: skip
    assert valley(found) <= 0.002
    assert len(watched.points) <= 3 * theirs.nfev


def test_steps_are_no_longer_than_allowed_and_the_first_is_short() -> None:
    for slope in (1e-4, 1.0, 1e6):
        watched = Watched(falling(slope))
        found = minimised(watched, at(0, 0), 5)
        moves = [(b - a).abs().max() for a, b in itertools.pairwise(watched.points)]
        assert moves[0].item() == pytest.approx(min(FIRST, slope / 1e-3))
        assert max(moves) <= LONGEST * (1 + 1e-12)
        assert (found < 0).all()
    watched = Watched(lambda x: (x**4).sum())  # later steps would be longer
    minimised(watched, at(90, 1), 40)
    moves = [(b - a).abs().max() for a, b in itertools.pairwise(watched.points)]
    assert max(moves).item() == pytest.approx(LONGEST)


@pytest.mark.parametrize("most", range(6))
def test_no_more_is_asked_than_may_be(most: int) -> None:
    """The point is one that was asked, and never higher than the start."""
    for value in (bowl, inside):
        watched = Watched(value)
        start = at(0.2, 0.9, 0.1)
        found = minimised(watched, start, most)
        assert len(watched.points) == most
        assert any(torch.equal(found, point) for point in [start, *watched.points])
        assert value(found) <= value(start)  # type: ignore[operator]
        if most < 2:
            assert torch.equal(found, start)
        else:
            assert value(found) < value(start)  # type: ignore[operator]


def test_where_it_is_not_defined_or_flat_it_stays() -> None:
    start = at(2, 2)
    assert torch.equal(minimised(Watched(lambda x: None), start, 9), start)
    flat = Watched(lambda x: 0 * x.sum())
    assert torch.equal(minimised(flat, start, 9), start)
    assert len(flat.points) == 1


def test_a_search_halves_its_step_and_ends() -> None:
    """Nothing but the start is defined: steps become half as long, down to the shortest."""
    watched = Watched(lambda x: x.sum() if len(watched.points) == 1 else None)
    assert torch.equal(minimised(watched, at(0, 0), 100), at(0, 0))
    lengths = [FIRST * 0.5**i for i in range(100) if 0.5**i > SHORTEST]
    expected = torch.stack([at(-length, -length) for length in lengths])
    torch.testing.assert_close(torch.stack(watched.points[1:]), expected)
    for most in (2, 4):
        watched.points.clear()
        minimised(watched, at(0, 0), most)
        assert len(watched.points) == most


@pytest.mark.parametrize(("height", "is_taken"), [(0.5, False), (1.5, True)])
def test_a_step_that_lowers_too_little_is_shortened(height: float, is_taken: bool) -> None:
    """Armijo's rule: at least a ten thousandth of what the gradient promises, here 0.3."""

    def value(x: Tensor) -> Tensor:
        step = -x[0]
        return x[0] if step < 0.01 else x[0] * 0 - height * 1e-4 * step

    assert (minimised(Watched(value), at(0), 2) < 0).item() == is_taken


@pytest.mark.parametrize(("slope", "is_last"), [(0.9, True), (1.2, False)])
def test_a_step_that_lowers_hardly_is_the_last(slope: float, is_last: bool) -> None:
    watched = Watched(lambda x: slope * ENOUGH / FIRST * x.sum())
    # The first step is no longer than a thousand times the gradient.
    assert slope * ENOUGH / FIRST > 0.9 * FIRST * 1e-3
    minimised(watched, at(0), 20)
    assert (len(watched.points) == 2) == is_last


def dense_inverse(steps: list[Tensor], changes: list[Tensor]) -> np.ndarray:
    """The inverse Hessian of BFGS as a matrix (Nocedal & Wright 2006, equation 7.16)."""
    pairs = [(s.numpy(), y.numpy()) for s, y in zip(steps, changes, strict=True)]
    s, y = pairs[-1]
    inverse = np.eye(len(s)) * (s @ y) / (y @ y)
    for s, y in pairs:
        left = np.eye(len(s)) - np.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
    return inverse


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_direction_is_the_gradient_by_the_inverse_hessian_of_bfgs(count: int) -> None:
    torch.manual_seed(count)
    gradient, *steps = torch.randn(1 + count, 4, dtype=torch.float64)
    hessian = torch.diag(at(1, 2, 3, 40))
    changes = [hessian @ step for step in steps]
    expected = dense_inverse(steps, changes) @ gradient.numpy()
    np.testing.assert_allclose(_newton(gradient, steps, changes).numpy(), expected, rtol=1e-9)


def test_curvature_below_zero_is_left_out_and_only_the_last_pairs_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def watched(gradient: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
        seen.append((steps, changes))
        return _newton(gradient, steps, changes)

    monkeypatch.setattr(descent, "_newton", watched)
    point = Watched(lambda x: -(x**2).sum() / 2)  # it curves downwards everywhere
    minimised(point, at(1), 9)
    assert all(steps == [] for steps, _ in seen)
    seen.clear()
    bent = Watched(lambda x: x.cosh().sum() + 10 * (x[0] - x[1]) ** 2 + (3 * x[2]).exp())
    minimised(bent, at(30, -10, 2), 120)
    assert max(len(steps) for steps, _ in seen) == MEMORY
    asked = [bent(point) for point in bent.points[:2]]
    for number, (steps, changes) in enumerate(seen):
        assert len(steps) == len(changes) <= number
        for step, change in zip(steps, changes, strict=True):
            assert step @ change > 0
    steps, changes = seen[1]  # after the first step, which was taken as it was
    torch.testing.assert_close(steps, [bent.points[1] - bent.points[0]])
    torch.testing.assert_close(changes, [asked[1][1] - asked[0][1]])  # type: ignore[index]
