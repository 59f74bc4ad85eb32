"""The seven claims against weight clipping, and the verdict that the figures allow on each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from training.judging.doctor.checks import CHECKS
from training.lab.comparison.statistics import mean_over_seeds, probability_lower
from training.lab.study.settings import (
    CLIPS,
    GRID_CONSTRAINTS,
    ONE_SIDED,
    PENALTY,
    PUBLISHED,
    SPECTRAL,
    SURFACE_CONSTRAINTS,
    TRAINS_FROM,
    Answers,
    Values,
    answers_of,
    name_of,
)

DEEP = ("12", "20")
"""Layers of critics that count as deep."""
EVERYWHERE = 0.9
"""Share of the points from which 'almost everywhere' is true."""


class Claim(NamedTuple):
    """One claim against clipping, and what was found."""

    claim: str
    measured: str
    seeds: str
    found: str
    verdict: str
    """borne out, not borne out, or undecided."""


def in_words(values: Sequence[float]) -> str:
    """The mean over seeds with its 95% interval."""
    return str(mean_over_seeds(values))


def compared(clipped: Sequence[float], penalised: Sequence[float]) -> str:
    """The verdict on 'clipping has the larger value', by Welch's t."""
    probability = probability_lower(penalised, clipped)
    if probability is None or 0.025 < probability < 0.975:
        return "undecided"
    return "borne out" if probability >= 0.975 else "not borne out"


def beyond(values: Sequence[float], threshold: float) -> str:
    """The verdict on 'the value is above the threshold', by the mean's interval."""
    mean = mean_over_seeds(values)
    if math.isnan(mean.low) or mean.low <= threshold <= mean.high:
        return "undecided"
    return "borne out" if mean.low > threshold else "not borne out"


def do_not_train(clipped: Sequence[float], others: Sequence[float]) -> str:
    """The verdict on 'these critics do not train', where others of the same depths can."""
    if max(clipped) <= TRAINS_FROM < max(others):
        return "borne out"
    return "not borne out" if min(clipped) > TRAINS_FROM else "undecided"


def _means_by_name(names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    return "; ".join(f"{n}: {in_words(v)}" for n, v in zip(names, values, strict=True))


def judge_claims(answers: Answers) -> list[Claim]:
    """Each claim, the figures and the verdict that follows from them."""

    def values(part: str, key: str, *words: str) -> list[float]:
        return [a[key] for a in answers_of(answers[part], *words) if key in a]

    names = [name_of(constraint) for constraint in SURFACE_CONSTRAINTS]
    shares = [values("surface", "found", name) for name in names]
    # The same data and seeds: the differences count.
    missed = [b - a for a, b in zip(shares[0], shares[-1], strict=True)]
    width = min(int(name.split("-")[1]) for name in answers["layers"])
    slopes = {
        c: values("layers", "slope", str(width), f"clip {c}") for c in ("0.001", "0.01", "0.1")
    }
    steep = CHECKS["clip_range"].threshold
    edges = {beyond([-s for s in slopes["0.01"]], steep), beyond(slopes["0.1"], steep)}
    saturated = {
        c: [values("surface", key, f"clip {c}") for key in ("saturated_at_start", "saturated")]
        for c in ("0.01", "0.1")
    }
    piles = {beyond(end, CHECKS["saturated_weights"].threshold) for _, end in saturated.values()}
    best, distances = _best_clip(answers["run"])
    penalised = [
        a["figures"]["wasserstein_1"]["value"]
        for a in answers_of(answers["run"], "25gaussians", name_of(ONE_SIDED))
    ]
    deep = {
        name: [share for depth in DEEP for share in values("grid", "found", depth, name)]
        for name in map(name_of, GRID_CONSTRAINTS)
    }
    lost = [
        [1 - a["figures"]["coverage"]["value"] for a in answers_of(answers["run"], "digits", w)]
        for w in (name_of(PUBLISHED), name_of(ONE_SIDED))
    ]
    far = [values("surface", "far", name) for name in names]
    return [
        Claim(
            "1. The critic becomes too simple and estimates W1 badly",
            "share of the exact distance that a critic of three layers finds on a fixed generator, "
            "three data sets; less under clip 0.01 than under the lipschitz penalty, pair by pair",
            f"{len(missed)} fits each",
            _means_by_name(names, shares),
            beyond(missed, 0.0),
        ),
        Claim(
            "2. The clip range is a knife edge",
            "decades that the gradient gains at each of 12 layers on its way back; vanishing at "
            "0.01 and exploding at 0.1, both beyond 0.3",
            f"{len(slopes['0.01'])} each",
            "; ".join(f"c = {c}: {in_words(values)}" for c, values in slopes.items()),
            edges.pop() if len(edges) == 1 else "undecided",
        ),
        Claim(
            "3. Weights pile up at the bounds",
            "share of the weights within 1% of a bound, the critics of claim 1; more than half, at "
            "0.01 and at 0.1",
            f"{len(saturated['0.01'][1])} fits each",
            "; ".join(
                f"c = {c}: {in_words(end)}, where {np.mean(start):.2g} began at or beyond one"
                for c, (start, end) in saturated.items()
            ),
            piles.pop() if len(piles) == 1 else "undecided",
        ),
        Claim(
            "4. Optimisation is slow",
            "wasserstein_1 on 25gaussians after equally many critic steps, for the best of "
            f"{len(CLIPS)} clip values ({best:g}) against the lipschitz (one-sided) penalty",
            f"{len(distances)} each",
            f"{in_words(distances)} against {in_words(penalised)}",
            compared(distances, penalised),
        ),
        Claim(
            "5. Deep critics do not train, not even with batch norm",
            "share of the distance that critics of 12 and 20 layers find at c = 0.01, over no, "
            f"batch and layer normalisation and GRU layers; none above {TRAINS_FROM:.1g}, while "
            "some of the gradient penalty's or of spectral norm's are",
            f"{len(deep['clip 0.01'])} fits",
            "; ".join(f"{n}: {min(v):.0%} to {max(v):.0%}" for n, v in deep.items()),
            do_not_train(
                deep[name_of(PUBLISHED)], deep[name_of(PENALTY)] + deep[name_of(SPECTRAL)]
            ),
        ),
        Claim(
            "6. Samples are worse and less diverse",
            "share of held-out digits that samples do not cover; clip 0.01 against the lipschitz "
            "(one-sided) penalty",
            f"{len(lost[0])} each",
            f"{in_words(lost[0])} against {in_words(lost[1])}",
            compared(*lost),
        ),
        Claim(
            "7. The critic's gradient norm is far from 1 almost everywhere",
            "share of the points between real and generated where it is not within a factor of 2 "
            f"of 1, the critics of claim 1; more than {EVERYWHERE:g} under clip 0.01",
            f"{len(far[0])} fits",
            _means_by_name(names, far),
            beyond(far[0], EVERYWHERE),
        ),
    ]


def _best_clip(runs: dict[str, Values]) -> tuple[float, list[float]]:
    values = {
        c: [
            a["figures"]["wasserstein_1"]["value"]
            for a in answers_of(runs, "25gaussians", f"clip {c:g}")
        ]
        for c in CLIPS
    }  # fmt: skip
    best = min(CLIPS, key=lambda c: float(np.mean(values[c])))
    return best, values[best]
