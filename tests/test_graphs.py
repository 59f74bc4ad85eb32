"""A tidied graph gives the same bits from fewer kernels, and overwrites nothing that is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from models.constraints import Constraint, ZeroCenteredPenalty
from models.networks import CriticConfig, build_critic
from tests.conformance import FAMILIES, data, make
from tests.test_conformance import CONSTRAINTS
from training.engine.graphs import tidied, traced
from training.engine.step import critic_loss

aten = torch.ops.aten


def step_of(
    critic: nn.Module, constraint: Constraint, precision: torch.dtype | None = None
) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    """A function from a batch and a critic's tensors to its gradients, and such tensors."""
    names = [name for name, _ in (*critic.named_parameters(), *critic.named_buffers())]
    count = len(list(critic.parameters()))

    def gradients(real: Tensor, fake: Tensor, *tensors: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors[:count]]
        values = dict(zip(names, [*leaves, *tensors[count:]], strict=True))
        with torch.autocast("cpu", precision, enabled=precision is not None):
            _, loss = critic_loss(
                lambda x: functional_call(critic, values, (x,)), constraint, real, fake, 0, True
            )
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [g for g in found if g is not None]

    return gradients, [t.detach() for t in (*critic.parameters(), *critic.buffers())]


def graph_of(function: Any, *arguments: Tensor) -> GraphModule:
    torch.manual_seed(0)
    return traced(function, *(a.clone() for a in arguments))


def ran(graph: GraphModule, *arguments: Tensor) -> list[Tensor]:
    """What a traced function gives, with its arguments."""
    given = [a.clone() for a in arguments]
    torch.manual_seed(1)
    with torch.no_grad():
        return [*graph(*given), *given]


def same_bits(function: Any, *arguments: Tensor) -> set[object]:
    """Compare a function before and after; the targets of the latter's graph, which is smaller."""
    graph = graph_of(function, *arguments)
    expected, before = ran(graph, *arguments), len(graph.graph.nodes)
    found = ran(tidied(graph), *arguments)
    for mine, its in zip(found, expected, strict=True):
        assert torch.equal(mine, its)
        assert (mine.dtype, mine.stride()) == (its.dtype, its.stride())
    assert len(graph.graph.nodes) <= before
    return {node.target for node in graph.graph.nodes}


def test_a_trace_is_that_of_torch_with_one_mode_for_all_shapes() -> None:
    """One a result took as long as all the rest of the trace."""
    constraint = CONSTRAINTS["gradient_penalty"]
    step, tensors = step_of(make(constraint, FAMILIES["mlp"]).train(), constraint)
    arguments = [*data(FAMILIES["mlp"]), *tensors]
    found, expected = graph_of(step, *arguments), make_fx(step)(*arguments)
    assert found.code == expected.code
    nodes = zip(found.graph.nodes, expected.graph.nodes, strict=True)
    shapes = [[n.meta["val"] for n in pair] for pair in nodes if "val" in pair[0].meta]
    assert len(shapes) > 50
    for mine, its in shapes:
        assert (mine.shape, mine.stride(), mine.dtype) == (its.shape, its.stride(), its.dtype)
    assert len({mine.fake_mode for mine, _ in shapes}) == 1


@pytest.mark.sampled
@pytest.mark.parametrize("family", ["mlp", "dcgan", "resnet"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_step_keeps_its_bits(name: str, family: str) -> None:
    constraint = CONSTRAINTS[name]
    step, tensors = step_of(make(constraint, FAMILIES[family]).train(), constraint)
    same_bits(step, *data(FAMILIES[family]), *tensors)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_steps_overwrite_maps_and_gradients_and_keep_their_bits(
    activation: str, stacked: bool
) -> None:
    torch.manual_seed(0)
    architecture, shape = "dcgan", (1, 8, 8)
    if stacked:  # of vectors alone
        architecture, shape = "mlp", (3,)
    config = CriticConfig(architecture=architecture, width=8, depth=2, activation=activation)
    critic = build_critic(config, shape)
    step, tensors = step_of(critic, ZeroCenteredPenalty(), None if stacked else torch.bfloat16)
    arguments = [*torch.randn(2, 5, *shape), *tensors]
    if stacked:
        graph = traced(step, *arguments)
        found = same_bits(torch.func.vmap(graph), *(torch.stack([a, a + 0.1]) for a in arguments))
    else:
        found = same_bits(step, *arguments)
    gate = aten.threshold_backward if activation == "relu" else aten.leaky_relu_backward
    assert gate.grad_input in found
    assert (aten.relu_ if activation == "relu" else aten.leaky_relu_).default in found


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
GATE = aten.threshold_backward


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: [(x @ w).relu()],
        lambda x, w: [(x @ w).view(3, 8).t().relu()],
        lambda x, w: [GATE(x @ w, x, 0)],
    ],
    ids=["activation", "through views", "gradient"],
)
def test_a_map_that_nothing_else_reads_is_overwritten(function: Any) -> None:
    assert same_bits(function, X, W) & {aten.relu_.default, GATE.grad_input}


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: [(x @ w).relu() + x @ w],
        lambda x, w: [(h := x @ w), h.relu()],
        lambda x, w: [(h := x @ w).t().relu() + h.sum()],
        lambda x, w: [torch.cat([(h := x @ w).view(4, 6), h.t().relu()])],
        lambda x, w: [x.relu() @ w],
        lambda x, w: [x.t().relu() @ x],
        lambda x, w: [a.relu() + b for a, b in [(x @ w).split(3)]],
        lambda x, w: [GATE((h := x @ w), x, 0) + h],
        lambda x, w: [GATE(x, x @ w, 0)],
        lambda x, w: [GATE((x @ w).bfloat16(), x, 0)],
        lambda x, w: [GATE(w @ x.t(), x.t(), 0)],
        lambda x, w: [GATE((x @ w)[:1], x, 0)],
    ],
    ids=[
        "found twice",
        "returned",
        "read below a view",
        "read through another view",
        "an argument",
        "a view of an argument",
        "a part",
        "gradient read twice",
        "gradient that is an argument",
        "gradient of other precision",
        "gradient of other layout",
        "gradient of another shape",
    ],
)
def test_a_map_that_something_else_reads_or_that_lies_otherwise_is_kept(function: Any) -> None:
    assert not same_bits(function, X, W) & {aten.relu_.default, GATE.grad_input}


def two_fillings(x: Tensor, w: Tensor) -> list[Tensor]:
    a, b = torch.empty_like(x), torch.empty_like(x)
    return [a.uniform_() - b.normal_()]


def written_later(x: Tensor, w: Tensor) -> list[Tensor]:
    a, b = x @ w, x @ w
    a += 1
    return [a * b]


def written_between(x: Tensor, w: Tensor) -> list[Tensor]:
    y = x.clone()
    view = y.t()
    before = view @ x
    y += 1
    return [before - view @ x]


def gates_of_one_kernel(x: Tensor, w: Tensor) -> list[Tensor]:
    one, two = (torch.ops.aten.var_mean(x @ w, [0])[0] for _ in range(2))
    return [one, two.relu()]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: [torch.randn_like(x) - torch.randn_like(x)],
        lambda x, w: [torch.rand(3) - torch.rand(3)],
        two_fillings,
        written_later,
        written_between,
        gates_of_one_kernel,
    ],
)
def test_what_is_not_the_same_is_not_merged(function: Any) -> None:
    same_bits(function, X, W)


def test_what_is_returned_twice_has_memory_of_its_own() -> None:
    graph = tidied(graph_of(lambda x, w: [(x.t() @ x).t(), (x.t() @ x).t()], X, W))
    found = ran(graph, X, W)
    assert found[0].data_ptr() != found[1].data_ptr()


def test_what_is_found_twice_is_found_once() -> None:
    graph = tidied(graph_of(lambda x, w: [x.double().t() @ x.double()], X, W))
    assert sum(node.target is aten._to_copy.default for node in graph.graph.nodes) == 1


def test_views_that_change_nothing_and_results_that_nobody_reads_are_dropped() -> None:
    graph = graph_of(lambda x, w: [x.detach() @ w, (x @ w).view(6, 4), (w.t(), x.exp())[0]], X, W)
    expected = ran(graph, X, W)
    targets = {aten.detach.default, aten.view.default, aten.exp.default}
    assert {node.target for node in graph.graph.nodes} > targets
    tidied(graph)
    assert not {node.target for node in graph.graph.nodes} & targets
    assert not [name for name in ("detach", "view", "exp") if f".{name}." in graph.code]
    assert all(map(torch.equal, ran(graph, X, W), expected))
