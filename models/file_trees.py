"""The files of a folder or of a tar archive, of which none is passed over without being counted."""

from __future__ import annotations

import os
import tarfile
from collections import Counter, deque
from collections.abc import Iterator
from typing import IO

from models.artifact import RUN, SUMS

LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""What systems leave in folders and archives, besides hidden files; nobody misses it."""
LINKS = "links in the archive"
"""What the links of an archive are counted as."""


def is_litter(name: str) -> bool:
    """Tell if a relative name, with ``/``, is hidden or `LITTER`, or lies in a folder that is."""
    return any(part.startswith(".") or part in LITTER for part in name.split("/"))


def shown(name: str) -> str:
    r"""A file's name as text: bytes that are no UTF-8 become such as ``\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def folder_files(root: str, not_read: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield the relative name and the path of each file that is not hidden or `LITTER`.

    Links are followed; each folder is read once, at best by no link.

    Args:
        root: the folder.
        not_read: counts what is passed over, by what it is.

    Raises:
        OSError: a folder cannot be read.
    """
    folders, links = deque([(root, "")]), deque[tuple[str, str]]()
    known = set[tuple[int, int]]()
    while folders or links:
        folder, below = folders.popleft() if folders else links.popleft()
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in known:
            not_read["links to folders that are read already"] += 1
            continue
        known.add((found.st_dev, found.st_ino))
        names = sorted(os.listdir(folder))
        if {RUN, SUMS} <= set(names):
            not_read["models that wgan wrote"] += 1
            continue
        for name in names:
            path, whole = f"{folder}/{name}", below + shown(name)
            if is_litter(name):
                continue
            if os.path.isdir(path):
                (links if os.path.islink(path) else folders).append((path, f"{whole}/"))
            elif os.path.isfile(path):
                yield whole, path
            elif os.path.islink(path):
                not_read["links that lead nowhere"] += 1


def open_tar(file: IO[bytes]) -> tarfile.TarFile:
    """Open a tar, compressed or not, to be read from its start to its end.

    Raises:
        tarfile.TarError: it is no tar; while it is read, it is damaged or ends early.
    """
    return tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member)


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error; tarfile takes one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # zeros, as at every end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it is damaged or ends early: {error}") from None
