"""Steps of a run in float64, from the same weights and with the same random numbers."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.config import Config
from training.data.batches import TrainingItems, batches
from training.data.dataset import Dataset
from training.engine.runs import begin, step_seed
from training.engine.split import Split
from training.engine.step import CriticStep
from training.engine.whole_step import PlainStep, WholeStep
from training.engine.workers import ALONE

DRAWS = {torch.rand, torch.randn, torch.rand_like, torch.randn_like}


class InDouble(TorchFunctionMode):
    """Random numbers are those that float32 would have drawn, and nothing becomes float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS:
            return func(*args, **{**kwargs, "dtype": torch.float32}).double()
        return func(*args, **kwargs) if func is not Tensor.float else args[0].double()


def exact_steps(
    config: Config, data: Dataset, device: torch.device, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state before and after all steps of a run, eager and in float64."""
    settings, state = config.training, begin(config, data, folder, device, None).state
    start = state.tensors()
    for network in state[:3]:
        network.double()
    plain = nullcontext()
    split = Split(settings.micro_batch_size)
    find = CriticStep("eager", state.critic, config.constraint, split=split)
    whole = WholeStep(config, data, state, find, device, ALONE, plain, split)
    items = TrainingItems(data, device)
    make_step, order = (
        PlainStep(whole, items),
        batches(settings.seed, len(items), settings.batch_size, 0),
    )
    with InDouble():
        for step in range(settings.steps):
            numbers = [next(order) for _ in range(settings.num_critic_steps)]
            make_step(numbers, step, step_seed(settings.seed, step))
    return start, state.tensors()


def distance_from(
    exact: dict[str, Tensor], start: dict[str, Tensor], found: dict[str, Tensor], part: str
) -> float:
    """How far a network is from the exact one, over the way that this has gone."""
    names = [n for n in exact if n.startswith(f"{part}.") and exact[n].is_floating_point()]
    apart, moved = (
        sum((exact[n].double() - other[n].double()).square().sum().item() for n in names) ** 0.5
        for other in (found, start)
    )
    assert moved > 0
    return apart / moved
