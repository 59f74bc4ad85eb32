"""Stacked digits: how many of 1,000 modes a model covers, beside the published figures.

    python -m benchmarks.stacked_digits --out runs/stacked --budget 30m --seeds 0 1 2

Three digits drawn at random are the colours of one image, so that there are 1,000 kinds of images,
all equally frequent (Metz et al. 2017, "Unrolled GANs", section 3.3.1). 26,000 samples are judged
as in section 4.2 of PacGAN (Lin et al. 2018): a classifier reads each colour; a mode counts if one
sample or more is of it; the KL divergence is that of the samples' kinds from the uniform
distribution. What differs from PacGAN: the digits are the 4,000 training digits of ``mnist5k``, not
60,000; the images number 64,000, not 128,000; the networks are those of the preset ``images`` at
28 pixels; and the classifier is our own, trained on the same digits. Real images of held-out digits
are judged alike: even of these, 26,000 have a divergence of about 999 / 52,000 by chance.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.images import timed
from benchmarks.markdown import mean_and_range, put_between, table
from benchmarks.truncation import of_last_step
from models.artifact import load_artifact
from models.config import DataConfig
from models.model import Model
from training.data.dataset import Dataset, load_data
from training.judging.extractors import train_classifier

Array = np.ndarray
RESULTS = Path(__file__).with_name("results") / "stacked_digits.json"
PAGE = Path(__file__).parents[1] / "docs" / "images.md"
BEGIN, END = "<!-- made by benchmarks.stacked_digits -->", "<!-- end of stacked digits -->"
STACKED, JUDGED, MODES = 64_000, 26_000, 1000
PUBLISHED = {
    "WGAN-GP (published)": (959, 0.73),
    "PacDCGAN2 (published)": (1000, 0.06),
}
"""Modes and KL divergence, as the literature reports them."""


def stacks(digits: Array, count: int, seed: int) -> Array:
    """Images ``(count, 28, 28, 3)`` of digits ``(N, 28, 28, 1)``, three at random in each."""
    chosen = np.random.default_rng(seed).integers(len(digits), size=(count, 3))
    return np.concatenate([digits[chosen[:, colour]] for colour in range(3)], axis=3)


def figures(kinds: Array) -> dict[str, float]:
    """Modes covered, and the KL divergence from the uniform distribution in nats.

    >>> figures(np.array([[0, 0, 0], [0, 0, 1]]))["modes"]
    2

    Args:
        kinds: the class of each colour, int ``(N, 3)``.
    """
    counts = np.bincount(kinds @ [100, 10, 1], minlength=MODES)
    shares = counts[counts > 0] / len(kinds)
    return {"modes": len(shares), "kl": float((shares * np.log(shares * MODES)).sum())}


class Judge:
    """Reads the digits of stacked images."""

    def __init__(self, data: Dataset) -> None:
        assert data.labels is not None
        self.classifier = train_classifier(data)
        self.accuracy = float((self._read(data.heldout) == data.labels[data.is_heldout]).mean())

    @torch.inference_mode()
    def _read(self, digits: Array) -> Array:
        """Classes ``(N,)`` of digits ``(N, 28, 28, 1)``."""
        pixels = torch.from_numpy(digits).permute(0, 3, 1, 2)
        parts = [self.classifier(part.float() / 127.5 - 1).argmax(1) for part in pixels.split(1000)]
        return torch.cat(parts).numpy()

    def __call__(self, images: Array) -> dict[str, float]:
        """The figures of stacked images ``(N, 28, 28, 3)``."""
        return figures(np.stack([self._read(images[..., c : c + 1]) for c in range(3)], axis=1))


def measure(data: Path, seed: int, budget: str, out: Path, judge: Judge) -> dict[str, Any]:
    """Train on stacked digits, if that was not done before, and judge samples."""
    run = out / f"run-{seed}"
    cost = run / "cost.json"
    if not cost.exists():
        told = ["--preset", "images", "--data", data, "--set", "data.size=28", "--budget", budget]
        seconds = timed("train", *told, "--seed", seed, "--no-register", "--resume", "--out", run)
        cost.write_text(json.dumps(seconds))
    model = load_artifact(run / "artifact")
    config = model.run.config

    def judged(made: Model) -> dict[str, float]:
        return judge(np.concatenate(list(made.samples(seed, JUDGED))))

    return {
        "seed": seed,
        "budget": budget,
        **json.loads(cost.read_text()),
        "width": config.generator.width,
        "steps": config.training.steps,
        **judged(model),
        "last_step": judged(of_last_step(run, model)),
    }


def shown(found: dict[str, Any]) -> str:
    """The table of the page."""
    runs = found["runs"]
    minutes = mean_and_range([run["cpu_seconds"] / 60 for run in runs], "{:.0f}")
    seeds = ", ".join(str(run["seed"]) for run in runs)
    title = f"ours, {runs[0]['budget']}: {minutes} CPU minutes; seeds {seeds}"

    def cells(found: list[dict[str, Any]]) -> list[str]:
        return [mean_and_range([run[key] for run in found], "{:.3g}") for key in ("modes", "kl")]

    rows = [[title, *cells(runs)]]
    rows.append(["the networks of its last step", *cells([run["last_step"] for run in runs])])
    rows += [[name, str(modes), str(kl)] for name, (modes, kl) in PUBLISHED.items()]
    rows.append(["held-out digits", str(found["real"]["modes"]), f"{found['real']['kl']:.3g}"])
    return table(["", "modes of 1,000", "KL divergence"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--budget", default="30m")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    digits = load_data(DataConfig(source="mnist5k"))
    judge = Judge(digits)
    data = options.out / "stacked.npz"
    np.savez(data, stacks(digits.training, STACKED, seed=0))
    runs = [measure(data, seed, options.budget, options.out, judge) for seed in options.seeds]
    real = judge(stacks(digits.heldout, JUDGED, seed=1))
    found = {
        "cores": os.cpu_count(),
        "classifier_accuracy": judge.accuracy,
        "real": real,
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    put_between(PAGE, BEGIN, END, shown(found))


if __name__ == "__main__":
    main()
