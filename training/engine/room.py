"""The room on the disk that a run needs, looked for before it trains."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from models.config import Config
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


def require_room(folder: Path, config: Config, card: DataCard) -> None:
    """Require room for a run in its folder, before it trains.

    Args:
        folder: the run's; what it holds already is not needed again.
        config: of the run.
        card: of its data.

    Raises:
        MachineError: there is less room.
    """
    needed, free = needed_bytes(config, card), usable_bytes(folder, [folder])
    if free < needed:
        raise MachineError(
            f"{folder}: has room for {free / 1e6:.0f} MB, and this run needs about "
            f"{needed / 1e6:.0f} MB; make room, or name a folder on another disk"
        )


def usable_bytes(disk: Path, folders: Iterable[Path]) -> int:
    """Count the free bytes of the disk that a path lies on, and those that some folders hold."""
    held = [p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file()]
    return shutil.disk_usage(disk).free + sum(held)


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
