"""Does `wgan compare` recommend what a full sweep would choose?

    python -m benchmarks.advisor --out runs/advisor

Three data sets that no preset was tuned on: two rings in the plane, the breast-cancer table (30
columns) and the diabetes table (10 columns) of scikit-learn. The advisor is `wgan compare` as a
user would run it, three seeds of a short run of each constraint. The sweep trains each constraint
with five other seeds for four times as long, all for equal seconds at the pace that the comparison
measured. Regret is how much worse the chosen constraint's mean distance is than the best one's, as
a share of the latter; intervals are from bootstrapped seeds of the sweep. What is done is not done
again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, make_circles

from models.config import Config
from training.data.dataset import load_data
from training.engine.loop import train
from training.engine.runs import Diverged
from training.judging.headline import headline
from training.lab.comparison import compare
from training.lab.comparison.statistics import mean_over_seeds, recommend
from training.lab.jobs import run_jobs
from training.presets import build_config

RESULTS = Path(__file__).with_name("results") / "advisor.json"
CONSTRAINTS = (
    "none",
    "weight_clipping",
    "spectral_norm",
    "zero_centered_penalty",
    "gradient_penalty",
    "lipschitz_penalty",
)
SHORT, LONGER = 300, 4
"""Generator steps of the preset's own constraint in the comparison; the sweep's, relative."""
SEEDS = 3
HELD_OUT = range(100, 105)
"""Seeds of the sweep."""
PRESET = "table"
BOOTSTRAPS = 2000


def data_sets(folder: Path) -> dict[str, Path]:
    """Write the three, each column with mean 0 and deviation 1."""
    folder.mkdir(parents=True, exist_ok=True)
    points = {
        "rings": make_circles(4000, noise=0.05, factor=0.5, random_state=0)[0],
        "breast_cancer": load_breast_cancer().data,
        "diabetes": load_diabetes().data,
    }
    paths = {}
    for name, x in points.items():
        paths[name] = folder / f"{name}.npy"
        np.save(paths[name], ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32))
    return paths


def run(values: dict[str, Any]) -> float | None:
    """Train a run; return the distance that decides, or None if it diverged."""
    torch.set_num_threads(1)
    config = Config.model_validate(values)
    data = load_data(config.data, config.training.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        try:
            state, _ = train(config, data, Path(folder), torch.device("cpu"))
        except Diverged:
            return None
    return headline(config, data, state.ema, None)


def sweep(path: Path, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The jobs of one data set, by name."""
    jobs = {}
    for row in rows:
        if row["budget"] != "seconds":
            continue
        steps = LONGER * row["steps"]
        for seed in HELD_OUT:
            config = build_config(
                PRESET,
                str(path),
                row["constraint"],
                {
                    "training.steps": steps,
                    "training.seed": seed,
                    "training.log_every": steps,
                    "training.checkpoint_every": steps,
                },
            )
            jobs[f"{row['constraint']}-{seed}"] = config.model_dump(mode="json")
    return jobs


def judge(advice: str, values: dict[str, list[float]]) -> dict[str, Any]:
    """Rank and regret of a choice, with an interval over bootstrapped seeds.

    Args:
        advice: the constraint chosen.
        values: of the sweep, one a seed, by constraint; lower is better.
    """
    kinds = list(values)
    table = np.array([values[kind] for kind in kinds])
    mine = kinds.index(advice)

    def regret(means: np.ndarray) -> float:
        return float(means[mine] / means.min() - 1)

    rng = np.random.default_rng(0)
    drawn = [
        np.array([rng.choice(row, len(row)).mean() for row in table]) for _ in range(BOOTSTRAPS)
    ]
    means = table.mean(axis=1)
    low, high = np.quantile([regret(m) for m in drawn], [0.025, 0.975])
    return {
        "rank": int((means < means[mine]).sum()) + 1,
        "first_share": float(np.mean([m.argmin() == mine for m in drawn])),
        "regret": regret(means),
        "regret_low": float(low),
        "regret_high": float(high),
    }


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "steps": SHORT,
        "longer": LONGER,
        "seeds": SEEDS,
        "sweep_seeds": list(HELD_OUT),
    }
    firsts, regrets = [], []
    for name, path in data_sets(options.out / "data").items():
        compared = compare(
            str(path),
            CONSTRAINTS,
            SEEDS,
            options.out / name / "compared",
            preset=PRESET,
            steps=SHORT,
            overrides={"evaluation.samples": 300},
            processes=options.jobs,
            track=False,
            say=say,
        )
        jobs = sweep(path, compared["rows"])
        answers = run_jobs(run, jobs, options.out / name / "sweep", options.jobs, say)
        values = {
            kind: [np.inf if (v := answers[f"{kind}-{seed}"]) is None else v for seed in HELD_OUT]
            for kind in CONSTRAINTS
        }
        figure = compared["headline"]
        short = {
            row["constraint"]: row["figures"][figure]
            for row in compared["rows"]
            if row["budget"] == "seconds"
        }
        # Leave each seed out once: would two seeds have given the same advice?
        others = [
            recommend({k: [x for i, x in enumerate(v) if i != left] for k, v in short.items()}, "")
            for left in range(SEEDS)
        ]
        entry = {
            "advice": compared["recommendation"],
            "seconds": compared["seconds"],
            "sweep_seconds": LONGER * compared["seconds"],
            **judge(compared["recommendation"]["constraint"], values),
            "two_seeds": [o["constraint"] for o in others],
            "sweep": values,
            "compared": short,
        }
        found[name] = entry
        firsts.append(entry["rank"] == 1)
        regrets.append(entry["regret"])
        print(name, json.dumps({k: v for k, v in entry.items() if k not in ("sweep", "compared")}))
        for kind, v in values.items():
            print(f"  {kind:24s} {mean_over_seeds(v)}")
    found["first"] = sum(firsts)
    found["mean_regret"] = float(np.mean(regrets))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
