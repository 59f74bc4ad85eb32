"""Scheduled retraining: train a challenger, judge it beside the champion, promote it or not.

Every part can be killed and repeated: the run's folder is named by what is trained, and the next
attempt finds the last one's checkpoint, artifact and decision there.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable

import torch

from models import artifact, champions, promotions, registry
from models.durable import remove_partial
from models.errors import (
    AbsentError,
    ArtifactError,
    AwayError,
    MachineError,
    RegistryError,
    UnreachableError,
)
from models.outputs import lease, require_file
from models.redaction import redacted
from models.registry_errors import is_of_this_machine
from models.registry_files import require_files
from models.run_folder import ARTIFACT, CHECKPOINTS
from models.signing import configured_key, sign_version
from models.trained import artifact_folder
from training.engine.runs import Interrupted, Row, stoppable
from training.engine.workers import ALONE, Workers
from training.progress import never, no_report, phase, silent
from training.retraining.begin import Cycle, begin, run_key
from training.retraining.config import RetrainConfig
from training.retraining.evidence import (
    Evidence,
    choose_features,
)
from training.retraining.folder import make_room
from training.retraining.gates import challenger_gates, champion_gates, sound
from training.retraining.outcomes import DECISION, Decision, Outcome, kind_of, now, publish
from training.run import run_training
from training.tracking import record

Report = Callable[[int], Callable[[Row], None]]
KEY_TAG = "retrain_key"
"""Tag of a version: the hash of what it was trained from and how; see `run_key`."""
OUTCOME_TAG = "retrain_outcome"
COMPARED_TAG = "retrain_champion"
"""Tag of a version: the champion that it was compared with, or `NOTHING`."""
NOTHING = "none"
BEST_TAG = "best_champion"
"""Tag of a version: the best champion up to it. A version without the tag is its own best."""


def retrain(
    settings: RetrainConfig,
    *,
    say: Callable[[str], None] = silent,
    report: Report = no_report,
    stop_requested: Callable[[], bool] = never,
    workers: Workers = ALONE,
) -> Outcome:
    """Run one retraining from data to decision.

    Args:
        settings: what is trained, and the limits of the gates.
        say: takes a line for people.
        report: see `training.run.run_training`.
        stop_requested: see `training.engine.loop.train`.
        workers: processes that train together; one of them decides. The folder must be the same for
            all.

    Returns:
        The outcome: promoted, skipped, rejected, interrupted or failed. An interruption may be a
        signal, a registry or a server of data that does not answer, or a champion that changed
        meanwhile; the same call then goes on where this one stopped. Interruptions that get no
        further fail in the end.

    Raises:
        UserError: the configuration or the data cannot be used, or the registry refuses.
        Diverged: training failed.
    """
    config = settings.build()
    started = time.time()
    cycle: Cycle | None = None

    def end(outcome: Outcome) -> Outcome:
        if not workers.is_main:
            return outcome
        at = (cycle.place, cycle.needed, cycle.folder) if cycle else ()
        return publish(settings, config.name, outcome, started, say, *at)

    def killed(who: str) -> None:
        end(Outcome("killed", f"killed without a word ({who}): was its memory enough?"))

    path = settings.folder / f"{config.name}.lease"
    try:
        require_file(path)
        configured_key()  # one that cannot sign is told before the training, not after it
        with lease(path, killed) if workers.is_main else contextlib.nullcontext() as holder:
            cycle = begin(settings, config, say, stop_requested, workers)
            outcome = _run(cycle, holder, report, workers)
    except Exception as error:
        outcome = end(Outcome(kind_of(error), redacted(" ".join(str(error).split()))))
        known = isinstance(error, Interrupted | RegistryError | UnreachableError)
        if outcome.kind == "mistake" or not (known or is_of_this_machine(error)):
            raise
        return outcome
    return end(outcome)


def _run(cycle: Cycle, holder: str | None, report: Report, workers: Workers) -> Outcome:
    config, folder = cycle.config, cycle.folder
    done: Outcome | str | None = None
    if holder is not None:
        done = Outcome("skipped", f"another retraining is under way: {holder}")
    elif workers.is_main:
        remove_partial(folder)  # of a run that was killed, also where nothing is left to train
        done = _done_before(cycle)
        if done is None:
            make_room(folder, config.name, cycle.settings.keep_runs, cycle.needed, cycle.say)
    try:
        is_done = workers.any(done is not None)
    except RuntimeError as error:  # how torch says that another process has left the group
        workers.leave()  # or torch's own thread ends this process by a signal, at times
        raise Interrupted(f"another process has ended before the training: {error}") from error
    if is_done:
        workers.leave()
        if isinstance(done, str):
            return _settle(cycle, _judge(cycle, done, workers.device))
        return done or Outcome("skipped", "")
    reference = run_training(
        config,
        folder,
        workers.device,
        resume=True,
        say=cycle.say,
        report=report,
        stop_requested=cycle.stop_requested,
        workers=workers,
        data=cycle.data,
        start=cycle.start,
    )
    if reference is None:
        return Outcome("skipped", "the main process decides")
    return _settle(cycle, _judge(cycle, registry.resolve(reference)[1], workers.device))


def _judge(cycle: Cycle, version: str, device: torch.device) -> Decision:
    with stoppable(cycle.stop_requested, "judging the challenger"):
        return _decide(cycle, version, device)


def _done_before(cycle: Cycle) -> Outcome | str | None:
    """Look up an earlier decision on the same data and settings.

    Returns:
        The outcome, if nothing is left to do; the version that is to be judged anew, if its
        decision does not hold any more; None if there is more to do.
    """
    decision = Decision.read(cycle.folder)
    if decision is None or decision.outcome == "interrupted":
        return _known(cycle)
    try:
        if not decision.recorded:
            return _settle(cycle, decision)
        if not _holds(cycle, decision.outcome, decision.champion is None):
            _require_all(cycle, decision.challenger)
            return decision.challenger
    except AbsentError as error:
        cycle.say(f"{error}; the model is registered and judged anew")
        return None
    except (AwayError, MachineError) as error:
        if not decision.recorded:
            raise
        cycle.say(str(error))
    return _unchanged(cycle, f"{decision.outcome} on {decision.when}", decision)


def _known(cycle: Cycle) -> Outcome | str | None:
    """Ask the registry what `_done_before` does not find in the folder.

    A registry that does not answer is no reason not to train: it is asked again afterwards.
    """
    name = cycle.config.name
    try:
        known = registry.find(name, KEY_TAG, cycle.key)
        if known and OUTCOME_TAG in known:
            if not _holds(cycle, known[OUTCOME_TAG], known.get(COMPARED_TAG) == NOTHING):
                _require_all(cycle, known["version"])
                return known["version"]
            return _unchanged(cycle, f"{known[OUTCOME_TAG]}, version {known['version']}")
        champion = registry.champion(name)
        tags = registry.version(name, champion) if champion else {}
        if champion and tags.get("data_sha256") == cycle.data.card.sha256:
            run = cycle.model(champion).run
            start_from = "champion" if "parent" in run.provenance else None
            if run_key(run.config, run.data, start_from) == cycle.key:
                return _unchanged(cycle, f"the champion, version {champion}, is of them")
    except (AbsentError, AwayError, MachineError, ArtifactError) as error:
        cycle.say(f"{error}; training goes on, and it is asked again afterwards")
    return None


def _require_all(cycle: Cycle, version: str) -> None:
    """Require what the promotion of a version needs.

    Raises:
        AbsentError: its files are gone, or those here of which a signature is made: what was not
            trained here is not signed.
        RegistryError: the registry or its storage does not answer.
    """
    require_files(f"{cycle.config.name}@{version}")
    if configured_key() and not (cycle.folder / ARTIFACT).exists():
        raise AbsentError(f"{cycle.folder / ARTIFACT}: is gone, and is needed for the signature")


def _holds(cycle: Cycle, outcome: str, compared_with_none: bool) -> bool:
    """Tell whether a decision still holds: without a champion, only a rejection by floors does."""
    if registry.champion(cycle.config.name) or (outcome == "rejected" and compared_with_none):
        return True
    cycle.say("there is no champion any more: the model is judged anew")
    return False


def _unchanged(cycle: Cycle, what: str, decision: Decision | None = None) -> Outcome:
    reason = f"nothing changed: data ({cycle.data.card.sha256[:12]}) and settings are as before"
    return Outcome("skipped", f"{reason}: {what}", decision, cycle.folder if decision else None)


def _decide(cycle: Cycle, version: str, device: torch.device) -> Decision:
    """Put a registered challenger through the gates.

    Features and distances are computed on the device, since all training items have some; samples
    are drawn on the CPU, where most versions are served.
    """
    name, limits = cycle.config.name, cycle.settings.gates
    registry.tag(name, version, {KEY_TAG: cycle.key})
    champion = registry.champion(name)
    if champion == version:  # promoted by hand meanwhile: there is nothing to compare it with
        champion = None
    best = registry.version(name, champion).get(BEST_TAG, champion) if champion else None
    # Where one of them is gone, the other stands for it; where both are, the floors decide alone.
    rivals = {other: cycle.rival(other) for other in (champion, best) if other}
    present = [rival for rival in rivals.values() if rival]
    served, former = (present[0], present[-1]) if present else (None, None)
    trained = registry.version(name, version).get(registry.DIGEST_TAG)
    if (cycle.folder / ARTIFACT).exists():
        trained = artifact.verify(cycle.folder / ARTIFACT)
    extractor = None
    with artifact_folder(f"{name}@{version}") as fetched:
        gate, challenger = sound(fetched, str(trained))
        if challenger:
            extractor = choose_features(cycle.config, challenger, fetched)
    gates, successor = [gate], former.version if former else version
    n = min(cycle.config.evaluation.samples, cycle.judged.card.heldout_count)
    if challenger:
        rival = f"the champion, version {served.version}" if served else "floors"
        cycle.say(f"comparing with {rival}")
        evidence = Evidence(
            challenger,
            served,
            former,
            cycle.judged,
            cycle.data,
            extractor.on(device) if extractor else None,
            cycle.loss,
            n,
            cycle.data.card.table,
            device,
        )
        with phase("judging the challenger"):
            gates += challenger_gates(evidence, limits)
        if served:
            with phase("comparing with the champion"):
                gates += champion_gates(evidence, limits)
            value, best_value = gates[-1].challenger, gates[-1].reference
            if value is not None and best_value is not None and value <= best_value:
                successor = version
    failed = [gate for gate in gates if not gate.passed]
    reason = (
        "; ".join(f"{gate.name}: {gate.reason}" for gate in failed) or f"passed {len(gates)} gates"
    )
    for gone in [other for other, found in rivals.items() if found is None]:
        reason += f"; version {gone} was not compared with, since it is gone"
    return Decision(
        model=name,
        outcome="rejected" if failed else "promoted",
        reason=reason,
        who=promotions.user(),
        when=now(),
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
        gates=gates,
    )


def _settle(cycle: Cycle, decision: Decision) -> Outcome:
    """Carry a decision out: write it down, promote, and tell the registry.

    Between the check of the champion and the change of the alias lies one request: MLflow's aliases
    have no compare-and-set. Whoever promotes by hand in that moment is overruled; the history has
    both.
    """
    name, version = decision.model, decision.challenger
    cycle.folder.mkdir(parents=True, exist_ok=True)  # not there if it is judged anew elsewhere
    decision.write(cycle.folder)
    if decision.outcome == "promoted":
        cycle.pause("promoting")
        registry.tag(name, version, {BEST_TAG: decision.best})
        current = registry.champion(name)
        if current not in (decision.champion, version):
            decision = decision.model_copy(
                update={
                    "outcome": "interrupted",
                    "reason": f"the champion compared with was version {decision.champion}, and "
                    f"now is version {current}; run again to compare with that",
                }
            )
        else:
            if current != version:
                _require_all(cycle, version)
                if key := configured_key():
                    sign_version(name, version, cycle.folder / ARTIFACT, key)
            champions.promote(name, version, f"retraining: {decision.reason}", say=cycle.say)
    if decision.outcome != "interrupted":
        decision = decision.model_copy(update={"recorded": True})
        tags = {OUTCOME_TAG: decision.outcome, COMPARED_TAG: decision.champion or NOTHING}
        record(name, version, DECISION, decision.text(), tags)
        shutil.rmtree(cycle.folder / CHECKPOINTS, ignore_errors=True)  # the artifact has it all
    decision.write(cycle.folder)
    return Outcome(decision.outcome, decision.reason, decision, cycle.folder)
