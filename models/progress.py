"""Progress of long work, with one look: bars on a terminal, elsewhere nothing or plain lines.

Bars go to stderr, so a pipe from stdout holds results only.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from models.redaction import redacted

T = TypeVar("T")


def is_shown() -> bool:
    """Return True if progress is drawn: on a terminal, by the main process."""
    # Several processes of a pool would draw over each other.
    return sys.stderr.isatty() and multiprocessing.parent_process() is None


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield items and show on a terminal how many have been taken.

    Args:
        items: items to work on.
        what: the work in a word or two, such as ``judging``.
        total: number of items, if ``items`` has no length.
    """
    yield from tqdm(items, what, total, leave=False, disable=not is_shown())


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Show on a terminal, for as long as the block runs, what is being done and for how long."""
    if not is_shown():
        yield
        return
    done = threading.Event()
    with tqdm(desc=what, bar_format="{desc} ... {elapsed}", leave=False) as bar:

        def count_seconds() -> None:
            while not done.wait(1):
                bar.refresh()

        thread = threading.Thread(target=count_seconds, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def say(line: str) -> None:
    """Print a line for people at once, without secrets; bars on the terminal step aside for it."""
    with tqdm.external_write_mode():
        print(redacted(line), flush=True)


def silent(line: object) -> None:
    """Say nothing: the default of every ``say``, and of every ``report``."""
