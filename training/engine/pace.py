"""The pace of training, from a few steps that are thrown away."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from models.augmentation import follows_overfitting
from models.config import Config
from training.data.dataset import Dataset, load_data
from training.engine.augmentation import MEASURED_EVERY
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.engine.runs import Interrupted
from training.engine.step import penalty_pattern

PACE_STEPS, PACE_WARM_UP = 24, 4
"""Generator steps of a pace measurement, and those at its start that do not count."""
FEWEST_PACE_STEPS = 5
"""Generator steps, at least, of a measurement that takes too long; the last two count."""
FORESEEN = 1000
"""Generator steps over which the share of those with a penalty is taken."""


def measure_pace(
    config: Config,
    data: Dataset | None = None,
    device: str = "cpu",
    clock: Callable[[], float] | None = None,
    at_most: float = math.inf,
) -> float:
    """The seconds of a critic step, with its share of the generator's step.

    What measures overfitting is left out if there was no time to meet it.

    Args:
        config: of a run.
        data: what ``config.data`` loads, if it is loaded already.
        device: where to train.
        clock: of the seconds; by default the processor's, or on a GPU the wall's.
        at_most: seconds after which a few steps must do (`FEWEST_PACE_STEPS`).
    """
    training = config.training.model_copy(
        update={"steps": PACE_STEPS, "log_every": PACE_STEPS, "checkpoint_every": PACE_STEPS}
    )
    data = data or load_data(config.data, training.batch_size)
    clock = clock or (time.process_time if device == "cpu" else time.perf_counter)
    times = list[float]()

    def penalties_in(step: int) -> int:
        """How many of a generator step's critic steps compute the penalty."""
        return sum(penalty_pattern(config.constraint, step, training.num_critic_steps))

    def watch(step: int, state: TrainingState) -> None:
        if device == "cuda":
            torch.cuda.synchronize()  # or the pace would be that of launching kernels
        times.append(clock())

    def is_last() -> bool:
        return len(times) >= FEWEST_PACE_STEPS - 1 and times[-1] - times[0] > at_most

    with tempfile.TemporaryDirectory() as folder, suppress(Interrupted):
        train(
            config.model_copy(update={"training": training}),
            data,
            Path(folder),
            torch.device(device),
            watch=watch,
            stop_requested=is_last,
        )
    # Medians, since the first steps and the last one do more than train; but steps with a lazy
    # penalty and those without it are of two kinds. One that was never met is too rare to count.
    warm_up = min(PACE_WARM_UP, len(times) // 2)
    durations = defaultdict[int, list[float]](list)
    for step, duration in enumerate(np.diff(times), start=1):
        if step > warm_up:
            durations[penalties_in(step)].append(duration)
    medians = {kind: float(np.median(found)) for kind, found in durations.items()}
    foreseen = map(penalties_in, range(FORESEEN))
    pace = statistics.mean(medians[kind] for kind in foreseen if kind in medians)
    # Overfitting is measured after one step of so many.
    if follows_overfitting(config.augmentation) and len(times) >= MEASURED_EVERY:
        measured = times[MEASURED_EVERY - 1] - times[MEASURED_EVERY - 2]
        pace += max(0.0, measured - medians[penalties_in(MEASURED_EVERY - 1)]) / MEASURED_EVERY
    return pace / training.num_critic_steps
