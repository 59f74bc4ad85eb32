"""Constraints' settings: those of the papers, the values that they accept, and what they refuse."""

from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from models.constraints import CONSTRAINTS, Constraint
from models.constraints.fit import misfit
from models.networks import CriticConfig

HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "weight_clipping": {"clip_value": 0.01, "target_lipschitz": None},
    "gradient_penalty": {"strength": 10, "target": 1, "every": 1},
    "lipschitz_penalty": {"target": 1, "every": 1},
    "max_gradient_penalty": {"target": 0, "every": 1},
    "zero_centered_penalty": {"strength": 10, "where": "real", "every": 1},
    "dragan": {"strength": 10, "target": 1, "spread": 0.5, "where": "around_real"},
    "consistency": {"strength": 10, "target": 1, "consistency": 2, "margin": 0},
    "adversarial_lipschitz": {
        "strength": 100,
        "target": 1,
        "iterations": 1,
        "probe": 10,
        "shortest": 0.1,
        "longest": 10,
    },
    "norm_clipping": {"max_norm": 1},
    "spectral_projection": {"max_norm": 1},
}
"""By the papers that the classes name; critics are to have slope 1 where no paper says so."""
TRAINED: dict[str, dict[str, Any]] = {
    "weight_clipping": {"optimizer": "rmsprop", "learning_rate": 5e-5, "num_critic_steps": 5},
    "zero_centered_penalty": {"optimizer": "rmsprop", "learning_rate": 1e-4, "num_critic_steps": 1},
    "gradient_penalty": {"learning_rate": 1e-4, "betas": (0.5, 0.9), "num_critic_steps": 5},
    "dragan": {"learning_rate": 2e-4, "betas": (0.5, 0.999), "num_critic_steps": 1},
    "consistency": {"learning_rate": 2e-4, "betas": (0.5, 0.9), "num_critic_steps": 5},
    "adversarial_lipschitz": {"learning_rate": 2e-4, "betas": (0, 0.9), "num_critic_steps": 5},
    "spectral_norm": {"learning_rate": 2e-4, "betas": (0, 0.9), "num_critic_steps": 5},
    "gradient_normalization": {"learning_rate": 2e-4, "betas": (0, 0.9), "num_critic_steps": 5},
    "bjorck": {"learning_rate": 1e-3, "betas": (0.9, 0.99), "num_critic_steps": 5},
}
"""The papers' training settings, with Adam unless they name another."""
POSITIVE = [
    (kind, name)
    for kind, names in {
        "weight_clipping": ["clip_value", "target_lipschitz"],
        "gradient_penalty": ["strength", "target", "spread"],
        "consistency": ["consistency"],
        "adversarial_lipschitz": ["strength", "probe", "shortest", "longest"],
        "norm_clipping": ["max_norm"],
        "spectral_projection": ["max_norm"],
        "weight_decay": ["strength"],
    }.items()
    for name in names
]
COUNTS = [
    ("gradient_penalty", "every"),
    ("adversarial_lipschitz", "iterations"),
    ("spectral_projection", "iterations"),
    ("bjorck", "iterations"),
]


@pytest.mark.parametrize("kind", HYPERPARAMETERS)
def test_hyperparameters_are_the_papers(kind: str) -> None:
    made = CONSTRAINTS[kind]()
    assert {name: getattr(made, name) for name in HYPERPARAMETERS[kind]} == HYPERPARAMETERS[kind]


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_defaults_are_accepted(kind: str) -> None:
    made = CONSTRAINTS[kind]()
    assert CONSTRAINTS[kind].model_validate(made.model_dump()) == made


@pytest.mark.parametrize("kind", TRAINED)
def test_training_settings_are_the_papers(kind: str) -> None:
    assert CONSTRAINTS[kind].published == {"optimizer": "adam", **TRAINED[kind]}


@pytest.mark.parametrize(("kind", "name"), POSITIVE)
def test_what_is_above_zero_is_accepted(kind: str, name: str) -> None:
    lengths = {"shortest": 1e-9} if name == "longest" else {}
    made = CONSTRAINTS[kind].model_validate({"kind": kind, **lengths, name: 1e-9})
    assert getattr(made, name) == 1e-9
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValidationError, match=name):
            CONSTRAINTS[kind].model_validate({"kind": kind, name: wrong})


@pytest.mark.parametrize(("kind", "name"), COUNTS)
def test_what_is_counted_is_at_least_one(kind: str, name: str) -> None:
    assert getattr(CONSTRAINTS[kind].model_validate({"kind": kind, name: 1}), name) == 1
    with pytest.raises(ValidationError, match=name):
        CONSTRAINTS[kind].model_validate({"kind": kind, name: 0})


@pytest.mark.parametrize(
    ("kind", "name"), [("max_gradient_penalty", "target"), ("consistency", "margin")]
)
def test_what_may_be_zero(kind: str, name: str) -> None:
    for value in (0, 0.5):
        assert getattr(CONSTRAINTS[kind].model_validate({"kind": kind, name: value}), name) == value
    with pytest.raises(ValidationError, match=name):
        CONSTRAINTS[kind].model_validate({"kind": kind, name: -0.5})


def test_the_lengths_of_a_step_are_in_order() -> None:
    made = CONSTRAINTS["adversarial_lipschitz"].model_validate({"shortest": 2, "longest": 2})
    assert made.shortest == made.longest == 2
    with pytest.raises(ValidationError, match="longest: must not be below shortest"):
        CONSTRAINTS["adversarial_lipschitz"].model_validate({"shortest": 2, "longest": 1.9})


SLOPES: dict[str, float | None] = {
    "none": 1,
    "weight_clipping": 1,
    "gradient_penalty": 1,
    "max_gradient_penalty": None,
    "zero_centered_penalty": None,
}


@pytest.mark.parametrize("kind", SLOPES)
def test_the_slope_that_a_constraint_aims_at(kind: str) -> None:
    assert CONSTRAINTS[kind]().target_slope == SLOPES[kind]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gradient_penalty", "target"),
        ("max_gradient_penalty", "target"),
        ("weight_clipping", "target_lipschitz"),
    ],
)
def test_a_slope_that_is_asked_for_is_aimed_at(kind: str, name: str) -> None:
    assert CONSTRAINTS[kind].model_validate({"kind": kind, name: 0.3}).target_slope == 0.3


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_gradients_of_each_sample_rule_batch_normalisation_out(kind: str) -> None:
    """Penalties and gradient normalisation take each sample's own gradient; weights have none."""
    of_weights = {
        "none",
        "weight_clipping",
        "norm_clipping",
        "weight_normalization",
        "weight_decay",
        "spectral_norm",
        "spectral_projection",
        "bjorck",
        "aol",
        "cayley",
        "sandwich",
    }
    assert CONSTRAINTS[kind].per_sample == (kind not in of_weights)
    assert CONSTRAINTS[kind].needs_dropout == (kind == "consistency")


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_a_constraint_says_which_critics_it_does_not_take(kind: str) -> None:
    """And nothing of those that it takes, whatever else would be wrong under another one."""
    constraint = CONSTRAINTS[kind]()
    plain: dict[str, Any] = {"dropout": 0.5 if constraint.needs_dropout else 0.0}
    groups_are_wrong = constraint.per_sample and kind != "zero_centered_penalty"
    slopes = ("relu", "leaky_relu", "tanh", "softplus")
    for changes, is_wrong, says in (
        ({}, False, ""),
        ({"dropout": 0.3}, False, ""),
        ({"dropout": 0.0}, kind == "consistency", "critic.dropout: consistency compares"),
        ({"normalization": "layer"}, False, ""),
        ({"normalization": "batch"}, constraint.per_sample, "critic.normalization: 'batch'"),
        ({"minibatch_statistics": True}, groups_are_wrong, "critic.minibatch_statistics: "),
        *(({"activation": name}, False, "") for name in slopes),
        ({"activation": "abs"}, kind == "sandwich", "set critic.activation to relu, leaky_relu, "),
        ({"activation": "abs"}, kind == "sandwich", "tanh or softplus, or take cayley or bjorck"),
    ):
        said = misfit(constraint, kind, CriticConfig(**{**plain, **changes}))
        if is_wrong:
            assert said is not None
            assert says in said
        else:
            assert said is None


def test_a_constraint_that_adds_nothing() -> None:
    """What a loop may ask of any constraint."""
    constraint: Constraint = CONSTRAINTS["none"]()
    assert constraint.penalised(0)
    assert constraint.penalised(1)
    assert constraint.mixes_samples() is None
    assert constraint.broken_claim(nn.Linear(2, 1)) is None
    assert constraint.saturated_share(nn.Linear(2, 1)) is None


@pytest.mark.parametrize("kind", HYPERPARAMETERS)
def test_a_constraint_that_is_made_stays_as_it_is(kind: str) -> None:
    """A run's record and its training read the same object."""
    (name, value), *_ = HYPERPARAMETERS[kind].items()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(CONSTRAINTS[kind](), name, value)
