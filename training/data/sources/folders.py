"""What the folders of image files mean: classes, or a split into training and held-out items."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.errors import DataError

Array = np.ndarray
TRAINING = {"train", "training"}
HELD_OUT = {"test", "testing", "val", "valid", "validation", "eval", "dev", "heldout", "holdout"}
"""Names of folders, in lower case, that are sides of a split; a split has some of both sides."""


class Folders(NamedTuple):
    """What the folders of N files mean."""

    labels: Array | None
    """int64 ``(N,)``, or None if the images are in no subfolders"""
    classes: tuple[str, ...]
    """names of the subfolders, sorted"""
    is_heldout: Array | None
    """bool ``(N,)``: on which side of a split; None without one"""
    notes: tuple[str, ...]


def read_folders(names: Sequence[str], source: str) -> Folders:
    """Find the classes, and the split if there is one: the folders below those that hold all.

    Args:
        names: of the files, relative, with ``/``.
        source: for error messages.

    Raises:
        DataError: some files are in subfolders, and others beside them.
    """
    parts = _below([name.split("/") for name in names])
    notes, is_heldout = list[str](), None
    sides = {p[0].lower() if len(p) > 1 else "" for p in parts}
    if sides & TRAINING and sides & HELD_OUT and sides <= TRAINING | HELD_OUT:
        is_heldout = np.array([p[0].lower() in HELD_OUT for p in parts])
        parts = _below([p[1:] for p in parts])
    is_inside = [len(p) > 1 for p in parts]
    if not any(is_inside):
        return Folders(None, (), is_heldout, tuple(notes))
    if not all(is_inside):
        raise DataError(
            f"{source}: some images are in subfolders, which are taken for classes, but "
            f"{names[is_inside.index(False)]} is not; put it into one, or all into one folder"
        )
    folders = [unicodedata.normalize("NFC", p[0]) for p in parts]
    classes = sorted(set(folders))
    if len(classes) < len({p[0] for p in parts}):
        notes.append("folders whose names differ only in how Unicode writes them are one class")
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[f] for f in folders], np.int64)
    return Folders(labels, tuple(classes), is_heldout, tuple(notes))


def _below(parts: list[list[str]]) -> list[list[str]]:
    """Leave out the folders that hold all files, as at the top of many archives."""
    while parts and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return parts
