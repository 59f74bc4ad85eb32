"""Any history of promotions, rollbacks, moves by others and cut calls, against a simple model."""

import contextlib
import getpass
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mlflow import MlflowClient

from models import promotions, registry
from models.errors import AbsentError, RegistryError

VERSIONS = [str(number) for number in range(1, 5)]
WRITES = ["set_registered_model_alias", "set_registered_model_tag", "delete_registered_model_tag"]


@pytest.fixture(scope="module", autouse=True)
def database() -> Iterator[None]:
    """A registry: each history has a name of its own in it, with all of `VERSIONS`."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path(folder) / 'mlflow.db'}")
        yield


@contextlib.contextmanager
def cut(after: int, is_carried_out: bool) -> Iterator[None]:
    """Lose the connection at a write, before the registry has carried it out or after."""
    written = 0

    def losing(name: str) -> object:
        write = getattr(MlflowClient, name)

        def call(*arguments: object) -> object:
            nonlocal written
            written += 1
            if written <= after:
                return write(*arguments)
            if is_carried_out and written == after + 1:
                write(*arguments)
            raise ConnectionError("cut")

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(MlflowClient, name, losing(name))
        yield


class Histories(RuleBasedStateMachine):
    """A stack of champions says what a rollback goes back to; the alias says what happened."""

    models = 0

    def __init__(self) -> None:
        super().__init__()
        Histories.models += 1
        self.name = f"model{Histories.models}"
        self.api = registry.client()
        self.api.create_registered_model(self.name)
        for _ in VERSIONS:
            self.api.create_model_version(self.name, source="file:///nowhere")
        self.there = set(VERSIONS)
        self.champions: list[str | None] = [None]
        """All that the record must tell, the first of no champion."""
        self.stack: list[str] = []
        """Those that a rollback goes back to, the last one first."""

    @property
    def alias(self) -> str | None:
        found = self.api.get_registered_model(self.name).aliases.get(registry.CHAMPION)
        return None if found is None else str(found)

    def note(self) -> str | None:
        """What others did, or a call that was cut, becomes part of the record at the next call."""
        alias = self.alias
        if self.champions[-1] != alias:
            self.champions.append(alias)
        if alias is not None and self.stack[-1:] != [alias]:
            self.stack.append(alias)
        return alias

    @rule(version=st.sampled_from(VERSIONS))
    def promote(self, version: str) -> None:
        if version not in self.there:
            with pytest.raises(AbsentError):
                registry.promote(self.name, version, "it is gone")
            return
        before = self.note()
        assert registry.promote(self.name, version, "better") == before
        assert self.note() == version

    @rule(version=st.sampled_from(VERSIONS), after=st.integers(0, 4), is_carried_out=st.booleans())
    def promote_and_be_cut(self, version: str, after: int, is_carried_out: bool) -> None:
        if version not in self.there:
            return
        self.note()
        with cut(after, is_carried_out), contextlib.suppress(RegistryError):
            registry.promote(self.name, version, "better")
        registry.promote(self.name, self.note() or version, "what was cut is made good")
        self.note()

    @rule()
    def roll_back(self) -> None:
        before = self.note()
        left = list(self.stack)
        while left and (left[-1] == before or left[-1] not in self.there):
            left.pop()
        if not left:
            with pytest.raises(AbsentError, match="no earlier champion"):
                registry.rollback(self.name, "worse")
            assert self.alias == before
            return
        assert registry.rollback(self.name, "worse") == (before, left[-1])
        self.stack = left
        assert self.note() == left[-1]

    @rule(version=st.sampled_from(VERSIONS))
    def somebody_moves_the_alias(self, version: str) -> None:
        if version in self.there:
            self.api.set_registered_model_alias(self.name, registry.CHAMPION, version)

    @rule()
    def somebody_deletes_the_alias(self) -> None:
        self.api.delete_registered_model_alias(self.name, registry.CHAMPION)

    @precondition(lambda self: len(self.there) > 1)
    @rule(version=st.sampled_from(VERSIONS))
    def somebody_deletes_a_version(self, version: str) -> None:
        if version in self.there:
            self.api.delete_model_version(self.name, version)
            self.there.remove(version)

    @invariant()
    def the_history_tells_it_all(self) -> None:
        alias = self.alias
        told = self.champions + [alias] * (alias != self.champions[-1])
        history = registry.history(self.name)
        assert [change["from"] for change in history] == told[:-1]
        assert [change["to"] for change in history] == told[1:]
        assert registry.champion(self.name) == alias


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)


def change(action: str, to: str | None, when: str = "2026", **more: object) -> str:
    return json.dumps({"action": action, "to": to, "when": when, **more})


def test_changes_are_told_by_number_then_time_and_what_is_none_of_ours_is_left_out() -> None:
    ours = {
        "promotion.000010.ab": change("promote", "4"),
        "promotion.000009.ff": change("promote", "2", "2026-01"),
        "promotion.000009.aa": change("promote", "3", "2026-02"),
    }
    others = {
        "promotion.note": change("promote", "9"),
        "promotion.000012.xyz": change("promote", "9"),
        "a.promotion.000012.ab": change("promote", "9"),
        "promotion.000013.ab": "{",
        "promotion.000014.ab": '["action", "to", "when"]',
        "promotion.000015.ab": '{"action": "promote", "to": "9"}',
    }
    for tags in (ours, {**others, **ours}):
        found, mend = promotions.settle(tags, "4")
        assert [one["to"] for one in found] == ["2", "3", "4"]
        assert mend == {}
        assert re.fullmatch(r"promotion\.000011\.[0-9a-f]{8}", promotions.next_tag(tags))
    assert promotions.next_tag(others).startswith("promotion.000001.")
    assert promotions.next_tag(ours) != promotions.next_tag(ours)


def test_the_alias_tells_which_pending_changes_came_to_pass() -> None:
    first, second = "promotion.000001.aa", "promotion.000002.aa"
    tags = {
        first: change("promote", "1", pending=True),
        second: change("promote", "2", pending=True),
    }
    changes, mend = promotions.settle(tags, "1")
    assert [one["to"] for one in changes] == ["1"]
    assert mend == {first: change("promote", "1"), second: None}
    changes, mend = promotions.settle(tags, "3")
    ((moved,), (name, told)) = changes, list(mend.items())[-1]
    assert (moved["action"], moved["from"], moved["to"]) == ("moved", None, "3")
    assert json.loads(told) == moved
    assert [mend[first], mend[second]] == [None, None]
    assert name.startswith("promotion.000003.")
    assert promotions.settle({}, None) == ([], {})


def test_a_change_that_another_process_is_about_to_make_is_left_to_it() -> None:
    """Deleted, it would be missing from the history of two that promote at the same time."""
    now = promotions.now()
    tags = {
        "promotion.000001.aa": change("promote", "1", now),
        "promotion.000002.aa": change("promote", "3", now, pending=True),
        "promotion.000002.bb": change("promote", "2", now, pending=True),
    }
    for alias in ("1", "2", "3"):
        changes, mend = promotions.settle(tags, alias)
        assert [one["to"] for one in changes] == ["1", *alias.replace("1", "")]
        assert None not in mend.values()


def test_a_change_that_was_cut_off_is_not_told_when_its_version_becomes_champion_later() -> None:
    now = promotions.now()
    tags = {
        "promotion.000001.aa": change("promote", "2", now, pending=True),
        "promotion.000002.aa": change("promote", "3", now),
    }
    changes, mend = promotions.settle(tags, "2")
    assert [(one["action"], one["to"]) for one in changes] == [("promote", "3"), ("moved", "2")]
    assert "promotion.000001.aa" not in mend


@pytest.mark.parametrize(
    ("moves", "left"),
    [
        ([], []),
        ([("promote", "1"), ("promote", "1"), ("promote", "2")], ["1", "2"]),
        ([("promote", "1"), ("promote", "2"), ("moved", None), ("promote", "2")], ["1", "2"]),
        ([("promote", "1"), ("promote", "2"), ("promote", "1")], ["1", "2", "1"]),
        ([("promote", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "1")], ["1"]),
        ([("promote", "1"), ("rollback", "2")], ["1", "2"]),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1"), ("rollback", "1")], ["1"]),
    ],
)
def test_a_rollback_goes_back_through_those_that_were_not_rolled_back(
    moves: list[tuple[str, str | None]], left: list[str]
) -> None:
    assert promotions.champions([{"action": action, "to": to} for action, to in moves]) == left


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "somebody")
    assert promotions.user() == "somebody"

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert promotions.user() == f"uid {os.getuid()}"
