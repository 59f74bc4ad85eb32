"""Image files of a folder or archive: decoded once, to a memory map in the cache."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from models.cache import cache_folder
from models.config import DataConfig
from models.durable import new_folder
from models.errors import DataError
from models.image_parts import holds_several
from models.images import decode_image, fit, is_written_here, opaque
from models.outputs import turn
from training.data.raw import RawData
from training.data.sources.cache import AT_ONCE, DIGEST_BYTES, item_digests, release
from training.data.sources.files import ARCHIVES, Location
from training.data.sources.folders import read_folders
from training.data.sources.image_files import IMAGES, content_key, read_images
from training.progress import track

Array = np.ndarray
LAYOUT = 4
"""Version of the cached files and of the decoding: a new number leaves older files unused."""
MAX_EXAMPLES = 3
"""Broken images named in an error message."""
OURS = "pictures that wgan wrote"
FURTHER = "files of several images, but for the first of each"
FOUND = (OURS, FURTHER)
"""What only decoding finds: it is counted in the cache."""
SPLIT_NOTE = (
    "folders such as train and test are no classes but a split, which data.split=folders follows; "
    "without it a hash of each item decides what is held out"
)


class DecodedImages(NamedTuple):
    """The content of one folder of the cache."""

    items: Array
    """uint8 ``(N, H, W, C)``, a memory map; C is 1 if every image is grey, else 3"""
    digests: Array
    """uint8 ``(N, 16)``"""
    names: list[str]
    """of the files"""
    skipped: list[str]
    """what is wrong with each image that could not be decoded, its name first"""
    not_read: dict[str, int]
    """how many files were not looked at, by suffix or by what they are"""
    is_ours: bool
    """True if this product wrote all of them"""


def load_images(location: Location, config: DataConfig, *, in_colour: bool = False) -> RawData:
    """Read the images of a folder or archive, from the cache if they were decoded before.

    The cache is keyed by the content of the files, so a changed file is never missed. With
    ``config.size`` each image is resized and cropped to a square of that many pixels a side.
    Samples and pictures that this product wrote are left out, unless there is nothing else.

    Args:
        location: the folder or archive.
        config: of the data.
        in_colour: three channels though all images are grey, for a model that was trained on such.

    Raises:
        DataError: no images, images of mixed shapes without a size, a larger share of broken ones
            than ``config.max_broken_fraction``, or the location cannot be read.
    """
    not_read = Counter[str]()
    read_as = f"{config.size or 'asis'}-{config.background.lstrip('#')}-{LAYOUT}"
    key = f"{content_key(location, not_read)}-{read_as}-pillow{PIL.__version__}"
    folder = cache_folder() / "images" / key
    decoded = _cached(folder, location, config, in_colour=False)
    if in_colour and decoded.items.shape[3] == 1:
        folder = folder.with_name(f"{key}-rgb")
        decoded = _cached(folder, location, config, in_colour=True)
    total = len(decoded.items) + len(decoded.skipped)
    if len(decoded.skipped) > config.max_broken_fraction * total:
        examples = "; ".join(decoded.skipped[:MAX_EXAMPLES])
        raise DataError(
            f"{location.source}: {len(decoded.skipped)} of {total} images are broken, a larger "
            f"share than data.max_broken_fraction = {config.max_broken_fraction:g} (such as "
            f"{examples}); repair or remove them, or set a larger share"
        )
    if location.suffix in ARCHIVES:  # the names of other files are no part of a folder's key
        not_read = Counter(decoded.not_read)
    else:
        not_read.update({what: n for what, n in decoded.not_read.items() if what in FOUND})
    not_read = Counter(dict(sorted(not_read.items())))
    folders = read_folders(decoded.names, location.source)
    notes = list(folders.notes)
    if not_read:
        notes.append(f"not read: {', '.join(f'{n} {what}' for what, n in not_read.items())}")
    is_heldout = folders.is_heldout
    if is_heldout is not None and config.split == "hash":
        is_heldout = None
        notes.append(SPLIT_NOTE)
    elif is_heldout is not None:
        trained = {digest.tobytes() for digest in decoded.digests[~is_heldout]}
        twins = is_heldout & [digest.tobytes() in trained for digest in decoded.digests]
        is_heldout &= ~twins
        if twins.any():
            notes.append(f"{twins.sum()} images to hold out are also trained on, and count so")
    return RawData(
        decoded.items,
        location.name,
        location.source,
        labels=folders.labels,
        classes=folders.classes,
        is_heldout=is_heldout,
        digests=decoded.digests,
        problems=tuple(decoded.skipped),
        not_read=not_read,
        is_ours=decoded.is_ours,
        notes=tuple(notes),
    )


def _cached(
    folder: Path, location: Location, config: DataConfig, *, in_colour: bool
) -> DecodedImages:
    """The set of a folder of the cache, which is made if it is not there."""
    decoded = _open(folder)
    if decoded is None:
        with turn(folder):
            if _open(folder) is None:  # or else another process has made it meanwhile
                _build(folder, location, config, in_colour)
            decoded = _open(folder)
    if decoded is None:
        raise DataError(f"{folder}: cannot be used as a cache; set WGAN_CACHE to another folder")
    return decoded


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
    except (OSError, ValueError, KeyError):
        return None
    others = (index[key] for key in DecodedImages._fields[2:])
    return DecodedImages(items, digests, *others)


def _build(folder: Path, location: Location, config: DataConfig, in_colour: bool) -> None:
    """Decode the images into ``folder``, which appears whole or not at all."""
    try:
        with new_folder(folder) as new:  # in the place of an older, broken one
            index = _decode(new / "items", location, config)
            if not index["names"] and not index["skipped"] and OURS in index["not_read"]:
                index = _decode(new / "items", location, config, with_ours=True)
            if not index["names"] and not index["skipped"]:
                not_read = ", ".join(f"{count} {what}" for what, count in index["not_read"].items())
                raise DataError(
                    f"{location.source}: holds no images; bring files named {', '.join(IMAGES)}"
                    + (f" (there are {not_read})" if not_read else "")
                )
            whole = index["shape"]
            if index.pop("grey") and index["names"] and not in_colour:
                _keep_first_channel(new / "items", whole)
                whole = index["shape"] = (*whole[:3], 1)
            items = (
                np.memmap(new / "items", np.uint8, "r", shape=whole)
                if whole[0]
                else np.empty(whole)
            )
            item_digests(items).tofile(new / "digests")
            (new / "index.json").write_text(json.dumps(index))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error}") from None


def _decode(
    path: Path, location: Location, config: DataConfig, with_ours: bool = False
) -> dict[str, Any]:
    """Decode the images into one file, in three channels, and return the index of the cache.

    Args:
        path: of the file.
        location: holds the images.
        config: of the data.
        with_ours: also those that this product wrote.
    """
    names, skipped, not_read = list[str](), list[str](), Counter[str]()
    shape, grey, size = (0, 0, 0), True, config.size
    with path.open("wb") as out:
        for name, content in track(read_images(location, not_read), "decoding images"):
            try:
                pixels = decode_image(content, name)
            except DataError as error:
                skipped.append(str(error))
                continue
            if not with_ours and is_written_here(content, pixels):
                not_read[OURS] += 1
                continue
            if holds_several(content):
                not_read[FURTHER] += 1
            image = opaque(pixels, config.background)
            image = image if size is None else fit(image, size, size)
            grey = grey and bool((image == image[..., :1]).all())
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
    return {
        "shape": (len(names), *shape),
        "names": names,
        "skipped": skipped,
        "not_read": not_read,
        "is_ours": with_ours,
        "grey": grey,
    }


def _keep_first_channel(path: Path, shape: tuple[int, ...]) -> None:
    grey = path.with_name("grey")
    items = np.memmap(path, np.uint8, "r", shape=shape)
    with grey.open("wb") as out:
        for first in range(0, len(items), AT_ONCE):
            out.write(items[first : first + AT_ONCE, ..., :1].tobytes())
            release(items)
    os.replace(grey, path)
