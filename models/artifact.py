"""The artifact: a folder of safetensors, JSON and checksums that is all a service needs.

Nothing in it is ever unpickled, and nothing is read before its checksum is verified.
`docs/artifact.md` describes each file and every field of `run.json`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import refinement, sampling
from models.config import Config
from models.errors import ArtifactError, ClassError, ConfigError, ShapeError
from models.folding import InHalf, channels_last, fold
from models.images import MODES, fit
from models.networks import Shape, build_critic, build_generator

Array = np.ndarray
SUMS = "SHA256SUMS"
RUN = "run.json"
GENERATOR = "generator.safetensors"
CRITIC = "critic.safetensors"
TRAINING_STATE = "training_state.safetensors"
QUANTILES = "score_quantiles.json"
GRID = "samples.png"
CARD = "MODEL_CARD.md"
FILES = (RUN, GENERATOR, CRITIC, TRAINING_STATE, QUANTILES, GRID, CARD)
QUANTILE_LEVELS = np.linspace(0, 1, 1001)
REFERENCE = 64
"""Latents that the typical slope of a refined generator is found at."""
COMPARED = 256
"""Samples that an engine's error is measured on."""
SCORED = 10_000
"""Held-out items whose scores the quantiles are of, at most."""


class DataCard(BaseModel):
    """What the model was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    licence: str | None
    kind: Literal["image", "vector", "sequence"]
    shape: tuple[int, ...]
    """Of one item as the critic takes it: (C, H, W), (D,) or (T, D)."""
    classes: list[str] = []
    """Names of the classes, by label; empty without labels."""
    class_counts: list[int] = []
    """Training items of each class, by label."""
    columns: list[str] = []
    """Names of a table's columns; empty for other data."""
    count: int
    skipped: int = 0
    """Image files that could not be decoded; `count` is without them."""
    training_count: int
    heldout_count: int
    heldout_fraction: float
    sha256: str
    """Over the sorted hashes of the items: the order of the items does not matter."""
    offset: list[float]
    """Subtracted from each feature, which is then divided by `scale`. Images: empty."""
    scale: list[float]


class ConstraintCard(BaseModel):
    """The constraint as served metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    hyperparameters: dict[str, Any]
    guarantee: str


class Engine(BaseModel):
    """What runs the generator's forward; chosen once, when the version is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["torch", "torch-folded", "torch-channels-last"] = "torch"
    """The generator as it was trained; as `folding.fold` makes it; or that on channels-last maps.
    Each rounds in its own way: a version keeps the one that it was made with."""
    precision: Literal["fp32", "bf16"] = "fp32"
    chunk: int = sampling.CHUNK
    mean_error: float | None = None
    """How far its samples lie from those of the generator as it was trained: see `Model.error`."""
    max_error: float | None = None


class Figure(BaseModel):
    """One measured quality beside its floor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    floor: float | None
    """The same figure for real training data in place of generated samples, at the same n."""
    interval: tuple[float, float]
    """95%, by half samples drawn without replacement."""
    n: int
    better: Literal["lower", "higher"]


class Extractor(BaseModel):
    """The features that image figures were computed over; other features, other figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str


class Results(BaseModel):
    """What judging on held-out data gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    extractor: Extractor | None
    figures: dict[str, Figure]


class Run(BaseModel):
    """`run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    created: str
    config: Config
    constraint: ConstraintCard
    data: DataCard
    provenance: dict[str, Any]
    results: Results
    engine: Engine = Engine()
    lipschitz: dict[str, Any] = Field(default_factory=dict)
    findings: list[dict[str, Any]] = Field(default_factory=list)
    history: list[dict[str, float]] = Field(default_factory=list)


class Model:
    """A loaded artifact: generator, critic and their record, ready to sample and score."""

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
        forward = generator if run.engine.name == "torch" else fold(generator)
        if run.engine.name == "torch-channels-last":
            forward = channels_last(forward)
        self.forward = InHalf(forward) if run.engine.precision == "bf16" else forward
        """What samples are made with: the generator as the record's engine has it."""
        self.critic = critic
        self.quantiles = quantiles
        """Scores of real held-out items at `QUANTILE_LEVELS`."""
        self.digest = digest
        """SHA-256 of the checksum file, so of everything."""
        self.picture = picture
        """PNG of samples, drawn when the artifact was made."""
        self.shape: Shape = run.data.shape
        self.latent_size = run.config.generator.latent_size
        self.certified: float | None = run.lipschitz.get("certified")
        """An upper bound on the critic's Lipschitz constant, where an honest one exists."""
        self.is_image = run.data.kind == "image"
        self.scaling = sampling.Scaling(run.data.shape, run.data.offset, run.data.scale)
        self.classes = run.data.classes if run.config.conditional else []
        """Names, by label, of what a class-conditional model can be asked for; else empty."""

    @functools.cached_property
    def refined(self) -> Model:
        """The same, but its generator is guided by the critic: see `refinement.Refined`."""
        labels = self.labels(0, REFERENCE)
        given = [] if labels is None else [torch.from_numpy(labels)]
        z, *given = (
            x.to(next(self.forward.parameters()).device)
            for x in (torch.from_numpy(self.latents(0, REFERENCE)), *given)
        )
        guided = copy.copy(self)
        guided.forward = refinement.Refined(self.forward, self.critic, z, *given)
        return guided

    def label(self, name: str) -> int:
        """The label of a class.

        Raises:
            ClassError: the model has no such class, or none at all.
        """
        if not self.classes:
            raise ClassError("the model is not class-conditional; leave out the class")
        if name not in self.classes:
            raise ClassError(f"no class '{name[:100]}'; there are: {', '.join(self.classes)}")
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
        """Latents of a seed, float32 ``(count, latent_size)``; see `sampling.truncate`."""
        z = sampling.latents(seed, start, count, self.latent_size)
        return z if truncation is None else sampling.truncate(z, truncation)

    def samples(
        self,
        seed: int,
        count: int,
        start: int = 0,
        label: int | Array | None = None,
        truncation: float | None = None,
    ) -> Iterator[Array]:
        """Yield samples of a seed in parts; see `sampling.generate`.

        ``label`` is of all of them, or of each, ``(count,)``; without it, see `labels`.
        """
        if label is None:
            label = self.labels(seed, count, start)

        def draw(first: int, rows: int) -> Array:
            return self.latents(seed, rows, first, truncation)

        return self._generate(draw, count, start, label)

    def decode(self, latents: Array, label: int | Array | None = None) -> Iterator[Array]:
        """Yield the samples of given latents, float32 ``(N, latent_size)``, in parts.

        Raises:
            ShapeError: latents of another size.
            ClassError: a class-conditional model needs the label, of all or ``(N,)`` of each.
        """
        count, size = len(latents), self.latent_size
        if latents.shape != (count, size):
            raise ShapeError(f"the model takes latents of shape (N, {size}), not {latents.shape}")
        if self.classes and label is None:
            raise ClassError("the model is class-conditional; give the class of the latents")

        def draw(first: int, rows: int) -> Array:
            part = latents[first : first + rows]
            return np.pad(part, ((0, rows - len(part)), (0, 0)))

        return self._generate(draw, count, 0, label)

    def walk(
        self,
        seed: int,
        to: int,
        at: Array,
        label: int | None = None,
        truncation: float | None = None,
    ) -> Iterator[Array]:
        """Yield samples between the first of one seed and the first of another, in parts.

        ``at``, ``(N,)`` from 0 to 1, says where; see `sampling.slerp`. One walk is of one class:
        without ``label``, of that of its first seed's sample.
        """
        first, last = (self.latents(s, 1, truncation=truncation)[0] for s in (seed, to))
        if label is None and (labels := self.labels(seed, 1)) is not None:
            label = int(labels[0])
        return self.decode(sampling.slerp(first, last, at), label)

    def error(self, seed: int = 0, count: int = COMPARED) -> tuple[float, float]:
        """How far the engine's samples lie from those of the generator as it was trained.

        Returns:
            Mean and largest over all values: in grey levels (0 to 255) of images, else in the
            standard deviations of each feature.
        """
        plain = copy.copy(self)
        plain.forward = self.generator
        ours, theirs = (m.sample(seed, count).astype(np.float64) for m in (self, plain))
        apart = np.abs(ours - theirs)
        if not self.is_image:
            apart /= self.run.data.scale
        return float(apart.mean()), float(apart.max())

    def _generate(
        self, draw: Callable[[int, int], Array], count: int, start: int, label: int | Array | None
    ) -> Iterator[Array]:
        labels = None
        if label is not None:
            if not self.classes:
                raise ClassError("the model is not class-conditional; leave out the class")
            labels = np.broadcast_to(np.asarray(label, np.int64), (count,))
        return sampling.generate(self.forward, self.scaling, draw, count, start, labels)

    def sample(self, seed: int, count: int, label: int | Array | None = None) -> Array:
        """Return samples of a seed: uint8 ``(N, H, W, C)`` or float32 ``(N, *shape)``."""
        return np.concatenate(list(self.samples(seed, count, label=label)))

    def items(self, values: Array) -> Array:
        """Check values against the model's shape and bring them to its data units.

        Args:
            values: ``(N, H, W, C)``, or ``(N, H, W)`` where C is 1, of whole numbers 0 to 255;
                or ``(N, D)`` or ``(N, T, D)`` of finite numbers.

        Returns:
            uint8 ``(N, H, W, C)`` or float32 ``(N, *shape)``.

        Raises:
            ShapeError: they are not that; says what is expected.
        """
        expected = (*self.shape[1:], self.shape[0]) if self.is_image else self.shape
        if self.is_image and expected[-1] == 1 and values.ndim == 3:
            values = values[..., None]
        if values.ndim != len(expected) + 1 or values.shape[1:] != expected or not len(values):
            wanted = ", ".join(map(str, ("N", *expected)))
            raise ShapeError(f"the model takes items of shape ({wanted}), not {values.shape}")
        if self.is_image:
            return _pixels(values)
        with np.errstate(over="ignore"):
            vectors = _numbers(values).astype(np.float32)
        if not np.isfinite(vectors).all():
            raise ShapeError("the items hold values too large for float32")
        return vectors

    def resized(self, values: Array) -> Array:
        """Bring images of any size to the model's size and channels; see `images.fit`.

        Args:
            values: ``(N, H, W)`` or ``(N, H, W, C)``, C of 1 to 4, whole numbers 0 to 255.

        Returns:
            uint8 ``(N, H, W, C)``, as `items` does.

        Raises:
            ShapeError: they are not that, or the model does not take images.
        """
        if not self.is_image:
            raise ShapeError("the model does not take images, which alone can be resized")
        if values.ndim == 3:
            values = values[..., None]
        if values.ndim != 4 or not values.size or values.shape[3] not in MODES:
            raise ShapeError(f"images have the shape (N, H, W, 1 to 4), not {values.shape}")
        channels, height, width = self.shape
        return np.stack([fit(image, height, width, channels) for image in _pixels(values)])

    def score(self, items: Array, labels: Array | None = None) -> Array:
        """Score what `items` returned; float32 ``(N,)``, unbounded, higher is more like real.

        Raises:
            ClassError: see `require_labels`.
        """
        self.require_labels(len(items), labels)
        return sampling.score(self.critic, self.scaling, items, labels)

    def require_labels(self, count: int, labels: Array | None) -> None:
        """Check that labels, int64 ``(count,)``, are there if the model is class-conditional.

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
        """Whether scores ``(N,)`` lie outside all those of real held-out items."""
        return (scores < self.quantiles[0]) | (scores > self.quantiles[-1])

    def percentiles(self, scores: Array) -> Array:
        """Where scores ``(N,)`` stand among those of real held-out items, 0 to 100."""
        return np.interp(scores, self.quantiles, 100 * QUANTILE_LEVELS)


def _numbers(values: Array) -> Array:
    if values.dtype.kind not in "uif":
        raise ShapeError(f"the model takes numbers, not {values.dtype}")
    if not np.isfinite(values).all():
        raise ShapeError("the items hold NaN or infinite values")
    return values


def _pixels(values: Array) -> Array:
    values = _numbers(values)
    if values.min() < 0 or values.max() > 255 or (values % 1).any():
        raise ShapeError("pixels are whole numbers from 0 to 255")
    return values.astype(np.uint8)


def build_networks(
    config: Config, shape: Shape, num_classes: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Build a new generator, and a critic as its constraint prepares it.

    Args:
        config: of the run.
        shape: of one item.
        num_classes: of the data; 0 if it has no labels.

    Raises:
        ConfigError: a network does not fit the data.
    """
    if config.conditional and not num_classes:
        raise ConfigError("conditional: the data has no labels; leave it out")
    classes = num_classes if config.conditional else 0
    generator = build_generator(config.generator, shape, classes)
    critic = build_critic(config.critic, shape, classes)
    return generator, config.constraint.before_training(critic)


def constraint_card(config: Config) -> ConstraintCard:
    """Describe the configured constraint."""
    constraint = config.constraint
    return ConstraintCard(
        kind=constraint.kind,
        hyperparameters=constraint.model_dump(mode="json", exclude={"kind"}),
        guarantee=constraint.guarantee,
    )


def save_artifact(
    folder: Path,
    run: Run,
    generator: nn.Module,
    critic: nn.Module,
    training_state: Mapping[str, Tensor],
    quantiles: Array,
    grid_png: bytes,
    card: str,
) -> None:
    """Write an artifact so that it appears whole or not at all; replaces an older one.

    Args:
        folder: where it shall be.
        run: its record.
        generator: as served (the moving average).
        critic: with whatever the constraint wrapped around it.
        training_state: what a later run could start from, by name.
        quantiles: scores of real held-out items at `QUANTILE_LEVELS`.
        grid_png: a picture of samples.
        card: the model card, Markdown.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new.chmod(0o755)
        (new / RUN).write_text(run.model_dump_json(indent=2) + "\n")
        for name, tensors in (
            (GENERATOR, generator.state_dict()),
            (CRITIC, critic.state_dict()),
            (TRAINING_STATE, training_state),
        ):
            save_file(_plain(tensors), new / name)
            (new / name).chmod(0o644)  # safetensors makes files that only their owner can read
        (new / QUANTILES).write_text(json.dumps({"scores": quantiles.tolist()}) + "\n")
        (new / GRID).write_bytes(grid_png)
        (new / CARD).write_text(card)
        (new / SUMS).write_text("".join(f"{_sha256(new / name)}  {name}\n" for name in FILES))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def verify(folder: Path) -> str:
    """Check every file of an artifact against its checksum.

    Returns:
        The artifact's digest: the SHA-256 of its checksum file, in hex.

    Raises:
        ArtifactError: names the file that is missing, changed, truncated or foreign.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise ArtifactError(f"{folder}: not an artifact (it has no {SUMS})")
    content = sums.read_bytes()
    try:
        lines = [line.split("  ", 1) for line in content.decode("ascii").splitlines()]
        expected = {name: digest for digest, name in lines}
    except ValueError:
        raise ArtifactError(f"{sums}: not a list of SHA-256 sums") from None
    for name in FILES:
        if name not in expected:
            raise ArtifactError(f"{sums}: has no sum for {name}")
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name}: missing; copy the artifact again")
        if _sha256(folder / name) != expected[name]:
            raise ArtifactError(
                f"{folder / name}: changed or truncated (its SHA-256 is not the one in {SUMS}); "
                "copy the artifact again"
            )
    foreign = sorted({p.name for p in folder.iterdir()} - {*FILES, SUMS})
    if foreign or set(expected) != set(FILES):
        name = (foreign or sorted(set(expected) - set(FILES)))[0]
        raise ArtifactError(f"{folder / name}: does not belong to an artifact; remove it")
    return hashlib.sha256(content).hexdigest()


def load_artifact(folder: Path, device: torch.device | str = "cpu") -> Model:
    """Verify an artifact and load it.

    Raises:
        ArtifactError: a file is missing, changed, foreign, or does not fit the others.
    """
    digest = verify(folder)
    try:
        run = Run.model_validate_json((folder / RUN).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{folder / RUN}: {where}: {first['msg']}; was it made by another version of wgan?"
        ) from None
    generator, critic = build_networks(run.config, run.data.shape, len(run.data.classes))
    for network, name in ((generator, GENERATOR), (critic, CRITIC)):
        try:
            network.load_state_dict(load_file(folder / name))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(
                f"{folder / name}: does not fit the networks in {RUN} ({reason})"
            ) from None
        network.to(device).eval().requires_grad_(False)
    broken = run.config.constraint.broken_claim(critic)
    if broken:
        raise ArtifactError(
            f"{folder / CRITIC}: not a critic under {run.constraint.kind}, as {RUN} says: {broken}"
        )
    quantiles = np.array(json.loads((folder / QUANTILES).read_text())["scores"])
    return Model(run, generator, critic, quantiles, digest, (folder / GRID).read_bytes())


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
