"""What augmentation brings where there are few images: preset mnist5k on some 550 digits.

    python -m benchmarks.augmentation --out runs/augmentation

Each way trains on the same items with as many steps, but that one which follows overfitting leaves
a tenth of them out to measure it. The samples are compared with the digits that the preset holds
out, over a classifier that has seen none of these. Runs that are complete are not repeated.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.markdown import mean_and_range, table
from models.config import DataConfig, EvaluationConfig
from models.sampling import latents
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.judging.extractors import FeatureExtractor, choose_extractor
from training.judging.metrics import kernel_distance, precision_recall_density_coverage
from training.presets import build_config

Array = np.ndarray
RESULTS = Path(__file__).with_name("results") / "augmentation.json"
PRESET = "mnist5k"
HELDOUT = 0.89
"""Share that is not trained on; with 0.2, the preset's, 4,000 digits would be."""
STEPS = 1500
SEEDS = (0, 1)
MEASUREMENTS = 3
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "all three, strength 1": {"augmentation.strength": 1},
    "all three, target 0.3": {
        "augmentation.target": 0.3,
        "augmentation.ramp": 50_000,
        "data.validation_fraction": 0.1,
    },
    "translation and cutout, strength 1": {
        "augmentation.strength": 1,
        "augmentation.operations": "translation,cutout",
    },
}
FIGURES = {"kernel_distance": "{:.3g}", "precision": "{:.2f}", "recall": "{:.2f}"}


class Judge:
    """Compares samples with the digits that the preset holds out."""

    def __init__(self) -> None:
        self.data = load_data(DataConfig(source=PRESET))
        self.features: FeatureExtractor = choose_extractor(EvaluationConfig(), self.data)
        self.heldout = self.features(self.data.heldout)

    def figures(self, items: Array) -> dict[str, float]:
        """The figures of items, uint8 ``(N, 28, 28, 1)``."""
        found = self.features(items)
        figures = precision_recall_density_coverage(self.heldout, found)
        return {
            "kernel_distance": kernel_distance(self.heldout, found),
            "precision": figures["precision"],
            "recall": figures["recall"],
        }

    @torch.no_grad()
    def judge(self, data: Dataset, state: TrainingState) -> dict[str, float]:
        """The figures of a generator in training, and its critic's overfitting.

        That is r_v of held-out digits, none of them augmented, whatever the way.
        """
        z = torch.from_numpy(latents(0, 0, len(self.heldout), 64))
        generator, critic = state.ema.eval(), state.critic.eval()
        fake = generator(z)
        found = self.figures(data.scaling.to_data(fake).numpy())
        sets = (data.training, self.data.heldout)
        training, heldout = (
            critic(data.scaling.to_model(torch.from_numpy(items))).mean().item() for items in sets
        )
        generated = critic(fake).mean().item()
        critic.train()
        return {**found, "overfitting": (training - heldout) / (training - generated)}


def run(way: str, seed: int, steps: int, out: Path, judge: Judge) -> list[dict[str, Any]]:
    """Train one way with one seed; a row for each measurement."""
    done = out / f"{way.replace(' ', '-')}-{seed}-{steps}.json"
    if done.exists():
        kept: list[dict[str, Any]] = json.loads(done.read_text())
        return kept
    settings = {
        **WAYS[way],
        "data.heldout_fraction": HELDOUT,
        "training.steps": steps,
        "training.seed": seed,
        "training.log_every": steps // MEASUREMENTS,
    }
    config = build_config(PRESET, overrides=settings)
    data, rows, began = load_data(config.data), list[dict[str, Any]](), time.process_time()

    def watch(step: int, state: TrainingState) -> None:
        if step % (steps // MEASUREMENTS) == 0:
            seconds = time.process_time() - began
            found = {"way": way, "seed": seed, "step": step, "cpu_seconds": round(seconds, 1)}
            found["items"] = data.card.training_count
            rows.append({**found, **judge.judge(data, state)})

    with tempfile.TemporaryDirectory() as folder:
        _, history = train(config, data, Path(folder), torch.device("cpu"), watch=watch)
    fixed = WAYS[way].get("augmentation.strength", 0)
    for row, logged in zip(rows, history, strict=True):
        row["strength"] = logged.get("augmentation_strength", fixed)
    done.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def shown(results: dict[str, Any]) -> str:
    """The table of docs/augmentation.md."""
    rows, last = results["rows"], max(row["step"] for row in results["rows"])
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        ends = [row for row in rows if row["way"] == way and row["step"] == last]
        forms = {**FIGURES, "strength": "{:.2f}", "overfitting": "{:.2f}"}
        cells = [mean_and_range([r[name] for r in ends], form) for name, form in forms.items()]
        lines.append([way, *cells])
    real = [FIGURES[name].format(results["real"][name]) for name in FIGURES]
    lines.append(["real digits in their place", *real, "", ""])
    header = ["augmentation", "kernel distance", "precision", "recall", "strength", "overfitting"]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    judge, rows = Judge(), []
    for seed in options.seeds:
        for way in options.ways:
            rows += run(way, seed, options.steps, options.out, judge)
            print(json.dumps(rows[-1]), flush=True)
    training = judge.data.sample(len(judge.heldout), heldout=False)
    real = judge.figures(training)
    results = {"preset": PRESET, "steps": options.steps, "real": real, "rows": rows}
    options.results.write_text(json.dumps(results, indent=1) + "\n")
    print(shown(results))


if __name__ == "__main__":
    main()
