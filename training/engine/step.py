"""The critic's step: its loss and gradients, eager, or captured once and then replayed.

A gradient penalty's double backward is made anew in each eager step. Captured, it is one list of
kernels; compiled, these are fused too. Both are checked against the eager step when they are made,
for a compiler that drops a second derivative says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from models.constraints import Constraint
from models.lipschitz import CriticFunction
from models.networks.conditional import WithLabels
from training.engine.graphs import tidied

Found = tuple[Tensor, Tensor, list[Tensor]]
"""The gap, the loss, and the loss's gradient by each parameter."""

STACKED = "stacked"
"""A checkpoint's name for the critic step of runs that `engine.stacked` trains together."""
WORTH_COMPILING = 2e12
"""Floating-point operations of the convolutions of one critic forward in each of a run's critic
steps, a number that does not depend on how busy the machine is. On a processor compiling took 31 s
for a critic of 0.85e9 (28x28, width 64, batch 64); no GPU was measured."""
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 1e-1}
"""How far a captured gradient may be off the eager one, relative to the longest of all
parameters' gradients, before it is refused. Rounding alone gives 1e-5 in fp32, 2e-2 in bf16."""


class CriticStep:
    """Finds the critic's loss and leaves its gradients on the parameters.

    Args:
        mode: how; ``auto`` captures, which costs a second, but on a GPU compiles a convolutional
            critic if the run is long enough to win the time back.
        critic: as the constraint returned it.
        constraint: whose penalty is added.
        steps: of the critic in the whole run.
        precision: of `training.precision`.
        autocast: entered around each forward.
        draws: entered around whatever draws random numbers.
        say: is told, once, if a step cannot be captured.
    """

    def __init__(
        self,
        mode: str,
        critic: nn.Module,
        constraint: Constraint,
        steps: int,
        precision: str,
        autocast: AbstractContextManager[Any],
        draws: AbstractContextManager[Any],
        say: Callable[[str], None],
    ) -> None:
        self.mode = mode  # of a choice that `training.critic_step` or a checkpoint holds
        self._critic, self._constraint, self._steps = critic, constraint, steps
        self._precision, self._autocast, self._draws, self._say = precision, autocast, draws, say
        self._captured: dict[bool, Callable[..., Found]] = {}
        self._parameters = dict(critic.named_parameters())
        self._together = in_one_forward(critic)

    def __call__(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        """Replace the gradients of the critic's parameters by those of its loss.

        Args:
            real: ``(N, *shape)``, in the critic's units.
            fake: likewise, detached from the generator.
            labels: of a conditional critic: ``(N,)`` of both, and nothing else.
            step: critic steps done before.

        Returns:
            The gap, mean score of real less that of fake, and the loss; scalars.
        """
        if self.mode == "eager":
            return self._eager(real, fake, labels, step)
        penalised = self._constraint.penalised(step)
        if penalised not in self._captured:
            return self._first(real, fake, labels, step, penalised)
        gap, loss, gradients = self._captured[penalised](*self._state(), real, fake, list(labels))
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        return gap, loss

    def _eager(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        critic = WithLabels(self._critic, *labels) if labels else self._critic
        gap, loss = self._loss(critic, real, fake, labels, step)
        for parameter in self._parameters.values():
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return gap.detach(), loss.detach()

    def _loss(
        self,
        critic: CriticFunction,
        real: Tensor,
        fake: Tensor,
        labels: Sequence[Tensor],
        step: int,
    ) -> tuple[Tensor, Tensor]:
        together = self._together and not labels  # which come batch by batch
        with self._autocast, self._draws:
            return critic_loss(critic, self._constraint, real, fake, step, together)

    def _first(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int, penalised: bool
    ) -> tuple[Tensor, Tensor]:
        """Choose the mode, capture, and check the capture against the eager step."""
        devices = [real.device] if real.device.type == "cuda" else []
        if self.mode == "auto":
            self.mode = self._choice(real, labels)
        with torch.random.fork_rng(devices):
            _, loss = self._eager(real, fake, labels, step)
        right = [p.grad for p in self._parameters.values()]
        if self.mode != "eager":
            try:
                reason = unfit(self._critic)
                if not reason:
                    with torch.random.fork_rng(devices):
                        capture = self._capture(real, fake, labels, step)
                    with torch.random.fork_rng(devices):
                        found = capture(*self._state(), real, fake, list(labels))
                    reason = difference(found, loss, right, TOLERANCE[self._precision])
            except Exception as error:  # whatever a tracer or compiler raises: eager still works
                reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            if reason:
                self._say(f"the critic's step stays eager, not {self.mode}: {reason}")
                self.mode = "eager"
            else:
                self._captured[penalised] = capture
        return self(real, fake, labels, step)

    def _choice(self, real: Tensor, labels: Sequence[Tensor]) -> str:
        if unfit(self._critic):
            return "eager"
        convolutions = [m for m in self._critic.modules() if isinstance(m, nn.Conv2d)]
        # On a processor a compiled step is little faster than a captured one (docs/performance.md).
        if real.device.type == "cpu" or not convolutions:
            return "captured"
        work = 0

        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal work
            work += 2 * output.numel() * cast(Tensor, module.weight)[0].numel()

        hooks = [module.register_forward_hook(count) for module in convolutions]
        devices = [real.device] if real.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            self._critic(real, *labels)
        for hook in hooks:
            hook.remove()
        return "compiled" if work * self._steps >= WORTH_COMPILING else "eager"

    def _state(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self._parameters.values()), list(self._critic.buffers())

    def _capture(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> Callable[..., Found]:
        names = [*self._parameters, *(name for name, _ in self._critic.named_buffers())]

        def function(
            weights: list[Tensor],
            buffers: list[Tensor],
            real: Tensor,
            fake: Tensor,
            labels: list[Tensor],
        ) -> Found:
            leaves = [w.detach().requires_grad_() for w in weights]
            tensors = dict(zip(names, [*leaves, *buffers], strict=True))

            def critic(samples: Tensor) -> Tensor:
                repeated = [y.repeat(len(samples) // len(y)) for y in labels]
                scores: Tensor = functional_call(self._critic, tensors, (samples, *repeated))
                return scores

            with torch.enable_grad():
                gap, loss = self._loss(critic, real, fake, labels, step)
                gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            return (
                gap.detach(),
                loss.detach(),
                [
                    torch.zeros_like(w) if g is None else g.contiguous()
                    for w, g in zip(weights, gradients, strict=True)
                ],
            )

        weights, buffers = self._state()
        weights = [w.detach() for w in weights]
        graph = make_fx(function)(weights, buffers, real, fake, list(labels))
        if self.mode == "compiled":
            # The random numbers of an eager step, not inductor's own.
            run = torch.compile(graph, dynamic=False, options={"fallback_random": True})
        else:
            run = tidied(graph)

        def replay(*arguments: Any) -> Found:
            with torch.no_grad():
                found: Found = run(*arguments)
                return found

        return replay


def unfit(critic: nn.Module) -> str | None:
    """Why a capture of a critic's step could not be right, if that is known beforehand."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules()):
        return "batch normalisation changes its statistics in each forward"
    if any(p._post_accumulate_grad_hooks for p in critic.parameters()):
        return "the constraint changes gradients on their way to the weights"
    return None


def in_one_forward(critic: nn.Module) -> bool:
    """Whether real and fake samples may go through a critic together, in pairs.

    Not where a score depends on its batch, nor with dropout, which `training.engine.workers`
    draws for batches one after the other.
    """
    return not any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) or (isinstance(m, nn.Dropout) and m.p > 0)
        for m in critic.modules()
    )


def critic_loss(
    critic: CriticFunction,
    constraint: Constraint,
    real: Tensor,
    fake: Tensor,
    step: int,
    together: bool,
) -> tuple[Tensor, Tensor]:
    """The gap, mean score of real less that of fake, and the loss; scalars with their graphs.

    Both are scored in one forward if `together`, in pairs: fewer and larger kernels. What the gap
    does not depend on, as the last bias, has a gradient of nought: exactly so in pairs, where the
    terms of one sum are each other's negatives; Adam would make whole steps of what rounding left.
    """
    if together:
        pairs = critic(torch.stack([real, fake], 1).flatten(0, 1)).float().reshape(-1, 2)
        gap = (pairs[:, 0] - pairs[:, 1]).mean()
    else:
        gap = critic(real).float().mean() - critic(fake).float().mean()
    penalty = constraint.penalty(critic, real, fake, step)
    return gap, -gap if penalty is None else penalty - gap


def difference(
    found: Found, loss: Tensor, right: list[Tensor | None], tolerance: float
) -> str | None:
    """How a captured step differs from the eager one, if it does by more than rounding."""
    scale = max([g.norm().item() for g in right if g is not None], default=0.0)
    off = max(
        (mine if its is None else mine - its).norm().item()
        for mine, its in zip(found[2], right, strict=True)
    )
    if off <= tolerance * scale and abs((found[1] - loss).item()) <= tolerance * max(
        1.0, abs(loss.item())
    ):
        return None
    return f"its gradient is off by {off:.2g}, where the longest is {scale:.2g} long"
