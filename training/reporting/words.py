"""Lines for people on a run's data and results."""

from __future__ import annotations

from collections.abc import Callable

from models.record import Run
from training.data.dataset import Dataset
from training.data.inspection import pixel_problems, precision_problems
from training.data.layout import understood
from training.judging.doctor.diagnosis import in_one_line
from training.reporting.pages import figures_in_words, serving_in_words

MAX_NAMED_PROBLEMS = 20
"""Broken files named one by one; further ones are only counted."""


def say_lines(lines: list[str], say: Callable[[str], None]) -> None:
    """Say one line after the other."""
    for line in lines:
        say(line)


def data_in_words(data: Dataset, by_class: bool) -> list[str]:
    """What a run trains on, by class or not, and what is wrong with it."""
    card = data.card
    lines = [
        f"data: {card.name}, {card.training_count} items {card.shape} to train on, "
        f"{card.heldout_count} held out{understood(card)}"
    ]
    if card.classes and not by_class:  # samples are better by class: docs/images.md
        aside = f"{len(card.classes)} classes are left aside"
        lines.append(f"  its {aside}; --set conditional=true trains by class")
    lines += [f"  skipped {problem}" for problem in data.problems[:MAX_NAMED_PROBLEMS]]
    more = len(data.problems) - MAX_NAMED_PROBLEMS
    if more > 0:
        lines.append(f"  skipped {more} more: see `wgan data inspect`")
    warnings = pixel_problems(data) if card.kind == "image" else precision_problems(data)
    warnings += data.notes
    lines += [f"  warning: {warning}" for warning in warnings[:MAX_NAMED_PROBLEMS]]
    if len(warnings) > MAX_NAMED_PROBLEMS:
        lines.append(
            f"  {len(warnings) - MAX_NAMED_PROBLEMS} more warnings: see `wgan data inspect`"
        )
    return lines


def results_in_words(run: Run) -> list[str]:
    """The figures of a run, how it is served, and what the doctor found."""
    lines = [f"  {line}" for line in figures_in_words(run.results.figures)]
    if run.privacy is not None:
        lines.append(f"  private: {run.privacy.in_words}")
    if run.engine.precision == "bf16":
        lines.append(f"  served {serving_in_words(run)}")
    lines += [f"  {in_one_line(finding)}" for finding in run.findings if finding.present]
    return lines
