"""The picture of a data set, as `wgan data inspect` draws it, and that of a model's samples."""

from __future__ import annotations

import numpy as np

from models.formats import encode
from models.images import MODES, encode_png, enlarge, grid
from models.model import Model
from models.tables import NumberColumn, TableSchema
from models.tables.column import whole
from training.data.dataset import Dataset
from training.reporting.pictures import marginals, scatter, traces

Array = np.ndarray
MAX_IMAGES = 64
"""Images in a picture without classes."""
MAX_CLASSES = 10
IMAGES_IN_ROW = 8
"""Images of each class."""
MAX_ROWS = 50_000
"""Items behind a histogram of a data set."""
MAX_POINTS = 2500
"""Vectors of a model, and as many held-out ones, in a picture of samples."""
MAX_SEQUENCES = 12
"""Sequences on each side of a picture of samples."""
LEGIBLE_SIDE = 32
"""Pixels: smaller images are enlarged by a whole factor."""


def data_picture(data: Dataset) -> bytes:
    """Draw items, as PNG: a grid of images, a row for each class; or a histogram of each column."""
    if data.card.table is not None:
        codes = data.sample(MAX_ROWS, heldout=False)
        return encode_png(marginals(*_drawn(data.card.table, codes)))
    if data.card.kind != "image":
        values = data.sample(MAX_ROWS, heldout=False).reshape(-1, data.items.shape[-1])
        return encode_png(marginals(data.card.columns, values))
    if data.labels is None:
        images, columns = data.sample(MAX_IMAGES, heldout=False), None
    else:
        classes = range(min(len(data.card.classes), MAX_CLASSES))
        by_class = [np.flatnonzero(data.labels == c)[:IMAGES_IN_ROW] for c in classes]
        rows_of_classes = [
            np.resize(indices, IMAGES_IN_ROW) for indices in by_class if len(indices)
        ]
        images, columns = data.items_at(np.concatenate(rows_of_classes)), IMAGES_IN_ROW
    images = data.scaling.to_levels(images)
    if images.shape[3] not in MODES:
        images = images[..., :1]
    factor = max(1, LEGIBLE_SIDE // max(images.shape[1:3]))
    return encode_png(grid(enlarge(images, factor), columns))


def _drawn(schema: TableSchema, codes: Array) -> tuple[list[str], Array]:
    """Names and values ``(N, D)`` of the columns that are drawn.

    Of categories the values are their ranks, the most frequent first and missing ones last, and of
    dates and times the steps since the earliest; NaN stands for a missing number or time.
    """
    table, names, values = schema.decode(codes), [], []
    for column in schema.columns:
        if not column.parts:
            continue
        made = whole(table[column.name])
        names.append(column.name)
        if isinstance(column, NumberColumn):
            values.append(column.numbers(made))
        else:
            values.append(column.split(made).options)
    return names, np.stack(values, axis=1).astype(np.float64)


def samples_picture(model: Model, data: Dataset, heldout: Array) -> bytes:
    """Draw a model's samples, as PNG: images in a grid; other samples beside held-out items.

    Args:
        model: the generator.
        data: the model was trained on it.
        heldout: held-out items ``(N, ...)``.
    """
    seed = model.run.config.training.seed
    if model.is_image:
        names = model.run.data.trained_classes[:MAX_CLASSES] if model.classes else []
        by_class = [model.sample(seed, len(names), model.label(name)) for name in names]
        samples = np.concatenate(by_class) if names else model.sample(seed, MAX_IMAGES)
        samples = model.scaling.to_levels(samples)
        if model.shape[0] not in MODES:  # more channels than a picture has: show the first
            samples = samples[..., :1]
        return encode(samples, "png")
    samples = model.sample(seed, MAX_POINTS)
    if model.table is not None:
        names, real = _drawn(model.table, heldout[:MAX_POINTS])
        return encode_png(marginals(names, real, _drawn(model.table, samples)[1]))
    if data.card.kind == "sequence":
        drawn = traces(data.heldout[:MAX_SEQUENCES], samples[:MAX_SEQUENCES])
    elif data.card.columns:
        drawn = marginals(data.card.columns, heldout[:MAX_POINTS], samples)
    else:
        drawn = scatter(heldout[:MAX_POINTS], samples)
    return encode_png(drawn)
