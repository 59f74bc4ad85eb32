"""Requests to a server of this machine, from several clients at once."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable

Ask = Callable[[http.client.HTTPConnection, float], None]
"""Makes one request, over a connection, that was due at a time of the monotonic clock."""


def ask_for(seconds: float, port: int, clients: int, rate: float | None, ask: Ask) -> float:
    """Ask at a constant rate, or else each client as soon as it has its answer.

    Args:
        seconds: after which nothing more is due.
        port: of 127.0.0.1.
        clients: each keeps its connection.
        rate: requests per second of all together; None: as fast as can be.
        ask: see `Ask`; called by many threads.

    Returns:
        The seconds that it took, the last answers included.
    """
    lock, begin, sent = threading.Lock(), time.monotonic(), 0

    def keep_asking() -> None:
        nonlocal sent
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                due = begin + sent / rate if rate else time.monotonic()
                sent += 1
            if due > begin + seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            ask(connection, due)
        connection.close()

    threads = [threading.Thread(target=keep_asking) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begin
