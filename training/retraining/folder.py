"""The folder of the runs: the runs that stay, and the room that one needs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from models.config import Config
from models.durable import PARTIAL, remove_folder, remove_partial
from models.errors import MachineError
from models.networks import build_networks
from models.record import DataCard
from training.engine.checkpoint import CHECKPOINTS_KEPT

COPIES = CHECKPOINTS_KEPT + 2
"""Copies of a run's state at once: the checkpoints that stay, one more while it is written, and the
training state of the artifact."""
MARGIN = 1.25
"""For what the state is not: extractors' weights, histories, pages."""
LEAST_BYTES = 64 * 2**20
"""Room that is wanted for the smallest run."""


def make_room(current: Path, name: str, keep: int, needed: int, say: Callable[[str], None]) -> None:
    """Remove old runs, and require room for the one at work; under the model's lease.

    Args:
        current: folder of the run at work, in the folder of the runs.
        name: the model's.
        keep: runs of the model that stay, this one among them: those that changed last.
        needed: bytes that the run needs, as `needed_bytes` estimates.
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
    if current.is_dir():
        remove_partial(current)
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
    held = [p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file()]
    return shutil.disk_usage(parent).free + sum(held)


def _old_runs(parent: Path, name: str, keep: int, current: Path | None) -> list[Path]:
    """List the runs of a model that go when another one is trained: those that changed first."""
    others = [p for p in parent.iterdir() if _of_model(name).fullmatch(p.name) and p != current]
    return sorted(others, key=lambda p: -p.stat().st_mtime)[keep - 1 :]


def _of_model(name: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}")


def needed_bytes(config: Config, card: DataCard) -> int:
    """Estimate the room that a run needs in its folder.

    Args:
        config: of the run.
        card: of its data.
    """
    with torch.random.fork_rng(devices=[]):
        generator, critic = build_networks(config, card.shape, len(card.classes), card.parts)
    sizes = [
        sum(t.numel() * t.element_size() for t in network.state_dict().values())
        for network in (generator, critic)
    ]
    # Each network, two moments of its optimiser, and the generator's moving average.
    state = 3 * sum(sizes) + sizes[0]
    return LEAST_BYTES + int(MARGIN * (COPIES * state + sum(sizes)))
