"""The open connections of a worker: bounded in number, and closed when their clients dawdle."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from typing import Protocol

import prometheus_client

MAX_CONNECTIONS = 1000
"""Connections of one worker; fewer if it may open fewer files."""
SHARE_OF_FILES = 0.75
"""Of the files that the process may open. The rest is for the model, the registry and the like."""
HEAD_SECONDS = 10.0
"""From a connection's beginning, or a later head's first byte, to the end of the head."""
LINGER_SECONDS = 30.0
"""For which the rest of a body is read and thrown away once its request is refused: a client that
has not looked yet would lose the answer with its connection. It is nginx's ``lingering_time``."""
READ_SECONDS = 10.0
"""Over which a client's reading is measured, once what it does not read piles up."""
LEAST_RATE = 2**14
"""Bytes a second that a client must read."""
TICK = 1.0
"""Seconds between looks at all connections."""
LOG_SECONDS = 60.0
"""Seconds between two lines that say the same."""
REASONS = ("no_request", "no_tls", "not_http", "slow_reader", "crowded")
log = logging.getLogger("wgan.service")


class Connection(Protocol):
    """What is asked of a connection."""

    peer: str
    """Network that it comes from."""
    since: float
    """Loop time since which it is as it is: opened, sending a body, answered, sending a head."""

    @property
    def patience(self) -> float:
        """Seconds for which it may stay so."""

    @property
    def is_idle(self) -> bool:
        """True if it is kept for its next request, of which nothing has come."""

    @property
    def awaits_client(self) -> bool:
        """True if nothing is done for it before more comes from its client."""

    def unread(self) -> int | None:
        """Return the bytes that the client has yet to take; None unless they are in the way."""

    def give_up(self, reason: str) -> None:
        """Close it."""


class Connections:
    """Keeps watch over the connections of one worker.

    One look a second at all of them costs a request nothing, where timers of their own would.

    Args:
        gauge: shows how many are open.
        closed: counts those that were closed, by reason.
    """

    def __init__(self, gauge: prometheus_client.Gauge, closed: prometheus_client.Counter) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files == resource.RLIM_INFINITY:  # it is -1
            files = 2 * MAX_CONNECTIONS
        self.limit = min(MAX_CONNECTIONS, int(SHARE_OF_FILES * files))
        self._open: set[Connection] = set()
        self._reading: dict[Connection, tuple[float, int]] = {}
        """Since when a client's reading is measured, and what it had yet to take then."""
        self._ticking: asyncio.TimerHandle | None = None
        self._logged = -LOG_SECONDS
        self._gauge = gauge
        self._closed = closed

    def add(self, connection: Connection) -> None:
        """Watch a new connection; if there are too many, close some that wait for their clients.

        So there is always room for a probe, whose request comes at once.
        """
        self._open.add(connection)
        if len(self._open) > self.limit:
            self._make_room(connection)
        if self._ticking is None:
            self._tick()

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)
        self._reading.pop(connection, None)

    def count(self, reason: str) -> None:
        """Count a connection that is closed."""
        self._closed.labels(reason).inc()

    def has_read(self, connection: Connection) -> None:
        """Note that a client has taken enough for the next piece of its answer."""
        self._reading.pop(connection, None)

    def _make_room(self, newest: Connection) -> None:
        """Close a sixteenth: of the peers that have most, the idle, then who has waited longest."""
        counts = Counter(c.peer for c in self._open)
        waiting = [c for c in self._open if c.awaits_client and c is not newest]
        waiting.sort(key=lambda c: (-counts[c.peer], not c.is_idle, c.since))
        for connection in waiting[: 1 + self.limit // 16] or [newest]:
            self._give_up(connection, "crowded")
        now = asyncio.get_running_loop().time()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            peer, count = counts.most_common(1)[0]
            log.warning(
                "%d connections are open, as many as can be, %d of them from %s: those that wait "
                "longest for their clients are closed",
                counts.total(),
                count,
                peer,
            )

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticking = loop.call_later(TICK, self._tick)  # first: an error must not end the watch
        now = loop.time()
        for connection in list(self._open):
            if now - connection.since > connection.patience:
                self._give_up(connection, "no_request")
            else:
                self._check_reading(connection, now)
        self._gauge.set(len(self._open))

    def _check_reading(self, connection: Connection, now: float) -> None:
        """Close a connection whose client reads more slowly than the least rate."""
        unread = connection.unread()
        if unread is None:
            return
        since, before = self._reading.setdefault(connection, (now, unread))
        if now - since < READ_SECONDS:
            return
        if before - unread < LEAST_RATE * (now - since):
            self._give_up(connection, "slow_reader")
        else:
            self._reading[connection] = (now, unread)

    def _give_up(self, connection: Connection, reason: str) -> None:
        self.remove(connection)
        self.count(reason)
        connection.give_up(reason)
