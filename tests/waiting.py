"""Locks of files, as workers of one server hold them."""

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path


def waits_for_the_lock(file: Path, work: Callable[[], object]) -> bool:
    """Whether work in a thread is not done before another lets go of a file's lock, but then is."""
    thread = threading.Thread(target=work, daemon=True)
    with file.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.2)
        waits = thread.is_alive()
    thread.join(30)
    return waits and not thread.is_alive()
