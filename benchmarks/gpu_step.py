"""The critic's step on a device, by network, precision and mode: a stage of `benchmarks.gpu`."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.step import CASES, PENALTY, autocast, critic, kernels, stock, textbook
from models.networks import CriticConfig, Shape
from training.engine.step import CriticStep
from training.presets import build_config

NETWORKS: dict[str, tuple[CriticConfig, Shape, int]] = {
    **{name: case[:3] for name, case in CASES.items()},
    "mnist5k": (build_config("mnist5k").critic, (1, 28, 28), 64),
    "resnet64": (
        CriticConfig(architecture="resnet", width=64, depth=10, activation="relu"),
        (3, 64, 64),
        64,
    ),
}
"""Network, shape of an item and batch."""
PRECISIONS = ("fp32", "tf32", "bf16")
MODES = ("textbook", "eager", "captured", "limit", "compiled")
GRAPHED = ("eager", "captured", "limit")
"""Modes that are timed in a CUDA graph too."""
Call = Callable[[], None]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def multiply_by(precision: str) -> None:
    """Set what matrix products and convolutions in float32 may use."""
    is_short = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_short


def milliseconds(step: Call, device: torch.device, seconds: float) -> dict[str, float]:
    """Median times of a step: on the device, and of the host until it has asked for it."""
    for _ in range(3):
        step()
    synchronize(device)
    whole, host, end = list[float](), list[float](), time.perf_counter() + seconds
    while len(whole) < 5 or (time.perf_counter() < end and len(whole) < 200):
        began = time.perf_counter()
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            step()
            last.record()
            host.append(1e3 * (time.perf_counter() - began))
            last.synchronize()
            whole.append(first.elapsed_time(last))
        else:
            step()
            host.append(1e3 * (time.perf_counter() - began))
            whole.append(host[-1])
    return {"device_ms": statistics.median(whole), "host_ms": statistics.median(host)}


def graphed(step: Call) -> Call:
    """Capture a step in one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def made(
    mode: str,
    network: nn.Module,
    precision: str,
    real: Tensor,
    fake: Tensor,
    say: Callable[[str], None],
) -> Call:
    """Make a step of the critic and its optimiser, bound to its data."""
    if mode == "textbook":
        step = textbook(stock(network), precision=precision)
    elif mode == "limit":
        step = kernels(network, precision, real, fake)
    else:
        is_cuda = real.device.type == "cuda"
        optimizer = torch.optim.Adam(
            network.parameters(), 1e-4, (0.5, 0.9), fused=True, capturable=is_cuda
        )
        context = autocast(precision, real.device.type)
        find = CriticStep(mode, network, PENALTY, precision, context, say=say)

        def step(real: Tensor, fake: Tensor, number: int) -> None:
            find(real, fake, [], number)
            optimizer.step()

    return lambda: step(real, fake, 0)


def tiny(config: CriticConfig, shape: Shape, batch: int) -> tuple[CriticConfig, Shape, int]:
    """A small network of the same kind."""
    small = config.model_copy(update={"width": 4, "depth": 2})
    return small, tuple(min(size, 8) for size in shape), 2


def table(device: torch.device, quick: bool, keep: Callable[[str, Any], None]) -> None:
    """Time every network at every precision in every mode; a mode that fails says why."""
    seconds = 0.0 if quick else 0.3
    networks = {name: tiny(*case) if quick else case for name, case in NETWORKS.items()}
    precisions = PRECISIONS if device.type == "cuda" else ("fp32",)
    rows = {f"{n} {p}": dict[str, Any]() for n, p in itertools.product(networks, precisions)}
    # Compiling takes by far the longest. It comes last, so that a limit costs nothing else.
    for mode in MODES[:-1] if quick else MODES:
        for (name, (config, shape, batch)), precision in itertools.product(
            networks.items(), precisions
        ):
            multiply_by(precision)
            real, fake = torch.randn(2, batch, *shape, device=device)
            row, said = rows[f"{name} {precision}"], list[str]()
            try:
                network = critic(config, shape).to(device)
                step = made(mode, network, precision, real, fake, said.append)
                row[mode] = milliseconds(step, device, seconds)
                if mode in GRAPHED and device.type == "cuda":
                    row[f"{mode}, graph"] = milliseconds(graphed(step), device, seconds)
            except Exception as error:  # one mode must not cost the rest of the table
                row[f"{mode}, error"] = f"{type(error).__name__}: {str(error)[:200]}"
            if said:
                row[f"{mode}, said"] = said
            keep(f"{name} {precision}", row)
