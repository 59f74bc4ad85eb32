"""The step whose networks are served, chosen by validation items."""

import base64
import copy
import dataclasses
import functools
import io
import json
import math
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

from models.artifact import CARD, load_artifact
from models.config import Config, EvaluationConfig
from models.errors import UserError
from models.images import MARGIN
from models.selection import VALIDATION_SHARE, SelectionConfig
from tests.artifacts import tiny_config
from tests.test_judging import dataset
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
from training.presets import build_config, fill_in
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
        patched.setattr(selection_module, "headline_and_error", lambda *_: (next(measured), 0.0))
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

    def measure(*arguments: Any) -> tuple[float, float]:
        given.append(arguments)
        return values[step], 0.0

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
        return int(noted["step"]), float(noted["lowest"]), held

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(selection_module, "headline_and_error", measure)
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
            "step": 20, "figure": again.figure, "best_step": 20, "standard_error": 0.0,
            "measured": [[10, 4.0], [15, 2.0], [20, 1.0]],
        }  # fmt: skip
        for network in (state.ema, state.critic):
            assert all((tensor == 99).all() for tensor in network.state_dict().values())
        values[23], step = 0.5, 23
        patched.setattr(selection_module, "put", Mock(side_effect=OSError("full")))
        with pytest.raises(OSError, match="full"):
            again(step, state)
        assert not list(folder.glob("*.partial"))
        assert kept() == (20, 1.0, {99})


def test_the_last_step_within_a_standard_error_of_the_best_is_taken(
    tmp_path: Path, gaussians: Dataset
) -> None:
    """By hand: 3.0 is the best, 0.5 its error; later errors, and what is 3.5 or more, do not count.

    The same steps measured again, as by a run that goes on, end with the same networks.
    """
    config = configured()
    data, said, folder = gaussians, list[str](), tmp_path / "run" / "checkpoints"
    state = begin(config, data, tmp_path, CPU, None).state
    found = {
        5: (4.0, 2.0), 10: (3.0, 0.5), 15: (3.25, 9.0), 20: (3.5, 9.0), 25: (3.4, 9.0),
        30: (3.6, 9.0), 35: (5.0, 9.0), 40: (3.5, 9.0),
    }  # fmt: skip
    step = 0

    def go_through(selection: Selection, first: int) -> list[int]:
        nonlocal step
        kept = []
        for step in range(first, 41, 5):
            for tensor in state.ema.state_dict().values():
                tensor.fill_(step)
            selection(step, state)
            with safe_open(folder / "best.safetensors", framework="pt") as file:
                kept.append(int(file.metadata()["step"]))
        return kept

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(selection_module, "headline_and_error", lambda *_: found[step])
        patched.setattr(Selection, "_page", lambda *_: "")
        selection = Selection(config, data, folder, None, said.append)
        assert go_through(selection, 5) == [5, 10, 15, 15, 25, 25, 25, 25]
        for checkpoint in (5, 10, 15, 30):
            folder.joinpath(f"step-{checkpoint:08d}.safetensors").touch()
            again = Selection(config, data, folder, None, said.append)
            assert go_through(again, checkpoint + 5)[-1] == 25
    assert again.take(state)["selected"] == {
        "step": 25, "figure": "wasserstein_1", "best_step": 10, "standard_error": 0.5,
        "measured": [[number, value] for number, (value, _) in found.items()],
    }  # fmt: skip
    assert all((tensor == 25).all() for tensor in state.ema.state_dict().values())
    assert said[-1] == (
        "the networks of step 25 are taken, the last within a standard error (0.5) of the best, "
        "step 10; nothing was better in the 30 steps after it: more would not help"
    )


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
