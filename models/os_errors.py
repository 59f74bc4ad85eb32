"""Errors of the operating system in one line: what could not be used, why, and what to do."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from models.redaction import redacted

PERMISSIONS = "check its permissions, and those of the folders above it"
ROOM = "make room; other disks are named by --out, WGAN_CACHE and TMPDIR"
FILES = "raise the limit of open files (ulimit -n)"
REMEDIES = {
    errno.EACCES: PERMISSIONS,
    errno.EPERM: PERMISSIONS,
    errno.EROFS: "name a place that can be written to",
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of this path is a file; name a folder",
    errno.EISDIR: "name a file",
    errno.EEXIST: "remove it, or name another place",
    errno.ELOOP: "its symbolic links point at each other; name what they should lead to",
    errno.ENAMETOOLONG: "shorten the name",
    errno.EMFILE: FILES,
    errno.ENFILE: FILES,
}
"""What to do, by the error's number."""


def in_words(error: OSError | MemoryError) -> str:
    """Say in one line what happened, and what to do about it where that is known.

    >>> in_words(PermissionError(13, "Permission denied", "/a"))
    '/a: permission denied; check its permissions, and those of the folders above it'
    """
    if isinstance(error, MemoryError):
        said = f" ({error})" if str(error) else ""
        return redacted(f"there is not enough memory{said}; ask for less at once, or end others")
    place = "" if error.filename is None else f"{error.filename}: "
    return redacted(f"{place}{reason(error)}")


def reason(error: OSError) -> str:
    """Say why something cannot be used, and what to do about it where that is known.

    >>> reason(IsADirectoryError(21, "Is a directory", "/a"))
    'is a directory; name a file'
    """
    said = error.strerror or str(error)
    said = f"{said[:1].lower()}{said[1:]}" or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return said + (f"; {remedy}" if remedy else "")


def require_end(path: Path) -> Path:
    """Return the path of a file to be read whole, unless it is a device such as ``/dev/zero``.

    Reading that would never end. A pipe does.

    Raises:
        OSError: it is one, or is not there.
    """
    if stat.S_ISCHR(path.stat().st_mode):
        raise OSError(errno.EINVAL, "Is a device, not a file", str(path))
    return path
