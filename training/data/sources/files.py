"""Files, folders and archives, on this machine or behind any URL that fsspec knows."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, cast
from urllib.parse import urlsplit

from models.durable import put
from models.errors import DataError
from models.remote import fault
from training.progress import track

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""Endings of the names of compressed files, each with the method's name."""
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 2**26
"""Limit for one image file: a small archive may unpack to far more."""
FETCHED_AT_ONCE = 64
"""Objects of a remote folder that are fetched together, since each alone waits for the network."""


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
    if urlsplit(source).password:
        raise DataError(
            "data.source: a URL with a password would be written into the run; give credentials "
            "by the environment (for s3://: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
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


def is_image_name(name: str) -> bool:
    """True for a file that is taken for an image: by its suffix, unless it is hidden."""
    return name.lower().endswith(IMAGES) and not any(
        part.startswith((".", "__MACOSX")) for part in name.split("/")
    )


def content_key(location: Location) -> str:
    """Hash what a folder or archive holds, names included: SHA-256 in hex.

    Files of this machine are read. Behind a URL an object's ETag stands for its content where
    there is one, so that a known set is not fetched again.
    """
    key = hashlib.sha256()
    with reading(location.source):
        if location.suffix in ARCHIVES:
            etag = _etag(location.fs.info(location.path)) if location.fs else None
            if etag:
                return hashlib.sha256(etag.encode()).hexdigest()
            with location.open() as file:
                return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        for name, content in _etags(location) or track(read_images(location), "reading images"):
            key.update(f"{len(name.encode())} {name} {len(content)} ".encode())
            key.update(content)
    return key.hexdigest()


def _etags(location: Location) -> list[tuple[str, bytes]] | None:
    if location.fs is None:
        return None
    etags = [(name, _etag(info)) for name, info in _remote_images(location).items()]
    known = [(name, etag.encode()) for name, etag in etags if etag]
    return known if len(known) == len(etags) else None


def _etag(info: dict[str, Any]) -> str | None:
    etag = info.get("ETag") or info.get("etag")
    return f"{etag} {info.get('size')}" if etag else None


def read_images(location: Location) -> Iterator[tuple[str, bytes]]:
    """Yield ``(name, content)`` of each image file in a folder or archive.

    Names are relative, with ``/``; in sorted order, but for a tar, which is read as it comes.
    Nothing is ever unpacked to the disk. A file of over `MAX_FILE_BYTES` is cut there, so that
    it cannot be decoded.

    Raises:
        DataError: it cannot be read, or an archive's names lead out of it.
    """
    suffix = location.suffix
    with reading(location.source):
        if suffix == ".zip":
            yield from _zip_images(location)
        elif suffix in ARCHIVES:
            yield from _tar_images(location)
        elif location.fs is None:
            root = Path(location.path)
            for name in _local_images(root):
                with (root / name).open("rb") as file:
                    yield name, file.read(MAX_FILE_BYTES)
        else:
            objects = _remote_images(location)
            names = list(objects)
            for first in range(0, len(names), FETCHED_AT_ONCE):
                fetched = names[first : first + FETCHED_AT_ONCE]
                contents = location.fs.cat([objects[name]["name"] for name in fetched])
                for name in fetched:
                    yield name, contents[objects[name]["name"]][:MAX_FILE_BYTES]


def _local_images(root: Path) -> list[str]:
    images = []
    for folder, _, files in os.walk(root):
        below = Path(folder).relative_to(root).as_posix()
        images += [name if below == "." else f"{below}/{name}" for name in files]
    return sorted(filter(is_image_name, images))


def _remote_images(location: Location) -> dict[str, dict[str, Any]]:
    root = location.path.rstrip("/")
    objects = location.fs.find(root, detail=True)
    names = {path.removeprefix(root).lstrip("/"): info for path, info in objects.items()}
    return {name: info for name, info in sorted(names.items()) if is_image_name(name)}


def _zip_images(location: Location) -> Iterator[tuple[str, bytes]]:
    with location.open() as file, zipfile.ZipFile(file) as archive:
        for member in sorted(archive.infolist(), key=lambda m: m.filename):
            if not member.is_dir() and is_image_name(_safe(member.filename, location)):
                try:
                    with archive.open(member) as content:
                        yield member.filename, content.read(MAX_FILE_BYTES)
                except (zipfile.BadZipFile, zlib.error, EOFError):
                    yield member.filename, b""  # this one is broken; the others may not be


def _tar_images(location: Location) -> Iterator[tuple[str, bytes]]:
    with location.open() as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            name = _safe(member.name.removeprefix("./"), location)
            if member.isfile() and is_image_name(name):
                content = cast(IO[bytes], archive.extractfile(member))
                yield name, content.read(MAX_FILE_BYTES)


def _safe(name: str, location: Location) -> str:
    if name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
        raise DataError(f"{location.source}: the member {name!r} leads out of the archive")
    return name
