"""Comparison of exported graphs with a model's own samples and scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

import numpy as np
from torch import Tensor
from torch.special import ndtr, ndtri

from models import sampling
from models.errors import ExportError
from models.export.formats import Run
from models.folding import fold
from models.model import Model
from models.tables import Value
from models.tables.layout import place

Array = np.ndarray
TOLERANCE = 1e-5
"""Largest accepted difference, in the units in which networks see the data, and for scores relative
to the largest one."""
COUNTS = (1, 5, 64)
"""Numbers of rows that are compared."""
SEED = 0


class _Moved(sampling.Scaling):
    """A model's scaling after every value was moved by so much, in the networks' units.

    Of a table's numbers it is their rank that is moved: it is what decoding reads.
    """

    def __init__(self, model: Model, by: float) -> None:
        self.inner, self.by = model.scaling, by
        parts = [] if model.table is None else model.table.parts
        self.scores = [p.code.start for p in place(parts) if isinstance(p.part, Value)]

    def to_data(self, samples: Tensor) -> Tensor:
        exact = samples.double()
        moved = exact + self.by * exact.abs().clamp_min(1)
        moved[:, self.scores] = ndtri((ndtr(exact[:, self.scores]) + self.by).clamp(0, 1))
        return self.inner.to_data(moved)


def check_generator(model: Model, run: Run) -> None:
    """Compare an exported generator with the samples of the model, computed in float32.

    Every value must be one that the model makes of numbers within `TOLERANCE` of its own: so a
    pixel may differ by a grey level only where rounding is a tie.

    Raises:
        ExportError: one is not.
    """
    for inputs, label in _inputs(model):
        low, high = (_samples(model, inputs["latents"], label, by) for by in (-1, 1))
        found = run(inputs)
        if found.dtype != low.dtype or found.shape != low.shape:
            raise ExportError(
                f"the exported generator gives {found.dtype} {found.shape}, not {low.dtype} "
                f"{low.shape}; please report it"
            )
        if not ((found >= low) & (found <= high)).all():
            share = np.mean((found < low) | (found > high))
            raise ExportError(
                f"the exported generator makes other samples than the model: {share:.1%} of the "
                f"values differ by more than {TOLERANCE:g}; please report it"
            )


def _samples(model: Model, latents: Array, label: Array | None, by: float) -> Array:
    """The model's samples of latents after they were moved by that many tolerances."""
    moved = copy.copy(model)
    moved.scaling = _Moved(model, by * TOLERANCE)
    if model.run.engine.precision != "fp32":
        moved.forward = fold(model.generator)
    made = np.concatenate(list(moved.decode(latents, label)))
    if np.issubdtype(made.dtype, np.integer):
        return made
    # Rounding after the scaling may take one step more, which counts where the offset is large.
    return cast(Array, np.nextafter(made, made.dtype.type(by * np.inf)))


def check_critic(model: Model, run: Run) -> None:
    """Compare the scores of an exported critic with the model's.

    Raises:
        ExportError: they differ.
    """
    for inputs, label in _inputs(model):
        items = np.concatenate(list(model.decode(inputs.pop("latents"), label)))
        name = "items" if model.table is None else "codes"
        ours, theirs = model.score(items, label), run({name: items, **inputs})
        size = max(np.abs(ours).max(), np.abs(model.quantiles[[0, -1]]).max())
        if theirs.shape != ours.shape or not np.abs(theirs - ours).max() <= TOLERANCE * size:
            raise ExportError(
                "the exported critic gives other scores than the model, by up to "
                f"{np.abs(theirs - ours).max() / size:.1e} of the largest; please report it"
            )


def _inputs(model: Model) -> Iterator[tuple[dict[str, Array], Array | None]]:
    """Inputs of several numbers of rows, with the labels apart."""
    for count in COUNTS:
        label = model.labels(SEED, count)
        inputs = {"latents": model.latents(SEED, count)}
        yield inputs | ({} if label is None else {"labels": label}), label
