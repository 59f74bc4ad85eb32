"""Checkpoints: one safetensors file each, written whole or not at all."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models import __version__
from models.config import Config
from models.durable import put
from models.errors import UserError
from training.engine.origin import Origin

CHECKPOINTS_KEPT = 2
"""The newest and the one before it."""


class CheckpointError(UserError):
    """A checkpoint is missing, broken, or of another run."""


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


class TrainingState(NamedTuple):
    """Everything that training changes, apart from the step and the history."""

    generator: nn.Module
    critic: nn.Module
    ema: nn.Module
    generator_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    augmentation: nn.Module = nn.Identity()
    """Of the images that the critic sees; it may have a strength that training changes."""

    def live(self) -> dict[str, Tensor]:
        """The tensors that training changes, where they are, by the names that `tensors` gives."""
        found: dict[str, Tensor] = {}
        for part, value in self._asdict().items():
            if isinstance(value, nn.Module):
                found |= {f"{part}.{name}": t for name, t in value.state_dict().items()}
            else:
                for index, entries in value.state_dict()["state"].items():
                    found |= {f"{part}.{index}.{name}": t for name, t in entries.items()}
        return {name: t.detach() for name, t in found.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, on the CPU: ``generator.*``, ``critic_optimizer.0.exp_avg``, ..."""
        return {name: t.cpu().contiguous() for name, t in self.live().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors that `tensors` returned."""
        for part, value in self._asdict().items():
            own = part_of(tensors, f"{part}.")
            if isinstance(value, nn.Module):
                value.load_state_dict(own)
            else:
                entries: dict[int, dict[str, Tensor]] = {}
                for key, tensor in own.items():
                    index, name = key.split(".", 1)
                    entries.setdefault(int(index), {})[name] = tensor
                groups = value.state_dict()["param_groups"]
                value.load_state_dict({"state": entries, "param_groups": groups})


class Checkpoint(NamedTuple):
    """A loaded checkpoint."""

    step: int
    """Generator steps done."""
    config: dict[str, Any]
    history: list[dict[str, float]]
    tensors: dict[str, Tensor]
    critic_step: str
    """The mode of the critic's step; a resumed run keeps it."""
    origin: Origin | None
    """Where the run comes from; None of a former version's checkpoint."""


def save_checkpoint(
    folder: Path,
    step: int,
    config: Config,
    history: list[dict[str, float]],
    state: TrainingState,
    critic_step: str,
    origin: Origin,
) -> Path:
    """Write a checkpoint, then remove all but the newest two; a kill at any moment loses none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.safetensors"
    new = path.with_suffix(".partial")
    metadata = {
        "step": str(step),
        "config": config.model_dump_json(),
        "history": json.dumps(history),
        "critic_step": critic_step,
        "origin": origin.model_dump_json(),
    }
    try:
        save_file(state.tensors(), new, metadata)
        put(new, path)
    finally:
        new.unlink(missing_ok=True)  # what a full disk took of it is in the way
    for old in checkpoints(folder)[:-CHECKPOINTS_KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder, if there is one."""
    found = checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: it is broken; names the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(
            int(metadata["step"]),
            json.loads(metadata["config"]),
            json.loads(metadata["history"]),
            tensors,
            metadata["critic_step"],
            Origin.model_validate_json(metadata["origin"]) if "origin" in metadata else None,
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: a broken checkpoint ({error}); remove it to resume from the one before"
        ) from error


def provenance_of(device: torch.device, seconds: float, folder: Path) -> dict[str, Any]:
    """The software, the machine and the time that a trained run took, for its record.

    Args:
        device: where it was trained.
        seconds: of this process.
        folder: of its checkpoints.
    """
    last = newest_checkpoint(folder)
    assert last is not None, "training ends with a checkpoint"
    saved = load_checkpoint(last)
    before = saved.origin.provenance if saved.origin else {}
    return {
        "wgan_foundry": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "critic_step": saved.critic_step,
        **before,
    }
