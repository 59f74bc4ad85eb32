"""The end of a retraining: the decision, the list of outcomes, and what a Pushgateway is told."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict

from models.durable import append_line, read_file, read_lines, write_file
from models.errors import (
    AwayError,
    ConfigError,
    MachineError,
    UnreachableError,
    UserError,
)
from models.record import Extractor
from training.engine.runs import Interrupted
from training.judging.evaluate import SAMPLE_SEED
from training.retraining.config import RetrainConfig, who_is_told
from training.retraining.folder import room
from training.retraining.gates import Gate

DECISION = "decision.json"
OUTCOMES = "outcomes.jsonl"
PUSH_SECONDS = 5.0
MAX_INTERRUPTIONS = 12
"""Interruptions at the same place, such as by a registry that never answers, which are a failure.
With Kubernetes' waits between them, at most 10 minutes, they take about an hour."""
JOB = "wgan_retrain"

OutcomeKind = Literal[
    "promoted", "skipped", "rejected", "interrupted", "killed", "mistake", "failed"
]
OUTCOME_KINDS: tuple[OutcomeKind, ...] = get_args(OutcomeKind)
NO_END = ("interrupted", "killed")


class Decision(BaseModel):
    """`decision.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    model: str
    outcome: Literal["promoted", "rejected", "interrupted"]
    reason: str
    who: str
    when: str
    key: str
    challenger: str
    """Version number, as are the next two."""
    champion: str | None
    """The version that the challenger was compared with."""
    best: str
    """The best champion from here on, if the challenger is promoted."""
    data: dict[str, Any]
    extractor: Extractor | None
    loss: str
    sample_seed: int = SAMPLE_SEED
    gates: list[Gate]
    recorded: bool = False
    """Registry and tracking server know of the decision."""

    @classmethod
    def read(cls, folder: Path) -> Decision | None:
        """Read the decision of a run; None if there is none yet.

        Raises:
            BrokenFileError: it was cut or changed.
        """
        path = folder / DECISION
        if not path.is_file():
            return None
        remedy = "remove it, and the next retraining asks the registry instead"
        return read_file(path, cls.model_validate_json, remedy)

    def write(self, folder: Path) -> None:
        """Write the decision into the run's folder, whole or not at all."""
        write_file(folder / DECISION, self.text())

    def text(self) -> str:
        """Write the decision as JSON."""
        return self.model_dump_json(indent=2) + "\n"


class Outcome(NamedTuple):
    """The end of a retraining."""

    kind: OutcomeKind
    reason: str
    decision: Decision | None = None
    folder: Path | None = None
    """The run's."""


def kind_of(error: Exception) -> OutcomeKind:
    """Tell an end that may be another one when it is run again from one that will not.

    What does not answer may do so later. That a thing is absent or forbidden is an answer, and to
    ask again, or at a wrong address, would change nothing.
    """
    if isinstance(error, MachineError):
        return "failed"
    if isinstance(error, Interrupted | AwayError | UnreachableError):
        return "interrupted"
    return "mistake" if isinstance(error, UserError) else "failed"


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def publish(
    settings: RetrainConfig,
    name: str,
    outcome: Outcome,
    started: float,
    say: Callable[[str], None],
    place: str | None = None,
    needed: int | None = None,
    current: Path | None = None,
) -> Outcome:
    """Write an outcome into the list of outcomes, and push it to the Pushgateway.

    Args:
        settings: of the retraining.
        name: the model's.
        outcome: the end of the retraining.
        started: when it started, in seconds since 1970.
        say: takes a line for people; a folder that is full, or a gateway that does not answer, is
            no error.
        place: how far the retraining has come; None if it did not begin.
        needed: bytes that a run needs in the folder, about; None if that is not known.
        current: folder of the run at work; None if there is none.

    Returns:
        The outcome that was written: an interruption that gets no further becomes a failure.
    """
    path = settings.folder / OUTCOMES
    earlier = _outcomes(path, name, say)
    interruptions = 0
    if outcome.kind == "interrupted":
        interruptions = 1 + _interruptions(earlier, place)
        if interruptions % MAX_INTERRUPTIONS == 0:
            reason = f"interrupted {interruptions} times without getting further; {outcome.reason}"
            outcome = outcome._replace(kind="failed", reason=reason)
    line = {
        "model": name,
        "when": now(),
        "outcome": outcome.kind,
        "reason": outcome.reason,
        "folder": str(outcome.folder) if outcome.folder else None,
        "place": place,
        "interruptions": interruptions,
    }
    outcomes = [*earlier, line]
    if settings.folder.is_dir():  # a mistake makes no folder
        try:
            append_line(path, json.dumps(line))
        except OSError as error:
            say(f"warning: the outcome was not written into {path}: {error}")
    if settings.pushgateway is not None:
        try:
            _push(settings, name, outcome, outcomes, started, needed, current)
        # What answers may speak no HTTP, and the address may be none.
        except (OSError, http.client.HTTPException, ValueError) as error:
            say(f"the Pushgateway {settings.pushgateway} was not told: {error}")
    return outcome


def publish_mistake(path: Path, error: UserError, say: Callable[[str], None]) -> None:
    """Publish that a configuration cannot be used, as far as it says to whom.

    Args:
        path: of the configuration.
        error: what is wrong.
        say: see `publish`.
    """
    try:
        settings, name = who_is_told(path)
    except ConfigError:
        return  # the error itself is told by the caller
    publish(settings, name, Outcome("mistake", str(error)), time.time(), say)


def _push(
    settings: RetrainConfig,
    name: str,
    outcome: Outcome,
    outcomes: list[dict[str, Any]],
    started: float,
    needed: int | None,
    current: Path | None,
) -> None:
    from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

    batch = CollectorRegistry()

    def gauge(key: str, text: str, *label: str) -> Gauge:
        labels = ("model", *label)
        metric = Gauge(f"wgan_retrain_{key}", text, labels, registry=batch)
        return metric if label else metric.labels(name)

    kinds = gauge("outcome", "1 for how the last retraining ended, 0 for the others", "outcome")
    for kind in OUTCOME_KINDS:
        kinds.labels(name, kind).set(kind == outcome.kind)
    gauge("finished_timestamp_seconds", "When one last ended, but by an interruption").set(
        _last_end(outcomes)
    )
    gauge("duration_seconds", "How long it took").set(time.time() - started)
    rejected, failed, killed = _in_a_row([line["outcome"] for line in outcomes])
    gauge("rejected_in_a_row", "Rejections since the last promotion").set(rejected)
    gauge("failed_in_a_row", "Failures and mistakes since the last other end").set(failed)
    gauge("killed_in_a_row", "Kills without a word since the last end").set(killed)
    if needed is not None and settings.folder.is_dir():
        gauge("disk_needed_bytes", "What a run needs in the folder, about").set(needed)
        is_decided = outcome.decision is not None and outcome.kind != "interrupted"
        free = room(settings.folder, name, settings.keep_runs, None if is_decided else current)
        gauge("disk_free_bytes", "What the next run may use there").set(free)
    gauge("interrupted_in_a_row", "Interruptions without getting further").set(
        outcomes[-1]["interruptions"]
    )
    if outcome.decision:
        passed = gauge("gate_passed", "1 if the gate was passed", "gate")
        figures = gauge("gate_challenger", "The challenger's figure at a gate", "gate")
        references = gauge("gate_reference", "What it was compared with", "gate")
        for gate in outcome.decision.gates:
            passed.labels(name, gate.name).set(gate.passed)
            if gate.challenger is not None and gate.reference is not None:
                figures.labels(name, gate.name).set(gate.challenger)
                references.labels(name, gate.name).set(gate.reference)
    group = settings.push_labels or {"model": name}
    address = str(settings.pushgateway)
    push_to_gateway(address, JOB, batch, grouping_key=group, timeout=PUSH_SECONDS)


def _outcomes(path: Path, name: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Read the outcomes of a model so far, oldest first."""
    return [line for line in read_lines(path, say) if line.get("model") == name]


def _interruptions(outcomes: list[dict[str, Any]], place: str | None) -> int:
    """Count the last interruptions that came no further than a place."""
    for line in reversed(outcomes):
        is_here = line.get("place") == place
        if line["outcome"] == "killed" or (line["outcome"] == "skipped" and is_here):
            continue  # such as by another one under way
        return int(line.get("interruptions", 0)) if is_here else 0
    return 0


def _last_end(outcomes: list[dict[str, Any]]) -> float:
    """Find when a retraining last ended for good, in seconds since 1970.

    One that was interrupted or killed has not ended. Where none has ended yet, the time counts from
    the first of these, or nobody would ever be told.
    """
    ends = [line for line in outcomes if line["outcome"] not in NO_END] or outcomes[:1]
    return datetime.fromisoformat(ends[-1]["when"]).timestamp() if ends else time.time()


def _in_a_row(kinds: list[str]) -> tuple[int, int, int]:
    """Count the rejections since the last promotion, and the failures since the last other end.

    The third count is of kills since the last end of any kind.
    """
    decided = [kind for kind in kinds if kind in ("promoted", "rejected")]
    ended = [kind in ("failed", "mistake") for kind in kinds if kind not in NO_END]
    killed = [kind == "killed" for kind in kinds if kind != "interrupted"]

    def last(values: list[bool]) -> int:
        return len(values) if all(values) else values[::-1].index(False)

    return last([kind == "rejected" for kind in decided]), last(ended), last(killed)
