"""Envelopes of cones: steep at most 1 everywhere, and as near to any such function as one likes."""

import copy

import pytest
import torch

from models.lipschitz import gradient_norms, lipschitz_bracket
from models.networks.cones import Cones


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


def test_images_are_flattened() -> None:
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, 1, 4, 4, generator=source)
    assert Cones.between(a, b)(a).shape == (8,)
