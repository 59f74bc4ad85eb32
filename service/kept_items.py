"""Kept items: the last that were scored, in a file for `wgan w1`, where the operator wants that."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import time
from pathlib import Path
from typing import IO
from urllib.parse import quote

import numpy as np

from service.ring import COUNT_BYTES, put
from service.served import Served

Array = np.ndarray
SECONDS = 60
"""Time from one writing of a model's file to the next."""
MAX_ITEMS, MAX_BYTES = 10_000, 2**28
"""Items that are kept of a model, and their bytes, at most."""
log = logging.getLogger("wgan.service")


class KeptItems:
    """The last items of each model that is being served, as ``NAME-ROLE-HOST.npy`` or ``.parquet``.

    The workers of a server share a ring of items, a hidden file, of which that file is a copy: so
    it is whole at any time.

    Args:
        folder: where they are kept, and where the next server goes on; None: none are.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._works = True

    def add(self, served: Served, items: Array) -> None:
        """Keep items of a model; the oldest ones go.

        Items that cannot be kept spoil no request: the log says so once.

        Args:
            served: the model.
            items: ``(N, ...)`` as `Model.items` or `Model.codes` returns them.
        """
        if self._folder is None:
            return
        try:
            self._add(self._folder, served, items)
        except OSError as error:
            if self._works:
                log.error("items are not kept: %s", error)
            self._works = False
        else:
            self._works = True

    def _add(self, folder: Path, served: Served, items: Array) -> None:
        size = max(1, min(MAX_ITEMS, MAX_BYTES // items[0].nbytes))
        stem = f"{quote(served.name, safe='')}-{served.role}-{platform.node()}"
        path = folder / f"{stem}.{'npy' if served.model.table is None else 'parquet'}"
        ring = folder / f".{stem}@{served.model.digest}.ring"
        folder.mkdir(parents=True, exist_ok=True)
        ring.touch()
        with ring.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            count = _count(file, size, items[0].nbytes)
            if not count:  # a new version
                for old in folder.glob(f".{stem}@*.ring"):
                    if old != ring:
                        old.unlink(missing_ok=True)
            put(file, count, size, items)
            if not count or not path.exists() or time.time() - path.stat().st_mtime >= SECONDS:
                file.seek(COUNT_BYTES)
                content = np.frombuffer(file.read(), items.dtype)
                _write(path, served, content.reshape(-1, *items.shape[1:]))


def _count(file: IO[bytes], size: int, item_bytes: int) -> int:
    """The number of items so far; a ring that is not whole begins anew."""
    length = os.fstat(file.fileno()).st_size
    count = int.from_bytes(file.read(COUNT_BYTES), "little", signed=True)
    if count > 0 and length == COUNT_BYTES + min(count, size) * item_bytes:
        return count
    file.truncate(0)
    return 0


def _write(path: Path, served: Served, items: Array) -> None:
    from models.durable import write_file  # with what follows, for the worker alone
    from models.formats import stream
    from models.tables.files import write_rows

    if (table := served.model.table) is not None:
        write_file(path, write_rows([table.decode(items)], "parquet"))
    else:
        write_file(path, stream([items], len(items), "npy"))
