"""The winner of a search: which trial it is, and what becomes of one whose training diverges."""

import time
from pathlib import Path
from typing import Any

import pytest
from optuna import Study
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from models.artifact import load_artifact
from models.errors import UserError
from tests.test_tuning import TINY
from tests.test_tuning_study import a_search
from training.engine.runs import Diverged
from training.lab.tuning.call import Call
from training.lab.tuning.search import CHOSEN, KIND
from training.lab.tuning.study import open_study, trial_rows
from training.lab.tuning.tracking import SearchRuns
from training.lab.tuning.winner import train_winner
from training.progress import never

pytestmark = pytest.mark.usefixtures("charts_undrawn")
WILD = {"training.learning_rate": 1e30}
"""Settings whose training diverges."""


def add(
    study: Study, value: float, state: TrialState, chosen: dict[str, Any] | None = None
) -> None:
    """Add a trial that came to a value after all of its time."""
    kinds = ("gradient_penalty", "weight_clipping")
    trial = create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params={KIND: kinds[0]},
        distributions={KIND: CategoricalDistribution(kinds)},
        user_attrs={CHOSEN: chosen or {}},
        intermediate_values={27: value},
    )
    study.add_trial(trial)


def winner(out: Path, budget_seconds: float, said: list[str] | None = None) -> dict[str, Any]:
    """Train the winner of the study in a folder."""
    fixed = {**TINY, "training.log_every": 9}
    search = a_search(str(out / "study.journal"))._replace(fixed=fixed)
    study = open_study(search)
    runs = SearchRuns(study, search, "wasserstein_1")
    call, say = Call(out, budget_seconds), (said if said is not None else []).append
    return train_winner(study, search, call, runs, False, say, never)


def test_only_trials_that_ended_well_can_win(tmp_path: Path) -> None:
    study = open_study(a_search(str(tmp_path / "study.journal")))
    add(study, 0.1, TrialState.RUNNING)  # of a machine that was switched off
    add(study, 0.2, TrialState.FAIL)
    with pytest.raises(UserError, match="no trial could be trained: its process was stopped"):
        winner(tmp_path, 900)
    assert not (tmp_path / "unfinished.json").exists(), "the next call has all its time"
    add(study, 0.9, TrialState.PRUNED)
    add(study, 0.8, TrialState.COMPLETE)
    answer = winner(tmp_path, 900)
    assert answer["winner"] == str(tmp_path / "winner-3")


def test_a_winner_that_diverges_gives_way_to_the_next_best(tmp_path: Path) -> None:
    study = open_study(a_search(str(tmp_path / "study.journal")))
    add(study, 0.1, TrialState.COMPLETE, WILD)
    add(study, 0.2, TrialState.COMPLETE)
    said: list[str] = []
    answer = winner(tmp_path, 900, said)
    assert answer["winner"] == str(tmp_path / "winner-1")
    assert load_artifact(tmp_path / "winner-1" / "artifact").run.config.training.steps == 54
    assert [row["failed"] for row in answer["trials"]][1:] == [None]
    assert "as the winner: " in answer["trials"][0]["failed"]
    assert any("the next best trial is taken" in line for line in said)


def test_a_winner_that_diverges_at_the_end_lets_the_next_call_search(tmp_path: Path) -> None:
    study = open_study(a_search(str(tmp_path / "study.journal")))
    add(study, 0.1, TrialState.COMPLETE, WILD)
    add(study, 0.2, TrialState.COMPLETE)
    begun = time.time()
    with pytest.raises(Diverged, match="the same command searches on"):
        winner(tmp_path, 0.5)
    assert not (tmp_path / "unfinished.json").exists()
    assert Call(tmp_path, 9).started > begun, "it has all its time"
    first, _ = trial_rows(study)
    assert first["failed"]
    assert winner(tmp_path, 900)["winner"] == str(tmp_path / "winner-1")
