"""A detector of what does not belong: how far an item lies from the data, and where in it.

How far: from the nearest training items, in the features below the critic's last layer. Where that
distance stands among those of held-out items is a conformal p-value (Vovk et al. 2005). Where: by
f-AnoGAN (Schlegl et al. 2019). An encoder E maps an item x to a latent, and the generator G makes
G(E(x)) of that, which differs from x where x is unlike the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from models.artifact import DETECTOR, read_detector, save_with_detector
from models.errors import ArtifactError, ShapeError
from models.model import Model
from models.networks import ARCHITECTURES, KINDS, Critic, CriticConfig, build_critic
from models.networks.conditional import ProjectionCritic
from models.networks.rows import RowCritic
from models.sampling import padded

Array = np.ndarray
ENCODER = "encoder."
CALIBRATION = "calibration"
REFERENCE = "reference"
NEIGHBOURS = 5
ROUNDING = 1e-5
"""Relative error of features, amply: float32, added up in another order."""
BLOCK = 500
"""Training items to which distances are computed at once: this bounds the memory."""
CARD = "card"


class DetectorCard(BaseModel, frozen=True, extra="forbid"):
    """What a detector was made of."""

    source: str
    """Of its data, as ``data.source``."""
    sha256: str
    """Hash of the data, as in the data card."""
    training_count: int
    """Items that the encoder was trained on."""
    calibration_count: int
    """Held-out items whose statistics give the p-values; none of them was trained on."""
    steps: int
    seed: int
    wgan_foundry: str
    """Version that made it."""


class Examination(NamedTuple):
    """What a detector finds in N items."""

    p_values: Array
    """float64 ``(N,)``, from ``1 / (n + 1)`` for n calibration items to 1; see
    `conformal_p_values`."""
    statistics: Array
    """float64 ``(N,)``: the mean distance from the `NEIGHBOURS` nearest training items, in the
    critic's features."""


def build_encoder(model: Model) -> nn.Sequential:
    """Build an encoder of a model's items: float32 ``(N, *shape)`` to latents ``(N, latent_size)``.

    It is like the model's critic, but for its last layer and whatever the constraint adds.
    """
    run = model.run
    config = CriticConfig(
        architecture=ARCHITECTURES[KINDS[len(model.shape)]][0],
        width=run.config.critic.width,
        depth=run.config.critic.depth,
    )
    critic = build_critic(config, model.shape)
    assert isinstance(critic, Critic)
    *layers, head = critic.body
    assert isinstance(head, nn.Linear)
    return nn.Sequential(*layers, type(head)(head.in_features, model.latent_size))


def critic_features(critic: nn.Module, samples: Tensor) -> Tensor:
    """What a critic's last layer takes of samples ``(N, *shape)``, in its units: ``(N, F)``."""
    inner = next(m for m in critic.modules() if isinstance(m, Critic | ProjectionCritic))
    if isinstance(inner, ProjectionCritic):
        features: Tensor = inner.features(samples)
        return features
    if isinstance(inner, RowCritic):
        samples = torch.cat([samples, samples.new_zeros(len(samples), inner.restriction_width)], 1)
    return inner.body[:-1](samples).flatten(1)


def conformal_p_values(statistics: Array, calibration: Array) -> Array:
    """Chances of statistics as large as these, if the items are like the calibration items.

    ``p = (1 + #{c >= s}) / (n + 1)`` for a statistic s and n calibration statistics c (Vovk,
    Gammerman & Shafer 2005, ch. 2). If the item and the calibration items are exchangeable,
    ``P(p <= a) <= a`` for every a, whatever their distribution; so a is the rate of false alarms.

    Args:
        statistics: ``(N,)``.
        calibration: ``(n,)``, ascending.

    Returns:
        float64 ``(N,)``.

    Example:
        >>> conformal_p_values(np.array([0.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])).tolist()
        [1.0, 0.75, 0.25]
    """
    at_least = len(calibration) - np.searchsorted(calibration, statistics, "left")
    return (1 + at_least) / (len(calibration) + 1)


class Detector:
    """A model's detector: `load_detector` loads one, `training.judging.detector` makes one.

    Args:
        model: whose generator and critic it uses.
        encoder: as `build_encoder` builds it, in eval mode, on the model's device.
        reference: features of training items, float32 ``(M, F)``, there too.
        calibration: statistics of held-out items, ascending, float64 ``(n,)``.
        card: what it was made of.
    """

    def __init__(
        self,
        model: Model,
        encoder: nn.Module,
        reference: Tensor,
        calibration: Array,
        card: DetectorCard,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.reference = reference
        self.calibration = calibration
        self.card = card
        self.rounding = ROUNDING * float(torch.linalg.vector_norm(reference, dim=1).max())
        """Distance up to which items may be equal."""

    def examine(self, items: Array) -> Examination:
        """Say how strange items are, whatever their classes.

        Args:
            items: as `Model.items`, `Model.resized` or `Model.codes` returned them.

        Raises:
            ShapeError: the items are so large that the statistics are not finite.
        """
        statistics = feature_distances(self.model, self.reference, items)
        _require_finite(statistics)
        # Items that are equal are as far, though another processor may round them to be farther.
        p_values = conformal_p_values(statistics - self.rounding, self.calibration)
        return Examination(p_values, statistics)

    def residuals(self, items: Array, labels: Array | None = None) -> Array:
        """Say where items are strange: how they differ from what the generator makes of them.

        Args:
            items: as for `examine`.
            labels: int64 ``(N,)``, if the model is class-conditional.

        Returns:
            Squared differences in the critic's units: float32 ``(N, H, W)`` of images, means over
            channels; otherwise ``(N, *shape)``.

        Raises:
            ClassError: see `Model.require_labels`.
            ShapeError: the items are so large that the differences are not finite.
        """
        self.model.require_labels(len(items), labels)
        residuals = squared_residuals(self.model, self.encoder, items, labels)
        _require_finite(residuals)
        return residuals

    def save(self, artifact: Path, folder: Path) -> None:
        """Write a copy of the model's artifact with the detector to a folder."""
        tensors = {f"{ENCODER}{name}": t for name, t in self.encoder.state_dict().items()}
        tensors |= {CALIBRATION: torch.from_numpy(self.calibration), REFERENCE: self.reference}
        card = {CARD: self.card.model_dump_json()}
        save_with_detector(artifact, self.model.digest, folder, tensors, card)

    def blame(self, residuals: Array) -> dict[str, Array]:
        """Share of each column of a table in the residuals ``(N, width)`` of rows: ``(N,)``."""
        schema = self.model.table
        assert schema is not None, "other data have no columns"
        whole, shares = residuals.sum(axis=1), {}
        for column, code, _ in schema.placed():
            own = residuals[:, code].sum(axis=1)
            shares[column.name] = np.divide(own, whole, out=np.zeros_like(own), where=whole > 0)
        return shares


def reconstruct(model: Model, encoder: nn.Module, x: Tensor, labels: Tensor | None) -> Tensor:
    """What the generator makes of the latents that the encoder gives ``(N, *shape)``."""
    made: Tensor = model.generator(encoder(x), *([] if labels is None else [labels]))
    return made


@torch.inference_mode()
def item_features(model: Model, items: Array) -> Tensor:
    """The critic's features of items in data units, float32 ``(N, F)``, on the model's device."""
    chunk, found = model.run.engine.chunk, []
    for first in range(0, len(items), chunk):
        part = torch.from_numpy(padded(items, first, chunk)).to(model.device)
        found.append(critic_features(model.critic, model.scaling.to_model(part)))
    return torch.cat(found)[: len(items)]


@torch.inference_mode()
def feature_distances(model: Model, reference: Tensor, items: Array) -> Array:
    """Mean distance of items from the nearest of some features ``(M, F)``: float64 ``(N,)``."""
    found = []
    for features in torch.split(item_features(model, items), model.run.engine.chunk):
        exact = features.double()
        parts = [torch.cdist(exact, known.double()) for known in torch.split(reference, BLOCK)]
        count = min(NEIGHBOURS, len(reference))
        nearest = torch.cat(parts, dim=1).topk(count, dim=1, largest=False).values
        found.append(nearest.mean(dim=1))
    return torch.cat(found).cpu().numpy()


@torch.inference_mode()
def squared_residuals(
    model: Model, encoder: nn.Module, items: Array, labels: Array | None = None
) -> Array:
    """How items differ from what the generator makes of them; see `Detector.residuals`."""
    chunk, found = model.run.engine.chunk, []
    for first in range(0, len(items), chunk):
        part = torch.from_numpy(padded(items, first, chunk)).to(model.device)
        x, y = model.scaling.to_model(part), None
        if labels is not None:
            y = torch.from_numpy(padded(labels, first, chunk)).to(model.device)
        residual = (reconstruct(model, encoder, x, y) - x).square()
        found.append((residual.mean(dim=1) if model.is_image else residual).cpu().numpy())
    return np.concatenate(found)[: len(items)]


def load_detector(folder: Path, model: Model) -> Detector | None:
    """Load the detector of an artifact; None if it has none.

    Args:
        folder: the artifact's, from which the model was loaded.
        model: on whose device the encoder goes.

    Raises:
        ArtifactError: the detector is missing, has changed since the model was loaded, or does not
            fit the model.
    """
    content = read_detector(folder, model.digest)
    if content is None:
        return None
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        card = DetectorCard.model_validate_json(header.get("__metadata__", {}).get(CARD, ""))
        calibration = tensors.pop(CALIBRATION).numpy()
        reference = tensors.pop(REFERENCE).to(model.device)
        encoder = build_encoder(model)
        weights = {name.removeprefix(ENCODER): tensor for name, tensor in tensors.items()}
        encoder.load_state_dict(weights)
        encoder.to(model.device).eval().requires_grad_(False)
        _require_fitting(model, reference, calibration)
    except (SafetensorError, ValidationError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{folder / DETECTOR}: is no detector of this model ({reason})"
        ) from None
    return Detector(model, encoder, reference, calibration, card)


def _require_finite(found: Array) -> None:
    if not np.isfinite(found).all():
        raise ShapeError("the items are so large that what is found is not finite")


def _require_fitting(model: Model, reference: Tensor, calibration: Array) -> None:
    """Require what the statistics and p-values need.

    Raises:
        ValueError: it is not that.
    """
    item = torch.zeros(1, *model.shape, device=model.device)
    with torch.inference_mode():
        size = critic_features(model.critic, item).shape[1]
    if reference.shape[1:] != (size,) or not len(reference) or not reference.isfinite().all():
        raise ValueError(f"{REFERENCE} is not {size} finite features of each training item")
    if calibration.ndim != 1 or not len(calibration) or not np.isfinite(calibration).all():
        raise ValueError(f"{CALIBRATION} is not one finite statistic of each held-out item")
    if (np.diff(calibration) < 0).any():
        raise ValueError(f"{CALIBRATION} is not ascending")
