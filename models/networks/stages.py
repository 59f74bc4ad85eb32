"""Activation checkpointing: stages of a network whose activations are computed anew, not held.

torch's own checkpointing saves nothing under a gradient penalty: the backward pass that makes the
penalty's graph computes the activations anew, and the graph that it makes then holds them all. Here
the backward pass of a stage is itself a function that holds its inputs only, and so is the backward
pass of that one, of whatever order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call

from models.networks.parts import ConditionalNorm, SelfModulatedNorm
from models.networks.skips import InputSkips, OutputSkips

Function_ = Callable[..., tuple[Tensor | None, ...]]
"""A function of tensors, some of which may be None."""
Apply = Callable[[nn.Module, Tensor, Any], Tensor]
"""Computes a layer of what comes in, and of what all layers are given: labels, latents or None."""


def plainly(layer: nn.Module, x: Tensor, given: None) -> Tensor:
    """Apply a layer: the default of every `Apply`."""
    result: Tensor = layer(x)
    return result


class Stages(nn.Sequential):
    """Layers one after the other, of which a backward pass finds the inputs of each stage only.

    A stage begins at each layer with weights: a convolution, with the normalisation and activation
    after it, or a residual block. What is between its input and its output is computed once more
    in each backward pass. Gradients are those of `nn.Sequential`, of any order, up to rounding. A
    stage with dropout is held as ever, since its second mask would be another.
    """

    recomputes = True
    """False: compute, and hold, what `nn.Sequential` does."""

    def forward(self, x: Tensor, given: Tensor | None = None, apply: Apply = plainly) -> Tensor:
        """Apply all layers.

        Args:
            x: what the first layer takes.
            given: labels or latents that layers take besides.
            apply: applies a layer.
        """
        if not (self.recomputes and torch.is_grad_enabled()):
            return _Stage(*self)(x, given, apply)
        for stage in self.stages():
            x = (_recomputed if stage.is_recomputed else _Stage.__call__)(stage, x, given, apply)
        return x

    def stages(self) -> list[_Stage]:
        """The layers in groups, each of which is computed anew as one."""
        groups = list[list[nn.Module]]()
        for layer in self:
            alone = isinstance(layer, nn.Dropout)
            if not groups or alone or _begins(layer) or isinstance(groups[-1][-1], nn.Dropout):
                groups.append([])
            groups[-1].append(layer)
        return [_Stage(*group) for group in groups]


class _Stage(nn.Sequential):
    """Some layers of a network, which stay the network's own."""

    @property
    def is_recomputed(self) -> bool:
        """False if numbers are drawn in it, or if it has stages of its own."""
        parts = list(self.modules())
        is_random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in parts)
        return not is_random and not any(isinstance(m, Stages) for m in parts)

    def forward(self, x: Tensor, given: Tensor | None = None, apply: Apply = plainly) -> Tensor:
        for layer in self:
            x = apply(layer, x, given)
        return x


def with_stages(network: nn.Module) -> nn.Module:
    """Have a network hold no more for its backward pass than `Stages` do.

    Args:
        network: a generator or a critic, as `models.networks.build_networks` makes it; changed in
            place. The names and values of its tensors stay.

    Returns:
        The network to train: the same, or `Stages` if it is a sequence itself.
    """
    if type(network) is nn.Sequential:
        with_skips = (InputSkips, OutputSkips)  # sequences of their own
        return Stages(*(with_stages(m) if isinstance(m, with_skips) else m for m in network))
    for name, part in list(network.named_children()):
        setattr(network, name, with_stages(part))
    return network


def _begins(layer: nn.Module) -> bool:
    """True if a stage begins at a layer."""
    is_norm = isinstance(layer, ConditionalNorm | SelfModulatedNorm)
    return not is_norm and any(p.dim() > 1 for p in layer.parameters())


def _recomputed(stage: _Stage, x: Tensor, given: Tensor | None, apply: Apply) -> Tensor:
    names = [name for name, _ in stage.named_parameters()]
    device = x.device.type
    is_mixed, kind = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def mixed() -> torch.autocast:
        # Autocast does not reach into a backward pass. Weights that it has cast without a graph,
        # in a forward of ours, are not to be found again by one that has a graph.
        return torch.autocast(device, kind, is_mixed, cache_enabled=False)

    def first(x: Tensor, given: Tensor | None, *weights: Tensor) -> tuple[Tensor]:
        with mixed():
            return (stage(x, given, apply),)

    def again(x: Tensor, given: Tensor | None, *weights: Tensor) -> tuple[Tensor]:
        tensors = dict(zip(names, weights, strict=True))
        # Batch normalisation has counted the batch already.
        tensors |= {name: buffer.clone() for name, buffer in stage.named_buffers()}
        with mixed():
            return (functional_call(stage, tensors, (x, given, apply)),)

    result: Tensor
    (result,) = _Recomputed.apply(first, again, x, given, *stage.parameters())  # type: ignore[no-untyped-call]
    return result


class _Recomputed(Function):
    """A function whose inputs alone are held; its backward pass is another one of this kind."""

    @staticmethod
    def forward(
        ctx: Any, first: Function_, again: Function_, *inputs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.function = again
        return first(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        function = _derivative(ctx.function, len(gradients))
        inputs = *gradients, *ctx.saved_tensors
        return None, None, *_Recomputed.apply(function, function, *inputs)  # type: ignore[no-untyped-call]


def _derivative(function: Function_, count: int) -> Function_:
    """Make the backward pass of a function.

    Args:
        function: of any tensors.
        count: of its results.

    Returns:
        Takes the gradients by the results, then the function's inputs; returns nothing for the
        inputs that need no gradient.
    """

    def derivative(*arguments: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients, inputs = arguments[:count], arguments[count:]
        has_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            if not has_graph:
                inputs = tuple(
                    x if x is None else x.detach().requires_grad_(x.requires_grad) for x in inputs
                )
            wanted = [x for x in inputs if x is not None and x.requires_grad]
            pairs = [
                (result, gradient)
                for result, gradient in zip(function(*inputs), gradients, strict=True)
                if result is not None and result.requires_grad and gradient is not None
            ]
            results, given = [r for r, _ in pairs], [g for _, g in pairs]
            found = iter(
                torch.autograd.grad(
                    results, wanted, given, create_graph=has_graph, allow_unused=True
                )
                if pairs
                else [None] * len(wanted)
            )
        return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)

    return derivative
