"""The loop: resume bit by bit, kills, divergence, and what a run leaves behind."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch

import wgan_cli
from models.artifact import load_artifact
from models.config import Config, parse_config
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
from training.engine.loop import train
from training.engine.optimisers import average_weight, learning_rate, update_average
from training.engine.pace import PACE_STEPS, PACE_WARM_UP, measure_pace
from training.engine.runs import Diverged, Interrupted, step_seed

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


def test_another_seed_gives_another_run(digits: Dataset, tmp_path: Path) -> None:
    one, other = (
        run(tiny_config(training={"steps": 3, "seed": seed}), digits, tmp_path / str(seed))
        for seed in (0, 1)
    )
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
    config = tiny_config(training={"steps": 3})
    short = run(config, digits, tmp_path / "a").tensors()
    longer = run(tiny_config(training={"steps": 6}), digits, tmp_path / "b").tensors()
    moved = {name for name, t in short.items() if not torch.equal(t, longer[name])}
    still = {name for name in short if name not in moved}
    # The critic's last bias shifts real and fake scores alike: its gradient is exactly zero.
    assert {n.split(".")[-1] for n in still if n.startswith("critic.")} <= {"bias"}
    assert all(not n.startswith(("generator.", "ema.")) for n in still)


def test_the_average_is_not_the_generator(digits: Dataset, tmp_path: Path) -> None:
    state = run(tiny_config(training={"steps": 5}), digits, tmp_path)
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
    config = tiny_config(training={"steps": 1})
    state = run(config, digits, tmp_path)
    torch.manual_seed(step_seed(0, -1))
    initial, _ = build_networks(config, digits.card.shape)
    trios = zip(
        state.ema.parameters(), state.generator.parameters(), initial.parameters(), strict=True
    )
    for average, trained, before in trios:
        torch.testing.assert_close(average, 0.1 * before + 0.9 * trained)


def test_clipped_weights_stay_clipped(digits: Dataset, tmp_path: Path) -> None:
    config = tiny_config(constraint={"kind": "weight_clipping", "clip_value": 0.02})
    state = run(config, digits, tmp_path)
    largest = max(p.abs().max().item() for p in state.critic.parameters())
    assert largest == pytest.approx(0.02)


def test_held_out_items_never_train(digits: Dataset, tmp_path: Path) -> None:
    """Whatever the held-out items are, the result is the same."""
    items = digits.items.copy()
    items[digits.is_heldout] = 255 - items[digits.is_heldout]
    changed = dataclasses.replace(digits, items=items)
    config = tiny_config()
    assert same(run(config, digits, tmp_path / "a"), run(config, changed, tmp_path / "b"))


def test_the_learning_rate_falls_linearly_to_the_end() -> None:
    settings = tiny_config(training={"steps": 100, "decay_from": 0.5}).training
    assert [learning_rate(settings, s, 1.0) for s in (0, 49, 50, 75, 99)] == [1, 1, 1, 0.5, 0.02]
    constant = tiny_config(training={"steps": 100}).training
    assert {learning_rate(constant, s, 1.0) for s in range(100)} == {1.0}


@pytest.mark.parametrize("setting", [{"learning_rate": 1e12}, {"divergence_gap": 1e-9}])
def test_divergence_stops_with_a_diagnosis(
    digits: Dataset, tmp_path: Path, setting: dict[str, float]
) -> None:
    config = tiny_config(training={"steps": 50, "checkpoint_every": 1, **setting})
    with pytest.raises(Diverged, match=r"diverged by step 1: the critic gap is .*learning_rate"):
        run(config, digits, tmp_path)
    assert newest_checkpoint(tmp_path) is None  # nothing bad was saved


def test_the_last_good_checkpoint_is_kept(digits: Dataset, tmp_path: Path) -> None:
    good = tiny_config(training={"steps": 3, "checkpoint_every": 1})
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
    run(tiny_config(), digits, tmp_path)
    other = tiny_config(training={"learning_rate": 0.5}, critic={"width": 9})
    with pytest.raises(CheckpointError, match=r"critic\.width \(8\), training\.learning_rate \("):
        run(other, digits, tmp_path)


def test_a_broken_checkpoint_is_named(digits: Dataset, tmp_path: Path) -> None:
    run(tiny_config(), digits, tmp_path)
    path = newest_checkpoint(tmp_path)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=path.name):
        run(tiny_config(), digits, tmp_path)


def test_only_the_newest_two_checkpoints_are_kept(digits: Dataset, tmp_path: Path) -> None:
    run(tiny_config(training={"steps": 7, "checkpoint_every": 2}), digits, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000006.safetensors",
        "step-00000007.safetensors",
    ]


# From here on, the command in processes of its own.

ARGUMENTS = [
    "train", "--preset", "8gaussians", "--steps", "400", "--seed", "3", "--no-register",
    "--set", "training.checkpoint_every=5", "--set", "training.batch_size=32",
    "--set", "generator.width=16", "--set", "critic.width=16", "--set", "evaluation.samples=100",
]  # fmt: skip


def start(out: Path, *more: str) -> ForkServerProcess:
    return forked(wgan_cli.main, [*ARGUMENTS, "--out", out, *more], out.with_name("log"))


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
    finish(start(out), out)
    return out


def final_state(out: Path) -> dict[str, torch.Tensor]:
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    checkpoint = load_checkpoint(path)
    assert checkpoint.step == 400
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
        time.sleep(rng.uniform(0, 0.15))
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
    said = finish(start(uninterrupted, "--resume"), uninterrupted)
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
    assert [row["step"] for row in run_json["history"]][-1] == 400
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
