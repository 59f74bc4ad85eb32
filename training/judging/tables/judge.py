"""All figures of a table's model, each beside its floor and the Gaussian copula's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.config import EvaluationConfig
from models.errors import ConfigError, suggestion
from models.model import Model
from models.record import Figure
from models.tables import TableSchema
from models.tables.column import Column, column_values
from models.tables.fixed import CopyColumn
from training.data.dataset import Dataset
from training.judging.figures import figure
from training.judging.intervals import Estimate, half_sample_margins
from training.judging.metrics import precision_recall_density_coverage
from training.judging.neighbours import nearest_distances
from training.judging.tables import copies, likeness, uses
from training.judging.tables.copula import copula_rows
from training.judging.tables.rows import comparable, learned
from training.judging.tables.uses import Reading
from training.progress import track

Array = np.ndarray
CPU = torch.device("cpu")
MAX_COPIED = 1_000_000
"""Training rows, at most, of which copies are sought."""
AT_ONCE = 2**14
"""Rows that are hashed at once."""
MAX_ROWS = 20_000
"""Rows, at most, that a model learns from or is tested on, that the copula is fitted to, and among
which the nearest training row is sought."""


@dataclass(frozen=True)
class Rows:
    """Some rows in each form that figures take; each is made when it is first asked for."""

    table: pa.Table
    schema: TableSchema

    @cached_property
    def values(self) -> Array:
        """As `comparable` makes them."""
        return comparable(self.table, self.schema)

    @cached_property
    def codes(self) -> Array:
        """float64 ``(N, width)``: of each column by itself, since other rows may break rules."""
        return TableSchema(columns=self.schema.columns).encode(self.table).astype(np.float64)

    def first(self, count: int) -> Rows:
        """The first rows."""
        return Rows(self.table.slice(0, count), self.schema)

    def after(self, count: int) -> Rows:
        """All but the first rows."""
        return Rows(self.table.slice(count), self.schema)


@dataclass(frozen=True)
class Reals:
    """The real rows that generated ones are compared with."""

    heldout: Rows
    training: Rows
    """At most `MAX_ROWS` of each, in random order."""
    data: Dataset
    """Where they come from."""
    n: int
    """Rows of each kind where as many of both are compared."""
    target: str | None
    """Field of the target, if there is one."""
    device: torch.device = CPU
    """Where distances between all pairs of rows are computed."""

    @cached_property
    def copied(self) -> Array:
        """Hashes of at most `MAX_COPIED` training rows, among which copies are sought."""
        table = self.data.table
        wanted = np.zeros(len(table), bool)
        wanted[self.data.sample_indices(MAX_COPIED, heldout=False)] = True
        found, first = list[Array](), 0
        for batch in track(table.to_batches(max_chunksize=AT_ONCE), "hashing rows"):
            mask = pa.array(wanted[first : first + len(batch)])
            rows = pa.Table.from_batches([batch]).filter(mask)
            found.append(copies.hashes(comparable(rows, self.training.schema)))
            first += len(batch)
        return np.concatenate(found)

    @cached_property
    def heldout_distances(self) -> Array:
        """From each of n held-out rows to its nearest training row, ``(n,)``."""
        return self.distances(self.heldout)

    def distances(self, rows: Rows) -> Array:
        """From each of the first n rows to its nearest training row, ``(n,)``."""
        return nearest_distances(rows.codes[: self.n], self.training.codes, device=self.device)


Measure = Callable[[Reals, Rows], Reading | None]
"""Takes real rows, and generated ones or others in their place; None where it does not apply."""


class TableMetric(NamedTuple):
    """One figure of a table."""

    measure: Measure
    floor: float | Literal["training", "heldout"] = "training"
    """What a perfect sampler gets, or which real rows in the samples' place get that."""


def valid_share(reals: Reals, fake: Rows) -> Reading:
    """Share of the values that their columns may hold, in the mean over the columns that there are.

    Of a column that copies another one, the values that are the other's.
    """
    table, schema = fake.table, fake.schema
    there = [column for column in schema.columns if column.name in table.column_names]
    valid = np.mean([_valid(table, column) for column in there], axis=0)
    margin = float(1.96 * valid.std() / np.sqrt(len(valid)))
    value = float(valid.mean())
    return Reading(value, value - margin, value + margin)


def _valid(table: pa.Table, column: Column) -> Array:
    values = column_values(table, column.name)
    if isinstance(column, CopyColumn):
        one, other = (x.cast(pa.string()) for x in (values, column_values(table, column.of)))
        neither = pc.and_(one.is_null(), other.is_null())
        return pc.coalesce(pc.equal(one, other), neither).to_numpy(zero_copy_only=False)
    return column.is_valid(values)


def rules_kept(reals: Reals, fake: Rows) -> Reading | None:
    """Share of the rows that satisfy every rule between columns; None without rules."""
    schema = fake.schema
    if not schema.rules:
        return None
    kept = np.all([rule.satisfied(fake.table, schema.by_name) for rule in schema.rules], axis=0)
    margin = float(1.96 * kept.std() / np.sqrt(len(kept)))
    value = float(kept.mean())
    return Reading(value, value - margin, value + margin)


def _utility(reals: Reals, fake: Rows) -> Reading | None:
    if reals.target is None:
        return None
    return uses.utility(fake.values, reals.heldout.values, reals.target)


def _distance_ratio(reals: Reals, fake: Rows) -> Reading:
    return copies.distance_ratio(reals.distances(fake), reals.heldout_distances)


def _nearer(reals: Reals, fake: Rows) -> Reading:
    count = min(len(reals.training.codes), len(reals.heldout.codes))
    return copies.nearer_to_training(
        fake.codes[: reals.n], reals.training.codes[:count], reals.heldout.codes[:count]
    )


def _authenticity(reals: Reals, fake: Rows) -> Reading:
    return copies.authenticity(fake.codes[: reals.n], reals.training.codes, reals.device)


METRICS: dict[str, TableMetric] = {
    "valid_share": TableMetric(valid_share),
    "rules_kept": TableMetric(rules_kept),
    "tstr": TableMetric(_utility),
    "detection_auroc": TableMetric(
        lambda reals, fake: uses.detection(reals.heldout.values[: reals.n], fake.values[: reals.n])
    ),
    "authenticity": TableMetric(_authenticity, floor="heldout"),
    "nearer_to_training": TableMetric(_nearer, floor=0.5),
    "distance_ratio": TableMetric(_distance_ratio, floor=1.0),
    "exact_copies": TableMetric(
        lambda reals, fake: copies.exact_copies(copies.hashes(fake.values), reals.copied),
        floor="heldout",
    ),
    "membership_auroc": TableMetric(
        lambda reals, fake: copies.membership_attack(
            fake.codes[: reals.n],
            reals.training.codes[: reals.n],
            reals.heldout.codes[: reals.n],
            reals.device,
        ),
        floor=0.5,
    ),
}
"""Figures with an interval of their own; those of `_measure_likeness` have one of half samples.
A new one is a function and a line here, and a line in `training.judging.figures.FIGURES`."""


def judge_table(
    model: Model, data: Dataset, config: EvaluationConfig, seed: int
) -> dict[str, Figure]:
    """Judge a table's generator, as it is served, against held-out rows.

    Args:
        model: makes rows; all pairs of them are compared on its device.
        data: a table with the model's columns.
        config: ``samples`` rows of each kind are compared, or as many as there are; ``target``.
        seed: of the generated rows, and of the copula's.

    Returns:
        Figures by name. Left out are those that such a table does not have: missing values, rare
        categories, pairs of columns with a trend, a target.

    Raises:
        ConfigError: see `target_field`.
    """
    reals = real_rows(data, config, model.device)
    many = max(reals.n, min(data.card.training_count, MAX_ROWS))
    schema = reals.heldout.schema
    fake = Rows(model.rows(model.sample(seed, many), seed), schema)
    copula = Rows(copula_rows(reals.training.table, schema, many, seed), schema)
    found = _measure_likeness(reals, fake, copula)
    sides = {"training": reals.training, "heldout": reals.heldout}
    for name, metric in track(METRICS.items(), "judging rows"):
        reading = metric.measure(reals, fake)
        if reading is None:
            continue
        floor, baseline = (
            side if isinstance(side, float) else metric.measure(reals, side)
            for side in (
                metric.floor if isinstance(metric.floor, float) else sides[metric.floor],
                copula,
            )
        )
        expected = _value(floor)
        assert expected is not None, "what is measured of generated rows is of real ones too"
        estimate = Estimate(reading.value, expected, reading.low, reading.high, reals.n)
        found[name] = figure(name, estimate, _value(baseline))
    return found


def target_field(target: str | None, schema: TableSchema) -> str | None:
    """The field of ``evaluation.target`` in comparable rows; None without a target.

    Raises:
        ConfigError: there is no such column, or it is not learned.
    """
    if target is None:
        return None
    names = [column.name for column in learned(schema)]
    if target not in names:
        raise ConfigError(
            f"evaluation.target: no column '{target}' that is learned{suggestion(target, names)}"
        )
    return str(names.index(target))


def real_rows(data: Dataset, config: EvaluationConfig, device: torch.device = CPU) -> Reals:
    """The real rows that a model of the data is compared with, on a device."""
    schema, table = data.card.table, data.table
    assert schema is not None, "only tables have a schema"

    sides = [
        np.random.default_rng(0).permutation(data.sample_indices(MAX_ROWS, heldout=heldout))
        for heldout in (True, False)
    ]
    taken = Rows(table.take(pa.array(np.concatenate(sides))), schema)  # a file is read once
    heldout, training = taken.first(len(sides[0])), taken.after(len(sides[0]))
    return Reals(
        heldout,
        training,
        data,
        n=min(config.samples, len(heldout.table), len(training.table)),
        target=target_field(config.target, schema),
        device=device,
    )


def _measure_likeness(reals: Reals, fake: Rows, copula: Rows) -> dict[str, Figure]:
    """Figures of n held-out and n other rows, or of their codes."""
    n, found = reals.n, dict[str, Figure]()
    pairs = likeness.trending_pairs(reals.heldout.values[:n])

    def of_values(real: Array, fake: Array) -> dict[str, float]:
        figures = {
            "column_shapes": likeness.column_shapes(real, fake),
            "pair_trends": likeness.pair_trends(real, fake, pairs),
            "pair_distance": likeness.pair_distance(real, fake),
            "missing_difference": likeness.missing_difference(real, fake),
            "rare_category_coverage": likeness.rare_category_coverage(real, fake),
        }
        return {name: value for name, value in figures.items() if value is not None}

    in_balls = partial(precision_recall_density_coverage, device=reals.device)
    for metric, form in ((of_values, "values"), (in_balls, "codes")):
        real, training, drawn, baseline = (
            getattr(side, form)[:n] for side in (reals.heldout, reals.training, fake, copula)
        )
        margins = half_sample_margins(metric, real, drawn)
        floors, baselines = metric(real, training), metric(real, baseline)
        for name, value in metric(real, drawn).items():
            margin = margins.get(name, 0.0)
            # Only a difference of missing values may be of generated rows alone.
            estimate = Estimate(value, floors.get(name, 0.0), value - margin, value + margin, n)
            found[name] = figure(name, estimate, baselines.get(name))
    return found


def _value(reading: Reading | float | None) -> float | None:
    return reading.value if isinstance(reading, Reading) else reading
