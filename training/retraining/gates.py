"""What a challenger must show before it is promoted. Each gate is one small function.

A gate says whether it is passed, the two figures that it compared, an interval where chance has a
say, and a reason that a person can act on.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from models.artifact import load_artifact
from models.errors import ArtifactError
from models.model import Model
from models.record import Figure, Finding
from training.judging.doctor import in_one_line
from training.judging.intervals import Difference, Estimate
from training.judging.metrics import nearest_distances

Array = np.ndarray
Loss = Literal["kernel_distance", "frechet_distance", "wasserstein_1", "sliced_wasserstein_1"]
LEVEL = 0.9
"""Of the interval of a difference, so that its upper end is a 95% bound."""
LATENCY_COUNT = 64
LATENCY_REPEATS = 5
NEAR = 0.05
"""Share of held-out items that count as near a training item: they set the distance."""


class GatesConfig(BaseModel):
    """How much evidence a promotion takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Loss | None = None
    """What challenger and champion are compared by. None: kernel_distance for images,
    wasserstein_1 for vectors, sliced_wasserstein_1 for sequences."""
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """How much greater the challenger's loss may be, in the loss's own unit; 0: it must be less."""
    min_heldout: int = Field(default=100, ge=20)
    """Held-out items without which nothing is promoted."""
    precision: float = Field(default=0.4, ge=0, le=1)
    recall: float = Field(default=0.4, ge=0, le=1)
    coverage: float = Field(default=0.4, ge=0, le=1)
    """Least values; the lower end of the figure's 95% interval must reach them."""
    max_drift: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    """How many times greater the champion's own loss may be on the new held-out items than it was
    when the champion was judged."""
    max_near_training: float = Field(default=0.25, ge=0, le=1)
    """Share of samples that may be as near to a training item as the nearest 5% of held-out items
    are."""
    tolerated_findings: tuple[str, ...] = ()
    """Names of the doctor's findings that may be critical all the same."""
    max_seconds: float = Field(default=2.0, gt=0)
    """For 64 samples, on the machine that retrains, in one thread."""


class Gate(BaseModel):
    """What one gate found."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    passed: bool
    challenger: float | None = None
    reference: float | None = None
    """What the challenger's figure was compared with: a champion's, a least or a greatest value."""
    interval: tuple[float, float] | None = None
    reason: str


def sound(folder: Path, digest: str) -> tuple[Gate, Model | None]:
    """Whether the registered artifact is the one that was trained: checksums hold, and it loads.

    Args:
        folder: the artifact as the registry gives it.
        digest: of the artifact that was registered.
    """
    try:
        model = load_artifact(folder)
        if model.digest != digest:
            raise ArtifactError(f"its digest is {model.digest}, not {digest}")
    except ArtifactError as error:
        return Gate(name="checksums", passed=False, reason=str(error)), None
    return Gate(name="checksums", passed=True, reason=f"digest {digest}"), model


def enough_heldout(n: int, least: int) -> Gate:
    """Whether there are held-out items enough to tell anything."""
    reason = f"{n} held-out items" + (
        "" if n >= least else "; bring more data: too few to judge by"
    )
    return Gate(name="heldout", passed=n >= least, challenger=n, reference=least, reason=reason)


def not_worse(name: str, other: str, loss: str, found: Difference, margin: float) -> Gate:
    """Whether the challenger's loss is, with 95% confidence, at most ``margin`` above another's.

    Args:
        name: of the gate.
        other: what the other model is called.
        loss: its name.
        found: the challenger's figure first.
        margin: in the loss's unit.
    """
    if found.high <= margin:
        reason = f"{loss} is at most {found.high:.4g} above that of {other}"
    elif found.low > margin:
        reason = f"{loss} is at least {found.low:.4g} above that of {other}: worse"
    else:
        reason = (
            f"cannot tell whether {loss} is within {margin:.4g} of that of {other}: the difference "
            f"is {found.low:.4g} to {found.high:.4g} on {found.n} held-out items"
        )
    return Gate(
        name=name,
        passed=found.high <= margin,
        challenger=found.first,
        reference=found.second,
        interval=(found.low, found.high),
        reason=reason,
    )


def at_least(name: str, figure: Estimate, least: float) -> Gate:
    """Whether a share reaches its least value, even at the lower end of its interval."""
    passed = figure.low >= least
    return Gate(
        name=name,
        passed=passed,
        challenger=figure.value,
        reference=least,
        interval=(figure.low, figure.high),
        reason=f"{name} is {figure.value:.3f}, surely at least {figure.low:.3f}; "
        f"{'enough' if passed else 'too low'}: {least:.3g} is wanted, and real data have "
        f"{figure.floor:.3f}",
    )


def no_critical_finding(findings: list[Finding], tolerated: tuple[str, ...] = ()) -> Gate:
    """Whether the run's diagnosis found nothing critical but what is tolerated, by name."""
    critical = [f for f in findings if f.severity == "critical" and f.name not in tolerated]
    said = "; ".join(map(in_one_line, critical))
    return Gate(
        name="findings",
        passed=not critical,
        challenger=len(critical),
        reference=0,
        reason=said or f"none of {len(findings)} findings is critical",
    )


def not_copied(fake: Array, heldout: Array, training: Array, most: float) -> Gate:
    """Whether samples keep such a distance from training items as held-out real items do.

    A sample is near if it is nearer to a training item than all but the nearest `NEAR` of the
    held-out items are. Of a perfect sampler `NEAR` of the samples are, of a copier all.

    Args:
        fake: ``(N, D)``.
        heldout: ``(M, D)``.
        training: ``(L, D)``.
        most: share of samples that may be near.
    """
    limit = float(np.quantile(nearest_distances(heldout, training), NEAR))
    near = float((nearest_distances(fake, training) <= limit).mean())
    margin = float(1.96 * np.sqrt(near * (1 - near) / len(fake)))
    passed = near - margin <= most
    return Gate(
        name="memorisation",
        passed=passed,
        challenger=near,
        reference=most,
        interval=(near - margin, near + margin),
        reason=f"{near:.1%} of the samples are within {limit:.4g} of one of {len(training)} "
        f"training items, as {NEAR:.0%} of the held-out items are"
        + ("" if passed else f"; at most {most:.0%} may be: it repeats training items"),
    )


def familiar(loss: str, now: Estimate, recorded: Figure, ratio: float) -> Gate:
    """Whether the new held-out items still look like what the champion was trained on.

    Spoiled data are spoiled in their held-out part too, where a model trained on them wins. The
    champion knows what the data were like, and looks worse on spoiled ones than it did on its own.

    Args:
        loss: its name.
        now: the champion's, on the new held-out items.
        recorded: the champion's when it was judged.
        ratio: how many times greater it may have become, beyond both intervals.
    """
    most = ratio * recorded.interval[1]
    passed = now.low <= most
    return Gate(
        name="data",
        passed=passed,
        challenger=now.value,
        reference=most,
        interval=(now.low, now.high),
        reason=f"{loss} of the champion is {now.value:.4g} on the held-out items, and was "
        f"{recorded.value:.4g} when it was judged"
        + (
            "" if passed else ": the data are spoiled, or of a new kind (then raise max_drift once)"
        ),
    )


def within_budget(model: Model, most: float) -> Gate:
    """Whether samples come fast enough: the median time of `LATENCY_COUNT`, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the service runs
    try:
        times = []
        for _ in range(LATENCY_REPEATS):
            started = time.perf_counter()
            model.sample(0, LATENCY_COUNT)
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    seconds = statistics.median(times)
    return Gate(
        name="latency",
        passed=seconds <= most,
        challenger=seconds,
        reference=most,
        interval=(min(times), max(times)),
        reason=f"{LATENCY_COUNT} samples take {seconds * 1000:.1f} ms; {most * 1000:.0f} ms may be",
    )
