"""Files of items to score, as people have them: single ones, folders and archives."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from models.array_files import HDF5_START, ZARR, read_hdf5, read_zarr
from models.errors import DataError, ShapeError, UserError
from models.file_trees import LINKS, folder_files, is_litter, open_tar, shown
from models.formats import read_items
from models.model import Model
from models.os_errors import require_end
from models.tables.files import read_npz
from models.tables.reading.texts import decompressed
from models.tables.records import read_rows

Array = np.ndarray
AT_ONCE = 1024
"""Items, about, that are held before they are scored."""
MAX_BYTES = 2**28
"""Largest file of an archive: a small one may unpack to far more."""


class Batch(NamedTuple):
    """Items with a name each."""

    names: list[str]
    items: Any
    """An array as `Model.items` returns it, or a `pyarrow.Table`."""


def read_files(
    model: Model, paths: list[Path], resize: bool, say: Callable[[str], None]
) -> Iterator[Batch]:
    """Read items or rows of a model from files, folders and archives, some at a time.

    Images are read as training read them: if those were resized, so are these.

    Args:
        model: that the items are for.
        paths: images, arrays, files of rows; folders, .zip and .tar files of them.
        resize: bring images of any size and channels to the model's.
        say: is told of files in folders and archives that hold no items, and of what is resized.

    Raises:
        UserError: a path is not there, or holds no items, or items that the model does not take.
    """
    names, held, resized = list[str](), list[Array](), 0
    for path in paths:
        skipped, not_read, count = list[str](), Counter[str](), 0
        for name, content in _files(path, not_read):
            try:
                items = _read(model, name, content, say)
            except DataError as error:
                if name == str(path):  # it was named, and not only found
                    raise UserError(_named(name, error)) from None
                skipped.append(str(error))
                continue
            count += 1
            if not isinstance(items, np.ndarray):
                yield Batch(_numbered(name, len(items)), items)
                continue
            try:
                fitted = _as_in_training(model, items, resize)
            except (DataError, ShapeError) as error:
                hint = "; --resize brings images to that" if model.is_image and not resize else ""
                raise UserError(f"{_named(name, error)}{hint}") from None
            resized += len(items) * (fitted.shape[1:3] != items.shape[1:3])
            held.append(fitted)
            names += _numbered(name, len(items))
            if len(names) >= AT_ONCE:
                yield Batch(names, np.concatenate(held))
                names, held = [], []
        skipped += [f"{n} {what}" for what, n in not_read.items()]
        for line in skipped:
            say(f"left out: {line}")
        if not count:
            raise UserError(f"{path}: holds nothing that the model scores")
    if held:
        yield Batch(names, np.concatenate(held))
    if resized and not resize:
        say(f"{resized} images were resized, as those in training were")


def _files(path: Path, not_read: Counter[str]) -> Iterator[tuple[str, bytes | Path]]:
    """Yield the name and content of each file that a path means, in sorted order but for a tar.

    A Zarr folder is one: its path is yielded.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    try:
        if require_end(path).is_fifo():  # of which nothing can be read twice
            yield str(path), path.read_bytes()
        elif path.is_dir() and path.suffix.lower() == ZARR:
            yield str(path), path
        elif path.is_dir():
            for name, file in sorted(folder_files(str(path), not_read)):
                yield f"{path}/{name}", Path(file).read_bytes()
        elif zipfile.is_zipfile(path) and not _is_npz(path):
            yield from _zip_files(path, not_read)
        elif tarfile.is_tarfile(path):
            yield from _tar_files(path, not_read)
        else:
            yield str(path), path.read_bytes()
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: a broken archive ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _is_npz(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def _zip_files(path: Path, not_read: Counter[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name, member in sorted({m.filename: m for m in archive.infolist()}.items()):
            if stat.S_ISLNK(member.external_attr >> 16):
                not_read[LINKS] += 1
            elif not member.is_dir() and not is_litter(name):
                with archive.open(member) as content:
                    yield f"{path}/{name}", _whole(content, f"{path}/{name}")


def _tar_files(path: Path, not_read: Counter[str]) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file, open_tar(file) as archive:
        for member in archive:
            name = shown(member.name.removeprefix("./"))
            if member.issym() or member.islnk():
                not_read[LINKS] += 1
            elif member.isfile() and not is_litter(name):
                content = cast(IO[bytes], archive.extractfile(member))
                yield f"{path}/{name}", _whole(content, f"{path}/{name}")


def _whole(file: IO[bytes], name: str) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:  # the part of a table that is read would pass for all of it
        raise UserError(f"{name}: over {MAX_BYTES} bytes, too large to score from an archive")
    return content


def _read(model: Model, name: str, content: bytes | Path, say: Callable[[str], None]) -> Any:
    if isinstance(content, Path) or content.startswith(HDF5_START):
        if model.table is not None:
            raise DataError(f"{name}: holds an array, and the model takes rows of a table")
        key = model.run.config.data.key
        if isinstance(content, Path):
            return read_zarr(str(content), key, name).items
        return read_hdf5(io.BytesIO(content), key, name).items
    if model.table is None:
        return read_items(content, name)
    if content.startswith(b"PK"):
        return read_npz(content, name)
    config = model.run.config.data.csv
    return read_rows(decompressed(content), name, model.table, config, say)


def _as_in_training(model: Model, items: Array, resize: bool) -> Array:
    """Bring items to the model's form; images as training did it, or any if ``resize``."""
    if not model.is_image or (items.dtype != np.uint8 and not resize):
        return model.items(items)
    images = items[..., None] if items.ndim == 3 else items
    channels, height, width = model.shape
    if images.ndim == 4 and images.shape[1:] != (height, width, channels):
        has_size = images.shape[1:3] == (height, width) or model.run.config.data.size is not None
        is_colour = images.shape[3] > 2 and (images[..., :3] != images[..., :1]).any()
        if resize or (has_size and channels >= (3 if is_colour else 1)):
            return model.resized(images)
    return model.items(items)


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}[{i}]" if count > 1 else name for i in range(count)]


def _named(name: str, error: Exception) -> str:
    return f"{name}: {str(error).removeprefix(f'{name}: ')}"
