"""The loop: resume bit by bit, kills, divergence, and what a run leaves behind."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch

import wgan_cli
from models.artifact import load_artifact
from models.command_line import StopRequest
from models.config import Config, parse_config
from models.constraints import GradientPenalty
from models.errors import ConfigError
from models.networks import build_networks
from models.sampling import Scaling
from tests.artifacts import tiny_config
from tests.runs import forked
from training.data.batches import batch_indices
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import (
    CheckpointError,
    TrainingState,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from training.engine.loop import _set_precision, train
from training.engine.optimisers import average_weight, learning_rate, update_average
from training.engine.pace import PACE_STEPS, PACE_WARM_UP, measure_pace
from training.engine.runs import (
    Diverged,
    Interrupted,
    TrainingRun,
    begin,
    both,
    not_enough,
    step_seed,
    stoppable,
)
from training.presets import build_config

CPU = torch.device("cpu")
WGAN = Path(sys.executable).with_name("wgan")
VARIANTS: dict[str, dict[str, dict[str, object]]] = {
    "gradient_penalty": {},
    "lipschitz_penalty": {"constraint": {"kind": "lipschitz_penalty"}},
    "weight_clipping, rmsprop, batch norm": {
        "constraint": {"kind": "weight_clipping"},
        "critic": {"normalization": "batch"},
        "generator": {"normalization": "batch"},
    },
    "spectral_norm": {"constraint": {"kind": "spectral_norm"}},
    "none": {"constraint": {"kind": "none"}},
    "lazy": {"constraint": {"kind": "zero_centered_penalty", "every": 4}},
    "weight_decay": {"constraint": {"kind": "weight_decay"}},
    "spectral_projection": {"constraint": {"kind": "spectral_projection"}},
    "bjorck": {"constraint": {"kind": "bjorck"}, "critic": {"activation": "groupsort"}},
    "aol": {"constraint": {"kind": "aol"}},
    "cayley": {"constraint": {"kind": "cayley"}, "critic": {"activation": "groupsort"}},
    "sandwich": {"constraint": {"kind": "sandwich"}},
    "gradient_normalization": {"constraint": {"kind": "gradient_normalization"}},
    "consistency": {"constraint": {"kind": "consistency"}, "critic": {"dropout": 0.5}},
    "bf16": {"training": {"precision": "bf16"}},
    "decaying rate": {"training": {"decay_from": 0.2}},
    "two rates, a cosine": {
        "training": {"critic_learning_rate": 4e-4, "decay_from": 0.2, "schedule": "cosine"}
    },
    "optimistic Adam": {"training": {"optimizer": "optimistic_adam"}},
    "extragradient": {"training": {"optimizer": "extragradient"}},
    "lazy, rescaled": {
        "constraint": {"kind": "lipschitz_penalty", "every": 4, "rescale_adam": True}
    },
}
STEPS = dict.fromkeys(["gradient_penalty", "lazy", "bjorck", "consistency"], "captured")
"""How these variants' gradients are computed; in others steps are not captured, which takes longer
than the whole run. tests/test_graphs.py compares all kinds of steps."""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data(tiny_config().data)


def quick(**training: object) -> Config:
    """A run whose critic's steps are not captured: that takes longer than a few steps."""
    return tiny_config(training={"critic_step": "eager", **training})


def run(
    config: Config, data: Dataset, folder: Path, stop_after: int | None = None
) -> TrainingState:
    asked = iter(range(1, 10**6))
    state, _ = train(config, data, folder, CPU, stop_requested=lambda: next(asked) == stop_after)
    return state


def same(a: TrainingState, b: TrainingState) -> bool:
    first, second = a.tensors(), b.tensors()
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.sampled
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    variant: str, digits: Dataset, tmp_path: Path
) -> None:
    changes = {**VARIANTS[variant]}
    training = {"steps": 11, "num_critic_steps": 3, "critic_step": STEPS.get(variant, "eager")}
    changes["training"] = {**changes.get("training", {}), **training}
    config = tiny_config(**changes)
    whole = run(config, digits, tmp_path / "whole")
    for stop_after in (4, 3):  # interrupted twice
        with pytest.raises(Interrupted):
            run(config, digits, tmp_path / "parts", stop_after)
    torch.manual_seed(12345)  # whatever else the process did must not matter
    assert same(run(config, digits, tmp_path / "parts"), whole)


def test_the_pace_is_that_of_the_median_step_by_the_processor_s_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the first steps nor one of a busy machine count; a step has three of the critic."""
    config = tiny_config("vector", training={"num_critic_steps": 3, "critic_step": "eager"})
    usual = PACE_STEPS - PACE_WARM_UP - 1
    # An hour before the first of the steps that count: whatever comes before it does not.
    seconds = [9.0, 5.0] * (PACE_WARM_UP // 2) + [3600.0] + [6.0] * (usual - 1) + [50.0]
    readings = itertools.accumulate(seconds)
    assert measure_pace(config, clock=lambda: next(readings)) == 6 / 3
    again = itertools.accumulate(seconds)
    monkeypatch.setattr(time, "process_time", lambda: next(again))
    assert measure_pace(config, load_data(config.data)) == 6 / 3
    assert next(again, None) is None, "it is read once a step"


def test_the_pace_of_slow_steps_is_known_from_a_few() -> None:
    """Two of five count: the first ones make ready."""
    config = tiny_config("vector", training={"num_critic_steps": 1, "critic_step": "eager"})
    readings = itertools.accumulate([60.0, 60.0, 60.0, 6.0, 8.0])
    assert measure_pace(config, clock=lambda: next(readings), at_most=100.0) == 7
    assert next(readings, None) is None, "no further step was made"


def test_a_pace_has_its_share_of_what_measures_overfitting() -> None:
    """Every 20th step takes 40 s more: 2 s a step, where that step is reached."""
    config = build_config(
        "digits",
        None,
        None,
        {
            "augmentation.target": 0.5,
            "data.validation_fraction": 0.1,
            "generator.width": 4,
            "critic.width": 4,
            "training.num_critic_steps": 1,
            "training.critic_step": "eager",
        },
    )
    seconds = [46.0 if step % 20 == 0 else 6.0 for step in range(1, PACE_STEPS + 1)]
    readings = itertools.accumulate(seconds)
    assert measure_pace(config, clock=lambda: next(readings)) == 8
    readings = itertools.accumulate(seconds)
    assert measure_pace(config, clock=lambda: next(readings), at_most=30.0) == 6


def test_a_pace_has_its_share_of_a_lazy_penalty() -> None:
    """Every fourth critic step takes 8 s more: 2 s a critic step, and 10 s with the other 8."""
    config = tiny_config("vector", training={"num_critic_steps": 1, "critic_step": "eager"})
    config = config.model_copy(update={"constraint": GradientPenalty(every=4)})
    seconds = [16.0 if step % 4 == 0 else 8.0 for step in range(PACE_STEPS)]
    readings = itertools.accumulate(seconds)
    assert measure_pace(config, clock=lambda: next(readings)) == 10


def test_another_seed_gives_another_run(digits: Dataset, tmp_path: Path) -> None:
    one, other = (run(quick(steps=3, seed=seed), digits, tmp_path / str(seed)) for seed in (0, 1))
    assert not same(one, other)


@pytest.mark.parametrize("kind", ["gradient_penalty", "weight_clipping", "spectral_norm", "bjorck"])
def test_a_critic_step_is_the_textbook_s(kind: str, digits: Dataset, tmp_path: Path) -> None:
    """One penalty in one loss, one optimiser step, and the constraint's hook after it."""
    config = tiny_config(
        constraint={"kind": kind},
        training={"steps": 1, "num_critic_steps": 1, "optimizer": "adam", "learning_rate": 1e-3},
    )
    found = run(config, digits, tmp_path).critic
    torch.manual_seed(step_seed(0, -1))
    generator, critic = build_networks(config, digits.card.shape)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3, config.training.betas, fused=True)
    torch.manual_seed(step_seed(0, 0))
    real = torch.from_numpy(digits.training[batch_indices(0, len(digits.training), 0, 8)])
    real = Scaling(digits.card.shape, [], []).to_model(real)
    fake = generator(torch.randn(8, 4)).detach()
    pairs = critic(torch.stack([real, fake], 1).flatten(0, 1)).reshape(-1, 2)
    gap = (pairs[:, 0] - pairs[:, 1]).mean()
    penalty = config.constraint.penalty(critic, real, fake)
    (penalty - gap if penalty is not None else -gap).backward()
    optimizer.step()
    config.constraint.after_critic_step(critic)
    for name, tensor in critic.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_training_moves_every_weight_and_its_average(digits: Dataset, tmp_path: Path) -> None:
    short = run(quick(steps=3), digits, tmp_path / "a").tensors()
    longer = run(quick(steps=6), digits, tmp_path / "b").tensors()
    moved = {name for name, t in short.items() if not torch.equal(t, longer[name])}
    still = {name for name in short if name not in moved}
    # The critic's last bias shifts real and fake scores alike: its gradient is exactly zero.
    assert {n.split(".")[-1] for n in still if n.startswith("critic.")} <= {"bias"}
    assert all(not n.startswith(("generator.", "ema.")) for n in still)


def test_the_average_is_not_the_generator(digits: Dataset, tmp_path: Path) -> None:
    state = run(quick(steps=5), digits, tmp_path)
    pairs = zip(state.ema.parameters(), state.generator.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_the_average_forgets_the_initial_weights_soon() -> None:
    """After n steps 1 / C(n + 9, 9) is left of them, as long as the warm-up lasts."""
    left, still = torch.ones(1), torch.zeros(1)
    for step in range(30):
        update_average([left], [still], average_weight(0.999, step))
        assert left.item() == pytest.approx(1 / math.comb(step + 10, 9), rel=1e-5)
    late = [average_weight(0.9, step) for step in (79, 80, 81, 10**6)]
    assert late == pytest.approx([9 / 89, 0.1, 0.1, 0.1])


def test_the_average_is_warmed_up_in_training(digits: Dataset, tmp_path: Path) -> None:
    config = quick(steps=1)
    state = run(config, digits, tmp_path)
    torch.manual_seed(step_seed(0, -1))
    initial, _ = build_networks(config, digits.card.shape)
    trios = zip(
        state.ema.parameters(), state.generator.parameters(), initial.parameters(), strict=True
    )
    for average, trained, before in trios:
        torch.testing.assert_close(average, 0.1 * before + 0.9 * trained)


def test_clipped_weights_stay_clipped(digits: Dataset, tmp_path: Path) -> None:
    clipping = {"kind": "weight_clipping", "clip_value": 0.02}
    config = tiny_config(constraint=clipping, training={"critic_step": "eager"})
    state = run(config, digits, tmp_path)
    largest = max(p.abs().max().item() for p in state.critic.parameters())
    assert largest == pytest.approx(0.02)


def test_held_out_items_never_train(digits: Dataset, tmp_path: Path) -> None:
    """Whatever the held-out items are, the result is the same."""
    items = digits.items.copy()
    items[digits.is_heldout] = 255 - items[digits.is_heldout]
    changed = dataclasses.replace(digits, items=items)
    one, other = (run(quick(), data, tmp_path / name)
                  for name, data in (("a", digits), ("b", changed)))  # fmt: skip
    assert same(one, other)


def test_the_learning_rate_falls_linearly_to_the_end() -> None:
    settings = tiny_config(training={"steps": 100, "decay_from": 0.5}).training
    assert [learning_rate(settings, s, 1.0) for s in (0, 49, 50, 75, 99)] == [1, 1, 1, 0.5, 0.02]
    constant = tiny_config(training={"steps": 100}).training
    assert {learning_rate(constant, s, 1.0) for s in range(100)} == {1.0}


def test_the_rate_of_a_run_is_that_of_its_last_step(gaussians: Dataset, tmp_path: Path) -> None:
    settings = {"steps": 4, "decay_from": 0.0, "learning_rate": 4e-3, "critic_step": "eager"}
    run_of = tiny_config("vector", training={**settings, "critic_learning_rate": 8e-3})
    state = run(run_of, gaussians, tmp_path)
    optimizers = state.generator_optimizer, state.critic_optimizer
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    assert rates == pytest.approx([4e-3 / 4, 8e-3 / 4])


@pytest.mark.parametrize("setting", [{"learning_rate": 1e12}, {"divergence_gap": 1e-9}])
def test_divergence_stops_with_a_diagnosis(
    digits: Dataset, tmp_path: Path, setting: dict[str, float]
) -> None:
    config = quick(steps=50, checkpoint_every=1, **setting)
    with pytest.raises(Diverged, match=r"diverged by step 1: the critic gap is .*learning_rate"):
        run(config, digits, tmp_path)
    assert newest_checkpoint(tmp_path) is None  # nothing bad was saved


def test_the_last_good_checkpoint_is_kept(digits: Dataset, tmp_path: Path) -> None:
    good = quick(steps=3, checkpoint_every=1)
    run(good, digits, tmp_path)
    before = newest_checkpoint(tmp_path)
    assert before is not None
    content = load_checkpoint(before)
    # The same run, whose optimiser now takes a step to infinity.
    worse = parse_config(
        {**good.model_dump(mode="json"), "training": {**good.training.model_dump(), "steps": 9}}
    )
    state = run(good, digits, tmp_path)
    with torch.no_grad():
        next(iter(state.critic.parameters())).fill_(1e30)
    assert content.origin is not None
    save_checkpoint(tmp_path, 3, worse, content.history, state, content.critic_step, content.origin)
    with pytest.raises(Diverged, match=r"step-00000003\.safetensors"):
        run(worse, digits, tmp_path)
    assert newest_checkpoint(tmp_path) == before


def test_another_configuration_is_not_resumed(digits: Dataset, tmp_path: Path) -> None:
    run(quick(), digits, tmp_path)
    different = {"learning_rate": 0.5, "critic_step": "eager"}
    other = tiny_config(training=different, critic={"width": 9})
    with pytest.raises(CheckpointError, match=r"critic\.width \(8\), training\.learning_rate \("):
        run(other, digits, tmp_path)


def test_a_broken_checkpoint_is_named(digits: Dataset, tmp_path: Path) -> None:
    run(quick(), digits, tmp_path)
    path = newest_checkpoint(tmp_path)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=path.name):
        run(quick(), digits, tmp_path)


def test_only_the_newest_two_checkpoints_are_kept(digits: Dataset, tmp_path: Path) -> None:
    run(quick(steps=7, checkpoint_every=2), digits, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000006.safetensors",
        "step-00000007.safetensors",
    ]


@pytest.fixture(scope="module")
def gaussians() -> Dataset:
    return load_data(tiny_config("vector").data)


NONE = {"kind": "none"}


def new_run(data: Dataset, folder: Path, **training: object) -> TrainingRun:
    return begin(tiny_config("vector", training=training), data, folder, CPU, None)


def test_a_run_is_due_at_each_multiple_and_at_its_end(gaussians: Dataset, tmp_path: Path) -> None:
    run, due = new_run(gaussians, tmp_path, steps=7), list[int]()
    assert run.step == 0
    for run.step in range(1, 8):
        assert run.is_finished == (run.step == 7)
        due += [run.step] if run.is_due(3) else []
    assert due == [3, 6, 7]
    assert not not_enough(7)


def test_what_is_not_sane_is_told_with_what_was_before(gaussians: Dataset, tmp_path: Path) -> None:
    run = new_run(gaussians, tmp_path, divergence_gap=8.0)
    run.step = 9

    def said(gap: float) -> str:
        with pytest.raises(Diverged) as caught:
            run.require_sane(gap)
        return str(caught.value)

    for gap in (0.0, 8.0, -8.0):
        run.require_sane(gap)
    for gap in (math.nan, math.inf, 8.1, -8.1):
        assert said(gap).startswith(f"diverged by step 9: the critic gap is {gap:.4g}. Lower train")
    run.history = [{"step": step, "critic_gap": step / 10} for step in (3, 5, 6)]
    assert f"gap is {9.0:.4g}; it was 0.6 at step 6. Lower" in said(9.0)
    names = [name for name in run.state.live() if name.startswith("critic.")]
    weights = [run.state.live()[name] for name in names]
    for count in range(1, 5):
        weights[count - 1].view(-1)[-1] = math.nan
        dots = ", ..." if count > 3 else ""
        told = f"at step 6; not finite: {', '.join(names[: min(count, 3)])}{dots}. Lower"
        assert told in said(1.0)


def test_the_log_counts_the_critic_s_samples_since_the_clock_began(
    gaussians: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(gaussians, tmp_path, batch_size=8, num_critic_steps=5)
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    run.step = 2
    run.start_clock()
    monkeypatch.setattr(time, "perf_counter", lambda: 104.0)
    run.step = 5
    row = {"step": 5, "critic_gap": 1.0, "critic_loss": 2.0, "gradient_norm": 3.0}
    row["samples_per_second"] = 3 * 5 * 8 / 4
    assert run.log(1.0, 2.0, 3.0) == row
    run.log(0.5, 2.0, 3.0)
    assert run.history == [row, row | {"critic_gap": 0.5}]


def test_both_watches_see_each_step(gaussians: Dataset, tmp_path: Path) -> None:
    seen = list[tuple[str, int, TrainingState]]()
    state = new_run(gaussians, tmp_path).state
    both(lambda *now: seen.append(("a", *now)), lambda *now: seen.append(("b", *now)))(3, state)
    assert seen == [("a", 3, state), ("b", 3, state)]


def test_work_that_is_lost_if_it_stops_is_not_begun_and_ends_at_once() -> None:
    begun = list[str]()

    def judge(stop_requested: Callable[[], bool], number: int | None = None) -> None:
        with stoppable(stop_requested, "judging"):
            begun.append("a part")
            if number is not None:
                signal.raise_signal(number)
            begun.append("the rest")

    with pytest.raises(Interrupted, match=r"^stopped before judging$"):
        judge(lambda: True)
    assert not begun
    judge(lambda: False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        request = StopRequest()
        judge(request)
        with pytest.raises(Interrupted, match=r"^stopped while judging$"):
            judge(request, signal.SIGTERM)
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    assert begun == [*["a part", "the rest"] * 2, "a part"]


def test_seeds_of_steps_are_what_they_were() -> None:
    """A run that a former version began goes on with its own random numbers."""
    for seed, step in ((0, -1), (0, 0), (7, 12345)):
        digest = hashlib.blake2b(b"%d %d" % (seed, step), digest_size=4).hexdigest()
        assert step_seed(seed, step) == int(digest, 16)
    assert step_seed(0, -1) == 805719277


def logged(data: Dataset, folder: Path, **training: object) -> tuple[list[dict[str, float]], int]:
    """Train with a critic of dropout: the rows that are told, and how many steps are watched."""
    settings = {"critic_step": "eager", **training}
    config = tiny_config("vector", critic={"dropout": 0.5, "depth": 1}, training=settings)
    rows, seen = list[dict[str, float]](), list[int]()
    state, history = train(
        config, data, folder, CPU, rows.append, watch=lambda step, state: seen.append(step)
    )
    assert history == rows
    assert all(module.training for module in state.critic.modules())
    return rows, len(seen)


def test_the_log_changes_nothing_of_a_run(gaussians: Dataset, tmp_path: Path) -> None:
    """Not even the critic's dropout, which norms of gradients are measured without."""
    often, watched = logged(gaussians, tmp_path / "a", steps=5, log_every=2, checkpoint_every=9)
    assert ([row["step"] for row in often], watched) == ([2, 4, 5], 5)
    (once,), _ = logged(gaussians, tmp_path / "b", steps=5, log_every=9, checkpoint_every=2)
    speed = "samples_per_second"
    assert {**often[-1], speed: 0} == {**once, speed: 0}
    assert [path.stem for path in sorted((tmp_path / "a").iterdir())] == ["step-00000005"]


def test_the_logged_norm_is_without_dropout(gaussians: Dataset, tmp_path: Path) -> None:
    """With all of the only layer dropped, nearly, each gradient would be zero."""
    dropping = {"dropout": 0.9999, "depth": 1}
    config = tiny_config("vector", critic=dropping, constraint=NONE, training={"steps": 1})
    _, (row,) = train(config, gaussians, tmp_path, CPU)
    assert row["gradient_norm"] > 0
    path = newest_checkpoint(tmp_path)
    assert path is not None
    assert load_checkpoint(path).critic_step == "captured", "a resumed run keeps what was chosen"


@pytest.mark.parametrize(
    ("logging", "saving", "enough", "steps"),
    [(3, 9, 9, 3), (9, 2, 9, 2), (9, 9, 4, 4), (9, 9, 9, 6), (4, 4, 4, 4)],
)
def test_a_run_is_looked_at_before_it_is_logged_saved_or_ended(
    logging: int, saving: int, enough: int, steps: int, gaussians: Dataset, tmp_path: Path
) -> None:
    settings = {"steps": 6, "log_every": logging, "checkpoint_every": saving}
    config = tiny_config(
        "vector",
        data={"validation_fraction": 0.1},
        selection={"every": 1},
        training={**settings, "divergence_gap": 1e-9, "critic_step": "eager"},
    )
    rows = list[dict[str, float]]()
    with pytest.raises(Diverged, match=f"diverged by step {steps}:"):
        train(config, gaussians, tmp_path, CPU, rows.append, enough=lambda step: step == enough)
    assert not rows
    assert newest_checkpoint(tmp_path) is None


def test_a_stop_at_the_end_of_a_run_is_no_interruption(gaussians: Dataset, tmp_path: Path) -> None:
    """Be it that all steps are done, or that the run has enough: nothing is left to go on with."""
    selected = {"data": {"validation_fraction": 0.1}, "selection": {"every": 1}}
    for steps, enough, stop in ((2, 9, 2), (9, 2, 0), (9, 2, 2)):
        settings = {"steps": steps, "critic_step": "eager"}
        config = tiny_config("vector", **selected, training=settings)
        asked, folder = itertools.count(1), tmp_path / f"{steps} {stop}"
        train(
            config,
            gaussians,
            folder,
            CPU,
            stop_requested=lambda asked=asked, stop=stop: next(asked) == stop,
            enough=lambda step, enough=enough: step == enough,
        )
        assert [path.stem for path in folder.iterdir()] == ["step-00000002"]


def test_a_run_that_had_enough_is_not_extended_but_goes_on_before(
    gaussians: Dataset, tmp_path: Path
) -> None:
    selected = {"data": {"validation_fraction": 0.1}, "selection": {"every": 1}}

    def go_on(steps: int, enough: int) -> int:
        config = tiny_config(
            "vector", **selected, training={"steps": steps, "critic_step": "eager"}
        )
        folder = tmp_path / "run" / "checkpoints"
        train(config, gaussians, folder, CPU, enough=lambda step: step >= enough)
        path = newest_checkpoint(folder)
        assert path is not None
        return load_checkpoint(path).step

    assert go_on(2, 9) == 2
    with pytest.raises(
        CheckpointError, match=r"run: its run ended by selection.patience at step 2"
    ):
        go_on(4, 2)  # it had enough with its very last step
    assert go_on(4, 3) == 3
    assert go_on(4, 3) == 3, "it is over, and nothing more was asked for"
    with pytest.raises(CheckpointError, match=r"ended by selection.patience at step 3, so"):
        go_on(6, 3)


def test_tf32_is_for_gpus_and_for_runs_that_ask_for_it(gaussians: Dataset, tmp_path: Path) -> None:
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for precision, device in (("tf32", "cuda"), ("fp32", "cpu"), ("bf16", "cuda")):
            settings = tiny_config(training={"precision": precision}).training
            _set_precision(settings, torch.device(device))
            assert {place.allow_tf32 for place in places} == {precision == "tf32"}
        with pytest.raises(ConfigError, match="'tf32' needs a CUDA device"):
            train(tiny_config("vector", training={"precision": "tf32"}), gaussians, tmp_path, CPU)
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


# From here on, the command in processes of its own.

ARGUMENTS = [
    "train", "--preset", "8gaussians", "--steps", "200", "--seed", "3", "--no-register",
    "--set", "training.checkpoint_every=5", "--set", "training.batch_size=32",
    "--set", "generator.width=16", "--set", "critic.width=16", "--set", "evaluation.samples=100",
]  # fmt: skip


def start(out: Path, *more: str, draws: bool = False) -> ForkServerProcess:
    command = [*ARGUMENTS, "--out", out, *more]
    return forked(wgan_cli.main, command, out.with_name("log"), draws=draws)


def finish(process: ForkServerProcess, out: Path, code: int = 0) -> str:
    """Wait for a command to end with ``code``: what it said."""
    process.join(200)
    said = out.with_name("log").read_text()
    assert process.exitcode == code, said
    return said


def wait_for_checkpoint(out: Path, beyond: int = 0) -> None:
    for _ in range(6000):
        path = newest_checkpoint(out / "checkpoints")
        if path and int(path.stem.split("-")[1]) > beyond:
            return
        time.sleep(0.01)
    raise AssertionError("no checkpoint came")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(out, draws=True), out)
    return out


def final_state(out: Path) -> dict[str, torch.Tensor]:
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    checkpoint = load_checkpoint(path)
    assert checkpoint.step == 200
    return checkpoint.tensors


def test_sigterm_leaves_a_checkpoint_and_exits_75(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [WGAN, *ARGUMENTS, "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for_checkpoint(out)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "--resume" in errors
    finish(start(out, "--resume"), out)
    whole, parts = final_state(uninterrupted), final_state(out)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    one, other = load_artifact(uninterrupted / "artifact"), load_artifact(out / "artifact")
    assert np.array_equal(one.sample(1, 50), other.sample(1, 50))
    assert one.run.results == other.run.results


def test_after_sigkill_at_any_moment_the_last_checkpoint_loads(
    uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    rng = np.random.default_rng(0)
    beyond = 0
    for attempt in range(4):
        process = start(out, *(["--resume"] if attempt else []))
        wait_for_checkpoint(out, beyond)
        time.sleep(rng.uniform(0, 0.05))  # in which it writes one more, or two
        process.kill()
        finish(process, out, -signal.SIGKILL)
        path = newest_checkpoint(out / "checkpoints")
        assert path is not None
        beyond = load_checkpoint(path).step
    finish(start(out, "--resume"), out)
    whole, parts = final_state(uninterrupted), final_state(out)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_finished_run_is_not_overwritten(uninterrupted: Path) -> None:
    before = (uninterrupted / "artifact" / "run.json").read_bytes()
    said = finish(start(uninterrupted), uninterrupted, 2)
    assert said.startswith("error:")
    assert "--resume" in said
    said = finish(start(uninterrupted, "--resume", draws=True), uninterrupted)
    assert "already complete" in said
    assert (uninterrupted / "artifact" / "run.json").read_bytes() == before


def test_the_run_is_recorded_whole(uninterrupted: Path) -> None:
    run_json = json.loads((uninterrupted / "artifact" / "run.json").read_text())
    assert run_json["config"]["training"]["ema_decay"] > 0
    assert run_json["constraint"]["kind"] == "lipschitz_penalty"
    assert run_json["data"]["sha256"]
    assert run_json["provenance"]["torch"] == torch.__version__
    assert run_json["engine"]["name"] == "torch-channels-last"
    assert run_json["engine"]["max_error"] < 1e-5
    lipschitz = run_json["lipschitz"]
    assert set(lipschitz["gradient_norm"]) == {"real", "fake", "between"}
    assert lipschitz["sampled"] <= lipschitz["certified"] * 1.000001
    assert lipschitz["reason"] is None
    names = [finding["name"] for finding in run_json["findings"]]
    assert "low_diversity" in names
    assert "clip_range" not in names, "there is no clip range under a penalty"
    assert (uninterrupted / "diagnosis.html").read_text().count("<svg") >= len(names) - 1
    assert [row["step"] for row in run_json["history"]][-1] == 200
    figures = run_json["results"]["figures"]
    expected = {"wasserstein_1", "sliced_wasserstein_1", "modes_covered", "high_quality_share"}
    assert expected <= set(figures)
    for figure in figures.values():
        assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]


@pytest.mark.parametrize("every", [1, 1000])  # the loop looks before the doctor does, or after
def test_divergence_exits_1_and_keeps_the_checkpoint(tmp_path: Path, every: int) -> None:
    settings = ["training.learning_rate=1e12", f"training.log_every={every}"]
    settings.append(f"training.checkpoint_every={every}")
    out = tmp_path / "run"
    said = finish(start(out, *(f"--set={setting}" for setting in settings)), out, 1)
    assert "diverged" in said
    assert "Traceback" not in said
