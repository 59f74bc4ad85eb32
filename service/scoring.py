"""Scoring: requests that wait at the same time share a forward."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from models.errors import ShapeError
from service.drift import Windows
from service.kept_items import KeptItems
from service.metrics import Metrics
from service.problems import forget
from service.served import Served

Array = np.ndarray
T = TypeVar("T")


class ScoreJob(NamedTuple):
    """The items of one request, ready to be scored."""

    served: Served
    items: Array
    """The items as `Model.items` returns them."""
    labels: Array | None
    """The labels as `Model.require_labels` wants them."""


Queue = deque[tuple[Callable[[], ScoreJob], "Future[T]"]]


class ScoreBatcher(Generic[T]):
    """Scores requests that wait at the same time in one forward.

    A forward has as many rows as the model's record says, even for one item. A batch does not wait
    to be filled: it takes the requests that are waiting by then. BentoML's batching does wait,
    which made a lone request seven times as slow (docs/performance.md).

    Args:
        run_unless: waits for a processor; unless its first argument then says that the work is
            done, it does the second in a thread.
        answer: makes the answer from the request, its scores ``(N,)`` and the batch's seconds.
    """

    def __init__(
        self,
        run_unless: Callable[[Callable[[], bool], Callable[[], None]], Awaitable[None]],
        answer: Callable[[ScoreJob, Array, float], T],
    ) -> None:
        self._run_unless = run_unless
        self._answer = answer
        self._waiting: Queue[T] = deque()

    async def score(self, read: Callable[[], ScoreJob], alone: bool) -> T:
        """Read a request's items, score them and make the answer.

        Args:
            read: called once, in a thread; what it raises is raised here.
            alone: score the request in a batch of its own. Items that may take long to read must
                not make others wait, and can then be cancelled.
        """
        outcome: Future[T] = Future()
        request = (read, outcome)
        waiting: Queue[T] = deque() if alone else self._waiting
        waiting.append(request)
        try:
            await self._run_unless(
                lambda: outcome.running() or outcome.done(), lambda: self._run_batch(waiting)
            )
            return await asyncio.wrap_future(outcome)  # it may be in another request's batch
        finally:
            outcome.cancel()  # the client left; otherwise it is done already
            with contextlib.suppress(ValueError, IndexError):  # a batch has taken it
                waiting.remove(request)

    def _run_batch(self, waiting: Queue[T]) -> None:
        """Score as many requests as fill a forward; each request runs a batch, so none is left."""
        began, rows, chunk = time.perf_counter(), 0, 1
        batches: dict[int, list[tuple[ScoreJob, Future[T]]]] = {}
        while rows < chunk:
            try:
                read, outcome = waiting.popleft()
            except IndexError:
                break
            if not outcome.set_running_or_notify_cancel():
                continue
            try:
                job = read()
            except BaseException as error:  # this request's own: the others must not see it
                forget(error)
                outcome.set_exception(error)
                continue
            rows, chunk = rows + len(job.items), job.served.model.run.engine.chunk
            # A request that fills a forward alone comes last, so the others are answered first.
            key = -1 if len(job.items) >= chunk else id(job.served)
            batches.setdefault(key, []).append((job, outcome))
        for batch in batches.values():
            self._score(batch, began)

    def _score(self, batch: list[tuple[ScoreJob, Future[T]]], began: float) -> None:
        """Score requests of one model in one forward, and make their answers."""
        served, _, labels = batch[0][0]
        try:
            items = np.concatenate([job.items for job, _ in batch])
            if labels is not None:
                labels = np.concatenate([job.labels for job, _ in batch])
            scores = served.model.score(items, labels)
        except Exception as error:
            for _, outcome in batch:
                outcome.set_exception(error)
            return
        seconds, first = time.perf_counter() - began, 0
        for job, outcome in batch:
            job_scores = scores[first : first + len(job.items)]
            first += len(job_scores)
            try:
                outcome.set_result(self._answer(job, job_scores, seconds))
            except Exception as error:
                outcome.set_exception(error)


class ScoreResult(NamedTuple):
    """Scores of one request beside those of real held-out items; each array is ``(N,)``."""

    served: Served
    scores: Array
    percentiles: Array
    """Percentile, 0 to 100, of each score among those of real held-out items."""
    out_of_range: Array
    """bool: True where a score lies outside all of them."""


def compare(
    metrics: Metrics,
    windows: Windows,
    kept: KeptItems,
    job: ScoreJob,
    scores: Array,
    seconds: float,
) -> ScoreResult:
    """Count scores ``(N,)`` of one request, and compare them with those of real items.

    Raises:
        ShapeError: a score is not finite: finite items can still overflow in the critic.
    """
    if not np.isfinite(scores).all():
        raise ShapeError("the items are so large that their scores are not finite")
    served = job.served
    percentiles = served.model.percentiles(scores)
    metrics.scoring.labels(*served.labels).observe(seconds)
    metrics.count_scores(served, scores, percentiles)
    windows.add(served, scores)
    kept.add(served, job.items)
    return ScoreResult(served, scores, percentiles, served.model.out_of_range(scores))
