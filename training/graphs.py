"""What a traced step does without: copies that it has, and memory for what could be overwritten."""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import GraphModule, Node

aten = torch.ops.aten
_FRESH = {
    aten.addmm.default,
    aten.bmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.mm.default,
}
"""Whose results share memory with nothing."""
_VIEWS = {aten.permute.default, aten.t.default, aten.transpose.int, aten.view.default}
_IN_PLACE = {
    aten.leaky_relu.default: aten.leaky_relu_.default,
    aten.relu.default: aten.relu_.default,
}
_INTO_GRADIENT = {
    aten.leaky_relu_backward.default: aten.leaky_relu_backward.grad_input,
    aten.threshold_backward.default: aten.threshold_backward.grad_input,
}


def tidied(graph: GraphModule) -> GraphModule:
    """The same numbers from fewer kernels; ``graph`` is used up.

    What follows from the same operands is found once: a weight's copies in another layout or
    precision serve every forward and backward. Activations and their gradients overwrite the maps
    that they alone read. What nobody reads is dropped, as are views that change nothing.
    """
    for node in list(graph.graph.nodes):
        if node.target is aten.detach.default or _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    found = fx_graph_cse(graph.graph)
    found.set_codegen(graph.graph._codegen)  # which takes and gives lists
    graph.graph = found
    for node in found.nodes:
        if node.target in _IN_PLACE and _is_sole_reader(node):
            node.target = _IN_PLACE[node.target]
        elif node.target in _INTO_GRADIENT and _is_sole_reader(node):
            node.kwargs = {"grad_input": node.args[0]}
            node.target = _INTO_GRADIENT[node.target]
    graph.recompile()
    return graph


def _changes_nothing(node: Node) -> bool:
    if node.target is not aten.view.default:
        return False
    before, after = cast(Node, node.args[0]).meta["val"], node.meta["val"]
    return bool(before.shape == after.shape and before.stride() == after.stride())


def _is_sole_reader(node: Node) -> bool:
    """Whether nothing else reads the memory of a node's first argument."""
    before = cast(Node, node.args[0])
    while len(before.users) == 1 and before.target in _VIEWS:
        before = cast(Node, before.args[0])
    if len(before.users) > 1:
        return False
    if before.target is operator.getitem:  # each of several results has memory of its own
        before = cast(Node, before.args[0])
    return before.target in _FRESH
