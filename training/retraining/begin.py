"""What one retraining works on: its configuration, its data, its folder and the models it meets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import artifact, registry
from models.config import Config
from models.errors import AbsentError, ArtifactError
from models.model import Model
from models.record import DataCard
from models.run_folder import CHECKPOINTS
from models.trained import artifact_folder
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import newest_checkpoint
from training.engine.origin import Start, fingerprint, load_start
from training.engine.room import needed_bytes
from training.engine.runs import Interrupted, stoppable
from training.engine.workers import Workers
from training.presets import USUAL_WIDTH, fill_in, require_branch, width_of
from training.retraining.config import RetrainConfig
from training.retraining.evidence import RegisteredModel, choose_loss, judged_data


@dataclass
class Cycle:
    """One retraining: the values that its steps share."""

    settings: RetrainConfig
    config: Config
    data: Dataset
    key: str
    """See `run_key`."""
    folder: Path
    """This run's, within ``settings.folder``."""
    judged: Dataset
    """Its held-out items judge."""
    loss: str
    needed: int
    """Bytes that it needs in its folder, about."""
    say: Callable[[str], None]
    stop_requested: Callable[[], bool]
    start: Start | None
    """The model that a new run begins with."""
    models: dict[str, Model] = field(default_factory=dict)
    """Models that were downloaded, by version number."""

    def pause(self, before: str) -> None:
        """Stop here if asked to."""
        if self.stop_requested():
            raise Interrupted(f"stopped before {before}")

    @property
    def place(self) -> str:
        """How far it has come: what is trained, and the newest checkpoint."""
        newest = newest_checkpoint(self.folder / CHECKPOINTS)
        return f"{self.folder.name} {newest.stem if newest else 'no checkpoint'}"

    def rival(self, version: str) -> RegisteredModel | None:
        """Load a version to compare with; None if nobody can load it any more."""
        try:
            return RegisteredModel(version, self.model(version))
        except (AbsentError, ArtifactError) as error:
            self.say(f"version {version} cannot be compared with: {error}")
            return None

    def model(self, version: str) -> Model:
        """Load a registered model, once."""
        if version not in self.models:
            with artifact_folder(f"{self.config.name}@{version}") as fetched:
                self.models[version] = artifact.load_artifact(fetched)
        return self.models[version]


def begin(
    settings: RetrainConfig,
    config: Config,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
    workers: Workers,
) -> Cycle:
    """Load the data, and find out what is to be trained and where; see `retrain`."""
    start = None
    if settings.start_from == "champion":
        if champion := registry.champion(config.name):
            start = load_start(f"{config.name}@{champion}")
            require_branch(config, start.model.run.config)
        elif workers.is_main:
            say("there is no champion to start from: training begins with random weights")
    with stoppable(stop_requested, "loading the data"):
        card = start and start.model.run.data
        data = load_data(config.data, config.training.batch_size, card, to_train=True)
    if settings.data is not None and "name" not in settings.set:
        say(f"the model is called '{config.name}', as its preset; set.name gives it its own name")
    # A budget may have chosen the champion's width.
    width = width_of(start.model.run.config, config) if start else USUAL_WIDTH
    config = fill_in(config, data.card, workers.device.type, width)
    split = fingerprint(data)["heldout"] if config.data.split == "folders" else None
    key = run_key(config, data.card, settings.start_from, split)
    folder = settings.folder / f"{config.name}-{key[:12]}"
    with stoppable(stop_requested, "loading the reference"):
        judged = judged_data(settings.reference, config, data)
    if workers.is_main and settings.reference is not None:
        for note in judged.notes:
            say(f"reference: {note}")
    loss = choose_loss(settings.gates.loss, data.card)
    needed = needed_bytes(config, data.card) if workers.is_main else 0
    return Cycle(
        settings, config, data, key, folder, judged, loss, needed, say, stop_requested, start
    )


def run_key(
    config: Config, card: DataCard, start_from: str | None, split: str | None = None
) -> str:
    """Hash what a run is trained from and how, as hexadecimal digits.

    A champion to start from counts as such, whichever version it is: or else each promotion would
    be a change, and train again.

    Data count by their content and not by where they lie; labels count by their names and the
    number of items of each, and a split in folders by which items it holds out.

    Args:
        config: of the run.
        card: of its data.
        start_from: ``champion``, or None.
        split: of a split in folders, the hash of what is held out, as in a `fingerprint`; a record
            does not have it, so that no run under such a split is known by its record.
    """
    settings = config.model_dump(mode="json")
    del settings["data"]["source"]
    content: list[Any] = [settings, card.sha256, card.classes, card.class_counts]
    if split is not None:
        content.append(split)
    if start_from is not None:
        content.append(start_from)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
