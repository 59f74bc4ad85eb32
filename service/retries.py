"""Retries and time limits for a registry that is slow, or fails for a while."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from models import registry
from models.errors import AwayError, MachineError, RegistryError

T = TypeVar("T")
TRIES = 3
"""Attempts at a question or a download; the next poll begins anew."""
FIRST_WAIT = 0.5
"""Seconds before the second attempt; each later wait is twice as long."""
JITTER = 0.2
"""Share of a wait by which it varies, so that replicas do not ask all at once."""
log = logging.getLogger("wgan.service")


def jittered(seconds: float) -> float:
    """Vary a wait."""
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)


def retry(call: Callable[[], T], *transient: type[Exception]) -> T:
    """Call again, after longer and longer waits, while a `RegistryError` may pass.

    Args:
        call: function to try.
        transient: other errors that may pass.
    """
    retried: tuple[type[Exception], ...] = (RegistryError, *transient)
    for attempt in range(TRIES):
        try:
            return call()
        except retried as error:
            final = isinstance(error, RegistryError) and registry.is_absent(error)
            if final or attempt == TRIES - 1:
                raise
            log.info("trying again: %s", error)
            time.sleep(jittered(FIRST_WAIT * 2**attempt))
    raise AssertionError("unreachable")


def within(seconds: float, who: str, call: Callable[[], T]) -> T:
    """Call in a thread, and wait no longer than ``seconds``; the thread is then left alone.

    Raises:
        AwayError: there was no answer in time.
        MachineError: there is no room for a thread.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    try:
        threading.Thread(target=ask, name="registry", daemon=True).start()
    except RuntimeError as error:
        raise MachineError(f"{who} cannot be asked: {error}") from error
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():  # the call's own error
            raise
        raise AwayError(f"{who} did not answer within {seconds:g} seconds") from None
