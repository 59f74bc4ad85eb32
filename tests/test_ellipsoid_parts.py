"""Ellipsoids at one place, against closed forms, rational numbers and whole matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.lipschitz import ellipsoid, torus
from models.lipschitz.ellipsoid import (
    ROOM,
    SMALL_ROOM,
    Ellipsoid,
    Kept,
    Mode,
    Multipliers,
    _length,
    _slack,
)
from models.lipschitz.operators import NoBoundError
from models.networks.parts import Residual
from models.networks.skips import InputSkips
from tests.test_ellipsoids import below, matrix

Rows = list[list[Fraction]]


def numbers(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def multipliers(mode: Mode, *logs: list[float]) -> Multipliers:
    given = Multipliers()
    given.begin(mode, [numbers(*log) for log in logs])
    return given


def place_of(x: Tensor, given: Multipliers | None = None) -> Ellipsoid:
    """The place of a vector, or of maps of 4 x 4 on a torus of 8 x 8, with these matrices."""
    on_torus = len(x) > 1
    place = Ellipsoid(given or Multipliers(), *([(4, 4), (8, 8)] if on_torus else []))
    place.x = x.to(torch.complex128) if on_torus else x
    return place


# --- rational numbers -----------------------------------------------------------------------------


def rational(values: Tensor) -> Rows:
    return [[Fraction(value) for value in row] for row in values.tolist()]


def times(left: Rows, right: Rows) -> Rows:
    columns = transposed(right)
    return [[sum(map(Fraction.__mul__, a, b), Fraction()) for b in columns] for a in left]


def transposed(rows: Rows) -> Rows:
    return [list(column) for column in zip(*rows, strict=True)]


def inverse(rows: Rows) -> Rows:
    size = len(rows)
    work = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(rows)]
    for i in range(size):  # of positive definite matrices no pivot is 0
        work[i] = [value / work[i][i] for value in work[i]]
        for j in range(size):
            if j != i:
                work[j] = [a - work[j][i] * b for a, b in zip(work[j], work[i], strict=True)]
    return [row[size:] for row in work]


def is_above(found: Tensor, exact: Rows) -> bool:
    """Whether a matrix less an exact one is positive semidefinite, without any rounding."""
    both = zip(rational(found), rational(found.T), exact, strict=True)
    rows = [[(a + b) / 2 - c for a, b, c in zip(*row, strict=True)] for row in both]
    for i, row in enumerate(rows):
        if row[i] < 0 or (row[i] == 0 and any(row[i:])):
            return False
        for j in range(i + 1, len(rows)):
            if row[i]:
                rows[j] = [a - rows[j][i] / row[i] * b for a, b in zip(rows[j], row, strict=True)]
    return True


def test_what_products_lose_by_rounding_is_added() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(3, 5).double(), torch.randn(4, 3).double()
    place = Ellipsoid(Multipliers())
    place.dense(first)
    assert place.x is not None
    exact = times(rational(first), transposed(rational(first)))
    assert is_above(place.x[0], exact)
    torch.testing.assert_close(place.x[0], first @ first.T)
    before = rational(place.x[0])
    place.dense(second)
    whole = times(times(rational(second), before), transposed(rational(second)))
    assert is_above(place.x[0], whole)
    torch.testing.assert_close(place.x[0], second @ first @ first.T @ second.T)


def test_what_sums_of_waves_lose_by_rounding_is_added() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 2 * 16).double()
    place = Ellipsoid(Multipliers(), (4, 4), (8, 8))
    place.dense(weight)
    assert place.x is not None
    assert not place.torus
    assert is_above(place.x[0], times(rational(weight), transposed(rational(weight))))
    torch.testing.assert_close(place.x[0], weight @ weight.T)


@pytest.mark.parametrize("width", [4, 2])
@pytest.mark.parametrize("distance", [1 + 1.1 * ROOM, 1.5, 4.0])
def test_an_activation_is_held_as_by_its_formula_and_from_above(
    distance: float, width: int
) -> None:
    """With what is kept: ``S (X^-1 - C' T^-1 C)^-1 S + r^2 C' T C``, S the centres."""
    torch.manual_seed(0)
    root = torch.randn(4, 4).double()
    x = root @ root.T
    own = x[-width:, -width:]
    most = torch.linalg.eigvalsh(own)[-1] * distance
    least = (most / own.diagonal().mean()).log().item()
    logs = [least + 0.5 * i for i in range(width)]
    t, _ = multipliers("use", logs).above(own[None], 1.0, 1, False)
    place = place_of(x[None].clone(), multipliers("use", logs))
    place.kept = [Kept(4 - width, True)] if width < 4 else []
    place.bend(-0.25, 1.0)
    rows = inverse(rational(x))
    for i, value in enumerate(t.tolist(), start=4 - width):
        rows[i][i] -= 1 / Fraction(value)
    rows = inverse(rows)
    centre = [Fraction(1)] * (4 - width) + [Fraction(3, 8)] * width
    for i in range(4):
        rows[i] = [centre[i] * a * b for a, b in zip(centre, rows[i], strict=True)]
    for i, value in enumerate(t.tolist(), start=4 - width):
        rows[i][i] += Fraction(25, 64) * Fraction(value)
    assert place.x is not None
    assert is_above(place.x[0], rows)
    torch.testing.assert_close(place.x[0], numbers(*[[float(a) for a in row] for row in rows]))


def test_norms_are_those_of_each_whole_matrix() -> None:
    torch.testing.assert_close(_length(numbers([[3, 0], [4, 0]], [[0, 0], [1, 0]])), numbers(5, 1))


@pytest.mark.parametrize("shape", [(2, 1, 16), (1, 3, 2), (4, 2, 8)])
def test_rounding_of_a_product_is_below_what_is_said(shape: tuple[int, int, int]) -> None:
    """Higham 2002, section 3.5: ``n u |A| |B|`` with the unit roundoff u, half of epsilon."""
    left, right = torch.ones(shape).double(), 2 * torch.ones(shape).double().mT
    norms = math.sqrt(shape[1] * shape[2]) ** 2 * 2
    share = _slack(left, right).item() / norms
    assert shape[2] * 2**-53 < share < 1e-13


# --- multipliers ----------------------------------------------------------------------------------

TWO = torch.diag(numbers(4, 1))[None]
"""Its mean diagonal is 2.5."""


@pytest.mark.parametrize(
    ("ratio", "is_alone", "most"),
    [(1.0, False, 8), (0.5, False, 6), (2.0, True, 12)],
)
def test_a_chosen_multiplier_is_so_much_above_the_norm(
    ratio: float, is_alone: bool, most: float
) -> None:
    chosen = Multipliers()
    assert chosen.number == 0
    t, lower = chosen.above(TWO, ratio, 1, is_alone)
    torch.testing.assert_close(t, numbers(most, most), rtol=1e-9, atol=0)
    roots = numbers((1 - 4 / most) ** 0.5, (1 - 1 / most) ** 0.5)
    torch.testing.assert_close(lower[0], torch.diag(roots), rtol=1e-6, atol=1e-9)
    # What is improved begins there, or above it where it would begin at a barrier.
    (log,) = chosen.logs
    assert log.shape == (2,)
    beyond = log - math.log(most / 2.5)
    if is_alone:
        assert beyond.min() > 0.1
        assert chosen.barrier == pytest.approx(-2 * roots.log().mean().item())
    else:
        torch.testing.assert_close(beyond, torch.zeros(2).double())
        assert chosen.barrier == 0


@pytest.mark.parametrize(("is_alone", "room"), [(False, ROOM), (True, SMALL_ROOM)])
def test_a_multiplier_chosen_next_to_the_norm_proves_something(is_alone: bool, room: float) -> None:
    t, _ = Multipliers().above(TWO, 0.0, 1, is_alone)
    assert 4 * (1 + room) < t.min() == t.max() < 4 * (1 + 10 * room)


def test_a_barrier_is_the_mean_of_all_activations_determinants() -> None:
    """Less the mean of ``log det(1 - X / T)``: of channels and of frequencies, and they add up."""
    given = multipliers("use", [math.log(2)] * 2, [math.log(4)] * 2)  # T = 5, then 10
    given.above(TWO, 1.0, 1, True)
    first = -(math.log(1 - 4 / 5) + math.log(1 - 1 / 5)) / 2
    assert given.barrier.item() == pytest.approx(first)
    given.above(TWO, 1.0, 1, True)
    assert given.barrier.item() == pytest.approx(first - math.log((1 - 0.4) * (1 - 0.1)) / 2)


def test_channels_that_bend_together_have_one_multiplier() -> None:
    chosen = Multipliers()
    t, _ = chosen.above(torch.eye(5).double()[None], 1.0, 2, False)
    assert t.shape == (5,)
    assert chosen.logs[0].shape == (3,)
    used = multipliers("use", [1.0, 2.0, 3.0])
    t, _ = used.above(torch.eye(5).double()[None], 1.0, 2, False)
    torch.testing.assert_close(t, numbers(1, 1, 2, 2, 3).exp())


@pytest.mark.parametrize(
    ("mode", "is_alone", "is_least"),
    [("tighten", True, True), ("tighten", False, False), ("use", True, False)],
)
def test_multipliers_that_alone_count_become_as_small_as_may_be(
    mode: Mode, is_alone: bool, is_least: bool
) -> None:
    torch.manual_seed(0)
    root = torch.randn(2, 3, 3).double()
    x, logs = root @ root.mT, [3.0, 2.0, 2.5]
    t, lower = multipliers(mode, logs).above(x, 1.0, 1, is_alone)
    scale = x.diagonal(dim1=1, dim2=2).mean()
    share = t / (scale * numbers(*logs).exp())
    torch.testing.assert_close(share, share[:1].expand(3))
    if not is_least:
        torch.testing.assert_close(share, torch.ones(3).double())
    relative = x / (t[:, None] * t).sqrt()
    largest = torch.linalg.eigvalsh(relative).max().item()
    assert largest < 1
    assert (largest > 1 - 1e-5) == is_least
    # It proves what it says, up to the root of rounding where the factor is almost singular.
    proved = torch.eye(3).double() - relative
    torch.testing.assert_close(lower @ lower.mT, proved, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("share", "is_alone", "is_enough"),
    [(0.9, False, False), (1 + ROOM / 2, False, False), (1 + 2 * ROOM, False, True),
     (1 + ROOM / 2, True, True), (1 + SMALL_ROOM / 2, True, False),
     (1 + 3 * SMALL_ROOM, True, True)],
)  # fmt: skip
def test_multipliers_not_far_enough_above_prove_nothing(
    share: float, is_alone: bool, is_enough: bool
) -> None:
    given = multipliers("use", [math.log(share * 4 / 2.5)] * 2)
    if is_enough:
        given.above(TWO, 1.0, 1, is_alone)
    else:
        with pytest.raises(NoBoundError, match="the multipliers prove nothing"):
            given.above(TWO, 1.0, 1, is_alone)


@pytest.mark.parametrize("sector", [(0.0, 1.0), (-0.5, 1.0), (0.25, 1.0), (-1.0, 1.0), (-2.0, 0.5)])
def test_what_is_chosen_is_not_above_the_product_of_norms(sector: tuple[float, float]) -> None:
    """Of a multiple of the unit matrix it is the product itself, which no other choice reaches."""
    place = place_of(9 * torch.eye(3).double()[None])
    place.bend(*sector)
    product = 9 * max(abs(slope) for slope in sector) ** 2
    rounding = 1e-4 if sum(sector) == 0 else 1e-9
    assert product <= place.widest().item() <= product * (1 + rounding)


def test_a_vector_and_its_length_together_are_held_by_the_sum_of_both() -> None:
    """``x + abs(x)`` is as steep as 2; only a multiplier of twice the square proves it."""
    place = place_of(torch.eye(1).double()[None])
    place.keep(1)
    place.bend(-1.0, 1.0)
    place.change(2, lambda x: x[:1] + x[1:])
    assert 4 <= place.longest().item() <= 4 * (1 + 1e-9)


# --- bending --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "taken"),
    [((0.5, 1.0), (0.0, 1.0)), ((-2.0, -1.0), (-2.0, 0.0)), ((0.0, 0.25), (0.0, 0.25)),
     ((-0.3, 2.0), (-0.3, 2.0)), ((1.0, 1.0), (0.0, 1.0)), ((-1.0, -0.5), (-1.0, 0.0))],
)  # fmt: skip
@pytest.mark.parametrize("maps", [64, 1])
def test_outside_of_its_place_a_map_becomes_zero(
    given: tuple[float, float], taken: tuple[float, float], maps: int
) -> None:
    """So zero is among the slopes on a torus, and not elsewhere."""
    low, high = taken if maps > 1 else given
    centre, reach, t = (low + high) / 2, (high - low) / 2, 3 * math.e
    place = place_of((3 * torch.eye(2).double()).expand(maps, 2, 2), multipliers("use", [1.0] * 2))
    place.is_masked = False
    place.bend(*given)
    own = centre**2 / (1 / 3 - 1 / t) + reach**2 * t if reach else centre**2 * 3
    assert place.x is not None
    torch.testing.assert_close(place.x, (own * torch.eye(2)).expand(maps, 2, 2).to(place.x.dtype))
    assert place.is_masked


def test_what_is_zero_or_bends_alike_is_scaled() -> None:
    zero = place_of(torch.zeros(1, 2, 2).double())
    zero.bend(0.0, 1.0)
    assert zero.longest() == 0
    assert zero.multipliers.number == 0
    alike = place_of(TWO.clone())
    alike.bend(-3.0, -3.0)
    torch.testing.assert_close(alike.x, 9 * TWO)


def test_work_is_counted_and_refused_beyond_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_of(torch.eye(10).double()[None])
    monkeypatch.setattr(ellipsoid, "WORK", 2000)  # of two activations of ten channels
    place.bend(0.0, 1.0)
    place.bend(0.0, 1.0)
    assert place.multipliers.work == 2000
    assert place.multipliers.entries == 200
    with pytest.raises(NoBoundError, match="too large"):
        place.bend(0.0, 1.0)


# --- what is admitted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda place: place.dense(torch.ones(10, 12).double()), 10),
        (lambda place: place.dense(torch.ones(12, 10).double()), 12),
        (lambda place: place.channels(6), 6),
        (lambda place: known(place).dense(torch.ones(7, 6).double()), 7),
        (lambda place: known(place).change(2, lambda x: torch.cat([x, x, x])), 10),
        (lambda place: known(place).keep(6), 12),
    ],
)
def test_as_many_rows_are_admitted_as_there_will_be(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Ellipsoid], None], rows: int
) -> None:
    monkeypatch.setattr(ellipsoid, "LARGEST", rows**2)
    change(Ellipsoid(Multipliers()))
    monkeypatch.setattr(ellipsoid, "LARGEST", rows**2 - 1)
    with pytest.raises(NoBoundError, match="too large"):
        change(Ellipsoid(Multipliers()))


def known(place: Ellipsoid) -> Ellipsoid:
    place.x = torch.eye(6).double()[None]
    return place


@pytest.mark.parametrize(
    ("inputs", "outputs", "aside", "rows"),
    [(2, 3, None, 3), (4, 1, None, 4), (2, 3, 0, 3), (2, 1, 2, 4), (2, 3, 2, 5)],
)
def test_a_convolution_is_admitted_with_what_it_takes_and_gives(
    monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int, aside: int | None, rows: int
) -> None:
    """It is refused before its own matrices are made."""
    layer = nn.Conv2d(inputs, outputs, 1).double()
    for limit, refused in ((64 * rows**2, False), (64 * rows**2 - 1, True)):
        place = Ellipsoid(Multipliers(), (4, 4), (8, 8))
        if aside is not None:
            place.x = torch.eye(inputs + aside).to(torch.complex128).expand(64, -1, -1)
            place.kept = [Kept(aside, True)] if aside else []
        with monkeypatch.context() as patch:
            patch.setattr(ellipsoid, "LARGEST", limit)
            if refused:
                patch.setattr(torus, "symbol_of", lambda *_: pytest.fail("too late"))
                with pytest.raises(NoBoundError, match="too large"):
                    place.convolve(layer)
            else:
                place.convolve(layer)
                assert place.x is not None
                assert place.x.shape[1] == outputs + (aside or 0)


# --- maps beside the image ------------------------------------------------------------------------


def shifts(rows: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Maps of an image and of the image further down, and the difference of both in one place.

    It is 0, but in the last row: of the second map that is beside the image, where it is 0.
    """
    down = nn.Conv2d(1, 2, (2 * rows + 1, 1), padding=(rows, 0)).double()
    away = nn.Conv2d(2, 1, (3, 1), padding=(1, 0)).double()
    with torch.no_grad():
        down.weight.zero_()
        away.weight.zero_()
        down.weight[0, 0, rows], down.weight[1, 0, 0] = 1, 1
        away.weight[0, 0, 1], away.weight[0, 1, 2] = 1, -1
    return down, away


def nothing(inputs: int, outputs: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 1, bias=False).double()
    nn.init.zeros_(layer.weight)
    return nn.Sequential(layer, nn.ReLU())


def read_beside_the_image() -> Iterator[nn.Module]:
    down, away = shifts(1)
    yield nn.Sequential(down, away)
    yield nn.Sequential(down, Residual(nothing(2, 2), nn.Identity()), away)
    half, down_two = nn.AvgPool2d(2), shifts(2)[0]
    yield nn.Sequential(InputSkips([nn.Sequential(down_two, half)], [half], [nothing(1, 2)]), away)


@pytest.mark.parametrize("critic", list(read_beside_the_image()), ids=["alone", "block", "skips"])
def test_a_map_is_not_read_beside_its_image(critic: nn.Module) -> None:
    exact = torch.linalg.matrix_norm(matrix(critic, (1, 8, 8)), 2).item()
    assert exact > 0.49
    assert below(critic, (1, 8, 8)) >= exact


def test_where_only_the_slope_was_known_maps_end_with_their_image() -> None:
    place = Ellipsoid(Multipliers(), (4, 4), (8, 8))
    place.convolve(nn.Conv2d(1, 2, 3, padding=1).double())
    assert not place.is_masked
    place.become_ball(2.0)
    assert place.is_masked


@pytest.mark.parametrize("stride", [(2, 1), (1, 2)])
def test_a_stride_along_one_axis_counts_exactly(stride: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 2, stride).double()
    place = Ellipsoid(Multipliers(), (4, 4), (8, 8))
    place.convolve(layer)
    assert place.torus == (8 // stride[0], 8 // stride[1])
    assert place.size == (2 if stride[0] == 2 else 3, 2 if stride[1] == 2 else 3)
    head = torch.randn(3, 2 * math.prod(place.size)).double()
    exact = head @ matrix(layer, (2, 4, 4))
    place.dense(head)
    assert place.x is not None
    torch.testing.assert_close(place.x[0], exact @ exact.T)


def test_a_ball_of_maps_is_read_with_any_channels() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 3 * 16).double()
    place = Ellipsoid(Multipliers(), (4, 4), (8, 8))
    place.dense(weight)
    assert place.x is not None
    torch.testing.assert_close(place.x[0], weight @ weight.T)


# --- pools ----------------------------------------------------------------------------------------


def cut(pool: nn.AvgPool2d | None = None, kept: nn.AvgPool2d | None = None) -> Ellipsoid:
    """The place of three maps of 5 x 5, the first of them kept, after windows that may be cut."""
    torch.manual_seed(0)
    place = Ellipsoid(Multipliers(), (5, 5), (8, 8))
    place.convolve(nn.Conv2d(2, 3, 3, padding=1).double())
    place.kept = [Kept(1, False, kept)] if kept else []
    if pool:
        place.pool(pool)
    return place


def halves(**changes: Any) -> nn.AvgPool2d:
    return nn.AvgPool2d(**{"kernel_size": 2, "ceil_mode": True, **changes})


def test_windows_that_are_cut_are_held_by_the_least_multiple_of_the_mean() -> None:
    before, after = cut().x, cut(halves(), halves())
    assert before is not None
    assert after.x is not None
    assert (after.size, after.torus) == ((3, 3), (4, 4))
    assert after.is_masked
    assert after.kept == [Kept(1, True)]
    found = after.x[0]
    torch.testing.assert_close(after.x, found.expand(16, 3, 3))
    mean = before.mean(dim=0).real.to(found.dtype)
    torch.testing.assert_close(found / found[0, 0], mean / mean[0, 0])
    assert torch.linalg.eigvalsh(found - before).min() >= 0
    share = torch.linalg.eigvals(torch.linalg.solve(found, before)).abs().max().item()
    assert 1 - 1e-5 < share < 1


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_windows_that_are_cut_lengthen_nothing_that_is_alike_at_all_frequencies(
    size: float,
) -> None:
    """Of one map as two: no mean of its matrices has an inverse."""
    place = Ellipsoid(Multipliers(), (5, 5), (8, 8))
    layer = nn.Conv2d(1, 2, 1).double()
    nn.init.constant_(layer.weight, size)
    place.convolve(layer)
    place.pool(halves())
    # The last window is one position: the norm of both together is that of the layer.
    assert 2 * size**2 <= place.longest() <= 2 * size**2 * (1 + 1e-5)
    assert place.x is not None
    assert torch.linalg.eigvalsh(place.x).min() <= 1e-5 * size**2, "both are one map still"


BESIDE = "maps become smaller and what is kept beside does not"
UNKNOWN = "no ellipsoid is known of such a pool"


@pytest.mark.parametrize(
    ("pool", "kept", "says"),
    [
        (halves(), halves(ceil_mode=False), BESIDE),
        (halves(), halves(divisor_override=3), BESIDE),
        (halves(), halves(kernel_size=3, stride=2), BESIDE),
        (halves(), halves(kernel_size=2, stride=1), BESIDE),
        (halves(), halves(padding=1), BESIDE),
        (halves(kernel_size=3, stride=2), None, UNKNOWN),
        (halves(ceil_mode=False), None, UNKNOWN),
        (halves(kernel_size=3, stride=2, ceil_mode=False), None, UNKNOWN),
        (nn.AvgPool2d(5, padding=(1, 0)), None, UNKNOWN),
        (nn.AvgPool2d(5, padding=(0, 1)), None, UNKNOWN),
        (halves(padding=(1, 0)), None, UNKNOWN),
    ],
)
def test_pools_of_which_no_ellipsoid_is_known_are_refused(
    pool: nn.AvgPool2d, kept: nn.AvgPool2d | None, says: str
) -> None:
    with pytest.raises(NoBoundError, match=says):
        cut(pool, kept)


@pytest.mark.parametrize(
    "kept", [None, nn.AvgPool2d(4), nn.AvgPool2d(3, 2), nn.AvgPool2d(2, padding=1)]
)
def test_a_stride_beside_another_pool_is_refused(kept: nn.AvgPool2d | None) -> None:
    place = Ellipsoid(Multipliers(), (4, 4), (8, 8))
    place.keep(place.channels(2), kept)
    with pytest.raises(NoBoundError, match=BESIDE):
        place.convolve(nn.Conv2d(2, 2, 2, 2).double())
