"""The one configuration of a run: what is trained, on what, under which constraint, how long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from models.augmentation import AugmentationConfig
from models.constraints import CONSTRAINTS, AnyConstraint
from models.constraints.fit import misfit
from models.errors import ConfigError, suggestion
from models.networks import SIDES, CriticConfig, GeneratorConfig
from models.networks.parts import GROUP
from models.privacy import PrivacyConfig
from models.section import Section
from models.selection import SelectionConfig
from models.tables.reading.dialect import CsvConfig
from models.tables.rules import parse_rule
from models.training import TrainingConfig
from models.values import OWN, ends_of

M = TypeVar("M", bound=BaseModel)

Layout = Literal["nhw", "nhwc", "nchw", "ntd", "ndt"]
"""Axes of an array: n items; of images h rows, w columns, c channels; of sequences t steps, d
features."""


class ColumnConfig(Section):
    """The user's word on a column of a table; what is not given is found from the data."""

    kind: (
        Literal[
            "number", "integer", "boolean", "category", "time", "constant", "identifier", "left_out"
        ]
        | None
    ) = None
    decimals: int | None = Field(default=None, ge=0, le=15)
    """Digits after the point of generated numbers."""
    low: float | None = None
    """The smallest value that the column may hold."""
    high: float | None = None
    """The largest value that the column may hold."""
    spikes: tuple[float, ...] | None = None
    """Numbers that are options of their own, such as 0 where many rows have it."""
    max_categories: int | None = Field(default=None, ge=1, le=1000)
    """Categories that are options of their own; the rarer ones are one option together."""


class DataConfig(Section):
    """Source of the data, and the split into training and held-out items."""

    source: str
    """A built-in name (digits, mnist5k, emoji32, emoji64, letters32, letters64, 8gaussians,
    25gaussians, swissroll, ar2); a .npy,
    .npz, .h5, .zarr, .csv, .tsv, .parquet, .arrow or .feather file; a folder, .zip or .tar of
    images; or a URL of these."""
    key: str | None = Field(default=None, exclude_if=lambda key: key is None)
    """Name of the array to read, of a .npz, .h5 or .zarr file with several. Written only if it is
    named."""
    layout: Layout | None = Field(default=None, exclude_if=lambda layout: layout is None)
    """Axes of an array; None: as its shape tells. Written only if they are named."""
    range: str | None = Field(default=None, exclude_if=lambda values: values is None)
    """Values of black and white in an array of images that is not uint8, such as 0..1, -1..1 or
    0..4095; own: the smallest and the largest of each channel in the training items. None: as the
    values tell. Written only if it is named."""
    size: int | None = Field(default=None, ge=SIDES[0], le=SIDES[1])
    """Pixels a side: images are cropped in the middle and resized to this square. None: as they
    are."""
    max_broken_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of image files that may be broken and are then skipped; with more the run fails."""
    background: str = Field(
        default="white",
        pattern="^(white|black|#[0-9A-Fa-f]{6})$",
        exclude_if=lambda colour: colour == "white",
    )
    """What transparent pixels of images lie on: white, black or #rrggbb. Written only if it is not
    white, so that other records keep their bytes."""
    split: Literal["hash", "folders"] = Field(
        default="hash", exclude_if=lambda split: split == "hash"
    )
    """folders: of image files, those in folders named test, val or alike are held out. hash: an
    item's own hash decides. Written only if it is folders."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=0.9)
    """Share of the distinct items that is held out; an item's own hash decides."""
    validation_fraction: float = Field(default=0, ge=0, lt=0.9, exclude_if=lambda share: not share)
    """Share of the others that is not trained on, to validate. Written only if there is one."""
    columns: dict[str, ColumnConfig] = Field(default={}, exclude_if=lambda columns: not columns)
    """The user's word on columns of a table, by name. Written only if there is one."""
    csv: CsvConfig = Field(default=CsvConfig(), exclude_if=lambda csv: csv == CsvConfig())
    """How a CSV file is written. Written only if it says something, as other data have none."""
    rules: tuple[str, ...] = Field(default=(), exclude_if=lambda rules: not rules)
    """What the values of a table's row are together: a < b, a <= b, c = a + b, combination(a, b),
    one_of(a, b), unique(a). On the command line also the YAML file of such a list. Written only if
    there are any."""
    rows_that_break_rules: Literal["refuse", "leave_out"] = Field(
        default="refuse", exclude_if=lambda what: what == "refuse"
    )
    """What becomes of rows of the data that break a rule. Written only if they are left out."""

    def of(self, source: str) -> DataConfig:
        """The same for another source, without what was said of one file's axes and values."""
        said = {} if source == self.source else {"layout": None, "range": None}
        return self.model_copy(update={"source": source, **said})

    def over(self, other: DataConfig) -> DataConfig:
        """Another configuration, in which what is set here takes the place of what is there."""
        told = {name: getattr(self, name) for name in self.model_fields_set}
        return other.model_copy(update=told)

    @field_validator("range")
    @classmethod
    def _is_a_range(cls, values: str | None) -> str | None:
        if values not in (None, OWN):
            ends_of(values)
        return values

    @field_validator("rules", mode="before")
    @classmethod
    def _one_rule_is_a_list(cls, rules: Any) -> Any:
        return (rules,) if isinstance(rules, str) else rules

    @field_validator("rules")
    @classmethod
    def _are_rules(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for text in rules:
            try:
                parse_rule(text)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return rules


class EvaluationConfig(Section):
    """Settings of the judging on held-out data."""

    samples: int = Field(default=2500, ge=10)
    """Maximal number of generated samples; comparisons with held-out items take as many of each."""
    target: str | None = Field(default=None, exclude_if=lambda target: target is None)
    """Column of a table that a model is trained to predict from generated rows, and tested on real
    ones; None: no such figure. Written if there is one."""
    extractor: Literal[
        "auto", "digits-cnn-v1", "classifier", "efficientnet-lite0", "inception", "onnx", "pixels"
    ] = "auto"
    """Features of images; auto: those frozen for the model's name, or else those that suit the
    data."""
    inception_weights: str | None = None
    """File of the inception extractor's weights, as torch-fidelity reads them."""
    inception_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of that file. No other file is loaded, since loading one runs code from it."""
    onnx: str | None = Field(default=None, exclude_if=lambda file: file is None)
    """File of the onnx extractor's network. Written if there is one."""


class TableConfig(Section):
    """Settings of the training on a table; other data have no use for them."""

    conditions: float = Field(default=0.5, ge=0, le=1)
    """Share of the rows that are made under conditions which a real row meets; 0: no row can be
    asked for by conditions, such as a category or a range."""


class ServingConfig(Section):
    """Settings of the finished generator's forward; it is judged as it is served."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: weights and forward in bfloat16, which is slower on processors and GPUs without it. The
    difference to fp32 is measured and recorded."""
    device: Literal["cpu", "cuda"] = Field(default="cpu", exclude_if=lambda kind: kind == "cpu")
    """Where versions will serve. The rows of a forward are chosen for it when a version is made,
    for good: `engine.chunk`. Either kind runs the other's versions, only more slowly."""


class Config(Section):
    """Everything that decides a run; the saved run holds all of it, defaults included."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The registry name of the model."""
    data: DataConfig
    generator: GeneratorConfig
    critic: CriticConfig
    constraint: AnyConstraint
    training: TrainingConfig
    conditional: bool = False
    """Condition generator and critic on the class of each item; the data must have labels."""
    table: TableConfig | None = Field(default=None, exclude_if=lambda table: table is None)
    """Written if it is set, as the preset ``table`` sets it; None: as by default."""
    privacy: PrivacyConfig | None = Field(default=None, exclude_if=lambda privacy: privacy is None)
    """Written if it is set; None: training is not differentially private."""
    augmentation: AugmentationConfig | None = Field(default=None, exclude_if=lambda it: it is None)
    """Written if it is set; None: the critic sees images as they are."""
    selection: SelectionConfig | None = Field(default=None, exclude_if=lambda it: it is None)
    """Written if it is set; None: the networks of the last step are judged and served."""
    evaluation: EvaluationConfig = EvaluationConfig()
    serving: ServingConfig = ServingConfig()

    @property
    def conditions_share(self) -> float:
        """Share of a table's rows that are made under conditions while training."""
        return (self.table or TableConfig()).conditions

    @model_validator(mode="after")
    def _features_are_named(self) -> Self:
        chosen = self.evaluation
        given = {chosen.inception_weights is not None, chosen.inception_sha256 is not None}
        if given != {chosen.extractor == "inception"}:
            raise ValueError(
                "evaluation.extractor: 'inception' goes with evaluation.inception_weights and "
                "evaluation.inception_sha256: give all three, or none"
            )
        if (chosen.extractor == "onnx") != (chosen.onnx is not None):
            raise ValueError("evaluation.extractor: 'onnx' goes with evaluation.onnx: give both")
        return self

    @model_validator(mode="after")
    def _critic_fits_constraint(self) -> Self:
        if problem := misfit(self.constraint, self.constraint.kind, self.critic):
            raise ValueError(problem)
        if self.critic.minibatch_statistics and self.training.batch_size % GROUP:
            raise ValueError(
                f"training.batch_size: critic.minibatch_statistics are of groups of {GROUP} "
                f"samples; set a multiple of {GROUP}"
            )
        return self

    @model_validator(mode="after")
    def _what_is_rescaled_is_adam(self) -> Self:
        if self.constraint.adam_scale != 1 and self.training.optimizer == "rmsprop":
            raise ValueError(
                "constraint.rescale_adam: training.optimizer is rmsprop; set another, or leave it"
            )
        return self

    @model_validator(mode="after")
    def _its_activations_can_be_computed_anew(self) -> Self:
        if self.training.activation_checkpointing and self.constraint.joins_layers:
            raise ValueError(
                "training.activation_checkpointing: computes each layer anew by itself, but "
                f"{self.constraint.kind} makes weights of several layers' numbers; leave it out, "
                "or take cayley or bjorck"
            )
        return self

    @model_validator(mode="after")
    def _its_batches_can_be_split(self) -> Self:
        if self.training.micro_batch_size is None:
            return self
        reasons = [
            f"{part}.normalization: 'batch' takes statistics of a whole batch, and those of its "
            "parts would be another model's; use 'layer', 'instance' or 'none'"
            for part in self._normalised_by_batch
        ]
        if self.critic.minibatch_statistics:
            reasons.append("critic.minibatch_statistics: are of groups of a whole batch")
        if whole := self.constraint.needs_whole_batch():
            reasons.append(f"constraint {self.constraint.kind}: {whole}; use another")
        if reasons:
            raise ValueError(f"training.micro_batch_size: {'; '.join(reasons)}; or leave it out")
        return self

    @property
    def _normalised_by_batch(self) -> list[str]:
        """The networks whose results for an item depend on its batch."""
        networks = (("critic", self.critic), ("generator", self.generator))
        return [part for part, network in networks if network.normalization == "batch"]

    @model_validator(mode="after")
    def _has_items_to_select_by(self) -> Self:
        if self.selection is not None and not self.data.validation_fraction:
            raise ValueError(
                "selection: a step is chosen by items that are not trained on; set "
                "data.validation_fraction, such as 0.1"
            )
        return self

    @model_validator(mode="after")
    def _each_row_stays_apart(self) -> Self:
        """A row's share in a private step is bounded only if no other row's term depends on it."""
        if self.privacy is None:
            return self
        reasons = [
            f"{part}.normalization: 'batch' mixes the rows of a batch; use 'layer' or 'none'"
            for part in self._normalised_by_batch
        ]
        if self.critic.minibatch_statistics:
            reasons.append("critic.minibatch_statistics: mix the rows of a batch; leave them out")
        if mixing := self.constraint.mixes_samples():
            reasons.append(f"constraint {self.constraint.kind}: {mixing}; use another")
        if self.selection is not None:
            reasons.append(
                "selection: the choice tells of rows, and no noise hides it; leave it out"
            )
        if self.training.precision != "fp32":
            reasons.append("training.precision: only fp32 is private")
        if self.training.critic_step not in ("auto", "eager"):
            reasons.append("training.critic_step: a private step has one way only; leave it out")
        if self.training.micro_batch_size is not None or self.training.activation_checkpointing:
            reasons.append(
                "training.micro_batch_size, training.activation_checkpointing: a private step "
                "takes few rows at once anyway; leave them out"
            )
        if reasons:
            raise ValueError(f"privacy: {'; '.join(reasons)}")
        return self


def constraint_class(kind: str) -> type[AnyConstraint]:
    """Return the class of a constraint's kind.

    >>> constraint_class("gradient_penalty").__name__
    'GradientPenalty'

    Raises:
        ConfigError: there is no such kind; the message names the nearest.
    """
    if kind not in CONSTRAINTS:
        raise ConfigError(f"constraint.kind: no constraint '{kind}'{suggestion(kind, CONSTRAINTS)}")
    return CONSTRAINTS[kind]


def parse_config(values: dict[str, Any]) -> Config:
    """Build the configuration; the constraint's published settings complete the training section.

    Raises:
        ConfigError: one line that names each fault and, for an unknown key, the nearest known one.
    """
    constraint = values.get("constraint")
    training = values.get("training")
    if isinstance(constraint, dict) and isinstance(training, dict):
        published = constraint_class(str(constraint.get("kind", "none"))).published
        values = {**values, "training": {**published, **training}}
    return _validate(Config, values)


def parse_data(values: dict[str, Any]) -> DataConfig:
    """Build the data section alone.

    Raises:
        ConfigError: see `parse_config`.
    """
    return _validate(DataConfig, values, "data")


def _validate(model: type[M], values: dict[str, Any], *path: str) -> M:
    """Build a model, or name each fault by its key below ``path``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [{**e, "loc": (*path, *e["loc"])} for e in error.errors()]
        raise ConfigError(faults_in_words(faults, Config)) from None


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into one level of dotted keys: ``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def faults_in_words(faults: Iterable[Any], model: type[BaseModel]) -> str:
    """Put pydantic's errors in one line.

    Args:
        faults: each as `pydantic.ValidationError.errors` gives it.
        model: the one that was validated; for an unknown key the nearest of its keys is named.
    """
    return "; ".join(_in_words(fault, model) for fault in faults)


def _in_words(error: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    if location[:1] == ["constraint"] and len(location) > 1:
        fields = constraint_class(location.pop(1)).model_fields  # pydantic puts the kind there
    elif location[:2] == ["data", "columns"] and len(location) > 3:
        fields = ColumnConfig.model_fields
    elif location[:2] == ["data", "csv"] and len(location) > 2:
        fields = CsvConfig.model_fields
    elif location and location[0] in model.model_fields and len(location) > 1:
        section = model.model_fields[location[0]].annotation
        # A section that may be left out is a union with None.
        fields = next(
            (s.model_fields for s in (section, *get_args(section)) if hasattr(s, "model_fields")),
            {},
        )
    else:
        fields = model.model_fields
    path = ".".join(part if part.isprintable() else repr(part) for part in location)
    if error["type"] == "extra_forbidden":
        return f"{path}: no such key{suggestion(location[-1], fields)}"
    message = error["msg"].removeprefix("Value error, ")
    if not path or error["type"] == "missing":
        return f"{path}: {message}" if path else message
    return f"{path}: {message}, got {error['input']!r}"
