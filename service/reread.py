"""What files hold, read again whenever one of them changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from models.errors import MachineError, UserError

T = TypeVar("T")
State = tuple[tuple[object, ...], ...]
log = logging.getLogger("wgan.service")


class Reread(Generic[T]):
    """What some files hold, as it was when they were last sound.

    Args:
        files: lists the files.
        read: reads them; raises a `UserError` if they have a mistake or cannot be read.
        value: what stands for it until they have been read; None: they are read at once.
        taken: a line for the log on what was read later.
        kept: the end of a line on what stays as it was.

    Raises:
        UserError: they are read at once, and cannot be.
    """

    def __init__(
        self,
        files: Callable[[], Iterable[Path]],
        read: Callable[[], T],
        value: T | None,
        taken: Callable[[T], str],
        kept: Callable[[T], str],
    ) -> None:
        self._files, self._read, self._taken, self._kept = files, read, taken, kept
        self.seen = self._state() if value is None else None
        """What tells the files that were read last from others."""
        self._value = read() if value is None else value

    def current(self) -> T:
        """Return what the files hold, read again if one has changed.

        While they have a mistake or are gone it stays as it was, and the log says so once. An error
        of the machine may pass while the files stay the same, so they are read again.
        """
        seen = self._state()
        if seen != self.seen:
            try:
                self._value = self._read()
                log.info("%s", self._taken(self._value))
            except UserError as error:
                log.error("%s; %s", error, self._kept(self._value))
                if isinstance(error, MachineError):
                    return self._value
            self.seen = seen
        return self._value

    def _state(self) -> State:
        try:
            return tuple(map(_state_of, self._files()))
        except OSError:
            return (("cannot be listed",),)


def _state_of(file: Path) -> tuple[object, ...]:
    try:
        stat = file.stat()
    except OSError:
        return (file.name,)
    # The time of a change of the mode too: a file may become readable.
    return (file.name, stat.st_ctime_ns, stat.st_size, stat.st_ino)
