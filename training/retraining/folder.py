"""The folder of the runs: the runs that stay, and the room that is left."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from models.durable import PARTIAL, remove_folder
from models.errors import MachineError
from training.engine.room import usable_bytes


def make_room(current: Path, name: str, keep: int, needed: int, say: Callable[[str], None]) -> None:
    """Remove old runs, and require room for the one at work; under the model's lease.

    Args:
        current: folder of the run at work, in the folder of the runs.
        name: the model's.
        keep: runs of the model that stay, this one among them: those that changed last.
        needed: bytes that the run needs, as `training.engine.room.needed_bytes` estimates.
        say: takes a line for each folder that is removed.

    Raises:
        MachineError: there is less room.
    """
    parent = current.parent
    for folder in _old_runs(parent, name, keep, current):
        say(f"removing {folder}: keep_runs is {keep}")
        remove_folder(folder)
    for left in parent.glob(f".*{PARTIAL}"):  # by a removal that was cut off
        if _of_model(name).match(left.name[1:]):
            shutil.rmtree(left)
    free = room(parent, name, keep, current)
    if free < needed:
        raise MachineError(
            f"{parent}: has room for {free / 1e6:.0f} MB, and this run needs about "
            f"{needed / 1e6:.0f} MB; enlarge the disk, or lower keep_runs (now {keep})"
        )


def room(parent: Path, name: str, keep: int, current: Path | None) -> int:
    """Count the bytes that a run may use: free ones, its own, and those of runs that it replaces.

    Args:
        parent: folder of the runs.
        name: the model's.
        keep: see `make_room`.
        current: folder of the run; None: it is a new one.
    """
    folders = _old_runs(parent, name, keep, current) + ([current] if current else [])
    return usable_bytes(parent, folders)


def _old_runs(parent: Path, name: str, keep: int, current: Path | None) -> list[Path]:
    """List the runs of a model that go when another one is trained: those that changed first."""
    others = [p for p in parent.iterdir() if _of_model(name).fullmatch(p.name) and p != current]
    return sorted(others, key=lambda p: -p.stat().st_mtime)[keep - 1 :]


def _of_model(name: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}")
