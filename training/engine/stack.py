"""Small networks as slices of stacked tensors, so that one kernel serves all of them.

A step of one model is traced to a list of kernels, and that list is mapped over the stack. Random
numbers are drawn for each model from its own generator, in the order of a run alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from models.constraints import Constraint
from training.engine.draws import Draw, RandomCalls, Shape
from training.engine.graphs import tidied, traced
from training.engine.step import (
    TOLERANCE,
    StepResult,
    can_pair,
    capture_obstacle,
    critic_loss,
    gradients,
    mismatch,
)


class NotStackable(Exception):
    """These models cannot be trained together; says why. Each can be trained alone."""


class Stack:
    """K networks of one architecture, whose tensors become slices of stacked ones, and stay so.

    What changes the stack in place changes the networks, and the other way round.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks
        self.parameters = [
            nn.Parameter(_stacked(tensors))
            for tensors in zip(*(n.parameters() for n in networks), strict=True)
        ]
        self.buffers = [
            _stacked(tensors) for tensors in zip(*(n.buffers() for n in networks), strict=True)
        ]
        self._names = [
            *(name for name, _ in networks[0].named_parameters()),
            *(name for name, _ in networks[0].named_buffers()),
        ]

    @property
    def tensors(self) -> list[Tensor]:
        """Parameters and buffers, each ``(K, ...)``."""
        return [*(p.detach() for p in self.parameters), *self.buffers]

    def set_gradients(self, found: Sequence[Tensor]) -> None:
        """Set the gradient of each parameter, ``(K, ...)``."""
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient

    def forward(self, tensors: Sequence[Tensor], x: Tensor) -> Tensor:
        """Apply the architecture with one model's tensors, in the order of `tensors`."""
        result: Tensor = functional_call(
            self.networks[0], dict(zip(self._names, tensors, strict=True)), (x,)
        )
        return result

    def with_leaves(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Make the parameters among one model's tensors leaves of a new graph.

        Returns:
            The leaves; and all tensors, with the leaves in the parameters' place.
        """
        count = len(self.parameters)
        leaves = [t.detach().requires_grad_() for t in tensors[:count]]
        return leaves, [*leaves, *tensors[count:]]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    stack = torch.stack([t.detach() for t in tensors])
    for tensor, part in zip(tensors, stack, strict=True):
        tensor.data = part
    return stack


class MappedFunction:
    """A function of one model's tensors, as a list of kernels that are mapped over stacks of them.

    It is traced at the first call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._draws = list[_ModelDraw]()
        self._graph: GraphModule | None = None

    def __call__(self, arguments: Any, sources: Sequence[torch.Generator]) -> Any:
        """Apply the function to each model.

        Args:
            arguments: tensors ``(K, ...)``, nested in lists and tuples as the function takes them;
                the first is a list.
            sources: each model's random numbers.

        Returns:
            What the function returns, each tensor ``(K, ...)``.

        Raises:
            NotStackable: the function cannot be traced or mapped.
        """
        if self._graph is None:
            self._trace(arguments, len(sources))
        assert self._graph is not None
        with torch.no_grad():
            result = self._graph(arguments, self._drawn(sources))
            # A fused optimiser needs a weight and its gradient to lie alike in memory.
            return tree_map(lambda t: t.contiguous(), result)

    def _trace(self, arguments: Any, count: int) -> None:
        """Make the graph, and list what it draws at each call."""
        single = tree_map(lambda t: t[0].detach().clone(), arguments)
        source = torch.Generator(arguments[0][0].device)

        def record(draw: _ModelDraw) -> Tensor:
            self._draws.append(draw)
            return draw(source)

        def with_numbers(arguments: Any, numbers: list[Tensor]) -> Any:
            remaining = iter(numbers)
            with _SuppliedNumbers(lambda draw: next(remaining)):
                return self._function(*arguments)

        try:
            # A kernel that has no batched form would be run once a model, and warns of that.
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                with _SuppliedNumbers(record):
                    self._function(*single)
                graph = traced(with_numbers, single, [draw(source) for draw in self._draws])
                stacks = tree_map(lambda t: t.detach(), arguments)
                self._graph = tidied(traced(vmap(graph), stacks, self._drawn([source] * count)))
        except Exception as error:  # tracing raises many kinds
            line = (str(error).splitlines() or [""])[0][:200]
            raise NotStackable(
                f"its step cannot be stacked ({type(error).__name__}: {line})"
            ) from error

    def _drawn(self, sources: Sequence[torch.Generator]) -> list[Tensor]:
        return [torch.stack([draw(source) for source in sources]) for draw in self._draws]


_ModelDraw = Callable[[torch.Generator], Tensor]
"""Draws the random numbers of one call, for one model, from its generator."""


class _SuppliedNumbers(RandomCalls):
    """A context in which ``supply`` gives the random numbers, told how to draw them."""

    over = "models"

    def __init__(self, supply: Callable[[_ModelDraw], Tensor]) -> None:
        super().__init__()
        self.supply = supply

    def drawn(self, shape: Shape, draw: Draw) -> Tensor:
        """Ask for the numbers."""
        return self.supply(lambda source: draw(shape, source))

    def fill(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return the numbers themselves: a tensor made within a step cannot hold those of all."""
        return numbers


class StackedStep:
    """`training.engine.step.CriticStep` for K critics: leaves the gradients on the stack.

    Args:
        critics: as their constraints returned them.
        constraints: one for each; they may differ in real numbers, such as a strength.
    """

    def __init__(self, critics: Stack, constraints: Sequence[Constraint]) -> None:
        self._critics, self._constraints = critics, constraints
        reason = capture_obstacle(critics.networks[0])
        if reason:
            raise NotStackable(reason)
        self._differing = differing_fields(constraints)
        self._mapped: dict[bool, MappedFunction] = {}

    def __call__(
        self, real: Tensor, fake: Tensor, sources: Sequence[torch.Generator], step: int
    ) -> tuple[Tensor, Tensor]:
        """Replace the gradients of the critics' parameters by those of their losses.

        Args:
            real: ``(K, N, *shape)``, in the critics' units.
            fake: likewise, detached.
            sources: each model's random numbers.
            step: critic steps done before.

        Returns:
            Gaps and losses, ``(K,)`` each.

        Raises:
            NotStackable: the step cannot be stacked, or would not be right.
        """
        numbers = [
            torch.tensor(values, dtype=real.dtype, device=real.device)
            for values in self._differing.values()
        ]
        arguments = (self._critics.tensors, numbers, real, fake)
        penalised = self._constraints[0].penalised(step)
        if penalised not in self._mapped:
            mapped = self._mapped[penalised] = MappedFunction(self._function(step))
            states = [source.get_state() for source in sources]
            self._check(real, fake, states, step, mapped(arguments, sources))
            for source, state in zip(sources, states, strict=True):
                source.set_state(state)
        gap, loss, found = self._mapped[penalised](arguments, sources)
        self._critics.set_gradients(found)
        return gap, loss

    def _function(self, step: int) -> Callable[..., StepResult]:
        """The gap, loss and gradients of one critic, as a function of its tensors."""
        paired = can_pair(self._critics.networks[0])

        def function(
            tensors: list[Tensor], numbers: list[Tensor], real: Tensor, fake: Tensor
        ) -> StepResult:
            leaves, own = self._critics.with_leaves(tensors)
            fields = dict(zip(self._differing, numbers, strict=True))
            constraint = self._constraints[0].model_copy(update=fields)

            def critic(samples: Tensor) -> Tensor:
                return self._critics.forward(own, samples)

            with torch.enable_grad():
                gap, loss = critic_loss(critic, constraint, real, fake, step, paired)
                found = gradients(loss, leaves)
            return gap.detach(), loss.detach(), found

        return function

    def _check(
        self, real: Tensor, fake: Tensor, states: list[Tensor], step: int, results: StepResult
    ) -> None:
        """Compare with each critic's own step, eager."""
        for k, critic in enumerate(self._critics.networks):
            with torch.random.fork_rng([]):
                torch.set_rng_state(states[k])
                _, loss = critic_loss(
                    critic, self._constraints[k], real[k], fake[k], step, can_pair(critic)
                )
                expected = torch.autograd.grad(loss, list(critic.parameters()), allow_unused=True)
            result = tree_map(lambda t, k=k: t[k], results)
            reason = mismatch(result, loss.detach(), list(expected), TOLERANCE["fp32"])
            if reason:
                raise NotStackable(f"a stacked critic step is not right: {reason}")


def differing_fields(constraints: Sequence[Constraint]) -> dict[str, list[float]]:
    """Find the constraints' fields that differ, each with its values.

    Raises:
        NotStackable: they differ in more than real numbers.
    """
    first = constraints[0]
    differing = dict[str, list[float]]()
    for name in type(first).model_fields:
        values = [getattr(c, name, None) for c in constraints]
        if any(value != values[0] for value in values):
            differing[name] = [value for value in values if isinstance(value, float)]
            if len(differing[name]) < len(values):
                raise NotStackable(f"their constraints differ in {name}")
    return differing
