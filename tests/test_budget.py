"""Runs within a time: the steps, the width and the precision that it suffices for."""

import json
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import wgan_cli
from models.artifact import load_artifact
from models.config import Config
from models.errors import UserError
from models.run_folder import CHECKPOINTS
from tests.test_selection import configured
from training import budget
from training.data.dataset import Dataset, load_data
from training.engine.loop import train
from training.judging.headline import headline
from training.presets import WIDTHS, build_config, fill_in

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gaussians() -> Dataset:
    """The data of `configured`."""
    return load_data(configured().data)


Train = Callable[..., int]


@pytest.fixture
def train_command(tmp_path: Path) -> Train:
    def command(*arguments: str) -> int:
        settings = [
            f"--set=training.{key}={json.dumps(value)}"
            for key, value in configured().model_dump(mode="json")["training"].items()
            if key in ("batch_size", "num_critic_steps", "log_every")
        ]
        small = ["--set=evaluation.samples=100", "--set=selection.samples=200"]
        common = ["train", "--preset", "8gaussians", "--out", str(tmp_path / "run")]
        return wgan_cli.main([*common, "--no-register", *settings, *small, *arguments])

    return command


@pytest.mark.parametrize(
    ("seconds", "measuring", "count", "steps"),
    [
        # A tenth of 1000 s is for judging, 20 measurements take 40: 860 s at 0.5 s a step.
        (1000, 2.0, 20, 1720),
        # A tenth of the time is for measurements: ten.
        (1000, 10.0, 10, 1600),
        # At least five; judging takes four times as long for half the samples: 2 * 60 s.
        (1000, 60.0, 5, 1160),
    ],
)
def test_the_time_is_divided(
    seconds: float,
    measuring: float,
    count: int,
    steps: int,
    tmp_path: Path,
    gaussians: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured(**{"selection.every": 0})
    monkeypatch.setattr(budget, "measure_pace", lambda *_: 0.5)
    monkeypatch.setattr(budget, "_measurement_seconds", lambda *_: measuring)
    found = budget.within(config, gaussians, CPU, seconds, time.perf_counter(), tmp_path)
    assert steps - 5 <= found.training.steps <= steps, "less by what was measured with"
    assert found.selection is not None
    assert -(-found.training.steps // found.selection.every) == count


CHOOSING = {"selection.patience": 3, "data.validation_fraction": 0.1, "critic.depth": 1}
"""Settings of a run that leaves its width to the budget."""


@pytest.mark.parametrize(
    ("fewest", "seconds", "width"),
    [
        # So many images get 7,200 steps, of which a quarter is enough, or the fewest if they are
        # more; a step takes the square of its width in milliseconds, a tenth of the time is for
        # judging, and 20 measurements of 2 s.
        (1000, 1000, 16),
        (1000, (1800 * 0.032**2 * 1000 + 40) / 0.9 + 1, 32),
        (1000, (1800 * 0.048**2 * 1000 + 40) / 0.9 - 1, 32),
        (6000, (6000 * 0.032**2 * 1000 + 40) / 0.9 + 1, 32),
        (6000, (6000 * 0.048**2 * 1000 + 40) / 0.9 - 1, 32),
        (6000, 10**6, 128),
        (6000, 500, 16),  # the narrowest at least, with fewer steps
    ],
)
def test_a_budget_chooses_the_widest_networks_that_have_time(
    fewest: int, seconds: float, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert budget.FEWEST_STEPS == 6000
    monkeypatch.setattr(budget, "FEWEST_STEPS", fewest)
    config = build_config("images", "digits", None, CHOOSING)
    data = load_data(config.data)
    assert 7_150 <= 200 * data.card.training_count**0.5 < 7_250

    def pace(config: Config, *_: object) -> float:
        return config.generator.width**2 / 1000 / config.training.num_critic_steps

    monkeypatch.setattr(budget, "measure_pace", pace)

    def measuring(config: Config, *_: object) -> float:
        assert config.generator.width == 16, "the narrowest: no width is chosen yet"
        return 2.0

    monkeypatch.setattr(budget, "_measurement_seconds", measuring)
    said: list[str] = []
    found = budget.within(config, data, CPU, seconds, time.perf_counter(), tmp_path, said.append)
    assert (found.generator.width, found.critic.width, found.critic.depth) == (width, width, 1)
    for_training = (0.9 * seconds - 40) / (width**2 / 1000)
    assert for_training - 5 <= found.training.steps <= for_training
    if width > 16:
        assert found.training.steps >= max(1800, fewest)
    assert ", images augmented as far as the critic overfits, measured on" in said[0]


@pytest.mark.parametrize("given", ["generator", "critic", "both"])
def test_a_width_that_is_given_stays_and_the_other_is_chosen(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both are given none is tried but theirs."""
    names = ["generator", "critic"] if given == "both" else [given]
    widths = {f"{name}.width": 24 for name in names}
    config = build_config("images", "digits", None, {**CHOOSING, **widths})
    tried: list[tuple[int, int, str]] = []

    def pace(config: Config, *_: object) -> float:
        tried.append((config.generator.width, config.critic.width, config.training.precision))
        return 1e-6

    monkeypatch.setattr(budget, "measure_pace", pace)
    monkeypatch.setattr(budget, "_measurement_seconds", lambda *_: 1.0)
    data = load_data(config.data)
    found = budget.within(config, data, CPU, 1000, time.perf_counter(), tmp_path)
    for name, network in (("generator", found.generator), ("critic", found.critic)):
        assert network.width == (24 if name in names else 128)
    assert tried == list(dict.fromkeys(tried))
    assert (len(tried) == 2) == (given == "both"), "in both precisions"


def test_images_train_in_the_precision_that_is_quicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the width, and on CPUs; what is hopeless is not tried again, nor what is not asked for."""
    halves: dict[int, float] = {}
    tried: list[tuple[int, str]] = []

    def pace(config: Config, *_: object) -> float:
        width, precision = config.generator.width, config.training.precision
        tried.append((width, precision))
        return 0.2 * (halves.get(width, 1.1) if precision == "bf16" else 1)

    data = load_data(build_config("images", "digits", None, CHOOSING).data)

    def found(**settings: object) -> tuple[int, str, int]:
        tried.clear()
        config = build_config("images", "digits", None, {**CHOOSING, **settings})
        made = budget.within(config, data, CPU, 10**6, time.perf_counter(), tmp_path, said.append)
        return made.generator.width, made.training.precision, made.training.steps

    said: list[str] = []
    monkeypatch.setattr(budget, "measure_pace", pace)
    monkeypatch.setattr(budget, "_measurement_seconds", lambda *_: 1.0)
    width, precision, steps = found()
    assert (width, precision) == (128, "fp32")
    assert len(tried) == 2 * len(WIDTHS)
    halves[128] = 0.5
    assert found()[:2] == (128, "bf16")
    assert found()[2] == pytest.approx(2 * steps, rel=1e-3)
    assert re.match(
        r"\d+ steps in bf16, images augmented as far as the critic overfits, measured", said[-1]
    )
    assert found(**{"generator.width": 24, "critic.width": 24})[:2] == (24, "fp32")
    assert found(**{"training.precision": "fp32"})[:2] == (128, "fp32")
    assert tried == [(width, "fp32") for width in WIDTHS]
    halves[16] = 1.6
    assert found()[:2] == (128, "fp32")
    assert tried.count((16, "bf16")) == len([each for each in tried if each[1] == "bf16"]) == 1


@pytest.mark.parametrize("given", [None, "fp32"])
def test_a_run_goes_on_in_the_precision_that_it_began_with(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {} if given is None else {"training.precision": given}
    config = build_config("images", "digits", None, {**CHOOSING, **settings})
    data = load_data(config.data)
    filled = fill_in(config, data.card)
    training = filled.training.model_copy(update={"precision": "bf16", "steps": 123})
    saved = filled.model_copy(update={"training": training}).model_dump()
    monkeypatch.setattr(budget, "newest_checkpoint", lambda folder: folder)
    monkeypatch.setattr(budget, "load_checkpoint", lambda _: SimpleNamespace(config=saved))
    found = budget.within(config, data, CPU, 1000, time.perf_counter(), tmp_path)
    assert (found.training.steps, found.training.precision) == (123, given or "bf16")


def test_rows_train_in_fp32(
    tmp_path: Path, gaussians: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pace(config: Config, *_: object) -> float:
        return 0.1 if config.training.precision == "bf16" else 0.2

    monkeypatch.setattr(budget, "measure_pace", pace)
    monkeypatch.setattr(budget, "_measurement_seconds", lambda *_: 1.0)
    config = configured(**{"selection.every": 0})
    found = budget.within(config, gaussians, CPU, 1000, time.perf_counter(), tmp_path)
    assert found.training.precision == "fp32"


def test_widths_for_which_there_is_no_memory_are_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pace(config: Config, *_: object) -> float:
        if config.generator.width > most:
            raise MemoryError
        return 1e-6

    config = build_config("images", "digits", None, CHOOSING)
    data = load_data(config.data)
    monkeypatch.setattr(budget, "measure_pace", pace)
    monkeypatch.setattr(budget, "_measurement_seconds", lambda *_: 1.0)
    most = 48
    found = budget.within(config, data, CPU, 1000, time.perf_counter(), tmp_path)
    assert found.generator.width == 48
    most = 1
    with pytest.raises(MemoryError):
        budget.within(config, data, CPU, 1000, time.perf_counter(), tmp_path)


@pytest.mark.parametrize(
    ("seconds", "every", "measuring", "steps", "measured"),
    [
        # 100 s for judging, 10 measurements of 10 s: 800 s at 0.5 s a step.
        (1000, 0, 10.0, 1600, 160),
        # Ten times 2000 s would hold 22.2, but 20 are enough: 40 s of them.
        (2000, 0, 2.0, 3520, 176),
        # A measurement after each 100 steps: 60 s for as many, of the 900 s that are left.
        (1000, 100, 10.0, 1500, 100),
        # The judging's samples take 4 * 30 s * 100 / 200; at least five measurements.
        (300, 0, 30.0, 180, 36),
        (252, 0, 30.0, 84, 17),
        # Of the 5 measurements each has a step: 210 s and 3 s, and no less.
        (213.01, 0, 30.0, 6, 2),
        (212.0, 0, 30.0, None, None),
        (1000, 1, 300.0, 1, 1),
        (800, 1, 300.0, None, None),
    ],
)
def test_steps_and_measurements_fill_the_time(
    seconds: float, every: int, measuring: float, steps: int | None, measured: int | None,
    tmp_path: Path, gaussians: Dataset, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By a clock that stands still, so that nothing is lost to the measurement of the pace."""
    config = configured(**{"selection.every": every, "training.num_critic_steps": 2})
    said: list[str] = []
    monkeypatch.setattr(budget, "measure_pace", lambda *_: 0.25)  # of a critic step
    monkeypatch.setattr(budget, "_measurement_seconds", lambda *_: measuring)
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: 77.0))
    arguments = config, gaussians, CPU, seconds, 77.0, tmp_path, said.append
    if steps is None:
        with pytest.raises(UserError, match=r"are too few: \d+ measurements and the judging"):
            budget.within(*arguments)
        return
    found = budget.within(*arguments)
    assert found.selection is not None
    assert (found.training.steps, found.selection.every) == (steps, measured)
    judging = max(seconds / 10, 2 * measuring)
    ends = [datetime.now() + timedelta(seconds=seconds - judging - late) for late in (0, 60)]
    assert said in [
        [f"{steps} steps, measured on validation items after each {measured}; training until "
         f"about {end:%H:%M}, then judging for about {judging / 60:.1f} min"]
        for end in ends
    ]  # fmt: skip


def test_a_measurement_is_timed_once_it_has_been_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, of a few samples, loads what is loaded once; items are those to validate."""
    config = build_config("digits", None, None, {**CHOOSING, "evaluation.extractor": "pixels"})
    data = load_data(config.data)
    config = fill_in(config, data.card)
    clock, given = [5.0], list[Any]()

    def measure(*arguments: Any) -> float:
        given.append(arguments)
        clock[0] += arguments[-1]
        return headline(*arguments)

    monkeypatch.setattr(budget, "headline", measure)
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert budget._measurement_seconds(config, data, CPU, 30) == 30
    assert [len(arguments) for arguments in given] == [5, 5]
    for _, judged, generator, extractor, samples in given:
        assert (judged.is_heldout == data.is_validation).all()
        assert extractor.card.name == "pixels"
        assert isinstance(generator, torch.nn.Module)
        assert samples in (20, 30)


@pytest.mark.parametrize("given", [{}, {"generator.width": 8}, {"critic.width": 8}])
def test_a_run_that_goes_on_keeps_the_width_that_it_chose(
    given: dict[str, Any], tmp_path: Path
) -> None:
    config = build_config("images", "digits", None, {**CHOOSING, **given})
    data = load_data(config.data)
    began = fill_in(config, data.card, image_width=12)  # another width than is usual
    began = began.model_copy(
        update={"training": began.training.model_copy(update={"steps": 2, "checkpoint_every": 1})}
    )
    train(began, data, tmp_path / CHECKPOINTS, CPU)
    again = config.model_copy(
        update={"training": config.training.model_copy(update={"checkpoint_every": 1})}
    )
    assert budget.within(again, data, CPU, 600, time.perf_counter(), tmp_path) == began


@pytest.mark.slow  # it takes its minute
def test_a_budget_chooses_steps_and_measurements(
    train_command: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command("--budget", "60s") == 0
    run = load_artifact(tmp_path / "run" / "artifact").run
    assert run.config.selection is not None
    assert run.config.data.validation_fraction == 0.1
    measured = run.provenance["selected"]["measured"]
    assert 5 <= len(measured) <= 20
    assert measured[-1][0] == run.config.training.steps
    assert f"{run.config.training.steps} steps" in capsys.readouterr().out
    assert train_command("--budget", "600s", "--resume") == 0, "goes on as it began: is complete"
    assert "already complete; a longer --budget needs another --out" in capsys.readouterr().out
    assert load_artifact(tmp_path / "run" / "artifact").run == run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--budget", "20s", "--steps", "10"), "exclude each other"),
        (("--budget", "0s"), "is no time"),
        (("--budget", "0.01s"), "too few"),
        (("--budget", "20s", "--set", "selection=null"), "leave selection=null out"),
    ],
)
def test_budgets_that_cannot_be(
    train_command: Train, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command(*arguments) == 2
    assert said in capsys.readouterr().err
