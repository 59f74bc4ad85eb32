"""The models of one process, by name; each is exchanged by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from service.holder import ModelHolder, OnOutcome, Slot, log_errors
from service.problems import NotServed
from service.room import Room
from service.settings import Settings

FIRST_MODEL_SECONDS = 60.0
"""Longest wait for a model that is loaded for the first time: of the next one for it, and of one
worker among several before it takes part."""


class Holders:
    """All models that are served.

    Args:
        settings: name the models, the registry and the cache.
        on_outcome: see `OnOutcome`.
    """

    def __init__(self, settings: Settings, on_outcome: OnOutcome) -> None:
        self.room = Room(settings.models_memory)
        self._by_name = {
            name: ModelHolder(name, settings, self.room, on_outcome) for name in settings.champions
        }
        self.champions_tried = threading.Event()
        """Set when the first attempts to load the champions are over, or take too long."""

    def __iter__(self) -> Iterator[ModelHolder]:
        return iter(self._by_name.values())

    @property
    def names(self) -> list[str]:
        """The models' names, ready or not, in the order in which they were given."""
        return list(self._by_name)

    @property
    def only(self) -> str | None:
        """The name of the only model; None if there are several."""
        return self.names[0] if len(self._by_name) == 1 else None

    @property
    def slots(self) -> list[Slot]:
        """The champions' and challengers' of all models."""
        return [slot for holder in self for slot in holder.slots]

    @property
    def is_ready(self) -> bool:
        """True if each champion has run, failed to, or takes long; and at least one has run."""
        return self.champions_tried.is_set() and any(holder.served for holder in self)

    def has_model(self, name: str | None) -> bool:
        """Return False if a model is named whose champion has not run."""
        holder = self._by_name.get(name or "")
        return holder is None or holder.served is not None

    def of(self, name: str | None) -> ModelHolder:
        """Return the model of a name.

        Raises:
            NotServed: there is none of this name, or no name although there are several.
        """
        if name not in self._by_name:
            names = ", ".join(self.names)
            raise NotServed(f"name a model in the path, /v1/models/NAME/...; there are: {names}")
        return self._by_name[name]

    def start(self) -> None:
        """Load the models, and look for newer versions from now on, in threads."""
        _in_thread("models", self._load)

    def _load(self) -> None:
        """Load the models one after the other, so that it is always the same that finds no room.

        One that takes long, such as while its storage hangs, does not hold the others up for ever.
        """
        champions = [holder.champion for holder in self]
        tries: dict[Slot, threading.Thread] = {}
        for slots in (champions, [slot for slot in self.slots if slot not in champions]):
            for slot in slots:  # first what is in the cache: it need not wait for a registry
                log_errors(slot.start)
            for slot in slots:
                if slot.served is None:
                    tries[slot] = _in_thread(f"first try of {slot.name}", log_errors, slot.refresh)
                    tries[slot].join(FIRST_MODEL_SECONDS)
            self.champions_tried.set()
        for holder in self:
            own = [tries[slot] for slot in holder.slots if slot in tries]
            _in_thread(f"start of {holder.name}", _follow_after, holder, own)

    @property
    def registry_answers(self) -> bool | None:
        """False if the registry did not answer the last question; None if none was put to it."""
        answers = [slot.reachable for slot in self.slots if slot.reachable is not None]
        return all(answers) if answers else None

    def listing(self) -> dict[str, Any]:
        """The versions and aliases of the followed names, and what is served.

        The registry is not asked: the list is the last one that was had, with its age in seconds,
        of several the age of the oldest. While the registry answers it is hardly older than the
        poll interval.
        """
        times = [holder.listed_at for holder in self if holder.listed_at is not None]
        serving = [
            {
                "name": s.name,
                "role": s.role,
                "version": s.version,
                "digest": s.model.digest,
                "since": s.serving_since,
            }
            for s in (slot.served for slot in self.slots)
            if s
        ]
        # Two models may follow two aliases of one registered name.
        rows = {(row["name"], row["version"]): row for holder in self for row in holder.listed}
        return {
            "names": self.names,
            "models": list(rows.values()),
            "age_seconds": round(time.monotonic() - min(times), 3) if times else None,
            "registry_answers": self.registry_answers,
            "serving": serving,
        }


def _in_thread(name: str, work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, args=arguments, daemon=True)
    thread.start()
    return thread


def _follow_after(holder: ModelHolder, tries: Iterable[threading.Thread]) -> None:
    """Let a holder look for newer versions once its first tries are over."""
    for thread in tries:
        thread.join()
    holder.follow()
