"""The figures that gates decide by: several models, on the same held-out items and seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models import registry
from models.config import Config
from models.errors import ConfigError
from models.model import Model
from models.record import DataCard, Figure
from models.tables import TableSchema
from training.data.dataset import Dataset, load_data
from training.judging.copying import Membership, membership
from training.judging.evaluate import SAMPLE_SEED, judge
from training.judging.extractors import FeatureExtractor, artifact_weights, load_extractor
from training.judging.figures import COPY_FIGURES, distance, distances, headlines
from training.judging.intervals import (
    Difference,
    Estimate,
    compare,
    compare_kernel_distances,
    measure,
)
from training.judging.metrics import precision_recall_density_coverage
from training.judging.neighbours import nearest_distances
from training.judging.tables.rows import comparable, comparable_codes, decided
from training.progress import track
from training.run import load_frozen

Array = np.ndarray
CPU = torch.device("cpu")
ITEMS_AT_ONCE = 4096
"""Training items or samples in memory at once, while nearest ones are looked for among all."""
ATTACK_SAMPLES = 20_000
"""Samples, at most, that the membership attack draws."""
DIFFERENCE_LEVEL = 0.9
"""Confidence of the interval of a difference: its upper end is a 95% bound."""


class RegisteredModel(NamedTuple):
    """A version that the challenger is compared with."""

    version: str
    model: Model


@dataclass
class Evidence:
    """A challenger and the champions before it, on the same held-out items."""

    challenger: Model
    """May be promoted."""
    champion: RegisteredModel | None
    """Serves now; None: there is none."""
    best: RegisteredModel | None
    """The best champion so far, by the loss; None: there is no champion."""
    judged: Dataset
    """Its held-out items judge."""
    data: Dataset
    """The challenger was trained on it."""
    extractor: FeatureExtractor | None
    """Makes the features of images; None for other data."""
    loss: str
    """Name of the distance that challenger and champion are compared by."""
    n: int
    """Held-out items and samples."""
    schema: TableSchema | None = None
    """Of the table that the challenger was trained on; None for other data."""
    device: torch.device = CPU
    """Where distances between all pairs of points are computed."""

    @cached_property
    def real(self) -> Array:
        """Held-out items as points ``(n, D)``."""
        return self._points(self.judged.sample(self.n, heldout=True))

    @cached_property
    def training(self) -> Array:
        """Some training items as points ``(n, D)``."""
        return self._points(self.data.sample(self.n, heldout=False))

    def all_training(self) -> Iterator[Array]:
        """Yield all training items as points, a few thousand at a time."""
        indices = np.flatnonzero(self.data.is_training)
        starts = range(0, len(indices), ITEMS_AT_ONCE)
        for first in track(starts, "searching the training items"):
            yield self._points(self.data.items_at(indices[first : first + ITEMS_AT_ONCE]))

    @cached_property
    def fake(self) -> Array:
        """The challenger's samples as points ``(n, D)``."""
        return self._samples(self.challenger)

    @cached_property
    def membership(self) -> Membership:
        """How well samples of the challenger tell its training items from held-out ones.

        As many samples are drawn as there are training items, so that a copier gives most of them
        away, but no more than `ATTACK_SAMPLES`. Both kinds of items are of the data that it was
        trained on: those of a trusted set may be farther from its samples for another reason.
        """
        heldout = self._points(self.data.sample(self.n, heldout=True))
        items = np.concatenate([self.training, heldout])
        count = max(self.n, min(ATTACK_SAMPLES, int(self.data.is_training.sum())))
        signal = -nearest_distances(items, self._parts_of_samples(count), device=self.device)
        return membership(*np.split(signal, [len(self.training)]))

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The challenger's figures on the held-out items that judge.

        They are those of its run unless a trusted set judges; those of copies always are, since
        only its own data tell which items it was trained on.
        """
        recorded = self.challenger.run.results.figures
        if self.judged is self.data:
            return recorded
        config = self.challenger.run.config.evaluation
        judged = judge(self.challenger, self.judged, config, self.extractor).figures
        return judged | {name: recorded[name] for name in COPY_FIGURES if name in recorded}

    @cached_property
    def shares(self) -> dict[str, Estimate]:
        """The challenger's precision, recall, density and coverage."""
        in_balls = partial(precision_recall_density_coverage, device=self.device)
        return measure(in_balls, self.real, self.fake, self.training)

    def loss_of(self, model: Model, most: int) -> Estimate:
        """Measure a model's loss on the held-out items, on ``most`` points of each set or fewer."""
        samples = self._compared_samples(model, SAMPLE_SEED, self.n)[:most]
        real, training = (
            self._compared(data, heldout)
            for data, heldout in ((self.judged, True), (self.data, False))
        )
        return measure(distances(self.loss), real, samples, training)[self.loss]

    def loss_growth(self, model: Model, few: int, many: int) -> float:
        """Measure how much the loss grows by chance alone on ``few`` points in place of ``many``.

        A distance between n points of each of two equal distributions is above 0, the more so the
        smaller n is. The model's own samples show by how much: there are as many as are wanted,
        and spoiled data do not change them.
        """
        if few >= many:
            return 0.0
        points = self._compared_samples(model, SAMPLE_SEED + 1, 2 * many)
        return loss_floor(self.loss, points, few) - loss_floor(self.loss, points, many)

    def loss_difference(self, model: Model) -> Difference:
        """Compare the challenger's loss, which comes first, with a model's."""
        real = self._compared(self.judged, heldout=True)
        first, second = (
            self._compared_samples(m, SAMPLE_SEED, self.n) for m in (self.challenger, model)
        )
        if self.loss == "kernel_distance":
            return compare_kernel_distances(real, first, second, level=DIFFERENCE_LEVEL)
        differences = compare(distances(self.loss), real, first, second, level=DIFFERENCE_LEVEL)
        return differences[self.loss]

    def judged_alike(self, model: Model) -> bool:
        """True if a model's recorded figures are over the features that are used here."""
        recorded = model.run.results.extractor
        return (recorded and recorded.sha256) == (self.extractor and self.extractor.card.sha256)

    def _parts_of_samples(self, count: int) -> Iterator[Array]:
        """Yield samples of the challenger as points, a few thousand at a time."""
        for first in track(range(0, count, ITEMS_AT_ONCE), "drawing samples for the attack"):
            rows = min(ITEMS_AT_ONCE, count - first)
            yield self._points(
                np.concatenate(list(self.challenger.samples(SAMPLE_SEED, rows, first)))
            )

    def _samples(self, model: Model) -> Array:
        return self._points(model.sample(SAMPLE_SEED, self.n))

    def _compared(self, data: Dataset, heldout: bool) -> Array:
        """Items as the loss takes them: rows of a table, or else points."""
        items = data.sample(self.n, heldout=heldout)
        return self._points(items) if self.schema is None else comparable_codes(items, self.schema)

    def _compared_samples(self, model: Model, seed: int, count: int) -> Array:
        """A model's samples as the loss takes them."""
        samples = model.sample(seed, count)
        if self.schema is None:
            return self._points(samples)
        return comparable(model.rows(samples, seed), self.schema)

    def _points(self, items: Array) -> Array:
        """Turn items into points: an extractor's features, codes of rows, or the champion's units.

        The challenger's own units follow from the new data, and one outlier there can make every
        distance small.
        """
        if self.schema is not None:
            return decided(items, self.schema).astype(np.float64)
        champion = self.champion.model if self.champion else self.challenger
        alike = have_one_form(champion, self.challenger)
        scaling = champion.scaling if alike else self.challenger.scaling
        if self.extractor:
            return self.extractor(scaling.to_levels(items))
        return scaling.to_model(torch.from_numpy(items)).double().flatten(1).numpy()


def make_the_same(one: Model, other: Model) -> bool:
    """True if samples of two models compare: items of one form, or rows of the same columns."""
    if one.table is None or other.table is None:
        return have_one_form(one, other)
    return not different_columns(one.table, other.table)


def have_one_form(one: Model, other: Model) -> bool:
    """True if items of two models have one shape and, if they are images of floats, one range."""
    if one.shape != other.shape:
        return False
    if len(one.shape) != 3:
        return True
    first, second = (None if m.scaling.is_uint8 else m.run.data.range for m in (one, other))
    return first == second


def different_columns(one: TableSchema, other: TableSchema) -> list[str]:
    """Names of the columns that only one of two tables has, or that are of different kinds."""
    first, second = ({c.name: c.kind for c in t.columns} for t in (one, other))
    return sorted(name for name in first | second if first.get(name) != second.get(name))


def loss_floor(loss: str, points: Array, n: int) -> float:
    """Mean distance between disjoint sets of n points each of one distribution.

    Args:
        loss: name of the distance.
        points: ``(N, D)`` or rows ``(N,)``, independent; N at least ``2 * n``.
        n: points in each set.
    """
    sets = points[: len(points) // (2 * n) * 2 * n].reshape(-1, 2, n, *points.shape[1:])
    return float(np.mean([distance(loss, one, other) for one, other in sets]))


def judged_data(reference: str | None, config: Config, data: Dataset) -> Dataset:
    """Load the data that judge, if they are not the new data themselves.

    An item is held out by its own hash: the held-out items of one set are trained on in no other
    that holds out as large a share, if both are held in one type.

    Args:
        reference: as ``reference`` in the configuration file.
        config: of the run.
        data: what the challenger is trained on.

    Raises:
        ConfigError: the items of the two have different shapes.
        UserError: the data cannot be loaded.
    """
    if reference is None:
        return data
    trusted = load_data(config.data.of(reference), card=data.card)
    if trusted.card.shape != data.card.shape:
        raise ConfigError(
            f"reference: {reference} holds items of shape {trusted.card.shape}, the data "
            f"of {data.card.shape}; set data.size, or bring another"
        )
    return trusted


def choose_loss(asked: str | None, card: DataCard) -> str:
    """Choose what challenger and champion are compared by.

    Args:
        asked: ``gates.loss``; None: the first of `headlines` for the data.
        card: of the data.

    Raises:
        ConfigError: the loss does not suit such data.
    """
    suitable = headlines(card)
    if asked is not None and asked not in suitable:
        kind = "table" if card.table is not None else card.kind
        raise ConfigError(f"gates.loss: {asked} is not for {kind}s; use {' or '.join(suitable)}")
    return asked or suitable[0]


def choose_features(config: Config, challenger: Model, folder: Path) -> FeatureExtractor | None:
    """Load the features that images are compared over; None for other data.

    They are those of the name's first champion or, before there is one, the challenger's.

    Args:
        config: of the run.
        challenger: loaded from ``folder``.
        folder: the challenger's artifact.

    Raises:
        UserError: the weights are not at hand, or are others.
    """
    if not challenger.is_image:
        return None
    frozen = registry.frozen_extractor(config.name)
    if frozen:
        return load_frozen(config, frozen)
    judged = challenger.run.results.extractor
    assert judged is not None, "images are judged over features"
    return load_extractor(judged.name, config.evaluation, judged.sha256, artifact_weights(folder))
