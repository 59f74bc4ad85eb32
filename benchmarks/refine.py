"""Does the critic help to choose or to move samples? Ways of doing it, on trained presets.

    python -m benchmarks.refine --runs runs/refine

A way takes latents and gives samples, as a generator does, with the critic's help. Each is judged
as the generator itself is, on held-out data, and its cost is the time that 64 samples take, as a
multiple of the generator's own, medians in turn. A WGAN's scores are no log-ratios of densities,
so none of these has the guarantee that its source proves for a classifier's.

A way could be offered if recall and coverage fall beyond noise on no preset, and something rises;
see `changes` for what noise is. Runs that are there are not trained again.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from benchmarks.presets import RESULTS, finish, folder
from models.artifact import load_artifact
from models.model import QUANTILE_LEVELS
from models.refinement import Refined
from training.data.dataset import load_data
from training.judging.evaluate import judge

PRESETS = {"25gaussians": 3000, "swissroll": 2000, "digits": 1000}
"""Presets and their generator steps: fewer than their own, so that there is room to improve."""
CONSTRAINT = "lipschitz_penalty"
SEEDS = 3
TIMED = 64
ROUNDS = 15
FIGURES = {
    "25gaussians": ("high_quality_share", "modes_covered", "wasserstein_1", "recall", "coverage"),
    "swissroll": ("precision", "wasserstein_1", "recall", "coverage"),
    "digits": ("precision", "kernel_distance", "recall", "coverage"),
}
KEPT = ("recall", "coverage")
"""Figures that may not fall."""

Array = np.ndarray


class Networks(NamedTuple):
    """The parts of a model that a way uses."""

    generator: nn.Module
    critic: nn.Module
    quantiles: Array
    refined: Refined


Way = Callable[[Networks, Tensor, torch.Generator], Tensor]


def plain(model: Networks, z: Tensor, source: torch.Generator) -> Tensor:
    """The generator's own samples."""
    made: Tensor = model.generator(z)
    return made


def best_of(count: int) -> Way:
    """Make several samples and keep the one with the highest score."""

    def way(model: Networks, z: Tensor, source: torch.Generator) -> Tensor:
        more = torch.randn(count - 1, *z.shape, generator=source)
        made = model.generator(torch.cat([z[None], more]).flatten(0, 1))
        best = model.critic(made).view(count, len(z)).argmax(dim=0)
        return made.view(count, len(z), *made.shape[1:])[best, torch.arange(len(z))]

    return way


def in_range(low: float, tries: int = 4) -> Way:
    """The first of several samples whose score is above a quantile of real ones; or the last."""

    def way(model: Networks, z: Tensor, source: torch.Generator) -> Tensor:
        bound = float(np.interp(low, QUANTILE_LEVELS, model.quantiles))
        made = model.generator(z)
        for _ in range(tries - 1):
            bad = model.critic(made) < bound
            again = model.generator(torch.randn(z.shape, generator=source))
            made = torch.where(bad.view(-1, *[1] * (made.dim() - 1)), again, made)
        return made

    return way


def ascend(steps: int, size: float) -> Way:
    """Steps along the score's gradient by the latents, each latent's length kept.

    A step has the mean length ``size``, in the units of a normal latent's coordinate.
    """

    def way(model: Networks, z: Tensor, source: torch.Generator) -> Tensor:
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        for _ in range(steps):
            slope = model.refined.slopes(z)
            norms = torch.linalg.vector_norm(slope, dim=1)
            z = z + size * z.shape[1] ** 0.5 * slope / norms.mean().clamp_min(1e-12)
            z = z * length / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(1e-12)
        return plain(model, z, source)

    return way


def as_served(model: Networks, z: Tensor, source: torch.Generator) -> Tensor:
    """One step of 0.02, its unit the same for all latents: what the service offers."""
    made: Tensor = model.refined(z)
    return made


def transport(steps: int, rate: float) -> Way:
    """Latent optimal transport (Tanaka 2019, alg. 2): go up the score, but stay near the start.

    ``argmax score(G(z)) / k - |z - z0|`` by gradient steps, k the steepest slope of the score by
    the latents among these.
    """

    def way(model: Networks, z: Tensor, source: torch.Generator) -> Tensor:
        start = z
        steepest = torch.linalg.vector_norm(model.refined.slopes(z), dim=1).max().clamp_min(1e-12)
        for _ in range(steps):
            away = z - start
            away = away / torch.linalg.vector_norm(away, dim=1, keepdim=True).clamp_min(1e-3)
            z = z + rate * (model.refined.slopes(z) / steepest - away)
        return plain(model, z, source)

    return way


def langevin(steps: int, size: float) -> Way:
    """Langevin steps for the density N(0, I) exp(score) of the latents (Che et al. 2020, eq. 9)."""

    def way(model: Networks, z: Tensor, source: torch.Generator) -> Tensor:
        for _ in range(steps):
            noise = torch.randn(z.shape, generator=source)
            z = z + size / 2 * (model.refined.slopes(z) - z) + size**0.5 * noise
        return plain(model, z, source)

    return way


WAYS: dict[str, Way] = {
    "plain": plain,
    "best of 2": best_of(2),
    "best of 4": best_of(4),
    "in range, 5%": in_range(0.05),
    "in range, 25%": in_range(0.25),
    "ascend, 1 step of 0.02": as_served,
    "ascend, 5 steps of 0.1": ascend(5, 0.1),
    "transport, 5 steps of 0.01": transport(5, 0.01),
    "transport, 10 steps of 0.05": transport(10, 0.05),
    "langevin, 10 steps of 0.01": langevin(10, 0.01),
}


class ByWay(nn.Module):
    """A generator of a way's samples; its random numbers go on from call to call."""

    def __init__(self, networks: Networks, way: Way) -> None:
        super().__init__()
        self.inner, self.networks, self.way = networks.generator, networks, way
        self.source = torch.Generator().manual_seed(1)

    def forward(self, z: Tensor) -> Tensor:
        """``(N, latent_size)`` to ``(N, *shape)``."""
        with torch.inference_mode(False), torch.no_grad():
            return self.way(self.networks, z.clone(), self.source)


def measure(where: Path, preset: str, seed: int) -> list[dict[str, Any]]:
    """Each way's figures and cost, on one trained model."""
    model = load_artifact(where / "artifact")
    data = load_data(model.run.config.data)
    guided = model.refined.forward
    assert isinstance(guided, Refined)
    networks = Networks(model.forward, model.critic, model.quantiles, guided)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    rows = []
    z = torch.from_numpy(model.latents(0, TIMED))
    for _, (name, way) in itertools.product(range(ROUNDS), WAYS.items()):
        source = torch.Generator().manual_seed(0)
        begin = time.perf_counter()
        with torch.no_grad():
            way(networks, z, source)
        times[name].append(time.perf_counter() - begin)
    for name, way in WAYS.items():
        model.forward = ByWay(networks, way)
        figures = judge(model, data, model.run.config.evaluation).figures
        rows.append(
            {
                "preset": preset,
                "seed": seed,
                "way": name,
                "milliseconds": 1000 * statistics.median(times[name]) / TIMED,
                **{f: figures[f].value for f in FIGURES[preset]},
                "half_intervals": {
                    f: (figures[f].interval[1] - figures[f].interval[0]) / 2
                    for f in FIGURES[preset]
                },
            }
        )
    return rows


def changes(rows: Sequence[dict[str, Any]], preset: str, way: str) -> dict[str, Any]:
    """A way's figures less the plain ones: mean over seeds, and what may be noise.

    The noise is the larger of two: the 95% interval of the mean over the seeds, and that of one
    evaluation's held-out items, divided by the root of the seeds.
    """
    mine = {r["seed"]: r for r in rows if r["preset"] == preset and r["way"] == way}
    base = {r["seed"]: r for r in rows if r["preset"] == preset and r["way"] == "plain"}
    found = {}
    for figure in FIGURES[preset]:
        each = [mine[seed][figure] - base[seed][figure] for seed in base]
        spread = statistics.stdev(each) * float(student.ppf(0.975, len(each) - 1))
        own = statistics.mean(base[seed]["half_intervals"][figure] for seed in base)
        found[figure] = (statistics.mean(each), max(spread, own) / len(each) ** 0.5)
    cost = [mine[seed]["milliseconds"] / base[seed]["milliseconds"] for seed in base]
    return {"cost": statistics.median(cost), "figures": found}


def verdict(rows: Sequence[dict[str, Any]], way: str) -> str:
    """Say what a way lowers: one that lowers recall or coverage is not offered."""
    falls = [
        f"{figure} on {preset}"
        for preset in PRESETS
        for figure, (mean, noise) in changes(rows, preset, way)["figures"].items()
        if figure in KEPT and mean < -noise
    ]
    return "lowers " + ", ".join(falls) if falls else "lowers neither"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each preset the plain figures, and each way's change with its noise."""
    lines = []
    for preset in PRESETS:
        names = FIGURES[preset]
        lines += [
            "",
            f"| `{preset}` | cost | {' | '.join(names)} |",
            "|---" * (len(names) + 2) + "|",
        ]
        base = [r for r in rows if r["preset"] == preset and r["way"] == "plain"]
        cells = [f"{statistics.mean(r[name] for r in base):.3g}" for name in names]
        lines.append(f"| plain | 1 | {' | '.join(cells)} |")
        for way in list(WAYS)[1:]:
            found = changes(rows, preset, way)
            cells = [f"{mean:+.3f} ± {noise:.3f}" for mean, noise in found["figures"].values()]
            lines.append(f"| {way} | {found['cost']:.1f} | {' | '.join(cells)} |")
    lines += ["", "| way | recall and coverage, beyond noise |", "|---|---|"]
    lines += [f"| {way} | {verdict(rows, way)} |" for way in list(WAYS)[1:]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the training runs")
    parser.add_argument("--results", type=Path, default=RESULTS.with_name("refine.json"))
    options = parser.parse_args()
    rows = []
    for seed, preset in itertools.product(range(SEEDS), PRESETS):
        where = folder(options.runs, preset, CONSTRAINT, seed)
        steps = PRESETS[preset]
        finish(where, preset, seed, [f"constraint.kind={CONSTRAINT}", f"training.steps={steps}"])
        rows += measure(where, preset, seed)
        print(f"{preset} seed {seed}: done", flush=True)
    options.results.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
