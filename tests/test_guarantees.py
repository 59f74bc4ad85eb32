"""Guarantees hold for the critic that was built: after training, after loading, in words."""

import copy
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.artifact import RUN, SUMS, load_artifact, save_artifact
from models.config import Config
from models.constraints import AnyConstraint, Bjorck
from models.lipschitz import LipschitzBounds, certify, steepest_slope
from models.model import QUANTILE_LEVELS
from models.networks import build_networks
from models.networks.conditional import WithLabels
from models.record import Run, constraint_card
from tests.artifacts import make_artifact, tiny_config

ROOT = Path(__file__).parent.parent
KINDS = [c.model_fields["kind"].default for c in get_args(get_args(AnyConstraint)[0])]
CONSTRAINTS: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in KINDS} | {
    "weight_clipping to a target": {"kind": "weight_clipping", "target_lipschitz": 1.0},
    "bjorck by iteration": {"kind": "bjorck", "method": "iterate"},
    "spectral_norm of operators": {"kind": "spectral_norm", "method": "operator"},
}
CLASSES = 3
CRITICS: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "mlp": ((2,), 0, {"architecture": "mlp"}),
    "dcgan": ((1, 8, 8), 0, {"architecture": "dcgan"}),
    "resnet": ((1, 8, 8), 0, {"architecture": "resnet", "depth": 5}),
    "deep resnet": ((1, 8, 8), 0, {"architecture": "resnet", "depth": 17}),
    "gru": ((4, 2), 0, {"architecture": "gru", "depth": 1}),
    "conditional mlp": ((2,), CLASSES, {"architecture": "mlp"}),
    "conditional dcgan": ((1, 8, 8), CLASSES, {"architecture": "dcgan"}),
}
"""Shape of an item, number of classes and settings of each critic."""
FORMER_PROMISE = (
    "Each layer's operator norm is at most 1 by construction, so the critic's slope is at "
    "most 1 with activations that are 1-Lipschitz."
)


def configured(critic: str, constraint: str) -> Config:
    shape, classes, settings = CRITICS[critic]
    kind = {1: "vector", 2: "sequence", 3: "image"}[len(shape)]
    dropout = 0.2 if constraint == "consistency" else 0.0
    return tiny_config(
        kind,
        conditional=bool(classes),
        critic={"width": 4, "dropout": dropout, **settings},
        constraint=CONSTRAINTS[constraint],
    )


def trained(config: Config, critic: nn.Module, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Take three large steps, so that weights reach their limits; in eval mode afterwards."""
    constraint = config.constraint
    critic.train().requires_grad_(True)
    optimizer = torch.optim.Adam(critic.parameters(), 0.05, (0.0, 0.9))
    for step in range(3):
        real, fake = torch.randn(12, *shape) + 1, torch.randn(12, *shape)
        bound = WithLabels(critic, torch.arange(12) % classes) if classes else critic
        loss = bound(fake).mean() - bound(real).mean()
        penalty = constraint.penalty(bound, real, fake, step)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        constraint.after_critic_step(critic)
    return critic.eval().requires_grad_(False)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("critic", ["conditional mlp", "conditional dcgan"])
@pytest.mark.parametrize("seeds", [(1, 2), pytest.param((3, 4), marks=pytest.mark.slow)])
def test_a_conditional_critic_is_loaded_as_it_was_trained(
    seeds: tuple[int, ...], critic: str, constraint: str, tmp_path: Path
) -> None:
    """A critic that is built to load weights has other initial weights, and the same claim."""
    shape, classes, _ = CRITICS[critic]
    config = configured(critic, constraint)
    folder = make_artifact(
        tmp_path / "artifact",
        "vector" if len(shape) == 1 else "image",
        0,
        {f"class {label}": 1 for label in range(classes)},
        critic=config.critic.model_dump(),
        constraint=CONSTRAINTS[constraint],
    )
    run = Run.model_validate_json((folder / RUN).read_bytes())
    quantiles = np.zeros(len(QUANTILE_LEVELS))
    for seed in seeds:
        torch.manual_seed(seed)
        generator, network = build_networks(config, shape, classes)
        weights = trained(config, network, shape, classes)
        assert config.constraint.broken_claim(weights) is None, seed
        save_artifact(folder, run, generator, weights, {}, quantiles, b"", "")
        torch.manual_seed(seed + 100)
        loaded = load_artifact(folder).critic
        assert config.constraint.broken_claim(loaded) is None, seed
        if constraint == "weight_clipping to a target":
            bound, _ = certify(copy.deepcopy(loaded).double())
            assert bound is not None, seed
            assert bound <= 1, seed


def promises(guarantee: str) -> list[float]:
    """Find the numbers by which a sentence bounds the critic's slope."""
    said = re.findall(r"critic's slope is(?: then near)?(?: at most)? ([\d.e+-]*\d)", guarantee)
    return [float(number) for number in said]


@pytest.mark.parametrize(
    ("critic", "constraint"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] if pair[0] == "deep resnet" else [])
        for pair in itertools.product(CRITICS, CONSTRAINTS)
        if pair != ("gru", "weight_clipping to a target")  # refused, as no bound is known
    ],
)
def test_what_is_promised_of_a_slope_holds(critic: str, constraint: str) -> None:
    shape, classes, _ = CRITICS[critic]
    config = configured(critic, constraint)
    torch.manual_seed(0)
    _, network = build_networks(config, shape, classes)
    exact = trained(config, network, shape, classes).double()
    certified, reason = certify(exact)
    guarantee = constraint_card(
        config.constraint, LipschitzBounds(certified=certified, reason=reason)
    ).guarantee
    assert guarantee.startswith(config.constraint.guarantee)
    numbers = promises(guarantee)
    if certified is None:
        assert numbers == []
        assert str(reason) in guarantee
        return
    assert len(numbers) == 1
    (number,) = numbers
    assert certified <= number <= certified * 1.001
    starts = 3 * torch.randn(24, *shape, dtype=torch.float64)
    for label in range(max(classes, 1)):
        one_class = WithLabels(exact, torch.full((24,), label)) if classes else exact
        assert steepest_slope(one_class, starts, steps=15) <= number
        assert steepest_chord(one_class, starts) <= number


def steepest_chord(critic: nn.Module, points: Tensor) -> float:
    """The steepest slope between points and others at random distances."""
    distances = torch.logspace(-3, 2, len(points), dtype=points.dtype)
    others = points + distances.view(-1, *[1] * (points.dim() - 1)) * torch.randn_like(points)
    rise = (critic(points) - critic(others)).abs()
    return (rise / torch.linalg.vector_norm((points - others).flatten(1), dim=1)).max().item()


@pytest.mark.parametrize("value", [1.00000297, 8.25, 0.00259001, 19552.3, 3e-12, 4.5e17, 1.0])
def test_a_promise_is_rounded_up(value: float) -> None:
    card = constraint_card(Bjorck(), LipschitzBounds(certified=value))
    (number,) = promises(card.guarantee)
    assert value <= number <= value * 1.001


def test_a_card_without_a_critic_promises_no_slope_of_one() -> None:
    for constraint in get_args(get_args(AnyConstraint)[0]):
        card = constraint_card(constraint())
        assert promises(card.guarantee) == [], card.guarantee
        assert card.guarantee == constraint.guarantee


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    """Change the record of an artifact as if another version had written it."""
    record = json.loads((folder / RUN).read_text())
    old = hashlib.sha256((folder / RUN).read_bytes()).hexdigest()
    for key, values in change.items():
        record[key].update(values)
    (folder / RUN).write_text(json.dumps(record))
    new = hashlib.sha256((folder / RUN).read_bytes()).hexdigest()
    (folder / SUMS).write_text((folder / SUMS).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("certified", "holds"), [(1.0000044, True), (0.61, True), (8.25, False), (None, False)]
)
def test_an_older_artifact_keeps_its_guarantee_unless_it_is_false(
    certified: float | None, holds: bool, tmp_path: Path
) -> None:
    folder = make_artifact(tmp_path / "artifact", "vector", constraint={"kind": "aol"})
    reason = None if certified else "no bound is known for the recurrent GRU"
    bounds = {"certified": certified, "reason": reason, "sampled": 0.5}
    rewrite(folder, {"constraint": {"guarantee": FORMER_PROMISE}, "lipschitz": bounds})
    before = (folder / RUN).read_bytes()
    said = load_artifact(folder).run.constraint.guarantee
    assert (folder / RUN).read_bytes() == before
    if holds:
        assert said == FORMER_PROMISE
    else:
        assert promises(said) == ([certified] if certified else [])
        assert reason is None or reason in said


@pytest.mark.parametrize("kind", ["vectors", "images"])
def test_released_artifacts_say_what_they_said(kind: str) -> None:
    folder = ROOT / "tests/released" / kind
    recorded = json.loads((folder / RUN).read_text())["constraint"]
    assert load_artifact(folder).run.constraint.model_dump(mode="json") == recorded


def test_the_docs_say_what_layers_of_norm_one_amount_to() -> None:
    """`docs/constraints.md` has a table of bounds by architecture."""
    docs = (ROOT / "docs/constraints.md").read_text()
    row = r"^\| `(critic\.[^|`]*)` \| (yes|no) \| ([\d.]+|none) \|"
    rows = re.findall(row, docs, re.MULTILINE)
    assert len(rows) == 7
    for settings, conditional, number in rows:
        values = dict(part.removeprefix("critic.").split("=") for part in settings.split())
        kind = {"mlp": "vector", "gru": "sequence"}.get(values["architecture"], "image")
        classes = CLASSES if conditional == "yes" else 0
        config = tiny_config(kind, conditional=bool(classes), critic=values)
        shape = {"vector": (2,), "sequence": (4, 2), "image": (1, 32, 32)}[kind]
        _, critic = build_networks(config, shape, classes)
        bound, _ = certify(critic, lambda layer: 1.0)
        expected = None if number == "none" else pytest.approx(float(number), rel=1e-4)
        assert bound == expected, settings
