"""Room for models: how much of the memory the versions that a process holds may take."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import UserError
from service.broken import is_broken
from service.served import Served, load

if TYPE_CHECKING:  # torch would cost BentoML's supervisor 190 MB and a second: workers import it
    from models.model import Model


class NoRoom(UserError):
    """A version does not fit beside those that are held."""


class Broken(UserError):
    """This process loads nothing more, whatever it is: see `service.broken`."""


class Room:
    """The versions that one process holds, and a bound on the sizes of their files.

    Requests under way keep the version that they began with, so one that another has replaced is
    held for as long as they last. During an exchange the old and the new one are held.

    Args:
        mebibytes: the bound; 0: none.
    """

    def __init__(self, mebibytes: int) -> None:
        self._most = mebibytes * 2**20
        self._held: tuple[tuple[weakref.ref[Model], int], ...] = ()
        """Versions and their sizes; replaced whole, since metrics are read while one is loaded."""
        self._loading = threading.Lock()
        self._is_broken = False

    def load(self, folder: Path, version: str | None, name: str, role: str, device: str) -> Served:
        """Load a version if there is room for it, one at a time; see `served.load`.

        Raises:
            NoRoom: there is none.
            Broken: memory lacked while one was loaded, now or before.
        """
        with self._loading:
            if self._is_broken:
                raise Broken("memory lacked before; start this process again to load anything")
            size = size_of(folder)
            if self.held + size > self._most > 0:
                gc.collect()  # a version may wait for it that nobody uses any more
                if self.held + size > self._most:
                    raise NoRoom(
                        f"the files of {version or name} have {_mebibytes(size)}, those of "
                        f"the versions that are held {_mebibytes(self.held)}; together that is "
                        f"over WGAN_MODELS_MEMORY={self._most // 2**20}"
                    )
            try:
                served = load(folder, version, name, role, device)
            except RuntimeError as error:
                self._is_broken = is_broken(error)
                if self._is_broken:
                    raise Broken(f"memory lacked ({error}); start this process again") from error
                raise
            alive = (held for held in self._held if held[0]() is not None)
            self._held = (*alive, (weakref.ref(served.model), size))
            return served

    @property
    def held(self) -> int:
        """Bytes of the files of all versions that are held."""
        return sum(size for model, size in self._held if model() is not None)


def size_of(folder: Path) -> int:
    """Return the bytes of those files of an artifact that a service reads."""
    from models.artifact import FETCHED

    size = 0
    for name in FETCHED:
        with contextlib.suppress(OSError):  # loading it will tell what is wrong
            size += (folder / name).stat().st_size
    return size


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
