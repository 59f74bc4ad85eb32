"""Judging a finished model again, on its own held-out data or on others."""

from __future__ import annotations

from pathlib import Path

from models.artifact import load_artifact
from models.errors import UserError
from models.record import Results
from training.data.dataset import load_data
from training.judging.evaluate import judge
from training.judging.extractors import artifact_weights, load_extractor
from training.progress import phase


def evaluate_artifact(folder: Path, source: str | None = None) -> Results:
    """Judge an artifact's generator, over the features that it was judged over in its run.

    Args:
        folder: the artifact's.
        source: data to compare with, as ``data.source``; by default those it was trained on.

    Returns:
        Every figure with its floor and interval. On the same data, those of the run.

    Raises:
        UserError: the artifact or the data cannot be used, or do not fit each other.
    """
    model, weights = load_artifact(folder), artifact_weights(folder)
    config, judged = model.run.config, model.run.results.extractor
    source = source or config.data.source
    with phase("loading the data"):
        data = load_data(config.data.model_copy(update={"source": source}))
    if data.card.shape != model.shape:
        raise UserError(f"{source}: items of shape {data.card.shape}; the model's: {model.shape}")
    with phase("judging"):
        # The same features as in the run, or none: figures over others would not compare.
        extractor = (
            load_extractor(judged.name, config.evaluation, judged.sha256, weights)
            if judged
            else None
        )
        return judge(model, data, config.evaluation, extractor)
