"""Micro-batches: a step in parts is the step of the whole batch, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.config import Config, parse_config
from models.constraints import Constraint, Dragan, GradientPenalty, MaxGradientPenalty, WeightDecay
from models.errors import ConfigError
from models.networks import CriticConfig, build_critic
from tests.artifacts import tiny_config
from tests.conformance import FAMILIES, Family, data, make
from tests.exact import exact_steps
from tests.test_conformance import CONSTRAINTS
from tests.test_step import difference, gradients
from training.data.dataset import load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.engine.runs import Interrupted, no_watch
from training.engine.split import Split
from training.engine.stack import NotStackable
from training.engine.stacked import train_together
from training.engine.step import CriticStep
from training.engine.workers import Workers

TOLERANCE = 1e-9
"""Of a gradient in float64, relative to the longest one."""
ITEMS, PART = 7, 3
"""The last part has one item only."""
CPU = torch.device("cpu")


def step(
    critic: nn.Module,
    constraint: Constraint,
    split: Split,
    family: Family,
    mode: str = "eager",
    labels: tuple[Tensor, ...] = (),
    rows: slice = slice(None),
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The gap, loss and gradients of a critic's step, always by the same random numbers."""
    find = CriticStep(mode, critic, constraint, split=split, say=pytest.fail)
    torch.manual_seed(0)
    real, fake = (x[rows] for x in data(family, ITEMS + 1))
    gap, loss = find(real, fake, [y[rows] for y in labels], 0)
    return gap, loss, gradients(critic)


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-6, atol=1e-6)  # scores are float32
    assert difference(found[2], expected[2]) <= TOLERANCE


@pytest.mark.parametrize("family", ["mlp", "dcgan", "resnet", "gru"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_the_parts_gradients_add_up_to_the_batch_s(name: str, family: str) -> None:
    constraint = CONSTRAINTS[name]
    if name == "weight_clipping, target" and family == "gru":
        pytest.skip("refused: no bound is known for a recurrent critic")
    critic, chosen, rows = make(constraint, FAMILIES[family]).train(), FAMILIES[family], slice(7)
    whole = step(critic, constraint, Split(), chosen, rows=rows)
    drawn = torch.get_rng_state()
    parts = step(critic, constraint, Split(PART), chosen, rows=rows)
    assert torch.equal(torch.get_rng_state(), drawn)
    if constraint.needs_whole_batch():
        assert difference(parts[2], whole[2]) > 1e-3, "it need not be refused"
    else:
        assert_same(parts, whole)


@pytest.mark.parametrize(
    ("constraint", "dropout"),
    [(GradientPenalty(every=2), 0.0), (GradientPenalty(where="both"), 0.5), (Dragan(), 0.5)],
)
def test_captured_parts_are_the_batch_too(constraint: Constraint, dropout: float) -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(width=8, depth=2, dropout=dropout), (3,)).double()
    whole = step(critic, constraint, Split(), FAMILIES["mlp"])
    assert_same(step(critic, constraint, Split(PART), FAMILIES["mlp"], "captured"), whole)


@pytest.mark.parametrize("family", ["dcgan", "resnet", "gru"])
@pytest.mark.parametrize("name", ["adversarial_lipschitz", "spectral_norm"])
def test_captured_parts_of_images_and_sequences_are_the_batch(name: str, family: str) -> None:
    critic, chosen = make(CONSTRAINTS[name], FAMILIES[family]).train(), FAMILIES[family]
    whole = step(critic, CONSTRAINTS[name], Split(), chosen)
    assert_same(step(critic, CONSTRAINTS[name], Split(4), chosen, "captured"), whole)


@pytest.mark.parametrize("family", ["mlp", "dcgan"])
def test_dropout_of_parts_is_that_of_the_batch(family: str) -> None:
    torch.manual_seed(0)
    config = CriticConfig(**FAMILIES[family].critic, dropout=0.5)
    critic = build_critic(config, FAMILIES[family].shape).double()
    whole = step(critic, GradientPenalty(), Split(), FAMILIES[family])
    for size in (1, 2, PART):
        assert_same(step(critic, GradientPenalty(), Split(size), FAMILIES[family]), whole)


@pytest.mark.parametrize("family", ["mlp", "dcgan", "resnet"])
def test_parts_keep_their_labels(family: str) -> None:
    torch.manual_seed(0)
    config = CriticConfig(**FAMILIES[family].critic)
    critic = build_critic(config, FAMILIES[family].shape, classes=3).double()
    for constraint in (GradientPenalty(where="both"), WeightDecay()):
        critic = constraint.before_training(critic)
        labels = (torch.tensor([0, 1, 2, 2, 1, 1, 0, 2]),)
        whole = step(critic, constraint, Split(), FAMILIES[family], labels=labels)
        parts = step(critic, constraint, Split(PART), FAMILIES[family], labels=labels)
        assert_same(parts, whole)


def test_processes_split_their_own_shares() -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(width=8, dropout=0.5), (3,)).double()
    constraint = GradientPenalty(where="both")
    expected = step(critic, constraint, Split(), FAMILIES["mlp"])
    found = []
    for rank in range(2):
        workers = Workers(rank, 2)
        split = Split(PART, workers.draws(8))
        found.append(step(critic, constraint, split, FAMILIES["mlp"], rows=workers.rows(8)))
    means = [(a + b) / 2 for a, b in zip(found[0][2], found[1][2], strict=True)]
    assert difference(means, expected[2]) <= TOLERANCE


def test_a_part_of_all_items_is_the_batch_itself() -> None:
    (part,) = Split(8)(torch.arange(8))
    assert part.share == 1
    shares = [part.share for part in Split(3)(torch.arange(8))]
    assert shares == [3 / 8, 3 / 8, 2 / 8]
    for size in (3, 4, 8, None):
        found = Split(size).map(torch.exp, torch.arange(8.0))
        torch.testing.assert_close(found, torch.arange(8.0).exp())


def test_a_batch_without_rows_is_one_part() -> None:
    """A private step may have a sample of no rows."""
    (part,) = Split()(torch.empty(0, 2), torch.empty(0))
    assert [tensor.shape for tensor in part.tensors] == [(0, 2), (0,)]
    assert part.share == 1


# --- whole runs -------------------------------------------------------------------------------

IMAGES: dict[str, Any] = {
    "data": {"source": "digits", "validation_fraction": 0.2},
    "generator": {
        "architecture": "dcgan",
        "width": 4,
        "depth": 1,
        "latent_size": 4,
        "normalization": "layer",
    },
    "critic": {"architecture": "dcgan", "width": 4, "depth": 1, "dropout": 0.3},
    "conditional": True,
    "augmentation": {"strength": 0.7},
}
ROWS: dict[str, Any] = {
    "generator": {"architecture": "mlp", "width": 8, "depth": 1, "latent_size": 4},
    "critic": {"architecture": "mlp", "width": 8, "depth": 1},
}
RUNS: dict[str, dict[str, Any]] = {
    "images": {**IMAGES, "constraint": {"kind": "dragan"}},
    "sequences": {
        "data": {"source": "ar2"},
        "generator": {"architecture": "gru", "width": 4, "depth": 1, "latent_size": 32},
        "critic": {"architecture": "gru", "width": 4, "depth": 1},
        "constraint": {"kind": "spectral_norm"},
    },
    "a table": {**ROWS, "constraint": {"kind": "gradient_penalty"}},
}


def run_of(name: str, folder: Path, **training: Any) -> Config:
    values = {"name": "split", **RUNS[name]}
    if name == "a table":
        lines = [f"{k % 7 * 1.5},{'abc'[k % 3]},{k * k % 101}" for k in range(400)]
        (folder / "rows.csv").write_text("\n".join(["number,letter,square", *lines]) + "\n")
        values["data"] = {"source": str(folder / "rows.csv")}
    settings = {"steps": 3, "batch_size": 8, "num_critic_steps": 2, "learning_rate": 0.05}
    settings |= {"optimizer": "rmsprop", **training}
    return parse_config({**values, "training": settings})


@pytest.mark.parametrize("name", RUNS)
def test_a_run_does_not_depend_on_its_micro_batches(name: str, tmp_path: Path) -> None:
    """In float64; RMSprop makes steps as long as its rate of any gradient, however small."""
    states = []
    for size in (None, 3, 8):
        config = run_of(name, tmp_path, micro_batch_size=size)
        states.append(exact_steps(config, load_data(config.data), CPU, tmp_path / str(size)))
    start, whole = states[0]
    for _, found in states[1:]:
        for key, tensor in whole.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-8)
    assert all(not torch.equal(start[k], whole[k]) for k in whole if k.startswith("ema.body"))


def test_an_interrupted_run_goes_on_with_its_micro_batches(tmp_path: Path) -> None:
    config = run_of("images", tmp_path, micro_batch_size=3, checkpoint_every=2, steps=4)
    dataset = load_data(config.data)
    whole, _ = train(config, dataset, tmp_path / "whole", CPU)

    def stop_at(step: int, state: TrainingState) -> None:
        steps.append(step)

    steps = list[int]()
    with pytest.raises(Interrupted):
        train(
            config,
            dataset,
            tmp_path / "parts",
            CPU,
            watch=stop_at,
            stop_requested=lambda: len(steps) >= 1,
        )
    found, history = train(config, dataset, tmp_path / "parts", CPU)
    assert steps == [1, 2]
    assert history[-1]["step"] == 4
    for key, tensor in whole.tensors().items():
        assert torch.equal(found.tensors()[key], tensor), key


def test_models_in_little_memory_are_not_stacked(tmp_path: Path) -> None:
    config = parse_config(
        {
            "name": "split",
            "data": {"source": "8gaussians"},
            **ROWS,
            "constraint": {"kind": "gradient_penalty"},
            "training": {"steps": 1, "micro_batch_size": 16},
        }
    )
    with pytest.raises(NotStackable, match="little memory"):
        train_together([config], load_data(config.data), [tmp_path], [no_watch])


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"generator.normalization": "batch"},
            "micro_batch_size: generator.normalization: 'batch'",
        ),
        (
            {"critic.normalization": "batch", "constraint": {"kind": "none"}},
            "micro_batch_size: critic.*: 'batch' takes",
        ),
        (
            {"constraint": {"kind": "max_gradient_penalty"}},
            "micro_batch_size: constraint max_gradient_penalty: only the steepest sample",
        ),
        (
            {"critic.minibatch_statistics": True, "constraint": {"kind": "none"}},
            "micro_batch_size: critic.minibatch_statistics: are of groups of a whole batch",
        ),
        ({"privacy": {"noise_multiplier": 1.0}}, "privacy: training.micro_batch_size"),
        ({"training.micro_batch_size": 0}, "training.micro_batch_size: .*greater than or equal"),
    ],
)
def test_what_cannot_be_split_is_refused(changes: dict[str, Any], says: str) -> None:
    values = tiny_config().model_dump(mode="json", exclude_unset=True)
    values["training"]["micro_batch_size"] = 2
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    with pytest.raises(ConfigError, match=says):
        parse_config(values)


def test_a_penalty_that_needs_the_whole_batch_says_so() -> None:
    assert MaxGradientPenalty().needs_whole_batch()
    assert [name for name, c in CONSTRAINTS.items() if c.needs_whole_batch()] == [
        name for name in CONSTRAINTS if name.startswith("max_gradient_penalty")
    ]
