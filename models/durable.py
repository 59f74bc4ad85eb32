"""Files that are whole, or as they were, after a kill, a crash of the machine or a full disk.

A file is replaced by one that was written beside it; a line is appended whole or cut off again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from models.errors import BrokenFileError

T = TypeVar("T")
PARTIAL = ".partial"
"""How the name of a file ends that is being written; a process that is killed leaves it."""


def write_file(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Write a file, or replace it: whole or not at all, whatever happens meanwhile.

    Args:
        path: the file; its folder is there.
        content: of the file, at once or in pieces; text becomes UTF-8.
    """
    new = _beside(path)
    content = content.encode() if isinstance(content, str) else content
    try:
        with new.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        put(new, path)
    finally:
        new.unlink(missing_ok=True)


def put(new: Path, path: Path) -> None:
    """Rename a finished file, or a folder of finished files, once the disk has its content.

    Without this a crash of the machine could leave the name without the content.

    Args:
        new: on the same file system as ``path``.
        path: the name; a file or a folder of that name is replaced by one of its kind.
    """
    for file in new.rglob("*"):  # of a file there are none
        _sync(file)
    _sync(new)
    if new.is_dir() and path.is_dir():  # only an empty folder can be replaced
        remove_folder(path)
    os.replace(new, path)
    _sync(path.parent)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which then appears under a name, or not at all.

    Args:
        folder: the name; a folder of that name is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=PARTIAL, dir=folder.parent))
    try:
        new.chmod(0o755)
        yield new
        put(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder: under its name it is whole or gone, never half there."""
    gone = _beside(folder)
    os.replace(folder, gone)
    shutil.rmtree(gone)


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder that nobody writes to now."""
    for left in folder.glob(f".*{PARTIAL}"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, which is made if it is not there.

    A last line that was cut, by a kill or a full disk, is removed first: see `read_lines`.

    Raises:
        OSError: the disk does not take the line; the file is as it was.
    """
    is_new = not path.exists()
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        content = f"{line}\n".encode()
        try:
            if file.write(content) != len(content):
                raise OSError(f"{path}: took only a part of a line")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise
    if is_new:
        _sync(path.parent)


def read_lines(path: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; none if there is no such file.

    A line that was cut, or is no such object, is left out.

    Args:
        path: the file.
        say: takes a warning for each line that is left out.
    """
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            lines.append(value)
        else:
            say(f"warning: {path}: line {number} is cut off or broken, and is left out")
    return lines


def read_file(path: Path, parse: Callable[[bytes], T], remedy: str) -> T:
    """Read a file of ours that is whole or broken.

    Args:
        path: the file.
        parse: takes its content; raises a `ValueError` if that was cut or changed.
        remedy: what to do then, such as "remove it".

    Raises:
        BrokenFileError: it is broken; the message names it, and says what to do.
    """
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise BrokenFileError(path, str(error), remedy) from None


def _beside(path: Path) -> Path:
    """A name of its own: several processes may write the same file."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def _sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's names."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
