"""Optimisers against their papers' formulas and closed forms, rates, and lazy penalties."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmarks.optimisers import BEGIN, END, PAGE, RESULTS, merged, shown
from models.config import Config
from models.constraints import LipschitzPenalty
from models.errors import ConfigError
from models.training import TrainingConfig
from tests.artifacts import tiny_config
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.engine.optimisers import (
    OPTIMIZERS,
    ExtraAdam,
    OptimisticAdam,
    cosine,
    learning_rate,
    make_optimizers,
    set_learning_rates,
)
from training.engine.runs import Diverged
from training.presets import branch_config, build_config

CPU = torch.device("cpu")
Array = np.ndarray
RATE, BETAS, EPS = 0.01, (0.5, 0.9), 1e-8


def test_each_optimiser_that_may_be_set_is_made() -> None:
    assert set(get_args(TrainingConfig.model_fields["optimizer"].annotation)) == set(OPTIMIZERS)


# ---- one player: the formulas of the papers -----------------------------------------------------


class Moments:
    """Adam's direction for one gradient after another (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self) -> None:
        self.mean, self.square, self.count = np.zeros(3), np.zeros(3), 0

    def __call__(self, gradient: Array) -> Array:
        self.count += 1
        self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * gradient
        self.square = BETAS[1] * self.square + (1 - BETAS[1]) * gradient**2
        mean, square = (
            moment / (1 - beta**self.count)
            for moment, beta in zip((self.mean, self.square), BETAS, strict=True)
        )
        return mean / (np.sqrt(square) + EPS)


def optimistic(start: Array, gradient: Callable[[Array], Array], steps: int) -> list[Array]:
    """Daskalakis et al. 2018, algorithm 1."""
    found, direction, before = [start], Moments(), np.zeros(3)
    for _ in range(steps):
        now = direction(gradient(found[-1]))
        found.append(found[-1] - 2 * RATE * now + RATE * before)
        before = now
    return found[1:]


def extrapolated(start: Array, gradient: Callable[[Array], Array], steps: int) -> list[Array]:
    """Gidel et al. 2019, algorithm 4, option 1; after each gradient."""
    found, direction = [start], Moments()
    for _ in range(steps // 2):
        begin = found[-1]
        found.append(begin - RATE * direction(gradient(begin)))
        found.append(begin - RATE * direction(gradient(found[-1])))
    return found[1:]


@pytest.mark.parametrize(
    ("made", "formula"), [(OptimisticAdam, optimistic), (ExtraAdam, extrapolated)]
)
def test_steps_are_those_of_the_paper(
    made: type[torch.optim.Adam], formula: Callable[..., list[Array]]
) -> None:
    start = np.array([1.0, -2.0, 0.5])
    expected = formula(start, lambda x: np.cos(3 * x) * x + 0.1, 8)
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = made([weight], RATE, BETAS, EPS, fused=True)
    for values in expected:
        optimizer.zero_grad()
        x = weight.detach()
        weight.grad = torch.cos(3 * x) * x + 0.1
        optimizer.step()
        np.testing.assert_allclose(weight.detach().numpy(), values, rtol=1e-6)  # fused: fp32 inside


def test_a_weight_without_a_gradient_stays_where_it_is() -> None:
    for made in (OptimisticAdam, ExtraAdam):
        used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = made([used, unused], RATE, BETAS, fused=True)
        for _ in range(3):
            used.grad = torch.ones(2)
            optimizer.step()
        assert torch.equal(unused, torch.ones(2))
        assert not torch.equal(used, torch.ones(2))
        before, used.grad = used.detach().clone(), None
        optimizer.step()  # Adam does nothing either
        assert torch.equal(used, before)


# ---- two players: min over x, max over y, of x y ------------------------------------------------

LARGE = 1e9
"""As Adam's epsilon it outweighs the gradients: with a first beta of 0 the direction is the
gradient over it, so that a rate as much larger makes plain gradient steps."""


def played(
    make: Callable[[Tensor], torch.optim.Optimizer], steps: int, alternating: bool = False
) -> list[float]:
    """Distances from the solution (0, 0), before the first step and after each."""
    x, y = (nn.Parameter(torch.tensor([1.0], dtype=torch.float64)) for _ in range(2))
    first, second = make(x), make(y)
    found = [math.hypot(x.item(), y.item())]
    for _ in range(steps):
        x.grad, y.grad = y.detach().clone(), -x.detach().clone()
        first.step()
        if alternating:
            y.grad = -x.detach().clone()
        second.step()
        found.append(math.hypot(x.item(), y.item()))
    return found


def plain_steps(made: type[torch.optim.Adam], rate: float) -> Callable[[Tensor], Any]:
    return lambda w: made([w], rate * LARGE, (0.0, 0.9), LARGE, fused=True)


RATES = (0.1, 0.3)


@pytest.mark.parametrize("rate", RATES)
def test_gradient_steps_leave_the_solution_of_a_bilinear_game(rate: float) -> None:
    found = played(plain_steps(torch.optim.Adam, rate), 50)
    factors = [after / before for before, after in itertools.pairwise(found)]
    assert factors == pytest.approx([math.sqrt(1 + rate**2)] * 50, rel=1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_optimism_contracts_a_bilinear_game_as_its_closed_form(rate: float) -> None:
    """With z = x + i y: z_(t+1) = (1 + 2 i rate) z_t - i rate z_(t-1), whose larger root has the
    squared modulus (1 + sqrt(1 - 4 rate^2)) / 2."""
    found = played(plain_steps(OptimisticAdam, rate), 400)
    factor = (found[400] / found[300]) ** 0.01
    assert factor == pytest.approx(math.sqrt((1 + math.sqrt(1 - 4 * rate**2)) / 2), rel=1e-5)
    assert factor < 1


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("alternating", [False, True])
def test_extrapolation_contracts_a_bilinear_game_as_its_closed_form(
    rate: float, alternating: bool
) -> None:
    """In two steps z becomes (1 + i rate - rate^2) z. One after the other, as the critic and its
    generator: the determinant of the map is 1 - rate^2, and its eigenvalues are conjugate."""
    found = played(plain_steps(ExtraAdam, rate), 400, alternating)
    squared = 1 - rate**2 if alternating else 1 - rate**2 + rate**4
    factor = (found[400] / found[200]) ** 0.01
    if alternating:  # the two players go round an ellipse
        assert factor == pytest.approx(math.sqrt(squared), rel=1e-2)
    else:
        assert factor == pytest.approx(math.sqrt(squared), rel=1e-5)


def test_adam_circles_the_solution_and_the_others_come_close() -> None:
    """As close as steps can that do not shrink."""

    def last(kind: type[torch.optim.Adam]) -> list[float]:
        return played(lambda w: kind([w], RATE, (0.0, 0.99), fused=True), 4000)[-1000:]

    assert min(last(torch.optim.Adam)) > 25 * RATE
    for made in (OptimisticAdam, ExtraAdam):
        assert max(last(made)) < 5 * RATE, made


# ---- rates: two of them, and how they fall ------------------------------------------------------


@pytest.fixture(scope="module")
def points() -> Dataset:
    return load_data(tiny_config("vector").data)


def config_of(constraint: dict[str, Any] | None = None, **training: Any) -> Config:
    own = {"optimizer": "adam", "learning_rate": 1e-3, "betas": (0.5, 0.9)}
    own |= {"critic_step": "eager"}  # to capture it takes longer than a few steps
    return tiny_config("vector", constraint=constraint or {}, training={**own, **training})


def run(config: Config, data: Dataset, folder: Path) -> TrainingState:
    return train(config, data, folder, CPU)[0]


def test_equal_rates_are_one_rate(points: Dataset, tmp_path: Path) -> None:
    one, two = (
        run(config_of(critic_learning_rate=rate, decay_from=0.5), points, tmp_path / str(rate))
        for rate in (None, 1e-3)
    )
    states = one.tensors(), two.tensors()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("stacked", [False, True])
def test_each_network_moves_at_its_own_rate(stacked: bool, points: Dataset, tmp_path: Path) -> None:
    """In Adam's first step nearly all weights move by the rate, whatever their gradients."""
    mode = "auto" if stacked else "eager"  # no other mode is stacked
    config = config_of(critic_learning_rate=4e-3, steps=1, num_critic_steps=1, critic_step=mode)
    assert config.model_dump()["training"]["critic_learning_rate"] == 4e-3
    start = run(
        config.model_copy(
            update={
                "training": config.training.model_copy(
                    update={"learning_rate": 1e-30, "critic_learning_rate": 1e-30}
                )
            }
        ),
        points,
        tmp_path / "0",
    )
    if stacked:
        from training.engine.runs import no_watch
        from training.engine.stacked import train_together

        train_together([config], points, [tmp_path / "1"], [no_watch])
    end = run(config, points, tmp_path / "1")
    for network, rate in (("generator", 1e-3), ("critic", 4e-3)):
        pairs = zip(
            getattr(end, network).parameters(), getattr(start, network).parameters(), strict=True
        )
        moved = torch.cat([(a - b).detach().abs().flatten() for a, b in pairs])
        assert moved.max().item() == pytest.approx(rate, rel=1e-3)
        assert moved.median().item() == pytest.approx(rate, rel=1e-2)


def test_a_record_names_the_critic_s_rate_and_the_schedule_only_if_they_are_set() -> None:
    plain = config_of().model_dump(mode="json")
    assert not {"critic_learning_rate", "schedule"} & plain["training"].keys()
    assert "rescale_adam" not in plain["constraint"]
    again = config_of(critic_learning_rate=2e-3, schedule="cosine", decay_from=0.0)
    assert Config.model_validate_json(again.model_dump_json()) == again


def test_a_new_constraint_brings_one_rate_for_both() -> None:
    parent = config_of(critic_learning_rate=4e-3)
    assert branch_config(parent).training.critic_learning_rate == 4e-3
    assert branch_config(parent, None, "spectral_norm").training.critic_learning_rate is None


def test_a_cosine_begins_where_the_rate_falls_and_ends_at_zero() -> None:
    settings = config_of(steps=200, decay_from=0.5, schedule="cosine").training
    expected = [3.0, 3.0, 1.5 * (1 + math.sqrt(0.5)), 1.5, 1.5 * (1 - math.sqrt(0.5))]
    found = [learning_rate(settings, step, 3.0) for step in (0, 100, 125, 150, 175)]
    assert found == pytest.approx(expected)
    assert learning_rate(settings, 200, 3.0) == pytest.approx(0, abs=1e-15)
    assert [cosine(step, 6) for step in (0, 2, 3, 4, 6)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(("steps", "decay_from"), [(0, 1.0), (100, 1.0), (100, 0.9999), (1, 0.5)])
def test_a_cosine_without_steps_is_refused(steps: int, decay_from: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule: cosine begins at decay_from") as caught:
        config_of(schedule="cosine", steps=steps, decay_from=decay_from)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("steps", "decay_from"), [(0, 0.9999), (100, 0.99), (1, 0.0)])
def test_a_cosine_with_one_step_is_taken(steps: int, decay_from: float) -> None:
    config_of(schedule="cosine", steps=steps, decay_from=decay_from)


@pytest.mark.parametrize("own", [None, 4e-3])
def test_whoever_diverges_is_told_of_the_critic_s_rate_where_it_has_one(
    own: float | None, points: Dataset, tmp_path: Path
) -> None:
    config = config_of(divergence_gap=1e-12, critic_learning_rate=own)
    told = "training.critic_learning_rate and training.learning_rate" if own else "training.lear"
    with pytest.raises(Diverged, match=rf"Lower {told}"):
        train(config, points, tmp_path, CPU)


def test_both_rates_fall_alike() -> None:
    config = config_of(steps=10, decay_from=0.0, critic_learning_rate=4e-3)
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizers = make_optimizers(config, weights[:1], weights[1:])
    set_learning_rates(config.training, 5, *optimizers)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    assert rates == pytest.approx([5e-4, 2e-3])


# ---- lazy penalties -----------------------------------------------------------------------------

LAZY = {"kind": "lipschitz_penalty", "every": 4}


@pytest.mark.parametrize("kind", ["adam", "optimistic_adam", "extragradient"])
def test_a_lazy_penalty_rescales_the_critic_s_adam(kind: str) -> None:
    """Karras et al. 2020, appendix B: c = 4 / 5."""
    config = config_of({**LAZY, "rescale_adam": True}, optimizer=kind, critic_learning_rate=3e-3)
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    generator, critic = (
        o.param_groups[0] for o in make_optimizers(config, weights[:1], weights[1:])
    )
    assert (generator["lr"], generator["betas"]) == (1e-3, (0.5, 0.9))
    assert critic["lr"] == pytest.approx(0.8 * 3e-3)
    assert critic["betas"] == pytest.approx((0.5**0.8, 0.9**0.8))


def test_without_that_wish_nothing_is_rescaled(points: Dataset, tmp_path: Path) -> None:
    """The first moments of the same gradient: (1 - beta) of it, and of its square."""
    states = {
        wish: run(
            config_of({**LAZY, "rescale_adam": wish}, steps=1, num_critic_steps=1),
            points,
            tmp_path / str(wish),
        ).tensors()
        for wish in (False, True)
    }
    for name, power in (("exp_avg", 0.5), ("exp_avg_sq", 0.9)):
        key = f"critic_optimizer.0.{name}"
        ratio = (1 - power**0.8) / (1 - power)
        torch.testing.assert_close(states[True][key], ratio * states[False][key])
        key = f"generator_optimizer.0.{name}"
        assert states[True][key].shape == states[False][key].shape


def test_what_cannot_be_rescaled_is_refused() -> None:
    with pytest.raises(ValidationError, match="rescale_adam: is for lazy evaluation"):
        LipschitzPenalty(rescale_adam=True)
    with pytest.raises(ConfigError, match="rescale_adam: training") as caught:
        config_of({**LAZY, "rescale_adam": True}, optimizer="rmsprop")
    assert "\n" not in str(caught.value)
    built = build_config(
        "digits", None, None, {"constraint.every": 2, "constraint.rescale_adam": True}
    )
    assert built.constraint.adam_scale == pytest.approx(2 / 3)


# ---- the page -----------------------------------------------------------------------------------


def test_another_factor_takes_the_place_of_a_former_one_in_all_but_the_tuning() -> None:
    old, new = (
        {"task": "digits", "solver": "extragradient", "seed": 0, "factor": f} for f in (1, 2)
    )
    assert merged([old], [new]) == [new]
    assert merged([old], [new], "factor") == [old, new]


def test_the_page_has_the_tables_of_the_results() -> None:
    page = PAGE.read_text()
    assert f"{BEGIN}\n{shown(json.loads(RESULTS.read_text()))}{END}" in page
