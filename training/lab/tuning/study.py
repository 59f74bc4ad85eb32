"""The study of a search: where it is kept, what it notes, and what its trials came to."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    SQLAlchemyError,
)

from models.errors import RegistryError, UnreachableError, UserError, causes
from models.redaction import redacted
from models.registry_errors import database_passes
from models.secret_files import read_secret_files
from training.data.dataset import Dataset
from training.engine.origin import changes, fingerprint
from training.lab.tuning.search import AGAIN, CHOSEN, FAILED, KIND, REDUCTION, Search
from training.lab.tuning.space import middle
from training.presets import fill_in

STORAGE = "WGAN_TUNE_STORAGE"
"""Variable that names the storage, in place of ``--storage``; with ``_FILE``, a file that does."""
SEARCHED = "searched"
"""What a study notes: the data, the settings of all trials, and their length."""
LEFT_OUT = "left_out_"
"""What a study notes, with the number of a trial whose settings diverged as the winner: why."""
GIVEN = "WGAN_TUNE_STORAGE_GIVEN"
"""Variable that holds a URL given otherwise: `models.redaction` knows the environment's secrets."""
OTHERWISE = "take another --out, or with --storage another --study"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
EXAMPLE = "write such as postgresql://user:password@host/database"
HEARTBEAT_SECONDS, SILENT_SECONDS = 30, 120
"""How often whoever makes a trial tells a database that it lives; and the silence after which the
trial counts as killed."""
CONNECT_SECONDS = "10"
TABLE_TRIES, SECONDS_BETWEEN_TRIES = 20, 0.5
NOTE_SECONDS = 60
"""How long to wait for what the process that has just begun a study notes there."""


class _Database(RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        """Tell that a trial's process lives; a database that is away is told the next time."""
        with contextlib.suppress(StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


@contextlib.contextmanager
def named_storage(storage: str | None) -> Iterator[str | None]:
    """Yield the storage that a command is given, or else the environment.

    A password in it stays hidden while the block runs, and in the errors that leave it.

    Args:
        storage: as ``--storage`` names it.

    Raises:
        UserError: the file that is to hold it cannot be read.
    """
    try:
        read_secret_files(STORAGE)
    except RegistryError as error:
        raise UserError(error) from None  # no registry, whose failures pass
    storage = storage or os.environ.get(STORAGE) or None
    if storage is not None and "://" in storage:
        os.environ[GIVEN] = storage
    try:
        yield storage
    finally:
        os.environ.pop(GIVEN, None)


def choice_seeds(
    study: optuna.Study, seed: int, processes: int, is_shared: bool
) -> list[int | None]:
    """Seeds of the choices of each process of a call, for `open_study`.

    No two are the same, nor those of an earlier call: two processes with one seed would choose the
    same settings, and then train the same trials.

    Args:
        study: of which a call makes further trials.
        seed: of the search.
        processes: of this call.
        is_shared: other machines make trials too, which may begin at the same moment with the same
            command; so each process draws a seed of its own, which is None.
    """
    if is_shared:
        return [None] * processes
    made = len(study.get_trials(deepcopy=False))
    return [int(n) for n in np.random.SeedSequence((seed, made)).generate_state(processes)]


def open_study(search: Search, seed: int | None = None) -> optuna.Study:
    """Open the study that all processes of a search share, and make it the first time.

    Args:
        search: names the storage.
        seed: of the choices of this process; None: one that nobody knows.

    Raises:
        UserError: there is no such database, or it refuses; see `reaching`.
    """
    optuna.logging.set_verbosity(logging.ERROR)
    with reaching():
        return optuna.create_study(
            storage=_open_storage(search.storage),
            study_name=search.name,
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=1, reduction_factor=REDUCTION, min_early_stopping_rate=0
            ),
            load_if_exists=True,
        )


def begin(search: Search, data: Dataset) -> tuple[optuna.Study, Search]:
    """Open the study, and have it note what is searched, or require that it notes the same.

    Of several processes that begin it at once, one makes it, and the others wait for its note.

    Returns:
        The study, and the search with the length of trials that the study began with.

    Raises:
        UserError: the study began with other data or settings; or as of `open_study`.
    """
    optuna.logging.set_verbosity(logging.ERROR)
    firsts = _first_choices(search, data)
    then = None
    try:
        with reaching():
            optuna.create_study(storage=_open_storage(search.storage), study_name=search.name)
    except DuplicatedStudyError:
        then = _note(study := open_study(search))
    else:
        study = open_study(search)
    print_of_data = fingerprint(data)
    asked = {
        "--preset": search.preset,
        "--constraints": search.constraints,
        "--search": {key: list(setting) for key, setting in search.searched.items()},
        "--set or --seed": search.fixed,
    }
    if then is None:
        for first in firsts:
            study.enqueue_trial(first)
        now = {"data": print_of_data, "asked": asked, "seconds": search.trial_seconds}
        study.set_user_attr(SEARCHED, now)
        return study, search
    if changed := changes(then["data"], print_of_data):
        raise UserError(f"{search.storage}: searches on other data ({changed}); {OTHERWISE}")
    for what, value in json.loads(json.dumps(asked)).items():
        if then["asked"][what] != value:
            raise UserError(f"{search.storage}: began with other {what}; {OTHERWISE}")
    return study, search._replace(trial_seconds=then["seconds"])


def repeat_killed(study: optuna.Study) -> None:
    """Have the settings of all trials under way tried again: no process is there that makes them.

    Only for a study that has no other users.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        _try_again(study, trial)


def repeat(study: optuna.Study, trial: Trial | FrozenTrial) -> None:
    """Have a trial's settings tried again, by whoever makes the next trial."""
    if trial.params:
        study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Tell in one line what hinders a block that asks a study's database.

    Raises:
        UnreachableError: it does not answer now.
        UserError: its URL is none, its driver is not installed, or it refuses.
    """
    try:
        yield
    except ImportError as error:
        driver = getattr(error.__cause__, "name", None)
        if driver is None:
            raise
        extra = "'wgan-foundry[postgres]'" if driver == "psycopg2" else driver
        raise UserError(
            f"--storage: {driver} is not installed, and is needed here: pip install {extra}"
        ) from None
    except (StorageInternalError, SQLAlchemyError) as error:
        raise _told(error) from None
    except UnboundLocalError as error:  # Optuna's own, where it cannot say how a trial ended
        for behind in causes(error):
            if isinstance(behind, StorageInternalError | SQLAlchemyError):
                raise _told(behind) from None
        raise


def _told(error: BaseException) -> UserError:
    """The error of ours for one of a study's database."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    said = " ".join(str(getattr(cause, "orig", None) or cause or error).split())
    if not isinstance(cause, DBAPIError):
        return UserError(f"--storage: {said}; {EXAMPLE}")
    if not database_passes(cause):
        return UserError(f"--storage: the database refuses: {said}")
    return UnreachableError(
        f"--storage: the database does not answer ({said}); the same command goes on"
    )


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """What each trial of a search chose and came to, in the order in which they began."""
    rows = [trial_row(trial) for trial in study.trials if CHOSEN in trial.user_attrs]
    noted = study.user_attrs
    return [{**row, FAILED: noted.get(f"{LEFT_OUT}{row['number']}", row[FAILED])} for row in rows]


def leave_out(study: optuna.Study, number: int, reason: str) -> None:
    """Have a trial that has ended, which Optuna does not let change, count as failed."""
    study.set_user_attr(f"{LEFT_OUT}{number}", redacted(reason))


def trial_row(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial chose and came to."""
    killed = "its process was stopped" if trial.state == TrialState.FAIL else None
    return {
        "number": trial.number,
        "ended": trial.state in ENDED,
        KIND: trial.params[KIND],
        CHOSEN: trial.user_attrs[CHOSEN],
        "values": {str(part): v for part, v in trial.intermediate_values.items()},
        FAILED: trial.user_attrs.get(FAILED, killed),
    }


def _open_storage(place: str) -> BaseStorage:
    if "://" not in place:
        return JournalStorage(JournalFileBackend(place))
    os.environ.setdefault("PGCONNECT_TIMEOUT", CONNECT_SECONDS)  # else minutes
    # Which driver a URL without one means depends on the version of SQLAlchemy.
    url = re.sub("^postgres(ql)?://", "postgresql+psycopg2://", place)
    try:
        make_url(url)
    except ValueError as error:
        raise UserError(f"--storage: {error}; {EXAMPLE}") from None
    for tries_left in reversed(range(TABLE_TRIES)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return _Database(
                    url,
                    {"pool_pre_ping": True},  # a connection may be cut while a trial trains
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=SILENT_SECONDS,
                    heartbeat_stale_trial_callback=_try_again,
                )
        except (IntegrityError, ProgrammingError):  # another process makes the same tables
            if not tries_left:
                raise
            time.sleep(SECONDS_BETWEEN_TRIES)
        except RuntimeError as error:  # the tables of another version of Optuna
            raise UserError(f"--storage: {' '.join(str(error).split())}") from None
    raise AssertionError


def _try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Have a killed trial's settings tried again, once: they may be what kills, by their size."""
    if AGAIN not in trial.user_attrs:
        repeat(study, trial)


def _note(study: optuna.Study) -> Any:
    """What a study notes; None if whoever began it was killed before."""
    deadline = time.monotonic() + NOTE_SECONDS
    while (note := study.user_attrs.get(SEARCHED)) is None and time.monotonic() < deadline:
        time.sleep(SECONDS_BETWEEN_TRIES)
    return note


def _first_choices(search: Search, data: Dataset) -> list[dict[str, Any]]:
    """What the first trials of a new search choose: each constraint's own settings.

    Raises:
        UserError: a setting cannot be what it may be searched to be.
    """
    firsts = []
    for kind in search.constraints:
        for key, setting in search.searched.items():
            for value in setting.examples:
                search.trial_config(kind, {key: value})  # tells mistakes now
        own = fill_in(search.trial_config(kind, {}), data.card, search.device)
        firsts.append({KIND: kind, **middle(own, search.space(own), kind)})
    return firsts
