"""Whether two sets are shown to differ, for tests: `wgan.assert_same_distribution`."""

from __future__ import annotations

import math
from numbers import Real
from pathlib import Path

from models.distance import Distance, DistributionsDiffer
from models.errors import ConfigError
from training.lab.changes import found_in
from training.lab.differences import SIGNIFICANCE, column_names, most_blamed
from training.lab.measure import measure, page_for
from training.lab.samples import Sets
from training.lab.two_samples import PERMUTATIONS, two_sample_test
from training.lab.w1 import CONFIDENCE

STEPS = 500
"""Critic steps, when two sets were found to differ: enough to say in what."""
MAX_NAMED = 5
"""Columns that changed by themselves, at most, that are named."""


def require_same(
    sets: Sets, level: float, tolerance: float, seed: int, out: str | Path | None
) -> None:
    """Fail if two sets are shown to differ; see `wgan.assert_same_distribution`.

    The two-sample test alone decides where nothing is tolerated: it has more power than the bound
    of W1. With a tolerance, sets differ if that bound is above it too. Of sets whose W1 is not
    above it, at most a share of ``level`` has such a bound.

    Raises:
        DistributionsDiffer: they differ, or a table has columns that the other has not.
        ConfigError: an option is out of range.
    """
    least = 1 / (PERMUTATIONS + 1)
    if not isinstance(level, Real) or not least <= level < 1:
        raise ConfigError(f"level {_shown(level)}: must be from {least:g} to below 1")
    if not isinstance(tolerance, Real) or not 0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance {_shown(tolerance)}: must be a distance, 0 or above")
    save_page = page_for(out)
    tested = two_sample_test(sets.a, sets.b, seed)
    differ = tested.p_value <= level
    if not differ and not sets.cautions:
        return
    confidence = 1 - level if tolerance else CONFIDENCE
    found = measure(sets, tested=tested, seed=seed, steps=STEPS, confidence=confidence)
    differ = differ and (not tolerance or found.lower > tolerance)
    if not differ and not sets.cautions:
        return
    save_page(found, sets)
    lines = [
        "A and B differ" if differ else "A and B have other columns",
        *sets.cautions,
        f"p {tested.p_value:.2g}, and up to {level:g} counts as a difference: a two-sample test "
        f"(MMD) of {tested.rows[0]} rows of A and {tested.rows[1]} of B, seed {seed}",
        f"W1 is about {found.value:.4g}, and at least {found.lower:.4g} with {confidence:.4g} "
        f"confidence; {sets.units}",
        *([f"tolerated: {tolerance:g}"] if tolerance else []),
        *(_reasons(found, sets) if differ else []),
        *sets.said,
        f"to see it: {out}" if out else 'to see it: out="page.html" here or in wgan.wasserstein_1',
    ]
    raise DistributionsDiffer("\n  ".join(lines), found)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, Real) else repr(value)


def _reasons(found: Distance, sets: Sets) -> list[str]:
    """What differs: the columns that changed by themselves, and those that the critic blames."""
    changed = found_in(found.report)
    said = [change.in_words for change in changed[:MAX_NAMED]]
    if not changed:
        said.append("no column changed by itself: how they depend on each other may have")
    elif len(changed) > MAX_NAMED:
        said.append(f"and {len(changed) - MAX_NAMED} more changed by themselves")
    if found.report["p_value"] <= SIGNIFICANCE:
        names = sets.names or column_names(sets.a.shape[1:])
        said.append(f"together: {most_blamed(found.report['blame'], names)}")
    return said
