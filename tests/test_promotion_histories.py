"""Any history of promotions, rollbacks, moves by others and cut calls, against a simple model."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mlflow import MlflowClient

from models import registry
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
