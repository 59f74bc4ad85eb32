"""A search in MLflow: a run of its own, and in it a run for each trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from sqlalchemy.exc import SQLAlchemyError

from models import registry
from models.errors import RegistryError
from models.redaction import redacted
from models.registry_errors import failure
from models.registry_search import all_pages
from training.lab.tuning.search import CHOSEN, FAILED, KIND, Search
from training.lab.tuning.study import trial_row
from training.progress import silent
from training.tracking import LONGEST_PARAMETER, experiment, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

PARENT = "mlflow_run"
"""What a study notes: the search's run in MLflow, under which all machines write their trials."""
TRIAL, WINNER = "trial", "winner"
MLFLOW_PARENT = "mlflow.parentRunId"
PAUSE = 120
"""Seconds for which a server that failed is not asked while trials are made."""
LONGEST_TAG = 5000


class SearchRuns:
    """The runs of a search in MLflow.

    While trials are made, a failure of MLflow is told and costs nothing but what is not written;
    `finish` writes that, and is what fails if it cannot.
    """

    def __init__(
        self, study: optuna.Study, search: Search, figure: str, say: Callable[[str], None] = silent
    ) -> None:
        """Begin without asking MLflow.

        Args:
            study: of the search.
            search: says whether it is tracked.
            figure: that trials are measured by.
            say: takes a line for people.
        """
        self._study, self._search, self._say = study, search, say
        self._metric = f"validation_{figure}"
        self._runs = dict[int, str]()  # of trials that this process makes
        self._pause_ends = 0.0

    def open(self) -> None:
        """Make the search's run, or go on with the one that the study notes.

        Only the process that will train the winner does this: so there is one run.
        """
        with self._unless_away() as api:
            if api:
                self._open(api)

    def show(self, trial: optuna.Trial, chosen: dict[str, Any]) -> None:
        """Show a trial that begins."""
        with self._unless_away() as api:
            if api and (parent := self._study.user_attrs.get(PARENT)):
                row = {"number": trial.number, KIND: trial.params[KIND], CHOSEN: chosen}
                run = _create(api, parent, row)
                self._runs[trial.number] = run.info.run_id
                _log_params(api, run, _params(row))

    def measured(self, number: int, part: int, value: float) -> None:
        """Write what a trial measured after so many parts of its time."""
        with self._unless_away() as api:
            if api and number in self._runs:
                api.log_metric(self._runs[number], self._metric, value, step=part)

    def ended(self, trial: FrozenTrial) -> None:
        """Write what became of a trial that this process made."""
        with self._unless_away() as api:
            if api and trial.number in self._runs:
                self._complete(api, api.get_run(self._runs.pop(trial.number)), trial)

    def left(self) -> None:
        """Write what became of the trial that this process leaves, being stopped."""
        for number in list(self._runs):
            self.ended(self._study.get_trials(deepcopy=False)[number])

    def stopped(self) -> None:
        """Write what is left to be written of a search that is stopped now."""
        with self._unless_away() as api:
            if api:
                api.set_terminated(self._write_missing(api), "KILLED")

    def finish(self, answer: dict[str, Any], number: int, model: str | None, out: Path) -> None:
        """Write what is left to be written, the winner, and the report.

        Args:
            answer: of the search.
            number: of the winning trial.
            model: what the winner is registered as.
            out: the folder with the report.

        Raises:
            RegistryError: MLflow failed.
        """
        from mlflow.entities import Metric

        if not self._search.tracked:
            return
        with self._in_our_words():
            api = registry.client()
            parent = self._write_missing(api)
            children = _children(api, parent)
            (child,) = (c for c in children if c.data.tags[TRIAL] == str(number))
            for one in children:
                if one.data.tags.get(WINNER) == "true":  # of an earlier call
                    api.delete_tag(one.info.run_id, WINNER)
            api.set_tag(child.info.run_id, WINNER, "true")
            now = int(time.time() * 1000)
            figures = answer["figures"].items()
            api.log_batch(parent, [Metric(key, f["value"], now, number) for key, f in figures])
            api.set_tag(parent, WINNER, str(number))
            if model is not None:
                api.set_tag(parent, "winner.model", model)
                run_id = registry.version(*registry.split(model))["run_id"]
                api.set_tag(run_id, "search", parent)
            for file in sorted(out.glob("*.html")) + sorted(out.glob("tuning.json")):
                store(api, parent, file)
            api.set_terminated(parent)

    def _open(self, api: MlflowClient) -> str:
        """The id of the search's run, which is made if there is none."""
        from mlflow.exceptions import MlflowException

        search, run = self._search, None
        if known := self._study.user_attrs.get(PARENT):
            try:
                run = api.get_run(known)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        if run is not None and run.info.lifecycle_stage == "active":
            api.update_run(run.info.run_id, status="RUNNING")
        else:
            run = api.create_run(experiment(), run_name=f"search-{search.config.name}")
            # Before anything else can fail, lest the next call makes another one.
            self._study.set_user_attr(PARENT, run.info.run_id)
        settings = {
            "data": search.source,
            "preset": search.preset,
            "constraints": ", ".join(search.constraints),
            "search": ", ".join(f"{key}={list(s)}" for key, s in search.searched.items()),
            "set": ", ".join(f"{key}={value}" for key, value in search.fixed.items()),
            "trial_seconds": f"{search.trial_seconds:.1f}",
        }
        _log_params(api, run, settings)
        return str(run.info.run_id)

    def _write_missing(self, api: MlflowClient) -> str:
        """Write whatever MLflow lacks of the trials that ended; returns the search's run."""
        parent = self._open(api)
        runs = dict[int, Any]()
        for run in _children(api, parent):
            if runs.setdefault(int(run.data.tags[TRIAL]), run) is not run:
                api.delete_run(run.info.run_id)  # made twice: an answer got lost
        for trial in self._study.trials:
            if not (trial.state.is_finished() and CHOSEN in trial.user_attrs):
                continue
            run = runs.get(trial.number)
            if run is None:
                self._complete(api, _create(api, parent, trial_row(trial)), trial)
            elif run.info.status == "RUNNING":
                self._complete(api, run, trial)
        return parent

    def _complete(self, api: MlflowClient, run: Run, trial: FrozenTrial) -> None:
        from mlflow.entities import Metric, RunTag

        row, run_id = trial_row(trial), run.info.run_id
        _log_params(api, run, _params(row))
        there = {metric.step for metric in api.get_metric_history(run_id, self._metric)}
        now = int(time.time() * 1000)
        metrics = [
            Metric(self._metric, value, now, part)
            for part, value in trial.intermediate_values.items()
            if part not in there
        ]
        reason = row[FAILED]
        state = "failed" if reason else trial.state.name.lower()
        tags = [RunTag("state", state)]
        if reason:
            tags.append(RunTag("reason", redacted(reason)[:LONGEST_TAG]))
        api.log_batch(run_id, metrics, tags=tags)
        api.set_terminated(run_id, "FAILED" if reason else "FINISHED")

    @contextmanager
    def _unless_away(self) -> Iterator[MlflowClient | None]:
        """Yield a client; None if nothing is tracked, or MLflow failed just now."""
        if not self._search.tracked or time.monotonic() < self._pause_ends:
            yield None
            return
        try:
            with self._in_our_words():
                yield registry.client()
        except RegistryError as error:
            self._pause_ends = time.monotonic() + PAUSE
            self._say(f"{error}; the search goes on, and what MLflow lacks is written at its end")

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """Turn what MLflow raises into a `RegistryError`."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, RegistryError, OSError, SQLAlchemyError, ImportError) as error:
            said = getattr(error, "message", error)
            raise failure(f"MLflow at {registry.tracking_uri()} failed ({said})", error) from None


def _create(api: MlflowClient, parent: str, row: dict[str, Any]) -> Run:
    """Make the run of a trial, without parameters."""
    tags = {MLFLOW_PARENT: parent, TRIAL: str(row["number"]), KIND: row[KIND], "state": "running"}
    return api.create_run(experiment(), run_name=f"trial-{row['number']}", tags=tags)


def _params(row: dict[str, Any]) -> dict[str, Any]:
    return {KIND: row[KIND], **row[CHOSEN]}


def _log_params(api: MlflowClient, run: Run, settings: dict[str, Any]) -> None:
    """Write the parameters of a run, unless it has them."""
    from mlflow.entities import Param

    if not run.data.params:
        params = [Param(k, redacted(str(v))[:LONGEST_PARAMETER]) for k, v in settings.items()]
        api.log_batch(run.info.run_id, params=params)


def _children(api: MlflowClient, parent: str) -> list[Any]:
    """The runs of a search's trials."""
    where = [experiment()], f"tags.`{MLFLOW_PARENT}` = '{parent}'"
    return all_pages(lambda page_token: api.search_runs(*where, page_token=page_token))
