"""Envelopes of cones: steep at most 1 everywhere, and as near to any such function as one likes."""

import copy
import math

import pytest
import torch

from models.lipschitz import gradient_norms, lipschitz_bracket
from models.networks.cones import COPY_DISTANCE, MAX_CONES, MIN_DISTANCE, REACHES, ROWS, Cones


def cones(dimension: int, seed: int = 0) -> Cones:
    source = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 64, dimension, generator=source)
    return Cones.between(a + 1, b)


def test_scores_are_those_of_the_formula() -> None:
    critic = cones(3).double()
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tips, t = critic.tips * critic.reach[:, None], critic.log_temperature.exp()
    terms = (critic.heights - torch.cdist(x, tips, compute_mode="donot_use_mm_for_euclid_dist")) / t
    torch.testing.assert_close(critic(x), t * terms.exp().sum(dim=1).log())
    assert torch.autograd.gradcheck(critic, x.requires_grad_())


@pytest.mark.parametrize("dimension", [1, 2, 30])
def test_no_slope_is_above_one_however_the_parameters_lie(dimension: int) -> None:
    critic = cones(dimension)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source))
    points = torch.cat([5 * torch.randn(500, dimension, generator=source), critic.tips.detach()])
    norms = gradient_norms(critic.double(), points.double())
    assert torch.isfinite(norms).all()
    assert norms.max() <= 1 + 1e-9
    bracket = lipschitz_bracket(critic.float(), points[:200], points[200:400])
    assert 0.5 < float(str(bracket.sampled)) <= float(str(bracket.certified)) < 1 + 1e-5


def test_all_cones_have_one_mean_at_the_start() -> None:
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 64, 5, generator=source)
    critic = Cones.between(a, b)
    tips = critic.tips * critic.reach[:, None]
    means = (critic.heights - torch.cdist(torch.cat([a, b]), tips)).mean(dim=0)
    torch.testing.assert_close(means, torch.zeros(64), atol=1e-3, rtol=0)


def test_idle_cones_share_the_work_of_others_and_scores_hardly_move() -> None:
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 20, generator=source)
    critic, x = Cones.between(a + 1, b), torch.cat([a + 1, b])
    with torch.no_grad():
        critic.log_temperature.fill_(-5)
        critic.heights[2:] -= 100  # these are nowhere highest

    def shares() -> torch.Tensor:
        heights = critic.heights.detach().clone().requires_grad_()
        scores = torch.func.functional_call(critic, {"heights": heights}, (x,))
        return torch.autograd.grad(scores.mean(), heights)[0]

    before = critic(x).detach()
    assert (shares() > 0.02 / 256).sum() == 2
    torch.manual_seed(1)
    average = copy.deepcopy(critic)
    critic.split(x, average)
    assert (shares() > 0.02 / 256).sum() > 30
    torch.testing.assert_close(average(x), critic(x))
    distance = torch.cdist(x, critic.tips[:2] * critic.reach[:2, None]).mean()
    assert (critic(x) - before).abs().max() < 0.1 * distance
    assert gradient_norms(critic, x).max() <= 1 + 1e-5
    # And where none is idle, nothing is done.
    with torch.no_grad():
        critic.log_temperature.fill_(1)
    kept = {name: value.clone() for name, value in critic.state_dict().items()}
    critic.split(x, average)
    for name, value in critic.state_dict().items():
        assert torch.equal(value, kept[name])


def test_a_plane_scores_along_the_difference_of_the_means() -> None:
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5000, 4, generator=source)
    a[:, 0] += 2
    critic = Cones.along(a, b)
    distance = torch.linalg.vector_norm(a.mean(dim=0) - b.mean(dim=0)).item()
    assert (critic(a).mean() - critic(b).mean()).item() == pytest.approx(distance, rel=2e-3)


def formula(critic: Cones, x: torch.Tensor) -> torch.Tensor:
    tips, t = critic.tips * critic.reach[:, None], critic.log_temperature.exp()
    distances = (x[:, None] - tips).norm(dim=2)
    return t * torch.logsumexp((critic.heights - distances) / t, dim=1)


@pytest.mark.parametrize("learned", [("tips",), ("heights",), ("tips", "heights")])
def test_gradients_are_those_of_the_formula(learned: tuple[str, ...]) -> None:
    """Of every parameter, and of those alone that are learned; of more samples than one part."""
    critic = cones(3).double()
    for name in ("tips", "heights"):
        getattr(critic, name).requires_grad_(name in learned)
    source = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(ROWS + 50, 3, dtype=torch.float64, generator=source)
    weights = torch.randn(len(x), dtype=torch.float64, generator=source)
    parameters = [p for p in critic.parameters() if p.requires_grad]
    assert len(parameters) == len(learned) + 1
    found = torch.autograd.grad(critic(x) @ weights, parameters)
    right = torch.autograd.grad(formula(critic, x) @ weights, parameters)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


def test_scores_in_float64_are_exact_far_from_the_origin() -> None:
    critic = cones(3).double()
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    near = critic(x)
    with torch.no_grad():
        critic.tips += 1e7 / critic.reach[:, None]
    torch.testing.assert_close(critic(x + 1e7), near, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tip_is_blunt(dtype: torch.dtype) -> None:
    critic = Cones(torch.zeros(1, 2), torch.ones(1), torch.zeros(1)).to(dtype)
    x = torch.tensor([[0.0, 0.0], [MIN_DISTANCE / 2, 0.0], [0.0, 3 * MIN_DISTANCE]], dtype=dtype)
    wanted = torch.tensor([-1.0, -1.0, -3.0], dtype=dtype) * MIN_DISTANCE
    torch.testing.assert_close(critic(x), wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("count", [1, 7, 64, MAX_CONES + 9])
def test_cones_stand_on_samples_and_far_away_towards_a(count: int) -> None:
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, count, 3, generator=source)
    a += 2
    b[-1] = a[-1]  # which has no direction
    critic = Cones.between(a, b)
    number = min(count, MAX_CONES)
    near = number // 2
    assert critic.tips.shape == (number, 3)
    torch.testing.assert_close(critic.tips[:near], a[:near])
    assert (critic.reach[:near] == 1).all()
    outer = critic.tips[near:]
    radius = (a[:number] - a[:number].mean(dim=0)).norm(dim=1).mean()
    wanted = torch.nn.functional.normalize(a - b)[near:number] * radius
    torch.testing.assert_close(outer, wanted)
    torch.testing.assert_close(
        critic.reach[near:], torch.tensor([REACHES[i % 4] for i in range(number - near)])
    )


@pytest.mark.parametrize("dimension", [1, 4])
def test_a_plane_s_tip_is_far_beyond_all_samples(dimension: int) -> None:
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, dimension, generator=source)
    a += 5
    critic = Cones.along(a, b)
    size = torch.cat([a, b]).norm(dim=1).max()
    direction = torch.nn.functional.normalize(a.mean(dim=0) - b.mean(dim=0), dim=0)
    torch.testing.assert_close(critic.tips, size * direction[None])
    assert critic.reach.item() >= 100
    # A score is the way along that direction, from 0 at the origin on.
    x = torch.cat([torch.zeros(1, dimension), a])
    torch.testing.assert_close(critic(x), x @ direction, rtol=0, atol=0.02 * size.item())
    assert torch.isfinite(Cones.along(a, a)(a)).all(), "of no direction"


def test_a_copy_stands_beside_its_original() -> None:
    """At a tenth of the distance of its samples, whatever its reach."""
    tips, reach = torch.zeros(30, 400), torch.full((30,), 20.0)
    tips[0, 0] = 1
    heights = torch.full((30,), -100.0)
    heights[0] = 0  # this one does all the work
    critic = Cones(tips, reach, heights)
    x = torch.randn(100, 400, generator=torch.Generator().manual_seed(0))
    far = torch.cdist(x, 20 * tips[:1]).mean()
    torch.manual_seed(0)
    critic.split(x, copy.deepcopy(critic))
    assert torch.equal(critic.tips[0], tips[0])
    aside = 20 * (critic.tips[1:] - tips[0])
    torch.testing.assert_close(
        aside.norm(dim=1), (COPY_DISTANCE * far).expand(29), rtol=0.15, atol=0
    )


@pytest.mark.parametrize(("share", "is_idle"), [(0.009, True), (0.011, False)])
def test_a_cone_is_idle_below_a_fiftieth_of_an_even_share(share: float, is_idle: bool) -> None:
    critic = Cones(torch.zeros(2, 3), torch.ones(2), torch.zeros(2))
    with torch.no_grad():
        critic.heights[1] = critic.log_temperature.exp() * math.log(share / (1 - share))
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    critic.split(x, copy.deepcopy(critic))
    assert bool(critic.tips.any()) == is_idle


def test_images_are_flattened() -> None:
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, 1, 4, 4, generator=source)
    assert Cones.between(a, b)(a).shape == (8,)
