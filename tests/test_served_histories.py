"""Any history of a registry, its cache and restarts, against a model of what a slot serves."""

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from models import registry
from service.app import App
from service.holder import Slot
from service.room import Room
from service.settings import Settings
from tests.registries import register
from tests.test_app import made, talk

SOUND, SPOILT = ["1", "2", "3", "4", "5"], "6"
"""Of the spoilt one the critic gives NaN."""
CHAMPION = "tiny@champion"


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The versions, in a database that the histories share."""
    home = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        for number in range(1, 7):
            register(home, number, str(number) == SPOILT)
        patch.setattr("service.retries.FIRST_WAIT", 0.001)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


def test_apps_follow_the_registry_and_begin_with_what_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote("tiny", "1", "a test")
    settings = {
        "WGAN_MODELS": f"one={CHAMPION},two=tiny@2",
        "WGAN_CACHE": tmp_path,
        "WGAN_REGISTRY_POLL_SECONDS": 604_800,
    }
    first, second = made(**settings), made(**settings)

    def versions(app: App) -> list[str | None]:
        return [slot.served and slot.served.version for slot in app.context.holders.slots]

    async def follow(client: httpx.AsyncClient) -> None:
        holders = first.context.holders
        assert versions(first) == ["tiny@1", "tiny@2"]
        async with asyncio.timeout(60):
            while any(holder.listed_at is None for holder in holders):
                await asyncio.sleep(0.02)
        listed = (await client.get("/v1/models")).json()
        rows = {row["version"]: row for row in listed["models"]}
        assert sorted(rows) == [*SOUND, SPOILT]
        assert len(listed["models"]) == 6, "each once, though both models list them"
        assert [s["version"] for s in listed["serving"]] == ["tiny@1", "tiny@2"]
        for serving, number in zip(listed["serving"], "12", strict=True):
            row = rows[number]
            assert (row["name"], row["constraint"]) == ("tiny", "gradient_penalty")
            assert row["digest"] == serving["digest"]
        assert rows["1"]["aliases"] == ["champion"]
        assert listed["registry_answers"] is True
        assert 0 <= listed["age_seconds"] < 60
        for holder, age in zip(holders, (500, 300), strict=True):
            holder.listed_at = time.monotonic() - age
        assert 500 <= holders.listing()["age_seconds"] < 600, "the age of the oldest"
        following = [t for t in threading.enumerate() if t.name in ("model one", "model two")]
        assert len(following) >= 2
        assert all(thread.daemon for thread in following), "none holds up the end"

    async def begin(client: httpx.AsyncClient) -> None:
        holders = second.context.holders
        assert versions(second) == ["tiny@1", "tiny@2"]
        async with asyncio.timeout(60):
            while any(slot.reachable is None for slot in holders.slots):
                await asyncio.sleep(0.02)
        assert holders.registry_answers is False
        holders.slots[0].reachable = True
        assert holders.registry_answers is False, "one was not answered"
        listed = (await client.get("/v1/models")).json()
        assert (listed["models"], listed["age_seconds"]) == ([], None)

    talk(first, follow)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    talk(second, begin)


class Histories(RuleBasedStateMachine):
    """The last sound champion is served, whatever comes after it, and after a restart too."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Path(tempfile.mkdtemp())
        self.is_there = True
        self.champion: str | None = None
        self.recorded: str | None = None
        """What the cache holds as the last good version."""
        self.delete_the_alias()
        self.start()

    def teardown(self) -> None:
        shutil.rmtree(self.cache)

    def start(self) -> None:
        self.outcomes: list[str] = []
        self.slot = Slot(
            "tiny", "champion", CHAMPION, Settings.read(WGAN_CACHE=str(self.cache)), Room(0),
            lambda name, role, outcome: self.outcomes.append(outcome),
        )  # fmt: skip
        self.serves: str | None = None

    @rule()
    def restart(self) -> None:
        self.start()
        self.slot.start()
        self.serves = self.recorded

    @rule(version=st.sampled_from([*SOUND, SPOILT]))
    def promote(self, version: str) -> None:
        registry.promote("tiny", version, "better")
        self.champion = version

    @rule()
    def delete_the_alias(self) -> None:
        registry.client().delete_registered_model_alias("tiny", registry.CHAMPION)
        self.champion = None

    @rule(is_there=st.booleans())
    def the_registry_goes_or_comes(self, is_there: bool) -> None:
        self.is_there = is_there

    @rule()
    def lose_the_cache_and_restart(self) -> None:
        shutil.rmtree(self.cache / "models", ignore_errors=True)
        self.recorded = None
        self.restart()

    @rule()
    def refresh(self) -> None:
        self.outcomes.clear()
        with pytest.MonkeyPatch.context() as patch:
            if not self.is_there:
                patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
            self.slot.refresh()
        assert self.slot.reachable is self.is_there
        if not self.is_there:
            assert self.outcomes == ["unreachable"]
        elif self.champion is None:
            assert self.outcomes == ["missing"]
        elif self.champion == SPOILT:
            assert self.outcomes in (["refused"], [])
            assert self.slot.refused == f"tiny@{SPOILT}"
        else:
            assert self.outcomes == ["swapped"] * (self.champion != self.serves)
            assert self.slot.refused is None
            self.serves = self.champion
            self.recorded = self.champion

    @invariant()
    def the_last_good_one_is_served(self) -> None:
        found = self.slot.served and self.slot.served.version
        assert found == (self.serves and f"tiny@{self.serves}")
        assert self.slot.cache.last_good() == self.recorded


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=10, stateful_step_count=15, deadline=None, derandomize=True
)
