"""Generated rows that are training rows, or nearer to them than chance has it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from training.data.digests import row_digests
from training.judging.copying import authentic, membership
from training.judging.metrics import Device
from training.judging.neighbours import nearest_distances
from training.judging.tables.uses import Reading

Array = np.ndarray


def nearer_to_training(fake: Array, training: Array, heldout: Array) -> Reading:
    """Share of generated rows that are nearer to a training row than to any held-out row.

    The distance to the closest record, against a holdout (Platzer & Reutterer 2021, section 2.3).
    There are as many rows of both kinds, so that a generator that does not know which were trained
    on has 0.5 in the mean, however good it is. Ties count half.

    The interval takes the generated rows that share their nearest row as one draw, since that row's
    kind decides for all of them, and each kind to have the chance 0.5.

    Args:
        fake: codes ``(N, width)``.
        training: codes ``(M, width)``.
        heldout: codes ``(M, width)``.
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    (near, to_training), (other, to_heldout) = (
        pairwise_distances_argmin_min(fake, x) for x in (training, heldout)
    )
    ties = np.isclose(to_training, to_heldout, rtol=1e-6, atol=1e-6)  # beyond rounding
    nearer = np.where(ties, 0.5, to_training < to_heldout)
    share = float(nearer.mean())
    nearest = np.where(to_training < to_heldout, near, len(training) + other)
    sizes = np.bincount(nearest)
    margin = float(1.96 * 0.5 * np.sqrt((sizes**2).sum())) / len(fake)
    return Reading(share, share - margin, share + margin)


def authenticity(fake: Array, training: Array, device: Device = "cpu") -> Reading:
    """Share of generated rows that `training.judging.copying.authentic` takes for new; of codes."""
    return _share(authentic(fake, training, device))


def distance_ratio(fake_distances: Array, heldout_distances: Array) -> Reading:
    """Median distance of generated rows from the nearest training rows, over that of held-out ones.

    1 for rows like real ones, 0 for copies, above 1 for rows that are far from the data.

    Args:
        fake_distances: ``(N,)``, from each generated row to its nearest training row.
        heldout_distances: ``(M,)``, the same for held-out rows.

    Returns:
        The interval is of 200 bootstrap samples of both, seed 0. 1 where both medians are 0.
    """
    rng = np.random.default_rng(0)

    def ratio(a: Array, b: Array) -> float:
        low, high = float(np.median(a)), float(np.median(b))
        return low / high if high else float(low == 0) or 1e9

    draws = [
        ratio(rng.choice(fake_distances, len(fake_distances)),
              rng.choice(heldout_distances, len(heldout_distances)))
        for _ in range(200)
    ]  # fmt: skip
    low, high = np.quantile(draws, [0.025, 0.975])
    return Reading(ratio(fake_distances, heldout_distances), float(low), float(high))


def exact_copies(fake: Array, training: Array) -> Reading:
    """Share of the generated rows that equal a training row in every learned column.

    Args:
        fake: rows' hashes, as `hashes` makes them.
        training: those of all training rows.
    """
    known = set(_as_bytes(training))
    return _share(np.array([row in known for row in _as_bytes(fake)], float))


def hashes(rows: Array) -> Array:
    """Hash rows, as `training.judging.tables.rows.comparable` makes them: uint8 ``(N, 16)``."""
    names = rows.dtype.names or ()
    return row_digests(((name, pa.array(rows[name])) for name in names), len(rows))


def membership_attack(
    fake: Array, training: Array, heldout: Array, device: Device = "cpu"
) -> Reading:
    """How well the nearest generated row tells a training row from a held-out one.

    See `training.judging.copying.membership`; rows are codes ``(N, width)``, and distances are
    computed on the device.
    """
    signals = (-nearest_distances(x, fake, device=device) for x in (training, heldout))
    found = membership(*signals)
    return Reading(found.auroc, found.low, found.high)


def _share(hits: Array) -> Reading:
    share = float(hits.mean())
    margin = float(1.96 * hits.std() / np.sqrt(len(hits)))
    return Reading(share, share - margin, share + margin)


def _as_bytes(hashes: Array) -> list[bytes]:
    return np.ascontiguousarray(hashes).view("V16")[:, 0].tolist()
