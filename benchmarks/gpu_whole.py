"""The whole generator step beside a textbook's, by network and precision: a stage of `gpu`.

Each mode of ours is a run of `training.engine.loop.train`, timed as it goes; the textbook's loop
has torch's own layers and the same precision. `limit` is the convolutions and matrix products of
our eager step alone, in one CUDA graph.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_step import NETWORKS, graphed, milliseconds, multiply_by, tiny
from benchmarks.quality_training import textbook_steps
from benchmarks.step import Recorded
from models.config import Config, parse_config
from models.networks import CriticConfig, Shape
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState, load_checkpoint, newest_checkpoint
from training.engine.loop import train
from training.engine.runs import Interrupted

MODES = ("textbook", "graphed", "limit", "captured", "eager")
"""In this order, since the time may not suffice for all."""
PRECISIONS = ("tf32", "bf16", "fp32")
COMPILED = ("resnet64", "resnet32", "dcgan28")
"""Networks whose graphed steps are compiled too, in TF32: those with large elementwise passes."""
WARM_UPS = 5
"""Steps before the clock starts: in the first ones graphs are captured and kernels are chosen."""
UNHURRIED = 8
"""Steps whose host time is taken, fewer than graphed steps may be ahead of the device."""
ITEMS = 2048


class Clock:
    """Takes the time of steps on the device, and of the host until it has asked for them."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._device, self._seconds = device, seconds
        self.times = dict[str, float]()
        """``device_ms`` and ``host_ms`` of a step, once they are taken."""

    def __call__(self, step: int, state: TrainingState | None = None) -> None:
        """After ``step`` steps."""
        if step == WARM_UPS:
            self._began = self._now()
        done, spent = step - WARM_UPS, 0.0
        if done > 0:
            spent = time.perf_counter() - self._began
        if done == UNHURRIED:
            self.times["host_ms"] = 1e3 * spent / done
        if done >= UNHURRIED and spent >= self._seconds and "device_ms" not in self.times:
            self.times["device_ms"] = 1e3 * (self._now() - self._began) / done

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def is_done(self) -> bool:
        return "device_ms" in self.times


def config_of(critic: CriticConfig, batch: int, critic_steps: int, source: Path) -> Config:
    """Networks of one kind and size, trained as Gulrajani et al. 2017 do."""
    generator = {
        **critic.model_dump(include={"architecture", "width", "depth"}),
        "activation": "relu",
        "normalization": "none" if critic.architecture == "mlp" else "batch",
        "latent_size": 64,
    }
    return parse_config(
        {
            "name": "step",
            "data": {"source": str(source)},
            "generator": generator,
            "critic": critic.model_dump(),
            "constraint": {"kind": "gradient_penalty"},
            "training": {
                "steps": 10**6,
                "batch_size": batch,
                "num_critic_steps": critic_steps,
                "optimizer": "adam",
                "learning_rate": 1e-4,
                "betas": (0.5, 0.9),
                "log_every": 10**6,
                "checkpoint_every": 10**6,
            },
        }
    )


def items_of(shape: Shape, source: Path) -> None:
    """Write random items: their values do not matter to the time."""
    rng = np.random.default_rng(0)
    if len(shape) == 3:
        channels, height, width = shape
        items = rng.integers(256, size=(ITEMS, height, width, channels), dtype=np.uint8)
    else:
        items = rng.normal(size=(ITEMS, *shape)).astype(np.float32)
    np.save(source, items)


def with_mode(config: Config, mode: str, precision: str) -> Config:
    changed = {"critic_step": mode, "precision": precision}
    return config.model_copy(update={"training": config.training.model_copy(update=changed)})


def time_ours(config: Config, data: Dataset, device: torch.device, clock: Clock) -> dict[str, Any]:
    """Times of our loop, and the mode that it chose in the end."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(Interrupted):
            train(
                config,
                data,
                Path(folder),
                device,
                watch=clock,
                stop_requested=lambda: clock.is_done,
            )
        path = newest_checkpoint(Path(folder))
        assert path is not None, "a stopped run leaves a checkpoint"
        return {**clock.times, "mode": load_checkpoint(path).critic_step}


def time_textbook(
    config: Config, data: Dataset, device: torch.device, clock: Clock
) -> dict[str, Any]:
    """Times of the published recipe in plain torch."""
    multiply_by(config.training.precision)
    _, make_step = textbook_steps(config, data, device)
    for step in itertools.count(1):
        make_step()
        clock(step)
        if clock.is_done:
            break
    return dict(clock.times)


def time_limit(
    config: Config, data: Dataset, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Times of the heavy kernels of one of our steps alone."""
    recorded, recording, steps = Recorded(), contextlib.ExitStack(), list[int]()

    def watch(step: int, state: TrainingState) -> None:
        if step == WARM_UPS:
            recording.enter_context(recorded)
        elif step == WARM_UPS + 1:
            recording.close()
            steps.append(step)

    with tempfile.TemporaryDirectory() as folder, recording, contextlib.suppress(Interrupted):
        train(config, data, Path(folder), device, watch=watch, stop_requested=lambda: bool(steps))

    def repeat() -> None:
        with torch.no_grad():
            for function, arguments, options in recorded.calls:
                function(*arguments, **options)

    return milliseconds(graphed(repeat) if device.type == "cuda" else repeat, device, seconds)


def timed(
    mode: str, config: Config, data: Dataset, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Times of a step in a mode."""
    if mode == "textbook":
        return time_textbook(config, data, device, Clock(device, seconds))
    if mode == "limit":
        return time_limit(config, data, device, seconds)
    return time_ours(config, data, device, Clock(device, seconds))


def table(device: torch.device, quick: bool, keep: Callable[[str, Any], None]) -> None:
    """Time every network at every precision in every mode; a mode that fails says why."""
    seconds = 0.0 if quick else 0.4
    precisions = PRECISIONS if device.type == "cuda" else ("fp32",)
    rows = {f"{n} {p}": dict[str, Any]() for n, p in itertools.product(NETWORKS, precisions)}
    cases = dict[str, tuple[Config, Dataset]]()
    with tempfile.TemporaryDirectory() as folder:
        for name, case in NETWORKS.items():
            critic, shape, batch = tiny(*case) if quick else case
            source = Path(folder) / f"{name}.npy"
            items_of(shape, source)
            # Two critic steps are the preset's, five the paper's.
            config = config_of(critic, batch, 2 if name == "mnist5k" else 5, source)
            cases[name] = config, load_data(config.data)
    wanted = list(itertools.product(MODES, cases, precisions))
    if not quick:  # compiling takes by far the longest: it comes last
        wanted += itertools.product(["graphed_compiled"], COMPILED, ["tf32"])
    for mode, name, precision in wanted:
        (config, data), row = cases[name], rows[f"{name} {precision}"]
        step = "eager" if mode in ("textbook", "limit") else mode
        try:
            row[mode] = timed(mode, with_mode(config, step, precision), data, device, seconds)
        except Exception as error:  # one mode must not cost the rest of the table
            row[f"{mode}, error"] = f"{type(error).__name__}: {str(error)[:200]}"
        keep(f"{name} {precision}", row)
