"""Constraints in somebody else's training loop: any module as the critic, any optimiser."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from models.constraints import (
    AnyConstraint,
    Constraint,
    GradientPenalty,
    LipschitzPenalty,
    NormClipping,
    SpectralNorm,
    SpectralProjection,
    ZeroCenteredPenalty,
)
from models.constraints.penalty import Penalty
from models.lipschitz import certify

CONSTRAINTS = {c.model_fields["kind"].default: c for c in get_args(get_args(AnyConstraint)[0])}
PENALTIES = {kind: c for kind, c in CONSTRAINTS.items() if issubclass(c, Penalty)}


def column_critic(shape: tuple[int, ...]) -> nn.Sequential:
    """A stock critic that gives scores ``(N, 1)``."""
    if len(shape) == 3:
        return nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8 * math.ceil(shape[1] / 2) * math.ceil(shape[2] / 2), 1),
        )
    return nn.Sequential(nn.Linear(shape[0], 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))


def steep(shape: tuple[int, ...]) -> nn.Sequential:
    """A critic whose slope is above 1, so that one-sided penalties see it too; in float64."""
    critic = column_critic(shape).double()
    for parameter in critic.parameters():
        parameter.data *= 4
    return critic


def textbook(
    critic: nn.Module, real: Tensor, fake: Tensor, term: Callable[[Tensor], Tensor]
) -> Tensor:
    """Algorithm 1 of Gulrajani et al. 2017, lines 4 to 7, as most repositories write it."""
    alpha = torch.rand(len(real), *[1] * (real.dim() - 1), dtype=real.dtype)
    mixed = (alpha * real + (1 - alpha) * fake).requires_grad_()
    scores = critic(mixed)
    (gradient,) = torch.autograd.grad(
        scores, mixed, torch.ones_like(scores), create_graph=True, retain_graph=True
    )
    return 10 * term(gradient.view(len(real), -1).norm(2, dim=1)).mean()


@pytest.mark.parametrize("shape", [(5,), (2, 8, 8)])
@pytest.mark.parametrize(
    ("constraint", "term"),
    [
        (GradientPenalty(), lambda norms: (norms - 1) ** 2),
        (LipschitzPenalty(), lambda norms: torch.relu(norms - 1) ** 2),
    ],
)
def test_a_penalty_is_the_textbooks(
    constraint: Penalty, term: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    critic = steep(shape).eval()
    real, fake = torch.randn(2, 12, *shape, dtype=torch.float64) * 3
    results = []
    for penalty in (
        lambda: constraint.penalty(critic, real, fake),
        lambda: textbook(critic, real, fake, term),
    ):
        torch.manual_seed(1)  # the same points between real and fake
        value = penalty()
        assert value is not None
        gradients = torch.autograd.grad(value, list(critic.parameters()), allow_unused=True)
        results.append((value, [g for g in gradients if g is not None]))
    (ours, our_gradients), (expected, expected_gradients) = results
    assert ours > 0
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(our_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_r1_is_the_textbooks() -> None:
    torch.manual_seed(0)
    critic = steep((5,)).eval()
    real, fake = torch.randn(2, 12, 5, dtype=torch.float64)
    leaf = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(leaf).sum(), leaf)
    expected = 10 / 2 * gradient.pow(2).sum(dim=1).mean()
    torch.testing.assert_close(ZeroCenteredPenalty().penalty(critic, real, fake), expected)


@pytest.mark.parametrize("shape", [(5,), (2, 8, 8)])
@pytest.mark.parametrize("kind", PENALTIES)
def test_a_column_of_scores_counts_as_a_row(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    critic = steep(shape)
    real, fake = torch.randn(2, 12, *shape, dtype=torch.float64)
    values = []
    for view in (critic, lambda x: critic(x)[:, 0]):
        torch.manual_seed(1)
        value = PENALTIES[kind]().penalty(view, real, fake)
        assert value is not None
        assert value.dtype == torch.float64
        values.append(value.item())
    assert values[0] == values[1] > 0


@pytest.mark.parametrize("shape", [(5,), (2, 8, 8)])
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_every_constraint_in_a_foreign_loop(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    constraint: Constraint = CONSTRAINTS[kind]()
    critic = constraint.before_training(column_critic(shape))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=(0.0, 0.9))
    losses = []
    for step in range(10):
        real, fake = torch.randn(16, *shape) + 1, torch.randn(16, *shape)
        loss = critic(fake).mean() - critic(real).mean()
        penalty = constraint.penalty(critic, real, fake, step)
        assert (penalty is not None) == (kind in PENALTIES)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        constraint.after_critic_step(critic)
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert all(p.isfinite().all() for p in critic.parameters())
    critic.eval()
    scores = critic(torch.randn(16, *shape))
    assert scores.shape == (16, 1)
    assert constraint.broken_claim(critic) is None
    if kind in ("bjorck", "aol", "cayley", "sandwich"):
        assert (certify(critic)[0] or math.inf) <= 1 + 1e-4
    if kind == "gradient_normalization":
        assert scores.abs().max() < 1


def test_norm_clipping_reaches_weights_in_any_layout() -> None:
    critic = column_critic((2, 8, 8)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        critic[0].weight.mul_(100)
    NormClipping(max_norm=0.5).after_critic_step(critic)
    torch.testing.assert_close(critic[0].weight.flatten(1).norm(dim=1), torch.full((8,), 0.5))


@pytest.mark.parametrize(
    "constraint", [SpectralNorm(method="operator"), SpectralProjection()], ids=lambda c: c.kind
)
def test_a_critic_without_dense_layers_has_its_claim_checked(constraint: Constraint) -> None:
    critic = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 6), nn.Flatten())
    assert constraint.broken_claim(constraint.before_training(critic)) is None
