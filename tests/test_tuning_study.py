"""The study of a search: who chooses what, which trials count, and what its database may say."""

from pathlib import Path

import pytest
import sqlalchemy

from models.errors import UserError
from training.lab.tuning.search import Search
from training.lab.tuning.study import choice_seeds, open_study


def a_search(storage: str) -> Search:
    """Whose time is over."""
    kinds = ("gradient_penalty", "weight_clipping")
    fixed = {"training.batch_size": 32}
    return Search(
        "8gaussians", "8gaussians", kinds, fixed, {}, 1.0, "cpu", storage, "study", 0.0, None, False
    )


def test_machines_that_begin_the_same_command_choose_otherwise(tmp_path: Path) -> None:
    search = a_search(str(tmp_path / "study.journal"))
    study = open_study(search)
    seeds = [seed for _ in range(3) for seed in choice_seeds(study, 0, 2, True)]
    chosen = [open_study(search, s).ask().suggest_float("rate", 0.0, 1.0) for s in seeds]
    assert len(set(chosen)) == 6


def test_a_call_that_goes_on_chooses_otherwise_in_each_process(tmp_path: Path) -> None:
    """Not as a process of the call before; but the same study and seed choose the same."""
    study = open_study(a_search(str(tmp_path / "study.journal")))
    first = choice_seeds(study, 0, 3, False)
    assert first == choice_seeds(study, 0, 3, False)
    study.ask()
    assert len({*first, *choice_seeds(study, 0, 3, False), *choice_seeds(study, 1, 3, False)}) == 9


def test_the_tables_of_another_optuna_are_told_in_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    open_study(a_search(url))
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'v2.6.0.a'"))
    with pytest.raises(UserError, match=r"--storage: .*optuna .* with the table schema"):
        open_study(a_search(url))
