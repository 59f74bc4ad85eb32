"""A run that Python code asks for, by `wgan.train`."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.config import flatten
from models.errors import UserError
from models.run_folder import ARTIFACT
from models.trained import TrainedModel
from training.data.given import source_of
from training.engine.origin import load_start
from training.engine.workers import join_workers
from training.presets import branch_config, build_config, suitable_preset
from training.progress import TrainingBar
from training.run import run_training


def train_called(
    data: Any,
    *,
    preset: str | None,
    start: Any,
    constraint: Any,
    steps: int | None,
    seed: int | None,
    out: str | Path | None,
    device: str | None,
    register: bool,
    resume: bool,
    say: Callable[[str], None],
    settings: dict[str, Any],
) -> TrainedModel:
    """Train, judge and save a model; see `wgan.train`.

    Raises:
        UserError: the data or the settings cannot be used.
    """
    given = {"training.steps": steps, "training.seed": seed}
    overrides = flatten(settings) | {k: v for k, v in given.items() if v is not None}
    kind = constraint if isinstance(constraint, str) or constraint is None else constraint.kind
    if constraint is not None and not isinstance(constraint, str):
        for name, value in constraint.model_dump(exclude={"kind"}).items():
            overrides[f"constraint.{name}"] = value
    with contextlib.ExitStack() as stack:
        folder = folder_for(out, stack)
        source = None if data is None else source_of(data, folder)
        begun = None
        if preset is not None and start is not None:
            raise UserError("name a preset or a model to start from, not both")
        if start is not None:
            begun = load_start(str(getattr(start, "artifact", start)))
            config = branch_config(begun.model.run.config, source, kind, overrides)
        else:
            if preset is None and source is None:
                raise UserError("name data or a preset")
            preset = preset or suitable_preset(str(source), overrides)
            if not isinstance(data, str | Path | None) and "name" not in overrides:
                if register:
                    raise UserError("data in memory have no name: register them as name='...'")
                overrides["name"] = preset
            config = build_config(preset, source, kind, overrides)
        workers = join_workers(device)
        run_training(
            config,
            folder,
            workers.device,
            resume=resume,
            register=register,
            say=say,
            report=lambda steps: TrainingBar(steps, lines=False),
            workers=workers,
            start=begun,
        )
        trained = TrainedModel(folder / ARTIFACT)
        weakref.finalize(trained, stack.pop_all().close)
    return trained


def folder_for(out: str | Path | None, stack: contextlib.ExitStack) -> Path:
    """Give the folder of a run; without one, make a temporary one of ``stack``."""
    if out is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wgan-")))
    return Path(out)
