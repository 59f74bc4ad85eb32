"""Making a detector of what does not belong: its encoder, and the p-values' calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import __version__
from models.artifact import MAX_SCORED_ITEMS, load_artifact
from models.detector import (
    Detector,
    DetectorCard,
    build_encoder,
    critic_features,
    feature_distances,
    item_features,
    reconstruct,
)
from models.device import require_device
from models.errors import DataError, UserError
from models.model import Model
from models.outputs import require_new, writing
from models.record import DataCard
from training.data.dataset import Dataset, load_data
from training.progress import phase, silent, track

Array = np.ndarray
MAX_REFERENCE = 5000
"""Training items whose features are kept."""
BATCH_SIZE = 64
LEARNING_RATE = 1e-3


def train_detector(
    folder: Path,
    out: Path,
    source: str | None = None,
    steps: int = 600,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = silent,
) -> Detector:
    """Make a detector for a model, and write a copy of the model's artifact with it.

    The items that are held out of the model's training calibrate it, and are not trained on.

    Args:
        folder: the model's artifact.
        out: folder of the copy.
        source: data, as ``data.source``; by default those that the model was trained on.
        steps: of the encoder.
        seed: of everything random.
        device: ``cpu`` or ``cuda``.
        say: takes a line for each thing that the user should know of how the data were read.

    Raises:
        UserError: ``out`` is there or cannot be written, the model is differentially private, the
            artifact or the data cannot be used, or they do not fit each other.
    """
    require_new(out)
    model = load_artifact(folder, require_device(device))
    config, card = model.run.config.data, model.run.data
    if model.run.privacy is not None:
        raise UserError(
            f"{folder}: is differentially private, and a detector would learn from its rows "
            "without that guarantee; train it with a model of data that may be known"
        )
    source = source or config.source
    with phase("loading the data"):
        # Held as the model's data, which decides what is held out.
        data = load_data(config.of(source), card=card)
    for note in data.notes:
        say(f"{source}: {note}")
    if data.card.shape != model.shape:
        raise DataError(f"{source}: items of shape {data.card.shape}; the model's: {model.shape}")
    if model.classes and data.card.classes != card.classes:
        raise DataError(f"{source}: has not the model's classes: {', '.join(card.classes)}")
    require_split(source, data.card, card, say)
    detector = fit_detector(model, data, steps, seed)
    with writing(out):
        detector.save(folder, out)
    return detector


def require_split(
    source: str, card: DataCard, trained: DataCard, say: Callable[[str], None]
) -> None:
    """Require that what calibrates was not trained on, as far as that is known.

    Args:
        source: of the data, for messages.
        card: of the data.
        trained: of the data that the model was trained on.
        say: takes a warning, if the data are others.

    Raises:
        DataError: of the same items, others were held out when the model was trained.
    """
    if card.sha256 != trained.sha256:
        say(
            f"warning: {source}: not the data that the model was trained on; the p-values hold if "
            "it was trained on none of the items that are held out here"
        )
    elif card.heldout_count != trained.heldout_count:
        raise DataError(
            f"{source}: {card.heldout_count} items are held out here, and {trained.heldout_count} "
            "of the same were when the model was trained, so it knows some that would calibrate; "
            "bring the data in the folders that they lay in"
        )


def fit_detector(model: Model, data: Dataset, steps: int = 600, seed: int = 0) -> Detector:
    """Make a detector of the training items, and calibrate it by the held-out ones.

    Args:
        model: stays as it is.
        data: of the model's shape, and of its classes if it is class-conditional; at most
            `MAX_SCORED_ITEMS` held-out items, and features of `MAX_REFERENCE` others, are used.
        steps: of the encoder.
        seed: of everything random.
    """
    encoder = train_encoder(model, data, steps, seed)
    reference = item_features(model, data.sample(MAX_REFERENCE, heldout=False))
    heldout = data.sample(MAX_SCORED_ITEMS, heldout=True)
    statistics = feature_distances(model, reference, heldout)
    card = DetectorCard(
        source=data.card.source,
        sha256=data.card.sha256,
        training_count=data.card.training_count,
        calibration_count=len(heldout),
        steps=steps,
        seed=seed,
        wgan_foundry=__version__,
    )
    return Detector(model, encoder, reference, np.sort(statistics), card)


def train_encoder(model: Model, data: Dataset, steps: int, seed: int) -> nn.Module:
    """Train an encoder against the frozen generator: f-AnoGAN's izi_f (Schlegl et al. 2019, eq. 4).

    The loss is the mean squared residual plus that of the critic's features, both weighted alike.
    Adam, with a rate that falls to zero along a cosine.

    Args:
        model: stays as it is.
        data: its training items are trained on.
        steps: number of batches.
        seed: of everything random.

    Returns:
        The encoder, in eval mode, on the model's device.
    """
    training = np.flatnonzero(data.is_training)
    source, device = np.random.default_rng(seed), model.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(model).to(device)
    optimizer = torch.optim.Adam(encoder.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in track(range(steps), "training an encoder"):
        chosen = source.choice(training, BATCH_SIZE)
        x = model.scaling.to_model(torch.from_numpy(data.items_at(chosen)).to(device))
        labels: Tensor | None = None
        if model.classes and data.labels is not None:
            labels = torch.from_numpy(data.labels[chosen]).to(device)
        made = reconstruct(model, encoder, x, labels)
        features = critic_features(model.critic, x)
        loss = F.mse_loss(made, x) + F.mse_loss(critic_features(model.critic, made), features)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
        schedule.step()
    return encoder.eval()
