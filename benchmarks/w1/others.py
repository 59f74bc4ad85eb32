"""W1 of the pairs by other ways than a critic, in the seconds that the default's fit took.

python -m benchmarks.w1.others [--cells 2x64 16x64] [--seeds 0 1 2]

Each way sees as many samples of each side as it gets through in that time: their number is doubled
until the next would take longer, or 128,000 are reached. Needs `pip install geomloss`. Written
beside the results of `benchmarks.w1.run`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable

import numpy as np
import ot
import torch

from benchmarks.w1.pairs import FunnelPair
from benchmarks.w1.run import cells_named
from benchmarks.w1.table import DEFAULT, OTHERS, Results

Array = np.ndarray
CELLS = [(d, f) for f in (4, 64) for d in (2, 16, 64)] + [(128, 64), (16, 256)]
FEWEST, MOST = 250, 128_000
"""Samples a side; of more, sliced W1 takes more memory than is worth it."""
BLUR = 0.05
"""Of Sinkhorn's divergence, geomloss's own default."""
PROJECTIONS = 100


def exact(p: Array, q: Array) -> float:
    """The distance between the samples, by POT's network simplex."""
    costs = ot.dist(p, q, metric="euclidean")
    return float(ot.emd2([], [], costs, numItermax=10**8))


def sinkhorn(p: Array, q: Array) -> float:
    """Sinkhorn's divergence with the distance as the cost, by geomloss."""
    geomloss = importlib.import_module("geomloss")
    loss = geomloss.SamplesLoss("sinkhorn", p=1, blur=BLUR, backend="tensorized")
    return float(loss(torch.from_numpy(p), torch.from_numpy(q)))


def sliced(p: Array, q: Array) -> float:
    """The mean distance along lines, by POT, in the unit of a shift.

    Along lines a shift of length 1 has a mean distance of ``E|u_1|``, for u on the unit sphere.
    """
    found = ot.sliced_wasserstein_distance(p, q, n_projections=PROJECTIONS, seed=0, p=1)
    d = p.shape[1]
    return float(found) / math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) * math.pi**0.5


WAYS: dict[str, Callable[[Array, Array], float]] = {
    "network simplex": exact,
    "Sinkhorn divergence": sinkhorn,
    "sliced": sliced,
}


def within(
    way: Callable[[Array, Array], float], pair: FunnelPair, seed: int, budget: float
) -> dict[str, float]:
    """The estimate from the largest samples that take no longer than a budget of CPU seconds."""
    source = torch.Generator().manual_seed(3000 + seed)
    found: dict[str, float] = {}
    count, seconds, before = FEWEST, 0.0, 0.0
    while not found or (
        count <= MOST and seconds * max(2.0, seconds / max(before, 1e-3)) <= budget
    ):
        p, q = (x.double().numpy() for x in pair.sample(count, source))
        before, started = seconds, time.process_time()
        value = way(p, q)
        seconds = time.process_time() - started
        found = {"w1": value, "samples": count, "cpu_seconds": seconds}
        count *= 2
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--cells", nargs="*", metavar="DxF")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(OTHERS.read_text()) if OTHERS.exists() else []
    results = Results()
    for dimension, funnels in cells_named(options.cells) or CELLS:
        for seed in options.seeds:
            row = results.found[DEFAULT, (dimension, funnels)][seed]
            pair = FunnelPair(dimension, funnels, seed)
            for name, way in WAYS.items():
                key = [name, dimension, funnels, seed]
                got = within(way, pair, seed, row["cpu_seconds"])
                found = [other for other in found if other["key"] != key]
                found.append({"key": key, "true": row["true"], **got})
                print(*key, got, row["true"], flush=True)
                OTHERS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
