"""A trained model, by what a user calls it: its artifact's folder, or a registry name."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from models import registry
from models.artifact import load_artifact
from models.errors import UserError
from models.progress import phase
from models.record import Figure, Finding, Run

Array = np.ndarray


class TrainedModel:
    """A trained model: it samples, scores, and knows how good it is.

    Made by `load`, and by `wgan.train`.
    """

    def __init__(self, artifact: Path) -> None:
        """Load an artifact.

        Args:
            artifact: its folder.

        Raises:
            UserError: the artifact is missing or broken.
        """
        self.artifact = artifact
        """The artifact's folder; a temporary one goes with this object: see `save`."""
        self._model = load_artifact(artifact)

    def __repr__(self) -> str:
        run = self.record
        return f"<TrainedModel {run.config.name}, {run.constraint.kind}, items {run.data.shape}>"

    @property
    def record(self) -> Run:
        """Everything that is recorded of the run: configuration, data, results, history."""
        return self._model.run

    @property
    def figures(self) -> dict[str, Figure]:
        """Quality on held-out data, by name.

        Each figure has a value, a floor (real data in place of samples) and a 95% interval.
        """
        return self.record.results.figures

    @property
    def findings(self) -> list[Finding]:
        """Measurements of the critic at the end of the run; see `diagnose`."""
        return self.record.findings

    @property
    def columns(self) -> list[str]:
        """Names of a table's columns; empty for other data."""
        return self.record.data.columns

    @property
    def classes(self) -> list[str]:
        """Names of the classes that can be asked for; empty without classes."""
        return self._model.classes

    def sample(self, seed: int = 0, count: int = 1, class_name: str | None = None) -> Array:
        """Generate samples; the same seed gives the same ones, and more continue them.

        Args:
            seed: 0 to 2**63 - 1.
            count: number of samples.
            class_name: class to sample, if the model is class-conditional; by default all, as
                often as in the data.

        Returns:
            uint8 ``(count, H, W, C)`` for images, ``(count, D)`` for vectors and tables,
            ``(count, T, D)`` for sequences, in the data's own units. Numbers are float32, or
            float64 where the data need it (docs/data.md).

        Raises:
            UserError: ``count`` or ``seed`` is out of range, or there is no such class.
        """
        if count < 1:
            raise UserError(f"count {count}: ask for at least one sample")
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed}: must be from 0 to 2**63 - 1")
        return self._model.sample(seed, count, self._label(class_name))

    def score(self, items: ArrayLike, class_name: str | None = None) -> Array:
        """Score items with the critic.

        Args:
            items: items in the data's own units, like those of `sample`; images of one channel may
                also be ``(N, H, W)``, and rows of a table a DataFrame.
            class_name: class of all items, if the model is class-conditional.

        Returns:
            float32 ``(N,)``, unbounded; higher is more like real items. Only differences between
            scores of one model mean anything; `percentiles` puts them among real items.

        Raises:
            UserError: the items have another shape, or there is no such class.
        """
        checked = self._model.items(np.asarray(items))
        label = self._label(class_name)
        labels = None if label is None else np.full(len(checked), label)
        return self._model.score(checked, labels)

    def percentiles(self, scores: Array) -> Array:
        """Percentile, 0 to 100, of each score ``(N,)`` among those of real held-out items."""
        return self._model.percentiles(scores)

    def save(self, folder: str | Path) -> None:
        """Copy the artifact to a new folder, from which `load` and ``wgan serve`` take it."""
        shutil.copytree(self.artifact, folder)

    def _label(self, class_name: str | None) -> int | None:
        return None if class_name is None else self._model.label(class_name)


@contextlib.contextmanager
def artifact_folder(model: str) -> Iterator[Path]:
    """Give the folder of an artifact; one from the registry goes when the block ends.

    Args:
        model: an artifact folder, or a registry name such as ``digits@champion``.

    Raises:
        RegistryError: no such version, or the registry does not answer.
    """
    if not registry.is_reference(model):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        with phase(f"downloading {model}"):
            fetched = registry.download(model, Path(folder))
        yield fetched


def load(model: str) -> TrainedModel:
    """Load a model; see `artifact_folder`.

    Raises:
        UserError: there is no such model, or its artifact is broken.
    """
    with contextlib.ExitStack() as stack:
        trained = TrainedModel(stack.enter_context(artifact_folder(model)))
        weakref.finalize(trained, stack.pop_all().close)  # a downloaded artifact goes with it
    return trained
