"""The search for settings: what it searches, judges on, keeps, and goes on with."""

import json
import multiprocessing
import shlex
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

import wgan_cli
from models.artifact import load_artifact
from models.config import DataConfig
from models.errors import UserError
from tests.runs import WARM
from training.data.dataset import load_data
from training.engine.runs import Interrupted
from training.lab.tuning import call, tune
from training.lab.tuning.search import RUNGS
from training.lab.tuning.space import (
    Choices,
    Range,
    choose,
    middle,
    parse_settings,
    usual_space,
)
from training.presets import build_config

TINY = {
    "generator.width": 8,
    "critic.width": 8,
    "critic.depth": 2,
    "training.batch_size": 32,
    "training.num_critic_steps": 1,
    "evaluation.samples": 100,
    "training.steps": 54,
}
KINDS = ("gradient_penalty", "weight_clipping")


WHOLE = ("training.batch_size", "training.num_critic_steps", "critic.width")


def test_between_whole_ends_all_choices_are_whole() -> None:
    space = parse_settings([f"{key}=2..128" for key in WHOLE])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    chosen = [choose(study.ask(), space, "gradient_penalty") for _ in range(40)]
    for choice in chosen:
        assert build_config("digits", None, "gradient_penalty", choice).training.batch_size >= 2
    sizes = [choice["training.batch_size"] for choice in chosen]
    assert min(sizes) < 8
    assert max(sizes) > 64
    share = np.mean([size <= 16 for size in sizes])
    assert share == pytest.approx(0.5, abs=0.25), "each magnitude is as likely as the others"


def test_a_range_with_fractions_of_a_whole_setting_is_told_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    searched = parse_settings(["training.batch_size=16.0..64.0"])
    with pytest.raises(UserError, match=r"batch_size.*integer"):
        tune("8gaussians", 9, tmp_path, searched=searched, overrides={}, register=False)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuning") / "out"
    tune("8gaussians", 900, out, constraints=KINDS, overrides=TINY, max_trials=9, register=False)
    return out


def test_a_search_has_its_own_items_to_judge_on() -> None:
    data = load_data(DataConfig(source="digits", validation_fraction=0.2))
    search = data.to_validate()
    assert (search.is_training == data.is_training).all()
    assert not (search.is_heldout & data.is_heldout).any()
    assert not (search.is_heldout & data.is_training).any()
    assert len(search.heldout) == data.card.validation_count > 200


def test_ranges_are_around_the_constraints_own_settings() -> None:
    config = build_config("digits", constraint="gradient_penalty")
    space = usual_space(config)
    assert space["constraint.strength"] == Range(1.0, 100.0)
    assert space["generator.width"] == Choices((16, 32, 64))
    own = middle(config, space, "gradient_penalty")
    assert own["gradient_penalty.constraint.strength"] == 10
    assert {key.removeprefix("gradient_penalty.") for key in own} == set(space)
    assert "constraint.strength" not in usual_space(build_config("digits", None, "spectral_norm"))
    rate = space["training.learning_rate"]
    assert isinstance(rate, Range)
    assert np.sqrt(rate.low * rate.high) == pytest.approx(config.training.learning_rate)


def test_the_critic_s_own_rate_is_searched_where_that_is_asked() -> None:
    """A configuration without one is not in the middle of it."""
    config = build_config("digits")
    assert "training.critic_learning_rate" not in usual_space(config)
    asked = parse_settings(["training.critic_learning_rate=1e-4..0.01"])
    assert middle(config, asked, "lipschitz_penalty") == {}
    own = build_config("digits", overrides={"training.critic_learning_rate": 1e-3})
    assert list(middle(own, asked, "lipschitz_penalty").values()) == [1e-3]


@pytest.mark.parametrize(
    "text",
    ["critic.width", "critic.width=", "a=2..1", "a=0..1", "a=b..c", "data.size=32,64", "a=..3"],
)
def test_what_cannot_be_searched_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--search"):
        parse_settings([text])


def test_the_best_third_goes_on(searched: Path) -> None:
    answer = json.loads((searched / "tuning.json").read_text())
    trials = [row for row in answer["trials"] if row["values"]]
    # The first trials are each constraint's own settings.
    assert [row["constraint"] for row in trials[:2]] == list(KINDS)
    assert trials[0]["chosen"]["constraint.strength"] == 10
    assert trials[1]["chosen"]["constraint.clip_value"] == 0.01
    reached = [sum(str(part) in row["values"] for row in trials) for part in RUNGS]
    assert reached == sorted(reached, reverse=True)
    assert reached[0] > reached[-1]
    for row in trials:
        assert not row["chosen"].keys() & TINY.keys(), "what is set is not searched"
    furthest = str(max(int(part) for row in trials for part in row["values"]))
    values = {row["number"]: row["values"].get(furthest, np.inf) for row in trials}
    assert answer["winner"].endswith(f"winner-{min(values, key=values.__getitem__)}")


def test_the_winner_is_trained_on_all_and_judged_on_held_out_items(searched: Path) -> None:
    answer = json.loads((searched / "tuning.json").read_text())
    run = load_artifact(Path(answer["winner"]) / "artifact").run
    assert run.config.training.steps == 54
    assert run.config.data.validation_fraction == 0
    whole = load_data(DataConfig(source="8gaussians"))
    assert run.data == whole.card
    figure = answer["figures"][answer["headline"]]
    assert figure["value"] == run.results.figures[answer["headline"]].value
    page = (searched / "report.html").read_text()
    assert "<svg" in page
    assert answer["command"].split(" --out")[0] in page.replace("&#39;", "'").replace("&#34;", '"')


@pytest.mark.usefixtures("charts_undrawn")
def test_the_command_said_trains_the_winner_again(searched: Path, tmp_path: Path) -> None:
    answer = json.loads((searched / "tuning.json").read_text())
    threads, _, *arguments = shlex.split(answer["command"].removesuffix("winner"))
    assert threads == "OMP_NUM_THREADS=1"
    torch.set_num_threads(1)
    assert wgan_cli.main([*arguments, str(tmp_path / "again"), "--no-register"]) == 0
    winner = load_artifact(Path(answer["winner"]) / "artifact")
    again = load_artifact(tmp_path / "again" / "artifact")
    assert (winner.sample(0, 50) == again.sample(0, 50)).all()
    assert winner.run.config == again.run.config


def test_the_same_command_goes_on(searched: Path) -> None:
    before = json.loads((searched / "tuning.json").read_text())
    common = {"constraints": KINDS, "overrides": TINY, "register": False}
    answer = tune("8gaussians", 900, searched, max_trials=11, **common)
    assert answer is not None
    assert answer["trials"][: len(before["trials"])] == before["trials"]
    assert len(answer["trials"]) == 11
    with pytest.raises(UserError, match="other --set or --seed"):
        tune("8gaussians", 900, searched, constraints=KINDS, seed=1, overrides=TINY)
    with pytest.raises(UserError, match="other --constraints"):
        tune("8gaussians", 900, searched, overrides=TINY)
    with pytest.raises(UserError, match="other --search"):
        tune(
            "8gaussians",
            900,
            searched,
            constraints=KINDS,
            overrides=TINY,
            searched={"critic.depth": Choices((2, 3))},
        )
    with pytest.raises(UserError, match="other data"):
        tune("25gaussians", 900, searched, constraints=KINDS, overrides=TINY)


@pytest.fixture
def forked_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of trials without the seconds that their imports take, as in `tests.runs.forked`.

    The test of an error has processes of the usual kind.
    """
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: WARM)


@pytest.mark.usefixtures("charts_undrawn", "forked_trials")
def test_several_processes_share_a_study(tmp_path: Path) -> None:
    storage = str(tmp_path / "shared.journal")
    said: list[str] = []
    common = {"constraints": KINDS, "overrides": TINY, "register": False, "storage": storage}
    where = tmp_path / "0"
    first = tune("8gaussians", 900, where, max_trials=4, processes=2, only_trials=True, **common)
    assert first is None
    assert not (tmp_path / "0" / "report.html").exists()
    answer = tune("8gaussians", 900, tmp_path / "1", max_trials=7, say=said.append, **common)
    assert answer is not None
    numbers = [row["number"] for row in answer["trials"]]
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= 7
    assert any("are there" in line for line in said)


@pytest.mark.timeout(200)
def test_an_error_ends_all_processes_at_once_and_the_time_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "SECONDS_BETWEEN_NOTES", 1000)

    def say(line: str) -> None:
        if line.startswith("trial 0:"):
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):  # and not when 540 s are over
        tune("8gaussians", 900, tmp_path, constraints=KINDS, processes=2, overrides=TINY, say=say)
    assert 0 < json.loads((tmp_path / "unfinished.json").read_text())["seconds"] < 200


def test_the_time_is_noted_within_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a process that is killed in every first trial comes to an end."""
    monkeypatch.setattr(call, "SECONDS_BETWEEN_NOTES", 0)
    said: list[str] = []

    def stop() -> bool:
        return (tmp_path / "unfinished.json").exists()

    with pytest.raises(Interrupted):
        tune("8gaussians", 900, tmp_path, overrides=TINY, say=said.append, stop_requested=stop)
    assert not any(line.startswith("trial 0:") for line in said)


@pytest.mark.usefixtures("charts_undrawn")
def test_trials_that_diverge_or_are_too_large_are_left_out(tmp_path: Path) -> None:
    """A learning rate of 1e30 makes samples that are not finite before anything else looks."""
    wild = {k: v for k, v in TINY.items() if k not in ("training.batch_size", "training.steps")}
    wild |= {"training.steps": 30, "training.log_every": 1000}
    answer = tune(
        "8gaussians",
        900,
        tmp_path,
        constraints=("weight_clipping",),
        searched={
            "training.learning_rate": Choices((1e-4, 1e30)),
            "training.batch_size": Choices((32, 50_000)),
        },
        overrides=wild,
        max_trials=12,
        register=False,
    )
    assert answer is not None
    reasons = {row["failed"] for row in answer["trials"] if row["failed"]}
    assert any("not finite" in reason or "diverged" in reason for reason in reasons), reasons
    assert any("a batch is more than" in reason for reason in reasons), reasons


def test_a_search_in_which_nothing_trains_says_why(tmp_path: Path) -> None:
    diverging = {**TINY, "training.divergence_gap": 1e-9, "training.log_every": 1}
    with pytest.raises(Exception, match="diverged"):
        tune("8gaussians", 90, tmp_path, constraints=KINDS, overrides=diverging, max_trials=2)
    assert not (tmp_path / "unfinished.json").exists(), "the next call has all its time"


def test_mistakes_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    common = ["tune", "--data", "8gaussians", "--out", str(tmp_path / "out"), "--budget"]
    for wrong in (
        ["soon"],
        ["10s", "--constraints", "gradient_penality"],
        ["10s", "--search", "critic.witdh=8,16"],
        ["10s", "--search", "training.learning_rate=-1,2"],
        ["10s", "--only-trials"],
        ["10s", "--storage", "sqlite:///study.db"],
        ["10s", "--set", "constraint.kind=none"],
        ["10s", "--set", "data.validation_fraction=0"],
        ["10s", "--set", "selection.patience=3"],
        ["10s", "--set", "evaluation.target=price"],
        ["10s", "--preset", "digits", "--set", "augmentation.target=0.5"],
        ["10s", "--preset", "table", "--set", "privacy.epsilon=3"],
    ):
        assert wgan_cli.main([*common, *wrong]) == 2, wrong
    assert not (tmp_path / "out" / "study.journal").exists()
