"""Scoring: requests that wait at the same time share a forward when their turn comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from service.state import Served

Array = np.ndarray
T = TypeVar("T")


class Given(NamedTuple):
    """What a request asks to have scored."""

    served: Served
    items: Array
    """As `Model.items` returns them."""
    labels: Array | None
    """As `Model.require_labels` wants them."""


Waiting = deque[tuple[Callable[[], Given], "Future[T]"]]


class Gathered(Generic[T]):
    """Scores requests, those together that wait together.

    A forward has `models.sampling.CHUNK` rows however few are asked for. A turn does not wait for
    company: it takes along who waits by then. BentoML's batching, which does wait, made a lone
    request seven times as slow (docs/performance.md).
    """

    def __init__(
        self,
        in_thread_unless: Callable[[Callable[[], bool], Callable[[], None]], Awaitable[None]],
        answer: Callable[[Served, Array, float], T],
    ) -> None:
        self._in_thread_unless = in_thread_unless
        """Waits for a processor, then does the second, unless the first says it is done."""
        self._answer = answer
        """Makes of the model, the scores ``(N,)`` and the seconds of the turn what is answered."""
        self._waiting: Waiting[T] = deque()

    async def score(self, read: Callable[[], Given], alone: bool) -> T:
        """Read items, score them and make the answer.

        Args:
            read: called once, in a thread; what it raises is raised here.
            alone: what may take long to read makes nobody else wait, and may be cancelled.
        """
        outcome: Future[T] = Future()
        mine = (read, outcome)
        waiting: Waiting[T] = deque() if alone else self._waiting
        waiting.append(mine)
        try:
            await self._in_thread_unless(
                lambda: outcome.running() or outcome.done(), lambda: self._turn(waiting)
            )
            return await asyncio.wrap_future(outcome)  # another's turn may still be at it
        finally:
            outcome.cancel()  # of a client that left; any other is done
            with contextlib.suppress(ValueError, IndexError):  # if it was taken, or just now is
                waiting.remove(mine)

    def _turn(self, waiting: Waiting[T]) -> None:
        """Score as many as fill a forward; whoever waits brings a turn, so none is left."""
        from models.sampling import CHUNK  # torch, which is for the worker alone

        began, rows = time.perf_counter(), 0
        together: dict[int, list[tuple[Given, Future[T]]]] = {}
        while rows < CHUNK:
            try:
                read, outcome = waiting.popleft()
            except IndexError:
                break
            if not outcome.set_running_or_notify_cancel():
                continue
            try:
                given = read()
            except BaseException as error:  # whatever it is, it is told to the one whose it is
                outcome.set_exception(error)
                continue
            rows += len(given.items)
            # Who fills a forward alone, always the last, is scored when the others have answers.
            key = -1 if len(given.items) >= CHUNK else id(given.served)
            together.setdefault(key, []).append((given, outcome))
        for batch in together.values():
            self._score(batch, began)

    def _score(self, batch: list[tuple[Given, Future[T]]], began: float) -> None:
        """Score requests of one model in one go, and make their answers."""
        served, _, labels = batch[0][0]
        try:
            items = np.concatenate([given.items for given, _ in batch])
            if labels is not None:
                labels = np.concatenate([given.labels for given, _ in batch])
            scores = served.model.score(items, labels)
        except Exception as error:
            for _, outcome in batch:
                outcome.set_exception(error)
            return
        seconds, first = time.perf_counter() - began, 0
        for given, outcome in batch:
            own = scores[first : first + len(given.items)]
            first += len(own)
            try:
                outcome.set_result(self._answer(served, own, seconds))
            except Exception as error:
                outcome.set_exception(error)
