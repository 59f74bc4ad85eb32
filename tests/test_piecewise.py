"""Piecewise linear layers: torch's values and gradients, without torch's zeros."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.constraints import GradientPenalty
from models.networks import CriticConfig, build_critic
from models.networks.piecewise import Abs, AvgPool2d, GroupSort, LeakyReLU, ReLU


class TorchAbs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class TorchGroupSort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.stack([x[:, 0:-1:2], x[:, 1::2]], dim=1).sort(dim=1, descending=True).values
        return torch.cat([pairs.flatten(1, 2), x[:, 2 * pairs.shape[2] :]], dim=1)


PAIRS = [
    (Abs(), TorchAbs()),
    (ReLU(), nn.ReLU()),
    (LeakyReLU(0.2), nn.LeakyReLU(0.2)),
    (AvgPool2d(2), nn.AvgPool2d(2)),
    (AvgPool2d((2, 3)), nn.AvgPool2d((2, 3))),
    (AvgPool2d(4, ceil_mode=True), nn.AvgPool2d(4, ceil_mode=True)),  # 6 is no multiple of 4
    (GroupSort(), TorchGroupSort()),
]
IDS = ["abs", "relu", "leaky_relu", "pool", "oblong pool", "uneven pool", "groupsort"]


def points() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
def test_values_and_derivatives_are_torch_s(ours: nn.Module, theirs: nn.Module) -> None:
    x, found = points(), []
    for layer in (ours, theirs):
        y = layer(x * x)  # so that the second derivative is not zero
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x)
        found.append((y, first, second))
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS[:3], ids=IDS[:3])
def test_at_zero_they_are_torch_s_too(ours: nn.Module, theirs: nn.Module) -> None:
    x = torch.tensor([-1.0, 0.0, -0.0, 1.0], requires_grad=True)
    found = [(y, *torch.autograd.grad(y.sum(), x)) for y in (ours(x), theirs(x))]
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((4, 2), (2, 4, 6, 8)),  # the height is no multiple of the window's
        ((2, 4), (2, 4, 8, 6)),  # nor the width
    ],
)
def test_windows_that_do_not_fill_the_map_are_torch_s(
    size: tuple[int, int], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(AvgPool2d(size)(x), nn.AvgPool2d(size)(x))
    assert torch.autograd.gradcheck(AvgPool2d(size), (x,))


def test_the_larger_of_each_pair_come_first_and_an_odd_one_stays_last() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0, 3.0, 9.0], [2.0, 1.0, 3.0, 3.0, -9.0]])
    wanted = torch.tensor([[2.0, 4.0, 1.0, 3.0, 9.0], [2.0, 3.0, 1.0, 3.0, -9.0]])
    assert torch.equal(GroupSort()(x), wanted)
    assert torch.equal(TorchGroupSort()(x), wanted)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
def test_finite_differences_agree(ours: nn.Module, theirs: nn.Module) -> None:
    x = points()
    assert torch.autograd.gradcheck(ours, (x,))
    assert torch.autograd.gradgradcheck(ours, (x,))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
def test_functional_transforms_agree(ours: nn.Module, theirs: nn.Module) -> None:
    x = points().detach()

    def norm_gradient(layer: nn.Module, item: Tensor) -> Tensor:
        def norm(inner: Tensor) -> Tensor:
            return torch.func.grad(lambda z: layer(z * z).pow(3).sum())(inner).norm()

        return torch.func.grad(norm)(item)

    mine, its = (
        torch.func.vmap(lambda i, a=a: norm_gradient(a, i))(x[:, None]) for a in (ours, theirs)
    )
    torch.testing.assert_close(mine, its, rtol=1e-12, atol=0)


class Counted(TorchDispatchMode):
    """Counts the kernels that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls[func.__name__.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_a_penalty_runs_fewer_kernels_and_has_the_same_gradient(architecture: str) -> None:
    config = CriticConfig(architecture=architecture, width=4, depth=4, activation="relu")
    shape = (3, 16, 16)
    torch.manual_seed(0)
    ours = build_critic(config, shape).double()
    theirs = build_critic(config, shape).double()
    for module in list(theirs.modules()):
        for name, child in module.named_children():
            if isinstance(child, ReLU):
                setattr(module, name, nn.ReLU())
            elif isinstance(child, AvgPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size))
    theirs.load_state_dict(ours.state_dict())
    real, fake = torch.randn(2, 5, *shape, dtype=torch.float64)
    kernels = []
    for critic in (ours, theirs):
        torch.manual_seed(1)
        with Counted() as counted:
            penalty = GradientPenalty().penalty(critic, real, fake)
            assert penalty is not None
            penalty.backward()
        kernels.append(counted.calls["convolution_backward"])
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        pair = [torch.zeros_like(p) if p.grad is None else p.grad for p in (mine, its)]
        torch.testing.assert_close(*pair, rtol=1e-9, atol=0)
    assert kernels[0] < kernels[1]
