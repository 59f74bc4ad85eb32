"""Measurements that the checks share: scores, gradients, layers, and the samples' diversity."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from models.config import Config
from models.lipschitz import LayerSignal, interpolate, layer_signals
from models.networks.conditional import WithLabels
from models.record import Figure
from models.sampling import latents
from training.data.dataset import Dataset
from training.engine.runs import Row
from training.judging.metrics import (
    mode_coverage,
    precision_recall_density_coverage,
    wasserstein_1,
)
from training.judging.tables.rows import decided

Array = np.ndarray
MAX_ITEMS = 1000
"""Held-out, training and generated items, at most, that are scored and compared."""
MAX_GRADIENTS = 256
"""Points, at most, at which gradients are taken, and samples between which transport is solved."""
SCORED_AT_ONCE = 256
TINY = 1e-300
"""Smallest gradient that counts, far below any that matters: it keeps logarithms finite."""
DIVERSITY = ("recall", "coverage", "modes_covered")
"""Figures that fall when parts of the data are missing from the samples."""


@dataclass(frozen=True)
class Subject:
    """A critic under examination, with real and generated items in its units.

    Every property is computed once, when a check asks for it.
    """

    config: Config
    data: Dataset
    critic: nn.Module
    """A copy in float64 and eval mode."""
    sets: dict[str, Tensor]
    """``heldout``, ``training`` and ``fake``, equally many, float32 ``(N, *shape)``."""
    labels: dict[str, Tensor]
    """Labels of the three sets, for a conditional critic; else empty."""
    history: Sequence[Row]
    figures: Mapping[str, Figure]

    @classmethod
    def prepare(
        cls,
        config: Config,
        data: Dataset,
        generator: nn.Module,
        critic: nn.Module,
        history: Sequence[Row],
        figures: Mapping[str, Figure],
    ) -> Subject:
        """Draw items and samples, and copy the critic; arguments are those of `diagnose`."""
        device = next(critic.parameters()).device
        count = min(MAX_ITEMS, data.card.heldout_count, data.card.training_count)
        sets, labels = {}, {}
        for name in ("heldout", "training"):
            indices = data.sample_indices(count, heldout=name == "heldout")[:count]
            sets[name] = data.scaling.to_model(torch.from_numpy(data.items_at(indices)))
            if config.conditional and data.labels is not None:
                labels[name] = torch.from_numpy(data.labels[indices]).to(device)
        if labels:
            labels["fake"] = labels["heldout"]
        z = torch.from_numpy(latents(config.training.seed, 0, count, config.generator.latent_size))
        conditions = [labels["fake"]] if labels else []
        sets["fake"] = copy.deepcopy(generator).eval()(z.to(device), *conditions)
        return cls(
            config,
            data,
            copy.deepcopy(critic).double().eval().requires_grad_(False),
            {name: items.to(device) for name, items in sets.items()},
            labels,
            history,
            figures,
        )

    def bind(self, name: str, rows: slice) -> nn.Module:
        """The critic, with the labels of some rows of a set bound if it takes labels."""
        return WithLabels(self.critic, self.labels[name][rows]) if self.labels else self.critic

    def points(self, name: str) -> Array:
        """Flatten a set to float64 ``(N, D)``."""
        return self.sets[name].flatten(1).double().cpu().numpy()

    @cached_property
    def scores(self) -> dict[str, Array]:
        """Scores ``(N,)`` by set."""
        scores = {}
        for name, items in self.sets.items():
            parts = []
            for first in range(0, len(items), SCORED_AT_ONCE):
                rows = slice(first, first + SCORED_AT_ONCE)
                with torch.no_grad():
                    parts.append(self.bind(name, rows)(items[rows].double()).cpu())
            scores[name] = torch.cat(parts).numpy()
        return scores

    @cached_property
    def gradient_rows(self) -> slice:
        """The rows of each set that gradients and transport are computed with."""
        return slice(0, min(MAX_GRADIENTS, len(self.sets["fake"])))

    @cached_property
    def distances(self) -> dict[str, float]:
        """Exact Wasserstein-1 distance from held-out items to as many of each kind.

        ``training`` items, ``fake`` ones, and samples of a ``gaussian`` with the mean and the
        covariance of the training items: what a generator must beat. In the critic's units.
        """
        rows = self.gradient_rows
        heldout, training = self.points("heldout")[rows], self.points("training")
        others = {
            "training": training[rows],
            "fake": self.points("fake")[rows],
            "gaussian": gaussian_like(training, len(heldout)),
        }
        return {name: wasserstein_1(heldout, points) for name, points in others.items()}

    @cached_property
    def between(self) -> Tensor:
        """Points between held-out and generated samples, float64 ``(G, *shape)``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.training.seed)
            real, fake = (
                self.sets[name][self.gradient_rows].double().cpu() for name in ("heldout", "fake")
            )
            return interpolate(real, fake).to(self.sets["fake"].device)

    @cached_property
    def gradients(self) -> Array:
        """The score's gradient at the points between, ``(G, D)``."""
        points = self.between.clone().requires_grad_()
        with torch.enable_grad():
            scores = self.bind("heldout", self.gradient_rows)(points)
            (gradient,) = torch.autograd.grad(scores.sum(), points)
        return gradient.flatten(1).cpu().numpy()

    @cached_property
    def gradient_norms(self) -> Array:
        """Norms ``(G,)`` of `gradients`."""
        return np.linalg.norm(self.gradients, axis=1)

    @cached_property
    def signals(self) -> list[LayerSignal]:
        """Signals and gradients that pass each layer; see `models.lipschitz.layer_signals`."""
        return layer_signals(self.bind("heldout", self.gradient_rows), self.between)

    @cached_property
    def decades(self) -> Array | None:
        """See `gradient_decades`; None for fewer than two layers."""
        return gradient_decades(self.signals) if len(self.signals) > 1 else None

    @cached_property
    def bending_share(self) -> float | None:
        """Share of rectifying units that are on for some points and off for others; None: no such.

        Units that are always on, or always off, leave the critic linear.
        """
        shares: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            on = (inputs[0] > 0).double()
            units_last = on.movedim(1, -1).flatten(0, -2) if on.dim() > 2 else on
            shares.append(units_last.mean(dim=0))

        kinds = (nn.ReLU, nn.LeakyReLU)
        hooks = [
            m.register_forward_hook(keep) for m in self.critic.modules() if isinstance(m, kinds)
        ]
        self.bind("heldout", self.gradient_rows)(self.between)
        for hook in hooks:
            hook.remove()
        if not shares:
            return None
        share = torch.cat(shares)
        return float(((share > 0.01) & (share < 0.99)).double().mean())

    @cached_property
    def diversity(self) -> dict[str, tuple[float, float]]:
        """Figures of `DIVERSITY`, each beside that of training data in the samples' place.

        They are the judged ones if the run has been judged, and else computed on `points`.
        """
        judged = {
            name: (self.figures[name].value, floor)
            for name in DIVERSITY
            if name in self.figures and (floor := self.figures[name].floor) is not None
        }
        if judged:
            return judged
        heldout, training, fake = (self.points(n) for n in ("heldout", "training", "fake"))
        if self.data.card.table is not None:  # the shares of a generated choice are no row yet
            fake = decided(fake, self.data.card.table).astype(np.float64)
        device = self.sets["fake"].device
        generated = precision_recall_density_coverage(heldout, fake, device=device)
        real = precision_recall_density_coverage(heldout, training, device=device)
        diversity = {name: (generated[name], real[name]) for name in ("recall", "coverage")}
        if self.data.mixture:
            centers, sd = self.data.mixture  # built-in sets: the critic's units are the data's
            modes = [mode_coverage(x, centers, sd)[0] for x in (fake, training)]
            diversity["modes_covered"] = (float(modes[0]), float(modes[1]))
        return diversity


def gradient_decades(signals: Sequence[LayerSignal]) -> Array:
    """log10 of the layers' gradient norms, input first: ``(L,)``."""
    return np.log10([max(signal.gradient, TINY) for signal in signals])


def slope(decades: Array) -> float:
    """Decades that the gradient gains at each layer on its way back; below 0 it vanishes.

    Args:
        decades: ``(L,)``, log10 of the layers' gradient norms, input first.

    Returns:
        The least-squares slope, with its sign turned.

    Example:
        >>> round(slope(np.array([2.0, 1.0, 0.0])), 6)
        1.0
    """
    return float(-np.polyfit(np.arange(len(decades)), decades, 1)[0])


def gaussian_like(points: Array, count: int, seed: int = 0) -> Array:
    """Draw samples of a Gaussian with the mean and the covariance of some points.

    Weighted sums of the points themselves, so that no covariance matrix is needed.

    Args:
        points: ``(N, D)``, at least two.
        count: number of samples.
        seed: of the samples.

    Returns:
        ``(count, D)``.
    """
    mean = points.mean(axis=0)
    weights = np.random.default_rng(seed).standard_normal((count, len(points)))
    return mean + weights @ (points - mean) / np.sqrt(len(points) - 1)


def explained_variance(features: Array, scores: Array) -> float:
    """Share of the scores' variance that a linear function of the features explains.

    Args:
        features: ``(N, F)``.
        scores: ``(N,)``.

    Returns:
        At most 1; 1 for constant scores.
    """
    design = np.column_stack([np.ones(len(features)), features])
    solution, *_ = np.linalg.lstsq(design, scores, rcond=None)
    total = scores.var()
    return float(1 - (scores - design @ solution).var() / total) if total > 0 else 1.0
