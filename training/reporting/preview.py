"""A picture of a data set's items, as `wgan data inspect` draws it."""

from __future__ import annotations

import numpy as np

from models.images import MODES, encode_png, enlarge, grid
from training.data.dataset import Dataset
from training.reporting.pictures import marginals

MAX_IMAGES = 64
MAX_CLASSES = 10
IMAGES_IN_ROW = 8
"""Images of each class."""
MAX_ROWS = 50_000
"""Items behind a histogram."""
LEGIBLE_SIDE = 32
"""Pixels: smaller images are enlarged by a whole factor."""


def picture(data: Dataset) -> bytes:
    """Draw items, as PNG: a grid of images, a row for each class; or a histogram of each column."""
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
    if images.shape[3] not in MODES:
        images = images[..., :1]
    factor = max(1, LEGIBLE_SIDE // max(images.shape[1:3]))
    return encode_png(grid(enlarge(images, factor), columns))
