"""Critics fitted to a fixed generator: surfaces, what trains, and what moments a critic sees."""

from __future__ import annotations

import base64
import copy
import itertools
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from models.config import Config, DataConfig, parse_config
from models.constraints import WeightClipping
from models.errors import ConfigError
from models.images import encode_small_png
from models.lipschitz import gradient_norms, interpolate
from models.networks import build_critic
from training.data.dataset import Dataset, load_data
from training.judging.doctor.subject import TINY
from training.judging.metrics import wasserstein_1
from training.lab.fitting import Recipe, fit
from training.lab.samples import sampler
from training.lab.study.settings import (
    DATA_SETS,
    DEPTHS,
    GRID_CONSTRAINTS,
    MOMENT_CONSTRAINTS,
    NORMALIZATIONS,
    RECURRENT_STEPS,
    SURFACE_CONSTRAINTS,
    Scale,
    Values,
    jobs,
    name_of,
)
from training.reporting.pictures import surface

Array = np.ndarray
BATCH = {"surface": 128, "grid": 64, "moments": 256}
RATE = 2e-3
"""Learning rate of critics of three layers; deep ones take half of it."""
MAX_MEASURED, MAX_TRANSPORTED = 10_000, 2000
"""Pairs of items that gaps and slopes, and exact distances, are measured on: the latter is then
within some 2% in the plane."""


def with_noise(items: Tensor, seed: int) -> Tensor:
    """Move each item by standard normal noise: the samples of a fixed generator.

    Args:
        items: ``(N, D)`` or ``(N, T, D)``; in a sequence each step is the same point, and so is its
            noise.
        seed: of the noise.
    """
    source = torch.Generator().manual_seed(seed)
    shape = (len(items), *[1] * (items.dim() - 2), items.shape[-1])
    return items + torch.randn(shape, generator=source)


def _config(source: str, critic: Values, constraint: Values) -> Config:
    """The configuration of a critic; nothing is trained by it, so the rest does not matter."""
    return parse_config(
        {
            "name": "study",
            "data": {"source": source},
            "generator": {"architecture": critic.get("architecture", "mlp"), "latent_size": 4},
            "critic": {"activation": "relu", **critic},
            "constraint": constraint,
            "training": {"steps": 1},
        }
    )


class Fit(NamedTuple):
    """A critic fitted against a fixed generator, with the data of both."""

    data: Dataset
    items: Tensor
    noisy: Tensor
    critic: nn.Module
    saturated: Values
    """Shares of a clipped critic's weights at or beyond a bound, before and after; else empty."""


def _fit(job: Values) -> Fit:
    config = _config(job["source"], job["critic"], job["constraint"])
    data = load_data(config.data)
    items = data.scaling.to_model(torch.from_numpy(data.training))
    noisy = with_noise(items, job["seed"])
    draw = sampler(items, noisy, job["batch"], job["seed"])
    rate = RATE if config.critic.depth < 4 else RATE / 2
    recipe = Recipe(config.constraint, config.critic, rate)
    critic = fit(draw, data.card.shape, recipe, job["steps"], job["seed"])
    saturated = {}
    if isinstance(config.constraint, WeightClipping):
        torch.manual_seed(job["seed"])
        start = build_critic(config.critic, data.card.shape)
        saturated = {
            "saturated_at_start": _saturated(config.constraint, start),
            "saturated": _saturated(config.constraint, critic),
        }
    return Fit(data, items, noisy, critic, saturated)


def _saturated(constraint: WeightClipping, critic: nn.Module) -> float:
    """Share of the clipped weights within 1% of a bound, or beyond it."""
    relative = torch.cat([(w.detach() / c).abs().flatten() for w, c in constraint.clipped(critic)])
    return (relative >= 0.99).double().mean().item()


def _measure(fitted: Fit) -> Values:
    """Measure the share of the exact distance that the critic found, and its gradient norm.

    The distance found is the critic's gap over its slope, the 95% quantile of its gradient norm
    between real and noisy items, so a critic is not blamed for its scale. Batch normalisation gets
    the statistics of all these items, because those it kept belong to weights before averaging.
    """
    source = torch.Generator().manual_seed(0)
    order = torch.randperm(len(fitted.items), generator=source)[:MAX_MEASURED]
    real, noisy = fitted.items[order], fitted.noisy[order]
    few = real[:MAX_TRANSPORTED], noisy[-MAX_TRANSPORTED:]
    distance = wasserstein_1(*(x.flatten(1).double().numpy() for x in few))
    torch.manual_seed(0)
    between = interpolate(real, noisy[torch.randperm(len(noisy))])
    # In float64: where a deep critic hardly changes, float32 would give the rounding of its scores.
    critic = copy.deepcopy(fitted.critic).double()
    real, noisy, between = real.double(), noisy.double(), between.double()
    norms = [m for m in critic.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm_layer in norms:
        norm_layer.reset_running_stats()
        norm_layer.momentum = None  # a plain mean
    with torch.no_grad():
        if norms:
            critic.train()(torch.cat([real, noisy]))
        critic.eval()
        gap = (critic(real).mean() - critic(noisy).mean()).item()
    slopes = gradient_norms(critic, between)
    return {
        "found": gap / max(torch.quantile(slopes, 0.95).item(), TINY) / distance,
        "decades": math.log10(max(slopes.mean().item(), TINY)),
        "far": ((slopes < 0.5) | (slopes > 2)).double().mean().item(),
        **fitted.saturated,
    }


def surface_jobs(scale: Scale) -> dict[str, Values]:
    """The critics of claims 1, 3 and 7, for `fit_surface`."""
    fits = {
        f"{source}-{name_of(constraint)}": {
            "source": source,
            "constraint": constraint,
            "critic": {"width": 128, "depth": 3},
            "steps": scale.fit_steps,
            "batch": BATCH["surface"],
        }
        for source, constraint in itertools.product(DATA_SETS, SURFACE_CONSTRAINTS)
    }
    return jobs("surface", fits, scale.seeds)


def fit_surface(job: Values) -> Values:
    """Fit one critic, measure it and draw its scores (``picture``, PNG in base64)."""
    fitted = _fit(job)
    critic = fitted.critic
    real = fitted.data.sample(400, heldout=True)
    low, high = real.min(axis=0), real.max(axis=0)
    margin = 0.3 * (high - low)

    def score(points: Array) -> Array:
        with torch.no_grad():
            scores: Array = critic(torch.from_numpy(points).float()).numpy()
        return scores

    picture = surface(score, low - margin, high + margin, [(real, (0.16, 0.16, 0.16))])
    png = base64.b64encode(encode_small_png(picture)).decode()
    return {**_measure(fitted), "picture": png}


def grid_jobs(scale: Scale) -> dict[str, Values]:
    """Critics over depth, normalisation and constraint, for `fit_cell`."""
    cells = {
        f"{depth}-{norm}-{name_of(constraint)}": {
            "depth": depth,
            "norm": norm,
            "constraint": constraint,
            "steps": scale.grid_steps,
            "batch": BATCH["grid"],
        }
        for depth, norm, constraint in itertools.product(DEPTHS, NORMALIZATIONS, GRID_CONSTRAINTS)
    }
    return jobs("grid", cells, scale.grid_seeds)


def fit_cell(job: Values) -> Values:
    """Fit one critic of the Swiss roll against its noisy copy, and measure what it found."""
    critic: Values = {"width": 64, "depth": job["depth"]}
    with tempfile.TemporaryDirectory() as folder:
        source = "swissroll"
        if job["norm"] == "recurrent":
            critic["architecture"] = "gru"
            points = load_data(DataConfig(source="swissroll")).items[:5000]
            source = str(Path(folder) / "sequences.npy")
            np.save(source, np.repeat(points[:, None], RECURRENT_STEPS, axis=1))
        else:
            critic["normalization"] = job["norm"]
        try:
            return _measure(_fit({**job, "source": source, "critic": critic}))
        except ConfigError as error:
            return {"refused": str(error)}


def moment_jobs(scale: Scale) -> dict[str, Values]:
    """Critics over how many moments agree, for `fit_moments`."""
    fits = {
        f"m{nodes}-{name_of(constraint)}": {
            "nodes": nodes,
            "constraint": constraint,
            "steps": scale.moment_steps,
        }
        for nodes, constraint in itertools.product(range(1, 6), MOMENT_CONSTRAINTS)
    }
    return jobs("moments", fits, scale.grid_seeds)


def hermite(nodes: int) -> tuple[Array, Array]:
    """Points and weights that share their first ``2 nodes - 1`` moments with N(0, 1)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return points, weights / weights.sum()


def distance_from_normal(points: Array, weights: Array) -> float:
    """W1 between N(0, 1) and points with weights, on the line: the area between both CDFs."""
    grid = np.linspace(-12, 12, 240_001)
    steps = np.concatenate([[0.0], np.cumsum(weights)])[np.searchsorted(points, grid, side="right")]
    return float(np.abs(norm.cdf(grid) - steps).sum() * (grid[1] - grid[0]))


def fit_moments(job: Values) -> Values:
    """Fit one critic of N(0, 1) against points that share its first moments, and measure it."""
    points, weights = hermite(job["nodes"])
    source = torch.Generator().manual_seed(job["seed"])
    positions = torch.from_numpy(points).float()
    shares = torch.from_numpy(weights)

    def sample(count: int) -> tuple[Tensor, Tensor]:
        drawn = positions[torch.multinomial(shares, count, replacement=True, generator=source)]
        return torch.randn(count, 1, generator=source), drawn[:, None]

    config = _config("", {"width": 64, "depth": 3}, job["constraint"])
    recipe = Recipe(config.constraint, config.critic, RATE)
    critic = fit(lambda: sample(BATCH["moments"]), (1,), recipe, job["steps"], job["seed"])
    normal, discrete = sample(50_000)
    with torch.no_grad():
        gap = (critic(normal).double().mean() - critic(discrete).double().mean()).item()
    torch.manual_seed(0)
    norms = gradient_norms(critic, interpolate(normal, discrete)[:5000])
    steepest = torch.quantile(norms.double(), 0.95).item()
    return {"found": gap / max(steepest, TINY) / distance_from_normal(points, weights)}
