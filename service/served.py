"""A model that is being served: loaded from its folder, verified, and run once."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.errors import ArtifactError

if TYPE_CHECKING:  # torch would cost BentoML's supervisor 190 MB and a second: workers import it
    from models.detector import Detector
    from models.model import Model

MAX_INLINE_SECONDS = 0.001
"""Longest time that the event loop may stand still. To wake a thread takes a tenth of that."""
MAX_INLINE_NUMBERS = 1000
"""Numbers in samples made on the event loop: to encode more as JSON or CSV would take too long."""


class Served(NamedTuple):
    """A verified model that has run once."""

    model: Model
    version: str
    """``name@number`` from the registry, else the first 12 digits of the artifact's digest."""
    role: str
    """``champion`` or ``challenger``."""
    saturated_share: float | None
    """Share of the critic's clipped weights that lie at their bound; None without clipping."""
    since: float
    """Time at which it began to serve, in seconds since 1970."""
    inline_limit: int = 0
    """Up to this many samples are made on the event loop itself; more take a thread."""
    name: str = ""
    """The model's name in paths and metrics."""
    detector: Detector | None = None
    """Tells what does not belong, if the artifact has one."""

    @property
    def labels(self) -> tuple[str, str]:
        """The labels `model` and `role` of its metrics."""
        return self.name, self.role

    @property
    def serving_since(self) -> str:
        """Time at which it began to serve: UTC, ISO 8601."""
        return datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")


def load(folder: Path, version: str | None, name: str, role: str, device: str = "cpu") -> Served:
    """Verify an artifact, load it and run it once.

    Args:
        folder: the artifact's folder.
        version: ``name@number``; None for a folder that is in no registry.
        name: the model's name in paths and metrics.
        role: ``champion`` or ``challenger``.
        device: ``cpu`` or ``cuda``.

    Raises:
        ArtifactError: the artifact is not sound.
        UserError: there is no such device.
    """
    import torch

    from models.artifact import FETCHED, load_artifact
    from models.detector import load_detector
    from models.device import require_device

    torch.set_num_threads(1)  # requests run beside each other; threads in each would compete
    model = load_artifact(folder, require_device(device), FETCHED)
    detector = load_detector(folder, model)
    version = version or model.digest[:12]
    run_once(model, version)
    saturated = model.run.config.constraint.saturated_share(model.critic)
    limit = inline_limit(model)
    return Served(model, version, role, saturated, time.time(), limit, name, detector)


def run_once(model: Model, version: str) -> None:
    """Run a model's generator and critic.

    Raises:
        ArtifactError: they give values that are not finite.
    """
    import torch

    from models.sampling import CHUNK

    labels = model.labels(seed=0, count=CHUNK)
    inputs = [model.latents(seed=0, count=CHUNK), *([] if labels is None else [labels])]
    with torch.inference_mode():
        raw = model.forward(*(torch.from_numpy(x).to(model.device) for x in inputs))
    if not torch.isfinite(raw).all():  # as pixels, NaN would pass for black
        raise ArtifactError(f"{version}: its generator makes values that are not finite")
    samples = model.sample(seed=0, count=CHUNK)
    if model.table:
        model.rows(samples, 0)
    score = model.score(samples, labels)
    if not np.isfinite(score).all():
        raise ArtifactError(f"{version}: its own sample has the score {score[0]}")


def inline_limit(model: Model) -> int:
    """Return how many samples are made on the event loop: `CHUNK` if that is quick, otherwise 0.

    It never is for tables, whose rows are made of codes by many small steps.
    """
    from models.sampling import CHUNK

    if model.table or CHUNK * math.prod(model.shape) > MAX_INLINE_NUMBERS:
        return 0
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        model.sample(seed=0, count=CHUNK)
        seconds.append(time.perf_counter() - began)
    return CHUNK if min(seconds) < MAX_INLINE_SECONDS else 0
