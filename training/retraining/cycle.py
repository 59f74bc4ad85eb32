"""Scheduled retraining: train a challenger, judge it beside the champion, promote it or not.

Every part can be killed and repeated: the run's folder is named by what is trained, so that the
next attempt finds the last one's checkpoint, artifact and decision.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models import artifact, registry
from models.config import Config
from models.errors import ConfigError, RegistryError, UserError, suggestion
from models.model import Model
from models.record import DataCard, Extractor
from training.data.dataset import Dataset, load_data
from training.engine.loop import Interrupted, Row
from training.engine.workers import ALONE, Workers
from training.judging.evaluate import SAMPLE_SEED
from training.judging.extractors import FeatureExtractor, artifact_weights, load_extractor
from training.judging.figures import HEADLINES, distances
from training.judging.intervals import compare, measure
from training.judging.metrics import precision_recall_density_coverage
from training.presets import build_config
from training.retraining import gates
from training.retraining.gates import Gate, GatesConfig
from training.run import ARTIFACT, CHECKPOINTS, load_frozen, run_training
from training.tracking import flatten, record

Array = np.ndarray
DECISION = "decision.json"
OUTCOMES = "outcomes.jsonl"
KEY_TAG = "retrain_key"
"""Of a version: what it was trained from and how, as `run_key` tells it."""
OUTCOME_TAG = "retrain_outcome"
BEST_TAG = "best_champion"
"""Of a version: the best champion up to it. A version without the tag is its own best."""
TRAINING_ITEMS = 20_000
"""Training items, at most, among which a sample's nearest is looked for."""
PUSH_SECONDS = 5.0
JOB = "wgan_retrain"

OutcomeKind = Literal["promoted", "skipped", "rejected", "interrupted", "mistake", "failed"]
OUTCOME_KINDS: tuple[OutcomeKind, ...] = (
    "promoted",
    "skipped",
    "rejected",
    "interrupted",
    "mistake",
    "failed",
)


class RetrainConfig(BaseModel):
    """The file that `wgan retrain --config` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    """Settings to start from, as `wgan train --preset`."""
    data: str | None = None
    """Fetched anew each time, as `wgan train --data`; None: the preset's."""
    constraint: str | None = None
    """As `wgan train --constraint`; None: the preset's."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Any other settings, such as ``training.steps: 5000``, or nested; ``name`` is the model's."""
    folder: Path
    """For the runs. It must outlive the process, or there is nothing to resume."""
    reference: str | None = None
    """Data whose held-out items judge, in place of the new data's own: a set that is trusted."""
    gates: GatesConfig = GatesConfig()
    pushgateway: str | None = None
    """Address of a Prometheus Pushgateway that is told of each outcome."""

    def build(self) -> Config:
        """The configuration of the run.

        Raises:
            ConfigError: no such preset, key or value.
        """
        return build_config(self.preset, self.data, self.constraint, flatten(self.set))


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
    """That the challenger was compared with."""
    best: str
    """The best champion from here on, if the challenger is promoted."""
    data: dict[str, Any]
    extractor: Extractor | None
    loss: str
    sample_seed: int = SAMPLE_SEED
    gates: list[Gate]
    recorded: bool = False
    """Whether registry and tracking server know of it."""


class Outcome(NamedTuple):
    """How a retraining ended."""

    kind: OutcomeKind
    reason: str
    decision: Decision | None = None
    folder: Path | None = None
    """Of the run."""


@dataclass
class Cycle:
    """What the steps of one retraining share."""

    settings: RetrainConfig
    config: Config
    data: Dataset
    key: str
    folder: Path
    """Of this run."""
    judged: Dataset
    """Whose held-out items judge."""
    loss: str
    say: Callable[[str], None]
    stop_requested: Callable[[], bool]
    models: dict[str, Model] = field(default_factory=dict)
    """By version number."""

    def pause(self, before: str) -> None:
        """Stop here if asked to."""
        if self.stop_requested():
            raise Interrupted(f"stopped before {before}")


def read_config(path: Path) -> RetrainConfig:
    """Read a configuration in YAML or JSON.

    Raises:
        ConfigError: one line that names each fault and, for an unknown key, the nearest right one.
    """
    try:
        values = yaml.safe_load(path.read_text())  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no settings; write at least preset and folder")
    try:
        return RetrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(map(_describe, error.errors()))}") from None


def _describe(error: Any) -> str:
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        model = GatesConfig if error["loc"][0] == "gates" else RetrainConfig
        return f"{path}: no such key{suggestion(str(error['loc'][-1]), model.model_fields)}"
    given = "" if error["type"] == "missing" else f", got {error['input']!r}"
    return f"{path}: {error['msg']}{given}"


def retrain(
    settings: RetrainConfig,
    *,
    say: Callable[[str], None],
    report: Callable[[Row], None],
    stop_requested: Callable[[], bool],
    workers: Workers = ALONE,
) -> Outcome:
    """Run one retraining from data to decision.

    Args:
        settings: of the retraining.
        say: takes a line for people.
        report: see `training.engine.loop.train`.
        stop_requested: see `training.engine.loop.train`.
        workers: that train together; one of them decides. The folder must be the same for all.

    Returns:
        How it ended: promoted, skipped, rejected, or interrupted. After the last one, whether it
        was a signal, a registry that does not answer or a champion that changed meanwhile, the
        same call goes on where this one stopped.

    Raises:
        UserError: the configuration or the data cannot be used.
        Diverged: training failed.
    """
    config = settings.build()
    started = time.time()
    try:
        outcome = _run(settings, config, say, report, stop_requested, workers)
    except (Interrupted, RegistryError) as error:
        outcome = Outcome("interrupted", " ".join(str(error).split()))
    except Exception as error:
        if workers.is_main:
            kind: OutcomeKind = "mistake" if isinstance(error, UserError) else "failed"
            _tell(settings, config.name, Outcome(kind, str(error)), started, say)
        raise
    if workers.is_main:
        _tell(settings, config.name, outcome, started, say)
    return outcome


def _run(
    settings: RetrainConfig,
    config: Config,
    say: Callable[[str], None],
    report: Callable[[Row], None],
    stop_requested: Callable[[], bool],
    workers: Workers,
) -> Outcome:
    data = load_data(config.data, config.training.batch_size)
    key = run_key(config, data.card)
    folder = settings.folder / f"{config.name}-{key[:12]}"
    judged, loss = _judged_data(settings, config, data), _loss(settings, data)
    cycle = Cycle(settings, config, data, key, folder, judged, loss, say, stop_requested)
    with contextlib.ExitStack() as stack:
        done: Outcome | None = None
        if workers.is_main:
            holder = stack.enter_context(_lease(settings.folder / f"{config.name}.lease"))
            if holder is not None:
                done = Outcome("skipped", f"another retraining is under way: {holder}")
            else:
                done = _done_before(cycle)
        if workers.any(done is not None):
            workers.leave()
            return done or Outcome("skipped", "")
        reference = run_training(
            config,
            folder,
            workers.device,
            resume=True,
            register=True,
            say=say,
            report=report,
            stop_requested=stop_requested,
            workers=workers,
            data=data,
        )
        if reference is None:
            return Outcome("skipped", "the main process decides")
        return _settle(cycle, _decide(cycle, registry.resolve(reference)[1]))


def run_key(config: Config, card: DataCard) -> str:
    """What a run is trained from and how, as one hash.

    The data are told by their content, not by where they lie. Of labels, their names and how many
    items of each there are count.
    """
    settings = config.model_dump(mode="json")
    del settings["data"]["source"]
    content = [settings, card.sha256, card.classes, card.class_counts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _lease(path: Path) -> Iterator[str | None]:
    """Hold the right to retrain; yields None, or who holds it.

    A lock of the kernel's, which goes with the process however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read().strip()
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n")
            file.flush()
            yield None


def _done_before(cycle: Cycle) -> Outcome | None:
    """What an earlier run has decided of the same data and settings; None if there is more to do.

    A registry that does not answer is no reason not to train: it is asked again afterwards.
    """
    decision = _read_decision(cycle.folder)
    if decision and decision.outcome != "interrupted":
        if not decision.recorded:
            return _settle(cycle, decision)
        return _unchanged(cycle, f"{decision.outcome} on {decision.when}", decision)
    name = cycle.config.name
    try:
        found = registry.find(name, KEY_TAG, cycle.key)
        if found and OUTCOME_TAG in found:
            return _unchanged(cycle, f"{found[OUTCOME_TAG]}, version {found['version']}")
        champion = registry.champion(name)
        tags = registry.version(name, champion) if champion else {}
        if champion and tags.get("data_sha256") == cycle.data.card.sha256:
            run = _fetched(cycle, champion).run
            if run_key(run.config, run.data) == cycle.key:
                return _unchanged(cycle, f"the champion, version {champion}, is of them")
    except RegistryError as error:
        cycle.say(f"{error}; training goes on, and it is asked again afterwards")
    return None


def _unchanged(cycle: Cycle, what: str, decision: Decision | None = None) -> Outcome:
    reason = f"nothing changed: data ({cycle.data.card.sha256[:12]}) and settings are as before"
    return Outcome("skipped", f"{reason}: {what}", decision, cycle.folder if decision else None)


def _read_decision(folder: Path) -> Decision | None:
    path = folder / DECISION
    return Decision.model_validate_json(path.read_bytes()) if path.is_file() else None


def _write_decision(folder: Path, decision: Decision) -> None:
    new = folder / f".{DECISION}"
    new.write_text(decision.model_dump_json(indent=2) + "\n")
    os.replace(new, folder / DECISION)


def _fetched(cycle: Cycle, version: str) -> Model:
    """A registered model, loaded once."""
    if version not in cycle.models:
        with tempfile.TemporaryDirectory() as folder:
            fetched = registry.download(f"{cycle.config.name}@{version}", Path(folder))
            cycle.models[version] = artifact.load_artifact(fetched)
    return cycle.models[version]


def _decide(cycle: Cycle, version: str) -> Decision:
    """Put a registered challenger through the gates."""
    name, limits = cycle.config.name, cycle.settings.gates
    registry.tag(name, version, {KEY_TAG: cycle.key})
    champion = registry.champion(name)
    if champion == version:  # promoted by hand meanwhile: there is nothing to compare it with
        champion = None
    best = registry.version(name, champion).get(BEST_TAG, champion) if champion else None
    trained = artifact.verify(cycle.folder / ARTIFACT)
    with tempfile.TemporaryDirectory() as folder:
        fetched = registry.download(f"{name}@{version}", Path(folder))
        check, challenger = gates.sound(fetched, trained)
        extractor = None
        if challenger and challenger.is_image:
            extractor = _frozen_extractor(cycle.config, challenger, fetched)
    found = [check]
    successor = best or version
    n = min(cycle.config.evaluation.samples, cycle.judged.card.heldout_count)
    if challenger:
        cycle.say(f"comparing with {f'the champion, version {champion}' if champion else 'floors'}")
        beside = _fetched(cycle, champion) if champion else None
        evidence = _Evidence(cycle, challenger, extractor, n, beside)
        found += [
            gates.enough_heldout(n, limits.min_heldout),
            *evidence.floors(),
            gates.no_critical_finding(challenger.run.findings, limits.tolerated_findings),
            gates.within_budget(challenger, limits.max_seconds),
        ]
        if champion and best:
            cycle.pause("comparing with the champion")
            found += evidence.beside_champion(champion)
            if best != champion:
                found.append(evidence.no_worse_than(best, "best_champion", "the best champion"))
            one, other = found[-1].challenger, found[-1].reference
            if one is not None and other is not None and one <= other:
                successor = version
    failed = [gate for gate in found if not gate.passed]
    reason = (
        "; ".join(f"{gate.name}: {gate.reason}" for gate in failed) or f"passed {len(found)} gates"
    )
    return Decision(
        model=name,
        outcome="rejected" if failed else "promoted",
        reason=reason,
        who=getpass.getuser(),
        when=_now(),
        key=cycle.key,
        challenger=version,
        champion=champion,
        best=successor,
        data={
            "source": cycle.data.card.source,
            "sha256": cycle.data.card.sha256,
            "judged_on": cycle.judged.card.source,
            "judged_on_sha256": cycle.judged.card.sha256,
            "heldout": n,
        },
        extractor=extractor.card if extractor else None,
        loss=cycle.loss,
        gates=found,
    )


def _judged_data(settings: RetrainConfig, config: Config, data: Dataset) -> Dataset:
    """The data whose held-out items judge.

    An item is held out by its own hash, so that the held-out items of one set are trained on in no
    other that holds out as large a share.
    """
    if settings.reference is None:
        return data
    trusted = load_data(config.data.model_copy(update={"source": settings.reference}))
    if trusted.card.shape != data.card.shape:
        raise ConfigError(
            f"reference: {settings.reference} holds items of shape {trusted.card.shape}, the data "
            f"of {data.card.shape}; set data.size, or bring another"
        )
    return trusted


def _loss(settings: RetrainConfig, data: Dataset) -> str:
    kind, chosen = data.card.kind, settings.gates.loss
    fitting = HEADLINES[kind]
    if chosen is not None and chosen not in fitting:
        raise ConfigError(f"gates.loss: {chosen} is not for {kind}s; use {' or '.join(fitting)}")
    return chosen or fitting[0]


def _frozen_extractor(config: Config, challenger: Model, folder: Path) -> FeatureExtractor:
    """The features of the name's first champion, or, before there is one, the challenger's."""
    frozen = registry.frozen_extractor(config.name)
    if frozen:
        return load_frozen(config, frozen)
    judged = challenger.run.results.extractor
    assert judged is not None, "images are judged over features"
    return load_extractor(judged.name, config.evaluation, judged.sha256, artifact_weights(folder))


class _Evidence:
    """The figures of several models on the same held-out items, with the same seed."""

    def __init__(
        self,
        cycle: Cycle,
        challenger: Model,
        extractor: FeatureExtractor | None,
        n: int,
        champion: Model | None,
    ) -> None:
        self.cycle, self.challenger, self.extractor = cycle, challenger, extractor
        alike = champion is not None and champion.shape == challenger.shape
        self.scaling = champion.scaling if champion and alike else challenger.scaling
        self.n, self.loss, self._figure = n, cycle.loss, distances(cycle.loss)
        self.real = self._points(cycle.judged.some(n, heldout=True))
        self.training = self._points(cycle.data.some(TRAINING_ITEMS, heldout=False))
        self.fake = self._samples(challenger)

    def floors(self) -> list[Gate]:
        """The gates that need no champion."""
        limits = self.cycle.settings.gates
        shares = measure(precision_recall_density_coverage, self.real, self.fake, self.training)
        return [
            gates.at_least("precision", shares["precision"], limits.precision),
            gates.at_least("recall", shares["recall"], limits.recall),
            gates.at_least("coverage", shares["coverage"], limits.coverage),
            gates.not_copied(self.fake, self.real, self.training, limits.max_near_training),
        ]

    def beside_champion(self, version: str) -> list[Gate]:
        """The data must be familiar to the champion, and the challenger no worse than it."""
        champion = _fetched(self.cycle, version)
        if champion.shape != self.challenger.shape:
            return [
                Gate(
                    name="champion",
                    passed=False,
                    reason=f"the champion makes items of shape {champion.shape}, the challenger of "
                    f"{self.challenger.shape}: no figure compares them; promote by hand",
                )
            ]
        now = measure(self._figure, self.real, self._samples(champion), self.training)
        results = champion.run.results
        if (results.extractor and results.extractor.sha256) == (
            self.extractor and self.extractor.card.sha256
        ):
            ratio = self.cycle.settings.gates.max_drift
            known = gates.familiar(self.loss, now[self.loss], results.figures[self.loss], ratio)
        else:
            reason = "not asked: the champion was judged over other features"
            known = Gate(name="data", passed=True, reason=reason)
        return [known, self.no_worse_than(version, "champion", "the champion")]

    def no_worse_than(self, version: str, name: str, called: str) -> Gate:
        """The gate of the loss, against a version."""
        other = self._samples(_fetched(self.cycle, version))
        found = compare(self._figure, self.real, self.fake, other, level=gates.LEVEL)
        margin = self.cycle.settings.gates.margin
        return gates.not_worse(
            name, f"{called} (version {version})", self.loss, found[self.loss], margin
        )

    def _samples(self, model: Model) -> Array:
        return self._points(model.sample(SAMPLE_SEED, self.n))

    def _points(self, items: Array) -> Array:
        """Items as points: an extractor's features, or else in the champion critic's units.

        The challenger's own units follow from the new data, and one outlier there can make every
        distance small.
        """
        if self.extractor:
            return self.extractor(items)
        scaled = self.scaling.to_model(torch.from_numpy(items))
        return scaled.double().flatten(1).numpy()


def _settle(cycle: Cycle, decision: Decision) -> Outcome:
    """Carry a decision out: write it down, promote, and tell the registry.

    Between the check of the champion and the change of the alias lies one request: MLflow's aliases
    have no compare-and-set. Whoever promotes by hand in that moment is overruled; the history has
    both.
    """
    name, version = decision.model, decision.challenger
    _write_decision(cycle.folder, decision)
    if decision.outcome == "promoted":
        cycle.pause("promoting")
        registry.tag(name, version, {BEST_TAG: decision.best})
        now = registry.champion(name)
        if now not in (decision.champion, version):
            decision = decision.model_copy(
                update={
                    "outcome": "interrupted",
                    "reason": f"the champion compared with was version {decision.champion}, and "
                    f"now is version {now}; run again to compare with that",
                }
            )
        elif now != version:
            registry.promote(name, version, f"retraining: {decision.reason}")
    if decision.outcome != "interrupted":
        decision = decision.model_copy(update={"recorded": True})
        text = decision.model_dump_json(indent=2) + "\n"
        record(name, version, DECISION, text, {OUTCOME_TAG: decision.outcome})
        shutil.rmtree(cycle.folder / CHECKPOINTS, ignore_errors=True)  # the artifact has it all
    _write_decision(cycle.folder, decision)
    return Outcome(decision.outcome, decision.reason, decision, cycle.folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _tell(
    settings: RetrainConfig,
    name: str,
    outcome: Outcome,
    started: float,
    say: Callable[[str], None],
) -> None:
    """Write the outcome into the list of outcomes, and push it to the Pushgateway."""
    path = settings.folder / OUTCOMES
    if settings.folder.is_dir():  # a mistake makes no folder
        line = {
            "model": name,
            "when": _now(),
            "outcome": outcome.kind,
            "reason": outcome.reason,
            "folder": str(outcome.folder) if outcome.folder else None,
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    if settings.pushgateway is None:
        return
    from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

    batch = CollectorRegistry()

    def gauge(key: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"wgan_retrain_{key}", text, labels, registry=batch)

    kinds = gauge("outcome", "1 for how the last retraining ended, 0 for the others", ("outcome",))
    for kind in OUTCOME_KINDS:
        kinds.labels(kind).set(kind == outcome.kind)
    listed = _listed(path, name)
    gauge("finished_timestamp_seconds", "When one last ended, but by an interruption").set(
        _last_end(listed)
    )
    gauge("duration_seconds", "How long it took").set(time.time() - started)
    rejected, failed = _in_a_row([line["outcome"] for line in listed])
    gauge("rejected_in_a_row", "Rejections since the last promotion").set(rejected)
    gauge("failed_in_a_row", "Failures and mistakes since the last other end").set(failed)
    if outcome.decision:
        passed = gauge("gate_passed", "1 if the gate was passed", ("gate",))
        figures = gauge("gate_challenger", "The challenger's figure at a gate", ("gate",))
        others = gauge("gate_reference", "What it was compared with", ("gate",))
        for gate in outcome.decision.gates:
            passed.labels(gate.name).set(gate.passed)
            if gate.challenger is not None and gate.reference is not None:
                figures.labels(gate.name).set(gate.challenger)
                others.labels(gate.name).set(gate.reference)
    try:
        push_to_gateway(
            settings.pushgateway, JOB, batch, grouping_key={"model": name}, timeout=PUSH_SECONDS
        )
    except OSError as error:
        say(f"the Pushgateway {settings.pushgateway} was not told: {error}")


def _listed(path: Path, name: str) -> list[dict[str, Any]]:
    """The outcomes of a model so far, oldest first."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["model"] == name]


def _last_end(listed: list[dict[str, Any]]) -> float:
    """When a retraining last ended for good, in seconds since 1970.

    One that is interrupted again and again has not. Where none has ended yet, the time counts from
    the first interruption, so that somebody is told in the end.
    """
    ends = [line for line in listed if line["outcome"] != "interrupted"] or listed[:1]
    return datetime.fromisoformat(ends[-1]["when"]).timestamp() if ends else time.time()


def _in_a_row(kinds: list[str]) -> tuple[int, int]:
    """Rejections since the last promotion, and failures since the last end that was none."""
    decided = [kind for kind in kinds if kind in ("promoted", "rejected")]
    ended = [kind in ("failed", "mistake") for kind in kinds if kind != "interrupted"]

    def last(values: list[bool]) -> int:
        return len(values) if all(values) else values[::-1].index(False)

    return last([kind == "rejected" for kind in decided]), last(ended)
