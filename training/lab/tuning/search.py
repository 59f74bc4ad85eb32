"""What every process of a search must know, and what the trials of its study note."""

from __future__ import annotations

from typing import Any, NamedTuple

from optuna.trial import TrialState

from models.config import Config
from training.lab.tuning.space import Setting, Space, usual_space
from training.presets import build_config

VALIDATION = {"data.validation_fraction": 0.2}
"""The share of the training items on which trials are measured, and none trains."""
REDUCTION = 3
"""One trial of so many goes on at each rung (Jamieson & Talwalkar 2016; Li et al. 2018)."""
RUNGS = (1, 3, 9, 27)
"""Parts of 27 of a trial's steps after which it is measured."""
MADE = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of trials that count; of a process that was killed or stopped, another makes the trial."""
FEWEST_STEPS = RUNGS[-1]
CHOSEN, KIND, FAILED, AGAIN = "chosen", "constraint", "failed", "again"
"""What a trial notes: its settings by dotted keys, its constraint, why it could not go on, and the
number of a trial whose settings it tries again."""


class Search(NamedTuple):
    """What every process of a search must know."""

    source: str
    preset: str
    constraints: tuple[str, ...]
    fixed: dict[str, Any]
    """Settings of every trial, by dotted keys."""
    searched: Space
    """What the user wants searched."""
    trial_seconds: float
    """Seconds of training of a whole trial."""
    device: str
    storage: str
    """Journal file of the study, or the URL of its database."""
    name: str
    """Of the study."""
    deadline: float
    """When the last trial ends, in seconds since 1970."""
    max_trials: int | None
    """Trials after which no further one begins; None: as many as there is time for."""
    tracked: bool
    """Whether the trials are written to MLflow."""

    def trial_config(self, kind: str, chosen: dict[str, Any]) -> Config:
        """The configuration of a trial, but for its steps.

        Raises:
            UserError: the settings do not go together.
        """
        return build_config(self.preset, self.source, kind, {**self.fixed, **chosen})

    def space(self, own: Config) -> dict[str, Setting]:
        """What is searched of a constraint, whose own configuration it is."""
        space = {**usual_space(own), **self.searched}
        return {key: setting for key, setting in space.items() if key not in self.fixed}

    @property
    def config(self) -> Config:
        """The configuration of the first constraint with nothing chosen: the data are all's."""
        return self.trial_config(self.constraints[0], {})
