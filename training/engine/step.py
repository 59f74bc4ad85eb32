"""The critic's step: its loss and gradients, eager, or captured once and then replayed.

An eager step builds the graph of a gradient penalty's double backward anew each time. A captured
step is a list of kernels; a compiled one fuses them too. Both are checked against the eager step
when they are made: a compiler that drops a second derivative gives no error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from models.constraints import Constraint
from models.constraints.batch import in_parts
from models.lipschitz import CriticFunction
from models.networks.conditional import WithLabels, repeated
from models.networks.parts import MIXES_SAMPLES, MinibatchStatistics
from models.networks.stages import Stages
from training.engine.graphs import tidied, traced
from training.engine.split import NO_CONTEXT, WHOLE, Part, Split
from training.progress import silent

StepResult = tuple[Tensor, Tensor, list[Tensor]]
"""The gap, the loss, and the loss's gradient by each parameter."""
Loss = Callable[[CriticFunction, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of a critic, real and fake samples: the gap and the loss."""

STACKED = "stacked"
"""The name in checkpoints of the critic step of `training.engine.stacked`."""
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 1e-1}
"""Largest accepted error of a captured gradient, by precision, relative to the longest of all
parameters' gradients. Rounding alone gives 1e-5 in fp32, 2e-2 in bf16."""


def penalty_pattern(constraint: Constraint, step: int, num_critic_steps: int) -> tuple[bool, ...]:
    """Which of the critic steps of a generator step compute the penalty.

    Args:
        constraint: of the critic.
        step: generator steps done before.
        num_critic_steps: critic steps of each generator step.
    """
    first = step * num_critic_steps
    return tuple(constraint.penalised(first + k) for k in range(num_critic_steps))


class CriticStep:
    """Finds the critic's loss and leaves its gradients on the parameters.

    Args:
        mode: ``eager``, ``captured``, ``compiled`` or ``auto``. The last is captured, which costs a
            second, and where that is known to be wrong eager. What cannot be compiled is captured,
            what cannot be captured eager.
        critic: as the constraint returned it.
        constraint: its penalty is added to the loss.
        precision: ``training.precision``.
        autocast: entered around each forward.
        split: the parts of a batch whose gradients are computed one after the other.
        say: takes one line, once, if a step cannot be captured.
    """

    def __init__(
        self,
        mode: str,
        critic: nn.Module,
        constraint: Constraint,
        precision: str = "fp32",
        autocast: AbstractContextManager[Any] = NO_CONTEXT,
        split: Split = WHOLE,
        say: Callable[[str], None] = silent,
    ) -> None:
        self.mode = mode  # changed when a choice is made, and written to checkpoints
        self._critic, self._constraint = critic, constraint
        self._precision, self._autocast, self._split, self._say = precision, autocast, split, say
        # By mode, and by whether there is a penalty. Nothing is taken out: a CUDA graph that
        # replays the kernels of a capture may read the constants that it holds.
        self._captured: dict[tuple[str, bool], Callable[..., StepResult]] = {}
        self._parameters = dict(critic.named_parameters())
        self._paired = can_pair(critic)

    def __call__(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        """Replace the gradients of the critic's parameters by those of its loss.

        Args:
            real: ``(N, *shape)``, in the critic's units.
            fake: likewise, detached from the generator.
            labels: of a conditional critic, one tensor ``(N,)`` for both; else empty.
            step: critic steps done before.

        Returns:
            The gap, mean score of real less that of fake, and the loss; scalars.
        """
        if self.mode == "eager":
            return self._eager(real, fake, labels, step)
        captured = self._captured.get((self.mode, self._constraint.penalised(step)))
        if captured is None:
            return self._first(real, fake, labels, step)
        gap, loss, found = captured(*self._state(), real, fake, list(labels))
        for parameter, gradient in zip(self._parameters.values(), found, strict=True):
            parameter.grad = gradient
        return gap, loss

    def _eager(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        def bound(labels: Sequence[Tensor]) -> CriticFunction:
            return WithLabels(self._critic, *labels) if labels else self._critic

        parameters = list(self._parameters.values())
        parts = self._split(real, fake, *labels)
        with in_parts(real):
            gap, loss, found = added_up(self._loss(step, labels), bound, parameters, parts)
        leave_gradients(parameters, found)
        return gap, loss

    def _loss(self, step: int, labels: Sequence[Tensor]) -> Loss:
        paired = self._paired and not labels  # labels repeat batch by batch, not in pairs

        def loss(critic: CriticFunction, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
            with self._autocast:
                return critic_loss(critic, self._constraint, real, fake, step, paired)

        return loss

    def _first(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        """Choose the mode, capture, and check the capture against the eager step."""
        devices = [real.device] if real.device.type == "cuda" else []
        if self.mode == "auto":
            # Compiling takes half a minute. On a processor the step is little faster then, and on
            # a GPU nobody has measured it (docs/performance.md).
            self.mode = "eager" if capture_obstacle(self._critic) else "captured"
        with torch.random.fork_rng(devices):
            _, loss = self._eager(real, fake, labels, step)
        expected = [p.grad for p in self._parameters.values()]
        penalised = self._constraint.penalised(step)
        while self.mode != "eager" and (self.mode, penalised) not in self._captured:
            next_mode = "captured" if self.mode == "compiled" else "eager"
            try:
                reason = capture_obstacle(self._critic)
                if reason:
                    next_mode = "eager"
                else:
                    with torch.random.fork_rng(devices):
                        capture = self._capture(real, fake, labels, step)
                    with torch.random.fork_rng(devices):
                        result = capture(*self._state(), real, fake, list(labels))
                    reason = mismatch(result, loss, expected, TOLERANCE[self._precision])
            except Exception as error:  # tracers and compilers raise many kinds; eager still works
                reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            if reason:
                self._say(f"the critic's step is {next_mode}, not {self.mode}: {reason}")
                self.mode = next_mode  # of all steps from here on
            else:
                self._captured[self.mode, penalised] = capture
        return self(real, fake, labels, step)

    def _state(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self._parameters.values()), list(self._critic.buffers())

    def _capture(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> Callable[..., StepResult]:
        loss = self._loss(step, labels)
        graph = trace(self._critic, loss, real, fake, labels, self._split)
        if self.mode == "compiled":
            # The random numbers of an eager step, not inductor's own.
            run = torch.compile(graph, dynamic=False, options={"fallback_random": True})
        else:
            run = tidied(graph)

        def replay(*arguments: Any) -> StepResult:
            with torch.no_grad():
                result: StepResult = run(*arguments)
                return result

        return replay


def trace(
    critic: nn.Module,
    loss: Loss,
    real: Tensor,
    fake: Tensor,
    labels: Sequence[Tensor],
    split: Split = WHOLE,
) -> GraphModule:
    """List the kernels that make the gap, the loss and its gradients.

    Args:
        critic: whose parameters the gradients are by.
        loss: of the critic with its labels bound, real and fake samples; the gap and the loss.
        real: ``(N, *shape)``; the kernels are for this shape.
        fake: likewise.
        labels: see `CriticStep.__call__`.
        split: the parts of the batch, whose kernels come one part after the other.

    Returns:
        Takes weights, buffers, real and fake samples and labels; returns a `StepResult`.
    """
    names = [name for name, _ in (*critic.named_parameters(), *critic.named_buffers())]

    def function(
        weights: list[Tensor],
        buffers: list[Tensor],
        real: Tensor,
        fake: Tensor,
        labels: list[Tensor],
    ) -> StepResult:
        leaves = [w.detach().requires_grad_() for w in weights]
        tensors = dict(zip(names, [*leaves, *buffers], strict=True))

        def bound(labels: Sequence[Tensor]) -> CriticFunction:
            def scored(samples: Tensor) -> Tensor:
                conditions = [repeated(y, len(samples)) for y in labels]
                scores: Tensor = functional_call(critic, tensors, (samples, *conditions))
                return scores

            return scored

        with torch.enable_grad(), in_parts(real):
            gap, total, found = added_up(loss, bound, leaves, split(real, fake, *labels))
        pairs = zip(leaves, found, strict=True)
        return gap, total, [torch.zeros_like(w) if g is None else g.contiguous() for w, g in pairs]

    weights, buffers = [w.detach() for w in critic.parameters()], list(critic.buffers())
    arguments = weights, buffers, real, fake, list(labels)
    if split.size is None:
        return traced(function, *arguments)
    # A trace holds the tensors that it meets, but for those that are shapes only.
    return make_fx(function, tracing_mode="fake")(*arguments)


def added_up(
    loss: Loss,
    bound: Callable[[Sequence[Tensor]], CriticFunction],
    leaves: Sequence[Tensor],
    parts: Iterable[Part],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Add up the gaps, losses and gradients of a batch's parts, each weighed by its share.

    The graph of one part is gone when that of the next is made.

    Args:
        loss: of a critic, real and fake samples; the gap and the loss, as means.
        bound: makes the critic of some labels.
        leaves: what the gradients are by.
        parts: real and fake samples, then labels.

    Returns:
        The gap, the loss, and its gradient by each leaf, None where it does not depend on it.
    """
    sums = list[Tensor | None]()
    for part in parts:
        real, fake, *labels = part.tensors
        with part.draws:
            gap, total = map(part.weighed, loss(bound(labels), real, fake))
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        terms = [gap.detach(), total.detach(), *found]
        sums = [
            a if b is None else b if a is None else a + b
            for a, b in zip(sums or [None] * len(terms), terms, strict=True)
        ]
    gap_sum, loss_sum, *gradients = sums
    assert gap_sum is not None
    assert loss_sum is not None
    return gap_sum, loss_sum, gradients


def leave_gradients(parameters: Sequence[nn.Parameter], found: Sequence[Tensor | None]) -> None:
    """Replace gradients of parameters as a backward pass would, so that the hooks on them run."""
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = None if gradient is None else gradient.contiguous()
        if parameter._post_accumulate_grad_hooks and gradient is not None:
            parameter.grad = None
            # The gradient of this product is the one that was found.
            (parameter * gradient).sum().backward()  # type: ignore[no-untyped-call]


def capture_obstacle(critic: nn.Module) -> str | None:
    """Say why a captured step of this critic would be wrong, as far as that is known beforehand.

    Returns:
        The reason, or None.
    """
    if any(isinstance(m, MinibatchStatistics) for m in critic.modules()):
        return "minibatch statistics change their running mean in each forward"
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules()):
        return "batch normalisation changes its statistics in each forward"
    if any(p._post_accumulate_grad_hooks for p in critic.parameters()):
        return "the constraint changes gradients on their way to the weights"
    if any(isinstance(m, Stages) for m in critic.modules()):
        return "a capture would hold the activations that checkpointing drops"
    return None


def can_pair(critic: nn.Module) -> bool:
    """True if real and fake samples may go through a critic together, in pairs.

    They may not if a score depends on the rest of its batch, nor with dropout: the masks of the
    two batches are drawn one after the other, so that `training.engine.workers` can divide them.
    """
    return not any(
        isinstance(m, MIXES_SAMPLES) or (isinstance(m, nn.Dropout) and m.p > 0)
        for m in critic.modules()
    )


def critic_loss(
    critic: CriticFunction,
    constraint: Constraint,
    real: Tensor,
    fake: Tensor,
    step: int,
    paired: bool,
) -> tuple[Tensor, Tensor]:
    """Compute what a critic step minimises: the constraint's penalty less the gap.

    Args:
        critic: samples ``(N, *shape)`` to scores ``(N,)``.
        constraint: its penalty is added, if it has one at this step.
        real: ``(N, *shape)``.
        fake: ``(N, *shape)``, detached from the generator.
        step: critic steps done before.
        paired: score real and fake samples in one forward, with fewer and larger kernels.

    Returns:
        The gap, the mean score of real less that of fake, and the loss; scalars with their graphs.
    """
    if paired:
        pairs = critic(torch.stack([real, fake], 1).flatten(0, 1)).float().reshape(-1, 2)
        # Parameters the gap ignores (e.g. the last bias) must get exactly zero gradient, or Adam
        # amplifies rounding noise; pairing ensures it: the terms of the gradient's sum cancel.
        gap = (pairs[:, 0] - pairs[:, 1]).mean()
    else:
        gap = critic(real).float().mean() - critic(fake).float().mean()
    penalty = constraint.penalty(critic, real, fake, step)
    return gap, -gap if penalty is None else penalty - gap


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The loss's gradient by each leaf; zeros for a leaf that it does not depend on."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(leaves, found, strict=True)]


def mismatch(
    result: StepResult, loss: Tensor, expected: list[Tensor | None], tolerance: float
) -> str | None:
    """Compare a captured step with the eager one.

    Args:
        result: of the captured step.
        loss: of the eager one.
        expected: the eager one's gradients, None where there is none.
        tolerance: relative error that rounding may have made.

    Returns:
        How they differ, or None.
    """
    _, found_loss, found = result
    longest = max([g.norm().item() for g in expected if g is not None], default=0.0)
    error = max(
        (g if e is None else g - e).norm().item() for g, e in zip(found, expected, strict=True)
    )
    loss_error = abs((found_loss - loss).item())
    if error <= tolerance * longest and loss_error <= tolerance * max(1.0, abs(loss.item())):
        return None
    return f"its gradient is off by {error:.2g}, where the longest is {longest:.2g} long"
