"""What a retraining decides and carries out, with models that are made up: nothing is trained."""

import contextlib
import dataclasses
import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models import registry
from models.artifact import SIGNATURE, load_artifact
from models.config import DataConfig, EvaluationConfig
from models.errors import (
    AbsentError,
    AwayError,
    ConfigError,
    ForbiddenError,
    MachineError,
    UnreachableError,
    UserError,
)
from models.outputs import lease
from models.record import Figure
from tests.artifacts import make_artifact, tiny_config
from tests.registries import new_database
from tests.test_signing import write_pair
from training.data.dataset import Dataset, load_data
from training.engine.runs import Diverged, Interrupted
from training.engine.workers import ALONE, CPU, Workers
from training.judging.evaluate import SAMPLE_SEED
from training.judging.extractors import load_extractor
from training.judging.figures import distances
from training.judging.intervals import compare_kernel_distances
from training.progress import never, no_report
from training.retraining import cycle as module
from training.retraining.begin import Cycle, run_key
from training.retraining.config import RetrainConfig
from training.retraining.cycle import _decide, _done_before, _run, _settle, retrain
from training.retraining.outcomes import Decision, Outcome
from training.tracking import track_and_register

OPEN: dict[str, Any] = {
    "precision": 0,
    "recall": 0,
    "coverage": 0,
    "max_drift": 1e9,
    "max_membership": 1,
    "max_near_training": 1,
    "max_seconds": 1e6,
    "margin": 1e6,
}
"""Gates that any network passes."""


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_data(DataConfig(source="8gaussians"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry without models."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return tmp_path


def make(home: Path, seed: int, kind: str = "vector") -> str:
    """Register another version of the model `tiny`; returns its number."""
    folder = make_artifact(home / f"artifact{seed}", kind, seed, training={"seed": seed})
    return track_and_register(load_artifact(folder), folder).partition("@")[2]


def cycle_of(home: Path, data: Dataset, said: list[str] | None = None, **limits: Any) -> Cycle:
    """A retraining of the model `tiny`, without a champion to start from."""
    settings = RetrainConfig(
        preset="8gaussians",
        folder=home / "runs",
        gates=OPEN | limits,  # type: ignore[arg-type]
    )
    return Cycle(
        settings=settings,
        config=tiny_config("vector"),
        data=data,
        key="a key",
        folder=home / "runs" / "tiny-0123456789ab",
        judged=data,
        loss="wasserstein_1",
        needed=0,
        say=[].append if said is None else said.append,
        stop_requested=never,
        start=None,
    )


def known(cycle: Cycle, home: Path, *versions: str) -> Cycle:
    """Give a retraining these versions, as if they had been judged by its loss."""
    figure = Figure(value=1.0, floor=0.0, interval=(0.5, 1e9), n=200, better="lower")
    for version in versions:
        model = load_artifact(home / f"artifact{version}")
        results = model.run.results.model_copy(update={"figures": {cycle.loss: figure}})
        model.run = model.run.model_copy(update={"results": results})
        cycle.models[version] = model
    return cycle


def stored(version: str) -> Path:
    """Where a version's files lie."""
    return Path(registry.files_uri(f"tiny@{version}").removeprefix("file://"))


def away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


# Deciding


def test_a_first_model_is_compared_with_floors(home: Path, data: Dataset) -> None:
    said = list[str]()
    cycle = cycle_of(home, data, said)
    found = _decide(cycle, make(home, 1), CPU)
    assert (found.outcome, found.champion, found.best) == ("promoted", None, "1")
    assert found.reason == f"passed {len(found.gates)} gates"
    assert [gate.name for gate in found.gates] == [
        "checksums", "heldout", "precision", "recall", "coverage", "memorisation", "membership",
        "findings", "latency",
    ]  # fmt: skip
    assert said == ["comparing with floors"]
    assert data.card.heldout_count > 200  # `evaluation.samples`
    assert found.data["heldout"] == 200
    assert (found.data["sha256"], found.data["judged_on_sha256"]) == (data.card.sha256,) * 2
    assert (found.key, found.challenger, found.extractor) == ("a key", "1", None)
    assert registry.version("tiny", "1")[module.KEY_TAG] == "a key"
    assert found.recorded is False


def test_what_fails_is_the_reason(home: Path, data: Dataset) -> None:
    found = _decide(cycle_of(home, data, max_seconds=1e-9), make(home, 1), CPU)
    assert found.outcome == "rejected"
    failed = [gate for gate in found.gates if not gate.passed]
    assert [gate.name for gate in failed] == ["latency"]
    assert found.reason == f"latency: {failed[0].reason}"


def test_the_better_of_two_is_the_best_champion(home: Path, data: Dataset) -> None:
    """Of equal ones the newer; and one that is promoted though it is worse, within the margin."""
    for seed in (1, 2):
        make(home, seed)
    source = registry.version("tiny", "1")
    registry.register("tiny", source["run_id"], registry.files_uri("tiny@1"), {
        key: value for key, value in source.items() if key not in ("version", "run_id")
    })  # fmt: skip
    bests = {}
    for champion, challenger in (("1", "2"), ("2", "1"), ("1", "3")):
        registry.promote("tiny", champion, "it serves")
        said = list[str]()
        cycle = known(cycle_of(home, data, said), home, champion)
        found = _decide(cycle, challenger, CPU)
        assert found.champion == champion
        assert said == [f"comparing with the champion, version {champion}"]
        assert [gate.name for gate in found.gates[-3:]] == ["schema", "data", "champion"]
        bests[champion, challenger] = found.best
        last = found.gates[-1]
        assert last.challenger is not None
        assert last.reference is not None
        is_better = last.challenger <= last.reference
        assert found.best == (challenger if is_better else champion)
    assert bests["1", "2"] == bests["2", "1"], "one of them is better"
    assert bests["1", "3"] == "3", "they are equal"


def test_small_losses_are_compared_with_the_best_there_was(home: Path, data: Dataset) -> None:
    losses: dict[str, Any] = {}
    for version in "1234":
        make(home, int(version))
    registry.promote("tiny", "1", "first")
    for version in "234":
        last = _decide(known(cycle_of(home, data), home, "1"), version, CPU).gates[-1]
        losses |= {"1": last.reference, version: last.challenger}
    best, *_, worst = sorted(losses, key=lambda version: losses[version])
    challenger = next(version for version in "1234" if version not in (best, worst))
    registry.promote("tiny", worst, "it serves")
    registry.tag("tiny", worst, {module.BEST_TAG: best})
    found = _decide(known(cycle_of(home, data), home, best, worst), challenger, CPU)
    champion_gate, best_gate = found.gates[-2:]
    assert (champion_gate.name, best_gate.name) == ("champion", "best_champion")
    assert champion_gate.reference == pytest.approx(losses[worst])
    assert best_gate.reference == pytest.approx(losses[best])
    assert (found.champion, found.best) == (worst, best), "the challenger is better than one alone"
    # The best one is gone: the champion stands for it, and the reason says so.
    registry.client().delete_model_version("tiny", best)
    found = _decide(known(cycle_of(home, data), home, worst), challenger, CPU)
    assert found.gates[-1].name == "champion"
    assert found.best == challenger
    assert found.reason.endswith(f"; version {best} was not compared with, since it is gone")
    # Both are: the floors decide.
    shutil.rmtree(stored(worst))
    found = _decide(cycle_of(home, data), challenger, CPU)
    assert found.gates[-1].name == "latency"
    assert (found.outcome, found.champion, found.best) == ("promoted", worst, challenger)
    assert f"version {worst} was not compared with" in found.reason


def test_one_that_was_promoted_by_hand_meanwhile_is_compared_with_nothing(
    home: Path, data: Dataset
) -> None:
    registry.promote("tiny", make(home, 1), "by hand")
    found = _decide(cycle_of(home, data), "1", CPU)
    assert (found.outcome, found.champion, found.best) == ("promoted", None, "1")


def test_other_files_than_were_trained_are_rejected(home: Path, data: Dataset) -> None:
    for seed in (1, 2):
        make(home, seed)
    cycle = cycle_of(home, data)
    shutil.copytree(home / "artifact2", cycle.folder / "artifact")  # what was trained here
    for champion, best in ((None, "1"), ("2", "2")):
        if champion is not None:
            registry.promote("tiny", champion, "it serves")
        found = _decide(cycle, "1", CPU)
        assert (found.outcome, found.champion, found.best) == ("rejected", champion, best)
        assert [(gate.name, gate.passed) for gate in found.gates] == [("checksums", False)]
    assert _decide(cycle, "2", CPU).outcome == "promoted"
    # Elsewhere the hash that was registered counts.
    card = stored("1") / "MODEL_CARD.md"
    card.write_text(card.read_text() + "perfect\n")
    shutil.rmtree(cycle.folder)
    assert _decide(cycle, "1", CPU).outcome == "rejected"


def test_images_are_compared_over_the_features_of_the_first_champion(home: Path) -> None:
    data = load_data(DataConfig(source="digits"))
    make(home, 1, "image")
    make(home, 2, "image")
    extract = load_extractor("pixels", EvaluationConfig())
    api = registry.client()
    tag = registry.EXTRACTOR_TAG
    api.set_model_version_tag("tiny", "1", tag, extract.card.model_dump_json())
    registry.promote("tiny", "1", "first")
    cycle = dataclasses.replace(cycle_of(home, data), config=tiny_config(), loss="kernel_distance")
    found = _decide(cycle, "2", CPU)
    assert found.extractor == extract.card
    challenger, champion = (load_artifact(home / f"artifact{seed}") for seed in (2, 1))
    real, first, second = (
        extract(champion.scaling.to_levels(items))
        for items in (
            data.sample(200, heldout=True),
            challenger.sample(SAMPLE_SEED, 200),
            champion.sample(SAMPLE_SEED, 200),
        )
    )
    expected = compare_kernel_distances(real, first, second, level=0.9)
    assert found.gates[-1].challenger == pytest.approx(expected.first)
    assert found.gates[-1].reference == pytest.approx(expected.second)
    assert "kernel_distance" in distances("kernel_distance")(real, first)


# Carrying it out


def decision_of(outcome: str = "promoted", challenger: str = "1", **more: Any) -> Decision:
    plain = {"model": "tiny", "reason": "so", "who": "me", "when": "now", "key": "a key"}
    versions = {"champion": None, "best": challenger, "extractor": None, "data": {}}
    return Decision.model_validate(
        {**plain, **versions, "outcome": outcome, "challenger": challenger}
        | {"loss": "wasserstein_1", "gates": []}
        | more
    )


def told(version: str) -> tuple[str | None, str | None]:
    tags = registry.version("tiny", version)
    return tags.get(module.OUTCOME_TAG), tags.get(module.COMPARED_TAG)


def test_a_promotion_is_written_everywhere(home: Path, data: Dataset) -> None:
    cycle = cycle_of(home, data)
    (cycle.folder / "checkpoints").mkdir(parents=True)
    made = decision_of(challenger=make(home, 1))
    outcome = _settle(cycle, made)
    recorded = made.model_copy(update={"recorded": True})
    assert outcome == Outcome("promoted", "so", recorded, cycle.folder)
    assert Decision.read(cycle.folder) == recorded
    assert registry.champion("tiny") == "1"
    assert told("1") == ("promoted", "none")
    assert registry.version("tiny", "1")[module.BEST_TAG] == "1"
    assert registry.history("tiny")[-1]["why"] == "retraining: so"
    run = registry.client().get_run(registry.version("tiny", "1")["run_id"])
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "decision.json"
    assert Decision.model_validate_json(path.read_text()) == recorded
    assert not (cycle.folder / "checkpoints").exists()
    # A second one, of a folder that has gone, and without checkpoints.
    shutil.rmtree(cycle.folder)
    second = decision_of(challenger=make(home, 2), champion="1", best="1")
    assert _settle(cycle, second).kind == "promoted"
    assert told("2") == ("promoted", "1")
    assert registry.version("tiny", "2")[module.BEST_TAG] == "1"
    # Once it is the champion, neither its files nor a change are needed.
    shutil.rmtree(stored("2"))
    assert _settle(cycle, second).kind == "promoted"
    assert [change["to"] for change in registry.history("tiny")] == ["1", "2"]


def test_a_rejection_changes_no_champion(home: Path, data: Dataset) -> None:
    registry.promote("tiny", make(home, 1), "it serves")
    cycle = cycle_of(home, data)
    cycle.stop_requested = lambda: True  # it is written down all the same
    outcome = _settle(cycle, decision_of("rejected", make(home, 2), champion="1"))
    assert (outcome.kind, registry.champion("tiny")) == ("rejected", "1")
    assert told("2") == ("rejected", "1")
    assert module.BEST_TAG not in registry.version("tiny", "2")
    found = Decision.read(cycle.folder)
    assert found is not None
    assert found.recorded


def test_another_champion_than_was_compared_with_is_not_replaced(home: Path, data: Dataset) -> None:
    for seed in (1, 2, 3):
        make(home, seed)
    cycle = cycle_of(home, data)
    (cycle.folder / "checkpoints").mkdir(parents=True)
    registry.promote("tiny", "2", "by hand")
    outcome = _settle(cycle, decision_of(challenger="3", champion="1"))
    assert outcome.kind == "interrupted"
    says = "the champion compared with was version 1, and now is version 2; run again"
    assert outcome.reason.startswith(says)
    assert registry.champion("tiny") == "2"
    assert told("3") == (None, None)
    found = Decision.read(cycle.folder)
    assert found is not None
    assert (found.outcome, found.recorded) == ("interrupted", False)
    assert (cycle.folder / "checkpoints").exists()


def test_nothing_is_promoted_that_cannot_be_or_need_not_be_now(home: Path, data: Dataset) -> None:
    cycle = cycle_of(home, data)
    made = decision_of(challenger=make(home, 1))
    cycle.stop_requested = lambda: True
    with pytest.raises(Interrupted, match="before promoting"):
        _settle(cycle, made)
    cycle.stop_requested = never
    shutil.rmtree(stored("1"))
    with pytest.raises(AbsentError, match="nothing is stored there any more"):
        _settle(cycle, made)
    assert registry.champion("tiny") is None
    assert Decision.read(cycle.folder) == made, "the next run carries it out"


def test_what_was_trained_here_is_signed(
    home: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WGAN_SIGNING_KEY", str(write_pair(home, "ours")))
    cycle = cycle_of(home, data)
    made = decision_of(challenger=make(home, 1))
    with pytest.raises(AbsentError, match="is gone, and is needed for the signature"):
        _settle(cycle, made)
    assert registry.champion("tiny") is None
    shutil.copytree(home / "artifact1", cycle.folder / "artifact")
    assert _settle(cycle, made).kind == "promoted"
    assert registry.version("tiny", "1")[registry.SIGNATURE_TAG]
    assert (stored("1") / SIGNATURE).exists()


# Decided before


def written(cycle: Cycle, decision: Decision) -> Decision:
    cycle.folder.mkdir(parents=True, exist_ok=True)
    decision.write(cycle.folder)
    return decision


UNCHANGED = "nothing changed: data ({}) and settings are as before: "


def unchanged(data: Dataset, what: str) -> str:
    return UNCHANGED.format(data.card.sha256[:12]) + what


def test_a_decision_that_holds_is_not_made_again(home: Path, data: Dataset) -> None:
    said = list[str]()
    cycle = cycle_of(home, data, said)
    assert _done_before(cycle) is None, "nothing is known of it"
    registry.promote("tiny", make(home, 1), "it serves")
    made = written(cycle, decision_of(recorded=True))
    expected = Outcome("skipped", unchanged(data, "promoted on now"), made, cycle.folder)
    assert _done_before(cycle) == expected
    for outcome, champion in (("rejected", None), ("rejected", "1")):
        made = written(cycle, decision_of(outcome, recorded=True, champion=champion))
        assert _done_before(cycle) == expected._replace(
            reason=unchanged(data, "rejected on now"), decision=made
        )
    written(cycle, decision_of("interrupted"))
    assert _done_before(cycle) is None
    assert said == []


def test_without_a_champion_only_a_rejection_by_floors_holds(home: Path, data: Dataset) -> None:
    said = list[str]()
    cycle = cycle_of(home, data, said)
    make(home, 1)
    written(cycle, decision_of("rejected", recorded=True))
    found = _done_before(cycle)
    assert isinstance(found, Outcome)
    assert found.kind == "skipped"
    assert said == []
    for made in (
        decision_of(recorded=True),
        decision_of(recorded=True, champion="1"),
        decision_of("rejected", recorded=True, champion="1"),
    ):
        written(cycle, made)
        assert _done_before(cycle) == "1", "it is judged anew"
        assert said.pop() == "there is no champion any more: the model is judged anew"
    shutil.rmtree(stored("1"))
    assert _done_before(cycle) is None, "there is nothing that could be judged"
    assert said[-1].endswith("; the model is registered and judged anew")


def test_a_decision_that_is_not_recorded_is_carried_out(
    home: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = cycle_of(home, data)
    made = written(cycle, decision_of(challenger=make(home, 1)))
    with monkeypatch.context() as patch:
        away(patch)
        with pytest.raises(AwayError):
            _done_before(cycle)
    found = _done_before(cycle)
    assert isinstance(found, Outcome)
    assert (found.kind, found.decision) == (
        "promoted", made.model_copy(update={"recorded": True})
    )  # fmt: skip
    assert registry.champion("tiny") == "1"
    said = list[str]()
    cycle.say = said.append
    away(monkeypatch)
    found = _done_before(cycle)
    assert isinstance(found, Outcome)
    assert found.kind == "skipped", "a registry that is away changes no decision"
    assert "127.0.0.1:9" in said[0]


def test_what_the_registry_knows_is_not_trained_again(
    home: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    cycle = cycle_of(home, data, said)
    for seed in (1, 2):
        make(home, seed)
    registry.promote("tiny", "1", "it serves")
    registry.tag("tiny", "2", {module.KEY_TAG: "a key"})
    assert _done_before(cycle) is None, "it is not decided yet"
    registry.tag("tiny", "2", {module.OUTCOME_TAG: "rejected", module.COMPARED_TAG: "1"})
    skipped = Outcome("skipped", unchanged(data, "rejected, version 2"))
    assert _done_before(cycle) == skipped
    registry.client().delete_registered_model_alias("tiny", "champion")
    assert _done_before(cycle) == "2", "it is judged anew"
    registry.tag("tiny", "2", {module.COMPARED_TAG: module.NOTHING})
    assert _done_before(cycle) == skipped, "floors rejected it"
    registry.tag("tiny", "2", {module.OUTCOME_TAG: "promoted"})
    assert _done_before(cycle) == "2"
    shutil.rmtree(stored("2"))
    assert _done_before(cycle) is None
    says = "; training goes on, and it is asked again afterwards"
    assert said[-1].endswith(says)
    away(monkeypatch)
    said.clear()
    assert _done_before(cycle) is None
    assert len(said) == 1
    assert said[0].endswith(says)


@pytest.mark.parametrize("start_from", [None, "champion"])
def test_a_champion_of_the_same_data_and_settings_is_known(
    start_from: str | None, home: Path, data: Dataset
) -> None:
    """As `wgan train` and a promotion by hand make one."""
    said = list[str]()
    cycle = cycle_of(home, data, said)
    version = make(home, 1)
    run = load_artifact(home / "artifact1").run
    cycle.key = run_key(run.config, run.data, start_from)
    card = data.card.model_copy(update={"sha256": run.data.sha256})
    cycle.data = dataclasses.replace(data, card=card)
    provenance = {"parent": {"model": "tiny@0"}} if start_from else {}
    recorded = run.model_copy(update={"provenance": provenance})
    cycle.models[version] = SimpleNamespace(run=recorded)  # type: ignore[assignment]
    assert _done_before(cycle) is None, "it is no champion"
    registry.promote("tiny", version, "by hand")
    found = _done_before(cycle)
    assert found == Outcome("skipped", unchanged(cycle.data, "the champion, version 1, is of them"))
    for changed in (
        dataclasses.replace(cycle, key="another"),
        dataclasses.replace(cycle, data=data),
    ):
        assert _done_before(changed) is None
    assert said == []
    registry.tag("tiny", version, {"data_sha256": card.sha256})
    cycle.models.clear()
    shutil.rmtree(stored(version))
    assert _done_before(cycle) is None, "nobody knows what it is of"
    assert said[-1].endswith("training goes on, and it is asked again afterwards")


def test_a_version_is_needed_whole_and_to_be_signed_here(
    home: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = cycle_of(home, data)
    make(home, 1)
    module._require_all(cycle, "1")
    monkeypatch.setenv("WGAN_SIGNING_KEY", str(write_pair(home, "ours")))
    with pytest.raises(AbsentError, match="is gone, and is needed for the signature"):
        module._require_all(cycle, "1")
    (cycle.folder / "artifact").mkdir(parents=True)
    module._require_all(cycle, "1")


# From the beginning to the end


class Together(Workers):
    """One of two processes, of which the other one answers for both."""

    answer: bool | None = None
    has_left = False

    def any(self, flag: bool) -> bool:
        """The other's answer; None: it has ended."""
        if Together.answer is None:
            raise RuntimeError("Connection closed by peer")
        return flag or Together.answer

    def leave(self) -> None:
        Together.has_left = True


def test_a_process_that_waits_for_the_main_one_decides_nothing(
    home: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = cycle_of(home, data)
    monkeypatch.setattr(Together, "has_left", False)
    with pytest.raises(Interrupted, match="another process has ended before the training: Conn"):
        _run(cycle, None, no_report, Together(1, 2))
    assert Together.has_left
    monkeypatch.setattr(Together, "answer", True)
    monkeypatch.setattr(Together, "has_left", False)
    assert _run(cycle, None, no_report, Together(1, 2)) == Outcome("skipped", "")
    assert Together.has_left
    assert not cycle.folder.exists()


def test_a_run_that_is_under_way_is_left_alone(home: Path, data: Dataset) -> None:
    cycle = cycle_of(home, data)
    cycle.needed = 10**20
    (cycle.folder / ".left.partial").mkdir(parents=True)
    outcome = _run(cycle, "process 7", no_report, ALONE)
    assert outcome == Outcome("skipped", "another retraining is under way: process 7")
    assert (cycle.folder / ".left.partial").exists()
    with pytest.raises(MachineError, match="enlarge the disk"):
        _run(cycle, None, no_report, ALONE)
    assert not (cycle.folder / ".left.partial").exists(), "its process was killed"
    registry.promote("tiny", make(home, 1), "it serves")
    written(cycle, decision_of(recorded=True))
    assert _run(cycle, None, no_report, ALONE).kind == "skipped", "it needs no room"


def test_what_needs_no_training_is_judged_anew(home: Path, data: Dataset) -> None:
    cycle = cycle_of(home, data)
    make(home, 1)
    written(cycle, decision_of(recorded=True, reason="as it was"))
    cycle.needed = 10**20
    outcome = _run(cycle, None, no_report, ALONE)
    assert (outcome.kind, registry.champion("tiny")) == ("promoted", "1")
    assert outcome.reason.startswith("passed ")
    registry.client().delete_registered_model_alias("tiny", "champion")
    cycle.stop_requested = lambda: True
    with pytest.raises(Interrupted, match="judging the challenger"):
        _run(cycle, None, no_report, ALONE)


def ends_by(error: Exception, home: Path, patch: pytest.MonkeyPatch) -> tuple[str, str]:
    """How a retraining ends whose data raise an error: what it does, and the line of its end."""

    def begin(*_: object) -> Cycle:
        raise error

    patch.setattr(module, "begin", begin)
    does = "raises"
    with contextlib.suppress(type(error)):
        does = retrain(RetrainConfig(preset="8gaussians", folder=home / "runs")).kind
    (line,) = (home / "runs" / "outcomes.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == " ".join(str(error).split())
    return does, json.loads(line)["outcome"]


@pytest.mark.parametrize(
    ("error", "does", "told"),
    [
        (Interrupted("stopped\n  here"), "interrupted", "interrupted"),
        (AwayError("no answer"), "interrupted", "interrupted"),
        (UnreachableError("no answer"), "interrupted", "interrupted"),
        (MachineError("the disk is full"), "failed", "failed"),
        (OSError(errno.ENOSPC, "no space"), "failed", "failed"),
        (OSError(errno.ENOENT, "no file"), "raises", "failed"),
        (ForbiddenError("no"), "raises", "mistake"),
        (ConfigError("no such key"), "raises", "mistake"),
        (Diverged("not finite"), "raises", "failed"),
        (ValueError("a fault of ours"), "raises", "failed"),
    ],
)
def test_an_error_is_told_and_raised_where_it_is_no_answer(
    error: Exception, does: str, told: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ends_by(error, home, monkeypatch) == (does, told)


def test_what_cannot_end_well_is_told_before_anything_is_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "begin", lambda *_: pytest.fail("it has begun"))
    settings = RetrainConfig(preset="8gaussians", folder=home / "runs")
    monkeypatch.setenv("WGAN_SIGNING_KEY", str(home / "none.key"))
    with pytest.raises(UserError, match=r"none\.key"):
        retrain(settings)
    monkeypatch.delenv("WGAN_SIGNING_KEY")
    (home / "runs" / "8gaussians.lease").unlink(missing_ok=True)
    (home / "runs" / "8gaussians.lease").mkdir(parents=True)
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        retrain(settings)


def test_the_main_process_alone_holds_the_lease_and_tells_the_end(
    home: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RetrainConfig(preset="8gaussians", folder=home / "runs")
    cycle = dataclasses.replace(cycle_of(home, data), needed=5)
    holders = list[str | None]()

    def run(cycle: Cycle, holder: str | None, *_: object) -> Outcome:
        holders.append(holder)
        return Outcome("skipped", "so")

    monkeypatch.setattr(module, "begin", lambda *_: cycle)
    monkeypatch.setattr(module, "_run", run)
    with lease(home / "runs" / "8gaussians.lease"):
        assert retrain(settings).kind == "skipped"
        (line,) = (home / "runs" / "outcomes.jsonl").read_text().splitlines()
        assert json.loads(line)["place"] == cycle.place
        assert retrain(settings, workers=Workers(1, 2)).kind == "skipped"
    assert str(holders[0]).startswith("process ")
    assert holders[1] is None
    assert len((home / "runs" / "outcomes.jsonl").read_text().splitlines()) == 1
