"""The models that are being served, where they come from, and how they are exchanged.

A model is replaced by swapping one reference: a request keeps the model it began with. Whatever
goes wrong on the way to a new version, the last good one goes on serving.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from models import registry
from models.errors import ArtifactError, ConfigError, RegistryError, ShapeError, UserError
from service.problems import NoModel

if TYPE_CHECKING:
    from models.model import Model

T = TypeVar("T")
log = logging.getLogger("wgan.service")
ROLES = ("champion", "challenger")
ANSWER_SECONDS = 30.0
"""For the registry to answer a question; what lies behind it may hang for longer."""
DOWNLOAD_SECONDS = 900.0
TRIES = 3
"""Of a download, or a question, that fails; the next poll begins anew."""
JITTER = 0.2
"""Share of a wait by which it varies, so that replicas do not ask all at once."""
QUICK = 0.001
"""Seconds for which the event loop may stand still; to wake a thread takes a tenth of that."""
QUICK_NUMBERS = 1000
"""Of samples that are made in it: as JSON or CSV more would take longer than to make them."""
KEPT = 3
"""Versions that stay in the cache."""
CURRENT = "current"
"""File in the cache that holds the number of the version that was served last."""


class Served(NamedTuple):
    """A verified model, which has run once, and what to call it."""

    model: Model
    version: str
    """``name@number`` from the registry, else the first 12 digits of the artifact's digest."""
    role: str
    """``champion`` or ``challenger``."""
    saturated_share: float | None
    """Of the critic's clipped weights, those that lie at their bound; None without clipping."""
    since: float
    """When it began to serve, in seconds since 1970."""
    at_once: int = 0
    """Samples, at most, that take so little time that they need no thread of their own."""


class Slot:
    """The place of one model: the champion's or the challenger's."""

    def __init__(self, role: str, source: str) -> None:
        self.role = role
        self.source = source
        """An artifact folder, or a registry name such as ``digits@champion``."""
        self.served: Served | None = None
        self.reason = "the model is loading"
        """Why nothing is served; for clients, so without paths."""
        self.refused: str | None = None
        """The version that the source names, if it is not sound."""
        self.reachable: bool | None = None
        """Whether the registry answered when it was last asked; None where there is none."""
        self.is_reference = registry.is_reference(source)
        self.outcomes: Callable[[str, str], None] = lambda role, outcome: None
        """Told of each outcome that is not "nothing new": see `metrics.RELOADS`."""

    def start(self) -> None:
        """Serve the last good version at once if the present one must still be fetched."""
        if not self.is_reference:
            return
        last = self._last_good()
        if last is None:
            return
        try:
            _, number, _ = self._find()
        except RegistryError as error:
            self._answered(registry.is_absent(error))
            log.warning("%s: %s; serving version %s from the cache", self.source, error, last)
            number = ""
        if number != last:
            try:
                self._swap(self._load(self._cache() / last, self._name(last)), "cached")
            except Exception as error:  # it may be of an older release, or damaged
                log.warning("%s: version %s in the cache: %s", self.source, last, error)

    def refresh(self) -> None:
        """Serve what the source names now, if it is sound."""
        version = self.source if self.is_reference else Path(self.source).name
        try:
            if not self.is_reference:
                self._swap(self._load(Path(self.source), None), "swapped")
                return
            _, number, digest = _persistently(self._find)
            self._answered(True)
            version = self._name(number)
            if self.refused == version:
                return
            self.refused = None
            serving = self.served
            if serving and serving.version == version and digest in (None, serving.model.digest):
                return
            served = self._load(self._fetch(number, digest), version)
        except RegistryError as error:
            missing = registry.is_absent(error)
            self._answered(missing)
            self._fail(error, "missing" if missing else "unreachable")
        except Exception as error:  # whatever is wrong with it, the last good one must serve on
            self.refused = version
            self._fail(error, "refused")
        else:
            self._swap(served, "swapped")
            self._keep(number)

    def _swap(self, served: Served, outcome: str) -> None:
        self.served = served
        self.outcomes(self.role, outcome)
        log.info("serving %s as %s, digest %s", served.version, self.role, served.model.digest)

    def _fail(self, error: Exception, outcome: str) -> None:
        self.outcomes(self.role, outcome)
        # The reason may name paths of this machine: it is for the log, not for clients.
        self.reason = "the model could not be loaded; the service's log says why"
        unexpected = not isinstance(error, UserError)
        if self.served is None:
            log.error("no model: %s", error, exc_info=unexpected)
        else:
            log.error(
                "%s is %s: %s; %s goes on serving",
                self.refused or self.source,
                outcome,
                error,
                self.served.version,
                exc_info=unexpected,
            )

    def _answered(self, answered: bool) -> None:
        if answered and self.reachable is False:
            log.info("%s: the registry answers again", self.source)
        self.reachable = answered

    def _name(self, number: str) -> str:
        return f"{self.source.rpartition('@')[0]}@{number}"

    def _find(self) -> tuple[str, str, str | None]:
        """Name, number and digest of the version that the source names now."""

        def ask() -> tuple[str, str, str | None]:
            name, number = registry.resolve(self.source)
            return name, number, registry.digest(name, number)

        return _within(ANSWER_SECONDS, f"{self.source}: the registry", ask)

    def _load(self, folder: Path, version: str | None) -> Served:
        """Verify a folder, load it and run it once.

        Raises:
            ArtifactError: it is not sound.
        """
        # Imported by the worker alone: torch would cost BentoML's supervisor 190 MB and a second.
        import torch

        from models.artifact import load_artifact

        torch.set_num_threads(1)  # requests run beside each other; threads in each would fight
        model = load_artifact(folder)
        version = version or model.digest[:12]
        run_once(model, version)
        saturated = model.run.config.constraint.saturated_share(model.critic)
        return Served(model, version, self.role, saturated, time.time(), at_once(model))

    # The cache: a folder for each version, by number, and the file `CURRENT`. Workers share it.

    def _cache(self) -> Path:
        # Another registry's version of the same name is another model.
        key = hashlib.sha256(f"{registry.tracking_uri()}\n{self.source}".encode()).hexdigest()
        return cache_folder() / key[:16]

    def _last_good(self) -> str | None:
        try:
            number = (self._cache() / CURRENT).read_text()
        except FileNotFoundError:
            return None
        return number if number.isdecimal() else None

    def _fetch(self, number: str, digest: str | None) -> Path:
        """The folder of a version in the cache; downloaded if it is not there, or not sound.

        Raises:
            RegistryError: it cannot be had now.
            ArtifactError: it was had, and is not the artifact that was registered.
        """
        cache, reference = self._cache(), self._name(number)
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "lock"):
            folder = cache / number
            if folder.exists():
                try:
                    _same(folder, digest)
                except ArtifactError as error:
                    log.warning("the cached copy of %s is fetched again: %s", reference, error)
                    shutil.rmtree(folder)
                else:
                    return folder

            def download() -> None:
                with tempfile.TemporaryDirectory(dir=cache) as temporary:
                    fetched = registry.download(reference, Path(temporary))
                    _same(fetched, digest)
                    fetched.replace(folder)

            def attempt() -> None:
                _within(DOWNLOAD_SECONDS, f"{reference}: its storage", download)

            _persistently(attempt, RegistryError, ArtifactError)  # a copy may be cut short, too
            return folder

    def _keep(self, number: str) -> None:
        """Remember a version as the last good one, and let go of those before it."""
        cache = self._cache()
        temporary = cache / f"{CURRENT}.{os.getpid()}"
        temporary.write_text(number)
        temporary.replace(cache / CURRENT)
        (cache / number).touch()
        with _locked(cache / "lock"):
            versions = [f for f in cache.iterdir() if f.name.isdecimal()]
            for old in sorted(versions, key=lambda f: f.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(old)


class ModelHolder:
    """The champion, and beside it a challenger if one is configured."""

    def __init__(
        self,
        champion: str,
        challenger: str = "",
        challenger_share: float = 0.0,
        poll_seconds: float = 30.0,
    ) -> None:
        self.champion = Slot(ROLES[0], champion)
        self.challenger = Slot(ROLES[1], challenger) if challenger else None
        self.challenger_share = challenger_share
        """Of the requests that name no model."""
        self.poll_seconds = poll_seconds
        self.is_leaving = False
        """Whether the server is about to end."""
        self.tried = threading.Event()
        """Set when it is known whether there is a champion to begin with."""
        self._listing = threading.Lock()
        self._listed: list[dict[str, Any]] = []
        self._listed_at: float | None = None
        self._answers: bool | None = None

    @classmethod
    def configured(cls) -> ModelHolder:
        """As the environment says.

        Raises:
            ConfigError: a variable holds nothing of use.
        """
        holder = cls(
            os.environ.get("WGAN_MODEL", ""),
            os.environ.get("WGAN_CHALLENGER", ""),
            setting("WGAN_CHALLENGER_SHARE", 0.0, high=1.0),
            setting("WGAN_REGISTRY_POLL_SECONDS", 30.0, low=0.05),
        )
        if holder.challenger_share and not holder.challenger:
            raise ConfigError("WGAN_CHALLENGER_SHARE: name the challenger in WGAN_CHALLENGER")
        return holder

    @property
    def slots(self) -> list[Slot]:
        """The champion's, and the challenger's if there is to be one."""
        return [self.champion, *([self.challenger] if self.challenger else [])]

    @property
    def served(self) -> Served | None:
        """The champion, once it has run."""
        return self.champion.served

    def start(self) -> None:
        """Load what is configured and look for newer versions from now on; blocks nothing."""
        threading.Thread(target=self._go_on, name="models", daemon=True).start()

    def require(self, role: str | None = None) -> Served:
        """The model for a request that names one, or leaves the choice to us.

        Raises:
            NoModel: it is not ready; says whether it is loading or failed to.
            ShapeError: no challenger is configured.
        """
        challenger = self.challenger
        if role == "challenger" and challenger is None:
            raise ShapeError("no challenger is served here; leave out the model, or name champion")
        slot = self.champion
        if challenger and role == "challenger":
            slot = challenger
        elif challenger and role is None and challenger.served:
            slot = challenger if random.random() < self.challenger_share else slot
        if slot.served is None:
            raise NoModel(slot.reason)
        return slot.served

    def listing(self) -> dict[str, Any]:
        """The versions and aliases of the served names, and what is served; asks the registry.

        As old as the poll interval at most while the registry answers, else as it last was.
        """
        with self._listing:
            if self._listed_at is None or time.monotonic() - self._listed_at > self.poll_seconds:
                self._list()
        serving = [
            {"role": s.role, "version": s.version, "digest": s.model.digest, "since": instant(s)}
            for s in (slot.served for slot in self.slots)
            if s
        ]
        return {"models": self._listed, "registry_answers": self._answers, "serving": serving}

    def _list(self) -> None:
        # Names that are not served are nobody's business here.
        names = {s.source.rpartition("@")[0] for s in self.slots if s.is_reference}
        self._listed_at = time.monotonic()
        if not names:
            return
        try:
            rows = _within(ANSWER_SECONDS, "the registry", registry.versions)
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

    def _go_on(self) -> None:
        for slot in self.slots:
            _surely(slot.start)
            if slot.served is None:
                _surely(slot.refresh)
            self.tried.set()  # the champion's slot is the first
        while any(slot.is_reference for slot in self.slots):
            for slot in self.slots:
                if slot.is_reference:
                    _surely(slot.refresh)
            time.sleep(jittered(self.poll_seconds))


def instant(served: Served) -> str:
    """When a model began to serve: UTC, ISO 8601."""
    return datetime.fromtimestamp(served.since, UTC).isoformat(timespec="seconds")


def run_once(model: Model, version: str) -> None:
    """Run a model's networks.

    Raises:
        ArtifactError: they give what is not finite.
    """
    import torch

    from models import sampling

    rows = sampling.CHUNK
    z = torch.from_numpy(sampling.latents(0, 0, rows, model.run.config.generator.latent_size))
    labels = model.labels(seed=0, count=rows)
    with torch.inference_mode():
        raw = model.forward(z, *([] if labels is None else [torch.from_numpy(labels)]))
    if not torch.isfinite(raw).all():  # as pixels, NaN would pass for black
        raise ArtifactError(f"{version}: its generator makes values that are not finite")
    score = model.score(model.sample(seed=0, count=rows), labels)
    if not np.isfinite(score).all():
        raise ArtifactError(f"{version}: its own sample has the score {score[0]}")


def at_once(model: Model) -> int:
    """As many samples as a forward has, if they take less than `QUICK`; or else none."""
    from models.sampling import CHUNK

    if CHUNK * math.prod(model.shape) > QUICK_NUMBERS:
        return 0
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        model.sample(seed=0, count=CHUNK)
        seconds.append(time.perf_counter() - began)
    return CHUNK if min(seconds) < QUICK else 0


def cache_folder() -> Path:
    """Where downloaded versions are kept: below ``WGAN_CACHE``, or the user's cache folder."""
    own = os.environ.get("WGAN_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wgan-foundry"
    return (Path(own) if own else home) / "models"


def setting(name: str, default: float, low: float = 0.0, high: float = math.inf) -> float:
    """A number from the environment.

    Raises:
        ConfigError: it is none, or out of range.
    """
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or math.isinf(value):
        between = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise ConfigError(f"{name}={text}: write a number {between}")
    return value


def workers_wanted() -> int:
    """Processes that answer requests: ``WGAN_WORKERS``.

    Raises:
        ConfigError: it is no such number.
    """
    return int(setting("WGAN_WORKERS", 1, low=1))


def processors() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def jittered(seconds: float) -> float:
    """A wait that varies."""
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)


def _same(folder: Path, digest: str | None) -> None:
    from models.artifact import verify

    found = verify(folder)
    if digest is not None and found != digest:
        raise ArtifactError(
            f"{folder}: its digest is {found}, but the registry knows it as {digest}"
        )


def _persistently(question: Callable[[], T], *others: type[Exception], wait: float = 0.5) -> T:
    """Ask again, after longer and longer waits, while a RegistryError, or another, may pass."""
    transient: tuple[type[Exception], ...] = (RegistryError, *others)
    for attempt in range(TRIES):
        try:
            return question()
        except transient as error:
            final = isinstance(error, RegistryError) and registry.is_absent(error)
            if final or attempt == TRIES - 1:
                raise
            log.info("trying again: %s", error)
            time.sleep(jittered(wait * 2**attempt))
    raise AssertionError("unreachable")


def _within(seconds: float, who: str, question: Callable[[], T]) -> T:
    """Wait so long for an answer, and no longer: the thread that asked is left to its fate.

    Raises:
        RegistryError: there was no answer.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="registry", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():  # the question's own error
            raise
        raise RegistryError(f"{who} did not answer within {seconds:g} seconds") from None


def _surely(step: Callable[[], Any]) -> None:
    try:
        step()
    except Exception:  # such as a full disk; the next poll may fare better
        log.exception("looking after the models failed")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among this server's workers, and whoever else shares the cache."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
