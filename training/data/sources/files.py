"""Files and folders, on this machine or behind any URL that fsspec knows."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple

from models.durable import put
from models.errors import DataError
from models.redaction import holds_credentials
from models.remote import fault

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""Endings of the names of compressed files, each with the method's name."""


class Location(NamedTuple):
    """A file or folder; `fs` is fsspec's file system, or None for this machine's."""

    source: str
    """The path or URL as the user wrote it."""
    path: str
    fs: Any

    @property
    def suffix(self) -> str:
        """The end of the name that tells the format, in lower case, such as ``.tar.gz``."""
        path = PurePosixPath(self.path.lower())
        found = next((s for s in ARCHIVES if path.name.endswith(s)), path.suffix)
        return "".join(path.suffixes[-2:]) if found in COMPRESSIONS else found

    @property
    def name(self) -> str:
        """The last part of the path, without its suffix."""
        name = PurePosixPath(self.path).name
        return name[: len(name) - len(self.suffix)] or name

    def kind(self) -> Literal["file", "folder"] | None:
        """Find out what is there; None for nothing.

        Raises:
            DataError: access is denied, or the server does not answer.
        """
        if self.fs is None:
            path = Path(self.path)
            return "folder" if path.is_dir() else "file" if path.is_file() else None
        with reading(self.source):
            try:
                # Not `isfile` and `isdir`, which answer no where access is denied.
                kind = self.fs.info(self.path)["type"]
            except FileNotFoundError as error:
                if fault(self.source, error) is None:
                    return None
                raise  # over HTTP, whatever goes wrong is one
        return "folder" if kind == "directory" else "file"

    def open(self) -> IO[bytes]:
        """Open the file to read its bytes."""
        return Path(self.path).open("rb") if self.fs is None else self.fs.open(self.path, "rb")


def locate(source: str) -> Location:
    """Find out where a path or URL points; nothing is read yet.

    Raises:
        DataError: the URL cannot be understood, or what speaks its protocol is not installed.
    """
    if "://" not in source:
        return Location(source, os.path.abspath(source), None)
    if holds_credentials(source):
        raise DataError(
            f"data.source: {source}: a password or signature in it would be written into the run; "
            "give credentials by the environment (for s3://: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY), or fetch the file yourself"
        )
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        fs, path = fsspec.core.url_to_fs(source)
    except ImportError as error:
        raise DataError(f"{source}: {error}; for s3://: pip install 'wgan-foundry[s3]'") from None
    except ValueError as error:
        raise DataError(f"{source}: {error}") from None
    return Location(source, path, None if isinstance(fs, LocalFileSystem) else fs)


@contextlib.contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file, an archive or a server into one clear line."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{source}: no such file, folder or bucket") from None
    except PermissionError as error:
        raise DataError(
            f"{source}: access denied ({reason(error)}); check the permissions or credentials"
        ) from None
    except Exception as error:  # each protocol, archive and parser has its own kinds
        raise DataError(f"{source}: cannot be read: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a path in an empty folder; the file written there becomes ``path``, whole or not at all.

    Raises:
        FileNotFoundError: the block has written nothing there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder) / path.name
        yield new
        put(new, path)


def installed_file(package: str, path: str) -> Path | None:
    """Find a file of an installed package without running the package; None if there is none."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((Path(f) / path for f in folders if (Path(f) / path).is_file()), None)
