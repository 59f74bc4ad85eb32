"""Whole runs for tests, by the code that the command runs."""

from __future__ import annotations

from pathlib import Path

import torch

from models.artifact import load_artifact
from models.config import Config
from models.model import Model
from training.run import run_training


def trained(config: Config, folder: Path, register: bool = True) -> tuple[Model, str | None, str]:
    """Train in ``folder``: the model, its reference if it was registered, and what was said."""
    said: list[str] = []
    reference = run_training(
        config,
        folder,
        torch.device("cpu"),
        register=register,
        say=said.append,
    )
    return load_artifact(folder / "artifact"), reference, "\n".join(said)
