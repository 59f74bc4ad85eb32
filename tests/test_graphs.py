"""A tidied graph gives the same bits from fewer kernels, and overwrites nothing that is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from models.constraints import Constraint
from tests.conformance import FAMILIES, data, make
from tests.test_conformance import CONSTRAINTS
from training.graphs import tidied
from training.step import critic_loss

aten = torch.ops.aten


def step_of(
    constraint: Constraint, family: str
) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    """A function from a critic's tensors and a batch to its gradients, and such tensors."""
    critic = make(constraint, FAMILIES[family]).train()
    names = [name for name, _ in (*critic.named_parameters(), *critic.named_buffers())]
    count = len(list(critic.parameters()))

    def gradients(real: Tensor, fake: Tensor, *tensors: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors[:count]]
        values = dict(zip(names, [*leaves, *tensors[count:]], strict=True))
        _, loss = critic_loss(
            lambda x: functional_call(critic, values, (x,)), constraint, real, fake, 0, True
        )
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [g for g in found if g is not None]

    tensors = [*critic.parameters(), *critic.buffers()]
    return gradients, [*data(FAMILIES[family]), *(t.detach() for t in tensors)]


@pytest.mark.parametrize("family", ["mlp", "dcgan", "resnet"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_step_keeps_its_bits(name: str, family: str) -> None:
    step, arguments = step_of(CONSTRAINTS[name], family)
    found = []
    for change in (lambda graph: graph, tidied):
        given = [a.clone() for a in arguments]
        torch.manual_seed(0)
        graph = make_fx(step)(*given)
        given = [a.clone() for a in arguments]  # the trace ran it, and so moved the buffers
        kernels = len(graph.graph.nodes)
        graph = change(graph)
        torch.manual_seed(1)
        with torch.no_grad():
            gradients = graph(*given)
        found.append((kernels, gradients, given))
        assert (len(graph.graph.nodes) < kernels) == (change is tidied)
    (_, expected, before), (_, gradients, after) = found
    assert len(expected) > 0
    for mine, its in zip([*gradients, *after], [*expected, *before], strict=True):
        assert torch.equal(mine, its)


def targets(function: Callable[..., Tensor], *arguments: Tensor) -> set[object]:
    """Of a function's tidied graph, which gives what the function does and keeps its arguments."""
    given = [a.clone() for a in arguments]
    graph = tidied(make_fx(function)(*given))
    with torch.no_grad():
        assert torch.equal(graph(*given), function(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(given, arguments, strict=True))
    return {node.target for node in graph.graph.nodes}


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))


def test_a_map_that_only_the_activation_reads_is_overwritten() -> None:
    assert aten.relu_.default in targets(lambda x, w: (x @ w).relu(), X, W)
    assert aten.relu_.default in targets(lambda x, w: (x @ w).view(3, 8).t().relu(), X, W)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: (x @ w).relu() + x @ w,
        lambda x, w: x.relu() @ w,
        lambda x, w: x.t().relu() @ x,
        lambda x, w: torch.cat([(h := x @ w).t(), h.t().relu()]),
    ],
    ids=["also read", "an argument", "a view of an argument", "also read through a view"],
)
def test_a_map_that_something_else_reads_is_kept(function: Callable[..., Tensor]) -> None:
    assert aten.relu_.default not in targets(function, X, W)


def test_what_is_found_twice_is_found_once_but_never_random_numbers() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return x.double().t() @ x.double() + (torch.rand(4, 4) - torch.rand(4, 4)) * 0

    graph = tidied(make_fx(function)(X, W)).graph
    counts = [
        sum(node.target is target for node in graph.nodes)
        for target in (aten._to_copy.default, aten.rand.default)
    ]
    assert counts == [1, 2]
