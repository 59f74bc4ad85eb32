"""What must hold of every constraint with every family of networks, one check for each bug.

Each check is a function of a constraint and a family; it raises AssertionError. The bugs that
these are for were all found in public code; `test_conformance.py` plants each of them and sees
that exactly the check named for it fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from models.config import parse_config
from models.constraints import (
    AdversarialLipschitz,
    Constraint,
    GradientNormalization,
    WeightClipping,
)
from models.constraints.penalty import Penalty
from models.errors import ConfigError
from models.networks import CriticConfig, build_critic
from tests.artifacts import tiny_config


class Family(NamedTuple):
    """A kind of network, and the items it takes."""

    critic: dict[str, Any]
    shape: tuple[int, ...]


FAMILIES: dict[str, Family] = {
    "mlp": Family({"architecture": "mlp", "width": 8, "depth": 2}, (3,)),
    "mlp, equalized": Family(
        {"architecture": "mlp", "width": 8, "depth": 2, "equalized": True}, (3,)
    ),
    "dcgan": Family({"architecture": "dcgan", "width": 4, "depth": 2}, (2, 8, 8)),
    "dcgan, odd sides, groupsort": Family(
        {"architecture": "dcgan", "width": 4, "depth": 3, "activation": "groupsort"}, (1, 9, 12)
    ),
    "resnet": Family({"architecture": "resnet", "width": 4, "depth": 4}, (1, 8, 8)),
    "resnet, equalized": Family(
        {"architecture": "resnet", "width": 4, "depth": 4, "equalized": True}, (1, 8, 8)
    ),
    "dcgan, skips": Family(
        {"architecture": "dcgan", "width": 4, "depth": 2, "skips": True}, (2, 9, 16)
    ),
    "resnet, skips": Family(
        {"architecture": "resnet", "width": 4, "depth": 4, "skips": True}, (1, 9, 16)
    ),
    "gru": Family({"architecture": "gru", "width": 4, "depth": 1}, (5, 2)),
    "lstm": Family({"architecture": "lstm", "width": 4, "depth": 1}, (5, 2)),
}


def make(constraint: Constraint, family: Family, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    dropout = 0.5 if constraint.needs_dropout else 0.0
    config = CriticConfig(**family.critic, dropout=dropout)
    return constraint.before_training(build_critic(config, family.shape).double())


def data(family: Family, n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    real, fake = torch.randn(2, n, *family.shape, generator=source, dtype=torch.float64)
    return real, fake + 0.5


def critic_step(
    constraint: Constraint,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    fake: Tensor,
    step: int,
) -> None:
    """A critic step as the textbook has it; `training.engine.loop` is compared with this one."""
    torch.manual_seed(step)
    gap = critic(real).mean() - critic(fake).mean()
    penalty = constraint.penalty(critic, real, fake, step)
    optimizer.zero_grad()
    (-gap if penalty is None else penalty - gap).backward()
    optimizer.step()
    constraint.after_critic_step(critic)


def steps(constraint: Constraint, critic: nn.Module, family: Family, times: range) -> None:
    optimizer = torch.optim.SGD(critic.parameters(), 0.01)
    for step in times:
        critic_step(constraint, critic, optimizer, *data(family, seed=step), step)
    assert all(torch.isfinite(p).all() for p in critic.parameters())


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


class Linear(nn.Module):
    """Scores w . x; its gradient is w at every point."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.double())

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


class Recorder:
    """A linear critic that remembers where it was asked."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        return x.flatten(1).sum(1)


def _penalty(constraint: Constraint, critic: Any, real: Tensor, fake: Tensor) -> Tensor:
    torch.manual_seed(0)
    found = constraint.penalty(critic, real, fake)
    assert found is not None
    return found


# --- the checks -----------------------------------------------------------------------------


def norm_is_of_each_sample(constraint: Constraint, family: Family) -> None:
    """Samples alike: their number must not matter."""
    if isinstance(constraint, Penalty):
        size = len(torch.ones(family.shape).flatten())
        critic = Linear(torch.full((size,), 7.0))
        few, many = (_penalty(constraint, critic, *data(family, n)) for n in (4, 16))
        torch.testing.assert_close(few, many)


def norm_is_over_all_axes(constraint: Constraint, family: Family) -> None:
    """A gradient of one length, in one entry or in all: the penalty must be the same."""
    if isinstance(constraint, Penalty):
        size = len(torch.ones(family.shape).flatten())
        one = torch.zeros(size, dtype=torch.float64)
        one[0] = 7.0
        alike = torch.full((size,), 7.0 / size**0.5, dtype=torch.float64)
        concentrated, spread = (
            _penalty(constraint, Linear(w), *data(family)) for w in (one, alike)
        )
        torch.testing.assert_close(concentrated, spread, rtol=1e-5, atol=0)


def _coefficients(constraint: Constraint, family: Family) -> Tensor | None:
    """Where between real (1) and fake (0) the penalty looks: ``(N, features)``."""
    if not isinstance(constraint, Penalty) or constraint.where != "between":
        return None
    recorder = Recorder()
    real, fake = (torch.full((5, *family.shape), v, dtype=torch.float64) for v in (1.0, 0.0))
    constraint.penalty(recorder, real, fake)
    return recorder.points[0].flatten(1)


def coefficient_is_one_for_each_sample(constraint: Constraint, family: Family) -> None:
    torch.manual_seed(0)
    found = _coefficients(constraint, family)
    if found is not None:
        torch.testing.assert_close(found, found[:, :1].expand_as(found))
        assert len(found[:, 0].unique()) == len(found)


def coefficient_is_uniform(constraint: Constraint, family: Family) -> None:
    from scipy.stats import kstest

    torch.manual_seed(0)
    if _coefficients(constraint, family) is not None:
        drawn = [_coefficients(constraint, family)[0, 0].item() for _ in range(150)]  # type: ignore[index]
        assert kstest(drawn, "uniform").pvalue > 0.001


def any_number_of_channels(constraint: Constraint, family: Family) -> None:
    for shape in ((1, 8, 8), (2, 8, 8), (3, 8, 8), (5,), (4, 6)):
        real = torch.randn(3, *shape, dtype=torch.float64)
        try:
            constraint.penalty(Linear(torch.ones(real[0].numel())), real, real + 1)
        except RuntimeError as error:
            raise AssertionError(f"fails on items of shape {shape}") from error


def penalty_takes_no_step(constraint: Constraint, family: Family) -> None:
    """It leaves weights, buffers and gradients alone: the loop does the one step."""
    critic, copy = make(constraint, family), make(constraint, family)
    constraint.penalty(critic, *data(family))
    assert same(critic, copy)
    assert all(p.grad is None for p in critic.parameters())


def penalty_is_back_propagated(constraint: Constraint, family: Family) -> None:
    """Its gradient, along itself, is its own finite difference."""
    if not isinstance(constraint, Penalty) or isinstance(constraint, AdversarialLipschitz):
        return  # the adversarial neighbour moves with the weights, but counts as a constant
    critic = make(constraint, family).eval()  # no dropout: two values must be of one function
    points = data(family)

    def value() -> Tensor:
        return _penalty(constraint, critic, *points)

    for _ in range(8):  # steep enough for the one-sided penalties
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.mul_(1.5)
        if value().item() > 1e-2:
            break

    parameters = list(critic.parameters())
    found = value()
    assert found.requires_grad
    gradients = torch.autograd.grad(found, parameters, allow_unused=True)
    length = sum(g.square().sum() for g in gradients if g is not None) ** 0.5
    assert length > 1e-3
    moved = []
    for sign in (1, -1):
        for p, g in zip(parameters, gradients, strict=True):
            if g is not None:
                p.data.add_(g, alpha=sign * 1e-6 / float(length))
        moved.append(value().item())
        for p, g in zip(parameters, gradients, strict=True):
            if g is not None:
                p.data.sub_(g, alpha=sign * 1e-6 / float(length))
    slope = (moved[0] - moved[1]) / 2e-6
    assert abs(slope - float(length)) < 0.02 * float(length)


def zero_gradient_is_finite(constraint: Constraint, family: Family) -> None:
    if isinstance(constraint, Penalty):
        critic = Linear(torch.zeros(len(torch.ones(family.shape).flatten())))
        found = _penalty(constraint, critic, *data(family))
        found.backward()
        assert torch.isfinite(found)
        assert critic.weight.grad is not None
        assert torch.isfinite(critic.weight.grad).all()


def batch_norm_is_refused(constraint: Constraint, family: Family) -> None:
    """Under what looks at each sample's own gradient, and only there."""
    kind = "vector" if len(family.shape) == 1 else "image"
    values = tiny_config(kind).model_dump(mode="json")
    values["critic"] |= {"normalization": "batch", "dropout": 0.5}
    try:
        parse_config({**values, "constraint": constraint})
        refused = False
    except ConfigError as error:
        refused = "batch" in str(error)
    assert refused == isinstance(constraint, Penalty | GradientNormalization)


def clipping_follows_its_scope(constraint: Constraint, family: Family) -> None:
    """Gains and offsets of normalisation are clipped if the scope is all, and not otherwise."""
    if not isinstance(constraint, WeightClipping) or constraint.target_lipschitz is not None:
        return
    critic = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))
    for parameter in critic.parameters():
        nn.init.constant_(parameter, 5.0)
    constraint.after_critic_step(critic)
    clipped = {name for name, p in critic.named_parameters() if (p != 5.0).all()}
    expected = {
        "all": {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"},
        "all_but_normalization": {"0.weight", "0.bias", "3.weight", "3.bias"},
        "weights": {"0.weight", "3.weight"},
    }
    assert clipped == expected[constraint.scope]


def claim_holds_after_each_step(constraint: Constraint, family: Family) -> None:
    critic = make(constraint, family)
    assert constraint.broken_claim(critic) is None
    for step in range(4):
        steps(constraint, critic, family, range(step, step + 1))
        assert constraint.broken_claim(critic) is None


def forwards_change_nothing(constraint: Constraint, family: Family) -> None:
    """Two forwards of one step, real and fake, see one and the same critic."""
    critic, copy = make(constraint, family).train(), make(constraint, family)
    for part in data(family):
        critic(part)
    assert same(critic, copy)


def evaluation_changes_nothing(constraint: Constraint, family: Family) -> None:
    critic, copy = make(constraint, family).eval(), make(constraint, family)
    real, _ = data(family)
    with torch.inference_mode():
        first = critic(real)
        torch.testing.assert_close(critic(real), first, rtol=0, atol=0)
    assert same(critic, copy)


def a_load_counts_at_once(constraint: Constraint, family: Family) -> None:
    """No cached weight survives it."""
    one, other = make(constraint, family).eval(), make(constraint, family, seed=1).eval()
    real, _ = data(family)
    one(real)
    one.load_state_dict(other.state_dict())
    torch.testing.assert_close(one(real), other(real), rtol=0, atol=0)


def a_resumed_step_is_the_same(constraint: Constraint, family: Family) -> None:
    """All state is in the weights, the buffers and the step's number."""
    whole, resumed = make(constraint, family), make(constraint, family, seed=1)
    steps(constraint, whole, family, range(3))
    resumed.load_state_dict(whole.state_dict())
    again = type(constraint).model_validate(constraint.model_dump())
    steps(constraint, whole, family, range(3, 6))
    steps(again, resumed, family, range(3, 6))
    assert same(whole, resumed)


def scores_are_no_probabilities(constraint: Constraint, family: Family) -> None:
    """A score may be negative: with the last bias far down, it is."""
    critic = make(constraint, family).eval()
    dense = [module for module in critic.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.constant_(dense.bias, -50.0)
    assert (critic(data(family)[0]) < 0).all()


def a_wrong_label_is_noticed(constraint: Constraint, family: Family) -> None:
    """Weights of an unconstrained critic do not pass for some that the constraint made."""
    if isinstance(constraint, Penalty) or constraint.kind in ("none", "weight_decay"):  # type: ignore[attr-defined]
        return  # these claim nothing of the weights
    free = build_critic(CriticConfig(**family.critic), family.shape).double()
    for parameter in free.parameters():
        parameter.data *= 30
    critic = make(constraint, family)
    try:
        critic.load_state_dict(free.state_dict())
    except RuntimeError:
        return
    made = [m.parametrizations.weight for m in critic.modules() if is_parametrized(m, "weight")]
    if any(len(rules) > 1 for rules in made):
        return  # it makes weights that obey of any equalised ones
    assert constraint.broken_claim(critic) is not None


CHECKS: dict[str, Callable[[Constraint, Family], None]] = {
    check.__name__: check
    for check in (
        norm_is_of_each_sample,
        norm_is_over_all_axes,
        coefficient_is_one_for_each_sample,
        coefficient_is_uniform,
        any_number_of_channels,
        penalty_takes_no_step,
        penalty_is_back_propagated,
        zero_gradient_is_finite,
        batch_norm_is_refused,
        clipping_follows_its_scope,
        claim_holds_after_each_step,
        forwards_change_nothing,
        evaluation_changes_nothing,
        a_load_counts_at_once,
        a_resumed_step_is_the_same,
        scores_are_no_probabilities,
        a_wrong_label_is_noticed,
    )
}
