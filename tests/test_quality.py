"""Time to quality: the rule of the sustained target, the ratios, and resuming."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.quality import compared, finish
from benchmarks.quality_tasks import ABLATIONS, Judge, first_sustained, meets, settings
from benchmarks.quality_training import Watch
from training.data.dataset import load_data


@pytest.mark.parametrize(
    ("good", "begins"),
    [
        ([], None),
        ([True] * 4, None),
        ([True] * 5, 0),
        ([True] * 4 + [False] + [True] * 4, None),
        ([False, True, True, False] + [True] * 6, 4),
        ([True, False] * 10, None),
    ],
)
def test_a_target_must_hold_five_times_in_a_row(good: list[bool], begins: int | None) -> None:
    assert first_sustained(good) == begins


def test_bounds_hold_at_their_value_and_never_for_nan() -> None:
    bounds = {"recall": (">=", 0.9), "kernel_distance": ("<=", 2.0)}
    assert meets({"recall": 0.9, "kernel_distance": 2.0}, bounds)
    assert not meets({"recall": 0.89, "kernel_distance": 2.0}, bounds)
    assert not meets({"recall": 0.9, "kernel_distance": 2.1}, bounds)
    assert not meets({"recall": 0.9, "kernel_distance": float("nan")}, bounds)


class Scripted:
    """Figures as they are told."""

    device = torch.device("cpu")

    def __init__(self, shares: list[float]) -> None:
        self.bounds, self.shares = {"share": (">=", 0.5)}, iter(shares)

    def __call__(self, generator: Any) -> dict[str, float]:
        sum(range(1_000_000))  # slow, which must not count
        return {"share": next(self.shares)}


def test_a_run_ends_when_the_target_has_held_and_evaluations_take_no_time() -> None:
    watch = Watch(2, 1000.0, Scripted([0.1, 0.6, 0.2, *[0.7] * 9]), critic_steps=3)  # type: ignore[arg-type]
    generator = nn.Identity()
    step, began = 0, time.process_time()
    while not watch.ended:
        step += 1
        watch(step, generator)
    assert watch.ended == "reached"
    assert step == 2 * 8  # evaluations 4 to 8
    first = first_sustained(watch.good)
    assert first == 3
    row = watch.trajectory[first]
    assert (row["generator_steps"], row["critic_steps"]) == (8, 24)
    # Nearly all of the time went to evaluations.
    assert watch.trajectory[-1]["cpu_seconds"] < 0.2 * (time.process_time() - began)
    assert generator.training


def test_a_run_ends_with_its_budget() -> None:
    watch = Watch(1, 0.0, Scripted([0.1] * 9), critic_steps=1)  # type: ignore[arg-type]
    watch(1, nn.Identity())
    assert watch.ended == "budget"
    assert first_sustained(watch.good) is None


def made_up(solver: str, seed: int, seconds: float, reached: bool = True) -> dict[str, Any]:
    times = {"cpu_seconds": seconds, "seconds": 2 * seconds}
    return {
        "task": "digits",
        "solver": solver,
        "seed": seed,
        "reached": times if reached else None,
        "spent": {key: value + 5 for key, value in times.items()},
        "start_up": {"cpu_seconds": 1.0, "seconds": 1.0},
    }


def test_ratios_are_of_medians_and_bounds_where_runs_did_not_get_there() -> None:
    rows = [
        *(made_up("ours", seed, seconds) for seed, seconds in enumerate([10.0, 20.0, 40.0])),
        *(made_up("published", seed, 60.0 + seed) for seed in range(3)),
        made_up("textbook", 0, 95.0, reached=False),
        made_up("textbook", 1, 95.0, reached=False),
        made_up("textbook", 2, 80.0),
    ]
    found = compared(rows, "digits")
    assert found["published"]["ratio_cpu_seconds"] == pytest.approx(61 / 20)
    assert found["published"]["ratios_cpu_seconds"] == pytest.approx([6.0, 61 / 20, 62 / 40])
    assert not found["published"]["is_lower_bound"]
    assert found["textbook"]["ratio_cpu_seconds"] == pytest.approx(100 / 20)
    assert found["textbook"]["is_lower_bound"]
    rows[2]["reached"] = None  # of ours, so that its median is the longer of two
    found = compared(rows, "digits")["published"]
    assert found["ratio_cpu_seconds"] == pytest.approx(61 / 20)
    assert found["ratios_cpu_seconds"] == [pytest.approx(6.0), pytest.approx(61 / 20), None]
    without = [made_up("ours", 0, 10.0, reached=False), made_up("published", 0, 60.0)]
    assert "ratio_cpu_seconds" not in compared(without, "digits")["published"]


def test_each_ablation_changes_the_preset() -> None:
    """One that a new preset has made its own would be a row that says nothing."""
    for task, changes in ABLATIONS.items():
        ours = settings(task, "ours", 0)
        for name in changes:
            assert settings(task, name, 0) != ours, (task, name)


def test_the_target_of_digits_is_between_real_items_and_bad_ones() -> None:
    """Real training items meet it; constant images and noise do not."""
    config = settings("digits", "ours", 0)
    data = load_data(config.data)
    judge = Judge(config, data)
    items = judge.scaling.to_model(torch.from_numpy(data.training))

    def real(z: Tensor) -> Tensor:
        return items[torch.arange(len(z)) * 3 % len(items)]

    assert meets(judge(real), judge.bounds)
    assert not meets(judge(lambda z: items[:1].expand(len(z), -1, -1, -1)), judge.bounds)
    assert not meets(judge(lambda z: torch.randn(len(z), 1, 8, 8).clamp(-1, 1)), judge.bounds)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = finish(tmp_path, "25gaussians", "ours", 3, budget=0.5)
    assert first["ended"] == "budget"
    assert first["reached"] is None
    assert first["start_up"]["cpu_seconds"] > 0
    (where,) = tmp_path.iterdir()
    before = where.stat().st_mtime_ns
    assert finish(tmp_path, "25gaussians", "ours", 3, budget=0.5) == first
    assert where.stat().st_mtime_ns == before
    where.write_text(json.dumps({**first, "config": {**first["config"], "name": "another"}}))
    with pytest.raises(SystemExit, match=f"{where} is a run with other settings: delete it"):
        finish(tmp_path, "25gaussians", "ours", 3, budget=0.5)
