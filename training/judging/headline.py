"""The figure that decides, of a generator that is still being trained."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from models.config import Config
from models.sampling import latents
from training.data.dataset import Dataset
from training.judging.extractors import FeatureExtractor
from training.judging.figures import FIGURES, distance, headlines
from training.judging.tables.rows import comparable_codes

MAX_COMPARED_SAMPLES = 1000
"""Samples, at most, that such a measurement takes."""


def headline(
    config: Config,
    data: Dataset,
    generator: nn.Module,
    extractor: FeatureExtractor | None,
    count: int = MAX_COMPARED_SAMPLES,
) -> float:
    """The figure of `headline_and_error` alone."""
    return headline_and_error(config, data, generator, extractor, count)[0]


@torch.no_grad()
def headline_and_error(
    config: Config,
    data: Dataset,
    generator: nn.Module,
    extractor: FeatureExtractor | None,
    count: int = MAX_COMPARED_SAMPLES,
) -> tuple[float, float]:
    """The figure that decides, from samples and as many held-out items; it draws nothing at random.

    Args:
        config: the run's.
        data: what it trains on.
        generator: the moving average; not changed.
        extractor: the features to compare images over; None for other data.
        count: samples, at most.

    Returns:
        The first of `headlines` for the data; lower is better; NaN if samples are not finite. And
        its standard error; 0 where the figure has none.
    """
    indices = data.sample_indices(count, heldout=True)
    real = data.items_at(indices)
    device = next(generator.parameters()).device
    z = torch.from_numpy(latents(0, 0, len(real), config.generator.latent_size)).to(device)
    labels = []
    if config.conditional and data.labels is not None:
        labels = [torch.from_numpy(data.labels[indices]).to(device)]
    fake = copy.deepcopy(generator).eval()(z, *labels).cpu()
    if not torch.isfinite(fake).all():
        return math.nan, 0.0
    if data.card.table is not None:
        points, samples = (comparable_codes(x, data.card.table) for x in (real, fake.numpy()))
    elif extractor is not None:
        made = data.scaling.to_data(fake).numpy()
        points, samples = (extractor(data.scaling.to_levels(x)) for x in (real, made))
    else:
        points = data.scaling.to_model(torch.from_numpy(real)).flatten(1).double().numpy()
        samples = fake.flatten(1).double().numpy()
    figure = headlines(data.card)[0]
    find_error = FIGURES[figure].standard_error
    error = 0.0 if find_error is None else find_error(points, samples)
    return distance(figure, points, samples), error
