"""Progress of training, with the look of `models.progress`; imports nothing else of ours."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm import tqdm

from models.progress import is_shown, phase, say, silent, track

__all__ = ["TrainingBar", "never", "no_report", "phase", "say", "silent", "track"]

SECONDS_BETWEEN_LINES = 5


def never() -> bool:
    """Do not stop: the default of every ``stop_requested``."""
    return False


def no_report(steps: int) -> Callable[[dict[str, float]], None]:
    """Show no rows of a history of so many steps: the default of every ``report``."""
    return silent


class TrainingBar:
    """Shows each new row of a run's history: a bar on a terminal, elsewhere a line now and then.

    Pass it as ``report`` to `training.run.run_training`.
    """

    def __init__(self, steps: int, lines: bool = True) -> None:
        """Begin.

        Args:
            steps: generator steps of the whole run.
            lines: print lines where there is no terminal.
        """
        self.steps = steps
        self.lines = lines
        self.bar = tqdm(total=steps, unit="step") if is_shown() else None
        self.last_line = 0.0

    def __call__(self, row: dict[str, float]) -> None:
        """Show a row, as `training.engine.runs.Row`."""
        step = int(row["step"])
        figures = (
            f"critic gap {row['critic_gap']:.4g}, gradient norm {row['gradient_norm']:.3f}, "
            f"{row['samples_per_second']:.0f} samples/s"
        )
        is_last = step == self.steps
        if self.bar is not None:
            self.bar.set_postfix_str(figures)
            self.bar.update(step - self.bar.n)
            if is_last:
                self.bar.close()
        elif self.lines and (is_last or time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES):
            self.last_line = time.monotonic()
            say(f"step {step}/{self.steps}: {figures}")
