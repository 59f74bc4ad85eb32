"""Runs that go on: on the same data only, with the same threads, extended, or from a model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wgan
import wgan_cli
from models import record
from models.artifact import load_artifact
from models.config import DataConfig
from models.constraints import CONSTRAINTS
from models.errors import ConfigError, DataError, ShapeError, UserError
from models.networks.stages import Stages
from models.tables import TableSchema
from tests.artifacts import make_artifact, tiny_config
from tests.registries import new_database
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    newest_checkpoint,
)
from training.engine.loop import train
from training.engine.origin import (
    Origin,
    Parent,
    Start,
    changes,
    fingerprint,
    kept_threads,
    load_start,
    require_same_record,
)
from training.engine.runs import Interrupted, _gone_on, begin
from training.engine.start import continued
from training.engine.step import STACKED
from training.lab.comparison import compare
from training.presets import branch_config
from training.run import run_training

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("charts_undrawn")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data(tiny_config().data)


def points(seed: int = 0, count: int = 300, features: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


def vector_config(path: Path, **training: Any) -> Any:
    return tiny_config(
        "vector",
        data={"source": str(path)},
        training={"steps": 4, **training},
        evaluation={"samples": 50},
    )


def finish(config: Any, out: Path, **more: Any) -> list[str]:
    said = list[str]()
    run_training(config, out, CPU, register=False, resume=True, say=said.append, **more)
    return said


# ---- the same data ------------------------------------------------------------------------------


OTHER_DATA = {
    "other values": lambda x: x * 1000,
    "301 items, not 300": lambda x: np.concatenate([x, x[:1] + 1]),
    "items of shape (3,), not (2,)": lambda x: np.concatenate([x, x[:, :1]], axis=1),
}


@pytest.mark.parametrize("says", OTHER_DATA)
def test_a_run_goes_on_with_its_own_data_only(says: str, tmp_path: Path) -> None:
    """Both a run that was stopped and a finished one; the same data elsewhere are the same."""
    np.save(tmp_path / "a.npy", points())
    np.save(tmp_path / "b.npy", points()[::-1])
    np.save(tmp_path / "c.npy", OTHER_DATA[says](points()))
    asked = iter(range(1, 10**6))
    with pytest.raises(Interrupted):
        finish(vector_config(tmp_path / "a.npy"), tmp_path, stop_requested=lambda: next(asked) == 4)
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            finish(vector_config(tmp_path / "c.npy"), tmp_path)
        assert f"({says})" in str(caught.value)
        assert "\n" not in str(caught.value)
        finish(vector_config(tmp_path / "b.npy"), tmp_path)
    assert load_artifact(tmp_path / "artifact").run.config.data.source == str(tmp_path / "b.npy")


def test_what_differs_is_named(digits: Dataset) -> None:
    now = fingerprint(digits)
    assert not changes(now, now)
    assert digits.labels is not None
    turned = dataclasses.replace(digits, labels=9 - digits.labels)
    assert changes(now, fingerprint(turned)) == "other labels"
    order = np.random.default_rng(0).permutation(len(digits.labels))
    assert digits.digests is not None
    shuffled = dataclasses.replace(
        digits,
        labels=digits.labels[order],
        digests=digits.digests[order],
        is_heldout=digits.is_heldout[order],
    )
    assert not changes(now, fingerprint(shuffled)), "the order does not count"
    split = dataclasses.replace(digits, is_heldout=digits.is_heldout[order])
    assert changes(now, fingerprint(split)) == "other items held out"
    then = now | {"columns": ["a", "b"], "classes": ["x"], "items": 5}
    new = now | {"columns": ["b", "c"], "classes": ["x", "y"], "items": 6}
    said = "new column 'c'; gone column 'a'; new class 'y'; 6 items, not 5"
    assert changes(then, new) == said


def test_of_many_differences_the_plainest_is_named(digits: Dataset) -> None:
    now = fingerprint(digits)
    count = now["items"]
    for then, said in (
        ({"shape": [1, 9, 9]}, "items of shape (1, 8, 8), not (1, 9, 9)"),
        ({"shape": [1, 9, 9], "sha256": ""}, "items of shape (1, 8, 8), not (1, 9, 9)"),
        ({"shape": [2], "items": 3, "sha256": ""}, f"{count} items, not 3"),
        ({"heldout": "", "sha256": "", "labels": ""}, "other values"),
        ({"heldout": "", "labels": ""}, "other labels"),
    ):
        assert changes(now | then, now) == said
    bare = fingerprint(dataclasses.replace(digits, digests=None))
    assert bare == {k: v for k, v in now.items() if k not in ("labels", "heldout")}
    assert "coding" not in now


def test_an_artifact_is_of_its_configuration_and_data_wherever_they_lie(
    digits: Dataset, tmp_path: Path
) -> None:
    folder = make_artifact(tmp_path / "artifact")
    card = load_artifact(folder).run.data
    same = dataclasses.replace(digits, card=card)
    require_same_record(folder, tiny_config(), same)
    require_same_record(folder, tiny_config(data={"source": "moved.npy"}), same)
    for config, data in ((tiny_config(training={"steps": 9}), same), (tiny_config(), digits)):
        with pytest.raises(UserError, match="is of another configuration or of other data"):
            require_same_record(folder, config, data)


def test_an_origin_tells_what_was_before_if_anything_was() -> None:
    assert Origin(data={}, threads=3).provenance == {}
    parent = {"model": "tiny@1", "digest": "d", "steps": 5}
    whole = Origin(data={}, threads=3, parent=Parent(**parent), extended=[4])
    assert whole.provenance == {"parent": parent, "extended": [4]}


def test_the_steps_of_a_start_are_those_of_its_parents_and_of_the_networks_that_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_artifact(tmp_path / "model", training={"steps": 7})
    assert load_start(str(tmp_path / "model")).card.steps == 7
    provenance = {"selected": {"step": 3}, "parent": {"steps": 10}}
    plain = record.Run
    # As a run that began with a model, and kept its best step, writes it.
    monkeypatch.setattr(record, "Run", lambda **v: plain(**{**v, "provenance": provenance}))
    make_artifact(tmp_path / "branch", training={"steps": 7})
    start = load_start(str(tmp_path / "branch"))
    assert start.card.steps == 10 + 3
    assert start.card.digest == load_artifact(tmp_path / "branch").digest
    assert start.card.model == str(tmp_path / "branch")


def test_whoever_calls_has_his_threads_again_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        torch.set_num_threads(before + 1)
        raise KeyError

    with pytest.raises(KeyError), kept_threads():
        fail()
    assert torch.get_num_threads() == before


def test_a_table_coded_by_another_schema_is_other_data(tmp_path: Path) -> None:
    """A champion that a run begins with may be another one when the run is resumed."""
    rows = load_data(DataConfig(source=table(tmp_path / "a.csv", "red", "green")))
    more = load_data(DataConfig(source=table(tmp_path / "b.csv", "red", "green", "blue")))
    recoded = load_data(DataConfig(source=str(tmp_path / "a.csv")), card=more.card)
    then, now = fingerprint(rows), fingerprint(recoded)
    assert changes(then, now | {"shape": then["shape"], "sha256": then["sha256"]}) == (
        "rows coded by another schema"
    )
    assert not changes(then, fingerprint(load_data(DataConfig(source=rows.card.source))))


def test_a_checkpoint_of_a_former_version_goes_on_and_says_so(
    digits: Dataset, tmp_path: Path
) -> None:
    """Settings that it did not have are the default; and it began without a model."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    eager = {"critic_step": "eager"}
    make_artifact(tmp_path / "model")
    train(tiny_config(training=eager), digits, tmp_path, CPU)
    path = newest_checkpoint(tmp_path)
    assert path is not None
    with safe_open(path, framework="pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "origin"}
    config = json.loads(metadata["config"])
    del config["serving"]
    metadata["config"] = json.dumps(config)
    save_file(load_checkpoint(path).tensors, path, metadata)
    said = list[str]()
    start = load_start(str(tmp_path / "model"))
    more = tiny_config(training={"steps": 5, **eager})
    train(more, digits, tmp_path, CPU, say=said.append, start=start)
    assert "does not say what data" in said[0]
    assert "the run began with random weights" in said[1]
    path = newest_checkpoint(tmp_path)
    assert path is not None
    origin = load_checkpoint(path).origin
    assert origin is not None
    assert origin.parent is None
    metadata["config"] = json.dumps({**config, "gone": 1})
    save_file(load_checkpoint(path).tensors, path, metadata)
    with pytest.raises(CheckpointError, match=r"a version with other settings .*gone"):
        train(tiny_config(training=eager), digits, tmp_path, CPU)


GONE: dict[str, dict[str, Any]] = {
    "privacy.epsilon": {"privacy": {"epsilon": 1.0}},
    "data.columns.x.kind": {"data": {"columns": {"x": {"kind": "number"}}}},
}


@pytest.mark.parametrize("key", GONE)
def test_a_setting_that_is_left_out_now_is_another(key: str) -> None:
    """A private run went on without noise: privacy=null has no key of its own to differ."""
    none = {"constraint": {"kind": "none"}}
    with pytest.raises(CheckpointError, match=f"made with another .*{key}"):
        gone_on({**none, **GONE[key]}, none)


def test_a_comparison_goes_on_with_its_own_data_and_settings_only(tmp_path: Path) -> None:
    """Answers were taken for those of other data, since their files had the same names."""
    kinds = ["none", "weight_clipping"]
    np.save(tmp_path / "a.npy", points())
    small = {
        "generator.width": 8,
        "critic.width": 8,
        "training.batch_size": 16,
        "evaluation.samples": 50,
    }
    common: dict[str, Any] = {"steps": 2, "track": False, "preset": "8gaussians"}
    out = tmp_path / "out"

    said = list[str]()

    def again(source: str = "a.npy", **more: Any) -> None:
        compare(
            str(tmp_path / source), kinds, 1, out, overrides=small | more, say=said.append, **common
        )

    again(**{"data.rows_that_break_rules": "leave_out"})
    with pytest.raises(UserError, match=r"another data.rows_that_break_rules"):
        again()
    (out / "compared.json").unlink()  # as a former version leaves a comparison
    again()
    assert any("does not say what it compared" in line for line in said)
    again()
    np.save(tmp_path / "a.npy", points() * 1000)
    with pytest.raises(UserError, match=r"other data .other values."):
        again()
    np.save(tmp_path / "a.npy", points())
    with pytest.raises(UserError, match=r"another critic.width"):
        again(**{"critic.width": 16})


# ---- threads ------------------------------------------------------------------------------------


def test_a_resumed_run_computes_with_its_own_number_of_threads(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", points())
    config, before = vector_config(tmp_path / "a.npy"), torch.get_num_threads()
    asked = iter(range(1, 10**6))
    try:  # with one thread, since two wait for each other on a machine that is busy
        torch.set_num_threads(1)
        with pytest.raises(Interrupted):
            finish(config, tmp_path, stop_requested=lambda: next(asked) == 4)
        torch.set_num_threads(2)
        seen = []
        said = finish(config, tmp_path, watch=lambda *_: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 2, "whoever called has his own again"
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert any(line.startswith("with 1 thread, as the run began") for line in said)
    assert load_artifact(tmp_path / "artifact").run.provenance["threads"] == 1


# ---- extended -----------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [False, True])
def test_an_extended_run_is_one_that_was_longer_from_the_start(
    finished: bool, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", points())
    short, long = (vector_config(tmp_path / "a.npy", steps=n) for n in (4, 7))
    asked = iter(range(1, 10**6))
    if finished:
        finish(short, tmp_path / "run")
        (tmp_path / "run" / "registered.json").write_text('{"model": "tiny@1"}')
    else:
        with pytest.raises(Interrupted):
            finish(short, tmp_path / "run", stop_requested=lambda: next(asked) == 3)
    said = finish(long, tmp_path / "run")
    assert "extended from 4 steps to 7" in said
    assert not any("would end otherwise" in line for line in said)
    finish(long, tmp_path / "whole")
    one, other = (load_artifact(tmp_path / name / "artifact") for name in ("run", "whole"))
    assert one.run.provenance["extended"] == [4]
    assert "extended" not in other.run.provenance
    assert np.array_equal(one.sample(0, 20), other.sample(0, 20))
    assert one.run.results == other.run.results
    assert not (tmp_path / "run" / "registered.json").exists(), "it is another model now"
    assert f"{tmp_path / 'run' / 'artifact'} is already complete" in finish(long, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"another training.steps"):
        finish(short, tmp_path / "run")


def test_a_rate_that_has_been_falling_is_said_when_a_run_is_extended(
    digits: Dataset, tmp_path: Path
) -> None:
    """All presets let it fall; the extended run is then not one that was longer from the start."""
    for steps in (4, 6):
        said = list[str]()
        settings = {"steps": steps, "decay_from": 0.3, "critic_step": "eager"}
        config = tiny_config(training=settings)
        train(config, digits, tmp_path, CPU, say=said.append)
    assert "would end otherwise" in said[1]


def test_an_artifact_without_checkpoints_is_not_taken_for_another_run(tmp_path: Path) -> None:
    import shutil

    np.save(tmp_path / "a.npy", points())
    finish(vector_config(tmp_path / "a.npy"), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    finish(vector_config(tmp_path / "a.npy"), tmp_path)
    with pytest.raises(UserError, match="--from"):
        finish(vector_config(tmp_path / "a.npy", steps=9), tmp_path)
    np.save(tmp_path / "a.npy", points() * 1000)
    with pytest.raises(UserError, match="--from"):
        finish(vector_config(tmp_path / "a.npy"), tmp_path)


ORIGIN = Origin(data=dict.fromkeys(("items", "shape", "columns", "classes"), ()), threads=2)


def gone_on(
    then: dict[str, Any],
    now: dict[str, Any],
    step: int = 4,
    began: Origin | None = ORIGIN,
    origin: Origin = ORIGIN,
) -> tuple[Origin, str]:
    """Go on from a checkpoint, of a run of other settings: the origin, and what is said."""
    saved = tiny_config("vector", **then).model_dump(mode="json")
    checkpoint, said = Checkpoint(step, saved, [], {}, "eager", began), list[str]()
    found = _gone_on(tiny_config("vector", **now), origin, checkpoint, "here", said.append)
    return found, "\n".join(said)


def steps(count: int, **training: Any) -> dict[str, Any]:
    return {"training": {"steps": count, **training}, "constraint": {"kind": "none"}}


SELECTED: dict[str, Any] = {"selection": {"every": 2}, "data": {"validation_fraction": 0.1}}


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (steps(3), r"another training.steps \(4\); resume"),
        (
            steps(9, batch_size=9),
            r"another training.steps \(4\), training.batch_size \(8\); resume",
        ),
        ({**steps(4), "selection": {"every": 3}}, r"another selection.every \(2\); resume"),
        ({**steps(3), "selection": {"every": 3}}, "another training.steps"),
    ],
)
def test_only_more_steps_may_be_asked_of_a_run(now: dict[str, Any], says: str) -> None:
    """How often it is measured follows from them; and where its data lie says nothing."""
    with pytest.raises(CheckpointError, match=f"^here: was made with {says}"):
        gone_on({**SELECTED, **steps(4)}, {**SELECTED, **now})
    assert gone_on(SELECTED | steps(4), SELECTED | steps(4)) == (ORIGIN, "")
    moved = {"data": {**SELECTED["data"], "source": "elsewhere.npy"}, "selection": {"every": 3}}
    for then, longer in (({}, steps(9)), (SELECTED, {**SELECTED, **steps(9), **moved})):
        found, said = gone_on({**then, **steps(4)}, longer)
        assert found == ORIGIN.model_copy(update={"extended": [4]})
        assert said == "extended from 4 steps to 9"
        assert gone_on({**then, **steps(4)}, longer, began=found)[0].extended == [4, 4]


def test_a_private_run_is_extended_if_its_noise_was_set() -> None:
    """The noise for an epsilon was chosen for its steps."""
    none, epsilon = {"privacy": {"noise_multiplier": 1.0}}, {"privacy": {"epsilon": 1.0}}
    assert gone_on({**steps(4), **none}, {**steps(9), **none})[0].extended == [4]
    with pytest.raises(CheckpointError, match=r"^here: the noise of .* is chosen for its steps"):
        gone_on({**steps(4), **epsilon}, {**steps(9), **epsilon})


@pytest.mark.parametrize(
    ("step", "decay_from", "is_said"),
    [(1, 0.0, False), (2, 0.0, True), (3, 0.5, False), (4, 0.5, True), (4, 1.0, False)],
)
def test_whether_the_rate_was_falling_is_that_of_the_last_step_made(
    step: int, decay_from: float, is_said: bool
) -> None:
    """At 0.5 of 4 steps it is constant for three steps: the third is where it begins to fall."""
    then, now = (steps(count, decay_from=decay_from) for count in (4, 8))
    _, said = gone_on(then, now, step)
    assert ("has been falling" in said) == is_said


def test_what_a_run_began_with_stays_what_it_began_with() -> None:
    one, other = (
        ORIGIN.model_copy(update={"parent": Parent(model=name, digest=name, steps=3)})
        for name in ("a@1", "b@2")
    )
    with pytest.raises(CheckpointError, match=r"^here: the run began with a@1: resume it with"):
        gone_on({}, {}, began=one)
    assert gone_on({}, {}, began=one, origin=one) == (one, "")
    for began, name in ((one, "a@1"), (ORIGIN, "random weights")):
        found, said = gone_on({}, {}, began=began, origin=other)
        assert found == began
        assert said == f"the run began with {name}, and goes on from there: b@2 is not looked at"
    found, said = gone_on({}, {}, began=None, origin=other)
    assert found == ORIGIN
    assert "does not say what data" in said
    assert "began with random weights" in said
    found, said = gone_on({}, {}, origin=ORIGIN.model_copy(update={"threads": 3}))
    assert found.threads == 2
    assert said == "with 2 threads, as the run began: another number gives other bits"
    saved = {**tiny_config("vector").model_dump(mode="json"), "gone": 1}
    with pytest.raises(CheckpointError, match=r"^here: was made by a version with other .*gone"):
        _gone_on(
            tiny_config("vector"), ORIGIN, Checkpoint(4, saved, [], {}, "", ORIGIN), "here", print
        )
    moved = ORIGIN.model_copy(update={"data": {**ORIGIN.data, "items": 3}})
    with pytest.raises(CheckpointError, match=r"^here: the data have changed since \(3 items, not"):
        gone_on({}, {}, origin=moved)


def test_a_resumed_run_has_its_checkpoint_s_state_threads_and_critic_step(tmp_path: Path) -> None:
    config = tiny_config("vector", training={"critic_step": "captured"})
    data, before = load_data(config.data), torch.get_num_threads()
    run = begin(config, data, tmp_path, CPU, None)
    assert not any(parameter.requires_grad for parameter in run.state.ema.parameters())
    assert (run.step, run.history, run.critic_step) == (0, [], "captured")
    run.step, run.history = 3, [{"step": 3.0}]
    for parameter in run.state.critic.parameters():
        parameter.data.fill_(0.25)
    model = load_artifact(make_artifact(tmp_path / "model", "image"))
    misfit = Start(Parent(model="a@1", digest="", steps=1), model)
    run.origin = run.origin.model_copy(update={"threads": before + 1})
    try:
        for saved, mode in (("eager", "eager"), (STACKED, "captured")):
            run.critic_step = saved
            run.save()
            # Even a model that would not fit is not looked at: the run goes on from its own state.
            found = begin(config, data, tmp_path, CPU, newest_checkpoint(tmp_path), start=misfit)
            assert torch.get_num_threads() == before + 1
            torch.set_num_threads(before)
            assert (found.step, found.history, found.critic_step) == (3, [{"step": 3.0}], mode)
            assert found.origin == run.origin
            assert {p.unique().item() for p in found.state.critic.parameters()} == {0.25}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("drops", [False, True])
def test_networks_drop_activations_where_that_is_asked_for(drops: bool, tmp_path: Path) -> None:
    config = tiny_config(training={"activation_checkpointing": drops})
    state = begin(config, load_data(config.data), tmp_path, CPU, None).state
    for network in (state.generator, state.critic):
        assert any(isinstance(module, Stages) for module in network.modules()) == drops


# ---- from a trained model -----------------------------------------------------------------------


@pytest.mark.parametrize("theirs", ["gradient_penalty", "spectral_norm", "bjorck", "aol", "cayley",
                                    "sandwich", "weight_normalization", "spectral_projection",
                                    "gradient_normalization", "weight_clipping"])  # fmt: skip
@pytest.mark.parametrize("ours", ["same", "lipschitz_penalty", "spectral_norm", "bjorck"])
def test_a_run_begins_with_the_networks_of_a_model(
    theirs: str, ours: str, digits: Dataset, tmp_path: Path
) -> None:
    """The critic scores as the model's does, but for what the new constraint does to weights."""
    make_artifact(tmp_path / "model", constraint={"kind": theirs})
    start = load_start(str(tmp_path / "model"))
    kind = theirs if ours == "same" else ours
    config = branch_config(start.model.run.config, None, kind)
    state = begin(config, digits, tmp_path, CPU, None, start=start).state
    for network in (state.generator, state.ema):
        assert all(map(torch.equal, network.state_dict().values(),
                       start.model.generator.state_dict().values()))  # fmt: skip
    items = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        ours_scores, own = state.critic.eval()(items), start.model.critic(items)
    if ours == "same":
        assert torch.equal(ours_scores, own)
    if ours == "lipschitz_penalty" and theirs != "gradient_normalization":
        torch.testing.assert_close(ours_scores, own, rtol=1e-5, atol=1e-6)
    if (theirs, ours) in (("spectral_norm", "spectral_norm"), ("bjorck", "bjorck")):
        torch.testing.assert_close(ours_scores, own, rtol=1e-5, atol=1e-6)
    assert config.constraint.broken_claim(state.critic) is None
    assert all(p.requires_grad for p in state.critic.parameters())
    assert all(p.requires_grad for p in state.generator.parameters())


def test_every_constraint_s_plain_weights_compute_the_same() -> None:
    from models.networks import build_networks

    dropout = {"dropout": 0.5}
    plain = build_networks(tiny_config(constraint={"kind": "none"}, critic=dropout), (1, 8, 8))[1]
    for kind in CONSTRAINTS:
        config = tiny_config(constraint={"kind": kind}, critic=dropout)
        critic = build_networks(config, (1, 8, 8))[1].eval()
        for parameter in critic.parameters():
            parameter.data.mul_(1.3)  # what it computes with is then not what it holds
        plain.load_state_dict(config.constraint.plain_state(critic))
        inner = critic.critic if kind == "gradient_normalization" else critic
        items = torch.randn(4, 1, 8, 8)
        torch.testing.assert_close(plain.eval()(items), inner(items), msg=kind)


MISFITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "image size and channels": ("rgb", {}, "channels 1, the model's 3; height 8, the model's 16"),
    "kind of data": ("vector", {}, "data of kind image, the model's of kind vector"),
    "latent size": ("image", {"generator": {"latent_size": 6}}, "generator.latent_size 4, the"),
    "width": ("image", {"critic": {"width": 16}}, "critic.width 8, the model's 16"),
    "options": (
        "image",
        {"generator": {"equalized": True}, "critic": {"skips": True}},
        "generator.equalized False, the model's True; critic.skips False, the model's True",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_model_that_does_not_fit_is_named(name: str, digits: Dataset, tmp_path: Path) -> None:
    kind, changed, says = MISFITS[name]
    make_artifact(tmp_path / "model", kind, **changed)
    start = load_start(str(tmp_path / "model"))
    with pytest.raises(ShapeError) as caught:
        begin(tiny_config(), digits, tmp_path, CPU, None, start=start)
    assert says in str(caught.value)


def test_classes_must_be_the_model_s(digits: Dataset, tmp_path: Path) -> None:
    make_artifact(tmp_path / "model", class_counts={"a": 3, "b": 4})
    start = load_start(str(tmp_path / "model"))
    with pytest.raises(ShapeError, match=r"classes 0, 1, .* the model's a, b"):
        begin(tiny_config(conditional=True), digits, tmp_path, CPU, None, start=start)


def test_data_that_do_not_fit_are_named_by_axis(tmp_path: Path) -> None:
    for kind, shape, says in (
        ("sequence", (5, 3), "steps 5, the model's 4; features 3, the model's 2"),
        ("vector", (3,), "features 3, the model's 2"),
        ("image", (3, 8, 9), "channels 3, the model's 1; width 9, the model's 8"),
    ):
        model = load_artifact(make_artifact(tmp_path / kind, kind))
        own = model.run.data
        with pytest.raises(ShapeError) as caught:
            continued(model, model.run.config, own.model_copy(update={"shape": shape}))
        said = f"the model to begin with does not fit: {says}; make them alike, or begin"
        assert str(caught.value).startswith(said)
        continued(model, model.run.config, own)


def test_conditions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    plain = load_artifact(make_artifact(tmp_path / "plain"))
    model = load_artifact(make_artifact(tmp_path / "model", class_counts={"a": 3, "b": 4}))
    config, card = model.run.config, model.run.data
    for begun, own, data, says in (
        (plain, config, card, "conditional True, the model's False"),
        (model, plain.run.config, card, "conditional False, the model's True"),
        (model, config, card.model_copy(update={"classes": ["a", "c"]}), "classes a, c, the model"),
    ):
        with pytest.raises(ShapeError, match=f"does not fit: {says}"):
            continued(begun, own, data)
    # Data may have classes that neither the model nor the run looks at.
    named = plain.run.data.model_copy(update={"classes": ["a"]})
    continued(plain, plain.run.config, named)


def test_a_table_of_as_many_columns_that_is_coded_otherwise_does_not_fit(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "rows", "rows"))
    card = model.run.data
    assert card.table is not None
    turned = TableSchema.model_validate(
        card.table.model_dump() | {"columns": card.table.columns[::-1], "rules": []}
    )
    assert turned.width == card.table.width
    with pytest.raises(ShapeError, match="does not fit: columns of a table that are coded other"):
        continued(model, model.run.config, card.model_copy(update={"table": turned}))


def test_networks_that_differ_though_no_setting_does_are_of_another_version(
    tmp_path: Path,
) -> None:
    for part in ("generator", "critic"):
        model = load_artifact(make_artifact(tmp_path / part, "vector"))
        setattr(model, part, torch.nn.Linear(2, 2))
        with pytest.raises(ShapeError, match="its networks are those of another version of wgan"):
            continued(model, model.run.config, model.run.data)


def test_settings_are_the_model_s_and_a_new_constraint_brings_its_own() -> None:
    parent = tiny_config(constraint={"kind": "weight_clipping"}, training={"steps": 7})
    assert branch_config(parent) == parent
    changed = branch_config(parent, "new.npy", "spectral_norm", {"training.steps": 3})
    assert changed.data.source == "new.npy"
    assert changed.generator == parent.generator
    assert (changed.training.optimizer, changed.training.learning_rate) == ("adam", 2e-4)
    assert (changed.training.steps, changed.training.batch_size) == (3, 8)
    with pytest.raises(ConfigError, match="private run begins with random weights"):
        branch_config(parent, overrides={"privacy.epsilon": 1.0, "constraint.kind": "none"})
    with pytest.raises(ConfigError, match="coded as the model"):
        branch_config(parent, overrides={"data.rules": ["a < b"]})


def table(path: Path, *colours: str, count: int = 400) -> str:
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal():.3f},{rng.choice(colours)}" for _ in range(count)]
    path.write_text("size,colour\n" + "\n".join(rows) + "\n")
    return str(path)


def test_a_table_is_coded_as_the_model_codes_it(tmp_path: Path) -> None:
    """So the width fits though the new rows lack a category; a new category is refused."""
    small = {"generator": {"width": 8}, "critic": {"width": 8}, "evaluation": {"samples": 50}}
    first = wgan.train(
        table(tmp_path / "a.csv", "red", "green", "blue"), steps=3, out=tmp_path / "a", **small
    )
    fewer = table(tmp_path / "b.csv", "red", "green")
    second = wgan.train(fewer, start=first, steps=2, out=tmp_path / "b")
    assert second.record.data.table == first.record.data.table
    parent = second.record.provenance["parent"]
    assert parent == {
        "model": str(tmp_path / "a" / "artifact"),
        "digest": first.model.digest,
        "steps": 3,
    }
    assert "Began with the weights of" in (second.artifact / "MODEL_CARD.md").read_text()
    assert "It began with the weights of" in (tmp_path / "b" / "report.html").read_text()
    wgan.train(fewer, start=first, steps=2, out=tmp_path / "b", resume=True)
    third = wgan.train(fewer, start=second, steps=1, out=tmp_path / "c")
    assert third.record.provenance["parent"]["steps"] == 5
    with pytest.raises(DataError, match="unknown category 'violet'"):
        wgan.train(table(tmp_path / "d.csv", "red", "violet"), start=first, steps=1)
    with pytest.raises(UserError, match="not both"):
        wgan.train(fewer, start=first, preset="table")


def test_the_command_begins_with_a_registered_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    np.save("a.npy", points())
    np.save("b.npy", points(1))
    run_training(vector_config(tmp_path / "a.npy"), tmp_path / "first", CPU)
    branch = "train --from tiny@1 --data b.npy --constraint spectral_norm --steps 3 --out second"
    assert wgan_cli.main(branch.split()) == 0
    assert wgan_cli.main([*branch.split(), "--resume"]) == 0
    run = json.loads(Path("second/artifact/run.json").read_text())
    digest = load_artifact(tmp_path / "first" / "artifact").digest
    assert run["provenance"]["parent"] == {"model": "tiny@1", "digest": digest, "steps": 4}
    assert run["config"]["constraint"]["kind"] == "spectral_norm"
    assert wgan_cli.main([*branch.replace("--steps 3", "--steps 5").split(), "--resume"]) == 0
    capsys.readouterr()
    assert wgan_cli.main(["models"]) == 0
    listed = capsys.readouterr().out
    assert "from tiny@1" in listed
    assert "extended from 3 steps" in listed
    for arguments in ("train --out x", "train --preset digits --from tiny@1 --out x"):
        assert wgan_cli.main(arguments.split()) == 2
        assert "--preset, or --from" in capsys.readouterr().err
    without = branch.replace("--from tiny@1", "--preset table").replace("--steps 3", "--steps 5")
    assert wgan_cli.main([*without.split(), "--resume"]) == 2
    assert "began with tiny@1: resume it with --from too" in capsys.readouterr().err
