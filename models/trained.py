"""A trained model, by what a user calls it: its artifact's folder, or a registry name."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models import registry_files
from models.artifact import SERVED, SUMS, load_artifact
from models.detector import Detector, load_detector
from models.device import require_device
from models.errors import ArtifactError, UserError
from models.model import Model
from models.model_names import settle
from models.progress import phase
from models.record import Figure, Finding, Run
from models.tables.conditions import conditions_of
from models.tables.frames import to_frame, to_table

Array = np.ndarray


class TrainedModel:
    """A trained model: it samples, scores, and knows how good it is.

    Made by `load`, and by `wgan.train`.
    """

    def __init__(self, artifact: Path, device: str = "cpu") -> None:
        """Load an artifact.

        Args:
            artifact: its folder.
            device: ``cpu`` or ``cuda``.

        Raises:
            UserError: the artifact is missing or broken, or there is no such device.
        """
        self.artifact = artifact
        """The artifact's folder; a temporary one goes with this object: see `save`."""
        self.model = load_artifact(artifact, require_device(device))
        """What samples and scores, in codes where the data are a table."""

    def __repr__(self) -> str:
        run = self.record
        return f"<TrainedModel {run.config.name}, {run.constraint.kind}, items {run.data.shape}>"

    @property
    def record(self) -> Run:
        """Everything that is recorded of the run: configuration, data, results, history."""
        return self.model.run

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
        return self.record.data.trained_classes if self.model.classes else []

    def sample(
        self,
        count: int = 1,
        seed: int = 0,
        class_name: str | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> Any:
        """Generate samples; the same seed gives the same ones, and more continue them.

        Args:
            count: number of samples.
            seed: 0 to 2**63 - 1.
            class_name: class to sample, if the model is class-conditional; by default all, as
                often as in the data.
            where: conditions that every row of a table meets, by column: a value, a list of values,
                None for no value, or a `Condition`, such as
                ``{"cut": ["Ideal", "Good"], "price": {"above": 5000}}``.

        Returns:
            A pandas DataFrame for tables of mixed columns; an array for all other data: uint8
            ``(count, H, W, C)`` for images (float32 where the data were no uint8, see
            docs/data.md), ``(count, D)`` for vectors, ``(count, T, D)`` for
            sequences, in the data's own units. Numbers are float32, or float64 where the data need
            it (docs/data.md).

        Raises:
            UserError: ``count`` or ``seed`` is out of range, there is no such class, no row can
                meet the conditions, or pandas is not installed.
        """
        if count < 1:
            raise UserError(f"count {count}: ask for at least one sample")
        require_seed(seed)
        label = self._label(class_name)
        conditions = conditions_of(where or {})
        restrictions = self.model.restrict(conditions) if where else None
        if self.model.table is None:
            return self.model.sample(seed, count, label)
        parts = self.model.samples(seed, count, label=label, restrictions=restrictions)
        return to_frame(pa.concat_tables(self.model.tables(parts, seed, 0, conditions)))

    def impute(self, rows: Any, seed: int = 0) -> Any:
        """Fill the gaps of a table's rows with what the model makes beside their known cells.

        Args:
            rows: a pandas DataFrame or a `pyarrow.Table`. Missing values are gaps, and so are all
                cells of a column that is not there.
            seed: 0 to 2**63 - 1; each gives another completion, the same one every time.

        Returns:
            A pandas DataFrame of the completed rows: known cells as they were, and no gaps but for
            those that a rule between columns asks for.

        Raises:
            UserError: there are no rows, the model takes no conditions, a column is unknown, a cell
                holds what its column may not, or the known cells of a row break a rule.
        """
        require_seed(seed)
        frame = to_frame(self.model.impute(to_table(rows), seed))
        return frame.set_index(rows.index) if hasattr(rows, "index") else frame

    def score(self, items: Any, class_name: str | None = None) -> Array:
        """Score items with the critic.

        Args:
            items: items in the data's own units, like those of `sample`: an array, where images of
                one channel may also be ``(N, H, W)``. Of a table of mixed columns, a DataFrame or a
                `pyarrow.Table` whose columns are found by name.
            class_name: class of all items, if the model is class-conditional.

        Returns:
            float32 ``(N,)``, unbounded; higher is more like real items. Only differences between
            scores of one model mean anything; `percentiles` puts them among real items.

        Raises:
            UserError: the items have another shape, a column is missing, or there is no such class.
        """
        checked, label = self.checked(items), self._label(class_name)
        labels = None if label is None else np.full(len(checked), label)
        return self.model.score(checked, labels)

    def checked(self, items: Any) -> Array:
        """Bring items, as `score` takes them, to the form that `model` and `detector` take.

        Raises:
            UserError: the items have another shape, or a column is missing.
        """
        if self.model.table is None:
            return self.model.items(np.asarray(items))
        return self.model.codes(to_table(items))

    @functools.cached_property
    def detector(self) -> Detector:
        """What says which items do not belong, if ``wgan train-detector`` made it.

        Raises:
            ArtifactError: the model has none, or a broken one.
        """
        detector = load_detector(self.artifact, self.model)
        if detector is None:
            raise ArtifactError(
                f"{self.record.config.name}: has no detector; `wgan train-detector` makes one"
            )
        return detector

    def percentiles(self, scores: Array) -> Array:
        """Percentile, 0 to 100, of each score ``(N,)`` among those of real held-out items."""
        return self.model.percentiles(scores)

    def save(self, folder: str | Path) -> None:
        """Copy the artifact to a new folder, from which `load` and ``wgan serve`` take it."""
        shutil.copytree(self.artifact, folder)

    def _label(self, class_name: str | None) -> int | None:
        return None if class_name is None else self.model.label(class_name)


def require_seed(seed: int) -> None:
    """Require a seed in range.

    Raises:
        UserError: it is not.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"seed {seed}: must be from 0 to 2**63 - 1")


@contextlib.contextmanager
def artifact_folder(model: str, needed: Collection[str] | None = None) -> Iterator[Path]:
    """Give the folder of an artifact; one from the registry goes when the block ends.

    Args:
        model: see `models.model_names.locate`.
        needed: names of the files to fetch from a registry; None: all.

    Raises:
        ArtifactError: no such folder.
        RegistryError: no such version, or the registry does not answer.
    """
    settled, version = settle(model)
    if not version:
        yield Path(settled)
        return
    with tempfile.TemporaryDirectory() as folder:
        with phase(f"downloading {settled}"):
            fetched = registry_files.download(settled, Path(folder), needed and {*needed, SUMS})
        try:
            yield fetched
        except ArtifactError as error:  # nobody can look into the temporary folder
            raise ArtifactError(str(error).replace(str(fetched), settled)) from error


def load_served(model: str, device: str = "cpu") -> Model:
    """Load what samples and scores, without the rest of the artifact; see `artifact_folder`.

    Raises:
        UserError: there is no such model or device, or its artifact is broken.
    """
    with artifact_folder(model, SERVED) as folder:
        return load_artifact(folder, require_device(device), SERVED)


def load(model: str, device: str = "cpu") -> TrainedModel:
    """Load a model; see `artifact_folder`.

    Raises:
        UserError: there is no such model or device, or its artifact is broken.
    """
    with contextlib.ExitStack() as stack:
        trained = TrainedModel(stack.enter_context(artifact_folder(model)), device)
        weakref.finalize(trained, stack.pop_all().close)  # a downloaded artifact goes with it
    return trained
