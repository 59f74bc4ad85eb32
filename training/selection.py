"""The step whose networks are judged and served: the last that is as good as the best.

As good is what is within a standard error of the lowest figure (the rule of Breiman et al. 1984,
section 3.4.3). A kernel distance cannot tell such steps apart, and the later networks have a longer
average and smaller steps behind them: docs/decisions.md has what that was worth.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.config import Config
from models.durable import put, read_file, write_file
from models.images import MODES, encode_png, enlarge, grid
from models.record import Chart, Line
from models.sampling import latents
from training.data.dataset import Dataset
from training.engine.checkpoint import TrainingState, newest_checkpoint, part_of
from training.judging.extractors import FeatureExtractor
from training.judging.figures import headlines
from training.judging.headline import headline_and_error
from training.progress import silent
from training.reporting.pages import render
from training.reporting.preview import LEGIBLE_SIDE

BEST, MEASURED, PAGE = "best.safetensors", "validation.json", "progress.html"
REMEDY = "remove it, and what it holds is measured again"
SHOWN = 36
"""Samples on the page."""


class LastStep:
    """What stands in the place of a `Selection` where nothing is selected."""

    extractor = None

    def __call__(self, step: int, state: TrainingState) -> None:
        """Measure nothing."""

    def is_over(self, step: int) -> bool:
        """Train all steps."""
        return False

    def take(self, state: TrainingState) -> dict[str, Any]:
        """Leave the last networks where they are."""
        return {}


LAST_STEP = LastStep()


class Kept(NamedTuple):
    """Which networks are kept, and until when."""

    step: int
    lowest: float
    """The lowest figure so far."""
    standard_error: float
    """Of this figure. The networks of a later step take the place if they are within it."""


class Selection:
    """Measures a run on validation items while it trains, and keeps the networks to serve.

    Pass the object as ``watch`` to `training.engine.loop.train`, and `is_over` as ``enough``. What
    it measures does not depend on random numbers, so a resumed run measures the same again.

    Args:
        config: the run's, with ``selection``.
        data: what it trains on.
        checkpoints: folder for these networks.
        extractor: the features to compare images over; None for other data.
        say: takes a line for people.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        checkpoints: Path,
        extractor: FeatureExtractor | None,
        say: Callable[[str], None] = silent,
    ) -> None:
        assert config.selection is not None
        self.settings, self._config, self.extractor = config.selection, config, extractor
        self._data, self._folder, self._say = data.to_validate(), checkpoints, say
        self.figure = headlines(data.card)[0]
        path = checkpoints / MEASURED
        if newest_checkpoint(checkpoints) is None:  # what is there is of a run that left no step
            path.unlink(missing_ok=True)
            (checkpoints / BEST).unlink(missing_ok=True)
        kept = read_file(path, json.loads, REMEDY) if path.exists() else []
        self.measured: dict[int, float] = dict(kept)
        """The figure of each step that was measured; lower is better."""

    def __call__(self, step: int, state: TrainingState) -> None:
        """Measure if it is time; see `training.engine.runs.Watch`."""
        if step % self.settings.every and step != self._config.training.steps:
            return
        value, error = headline_and_error(
            self._config, self._data, state.ema, self.extractor, self.settings.samples
        )
        if not math.isfinite(value):
            return
        self.measured = {k: v for k, v in self.measured.items() if k < step} | {step: value}
        kept = self._kept()
        if kept is None or self.best() == step:  # the first time makes the folder
            self._keep(state, Kept(step, value, error))
        elif value < kept.lowest + kept.standard_error:
            self._keep(state, kept._replace(step=step))
        write_file(self._folder / MEASURED, json.dumps(list(self.measured.items())))
        write_file(self._folder.parent / PAGE, self._page(state))
        self._say(
            f"step {step}: {self.figure} of validation items {value:.4g}"
            + (", the best so far" if self.best() == step else f"; best at {self.best()}")
        )

    def best(self, step: int | None = None) -> int | None:
        """The step of the best measurement until some step, the first of equal ones, if any."""
        known = {k: v for k, v in self.measured.items() if step is None or k <= step}
        return min(known, key=lambda k: (known[k], k), default=None)

    def is_over(self, step: int) -> bool:
        """True if, until this step, ``patience`` measurements in a row were no better."""
        best = self.best(step)
        if self.settings.patience is None or best is None:
            return False
        return sum(best < k <= step for k in self.measured) >= self.settings.patience

    def take(self, state: TrainingState) -> dict[str, Any]:
        """Put the networks that are kept into the place of the last ones.

        Returns:
            What the record's provenance says of the choice.
        """
        kept = self._kept()
        if kept is None:
            return {}
        tensors = load_file(self._folder / BEST)
        state.ema.load_state_dict(part_of(tensors, "ema."))
        state.critic.load_state_dict(part_of(tensors, "critic."))
        best = self.best()
        assert best is not None
        why = ""
        if best != kept.step:
            error = f"a standard error ({kept.standard_error:.3g})"
            why = f", the last within {error} of the best, step {best}"
        self._say(f"the networks of step {kept.step} are taken{why}; {self._advice(best)}")
        return {
            "selected": {
                "step": kept.step,
                "figure": self.figure,
                "best_step": best,
                "standard_error": kept.standard_error,
                "measured": [[step, self.measured[step]] for step in sorted(self.measured)],
            }
        }

    def _advice(self, best: int) -> str:
        steps = sorted(self.measured)
        if best in steps[-2:] and not self.is_over(steps[-1]):
            return "they were still getting better: more steps or a longer --budget may help"
        return f"nothing was better in the {steps[-1] - best} steps after it: more would not help"

    def _kept(self) -> Kept | None:
        """What `BEST` says of the networks in it, if there are any."""
        if not (self._folder / BEST).exists():
            return None
        with safe_open(self._folder / BEST, framework="pt") as file:
            noted = file.metadata()
        return Kept(int(noted["step"]), float(noted["lowest"]), float(noted["standard_error"]))

    def _keep(self, state: TrainingState, what: Kept) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        new = self._folder / f"{BEST}.partial"
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part in ("ema", "critic")
            for name, tensor in getattr(state, part).state_dict().items()
        }
        try:
            save_file(tensors, new, {name: repr(it) for name, it in what._asdict().items()})
            put(new, self._folder / BEST)
        finally:
            new.unlink(missing_ok=True)

    @torch.no_grad()
    def _page(self, state: TrainingState) -> str:
        """The page of the run while it trains: the curve, and of images a grid of samples."""
        chart = Chart(
            title=f"{self.figure} of validation items",
            x_label="generator steps",
            y_label="lower is better",
            lines=[Line(name=self.figure, x=list(self.measured), y=list(self.measured.values()))],
        )
        return render(
            "progress.html.j2",
            title=f"{self._config.name} at step {max(self.measured)}",
            steps=self._config.training.steps,
            best=self.best(),
            chart=chart,
            samples=self._samples(state) if self._data.card.kind == "image" else None,
        )

    def _samples(self, state: TrainingState) -> bytes:
        generator = copy.deepcopy(state.ema).eval()
        z = torch.from_numpy(latents(0, 0, SHOWN, self._config.generator.latent_size))
        labels = []
        if self._config.conditional:
            labels = [torch.arange(SHOWN) % len(self._data.card.classes)]
        device = next(generator.parameters()).device
        made = generator(z.to(device), *(label.to(device) for label in labels)).cpu()
        scaling = self._data.scaling
        images = scaling.to_levels(scaling.to_data(made).numpy())
        if images.shape[3] not in MODES:  # more channels than a picture has: show the first
            images = images[..., :1]
        return encode_png(grid(enlarge(images, max(1, LEGIBLE_SIDE // max(images.shape[1:3])))))
