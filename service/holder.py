"""The models that are being served, where they come from, and how they are exchanged.

A model is replaced by swapping one reference: a request keeps the model it began with. Whatever
goes wrong on the way to a new version, the last good one goes on serving.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote

from models import registry
from models.errors import (
    ArtifactError,
    DeviceError,
    MachineError,
    RegistryError,
    ShapeError,
    UserError,
    causes,
)
from models.schema_changes import schema_changes
from service.broken import end_worker
from service.cache import VersionCache
from service.problems import NoModel, NotServed
from service.retries import jittered, retry, within
from service.room import Broken, NoRoom, Room
from service.served import Served
from service.settings import Settings
from service.trust import TrustedKeys

Role = Literal["champion", "challenger"]
ROLES = get_args(Role)
ANSWER_SECONDS = 30.0
"""Longest time that the registry may take to answer a question."""
WORDS = {
    "broken": "cannot be loaded by this process any more",
    "machine": "meets an error of this machine, and is tried again",
    "missing": "is missing",
    "no_room": "does not fit, and is tried again",
    "refused": "is refused",
    "unreachable": "is unreachable",
}
"""Outcomes of attempts that failed, as the log says them."""
log = logging.getLogger("wgan.service")


def outcome_of(error: Exception) -> str:
    """Tell why a version is not served: one of `WORDS`.

    Only what is wrong with the version itself refuses it. A full disk, or a lack of memory or file
    descriptors, says nothing of it and passes; nor does an error of PyTorch's: what is found wrong
    with a version is an error of ours, and PyTorch tells only some errors of the machine by type.
    """
    if isinstance(error, NoRoom):
        return "no_room"
    if isinstance(error, Broken):
        return "broken"
    if isinstance(error, RegistryError) and not isinstance(error, MachineError):
        return "missing" if registry.is_absent(error) else "unreachable"
    if isinstance(error, DeviceError | RuntimeError):  # the latter are PyTorch's
        return "machine"
    if any(isinstance(cause, MachineError | OSError | MemoryError) for cause in causes(error)):
        return "machine"
    return "refused"


OnOutcome = Callable[[str, str, str], None]
"""Is told a model's name, its role, and each outcome that is not "nothing new": `Metrics.reloads`.
"""


class Slot:
    """The place of one model's version: the champion's or the challenger's.

    Args:
        name: the model's name in paths and metrics.
        role: ``champion`` or ``challenger``.
        source: an artifact folder, or a registry name such as ``digits@champion``.
        settings: name the registry and the cache.
        room: loads the versions that fit.
        on_outcome: see `OnOutcome`.
    """

    def __init__(
        self,
        name: str,
        role: str,
        source: str,
        settings: Settings,
        room: Room,
        on_outcome: OnOutcome,
    ) -> None:
        self.name = name
        self.role = role
        self.source = source
        self.served: Served | None = None
        self.reason = "the model is loading"
        """Reason why nothing is served; clients see it, so it names no paths."""
        self.refused: str | None = None
        """The version that the source names, if it is not sound."""
        self.reachable: bool | None = None
        """True if the registry answered when it was last asked; None without a registry."""
        self.is_reference = registry.is_reference(source)
        self._device = settings.device
        self._room = room
        self._trusted = TrustedKeys(settings.trusted_keys)
        self.cache = VersionCache(source, settings.cache, settings.tracking_uri, self._trusted)
        self._refused_with: tuple[object, ...] = ()
        """The signature and the trusted keys with which `refused` was refused."""
        self._kept: str | None = None
        """The version that the cache records as the last good one."""
        self._on_outcome = on_outcome

    @property
    def is_due(self) -> bool:
        """True if `refresh` may find something new.

        Not in a folder that is served, or is refused whatever the trusted keys are.
        """
        may_serve = self.refused is None or self._trusted.are_needed
        return self.is_reference or (self.served is None and may_serve)

    def start(self) -> None:
        """Serve the last good version from the cache; the registry is not asked, nor waited for."""
        last = self.cache.last_good() if self.is_reference else None
        if last is None:
            return
        version = self.cache.version(last)
        try:
            self._swap(self._load(self.cache.folder / last, version), "cached")
            self._kept = last
        except Exception as error:  # it may be of an older release, or damaged
            log.warning("%s: %s in the cache: %s", self.source, version, error)

    def refresh(self) -> None:
        """Serve what the source names now, if it is sound."""
        number, digest, version = "", None, Path(self.source).name
        signed: tuple[object, ...] = ()
        try:
            tag = None
            if self.is_reference:
                found = retry(self._find)
                self._set_reachable(True)
                number, digest = found["version"], found.get(registry.DIGEST_TAG)
                version = self.cache.version(number)
                tag = found.get(registry.SIGNATURE_TAG)
            signed = tag, self._trusted.read()
            if (self.refused, self._refused_with) != (version, signed):
                self.refused = None
                self._take(number, digest, version)
        except Exception as error:  # whatever is wrong, the last good one must serve on
            outcome = outcome_of(error)
            if outcome == "refused":
                self.refused, self._refused_with = version, signed
            elif outcome in ("missing", "unreachable"):
                self._set_reachable(outcome == "missing")
            self._fail(error, outcome)

    def _take(self, number: str, digest: str | None, version: str) -> None:
        """Serve a version, unless it is served already, and record it in the cache."""
        if not self.is_reference:
            self._swap(self._load(Path(self.source), None), "swapped")
            return
        serving = self.served
        if not serving or serving.version != version or digest not in (None, serving.model.digest):
            self._swap(self._load(self.cache.fetch(number, digest), version), "swapped")
        if self._kept != number:
            self.cache.keep(number)
            self._kept = number

    def _load(self, folder: Path, version: str | None) -> Served:
        signed = self._trusted.check(folder)
        served = self._room.load(folder, version, self.name, self.role, self._device)
        digest = served.model.digest
        if signed not in (None, digest):  # loading may have had to wait
            raise ArtifactError(f"{folder}: was exchanged: {signed} is signed, not {digest}")
        return served

    def _find(self) -> dict[str, str]:
        """Find the number and the tags of the version that the source names now."""

        def ask() -> dict[str, str]:
            return registry.version(*registry.resolve(self.source))

        return within(ANSWER_SECONDS, f"{self.source}: the registry", ask)

    def _swap(self, served: Served, outcome: str) -> None:
        before, self.served = self.served, served
        self._on_outcome(self.name, self.role, outcome)
        digest = served.model.digest
        log.info("%s: serving %s as %s, digest %s", self.name, served.version, self.role, digest)
        changes = schema_changes(served.model.run, before.model.run) if before else []
        if changes:  # whoever promoted it gave a reason, so it is served
            log.warning(
                "%s: %s does not take the requests that %s took: %s",
                *(self.name, served.version, before and before.version, "; ".join(changes)),
            )

    def _fail(self, error: Exception, outcome: str) -> None:
        self._on_outcome(self.name, self.role, outcome)
        # The reason may name paths of this machine: it is for the log, not for clients.
        self.reason = "the model could not be loaded; the service's log says why"
        subject = f"{self.name}: {self.refused or self.source} {WORDS[outcome]}: {error}"
        serving = f"{self.served.version} goes on serving" if self.served else "no model is served"
        message = f"{subject}; {serving}"
        log.error("%s", message, exc_info=not isinstance(error, UserError | OSError))
        if outcome == "broken" and not self._room.held:  # else what is served goes on
            end_worker()

    def _set_reachable(self, answered: bool) -> None:
        if answered and self.reachable is False:
            log.info("%s: the registry answers again", self.source)
        self.reachable = answered


class ModelHolder:
    """A model: its champion, and beside it a challenger if one is configured.

    Args:
        name: the model's name in paths and metrics.
        settings: name its sources, the registry and the cache.
        room: see `Slot`.
        on_outcome: see `OnOutcome`.
    """

    def __init__(self, name: str, settings: Settings, room: Room, on_outcome: OnOutcome) -> None:
        def slot(role: str, source: str) -> Slot:
            return Slot(name, role, source, settings, room, on_outcome)

        self.name = name
        self.champion = slot("champion", settings.champions[name])
        challenger = settings.challengers.get(name)
        self.challenger = slot("challenger", challenger) if challenger else None
        self.challenger_share = settings.challenger_share
        """Share of the requests that name no model which goes to the challenger."""
        self.poll_seconds = settings.registry_poll_seconds
        self.listed: list[dict[str, Any]] = []
        """Versions of the registry under the names that are followed, as it last told them."""
        self.listed_at: float | None = None
        """Time at which it told them, by `time.monotonic`; None: not yet."""
        self._compared: tuple[tuple[str, str] | None, bool] = (None, False)
        """Digests of the champion and the challenger that were compared, and if they are alike."""

    @property
    def slots(self) -> list[Slot]:
        """The champion's, and the challenger's if there is to be one."""
        return [self.champion, *([self.challenger] if self.challenger else [])]

    @property
    def served(self) -> Served | None:
        """The champion, once it has run."""
        return self.champion.served

    def follow(self) -> None:
        """Look for newer versions from now on, in a thread."""
        threading.Thread(target=self._follow, name=f"model {self.name}", daemon=True).start()

    def require(self, wanted: str | None = None) -> Served:
        """Return the model for a request that names one, or leaves the choice to us.

        Args:
            wanted: ``champion``, ``challenger``, or a version as X-Model-Version tells it.

        Raises:
            NoModel: it is not ready; says whether it is loading or failed to.
            NotServed: the version is not served here, or not any more.
            ShapeError: no challenger is configured.
        """
        challenger = self.challenger
        if wanted == "challenger" and challenger is None:
            raise ShapeError("no challenger is served here; leave out the model, or name champion")
        slot = self.champion
        if challenger and wanted == "challenger":
            slot = challenger
        elif challenger and wanted is None and self._shares(challenger.served):
            slot = challenger if random.random() < self.challenger_share else slot
        if slot.served is None:
            raise NoModel(slot.reason)
        if wanted is None or wanted in ROLES:
            return slot.served
        return self._version(wanted)

    def _shares(self, challenger: Served | None) -> bool:
        """Tell if a challenger takes requests that name no model: it must take the champion's."""
        champion = self.champion.served
        if challenger is None or champion is None:
            return challenger is not None
        digests = champion.model.digest, challenger.model.digest
        if self._compared[0] != digests:
            changes = schema_changes(challenger.model.run, champion.model.run)
            if changes:
                log.warning(
                    "%s: the challenger, %s, is given only requests that name it: %s",
                    *(self.name, challenger.version, "; ".join(changes)),
                )
            self._compared = digests, not changes
        return self._compared[1]

    def _version(self, wanted: str) -> Served:
        served = {s.version: s for s in (slot.served for slot in self.slots) if s}
        for name in (wanted, unquote(wanted)):  # the header has some characters percent-encoded
            if name in served:
                return served[name]
        raise NotServed(f"{wanted:.300} is not served here, but {' and '.join(served)}")

    def _list(self) -> None:
        """List the versions, if the registry answered just now."""
        # Other names in the registry are none of the clients' business.
        names = {slot.source.rpartition("@")[0] for slot in self.slots if slot.reachable}
        if not names:
            return

        def ask() -> list[dict[str, Any]]:
            return [row for name in sorted(names) for row in registry.versions(name)]

        try:
            rows = within(ANSWER_SECONDS, "the registry", ask)
        except RegistryError as error:
            log.warning("the versions cannot be listed: %s", error)
            return
        self.listed = [
            {
                **{key: row[key] for key in ("name", "version", "aliases", "created")},
                "constraint": row["tags"].get("constraint"),
                "digest": row["tags"].get(registry.DIGEST_TAG),
            }
            for row in rows
        ]
        self.listed_at = time.monotonic()

    def _follow(self) -> None:
        while due := [slot for slot in self.slots if slot.is_due]:
            for slot in due:
                log_errors(slot.refresh)
            log_errors(self._list)
            time.sleep(jittered(self.poll_seconds))


def log_errors(step: Callable[[], Any]) -> None:
    """Do a step; an error such as a full disk must not end the thread: the next poll may pass."""
    try:
        step()
    except Exception:
        log.exception("looking after the models failed")
