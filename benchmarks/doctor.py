"""Does the doctor's look at a run predict how the run ends?

    python benchmarks/doctor.py --out runs/doctor

Two grids of small runs, each drawn by a fixed seed. The risk of failing (`training.judging.doctor.
risk`) is fitted to the first and judged on the second, which has other clip values, penalties,
learning rates, widths and depths, and data that the first lacks; see `GRIDS`. At a fifth and three
fifths of the steps, and at the end, the doctor looks.

By a rule fixed beforehand a run has failed if its final samples are no nearer to held-out data than
samples of a Gaussian with the training data's mean and covariance: by the exact Wasserstein-1
distance for vectors, by the kernel distance over the features of ``digits-cnn-v1`` for images,
with equally many samples. Runs that are done are not repeated.
"""

import argparse
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.doctor_risk import SHARES, write_results
from models.config import Config, DataConfig, EvaluationConfig, parse_config
from models.errors import ConfigError
from models.sampling import latents
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.engine.runs import Diverged
from training.judging.doctor.checks import CHECKS
from training.judging.doctor.diagnosis import diagnose
from training.judging.extractors import load_extractor
from training.judging.metrics import kernel_distance, wasserstein_1
from training.lab.jobs import run_jobs

JUDGED = 1000
TABLES = Path(tempfile.gettempdir()) / "wgan-doctor-tables"
GRIDS: dict[str, dict[str, Any]] = {
    "fitting": {
        "seed": 20170331,
        "runs": 150,
        "data": ("8gaussians", "25gaussians", "cancer", "flower", "digits"),
        "constraint": (
            *({"kind": "weight_clipping", "clip_value": c} for c in (0.003, 0.01, 0.03, 0.1, 0.3)),
            {"kind": "lipschitz_penalty", "strength": 1.0},
            {"kind": "lipschitz_penalty", "strength": 10.0},
            {"kind": "gradient_penalty", "strength": 1.0},
            {"kind": "gradient_penalty", "strength": 10.0},
            {"kind": "zero_centered_penalty", "strength": 1.0},
            {"kind": "spectral_norm"},
            {"kind": "none"},
        ),
        "depth": (2, 4, 8),
        "width": (64,),
        "normalization": ("none", "batch", "layer"),
        "activation": ("relu",),
        "num_critic_steps": (2,),
        "learning_rate": (5e-4, 1e-3, 3e-3),
    },
    "judging": {
        "seed": 20260726,
        "runs": 204,
        "data": (
            *("swissroll", "25gaussians", "iris", "china", "digits"),
            *("swissroll", "25gaussians", "iris", "china", "mnist5k"),
        ),
        "constraint": (
            *({"kind": "weight_clipping", "clip_value": c} for c in (0.005, 0.02, 0.05, 0.15, 0.5)),
            {"kind": "lipschitz_penalty", "strength": 0.3},
            {"kind": "lipschitz_penalty", "strength": 3.0},
            {"kind": "gradient_penalty", "strength": 0.3},
            {"kind": "gradient_penalty", "strength": 5.0},
            {"kind": "zero_centered_penalty", "strength": 0.3},
            {"kind": "dragan", "strength": 3.0},
            {"kind": "norm_clipping", "max_norm": 1.0},
            {"kind": "spectral_norm"},
            {"kind": "none"},
        ),
        "depth": (3, 5, 7),
        "width": (32, 96),
        "normalization": ("none", "batch", "layer"),
        "activation": ("relu", "leaky_relu"),
        "num_critic_steps": (1, 3),
        "learning_rate": (7e-4, 2e-3),
    },
}
STEPS = 250


def draw(name: str) -> dict[str, dict[str, object]]:
    """Runs of a grid, by name: the data sets in turn, everything else drawn at random."""
    grid = GRIDS[name]
    rng = np.random.default_rng(grid["seed"])
    runs: dict[str, dict[str, object]] = {}
    factors = [key for key in grid if key not in ("seed", "runs", "data")]
    while len(runs) < grid["runs"]:
        source = grid["data"][len(runs) % len(grid["data"])]
        chosen = {key: grid[key][rng.integers(len(grid[key]))] for key in factors}
        values = settings(source, seed=int(rng.integers(1000)), **chosen)
        try:
            config = parse_config(values)
        except ConfigError:  # batch normalisation under a penalty
            continue
        kind = "-".join(map(str, chosen.pop("constraint").values()))
        label = "-".join([name, source, kind, *map(str, chosen.values())])
        runs[label] = {"grid": name, "data": source, "config": config.model_dump(mode="json")}
    return runs


def grids() -> dict[str, dict[str, object]]:
    """All runs by name, the two grids in step: those that are done at any time are of both."""
    place = {}
    for grid in GRIDS:
        drawn = draw(grid)
        place.update({name: (i / len(drawn), job) for i, (name, job) in enumerate(drawn.items())})
    return {name: job for name, (_, job) in sorted(place.items(), key=lambda item: item[1][0])}


def settings(
    source: str,
    constraint: dict[str, object],
    depth: int,
    width: int,
    normalization: str,
    activation: str,
    num_critic_steps: int,
    learning_rate: float,
    seed: int,
) -> dict[str, Any]:
    """The configuration of a run; images have convolutions, and a quarter of the width."""
    data: dict[str, object] = {"source": source}
    images = source in ("digits", "mnist5k")
    if source == "mnist5k":
        data["size"] = 8
    if source in ("cancer", "iris", "flower", "china"):
        data = {"source": str(TABLES / f"{source}.npy"), "heldout_fraction": 0.5}
    architecture = "dcgan" if images else "mlp"
    steps = STEPS
    return {
        "name": "predicted",
        "data": data,
        "generator": {
            "architecture": architecture,
            "width": 16 if images else 64,
            "depth": 2 if images else 3,
            "activation": "relu",
            "normalization": "batch" if images else "none",
            "latent_size": 16 if images else 4,
        },
        "critic": {
            "architecture": architecture,
            "width": width // 4 if images else width,
            "depth": (depth + 1) // 2 if images else depth,
            "activation": activation,
            "normalization": normalization,
        },
        "constraint": constraint,
        "training": {
            "steps": steps,
            "batch_size": 32 if images else 64,
            "num_critic_steps": num_critic_steps,
            "optimizer": "adam",
            "learning_rate": learning_rate,
            "decay_from": 0.3,
            "ema_decay": 0.98,
            "log_every": steps // 20,
            "checkpoint_every": steps,
            "seed": seed,
        },
    }


def write_tables(folder: Path) -> None:
    """Numeric tables of scikit-learn: four columns of two of them, and the colours of two photos.

    With more columns the distance between few samples says little of that between distributions.
    """
    from sklearn.datasets import load_breast_cancer, load_iris, load_sample_image

    folder.mkdir(parents=True, exist_ok=True)
    cancer = load_breast_cancer()
    columns = ["mean radius", "mean concavity", "area error", "worst texture"]
    chosen = [list(cancer.feature_names).index(name) for name in columns]
    np.save(folder / "cancer.npy", cancer.data[:, chosen])
    np.save(folder / "iris.npy", load_iris().data)
    for photo in ("china", "flower"):
        colours = load_sample_image(f"{photo}.jpg").reshape(-1, 3) / 255
        rows = np.random.default_rng(0).choice(len(colours), 20_000, replace=False)
        np.save(folder / f"{photo}.npy", colours[rows])


@functools.cache
def loaded(config: DataConfig) -> tuple[Dataset, float]:
    """Data, and the distance to held-out items of samples of a Gaussian that is fitted to it."""
    data = load_data(config)
    flat = data.training.reshape(len(data.training), -1).astype(np.float64)
    rng = np.random.default_rng(0)
    heldout = data.sample(JUDGED, heldout=True)
    gaussian = rng.multivariate_normal(flat.mean(axis=0), np.cov(flat.T), len(heldout))
    gaussian = gaussian.reshape(heldout.shape)
    if data.card.kind == "image":
        gaussian = gaussian.round().clip(0, 255).astype(np.uint8)
    return data, distance(data, gaussian)


def distance(data: Dataset, samples: np.ndarray) -> float:
    """Distance of samples, in data units, to as many held-out items."""
    heldout = data.sample(JUDGED, heldout=True)
    if data.card.kind == "image":
        extract = load_extractor("digits-cnn-v1", EvaluationConfig())
        return kernel_distance(extract(heldout), extract(samples))
    to_model = data.scaling.to_model
    real, fake = (to_model(torch.from_numpy(x)).double().numpy() for x in (heldout, samples))
    return wasserstein_1(real, fake)


def run(job: dict[str, Any]) -> dict[str, object]:
    """Train a run; record what the doctor saw of it, and how it ended."""
    torch.set_num_threads(1)
    config = Config.model_validate(job["config"])
    data, bound = loaded(config.data)
    steps = config.training.steps
    looks = {round(share * steps): f"{share:g}" for share in SHARES}
    seen: dict[str, dict[str, float]] = {}

    def watch(step: int, state: TrainingState) -> None:
        if step in looks:
            findings = diagnose(config, data, state.ema, state.critic)
            seen[looks[step]] = {
                f.name: float(f"{f.value:.6g}") for f in findings if f.name in CHECKS
            }

    answer = {"grid": job["grid"], "data": job["data"], "looks": seen, "bound": bound}
    with tempfile.TemporaryDirectory() as folder:
        try:
            state, _ = train(config, data, Path(folder), torch.device("cpu"), watch=watch)
        except Diverged as error:
            return answer | {"failed": True, "distance": None, "diverged": str(error)}
    heldout = data.sample(JUDGED, heldout=True)
    z = torch.from_numpy(latents(1, 0, len(heldout), config.generator.latent_size))
    with torch.no_grad():
        fake = data.scaling.to_data(state.ema.eval()(z)).numpy()
    found = distance(data, fake)
    return answer | {"failed": not found < bound, "distance": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--so-far", action="store_true", help="sum up what is done, run nothing")
    options = parser.parse_args()
    write_tables(TABLES)
    jobs = grids()
    if options.so_far:
        jobs = {name: job for name, job in jobs.items() if (options.out / f"{name}.json").exists()}
    answers = run_jobs(run, jobs, options.out, options.jobs, lambda line: print(line, flush=True))
    write_results(answers)


if __name__ == "__main__":
    main()
