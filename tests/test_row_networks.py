"""Rows of tables: networks obey every condition, conditions are met by their rows, and training."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.constraints import CONSTRAINTS
from models.lipschitz import certify, steepest_slope
from models.networks import CriticConfig, GeneratorConfig, build_critic, build_generator
from models.networks.conditional import WithLabels
from models.networks.rows import RestrictionSampler, RowHeads
from models.tables.layout import LARGEST_SCORE, Choice, Part, Value, place, restriction_width
from tests.artifacts import tiny_config
from training.data.batches import TrainingItems
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.engine.runs import Interrupted, begin, no_watch
from training.engine.stack import NotStackable
from training.engine.stacked import train_together
from training.engine.step import CriticStep
from training.engine.whole_step import PlainStep, WholeStep
from training.engine.workers import ALONE, Workers

CPU = torch.device("cpu")
PARTS: list[Part] = [Choice(3), Value(), Value(), Choice(2), Choice(3), Value()]
WIDTH, RESTRICTIONS = 11, 14


ROUNDING = 1e-6
"""Of a sum with the largest score, in float32."""


def assert_obeyed(parts: list[Part], codes: Tensor, restrictions: Tensor) -> None:
    """Rows lie in what restrictions allow."""
    for part, code, own in place(parts):
        found, limits = codes[:, code], restrictions[:, own]
        if isinstance(part, Choice):
            assert (found[limits > 0] == 0).all()
            torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))
            assert (found >= 0).all()
        else:
            assert (found[:, 0] >= limits[:, 0] - LARGEST_SCORE - ROUNDING).all()
            assert (found[:, 0] <= LARGEST_SCORE - limits[:, 1] + ROUNDING).all()


def real_rows(count: int, parts: list[Part], seed: int = 0) -> Tensor:
    """Codes of rows, with values at the ends of what there is among them."""
    source = torch.Generator().manual_seed(seed)
    pieces = []
    for part in parts:
        if isinstance(part, Choice):
            options = torch.randint(part.width, (count,), generator=source)
            pieces.append(torch.eye(part.width)[options])
        else:
            values = 2 * torch.randn(count, 1, generator=source)
            pieces.append(values.clamp(-LARGEST_SCORE, LARGEST_SCORE))
    return torch.cat(pieces, dim=1)


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.just(Value()), st.builds(Choice, st.integers(2, 5))), min_size=1),
    st.integers(0, 2**31 - 1),
    st.sampled_from([0.1, 1.0, 30.0, 1e4]),
)
def test_what_is_made_obeys_what_real_rows_meet(
    parts: list[Part], seed: int, spread: float
) -> None:
    torch.manual_seed(seed)
    rows = real_rows(20, parts, seed)
    restrictions = RestrictionSampler(parts, 1.0, CPU)(rows)
    assert restrictions.shape == (20, restriction_width(parts))
    assert_obeyed(parts, rows, restrictions)
    codes = RowHeads(parts)(spread * torch.randn(rows.shape), restrictions)
    assert_obeyed(parts, codes, restrictions)


@pytest.mark.parametrize("ends", [(-3.5, 3.5), (-3.5, -1.0), (1.0, 1.2), (3.0, 3.5), (0.5, 0.5)])
def test_a_normal_input_becomes_a_normal_within_the_ends(ends: tuple[float, float]) -> None:
    low, high = ends
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
    limits = torch.tensor([[low + LARGEST_SCORE, LARGEST_SCORE - high]], dtype=torch.float64)
    found = RowHeads([Value()])(x, limits.expand(41, 2))[:, 0].numpy()
    if low == high:
        assert (found == low).all()
        return
    expected = scipy.stats.truncnorm(low, high).ppf(scipy.stats.norm.cdf(x[:, 0].numpy()))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    if ends == (-LARGEST_SCORE, LARGEST_SCORE):
        np.testing.assert_allclose(found[5:-5], x[5:-5, 0].numpy(), atol=0.01)


def test_a_softmax_is_over_the_allowed_options() -> None:
    x = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64)
    forbidden = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    found = RowHeads([Choice(3)])(x, forbidden)
    powers = torch.exp(x / 0.5) * (1 - forbidden)
    torch.testing.assert_close(found, powers / powers.sum())


def test_each_part_has_its_own_inputs_and_its_place_in_a_code() -> None:
    """What comes in are numbers, then choices by their number of options."""
    heads = RowHeads(PARTS)
    assert not heads.state_dict(), "its indices are no weights"
    torch.manual_seed(0)
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    forbidden = torch.zeros(4, RESTRICTIONS, dtype=torch.float64)
    forbidden[:, 1] = forbidden[:, 11] = 1  # options of the first choice and of the last
    shares = {
        0: (x[:, 5:8], forbidden[:, 0:3]),
        3: (x[:, 3:5], forbidden[:, 7:9]),
        4: (x[:, 8:11], forbidden[:, 9:12]),
    }
    numbers = {1: x[:, 0:1], 2: x[:, 1:2], 5: x[:, 2:3]}
    found = heads(x, forbidden)
    start = 0
    for number, part in enumerate(PARTS):
        own = found[:, start : start + part.width]
        if number in numbers:
            torch.testing.assert_close(own, numbers[number], rtol=0, atol=0.01)
        else:
            logits, without = shares[number]
            powers = torch.exp(logits / 0.5) * (1 - without)
            torch.testing.assert_close(own, powers / powers.sum(dim=1, keepdim=True))
        start += part.width
    assert start == WIDTH


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_everywhere(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e6, -40.0, -6.0, 0.0, 6.0, 40.0, 1e6], dtype=dtype)
    x = x[:, None].repeat(4, WIDTH).requires_grad_()
    rows = real_rows(len(x), PARTS).to(dtype)
    torch.manual_seed(0)
    restrictions = RestrictionSampler(PARTS, 0.7, CPU)(rows)
    RowHeads(PARTS)(x, restrictions).square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    rows = real_rows(6, PARTS).double()
    restrictions = RestrictionSampler(PARTS, 0.5, CPU)(rows)
    x = torch.randn(6, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: RowHeads(PARTS)(x, restrictions), x)


def test_conditions_are_of_every_kind() -> None:
    torch.manual_seed(0)
    rows = real_rows(4000, PARTS)
    none = RestrictionSampler(PARTS, 0.0, CPU)(rows)
    assert not none.any()
    drawn = RestrictionSampler(PARTS, 0.5, CPU)(rows)
    assert 0.35 < drawn.any(dim=1).float().mean() < 0.5  # some drawn conditions allow everything
    number = drawn[:, 3:5]
    raised, lowered = number.T > 0
    assert min((raised & ~lowered).sum(), (lowered & ~raised).sum()) > 50
    interval = 2 * LARGEST_SCORE - number.sum(dim=1)
    assert (interval < 1e-5).sum() > 50
    assert ((interval > 0.1) & raised & lowered).sum() > 50
    forbidden = drawn[:, :3].sum(dim=1)
    assert min((forbidden == k).sum() for k in (1, 2)) > 50


def assert_share(found: Tensor, expected: float) -> None:
    """Of independent cases, within four standard deviations."""
    spread = (expected * (1 - expected) / found.numel()) ** 0.5
    assert abs(float(found.double().mean()) - expected) < 4 * spread


def test_how_many_parts_are_restricted_and_to_what() -> None:
    torch.manual_seed(0)
    count = 40_000
    rows = real_rows(count, PARTS).clamp(max=3, min=-3)
    places = list(place(PARTS))
    draw = RestrictionSampler(PARTS, 0.5, CPU)
    draw.exact = torch.ones(len(PARTS))  # so every restriction is seen
    drawn = draw(rows)
    assert_obeyed(PARTS, rows, drawn)
    is_restricted = torch.stack([drawn[:, p.restriction].any(dim=1) for p in places], dim=1)
    # Of a row under conditions each part is restricted with probability max(u^2, 1/6), u uniform.
    middle = 6**-0.5
    for number in range(len(PARTS)):
        assert_share(is_restricted[:, number], 0.5 * (middle / 6 + (1 - middle**3) / 3))
    assert_share(is_restricted.all(dim=1), 0.5 * (middle / 6**6 + (1 - middle**13) / 13))
    for number, (part, code, restriction) in enumerate(places):
        own = drawn[is_restricted[:, number], restriction]
        if isinstance(part, Choice):
            assert (own.sum(dim=1) == part.width - 1).all()
        else:
            value = rows[is_restricted[:, number], code][:, 0]
            torch.testing.assert_close(own[:, 0] - LARGEST_SCORE, value)
            torch.testing.assert_close(LARGEST_SCORE - own[:, 1], value)


def test_a_range_is_cut_by_one_value_or_two_and_each_other_option_dropped_or_not() -> None:
    torch.manual_seed(0)
    draw = RestrictionSampler([Value()], 1.0, CPU)
    draw.exact = torch.zeros(1)
    ends = draw(torch.ones(20_000, 1)) > 0
    assert ends.any(dim=1).all()
    # Two cuts half the time, of which two thirds lie below 1: each is uniform in [-3, 3].
    assert_share(ends.all(dim=1), 0.5 * 2 * (2 / 3) * (1 / 3))
    assert_share(ends[:, 0] & ~ends[:, 1], 0.5 * 2 / 3 + 0.5 * (2 / 3) ** 2)
    draw = RestrictionSampler([Choice(3)], 1.0, CPU)
    draw.exact = torch.zeros(1)
    dropped = draw(torch.eye(3)[torch.zeros(20_000, dtype=torch.long)]).sum(dim=1)
    for number in range(3):
        assert_share(dropped == number, 1 / 3)


def test_a_condition_is_as_likely_for_every_row_that_meets_it() -> None:
    """Else rows under a condition would be distributed otherwise than rows that meet it."""
    torch.manual_seed(0)
    values = torch.tensor([-1.0, 0.0, 1.0]).repeat(200_000)[:, None]
    raised, lowered = RestrictionSampler([Value()], 1.0, CPU)(values).T
    lowest, highest = raised - LARGEST_SCORE, LARGEST_SCORE - lowered
    inside = (lowest > -0.95) & (lowest < -0.05)
    for rest in (lowered == 0, (highest > 1.05) & (lowered > 0)):
        met = values[inside & rest, 0]
        assert (met >= 0).all()
        count = len(met)
        assert count > 1000
        assert abs(int((met == 1).sum()) - count / 2) < 4 * (count / 4) ** 0.5


def test_processes_draw_together_what_one_draws() -> None:
    rows = real_rows(8, PARTS)
    draw = RestrictionSampler(PARTS, 0.8, CPU)
    torch.manual_seed(0)
    whole = draw(rows)
    parts = []
    for rank in range(2):
        torch.manual_seed(0)
        worker = Workers(rank, 2)
        with worker.draws(8):
            parts.append(draw(rows[worker.rows(8)]))
    assert torch.equal(torch.cat(parts), whole)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Prices that follow from a cut and a weight, with gaps; 500 rows."""
    rng = np.random.default_rng(0)
    cuts = rng.choice(["good", "ideal"], 500, p=[0.3, 0.7])
    weights = rng.lognormal(size=500).round(3)
    prices = (1000 * weights * np.where(cuts == "ideal", 2, 1)).round()
    known = [f"{p:g}" if rng.random() > 0.1 else "" for p in prices]
    lines = [f"{c},{w},{p}" for c, w, p in zip(cuts, weights, known, strict=True)]
    path = tmp_path_factory.mktemp("table") / "cuts.csv"
    path.write_text("\n".join(["cut,weight,price", *lines]) + "\n")
    return load_data(tiny_config("table", data={"source": str(path)}).data)


def train_here(
    data: Dataset, folder: Path, stop_after: int | None = None, **changes: Any
) -> TrainingState:
    asked = iter(range(1, 10**6))
    config = tiny_config("table", data={"source": data.card.source}, **changes)
    state, history = train(
        config, data, folder, CPU, stop_requested=lambda: next(asked) == stop_after
    )
    assert np.isfinite([row["critic_gap"] for row in history]).all()
    return state


@pytest.mark.sampled
@pytest.mark.parametrize("conditions", [0.0, 0.5])
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_every_constraint_trains(
    kind: str, conditions: float, table: Dataset, tmp_path: Path
) -> None:
    state = train_here(
        table,
        tmp_path,
        constraint={"kind": kind},
        critic={"dropout": 0.2 if kind == "consistency" else 0.0},
        training={"steps": 20, "log_every": 5},
        table={"conditions": conditions},
    )
    z = torch.randn(50, 4)
    torch.manual_seed(0)
    rows = torch.from_numpy(table.items[:50])
    parts = table.card.parts
    restrictions = RestrictionSampler(parts, 1.0, CPU)(rows)
    assert_obeyed(list(parts), state.ema.eval()(z, restrictions), restrictions)


@pytest.mark.parametrize("step", ["auto", "eager"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    step: str, table: Dataset, tmp_path: Path
) -> None:
    training = {"steps": 6, "critic_step": step}
    whole = train_here(table, tmp_path / "whole", training=training).tensors()
    with pytest.raises(Interrupted):
        train_here(table, tmp_path / "parts", stop_after=3, training=training)
    parts = train_here(table, tmp_path / "parts", training=training).tensors()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_captured_step_is_an_eager_one(table: Dataset, tmp_path: Path) -> None:
    found = [
        train_here(table, tmp_path / step, training={"steps": 3, "critic_step": step}).tensors()
        for step in ("eager", "captured")
    ]
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("private", [False, True])
def test_the_generator_is_asked_for_what_the_last_batch_meets_but_not_in_private(
    private: bool, table: Dataset, tmp_path: Path
) -> None:
    """In private only the critic may see what follows from real rows."""
    noise = {"noise_multiplier": 1.0, "public": ["schema"]}
    config = tiny_config(
        "table",
        data={"source": table.card.source},
        constraint={"kind": "none"},
        table={"conditions": 1.0},
        **({"privacy": noise} if private else {}),
    )
    state = begin(config, table, tmp_path, CPU, None).state
    find = CriticStep("eager", state.critic, config.constraint)
    items, asked = TrainingItems(table, CPU), list[tuple[Tensor, ...]]()
    make_step = PlainStep(WholeStep(config, table, state, find, CPU, ALONE, nullcontext()), items)
    state.generator.register_forward_pre_hook(lambda _, arguments: asked.append(arguments))
    outcome = make_step([np.arange(8), np.arange(8, 16)], 0, 0)
    (conditions,) = outcome.labels
    assert torch.equal(asked[1][1], conditions)
    assert [len(arguments) for arguments in asked] == [2, 2, *([1, 2] if private else [2])]
    assert torch.equal(asked[-1][1], conditions) != private


def test_runs_on_tables_are_not_stacked(table: Dataset, tmp_path: Path) -> None:
    config = tiny_config("table", data={"source": table.card.source})
    with pytest.raises(NotStackable, match="conditions"):
        train_together([config], table, [tmp_path], [no_watch])


def test_networks_without_restrictions_allow_everything() -> None:
    torch.manual_seed(0)
    settings = {"width": 4, "depth": 1}
    generator = build_generator(GeneratorConfig(**settings, latent_size=3), (WIDTH,), parts=PARTS)
    critic = build_critic(CriticConfig(**settings), (WIDTH,), parts=PARTS)
    latents, everything = torch.randn(5, 3), torch.zeros(5, RESTRICTIONS)
    rows = generator(latents)
    assert torch.equal(rows, generator(latents, everything))
    assert torch.equal(critic(rows), critic(rows, everything))
    limits = RestrictionSampler(PARTS, 1.0, CPU)(real_rows(5, PARTS))
    assert not torch.equal(rows, generator(latents, limits))
    assert not torch.equal(critic(rows), critic(rows, limits))
    made = generator.bfloat16()(latents.bfloat16(), limits)
    assert made.dtype == torch.float32, "a bound must not be rounded"
    assert_obeyed(PARTS, made, limits)
    assert generator(latents.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("kind", ["bjorck", "spectral_norm", "weight_clipping"])
def test_the_bound_holds_under_every_condition(kind: str) -> None:
    torch.manual_seed(0)
    constraint = CONSTRAINTS[kind]()
    critic = constraint.before_training(
        build_critic(CriticConfig(width=8, depth=2), (WIDTH,), parts=PARTS)
    )
    constraint.after_critic_step(critic)
    critic = copy.deepcopy(critic).double().eval().requires_grad_(False)
    bound, reason = certify(critic)
    assert bound is not None, reason
    rows = real_rows(64, PARTS).double()
    restrictions = RestrictionSampler(PARTS, 0.7, CPU)(rows)
    attacked = steepest_slope(WithLabels(critic, restrictions), rows, steps=15)
    assert 0.05 * bound < attacked <= bound
