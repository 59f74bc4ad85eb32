"""Every constraint passes every check with every family; a planted bug fails exactly its own."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.constraints import (
    AnyConstraint,
    Bjorck,
    Constraint,
    GradientPenalty,
    LipschitzPenalty,
    NoConstraint,
    SpectralNorm,
    WeightClipping,
    WeightNormalization,
    ZeroCenteredPenalty,
)
from models.constraints.power_method import PowerMethod
from models.errors import ConfigError
from tests.conformance import CHECKS, FAMILIES, Family, make

CONSTRAINTS: dict[str, Constraint] = {
    **{c.model_fields["kind"].default: c() for c in get_args(get_args(AnyConstraint)[0])},
    "gradient_penalty, lazy": GradientPenalty(every=4),
    "lipschitz_penalty, both": LipschitzPenalty(where="both"),
    "gradient_penalty, around real": GradientPenalty(where="around_real"),
    "zero_centered_penalty, fake": ZeroCenteredPenalty(where="fake"),
    "weight_clipping, target": WeightClipping(target_lipschitz=2.0),
    "weight_clipping, weights": WeightClipping(scope="weights"),
    "spectral_norm, operator": SpectralNorm(method="operator"),
    "bjorck, iterate": Bjorck(method="iterate"),
    "weight_normalization, trained": WeightNormalization(gain="trained"),
}


@pytest.mark.sampled
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_conformance(name: str, family: str) -> None:
    if name == "weight_clipping, target" and family in ("gru", "lstm"):
        with pytest.raises(ConfigError, match="the bound of the recurrent"):
            make(CONSTRAINTS[name], FAMILIES[family])
        return
    failed = failures(CONSTRAINTS[name], FAMILIES[family])
    assert not failed, failed


def failures(constraint: Constraint, family: Family) -> dict[str, AssertionError]:
    found = {}
    for name, check in CHECKS.items():
        try:
            check(constraint, family)
        except AssertionError as error:
            found[name] = error
    return found


# --- bugs found in public code, planted -------------------------------------------------------


class Slopes(GradientPenalty):
    """The gradient penalty, with its two parts apart, so that each bug is one line."""

    def coefficient(self, real: Tensor) -> Tensor:
        return torch.rand(len(real), *[1] * (real.dim() - 1), dtype=real.dtype)

    def norm(self, gradient: Tensor) -> Tensor:
        return torch.linalg.vector_norm(gradient.flatten(1), dim=1)

    def term(self, critic: Any, real: Tensor, fake: Tensor) -> Tensor:
        a = self.coefficient(real)
        points = (a * real + (1 - a) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
        return self.strength * (self.norm(gradient) - self.target).square().mean()


class NormOverTheBatch(Slopes):
    def norm(self, gradient: Tensor) -> Tensor:
        return torch.linalg.vector_norm(gradient)


class NormOverTheChannels(Slopes):
    def norm(self, gradient: Tensor) -> Tensor:
        return torch.linalg.vector_norm(gradient, dim=1)


class OneCoefficientForTheBatch(Slopes):
    def coefficient(self, real: Tensor) -> Tensor:
        return torch.rand((), dtype=real.dtype)


class ThreeChannels(Slopes):
    def coefficient(self, real: Tensor) -> Tensor:
        if real.dim() == 4:
            return torch.rand(len(real), 1, 1, 1, dtype=real.dtype).repeat(1, 3, *real.shape[2:])
        return super().coefficient(real)


class NormalCoefficient(Slopes):
    def coefficient(self, real: Tensor) -> Tensor:
        return torch.randn(len(real), *[1] * (real.dim() - 1), dtype=real.dtype)


class StepOfItsOwn(Slopes):
    def term(self, critic: Any, real: Tensor, fake: Tensor) -> Tensor:
        if isinstance(critic, nn.Module):
            weights = list(critic.parameters())
            found = super().term(critic, real, fake)
            gradients = torch.autograd.grad(found, weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.data -= 1e-12 * gradient
        return super().term(critic, real, fake)


class NeverBackPropagated(Slopes):
    def term(self, critic: Any, real: Tensor, fake: Tensor) -> Tensor:
        found = super().term(critic, real, fake)
        return found.detach() + 0 * found


class NotANumberAtZero(Slopes):
    def norm(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(1).square().sum(1).sqrt()


class BatchNormAccepted(Slopes):
    per_sample = False


class CountsItsOwnCalls(Slopes):
    """Lazy by a counter in the object, which a resumed run does not have."""

    every: int = 2
    _calls: int = PrivateAttr(default=0)

    def penalty(self, critic: Any, real: Tensor, fake: Tensor, step: int = 0) -> Tensor | None:
        if step == 0:  # not in a run
            return super().penalty(critic, real, fake)
        self._calls += 1
        return super().penalty(critic, real, fake, self._calls)


class ExemptsNormalization(WeightClipping):
    def after_critic_step(self, critic: nn.Module) -> None:
        WeightClipping(scope="all_but_normalization").after_critic_step(critic)


class ClipsNormalizationUnawares(WeightClipping):
    scope: Any = "all_but_normalization"

    def after_critic_step(self, critic: nn.Module) -> None:
        WeightClipping(scope="all").after_critic_step(critic)


class ClipsBeforeTheStep(WeightClipping):
    def before_training(self, critic: nn.Module) -> nn.Module:
        WeightClipping().after_critic_step(critic)
        return critic

    def penalty(self, critic: Any, real: Tensor, fake: Tensor, step: int = 0) -> None:
        if isinstance(critic, nn.Module):
            for parameter, bound in self.clipped(critic):
                parameter.data.clamp_(-bound, bound)

    def after_critic_step(self, critic: nn.Module) -> None:
        if isinstance(critic, nn.Sequential):  # the check of the scope
            super().after_critic_step(critic)


class NeverChecked(WeightClipping):
    def broken_claim(self, critic: nn.Module) -> str | None:
        return None


class Advancing(SpectralNorm):
    """Advances its vectors in forwards, while training or in evaluation."""

    training: bool

    def before_training(self, critic: nn.Module) -> nn.Module:
        critic = super().before_training(critic)

        def advance(module: nn.Module, inputs: Any) -> None:
            if module.training == self.training:
                for power in (m for m in module.modules() if isinstance(m, PowerMethod)):
                    power.left, power.right = power.left.clone(), power.right.clone()
                super(Advancing, self).after_critic_step(module)

        critic.register_forward_pre_hook(advance)
        return critic


class Cached(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.weight = None
            return weight
        if getattr(self, "weight", None) is None:
            self.weight = weight.detach().clone()
        return self.weight  # type: ignore[return-value]


class KeepsACachedWeight(NoConstraint):
    def before_training(self, critic: nn.Module) -> nn.Module:
        for module in list(critic.modules()):
            if isinstance(module, nn.Linear):
                parametrize.register_parametrization(module, "weight", Cached())
        return critic


class Squashed(nn.Module):
    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.critic(x))


class SigmoidOfTheScore(NoConstraint):
    def before_training(self, critic: nn.Module) -> nn.Module:
        return Squashed(critic)


PLANTED: dict[str, list[Constraint]] = {
    "norm_is_of_each_sample": [NormOverTheBatch()],
    "norm_is_over_all_axes": [NormOverTheChannels()],
    "coefficient_is_one_for_each_sample": [OneCoefficientForTheBatch()],
    "coefficient_is_uniform": [NormalCoefficient()],
    "any_number_of_channels": [ThreeChannels()],
    "penalty_takes_no_step": [StepOfItsOwn()],
    "penalty_is_back_propagated": [NeverBackPropagated()],
    "zero_gradient_is_finite": [NotANumberAtZero()],
    "batch_norm_is_refused": [BatchNormAccepted()],
    "clipping_follows_its_scope": [ExemptsNormalization(), ClipsNormalizationUnawares()],
    "claim_holds_after_each_step": [ClipsBeforeTheStep()],
    "forwards_change_nothing": [Advancing(training=True)],
    "evaluation_changes_nothing": [Advancing(training=False)],
    "a_load_counts_at_once": [KeepsACachedWeight()],
    "a_resumed_step_is_the_same": [CountsItsOwnCalls()],
    "scores_are_no_probabilities": [SigmoidOfTheScore()],
    "a_wrong_label_is_noticed": [NeverChecked()],
}
RGB = Family({"architecture": "dcgan", "width": 4, "depth": 2}, (3, 8, 8))


def test_the_sound_penalty_behind_the_plants_passes() -> None:
    assert not failures(Slopes(), RGB)


def test_every_check_has_a_bug_that_it_is_for() -> None:
    assert PLANTED.keys() == CHECKS.keys()


@pytest.mark.parametrize("check", PLANTED)
def test_exactly_the_check_for_a_planted_bug_fails(check: str) -> None:
    for bug in PLANTED[check]:
        found = failures(bug, RGB)
        assert set(found) == {check}, (type(bug).__name__, found)
