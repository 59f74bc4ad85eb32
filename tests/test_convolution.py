"""Our convolution: torch's values and derivatives of every order, from fast kernels only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.networks.convolution import Conv2d, Head

SHAPES = {
    "one channel in": (1, 3, 4, 2, 1),
    "at full size": (2, 3, 3, 1, 1),
    "one by one": (3, 2, 1, 1, 0),
    "odd": (2, 1, 3, 2, 1),
    "many channels in": (4, 2, 3, 2, 1),
    "in groups": (2, 4, 3, 1, 1, 1, 2),
}
"""Channels in and out, kernel, stride and padding, and then dilation and groups."""


def pair(shape: str, dtype: torch.dtype = torch.float64) -> tuple[Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    ours = Conv2d(*SHAPES[shape]).to(dtype)
    theirs = nn.Conv2d(*SHAPES[shape]).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def maps(channels: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, channels, 6, 5, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_three_derivatives_are_torch_s(shape: str) -> None:
    found = []
    for layer in pair(shape):
        x = maps(layer.in_channels)
        y = layer(x)
        (first,) = torch.autograd.grad(y.sin().sum(), layer.weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        third = torch.autograd.grad(second.square().sum(), [x, *layer.parameters()])
        found.append((y, first, second, *third))
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_finite_differences_agree(shape: str) -> None:
    layer, _ = pair(shape)
    inputs = maps(layer.in_channels), layer.weight, layer.bias
    assert torch.autograd.gradcheck(layer._conv_forward, inputs)
    assert torch.autograd.gradgradcheck(layer._conv_forward, inputs)


class Heavy(TorchDispatchMode):
    """Counts convolutions by what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        match func.__name__.partition(".")[0]:
            case "convolution":
                self.found["maps"] += 1
            case "convolution_backward":
                names = zip(("inputs", "weights", "biases"), args[-1], strict=True)
                self.found.update(name for name, wanted in names if wanted)
            case "col2im":  # the sum of a matrix product's columns
                self.found["inputs"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_penalty_runs_each_kernel_once(shape: str) -> None:
    layer, _ = pair(shape)
    x = maps(layer.in_channels)
    with Heavy() as heavy:
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        assert heavy.found == {"maps": 1, "inputs": 1}
        slope.square().sum().backward()  # type: ignore[no-untyped-call]
    # By the weight twice: of the layer itself and of its adjoint.
    assert heavy.found == {"maps": 2, "inputs": 2, "weights": 2}


@pytest.mark.parametrize("shape", ["one channel in", "many channels in"])
def test_maps_are_channels_last_and_weights_are_not(shape: str) -> None:
    layer, _ = pair(shape, torch.float32)
    x = torch.randn(2, layer.in_channels, 8, 8, requires_grad=True)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.is_contiguous()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    assert gradient.is_contiguous()


def test_autocast_computes_in_bf16() -> None:
    layer, theirs = pair("at full size", torch.float32)
    x = torch.randn(2, 2, 6, 5, requires_grad=True)
    found = []
    for one in (layer, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            y = one(x)
            assert y.dtype == torch.bfloat16
            (slope,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        loss = slope.square().sum()
        found.append(torch.autograd.grad(loss, [x, one.weight]))
    for mine, its in zip(*found, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - its).norm() <= 0.02 * its.norm()


def test_a_head_reads_maps_in_place_as_torch_reads_them_flattened() -> None:
    torch.manual_seed(0)
    ours, theirs = Head(3 * 6 * 5, 4).double(), nn.Linear(3 * 6 * 5, 4).double()
    theirs.load_state_dict(ours.state_dict())
    x = maps(3).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    found = []
    for network in (ours, nn.Sequential(nn.Flatten(), theirs)):
        scores = network(x).square().sum()
        wanted = [x, *network.parameters()]
        first = torch.autograd.grad(scores, wanted, create_graph=True)
        found.append([scores, *first, *torch.autograd.grad(first[0].square().sum(), wanted[:2])])
    torch.testing.assert_close(*found)
    with torch.no_grad(), CountingCopies() as copies:
        ours(x)
    assert copies.of_maps == 0


class CountingCopies(TorchDispatchMode):
    """How often a whole batch of maps is copied."""

    of_maps = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        copies = ("clone", "copy_", "_to_copy", "contiguous", "_reshape_copy")
        if func.__name__.partition(".")[0] in copies and args[0].shape[0] == 2:
            self.of_maps += 1
        return func(*args, **(kwargs or {}))
