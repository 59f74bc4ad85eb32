"""A loaded model: generator, critic and their record, ready to sample and score."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from models import refinement, sampling
from models.errors import ClassError, ConditionError, DataError, ShapeError, rows_from
from models.folding import InHalf, channels_last, fold
from models.images import MODES, fit
from models.networks import Shape
from models.record import Run, in_range
from models.tables import Condition
from models.tables.gaps import complete
from models.tables.records import typed
from models.values import numbers, pixels, with_channels_last

Array = np.ndarray
Conditions = Mapping[str, Condition] | None
QUANTILE_LEVELS = np.linspace(0, 1, 1001)
SLOPE_LATENTS = 64
"""Number of latents from which a refined generator takes its mean slope."""
ERROR_SAMPLES = 256
"""Number of samples on which an engine's error is measured."""
ROWS_AT_ONCE = 4096
"""Rows of a table from which on they are made of their codes: few calls, and little memory."""


class Model:
    """A loaded artifact: generator, critic and their record, ready to sample and score.

    `models.artifact.load_artifact` makes one::

        model = load_artifact(Path("runs/digits/artifact"))
        images = model.sample(seed=7, count=16)
        scores = model.score(images)
    """

    def __init__(
        self,
        run: Run,
        generator: nn.Module,
        critic: nn.Module,
        quantiles: Array,
        digest: str,
        picture: bytes = b"",
    ) -> None:
        self.run = run
        self.generator = generator
        forward = channels_last(fold(generator))
        self.forward = InHalf(forward) if run.engine.precision == "bf16" else forward
        """The generator as the record's engine runs it; samples are made with this one."""
        self.critic = critic
        self.device = next(generator.parameters()).device
        self.quantiles = quantiles
        """Scores of real held-out items at `QUANTILE_LEVELS`."""
        self.digest = digest
        """SHA-256, in hex, of the checksum file, and so of the whole artifact."""
        self.picture = picture
        """PNG of samples, drawn when the artifact was made."""
        self.shape: Shape = run.data.shape
        self.latent_size = run.config.generator.latent_size
        self.certified: float | None = run.lipschitz.certified
        """An upper bound on the critic's Lipschitz constant; None where no honest one exists."""
        self.is_image = run.data.kind == "image"
        self.scaling = run.data.scaling
        self.table = run.data.table
        """The schema of the table that the model makes; None for other data."""
        self.classes = run.data.classes if run.config.conditional else []
        """Names of the classes, by label; empty unless the model is class-conditional."""

    @functools.cached_property
    def refined(self) -> Model:
        """This model with a generator guided by the critic; see `refinement.Refined`."""
        labels = self.labels(0, SLOPE_LATENTS)
        inputs = [self.latents(0, SLOPE_LATENTS), *([] if labels is None else [labels])]
        z, *classes = (torch.from_numpy(x).to(self.device) for x in inputs)
        guided = copy.copy(self)
        guided.forward = refinement.Refined(self.forward, self.critic, z, *classes)
        return guided

    def label(self, name: str) -> int:
        """Return the label of a class.

        Raises:
            ClassError: the model has no such class, or none at all.
        """
        if not self.classes:
            raise ClassError("the model is not class-conditional; leave out the class")
        if name not in (offered := self.run.data.trained_classes):
            raise ClassError(f"no class '{name[:100]}'; there are: {', '.join(offered)}")
        return self.classes.index(name)

    def labels(self, seed: int, count: int, start: int = 0) -> Array | None:
        """Labels of a seed's samples, distributed as in training; None without classes."""
        if not self.classes:
            return None
        frequencies = np.array(self.run.data.class_counts)
        return sampling.draw_labels(seed, start, count, frequencies)

    def latents(
        self, seed: int, count: int, start: int = 0, truncation: float | None = None
    ) -> Array:
        """Draw a seed's latents, float32 ``(count, latent_size)``; see `sampling.truncate`."""
        z = sampling.latents(seed, start, count, self.latent_size)
        return z if truncation is None else sampling.truncate(z, truncation)

    def samples(
        self,
        seed: int,
        count: int,
        start: int = 0,
        label: int | Array | None = None,
        truncation: float | None = None,
        restrictions: Array | None = None,
    ) -> Iterator[Array]:
        """Yield a seed's samples in parts; see `sampling.generate`.

        Args:
            seed: 0 to 2**63 - 1.
            count: number of samples.
            start: index of the first one.
            label: one class for all samples, or ``(count,)`` with one for each; None: see `labels`.
            truncation: bound of the latents, in standard deviations; None: unbounded.
            restrictions: as `restrict` returns them, ``(C,)`` for all rows or ``(count, C)``.

        Raises:
            ClassError: a label for a model without classes.
        """
        if label is None:
            label = self.labels(seed, count, start)

        def draw(first: int, rows: int) -> Array:
            return self.latents(seed, rows, first, truncation)

        return self._generate(draw, count, start, label, restrictions)

    def decode(
        self,
        latents: Array,
        label: int | Array | None = None,
        restrictions: Array | None = None,
    ) -> Iterator[Array]:
        """Yield the samples of given latents, float32 ``(N, latent_size)``, in parts.

        Raises:
            ShapeError: latents of another size.
            ClassError: a class-conditional model needs one label for all, or ``(N,)`` labels.
        """
        count, size = len(latents), self.latent_size
        if latents.shape != (count, size):
            raise ShapeError(f"the model takes latents of shape (N, {size}), not {latents.shape}")
        if self.classes and label is None:
            raise ClassError("the model is class-conditional; give the class of the latents")

        def draw(first: int, rows: int) -> Array:
            return latents[first : first + rows]

        return self._generate(draw, count, 0, label, restrictions)

    def walk(
        self,
        seed: int,
        to: int,
        at: Array,
        label: int | None = None,
        truncation: float | None = None,
        restrictions: Array | None = None,
    ) -> Iterator[Array]:
        """Yield samples between the first of one seed and the first of another, in parts.

        Args:
            seed: the walk starts at this seed's first sample.
            to: the walk ends at this seed's first sample.
            at: ``(N,)``, positions along the walk, 0 to 1; see `sampling.slerp`.
            label: class of the whole walk; None: the class of the first sample.
            truncation: bound of both latents, in standard deviations; None: unbounded.
            restrictions: as `restrict` returns them, for all rows.
        """
        first, last = (self.latents(s, 1, truncation=truncation)[0] for s in (seed, to))
        if label is None and (labels := self.labels(seed, 1)) is not None:
            label = int(labels[0])
        return self.decode(sampling.slerp(first, last, at), label, restrictions)

    def error(self, seed: int = 0, count: int = ERROR_SAMPLES) -> tuple[float, float]:
        """Measure how far the engine's samples lie from those of the generator as trained.

        Returns:
            Mean and maximum of the absolute differences over all values: in grey levels (0 to
            255) for images, otherwise in standard deviations of each feature.
        """
        plain = copy.copy(self)
        plain.forward = self.generator
        made = (self.scaling.to_levels(m.sample(seed, count)) for m in (self, plain))
        differences = np.abs(np.subtract(*made, dtype=np.float64))
        if not self.is_image:
            differences /= self.run.data.scale
        return float(differences.mean()), float(differences.max())

    def restrict(self, conditions: Mapping[str, Condition]) -> Array:
        """Code conditions on the rows of a table, by column: float32 ``(C,)``.

        Raises:
            ConditionError: no row can meet them, or the model takes none; the message says why.
        """
        if self.table is None:
            raise ConditionError("the model makes no table of mixed columns; leave out conditions")
        if not self.run.config.conditions_share:
            raise ConditionError("the model was trained with table.conditions=0: it takes none")
        return self.table.restrict(conditions)

    def rows(
        self, codes: Array, seed: int, first: int = 0, conditions: Conditions = None
    ) -> pa.Table:
        """Make the rows of samples of a table's model: `samples` yields their codes.

        Args:
            codes: ``(N, width)``.
            seed: of the samples, by which rare categories are drawn.
            first: index of the first sample, from which new identifiers follow.
            conditions: those of `restrict`; every row meets them exactly, though codes are rounded.
        """
        assert self.table is not None, "the model makes no table"
        return self.table.decode(codes, first, conditions, seed)

    def tables(
        self, parts: Iterable[Array], seed: int, first: int = 0, conditions: Conditions = None
    ) -> Iterator[pa.Table]:
        """Make the rows of samples in parts, some thousands at once; see `rows`."""
        held, count = list[Array](), 0
        for part in parts:
            held.append(part)
            count += len(part)
            if count >= ROWS_AT_ONCE:
                yield self.rows(np.concatenate(held), seed, first, conditions)
                held, count, first = [], 0, first + count
        if held:
            yield self.rows(np.concatenate(held), seed, first, conditions)

    def codes(self, rows: pa.Table) -> Array:
        """Code rows, whose columns are found by name, for `score`: float32 ``(N, width)``.

        Raises:
            ShapeError: the model makes no table.
            DataError: a column is missing, or holds what it may not.
        """
        if self.table is None:
            raise ShapeError("the model takes no rows of mixed columns; give numbers")
        return self.table.encode(typed(self.table, rows))

    def impute(self, rows: pa.Table, seed: int) -> pa.Table:
        """Fill the gaps of rows with what the model makes beside their known cells.

        Args:
            rows: columns in any order; those of the model that are not there are all gaps, and
                those that it left out when it was trained stay as they are.
            seed: of the completion; a row's depends on it, its cells and its index alone.

        Returns:
            The rows, known cells as they were, without gaps, but for those that a rule between
            columns asks for. Columns that were not there come last.

        Raises:
            ConditionError: the model takes no conditions.
            DataError: there are no rows, a column is unknown, a cell holds what it may not, or the
                known cells of a row break a rule.
        """
        self.restrict({})
        assert self.table is not None
        if not len(rows):
            raise DataError("there are no rows to complete")
        done = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = typed(self.table, rows.slice(start, ROWS_AT_ONCE))
            make = functools.partial(self._restricted_rows, seed, start)
            with rows_from(start):
                done.append(complete(self.table, some, make, start, seed))
        return pa.concat_tables(done)

    def _restricted_rows(self, seed: int, start: int, restrictions: Array) -> pa.Table:
        parts = self.samples(seed, len(restrictions), start, restrictions=restrictions)
        return pa.concat_tables(self.tables(parts, seed, start))

    def _generate(
        self,
        draw: Callable[[int, int], Array],
        count: int,
        start: int,
        label: int | Array | None,
        restrictions: Array | None,
    ) -> Iterator[Array]:
        given = None
        if label is not None:
            if not self.classes:
                raise ClassError("the model is not class-conditional; leave out the class")
            given = np.broadcast_to(np.asarray(label, np.int64), (count,))
        if restrictions is not None:
            given = np.broadcast_to(restrictions, (count, restrictions.shape[-1]))
        chunk = self.run.engine.chunk
        return sampling.generate(self.forward, self.scaling, draw, count, start, given, chunk)

    def sample(self, seed: int, count: int, label: int | Array | None = None) -> Array:
        """Make a seed's samples: uint8 ``(N, H, W, C)``, or ``(N, *shape)`` in the data's type."""
        return np.concatenate(list(self.samples(seed, count, label=label)))

    def items(self, values: Array) -> Array:
        """Check values against the model's shape and bring them to its data units.

        Args:
            values: ``(N, D)`` or ``(N, T, D)`` of finite numbers; or ``(N, H, W, C)`` of whole
                numbers 0 to 255, or as `record.in_range` takes them.

        Returns:
            uint8 ``(N, H, W, C)``, or the same shape in the data's type, float32 or float64.

        Raises:
            ShapeError: the values are not that; the message says what is expected.
        """
        expected = (*self.shape[1:], self.shape[0]) if self.is_image else self.shape
        if self.is_image:
            values = with_channels_last(values, self.shape)
        if values.ndim != len(expected) + 1 or values.shape[1:] != expected or not len(values):
            sizes = ", ".join(map(str, ("N", *expected)))
            raise ShapeError(f"the model takes items of shape ({sizes}), not {values.shape}")
        if self.scaling.is_uint8:
            return pixels(values)
        values = in_range(numbers(values), self.run.data)
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise ShapeError("the items hold values too large for float32")
        return rounded if self.run.data.dtype == "float32" else values.astype(np.float64)

    def resized(self, values: Array) -> Array:
        """Bring images of any size to the model's size and channels; see `images.fit`.

        Args:
            values: ``(N, H, W)`` or ``(N, H, W, C)``, C of 1 to 4, as `items` takes them.

        Returns:
            ``(N, H, W, C)``, as `items` does.

        Raises:
            ShapeError: the values are not that, or the model does not take images.
        """
        if not self.is_image:
            raise ShapeError("the model does not take images, which alone can be resized")
        if values.ndim == 3:
            values = values[..., None]
        if values.ndim != 4 or not values.size or values.shape[3] not in MODES:
            raise ShapeError(f"images have the shape (N, H, W, 1 to 4), not {values.shape}")
        channels, height, width = self.shape
        images = pixels(values) if self.scaling.is_uint8 else numbers(values)
        ground = self.run.config.data.background
        return self.items(np.stack([fit(i, height, width, channels, ground) for i in images]))

    def score(self, items: Array, labels: Array | None = None) -> Array:
        """Score items; a higher score means more like real data, and scores have no bound.

        Args:
            items: as `items` or `resized` returned them.
            labels: int64 ``(N,)``, if the model is class-conditional.

        Returns:
            float32 ``(N,)``.

        Raises:
            ClassError: see `require_labels`.
        """
        self.require_labels(len(items), labels)
        return sampling.score(self.critic, self.scaling, items, labels, self.run.engine.chunk)

    def require_labels(self, count: int, labels: Array | None) -> None:
        """Require labels, int64 ``(count,)``, exactly if the model is class-conditional.

        Raises:
            ClassError: they are missing, too many, or not wanted.
        """
        if self.classes and labels is None:
            raise ClassError("the model is class-conditional; give the class of each item")
        if labels is not None and not self.classes:
            raise ClassError("the model is not class-conditional; leave out the classes")
        if labels is not None and len(labels) != count:
            raise ClassError(f"{count} items have {len(labels)} classes; give one of each")

    def out_of_range(self, scores: Array) -> Array:
        """Tell for each score, ``(N,)``, if it lies outside those of all real held-out items."""
        return (scores < self.quantiles[0]) | (scores > self.quantiles[-1])

    def percentiles(self, scores: Array) -> Array:
        """Percentile, 0 to 100, of each score ``(N,)`` among those of real held-out items."""
        return np.interp(scores, self.quantiles, 100 * QUANTILE_LEVELS)
