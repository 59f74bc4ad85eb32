"""Does the doctor's look at a fifth of a run predict how the run ends?

    python benchmarks/doctor.py --out runs/doctor

Sixty small vector runs over clip value, depth, normalisation, constraint and data, drawn once from
the whole grid by a fixed seed; no threshold of the doctor was chosen on them. At a fifth of the
steps the doctor looks; at the end the run has failed if its samples are no nearer to held-out data
than those of a Gaussian with the training data's mean and covariance (exact Wasserstein-1 distance,
equally many samples). For each finding the result is the probability that a failing run has the
larger value (the area under the ROC curve), with a 95% interval from bootstrapped runs. Runs that
are done are not repeated. A finding whose area is below 0.7 must not warn.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from models.config import Config, parse_config
from models.errors import ConfigError
from models.sampling import latents
from training.data.dataset import Dataset, load_data
from training.engine.loop import train
from training.engine.runs import Diverged
from training.judging.doctor.checks import CHECKS
from training.judging.doctor.diagnosis import diagnose
from training.judging.metrics import wasserstein_1
from training.lab.jobs import run_jobs

RESULTS = Path(__file__).with_name("results") / "doctor.json"
RUNS = 60
STEPS = 400
LOOK = 0.2
JUDGED = 1000
DATA = ("8gaussians", "25gaussians", "swissroll")
CONSTRAINTS = (
    *({"kind": "weight_clipping", "clip_value": c} for c in (0.003, 0.01, 0.03, 0.1, 0.3)),
    {"kind": "lipschitz_penalty", "strength": 1.0},
    {"kind": "gradient_penalty", "strength": 1.0},
    {"kind": "gradient_penalty", "strength": 10.0},
    {"kind": "spectral_norm"},
    {"kind": "none"},
)


def grid() -> dict[str, dict[str, object]]:
    """Configurations of sixty of all valid combinations, by name."""
    every = {}
    for source, constraint, depth, norm in itertools.product(
        DATA, CONSTRAINTS, (2, 4, 8), ("none", "batch", "layer")
    ):
        values = {
            "name": "predicted",
            "data": {"source": source},
            "generator": {"width": 64, "depth": 3, "activation": "relu", "latent_size": 2},
            "critic": {"width": 64, "depth": depth, "activation": "relu", "normalization": norm},
            "constraint": constraint,
            "training": {
                "steps": STEPS,
                "batch_size": 128,
                "num_critic_steps": 2,
                "optimizer": "adam",
                "learning_rate": 1e-3,
                "decay_from": 0.3,
                "ema_decay": 0.98,
                "log_every": STEPS,
                "checkpoint_every": STEPS,
            },
        }
        try:
            config = parse_config(values)
        except ConfigError:  # batch normalisation under a penalty
            continue
        setting = "-".join(map(str, constraint.values()))
        every[f"{source}-{setting}-{depth}-{norm}"] = config.model_dump(mode="json")
    chosen = np.random.default_rng(20170331).permutation(len(every))[:RUNS]
    names = list(every)
    return {names[i]: every[names[i]] for i in sorted(chosen)}


def run(values: dict[str, object]) -> dict[str, object]:
    """Train a run; record what the doctor saw at a fifth of it, and how it ended."""
    torch.set_num_threads(1)
    config = Config.model_validate(values)
    data = load_data(config.data, config.training.batch_size)
    seen: dict[str, float] = {}

    def watch(step: int, state: object) -> None:
        if step == int(LOOK * STEPS):
            findings = diagnose(config, data, state.ema, state.critic)
            seen.update({finding.name: finding.value for finding in findings})

    with tempfile.TemporaryDirectory() as folder:
        try:
            state, _ = train(
                config, data, Path(folder), torch.device("cpu"),
                watch=watch,
            )  # fmt: skip
        except Diverged as error:
            return {"findings": seen, "failed": True, "distance": None, "diverged": str(error)}
    z = torch.from_numpy(latents(1, 0, JUDGED, config.generator.latent_size))
    with torch.no_grad():
        fake = state.ema.eval()(z).double().numpy()
    distance, bound = wasserstein_1(held_out(data), fake), gaussian_distance(data)
    return {"findings": seen, "failed": distance >= bound, "distance": distance, "bound": bound}


def held_out(data: Dataset) -> np.ndarray:
    return data.sample(JUDGED, heldout=True).astype(np.float64)


def gaussian_distance(data: Dataset) -> float:
    """W1 between held-out items and a Gaussian fitted to the training items."""
    training = data.training.astype(np.float64)
    rng = np.random.default_rng(0)
    samples = rng.multivariate_normal(training.mean(axis=0), np.cov(training.T), JUDGED)
    return wasserstein_1(held_out(data), samples)


def area(failing: np.ndarray, training: np.ndarray) -> float:
    """Probability that a failing run has the larger value; a tie counts half."""
    differences = failing[:, None] - training
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def summary(answers: dict[str, dict]) -> dict[str, object]:
    found = {}
    for name in CHECKS:
        pairs = [
            (a["findings"][name], a["failed"]) for a in answers.values() if name in a["findings"]
        ]
        sides = [np.array([v for v, failed in pairs if failed is side]) for side in (True, False)]
        entry: dict[str, object] = {"failing": len(sides[0]), "training": len(sides[1])}
        if min(map(len, sides)) > 1:
            rng = np.random.default_rng(0)
            areas = [area(*(rng.choice(x, len(x)) for x in sides)) for _ in range(2000)]
            low, high = np.quantile(areas, [0.025, 0.975])
            entry |= {"area": area(*sides), "low": float(low), "high": float(high)}
        found[name] = entry
    failed = sum(a["failed"] for a in answers.values())
    return {
        "runs": len(answers),
        "failed": failed,
        "trained": len(answers) - failed,
        "findings": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--so-far", action="store_true", help="sum up what is done, run nothing")
    options = parser.parse_args()
    jobs = grid()
    if options.so_far:
        jobs = {name: job for name, job in jobs.items() if (options.out / f"{name}.json").exists()}
    answers = run_jobs(run, jobs, options.out, options.jobs, lambda line: print(line, flush=True))
    found = summary(answers)
    found["planned"] = RUNS
    found["answers"] = answers
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(found, indent=1) + "\n")
    for name, entry in found["findings"].items():
        print(name, json.dumps(entry))


if __name__ == "__main__":
    main()
