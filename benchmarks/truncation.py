"""What cutting latents off does to images, and what lies between two of them, drawn and measured.

    python -m benchmarks.truncation --runs runs/images --task mnist5k --seeds 0 1 2

Takes the finished runs of `benchmarks.images`. The first seed's model draws two pictures: samples
at each bound, the same latents one above the other; and walks along great circles between
samples, each row of one class where the model has classes. All models are judged at each bound, and
so is, without one, the generator of each run's last step, where another step was selected.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.images import TASKS
from benchmarks.images_peers import DOCS, FIGURES, figure_cells, figures
from benchmarks.markdown import put_between, table
from models.artifact import load_artifact
from models.images import encode_png, enlarge, grid
from models.model import Model
from models.run_folder import CHECKPOINTS
from training.data.dataset import load_data
from training.engine.checkpoint import load_checkpoint, newest_checkpoint, part_of
from training.judging.extractors import choose_extractor

RESULTS = Path(__file__).with_name("results") / "truncation.json"
BEGIN, END = "<!-- made by benchmarks.truncation -->", "<!-- end of truncation -->"
BOUNDS = (None, 2.0, 1.5, 1.0, 0.5)
"""Of latents, in standard deviations; None leaves them as they are."""
LAST_STEP = "all, of the last step"
SEED = 7
"""Of what is drawn and judged."""
ACROSS, WALKS = 12, 8
"""Images in a row of the pictures, and walks of the second."""


def of_last_step(run: Path, model: Model) -> Model:
    """A run's model with the generator of its last step in the place of the selected one."""
    newest = newest_checkpoint(run / CHECKPOINTS)
    assert newest is not None, "a finished run keeps its last checkpoint"
    generator = copy.deepcopy(model.generator)
    generator.load_state_dict(part_of(load_checkpoint(newest).tensors, "ema."))
    return Model(model.run, generator, model.critic, model.quantiles, model.digest)


def measure(task: str, seed: int, run: Path, model: Model) -> list[dict[str, Any]]:
    """Judge a run's samples at each bound, and of its last step, against the held-out images."""
    data = load_data(model.run.config.data)
    extractor = choose_extractor(model.run.config.evaluation, data)
    count = min(
        model.run.config.evaluation.samples, data.card.heldout_count, data.card.training_count
    )
    real = extractor(data.sample(count, heldout=True))
    rows = []
    ways = [(name_of(bound), model, bound) for bound in BOUNDS]
    for way, judged, bound in [*ways, (LAST_STEP, of_last_step(run, model), None)]:
        made = np.concatenate(list(judged.samples(SEED, count, truncation=bound)))
        rows.append({"task": task, "seed": seed, "way": way, **figures(extractor, real, made)})
    return rows


def name_of(bound: float | None) -> str:
    """What the table calls samples within a bound."""
    return "all" if bound is None else f"within {bound:g}"


def draw(task: str, model: Model) -> None:
    """Write both pictures of a task."""
    bounded = [image for bound in BOUNDS for image in model.samples(SEED, ACROSS, truncation=bound)]
    at = np.linspace(0, 1, ACROSS)
    walks = [
        image for walk in range(WALKS) for image in model.walk(SEED + walk, SEED + walk + 1, at)
    ]
    for name, images in {"truncation": bounded, "walks": walks}.items():
        sheet = grid(enlarge(np.concatenate(images), 2), columns=ACROSS)
        (DOCS / f"images-{task}-{name}.png").write_bytes(encode_png(sheet))


def shown(results: list[dict[str, Any]]) -> str:
    """The table of the page: means over seeds, with ranges."""
    rows = []
    for task in dict.fromkeys(row["task"] for row in results):
        for way in [*map(name_of, BOUNDS), LAST_STEP]:
            mine = [row for row in results if (row["task"], row["way"]) == (task, way)]
            rows.append([f"`{task}`", way, *figure_cells(mine)])
    return table(["model", "latents", *(title for title, _ in FIGURES.values())], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--task", default="mnist5k", choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    results = [row for row in results if row["task"] != options.task]
    for seed in options.seeds:
        run = options.runs / f"{options.task}-{seed}"
        model = load_artifact(run / "artifact")
        if seed == options.seeds[0]:
            draw(options.task, model)
        results += measure(options.task, seed, run, model)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    put_between(DOCS / "images.md", BEGIN, END, shown(results))


if __name__ == "__main__":
    main()
