"""The step whose networks are served, chosen by validation items, and runs within a time."""

import base64
import copy
import dataclasses
import functools
import io
import json
import math
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file

import wgan_cli
from models.artifact import CARD, load_artifact
from models.config import Config, EvaluationConfig
from models.errors import UserError
from models.images import MARGIN
from models.run_folder import CHECKPOINTS
from models.selection import VALIDATION_SHARE, SelectionConfig
from tests.artifacts import tiny_config
from tests.test_judging import dataset
from training import budget
from training import selection as selection_module
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import CheckpointError, TrainingState
from training.engine.loop import train
from training.engine.origin import load_start
from training.engine.runs import Interrupted, begin, no_watch
from training.engine.stack import NotStackable
from training.engine.stacked import train_together
from training.judging import evaluate
from training.judging.classifier import fit_classifier
from training.judging.extractors import load_extractor
from training.judging.headline import headline
from training.presets import WIDTHS, build_config, fill_in
from training.run import run_training
from training.selection import Selection

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def configured(**overrides: Any) -> Config:
    settings = {
        "generator.width": 8,
        "critic.width": 8,
        "critic.depth": 2,
        "evaluation.samples": 100,
        "data.validation_fraction": 0.2,
        "selection.every": 5,
        "selection.samples": 200,
        "training.batch_size": 32,
        "training.num_critic_steps": 1,
        "training.steps": 40,
        "training.log_every": 10,
        "training.checkpoint_every": 15,
        # The average follows closely, so that the figure rises and falls.
        "training.ema_decay": 0.0,
        "training.learning_rate": 0.02,
    }
    return build_config("8gaussians", None, None, {**settings, **overrides})


@pytest.fixture(scope="module")
def gaussians() -> Dataset:
    """The data of `configured`."""
    return load_data(configured().data)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selection") / "run"
    run_training(configured(), folder, CPU, register=False)
    return folder


def test_the_networks_of_the_best_step_are_served(chosen: Path, tmp_path: Path) -> None:
    """Found again by training without a selection, and measuring each fifth step from outside."""
    config = configured()
    data = load_data(config.data)
    plain = config.model_copy(update={"selection": None})
    kept: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    values: dict[int, float] = {}

    def watch(step: int, state: TrainingState) -> None:
        if step % 5 == 0:
            values[step] = headline(plain, data.to_validate(), state.ema, None, 200)
            kept[step] = copy.deepcopy((state.ema.state_dict(), state.critic.state_dict()))

    train(fill_in(plain, data.card), data, tmp_path, CPU, watch=watch)
    best = min(values, key=values.__getitem__)
    assert best not in (5, 40), "or a choice could not be told from the first or last step"
    model = load_artifact(chosen / "artifact")
    selected = model.run.provenance["selected"]
    assert selected["step"] == best
    assert dict(selected["measured"]) == values
    generator, critic = kept[best]
    for name, tensor in generator.items():
        assert torch.equal(model.generator.state_dict()[name], tensor), name
    for name, tensor in critic.items():
        assert torch.equal(model.critic.state_dict()[name], tensor), name
    assert "<svg" in (chosen / "progress.html").read_text()


@pytest.mark.usefixtures("charts_undrawn")
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, chosen: Path) -> None:
    asked = 0

    def stop_requested() -> bool:
        nonlocal asked
        asked += 1
        return asked == 23

    with pytest.raises(Interrupted):
        run_training(configured(), tmp_path, CPU, register=False, stop_requested=stop_requested)
    run_training(configured(), tmp_path, CPU, register=False, resume=True)
    one, other = (load_artifact(folder / "artifact") for folder in (chosen, tmp_path))
    assert one.run.provenance["selected"] == other.run.provenance["selected"]
    assert (one.sample(0, 20) == other.sample(0, 20)).all()


@pytest.mark.usefixtures("charts_undrawn")
def test_patience_ends_a_run_and_a_repetition_trains_no_further(tmp_path: Path) -> None:
    config = configured(**{"selection.patience": 2})
    said: list[str] = []
    run_training(config, tmp_path, CPU, register=False, say=said.append)
    selected = load_artifact(tmp_path / "artifact").run.provenance["selected"]
    steps = [step for step, _ in selected["measured"]]
    assert steps[-1] == selected["step"] + 2 * 5 < 40
    assert any("more would not help" in line for line in said)
    # Killed after the last checkpoint, before the artifact.
    before = load_artifact(tmp_path / "artifact").sample(0, 20)
    for path in sorted((tmp_path / "artifact").iterdir()):
        path.unlink()
    (tmp_path / "artifact").rmdir()
    run_training(config, tmp_path, CPU, register=False, resume=True)
    again = load_artifact(tmp_path / "artifact")
    assert again.run.provenance["selected"] == selected
    assert (again.sample(0, 20) == before).all()


@pytest.mark.usefixtures("charts_undrawn")
def test_a_run_that_patience_ended_is_not_extended(tmp_path: Path) -> None:
    """Whoever begins with its model counts the steps of what is served."""
    patient = {"selection.patience": 1}
    run_training(configured(**patient), tmp_path, CPU, register=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    selected = load_artifact(tmp_path / "artifact").run.provenance["selected"]
    (last, _) = selected["measured"][-1]
    longer = configured(**patient, **{"training.steps": 80})
    with pytest.raises(CheckpointError, match=rf"ended by selection.patience at step {last}, so"):
        run_training(longer, tmp_path, CPU, register=False, resume=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert selected["step"] < last < 40
    assert load_start(str(tmp_path / "artifact")).card.steps == selected["step"]


@pytest.mark.parametrize(
    ("values", "patience", "is_better"),
    [
        ([4, 3, 2, 1], None, True),
        ([4, 3, 1, 2], None, True),
        ([4, 3, 1, 2, 2], None, False),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3, 4], None, False),  # though the best came late
        ([4, 3, 1, 2], 1, False),
    ],
)
def test_more_steps_may_help_where_the_last_measurements_were_best(
    values: list[float], patience: int | None, is_better: bool, tmp_path: Path, gaussians: Dataset
) -> None:
    config = configured(**{"selection.patience": patience})
    data, said = gaussians, list[str]()
    selection = Selection(config, data, tmp_path, None, said.append)
    state = begin(config, data, tmp_path, CPU, None).state
    measured = iter(values)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(selection_module, "headline", lambda *_: next(measured))
        for number in range(len(values)):
            selection(5 * (number + 1), state)
    selection.take(state)
    assert ("more steps or a longer --budget may help" in said[-1]) == is_better
    assert ("more would not help" in said[-1]) != is_better


def test_the_best_of_equals_is_the_first_and_patience_counts_from_it(
    tmp_path: Path, gaussians: Dataset
) -> None:
    config = configured(**{"selection.patience": 3})
    selection = Selection(config, gaussians, tmp_path, None)
    selection.measured = {5: 2.0, 10: 1.0, 15: 1.0, 20: 3.0, 25: 1.5, 30: 0.5}
    assert selection.best() == 30
    assert selection.best(25) == selection.best(15) == 10
    assert [selection.is_over(step) for step in (5, 10, 20, 24, 25, 30)] == [
        False, False, False, False, True, False,
    ]  # fmt: skip


@pytest.mark.usefixtures("charts_undrawn")
def test_what_was_measured_is_kept_with_the_networks_of_the_best(
    tmp_path: Path, gaussians: Dataset
) -> None:
    """Each fifth step and the last are measured; what is no number counts not, and leaves no trace.

    A run that goes on measures again what comes after its checkpoint.
    """
    config = configured(**{"training.steps": 23})
    data, said, folder = gaussians, list[str](), tmp_path / "run" / "checkpoints"
    state = begin(config, data, tmp_path, CPU, None).state
    values = {5: math.nan, 10: 4.0, 15: 2.0, 20: 3.0, 23: 2.0}
    measured: dict[int, float] = {}
    given: list[Any] = []
    best, page, step = folder / "best.safetensors", folder.parent / "progress.html", 0

    def measure(*arguments: Any) -> float:
        given.append(arguments)
        return values[step]

    def fill(number: float) -> None:
        for network in (state.ema, state.critic):
            for tensor in network.state_dict().values():
                tensor.fill_(number)

    def kept() -> tuple[int, float, set[float]]:
        with safe_open(best, framework="pt") as file:
            noted = file.metadata()
        tensors = load_file(best)
        assert {name.partition(".")[0] for name in tensors} == {"ema", "critic"}
        held = {float(x) for tensor in tensors.values() for x in (tensor.min(), tensor.max())}
        return int(noted["step"]), float(noted["value"]), held

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(selection_module, "headline", measure)
        folder.mkdir(parents=True)  # of a run that left no step what there is is forgotten
        (folder / "validation.json").write_text("[[3, 0.0]]")
        best.write_bytes(b"of another run")
        selection = Selection(config, data, folder, None, said.append)
        assert (selection.best(), selection.take(state), [*folder.iterdir()]) == (None, {}, [])
        folder.rmdir()
        folder.parent.rmdir()
        assert not selection.is_over(23)
        for step in range(1, 24):
            fill(step)
            selection(step, state)
            if step in values and math.isfinite(values[step]):
                measured[step] = values[step]
                first = min(measured, key=lambda x: (measured[x], x))
                assert selection.measured == measured
                assert json.loads((folder / "validation.json").read_text()) == [
                    [*x] for x in measured.items()
                ]
                assert kept() == (first, measured[first], {first})
                assert f"The networks of step {first} are the best so far" in page.read_text()
                assert f"at step {step}" in page.read_text()
                assert "data:image/png" not in page.read_text()
            assert best.exists() == bool(measured)
        assert said == [
            f"step {step}: wasserstein_1 of validation items {value:g}{told}"
            for (step, value), told in zip(
                measured.items(), [*[", the best so far"] * 2, *["; best at 15"] * 2], strict=True
            )
        ]
        assert [x[2] is state.ema and x[4] == 200 for x in given] == [True] * 5
        held = data.to_validate().sample_indices(10**6, heldout=True)
        assert (given[0][1].sample_indices(10**6, heldout=True) == held).all()
        assert sorted(path.name for path in folder.iterdir()) == [best.name, "validation.json"]
        # Of a run that left a checkpoint what was measured holds, until it is measured again.
        (folder / "step-00000015.safetensors").touch()
        again = Selection(config, data, folder, None)
        assert again.measured == measured
        step = 20
        values[20] = 1.0
        fill(99)
        again(step, state)
        assert again.measured == {10: 4.0, 15: 2.0, 20: 1.0}
        assert kept() == (20, 1.0, {99})
        fill(0)
        taken = again.take(state)["selected"]
        assert taken == {
            "step": 20, "figure": again.figure, "measured": [[10, 4.0], [15, 2.0], [20, 1.0]],
        }  # fmt: skip
        for network in (state.ema, state.critic):
            assert all((tensor == 99).all() for tensor in network.state_dict().values())
        values[23], step = 0.5, 23
        patched.setattr(selection_module, "put", Mock(side_effect=OSError("full")))
        with pytest.raises(OSError, match="full"):
            again(step, state)
        assert not list(folder.glob("*.partial"))
        assert kept() == (20, 1.0, {99})


class Shades(torch.nn.Module):
    """A generator of one colour for each class."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.dark = shape, torch.nn.Parameter(torch.tensor(-0.5))

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        assert not self.training
        shade = self.dark + (0 if labels is None else 0.25 * labels[:, None, None, None])
        made = torch.zeros(len(z), *self.shape) + shade
        made[:, :1] += 0.25  # the first channel is lighter
        return made


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 20), (5, 11, 9), (3, 40, 33)])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_page_shows_samples_of_each_class_in_turn(
    channels: int, height: int, width: int, conditional: bool, tmp_path: Path
) -> None:
    """Large enough to be seen; of more channels than a picture has the first."""
    rng = default_rng(0)
    items = rng.integers(0, 256, (90, height, width, channels), np.uint8)
    data = dataset(items, 30, rng.integers(3, size=90), classes=["a", "b", "c"])
    data = dataclasses.replace(data, is_validation=~data.is_heldout & (np.arange(90) % 2 > 0))
    config = tiny_config(conditional=conditional)
    settings = configured().selection
    config = config.model_copy(update={"selection": settings})
    extract = load_extractor("pixels", EvaluationConfig())
    selection = Selection(config, data, tmp_path / "checkpoints", extract)
    generator = Shades((channels, height, width)).train()
    state: Any = SimpleNamespace(ema=generator, critic=torch.nn.Linear(1, 1))
    selection(5, state)
    assert generator.training
    page = (tmp_path / "progress.html").read_text()
    encoded = page.partition("data:image/png;base64,")[2].partition('"')[0]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    factor = max(1, 32 // max(height, width))
    cell = factor * height + MARGIN, factor * width + MARGIN
    assert picture.shape[:2] == (6 * cell[0] + MARGIN, 6 * cell[1] + MARGIN)
    assert picture.ndim == (3 if channels == 3 else 2)
    for i in range(36):
        top, left = (MARGIN + x * size for x, size in zip(divmod(i, 6), cell, strict=True))
        shown = picture[top : top + cell[0] - MARGIN, left : left + cell[1] - MARGIN]
        first = shown if shown.ndim == 2 else shown[..., 0]
        shade = -0.25 + 0.25 * (i % 3) * conditional
        assert (first == round((shade + 1) * 127.5)).all(), i


@pytest.mark.usefixtures("charts_undrawn")
def test_networks_of_a_run_that_left_no_step_are_forgotten(tmp_path: Path) -> None:
    config = configured()
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "validation.json").write_text("[[3, 0.0]]")
    (checkpoints / "best.safetensors").write_bytes(b"of another run")
    run_training(config, tmp_path, CPU, register=False)
    selected = load_artifact(tmp_path / "artifact").run.provenance["selected"]
    assert 3 not in dict(selected["measured"])


@pytest.mark.usefixtures("charts_undrawn")
def test_a_run_that_selects_can_be_extended(tmp_path: Path) -> None:
    """Its measurements come at other steps then, unless they are set."""
    run_training(configured(**{"selection.every": 0}), tmp_path, CPU, register=False)
    longer = configured(**{"selection.every": 0, "training.steps": 80})
    run_training(longer, tmp_path, CPU, register=False, resume=True)
    run = load_artifact(tmp_path / "artifact").run
    assert run.config.selection is not None
    assert run.config.selection.every == 4
    assert run.provenance["extended"] == [40]
    assert run.provenance["selected"]["measured"][-1][0] == 80


def test_runs_that_select_are_not_stacked(tmp_path: Path) -> None:
    config = configured()
    data = load_data(config.data)
    with pytest.raises(NotStackable, match="own best step"):
        train_together([config] * 2, data, [tmp_path / "0", tmp_path / "1"], [no_watch] * 2)


def test_the_card_names_the_step(chosen: Path) -> None:
    model = load_artifact(chosen / "artifact")
    (line,) = (
        line
        for line in (chosen / "artifact" / CARD).read_text().splitlines()
        if "on validation items" in line
    )
    assert f"step {model.run.provenance['selected']['step']}, " in line
    assert line.endswith("8 that were measured until step 40")


@pytest.mark.usefixtures("charts_undrawn")
def test_images_are_shown_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(fit_classifier, steps=2)  # how well it judges is not asked here
    monkeypatch.setattr(evaluate, "fit_classifier", quick)
    settings = {"selection.every": 10, "data.validation_fraction": 0.2, "evaluation.samples": 50}
    small = {"generator.width": 8, "critic.width": 8, "training.steps": 10}
    config = build_config("digits", None, None, {**settings, **small, "conditional": True})
    run_training(config, tmp_path, CPU, register=False)
    assert "data:image/png" in (tmp_path / "progress.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"selection": {}}, "data.validation_fraction"),
        (
            {
                "selection": {},
                "data.validation_fraction": 0.1,
                "privacy.epsilon": 3,
                "generator.normalization": "none",
            },
            "selection",
        ),
    ],
)
def test_what_a_selection_does_not_go_with(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_config("table", "any.csv", None, overrides)


BARE = {"selection": {}, "data.validation_fraction": 0.1}


def test_numbers_of_a_selection_are_those_that_the_docs_tell() -> None:
    told = (ROOT / "docs/budget.md").read_text()
    assert "A tenth of the training items\n(`data.validation_fraction`)" in told
    assert VALIDATION_SHARE == 0.1
    usual = SelectionConfig()
    assert f"at most, in a measurement | {usual.samples:,} |" in told
    assert "ends | none: all steps are made |" in told
    assert usual.patience is None
    assert "between measurements | a twentieth of all |" in told
    config = build_config("8gaussians", None, None, BARE)
    filled = fill_in(config, load_data(config.data).card)
    assert filled.selection is not None
    assert filled.selection.every == -(-config.training.steps // 20)


@pytest.mark.parametrize(("name", "least"), [("every", 0), ("patience", 1), ("samples", 20)])
def test_a_selection_s_numbers_have_a_least(name: str, least: int) -> None:
    assert getattr(SelectionConfig.model_validate({name: least}), name) == least
    with pytest.raises(ValidationError, match=f"greater than or equal to {least}"):
        SelectionConfig.model_validate({name: least - 1})


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
    ("seconds", "width"),
    [
        # So many images get 7,200 steps, of which a quarter is enough; a step takes the square of
        # its width in milliseconds, a tenth of the time is for judging, and 20 measurements of 2 s.
        (1000, 16),
        ((1800 * 0.032**2 * 1000 + 40) / 0.9 + 1, 32),
        ((1800 * 0.048**2 * 1000 + 40) / 0.9 - 1, 32),
        (10**6, 128),
        (500, 16),  # the narrowest at least, with fewer steps
    ],
)
def test_a_budget_chooses_the_widest_networks_that_have_time(
    seconds: float, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    found = budget.within(config, data, CPU, seconds, time.perf_counter(), tmp_path)
    assert (found.generator.width, found.critic.width, found.critic.depth) == (width, width, 1)
    for_training = (0.9 * seconds - 40) / (width**2 / 1000)
    assert for_training - 5 <= found.training.steps <= for_training
    if width > 16:
        assert found.training.steps >= 1800


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
    assert re.match(r"\d+ steps in bf16, measured", said[-1])
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
