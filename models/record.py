"""The record of a run, `run.json`: its configuration, data, constraint, results and findings."""

from __future__ import annotations

import decimal
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from models import sampling
from models.config import Config, Layout
from models.constraints import CONSTRAINTS, AnyConstraint
from models.errors import ShapeError
from models.lipschitz import LipschitzBounds
from models.tables import Part, TableSchema
from models.values import OWN, ends_of

Array = np.ndarray
Severity = Literal["info", "warning", "critical"]
Numbers = Literal["float32", "float64"]
"""How the numbers of items that are no images are held."""
FORMER_PROMISES = {
    "the critic's slope is at most 1 with activations": 1.01,
    "the critic's slope is then near 1 at most": 1.1,
}
"""Parts of sentences that former versions recorded as the guarantee, each with the largest
certified slope for which it is true, rounding of the certificate included."""


class DataCard(BaseModel, frozen=True, extra="forbid"):
    """The data that the model was trained on."""

    name: str
    source: str
    licence: str | None
    kind: Literal["image", "vector", "sequence"]
    shape: tuple[int, ...]
    """Shape of one item as the critic takes it: (C, H, W), (D,) or (T, D)."""
    classes: list[str] = []
    """Names of the classes, by label; empty without labels."""
    class_counts: list[int] = []
    """Training items of each class, by label."""
    columns: list[str] = []
    """Names of a table's columns; empty for other data."""
    count: int
    skipped: int = 0
    """Number of image files that could not be decoded; `count` leaves them out."""
    not_read: dict[str, int] = Field(default={}, exclude_if=lambda not_read: not not_read)
    """How many files of a folder or archive were not looked at, by suffix or by what they are.
    Written only if there are any."""
    training_count: int
    validation_count: int = Field(default=0, exclude_if=lambda count: not count)
    """Items that are neither trained on nor held out. Written only if there are any."""
    heldout_count: int
    heldout_fraction: float
    sha256: str
    """SHA-256 over the sorted hashes of the items, so their order does not matter."""
    layout: Layout | None = Field(default=None, exclude_if=lambda layout: layout is None)
    """Axes of the array file that was read. Written of images and sequences from one."""
    range: str | None = Field(default=None, exclude_if=lambda values: values is None)
    """The values of black and white in the array file, or ``own``; see `DataConfig.range`. Written
    of images from an array that was not uint8."""
    offset: list[float]
    """Subtracted from each feature or channel, which is then divided by `scale`. Images of uint8:
    empty."""
    scale: list[float]
    table: TableSchema | None = Field(default=None, exclude_if=lambda table: table is None)
    """What each column of a table is, and how it is coded; None for other data, whose records then
    keep their bytes."""
    dtype: Numbers = Field(default="float32", exclude_if=lambda dtype: dtype == "float32")
    """The type of items that are not uint8, in data units, samples too. Written only if it is
    float64, so that other records keep their bytes."""

    @property
    def scaling(self) -> sampling.Scaling:
        """Between data units and those of the networks."""
        return sampling.Scaling(self.shape, self.offset, self.scale, self.dtype)

    @property
    def trained_classes(self) -> list[str]:
        """Names of the classes that have training items: a model knows nothing of the others."""
        return [name for name, n in zip(self.classes, self.class_counts, strict=True) if n]

    @property
    def parts(self) -> list[Part]:
        """Parts of a table's code; empty for other data."""
        return [] if self.table is None else self.table.parts


def in_range(images: Array, card: DataCard) -> Array:
    """Bring images to the units of a data set of float images, and check that they are in range.

    Args:
        images: ``(N, H, W, C)``; uint8 are 256 grey levels, all others in data units.
        card: of the data set. Where it has no range, nothing is done.

    Raises:
        ShapeError: a value lies outside the range, or grey levels mean nothing there.
    """
    if card.range is None:
        return images
    if images.dtype == np.uint8:
        if card.range == OWN:
            raise ShapeError(
                "the model takes images in the units of its data, which 256 grey levels (uint8) "
                "are not: give an array of another type"
            )
        return card.scaling.from_levels(images)
    if card.range != OWN:
        low, high = ends_of(card.range)
        slack = 1e-6 * (high - low)  # samples are rounded
        if images.min() < low - slack or images.max() > high + slack:
            raise ShapeError(f"pixels are numbers from {low:g} to {high:g} here, as in the data")
    return images


class ConstraintCard(BaseModel, frozen=True, extra="forbid"):
    """The constraint that the critic was trained under, as it is served as metadata."""

    kind: str
    hyperparameters: dict[str, Any]
    guarantee: str


class PrivacyCard(BaseModel, frozen=True, extra="forbid"):
    """What differentially private training has spent, and on which terms (docs/privacy.md)."""

    epsilon: float
    """Of all critic steps, for data sets that differ by one training row more or less."""
    delta: float
    accountant: Literal["rdp"] = "rdp"
    noise_multiplier: float
    """Standard deviation of the noise on the sum of a step's gradients, in clip norms."""
    clip_norm: float
    """Length, at most, of a row's gradient."""
    sampling_rate: float
    """Probability with which a row is in a step's sample."""
    steps: int
    """Critic steps, each of which has spent."""
    public: list[str]
    """What the user has declared public: it follows from real rows, and epsilon leaves it out."""

    @property
    def in_words(self) -> str:
        """One sentence for people."""
        declared = f"; declared public: {', '.join(self.public)}" if self.public else ""
        return (
            f"epsilon {rounded_up(self.epsilon)} at delta {self.delta:g}, for one training row "
            f"({self.steps} critic steps, noise multiplier {self.noise_multiplier:.4g}, sampling "
            f"rate {self.sampling_rate:.4g}{declared})"
        )


class Engine(BaseModel, frozen=True, extra="forbid"):
    """Settings of the generator's forward, fixed when the version is made, so its bytes stay."""

    name: Literal["torch-channels-last"] = "torch-channels-last"
    """The generator as `folding.fold` makes it, on channels-last maps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    chunk: int = Field(default=sampling.CHUNK, ge=1)
    """Rows of each forward: a kernel may round differently for another number."""
    mean_error: float | None = None
    """Distance of its samples from those of the generator as trained; see `Model.error`."""
    max_error: float | None = None


class Figure(BaseModel, frozen=True, extra="forbid"):
    """One measured quality, beside the value that real data reach."""

    value: float
    floor: float | None
    """The figure of real training data in place of generated samples, at the same n."""
    interval: tuple[float, float]
    """95% interval: from half samples drawn without replacement, of the jackknife for the kernel
    distance, and DeLong's for an area under a curve."""
    n: int
    """Number of samples."""
    better: Literal["lower", "higher"]
    baseline: float | None = Field(default=None, exclude_if=lambda value: value is None)
    """The figure of a Gaussian copula that was fitted to the training rows; None but for tables."""
    of_class: str | None = Field(default=None, exclude_if=lambda name: name is None)
    """Name of the class that has the figure; None if it is of all items."""


class Extractor(BaseModel, frozen=True, extra="forbid"):
    """The features that images are judged over; figures over different ones do not compare."""

    name: str
    sha256: str


class Results(BaseModel, frozen=True, extra="forbid"):
    """Figures of the samples, judged against held-out data."""

    extractor: Extractor | None
    figures: dict[str, Figure]


class Marginal(BaseModel, frozen=True, extra="forbid"):
    """The distribution of one column of a table among held-out rows, and among generated ones."""

    name: str
    kind: Literal["number", "time", "category"]
    score: float
    """Likeness of the two, 0 to 1: one column's share of the figure `column_shapes`."""
    names: list[str]
    """What each bar stands for: a value, or where a bin begins."""
    edges: list[float] = []
    """Edges of the bins of numbers; empty where each bar is a value, or a time."""
    real: list[float]
    """Share of each bar among the values that there are."""
    generated: list[float]
    real_missing: float
    """Share of rows without a value."""
    generated_missing: float


class Line(BaseModel, frozen=True, extra="forbid"):
    """One series of a chart."""

    name: str
    x: list[float]
    y: list[float | None]
    """None where there is no value: the line is broken there."""
    low: list[float] = []
    """Lower edge of a band around the line, at each x; empty without a band."""
    high: list[float] = []


class Chart(BaseModel, frozen=True, extra="forbid"):
    """Data and labels of a chart, drawn by `svg`."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    bars: bool = False
    x_names: list[str] = []
    """Labels under x = 0, 1, 2 and so on, in place of numbers."""
    log_x: bool = False
    log_y: bool = False


class Finding(BaseModel, frozen=True, extra="forbid"):
    """One measurement, what it means and what to do about it."""

    name: str
    value: float
    """Larger is worse; `training.judging.doctor.checks.CHECKS` has its meaning."""
    threshold: float
    present: bool
    """True if the value is beyond the threshold."""
    severity: Severity
    evidence: str
    remedy: str
    """Advice; empty if the finding is not present."""
    chart: Chart | None = None


class Run(BaseModel, frozen=True, extra="forbid"):
    """The record of a run, as `run.json` holds it; docs/artifact.md describes every field."""

    schema_version: Literal[1] = 1
    created: str
    config: Config
    constraint: ConstraintCard
    data: DataCard
    provenance: dict[str, Any]
    results: Results
    privacy: PrivacyCard | None = Field(default=None, exclude_if=lambda card: card is None)
    """Written if training was differentially private."""
    engine: Engine = Engine()
    lipschitz: LipschitzBounds = LipschitzBounds()
    findings: list[Finding] = []
    marginals: list[Marginal] = Field(default=[], exclude_if=lambda marginals: not marginals)
    """Of each column of a table, the least alike first. Written only if there are any."""
    history: list[dict[str, float]] = []


def constraint_card(
    constraint: AnyConstraint, critic: LipschitzBounds | None = None
) -> ConstraintCard:
    """Describe a constraint, and the slope of the critic that was built under it.

    Args:
        constraint: of the run.
        critic: bounds of its critic; without any, the card says what holds for all critics.
    """
    guarantee = constraint.guarantee
    if critic and critic.certified is not None:
        bound = rounded_up(critic.certified)
        guarantee += f" This critic's slope is at most {bound}: its weights certify that."
    elif critic and critic.reason:
        guarantee += f" This critic's slope has no certified bound: {critic.reason}."
    return ConstraintCard(
        kind=constraint.kind,
        hyperparameters=constraint.model_dump(mode="json", exclude={"kind"}),
        guarantee=guarantee,
    )


def without_false_guarantee(run: Run) -> Run:
    """Describe the constraint anew if the record's guarantee does not hold for its critic.

    Former versions promised a slope of 1 for whole critics whose layers have one.
    """
    certified = run.lipschitz.certified
    for promise, largest in FORMER_PROMISES.items():
        if promise in run.constraint.guarantee and not (certified and certified <= largest):
            card = constraint_card(run.config.constraint, run.lipschitz)
            return run.model_copy(update={"constraint": card})
    return run


def rounded_up(value: float) -> str:
    """Round up to four digits, so that what is at most ``value`` is at most the number said."""
    digits = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING)
    return f"{float(digits.create_decimal(value)):.6g}"


def without_leaks(run: Run) -> Run:
    """Leave out of a private run's record what no noise hides and the user has not made public.

    These are figures, findings, history, and what was measured at real rows; and the hash of the
    data, which would confirm a guess of all rows.
    """
    if run.privacy is None:
        return run
    public: dict[str, Any] = {"data": run.data.model_copy(update={"sha256": ""})}
    if "figures" not in run.privacy.public:
        certified = LipschitzBounds(certified=run.lipschitz.certified, reason=run.lipschitz.reason)
        public |= {
            "results": Results(extractor=None, figures={}),
            "lipschitz": certified,
            "findings": [],
            "history": [],
            "marginals": [],
        }
    return run.model_copy(update=public)


def constraint_cards() -> list[ConstraintCard]:
    """Describe every constraint there is, with its default hyperparameters."""
    return [constraint_card(constraint()) for constraint in CONSTRAINTS.values()]
