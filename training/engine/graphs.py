"""Graphs of traced steps, and simpler ones: no repeated kernels, results over dead inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
_IN_PLACE = {
    aten.leaky_relu.default: aten.leaky_relu_.default,
    aten.relu.default: aten.relu_.default,
}
_INTO_GRADIENT = {
    aten.leaky_relu_backward.default: aten.leaky_relu_backward.grad_input,
    aten.threshold_backward.default: aten.threshold_backward.grad_input,
}


def traced(function: Callable[..., Any], *arguments: Any) -> GraphModule:
    """List the kernels that a function runs on its arguments, which it takes as they are.

    `make_fx` notes the shape of each result with a mode of its own, which lists the stack that it
    was made on: half of all the time. Here one mode serves all results.
    """
    with tracing(TracingContext(FakeTensorMode())):
        return make_fx(function)(*arguments)


def tidied(graph: GraphModule) -> GraphModule:
    """Give a traced graph fewer kernels, in place; its results keep every bit.

    A kernel with the same operands runs once: a weight's copy in another layout or precision
    serves every forward and backward. Activations and their gradients overwrite the maps that they
    alone read. Results that nobody reads are dropped, as are views that change nothing.
    """
    nodes = graph.graph
    for node in nodes.nodes:
        if node.target is aten.detach.default or _changes_nothing(node):
            node.replace_all_uses_with(cast(Node, node.args[0]))
    nodes.eliminate_dead_code()
    _merge(nodes)
    for node in nodes.nodes:
        if node.target in _IN_PLACE and _can_overwrite(node):
            node.target = _IN_PLACE[node.target]
        elif node.target in _INTO_GRADIENT and _can_overwrite(node):
            node.kwargs = {"grad_input": node.args[0]}
            node.target = _INTO_GRADIENT[node.target]
    graph.recompile()
    return graph


def _merge(nodes: Graph) -> None:
    """Run a kernel once for all nodes that apply it to the same operands.

    Random numbers are left alone, as is what is written to or returned: there, equal tensors must
    not share memory. Torch has such a function too, but it loads a compiler, which costs more than
    these graphs gain.
    """
    returned = nodes.output_node().all_input_nodes
    written = [x for node in nodes.nodes if _writes(node) for x in node.all_input_nodes]
    kept = {_owner(node) for node in (*returned, *written)}
    first: dict[tuple[object, str, str], Node] = {}
    for node in list(nodes.nodes):
        if _writes(node):
            first.clear()  # operands may have changed
        elif (
            node.op == "call_function"
            and isinstance(node.meta.get("val"), Tensor)
            and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
            and node not in kept
        ):
            earlier = first.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
            if earlier is not node:
                node.replace_all_uses_with(earlier)
                nodes.erase_node(node)


def _changes_nothing(node: Node) -> bool:
    return node.target is aten.view.default and _same_layout(node, cast(Node, node.args[0]))


def _same_layout(a: Node, b: Node) -> bool:
    one, other = ((x.shape, x.stride(), x.dtype) for x in (a.meta["val"], b.meta["val"]))
    return bool(one == other)


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_view(node: Node) -> bool:
    """True if a node shares its first argument's memory; several results have memory each."""
    if node.target is operator.getitem:
        return _is_view(cast(Node, node.args[0]))
    return node.target is aten._unsafe_view.default or (
        isinstance(node.target, torch._ops.OpOverload)
        and any(result.alias_info is not None for result in node.target._schema.returns)
    )


def _owner(node: Node) -> Node:
    while _is_view(node):
        node = cast(Node, node.args[0])
    return node


def _can_overwrite(node: Node) -> bool:
    """True if nothing else reads the first argument, and the result has the same layout."""
    memory = cast(Node, node.args[0])
    if not _same_layout(node, memory):
        return False
    while len(memory.users) == 1 and _is_view(memory):
        memory = cast(Node, memory.args[0])
    return len(memory.users) == 1 and memory.op == "call_function"
