"""The settings that a search varies, and the values that it may give them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from models.command_line import value
from models.config import Config, flatten
from models.errors import UserError

if TYPE_CHECKING:
    from optuna import Trial

CONSTRAINTS = ("lipschitz_penalty", "gradient_penalty", "spectral_norm")
"""Constraints that are searched over unless others are named."""
CRITIC_STEPS = (1, 2, 3, 5)


class Range(NamedTuple):
    """Positive numbers between two ends, each magnitude as likely as the others.

    Between whole ends they are whole too.
    """

    low: float
    high: float

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values of which each must be possible; one has a fraction if that may be chosen."""
        between = [] if self.is_whole else [self.low + (self.high - self.low) / math.pi]
        return (*self, *between)

    @property
    def is_whole(self) -> bool:
        """True if only whole numbers are between the ends."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def choose(self, trial: Trial, name: str) -> float:
        """Let a trial choose a number."""
        if self.is_whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=True)
        return trial.suggest_float(name, *self, log=True)


class Choices(NamedTuple):
    """A few values, each as likely as the others."""

    values: tuple[Any, ...]

    @property
    def examples(self) -> tuple[Any, ...]:
        """See `Range.examples`."""
        return self.values


Setting = Range | Choices
Space = Mapping[str, Setting]
"""Settings by their dotted keys."""


def parse_settings(texts: Sequence[str]) -> dict[str, Setting]:
    """Read what is to be searched: ``KEY=LOW..HIGH`` or ``KEY=A,B,C``.

    >>> parse_settings(["training.learning_rate=1e-4..0.01", "training.batch_size=32,64"])
    {'training.learning_rate': Range(low=0.0001, high=0.01), 'training.batch_size': Choices(values=(32, 64))}

    Raises:
        UserError: one is neither.
    """  # noqa: E501
    found = dict[str, Setting]()
    for text in texts:
        key, equals, rest = text.partition("=")
        low, dots, high = rest.partition("..")
        if not equals or not rest:
            raise UserError(f"--search {text}: write KEY=LOW..HIGH or KEY=A,B,C")
        if key.partition(".")[0] in ("data", "evaluation", "constraint"):
            raise UserError(
                f"--search {key}: all trials have the same data and are judged alike, and each "
                "constraint's own strength is searched already; leave it out"
            )
        if not dots:
            found[key] = Choices(tuple(value(part) for part in rest.split(",")))
            continue
        ends = value(low), value(high)
        if not all(isinstance(end, int | float) for end in ends) or not 0 < ends[0] < ends[1]:
            raise UserError(f"--search {text}: a range is of two positive numbers, the lower first")
        found[key] = Range(*ends)
    return found


def usual_space(config: Config) -> dict[str, Setting]:
    """What is searched around a configuration: its middle is the configuration itself.

    Of the constraint that is its first setting that may be any positive number, if it has one.

    Args:
        config: with a batch size, as `training.presets.fill_in` leaves it.
    """
    training, constraint = config.training, config.constraint
    space: dict[str, Setting] = {
        "training.learning_rate": _around(training.learning_rate, 5),
        "training.num_critic_steps": Choices(CRITIC_STEPS),
        "training.batch_size": _doublings(training.batch_size),
        "generator.width": _doublings(config.generator.width),
        "critic.width": _doublings(config.critic.width),
    }
    for name, field in type(constraint).model_fields.items():
        is_positive = any(getattr(limit, "gt", None) == 0 for limit in field.metadata)
        if field.annotation is float and is_positive:
            return {**space, f"constraint.{name}": _around(getattr(constraint, name), 10)}
    return space


def choose(trial: Trial, space: Space, kind: str) -> dict[str, Any]:
    """Let a trial choose a value for each setting.

    Args:
        trial: chooses.
        space: what may be chosen.
        kind: of the constraint; each is searched by itself.
    """
    return {
        key: setting.choose(trial, f"{kind}.{key}")
        if isinstance(setting, Range)
        else trial.suggest_categorical(f"{kind}.{key}", setting.values)
        for key, setting in space.items()
    }


def middle(config: Config, space: Space, kind: str) -> dict[str, Any]:
    """The choices by which a trial is the configuration itself, as far as they are in the space."""
    own = flatten(config.model_dump(mode="json"))
    return {
        f"{kind}.{key}": own[key]
        for key, setting in space.items()
        if key in own
        and (
            setting.low <= own[key] <= setting.high
            if isinstance(setting, Range)
            else own[key] in setting.values
        )
    }


def _around(number: float, factor: float) -> Range:
    return Range(number / factor, number * factor)


def _doublings(number: int) -> Choices:
    return Choices((max(2, number // 2), number, 2 * number))
