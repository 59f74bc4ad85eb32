"""The search for the steepest slope, with critics whose slope is known everywhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.lipschitz import steepest_slope
from models.lipschitz.bracket import _rounding

Score = Callable[[Tensor], Tensor]


def normal(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.manual_seed(seed))


def on_a_sphere(x: Tensor) -> Tensor:
    """Slope 1 at distance 12 from the origin, and less everywhere else."""
    return torch.tanh(torch.linalg.vector_norm(x, dim=1) - 12)


def at_a_point(x: Tensor) -> Tensor:
    """Slope 1 where the first coordinate is 4 and the others are 0, and less everywhere else."""
    return torch.tanh(x[:, 0] - 4) / (1 + x[:, 1:].square().sum(1)).sqrt()


def test_everything_is_made_on_the_device_of_the_starts() -> None:
    """Tensors of the device without memory refuse to meet those of the CPU, as a card's do."""
    assert steepest_slope(on_a_sphere, torch.ones(9, 3, device="meta"), steps=0) == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("critic", "count", "size", "near"), [(on_a_sphere, 4, 20, 0.998), (at_a_point, 30, 6, 0.99)]
)
def test_the_steepest_place_is_found_far_from_the_starts(
    critic: Score, count: int, size: int, near: float, seed: int
) -> None:
    starts = normal(count, size, seed)
    assert near < steepest_slope(critic, starts) <= 1 + 1e-9


@pytest.mark.parametrize("critic", [on_a_sphere, at_a_point])
def test_a_slope_is_in_units_of_the_score_and_of_the_input(critic: Score) -> None:
    """In other units, by powers of two, each number is that much larger or smaller, exactly."""
    starts, found = normal(40, 6), []
    for score, size in ((1, 1), (2.0**9, 1), (1, 2.0**-20), (-(2.0**-9), 2.0**20)):
        torch.manual_seed(0)
        in_units = steepest_slope(lambda x: score * critic(x / size), starts * size, steps=8)  # noqa: B023
        found.append(in_units * size / abs(score))
    assert found == [found[0]] * 4


def test_pairs_begin_a_hundredth_to_ten_deviations_apart() -> None:
    starts, seen = 5 * normal(31, 4), list[Tensor]()

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum(1)

    steepest_slope(watched, starts, steps=1)
    first, second = seen[0].chunk(2)
    assert torch.equal(first, starts)
    apart = torch.linalg.vector_norm(first - second, dim=1) / starts.std()
    expected = 10 ** torch.linspace(-2, 1, 31, dtype=torch.float64)
    torch.testing.assert_close(apart, expected)


def test_pairs_on_a_flat_piece_do_not_hinder_the_others() -> None:
    """Half of the starts lie where the score is 0; there, a pair has no difference to climb."""
    starts = normal(96, 6)
    starts[::2, 0] -= 50
    critic = lambda x: torch.tanh((x[:, 0] + 20).relu() - 24)  # noqa: E731
    assert steepest_slope(critic, starts) > 1 - 1e-9


def test_the_last_place_of_a_score_is_no_slope_however_close_the_points() -> None:
    """Of a flat critic, whose scores are off by 1e-13, the points of a pair meet."""
    off = lambda x: ((x + 1000) - 1000 - x).sum(1)  # noqa: E731
    starts = normal(30, 3)
    assert 0 < off(starts).abs().max() < 1e-12
    assert steepest_slope(off, starts) < 1e-7


def test_the_rounding_of_a_difference_of_scores() -> None:
    """In float32, 2^24 + 3 is 2^24 + 4; of float64 that is as if 2^-29 were lost.

    A difference has the error of two scores, and eight times what was measured is allowed for.
    """

    class Cancelling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, 0] + 2.0**24) - 2.0**24

    points = torch.full((2, 1), 3.0, dtype=torch.float64)
    assert _rounding(Cancelling(), points) == 2 * 8 * (2.0**-29 + 3 * 2.0**-52)
