"""Where a run comes from: its data, its number of threads, and the training before it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel

from models.artifact import load_artifact
from models.config import Config
from models.errors import UserError
from models.model import Model
from models.model_names import settle
from models.trained import artifact_folder
from training.data.dataset import Dataset

HASHES = {
    "sha256": "other values",
    "labels": "other labels",
    "heldout": "other items held out",
    "coding": "rows coded by another schema",
}
"""Hashes in a `fingerprint`, and what is said where one differs, in this order."""


class Parent(BaseModel, frozen=True, extra="forbid"):
    """The trained model that a run began with."""

    model: str
    """``NAME@VERSION``, or the artifact's folder as it was given."""
    digest: str
    """Digest of its artifact."""
    steps: int
    """Generator steps of the networks that the run began with, those of their parents too."""


class Origin(BaseModel, frozen=True, extra="forbid"):
    """Where a run comes from; each of its checkpoints has it."""

    data: dict[str, Any]
    """See `fingerprint`."""
    threads: int
    """Threads of torch: another number gives other bits."""
    parent: Parent | None = None
    extended: list[int] = []
    """Steps at which the run was to end before it was extended, each time."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What the record of the run says of the training before it."""
        return self.model_dump(include={"parent", "extended"}, exclude_defaults=True)


class Start(NamedTuple):
    """A trained model to begin with."""

    card: Parent
    model: Model


def load_start(model: str) -> Start:
    """Load the model that a run is to begin with.

    Args:
        model: see `models.model_names.settle`.

    Raises:
        UserError: there is no such model, or its artifact is broken.
    """
    model, _ = settle(model)
    with artifact_folder(model) as folder:
        loaded = load_artifact(folder)
    provenance = loaded.run.provenance
    served = provenance.get("selected", {}).get("step", loaded.run.config.training.steps)
    steps = provenance.get("parent", {}).get("steps", 0) + served
    return Start(Parent(model=model, digest=loaded.digest, steps=steps), loaded)


def fingerprint(data: Dataset) -> dict[str, Any]:
    """Tell data from others by their content, not by where they lie; in values that JSON holds.

    Which items are held out and how rows are coded count too; the order of the items does not.
    """
    card = data.card
    found: dict[str, Any] = {
        "items": card.count,
        "shape": list(card.shape),
        "columns": card.columns,
        "classes": card.classes,
        "sha256": card.sha256,
    }
    if data.digests is not None:
        words = data.digests.view(">u8")
        parts = {"heldout": data.is_heldout, "labels": data.labels}
        given = {name: values for name, values in parts.items() if values is not None}
        order = np.lexsort((*given.values(), words[:, 1], words[:, 0]))
        for name, values in given.items():
            found[name] = hashlib.sha256(values[order].tobytes()).hexdigest()
    if card.table is not None:
        coding = card.table.model_dump_json(include={"columns", "rules"})
        found["coding"] = hashlib.sha256(coding.encode()).hexdigest()
    return found


def changes(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Say in one phrase how data differ by their `fingerprint`; empty if they do not."""
    said = []
    for key, name in (("columns", "column"), ("classes", "class")):
        new = [item for item in now[key] if item not in then[key]]
        gone = [item for item in then[key] if item not in now[key]]
        for what, items in (("new", new), ("gone", gone)):
            if items:
                said.append(f"{what} {name} {', '.join(map(repr, items))}")
    if then["items"] != now["items"]:
        said.append(f"{now['items']} items, not {then['items']}")
    if then["shape"] != now["shape"] and not said:
        said.append(f"items of shape {tuple(now['shape'])}, not {tuple(then['shape'])}")
    for key, what in HASHES.items():
        if then.get(key) != now.get(key) and not said:
            said.append(what)
    return "; ".join(said)


def require_same_record(finished: Path, config: Config, data: Dataset) -> None:
    """Require that an artifact without checkpoints is what the run would make.

    Raises:
        UserError: it is of another configuration, of more or fewer steps, or of other data.
    """
    run = load_artifact(finished).run
    # The content of the data counts, and not where they lie.
    here = config.data.model_copy(update={"source": run.config.data.source})
    same_data = run.data.sha256 in ("", data.card.sha256)  # a private run does not publish it
    if run.config != config.model_copy(update={"data": here}) or not same_data:
        raise UserError(
            f"{finished}: is of another configuration or of other data, and its checkpoints are "
            f"gone; begin with it in another --out, by --from {finished}"
        )


@contextlib.contextmanager
def kept_threads() -> Iterator[None]:
    """Give torch its number of threads back: a run that is resumed computes with its own."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
