"""Parts of a retraining without a training: configuration, folder, outcomes, what is begun with."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import wgan_cli
from models import registry
from models.artifact import load_artifact
from models.config import parse_config
from models.durable import PARTIAL, read_lines
from models.errors import (
    AbsentError,
    AwayError,
    BrokenFileError,
    ConfigError,
    DataError,
    ForbiddenError,
    MachineError,
    RegistryError,
    UnreachableError,
)
from models.formats import encode
from models.record import Extractor
from tests.artifacts import make_artifact, tiny_config
from tests.registries import new_database
from tests.test_retrain import _Gateway, gateway, mixture, pushed
from training.data.dataset import load_data
from training.engine.runs import Diverged, Interrupted
from training.engine.workers import ALONE, Workers
from training.presets import USUAL_WIDTH
from training.progress import TrainingBar, never, no_report, silent
from training.retraining.begin import Cycle, begin, run_key
from training.retraining.config import RetrainConfig, read_config, who_is_told
from training.retraining.folder import make_room, room
from training.retraining.gates import Gate
from training.retraining.outcomes import (
    OUTCOME_KINDS,
    Decision,
    Outcome,
    OutcomeKind,
    _in_a_row,
    _interruptions,
    _last_end,
    kind_of,
    publish,
    publish_mistake,
)
from training.tracking import track_and_register

# Outcomes


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MachineError("the disk is full"), "failed"),
        (Interrupted("stopped"), "interrupted"),
        (AwayError("no answer"), "interrupted"),
        (UnreachableError("no answer"), "interrupted"),
        (AbsentError("no such version"), "mistake"),
        (ForbiddenError("no"), "mistake"),
        (RegistryError("no"), "mistake"),
        (ConfigError("no such key"), "mistake"),
        (DataError("broken"), "mistake"),
        (Diverged("not finite"), "failed"),
        (ValueError("a fault of ours"), "failed"),
        (OSError("read only"), "failed"),
    ],
)
def test_what_may_pass_is_an_interruption(error: Exception, kind: OutcomeKind) -> None:
    assert kind_of(error) == kind


def counted(kinds: list[str]) -> tuple[int, int, int]:
    """The three counts, forward from the first outcome."""
    rejected = failed = killed = 0
    for kind in kinds:
        if kind == "killed":
            killed += 1
        elif kind != "interrupted":
            killed = 0
            failed = failed + 1 if kind in ("failed", "mistake") else 0
        rejected = rejected + 1 if kind == "rejected" else 0 if kind == "promoted" else rejected
    return rejected, failed, killed


@given(st.lists(st.sampled_from(OUTCOME_KINDS), max_size=8))
def test_outcomes_are_counted_since_the_last_other_one(kinds: list[str]) -> None:
    assert _in_a_row(kinds) == counted(kinds)


PLACES = ("digits-0123456789ab step-7", "digits-0123456789ab no checkpoint", None)


@given(
    st.lists(st.tuples(st.sampled_from(OUTCOME_KINDS), st.sampled_from(PLACES)), max_size=8),
    st.sampled_from(PLACES),
)
def test_interruptions_are_counted_at_one_place(
    ends: list[tuple[str, str | None]], place: str | None
) -> None:
    """A kill says nothing; what was skipped there did not get further either."""
    count, outcomes = 0, list[dict[str, Any]]()
    for kind, at in ends:
        told = 0
        if kind == "interrupted":
            told = 1 + _interruptions(outcomes, at)
            count = told if at == place else 0
        elif kind != "killed" and not (kind == "skipped" and at == place):
            count = 0
        outcomes.append({"outcome": kind, "place": at, "interruptions": told})
    assert _interruptions(outcomes, place) == count


def test_lines_of_before_the_interruptions_were_counted_count_as_none() -> None:
    assert _interruptions([{"outcome": "interrupted"}], None) == 0
    assert _interruptions([], None) == 0


def test_what_was_interrupted_or_killed_has_not_ended() -> None:
    def lines(*kinds: str) -> list[dict[str, Any]]:
        return [
            {"outcome": kind, "when": f"1970-01-01T00:00:{i + 10}+00:00"}
            for i, kind in enumerate(kinds)
        ]

    assert _last_end(lines("promoted", "rejected", "interrupted", "killed")) == 11
    assert _last_end(lines("killed", "failed", "skipped")) == 12
    assert _last_end(lines("interrupted", "killed", "interrupted")) == 10, "the first"
    assert abs(_last_end([]) - time.time()) < 600


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "outcomes.jsonl", pytest.fail)


def settings_of(folder: Path, **more: Any) -> RetrainConfig:
    return RetrainConfig(preset="digits", folder=folder, **more)


def test_the_twelfth_interruption_at_one_place_fails(tmp_path: Path) -> None:
    settings, outcome = settings_of(tmp_path), Outcome("interrupted", "no answer")
    found = [publish(settings, "a", outcome, 0, pytest.fail, "here") for _ in range(24)]
    kinds = ["interrupted"] * 11 + ["failed"]
    assert [x.kind for x in found] == [x["outcome"] for x in lines_of(tmp_path)] == kinds * 2
    assert found[11].reason == "interrupted 12 times without getting further; no answer"
    assert [x["interruptions"] for x in lines_of(tmp_path)] == [*range(1, 25)]


def test_an_outcome_is_a_line_of_its_model(tmp_path: Path) -> None:
    for name, place in (("a", "here"), ("b", "here"), ("a", "here")):
        publish(settings_of(tmp_path), name, Outcome("interrupted", "x"), 0, pytest.fail, place)
    ended = Outcome("rejected", "worse", folder=tmp_path / "run")
    assert publish(settings_of(tmp_path), "b", ended, 0, pytest.fail) == ended
    lines = lines_of(tmp_path)
    assert [(x["model"], x["interruptions"]) for x in lines] == [
        ("a", 1), ("b", 1), ("a", 2), ("b", 0)
    ]  # fmt: skip
    assert {k: v for k, v in lines[-1].items() if k != "when"} == {
        "model": "b",
        "outcome": "rejected",
        "reason": "worse",
        "folder": str(tmp_path / "run"),
        "place": None,
        "interruptions": 0,
    }
    assert lines[0]["folder"] is None
    publish(settings_of(tmp_path / "none"), "a", Outcome("mistake", "x"), 0, pytest.fail)
    assert not (tmp_path / "none").exists(), "a mistake makes no folder"


def test_an_outcome_that_the_disk_does_not_take_is_said_and_pushed(tmp_path: Path) -> None:
    (tmp_path / "outcomes.jsonl").mkdir()
    said = list[str]()
    with gateway() as address:
        settings = settings_of(tmp_path, pushgateway=address)
        publish(settings, "corners", Outcome("failed", "x"), 0, said.append)
        assert pushed()["wgan_retrain_failed_in_a_row",] == 1
    (line,) = said
    assert line.startswith(f"warning: the outcome was not written into {tmp_path}/outcomes.jsonl: ")


def gate(name: str, passed: bool, *figures: float | None) -> Gate:
    return Gate(name=name, passed=passed, challenger=figures[0], reference=figures[1], reason="")


def decision(**more: Any) -> Decision:
    gates = [
        gate("champion", True, 0.25, 0.75),
        gate("recall", False, None, 0.5),
        gate("checksums", False, 2.0, None),
    ]
    plain = {"model": "corners", "reason": "low", "who": "me", "when": "now", "key": "0"}
    versions = {"challenger": "2", "champion": "1", "best": "1", "extractor": None}
    given = {**plain, **versions, "outcome": "rejected", "data": {"n": 3}, "loss": "wasserstein_1"}
    return Decision.model_validate({**given, "gates": gates, **more})


def test_a_pushgateway_is_told_of_all_that_alerts_ask_for(tmp_path: Path) -> None:
    before: tuple[OutcomeKind, ...] = ("promoted", "killed", "rejected", "failed", "killed")
    for kind in before:
        publish(settings_of(tmp_path), "corners", Outcome(kind, ""), 0, pytest.fail)
    started = time.time() - 5000
    with gateway() as address:
        _Gateway.bodies.clear()
        settings = settings_of(tmp_path, pushgateway=address)
        publish(settings, "corners", Outcome("rejected", "", decision()), started, pytest.fail)
    told = pushed()
    for kind in OUTCOME_KINDS:
        assert told["wgan_retrain_outcome", kind] == (kind == "rejected")
    assert abs(told["wgan_retrain_finished_timestamp_seconds",] - time.time()) < 600
    assert 5000 <= told["wgan_retrain_duration_seconds",] < 5600
    assert told["wgan_retrain_rejected_in_a_row",] == 2
    assert told["wgan_retrain_failed_in_a_row",] == 0
    assert told["wgan_retrain_killed_in_a_row",] == 0
    assert told["wgan_retrain_interrupted_in_a_row",] == 0
    assert told["wgan_retrain_gate_passed", "champion"] == 1
    assert told["wgan_retrain_gate_passed", "recall"] == 0
    assert told["wgan_retrain_gate_challenger", "champion"] == 0.25
    assert told["wgan_retrain_gate_reference", "champion"] == 0.75
    figures = {key[1] for key in told if key[0].startswith("wgan_retrain_gate_r")}
    assert figures == {"champion"}, "no figure where one of the two is not known"
    assert not [key for key in told if "disk" in key[0]], "not known yet"


def test_no_disk_is_told_of_where_there_is_no_folder(tmp_path: Path) -> None:
    with gateway() as address:
        _Gateway.bodies.clear()
        settings = settings_of(tmp_path / "none", pushgateway=address)
        publish(settings, "corners", Outcome("failed", ""), 0, pytest.fail, needed=1)
        assert not [key for key in pushed() if "disk" in key[0]]
        publish(settings, "corners", Outcome("killed", ""), 0, pytest.fail)
        assert pushed()["wgan_retrain_killed_in_a_row",] == 1


def test_labels_name_what_is_replaced(tmp_path: Path) -> None:
    with gateway() as address:
        for labels, group in (({}, "model/a"), ({"release": "r"}, "release/r")):
            _Gateway.bodies.clear()
            settings = settings_of(tmp_path, pushgateway=address, push_labels=labels)
            publish(settings, "a", Outcome("skipped", ""), 0, pytest.fail)
            assert list(_Gateway.bodies) == [f"/metrics/job/wgan_retrain/{group}"]


def test_a_mistake_is_published_as_far_as_it_is_known_to_whom(tmp_path: Path) -> None:
    config = tmp_path / "retrain.yaml"
    config.write_text("preset: digits\nset: {name: mine}\n")
    publish_mistake(config, ConfigError("folder: Field required"), pytest.fail)
    assert not (tmp_path / "outcomes.jsonl").exists()
    config.write_text(f"preset: digits\nset: {{name: mine}}\nfolder: {tmp_path}\nmore: 1\n")
    publish_mistake(config, ConfigError("no key 'more'"), pytest.fail)
    (line,) = lines_of(tmp_path)
    assert (line["model"], line["outcome"], line["reason"]) == ("mine", "mistake", "no key 'more'")


def test_a_decision_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Decision.read(tmp_path) is None
    made = decision(
        extractor=Extractor(name="digits", sha256="0"), gates=[gate("a", True, float("inf"), None)]
    )
    made.write(tmp_path)
    assert Decision.read(tmp_path) == made
    assert (made.recorded, made.schema_version) == (False, 1)
    assert (tmp_path / "decision.json").read_text() == made.text()
    assert json.loads(made.text())["gates"][0]["challenger"] == "Infinity", (
        "JSON has no such number"
    )
    (tmp_path / "decision.json").write_text(made.text()[:-9])
    with pytest.raises(BrokenFileError, match="remove it, and the next retraining asks"):
        Decision.read(tmp_path)
    for changed in ('"schema_version": 2', '"schema_version": 1, "more": 1'):
        text = made.text().replace('"schema_version": 1', changed)
        (tmp_path / "decision.json").write_text(text)
        with pytest.raises(BrokenFileError):
            Decision.read(tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        made.recorded = True


# The folder of the runs


def test_the_runs_that_changed_last_stay(tmp_path: Path) -> None:
    def runs() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    names = [f"corners-{digit * 12}" for digit in "0123"]
    others = ["corners", "corners-0000", "corners-of-another-0123456789ab", "corners-notes"]
    for when, name in enumerate(["corners-" + "f" * 12, *names, *others]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"12345")
        os.utime(tmp_path / name, (when, when))
    os.utime(tmp_path / names[1], (100, 100))
    left = [f".{name}.0123abcd{PARTIAL}" for name in (names[0], others[2])]
    for name in left:
        (tmp_path / name).mkdir()
    current, said = tmp_path / ("corners-" + "f" * 12), list[str]()
    make_room(current, "corners", 3, 0, said.append)
    assert runs() == sorted([left[1], current.name, names[1], names[3], *others])
    assert sorted(said) == [f"removing {tmp_path / names[i]}: keep_runs is 3" for i in (0, 2)]
    make_room(current, "corners", 1, 0, silent)
    assert runs() == sorted([left[1], current.name, *others])
    new = tmp_path / ("corners-" + "e" * 12)  # nothing is there yet
    make_room(new, "corners", 1, 0, silent)
    assert runs() == sorted([left[1], *others])


def test_room_is_what_is_free_and_what_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    folders = [tmp_path / f"corners-{digit * 12}" for digit in "012"]
    for i, folder in enumerate(folders):
        folder.mkdir()
        (folder / "held").write_bytes(bytes(10 ** (i + 1) * 10))
        os.utime(folder, (i, i))
    assert room(tmp_path, "corners", 9, None) == 1000
    assert room(tmp_path, "corners", 3, None) == 1100, "a new one replaces the oldest"
    assert room(tmp_path, "corners", 3, folders[1]) == 2000, "its own"
    assert room(tmp_path, "corners", 2, folders[1]) == 2100, "and the oldest"
    assert room(tmp_path, "other", 1, None) == 1000
    make_room(folders[1], "corners", 9, 2000, silent)
    with pytest.raises(MachineError, match=r"room for 0 MB, and this run needs about 0 MB"):
        make_room(folders[1], "corners", 9, 2001, silent)


# The configuration


def test_one_run_stays_at_least_and_five_by_default(tmp_path: Path) -> None:
    assert settings_of(tmp_path).keep_runs == 5
    assert settings_of(tmp_path, keep_runs=1).keep_runs == 1
    with pytest.raises(ValidationError, match="keep_runs"):
        settings_of(tmp_path, keep_runs=0)
    with pytest.raises(ValidationError, match="frozen"):
        settings_of(tmp_path).keep_runs = 3
    with pytest.raises(ValidationError, match="more"):
        settings_of(tmp_path, more=1)


def test_a_private_run_is_refused_at_once_where_it_would_begin_with_a_champion() -> None:
    private = {"privacy.epsilon": 1.0, "constraint.kind": "none", "generator.normalization": "none"}
    given: dict[str, Any] = {"preset": "table", "data": "rows.csv", "folder": Path("runs")}
    assert RetrainConfig(**given, set=private).build().privacy is not None
    assert RetrainConfig(**given, start_from="champion").build().name == "table"
    with pytest.raises(ConfigError, match="private run begins with random weights"):
        RetrainConfig(**given, set=private, start_from="champion").build()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("preset: digits", "folder: Field required"),
        ("preset: digits\nfolder: x\nfolde: y", "did you mean 'folder'"),
        ("- a\n- b", "holds no settings; write at least preset and folder"),
        ("a: [", "cannot be read"),
        ("\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "retrain.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    if "folder: x" not in text:
        with pytest.raises(ConfigError, match=f"^{path}: (folder: |holds no|cannot be read)"):
            who_is_told(path)


@pytest.mark.parametrize(
    ("more", "name", "labels"),
    [
        ({}, "digits", {}),
        ({"set": {"name": "mine"}}, "mine", {}),
        ({"set": {"training": {"steps": "many"}}}, "digits", {}),
        ({"set": ["name"]}, "digits", {}),
        ({"push_labels": {"release": "r"}, "gates": 7}, "digits", {"release": "r"}),
        ({"push_labels": {"Not A Label": "r"}, "keep_runs": 0}, "digits", {}),
    ],
)
def test_who_is_told_is_known_in_spite_of_mistakes(
    more: dict[str, Any], name: str, labels: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "retrain.yaml"
    given = {"preset": "digits", "folder": "x", "pushgateway": "http://there", **more}
    path.write_text(yaml.safe_dump(given))
    settings, found = who_is_told(path)
    assert (found, settings.push_labels) == (name, labels)
    assert (str(settings.folder), settings.pushgateway) == ("x", "http://there")


# What a run begins with


def test_the_key_is_of_content_settings_and_origin(tmp_path: Path) -> None:
    def config(source: str = "8gaussians", **more: Any) -> Any:
        return tiny_config("vector", data={"source": source}, **more)

    card = load_artifact(make_artifact(tmp_path / "a", "vector")).run.data
    key = run_key(config(), card, None)
    same = [
        run_key(config("elsewhere.npy"), card, None),
        run_key(config(), card.model_copy(update={"source": "x", "count": 99}), None),
    ]
    assert same == [key, key]
    other = [
        run_key(config(training={"seed": 5}), card, None),
        run_key(config(), card.model_copy(update={"sha256": "1" * 64}), None),
        run_key(config(), card.model_copy(update={"classes": ["a"]}), None),
        run_key(config(), card.model_copy(update={"class_counts": [7]}), None),
        run_key(config(), card, "champion"),
        run_key(config(), card, None, "held out"),
        run_key(config(), card, None, "other items"),
        run_key(config(), card, "champion", "held out"),
    ]
    assert len({key, *other}) == 1 + len(other)
    # What was recorded by it must be found again, so it never changes.
    settings = config().model_dump(mode="json")
    del settings["data"]["source"]
    content = [settings, card.sha256, card.classes, card.class_counts]
    for more, found in (([], key), (["champion"], other[4]), (["held out"], other[5])):
        text = json.dumps([*content, *more], sort_keys=True)
        assert found == hashlib.sha256(text.encode()).hexdigest()


def test_the_order_in_which_settings_are_written_is_no_change(tmp_path: Path) -> None:
    card = load_artifact(make_artifact(tmp_path / "a", "rows")).run.data
    columns = {"age": {"kind": "number"}, "town": {"kind": "category"}}
    keys = []
    for order in (["age", "town"], ["town", "age"]):
        config = tiny_config("rows").model_dump(mode="json")
        config["data"]["columns"] = {name: columns[name] for name in order}
        keys.append(run_key(parse_config(config), card, None))
    assert keys[0] == keys[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry without models, and data."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    np.save(tmp_path / "data.npy", mixture(0))
    return tmp_path


def begun(
    home: Path, said: list[str], name: str | None = "corners", rank: int = 0, **changes: Any
) -> Cycle:
    """Begin with networks of the preset, whose sizes do not matter: nothing is trained."""
    named = {} if name is None else {"name": name}
    given = {
        "preset": "8gaussians",
        "data": str(home / "data.npy"),
        "folder": home / "runs",
        "set": {**named, **changes.pop("set", {})},
        **changes,
    }
    settings = RetrainConfig.model_validate(given)
    workers = Workers(rank, 1 if rank == 0 else 2)
    return begin(settings, settings.build(), said.append, never, workers)


def test_what_is_begun_is_said_by_the_main_process_alone(home: Path) -> None:
    said = list[str]()
    cycle = begun(home, said, start_from="champion")
    assert said == ["there is no champion to start from: training begins with random weights"]
    assert cycle.start is None
    assert cycle.needed > 0
    assert cycle.folder == home / "runs" / f"corners-{cycle.key[:12]}"
    assert cycle.place == f"{cycle.folder.name} no checkpoint"
    assert cycle.judged is cycle.data
    other = begun(home, said, rank=1, start_from="champion")
    assert len(said) == 1
    assert (other.key, other.needed) == (cycle.key, 0)
    assert begun(home, said).key != cycle.key


@pytest.mark.parametrize(
    ("name", "data", "told"), [(None, True, True), (None, False, False), ("x", True, False)]
)
def test_data_of_one_s_own_should_have_a_name(
    name: str | None, data: bool, told: bool, home: Path
) -> None:
    said = list[str]()
    begun(home, said, name, **({} if data else {"data": None}))
    says = "the model is called '8gaussians', as its preset; set.name gives it its own name"
    assert said == [says] * told


def test_a_reference_judges_and_its_notes_are_said_once(home: Path) -> None:
    rows = mixture(1, 300)
    (home / "trusted.csv").write_text("x;y\n" + "".join(f"{x:.3f};{y:.3f}\n" for x, y in rows))
    said = list[str]()
    notes = load_data(begun(home, said).config.data.of(str(home / "trusted.csv"))).notes
    assert notes
    cycle = begun(home, said, reference=str(home / "trusted.csv"))
    assert said == [f"reference: {note}" for note in notes]
    assert cycle.judged is not cycle.data
    assert cycle.judged.card.count == 300
    begun(home, said, rank=1, reference=str(home / "trusted.csv"))
    assert len(said) == len(notes)
    np.save(home / "wide.npy", np.random.default_rng(0).normal(size=(300, 5)))
    with pytest.raises(ConfigError, match=r"reference: .* holds items of shape \(5,\)"):
        begun(home, said, reference=str(home / "wide.npy"))


def champion_of(home: Path, kind: str) -> str:
    """Make an untrained model `tiny` the champion; returns its digest."""
    folder = make_artifact(home / kind, kind)
    model = load_artifact(folder)
    registry.promote("tiny", track_and_register(model, folder).partition("@")[2], "first")
    return model.digest


def test_a_challenger_begins_with_the_champion_of_its_time(home: Path) -> None:
    digest, said = champion_of(home, "vector"), list[str]()
    cycle = begun(home, said, "tiny", start_from="champion")
    assert cycle.start is not None
    assert (cycle.start.card.model, cycle.start.card.digest) == ("tiny@1", digest)
    assert cycle.key != begun(home, said, "tiny").key
    assert said == []
    codes = {"data.columns": {"x": {"kind": "number"}}}
    with pytest.raises(ConfigError, match="rows are coded as the model that the run begins with"):
        begun(home, said, "tiny", start_from="champion", set=codes)
    (home / "data.npy").rename(home / "real.npy")
    samples = encode(np.load(home / "real.npy"), "npz")
    (home / "samples.npz").write_bytes(samples)
    with pytest.raises(DataError, match="a model's samples are no data"):
        begun(home, said, "tiny", start_from="champion", data=str(home / "samples.npz"))


def test_networks_without_a_width_are_as_wide_as_the_champion_s(home: Path) -> None:
    np.save(home / "data.npy", np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8))
    more = {"generator.width": 0, "critic.width": 0, "data.size": None, "training.batch_size": 8}
    plain = begun(home, [], "tiny", preset="images", set=dict(more))
    assert plain.config.generator.width == USUAL_WIDTH
    champion_of(home, "image")
    cycle = begun(home, [], "tiny", start_from="champion", preset="images", set=dict(more))
    assert cycle.start is not None
    assert cycle.config.generator.width == cycle.start.model.run.config.generator.width == 8


def test_a_model_is_loaded_once_and_one_that_is_gone_is_no_rival(home: Path) -> None:
    digest, said = champion_of(home, "vector"), list[str]()
    cycle = begun(home, said, "tiny")
    found = cycle.rival("1")
    assert found is not None
    assert (found.version, found.model.digest) == ("1", digest)
    shutil.rmtree(registry.files_uri("tiny@1").removeprefix("file://"))
    assert cycle.model("1") is found.model
    cycle.models.clear()
    assert cycle.rival("1") is None
    assert cycle.rival("9") is None
    assert [line.partition(":")[0] for line in said] == [
        f"version {version} cannot be compared with" for version in "19"
    ]


def test_a_cycle_stops_where_it_is_asked_to(home: Path) -> None:
    cycle = begun(home, [])
    cycle.pause("promoting")
    cycle.stop_requested = lambda: True
    with pytest.raises(Interrupted, match=r"^stopped before promoting$"):
        cycle.pause("promoting")


def test_the_newest_checkpoint_is_the_place(home: Path) -> None:
    cycle = begun(home, [])
    folder = cycle.folder / "checkpoints"
    folder.mkdir(parents=True)
    for step in (50, 100):
        (folder / f"step-{step:08d}.safetensors").touch()
    assert cycle.place == f"{cycle.folder.name} step-00000100"


# The command


class Second(Workers):
    """The second of two processes, which need not wait for the first one here."""

    def end_alike(self, code: int, stop_requested: Any = never) -> int:
        """The code that it would report."""
        return code


@pytest.fixture
def retrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs the command, whose cycle ends as is asked; with its exit code, what it was given."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    given = dict[str, Any]()

    def run(end: Outcome | Exception, workers: Workers = ALONE) -> tuple[int, dict[str, Any]]:
        def cycle(settings: RetrainConfig, **more: Any) -> Outcome:
            given.update(more, settings=settings)
            if isinstance(end, Exception):
                raise end
            return end

        monkeypatch.setattr("training.retraining.cycle.retrain", cycle)
        monkeypatch.setattr("training.engine.workers.join_workers", lambda device: workers)
        config = tmp_path / "retrain.yaml"
        config.write_text(f"preset: digits\nfolder: {tmp_path / 'runs'}\n")
        return wgan_cli.main(["retrain", "--config", str(config)]), given

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("kind", "code"),
    [("promoted", 0), ("skipped", 0), ("rejected", 3), ("interrupted", 75), ("failed", 1)],
)
def test_the_exit_code_tells_the_end(
    kind: OutcomeKind, code: int, retrained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found, given = retrained(Outcome(kind, "so it is"))
    assert found == code
    assert capsys.readouterr().out == f"{kind}: so it is\n"
    assert given["report"] is TrainingBar
    assert given["settings"].preset == "digits"
    assert given["stop_requested"]() is False


def test_gates_and_the_file_of_the_decision_are_told_by_the_main_process(
    tmp_path: Path, retrained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    end = Outcome("rejected", "low", decision(), tmp_path)
    assert retrained(end)[0] == 3
    champion, recall, checksums, *others = capsys.readouterr().out.splitlines()
    assert champion.split() == ["passed", "champion"]
    assert recall.split() == ["FAILED", "recall"]
    assert checksums.split() == ["FAILED", "checksums"]
    assert others == ["rejected: low", f"decision: {tmp_path / 'decision.json'}"]
    found, given = retrained(end, Second(1, 2))
    assert (found, given["report"], given["say"]) == (3, no_report, silent)
    assert capsys.readouterr().out == ""


def test_a_training_that_diverged_has_failed(
    retrained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrained(Diverged("step 7: the loss is not finite"))[0] == 1
    assert "error: step 7: the loss is not finite" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_a_mistake_is_told_by_the_first_process(
    rank: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    config = tmp_path / "retrain.yaml"
    for mistake in ("more: 1", "set: {training.stepz: 1}"):
        config.write_text(f"preset: digits\nfolder: {tmp_path}\n{mistake}\n")
        assert wgan_cli.main(["retrain", "--config", str(config)]) == 2
    assert len(lines_of(tmp_path)) == (0 if rank == "1" else 2)


def test_a_mistake_that_came_through_a_pipe_is_not_read_again(tmp_path: Path) -> None:
    """Whoever waits for a second writer of it would wait for ever."""
    pipe = tmp_path / "retrain.yaml"
    os.mkfifo(pipe)
    text = f"preset: digits\nfolder: {tmp_path}\nmore: 1\n"
    writer = threading.Thread(target=pipe.write_text, args=[text], daemon=True)
    writer.start()
    assert wgan_cli.main(["retrain", "--config", str(pipe)]) == 2
    assert lines_of(tmp_path) == []
