"""The image files of a folder or archive: which there are, and what is passed over."""

from __future__ import annotations

import contextlib
import hashlib
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from models.errors import DataError
from models.file_trees import LINKS, folder_files, is_litter, open_tar, shown
from training.data.sources.files import ARCHIVES, Location, reading
from training.progress import track

IMAGES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"),
    *(".gif", ".tif", ".tiff", ".bmp", ".avif"),
)
"""Endings of the names of files that are decoded."""
MAX_FILE_BYTES = 2**26
"""Limit for one image file: a small archive may unpack to far more."""
FETCHED_AT_ONCE = 64
"""Objects of a remote folder that are fetched together, since each alone waits for the network."""
UTF8_NAME = 0x800
"""The flag of a zip's member whose name is UTF-8; without it, it may be in anything."""


def content_key(location: Location, not_read: Counter[str]) -> str:
    """Hash what a folder or archive holds, names included: SHA-256 in hex.

    Files of this machine are read. Behind a URL an object's ETag stands for its content where
    there is one, so that a known set is not fetched again.

    Args:
        location: the folder or archive.
        not_read: of a folder; see `read_images`.
    """
    key = hashlib.sha256()
    with reading(location.source):
        if location.suffix in ARCHIVES:
            etag = _etag(location.fs.info(location.path)) if location.fs else None
            if etag:
                return hashlib.sha256(etag.encode()).hexdigest()
            with location.open() as file:
                return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if location.fs is None:
            found: Any = track(read_images(location, not_read), "reading images")
        else:
            found = _etags(location, not_read) or read_images(location, Counter())
        for name, content in found:
            key.update(f"{len(name.encode())} {name} {len(content)} ".encode())
            key.update(content)
    return key.hexdigest()


def _etags(location: Location, not_read: Counter[str]) -> list[tuple[str, bytes]] | None:
    etags = [(name, _etag(info)) for name, info in _remote_images(location, not_read).items()]
    known = [(name, etag.encode()) for name, etag in etags if etag]
    return known if len(known) == len(etags) else None


def _etag(info: dict[str, Any]) -> str | None:
    etag = info.get("ETag") or info.get("etag")
    return f"{etag} {info.get('size')}" if etag else None


def read_images(location: Location, not_read: Counter[str]) -> Iterator[tuple[str, bytes]]:
    """Yield ``(name, content)`` of each image file in a folder or archive.

    Names are relative, with ``/``; in sorted order, but for a tar, which is read as it comes.
    Nothing is ever unpacked to the disk. A file of over `MAX_FILE_BYTES` is cut there, so that
    it cannot be decoded. Links in folders of this machine are followed, a folder once; those in
    archives are not.

    Args:
        location: the folder or archive.
        not_read: counts what is there and not read, by suffix or by what it is. Hidden files and
            what systems leave behind do not count.

    Raises:
        DataError: it cannot be read, or an archive's names lead out of it.
    """
    suffix = location.suffix
    with reading(location.source):
        if suffix == ".zip":
            yield from _zip_images(location, not_read)
        elif suffix in ARCHIVES:
            yield from _tar_images(location, not_read)
        elif location.fs is None:
            for name, path in sorted(folder_files(location.path, not_read)):
                if is_image(name, not_read):
                    with Path(path).open("rb") as file:
                        yield name, file.read(MAX_FILE_BYTES)
        else:
            objects = _remote_images(location, not_read)
            names = list(objects)
            for first in range(0, len(names), FETCHED_AT_ONCE):
                fetched = names[first : first + FETCHED_AT_ONCE]
                contents = location.fs.cat([objects[name]["name"] for name in fetched])
                for name in fetched:
                    yield name, contents[objects[name]["name"]][:MAX_FILE_BYTES]


def is_image(name: str, not_read: Counter[str]) -> bool:
    """Tell an image by its suffix; of the other files, count those that somebody may miss."""
    if is_litter(name):
        return False
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in IMAGES:
        not_read[suffix or "without a suffix"] += 1
    return suffix in IMAGES


def _remote_images(location: Location, not_read: Counter[str]) -> dict[str, dict[str, Any]]:
    root = location.path.rstrip("/")
    objects = location.fs.find(root, detail=True)
    names = {path.removeprefix(root).lstrip("/"): info for path, info in objects.items()}
    return {name: info for name, info in sorted(names.items()) if is_image(name, not_read)}


def _zip_images(location: Location, not_read: Counter[str]) -> Iterator[tuple[str, bytes]]:
    with location.open() as file, zipfile.ZipFile(file) as archive:
        members = {_member_name(m, location): m for m in archive.infolist()}
        again = len(archive.infolist()) - len(members)
        not_read.update({"older files of the same name": again} if again else {})
        for name, member in sorted(members.items()):
            if member.is_dir() or name.endswith("/"):
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                not_read[LINKS] += 1
            elif is_image(name, not_read):
                try:
                    with archive.open(member) as content:
                        yield name, content.read(MAX_FILE_BYTES)
                except (zipfile.BadZipFile, zlib.error, EOFError):
                    yield name, b""  # this one is broken; the others may not be


def _member_name(member: zipfile.ZipInfo, location: Location) -> str:
    """A zip member's name: UTF-8 where that can be, as some systems do not set the flag."""
    name = member.filename
    if not member.flag_bits & UTF8_NAME:
        # Else it is in another system's letters: names need not be read, only differ.
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return _safe(name, location)


def _tar_images(location: Location, not_read: Counter[str]) -> Iterator[tuple[str, bytes]]:
    with location.open() as file, open_tar(file) as archive:
        for member in archive:
            name = shown(_safe(member.name, location))
            if member.issym() or member.islnk():
                not_read[LINKS] += 1
            elif member.isfile() and is_image(name, not_read):
                content = cast(IO[bytes], archive.extractfile(member))
                yield name, content.read(MAX_FILE_BYTES)


def _safe(name: str, location: Location) -> str:
    """A member's name with ``/``, which some systems write as a backslash."""
    path = name.replace("\\", "/").removeprefix("./")
    if path.startswith("/") or ".." in path.split("/"):
        raise DataError(f"{location.source}: the member {name!r} leads out of the archive")
    return path
