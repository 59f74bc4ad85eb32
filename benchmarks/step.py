"""The critic's step beside the textbook's: `make bench-step`, some minutes on one idle core.

Each figure is a ratio of times taken in turn: the median over rounds of textbook over ours, so
above 1 ours is faster. The textbook has torch's own layers and optimiser, everything eager, in
fp32, and a process of its own, whose allocator is as it comes; ours keeps freed memory, as `wgan
train` does. `same_memory` is the ratio to a textbook whose process does so too. `limit` is the
textbook's over our convolutions and matrix products alone, each with memory of its own: a step that
overwrites what it has read can be a little faster.

`sweep8` is eight critics of one constraint, each with its own weights and batch: the textbook's
eight in turn over ours at once. `alone` is our own eight in turn over ours at once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.constraints import GradientPenalty
from models.networks import CriticConfig, Shape, build_critic, piecewise
from models.networks.convolution import Conv2d, Head
from training.engine.memory import keep_freed_memory
from training.engine.stack import Stack, StackedStep
from training.engine.step import CriticStep, can_pair, critic_loss

CASES: dict[str, tuple[CriticConfig, Shape, int, int]] = {
    "mlp": (CriticConfig(architecture="mlp", width=512, activation="relu"), (2,), 256, 60),
    "dcgan28": (CriticConfig(architecture="dcgan", width=64, depth=2), (1, 28, 28), 64, 30),
    "resnet32": (
        CriticConfig(architecture="resnet", width=64, depth=8, activation="relu"),
        (3, 32, 32),
        64,
        5,
    ),
}
"""Network, shape of an item, batch and rounds."""


class Abs(nn.Module):
    """Torch's function as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def plain_convolution(ours: nn.Module) -> nn.Module:
    """Torch's own convolution with the same weights."""
    assert isinstance(ours, Conv2d)
    layer = nn.Conv2d(
        ours.in_channels, ours.out_channels, ours.kernel_size, ours.stride, ours.padding
    )
    layer.load_state_dict(ours.state_dict())
    return layer


def plain_head(ours: nn.Module) -> nn.Module:
    """Torch's own layers with the same weights."""
    assert isinstance(ours, Head)
    layer = nn.Linear(ours.in_features, ours.out_features)
    layer.load_state_dict(ours.state_dict())
    return nn.Sequential(nn.Flatten(), layer)


STOCK = {
    piecewise.Abs: lambda layer: Abs(),
    piecewise.ReLU: lambda layer: nn.ReLU(),
    piecewise.LeakyReLU: lambda layer: nn.LeakyReLU(layer.negative_slope),
    Conv2d: plain_convolution,
    Head: plain_head,
    piecewise.AvgPool2d: lambda layer: nn.AvgPool2d(layer.kernel_size),
}
SWEEP = 8
SWEPT = {"3x64": (64, 64, 60), "3x128": (128, 64, 40), "3x512": (512, 64, 8)}
"""Width, batch and rounds of critics of points in the plane, each with three hidden layers."""
KERNELS = {"convolution", "convolution_backward", "col2im", "mm", "addmm", "bmm"}
PENALTY = GradientPenalty()
Step = Callable[[Tensor, Tensor, int], None]
Timed = Callable[[int], float]
"""A step bound to its data: takes the step's number and returns its seconds."""


def critic(config: CriticConfig, shape: Shape) -> nn.Module:
    torch.manual_seed(0)
    return build_critic(config, shape)


def stock(network: nn.Module) -> nn.Module:
    """Put torch's own layers in the place of ours."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) in STOCK:
                setattr(module, name, STOCK[type(child)](child))
    return network


def textbook(network: nn.Module, strength: float = 10.0, precision: str = "fp32") -> Step:
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, (0.5, 0.9))

    def step(real: Tensor, fake: Tensor, number: int) -> None:
        weights = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
        points = (weights * real + (1 - weights) * fake).requires_grad_()
        with autocast(precision, real.device.type):
            (slope,) = torch.autograd.grad(network(points).sum(), points, create_graph=True)
            penalty = strength * (slope.flatten(1).norm(dim=1) - 1).square().mean()
            loss = network(fake).mean() - network(real).mean() + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def autocast(precision: str, device: str = "cpu") -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, precision == "bf16")


def ours(network: nn.Module, mode: str, precision: str, said: list[str]) -> Step:
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, (0.5, 0.9), fused=True)
    find = CriticStep(mode, network, PENALTY, precision, autocast(precision), say=said.append)

    def step(real: Tensor, fake: Tensor, number: int) -> None:
        find(real, fake, [], number)
        optimizer.step()

    return step


class Recorded(TorchDispatchMode):
    """Records the calls of heavy kernels, to repeat them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__.partition(".")[0] in KERNELS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def kernels(network: nn.Module, precision: str, real: Tensor, fake: Tensor) -> Step:
    if real.dim() == 4:
        network.to(memory_format=torch.channels_last)
        real, fake = (x.contiguous(memory_format=torch.channels_last) for x in (real, fake))
    with Recorded() as recorded:
        with autocast(precision, real.device.type):
            _, loss = critic_loss(network, PENALTY, real, fake, 0, can_pair(network))
        loss.backward()

    def step(real: Tensor, fake: Tensor, number: int) -> None:
        with torch.no_grad():
            for func, args, kwargs in recorded.calls:
                func(*args, **kwargs)

    return step


def timed(step: Step, real: Tensor, fake: Tensor) -> Timed:
    def run(number: int) -> float:
        torch.manual_seed(number)
        begun = time.perf_counter()
        step(real, fake, number)
        return time.perf_counter() - begun

    return run


def in_turn(steps: list[Step]) -> Step:
    """Run the steps one after another, each on its own part of the data."""

    def step(real: Tensor, fake: Tensor, number: int) -> None:
        for k, one in enumerate(steps):
            one(real[k], fake[k], number)

    return step


def data(*shape: int) -> Tensor:
    """Real and fake items, ``(2, *shape)``."""
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


def swept(width: int) -> tuple[CriticConfig, Shape]:
    return CriticConfig(architecture="mlp", width=width, activation="relu"), (2,)


def timed_textbook(name: str) -> Timed:
    """The textbook's step of a case; of a sweep, that of its critics in turn."""
    if name in CASES:
        config, shape, batch, _ = CASES[name]
        return timed(textbook(stock(critic(config, shape))), *data(batch, *shape))
    width, batch, _ = SWEPT[name]
    books = [textbook(stock(critic(*swept(width)))) for _ in range(SWEEP)]
    return timed(in_turn(books), *data(SWEEP, batch, 2))


def serve(requests: Connection) -> None:
    """Time the textbook's steps: a message names the case, each later one is a step's number."""
    torch.set_num_threads(1)
    while True:
        try:
            request = requests.recv()
        except EOFError:  # the benchmark is over
            return
        if isinstance(request, str):
            step = timed_textbook(request)
        else:
            requests.send(step(request))


class Elsewhere:
    """The textbook's steps in a process of their own, whose allocator is as it comes."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._requests, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs,), daemon=True).start()

    def timed_textbook(self, name: str) -> Timed:
        self._requests.send(name)

        def run(number: int) -> float:
            self._requests.send(number)
            seconds: float = self._requests.recv()
            return seconds

        return run


def interleaved(steps: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Times of the textbook's step over those of each other one, round by round."""
    for step in steps.values():  # captures, compiles and warms up
        for number in range(2):
            step(number)
    times: dict[str, list[float]] = {key: [] for key in steps}
    order = list(steps)
    for number in range(rounds):
        order = order[1:] + order[:1]
        for key in order:
            times[key].append(steps[key](number))
    return {
        key: [a / b for a, b in zip(times["textbook"], times[key], strict=True)]
        for key in steps
        if key != "textbook"
    }


def figures(ratios: dict[str, list[float]], ours: str, rounds: int) -> dict[str, Any]:
    quartiles = statistics.quantiles(ratios[ours], n=4)
    ratio, same = (statistics.median(ratios[key]) for key in (ours, "textbook, same memory"))
    return {
        "ratio": ratio,
        "same_memory": ratio / same,
        "spread": [quartiles[0], quartiles[2]],
        "rounds": rounds,
    }


def measure(name: str, precision: str, elsewhere: Elsewhere) -> dict[str, Any]:
    config, shape, batch, rounds = CASES[name]
    real, fake = data(batch, *shape)
    said: list[str] = []
    modes = ("eager", "captured", "compiled")
    steps = {
        "textbook": elsewhere.timed_textbook(name),
        "textbook, same memory": timed_textbook(name),
        "limit": timed(kernels(critic(config, shape), precision, real, fake), real, fake),
        **{
            mode: timed(ours(critic(config, shape), mode, precision, said), real, fake)
            for mode in modes
        },
    }
    ratios = interleaved(steps, rounds)
    chosen = "captured"
    return {
        **figures(ratios, chosen, rounds),
        "limit": statistics.median(ratios["limit"]),
        "mode": chosen,
        "modes": {key: statistics.median(ratios[key]) for key in modes},
        "refused": said,
    }


def sweep(name: str, elsewhere: Elsewhere) -> dict[str, Any]:
    width, batch, rounds = SWEPT[name]
    config, shape = swept(width)
    real, fake = data(SWEEP, batch, *shape)
    said: list[str] = []
    singles = [ours(critic(config, shape), "captured", "fp32", said) for _ in range(SWEEP)]
    stack = Stack([critic(config, shape) for _ in range(SWEEP)])
    find = StackedStep(stack, [PENALTY] * SWEEP)
    optimizer = torch.optim.Adam(stack.parameters, 1e-4, (0.5, 0.9), fused=True)
    sources = [torch.Generator().manual_seed(k) for k in range(SWEEP)]

    def at_once(real: Tensor, fake: Tensor, number: int) -> None:
        find(real, fake, sources, number)
        optimizer.step()

    steps = {
        "textbook": elsewhere.timed_textbook(name),
        "textbook, same memory": timed_textbook(name),
        "alone": timed(in_turn(singles), real, fake),
        "stacked": timed(at_once, real, fake),
    }
    ratios = interleaved(steps, rounds)
    found = figures(ratios, "stacked", rounds)
    alone = found["ratio"] / statistics.median(ratios["alone"])
    return {**found, "alone": alone, "refused": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    elsewhere = Elsewhere()
    keep_freed_memory()
    result: dict[str, Any] = {
        "command": "make bench-step",
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
        "load_average": list(os.getloadavg()),
        "fp32": {},
        "bf16": {},
    }
    for precision in ("fp32", "bf16"):
        if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            result[precision]["skipped"] = "this processor has no instructions for bf16"
            print("bf16: skipped, this processor has no instructions for it")
            continue
        for name in CASES:
            result[precision][name] = found = measure(name, precision, elsewhere)
            print(
                f"{precision} {name}: {found['ratio']:.2f} times textbook ({found['mode']}), "
                f"{found['same_memory']:.2f} in the same memory, limit {found['limit']:.2f}",
                flush=True,
            )
    result["sweep8"] = {}
    for name in SWEPT:
        result["sweep8"][name] = found = sweep(name, elsewhere)
        print(
            f"eight {name} at once: {found['ratio']:.2f} times the textbook's in turn, "
            f"{found['alone']:.2f} times ours",
            flush=True,
        )
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
