"""The study of a search: who chooses what, which trials count, and what its database may say."""

import os
from pathlib import Path

import pytest
import sqlalchemy

import wgan_cli
from models.command_line import EXIT_MISTAKE
from models.errors import UserError
from models.redaction import redacted
from tests.test_tuning import TINY
from training.lab.tuning.search import Search
from training.lab.tuning.study import choice_seeds, named_storage, open_study


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


def test_a_password_is_hidden_while_the_search_runs_and_in_its_errors(tmp_path: Path) -> None:
    """Odd as it is, `models.redaction` knows it by the environment alone."""
    url = "postgresql+psycopg2://ann:ca#na/ry@localhost/x"
    before = dict(os.environ)
    with (
        pytest.raises(UserError, match=r"^\*\*\* is hidden$"),
        named_storage(url),
    ):
        raise UserError("ca#na/ry is hidden")
    assert redacted("ca#na/ry") == "ca#na/ry"
    assert dict(os.environ) == before


def test_a_file_may_be_called_after_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["tune", "--data=8gaussians", "--budget=1s", "--out=out", "--only-trials"]
    more = [f"--set={key}={value}" for key, value in TINY.items()]
    assert wgan_cli.main([*command, *more, "--trials=1", "--storage=sqlite.journal"]) == 0
    assert (tmp_path / "sqlite.journal").exists()
    for url in ("sqlite:///study.db", "sqlite+pysqlite:///study.db"):
        assert wgan_cli.main([*command, f"--storage={url}"]) == EXIT_MISTAKE
        assert "name a file without sqlite:///" in capsys.readouterr().err
