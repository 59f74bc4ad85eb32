"""Image files of a folder or archive: decoded once, to a memory map in the cache."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from models.cache import cache_folder
from models.config import DataConfig
from models.durable import PARTIAL, put
from models.errors import DataError
from models.images import decode_image, fit, on_white
from training.data.raw import RawData
from training.data.sources.cache import AT_ONCE, DIGEST_BYTES, item_digests, release
from training.data.sources.files import Location, content_key, read_images
from training.progress import track

Array = np.ndarray
LAYOUT = 2
"""Version of the cached files and of the decoding: a new number leaves older files unused."""
MAX_EXAMPLES = 3
"""Broken images named in an error message."""


class DecodedImages(NamedTuple):
    """The content of one folder of the cache."""

    items: Array
    """uint8 ``(N, H, W, C)``, a memory map; C is 1 if every image is grey, else 3"""
    digests: Array
    """uint8 ``(N, 16)``"""
    labels: Array | None
    """int64 ``(N,)``, or None if the images are in no subfolders"""
    classes: list[str]
    """names of the subfolders, sorted"""
    skipped: list[str]
    """what is wrong with each image that could not be decoded, its name first"""


def load_images(location: Location, config: DataConfig) -> RawData:
    """Read the images of a folder or archive, from the cache if they were decoded before.

    The cache is keyed by the content of the files, so a changed file is never missed. With
    ``config.size`` each image is resized and cropped to a square of that many pixels a side.

    Raises:
        DataError: no images, images of mixed shapes without a size, a larger share of broken ones
            than ``config.max_broken_fraction``, or the location cannot be read.
    """
    key = f"{content_key(location)}-{config.size or 'asis'}-{LAYOUT}-pillow{PIL.__version__}"
    folder = cache_folder() / "images" / key
    decoded = _open(folder)
    if decoded is None:
        _build(folder, location, config.size)
        decoded = _open(folder)
    if decoded is None:
        raise DataError(f"{folder}: cannot be used as a cache; set WGAN_CACHE to another folder")
    total = len(decoded.items) + len(decoded.skipped)
    if len(decoded.skipped) > config.max_broken_fraction * total:
        examples = "; ".join(decoded.skipped[:MAX_EXAMPLES])
        raise DataError(
            f"{location.source}: {len(decoded.skipped)} of {total} images are broken, a larger "
            f"share than data.max_broken_fraction = {config.max_broken_fraction:g} (such as "
            f"{examples}); repair or remove them, or set a larger share"
        )
    return RawData(
        decoded.items,
        location.name,
        location.source,
        labels=decoded.labels,
        classes=tuple(decoded.classes),
        digests=decoded.digests,
        problems=tuple(decoded.skipped),
    )


def _open(folder: Path) -> DecodedImages | None:
    """The cached set, or None if there is none or it is not whole."""
    try:
        index = json.loads((folder / "index.json").read_text())
        shape = tuple(index["shape"])
        items = (
            np.memmap(folder / "items", np.uint8, "r", shape=shape)
            if shape[0]
            else np.empty(shape, np.uint8)
        )
        digests = np.fromfile(folder / "digests", np.uint8).reshape(shape[0], DIGEST_BYTES)
        labels = np.fromfile(folder / "labels", np.int64)
    except (OSError, ValueError, KeyError):
        return None
    labelled = len(index["classes"]) > 0
    return DecodedImages(
        items, digests, labels if labelled else None, index["classes"], index["skipped"]
    )


def _build(folder: Path, location: Location, size: int | None) -> None:
    """Decode the images into ``folder``, which appears whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", suffix=PARTIAL, dir=folder.parent))
    except OSError as error:
        raise DataError(
            f"{folder.parent}: cannot be written to ({error}); set WGAN_CACHE to a folder for "
            "decoded data"
        ) from None
    try:
        names, skipped = list[str](), list[str]()
        with (new / "items").open("wb") as out:
            shape = (0, 0, 0)
            grey = True
            files = track(read_images(location), "decoding images")
            for name, pixels in _decoded(files, skipped):
                image = pixels if size is None else fit(pixels, size, size)
                grey = grey and image.shape[2] == 1
                rgb = np.broadcast_to(image, (*image.shape[:2], 3))
                if names and rgb.shape != shape:
                    raise DataError(
                        f"{location.source}: {names[0]} has {shape[1]}x{shape[0]} pixels and "
                        f"{name} {rgb.shape[1]}x{rgb.shape[0]}; set data.size to a number of "
                        "pixels, and all are resized and cropped to that square"
                    )
                shape = rgb.shape
                names.append(name)
                out.write(rgb.tobytes())
        if not names and not skipped:
            raise DataError(
                f"{location.source}: holds no images; bring files named .png, .jpg, .jpeg or .webp"
            )
        if grey and names:
            _keep_first_channel(new / "items", (len(names), *shape))
            shape = (*shape[:2], 1)
        labels, classes = _classes(names, location)
        labels.tofile(new / "labels")
        whole = (len(names), *shape)
        items = np.memmap(new / "items", np.uint8, "r", shape=whole) if names else np.empty(whole)
        item_digests(items).tofile(new / "digests")
        index = {"shape": whole, "classes": classes, "skipped": skipped}
        (new / "index.json").write_text(json.dumps(index))
        put(new, folder)  # in the place of an older, broken one
    except OSError as error:
        if _open(folder) is None:  # else another run has made it meanwhile
            raise DataError(f"{folder}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _decoded(files: Iterable[tuple[str, bytes]], skipped: list[str]) -> Iterator[tuple[str, Array]]:
    """Yield each image that can be decoded, without transparency; note each that cannot."""
    for name, content in files:
        try:
            yield name, on_white(decode_image(content, name))
        except DataError as error:
            skipped.append(str(error))


def _keep_first_channel(path: Path, shape: tuple[int, ...]) -> None:
    grey = path.with_name("grey")
    items = np.memmap(path, np.uint8, "r", shape=shape)
    with grey.open("wb") as out:
        for first in range(0, len(items), AT_ONCE):
            out.write(items[first : first + AT_ONCE, ..., :1].tobytes())
            release(items)
    os.replace(grey, path)


def _classes(names: list[str], location: Location) -> tuple[Array, list[str]]:
    """Labels and their names: the folder below the one folder that holds all images."""
    parts = [name.split("/") for name in names]
    depth = 0
    while parts and all(len(p) > depth + 1 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    inside = [len(p) > depth + 1 for p in parts]
    if not any(inside):
        return np.empty(0, np.int64), []
    if not all(inside):
        stray = names[inside.index(False)]
        raise DataError(
            f"{location.source}: some images are in subfolders, which are taken for classes, but "
            f"{stray} is not; put it into one, or all into one folder"
        )
    folders = [p[depth] for p in parts]
    classes = sorted(set(folders))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[f] for f in folders], np.int64), classes
