"""The gates that a challenger must pass before it is promoted.

A gate is a small function and one line in `challenger_gates` or `champion_gates`; if it has a
limit, the limit is a field of `GatesConfig`. Its result holds the two figures that it compared, an
interval where chance matters, and a reason that a person can act on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from models.artifact import load_artifact
from models.errors import ArtifactError, suggestion
from models.model import Model
from models.record import Figure, Finding
from models.schema_changes import schema_changes
from training.judging.copying import COPYING, Membership, copying_statistic
from training.judging.doctor.diagnosis import in_one_line
from training.judging.figures import FIGURES, figure
from training.judging.intervals import Difference, Estimate
from training.judging.metrics import Device
from training.judging.neighbours import nearest_distances
from training.retraining.evidence import Evidence, RegisteredModel, make_the_same

Array = np.ndarray
Loss = Literal[
    "kernel_distance", "frechet_distance", "wasserstein_1", "sliced_wasserstein_1", "pair_distance"
]
TABLE_LEAST = {"valid_share": 1.0}
"""Least values for tables, unless `GatesConfig.least` has others."""
LATENCY_COUNT = 64
LATENCY_REPEATS = 5
NEAR_SHARE = 0.05
"""Share of held-out items that count as near a training item: they set the distance."""


class GatesConfig(BaseModel):
    """The limits of the gates: how much evidence a promotion takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Loss | None = None
    """Distance that challenger and champion are compared by. None: kernel_distance for images,
    wasserstein_1 for vectors, sliced_wasserstein_1 for sequences, pair_distance for tables."""
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Most by which the challenger's loss may be greater, in the loss's own unit; 0: it must be
    less."""
    min_heldout: int = Field(default=100, ge=20)
    """Held-out items without which nothing is promoted."""
    precision: float = Field(default=0.4, ge=0, le=1)
    recall: float = Field(default=0.4, ge=0, le=1)
    coverage: float = Field(default=0.4, ge=0, le=1)
    """Least values; the lower end of the figure's 95% interval must reach them. For tables they
    stand in ``least``."""
    least: dict[str, float] = {}
    """Least values of any of the figures that `wgan evaluate` prints, by name; the lower end of the
    figure's interval must reach them. Tables: ``valid_share`` is 1 unless it is named."""
    most: dict[str, float] = {}
    """Greatest values, likewise; the upper end of the interval must not be above them."""
    max_drift: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    """Factor by which the champion's own loss may be greater on the new held-out items than it was
    when the champion was judged."""
    max_near_training: float = Field(default=0.15, ge=0, le=1)
    """Share of samples that may be as near to a training item as the nearest 5% of held-out items
    are."""
    max_membership: float = Field(default=0.55, ge=0.5, le=1)
    """Area under the curve of an attack that tells training items from held-out ones by samples;
    the lower end of its 95% interval may be no larger."""
    tolerated_findings: tuple[str, ...] = ()
    """Names of the doctor's findings that may be critical all the same."""
    max_seconds: float = Field(default=2.0, gt=0)
    """Seconds that 64 samples may take, on the machine that retrains, in one thread."""

    @field_validator("least", "most")
    @classmethod
    def _are_figures(cls, limits: dict[str, float]) -> dict[str, float]:
        for name in limits:
            if name not in FIGURES:
                raise ValueError(f"no figure '{name}'{suggestion(name, FIGURES)}")
        return limits


class Gate(BaseModel):
    """Result of one gate."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    passed: bool
    challenger: float | None = None
    reference: float | None = None
    """Compared with the challenger's figure: a champion's, a least or a greatest value."""
    interval: tuple[float, float] | None = None
    reason: str


def challenger_gates(evidence: Evidence, limits: GatesConfig) -> Iterator[Gate]:
    """Apply the gates that need no champion, in the order of ``decision.json``."""
    challenger = evidence.challenger
    yield enough_heldout(evidence.n, limits.min_heldout)
    if evidence.schema is None:
        for name in ("precision", "recall", "coverage"):
            share = figure(name, evidence.shares[name])
            yield within(name, share, least=getattr(limits, name))
    near = limits.max_near_training
    yield not_copied(evidence.fake, evidence.real, evidence.all_training(), near, evidence.device)
    yield not_told_apart(evidence.membership, limits.max_membership)
    yield no_critical_finding(challenger.run.findings, limits.tolerated_findings)
    yield within_budget(challenger, limits.max_seconds)
    least = {**({} if evidence.schema is None else TABLE_LEAST), **limits.least}
    for name, value in least.items():
        yield within(name, evidence.figures.get(name), least=value)
    for name, value in limits.most.items():
        yield within(name, evidence.figures.get(name), most=value)


def champion_gates(evidence: Evidence, limits: GatesConfig) -> Iterator[Gate]:
    """Apply the gates against the champion and the best champion so far; without one, none."""
    if (champion := evidence.champion) is None or (best := evidence.best) is None:
        return
    yield same_schema(evidence.challenger, champion)
    if make_the_same(champion.model, evidence.challenger):
        yield known_data(evidence, champion.model, limits.max_drift)
    yield no_worse_than(evidence, "champion", "the champion", champion, limits.margin)
    if best.version != champion.version:
        yield no_worse_than(evidence, "best_champion", "the best champion", best, limits.margin)


def sound(folder: Path, digest: str) -> tuple[Gate, Model | None]:
    """Check that the registered artifact is the trained one: checksums hold, and it loads.

    Args:
        folder: the artifact as the registry gives it.
        digest: of the artifact that was registered.

    Returns:
        The gate, and the model if it is passed.
    """
    try:
        model = load_artifact(folder)
        if model.digest != digest:
            raise ArtifactError(f"its digest is {model.digest}, not {digest}")
    except ArtifactError as error:
        return Gate(name="checksums", passed=False, reason=str(error)), None
    return Gate(name="checksums", passed=True, reason=f"digest {digest}"), model


def same_schema(challenger: Model, champion: RegisteredModel) -> Gate:
    """Check that the challenger makes and takes the same items as the champion."""
    changes = "; ".join(schema_changes(challenger.run, champion.model.run))
    remedy = "give it a name of its own (set.name), or promote it by hand with --force"
    reason = f"{changes}; {remedy}" if changes else "it makes the items that the champion makes"
    return Gate(name="schema", passed=not changes, reason=reason)


def enough_heldout(n: int, least: int) -> Gate:
    """Check that there are enough held-out items to judge by."""
    few = "" if n >= least else "; bring more data: too few to judge by"
    reason = f"{n} held-out items{few}"
    return Gate(name="heldout", passed=n >= least, challenger=n, reference=least, reason=reason)


def not_worse(name: str, other: str, loss: str, difference: Difference, margin: float) -> Gate:
    """Check that, with 95% confidence, a loss is at most ``margin`` above another model's.

    Args:
        name: of the gate.
        other: the other model, in words.
        loss: name of the loss.
        difference: the challenger's figure first; its upper end is the 95% bound.
        margin: in the loss's unit.
    """
    if difference.high <= margin:
        reason = f"{loss} is at most {difference.high:.4g} above that of {other}"
    elif difference.low > margin:
        reason = f"{loss} is at least {difference.low:.4g} above that of {other}: worse"
    else:
        reason = (
            f"cannot tell whether {loss} is within {margin:.4g} of that of {other}: the difference "
            f"is {difference.low:.4g} to {difference.high:.4g} on {difference.n} held-out items"
        )
    return Gate(
        name=name,
        passed=difference.high <= margin,
        challenger=difference.first,
        reference=difference.second,
        interval=(difference.low, difference.high),
        reason=reason,
    )


def no_worse_than(
    evidence: Evidence, name: str, other: str, rival: RegisteredModel, margin: float
) -> Gate:
    """Apply `not_worse` to the challenger and a registered model, if their items compare.

    Args:
        evidence: with the challenger.
        name: of the gate.
        other: the other model, in words.
        rival: the other model.
        margin: in the loss's unit.
    """
    if not make_the_same(rival.model, evidence.challenger):
        return Gate(name=name, passed=False, reason=f"{other} makes items that do not compare")
    called = f"{other} (version {rival.version})"
    difference = evidence.loss_difference(rival.model)
    return not_worse(name, called, evidence.loss, difference, margin)


def within(
    name: str, figure: Figure | None, *, least: float | None = None, most: float | None = None
) -> Gate:
    """Check that a figure keeps to its limit even at the end of its interval.

    Args:
        name: of the figure.
        figure: None if the data have no such figure.
        least: limit from below; give one of the two.
        most: limit from above.
    """
    limit = least if most is None else most
    if figure is None:
        missing = "set evaluation.target" if name == "tstr" else "the data do not have it"
        reason = f"{name} was not measured: {missing}"
        return Gate(name=name, passed=False, reference=limit, reason=reason)
    low, high = figure.interval
    passed = (least is None or low >= least) and (most is None or high <= most)
    bound, side, verdict = (low, "least", "too low") if most is None else (high, "most", "too high")
    floor = "" if figure.floor is None else f", and real data have {figure.floor:.3g}"
    return Gate(
        name=name,
        passed=passed,
        challenger=figure.value,
        reference=limit,
        interval=figure.interval,
        reason=f"{name} is {figure.value:.3f}, surely at {side} {bound:.3f}; "
        f"{'enough' if passed else verdict}: at {side} {limit:.3g} is wanted{floor}",
    )


def no_critical_finding(findings: list[Finding], tolerated: tuple[str, ...] = ()) -> Gate:
    """Check that the run's diagnosis found nothing critical, apart from tolerated names."""
    critical = [f for f in findings if f.severity == "critical" and f.name not in tolerated]
    reason = "; ".join(map(in_one_line, critical))
    return Gate(
        name="findings",
        passed=not critical,
        challenger=len(critical),
        reference=0,
        reason=reason or f"none of {len(findings)} findings is critical",
    )


def not_copied(
    fake: Array, heldout: Array, training: Iterable[Array], most: float, device: Device = "cpu"
) -> Gate:
    """Check that samples keep as far from training items as held-out real items do.

    A sample is near if it is nearer to a training item than all but the nearest `NEAR_SHARE` of the
    held-out items are. A perfect sampler has `NEAR_SHARE` such samples, a copier nothing else. The
    reason tells C_T too (`copying_statistic`), which decides nothing.

    Args:
        fake: ``(N, D)``.
        heldout: ``(M, D)``.
        training: ``(L, D)``, or several such arrays: all items, since a copy of an item that is
            left out is as far away as any sample.
        most: share of samples that may be near.
        device: where distances are computed.
    """
    distances = nearest_distances(np.concatenate([heldout, fake]), training, device=device)
    of_heldout, of_fake = distances[: len(heldout)], distances[len(heldout) :]
    limit = float(np.quantile(of_heldout, NEAR_SHARE))
    near = float((of_fake <= limit).mean())
    statistic = copying_statistic(fake, heldout, of_fake, of_heldout)
    margin = float(1.96 * np.sqrt(near * (1 - near) / len(fake)))
    return _not_surely_above(
        most,
        "memorisation",
        near,
        (near - margin, near + margin),
        f"{near:.1%} of the samples are within {limit:.4g} of a training item, as {NEAR_SHARE:.0%} "
        "of the held-out items are"
        + ("" if statistic is None else f"; C_T is {statistic:.3g}, below {COPYING:g} for copies"),
        f"; at most {most:.0%} may be: it repeats training items",
    )


def not_told_apart(found: Membership, most: float) -> Gate:
    """Check that samples do not tell which items were trained on.

    Args:
        found: by an attack that sees samples only.
        most: area under its curve that the interval's lower end may reach.
    """
    return _not_surely_above(
        most,
        "membership",
        found.auroc,
        (found.low, found.high),
        "the nearest sample tells a training item from a held-out one in "
        f"{found.auroc:.1%} of the pairs, surely in {found.low:.1%} (p = {found.p_value:.2g})",
        f"; at most {most:.0%} may be: it gives training items away",
    )


def known_data(evidence: Evidence, champion: Model, ratio: float) -> Gate:
    """Apply `familiar` to the champion, if its record is over the same features.

    Both losses are brought to one number of items, because most distances are larger on fewer. Of
    more items than were judged on then, so many are taken; for fewer, the recorded loss is raised.
    """
    if not evidence.judged_alike(champion):
        return Gate(name="data", passed=True, reason="not asked: the champion has other features")
    recorded = champion.run.results.figures[evidence.loss]
    now = evidence.loss_of(champion, recorded.n)
    growth = evidence.loss_growth(champion, now.n, recorded.n)
    return familiar(evidence.loss, now, recorded, ratio, growth)


def familiar(loss: str, now: Estimate, recorded: Figure, ratio: float, growth: float = 0.0) -> Gate:
    """Check that the new held-out items still look like what the champion was trained on.

    Spoiled data are spoiled in their held-out part too, where a model trained on them wins. The
    champion knows what the data were like, and looks worse on spoiled ones than it did on its own.

    Args:
        loss: name of the loss.
        now: the champion's loss on the new held-out items.
        recorded: the champion's loss when it was judged.
        ratio: factor by which it may have grown, beyond both intervals.
        growth: added to the recorded loss, which is of more items; see `Evidence.loss_growth`.
    """
    most = ratio * (recorded.interval[1] + growth)
    return _not_surely_above(
        most,
        "data",
        now.value,
        (now.low, now.high),
        f"{loss} of the champion is {now.value:.4g} on the held-out items, and was "
        f"{recorded.value:.4g} when it was judged"
        + (f" on {recorded.n}, {growth:.4g} less than on {now.n}" if growth else ""),
        ": the data are spoiled, or of a new kind (then raise max_drift once)",
    )


def _not_surely_above(
    most: float, name: str, value: float, interval: tuple[float, float], found: str, fault: str
) -> Gate:
    """Check that the lower end of a figure's interval is not above a limit.

    Args:
        most: the limit.
        name: of the gate.
        value: the figure.
        interval: of the figure, 95%.
        found: the reason, in words.
        fault: what follows if the gate is not passed.
    """
    passed = interval[0] <= most
    return Gate(
        name=name,
        passed=passed,
        challenger=value,
        reference=most,
        interval=interval,
        reason=found if passed else found + fault,
    )


def within_budget(model: Model, most: float) -> Gate:
    """Check that samples come fast enough: the median time of `LATENCY_COUNT`, in one thread."""
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
