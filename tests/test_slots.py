"""The places of models and their cache: what is served, kept, fetched again, tried again and told.

The registry is a database in this process; tests/test_life.py asks a real server for the same.
"""

import logging
import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from models import registry, registry_files
from models.artifact import FETCHED, load_artifact, verify
from models.errors import (
    AbsentError,
    ArtifactError,
    AwayError,
    DeviceError,
    ForbiddenError,
    MachineError,
    ShapeError,
)
from service.cache import CURRENT, MAX_VERSIONS, VersionCache
from service.holder import WORDS, ModelHolder, log_errors, outcome_of
from service.problems import NoModel, NotServed
from service.room import Broken, NoRoom, Room
from service.settings import Settings
from service.trust import TrustedKeys
from tests.artifacts import make_artifact
from tests.registries import new_database, register
from tests.servers import spoil_weights
from tests.test_machine import Watched
from tests.waiting import waits_for_the_lock


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with two versions."""
    folder = tmp_path_factory.mktemp("slots")
    uri = new_database(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        for number in (1, 2):
            register(folder, number)
    return uri


@pytest.fixture
def at_home(home: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", home)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("service.retries.FIRST_WAIT", 0.001)
    return home


@pytest.fixture
def watched(at_home: str, tmp_path: Path) -> Watched:
    return Watched("tiny@1", tmp_path / "cache")


def from_(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NoRoom("full"), "no_room"),
        (Broken("memory lacked"), "broken"),
        (AbsentError("no such version"), "missing"),
        (AwayError("no answer"), "unreachable"),
        (ForbiddenError("not allowed"), "unreachable"),
        (MachineError("a full disk"), "machine"),
        (DeviceError("no GPU"), "machine"),
        (OSError("a full disk"), "machine"),
        (MemoryError(), "machine"),
        (from_(ArtifactError("cannot be read"), OSError("too many files")), "machine"),
        (from_(ArtifactError("cannot be read"), MachineError("no keys")), "machine"),
        (from_(ArtifactError("not a number"), ValueError("nan")), "refused"),
        (ArtifactError("changed"), "refused"),
        (ValueError("a mistake of ours"), "refused"),
    ],
)
def test_each_error_has_its_outcome(error: Exception, outcome: str) -> None:
    assert outcome_of(error) == outcome
    assert outcome in WORDS


def test_a_version_is_fetched_and_loaded_once(watched: Watched, caplog: Any) -> None:
    slot = watched.slot
    assert (slot.reachable, slot.is_reference, slot.is_due) == (None, True, True)
    caplog.set_level(logging.INFO, "wgan.service")
    slot.refresh()
    first = slot.served
    assert first is not None
    for _ in range(2):
        slot.refresh()
        assert slot.served is first
        assert slot.is_due, "its alias may move"
    assert watched.outcomes == ["swapped"]
    assert slot.cache.last_good() == "1"
    assert (slot.reachable, slot.refused) == (True, None)
    assert "answers again" not in caplog.text, "it never was away"
    digest = first.model.digest
    assert f"tiny: serving tiny@1 as champion, digest {digest}" in caplog.text
    after = Watched("tiny@1", watched.cache)
    after.slot.start()
    assert (after.version, after.outcomes, after.slot.reachable) == ("tiny@1", ["cached"], None)
    (after.slot.cache.folder / CURRENT).unlink()
    after.slot.refresh()
    assert after.outcomes == ["cached"]
    assert after.slot.cache.last_good() is None, "it is recorded already"


def test_a_version_whose_digest_is_another_is_fetched_and_refused(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    slot = watched.slot
    slot.refresh()
    assert slot.served is not None
    before = slot.served.model.digest
    try:
        registry.tag("tiny", "1", {registry.DIGEST_TAG: "0" * 64})
        for _ in range(2):
            slot.refresh()
        assert watched.outcomes == ["swapped", "refused"], "it is not tried again and again"
        assert slot.refused == "tiny@1"
        (told,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert told.getMessage().startswith("tiny: tiny@1 is refused: ")
        assert told.getMessage().endswith("; tiny@1 goes on serving")
        assert not told.exc_info
        registry.tag("tiny", "1", {registry.SIGNATURE_TAG: "another"})
        slot.refresh()
        assert watched.outcomes[2:] == ["refused"], "a new signature is a reason to try"
    finally:
        registry.tag("tiny", "1", {registry.DIGEST_TAG: before})
    slot.refresh()
    assert slot.refused == "tiny@1", "nor is what was refused, for the same signature"
    assert watched.version == "tiny@1"


@pytest.mark.parametrize("away", [True, False])
def test_a_registry_that_does_not_answer_is_told_from_one_without_the_version(
    at_home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, away: bool,
) -> None:  # fmt: skip
    watched = Watched("tiny@1" if away else "tiny@7", tmp_path / "cache")
    caplog.set_level(logging.INFO, "wgan.service")
    with monkeypatch.context() as patch:
        if away:
            patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        watched.slot.refresh()
    assert watched.outcomes == ["unreachable" if away else "missing"]
    assert watched.slot.reachable is not away
    assert watched.slot.refused is None
    assert watched.slot.reason == "the model could not be loaded; the service's log says why"
    (told,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    says = "tiny@1 is unreachable: " if away else "tiny@7 is missing: "
    assert told.getMessage().startswith(f"tiny: {says}")
    assert told.getMessage().endswith("; no model is served")
    watched.slot.refresh()
    assert ("tiny@1: the registry answers again" in caplog.text) is away


def test_what_is_wrong_with_us_is_told_with_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(str(make_artifact(tmp_path / "artifact")), tmp_path / "cache")
    for error, has_trace in ((ValueError("ours"), True), (OSError("a full disk"), False)):
        caplog.clear()
        with monkeypatch.context() as patch:

            def fail(*given: object, error: Exception = error) -> None:
                raise error

            patch.setattr(watched.room, "load", fail)
            watched.slot.refused = None
            watched.slot.refresh()
        (told,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert bool(told.exc_info) is has_trace
    watched.slot.refresh()
    assert watched.outcomes == ["refused", "machine", "swapped"]


def test_a_folder_is_due_until_it_is_served_or_refused(tmp_path: Path) -> None:
    watched = Watched(str(tmp_path / "artifact"), tmp_path / "cache")
    slot = watched.slot
    assert (slot.is_reference, slot.is_due) == (False, True)
    slot.start()
    assert (watched.outcomes, slot.reason) == ([], "the model is loading")
    slot.refresh()
    assert watched.outcomes in (["machine"], ["refused"])
    spoil_weights(make_artifact(tmp_path / "bad"))
    bad = Watched(str(tmp_path / "bad"), tmp_path / "cache")
    bad.slot.refresh()
    assert (bad.outcomes, bad.slot.refused, bad.slot.is_due) == (["refused"], "bad", False)
    good = Watched(str(make_artifact(tmp_path / "good")), tmp_path / "cache")
    good.slot.refresh()
    assert (good.outcomes, good.slot.is_due, good.slot.reachable) == (["swapped"], False, None)
    assert good.slot.served is not None
    assert good.version == good.slot.served.model.digest[:12]


def test_a_cached_version_that_is_damaged_waits_for_the_registry(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.slot.refresh()
    damaged = watched.slot.cache.folder / "1" / "critic.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    after = Watched("tiny@1", watched.cache)
    after.slot.start()
    assert (after.version, after.outcomes) == (None, [])
    assert "tiny@1: tiny@1 in the cache: " in caplog.text
    after.slot.refresh()
    assert (after.version, after.outcomes) == ("tiny@1", ["swapped"])
    assert "the cached copy of tiny@1 is fetched again: " in caplog.text


# ---- a model's champion and challenger ---------------------------------------------------------


def holder_of(folder: Path, **more: object) -> ModelHolder:
    settings = Settings.read(WGAN_MODEL=str(folder), **more)
    return ModelHolder(folder.name, settings, Room(0), lambda *_: None)


def test_the_challenger_has_its_share_of_what_names_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (make_artifact(tmp_path / name, seed=i) for i, name in enumerate("ab"))
    holder = holder_of(one, WGAN_CHALLENGER=str(other), WGAN_CHALLENGER_SHARE=0.3)
    champion, challenger = holder.slots
    with pytest.raises(NoModel, match="the model is loading"):
        holder.require()
    challenger.refresh()
    for drawn, role in ((0.29, "challenger"), (0.3, None), (0.9, None)):
        monkeypatch.setattr(random, "random", lambda drawn=drawn: drawn)
        if role:
            assert holder.require().role == role, "also while there is no champion"
        else:
            with pytest.raises(NoModel):
                holder.require()
    champion.refresh()
    for drawn, role in ((0.0, "challenger"), (0.29, "challenger"), (0.3, "champion")):
        monkeypatch.setattr(random, "random", lambda drawn=drawn: drawn)
        assert holder.require().role == role
    monkeypatch.setattr(random, "random", lambda: pytest.fail("a model was named"))
    versions = [load_artifact(folder).digest[:12] for folder in (one, other)]
    for wanted, role in zip(["champion", "challenger", *versions], [*"ab"] * 2, strict=True):
        found = holder.require(wanted)
        assert found.role == {"a": "champion", "b": "challenger"}[role]
    with pytest.raises(NotServed) as caught:
        holder.require("x" * 1000)
    assert str(caught.value) == f"{'x' * 300} is not served here, but {' and '.join(versions)}"
    assert champion.served is not None
    champion.served = champion.served._replace(version="höhe%@3")
    for wanted in ("höhe%@3", "h%C3%B6he%25@3"):
        assert holder.require(wanted).role == "champion"


def test_without_a_challenger_none_can_be_named(tmp_path: Path) -> None:
    holder = holder_of(make_artifact(tmp_path / "a"))
    assert holder.challenger is None
    assert holder.slots == [holder.champion]
    with pytest.raises(ShapeError, match="no challenger is served here"):
        holder.require("challenger")
    with pytest.raises(NoModel):
        holder.require("champion")
    holder.champion.refresh()
    assert holder.require() is holder.require("champion") is holder.served


def test_two_models_are_compared_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = make_artifact(tmp_path / "a"), make_artifact(tmp_path / "b", "vector")
    holder = holder_of(one, WGAN_CHALLENGER=str(other), WGAN_CHALLENGER_SHARE=1)
    for slot in holder.slots:
        slot.refresh()
    for _ in range(3):
        assert holder.require().role == "champion"
    assert holder.require("challenger").role == "challenger"
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert "is given only requests that name it" in told[0]


def test_a_folder_is_tried_again_while_the_machine_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And not after; an error in between ends nothing."""
    make_artifact(tmp_path / "a")
    room, waits = Room(0), list[float]()
    settings = Settings.read(WGAN_MODEL=str(tmp_path / "a"), WGAN_REGISTRY_POLL_SECONDS=7)
    holder = ModelHolder("a", settings, room, lambda *_: None)
    errors, load = [OSError("a full disk"), OSError("again")], room.load

    def failing(*given: Any) -> Any:
        if errors:
            raise errors.pop()
        return load(*given)

    ours, refresh = [ValueError("once")], holder.champion.refresh

    def with_a_mistake() -> None:
        if ours:
            raise ours.pop()
        refresh()

    monkeypatch.setattr(room, "load", failing)
    monkeypatch.setattr(holder.champion, "refresh", with_a_mistake)
    monkeypatch.setattr("time.sleep", waits.append)
    holder.follow()
    for thread in [t for t in threading.enumerate() if t.name == "model a"]:
        assert thread.daemon
        thread.join(30)
        assert not thread.is_alive()
    assert holder.served is not None
    assert len(waits) == 4, "one after each look, the last one's too"
    assert all(7 * 0.8 <= wait <= 7 * 1.2 for wait in waits)
    assert "looking after the models failed" in caplog.text


def test_a_list_that_cannot_be_had_leaves_the_last_one(
    at_home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.read(WGAN_MODEL="tiny@1", WGAN_CACHE=str(tmp_path))
    holder = ModelHolder("tiny", settings, Room(0), lambda *_: None)
    log_errors(holder._list)
    assert (holder.listed, holder.listed_at) == ([], None), "nobody has asked yet"
    holder.champion.refresh()
    log_errors(holder._list)
    listed, at = holder.listed, holder.listed_at
    assert sorted(row["version"] for row in listed) == ["1", "2"]
    assert at is not None
    assert 0 <= time.monotonic() - at < 60
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    log_errors(holder._list)
    assert (holder.listed, holder.listed_at) == (listed, at)
    assert "the versions cannot be listed: " in caplog.text


# ---- the cache ---------------------------------------------------------------------------------


def cache_at(folder: Path, source: str = "tiny@champion", uri: str = "here") -> VersionCache:
    return VersionCache(source, folder, uri, TrustedKeys(None))


def test_each_name_of_each_registry_has_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {
        cache_at(tmp_path, source, uri).folder
        for source in ("tiny@champion", "tiny@1", "other@champion")
        for uri in ("here", "there")
    }
    assert len(folders) == 6
    assert {folder.parent for folder in folders} == {tmp_path / "models"}
    assert cache_at(tmp_path).folder == cache_at(tmp_path).folder
    assert cache_at(tmp_path).version("12") == "tiny@12"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    without = VersionCache("tiny@champion", None, "here", TrustedKeys(None)).folder
    assert without == tmp_path / "home/.cache/wgan-foundry/models" / without.name


def test_the_last_good_version_is_a_number(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    assert cache.last_good() is None
    cache.folder.mkdir(parents=True)
    for content, number in (("12", "12"), ("", None), ("../12", None), ("1\n", None)):
        (cache.folder / CURRENT).write_text(content)
        assert cache.last_good() == number


def test_a_sound_copy_is_not_fetched_again_and_another_is(
    at_home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, digest = cache_at(tmp_path), registry.version("tiny", "1")[registry.DIGEST_TAG]
    fetched, download = list[str](), registry_files.download

    def counted(model: str, *rest: Any) -> Path:
        fetched.append(model)
        return download(model, *rest)

    monkeypatch.setattr(registry_files, "download", counted)
    (cache.folder / "tmp-killed" / "artifact").mkdir(parents=True)  # by a process that was killed
    for known in (digest, digest, None):
        folder = cache.fetch("1", known)
        assert folder == cache.folder / "1"
    assert fetched == ["tiny@1"]
    assert verify(folder, FETCHED) == digest
    other = make_artifact(tmp_path / "other", seed=9)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    assert verify(cache.fetch("1", digest), FETCHED) == digest
    assert fetched == ["tiny@1"] * 2
    with pytest.raises(ArtifactError, match=r"but the registry knows it as 000"):
        cache.fetch("1", "0" * 64)
    assert fetched == ["tiny@1"] * 5, "a copy may be cut short: it is tried three times"
    assert verify(folder, FETCHED) == digest, "the copy that was there stays"
    assert sorted(path.name for path in cache.folder.iterdir()) == ["1", "lock"]


def test_the_oldest_versions_go(tmp_path: Path) -> None:
    assert MAX_VERSIONS == 3
    cache = cache_at(tmp_path)
    now = time.time()
    for age, number in enumerate(("7", "3", "4", "10")):  # the first is the newest
        (cache.folder / number / "artifact").mkdir(parents=True)
        os.utime(cache.folder / number, (now - 100 * age - 100,) * 2)
    (cache.folder / "other").mkdir()
    os.utime(cache.folder / "other", (0, 0))
    cache.keep("10")  # which makes it the newest
    assert cache.last_good() == "10"
    assert {path.name for path in cache.folder.iterdir()} == {
        *("7", "3", "10", "other", CURRENT, "lock")
    }


def test_workers_take_turns_at_the_cache(at_home: str, tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    cache.fetch("1", None)
    lock = cache.folder / "lock"
    assert waits_for_the_lock(lock, lambda: cache.fetch("2", None))
    assert waits_for_the_lock(lock, lambda: cache.keep("2"))
    assert cache.last_good() == "2"
    assert (cache.folder / "2").is_dir()
