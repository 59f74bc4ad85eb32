"""The steps that a run has time for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import torch

from models.augmentation import follows_overfitting
from models.config import Config
from models.errors import UserError
from models.networks import build_networks
from models.run_folder import CHECKPOINTS
from training.data.dataset import Dataset
from training.engine.checkpoint import load_checkpoint, newest_checkpoint
from training.engine.pace import measure_pace
from training.judging.extractors import choose_extractor
from training.judging.headline import headline
from training.presets import MEASUREMENTS, WIDTHS, fill_in, width_of
from training.progress import silent

FEWEST_MEASUREMENTS = 5
MEASURING_SHARE = 0.1
"""Share of the time that measurements may take, unless they would be fewer than that."""
WARM_UP = 20
"""Samples of a first measurement, which does not count."""
JUDGING_SHARE = 0.1
"""Share of the time, at least, that is left for judging."""
ENOUGH, FEWEST_STEPS = 0.25, 6000
"""Share of the steps that suit images, and steps at least, for which wider networks need time: then
they were as good as narrower ones that make more, or better (docs/decisions.md)."""
PACE_SHARE = 0.02
"""Share of the time after which a width's and a precision's pace must be known from a few steps."""
HOPELESS = 1.5
"""bf16 that takes so many times as long as fp32 is not tried with wider networks."""


def within(
    config: Config,
    data: Dataset,
    device: torch.device,
    seconds: float,
    started: float,
    folder: Path,
    say: Callable[[str], None] = silent,
) -> Config:
    """Choose the generator steps, and how often to measure, so that a run ends in time.

    A few steps and a measurement are made and thrown away. Networks of images that leave their
    width get the widest that has time for a quarter of the steps that suit the images, and for
    6,000 (`ENOUGH`). On a CPU, images train in bf16 where its steps are quicker and no precision is
    given. A run that is there goes on as it began.

    Args:
        config: to fill in (`training.presets.fill_in`), with ``selection``.
        data: what it trains on.
        device: where to train.
        seconds: by the wall's clock, judging included.
        started: when they began, by `time.perf_counter`.
        folder: the run's.
        say: takes a line for people.

    Raises:
        UserError: there is time for no step.
    """
    assert config.selection is not None, "see training.commands.train"
    selection = config.selection
    if newest := newest_checkpoint(folder / CHECKPOINTS):
        saved = Config.model_validate(load_checkpoint(newest).config)
        filled = fill_in(config, data.card, device.type, width_of(saved, config))
        if _may_choose_precision(config, data, device):
            filled = _with_training(filled, precision=saved.training.precision)
        filled = _with_training(filled, steps=saved.training.steps)
        return filled.model_copy(update={"selection": saved.selection})
    narrow = fill_in(config, data.card, device.type, WIDTHS[0])
    each = _measurement_seconds(narrow, data, device, selection.samples)
    # A judging compares as a measurement does, with more samples and more figures.
    judging = max(JUDGING_SHARE * seconds, 4 * each * config.evaluation.samples / selection.samples)
    count = min(MEASUREMENTS, max(FEWEST_MEASUREMENTS, int(MEASURING_SHARE * seconds / each)))
    ends = started + seconds - judging
    at_most = PACE_SHARE * seconds
    config, each_step = _widest(config, data, device, ends - count * each, at_most)
    left = ends - time.perf_counter()
    if selection.every:
        steps = int(left / (each_step + each / selection.every))
        count = math.ceil(steps / selection.every)
    else:
        steps = int((left - count * each) / each_step)
    if steps < max(count, 1):
        raise UserError(
            f"--budget: {seconds:.0f} s are too few: {count} measurements and the judging take "
            f"about {count * each + judging:.0f} s, and a step {each_step:.2g} s; give more, or, "
            "of images, set evaluation.extractor=pixels"
        )
    every = selection.every or math.ceil(steps / count)
    end = datetime.now() + timedelta(seconds=left)
    how = "" if config.training.precision == "fp32" else f" in {config.training.precision}"
    if follows_overfitting(config.augmentation):
        how += ", images augmented as far as the critic overfits"
    say(
        f"{steps} steps{how}, measured on validation items after each {every}; training "
        f"until about {end:%H:%M}, then judging for about {judging / 60:.1f} min"
    )
    chosen = selection.model_copy(update={"every": every})
    return _with_training(config.model_copy(update={"selection": chosen}), steps=steps)


def _widest(
    config: Config, data: Dataset, device: torch.device, ends: float, at_most: float
) -> tuple[Config, float]:
    """The configuration, filled in, with the widest networks that have time, and its step's time.

    Args:
        config: to fill in.
        data: what it trains on.
        device: where to train.
        ends: when the steps must have ended, by `time.perf_counter`.
        at_most: seconds of a measurement of the pace (`training.engine.pace`).

    Returns:
        The configuration, and the seconds of a generator step with its critic steps.

    Raises:
        MemoryError: there is too little for the narrowest.
    """
    is_open = data.card.kind == "image" and not (config.generator.width and config.critic.width)
    wanted = _with_training(config, steps=0)
    tries_half = _may_choose_precision(config, data, device)
    chosen: tuple[Config, float] | None = None
    for width in WIDTHS if is_open else WIDTHS[:1]:
        tried = fill_in(wanted, data.card, device.type, width)
        try:
            each = measure_pace(tried, data, device.type, time.perf_counter, at_most)
            if tries_half:
                half = _with_training(tried, precision="bf16")
                each_half = measure_pace(half, data, device.type, time.perf_counter, at_most)
                tries_half = each_half < HOPELESS * each
                if each_half < each:
                    tried, each = half, each_half
        except MemoryError:
            if chosen is None:
                raise
            break
        each *= tried.training.num_critic_steps
        enough = max(ENOUGH * tried.training.steps, FEWEST_STEPS)
        if chosen is not None and time.perf_counter() + each * enough > ends:
            break
        chosen = tried, each
    assert chosen is not None
    return chosen


def _may_choose_precision(config: Config, data: Dataset, device: torch.device) -> bool:
    """True if nobody chose one; on CUDA `fill_in` does, and what is not an image gains little."""
    is_given = "precision" in config.training.model_fields_set
    return device.type == "cpu" and data.card.kind == "image" and not is_given


def _with_training(config: Config, **settings: object) -> Config:
    """The configuration with settings of its training section."""
    training = config.training.model_copy(update=settings)
    return config.model_copy(update={"training": training})


def _measurement_seconds(
    config: Config, data: Dataset, device: torch.device, samples: int
) -> float:
    """The time of one measurement, by a generator that has not been trained."""
    extractor = choose_extractor(config.evaluation, data) if data.card.kind == "image" else None
    generator, _ = build_networks(config, data.card.shape, len(data.card.classes), data.card.parts)
    generator, data = generator.to(device), data.to_validate()
    headline(config, data, generator, extractor, WARM_UP)
    started = time.perf_counter()
    headline(config, data, generator, extractor, samples)
    return time.perf_counter() - started
