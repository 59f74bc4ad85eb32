"""Where commands write: checked before the work, and written to by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from models.durable import write_file
from models.errors import DataError, MachineError, UserError
from models.os_errors import reason
from models.registry_errors import is_of_this_machine

LEASE = ".lease"
"""The lock of a folder that one process writes to; it goes when that process is done."""
PROBE = 4096
"""Bytes that are written, and are gone again, to see that a file system takes any."""


@contextlib.contextmanager
def lease(
    path: Path, killed: Callable[[str], Any] = lambda who: None, *, wait: bool = False
) -> Iterator[str | None]:
    """Hold a lock; yields None, or a text that says who holds it.

    The kernel frees the lock when the process ends, however it ends. What the file says goes with
    the block alone.

    Args:
        path: of the file that is locked.
        killed: told who held the lock last, if that process did not come to the end of its block.
        wait: until the lock is free; None is yielded then.

    Raises:
        UserError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                file.seek(0)
                yield file.read().strip() or "a process that has just begun"
                return
            except OSError as error:
                raise UserError(
                    f"{path.parent}: cannot be locked: {error.strerror}; name a folder on a file "
                    "system with file locks"
                ) from None
            if not os.fstat(file.fileno()).st_nlink:
                continue  # its holder has removed it: the next one locks another file
            file.seek(0)
            if before := file.read().strip():
                killed(before)
            file.truncate(0)
            when = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {when}\n")
            file.flush()
            try:
                yield None
            finally:
                file.truncate(0)
        return


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes to a folder; it is made, and stays if it holds anything.

    Raises:
        UserError: another process writes there, or nothing can be written there.
        MachineError: the disk filled up, or failed, while the block wrote.
    """
    with contextlib.ExitStack() as stack:
        try:
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            holder = stack.enter_context(lease(folder / LEASE))
        except OSError as error:
            raise unwritable(folder, error) from None
        if holder is not None:
            raise UserError(
                f"{folder}: is in use by {holder}; wait for its end, or choose another --out"
            )
        try:
            yield
        except (OSError, SafetensorError) as error:
            if isinstance(error, OSError) and not is_of_this_machine(error):
                raise
            raise MachineError(
                f"{folder}: cannot be written any more ({error}); what was saved is whole: make "
                "room, and go on from there"
            ) from error
        finally:
            with contextlib.suppress(OSError):  # the first one that holds something stays
                (folder / LEASE).unlink(missing_ok=True)
                for made in missing:
                    made.rmdir()


@contextlib.contextmanager
def turn(entry: Path) -> Iterator[None]:
    """Wait until no other process makes the same entry of the cache, then be the one that may.

    Args:
        entry: a file or folder of the cache; whether it is there now is for the block to see.

    Raises:
        DataError: nothing can be written there.
    """
    lock = entry.with_name(f".{entry.name}{LEASE}")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lease(lock, wait=True))
        except OSError as error:
            raise DataError(
                f"{entry.parent}: cannot be written ({error}); set WGAN_CACHE to a folder with room"
            ) from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a lock that stays is free
                lock.unlink()


def require_file(path: Path | None) -> None:
    """Require that a file can be written, before the work whose result it is to hold.

    Args:
        path: the file; None: there is none to write.

    Raises:
        UserError: it cannot; nothing is left behind.
    """
    if path is None:
        return
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file in it")
        if _is_special(path):
            return
        there = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(PROBE))
    except OSError as error:
        raise unwritable(path, error) from None


def require_new(folder: Path) -> None:
    """Require that there is nothing of a name, and that a folder can be made under it.

    Raises:
        UserError: there is, or it cannot; nothing is left behind.
    """
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder}: is there already; name a new folder")
    require_file(folder)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line what hinders a block that writes a file or folder whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from None


def save(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Write a file whole or not at all; its folder is made. A device or a pipe is written to.

    Args:
        path: the file, or a link to it.
        content: text becomes UTF-8.

    Raises:
        UserError: it cannot be written.
    """
    with writing(path):
        content = content.encode() if isinstance(content, str) else content
        if _is_special(path):  # which a file in its place would destroy, such as /dev/null
            with path.open("wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.realpath(path)  # `Path.resolve` fails where links lead in a circle
        write_file(Path(target), content)


def _is_special(path: Path) -> bool:
    """True of a device or a pipe, such as ``/dev/stdout``."""
    return path.exists() and not path.is_file() and not path.is_dir()


def unwritable(path: Path, error: OSError | SafetensorError) -> UserError:
    """The error of a file or folder that cannot be written: of this machine, or of its name."""
    is_ours = isinstance(error, SafetensorError) or is_of_this_machine(error)
    kind = MachineError if is_ours else UserError
    why = reason(error) if isinstance(error, OSError) else str(error)
    return kind(f"{path}: cannot be written: {why}")
