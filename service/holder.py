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

from models import registry
from models.errors import RegistryError, ShapeError, UserError
from service.cache import VersionCache
from service.problems import NoModel, NotServed
from service.retries import jittered, retry, within
from service.served import Served, load
from service.settings import Settings

Role = Literal["champion", "challenger"]
ROLES = get_args(Role)
ANSWER_SECONDS = 30.0
"""Longest time that the registry may take to answer a question."""
log = logging.getLogger("wgan.service")


class Slot:
    """The place of one model: the champion's or the challenger's.

    Args:
        role: ``champion`` or ``challenger``.
        source: an artifact folder, or a registry name such as ``digits@champion``.
        settings: name the registry and the cache.
        on_outcome: called with the role and each outcome that is not "nothing new": see
            `Metrics.reloads`.
    """

    def __init__(
        self,
        role: str,
        source: str,
        settings: Settings,
        on_outcome: Callable[[str, str], None],
    ) -> None:
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
        self._cache = VersionCache(source, settings.cache, settings.tracking_uri)
        self._on_outcome = on_outcome

    def start(self) -> None:
        """Serve the last good version at once if the present one must still be downloaded."""
        last = self._cache.last_good() if self.is_reference else None
        if last is None:
            return
        try:
            number, _ = self._find()
        except RegistryError as error:
            self._set_reachable(registry.is_absent(error))
            log.warning("%s: %s; serving version %s from the cache", self.source, error, last)
            number = ""
        if number != last:
            try:
                folder, version = self._cache.folder / last, self._cache.version(last)
                self._swap(load(folder, version, self.role), "cached")
            except Exception as error:  # it may be of an older release, or damaged
                log.warning("%s: version %s in the cache: %s", self.source, last, error)

    def refresh(self) -> None:
        """Serve what the source names now, if it is sound."""
        version = self.source if self.is_reference else Path(self.source).name
        try:
            if not self.is_reference:
                self._swap(load(Path(self.source), None, self.role), "swapped")
                return
            number, digest = retry(self._find)
            self._set_reachable(True)
            version = self._cache.version(number)
            if self.refused == version:
                return
            self.refused = None
            serving = self.served
            if serving and serving.version == version and digest in (None, serving.model.digest):
                return
            served = load(self._cache.fetch(number, digest), version, self.role)
        except RegistryError as error:
            missing = registry.is_absent(error)
            self._set_reachable(missing)
            self._fail(error, "missing" if missing else "unreachable")
        except Exception as error:  # whatever is wrong with it, the last good one must serve on
            self.refused = version
            self._fail(error, "refused")
        else:
            self._swap(served, "swapped")
            self._cache.keep(number)

    def _find(self) -> tuple[str, str | None]:
        """Find the number and digest of the version that the source names now."""

        def ask() -> tuple[str, str | None]:
            name, number = registry.resolve(self.source)
            return number, registry.digest(name, number)

        return within(ANSWER_SECONDS, f"{self.source}: the registry", ask)

    def _swap(self, served: Served, outcome: str) -> None:
        self.served = served
        self._on_outcome(self.role, outcome)
        log.info("serving %s as %s, digest %s", served.version, self.role, served.model.digest)

    def _fail(self, error: Exception, outcome: str) -> None:
        self._on_outcome(self.role, outcome)
        # The reason may name paths of this machine: it is for the log, not for clients.
        self.reason = "the model could not be loaded; the service's log says why"
        message = f"no model: {error}"
        if self.served is not None:
            subject, serving = self.refused or self.source, self.served.version
            message = f"{subject} is {outcome}: {error}; {serving} goes on serving"
        log.error("%s", message, exc_info=not isinstance(error, UserError))

    def _set_reachable(self, answered: bool) -> None:
        if answered and self.reachable is False:
            log.info("%s: the registry answers again", self.source)
        self.reachable = answered


class ModelHolder:
    """The champion, and beside it a challenger if one is configured.

    Args:
        settings: name the models, the registry and the cache.
        on_outcome: see `Slot`.
    """

    def __init__(
        self,
        settings: Settings,
        on_outcome: Callable[[str, str], None],
    ) -> None:
        def slot(role: str, source: str) -> Slot:
            return Slot(role, source, settings, on_outcome)

        self.champion = slot("champion", settings.model)
        self.challenger = slot("challenger", settings.challenger) if settings.challenger else None
        self.challenger_share = settings.challenger_share
        """Share of the requests that name no model which goes to the challenger."""
        self.poll_seconds = settings.registry_poll_seconds
        self.is_leaving = False
        """True when the server is about to end."""
        self.champion_tried = threading.Event()
        """Set when the first attempt to load the champion is over."""
        self._listing = threading.Lock()
        self._listed: list[dict[str, Any]] = []
        self._listed_at: float | None = None
        self._answers: bool | None = None

    @property
    def slots(self) -> list[Slot]:
        """The champion's, and the challenger's if there is to be one."""
        return [self.champion, *([self.challenger] if self.challenger else [])]

    @property
    def served(self) -> Served | None:
        """The champion, once it has run."""
        return self.champion.served

    def start(self) -> None:
        """Load the models, and look for newer versions from now on, in a thread."""
        threading.Thread(target=self._run, name="models", daemon=True).start()

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
        elif challenger and wanted is None and challenger.served:
            slot = challenger if random.random() < self.challenger_share else slot
        if slot.served is None:
            raise NoModel(slot.reason)
        if wanted is None or wanted in ROLES:
            return slot.served
        return self._version(wanted)

    def _version(self, wanted: str) -> Served:
        served = {s.version: s for s in (slot.served for slot in self.slots) if s}
        if wanted not in served:
            raise NotServed(f"{wanted:.300} is not served here, but {' and '.join(served)}")
        return served[wanted]

    def listing(self) -> dict[str, Any]:
        """The versions and aliases of the served names, and what is served; asks the registry.

        The list is at most as old as the poll interval while the registry answers; when it does
        not, it is the last that was had.
        """
        with self._listing:
            if self._listed_at is None or time.monotonic() - self._listed_at > self.poll_seconds:
                self._list()
        serving = [
            {
                "role": s.role,
                "version": s.version,
                "digest": s.model.digest,
                "since": s.serving_since,
            }
            for s in (slot.served for slot in self.slots)
            if s
        ]
        return {"models": self._listed, "registry_answers": self._answers, "serving": serving}

    def _list(self) -> None:
        # Other names in the registry are none of the clients' business.
        names = {s.source.rpartition("@")[0] for s in self.slots if s.is_reference}
        self._listed_at = time.monotonic()
        if not names:
            return
        try:
            rows = within(ANSWER_SECONDS, "the registry", registry.versions)
        except RegistryError as error:
            log.warning("the versions cannot be listed: %s", error)
            self._answers = False
            return
        self._answers = True
        self._listed = [
            {
                **{key: row[key] for key in ("name", "version", "aliases", "created")},
                "constraint": row["tags"].get("constraint"),
                "digest": row["tags"].get(registry.DIGEST_TAG),
            }
            for row in rows
            if row["name"] in names
        ]

    def _run(self) -> None:
        for slot in self.slots:
            _log_errors(slot.start)
            if slot.served is None:
                _log_errors(slot.refresh)
            self.champion_tried.set()  # the champion's slot is the first
        while any(slot.is_reference for slot in self.slots):
            for slot in self.slots:
                if slot.is_reference:
                    _log_errors(slot.refresh)
            time.sleep(jittered(self.poll_seconds))


def _log_errors(step: Callable[[], Any]) -> None:
    """Do a step; an error such as a full disk must not end the thread: the next poll may pass."""
    try:
        step()
    except Exception:
        log.exception("looking after the models failed")
