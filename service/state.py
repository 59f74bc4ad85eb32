"""The model that is being served, and where it comes from."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models import registry
from models.errors import ArtifactError, UserError
from service.problems import NoModel

if TYPE_CHECKING:
    from models.artifact import Model

log = logging.getLogger("wgan.service")


class Served(NamedTuple):
    """A verified model and what to call it."""

    model: Model
    version: str
    """``name@number`` from the registry, else the first 12 digits of the artifact's digest."""


class ModelHolder:
    """Holds one reference to the model being served; loading it does not block a probe."""

    def __init__(self) -> None:
        self.served: Served | None = None
        self.reason = "the model is loading"

    def start(self) -> None:
        """Begin to load what `WGAN_MODEL` names."""
        threading.Thread(target=self._load, name="load-model", daemon=True).start()

    def require(self) -> Served:
        """The model.

        Raises:
            NoModel: none is ready; says whether one is loading or failed to.
        """
        if self.served is None:
            raise NoModel(self.reason)
        return self.served

    def _load(self) -> None:
        try:
            served = load(os.environ.get("WGAN_MODEL", ""))
            model = served.model
            score = model.score(model.sample(seed=0, count=1), model.labels(seed=0, count=1))
            if not np.isfinite(score).all():  # ready means: it has run, and gave a number
                raise ArtifactError(f"{served.version}: its own sample has the score {score[0]}")
        except Exception as error:  # whatever is wrong, the probes must go on answering
            # The reason may name paths of this machine: it is for the log, not for clients.
            log.error("no model: %s", error, exc_info=not isinstance(error, UserError))
            self.reason = "the model could not be loaded; the service's log says why"
            return
        self.served = served
        log.info("serving %s, digest %s", served.version, served.model.digest)


def load(model: str) -> Served:
    """Load an artifact folder, or a registry version such as ``digits@champion``.

    A version is downloaded below `WGAN_CACHE`, or else the system's temporary folder, and removed
    once it is in memory: a copy that is kept could outlive its version.

    Raises:
        UserError: it is not there or not sound.
    """
    # Imported by the worker alone: torch would cost BentoML's supervisor 190 MB and a second.
    import torch

    from models import artifact

    torch.set_num_threads(1)  # requests run beside each other; threads in each would fight
    if not registry.is_reference(model):
        loaded = artifact.load_artifact(Path(model))
        return Served(loaded, loaded.digest[:12])
    name, version = registry.resolve(model)  # once: the alias may move between two questions
    reference = f"{name}@{version}"
    with tempfile.TemporaryDirectory(dir=os.environ.get("WGAN_CACHE")) as folder:
        return Served(artifact.load_artifact(registry.download(reference, Path(folder))), reference)
