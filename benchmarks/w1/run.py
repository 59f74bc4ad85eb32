"""Run solvers on the pairs: a file a cell, a JSON line a result; what is there is not run again.

python -m benchmarks.w1.run [--out FOLDER] [--quick | --cells 2x64 8x64]
    [--solvers default lp_published] [--seeds 0 1 2] [--steps N] [--images]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.w1.pairs import PIXELS, SIDE, FunnelPair, ImagePair
from benchmarks.w1.published import fit_published
from models.constraints import (
    AdversarialLipschitz,
    AlmostOrthogonal,
    Bjorck,
    Cayley,
    Consistency,
    Constraint,
    Dragan,
    GradientNormalization,
    GradientPenalty,
    LipschitzPenalty,
    MaxGradientPenalty,
    NoConstraint,
    NormClipping,
    Sandwich,
    SpectralNorm,
    SpectralProjection,
    WeightClipping,
    WeightDecay,
    WeightNormalization,
    ZeroCenteredPenalty,
)
from models.networks import CriticConfig
from training.lab.fitting import Recipe, default_recipe, fit
from training.lab.w1 import critic_estimate

RESULTS = Path(__file__).parents[1] / "results" / "w1"
TEST_SAMPLES = 4096
ESTIMATE_SAMPLES = 2**15
BATCH = 1024
DEFAULT_STEPS = 4000
DIMENSIONS, FUNNELS = (2, 4, 8, 16, 32, 64, 128), (4, 16, 64, 256)
ALL_CELLS = [(d, f) for f in FUNNELS for d in DIMENSIONS]
COMPARED_CELLS = [(d, f) for f in (4, 64) for d in DIMENSIONS[:-1]]
"""Where the published recipes run too."""
FEW_CELLS = [(d, f) for f in (4, 64) for d in (2, 16, 64)]
IMAGE_CELLS = [(d, 64) for d in (4, 16, 64)]
QUICK_CELLS = [(2, 4)]
QUICK_STEPS = 100


class Solver(NamedTuple):
    """A recipe, its steps, and whether it sees inputs divided by their deviation, as ours does."""

    recipe: Recipe
    steps: int
    scaled: bool = True
    batch: int = BATCH
    written_out: bool = False
    """If so, `fit_published` fits it: as `fit` does, but faster, and resumable."""


def solvers(dimension: int) -> dict[str, Solver]:
    """The solvers of `COMPARED_CELLS`, by name; the first runs in every cell."""
    return {
        "default": Solver(default_recipe((dimension,)), DEFAULT_STEPS),
        "bjorck": Solver(default_recipe((dimension,), Bjorck()), DEFAULT_STEPS),
        "gp_published": _published(dimension, GradientPenalty(), 60_000),
        "lp_published": _published(dimension, LipschitzPenalty(), 60_000),
        "clip_published": _published(dimension, WeightClipping(clip_value=0.04), 5_000),
        "sn_published": _published(dimension, SpectralNorm(), 10_000),
    }


def more_solvers(dimension: int) -> dict[str, Solver]:
    """Every other constraint under our schedule, in fewer cells."""
    others: list[Constraint] = [
        NoConstraint(),
        WeightClipping(target_lipschitz=1.0),
        NormClipping(),
        WeightNormalization(),
        WeightDecay(),
        GradientPenalty(),
        LipschitzPenalty(),
        MaxGradientPenalty(),
        ZeroCenteredPenalty(),
        Dragan(),
        Consistency(),
        AdversarialLipschitz(),
        SpectralNorm(),
        SpectralProjection(),
        AlmostOrthogonal(),
        Cayley(),
        Sandwich(),
        GradientNormalization(),
    ]
    return {
        c.kind: Solver(default_recipe((dimension,), c), DEFAULT_STEPS)  # type: ignore[attr-defined]
        for c in others
    }


def variants(dimension: int) -> dict[str, Solver]:
    """The default with one thing changed each; they run only where they are named."""
    penalty = LipschitzPenalty()
    ours = default_recipe((dimension,), penalty)
    assert ours.critic is not None

    def shaped(**changed: Any) -> Recipe:
        return ours._replace(critic=ours.critic.model_copy(update=changed))

    default = default_recipe((dimension,))
    changed = {
        "default, cones not split": default._replace(splits=0),
        "default, no average": default._replace(average=0.0),
        "default, constant rate": default._replace(cosine=False),
        "default, twice the rate": default._replace(learning_rate=2 * default.learning_rate),
        "default, half the rate": default._replace(learning_rate=default.learning_rate / 2),
        "lipschitz_penalty, relu": shaped(activation="relu"),
        "lipschitz_penalty, groupsort": shaped(activation="groupsort"),
        "lipschitz_penalty, width 256": shaped(width=256),
        "lipschitz_penalty, two layers": shaped(depth=2),
        "lipschitz_penalty, no average": ours._replace(average=0.0),
        "lipschitz_penalty, constant rate": ours._replace(cosine=False),
        "lipschitz_penalty, at both": ours._replace(constraint=LipschitzPenalty(where="both")),
    }
    solvers = {name: Solver(recipe, DEFAULT_STEPS) for name, recipe in changed.items()}
    solvers["default, inputs as they are"] = Solver(default, DEFAULT_STEPS, scaled=False)
    return solvers


def image_solvers() -> dict[str, Solver]:
    """Those of images. Networks have smaller batches and fewer steps, for about equal seconds."""
    shape = (1, PIXELS, PIXELS)
    return {
        "default": Solver(default_recipe(shape), DEFAULT_STEPS),
        "lipschitz_penalty": Solver(default_recipe(shape, LipschitzPenalty()), 1000, batch=128),
        "bjorck": Solver(default_recipe(shape, Bjorck()), 1000, batch=128),
    }


def solvers_of(cell: tuple[int, int], images: bool) -> tuple[dict[str, Solver], list[str]]:
    """The solvers that a cell's runs can name, and the names of those that run otherwise."""
    if images:
        return image_solvers(), list(image_solvers())
    chosen = solvers(cell[0])
    usual = list(chosen) if cell in COMPARED_CELLS else ["default"]
    if cell in FEW_CELLS:
        chosen |= more_solvers(cell[0])
        usual = list(chosen)
    return chosen | variants(cell[0]), usual


def _published(dimension: int, constraint: Constraint, steps: int) -> Solver:
    """The recipe of Korotin et al. 2022: constant rate, two hidden layers, inputs as they are.

    They name no betas for Adam: these are the usual ones. The weights are not averaged.
    """
    critic = CriticConfig(width=max(2 * dimension, 128), depth=2, activation="relu")
    recipe = Recipe(constraint, critic, 2e-4, (0.9, 0.999), average=0.0, cosine=False)
    written_out = isinstance(constraint, LipschitzPenalty | GradientPenalty)
    return Solver(recipe, steps, scaled=False, written_out=written_out)


def run(solver: Solver, pair: FunnelPair, seed: int, checkpoint: Path) -> dict[str, Any]:
    """Fit one critic and compare it with the optimal one."""
    scale = 2 * SIDE / 12**0.5 if solver.scaled else 1.0
    source = torch.Generator().manual_seed(1000 + seed)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        p, q = pair.sample(solver.batch, source)
        return p / scale, q / scale

    shape = (1, PIXELS, PIXELS) if isinstance(pair, ImagePair) else (pair.dimension,)
    started = time.process_time()
    if solver.written_out:
        critic = fit_published(
            draw, pair.dimension, solver.recipe, solver.steps, seed, source, checkpoint
        )
    else:
        critic = fit(draw, shape, solver.recipe, solver.steps, seed)
    seconds = time.process_time() - started
    test = torch.Generator().manual_seed(2000 + seed)
    points = pair.sample(TEST_SAMPLES, test)[0]
    inputs = (points.double() / scale).requires_grad_()
    (found,) = torch.autograd.grad(copy.deepcopy(critic).double()(inputs).sum(), inputs)
    expected = pair.gradient(points).flatten(1)
    found = found.flatten(1)
    p, q = (x / scale for x in pair.sample(ESTIMATE_SAMPLES, test))
    with torch.no_grad():
        gap = (critic(p).double().mean() - critic(q).double().mean()).item()
    true, error = pair.w1()
    estimate = critic_estimate(critic, solver.recipe.constraint, p, q)
    return {
        "cosine": torch.nn.functional.cosine_similarity(found, expected).mean().item(),
        "l2": (found - expected).square().sum(1).mean().item(),
        "w1": scale * estimate,
        "gap": scale * gap,
        "true": true,
        "true_error": error,
        "deviation": 100 * abs(scale * estimate - true) / true,
        "gap_deviation": 100 * abs(scale * gap - true) / true,
        "steps": solver.steps,
        "cpu_seconds": seconds,
    }


def cells_named(names: list[str] | None) -> list[tuple[int, int]]:
    """The dimensions and funnels of cells such as ``2x64``."""
    return [(int(d), int(f)) for d, f in (name.split("x") for name in names or ())]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--quick", action="store_true", help="one cell, few steps: does it run?")
    parser.add_argument("--cells", nargs="*", metavar="DxF")
    parser.add_argument("--solvers", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="other than each solver's own")
    parser.add_argument("--images", action="store_true", help="of the pairs as images")
    options = parser.parse_args()
    images, out = options.images, options.out / "images" if options.images else options.out
    cells = QUICK_CELLS if options.quick else IMAGE_CELLS if images else ALL_CELLS
    cells = cells_named(options.cells) or cells
    steps = QUICK_STEPS if options.quick else options.steps
    out.mkdir(parents=True, exist_ok=True)
    seeds = [0] if options.quick else options.seeds
    for dimension, funnels in cells:
        results = out / f"{dimension}x{funnels}.jsonl"
        lines = results.read_text().splitlines() if results.exists() else []
        done = {tuple(json.loads(line)["key"]) for line in lines}
        chosen, usual = solvers_of((dimension, funnels), images)
        for seed, name in itertools.product(seeds, options.solvers or usual):
            solver = chosen.get(name)
            if solver is None:
                continue
            solver = solver._replace(steps=steps or solver.steps)
            key = (name, dimension, funnels, seed, solver.steps)
            if key in done:
                continue
            checkpoint = out / f"{'-'.join(map(str, key))}.checkpoint"
            pair = (ImagePair if images else FunnelPair)(dimension, funnels, seed)
            found = run(solver, pair, seed, checkpoint)
            with results.open("a") as file:
                file.write(json.dumps({"key": key, **found}) + "\n")
            print(
                f"{name} D {dimension}, {funnels} funnels, seed {seed}: "
                f"cosine {found['cosine']:.3f}, deviation {found['deviation']:.1f}%, "
                f"{found['cpu_seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
